"""Segment images with a trained network: label maps of the type and the geometry of the files that
go in.

    python code/predict.py runs/LA/coranet_16/seed1337 scan.nii.gz --out segmentations
    python code/predict.py runs/own/dmd_8/seed1337 images/ --out segmentations --uncertainty
    python code/predict.py last.pth images/ --out segmentations --resume --stride 32 32 32

The model is a run's folder, a checkpoint (.pth) or a folder that export.py wrote. An input is a
file, or a folder that is searched with all folders below it: .nii, .nii.gz, .nrrd, .mha, .mhd, a
folder of DICOM files (one series, one image) and .h5 files of the data sets' layouts. The outputs
stand in <out>, under the sub-folders that the input has below the folder named here:

    <name>.<type>
        uint8 labels of the input's size, spacing, origin and direction. A DICOM series gives
        .nii.gz, an .h5 file another one with `prediction` and the attributes that it had.
    <name>_probability_<c>.<type>
        with --probabilities: the probability of class c, float32 (.h5: `probability`, the
        background first)
    <name>_uncertainty.<type>
        with --uncertainty: the entropy -Σ p ln p of the mean softmax in nats, from 0 to ln C for C
        classes with the background (.h5: `uncertainty`)
    predict.json
        model, options, preprocessing, versions

Images are prepared as those of the training were: axes, spacing, crop, grey values, which the
checkpoint knows. The `image` of an .h5 file is taken as prepared. A network trained with
--downsample sees blocks averaged as in training. The mean softmax of windows and networks is
interpolated linearly on the image's own grid, and the likeliest class is taken there; outside of a
crop is background. Windows are summed a patch's planes at a time, which gives the same bits as all
at once. So an image of any length needs memory only for itself, its labels, and 4 bytes a voxel for
each map.

A file that cannot be read, or that holds several frames, is reported in one line and skipped; then
the exit status is 1. For research; not a medical device.
"""

import json
import sys
import time
import warnings
from pathlib import Path

import h5py
import numpy as np
import torch

import _root  # noqa: F401
from dataloaders import DATASETS, dataset_class, h5
from dataloaders.preprocessing import Preprocessing
from utils import command, distributed, environment, progress
from utils.batchnorm import retake
from utils.device import resolve_precision, select_device
from utils.errors import UserError
from utils.files import write_atomically
from utils.inference import check_stride
from utils.preparation.images import from_array, read_image, write_image
from utils.preparation.prediction import around, segment, whole
from utils.preparation.prediction_files import find_jobs, unfinished
from utils.preparation.preprocess import preprocess
from utils.trained import checkpoint_name, find_checkpoint, load_trained

RECORD = "predict.json"


# ------------------------------------------------------------------------------------ the options


def parse(argv=None):
    parser = command.Parser(__doc__, __file__)
    parser.add_argument("model", type=Path, help="folder of a run, checkpoint, or exported folder")
    parser.add_argument("input", type=Path, nargs="+", help="image files, and folders of them")
    parser.add_argument(
        "--out", type=Path, required=True, help="folder for the results; it is made"
    )
    parser.add_argument(
        "--probabilities", action="store_true", help="also write each class's probability"
    )
    parser.add_argument(
        "--uncertainty",
        action="store_true",
        help="also write the entropy of the mean softmax, in nats",
    )
    parser.add_argument(
        "--resume", action="store_true", help="skip the images whose results are in --out already"
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace the results that are in --out already"
    )
    add_model_options(parser.add_argument_group("model"))
    add_prediction_options(parser.add_argument_group("prediction"))
    args = parser.parse_args(argv)
    if args.resume and args.overwrite:
        parser.error(
            "--resume keeps earlier results, --overwrite replaces them: give one of the two"
        )
    command.check_batchnorm(parser, args)
    return args


def add_model_options(group):
    group.add_argument(
        "--checkpoint",
        type=checkpoint_name,
        help="checkpoint of a run: last, best, or the number of a kept step (default: last)",
    )
    group.add_argument(
        "--network",
        help="use only this network of the checkpoint (default: those that the paper tests)",
    )
    command.add_batchnorm(group)
    group.add_argument(
        "--preprocessing",
        metavar="JSON",
        help='prepare the images in this way, given as a file or as text such as {"intensity": '
        '"zscore"} (default: as in training)',
    )


def add_prediction_options(group):
    largest = [name for name in DATASETS if dataset_class(name).keep_largest]
    group.add_argument(
        "--frame",
        type=command.non_negative_int,
        help="frame to segment of images with a time axis, counted from 0",
    )
    group.add_argument(
        "--stride",
        type=command.positive_int,
        nargs=3,
        metavar=("X", "Y", "Z"),
        help="steps of the window along each axis, in voxels that the network sees; larger steps "
        "are faster (default: as in the data set's tests)",
    )
    group.add_argument(
        "--nms",
        type=int,
        choices=(0, 1),
        help="1 keeps only the largest component of each class (default: 1 for networks of "
        f"{' and '.join(largest)}, 0 for all others)",
    )
    command.add_device(group)


