"""Figures for a paper: one page-wide picture per case, and the spread of the metrics over a test set.

Drawn with Matplotlib's object-oriented interface on the Agg canvas, so nothing global is touched and no display needed.
The file's ending chooses the format (png, pdf, svg). Colours are of the Okabe-Ito set, which colour-blind readers tell
apart.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke

from utils.checkpoint import write_atomically
from utils.metrics import OVERLAPS

REFERENCE, PREDICTION, INK, FAINT = "#56B4E9", "#E69F00", "#222222", "#8A8A8A"
CLASSES = ("#56B4E9", "#E69F00", "#009E73", "#CC79A7", "#F0E442", "#D55E00", "#0072B2")  # where there are several
DPI = 300
WIDTH = 7.0  # inches: two columns of a journal page

# Name, the axis that is cut, and the two that stay: the horizontal first. Arrays are (x, y, z) with x to the patient's
# left, y to the back and z to the head, so axial planes run downwards and the other two upwards.
_PLANES = (("axial", 2, (0, 1), "upper"), ("coronal", 1, (0, 2), "lower"), ("sagittal", 0, (1, 2), "lower"))

_EDGE = [withStroke(linewidth=1.2, foreground="#000000B0")]  # white on grey stays legible on bright tissue

# How the metrics are written; overlaps in percent.
NAMES = {"dice": "Dice", "jaccard": "Jaccard", "precision": "Precision", "recall": "Recall"}
NAMES |= {"hd": "HD", "hd95": "95HD", "asd": "ASD", "assd": "ASSD"}
SHOWN = ("dice", "jaccard", "hd95", "asd")  # where nothing else is asked for: the columns of the field's tables


def case_figure(
    path: str | Path,
    image: np.ndarray,
    pred: np.ndarray,
    target: np.ndarray,
    title: str,
    metrics: Mapping[str, float] | None = None,
    spacing: Sequence[float] | None = None,
    unit: str = "voxels",
    class_names: Sequence[str] = ("",),
    slices: bool = False,
) -> None:
    """Three planes of a case with its reference and prediction: of one class both as contours in two colours, of
    several the reference filled and the prediction as contours, in a colour a class.

    The planes are axial, coronal and sagittal, each through the reference where its cut is largest; without a
    reference through the prediction, without either through the middle. Of a stack of ``slices``, too thick to be cut
    across, they are three slices: near both ends of the reference and half-way. Grey values are clipped to the 0.5th
    and 99.8th percentile.

    Args:
        path: file to write, whole or not at all.
        image: ``(X, Y, Z)``, or ``(rows, columns, slices)``.
        pred, target: labels of the image's shape, 0 the background.
        title: set in bold above the planes, commonly the name of the case.
        metrics: names of :data:`utils.metrics.METRICS` and values, overlaps in [0, 1] and distances in ``unit``, set
            after the title.
        spacing: size of a voxel along each axis in mm: gives the aspect, and a scale bar of 20 mm.
        unit: of the distances in ``metrics``.
        class_names: of the foreground classes; their number chooses the style.
        slices: the last axis counts slices.

    Raises:
        ValueError: the three arrays are not 3-D of one shape.
    """
    if image.ndim != 3 or not image.shape == pred.shape == target.shape:
        raise ValueError(f"need three volumes of one shape, got {image.shape}, {pred.shape} and {target.shape}")
    size = np.asarray(spacing if spacing is not None else (1, 1, 1), dtype=float)
    extent = np.asarray(image.shape) * size
    window = np.percentile(image, (0.5, 99.8))
    if slices:
        planes = [("slice", 2, (1, 0), "upper", index) for index in _spread(pred, target)]
    else:
        cuts = _cuts(pred, target)
        planes = [(name, axis, across_up, origin, cuts[axis]) for name, axis, across_up, origin in _PLANES]

    # One row of planes of equal height, each with its own aspect, as wide as the page.
    gap, head, foot, edge = 0.05, 0.28, 0.22, 0.08  # inches
    aspects = [extent[across] / extent[up] for _, _, (across, up), *_ in planes]
    gaps = gap * (len(planes) - 1)
    tall = min((WIDTH - 2 * edge - gaps) / sum(aspects), 3.0)
    height = tall + head + foot
    figure = Figure(figsize=(WIDTH, height), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)

    left = (WIDTH - tall * sum(aspects) - gaps) / 2
    for (name, axis, (across, up), origin, index), aspect in zip(planes, aspects, strict=True):
        ax = figure.add_axes((left / WIDTH, foot / height, tall * aspect / WIDTH, tall / height))
        left += tall * aspect + gap
        cut = [volume.take(index, axis) for volume in (image, pred, target)]
        cut = [plane.T if across < up else plane for plane in cut]
        _draw_plane(ax, *cut, len(class_names), window, origin, size[up] / size[across])
        _white_text(ax, 0.03 / aspect, 0.96, f"{name} {index + 1}", va="top", transform=ax.transAxes)
        if spacing is not None:
            _scale_bar(ax, 20 / size[across], "20 mm")

    line, side = 1 - 0.5 * head / height, edge / WIDTH
    words = [figure.text(side, line, title, size=8, weight="bold", color=INK, va="center")]
    if metrics is not None:
        text = ("mean over classes   " if len(class_names) > 1 else "") + _line(metrics, unit)
        words.append(figure.text(1 - side, line, text, size=7.5, color=INK, va="center", ha="right"))
    while sum(word.get_window_extent().width for word in words) / DPI + 0.2 > WIDTH - 2 * edge:
        for word in words:
            word.set_fontsize(0.95 * word.get_fontsize())
    prediction = "prediction" if pred.any() else "prediction (empty)"
    if len(class_names) > 1:
        handles = [Patch(color=_colour(c)) for c in range(1, len(class_names) + 1)]
        handles += [Patch(color=FAINT, alpha=0.5, lw=0), Line2D([], [], color=FAINT, lw=1.2)]
    else:
        handles = [Line2D([], [], color=REFERENCE, lw=2.4), Line2D([], [], color=PREDICTION, lw=1.2)]
    labels = [*class_names, "reference", prediction][-len(handles) :]
    figure.legend(
        handles=handles,
        labels=labels,
        loc="lower center",
        bbox_to_anchor=(0.5, 0.03 / height),
        ncol=len(handles),
        frameon=False,
        fontsize=7.5,
        labelcolor=INK,
        borderaxespad=0,
    )
    _save(figure, path)


def summary_figure(
    path: str | Path,
    rows: Sequence[Mapping],
    title: str,
    unit: str = "voxels",
    class_names: Sequence[str] = (),
    metrics: Sequence[str] = SHOWN,
) -> None:
    """Every case's metrics: points, box (median, quartiles), mean ± sample sd, best and worst, in a panel a metric.

    Args:
        path: file to write, whole or not at all.
        rows: one per case and class, with ``case``, ``class`` (from 1) and the metrics; NaN is left out.
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
    columns = min(len(metrics), 4 if len(classes) == 1 else 2)  # several boxes in a panel need twice the width
    lines = -(-len(metrics) // columns)
    figure = Figure(figsize=(WIDTH, 2.3 * lines), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    for place, metric in enumerate(metrics, 1):
        ax = figure.add_subplot(lines, columns, place)
        factor = 100 if metric in OVERLAPS else 1
        for position, c in enumerate(classes):
            cases = [(factor * row[metric], str(row["case"])) for row in rows if row["class"] == c]
            _strip(ax, position, [case for case in cases if np.isfinite(case[0])], higher_is_better=factor == 100)
        ax.set_title(f"{NAMES[metric]} ({'%' if metric in OVERLAPS else unit})", size=8, color=INK, pad=14)
        ax.set_xlim(-0.6, len(classes) - 0.4)
        ax.set_xticks(range(len(classes)) if len(classes) > 1 else [])
        if len(classes) > 1:
            ax.set_xticklabels([class_names[c - 1] if class_names else f"class {c}" for c in classes])
        ax.tick_params(labelsize=7, colors=INK, length=2)
        ax.spines[["top", "right", "bottom"]].set_visible(False)
        ax.spines["left"].set_color(FAINT)
        ax.margins(y=0.12)  # room for the names of the extremes
    line = 1 - 0.1 / figure.get_figheight()
    figure.text(0.01, line, title, ha="left", va="center", size=8, weight="bold", color=INK)
    figure.text(0.99, line, "box: median, quartiles   ◆: mean ± sd", ha="right", va="center", size=6, color=FAINT)
    figure.tight_layout(rect=(0, 0, 1, 1 - 0.2 / figure.get_figheight()), w_pad=0.8)
    _save(figure, path)


def _mask(pred: np.ndarray, target: np.ndarray) -> np.ndarray | None:
    """What a figure is to show: the reference if there is one, else the prediction, None without either."""
    return next((labels > 0 for labels in (target, pred) if labels.any()), None)


def _cuts(pred: np.ndarray, target: np.ndarray) -> list[int]:
    """The plane of largest area along each axis."""
    mask = _mask(pred, target)
    if mask is None:
        return [s // 2 for s in pred.shape]
    return [int(mask.sum(axis=tuple(a for a in range(3) if a != axis)).argmax()) for axis in range(3)]


def _spread(pred: np.ndarray, target: np.ndarray) -> list[int]:
    """Up to three slices at a sixth, the half and five sixths of those that show something."""
    mask = _mask(pred, target)
    shown = np.arange(pred.shape[2]) if mask is None else np.flatnonzero(mask.any((0, 1)))
    return sorted({int(shown[len(shown) * sixth // 6]) for sixth in (1, 3, 5)})


def _colour(c: int) -> str:
    return CLASSES[(c - 1) % len(CLASSES)]


def _draw_plane(ax: Axes, grey, pred, target, classes, window, origin, aspect) -> None:
    ax.set_axis_off()
    ax.imshow(grey, cmap="gray", vmin=window[0], vmax=window[1], origin=origin, aspect=aspect, interpolation="bilinear")
    # The reference is the wider line beneath: where the two agree, both can be seen. Lines of several classes would
    # hide one another where the classes touch, so their reference is filled.
    for labels, color, width in ((target, REFERENCE, 1.2), (pred, PREDICTION, 0.6)):
        for c in np.unique(labels[labels > 0]):
            # a border of background closes contours at the volume's edge
            mask = np.pad(labels == c, 1).astype(np.float32)
            x, y = np.arange(-1, mask.shape[1] - 1), np.arange(-1, mask.shape[0] - 1)
            if classes == 1:
                ax.contour(x, y, mask, levels=[0.5], colors=color, linewidths=width)
            elif labels is target:
                ax.contourf(x, y, mask, levels=[0.5, 1.5], colors=_colour(c), alpha=0.4)
            else:
                ax.contour(x, y, mask, levels=[0.5], colors=_colour(c), linewidths=0.9)
    ax.set_xlim(-0.5, grey.shape[1] - 0.5)
    ax.set_ylim(*((-0.5, grey.shape[0] - 0.5) if origin == "lower" else (grey.shape[0] - 0.5, -0.5)))


def _scale_bar(ax: Axes, voxels: float, text: str) -> None:
    right, (bottom, top) = ax.get_xlim()[1], ax.get_ylim()
    x, y = 0.97 * right, bottom + 0.05 * (top - bottom)
    ax.plot([x - voxels, x], [y, y], color="white", lw=1.5, solid_capstyle="butt", path_effects=_EDGE)
    _white_text(ax, x - voxels / 2, y + 0.03 * (top - bottom), text, ha="center", va="bottom")


def _white_text(ax: Axes, x: float, y: float, text: str, **options) -> None:
    ax.text(x, y, text, color="white", size=6, path_effects=_EDGE, **options)


def _line(metrics: Mapping[str, float], unit: str) -> str:
    return "   ".join(
        f"{NAMES[m]} {100 * value:.2f} %" if m in OVERLAPS else f"{NAMES[m]} {value:.2f} {unit}"
        for m, value in metrics.items()
    )


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
    ax.scatter(x + offsets, values, s=7, color=REFERENCE, edgecolor="white", linewidth=0.3, zorder=3)
    mean, sd = values.mean(), values.std(ddof=1) if len(values) > 1 else None
    reach = None if sd is None else [[min(sd, mean)], [sd]]  # no metric is below 0
    ax.errorbar(x + 0.36, mean, yerr=reach, fmt="D", ms=3, color=PREDICTION, elinewidth=1, capsize=2, zorder=4)
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
    for index, word in ((best, "best"), (worst, "worst")) if len(values) > 1 else ():
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
    """A case's name where there is little room: its end tells numbered names and hashes apart alike."""
    return name if len(name) <= limit else f"…{name[1 - limit :]}"


def _save(figure: Figure, path: str | Path) -> None:
    write_atomically(path, lambda part: figure.savefig(part, format=Path(path).suffix[1:]))
