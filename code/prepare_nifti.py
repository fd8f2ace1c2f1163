"""Make a data set of one's own images: NIfTI, NRRD or MetaImage files, DICOM series, or an nnU-Net
v2 folder.

    python code/prepare_nifti.py images labels
    python code/prepare_nifti.py images labels --classes RV Myo LV --patient "^(patient\\d+)"
    python code/prepare_nifti.py ct masks --intensity window --window -160 240 --root data/abdomen
    python code/prepare_nifti.py --nnunet nnUNet_raw/Dataset004_Hippocampus --channel 0
    python code/prepare_nifti.py images labels --to_nnunet nnUNet_raw/Dataset101_Own

The first command writes data/own, which --dataset own and own2d read.

A label belongs to the image of the same name. So do case_7_seg.nii.gz to case_7_0000.nii.gz,
label7.nrrd to img7.nrrd, and p7/mask.nii.gz to p7/image.nii.gz. Images without a label are used in
semi-supervised training; train.list has them after those with a label. Some of the patients with
labels are drawn for test.list, the same ones for the same seed. Labels hold whole numbers, 0
for the background; classes are numbered 1, 2, …, or --values lists their values in order.

All images get the same axes and spacing, are cropped to the voxels that are not 0, and normalised;
the options change each of these. dataset.json notes them, so that predict.py prepares new images in
the same way and brings labels back onto their own grid.

The script ends with a report: a table of all cases, oddities in them, one picture of all
(overlays.png), and the cases that were left out: damaged files, labels that do not fit their image,
values that are no class, a training image that is in the test list too. If cases were left out, the
exit status is 1, and all other cases are ready. A second call with the same options does nothing.
"""

import re
import shlex
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import _root  # noqa: F401
from dataloaders.preprocessing import CROPS, INTENSITIES, Preprocessing
from utils import command
from utils.errors import UserError
from utils.preparation import own
from utils.preparation.folder import begin, complete, read_json
from utils.preparation.lists import SPLITS, assign_lists
from utils.preparation.matching import choose_test, find_cases, name_patients
from utils.preparation.nnunet import find_nnunet, write_nnunet
from utils.preparation.report import Report, print_problems

# ------------------------------------------------------------------------------------ the options


def parse(argv=None):
    parser = command.Parser(__doc__, __file__)
    parser.add_argument(
        "images", type=Path, nargs="?", metavar="IMAGES", help="folder of images or DICOM series"
    )
    parser.add_argument(
        "labels",
        type=Path,
        nargs="?",
        metavar="LABELS",
        help="folder of the labels; images without a label are trained on too",
    )
    parser.add_argument(
        "--nnunet",
        type=Path,
        metavar="FOLDER",
        help="read an nnU-Net raw data set instead of two folders",
    )
    parser.add_argument("--channel", default="0", help="nnU-Net channel to take, by number or name")
    parser.add_argument(
        "--frame",
        type=command.non_negative_int,
        help="frame to take of images with a time axis, counted from 0",
    )
    parser.add_argument(
        "--root", type=Path, default=Path("data/own"), help="folder for the data set"
    )
    parser.add_argument("--name", help="name of the data set in logs (default: the name of --root)")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace an earlier preparation in --root"
    )
    add_label_options(parser.add_argument_group("labels"))
    add_image_options(parser.add_argument_group("preparation"))
    add_list_options(parser.add_argument_group("lists"))
    parser.add_argument(
        "--to_nnunet",
        type=Path,
        metavar="FOLDER",
        help="also write the cases as an nnU-Net raw data set here",
    )
    args = parser.parse_args(argv)
    check(parser, args)
    return args


def add_label_options(group):
    group.add_argument(
        "--classes",
        nargs="+",
        metavar="NAME",
        help="names of the classes, in the order of their values in the labels",
    )
    group.add_argument(
        "--values",
        type=int,
        nargs="+",
        metavar="V",
        help="values in the labels that become class 1, 2, …; 0 stays the background",
    )
    group.add_argument(
        "--trust_voxels",
        action="store_true",
        help="match a label to its image voxel by voxel where their headers disagree; look at such "
        "cases in overlays.png",
    )


