"""Make a data set of one's own images: NIfTI, NRRD or MetaImage files, DICOM series, or an nnU-Net
v2 folder.

    python code/prepare_nifti.py images labels                            into data/own, for --dataset own and own2d
    python code/prepare_nifti.py images labels --classes RV Myo LV --patient "^(patient\\d+)" --test test.txt
    python code/prepare_nifti.py ct masks --intensity window --window -160 240 --root data/abdomen
    python code/prepare_nifti.py --nnunet nnUNet_raw/Dataset004_Hippocampus --channel 0
    python code/prepare_nifti.py images labels --to_nnunet nnUNet_raw/Dataset101_Own

A label belongs to the image of its name; so do case_7_seg.nii.gz to case_7_0000.nii.gz, label7.nrrd
to img7.nrrd, and p7/mask.nii.gz to p7/image.nii.gz. Images without a label are what semi-supervised
training is for: they stand in train.list, behind those with one. Of these a part is drawn for
test.list, by patient and the same for the same seed. Labels hold whole numbers, 0 for background;
classes are numbered 1, 2, …, or --values says which value is which.

Each image gets the same axes and spacing, is cropped to what is not 0 and normalised, as the
options say; dataset.json notes it, so that predict.py does the same to new images and brings labels
back onto their own grid.

Ends with a report: what each case is, what is odd about it, one picture of all (overlays.png), and
what was left out: damaged files, labels that do not fit their image, values that are no class, an
image of training that is tested on. The exit status is 1 then, and the rest is ready all the same.
A second call with the same options finds it whole.
"""

import re
import shlex
import sys
import warnings
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

import _root  # noqa: F401
from dataloaders.h5 import read_list
from dataloaders.own import protocol
from dataloaders.preprocessing import CROPS, INTENSITIES, MARKER, Preprocessing
from utils import command
from utils.errors import UserError
from utils.preparation.cases import misfit, relabel, split_units, voxel_hash, write_case
from utils.preparation.folder import begin, complete, copy_file, read_json, write_json, write_list
from utils.preparation.grid import Grid
from utils.preparation.images import find_images, read_image, stem, suffix, to_array, write_image
from utils.preparation.preprocess import preprocess
from utils.preparation.report import Report, print_problems

SPLITS = ("train", "val", "test")
CHANNEL = re.compile(r"_(\d{4})$")  # nnU-Net's, at the end of an image's name
# what a file is, in its name
ROLE = r"image|images|img|scan|volume|vol|label|labels|lbl|seg|segmentation|mask|gt"
AROUND = re.compile(rf"^({ROLE})([-_.]|(?=\d))|[-_.]({ROLE})$", re.IGNORECASE)


@dataclass
class Case:
    """An image, perhaps its label, and what is found out about them."""

    name: str
    image: Path
    label: Path | None
    patient: str
    split: str | None = None  # where something else than the seed decides
    sha256: str = ""
    axes: str = ""
    spacing: tuple = ()
    values: list = field(default_factory=list)


