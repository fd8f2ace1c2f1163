"""Make data/Pancreas and data/Pancreas2d, as CoraNet takes volumes and slices, from the download of
Pancreas-CT (NIH).

    python code/prepare_pancreas.py DOWNLOAD
    python code/prepare_pancreas.py DOWNLOAD --for 2d
    python code/prepare_pancreas.py DOWNLOAD --lists lists

The DICOM folders and the labels may lie anywhere below DOWNLOAD. The third command takes your
train_lab.txt, train_unlab.txt and test.txt, or train.list and test.list, which are in lists/. Cases
25 and 70 repeat others' scans. The collection has dropped them since the papers, so they are left
out, unless --lists names them. Numbers of files with another --window are marked as not comparable
with published ones.

Reads PANCREAS_<number>/…/<series>/*.dcm and label<number>.nii.gz. Writes <root>/<number>.h5,
train.list, test.list, report.csv and overlays.png; look at the last two.

For 3-D, as in the released code: voxels are resampled to 1 mm, Hounsfield units from -125 to 275
become 0 to 1, and the crop is the label's box with 25 voxels on every side, at least 96. Without
--lists and --seed the cases are taken in their order: the first 62 of 80 train, the first 12 of
these are the labelled ones, and the last 18 test.

For 2-D, as the paper says (IV-B, IV-D): Hounsfield units from -100 to 240 become 0 to 1, and each
slice is cut to 192×240 pixels of its own size; 80 % of the cases train, half of them labelled. The
paper had 82 cases; of 80 the first 64 train, the first 32 of these are the labelled ones, and the
last 16 test. The paper leaves open where the crop lies, and which slices it takes. Here the crop
lies about the middle of the label's box, the same in all slices of a case, and slices above and
below the pancreas are left out: the paper segments 1414 test slices, and whole scans have more. A
label that is wider than the crop is cut, which the report says.

The labels' headers do not reliably say how their voxels lie on the images'. In published code a
label's voxel (i, j, k) is column i and row j of the image's slice k. It does not say whether slices
count from the feet; here they do. So this is checked: each label is tried with all eight
combinations of reversed axes, and soft tissue (0 to 200 HU) must fill it more than the 3 voxels
around it, for a pancreas lies in fat. Where another combination fits clearly better, it is taken
and reported; where none fits clearly, that is reported. Look at these cases in overlays.png;
--label_flip chooses by hand.

In 3-D the released code takes slices to be as far apart as pixels, so its voxels are not 1 mm long
along z: --legacy_spacing repeats this. How it interpolates is not published; here images and labels
are interpolated linearly.
"""

import itertools
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy import ndimage

import _root  # noqa: F401
from dataloaders import default_root
from dataloaders.pancreas import Pancreas, Pancreas2d
from utils import command
from utils.errors import UserError
from utils.preparation.cases import relabel
from utils.preparation.images import find_images, from_array, read_image, to_array
from utils.preparation.lists import draw_lists, read_lists
from utils.preparation.official import add_options, prepare_all, stamp
from utils.preparation.report import Report

FORMS = {"3d": Pancreas, "2d": Pancreas2d}
TESTED = {"3d": 18 / 80, "2d": 16 / 80}  # share of the cases
REPEATED = (25, 70)
LISTS = (  # files of two layouts, with their splits
    {"train_lab.txt": "train", "train_unlab.txt": "train", "test.txt": "test"},
    {"train.list": "train", "test.list": "test"},
)
AXES = "xyz"
FLIPS = [flips for count in range(4) for flips in itertools.combinations(range(3), count)]
SHELL = 3  # voxels around a label that its tissue is compared with
CLEAR = 0.1  # least share by which soft tissue fills a label more than its shell
APART = 0.05  # least share by which it does so more than in the next best combination


