"""Figures of runs side by side, for a paper: boxes, pairs of cases, learning curves, Dice by
labels.

Drawn as those of :mod:`utils.figures`: page-wide, on the Agg canvas, the file's ending chooses the
format. An entry has one colour in all figures; the baseline is grey.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from utils.errors import UserError
from utils.figures import CLASSES, DPI, FAINT, INK, WIDTH
from utils.files import write_atomically
from utils.metrics import NAMES, OVERLAPS
from utils.reporting.compare import Comparison
from utils.reporting.results import Entry, Result

COLOURS = tuple(
    CLASSES[place] for place in (6, 1, 2, 3, 5, 0)
)  # without the yellow, which is faint on paper
STYLES = ("-", "--", ":")  # for the second and third round of colours
BETTER, WORSE = CLASSES[6], CLASSES[5]
MEAN = {"marker": "D", "ms": 3.6, "color": INK, "mec": "white", "mew": 0.5, "zorder": 5}


def draw(comparison: Comparison, folder: Path, ending: str = "png") -> Iterator[Path]:
    """Draw every figure that the entries give something for, and yield its file.

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
    if curves_figure(path, comparison):
        yield path
    path = folder / f"labels.{ending}"
    if labels_figure(path, comparison):
        yield path


def box_figure(path: str | Path, comparison: Comparison) -> None:
    """Every case's metrics: points, box (median, quartiles, whiskers to 1.5 times their distance)
    and mean, a panel a metric and a row an entry; the baseline's mean goes through all rows."""
    entries, metrics = comparison.entries, comparison.metrics
    columns = min(len(metrics), 4)
    lines = -(-len(metrics) // columns)
    figure = _figure(lines * (0.55 + 0.3 * len(entries)) + 0.35)
    colours = _colours(comparison)
    first = None
    for place, metric in enumerate(metrics, 1):
        ax = figure.add_subplot(lines, columns, place, sharey=first)
        first = first or ax
        for row, entry in enumerate(entries):
            values = np.array(
                [v for v in _cases(comparison, entry, metric).values() if not math.isnan(v)]
            )
            if not len(values):
                continue
            colour, style = colours[entry.label]
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
            ax.scatter(
                np.sort(values), row + offsets, s=5, color=colour, alpha=0.55, linewidth=0, zorder=3
            )
            ax.plot(values.mean(), row, **MEAN)
            if (found := comparison.differences.get(entry.label, {}).get(metric)) and found.holds:
                place_of = ax.get_yaxis_transform()
                ax.text(
                    1.01,
                    row,
                    "*",
                    transform=place_of,
                    size=9,
                    color=INK,
                    va="center",
                    ha="left",
                    weight="bold",
                )
        if comparison.baseline:
            mean = comparison.cells[comparison.baseline.label][metric].cases.mean
            ax.axvline(mean, color=FAINT, lw=0.6, ls=(0, (4, 3)), zorder=0)
        ax.set_title(_axis_name(comparison, metric), size=8, color=INK)
        _plain(ax)
        ax.set_yticks(range(len(entries)), [entry.label for entry in entries])
        ax.tick_params(axis="y", length=0, labelleft=(place - 1) % columns == 0)
        ax.spines["left"].set_visible(False)
        ax.xaxis.set_major_locator(MaxNLocator(4))
        if metric not in OVERLAPS:
            ax.set_xlim(left=0)
    first.set_ylim(len(entries) - 0.45, -0.55)  # the first entry above
    words = "box: median, quartiles   ◆ mean"
    if comparison.baseline:
        words += (
            f"   dashed: mean of {comparison.baseline.label}   * p < 0.05 in both tests, corrected"
        )
    _foot(figure, words)
    _save(figure, path)


def pairs_figure(path: str | Path, comparison: Comparison, metric: str) -> None:
    """A metric of every case under the baseline and under another entry, joined by a line; a panel
    an entry.
    """
    base = comparison.baseline
    others = [entry for entry in comparison.entries if entry is not base]
    columns = min(len(others), 4)
    lines = -(-len(others) // columns)
    figure = _figure(2.5 * lines + 0.25)
    before, first = _cases(comparison, base, metric), None
    up = metric in OVERLAPS
    for place, entry in enumerate(others, 1):
        ax = figure.add_subplot(lines, columns, place, sharey=first)
        first = first or ax
        after = _cases(comparison, entry, metric)
        pairs = [
            (before[c], after[c])
            for c in after
            if c in before and not math.isnan(before[c] + after[c])
        ]
        better = sum(b > a if up else b < a for a, b in pairs)
        equal = sum(a == b for a, b in pairs)
        for a, b in pairs:
            colour = FAINT if a == b else BETTER if (b > a) == up else WORSE
            style = "-" if (b > a) == up else (0, (4, 2))  # told apart without colour too
            ax.plot(
                (0, 1), (a, b), color=colour, lw=0.8, ls=style, alpha=0.8, marker="o", ms=2.2, mew=0
            )
        if pairs:
            ax.plot((0, 1), np.mean(pairs, axis=0), lw=1.8, **MEAN)
        found = comparison.differences[entry.label][metric]
        text = f"{better} of {len(pairs)} better" + (f", {equal} equal" if equal else "")
        if not math.isnan(found.paired.low):
            pair = found.paired
            text += f"\n{pair.mean:+.2f} ({pair.low:+.2f} to {pair.high:+.2f})" + "*" * found.holds
        ax.set_title(text, size=7, color=INK)
        ax.set_xlim(-0.18, 1.18)
        _plain(ax)
        ax.set_xticks((0, 1), (_broken(base.label), _broken(entry.label)))
        ax.tick_params(axis="x", length=0)
        ax.tick_params(axis="y", labelleft=(place - 1) % columns == 0)
        if (place - 1) % columns == 0:
            ax.set_ylabel(_axis_name(comparison, metric), size=8, color=INK)
    percent = 100 * comparison.bootstrap["confidence"]
    star = (
        "   * p < 0.05 in both tests, corrected"
        if any(r[metric].holds for r in comparison.differences.values())
        else ""
    )
    _foot(
        figure,
        f"a line a case: solid better, dashed worse   ◆ mean   in brackets: {percent:g} % "
        f"interval{star}",
    )
    _save(figure, path)


def curves_figure(path: str | Path, comparison: Comparison) -> bool:
    """Training loss by step, smoothed over its records, and the Dice of validation and of tests of
    kept steps.

    Returns:
        Whether there was anything to draw.
    """
    looks, losses, dice = _colours(comparison), [], []
    for entry in comparison.entries:
        for result in entry.results:
            records = result.training()
            losses.append((entry.label, _column(records, "loss/loss")))
            dice += _dice_curves(
                entry.label, result, records, comparison.of_class, comparison.class_name
            )
    return _curves(path, looks, losses, dice, "training loss, each method's own")


def training_figure(path: str | Path, result: Result) -> bool:
    """Every term of the training loss by step, as recorded and smoothed, and the Dice as in
    :func:`curves_figure`.

    Returns:
        Whether there was anything to draw.
    """
    records = result.training()
    tags = dict.fromkeys(tag for record in records for tag in record if tag.startswith("loss/"))
    losses = [(tag.removeprefix("loss/"), _column(records, tag)) for tag in tags]
    return _curves(
        path,
        _looks([name for name, _ in losses]),
        losses,
        _dice_curves("Dice", result, records, None),
        "training loss",
    )


def _curves(path, looks, losses, dice, name) -> bool:
    """Panels of `(label, points)` and of `(label, tested, points)`, those that there are."""
    losses, dice = ([row for row in rows if len(row[-1]) > 1] for rows in (losses, dice))
    if not losses and not dice:
        return False
    figure = _figure(2.75)
    panels = [kind for kind, rows in (("loss", losses), ("dice", dice)) if rows]
    for place, kind in enumerate(panels, 1):
        ax = figure.add_subplot(1, len(panels), place)
        _plain(ax)
        if kind == "loss":
            for label, points in losses:
                colour, style = looks[label]
                steps, values = np.array(points, dtype=float).T
                ax.plot(steps, values, color=colour, lw=0.4, alpha=0.25)
                ax.plot(steps, _smooth(values), color=colour, lw=1.1, ls=style)
            if min(value for _, points in losses for _, value in points) > 0:
                ax.set_yscale("log")
                ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
                ax.yaxis.set_major_formatter("{x:g}")
                ax.yaxis.set_minor_locator(NullLocator())
            ax.set_ylabel(name, size=8, color=INK)
        else:
            for label, tested, points in dice:
                colour, style = looks.get(label, (INK, "-"))
                marker = {"marker": "o", "ms": 3, "mew": 0} if tested else {}
                ax.plot(
                    *zip(*points, strict=True),
                    color=colour,
                    lw=1.1,
                    ls=style if tested else (0, (1, 1)),
                    **marker,
                )
            kinds = dict.fromkeys(tested for _, tested, _ in dice)
            names = ["test (points)" if tested else "validation (dotted)" for tested in kinds]
            ax.set_ylabel("Dice (%)", size=8, color=INK)
            ax.set_title(" and ".join(names), size=6.5, color=FAINT)
        ax.set_xlabel("step", size=8, color=INK)
        ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        ax.set_xlim(left=0)
    drawn = {row[0] for row in (*losses, *dice)}
    _legend(figure, {label: look for label, look in looks.items() if label in drawn})
    _save(figure, path)
    return True


def labels_figure(path: str | Path, comparison: Comparison) -> bool:
    """Dice by the number of labelled cases, a line a method, with bootstrap intervals over the
    cases.

    A line joins entries whose runs have the same name but for the number of labels in it
    (``dmd_8_half``, ``dmd_16_half``).

    Returns:
        Whether there was a line to draw: of two numbers of labels at least.
    """
    if "dice" not in comparison.metrics:
        return False
    lines = {}
    for entry in comparison.entries:
        lines.setdefault(_without_labels(entry), {})[entry.first.trained["labelnum"]] = entry
    if all(len(line) < 2 for line in lines.values()):
        return False
    figure = _figure(2.9, width=WIDTH / 2)
    ax = figure.add_subplot()
    shown = sorted({labelnum for line in lines.values() for labelnum in line})
    looks = _looks(lines)
    for place, (name, line) in enumerate(lines.items()):
        colour, style = looks[name]
        cells = [comparison.cells[entry.label]["dice"] for _, entry in sorted(line.items())]
        x = np.array(sorted(line)) * 1.012 ** (
            place - (len(lines) - 1) / 2
        )  # intervals beside one another
        means = np.array([cell.cases.mean for cell in cells])
        reach = np.abs(
            [[cell.low for cell in cells] - means, [cell.high for cell in cells] - means]
        )
        joined = {"fmt": "o", "ls": style, "lw": 1.2, "ms": 4, "elinewidth": 0.8, "capsize": 2}
        ax.errorbar(
            x, means, yerr=np.nan_to_num(reach), color=colour, mec="white", mew=0.5, **joined
        )
    ax.set_xscale("log", base=2)
    ax.set_xticks(shown, list(map(str, shown)))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xlabel("labelled cases", size=8, color=INK)
    ax.set_ylabel(_axis_name(comparison, "dice"), size=8, color=INK)
    _plain(ax)
    _legend(
        figure,
        looks,
        f"bars: {100 * comparison.bootstrap['confidence']:g} % bootstrap interval over cases",
    )
    _save(figure, path)
    return True


def _cases(comparison: Comparison, entry: Entry, metric: str) -> dict[str, float]:
    factor = 100 if metric in OVERLAPS else 1
    return {
        case: factor * value for case, value in entry.cases(metric, comparison.of_class).items()
    }


def _colours(comparison: Comparison) -> dict[str, tuple[str, str]]:
    """Colour and line style by label."""
    others = [entry.label for entry in comparison.entries if entry is not comparison.baseline]
    looks = _looks(others)
    return {entry.label: looks.get(entry.label, (FAINT, "-")) for entry in comparison.entries}


def _looks(labels: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Colour and line style by label, in the order of the labels."""
    return {
        label: (COLOURS[i % len(COLOURS)], STYLES[i // len(COLOURS) % 3])
        for i, label in enumerate(labels)
    }


def _axis_name(comparison: Comparison, metric: str) -> str:
    unit = "%" if metric in OVERLAPS else comparison.entries[0].first.summary["units"][metric]
    return (
        f"{NAMES[metric]}{f' of {comparison.class_name}' if comparison.class_name else ''} ({unit})"
    )


def _column(records: list[dict], tag: str) -> list[tuple[int, float]]:
    """Step and value of a tag, where it is a number."""
    values = ((record["step"], record.get(tag)) for record in records)
    return [(step, v) for step, v in values if isinstance(v, int | float) and math.isfinite(v)]


def _dice_curves(
    label, result, records, of_class, class_name=""
) -> list[tuple[str, bool, list[tuple[int, float]]]]:
    """Mean Dice (%) by step: of the validations, and of the tests of the kept steps."""
    own = f"val/dice_{class_name}" if class_name and len(result.classes) > 1 else "val/dice"
    validated = [(step, 100 * value) for step, value in _column(records, own)]
    means = {
        step: list(test.cases("dice", of_class).values()) for step, test in result.steps().items()
    }
    return [
        (label, False, validated),
        (label, True, [(step, 100 * np.mean(v)) for step, v in means.items()]),
    ]


def _without_labels(entry: Entry) -> str:
    """What the entry's run is called without the number of its labels."""
    folder = entry.first.folder
    name = (
        folder.absolute().parent.name if folder.name.startswith("seed") else folder.absolute().name
    )
    return " ".join(
        part for part in name.split("_") if part != str(entry.first.trained["labelnum"])
    )


def _smooth(values: np.ndarray) -> np.ndarray:
    """The mean over a twentieth of the records, around each; at the ends over as many as there
    are.
    """
    half = len(values) // 40
    sums = np.concatenate([[0], np.cumsum(values)])
    low, high = (
        np.clip(np.arange(len(values)) + shift, 0, len(values)) for shift in (-half, half + 1)
    )
    return (sums[high] - sums[low]) / (high - low)


def _broken(label: str) -> str:
    """A label on two lines, broken near its middle, where it is long."""
    breaks = [i for i, letter in enumerate(label) if letter in "_ -/"]
    if len(label) <= 12 or not breaks:
        return label
    middle = min(breaks, key=lambda i: abs(i - len(label) / 2))
    return f"{label[: middle + 1]}\n{label[middle + 1 :]}"


def _figure(height: float, width: float = WIDTH) -> Figure:
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white", layout="constrained")
    figure.get_layout_engine().set(w_pad=0.08)  # names below neighbouring panels stay apart
    FigureCanvasAgg(figure)
    return figure


def _plain(ax: Axes) -> None:
    ax.tick_params(labelsize=7, colors=INK, length=2)
    ax.tick_params(which="minor", length=1.2, color=FAINT, labelsize=6)
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color(FAINT)


def _legend(figure: Figure, looks: Mapping[str, tuple[str, str]], words: str = "") -> None:
    """A line a label below the figure, as many side by side as have room."""
    handles = [Line2D([], [], color=colour, ls=style, lw=1.6) for colour, style in looks.values()]
    room = int(
        figure.get_figwidth() / (0.065 * max(map(len, looks)) + 0.5)
    )  # inches a letter, and the line's
    text = {"fontsize": 7, "frameon": False, "labelcolor": INK}
    options = {"loc": "outside lower center", "ncols": max(1, min(len(looks), room)), **text}
    figure.legend(handles, list(looks), **options).set_title(words, {"size": 6})
    figure.legends[0].get_title().set_color(FAINT)


def _foot(figure: Figure, words: str) -> None:
    figure.supxlabel(words, size=6, color=FAINT)


def _save(figure: Figure, path: str | Path) -> None:
    write_atomically(path, lambda part: figure.savefig(part, format=Path(path).suffix[1:]))
