"""The figure of a sweep: metrics by the quantity that is varied, drawn from the results of its
runs, with the points that the paper prints as numbers; and these numbers as CSV.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator

from dataloaders import dataset_class
from utils.errors import UserError
from utils.figures.style import INK, save
from utils.files import write_csv
from utils.metrics import NAMES, OVERLAPS, spread
from utils.reporting import plot_style
from utils.reporting.experiments import Point, Table
from utils.reporting.filled_tables import Column, Filled
from utils.reporting.plot_style import Look
from utils.reporting.published import GAIN
from utils.reporting.results import read_result

STEPS = "training step"
MOST = 4  # panels side by side
WIDE = 8  # an axis whose largest value is so many times its smallest is logarithmic


@dataclass(frozen=True)
class Plotted:
    """A point of the figure.

    Attributes:
        place: on which axis, where on it, and in which line.
        column: the metric.
        unit: of the metric.
        values: one a seed, as shown; empty where there is no result.
        printed: the paper's number, or None.
        source: of the printed number; empty without one.
    """

    place: Point
    column: Column
    unit: str
    values: tuple[float, ...]
    printed: float | None = None
    source: str = ""


def sweep_points(table: Table, filled: Sequence[Filled], dataset: str) -> list[Plotted]:
    """All points of a sweep, those without a measured or printed number left out.

    Raises:
        UserError: there is no result to draw, or a result is damaged.
    """
    if not any(one.summaries for one in filled):
        raise UserError(
            "no results to draw: no run of this table is finished and tested with these options; "
            "run it with --run, name the folder of its runs with --runs, or repeat the --extra "
            "that they were trained with"
        )
    shown = [Column(metric) for metric in table.metrics or dataset_class(dataset).reported]
    if any(one.row.gain_over for one in filled):
        shown.append(Column(GAIN))
    find = _points_over_steps if table.over_steps else _points
    points = [point for one in filled for point in find(one, shown)]
    return [point for point in points if point.values or point.printed is not None]


def _points(one: Filled, shown: Sequence[Column]) -> Iterator[Plotted]:
    """The points of a row: its tests, and its printed numbers."""
    for column in shown:
        values = tuple(column.factor * value for value in one.values(column))
        printed, source = None, ""
        found = one.printed(column)
        if found:
            printed, _, line = found
            source = line.source
        unit = _unit(one, column)
        yield Plotted(one.row.point, column, unit, values, printed, source)


def _points_over_steps(one: Filled, shown: Sequence[Column]) -> Iterator[Plotted]:
    """The points of a row's kept steps that are tested, and of its last step."""
    by_step: dict[int, list[dict]] = {}
    for job in one.jobs:
        if job.options["seed"] not in one.summaries:
            continue
        last = read_result(job.folder, job.summary.parent.name)
        steps = last.steps() or {last.summary["step"]: last}
        for step, result in steps.items():
            by_step.setdefault(step, []).append(result.summary)
    for step, summaries in sorted(by_step.items()):
        place = Point(STEPS, step, one.row.point.line)
        for column in shown:
            means = [summary["mean"][column.metric]["mean"] for summary in summaries]
            values = tuple(column.factor * mean for mean in means)
            yield Plotted(place, column, _unit(one, column), values)


def _unit(one: Filled, column: Column) -> str:
    if column.metric == GAIN:
        return "points"
    if column.metric in OVERLAPS:
        return "%"
    units = [summary["units"][column.metric] for summary in one.summaries.values()]
    return units[0] if units else "voxels"  # the papers' unit


def write_points(path: Path, points: Sequence[Plotted]) -> None:
    """The points as CSV, a line each; unknown numbers are empty."""
    rows = []
    for point in points:
        found = spread(point.values)
        numbers = {"seeds": found.n, "mean": found.mean, "sd": found.sd}
        known = {name: "" if math.isnan(value) else value for name, value in numbers.items()}
        rows.append(
            {
                "axis": point.place.axis,
                "value": point.place.value,
                "line": point.place.line,
                "metric": point.column.metric,
                "unit": point.unit,
                **known,
                "printed": "" if point.printed is None else point.printed,
                "printed_in": point.source,
            }
        )
    write_csv(path, rows)


