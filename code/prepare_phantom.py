"""Make the phantom: 80 + 20 procedural left atria in the layout of the LA data set, the same for
the same seed.

    python code/prepare_phantom.py
    python code/prepare_phantom.py --size 176 176 88 --root data/phantom_large --preview phantom.png

A second call with the same options finds the phantom whole and does nothing.
"""

import time
from functools import partial
from pathlib import Path

import numpy as np

import _root  # noqa: F401
from dataloaders import open_dataset
from dataloaders.phantom import SIZE
from utils import command, progress
from utils.figures.contact_sheet import Tile, contact_sheet, slice_picture
from utils.preparation.phantom import write_dataset


def parse(argv=None):
    parser = command.Parser(__doc__, __file__)
    parser.add_argument("--root", type=Path, default="data/phantom", help="folder for the data set")
    parser.add_argument("--seed", type=int, default=2018, help="seed that makes the cases")
    parser.add_argument(
        "--size",
        type=int,
        nargs=3,
        default=SIZE,
        metavar=("X", "Y", "Z"),
        help="voxels of a case along each axis; the anatomy scales with them",
    )
    parser.add_argument("--train", type=int, default=80, help="number of cases in train.list")
    parser.add_argument("--test", type=int, default=20, help="number of cases in test.list")
    parser.add_argument(
        "--workers",
        type=int,
        help="number of processes; the files do not depend on it (default: all the cores)",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="delete the phantom in --root and make this one"
    )
    parser.add_argument(
        "--preview", type=Path, metavar="FILE.png", help="write a contact sheet of some cases here"
    )
    return parser.parse_args(argv)


def preview(path, dataset, cases=8):
    """Write a contact sheet of an axial, a coronal and a sagittal slice of each case."""
    chosen = np.linspace(0, len(dataset) - 1, min(cases, len(dataset))).astype(int)
    tiles = []
    for index in chosen:
        image, label = (array[:, :, ::-1] for array in dataset.load(index))  # the head is up
        for axis, plane in ((2, "axial"), (1, "coronal"), (0, "sagittal")):
            picture = slice_picture(image, label, dataset.spacing, axis)
            tiles.append(Tile(f"{dataset.names[index]} {plane}", picture))
    path.parent.mkdir(parents=True, exist_ok=True)
    contact_sheet(path, tiles, columns=6)


def main(argv=None):
    args = parse(argv)
    start = time.perf_counter()
    bar = partial(progress.bar, unit="case", keep=True)
    written = write_dataset(
        args.root, args.seed, args.size, args.train, args.test, args.workers, args.overwrite, bar
    )
    seconds = time.perf_counter() - start
    splits = [open_dataset("phantom", args.root, split) for split in ("train", "test")]
    fractions = [split.load(index)[1].mean() for split in splits for index in range(len(split))]
    print(
        f"{args.root}: {args.train} + {args.test} cases of {'×'.join(map(str, args.size))} voxels, "
        f"{written} written in {seconds:.1f} s, label {np.mean(fractions):.1%} of the volume "
        f"({np.min(fractions):.1%} to {np.max(fractions):.1%})"
    )
    if args.preview:
        preview(args.preview, splits[0])
        print(f"{args.preview}: contact sheet")


if __name__ == "__main__":
    command.run(main)