def parse(argv=None):
    parser = command.Parser(__doc__, __file__)
    parser.add_argument(
        "download",
        type=Path,
        metavar="DOWNLOAD",
        help="folder with the DICOM series and the labels",
    )
    parser.add_argument(
        "--for",
        choices=FORMS,
        default="3d",
        dest="form",
        help="data set to make: data/Pancreas for volumes, or data/Pancreas2d for slices",
    )
    parser.add_argument(
        "--window",
        type=float,
        nargs=2,
        metavar=("LOW", "HIGH"),
        help="Hounsfield units that become 0 and 1 (default: -125 275; in 2-D -100 240)",
    )
    parser.add_argument(
        "--legacy_spacing",
        action="store_true",
        help="take slices to be as far apart as pixels, as the released code does in 3-D",
    )
    turned = ["none"]
    for flips in FLIPS:
        if flips:
            turned.append("".join(AXES[axis] for axis in flips))
    parser.add_argument(
        "--label_flip",
        choices=("auto", *turned),
        default="auto",
        help="axes of the labels to reverse; auto tries all and reports its choice",
    )
    add_options(
        parser,
        None,
        "folder of the lists to take",
        "cases at a time, 3 GB each",
        seed=None,
        at_once=2,
    )
    args = parser.parse_args(argv)
    if args.legacy_spacing and args.form == "2d":
        raise UserError("--legacy_spacing: slices are not resampled; it belongs to --for 3d")
    args.root = args.root or Path(default_root(FORMS[args.form].name))
    return args


def find(download):
    """The folder and the label file of each case, by its number."""
    labels = {}
    cases = {}
    for path in sorted(download.rglob("label*.nii*")):
        match = re.fullmatch(r"label(\d+)\.nii(\.gz)?", path.name)
        if match:
            labels[int(match[1])] = path
    for path in sorted(download.rglob("PANCREAS_*")):
        match = re.fullmatch(r"PANCREAS_(\d+)", path.name)
        if match and path.is_dir():
            number = int(match[1])
            if number in cases:
                raise UserError(
                    f"{path} and {cases[number][0]} are one case; name the folder of one of them"
                )
            cases[number] = path, labels.get(number)
    if not cases:
        raise UserError(
            f"{download}: no PANCREAS_<number> below this folder; name the download's folder"
        )
    return cases


def choose(cases, args):
    """The cases of each list file, and the number of each case: the given ones, or 18 of 80 for
    testing, in 2-D 16.
    """
    if args.lists:
        kind = next((kind for kind in LISTS if (args.lists / next(iter(kind))).exists()), LISTS[-1])
        lists = read_lists({file: args.lists / file for file in kind}, unit_of=number_of)
        return lists, {name: number_of(name) for listed in lists.values() for name in listed}
    numbers = {f"{number:04d}": number for number in sorted(cases) if number not in REPEATED}
    names = list(numbers)
    if args.seed is None:
        count = max(1, round(len(names) * TESTED[args.form]))
        return {"train.list": names[:-count], "test.list": names[-count:]}, numbers
    drawn = draw_lists(names, {"test": TESTED[args.form]}, args.seed)
    return {f"{split}.list": listed for split, listed in drawn.items()}, numbers


def number_of(name):
    """The number of a listed case, without the text around it: 0001, image0001,
    PANCREAS_0001_norm.
    """
    found = re.findall(r"\d+", name)
    if len(found) != 1:
        raise UserError(f"--lists: {name} is no case; one number is expected in its name")
    return int(found[0])


def standing_out(hounsfield, mask):
    """By how much the share of soft tissue within `mask` exceeds that around it; both arrays are
    (X, Y, Z).
    """
    parts = ndimage.find_objects(mask.astype(np.uint8))[0]
    box = tuple(slice(max(0, part.start - SHELL), part.stop + SHELL) for part in parts)
    hounsfield = hounsfield[box]
    mask = mask[box]
    around = ndimage.binary_dilation(mask, iterations=SHELL) & ~mask
    tissue = (hounsfield >= 0) & (hounsfield <= 200)
    return tissue[mask].mean() - (tissue[around].mean() if around.any() else 0)