def sweep_figure(path: Path, points: Sequence[Plotted]) -> None:
    """A panel a metric, and a row of panels for each axis. A line joins the means of one loss or
    method, its bars are the sample sd over seeds; printed numbers are hollow, joined by dots.
    """
    axes = list(dict.fromkeys(point.place.axis for point in points))
    shown = list(dict.fromkeys(point.column for point in points))
    looks = plot_style.looks(dict.fromkeys(point.place.line for point in points))
    columns = len(shown) if len(shown) <= MOST else math.ceil(len(shown) / 2)
    lines = math.ceil(len(shown) / columns)
    figure = plot_style.page(2.1 * lines * len(axes) + 0.5)
    for number, axis in enumerate(axes):
        of_axis = [point for point in points if point.place.axis == axis]
        for place, column in enumerate(shown):
            own = [point for point in of_axis if point.column == column]
            if own:
                index = number * lines * columns + place + 1
                ax = figure.add_subplot(lines * len(axes), columns, index)
                _panel(ax, axis, own, of_axis, looks)
    words = _legend_words(points)
    plot_style.legend(figure, looks, words)
    save(figure, path)


def _legend_words(points: Sequence[Plotted]) -> str:
    words = []
    seeds = max(len(point.values) for point in points)
    if seeds > 1:
        words.append(f"filled: mean over up to {seeds} seeds, bars: sample sd")
    else:
        words.append("filled: one seed")
    sources = dict.fromkeys(point.source for point in points if point.source)
    if sources:
        words.append(f"hollow, dotted: as printed in {', '.join(sources)}")
    return "      ".join(words)


def _panel(
    ax: Axes,
    axis: str,
    points: Sequence[Plotted],
    of_axis: Sequence[Plotted],
    looks: dict[str, Look],
) -> None:
    """One metric by one axis, whose values are those of all metrics."""
    values = list(dict.fromkeys(point.place.value for point in of_axis))
    words = any(isinstance(value, str) for value in values)
    places = {value: place for place, value in enumerate(values)} if words else {}
    far = not words and _lie_far_apart(values)
    lines = list(dict.fromkeys(point.place.line for point in points))
    width = len(values) if words else max(values) - min(values)
    for number, line in enumerate(lines):
        own = [point for point in points if point.place.line == line]
        x = np.array([places.get(p.place.value, p.place.value) for p in own], dtype=float)
        # bars stand beside one another
        aside = 0 if axis == STEPS else number - (len(lines) - 1) / 2
        x = x * 1.02**aside if far else x + 0.012 * width * aside
        _draw_line(ax, x, own, looks[line])
    if words:
        ax.set_xticks(range(len(values)), list(map(_broken, values)))
        ax.set_xlim(-0.5, len(values) - 0.5)
    elif axis != STEPS:
        if far:
            ax.set_xscale("log")
            ax.xaxis.set_minor_locator(NullLocator())
        ax.set_xticks(values, [f"{value:g}" for value in values])
    first = points[0]
    name = "gain in Dice" if first.column.metric == GAIN else NAMES[first.column.metric]
    ax.set_title(f"{name} ({first.unit})", size=8, color=INK)
    ax.set_xlabel(axis, size=8, color=INK)
    plot_style.plain(ax)


def _lie_far_apart(values: Sequence[float]) -> bool:
    """Whether the values of an axis are read more easily on a logarithmic one."""
    return min(values) > 0 and max(values) / min(values) >= WIDE


def _draw_line(ax: Axes, x: np.ndarray, points: Sequence[Plotted], look: Look) -> None:
    colour, style = look
    printed = [(place, point.printed) for place, point in zip(x, points, strict=True)]
    printed = [(place, value) for place, value in printed if value is not None]
    if printed:
        ax.plot(
            *zip(*printed, strict=True),
            color=colour,
            ls=":",
            lw=0.8,
            marker="o",
            ms=4.5,
            mfc="white",
            mew=0.9,
            zorder=4,
        )
    measured = [(place, spread(p.values)) for place, p in zip(x, points, strict=True) if p.values]
    if measured:
        ax.errorbar(
            [place for place, _ in measured],
            [found.mean for _, found in measured],
            yerr=[0 if math.isnan(found.sd) else found.sd for _, found in measured],
            color=colour,
            ls=style,
            lw=1.2,
            marker="o",
            ms=3.6,
            mew=0,
            elinewidth=0.8,
            capsize=2,
            zorder=3,
        )


def _broken(word: str) -> str:
    """A word of an axis on several lines, where it is long."""
    return word.replace(" ", "\n") if len(word) > 9 else word
