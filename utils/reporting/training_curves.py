"""Learning curves of runs: losses, and the Dice of validation and of tests of kept steps."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from utils.figures.style import FAINT, INK, save
from utils.metrics import mean
from utils.reporting import plot_style
from utils.reporting.compare import Comparison
from utils.reporting.plot_style import Look
from utils.reporting.results import Result


@dataclass(frozen=True)
class Curve:
    """A line of a panel.

    Attributes:
        label: its name in the legend.
        points: step and value, in the order of the steps.
        tested: of Dice, whether the values are those of tests; else of validations.
    """

    label: str
    points: list[tuple[int, float]]
    tested: bool = False


def comparison_figure(path: str | Path, comparison: Comparison, looks: Mapping[str, Look]) -> bool:
    """Training loss by step, smoothed over its records, and the Dice of validation and of tests of
    kept steps, a line a run.

    Returns:
        Whether there was anything to draw.
    """
    losses = []
    dice = []
    for entry in comparison.entries:
        for result in entry.results:
            records = result.training()
            losses.append(Curve(entry.label, _column(records, "loss/loss")))
            dice += _dice_curves(
                entry.label, result, records, comparison.of_class, comparison.class_name
            )
    return _draw(path, looks, losses, dice, "training loss, each method's own")


def training_figure(path: str | Path, result: Result) -> bool:
    """Every term of the training loss by step, as recorded and smoothed, and the Dice as in
    `comparison_figure`.

    Returns:
        Whether there was anything to draw.
    """
    records = result.training()
    tags = dict.fromkeys(tag for record in records for tag in record if tag.startswith("loss/"))
    losses = [Curve(tag.removeprefix("loss/"), _column(records, tag)) for tag in tags]
    looks = plot_style.looks(curve.label for curve in losses)
    dice = _dice_curves("Dice", result, records, None)
    return _draw(path, looks, losses, dice, "training loss")


def _draw(
    path: str | Path,
    looks: Mapping[str, Look],
    losses: Sequence[Curve],
    dice: Sequence[Curve],
    name: str,
) -> bool:
    """A panel of losses and one of Dice, of those that have curves."""
    losses = [curve for curve in losses if len(curve.points) > 1]
    dice = [curve for curve in dice if len(curve.points) > 1]
    if not losses and not dice:
        return False
    figure = plot_style.page(2.75)
    axes = figure.subplots(1, bool(losses) + bool(dice), squeeze=False)[0]
    for ax in axes:
        plot_style.plain(ax)
        ax.set_xlabel("step", size=8, color=INK)
        ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    if losses:
        _loss_panel(axes[0], looks, losses, name)
    if dice:
        _dice_panel(axes[-1], looks, dice)
    for ax in axes:
        ax.set_xlim(left=0)
    drawn = {curve.label for curve in (*losses, *dice)}
    plot_style.legend(figure, {label: look for label, look in looks.items() if label in drawn})
    save(figure, path)
    return True


def _loss_panel(ax: Axes, looks: Mapping[str, Look], curves: Sequence[Curve], name: str) -> None:
    lowest = math.inf
    for curve in curves:
        colour, line = looks[curve.label]
        steps, values = np.array(curve.points, dtype=float).T
        ax.plot(steps, values, color=colour, lw=0.4, alpha=0.25)
        ax.plot(steps, smooth(values), color=colour, lw=1.1, ls=line)
        lowest = min(lowest, values.min())
    if lowest > 0:
        ax.set_yscale("log")
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.yaxis.set_major_formatter("{x:g}")
        ax.yaxis.set_minor_locator(NullLocator())
    ax.set_ylabel(name, size=8, color=INK)


def _dice_panel(ax: Axes, looks: Mapping[str, Look], curves: Sequence[Curve]) -> None:
    for curve in curves:
        colour, line = looks.get(curve.label, (INK, "-"))
        look = {"ls": (0, (1, 1))}
        if curve.tested:
            look = {"ls": line, "marker": "o", "ms": 3, "mew": 0}
        steps, values = zip(*curve.points, strict=True)
        ax.plot(steps, values, color=colour, lw=1.1, **look)
    kinds = dict.fromkeys(curve.tested for curve in curves)
    names = ["test (points)" if tested else "validation (dotted)" for tested in kinds]
    ax.set_ylabel("Dice (%)", size=8, color=INK)
    ax.set_title(" and ".join(names), size=6.5, color=FAINT)


def _column(records: Sequence[dict], tag: str) -> list[tuple[int, float]]:
    """Step and value of a tag, where it is a number."""
    points = []
    for record in records:
        value = record.get(tag)
        if isinstance(value, int | float) and math.isfinite(value):
            points.append((record["step"], value))
    return points


def _dice_curves(
    label: str,
    result: Result,
    records: Sequence[dict],
    of_class: int | None,
    class_name: str = "",
) -> list[Curve]:
    """Mean Dice (%) by step: of the validations, and of the tests of the kept steps."""
    own = class_name and len(result.classes) > 1
    tag = f"val/dice_{class_name}" if own else "val/dice"
    validated = [(step, 100 * value) for step, value in _column(records, tag)]
    tested = [
        (step, 100 * mean(test.cases("dice", of_class).values()))
        for step, test in result.steps().items()
    ]
    return [Curve(label, validated), Curve(label, tested, tested=True)]


def smooth(values: np.ndarray) -> np.ndarray:
    """The mean over a twentieth of the records, around each; at the ends over as many as there
    are.
    """
    count = len(values)
    half = count // 40
    sums = np.concatenate([[0], np.cumsum(values)])
    low = np.clip(np.arange(count) - half, 0, count)
    high = np.clip(np.arange(count) + half + 1, 0, count)
    return (sums[high] - sums[low]) / (high - low)
