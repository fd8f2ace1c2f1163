"""Figures of numbers: metrics over training, and PPV, TPR and CSI of CoraNet's certain region."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from utils.device import select_device
from utils.errors import UserError
from utils.figures import Bar, bars_figure, curves_figure, lines_figure
from utils.reporting.certain_scores import MEASURES, Regions, read_certain, read_certain_steps
from utils.reporting.kept_steps import read_curves, score_steps
from utils.reporting.predicted_split import epochs
from utils.reporting.run_figures.shared import draw, open_split, run_names, write_table


def curves(args: argparse.Namespace) -> None:
    """CML, Fig. 2: Dice, or other metrics, of each tested network and of their mean, or of the
    student and its mean teacher, at the steps that training kept. Also written as CSV.

    With --split test it reads the results that `test_*.py --checkpoint <step>` wrote into
    <run>/test/; those of one network need `--network net_2`, or `--network teacher`, there. With
    --split train it predicts and scores the run's unlabelled training cases; empty predictions are
    left out of distances.
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
    write_table(args, file, rows)


def certain_bars(args: argparse.Namespace) -> None:
    """CoraNet, Fig. 3: PPV, TPR and CSI of the certain region and of softmax thresholds, mean ± sd
    over cases, a row for each run.

    It reads what `assess_coranet.py` wrote. The paper's figure is of the initial prediction: take
    runs that were trained with `--selftrain_epochs 0`.
    """
    tag = args.checkpoint if not args.checkpoint.isdecimal() else f"step_{args.checkpoint}"
    tag += "_train" if args.split == "train" else ""
    rows = {}
    for run, name in zip(args.runs, run_names(args), strict=True):
        found = read_certain(run, tag)
        cases = max(int(scores["cases"]) for scores in found.values())
        rows[f"{name}, {cases} cases"] = {
            measure: {
                region.replace("coranet", "CoraNet").replace(" ", "\n"): Bar(
                    100 * scores[measure], 100 * scores[f"{measure}_sd"]
                )
                for region, scores in found.items()
            }
            for measure in MEASURES
        }
    title = f"certain regions, {tag}"
    draw(args, f"certain_bars_{tag}", bars_figure, rows, title)


def certain_curves(args: argparse.Namespace) -> None:
    """CoraNet, Fig. 4: PPV, TPR and CSI of the certain region in the course of training, a line for
    each run. Also written as CSV.

    It reads what `assess_coranet.py --checkpoint kept` wrote. The region of a run is the one that
    it was trained with: CoraNet's, or that of the measure of `train_coranet_uncertainty.py`.
    """
    found = [read_certain_steps(run, args.split, args.steps) for run in args.runs]
    wanted = args.regions or [None] * len(args.runs)
    place_of, across = _places(args.runs, found)
    panels = {f"{measure} (%)": {} for measure in MEASURES}
    rows = []
    for run, name, region, steps in zip(args.runs, run_names(args), wanted, found, strict=True):
        for step, by_region in steps.items():
            shown = region or next(r for r, scores in by_region.items() if scores["of_training"])
            if shown not in by_region:
                raise UserError(
                    f"{run}: step {step} was assessed without the region {shown!r}; choose from "
                    f"{', '.join(by_region)} with --regions"
                )
            scores = by_region[shown]
            rows.append({"run": name, "region": shown, "step": step, **scores})
            for measure in MEASURES:
                line = panels[f"{measure} (%)"].setdefault(name, {})
                line[place_of(run, step)] = 100 * scores[measure]
    file = f"certain_curves_{args.split}"
    title = f"certain region, {args.split} list"
    draw(args, file, lines_figure, panels, across, title, columns=3)
    write_table(args, file, rows)


def _places(
    runs: Sequence[Path], found: Sequence[dict[int, Regions]]
) -> tuple[Callable[[Path, int], int], str]:
    """Where a step of a run stands on the horizontal axis, and the axis's name: epochs if the runs
    recorded all of them, else steps.
    """
    recorded = {run: epochs(run) for run in runs}
    for run, steps in zip(runs, found, strict=True):
        if not recorded[run].keys() >= steps.keys():
            return lambda run, step: step, "iteration"
    return lambda run, step: recorded[run][step], "epoch"
