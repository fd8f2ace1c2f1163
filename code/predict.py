"""Segment images with a trained network: label maps of the type and the geometry of the files that
go in.

    python code/predict.py runs/LA/coranet_16/seed1337 scan.nii.gz --out segmentations
    python code/predict.py runs/own/dmd_8/seed1337 images/ patient7_dicom/ --out segmentations --uncertainty
    python code/predict.py last.pth images/ --out segmentations --resume --stride 32 32 32

The model is a run's folder, a checkpoint (.pth) or a folder that export.py wrote. An input is a
file or a folder, which is searched with all below it: .nii, .nii.gz, .nrrd, .mha, .mhd, a folder of
DICOM files (one series, one image) and .h5 files of the data sets' layouts. In <out>, under the
sub-folders that the input has below the folder named here:

    <name>.<type>                 uint8 labels of the input's size, spacing, origin and direction; a DICOM series gives
                                  .nii.gz, an .h5 file one with `prediction` and the attributes that
                                  it had
    <name>_probability_<c>.<type> with --probabilities: of class c, float32 (.h5: `probability`,
    background first) <name>_uncertainty.<type>     with --uncertainty: the entropy -Σ p ln p of the mean softmax in nats, from 0 to ln C
                                  for C classes, background included (.h5: `uncertainty`)
    predict.json                  model, options, preprocessing, versions

Images are prepared as the training's were: axes, spacing, crop, grey values, as the checkpoint
says; an .h5 file's `image` is taken as prepared. A network trained with --downsample sees blocks
averaged as in training. The mean softmax of windows and networks is brought back to the image's
grid linearly and the likeliest class taken there; outside a crop is background. Windows are summed
a patch's planes at a time, to the same bits as all at once, so an image of any length needs memory
for itself and its labels, and 4 bytes a voxel more for each map asked for.

A file that cannot be read, or that holds several frames, is told in one line and the rest goes on;
the exit status is 1 then. For research; not a medical device.
"""

import json
import sys
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import torch
from tqdm import tqdm

import _root  # noqa: F401
from dataloaders import h5
from dataloaders.preprocessing import Preprocessing
from dataloaders.transforms import downsample_image
from utils import command, distributed, environment
from utils.device import resolve_precision, select_device
from utils.errors import UserError
from utils.files import write_atomically
from utils.inference import (
    check_stride,
    interpolate_slabs,
    mean_probability,
    slice_slabs,
    window_slabs,
)
from utils.ops import largest_component
from utils.preparation import images
from utils.preparation.preprocess import preprocess
from utils.trained import checkpoint_name, find_checkpoint, load_trained
from utils.uncertainty import entropy

READ = (*images.SUFFIXES, ".h5")
RECORD = "predict.json"


def parse(arguments=None):
    parser = command.Parser(__doc__, __file__)
    parser.add_argument("model", type=Path, help="folder of a run, checkpoint, or exported folder")
    parser.add_argument("input", type=Path, nargs="+", help="files and folders")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument(
        "--probabilities", action="store_true", help="write each class's probability"
    )
    parser.add_argument(
        "--uncertainty", action="store_true", help="write the entropy of the mean softmax, in nats"
    )
    parser.add_argument("--resume", action="store_true", help="leave out what is in --out already")
    parser.add_argument("--overwrite", action="store_true", help="replace what is in --out already")
    model = parser.add_argument_group("model")
    model.add_argument(
        "--checkpoint",
        type=checkpoint_name,
        help="of a run: last (default), best, or a kept step's number",
    )
    model.add_argument(
        "--network", help="one of the checkpoint's networks (default: those that the paper tests)"
    )
    model.add_argument(
        "--preprocessing",
        metavar="JSON",
        help='how images are prepared, a file or text such as {"intensity": "zscore"} (default: as the training\'s)',
    )
    how = parser.add_argument_group("prediction")
    how.add_argument(
        "--frame", type=command.non_negative_int, help="of an image with a time axis, from 0"
    )
    stride = {"nargs": 3, "metavar": ("X", "Y", "Z")}
    how.add_argument(
        "--stride",
        type=command.positive_int,
        **stride,
        help="of the windows (default: as in tests); larger is faster",
    )
    how.add_argument(
        "--nms",
        type=int,
        choices=(0, 1),
        help="1: keep each class's largest component only (default: as in the data set's tests)",
    )
    how.add_argument(
        "--batch",
        type=command.positive_int,
        help="windows or slices at once (default: GPU 4 or 16, CPU 1 or 4)",
    )
    how.add_argument("--gpu", default="0", help="number of the GPU, or -1 for the CPU")
    how.add_argument(
        "--precision",
        choices=("auto", "fp32", "bf16"),
        default="auto",
        help="auto: bf16 where fast",
    )
    return parser.parse_args(arguments)


