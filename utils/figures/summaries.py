"""Figures of a test set: the spread of its metrics, and their course over training."""

from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from utils.figures.style import CLASSES, DPI, FAINT, INK, PREDICTION, REFERENCE, WIDTH, save
from utils.metrics import NAMES, OVERLAPS, SHOWN


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
        rows: one per case and class, with ``case``, ``class`` (from 1) and the metrics; NaN is left
            out.
        title: set in bold above the panels.
        unit: of the distances.
        class_names: names of the foreground classes, for more than one.
        metrics: names of :data:`utils.metrics.METRICS`.

    Raises:
        ValueError: no rows.
    """
    if not rows:
        raise ValueError("a summary needs at least one case")
    classes = sorted({row["class"] for row in rows})
    columns = min(
        len(metrics), 4 if len(classes) == 1 else 2
    )  # several boxes in a panel need twice the width
    lines = -(-len(metrics) // columns)
    figure = Figure(figsize=(WIDTH, 2.3 * lines), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    for place, metric in enumerate(metrics, 1):
        ax = figure.add_subplot(lines, columns, place)
        factor = 100 if metric in OVERLAPS else 1
        for position, c in enumerate(classes):
            cases = [(factor * row[metric], str(row["case"])) for row in rows if row["class"] == c]
            _strip(
                ax,
                position,
                [case for case in cases if np.isfinite(case[0])],
                higher_is_better=factor == 100,
            )
        ax.set_title(
            f"{NAMES[metric]} ({'%' if metric in OVERLAPS else unit})", size=8, color=INK, pad=14
        )
        ax.set_xlim(-0.6, len(classes) - 0.4)
        ax.set_xticks(range(len(classes)) if len(classes) > 1 else [])
        if len(classes) > 1:
            ax.set_xticklabels(
                [class_names[c - 1] if class_names else f"class {c}" for c in classes]
            )
        ax.tick_params(labelsize=7, colors=INK, length=2)
        ax.spines[["top", "right", "bottom"]].set_visible(False)
        ax.spines["left"].set_color(FAINT)
        ax.margins(y=0.12)  # room for the names of the extremes
    line = 1 - 0.1 / figure.get_figheight()
    figure.text(0.01, line, title, ha="left", va="center", size=8, weight="bold", color=INK)
    figure.text(
        0.99,
        line,
        "box: median, quartiles   ◆: mean ± sd",
        ha="right",
        va="center",
        size=6,
        color=FAINT,
    )
    figure.tight_layout(rect=(0, 0, 1, 1 - 0.2 / figure.get_figheight()), w_pad=0.8)
    save(figure, path)


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
        curves: of each line the metrics of each step; NaN leaves a gap.
        title: set in bold above the panels.
        unit: of the distances.
        metrics: names of :data:`utils.metrics.METRICS`.

    Raises:
        ValueError: no curves, or one without steps.
    """
    if not curves or not all(curves.values()):
        raise ValueError("curves need at least one step each")
    columns = min(len(metrics), 2)
    lines = -(-len(metrics) // columns)
    figure = Figure(figsize=(columns * WIDTH / 2, 2.2 * lines + 0.3), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    height = figure.get_figheight()
    for place, metric in enumerate(metrics, 1):
        ax = figure.add_subplot(lines, columns, place)
        factor = 100 if metric in OVERLAPS else 1
        for (name, curve), (color, marker) in zip(curves.items(), cycle(_LINES), strict=False):
            steps = sorted(curve)
            values = [factor * curve[step][metric] for step in steps]
            ax.plot(
                steps, values, color=color, marker=marker, ms=3, lw=1.2, label=name, clip_on=False
            )
        ax.set_xlabel("iteration", size=7.5, color=INK)
        ax.set_ylabel(
            f"{NAMES[metric]} ({'%' if metric in OVERLAPS else unit})", size=7.5, color=INK
        )
        ax.tick_params(labelsize=7, colors=INK, length=2)
        ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        ax.grid(axis="y", color=FAINT, alpha=0.25, lw=0.5)
        ax.spines[["top", "right"]].set_visible(False)
        ax.spines[["left", "bottom"]].set_color(FAINT)
    figure.text(0.01, 1 - 0.1 / height, title, va="center", size=8, weight="bold", color=INK)
    foot = 0.0
    if len(curves) > 1:
        handles, labels = figure.axes[0].get_legend_handles_labels()
        place = {
            "loc": "lower center",
            "bbox_to_anchor": (0.5, 0.02 / height),
            "ncol": min(len(labels), 4),
        }
        legend = figure.legend(
            handles, labels, **place, frameon=False, fontsize=7, labelcolor=INK, borderaxespad=0
        )
        foot = legend.get_window_extent().height / DPI + 0.05
    figure.tight_layout(rect=(0, foot / height, 1, 1 - 0.2 / height), pad=0.3, w_pad=1.5)
    save(figure, path)


_LINES = tuple(zip((REFERENCE, PREDICTION, INK, *CLASSES[2:]), "osD^vPX*", strict=True))


def _strip(ax: Axes, x: float, cases: list[tuple[float, str]], higher_is_better: bool) -> None:
    if not cases:
        return
    cases = sorted(cases)
    values = np.array([value for value, _ in cases])
    ax.boxplot(
        values,
        positions=[x],
        widths=0.5,
        showfliers=False,
        manage_ticks=False,
        boxprops={"color": FAINT, "lw": 0.8},
        whiskerprops={"color": FAINT, "lw": 0.8},
        capprops={"color": FAINT, "lw": 0.8},
        medianprops={"color": INK, "lw": 1.2},
    )
    # Neighbours in value are set side by side by a fixed pattern: no chance in a figure.
    offsets = 0.16 * np.array([0, 1, -1, 0.5, -0.5])[np.arange(len(values)) % 5]
    ax.scatter(
        x + offsets, values, s=7, color=REFERENCE, edgecolor="white", linewidth=0.3, zorder=3
    )
    mean, sd = values.mean(), values.std(ddof=1) if len(values) > 1 else None
    reach = None if sd is None else [[min(sd, mean)], [sd]]  # no metric is below 0
    ax.errorbar(
        x + 0.36,
        mean,
        yerr=reach,
        fmt="D",
        ms=3,
        color=PREDICTION,
        elinewidth=1,
        capsize=2,
        zorder=4,
    )
    ax.text(
        x,
        1.02,
        f"{mean:.2f}" if sd is None else f"{mean:.2f} ± {sd:.2f}",
        transform=ax.get_xaxis_transform(),
        ha="center",
        size=7,
        color=INK,
    )
    best, worst = (-1, 0) if higher_is_better else (0, -1)
    for index, word in ((best, "best"), (worst, "worst")) if values[0] < values[-1] else ():
        value, name = cases[index]
        up = value == values.max()
        ax.annotate(
            f"{word} {_short(name)}",
            (x, value),
            (0, 4 if up else -4),
            textcoords="offset points",
            ha="center",
            va="bottom" if up else "top",
            size=5.5,
            color=FAINT,
        )


def _short(name: str, limit: int = 12) -> str:
    """A case's name where there is little room: its end tells numbered names and hashes apart
    alike.
    """
    return name if len(name) <= limit else f"…{name[1 - limit :]}"
