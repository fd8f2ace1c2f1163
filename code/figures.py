"""Figures of a run's networks: distance maps, uncertain regions, metrics over training.

    python code/figures.py sdm runs/LA/dtml_16/seed1337                # DTML's Fig. 2; also UG-MCL
    python code/figures.py uncertainty runs/LA/coranet_16/seed1337     # CoraNet's Fig. 5
    python code/figures.py curves runs/LA/cml_8/seed1337               # CML's Fig. 2
    python code/figures.py curves runs/LA/cml_8/seed1337 --split train --cases 4

    sdm           image, reference, predicted signed distance map with its zero level, and the mask
                  where the map is negative
    uncertainty   the voxels where D_con and D_rad predict different classes, at several of the
                  steps that training kept (--keep_every)
    curves        Dice, or other metrics, of each tested network and of their mean, at the steps
                  that training kept

`sdm` and `uncertainty` show the run's first unlabelled training case, or the cases of --case; with
--split test they show test cases. The distance map of a volume is the mean over its windows.

`curves` reads the results that `test_*.py --checkpoint <step>` wrote into <run>/test/; those of one
network need `--network net_2` there. With --split train it predicts and scores the run's unlabelled
training cases instead. Their labels are read only for this, and empty predictions are left out of
distances. It also writes its numbers as CSV.

Files go to <run>/figures/. Contours, errors and surfaces of tested cases are drawn by test_*.py.
"""

import argparse
import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

import _root  # noqa: F401
from utils import command
from utils.device import select_device
from utils.errors import UserError
from utils.figures import FORMATS, curves_figure, sdm_figure, uncertainty_figure
from utils.files import write_csv
from utils.metrics import METRICS
from utils.reporting.kept_steps import read_curves, score_steps
from utils.reporting.predicted_split import (
    Split,
    branch_probabilities,
    epochs,
    evenly,
    insist_on_branches,
    kept_steps,
)
from utils.trained import checkpoint_name, find_checkpoint, load_networks

# ------------------------------------------------------------------------------------- the figures


def sdm(args: argparse.Namespace) -> None:
    """Image, reference, predicted signed distance map with its zero level, and the mask where the
    map is negative (DTML, Fig. 2; UG-MCL).
    """
    device = select_device(args.gpu)
    path = find_checkpoint(args.run, args.checkpoint)
    network, checkpoint = load_distance_network(path, device)

    def distances(x):
        output = network(x)
        return (output[1] if isinstance(output, tuple) else output).float()

    split = open_split(args, checkpoint, device)
    for case, image, label in split.named(args.case):
        maps = split.predict(distances, image, split.num_classes - 1).numpy()
        draw(
            args,
            f"sdm_{path.stem}_{case}",
            sdm_figure,
            image,
            label,
            maps,
            f"{case}, {args.run.parent.name}, step {checkpoint['step']}",
            spacing=split.spacing,
            class_names=split.class_names,
            plane=plane_of(args, split),
        )


def load_distance_network(path: Path, device: torch.device) -> tuple[torch.nn.Module, dict]:
    """The first network of a checkpoint that gives distance maps, and the checkpoint."""
    _, checkpoint = load_networks(path, device)
    specs = checkpoint["networks"]
    for name in (*checkpoint["test_networks"], *specs):
        if specs[name]["kwargs"].get("sdm_head"):
            (network,), _ = load_networks(path, device, name)
            return network, checkpoint
    hint = ""
    if path.stem.startswith("step_"):
        hint = "; of a step, DTML keeps only M_s: take --checkpoint last"
    raise UserError(
        f"{path}: none of its networks gives distance maps, as those of DTML and UG-MCL do{hint}"
    )


