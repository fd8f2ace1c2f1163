"""Figures of trained runs: the counterparts of the papers' figures.

    python code/figures.py sdm runs/LA/dtml_16/seed1337 --case A B             # DTML's Fig. 2
    python code/figures.py entropy runs/LA/ugmcl_16/seed1337                   # UG-MCL's Fig. 1
    python code/figures.py pseudo_labels runs/LA/cps_8/seed1337 runs/LA/dmd_8/seed1337
    python code/figures.py gradients runs/LA/dmd_8/seed1337                    # DMD's Fig. 3a
    python code/figures.py curves runs/LA/cml_8/seed1337 --split train         # CML's Fig. 2
    python code/figures.py regions runs/LA/coranet_16/seed1337                 # CoraNet's Fig. 1
    python code/figures.py alphas runs/LA/alpha_2/seed1337 runs/LA/alpha_5/seed1337
    python code/figures.py side_by_side runs/LA/dmd_8/seed1337 runs/LA/cml_8/seed1337 --surfaces

`python code/figures.py FIGURE --help` says what a figure shows, and what it needs.

The case is the run's first unlabelled training case, or the cases of --case; with --split test they
are test cases, as in side_by_side. A map of a volume is the mean over its windows. Labels of
unlabelled cases are read only for the picture, for the plane that is shown and for scores. Steps
are those that training kept with --keep_every.

Files go to <run>/figures/. Contours, errors and surfaces of tested cases are drawn by test_*.py,
plots of sweeps by ablate.py.
"""

import argparse
import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import _root  # noqa: F401
from utils import command
from utils.errors import UserError
from utils.figures import FORMATS
from utils.figures.side_by_side import RUNS as COLORS
from utils.metrics import METRICS
from utils.reporting.run_figures import lines, maps, masks, side_by_side
from utils.trained import checkpoint_name

# ------------------------------------------------------------------------------------- the options


def add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, help="folder of the run")


def add_runs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", type=Path, nargs="+", metavar="run", help="folders of the runs")
    parser.add_argument(
        "--names", nargs="+", metavar="NAME", help="names of the runs (default: their folders')"
    )
    parser.add_argument(
        "--output", type=Path, help="folder of the files (default: figures/ in the first run)"
    )


def add_checkpoint(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--checkpoint",
        type=checkpoint_name,
        default="last",
        help="last, best, or the number of a kept step",
    )


def add_steps(parser: argparse.ArgumentParser, usual: str) -> None:
    parser.add_argument(
        "--steps",
        nargs="+",
        type=command.positive_int,
        metavar="STEP",
        help=f"kept steps to show (default: {usual})",
    )


def add_cases(parser: argparse.ArgumentParser, nargs: str | int = "+") -> None:
    parser.add_argument(
        "--split",
        choices=("train", "val", "test"),
        default="train",
        help="list of the cases; train takes those that were unlabelled",
    )
    parser.add_argument(
        "--case", nargs=nargs, metavar="NAME", help="names in the list (default: the first)"
    )
    parser.add_argument(
        "--plane",
        choices=("axial", "coronal", "sagittal"),
        default="axial",
        help="plane in which volumes are cut",
    )


def add_format(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--format", nargs="+", choices=FORMATS, default=["png"], help="formats of the files"
    )


def add_prediction(parser: argparse.ArgumentParser) -> None:
    """Options of whatever predicts: the formats, the data and the device."""
    add_format(parser)
    parser.add_argument(
        "--root", help="folder of the data (default: the one that the run was trained on)"
    )
    command.add_device(parser)


def add_one_checkpoint(parser: argparse.ArgumentParser) -> None:
    """Options of a figure of one checkpoint of one run."""
    add_run(parser)
    add_cases(parser)
    add_checkpoint(parser)
    add_prediction(parser)


