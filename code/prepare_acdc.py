"""Make data/ACDC, hearts as SSL4MIS publishes them, from the challenge's training data.

    python code/prepare_acdc.py ACDC/database
    python code/prepare_acdc.py DOWNLOAD --lists lists

The second command takes train_slices.list, val.list and test.list of SSL4MIS, which are in lists/.
Without --lists 70, 10 and 20 of the 100 patients are drawn from --seed, and are not those of the
papers' tables. The 50 patients in the challenge's folder testing/ are left out, as in the papers,
unless --lists names them.

Reads <patient>/Info.cfg in any folder below DOWNLOAD, and the end-diastolic and the end-systolic
frame that it names: <patient>_frame<number>.nii.gz with its _gt.nii.gz (1 RV, 2 myocardium, 3 LV).
They become <patient>_frame01 and _frame02. Writes <root>/data/<volume>.h5 as (slice, y, x),
data/slices/ of the training patients, the lists, report.csv and overlays.png; look at the last two.
Grey values are scaled to 0 to 1 by the volume's least and largest one, and no voxel is resampled,
as in the published files.
"""

import re
import sys
from pathlib import Path

import SimpleITK

import _root  # noqa: F401
from dataloaders.acdc import ACDC
from dataloaders.h5 import read_list
from utils import command
from utils.errors import UserError
from utils.preparation.cases import relabel, write_case
from utils.preparation.images import read_image
from utils.preparation.lists import draw_lists, read_lists
from utils.preparation.official import add_options, prepare_all, stamp
from utils.preparation.preprocess import preprocess
from utils.preparation.report import Report

LISTS = {"train": "train_slices.list", "val": "val.list", "test": "test.list"}
FRAMES = {"frame01": "ED", "frame02": "ES"}


def parse(argv=None):
    parser = command.Parser(__doc__, __file__)
    parser.add_argument(
        "download", type=Path, metavar="DOWNLOAD", help="folder of the unpacked challenge"
    )
    add_options(
        parser,
        "data/ACDC",
        f"folder of the lists to take, {', '.join(LISTS.values())}",
        "volumes at a time",
    )
    return parser.parse_args(argv)


def find(download):
    """The folder of each patient."""
    patients = {}
    for path in sorted(download.rglob("Info.cfg")):
        name = path.parent.name
        if name in patients:
            raise UserError(
                f"{path.parent} and {patients[name]} are one patient; name the folder of one of "
                "them"
            )
        patients[name] = path.parent
    if not patients:
        raise UserError(
            f"{download}: no <patient>/Info.cfg below this folder; name the challenge's folder "
            "training"
        )
    return patients


def frame(folder, phase):
    """The image and label of a patient at `phase`, ED or ES, as its Info.cfg says.

    Raises:
        UserError: it does not say, or is no text.
    """
    path = folder / "Info.cfg"
    try:
        found = re.search(rf"^{phase}:\s*(\d+)\s*$", path.read_text(), re.MULTILINE)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None
    if not found:
        raise UserError(f"{path}: has no line {phase}: <number of a frame>")
    start = f"{folder.name}_frame{int(found[1]):02d}"
    end = ".nii.gz"
    if not (folder / f"{start}{end}").exists() and (folder / f"{start}.nii").exists():
        end = ".nii"
    return folder / f"{start}{end}", folder / f"{start}_gt{end}"


def choose(patients, args):
    """The volumes of each split, and the listed slices of each training volume (none: all)."""
    if args.lists:
        files = {split: args.lists / file for split, file in LISTS.items()}
        names = read_lists(files, "patient", lambda name: name.partition("_")[0])
        slices = {}
        for name in names["train"]:
            volume, _, k = name.partition("_slice_")
            if not k.isdecimal():
                raise UserError(
                    f"{files['train']}: {name} is no <patient>_frame<01|02>_slice_<number>"
                )
            slices.setdefault(volume, []).append(int(k))
        return {"train": list(slices), "val": names["val"], "test": names["test"]}, slices
    training = [name for name, folder in patients.items() if folder.parent.name != "testing"]
    # The challenge's patients are in the order of their diseases. The first of a list are the
    # labelled ones, so its order is drawn too.
    drawn = draw_lists(training, {"val": 0.1, "test": 0.2}, args.seed)
    volumes = {}
    for split in LISTS:
        volumes[split] = [f"{name}_{end}" for name in drawn[split] for end in FRAMES]
    return volumes, {}


