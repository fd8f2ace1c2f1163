"""Figures of runs side by side, for a paper: boxes, pairs of cases, learning curves, Dice by
labels.

Drawn like those of `utils.figures`: page-wide, on the Agg canvas; the file's ending chooses the
format. An entry has one colour in all figures; the baseline is grey.
"""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, NullLocator

from utils.errors import UserError
from utils.figures.style import CLASSES, FAINT, INK, WIDTH, save
from utils.metrics import NAMES, OVERLAPS
from utils.reporting import plot_style, training_curves
from utils.reporting.cells import unit_of
from utils.reporting.compare import Comparison, shown_cases
from utils.reporting.entries import Entry
from utils.reporting.plot_style import Look

BETTER, WORSE = CLASSES[6], CLASSES[5]
MEAN = {"marker": "D", "ms": 3.6, "color": INK, "mec": "white", "mew": 0.5, "zorder": 5}
STAR = "   * p < 0.05 in both tests, corrected"


def draw(comparison: Comparison, folder: Path, ending: str = "png") -> Iterator[Path]:
    """Draw every figure that the entries have data for, and yield its file.

    Raises:
        UserError: the folder cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be made ({error.strerror})") from None
    path = folder / f"boxes.{ending}"
    box_figure(path, comparison)
    yield path
    for metric in comparison.metrics if comparison.differences else ():
        path = folder / f"pairs_{metric}.{ending}"
        pairs_figure(path, comparison, metric)
        yield path
    path = folder / f"curves.{ending}"
    if training_curves.comparison_figure(path, comparison, looks(comparison)):
        yield path
    path = folder / f"labels.{ending}"
    if labels_figure(path, comparison):
        yield path


def looks(comparison: Comparison) -> dict[str, Look]:
    """Colour and line style by label; the baseline is grey."""
    others = [entry.label for entry in comparison.entries if entry is not comparison.baseline]
    found = plot_style.looks(others)
    return {entry.label: found.get(entry.label, (FAINT, "-")) for entry in comparison.entries}


def box_figure(path: str | Path, comparison: Comparison) -> None:
    """Every case's metrics: points, box (median, quartiles, whiskers to 1.5 times their distance)
    and mean, a panel a metric and a row an entry; the baseline's mean goes through all rows.
    """
    entries = comparison.entries
    metrics = comparison.metrics
    columns = min(len(metrics), 4)
    lines = math.ceil(len(metrics) / columns)
    figure = plot_style.page(lines * (0.55 + 0.3 * len(entries)) + 0.35)
    first = None
    for place, metric in enumerate(metrics):
        ax = figure.add_subplot(lines, columns, place + 1, sharey=first)
        first = first or ax
        _box_panel(ax, comparison, metric)
        plot_style.plain(ax)
        ax.set_yticks(range(len(entries)), [entry.label for entry in entries])
        ax.tick_params(axis="y", length=0, labelleft=place % columns == 0)
        ax.spines["left"].set_visible(False)
        ax.xaxis.set_major_locator(MaxNLocator(4))
        if metric not in OVERLAPS:
            ax.set_xlim(left=0)
    first.set_ylim(len(entries) - 0.45, -0.55)  # the first entry above
    words = "box: median, quartiles   ◆ mean"
    if comparison.baseline:
        words += f"   dashed: mean of {comparison.baseline.label}{STAR}"
    plot_style.foot(figure, words)
    save(figure, path)


def _box_panel(ax: Axes, comparison: Comparison, metric: str) -> None:
    of_label = looks(comparison)
    for row, entry in enumerate(comparison.entries):
        cases = shown_cases(entry, metric, comparison.of_class).values()
        values = np.array([value for value in cases if not math.isnan(value)])
        if not len(values):
            continue
        _box(ax, row, values, of_label[entry.label])
        found = comparison.differences.get(entry.label, {}).get(metric)
        if found and found.holds:
            beside = ax.get_yaxis_transform()
            ax.text(1.01, row, "*", transform=beside, size=9, color=INK, va="center", weight="bold")
    if comparison.baseline:
        mean = comparison.cells[comparison.baseline.label][metric].cases.mean
        ax.axvline(mean, color=FAINT, lw=0.6, ls=(0, (4, 3)), zorder=0)
    ax.set_title(_axis_name(comparison, metric), size=8, color=INK)


def _box(ax: Axes, row: int, values: np.ndarray, look: Look) -> None:
    colour, style = look
    line = {"color": colour, "lw": 0.9, "ls": style}
    ax.boxplot(
        values,
        positions=[row],
        widths=0.62,
        orientation="horizontal",
        showfliers=False,
        manage_ticks=False,
        boxprops=line,
        whiskerprops=line,
        capprops=line,
        medianprops={"color": colour, "lw": 1.8},
    )
    # neighbours in value are set apart by a fixed pattern: no chance in a figure
    offsets = 0.19 * np.array([0, 1, -1, 0.5, -0.5])[np.arange(len(values)) % 5]
    ax.scatter(np.sort(values), row + offsets, s=5, color=colour, alpha=0.55, linewidth=0, zorder=3)
    ax.plot(values.mean(), row, **MEAN)


def pairs_figure(path: str | Path, comparison: Comparison, metric: str) -> None:
    """A metric of every case under the baseline and under another entry, joined by a line; a panel
    an entry.
    """
    base = comparison.baseline
    others = [entry for entry in comparison.entries if entry is not base]
    columns = min(len(others), 4)
    lines = math.ceil(len(others) / columns)
    figure = plot_style.page(2.5 * lines + 0.25)
    before = shown_cases(base, metric, comparison.of_class)
    first = None
    for place, entry in enumerate(others):
        ax = figure.add_subplot(lines, columns, place + 1, sharey=first)
        first = first or ax
        _pairs_panel(ax, comparison, metric, before, entry)
        left = place % columns == 0
        ax.tick_params(axis="y", labelleft=left)
        if left:
            ax.set_ylabel(_axis_name(comparison, metric), size=8, color=INK)
    percent = 100 * comparison.bootstrap["confidence"]
    words = (
        f"a line a case: solid better, dashed worse   ◆ mean   in brackets: {percent:g} % interval"
    )
    if any(row[metric].holds for row in comparison.differences.values()):
        words += STAR
    plot_style.foot(figure, words)
    save(figure, path)


def _pairs_panel(
    ax: Axes, comparison: Comparison, metric: str, before: Mapping[str, float], entry: Entry
) -> None:
    after = shown_cases(entry, metric, comparison.of_class)
    pairs = [(before[case], after[case]) for case in after if case in before]
    pairs = [pair for pair in pairs if not math.isnan(sum(pair))]
    better = equal = 0
    for one, other in pairs:
        is_better = (other > one) if metric in OVERLAPS else (other < one)
        better += is_better
        equal += one == other
        if one == other:
            look = {"color": FAINT, "ls": "-"}
        elif is_better:
            look = {"color": BETTER, "ls": "-"}
        else:
            look = {"color": WORSE, "ls": (0, (4, 2))}  # distinct without colour too
        ax.plot((0, 1), (one, other), lw=0.8, alpha=0.8, marker="o", ms=2.2, mew=0, **look)
    if pairs:
        ax.plot((0, 1), np.mean(pairs, axis=0), lw=1.8, **MEAN)
    text = f"{better} of {len(pairs)} better" + (f", {equal} equal" if equal else "")
    found = comparison.differences[entry.label][metric]
    pair = found.paired
    if not math.isnan(pair.low):
        star = "*" if found.holds else ""
        text += f"\n{pair.mean:+.2f} ({pair.low:+.2f} to {pair.high:+.2f}){star}"
    ax.set_title(text, size=7, color=INK)
    ax.set_xlim(-0.18, 1.18)
    plot_style.plain(ax)
    ax.set_xticks((0, 1), (_broken(comparison.baseline.label), _broken(entry.label)))
    ax.tick_params(axis="x", length=0)


def labels_figure(path: str | Path, comparison: Comparison) -> bool:
    """Dice by the number of labelled cases, a line a method, with bootstrap intervals over the
    cases.

    A line joins entries whose runs have the same name but for the number of labels in it
    (`dmd_8_half`, `dmd_16_half`).

    Returns:
        Whether there was a line to draw: of two numbers of labels at least.
    """
    if "dice" not in comparison.metrics:
        return False
    lines: dict[str, dict[int, Entry]] = {}
    for entry in comparison.entries:
        labelnum = entry.first.trained["labelnum"]
        lines.setdefault(_without_labels(entry), {})[labelnum] = entry
    if all(len(line) < 2 for line in lines.values()):
        return False
    figure = plot_style.page(2.9, width=WIDTH / 2)
    ax = figure.add_subplot()
    of_name = plot_style.looks(lines)
    for place, (name, line) in enumerate(lines.items()):
        beside = place - (len(lines) - 1) / 2  # intervals stand beside one another
        _labels_line(ax, comparison, line, of_name[name], beside)
    shown = sorted({labelnum for line in lines.values() for labelnum in line})
    ax.set_xscale("log", base=2)
    ax.set_xticks(shown, list(map(str, shown)))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xlabel("labelled cases", size=8, color=INK)
    ax.set_ylabel(_axis_name(comparison, "dice"), size=8, color=INK)
    plot_style.plain(ax)
    percent = 100 * comparison.bootstrap["confidence"]
    plot_style.legend(figure, of_name, f"bars: {percent:g} % bootstrap interval over cases")
    save(figure, path)
    return True


def _labels_line(
    ax: Axes, comparison: Comparison, line: Mapping[int, Entry], look: Look, beside: float
) -> None:
    colour, style = look
    cells = [comparison.cells[entry.label]["dice"] for _, entry in sorted(line.items())]
    x = np.array(sorted(line)) * 1.012**beside
    means = np.array([cell.cases.mean for cell in cells])
    low = np.array([cell.low for cell in cells])
    high = np.array([cell.high for cell in cells])
    ax.errorbar(
        x,
        means,
        yerr=np.nan_to_num([means - low, high - means]),
        fmt="o",
        ms=4,
        mec="white",
        mew=0.5,
        color=colour,
        ls=style,
        lw=1.2,
        elinewidth=0.8,
        capsize=2,
    )


def _axis_name(comparison: Comparison, metric: str) -> str:
    unit = unit_of(metric, comparison.entries[0].first.summary["units"])
    of_class = f" of {comparison.class_name}" if comparison.class_name else ""
    return f"{NAMES[metric]}{of_class} ({unit})"


def _without_labels(entry: Entry) -> str:
    """The name of the entry's run without the number of its labels."""
    folder = entry.first.folder.absolute()
    name = folder.parent.name if folder.name.startswith("seed") else folder.name
    labels = str(entry.first.trained["labelnum"])
    return " ".join(part for part in name.split("_") if part != labels)


def _broken(label: str) -> str:
    """A label on two lines, broken near its middle, where it is long."""
    breaks = [i for i, letter in enumerate(label) if letter in "_ -/"]
    if len(label) <= 12 or not breaks:
        return label
    middle = min(breaks, key=lambda i: abs(i - len(label) / 2))
    return f"{label[: middle + 1]}\n{label[middle + 1 :]}"