def parse(arguments=None):
    parser = command.Parser(__doc__, __file__)
    parser.add_argument(
        "images",
        type=Path,
        nargs="?",
        metavar="IMAGES",
        help="folder of images, or of DICOM series",
    )
    parser.add_argument(
        "labels",
        type=Path,
        nargs="?",
        metavar="LABELS",
        help="folder of the labels of some of them",
    )
    parser.add_argument(
        "--nnunet", type=Path, metavar="FOLDER", help="an nnU-Net raw data set, in place of the two"
    )
    parser.add_argument(
        "--channel", default="0", help="of nnU-Net's several images of a case: number or name"
    )
    parser.add_argument(
        "--frame", type=command.non_negative_int, help="of 4-D images: the one to take, from 0"
    )
    parser.add_argument("--root", type=Path, default=Path("data/own"), help="folder to write")
    parser.add_argument("--name", help="of the data set in logs (default: the folder's)")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace another preparation in --root"
    )

    classes = parser.add_argument_group("labels")
    classes.add_argument(
        "--classes", nargs="+", metavar="NAME", help="of the classes, in the order of their values"
    )
    classes.add_argument(
        "--values",
        type=int,
        nargs="+",
        metavar="V",
        help="the labels' values that become class 1, 2, … (0 stays 0)",
    )
    classes.add_argument(
        "--trust_voxels",
        action="store_true",
        help="take labels whose header contradicts their image's, voxel by voxel",
    )

    how = parser.add_argument_group("preparation")
    how.add_argument(
        "--spacing",
        nargs="+",
        metavar="MM",
        help="three numbers along those axes, median of all images (the default), or keep, which interpolates nothing",
    )
    how.add_argument(
        "--orientation",
        default="LPS",
        metavar="AXES",
        help="where axes point to, as LPS or RAS, or keep",
    )
    how.add_argument(
        "--crop",
        choices=CROPS,
        default="nonzero",
        help="to the box of voxels that are not 0, or of the label (new images are taken whole then)",
    )
    how.add_argument(
        "--margin", type=command.non_negative_int, default=0, help="voxels around that box"
    )
    how.add_argument(
        "--intensity",
        choices=INTENSITIES,
        default="zscore",
        help="MR: zscore or percentile; skull-stripped brains: zscore_nonzero; CT: window",
    )
    how.add_argument(
        "--window",
        type=float,
        nargs=2,
        metavar=("LOW", "HIGH"),
        help="grey values that become 0 and 1",
    )

    lists = parser.add_argument_group("lists")
    lists.add_argument(
        "--patient",
        metavar="REGEX",
        help="patient in a case's name (its first group): one list each",
    )
    lists.add_argument(
        "--test", type=Path, metavar="FILE", help="names of the test cases, one a line; else drawn:"
    )
    lists.add_argument(
        "--test_fraction", type=command.fraction, help="of the patients with labels (default: 0.2)"
    )
    lists.add_argument(
        "--val_fraction", type=command.fraction, default=0, help="the same for val.list"
    )
    lists.add_argument("--seed", type=command.non_negative_int, default=1337, help="of the lists")

    parser.add_argument(
        "--to_nnunet",
        type=Path,
        metavar="FOLDER",
        help="write the cases as an nnU-Net data set too",
    )
    args = parser.parse_args(arguments)
    if (args.images is None) == (args.nnunet is None):
        parser.error(
            "name a folder of IMAGES (and one of LABELS), or an nnU-Net data set with --nnunet"
        )
    if args.test and args.test_fraction is not None:
        parser.error("--test names the test cases, --test_fraction draws them: give one of the two")
    if (args.intensity == "window") != (args.window is not None):
        parser.error("--intensity window needs --window LOW HIGH, and nothing else takes it")
    if args.classes and args.values and len(args.classes) != len(args.values):
        parser.error(f"--classes names {len(args.classes)} classes, --values {len(args.values)}")
    if args.classes and len(set(args.classes)) < len(args.classes):
        parser.error("--classes: each class needs a name of its own")
    if args.values and (len(set(args.values)) < len(args.values) or 0 in args.values):
        parser.error("--values: each value once, and without 0, the background")
    args.spacing = args.spacing or ["median"]
    if args.spacing not in (["median"], ["keep"]):
        try:
            args.spacing = [float(word) for word in args.spacing]
        except ValueError:
            args.spacing = []
        if len(args.spacing) != 3:
            parser.error("--spacing takes median, keep or three numbers")
    return args


# ------------------------------------------------------------------------------------------------------- which files