# --------------------------------------------------------------------------------------- the steps


def main(argv=None):
    args = parse(argv)
    distributed.alone()
    path = find_model(args)
    device = select_device(args.gpu)
    model = load_trained(path, device, args.network)
    settings = inference_settings(args, model, device)
    keep_largest = model.data["keep_largest"] if args.nms is None else bool(args.nms)
    jobs = find_jobs(args.input, args.out, map_names(args, model))
    preprocessing = known_preprocessing(args.preprocessing, model)
    unprepared = [job.path for job in jobs if job.suffix != ".h5"]
    if unprepared and preprocessing is None:
        raise UserError(
            f"{unprepared[0]}: how the images of {model.dataset} were prepared is not recorded; "
            'give --preprocessing, such as {"intensity": "zscore"}, or .h5 files as in training'
        )
    about = record(args, path, model, preprocessing, keep_largest, settings)
    check_record(args, about)
    todo = unfinished(jobs, args.resume, args.overwrite)
    names = ", ".join(f"{c} {name}" for c, name in enumerate(model.data["class_names"], 1))
    print(f"{path}, step {model.step} of {model.last}: {names}", flush=True)
    if args.batchnorm == "retaken" and todo:
        with progress.Windows("batch norm") as bar:
            print(retake_statistics(args, model, settings, bar), flush=True)
    if len(todo) < len(jobs):
        print(f"{len(jobs) - len(todo)} of {len(jobs)} are in {args.out} already")
    failed = predict_all(todo, model, preprocessing, args.frame, keep_largest, settings)
    if len(failed) < len(todo):
        try:
            text = json.dumps(about, indent=1, ensure_ascii=False) + "\n"
            write_atomically(
                args.out / RECORD, lambda part: part.write_text(text, encoding="utf-8")
            )
        except UserError as error:
            failed.append(str(error))
    if failed:
        print(f"{len(failed)} failed of {len(todo)}:", *failed, sep="\n  ", file=sys.stderr)
        sys.exit(1)


def find_model(args):
    """The checkpoint or exported folder that the command line names."""
    path = args.model
    if path.is_dir() and not (path / "config.json").is_file():
        return find_checkpoint(path, args.checkpoint or "last")
    if args.checkpoint:
        raise UserError(
            f"--checkpoint {args.checkpoint}: only a run's folder has several, and {path} is none"
        )
    return path


def inference_settings(args, model, device):
    """Options of `utils.slabs.window_slabs` in 3-D, of `utils.inference.slice_slabs` in 2-D."""
    settings = {
        "batch": args.batch,
        "device": device,
        "precision": resolve_precision(args.precision, device),
    }
    if len(model.patch) == 3:
        settings["stride"] = args.stride or model.stride
        check_stride(settings["stride"], model.patch)
    elif args.stride:
        raise UserError(
            f"--stride: a network of {model.dataset} predicts slice by slice, without windows"
        )
    return settings


def retake_statistics(args, model, settings, bar):
    """Take batch norm's statistics again; returns a sentence about it."""
    place = (settings["device"], settings["precision"])
    return retake(model.networks, model.checkpoint, args.training_root, *place, progress=bar)


def map_names(args, model):
    """The maps that are written beside the labels."""
    maps = []
    if args.probabilities:
        maps += [f"probability_{c}" for c in range(1, model.num_classes)]
    if args.uncertainty:
        maps.append("uncertainty")
    return maps


def known_preprocessing(given, model):
    """The `Preprocessing` of the option, or else of the training; None where it is not known."""
    if given is None:
        recorded = model.data["preprocessing"]
        return None if recorded is None else Preprocessing.from_dict(recorded)
    try:
        text = given if given.lstrip().startswith("{") else Path(given).read_text(encoding="utf-8")
        values = json.loads(text)
        return Preprocessing.from_dict(values.get("preprocessing", values))
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(
            f"--preprocessing {given}: no file, or no table in JSON ({error})"
        ) from None


def record(args, path, model, preprocessing, keep_largest, settings):
    """Everything that the label maps depend on, for the file beside them."""
    names = ["background", *model.data["class_names"]]
    return {
        "model": str(path),
        "step": model.step,
        "last_step": model.last,
        "trained_on": model.dataset,
        "labels": {str(c): name for c, name in enumerate(names)},
        "downsample": model.downsample,
        "patch": model.patch,
        "stride": settings.get("stride"),
        "precision": settings["precision"],
        "largest_component": keep_largest,
        "network": args.network,
        "batchnorm": args.batchnorm,
        "preprocessing": preprocessing and preprocessing.as_dict(),
        "environment": environment.environment([settings["device"]]),
    }