def align(image, label, wanted):
    """The label on the image's grid, and notes on how it was turned.

    Args:
        image, label: of SimpleITK; the label's header is not believed.
        wanted: of `--label_flip`.

    Raises:
        UserError: another shape, or no pancreas.
    """
    if image.GetSize() != label.GetSize():
        raise UserError(f"label has shape {label.GetSize()}, but the image has {image.GetSize()}")
    mask = to_array(label)
    if not mask.any():
        raise UserError("label is empty")
    notes = []
    if wanted == "auto":
        hounsfield = to_array(image)
        # reversing the image instead of the label leaves the label's box as it is
        scores = {flips: standing_out(np.flip(hounsfield, flips), mask > 0) for flips in FLIPS}
        best, second = sorted(FLIPS, key=scores.get, reverse=True)[:2]
        flips = () if scores[()] > scores[best] - APART and scores[()] > CLEAR else best
        if scores[flips] <= CLEAR or scores[best] - scores[second] <= APART:
            shares = ", ".join(f"{named(each)} {scores[each]:.2f}" for each in (best, second))
            notes.append(
                f"unclear how the label lies on the image (soft tissue stands out: {shares}); see "
                "overlays.png"
            )
    else:
        flips = tuple(AXES.index(axis) for axis in wanted) if wanted != "none" else ()
    if flips:
        notes.append(f"label was turned to fit the image: {named(flips)}")
    return from_array(np.flip(mask, flips), image), notes


def named(flips):
    return f"{''.join(AXES[axis] for axis in flips)} reversed" if flips else "as stored"


def prepare(job):
    """Write a case, and return its row of the report."""
    name, split, files, path, how, wanted, legacy = job
    report = Report(Pancreas.class_names)
    with report.case(name, split) as row:
        if files is None:
            raise UserError("listed, but not in the download")
        folder, label = files
        if label is None:
            number = folder.name.removeprefix("PANCREAS_")
            raise UserError(f"{folder} has no label{number}.nii.gz in the download")
        series = find_images(folder)
        if len(series) != 1:
            raise UserError(f"{folder}: holds {len(series)} series or images, one is expected")
        image = read_image(series[0])
        label, notes = align(image, relabel(read_image(label), (0, 1)), wanted)
        row.look(image, label, series[0])
        row.flags += notes
        if legacy:
            for each in (image, label):
                each.SetSpacing((*image.GetSpacing()[:2], image.GetSpacing()[1]))
        row.prepare(how, image, label, path, series[0])
    return row


def main(argv=None):
    args = parse(argv)
    cases = find(args.download)
    lists, numbers = choose(cases, args)
    how = FORMS[args.form].preprocessing
    if args.window:
        how = replace(how, low=args.window[0], high=args.window[1])
    split_of = {file: split for kind in LISTS for file, split in kind.items()}
    paths = {name: [f"{name}.h5"] for name in numbers}
    unlike = []
    if args.seed is not None and not args.lists:
        unlike.append(f"lists drawn from seed {args.seed}")
    recipe = {
        "script": "prepare_pancreas.py",
        "for": args.form,
        # with --legacy_spacing, new images with their true spacing would be prepared differently
        "preprocessing": None if args.legacy_spacing else how.as_dict(),
        "window": [how.low, how.high],
        "label_flip": args.label_flip,
        "legacy_spacing": args.legacy_spacing,
        "lists": lists,
        "sources": {name: stamp(cases.get(number, ())) for name, number in numbers.items()},
        "unlike_published": unlike,
    }
    settings = how, args.label_flip, args.legacy_spacing
    jobs = []
    for file in reversed(lists):
        for name in lists[file]:
            path = args.root / paths[name][0]
            jobs.append((name, split_of[file], cases.get(numbers[name]), path, *settings))
    lines = {}
    for file, listed in lists.items():
        lines[file] = {name: name for name in listed}
    names = Pancreas.class_names
    problems = prepare_all(
        prepare, jobs, paths, lines, args.root, recipe, names, args.workers, args.overwrite
    )
    if problems:
        sys.exit(1)


if __name__ == "__main__":
    command.run(main)
