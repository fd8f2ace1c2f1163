"""Figures of a test set: the spread of its metrics, and their course over training."""

import math
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from utils.figures.style import (
    CLASSES,
    EDGE,
    FAINT,
    INK,
    PREDICTION,
    REFERENCE,
    WIDTH,
    canvas,
    plain,
    save,
)
from utils.metrics import NAMES, OVERLAPS, SHOWN, factor, spread, spread_text

_LINES = tuple(zip((REFERENCE, PREDICTION, INK, *CLASSES[2:]), "osD^vPX*", strict=True))


def summary_figure(
    path: str | Path,
    rows: Sequence[Mapping],
    title: str,
    unit: str = "voxels",
    class_names: Sequence[str] = (),
    metrics: Sequence[str] = SHOWN,
) -> None:
    """Every case's metrics: points, box (median, quartiles), mean ± sample sd, best and worst, in a
    panel a metric.

    Args:
        path: file to write, whole or not at all.
        rows: one per case and class, with `case`, `class` (from 1) and the metrics; NaN is left
            out.
        title: set in bold above the panels.
        unit: of the distances.
        class_names: names of the foreground classes, for more than one.
        metrics: names of `utils.metrics.METRICS`.

    Raises:
        ValueError: no rows.
    """
    if not rows:
        raise ValueError("a summary needs at least one case")
    classes = sorted({row["class"] for row in rows})
    most = 4 if len(classes) == 1 else 2  # several boxes in a panel need twice the width
    columns = min(len(metrics), most)
    lines = math.ceil(len(metrics) / columns)
    figure = canvas(WIDTH, 2.3 * lines)
    for place, metric in enumerate(metrics, 1):
        ax = figure.add_subplot(lines, columns, place)
        for position, c in enumerate(classes):
            of_class = [row for row in rows if row["class"] == c]
            cases = [(factor(metric) * row[metric], str(row["case"])) for row in of_class]
            _strip(ax, position, cases, higher_is_better=metric in OVERLAPS)
        ax.set_title(_axis_name(metric, unit), size=8, color=INK, pad=14)
        _class_axis(ax, classes, class_names)
    line = 1 - 0.1 / figure.get_figheight()
    figure.text(0.01, line, title, ha="left", va="center", size=8, weight="bold", color=INK)
    words = "box: median, quartiles   ◆: mean ± sd"
    figure.text(0.99, line, words, ha="right", va="center", size=6, color=FAINT)
    figure.tight_layout(rect=(0, 0, 1, 1 - 0.2 / figure.get_figheight()), w_pad=0.8)
    save(figure, path)


def _axis_name(metric: str, unit: str) -> str:
    return f"{NAMES[metric]} ({'%' if metric in OVERLAPS else unit})"


def _class_axis(ax: Axes, classes: Sequence[int], class_names: Sequence[str]) -> None:
    """The classes' names below their strips, and thin axes."""
    plain(ax)
    ax.set_xlim(-0.6, len(classes) - 0.4)
    ax.set_xticks([])
    if len(classes) > 1:
        names = [class_names[c - 1] if class_names else f"class {c}" for c in classes]
        ax.set_xticks(range(len(classes)), names)
    ax.spines["bottom"].set_visible(False)
    ax.margins(y=0.12)  # room for the names of the extremes


def curves_figure(
    path: str | Path,
    curves: Mapping[str, Mapping[int, Mapping[str, float]]],
    title: str = "",
    unit: str = "voxels",
    metrics: Sequence[str] = ("dice",),
) -> None:
    """Metrics over the steps of training, a line for each network or run, a panel for each metric.

    Args:
        path: file to write, whole or not at all; half as wide as a page for one metric.
        curves: by line, then by step, the metrics; NaN leaves a gap.
        title: set in bold above the panels.
        unit: of the distances.
        metrics: names of `utils.metrics.METRICS`.

    Raises:
        ValueError: no curves, or one without steps.
    """
    if not curves or not all(curves.values()):
        raise ValueError("curves need at least one step each")
    panels = {}
    for metric in metrics:
        panels[_axis_name(metric, unit)] = {
            name: {step: factor(metric) * values[metric] for step, values in curve.items()}
            for name, curve in curves.items()
        }
    lines_figure(path, panels, "iteration", title)


