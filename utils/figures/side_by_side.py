"""Figures of several runs on one case: their contours on a plane, or their surfaces."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from utils.figures.cases import (
    Plane,
    around,
    check_shapes,
    contour,
    draw_labels,
    largest_plane,
    mask_of,
    voxel_size,
    window_of,
)
from utils.figures.style import (
    BAR_FOOT,
    CLASSES,
    DPI,
    FAINT,
    FOOT,
    HEAD,
    INK,
    OVER,
    PREDICTION,
    REFERENCE,
    SIDE,
    bar_length,
    beside,
    colour,
    colour_bar,
    corner_text,
    headline,
    legend,
    over,
    page,
    save,
    white_text,
)
from utils.figures.surfaces import (
    DISTANCE,
    VIEWS,
    Mesh,
    View,
    distances_to,
    draw_mesh,
    meshes_of,
    scale_bar,
    smoothed,
    views_of,
)

RUNS = tuple(color for color in CLASSES if color != REFERENCE)  # in one picture, beside REFERENCE
FRONT = VIEWS["from the front"]


class Compared(NamedTuple):
    """A case, and what each run predicts for it.

    Attributes:
        name: of the case.
        image: `(X, Y, Z)`, or `(rows, columns, slices)`.
        target: labels of the image's shape, 0 the background.
        preds: the labels of each run, of that shape too.
        scores: the Dice of each run, a fraction; NaN where it has none.
        index: of the slice that is shown, from 0; None: where the reference is largest.
    """

    name: str
    image: np.ndarray
    target: np.ndarray
    preds: Sequence[np.ndarray]
    scores: Sequence[float]
    index: int | None = None

    def check(self, runs: int) -> None:
        """Raise `ValueError` unless there is a prediction and a score of each run, all of one
        shape.
        """
        if not len(self.preds) == len(self.scores) == runs:
            raise ValueError(
                f"{self.name}: need a prediction and a score of each of {runs} runs, got "
                f"{len(self.preds)} and {len(self.scores)}"
            )
        for pred in self.preds:
            check_shapes(self.image, pred, self.target)

    def shown(self) -> np.ndarray:
        """The voxels that the reference or any run has."""
        mask = self.target > 0
        for pred in self.preds:
            mask = mask | (pred > 0)
        return mask

    def plane(self, name: str, near: bool) -> Plane:
        """The plane that is shown: all of it, or what is `near` the objects."""
        shape = self.image.shape
        mask = self.shown()
        box = around(mask) if near else tuple(slice(0, extent) for extent in shape)
        if self.index is not None:
            return Plane(name, self.index, box)
        return largest_plane(name, mask_of(mask, self.target), shape, box)


def _check(cases: Sequence[Compared], runs: int) -> None:
    """Raise `ValueError` where there is no case, or one that does not fit so many runs."""
    if not cases:
        raise ValueError("need at least one case")
    for case in cases:
        case.check(runs)


# ------------------------------------------------------------------------------------- contours


def contours_figure(
    path: str | Path,
    cases: Sequence[Compared],
    runs: Sequence[str],
    title: str,
    spacing: Sequence[float] | None = None,
    class_names: Sequence[str] = ("",),
    plane: str = "axial",
    near: bool = False,
) -> None:
    """The predictions of several runs on a plane of each case, in a row each: the reference, then a
    panel for each run. Its title says its Dice, the mean of the cases where there are several.

    One class is drawn as contours in two colours; of several classes, each in its colour, the
    reference is filled and the prediction drawn as contours.

    Args:
        path: file to write, whole or not at all.
        cases: with a prediction of each run.
        runs: their names.
        title: set in bold above.
        spacing: size of a voxel along each axis in mm: gives the aspect, and a scale bar.
        class_names: of the foreground classes; their number chooses the style.
        plane: `axial`, `coronal`, `sagittal`, or `slice` of a stack.
        near: show only the surroundings of the objects.

    Raises:
        ValueError: no case, no prediction of a run, or arrays of different shapes.
    """
    size = voxel_size(spacing)
    _check(cases, len(runs))
    planes = [case.plane(plane, near) for case in cases]
    aspects = [[each.aspect(size)] * (len(runs) + 1) for each in planes]
    figure, rows = _titled_page(cases, runs, title, aspects, FOOT)
    classes = len(class_names)
    for case, each, row in zip(cases, planes, rows, strict=True):
        nothing = np.zeros_like(case.target)
        for ax, pred in zip(row, (nothing, *case.preds), strict=True):
            each.draw_image(ax, case.image, window_of(case.image), size)
            draw_labels(ax, each.cut(pred), each.cut(case.target), classes)
        if len(cases) > 1:
            for ax, score in zip(row[1:], case.scores, strict=True):
                _corner_score(ax, score)
        _mark_plane(row[0], each, size, spacing)
    if classes == 1:
        handles = [Line2D([], [], color=REFERENCE, lw=2.4)]
        handles.append(Line2D([], [], color=PREDICTION, lw=1.2))
        names = ["reference", "prediction"]
    else:
        handles = [Patch(color=colour(c)) for c in range(1, classes + 1)]
        handles += [Patch(color=FAINT, alpha=0.5, lw=0), Line2D([], [], color=FAINT, lw=1.2)]
        names = [*class_names, "reference", "prediction"]
    legend(figure, handles, names)
    save(figure, path)


def together_figure(
    path: str | Path,
    cases: Sequence[Compared],
    runs: Sequence[str],
    title: str,
    spacing: Sequence[float] | None = None,
    plane: str = "axial",
    near: bool = False,
) -> None:
    """The contours of several runs and of the reference in one picture, beside the image, in a row
    a case. Each run has a colour, for all classes. The legend says its Dice, the mean of the cases
    where there are several.

    Args: as for `contours_figure`.

    Raises:
        ValueError: those of `contours_figure`, or more runs than colours.
    """
    if len(runs) > len(RUNS):
        raise ValueError(f"need at most {len(RUNS)} runs in one picture, got {len(runs)}")
    size = voxel_size(spacing)
    _check(cases, len(runs))
    planes = [case.plane(plane, near) for case in cases]
    lines = math.ceil((len(runs) + 1) / 3)
    several = len(cases) > 1
    figure, rows = page(
        [[each.aspect(size)] * 2 for each in planes],
        foot=FOOT * lines,
        left=0.2 if several else 0.0,
    )
    for case, each, row in zip(cases, planes, rows, strict=True):
        for ax in row:
            each.draw_image(ax, case.image, window_of(case.image), size)
        _outline(row[1], each, case.target, REFERENCE, 1.6)
        for pred, color in zip(case.preds, RUNS, strict=False):
            _outline(row[1], each, pred, color, 0.8)
        _mark_plane(row[0], each, size, spacing)
        if several:
            beside(row[0], case.name)
    handles = [Line2D([], [], color=REFERENCE, lw=2.4)]
    handles += [Line2D([], [], color=color, lw=1.4) for color in RUNS[: len(runs)]]
    names = ["reference"]
    names += [f"{name}: {text}" for name, text in zip(runs, _score_texts(cases), strict=True)]
    headline(figure, title)
    figure.legend(
        handles=handles,
        labels=names,
        loc="lower center",
        bbox_to_anchor=(0.5, 0.03 / figure.get_figheight()),
        ncol=min(len(handles), 3),
        frameon=False,
        fontsize=7.5,
        labelcolor=INK,
        borderaxespad=0,
    )
    save(figure, path)


def _outline(ax: Axes, plane: Plane, labels: np.ndarray, color: str, width: float) -> None:
    """The border of every class of a label map on a plane."""
    cut = plane.cut(labels)
    for label in np.unique(cut[cut > 0]):
        contour(ax, cut == label, color, width)


def _mark_plane(ax: Axes, plane: Plane, size: np.ndarray, spacing: Sequence[float] | None) -> None:
    """The name and the number of the plane, and a scale bar where the voxels' size is known."""
    corner_text(ax, f"{plane.name} {plane.index + 1}")
    if spacing is not None:
        plane.scale(ax, bar_length([plane.extents(size)[0]]), size)


