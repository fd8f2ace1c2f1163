"""All cases of a data set in one picture, a slice each, with the label's outline."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from scipy import ndimage

from utils.figures.style import CLASSES, colour
from utils.files import write_atomically

SIDE = 160  # pixels of a tile
NAME = 20  # pixels for the name above it


@dataclass(frozen=True)
class Tile:
    """One picture of the sheet.

    Attributes:
        name: its title.
        picture: uint8 `(SIDE, SIDE, 3)`, as `slice_picture` draws it.
        flagged: whether its name is in another colour.
    """

    name: str
    picture: np.ndarray
    flagged: bool = False


def slice_picture(
    image: np.ndarray,
    label: np.ndarray | None,
    spacing: Sequence[float],
    axis: int | None = None,
) -> np.ndarray:
    """The slice with most label in it, or else the one in the middle; the label's outline is drawn
    in the colours of its classes.

    Args:
        image, label: `(X, Y, Z)`; the label may be None.
        spacing: mm along X, Y and Z.
        axis: which one the slice lies across; by default that of the longest voxels.

    Returns:
        uint8 `(SIDE, SIDE, 3)`: of the slice's two axes the first grows to the right and the second
        downwards, as on a light box.
    """
    if axis is None:
        axis = max(range(3), key=lambda a: (image.shape[a] == 1, round(spacing[a], 3), a))
    across, down = (a for a in range(3) if a != axis)
    known = label is not None and label.any()
    at = image.shape[axis] // 2
    if known:
        at = int((label > 0).sum(axis=(across, down)).argmax())
    plane = image.take(at, axis).T
    classes = label.take(at, axis).T if known else np.zeros(plane.shape, np.uint8)

    height, width = plane.shape[0] * spacing[down], plane.shape[1] * spacing[across]
    rows = max(1, round(SIDE * height / max(height, width)))
    columns = max(1, round(SIDE * width / max(height, width)))
    row_of = np.arange(rows) * plane.shape[0] // rows  # the nearest voxel of each pixel
    column_of = np.arange(columns) * plane.shape[1] // columns
    pick = np.ix_(row_of, column_of)

    low, high = np.percentile(plane, (0.5, 99.8))
    grey = np.clip((plane[pick] - low) / ((high - low) or 1), 0, 1)
    drawn = np.repeat(grey[..., None], 3, 2)
    classes = classes[pick]
    for c in np.unique(classes[classes > 0]):
        mask = classes == c
        drawn[mask & ~ndimage.binary_erosion(mask)] = to_rgb(colour(c))

    picture = np.zeros((SIDE, SIDE, 3), np.uint8)
    top, left = (SIDE - rows) // 2, (SIDE - columns) // 2
    picture[top : top + rows, left : left + columns] = (255 * drawn).astype(np.uint8)
    return picture


def contact_sheet(path: str | Path, tiles: Sequence[Tile], columns: int | None = None) -> None:
    """Write the tiles, row by row, as one PNG file.

    Args:
        columns: tiles in a row; by default a number that makes the sheet a little wider than tall.
    """
    columns = columns or max(4, math.ceil(math.sqrt(1.5 * len(tiles))))
    columns = min(columns, len(tiles))
    lines = math.ceil(len(tiles) / columns)
    height, width = lines * (SIDE + NAME), columns * SIDE
    sheet = np.zeros((height, width, 3), np.uint8)
    figure = Figure(figsize=(width / 100, height / 100), dpi=100, facecolor="black")
    FigureCanvasAgg(figure)
    for place, tile in enumerate(tiles):
        top = place // columns * (SIDE + NAME)
        left = place % columns * SIDE
        sheet[top + NAME : top + NAME + SIDE, left : left + SIDE] = tile.picture
        x, y = (left + 3) / width, 1 - (top + NAME / 2) / height
        text = tile.name if len(tile.name) < 30 else f"…{tile.name[-28:]}"
        shade = CLASSES[1] if tile.flagged else "white"
        figure.text(x, y, text, size=6, color=shade, va="center")
    ax = figure.add_axes((0, 0, 1, 1), zorder=-1)
    ax.set_axis_off()
    ax.imshow(sheet, interpolation="nearest", aspect="auto")
    write_atomically(path, lambda part: figure.savefig(part, format="png"))