def find_cases(args):
    """The cases of two folders, sorted by name; of `--nnunet` see `find_nnunet`."""
    images, labels = find_images(args.images), []
    if args.labels:
        labels = find_images(args.labels)
        a, b = args.images.resolve(), args.labels.resolve()  # one may lie in the other
        images = [
            image
            for image in images
            if b == a or b in a.parents or b not in image.resolve().parents
        ]
        labels = [
            label
            for label in labels
            if a == b or a in b.parents or a not in label.resolve().parents
        ]
        if a == b or not images or not labels:
            raise UserError(
                f"{args.images} and {args.labels}: put images and labels into a folder each"
            )
    names, targets = names_of(images, args.images), names_of(labels, args.labels)
    if all(map(CHANNEL.search, names)) and {bare(CHANNEL.sub("", name)) for name in names} & set(
        map(bare, targets)
    ):
        if not args.channel.isdecimal():
            raise UserError(
                f"--channel {args.channel}: a number is expected, as at the end of {names[0]}"
            )
        end = f"_{int(args.channel):04d}"
        images = [image for image, name in zip(images, names, strict=True) if name.endswith(end)]
        names = [name.removesuffix(end) for name in names if name.endswith(end)]
        if not images:
            raise UserError(f"--channel {args.channel}: no image in {args.images} ends in {end}")
    if not set(targets) <= set(
        names
    ):  # then by what is left without the words for images and labels
        keys, targets = [bare(name) for name in names], [bare(target) for target in targets]
    else:
        keys = names
    by_key = {}
    for key, name, image in zip(keys, names, images, strict=True):
        if key in by_key:
            raise UserError(f"{by_key[key].image} and {image} are both case {key}: rename one")
        by_key[key] = Case(name, image, None, name)
    for key, label in zip(targets, labels, strict=True):
        if key not in by_key:
            raise UserError(
                f"{label}: no image of this name in {args.images}; rename or remove the label"
            )
        if by_key[key].label:
            raise UserError(
                f"{by_key[key].label} and {label} are both the label of {by_key[key].image}: "
                "remove one"
            )
        by_key[key].label = label
    return sorted(by_key.values(), key=lambda case: case.name)


def names_of(files, folder):
    """The name of each file, its folders' names before it where it alone does not tell them
    apart.
    """
    plain = [stem(file) for file in files]
    if len(set(plain)) == len(plain):
        return plain
    return [
        "_".join((*file.relative_to(folder).parts[:-1], name))
        for file, name in zip(files, plain, strict=True)
    ]


def bare(name):
    return AROUND.sub("", name) or name


def find_nnunet(args):
    """The cases of an nnU-Net data set, its classes, and their values in the labels."""
    table = read_json(args.nnunet / "dataset.json")
    channels = table.get("channel_names", table.get("modality", {}))
    labels = table.get("labels")
    if not isinstance(labels, dict) or not isinstance(channels, dict):
        raise UserError(
            f"{args.nnunet / 'dataset.json'}: labels and channel_names are expected in it"
        )
    if all(str(key).isdecimal() for key in labels):  # as in version 1, number to name
        pairs = [(str(name), number) for number, name in labels.items()]
        labels = dict(pairs)
        if len(labels) < len(pairs):
            raise UserError(f"{args.nnunet / 'dataset.json'}: two labels have one name")
    odd = [name for name, value in labels.items() if not str(value).isdecimal() or name == "ignore"]
    if odd:
        raise UserError(
            f"{args.nnunet / 'dataset.json'}: label {odd[0]} is a region or to be ignored: not "
            "supported here"
        )
    by_value = sorted((int(value), name) for name, value in labels.items() if int(value))
    if len({value for value, _ in by_value}) < len(by_value):
        raise UserError(f"{args.nnunet / 'dataset.json'}: two labels have one value")
    if not all(str(number).isdecimal() for number in channels):
        raise UserError(f"{args.nnunet / 'dataset.json'}: channel_names goes from numbers to names")
    if not by_value:
        raise UserError(
            f"{args.nnunet / 'dataset.json'}: labels names no class besides the background"
        )
    known = {str(number): number for number in channels} | {
        str(name): number for number, name in channels.items()
    }
    if args.channel not in known:
        listed = ", ".join(f"{number} ({name})" for number, name in channels.items())
        raise UserError(f"--channel {args.channel}: {args.nnunet} has {listed}")
    end = f"_{int(known[args.channel]):04d}"
    ending = table.get("file_ending", ".nii.gz")
    cases = []
    for part, split in (("Tr", None), ("Un", "train"), ("Ts", "test")):
        images = sorted((args.nnunet / f"images{part}").glob(f"*{end}{ending}"))
        for image in images:
            name = image.name.removesuffix(end + ending)
            label = args.nnunet / f"labels{part}" / (name + ending)
            if part == "Ts" and not label.is_file():
                continue  # nobody can score these
            cases.append(
                Case(name, image, label if part != "Un" and label.is_file() else None, name, split)
            )
        have = {case.label for case in cases}
        for label in sorted((args.nnunet / f"labels{part}").glob(f"*{ending}")):
            if label not in have:
                raise UserError(
                    f"{label}: no image {label.name.removesuffix(ending)}{end}{ending} in "
                    f"images{part}"
                )
    if not cases:
        raise UserError(f"{args.nnunet}: no image *{end}{ending} in its imagesTr")
    names = [case.name for case in cases]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(
            f"{args.nnunet}: {twice} is in two of imagesTr, imagesUn and imagesTs; a case belongs "
            "into one"
        )
    return (
        sorted(cases, key=lambda case: case.name),
        [name for _, name in by_value],
        [value for value, _ in by_value],
    )


