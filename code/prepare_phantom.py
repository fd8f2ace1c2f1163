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
from tqdm import tqdm

import _root  # noqa: F401
from dataloaders import open_dataset
from dataloaders.phantom import SIZE
from utils import command
from utils.preparation.phantom import write_dataset


def parse(arguments=None):
    parser = command.Parser(__doc__, __file__)
    parser.add_argument("--root", type=Path, default="data/phantom", help="folder to write")
    parser.add_argument("--seed", type=int, default=2018, help="another seed makes other cases")
    parser.add_argument(
        "--size",
        type=int,
        nargs=3,
        default=SIZE,
        metavar=("X", "Y", "Z"),
        help="voxels; the anatomy scales with them",
    )
    parser.add_argument("--train", type=int, default=80, help="cases in train.list")
    parser.add_argument("--test", type=int, default=20, help="cases in test.list")
    parser.add_argument(
        "--workers", type=int, help="processes (all the cores); the files do not depend on it"
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="delete the phantom in --root and make this one"
    )
    parser.add_argument(
        "--preview", type=Path, metavar="FILE.png", help="write a contact sheet of some cases here"
    )
    return parser.parse_args(arguments)


def preview(path, dataset, cases=4):
    """Write a contact sheet: a row a case, five axial, a coronal and a sagittal slice, the label as
    a contour.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    cases = min(cases, len(dataset))
    figure = Figure(figsize=(14, 2.05 * cases), facecolor="black")
    FigureCanvasAgg(figure)
    axes = figure.subplots(cases, 7, squeeze=False)
    for row, index in zip(axes, np.linspace(0, len(dataset) - 1, cases).astype(int), strict=True):
        image, label = dataset.load(index)
        x, y, z = (np.unique(where) for where in np.nonzero(label))
        levels = z[np.linspace(0, len(z) - 1, 7).astype(int)[1:-1]]
        slices = [np.s_[:, :, level] for level in levels]
        slices += [np.s_[:, y[len(y) // 2], ::-1], np.s_[x[len(x) // 2], :, ::-1]]
        spacing = dataset.spacing
        ratios = [spacing[1] / spacing[0]] * 5 + [spacing[2] / spacing[0], spacing[2] / spacing[1]]
        low, high = np.percentile(image, (1, 99.8))
        for ax, where, aspect in zip(row, slices, ratios, strict=True):
            ax.imshow(
                image[where].T,
                cmap="gray",
                vmin=low,
                vmax=high,
                aspect=aspect,
                interpolation="bicubic",
            )
            if label[where].any():
                ax.contour(label[where].T, [0.5], colors="#ff5a4f", linewidths=1)
            ax.axis("off")
    figure.subplots_adjust(0.004, 0.01, 0.996, 0.99, 0.03, 0.03)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100, facecolor="black")


def main(arguments=None):
    args = parse(arguments)
    start = time.perf_counter()
    bar = partial(tqdm, unit="case", disable=None)
    written = write_dataset(
        args.root, args.seed, args.size, args.train, args.test, args.workers, args.overwrite, bar
    )
    seconds = time.perf_counter() - start
    splits = [open_dataset("phantom", args.root, split) for split in ("train", "test")]
    fractions = [split.load(index)[1].mean() for split in splits for index in range(len(split))]
    print(
        f"{args.root}: {args.train} + {args.test} cases of {'×'.join(map(str, args.size))} voxels, "
        f"{written} written in {seconds:.1f} s, "
        f"label {np.mean(fractions):.1%} of the volume ({np.min(fractions):.1%} to "
        f"{np.max(fractions):.1%})"
    )
    if args.preview:
        preview(args.preview, splits[0])
        print(f"{args.preview}: contact sheet")


if __name__ == "__main__":
    command.run(main)