def add_image_options(group):
    group.add_argument(
        "--spacing",
        nargs="+",
        metavar="MM",
        help="voxel size: three numbers along the axes of --orientation, median of all images (the "
        "default), or keep to interpolate nothing",
    )
    group.add_argument(
        "--orientation",
        default="LPS",
        metavar="AXES",
        help="directions that the axes are turned to, such as LPS or RAS; keep leaves them",
    )
    group.add_argument(
        "--crop",
        choices=CROPS,
        default="nonzero",
        help="crop to the box of voxels that are not 0, or to the label's box; after label, "
        "predict.py takes new images whole",
    )
    group.add_argument(
        "--margin",
        type=command.non_negative_int,
        default=0,
        help="voxels to keep around the box of --crop",
    )
    group.add_argument(
        "--intensity",
        choices=INTENSITIES,
        default="zscore",
        help="normalisation of grey values; take zscore or percentile for MR, zscore_nonzero for "
        "skull-stripped brains, window for CT",
    )
    group.add_argument(
        "--window",
        type=float,
        nargs=2,
        metavar=("LOW", "HIGH"),
        help="grey values that become 0 and 1, with --intensity window",
    )


def add_list_options(group):
    group.add_argument(
        "--patient",
        metavar="REGEX",
        help="its first group finds the patient in a case's name; all images of a patient go into "
        "one list",
    )
    group.add_argument(
        "--test",
        type=Path,
        metavar="FILE",
        help="file with the names of the test cases, one a line (default: they are drawn)",
    )
    group.add_argument(
        "--test_fraction",
        type=command.fraction,
        help="draw this part of the patients with labels for test.list (default: 0.2)",
    )
    group.add_argument(
        "--val_fraction",
        type=command.fraction,
        default=0,
        help="draw this part of them for val.list",
    )
    group.add_argument(
        "--seed", type=command.non_negative_int, default=1337, help="seed that draws the lists"
    )


def check(parser, args):
    """End with a message where options contradict each other."""
    if (args.images is None) == (args.nnunet is None):
        parser.error(
            "name a folder of IMAGES (and one of LABELS), or an nnU-Net data set with --nnunet"
        )
    if args.test and args.test_fraction is not None:
        parser.error("--test names the test cases, --test_fraction draws them: give one of the two")
    if (args.intensity == "window") != (args.window is not None):
        parser.error("--intensity window needs --window LOW HIGH, and only window takes it")
    if args.classes and args.values and len(args.classes) != len(args.values):
        parser.error(f"--classes names {len(args.classes)} classes, --values {len(args.values)}")
    if args.classes and len(set(args.classes)) < len(args.classes):
        parser.error("--classes: each class needs a name of its own")
    if args.values and (len(set(args.values)) < len(args.values) or 0 in args.values):
        parser.error("--values: each value once, and without 0, the background")
    if args.patient:
        try:
            re.compile(args.patient)
        except re.error as error:
            parser.error(f"--patient {args.patient}: not a regular expression ({error})")
    args.spacing = args.spacing or ["median"]
    if args.spacing not in (["median"], ["keep"]):
        try:
            args.spacing = [float(word) for word in args.spacing]
        except ValueError:
            args.spacing = []
        if len(args.spacing) != 3:
            parser.error("--spacing takes median, keep or three numbers")


# --------------------------------------------------------------------------------------- the steps


def main(argv=None):
    args = parse(argv)
    how = preprocessing(args)
    cases, names, values = find(args)
    files = [f"data/{case.name}.h5" for case in cases]
    files += [*(f"{split}.list" for split in SPLITS), "dataset.json"]
    whole = begin(args.root, recipe(args, cases), files, args.overwrite)
    if whole:
        print(
            f"{args.root} is whole, made by the same options from the same files; --overwrite "
            "makes it again"
        )
        problems = whole["problems"]
        print_problems(problems)
    else:
        problems = fill(args, cases, names, values, how)
        complete(args.root, problems)
    if args.to_nnunet:
        ct = args.intensity == "window"
        write_nnunet(args.to_nnunet, args.root, cases, args.frame, ct, args.overwrite)
    advise(args.root)
    if problems:
        sys.exit(1)


def preprocessing(args):
    """How the images are prepared, except for a median spacing, which is not known yet."""
    low, high = args.window or (None, None)
    return Preprocessing(
        orientation=None if args.orientation == "keep" else args.orientation,
        spacing=None if args.spacing in (["median"], ["keep"]) else tuple(args.spacing),
        crop=args.crop,
        margin=(args.margin,) * 3,
        intensity=args.intensity,
        low=low,
        high=high,
        statistics="crop" if args.crop == "nonzero" else "whole",
    )