def lines_figure(
    path: str | Path,
    panels: Mapping[str, Mapping[str, Mapping[int, float]]],
    across: str,
    title: str,
    columns: int = 2,
) -> None:
    """Numbers over the course of training, in a panel each; the same lines in every panel.

    Args:
        path: file to write, whole or not at all; half as wide as a page for one panel.
        panels: by the name of the vertical axis, then by line, the numbers at each place; NaN
            leaves a gap.
        across: name of the horizontal axis, whose places are whole numbers.
        title: set in bold above the panels.
        columns: panels beside one another, at most.
    """
    columns = min(len(panels), columns)
    lines = math.ceil(len(panels) / columns)
    figure = canvas(WIDTH if columns > 1 else WIDTH / 2, 2.2 * lines + 0.3)
    height = figure.get_figheight()
    for place, (name, curves) in enumerate(panels.items(), 1):
        ax = figure.add_subplot(lines, columns, place)
        _lines_panel(ax, curves)
        ax.set_xlabel(across, size=7.5, color=INK)
        ax.set_ylabel(name, size=7.5, color=INK)
    figure.text(0.01, 1 - 0.1 / height, title, va="center", size=8, weight="bold", color=INK)
    foot = _legend_below(figure) if len(curves) > 1 else 0.0
    for _ in range(2):  # narrower panels may have other numbers at their axes
        figure.tight_layout(rect=(0, foot / height, 1, 1 - 0.2 / height), pad=0.3, w_pad=1.5)
    save(figure, path)


def _lines_panel(ax: Axes, curves: Mapping[str, Mapping[int, float]]) -> None:
    for (name, curve), (color, marker) in zip(curves.items(), cycle(_LINES), strict=False):
        places = sorted(curve)
        values = [curve[place] for place in places]
        ax.plot(places, values, color=color, marker=marker, ms=3, lw=1.2, label=name, clip_on=False)
    ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    ax.grid(axis="y", color=FAINT, alpha=0.25, lw=0.5)
    plain(ax)


class Bar(NamedTuple):
    """A bar: its mean and sample sd over cases, in percent; NaN draws nothing."""

    mean: float
    sd: float


def bars_figure(
    path: str | Path, rows: Mapping[str, Mapping[str, Mapping[str, Bar]]], title: str
) -> None:
    """Shares in percent as bars, each with its sd: a row for each run, a panel for each measure.

    Args:
        path: file to write, whole or not at all.
        rows: by run, then by measure, then by the name below a bar.
        title: set in bold above the panels.

    Raises:
        ValueError: no run, or one without measures.
    """
    if not rows or not all(rows.values()):
        raise ValueError("bars need at least one run and measure")
    columns = max(map(len, rows.values()))
    figure = canvas(WIDTH, 1.9 * len(rows) + 0.2)
    for line, (run, measures) in enumerate(rows.items()):
        for place, (measure, bars) in enumerate(measures.items(), 1):
            ax = figure.add_subplot(len(rows), columns, line * columns + place)
            _bars_panel(ax, bars)
            ax.set_ylabel(f"{measure} (%)", size=7.5, color=INK)
            if place == 1 and len(rows) > 1:
                ax.set_title(run, size=7.5, color=INK, loc="left", pad=6)
    height = figure.get_figheight()
    figure.text(0.01, 1 - 0.1 / height, title, va="center", size=8, weight="bold", color=INK)
    figure.tight_layout(rect=(0, 0, 1, 1 - 0.2 / height), pad=0.3, w_pad=1.5, h_pad=1.0)
    save(figure, path)