# ------------------------------------------------------------------------------------------------- what goes in and out


@dataclass(frozen=True)
class Case:
    """An input, the stem of its outputs and their type; each output by what it holds."""

    path: Path
    stem: Path
    suffix: str
    maps: tuple

    @property
    def outputs(self):
        if self.suffix == ".h5":
            return {"labels": self.stem.with_name(f"{self.stem.name}.h5")}
        tails = {"labels": ""} | {what: f"_{what}" for what in self.maps}
        return {
            what: self.stem.with_name(f"{self.stem.name}{tail}{self.suffix}")
            for what, tail in tails.items()
        }


def find_cases(inputs, out, maps):
    """The `Case`s of the command line, in its order.

    Raises:
        UserError: a folder without images, two inputs of one name, or an output where an input
            lies.
    """
    found = {}
    for given in inputs:
        below_given = given.resolve() in out.resolve().parents
        for path in images.find_images(given, READ):
            if not (
                below_given and out.resolve() in path.resolve().parents
            ):  # what an earlier call wrote
                below = path.relative_to(given).parent if path != given else Path()
                found.setdefault(path.resolve(), (path, out / below / images.stem(path)))
    if not found:
        raise UserError(f"{inputs[0]}: no image besides those in --out")
    cases, taken = [], {}
    for path, stem in found.values():
        kind = images.suffix(path).lower()
        case = Case(path, stem, kind if kind in READ else ".nii.gz", maps)
        for output in case.outputs.values():
            if output.resolve() in found:
                raise UserError(f"--out {out}: {output} is an input; name another folder")
            if output in taken:
                raise UserError(
                    f"{taken[output]} and {path} would both be written to {output}: name a folder "
                    "above both, whose "
                    "sub-folders are kept, or call twice"
                )
            taken[output] = path
        cases.append(case)
    return cases


def still_to_do(cases, out, resume, overwrite):
    """The cases without all their outputs; those with some are an error without `resume` or
    `overwrite`.
    """
    there = [output for case in cases for output in case.outputs.values() if output.exists()]
    if there and not (resume or overwrite):
        more = f" and {len(there) - 1} more" if len(there) > 1 else ""
        raise UserError(
            f"{there[0]}{more}: there already; --resume leaves them, --overwrite replaces them"
        )
    return [
        case
        for case in cases
        if not resume or not all(output.exists() for output in case.outputs.values())
    ]


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


# ------------------------------------------------------------------------------------------------------------ one case