def check_record(args, about):
    """With --resume, check that the files in --out were made with the same model and options.

    Raises:
        UserError: they were not; it names the differences.
    """
    path = args.out / RECORD
    if not args.resume or not path.is_file():
        return
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
        differ = [key for key in about if key != "environment" and before.get(key) != about[key]]
    except (OSError, ValueError, AttributeError):
        raise UserError(f"{path}: damaged; remove it, or name another folder with --out") from None
    if differ:
        raise UserError(
            f"{args.out} was filled with other settings ({', '.join(differ)}); name another folder "
            "with --out"
        )


def predict_all(jobs, model, preprocessing, frame, keep_largest, settings):
    """Segment one input after the other; returns the errors of those that failed, a line each."""
    failed = []
    for number, job in enumerate(jobs, 1):
        began = time.perf_counter()
        with progress.Windows(f"{number}/{len(jobs)} {job.stem.name}") as bar:
            try:
                predict(
                    job, model, preprocessing, frame, keep_largest, {**settings, "progress": bar}
                )
            except UserError as error:
                failed.append(str(error))
                progress.write(f"predict.py: {error}")
                continue
        print(f"{job.outputs['labels']}  {time.perf_counter() - began:.1f} s", flush=True)
    return failed


# --------------------------------------------------------------------------------------- one input


def predict(job, model, preprocessing, frame, keep_largest, settings):
    """Segment one input; every error of it becomes a `UserError` that names it."""
    try:
        # a folder that cannot be made is known before hours of windows
        job.stem.parent.mkdir(parents=True, exist_ok=True)
        if job.suffix == ".h5":
            predict_h5(job, model, keep_largest, settings)
        else:
            predict_image(job, model, preprocessing, frame, keep_largest, settings)
    except UserError as error:
        named = any(str(path) in str(error) for path in (job.path, *job.outputs.values()))
        raise error if named else UserError(f"{job.path}: {error}") from None
    except OSError as error:
        raise UserError(f"{job.stem.parent}: cannot be written ({error.strerror})") from None
    except torch.OutOfMemoryError:
        raise UserError(
            f"{job.path}: the GPU's memory is full; take a smaller --batch, or --gpu -1"
        ) from None
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "memory" not in str(error):
            raise
        raise UserError(f"{job.path}: too large for this machine's memory") from None


def predict_image(job, model, preprocessing, frame, keep_largest, settings):
    """Segment an image file and write the labels and maps."""
    image = read_image(job.path, frame)
    prepared = preprocess(preprocessing, image)
    place = prepared.place
    warn_of_spacing(job.path, model, place.grid.spacing)
    axes = model.data["image_axes"] if len(model.patch) == 2 else None
    results = segment(model, prepared.image, axes, around(place), job.maps, keep_largest, settings)
    for name in (*job.maps, "labels"):  # the labels last: where they are, the maps are too
        stored = np.ascontiguousarray(place.turn_back(results.pop(name)))
        write_image(job.outputs[name], from_array(stored, image))


def warn_of_spacing(path, model, spacing):
    """Warn where voxels differ in size from those of a training that did not resample them."""
    learnt = model.data["spacing"]
    if not learnt:
        return
    ratios = [new / old for new, old in zip(spacing, learnt, strict=True)]
    if all(0.8 < ratio < 1.25 for ratio in ratios):
        return
    new = "×".join(f"{extent:.3g}" for extent in spacing)
    old = "×".join(f"{extent:.3g}" for extent in learnt)
    warnings.warn(f"{path}: voxels of {new} mm, but the network learnt from {old} mm", stacklevel=2)


def predict_h5(job, model, keep_largest, settings):
    """Segment the prepared `image` of an h5 file and write the labels and maps."""
    axes, attributes = h5_header(job.path)
    sliced = len(model.patch) == 2
    if sliced and axes == 2:  # a single slice
        image = h5.read_image(job.path, 2)
        array = image[..., None]
        order = (0, 1, 2)
    else:
        image = h5.read_image(job.path, 3)
        array = image
        order = model.data["file_axes"] if sliced else None
    maps = []
    if "uncertainty" in job.maps:
        maps.append("uncertainty")
    if len(job.maps) > len(maps):  # an h5 file holds the background's probability too
        maps += [f"probability_{c}" for c in range(model.num_classes)]
    results = segment(model, array, order, whole(array.shape), maps, keep_largest, settings)
    results = {name: values.reshape(image.shape) for name, values in results.items()}

    arrays = {"prediction": results.pop("labels")}
    if "uncertainty" in results:
        arrays["uncertainty"] = results.pop("uncertainty")
    if results:
        arrays["probability"] = np.stack(list(results.values()))
    content = h5.h5_bytes(arrays, attributes)
    write_atomically(job.outputs["labels"], lambda part: part.write_bytes(content))


def h5_header(path):
    """The number of axes of the `image` in an h5 file, and the attributes of both."""
    try:
        with h5py.File(path) as file:
            image = file["image"]
            return image.ndim, dict(file.attrs) | dict(image.attrs)
    except (OSError, KeyError, AttributeError, ValueError):
        return 3, {}  # `h5.read_image` reports the error


if __name__ == "__main__":
    command.run(main)
