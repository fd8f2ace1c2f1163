"""Make data/LA, left atria as UA-MT publishes them, from the download of the 2018 Atria
Segmentation Challenge.

    python code/prepare_la.py "Atrial Segmentation Challenge/Training Set"
    python code/prepare_la.py DOWNLOAD --lists lists

The second command takes the published train.list and test.list, which are in lists/. Without
--lists the cases for training and testing are drawn from --seed, and are not those of the papers'
tables.

Reads <case>/lgemri.nrrd and laendo.nrrd (0 and 255) in any folder below DOWNLOAD except a Testing
Set. Writes <root>/2018LA_Seg_Training Set/<case>/mri_norm2.h5, the lists, report.csv and
overlays.png; look at the last two.

Grey values become z-scores of the whole volume. The crop is the label's box with 14 voxels on
either side along x and y, at least 141 voxels, and all slices. The published files differ from
these in one thing: their margins are drawn at random from 10 to 19 voxels, and ours are the mean.
Where both crops have a voxel it has the same grey value and label.
"""

import sys
from pathlib import Path

import _root  # noqa: F401
from dataloaders.la import FOLDER, LA
from utils import command
from utils.errors import UserError
from utils.preparation.cases import relabel
from utils.preparation.images import read_image
from utils.preparation.lists import draw_lists, read_lists
from utils.preparation.official import add_options, prepare_all, stamp
from utils.preparation.report import Report

IMAGE, LABEL = "lgemri.nrrd", "laendo.nrrd"


def parse(argv=None):
    parser = command.Parser(__doc__, __file__)
    parser.add_argument(
        "download", type=Path, metavar="DOWNLOAD", help="folder of the unpacked challenge"
    )
    add_options(
        parser,
        "data/LA",
        "folder of the lists to take, train.list and test.list",
        "cases at a time, 1 GB each",
    )
    return parser.parse_args(argv)


def find(download):
    """The files of each case, image and label."""
    found = sorted(path.parent for path in download.rglob(IMAGE) if "Testing Set" not in path.parts)
    if not found:
        raise UserError(
            f"{download}: no <case>/{IMAGE} below this folder; name the challenge's Training Set"
        )
    cases = {}
    for folder in found:
        if folder.name in cases:
            raise UserError(
                f"{folder} and {cases[folder.name][0].parent} are one case; name the folder of one "
                "of them"
            )
        cases[folder.name] = folder / IMAGE, folder / LABEL
    return cases


def choose(cases, args):
    """The cases of each list: the given ones, or a fifth for testing."""
    if args.lists:
        return read_lists({split: args.lists / f"{split}.list" for split in ("train", "test")})
    return draw_lists(list(cases), {"test": 0.2}, args.seed)


def prepare(job):
    """Write a case, and return its row of the report."""
    case, split, files, path = job
    report = Report(LA.class_names)
    with report.case(case, split) as row:
        if files is None:
            raise UserError("listed, but not in the download")
        image = read_image(files[0])
        label = relabel(read_image(files[1]), (0, 255))
        row.look(image, label, files[0], trust_voxels=True)
        row.prepare(LA.preprocessing, image, label, path, files[0])
    return row


def main(argv=None):
    args = parse(argv)
    cases = find(args.download)
    lists = choose(cases, args)
    names = [*lists["train"], *lists["test"]]
    paths = {case: [f"{FOLDER}/{case}/mri_norm2.h5"] for case in names}
    recipe = {
        "script": "prepare_la.py",
        "lists": lists,
        "sources": {case: stamp(cases.get(case, ())) for case in names},
        "unlike_published": [] if args.lists else [f"lists drawn from seed {args.seed}"],
    }
    jobs = []
    for split in ("test", "train"):
        for case in lists[split]:
            jobs.append((case, split, cases.get(case), args.root / paths[case][0]))
    lines = {}
    for split, listed in lists.items():
        lines[f"{split}.list"] = {case: case for case in listed}
    problems = prepare_all(
        prepare, jobs, paths, lines, args.root, recipe, LA.class_names, args.workers, args.overwrite
    )
    if problems:
        sys.exit(1)


if __name__ == "__main__":
    command.run(main)