def segment(model, array, axes, size, reach, maps, keep_largest, settings):
    """Labels and the maps asked for, on the grid that `reach` leads to.

    Args:
        model: `utils.inference.Trained`.
        array: prepared image, three axes.
        axes: in 2-D, which of them are rows, columns and slices.
        size: of the grid, in the same axes.
        reach: of the extents that the network sees: for each axis the slice of the grid inside it,
            and where its voxels lie, in voxels of the network (`whole` or `within`).
        maps: names of those wanted.
        keep_largest: whether each class keeps its largest component alone.
        settings: of `window_slabs` or `slice_slabs`; the former's `stride`.
    """
    predictor, classes = mean_probability(model.networks), model.num_classes
    if model.downsample > 1:
        if min(array.shape) < model.downsample:
            raise UserError(
                f"shape {array.shape} is too small for a network trained with --downsample"
            )
        array = downsample_image(array, model.downsample)
    inside, places = zip(*reach(array.shape), strict=True)
    if axes is None:
        order, slabs = (
            (0, 1, 2),
            window_slabs(predictor, array, model.patch, num_classes=classes, **settings),
        )
    else:
        slabs = slice_slabs(predictor, array.transpose(axes), model.patch, classes, **settings)
        order = (axes[2], axes[0], axes[1])
    size, inside, places = ([values[axis] for axis in order] for values in (size, inside, places))
    results = {"labels": np.zeros(size, np.uint8)} | {
        what: np.zeros(size, np.float32) for what in maps
    }
    done = inside[0].start
    for prob in interpolate_slabs(slabs, places):
        here = (slice(done, done + prob.shape[1]), *inside[1:])
        results["labels"][here] = likeliest(prob).cpu().numpy()
        for what in maps:
            values = (
                entropy(prob[None])[0]
                if what == "uncertainty"
                else prob[int(what.rpartition("_")[2])]
            )
            results[what][here] = values.cpu().numpy()
        done += prob.shape[1]
    if "probability_0" in maps:
        outside = np.ones(size, bool)
        outside[tuple(inside)] = False
        results["probability_0"][outside] = 1
    if keep_largest:
        results["labels"] = largest_component(torch.from_numpy(results["labels"])[None], classes)[
            0
        ].numpy()
    return {what: values.transpose(np.argsort(order)) for what, values in results.items()}


def likeliest(prob):
    """`prob.argmax(0)` of `(C, *S)` as uint8, of equal ones the first; on a CPU several times as
    fast.
    """
    best, most = torch.zeros_like(prob[0], dtype=torch.uint8), prob[0]
    for c, other in enumerate(prob[1:], 1):
        best.masked_fill_(other > most, c)
        most = torch.maximum(most, other)
    return best


def whole(size, factor):
    """`reach` for a prepared array of this `size`, of which a network voxel averages `factor`³."""

    def reach(extents):
        for count, extent in zip(size, extents, strict=True):
            yield slice(0, count), _blocks(np.arange(count, dtype=np.float64), factor, extent)

    return reach


def within(place, factor):
    """`reach` for an image that was prepared: the place (`utils.preparation.preprocess.Place`) says
    how.
    """
    turned, fine = place.oriented, place.resampled
    axes = np.reshape(fine.direction, (3, 3))
    first = axes.T @ np.subtract(turned.origin, fine.origin) / fine.spacing

    def reach(extents):
        for axis, (box, extent) in enumerate(zip(place.box, extents, strict=True)):
            at = first[axis] + np.arange(turned.size[axis]) * (
                turned.spacing[axis] / fine.spacing[axis]
            )
            at = np.where(
                np.abs(at - np.rint(at)) < 1e-6, np.rint(at), at
            )  # a voxel is a voxel, whatever its origin
            low = box.start - 0.5 if box.start > 0 else -np.inf
            high = box.stop - 0.5 if box.stop < fine.size[axis] else np.inf
            begin, end = np.searchsorted(at, (low, high))
            yield slice(int(begin), int(end)), _blocks(at[begin:end] - box.start, factor, extent)

    return reach


def _blocks(at, factor, extent):
    """Places in voxels as places in blocks of `factor`; beyond the first and the last block's
    centre, there.
    """
    return np.clip((at - (factor - 1) / 2) / factor, 0, extent - 1)