def entropy_options(parser: argparse.ArgumentParser) -> None:
    add_one_checkpoint(parser)
    parser.add_argument(
        "--passes",
        type=command.positive_int,
        default=8,
        help="T, passes of the teacher; fewer are faster",
    )


def gradients_options(parser: argparse.ArgumentParser) -> None:
    add_one_checkpoint(parser)
    for name, usual in (("Dice", [4.0, 2.0]), ("KL", [1.0, 1.0])):
        parser.add_argument(
            f"--{name.lower()}",
            nargs=2,
            type=command.positive,
            default=usual,
            metavar=("λ", "T"),
            help=f"weight and temperature of the distillation by {name}",
        )


def pseudo_labels_options(parser: argparse.ArgumentParser) -> None:
    add_runs(parser)
    add_cases(parser, nargs=1)
    add_steps(parser, "four that all runs kept, from the first to the last")
    add_prediction(parser)


def uncertainty_options(parser: argparse.ArgumentParser) -> None:
    add_run(parser)
    add_cases(parser)
    add_steps(parser, "four, from the first to the last")
    add_prediction(parser)


def alphas_options(parser: argparse.ArgumentParser) -> None:
    add_runs(parser)
    add_cases(parser)
    add_checkpoint(parser)
    add_prediction(parser)


def add_assessed(parser: argparse.ArgumentParser) -> None:
    """Options of a figure of what `assess_coranet.py` wrote."""
    add_runs(parser)
    parser.add_argument(
        "--split", choices=("test", "train"), default="test", help="list that was assessed"
    )
    add_format(parser)


def certain_bars_options(parser: argparse.ArgumentParser) -> None:
    add_assessed(parser)
    add_checkpoint(parser)


def certain_curves_options(parser: argparse.ArgumentParser) -> None:
    add_assessed(parser)
    add_steps(parser, "all that were assessed")
    parser.add_argument(
        "--regions",
        nargs="+",
        metavar="NAME",
        help="region of each run, as certain.csv names it (default: that of its training)",
    )


def curves_options(parser: argparse.ArgumentParser) -> None:
    add_run(parser)
    parser.add_argument(
        "--split",
        choices=("test", "val", "train"),
        default="test",
        help="test reads the results of tests; train scores the cases that were unlabelled",
    )
    parser.add_argument(
        "--cases",
        type=command.positive_int,
        help="score only this many cases, with --split train or val",
    )
    parser.add_argument(
        "--metrics",
        nargs="+",
        choices=METRICS,
        default=["dice"],
        metavar="METRIC",
        help="metrics to draw, a panel each",
    )
    parser.add_argument(
        "--nms",
        type=int,
        choices=(0, 1),
        help="1 keeps only the largest component of each class; with --split test, only results of "
        "tests with this choice are taken",
    )
    parser.add_argument(
        "--names", nargs="+", metavar="NAME", help="names of the lines, in their order"
    )
    add_steps(parser, "all")
    add_prediction(parser)


def side_by_side_options(parser: argparse.ArgumentParser) -> None:
    add_runs(parser)
    add_cases(parser)
    parser.set_defaults(split="test", plane=None)
    parser.add_argument(
        "--slice",
        nargs="+",
        type=command.positive_int,
        metavar="N",
        help="number of the slice, from 1, or one for each case (default: where the reference is "
        "largest)",
    )
    parser.add_argument(
        "--together", action="store_true", help="draw the contours of all runs into one picture"
    )
    parser.add_argument(
        "--surfaces", action="store_true", help="draw surfaces of volumes in place of contours"
    )
    parser.add_argument(
        "--near", action="store_true", help="show only the surroundings of the objects"
    )
    parser.add_argument(
        "--nms",
        type=int,
        choices=(0, 1),
        help="1 keeps only the largest component of each class (default: as the test script)",
    )
    add_checkpoint(parser)
    add_prediction(parser)