def name_patients(cases, pattern):
    """Fill in whose image each is."""
    try:
        pattern = re.compile(pattern)
    except re.error as error:
        raise UserError(f"--patient {pattern}: not a regular expression ({error})") from None
    for case in cases:
        found = pattern.search(case.name)
        if not found:
            raise UserError(f"--patient {pattern.pattern}: nothing in case {case.name} fits it")
        case.patient = found.group(1 if pattern.groups else 0)


def choose_test(cases, file):
    """Put the listed cases into the test list, and nothing drawn."""
    by_name = {case.name: case for case in cases} | {bare(case.name): case for case in cases}
    for line in read_list(file):
        name = next(
            (name for name in (line, stem(line), bare(stem(line))) if name in by_name), None
        )
        if name is None:
            raise UserError(
                f"{file}: {line} is none of the cases, which are called as {cases[0].name} is"
            )
        if by_name[name].label is None:
            raise UserError(f"{file}: {line} has no label, so it cannot be tested on")
        by_name[name].split = "test"


# ------------------------------------------------------------------------------------------------- what is in them


def survey(cases, report, args):
    """Read everything once: which values labels have, how fine images are, which images are one."""
    for case in tqdm(cases, desc="reading", unit="case", disable=None, leave=False):
        with report.case(case.name):
            image = read_image(case.image, args.frame)
            case.sha256, grid = voxel_hash(image), Grid.of(image)
            case.axes = grid.orientation
            case.spacing = (
                grid if args.orientation == "keep" else grid.oriented(args.orientation)[2]
            ).spacing
            if case.label:
                label = read_image(case.label)
                wrong = misfit(image, label)
                if wrong and (not args.trust_voxels or label.GetSize() != image.GetSize()):
                    more = (
                        ""
                        if label.GetSize() != image.GetSize()
                        else "; --trust_voxels takes it voxel by voxel"
                    )
                    raise UserError(f"{case.label}: {wrong}{more}")
                values = np.unique(to_array(label))
                if (values != np.floor(values)).any():
                    odd = values[values != np.floor(values)][0]
                    raise UserError(
                        f"{case.label}: label has value {odd:g}, whole numbers are expected"
                    )
                case.values = [int(value) for value in values]