def predict_image(case, model, preprocessing, frame, **settings):
    """Segment an image file and write what came of it."""
    image = images.read_image(case.path, frame)
    prepared = preprocess(preprocessing, image)
    place = prepared.place
    check_spacing(case.path, model, place.grid.spacing)
    axes = model.data["image_axes"] if len(model.patch) == 2 else None
    size = place.oriented.size
    results = segment(
        model, prepared.image, axes, size, within(place, model.downsample), case.maps, **settings
    )
    for what in (*case.maps, "labels"):  # labels last: where they are, all is
        stored = place.turn_back(results.pop(what))
        images.write_image(
            case.outputs[what], images.from_array(np.ascontiguousarray(stored), image)
        )


def check_spacing(path, model, spacing):
    """Warn where voxels, which the training did not resample, are of another size than its own."""
    learnt = model.data["spacing"]
    if learnt and any(not 0.8 < new / old < 1.25 for new, old in zip(spacing, learnt, strict=True)):
        new, old = ("×".join(f"{value:.3g}" for value in values) for values in (spacing, learnt))
        warnings.warn(
            f"{path}: voxels of {new} mm, but the network learnt from {old} mm", stacklevel=2
        )


def predict_h5(case, model, **settings):
    """Segment the prepared `image` of an h5 file and write what came of it."""
    try:
        with h5py.File(case.path) as file:
            axes, attributes = file["image"].ndim, dict(file.attrs) | dict(file["image"].attrs)
    except (OSError, KeyError, AttributeError, ValueError):
        axes, attributes = 3, {}  # what is wrong with it is told below
    dims = len(model.patch)
    image = h5.read_image(case.path, 2 if axes == dims == 2 else 3)
    order, array = None, image
    if dims == 2 and axes == 2:
        order, array = (0, 1, 2), image[..., None]
    elif dims == 2:
        order = model.data["file_axes"]
    maps = [what for what in case.maps if what == "uncertainty"]
    if len(maps) < len(case.maps):
        maps += [f"probability_{c}" for c in range(model.num_classes)]
    results = segment(
        model, array, order, array.shape, whole(array.shape, model.downsample), maps, **settings
    )
    results = {what: values.reshape(image.shape) for what, values in results.items()}

    arrays = {"prediction": results["labels"]}
    if "uncertainty" in results:
        arrays["uncertainty"] = results["uncertainty"]
    probabilities = [results.pop(what) for what in list(results) if what.startswith("probability")]
    if probabilities:
        arrays["probability"] = np.stack(probabilities)
    content = h5.h5_bytes(arrays, attributes)
    write_atomically(case.outputs["labels"], lambda part: part.write_bytes(content))


def predict(case, model, preprocessing, frame, settings):
    """Segment one input, whatever can go wrong with it turned into a `UserError` that names it."""
    try:
        case.stem.parent.mkdir(
            parents=True, exist_ok=True
        )  # what cannot be written is known before hours of windows
        if case.suffix == ".h5":
            predict_h5(case, model, **settings)
        else:
            predict_image(case, model, preprocessing, frame, **settings)
    except UserError as error:
        known = any(str(path) in str(error) for path in (case.path, *case.outputs.values()))
        raise error if known else UserError(f"{case.path}: {error}") from None
    except OSError as error:
        raise UserError(f"{case.stem.parent}: cannot be written ({error.strerror})") from None
    except torch.OutOfMemoryError:
        raise UserError(
            f"{case.path}: the GPU's memory is full; take a smaller --batch, or --gpu -1"
        ) from None
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "memory" not in str(error):
            raise
        raise UserError(f"{case.path}: too large for this machine's memory") from None


# ----------------------------------------------------------------------------------------------------------------- all


