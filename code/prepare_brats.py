"""Make data/BraTS2019, whole tumours in one modality, from the challenge's training data.

    python code/prepare_brats.py MICCAI_BraTS_2019_Data_Training
    python code/prepare_brats.py DOWNLOAD --lists lists
    python code/prepare_brats.py DOWNLOAD --modality t1ce --root data/BraTS2019_t1ce

The second command takes train.txt, val.txt and test.txt of SSL4MIS, which are in lists/. Without
--lists 250, 25 and 60 of 335 subjects are drawn from --seed, and are not those of the papers'
tables.

Reads <subject>/<subject>_flair.nii.gz and _seg.nii.gz in any folder below DOWNLOAD (HGG, LGG).
Writes <root>/data/<subject>.h5, the lists, report.csv and overlays.png; look at the last two. The
label is 1 wherever the challenge's is 1, 2 or 4. The image is cropped to the voxels that are not 0,
and these become z-scores by their own mean and standard deviation; the background stays 0.

The files that SSL4MIS publishes differ in three ways: voxels above the 99.9th percentile are
clipped to it, the background has the z-score of 0 too, which is about -1 to -2, and the box's last
plane along each axis is lost. Train and test on files that were made in one way.
"""

import sys
from pathlib import Path

import SimpleITK

import _root  # noqa: F401
from dataloaders.brats import BraTS2019
from utils import command
from utils.errors import UserError
from utils.preparation.cases import relabel
from utils.preparation.images import read_image
from utils.preparation.lists import SPLITS, draw_lists, read_lists
from utils.preparation.official import add_options, prepare_all, stamp
from utils.preparation.report import Report

MODALITIES = ("flair", "t1", "t1ce", "t2")


def parse(argv=None):
    parser = command.Parser(__doc__, __file__)
    parser.add_argument(
        "download", type=Path, metavar="DOWNLOAD", help="folder of the unpacked training data"
    )
    parser.add_argument(
        "--modality",
        choices=MODALITIES,
        default="flair",
        help="MR sequence to prepare; take flair to compare with the papers",
    )
    add_options(
        parser,
        "data/BraTS2019",
        "folder of the lists to take, train.txt, val.txt and test.txt",
        "subjects at a time, 1 GB each",
    )
    return parser.parse_args(argv)


def find(download, modality):
    """The files of each subject, image and label."""
    ends = (f"_{modality}.nii.gz", f"_{modality}.nii")
    found = sorted(
        path for path in download.rglob(f"*_{modality}.nii*") if path.name.endswith(ends)
    )
    if not found:
        raise UserError(
            f"{download}: no <subject>{ends[0]} below this folder; name "
            "MICCAI_BraTS_2019_Data_Training"
        )
    subjects = {}
    for image in found:
        start, end = image.name.split(f"_{modality}.")
        if start in subjects:
            raise UserError(
                f"{image} and {subjects[start][0]} are one subject; name the folder of one of them"
            )
        subjects[start] = image, image.with_name(f"{start}_seg.{end}")
    return subjects


def choose(subjects, args):
    """The subjects of each list: the given ones, or 25 and 60 of 335 for validation and testing."""
    if args.lists:
        return read_lists({split: args.lists / f"{split}.txt" for split in SPLITS}, "subject")
    return draw_lists(list(subjects), {"val": 25 / 335, "test": 60 / 335}, args.seed)


def prepare(job):
    """Write a subject, and return its row of the report."""
    subject, split, files, path = job
    report = Report(BraTS2019.class_names)
    with report.case(subject, split) as row:
        if files is None:
            raise UserError("listed, but not in the download")
        image = read_image(files[0])
        label = relabel(read_image(files[1]), (0, 1, 2, 4))
        label = SimpleITK.Cast(label > 0, SimpleITK.sitkUInt8)
        row.look(image, label, files[0], trust_voxels=True)
        row.prepare(BraTS2019.preprocessing, image, label, path, files[0])
    return row


def main(argv=None):
    args = parse(argv)
    subjects = find(args.download, args.modality)
    lists = choose(subjects, args)
    paths = {name: [f"data/{name}.h5"] for listed in lists.values() for name in listed}
    unlike = [] if args.lists else [f"lists drawn from seed {args.seed}"]
    if args.modality != "flair":
        unlike.append(f"modality {args.modality}")
    recipe = {
        "script": "prepare_brats.py",
        "modality": args.modality,
        "lists": lists,
        "sources": {name: stamp(subjects.get(name, ())) for name in paths},
        "preprocessing": BraTS2019.preprocessing.as_dict(),
        "unlike_published": unlike,
    }
    jobs = []
    for split in reversed(SPLITS):
        for name in lists[split]:
            jobs.append((name, split, subjects.get(name), args.root / paths[name][0]))
    lines = {}
    for split, listed in lists.items():
        lines[f"{split}.txt"] = {name: name for name in listed}
    names = BraTS2019.class_names
    problems = prepare_all(
        prepare, jobs, paths, lines, args.root, recipe, names, args.workers, args.overwrite
    )
    if problems:
        sys.exit(1)


if __name__ == "__main__":
    command.run(main)