def uncertainty(args: argparse.Namespace) -> None:
    """The voxels where D_con and D_rad predict different classes, at several of the steps that
    training kept with --keep_every (CoraNet, Fig. 5).
    """
    device = select_device(args.gpu)
    steps = args.steps or evenly(kept_steps(args.run), 4)
    shown = {}  # name: image, label, and the uncertain voxels of each step
    for step in steps:
        path = find_checkpoint(args.run, str(step))
        (network, *_), checkpoint = load_networks(path, device)
        insist_on_branches(network, path)
        split = open_split(args, checkpoint, device)
        classes = split.num_classes
        for case, image, label in split.named(args.case):
            branches = split.predict(branch_probabilities(network), image, 3 * classes)
            _, con, rad = branches.split(classes)
            _, _, masks = shown.setdefault(case, (image, label, []))
            masks.append((con.argmax(0) != rad.argmax(0)).numpy())

    epoch_of = epochs(args.run)
    names = [f"step {step}" for step in steps]
    if all(step in epoch_of for step in steps):  # --log_every and --keep_every need not agree
        names = [f"epoch {epoch_of[step]} (step {step})" for step in steps]
    title = args.run.parent.name
    ending = f"{len(shown)}cases"
    if len(shown) == 1:
        (ending,) = shown
        title = f"{ending}, {title}"
    draw(
        args,
        f"uncertainty_{'_'.join(map(str, steps))}_{ending}",
        uncertainty_figure,
        [(case, *rest) for case, rest in shown.items()],
        names,
        title,
        spacing=split.spacing,
        plane=plane_of(args, split),
    )


def curves(args: argparse.Namespace) -> None:
    """Dice, or other metrics, of each tested network and of their mean, at the steps that training
    kept (CML, Fig. 2).
    """
    if args.split == "test":
        found, cases = read_curves(args.run, args.steps, args.nms)
    else:
        device = select_device(args.gpu)
        found, cases = score_steps(
            args.run,
            args.steps,
            lambda checkpoint: open_split(args, checkpoint, device),
            device,
            args.cases,
            args.nms == 1,
        )
    if max(map(len, found.values())) < 2:
        raise UserError(f"{args.run}: one step makes no curve; take more, kept with --keep_every")
    if args.names and len(args.names) != len(found):
        raise UserError(
            f"--names: {len(args.names)} names for {len(found)} lines: {', '.join(found)}"
        )
    lines = dict(zip(args.names or found, found.values(), strict=True))
    file = f"curves_{args.split}"
    title = f"{args.run.parent.name}: {cases}"
    draw(args, file, curves_figure, lines, title, metrics=args.metrics)
    rows = []
    for name, curve in lines.items():
        rows += [{"network": name, "step": step, **values} for step, values in curve.items()]
    table = folder_of(args) / f"{file}.csv"
    write_csv(table, rows)
    print(table)


# --------------------------------------------------------------------------- shared by the figures


def open_split(args: argparse.Namespace, checkpoint: dict, device: torch.device) -> Split:
    return Split(checkpoint, args.split, args.root, device, args.batch, args.precision)


def plane_of(args: argparse.Namespace, split: Split) -> str:
    return "slice" if split.sliced else args.plane


def folder_of(args: argparse.Namespace) -> Path:
    """The folder of the files: --output, or `figures` in the run; of several runs, in the first."""
    run = args.runs[0] if "runs" in args else args.run
    return getattr(args, "output", None) or run / "figures"


def draw(args: argparse.Namespace, name: str, figure: Callable, *given, **look) -> None:
    """Write a figure in each format that was asked for."""
    folder = folder_of(args)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be made ({error.strerror})") from None
    for kind in args.format:
        path = folder / f"{name}.{kind}"
        figure(path, *given, **look)
        print(path)


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


def add_cases(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--split",
        choices=("train", "val", "test"),
        default="train",
        help="list of the cases; train takes those that were unlabelled",
    )
    parser.add_argument(
        "--case", nargs="+", metavar="NAME", help="names in the list (default: the first)"
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


def sdm_options(parser: argparse.ArgumentParser) -> None:
    add_run(parser)
    add_cases(parser)
    add_checkpoint(parser)
    add_prediction(parser)


def uncertainty_options(parser: argparse.ArgumentParser) -> None:
    add_run(parser)
    add_cases(parser)
    add_steps(parser, "four, from the first to the last")
    add_prediction(parser)


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


def check_curves(args: argparse.Namespace) -> None:
    if args.split == "test" and args.cases:
        raise UserError("--cases is for --split train and val: the tests had cases of their own")


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
    "sdm": Figure("signed distance maps and their masks (DTML, UG-MCL)", sdm_options, sdm),
    "uncertainty": Figure("uncertain voxels over training", uncertainty_options, uncertainty),
    "curves": Figure(
        "metrics of the networks and of their mean over training (CML)",
        curves_options,
        curves,
        check_curves,
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