def number_classes(cases, args):
    """The names of the classes, and the value of each in the labels."""
    if args.values:
        return args.classes or [f"class {c}" for c in range(1, len(args.values) + 1)], args.values
    if args.classes:
        return args.classes, list(range(1, len(args.classes) + 1))
    seen = {}
    for case in cases:
        for value in case.values:
            seen.setdefault(value, []).append(case.name)
    found = sorted(value for value in seen if value)
    if not found:
        raise UserError(
            "no label has a value besides 0: nothing to learn; are the labels the right files?"
        )
    if found != list(range(1, len(found) + 1)):
        rare = min(found, key=lambda value: len(seen[value]))
        shown = " ".join(map(str, found[:20])) + (" …" if len(found) > 20 else "")
        raise UserError(
            f"labels have values {shown} besides 0 ({rare} in {len(seen[rare])} of them, "
            f"{seen[rare][0]} first); name "
            f"those that are classes, in their order: --values {shown}"
        )
    return [f"class {c}" for c in found] if len(found) > 1 else ["foreground"], found


def draw_lists(cases, args):
    """Put every case into a list: patients with a label for each of their images can be drawn, all
    others train.
    """
    first, same = {}, {}

    def patient_of(case):
        name = case.patient
        while name in same:
            name = same[name]
        return name

    for case in cases:  # two files with one image are one patient's, whatever they are called
        one, other = patient_of(first.setdefault(case.sha256, case)), patient_of(case)
        if one != other:
            same[other] = one
    for case in cases:
        case.patient = patient_of(case)
    fixed = {case.patient: case.split for case in cases if case.split == "test"}
    free = [case for case in cases if case.patient not in fixed]
    known = {case.patient for case in free if case.label}
    known -= {case.patient for case in free if not case.label or case.split == "train"}
    if fixed and args.test_fraction is not None:
        raise UserError(
            f"--test_fraction: {args.nnunet} has its test cases in imagesTs, none are drawn"
        )
    fractions = {"val": args.val_fraction}
    fractions["test"] = (
        0 if fixed or args.test else 0.2 if args.test_fraction is None else args.test_fraction
    )
    others = any(case.label and case.patient not in known for case in free)  # to train on
    drawn = split_units(sorted(known), fractions, args.seed, keep=0 if others else 1)
    place = {unit: split for split, units in drawn.items() for unit in units}
    for case in cases:
        case.split = case.split or place.get(case.patient, "train")


def in_order(cases, seed):
    """Names of training cases in the order of their list: with a label first, patients in an order
    of the seed's.
    """
    patients = sorted({case.patient for case in cases})
    rank = np.random.default_rng((seed, 1)).permutation(len(patients)).tolist()
    rank = dict(zip(patients, rank, strict=True))
    return sorted(cases, key=lambda case: (case.label is None, rank[case.patient], case.name))


# ---------------------------------------------------------------------------------------------------------- main


def preprocessing(args):
    """How the images are prepared, but for a median spacing."""
    spacing = None if args.spacing in (["median"], ["keep"]) else tuple(args.spacing)
    low, high = args.window or (None, None)
    return Preprocessing(
        orientation=None if args.orientation == "keep" else args.orientation,
        spacing=spacing,
        crop=args.crop,
        margin=(args.margin,) * 3,
        intensity=args.intensity,
        low=low,
        high=high,
        statistics="crop" if args.crop == "nonzero" else "whole",
    )


def prepare(cases, how, values, report, args):
    """Write every case that nothing is wrong with; shapes by name."""
    shapes, tested = {}, {case.patient for case in cases if case.split == "test"}
    # of one image in two lists that of the test list stays
    order = sorted(cases, key=lambda case: (-SPLITS.index(case.split), case.name))
    for case in tqdm(order, desc="preparing", unit="case", disable=None, leave=False):
        with report.case(case.name, case.split) as row:
            if row.problem:
                continue
            image = read_image(case.image, args.frame)
            label = relabel(read_image(case.label), [0, *values]) if case.label else None
            row.look(image, label, case.image, args.trust_voxels)
            if case.split != "test" and case.patient in tested:
                raise UserError(f"patient {case.patient} is in the test list with another image")
            prepared = preprocess(how, image, label)
            written = {"grid": prepared.place.grid, "source": case.image, "sha256": row.sha256}
            write_case(
                args.root / "data" / f"{case.name}.h5", prepared.image, prepared.label, **written
            )
            row.show(prepared.image, prepared.label, prepared.place.grid.spacing)
            shapes[case.name] = prepared.image.shape
    return shapes