def check_side_by_side(args: argparse.Namespace) -> None:
    check_names(args)
    for option in ("slice", "plane", "near", "together"):
        if args.surfaces and getattr(args, option):
            raise UserError(f"--{option} does not go with --surfaces, which shows whole volumes")
    if args.together and len(args.runs) > len(COLORS):
        raise UserError(
            f"--together: {len(args.runs)} runs, and colours for {len(COLORS)}; leave it out"
        )


def check_curves(args: argparse.Namespace) -> None:
    if args.split == "test" and args.cases:
        raise UserError("--cases is for --split train and val: the tests had cases of their own")


def check_names(args: argparse.Namespace) -> None:
    for option in ("names", "regions"):
        given = getattr(args, option, None)
        if given and len(given) != len(args.runs):
            raise UserError(f"--{option}: {len(given)} names for {len(args.runs)} runs")


# ---------------------------------------------------------------------------------- the subcommands


class Figure(NamedTuple):
    """A subcommand. Its `--help` shows the docstring of `draw`.

    Attributes:
        help: a line for the list of subcommands.
        add_options: adds its options to its parser.
        draw: draws with the parsed options.
        check: raises `UserError` for options that do not fit one another.
    """

    help: str
    add_options: Callable[[argparse.ArgumentParser], None]
    draw: Callable[[argparse.Namespace], None]
    check: Callable[[argparse.Namespace], None] = lambda args: None


FIGURES = {
    "sdm": Figure("DTML 2: distance maps and segmentations", add_one_checkpoint, maps.sdm),
    "entropy": Figure("UG-MCL 1: uncertainty of the mean teacher", entropy_options, maps.entropy),
    "gradients": Figure("DMD 3a: gradients of the distillation", gradients_options, maps.gradients),
    "pseudo_labels": Figure(
        "DMD 2: pseudo-labels of runs over training",
        pseudo_labels_options,
        masks.pseudo_labels,
        check_names,
    ),
    "curves": Figure(
        "CML 2: metrics of the networks over training", curves_options, lines.curves, check_curves
    ),
    "regions": Figure("CoraNet 1: certain and uncertain region", add_one_checkpoint, masks.regions),
    "certain_bars": Figure(
        "CoraNet 3: PPV, TPR, CSI of regions", certain_bars_options, lines.certain_bars, check_names
    ),
    "certain_curves": Figure(
        "CoraNet 4: PPV, TPR, CSI over training",
        certain_curves_options,
        lines.certain_curves,
        check_names,
    ),
    "uncertainty": Figure(
        "CoraNet 5: uncertain region over training", uncertainty_options, masks.uncertainty
    ),
    "alphas": Figure(
        "CoraNet 8: initial uncertain region by α", alphas_options, masks.alphas, check_names
    ),
    "side_by_side": Figure(
        "DTML 3, UG-MCL 5 and 6, CML 4, CoraNet 6, 7, 9: several runs on one case",
        side_by_side_options,
        side_by_side.side_by_side,
        check_side_by_side,
    ),
}


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = command.Parser(__doc__, __file__)
    subcommands = parser.add_subparsers(
        dest="figure", required=True, metavar="FIGURE", parser_class=_subparser
    )
    for name, figure in FIGURES.items():
        doc = inspect.getdoc(figure.draw)
        figure.add_options(subcommands.add_parser(name, help=figure.help, doc=doc))
    args, unknown = parser.parse_known_args(argv)
    if unknown:  # the figure's own parser knows which flag is near
        chosen = subcommands.choices[args.figure]
        chosen.error(f"unrecognized arguments: {' '.join(unknown)}")
    for run in args.runs if "runs" in args else [args.run]:
        if not run.is_dir():
            raise UserError(f"{run}: no such folder of a run")
    FIGURES[args.figure].check(args)
    return args


def _subparser(prog: str, doc: str) -> command.Parser:
    return command.Parser(doc, prog)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    FIGURES[args.figure].draw(args)


if __name__ == "__main__":
    command.run(main)
