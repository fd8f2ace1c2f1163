"""Figures of a network's maps on one plane of a case: signed distances, entropy, gradients."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.colors import Normalize
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from utils.figures.cases import contour
from utils.figures.rows import Case, Row, lower_text, page_of_rows
from utils.figures.style import (
    BAR_FOOT,
    INK,
    PREDICTION,
    REFERENCE,
    colour_bar,
    legend,
    save,
    small_colour_bar,
)

SIGNED = matplotlib.colormaps["PRGn"]  # colour-blind readers can tell its ends apart
HEAT = matplotlib.colormaps["Greys"]  # both contours can be seen on it


class DistanceRow(NamedTuple):
    """A row of a figure of distance maps, which is of one class.

    Attributes:
        case: its target is a mask of the class.
        sdm: signed distance map `(*S)`, negative inside.
        segmentation: mask `(*S)` of the class that the segmentation network or head predicts.
        texts: written in the corner of the map's mask, and of the segmentation.
    """

    case: Case
    sdm: np.ndarray
    segmentation: np.ndarray
    texts: Sequence[str]


def sdm_figure(
    path: str | Path,
    rows: Sequence[DistanceRow],
    title: str,
    spacing: Sequence[float] | None = None,
    plane: str = "axial",
) -> None:
    """Signed distance maps and the masks that they stand for, beside a segmentation: image,
    reference, map with its zero level, mask of the map, segmentation (Zhang & Zhang, PRCV 2021,
    Fig. 2).

    Args:
        path: file to write, whole or not at all.
        rows: a case, or a class of it, each.
        title: set in bold above.
        spacing, plane: as for `utils.figures.rows.page_of_rows`.

    Raises:
        ValueError: the arrays of a row differ in shape.
    """
    for row in rows:
        if not row.case.image.shape == row.sdm.shape == row.segmentation.shape:
            raise ValueError(
                f"need a map and a mask of the image's shape {row.case.image.shape}, got "
                f"{row.sdm.shape} and {row.segmentation.shape}"
            )
    columns = ("image", "reference", "distance map", "mask of the map", "segmentation")
    cases = [row.case for row in rows]
    figure, lines = page_of_rows(cases, columns, title, spacing, plane, BAR_FOOT)
    shown = [np.abs(line.plane.cut(row.sdm)) for row, line in zip(rows, lines, strict=True)]
    limit = max(float(cut.max()) for cut in shown) or 1.0
    norm = Normalize(-limit, limit)
    for row, line in zip(rows, lines, strict=True):
        _sdm_row(row, line, norm)
    colour_bar(figure, 0.72, norm, SIGNED, ("inside", "outside"))
    handles = [Patch(color=REFERENCE), Patch(color=PREDICTION), Line2D([], [], color=INK, lw=1)]
    legend(figure, handles, ["reference", "prediction", "zero level"], x=0.25)
    save(figure, path)


def _sdm_row(row: DistanceRow, line: Row, norm: Normalize) -> None:
    """The panels after the image."""
    _, with_reference, with_map, *with_masks = line.axes
    line.draw_image(with_reference)
    line.draw_labels(with_reference, row.case.target, [REFERENCE])
    line.draw_map(with_map, row.sdm, norm, SIGNED)
    distances = line.plane.cut(row.sdm)
    if distances.min() < 0 < distances.max():
        with_map.contour(distances, levels=[0], colors=INK, linewidths=0.8)
    masks = (row.sdm < 0, row.segmentation)
    for ax, mask, text in zip(with_masks, masks, row.texts, strict=True):
        line.draw_image(ax)
        line.draw_labels(ax, mask, [PREDICTION])
        contour(ax, line.plane.cut(row.case.target) == 1, REFERENCE, 1.0)
        lower_text(ax, text)


class Heat(NamedTuple):
    """A kind of map, in a column of its own with its own colour bar.

    Attributes:
        name: written above the column.
        top: the highest value of the colour bar, None for the largest that is shown; the lowest is
            0.
        unit: written beside the bar.
    """

    name: str
    top: float | None
    unit: str


class HeatRow(NamedTuple):
    """A row of a figure of heat maps.

    Attributes:
        case: the one that was predicted.
        prediction: labels of the image's shape.
        maps: `(*S)`, not negative, one for each kind.
        texts: written in the corner of each map.
    """

    case: Case
    prediction: np.ndarray
    maps: Sequence[np.ndarray]
    texts: Sequence[str]


def heat_figure(
    path: str | Path,
    rows: Sequence[HeatRow],
    title: str,
    heats: Sequence[Heat],
    classes: int = 1,
    spacing: Sequence[float] | None = None,
    plane: str = "axial",
) -> None:
    """Maps of what is high where: in each row the image, then a map of each kind, all with the
    contours of reference and prediction.

    Args:
        path: file to write, whole or not at all.
        rows: a case each.
        title: set in bold above.
        heats: the kinds of maps.
        classes: number of foreground classes.
        spacing, plane: as for `utils.figures.rows.page_of_rows`.

    Raises:
        ValueError: arrays of different shapes, or not one map for each kind.
    """
    for row in rows:
        if len(row.maps) != len(heats):
            raise ValueError(f"need a map of each of {len(heats)} kinds, got {len(row.maps)}")
        if any(one.shape != row.case.image.shape for one in (row.prediction, *row.maps)):
            raise ValueError(f"{row.case.name}: a map is not of the image's shape")
    columns = ("image", *(heat.name for heat in heats))
    cases = [row.case for row in rows]
    figure, lines = page_of_rows(cases, columns, title, spacing, plane, BAR_FOOT)
    norms = []
    for place, heat in enumerate(heats):
        shown = [line.plane.cut(row.maps[place]) for row, line in zip(rows, lines, strict=True)]
        norms.append(Normalize(0, heat.top or max(float(cut.max()) for cut in shown) or 1.0))
    for row, line in zip(rows, lines, strict=True):
        maps = zip(line.axes[1:], row.maps, row.texts, norms, strict=True)
        for ax, values, text, norm in maps:
            line.draw_map(ax, values, norm, HEAT)
            ax.text(0.97, 0.04, text, ha="right", size=6, color=INK, transform=ax.transAxes)
        for ax in line.axes:
            line.outline(ax, row.case.target, REFERENCE, 1.2, classes)
            line.outline(ax, row.prediction, PREDICTION, 0.6, classes)
    for ax, norm, heat in zip(lines[-1].axes[1:], norms, heats, strict=True):
        small_colour_bar(ax, norm, HEAT, heat.unit)
    handles = [Line2D([], [], color=color, lw=1.6) for color in (REFERENCE, PREDICTION)]
    legend(figure, handles, ["reference", "prediction"], x=0.2)
    save(figure, path)