def files_of(patients, volume):
    """The image and label of a volume, None where the download has no such patient."""
    name, _, end = volume.partition("_")
    if name not in patients:
        return None
    if end not in FRAMES:
        raise UserError(f"{volume} is listed, which is no <patient>_frame<01|02>")
    return frame(patients[name], FRAMES[end])


def depth(files):
    """The number of slices of a volume; 0 where its file cannot be read, to be reported later."""
    try:
        reader = SimpleITK.ImageFileReader()
        reader.SetFileName(str(files[0]))
        reader.ReadImageInformation()
        return reader.GetSize()[2]
    except (RuntimeError, IndexError):
        return 0


def prepare(job):
    """Write a volume, and the slices of a training volume, and return its row of the report."""
    volume, split, files, root, slices = job
    report = Report(ACDC.class_names)
    with report.case(volume, split) as row:
        if isinstance(files, str):
            raise UserError(files)
        image = read_image(files[0])
        label = relabel(read_image(files[1]), (0, 1, 2, 3))
        row.look(image, label, files[0], trust_voxels=True)
        prepared = preprocess(ACDC.preprocessing, image, label)
        stack = prepared.image.transpose(2, 1, 0)
        target = prepared.label.transpose(2, 1, 0)
        missing = [k for k in slices if not 1 <= k <= len(stack)]
        if missing:
            raise UserError(f"slice {missing[0]} is listed, but it has {len(stack)}")
        about = {"source": files[0], "sha256": row.sha256}
        write_case(root / "data" / f"{volume}.h5", stack, target, **about)
        for k in slices:
            path = root / "data" / "slices" / f"{volume}_slice_{k}.h5"
            write_case(path, stack[k - 1], target[k - 1], **about)
        row.show(prepared.image, prepared.label, prepared.place.grid.spacing)
    return row


def main(argv=None):
    args = parse(argv)
    patients = find(args.download)
    lists, listed_slices = choose(patients, args)
    files = {}
    slices = {}
    for split, volumes in lists.items():
        for volume in volumes:
            try:
                files[volume] = files_of(patients, volume) or "listed, but not in the download"
            except UserError as error:
                files[volume] = str(error)
            every = range(1, depth(files[volume]) + 1) if split == "train" else ()
            slices[volume] = listed_slices.get(volume, list(every))
    paths = {}
    sources = {}
    for volume, found in files.items():
        paths[volume] = [f"data/{volume}.h5"]
        paths[volume] += [f"data/slices/{volume}_slice_{k}.h5" for k in slices[volume]]
        sources[volume] = stamp(found) if isinstance(found, tuple) else found
    recipe = {
        "script": "prepare_acdc.py",
        "lists": lists,
        "slices": slices,
        "sources": sources,
        "unlike_published": [] if args.lists else [f"lists drawn from seed {args.seed}"],
    }
    jobs = []
    for split in reversed(lists):
        for volume in lists[split]:
            jobs.append((volume, split, files[volume], args.root, slices[volume]))
    problems = prepare_all(
        prepare,
        jobs,
        paths,
        lines_of(lists, slices, args),
        args.root,
        recipe,
        ACDC.class_names,
        args.workers,
        args.overwrite,
    )
    if problems:
        sys.exit(1)


def lines_of(lists, slices, args):
    """The lines of each list file, and the volume that each belongs to."""
    lines = {}
    for split, volumes in lists.items():
        lines[LISTS[split]] = {name: name for name in volumes}
    if args.lists:  # in the order of the given list: its first slices are the labelled ones
        given = read_list(args.lists / LISTS["train"])
        lines[LISTS["train"]] = {line: line.partition("_slice_")[0] for line in given}
    else:
        lines[LISTS["train"]] = {}
        for volume in lists["train"]:
            for k in slices[volume]:
                lines[LISTS["train"]][f"{volume}_slice_{k}"] = volume
    return lines


if __name__ == "__main__":
    command.run(main)