def _bars_panel(ax: Axes, bars: Mapping[str, Bar]) -> None:
    for place, (bar, color) in enumerate(zip(bars.values(), cycle(CLASSES), strict=False)):
        if not np.isfinite(bar.mean):
            continue
        ax.bar(place, bar.mean, 0.7, color=color)
        if np.isfinite(bar.sd):
            reach = [[min(bar.sd, bar.mean)], [min(bar.sd, 100 - bar.mean)]]  # a share
            ax.errorbar(place, bar.mean, reach, color=INK, elinewidth=0.8, capsize=2)
        text = {"ha": "center", "va": "bottom", "size": 6.5, "path_effects": EDGE, "color": "white"}
        ax.text(place, 1, f"{bar.mean:.1f}", **text)
    ax.set_ylim(0, 100)
    ax.set_xlim(-0.6, len(bars) - 0.4)
    ax.set_xticks(range(len(bars)), bars)
    plain(ax)


def _legend_below(figure: Figure) -> float:
    """The legend of the first panel's lines below the panels; returns the inches that it needs."""
    handles, labels = figure.axes[0].get_legend_handles_labels()
    legend = figure.legend(
        handles,
        labels,
        loc="lower center",
        bbox_to_anchor=(0.5, 0.02 / figure.get_figheight()),
        ncol=min(len(labels), 4),
        frameon=False,
        fontsize=7,
        labelcolor=INK,
        borderaxespad=0,
    )
    return legend.get_window_extent().height / figure.dpi + 0.05


def _strip(ax: Axes, x: float, cases: Sequence[tuple[float, str]], higher_is_better: bool) -> None:
    """Value and name of each case as points beside a box and their mean."""
    cases = sorted(case for case in cases if np.isfinite(case[0]))
    if not cases:
        return
    values = np.array([value for value, _ in cases])
    faint = {"color": FAINT, "lw": 0.8}
    ax.boxplot(
        values,
        positions=[x],
        widths=0.5,
        showfliers=False,
        manage_ticks=False,
        boxprops=faint,
        whiskerprops=faint,
        capprops=faint,
        medianprops={"color": INK, "lw": 1.2},
    )
    # Neighbours in value are set side by side by a fixed pattern: no chance in a figure.
    offsets = 0.16 * np.array([0, 1, -1, 0.5, -0.5])[np.arange(len(values)) % 5]
    ax.scatter(
        x + offsets, values, s=7, color=REFERENCE, edgecolor="white", linewidth=0.3, zorder=3
    )
    found = spread(values)
    reach = None
    if found.n > 1:
        reach = [[min(found.sd, found.mean)], [found.sd]]  # no metric is below 0
    look = {"fmt": "D", "ms": 3, "color": PREDICTION, "elinewidth": 1, "capsize": 2}
    ax.errorbar(x + 0.36, found.mean, yerr=reach, zorder=4, **look)
    above = ax.get_xaxis_transform()
    ax.text(x, 1.02, spread_text(found), transform=above, ha="center", size=7, color=INK)
    if values[0] < values[-1]:
        lowest, highest = ("worst", "best") if higher_is_better else ("best", "worst")
        _name_case(ax, x, cases[0], lowest, above=False)
        _name_case(ax, x, cases[-1], highest, above=True)


def _name_case(ax: Axes, x: float, case: tuple[float, str], word: str, above: bool) -> None:
    """Write an extreme case's name at its point."""
    value, name = case
    ax.annotate(
        f"{word} {_short(name)}",
        (x, value),
        (0, 4 if above else -4),
        textcoords="offset points",
        ha="center",
        va="bottom" if above else "top",
        size=5.5,
        color=FAINT,
    )


def _short(name: str, limit: int = 12) -> str:
    """A case's name where there is little room: the end tells numbered names and hashes apart."""
    return name if len(name) <= limit else f"…{name[1 - limit :]}"