def main(arguments=None):
    args = parse(arguments)
    distributed.alone()
    if args.resume and args.overwrite:
        raise UserError("--resume leaves what is there, --overwrite replaces it: give one of them")
    if "," in args.gpu:
        raise UserError(f"--gpu {args.gpu}: prediction uses one device; give one number")
    path = args.model
    if path.is_dir() and not (path / "config.json").is_file():
        path = find_checkpoint(path, args.checkpoint or "last")
    elif args.checkpoint:
        raise UserError(
            f"--checkpoint {args.checkpoint}: chooses one of a run's folder, and {path} is none"
        )
    device = select_device(args.gpu)
    model = load_trained(path, device, args.network)
    keep_largest = model.data["keep_largest"] if args.nms is None else bool(args.nms)
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

    maps = (
        tuple(f"probability_{c}" for c in range(1, model.num_classes)) if args.probabilities else ()
    )
    cases = find_cases(args.input, args.out, (*maps, "uncertainty") if args.uncertainty else maps)
    preprocessing = known_preprocessing(args.preprocessing, model)
    unprepared = [case.path for case in cases if case.suffix != ".h5"]
    if unprepared and preprocessing is None:
        raise UserError(
            f"{unprepared[0]}: how the images of {model.dataset} were prepared is not recorded; "
            "give --preprocessing, "
            'such as {"intensity": "zscore"}, or .h5 files as in training'
        )
    about = record(args, path, model, preprocessing, keep_largest, settings)
    check_record(args, about)
    todo = still_to_do(cases, args.out, args.resume, args.overwrite)
    names = ", ".join(f"{c} {name}" for c, name in enumerate(model.data["class_names"], 1))
    print(f"{path}, step {model.step} of {model.last}: {names}", flush=True)
    if len(todo) < len(cases):
        print(f"{len(cases) - len(todo)} of {len(cases)} are in {args.out} already")
    failed = []
    for number, case in enumerate(todo, 1):
        began = time.perf_counter()
        with Bar(f"{number}/{len(todo)} {case.stem.name}") as bar:
            try:
                how = {"progress": bar.update, **settings}
                predict(
                    case,
                    model,
                    preprocessing,
                    args.frame,
                    {"keep_largest": keep_largest, "settings": how},
                )
            except UserError as error:
                failed.append(str(error))
                tqdm.write(f"predict.py: {error}", file=sys.stderr)
                continue
        print(f"{case.outputs['labels']}  {time.perf_counter() - began:.1f} s", flush=True)
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


class Bar:
    """A progress bar over one case's windows or slices, on a terminal alone, that leaves when the
    case is done.
    """

    def __init__(self, title):
        self.title, self.bar = title, None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.bar is not None:
            self.bar.close()

    def update(self, done, total):
        self.bar = self.bar or tqdm(total=total, desc=self.title, leave=False, disable=None)
        self.bar.update(done - self.bar.n)


def record(args, path, model, preprocessing, keep_largest, settings):
    """How the label maps come about, for the file beside them."""
    return {
        "model": str(path),
        "step": model.step,
        "last_step": model.last,
        "trained_on": model.dataset,
        "labels": {
            str(c): name for c, name in enumerate(["background", *model.data["class_names"]])
        },
        "downsample": model.downsample,
        "patch": model.patch,
        "stride": settings.get("stride"),
        "precision": settings["precision"],
        "largest_component": keep_largest,
        "network": args.network,
        "preprocessing": preprocessing and preprocessing.as_dict(),
        "environment": environment.environment([settings["device"]]),
    }


def check_record(args, about):
    """With --resume: see that what is in --out came about as the rest is going to.

    Raises:
        UserError: it did not; names what differs.
    """
    if not args.resume or not (args.out / RECORD).is_file():
        return
    try:
        before = json.loads((args.out / RECORD).read_text(encoding="utf-8"))
        differ = [key for key in about if key != "environment" and before.get(key) != about[key]]
    except (OSError, ValueError, AttributeError):
        raise UserError(
            f"{args.out / RECORD}: damaged; remove it, or name another folder with --out"
        ) from None
    if differ:
        raise UserError(
            f"{args.out} was filled otherwise (it differs in {', '.join(differ)}); name another "
            "with --out"
        )


if __name__ == "__main__":
    command.run(main)