def write_lists(cases, names, values, how, shapes, report, args):
    """The lists and dataset.json, of the cases that were prepared."""
    good = [case for case in cases if case.name in shapes]
    lists = {
        split: in_order([case for case in good if case.split == split], args.seed)
        for split in SPLITS
    }
    known = {case.patient for case in lists["train"] if case.label}
    if not known:
        report.finish(args.root)
        raise UserError(
            f"{args.root}: no training case with a label is left; see above for what was left out"
        )
    rows = [report.rows[case.name].values for case in lists["train"] if case.label]
    for name in names:
        if not any(float(row[f"{name} ml"]) for row in rows):
            warnings.warn(
                f"no training case has a label with {name}: it cannot be learnt", stacklevel=2
            )
    for split in SPLITS:
        if lists[split]:
            write_list(args.root / f"{split}.list", [case.name for case in lists[split]])
    typical = how.spacing or tuple(np.median([case.spacing for case in good], axis=0).tolist())
    alike = how.spacing or all(np.allclose(case.spacing, typical, rtol=0.01) for case in good)
    table = {
        "name": args.name or args.root.name,
        "class_names": names,
        "values": [0, *values],
        "spacing": list(typical) if alike else None,
        "labelnum": len(known),
        **protocol([shapes[case.name] for case in lists["train"]], typical),
        "preprocessing": how.as_dict(),
        "cases": {
            case.name: {
                "labeled": case.label is not None,
                "patient": case.patient,
                "list": case.split,
                "source": str(case.image),
                "hash": case.sha256,
            }
            for case in good
        },
    }
    write_json(args.root / "dataset.json", table)


def fingerprint(path):
    """What a changed file betrays itself by."""
    parts = sorted(path.iterdir()) if path.is_dir() else [path]
    found = [part.stat() for part in parts]
    return [
        str(path.resolve()),
        sum(stat.st_size for stat in found),
        max(stat.st_mtime_ns for stat in found),
    ]


def main(arguments=None):
    args = parse(arguments)
    cases, names, values = find_nnunet(args) if args.nnunet else (find_cases(args), None, None)
    if not any(case.label for case in cases):
        raise UserError(
            f"{args.nnunet or args.images}: none of {len(cases)} images has a label; name the "
            "labels' folder"
        )
    if args.patient:
        name_patients(cases, args.patient)
    if args.test:
        choose_test(cases, args.test)
    settings = {
        key: value
        for key, value in vars(args).items()
        if key not in ("root", "overwrite", "to_nnunet")
    }
    recipe = {
        key: str(value.resolve()) if isinstance(value, Path) else value
        for key, value in settings.items()
    }
    recipe["files"] = [
        fingerprint(path) for case in cases for path in (case.image, case.label) if path
    ]
    recipe["listed"] = [case.name for case in cases if case.split == "test"]
    files = [
        *(f"data/{case.name}.h5" for case in cases),
        *(f"{split}.list" for split in SPLITS),
        "dataset.json",
    ]
    how = preprocessing(args)
    whole = begin(args.root, recipe, files, args.overwrite)
    if whole:
        print(
            f"{args.root} is whole, made by the same options from the same files; --overwrite "
            "makes it again"
        )
        problems = whole["problems"]
        print_problems(problems)
    else:
        report = Report([])
        survey(cases, report, args)
        good = [case for case in cases if case.name in report.good]
        if not any(case.label for case in good):
            report.finish(args.root)
            raise UserError("no case with a label is left; see above for what is wrong with them")
        if args.nnunet:
            names, values = args.classes or names, args.values or values
            if len(names) != len(values):
                raise UserError(
                    f"--classes names {len(names)} classes, {args.nnunet} has {len(values)}"
                )
        else:
            names, values = number_classes(good, args)
        axes = sorted({case.axes for case in good})
        if args.orientation == "keep" and len(axes) > 1:
            warnings.warn(
                f"--orientation keep: axes point to {', '.join(axes)}: images differ by turns",
                stacklevel=2,
            )
        report.class_names = names
        if args.spacing == ["median"]:
            median = np.median([case.spacing for case in good], axis=0)
            how = replace(how, spacing=tuple(float(f"{s:.6g}") for s in median))
        draw_lists(good, args)
        shapes = prepare(good, how, values, report, args)
        write_lists(good, names, values, how, shapes, report, args)
        problems = report.finish(args.root)
        complete(args.root, problems)
    if args.to_nnunet:
        write_nnunet(args, cases)
    advise(args.root)
    if problems:
        sys.exit(1)