def find(args):
    """The cases, and the names and values of the classes; None where the labels decide them."""
    names = args.classes
    values = args.values
    if args.nnunet:
        cases, its_names, its_values = find_nnunet(args.nnunet, args.channel)
        names = names or its_names
        values = values or its_values
        if len(names) != len(values):
            raise UserError(
                f"--classes names {len(names)} classes, {args.nnunet} has {len(values)}"
            )
        if args.test_fraction is not None and any(case.split == "test" for case in cases):
            raise UserError(
                f"--test_fraction: {args.nnunet} has its test cases in imagesTs, none are drawn"
            )
    else:
        cases = find_cases(args.images, args.labels, args.channel)
    if not any(case.label for case in cases):
        raise UserError(
            f"{args.nnunet or args.images}: none of {len(cases)} images has a label; name the "
            "labels' folder"
        )
    if args.patient:
        name_patients(cases, args.patient)
    if args.test:
        choose_test(cases, args.test)
    return cases, names, values


def recipe(args, cases):
    """Everything that the data set depends on: another recipe makes another one."""
    values = {}
    for key, value in vars(args).items():
        if key not in ("root", "overwrite", "to_nnunet"):
            values[key] = str(value.resolve()) if isinstance(value, Path) else value
    files = [path for case in cases for path in (case.image, case.label) if path]
    values["files"] = [fingerprint(path) for path in files]
    values["listed"] = [case.name for case in cases if case.split == "test"]
    return values


def fingerprint(path):
    """Name, size and time of a file, or of the files in a folder: another one has changed."""
    parts = sorted(path.iterdir()) if path.is_dir() else [path]
    found = [part.stat() for part in parts]
    size = sum(stat.st_size for stat in found)
    return [str(path.resolve()), size, max(stat.st_mtime_ns for stat in found)]


def fill(args, cases, names, values, how):
    """Write all files of the data set; returns the problems of cases that were left out."""
    report = Report([])
    own.survey(cases, report, how.orientation, args.frame, args.trust_voxels)
    cases = [case for case in cases if case.name in report.good]
    if not any(case.label for case in cases):
        report.finish(args.root)
        raise UserError("no case with a label is left; the reasons stand above")
    names, values = own.number_classes(cases, names, values)
    report.class_names = names
    if args.orientation == "keep":
        warn_of_turns(cases)
    if args.spacing == ["median"]:
        how = replace(how, spacing=own.median_spacing(cases))
    test_fraction = 0.2 if args.test_fraction is None else args.test_fraction
    assign_lists(cases, args.val_fraction, 0 if args.test else test_fraction, args.seed)

    root = args.root
    shapes = own.prepare_cases(root, cases, how, values, report, args.frame, args.trust_voxels)
    cases = [case for case in cases if case.name in shapes]
    learnt = [case for case in cases if case.split == "train" and case.label]
    if not learnt:
        report.finish(root)
        raise UserError(f"{root}: no training case with a label is left; the reasons stand above")
    warn_of_missing_classes(report, learnt)
    own.write_lists(root, cases, args.seed)
    own.write_table(root, args.name or root.name, cases, names, values, how, shapes)
    return report.finish(root)


def warn_of_turns(cases):
    axes = sorted({case.axes for case in cases})
    if len(axes) > 1:
        warnings.warn(
            f"--orientation keep: axes point to {', '.join(axes)}: images differ by turns",
            stacklevel=2,
        )


def warn_of_missing_classes(report, cases):
    rows = [report.rows[case.name].values for case in cases]
    for name in report.class_names:
        if not any(float(row[f"{name} ml"]) for row in rows):
            warnings.warn(
                f"no training case has a label with {name}: it cannot be learnt", stacklevel=2
            )


def advise(root):
    """Print which commands to type next."""
    table = read_json(root / "dataset.json")
    at = "" if root == Path("data/own") else f" --root {shlex.quote(str(root))}"
    listed = [case["list"] for case in table["cases"].values()]
    count = {split: listed.count(split) for split in SPLITS}
    labelled = sum(case["labeled"] and case["list"] == "train" for case in table["cases"].values())
    spare = count["train"] - labelled
    names = table["class_names"]
    method = "coranet" if spare else "supervised"
    run = f"runs/own/{method}_{table['labelnum']}/seed1337"
    print(
        f"{root}: {labelled} training cases with a label, {spare} without, {count['val']} to "
        f"validate, {count['test']} to test; {len(names)} classes: {', '.join(names)}"
    )
    print("next:")
    print(
        f"  python code/train_{method}.py --dataset own{at}        # slice by slice: --dataset "
        "own2d"
    )
    if count["test"]:
        print(f"  python code/test_own.py --method {method}{at}")
    print(f"  python code/predict.py {run} NEW_IMAGES --out segmentations")


if __name__ == "__main__":
    command.run(main)