# ------------------------------------------------------------------------------------- surfaces


class _Row(NamedTuple):
    """The surfaces of a class of a case: of the reference, then of each run.

    Attributes:
        meshes: None for one without a voxel.
        distances: of each run's vertices to the reference, None without both.
        view: what all panels show.
    """

    meshes: list[Mesh | None]
    distances: list[np.ndarray | None]
    view: View


def surfaces_figure(
    path: str | Path,
    cases: Sequence[Compared],
    runs: Sequence[str],
    title: str,
    spacing: Sequence[float] | None = None,
    class_names: Sequence[str] = ("",),
) -> None:
    """The surfaces of several runs from the front, beside the reference's: a row for each case and
    class. Its title says a run's Dice, the mean of the cases where there are several.

    Colours are distances to the reference's surface: blue where a run lies within the reference,
    orange where it lies beyond, up to the 95th percentile of all. Surfaces are made as
    `utils.figures.surface_figure` makes them.

    Args:
        path, cases, runs, title: as for `contours_figure`, of volumes `(X, Y, Z)`.
        spacing: size of a voxel along each axis in mm, the unit of distances and of a scale bar
            then.
        class_names: of the foreground classes.

    Raises:
        ValueError: no case, no prediction of a run, or arrays of different shapes.
    """
    _check(cases, len(runs))
    size = voxel_size(spacing)
    found = []
    beside_rows = []
    for case in cases:
        for c, class_name in enumerate(class_names, 1):
            found.append(_surfaces(case, c, size, spacing is not None))
            names = [case.name] if len(cases) > 1 else []
            names += [class_name] if len(class_names) > 1 else []
            beside_rows.append("\n".join(names))
    distances = [np.abs(d) for row in found for d in row.distances if d is not None]
    limit = 1.0
    if distances:
        limit = max(np.ceil(np.percentile(np.concatenate(distances), 95)), limit)
    norm = Normalize(-limit, limit)

    aspects = [[row.view.width / row.view.height] * (len(runs) + 1) for row in found]
    foot = BAR_FOOT if distances else SIDE
    figure, rows = _titled_page(cases, runs, title, aspects, foot, beside_rows)
    for one, row in zip(found, rows, strict=True):
        for ax, mesh, distance in zip(row, one.meshes, [None, *one.distances], strict=True):
            draw_mesh(ax, one.view, mesh and smoothed(mesh), distance, norm, FRONT)
        if spacing is not None:
            scale_bar(row[0], bar_length([one.view.width]))
    if len(cases) > 1:
        for number, row in enumerate(rows):
            case = cases[number // len(class_names)]
            if number % len(class_names) == 0:
                for ax, score in zip(row[1:], case.scores, strict=True):
                    _below(ax, _score(score))
    if distances:
        unit = "mm" if spacing is not None else "voxels"
        sides = ("run within the reference", f"beyond it ({unit})")
        clipped = max(d.max() for d in distances) > limit
        colour_bar(figure, 0.5, norm, DISTANCE, sides, clipped=clipped)
    save(figure, path)


def _surfaces(case: Compared, c: int, size: np.ndarray, bar: bool) -> _Row:
    """The surfaces of class `c`; `bar` leaves room for a scale bar."""
    box = around(case.shown())  # the rest would only take time
    masks = [labels[box] == c for labels in (case.target, *case.preds)]
    extents = size * masks[0].shape
    meshes, masks, step = meshes_of(masks, size)
    reference = meshes[0]
    distances = []
    for mesh in meshes[1:]:
        if mesh is None or reference is None:
            distances.append(None)
        else:
            distances.append(distances_to(mesh, reference, masks[0], step))
    return _Row(meshes, distances, views_of(meshes, extents, bar)[0])


# ------------------------------------------------------------------------------------- the page


def _titled_page(
    cases: Sequence[Compared],
    runs: Sequence[str],
    title: str,
    aspects: Sequence[Sequence[float]],
    foot: float,
    names: Sequence[str] | None = None,
) -> tuple[Figure, list[list[Axes]]]:
    """A page whose columns are the reference and the runs, with the name and the Dice of each above
    it.

    Args:
        aspects: of the panels of each row.
        foot: inches below them.
        names: written beside the rows; those of the cases by default, where there are several.
    """
    if names is None:
        names = [case.name if len(cases) > 1 else "" for case in cases]
    left = 0.3 if any("\n" in name for name in names) else 0.2 if any(names) else 0.0
    figure, rows = page(aspects, HEAD + 2 * OVER, foot, left)
    for name, row in zip(names, rows, strict=True):
        beside(row[0], name)
    _head(rows[0][0], "reference")
    for ax, run, text in zip(rows[0][1:], runs, _score_texts(cases), strict=True):
        _head(ax, f"{run}\n{text}")
    headline(figure, title)
    return figure, rows


def _score(score: float) -> str:
    return "Dice –" if math.isnan(score) else f"Dice {100 * score:.1f} %"


def _score_texts(cases: Sequence[Compared]) -> list[str]:
    """The Dice of each run, the mean over the cases that have one."""
    texts = []
    for scores in zip(*(case.scores for case in cases), strict=True):
        known = [score for score in scores if not math.isnan(score)]
        text = _score(float(np.mean(known)) if known else math.nan)
        texts.append(f"mean {text}" if len(cases) > 1 else text)
    return texts


def _corner_score(ax: Axes, score: float) -> None:
    """Write a Dice in white in the lower right corner of an image."""
    white_text(ax, 0.97, 0.04, _score(score), ha="right", va="bottom", transform=ax.transAxes)


def _below(ax: Axes, text: str) -> None:
    """Write at the lower right of a panel of surfaces."""
    ax.text(0.97, 0.02, text, ha="right", va="bottom", transform=ax.transAxes, size=6, color=INK)


def _head(ax: Axes, text: str) -> None:
    """Write above a panel, as large as fits."""
    words = over(ax, text)
    room = ax.get_position().width * ax.figure.get_figwidth() * DPI
    while words.get_window_extent().width > room and words.get_fontsize() > 3:
        words.set_fontsize(0.95 * words.get_fontsize())