def write_nnunet(args, cases):
    """The prepared cases as an nnU-Net data set: images and labels on their own grid, images
    without a label beside.
    """
    table, folder = read_json(args.root / "dataset.json"), args.to_nnunet
    kept = table["cases"]
    cases = [case for case in cases if case.name in kept]
    where = {
        case.name: "Ts" if kept[case.name]["list"] == "test" else "Tr" if case.label else "Un"
        for case in cases
    }
    files = [f"images{where[case.name]}/{case.name}_0000.nii.gz" for case in cases]
    files += [f"labels{where[case.name]}/{case.name}.nii.gz" for case in cases if case.label]
    val = sorted(name for name in kept if kept[name]["list"] == "val")
    files += ["dataset.json", *(["splits_final.json"] if val else [])]
    if begin(folder, {"from": read_json(args.root / MARKER)["recipe"]}, files, args.overwrite):
        return
    for case in tqdm(cases, desc="nnU-Net", unit="case", disable=None, leave=False):
        part, image = where[case.name], read_image(case.image, args.frame)
        target = folder / f"images{part}" / f"{case.name}_0000.nii.gz"
        if suffix(case.image) == ".nii.gz" and args.frame is None:
            copy_file(case.image, target)
        else:
            write_image(target, image)
        if case.label:
            label = relabel(read_image(case.label), table["values"])
            label.CopyInformation(image)
            write_image(folder / f"labels{part}" / f"{case.name}.nii.gz", label)
    names = table["class_names"]
    described = {
        "channel_names": {
            "0": "CT" if args.intensity == "window" else "image"
        },  # CT has a normalisation of its own
        "labels": {"background": 0} | {name: c for c, name in enumerate(names, 1)},
        "numTraining": sum(part == "Tr" for part in where.values()),
        "file_ending": ".nii.gz",
    }
    if val:
        train = sorted(name for name, part in where.items() if part == "Tr" and name not in val)
        write_json(folder / "splits_final.json", [{"train": train, "val": val}])
    write_json(folder / "dataset.json", described)
    complete(folder, [])
    print(f"{folder}: nnU-Net data set of {len(cases)} cases")


def advise(root):
    """What to type next."""
    table = read_json(root / "dataset.json")
    at = "" if root == Path("data/own") else f" --root {shlex.quote(str(root))}"
    count = {
        split: sum(case["list"] == split for case in table["cases"].values()) for split in SPLITS
    }
    labelled = sum(case["labeled"] and case["list"] == "train" for case in table["cases"].values())
    spare = count["train"] - labelled
    print(
        f"{root}: {labelled} training cases with a label, {spare} without, {count['val']} to "
        "validate, "
        f"{count['test']} to test; {len(table['class_names'])} classes: "
        f"{', '.join(table['class_names'])}"
    )
    method = "coranet" if spare else "supervised"
    print("next:")
    print(
        f"  python code/train_{method}.py --dataset own{at}        # slice by slice: --dataset "
        "own2d"
    )
    if count["test"]:
        print(f"  python code/test_own.py --method {method}{at}")
    print(
        f"  python code/predict.py runs/own/{method}_{table['labelnum']}/seed1337 NEW_IMAGES --out "
        "segmentations"
    )


if __name__ == "__main__":
    command.run(main)
