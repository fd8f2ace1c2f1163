"""Figures of masks that networks predict, over steps of training or over runs."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke

from utils.figures.rows import Case, lower_text, page_of_rows
from utils.figures.style import FAINT, REFERENCE, legend, save

UNCERTAIN = "#F0E442"


class MaskRow(NamedTuple):
    """A row of a figure of masks.

    Attributes:
        case: shown beneath the masks.
        masks: labels `(*S)` of each panel after the image, 0 where nothing is drawn.
        texts: written in the corner of each of these panels.
    """

    case: Case
    masks: Sequence[np.ndarray]
    texts: Sequence[str]


def masks_figure(
    path: str | Path,
    rows: Sequence[MaskRow],
    title: str,
    columns: Sequence[str],
    colors: Sequence[str],
    names: Sequence[str],
    classes: int = 1,
    reference: str = REFERENCE,
    spacing: Sequence[float] | None = None,
    plane: str = "axial",
) -> None:
    """Masks over a case's image with the reference's contour: in each row the image, then a panel
    for each mask.

    Args:
        path: file to write, whole or not at all.
        rows: a case, or a run, each.
        title: set in bold above.
        columns: names of the masks.
        colors, names: of the labels of the masks, from 1.
        classes: number of foreground classes of the reference.
        reference: colour of its contour.
        spacing, plane: as for `utils.figures.rows.page_of_rows`.

    Raises:
        ValueError: arrays of different shapes, or not one mask and text for each column.
    """
    for row in rows:
        if not len(row.masks) == len(row.texts) == len(columns):
            raise ValueError(
                f"need a mask and a text for each of {len(columns)} columns, got {len(row.masks)} "
                f"and {len(row.texts)}"
            )
        if any(mask.shape != row.case.image.shape for mask in row.masks):
            raise ValueError(f"{row.case.name}: a mask is not of the image's shape")
    cases = [row.case for row in rows]
    figure, lines = page_of_rows(cases, ("image", *columns), title, spacing, plane)
    for row, line in zip(rows, lines, strict=True):
        for ax, mask, text in zip(line.axes[1:], row.masks, row.texts, strict=True):
            line.draw_image(ax)
            line.draw_labels(ax, mask, colors)
            lower_text(ax, text)
        for ax in line.axes:
            line.outline(ax, row.case.target, reference, 0.9, classes)
    edge = [withStroke(linewidth=2.6, foreground=FAINT)] if reference == "white" else []
    handles = [Line2D([], [], color=reference, lw=1.6, path_effects=edge)]
    handles += [Patch(color=color) for color in colors]
    legend(figure, handles, ["reference", *names])
    save(figure, path)
