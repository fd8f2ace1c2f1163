"""The page of a figure with a row of panels for each case, each row on one plane of its case."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, Normalize, to_rgba
from matplotlib.figure import Figure

from utils.figures.cases import (
    PLANES,
    Plane,
    check_shapes,
    contour,
    largest_plane,
    mask_of,
    voxel_size,
    window_of,
)
from utils.figures.style import (
    FOOT,
    HEAD,
    OVER,
    bar_length,
    beside,
    corner_text,
    headline,
    over,
    page,
    white_text,
)


class Case(NamedTuple):
    """What a row shows.

    Attributes:
        name: written beside the row where there are several.
        image: `(X, Y, Z)`, or `(rows, columns, slices)`.
        target: labels of the image's shape, 0 the background. The plane is cut where they are
            largest.
        instead: labels that the plane is cut through where the target has none.
        start: where the image, a crop, begins in the whole one: slices are counted from there.
    """

    name: str
    image: np.ndarray
    target: np.ndarray
    instead: np.ndarray | None = None
    start: Sequence[int] = (0, 0, 0)


class Row:
    """A row of panels: all of them show the case's image on one plane.

    Args:
        case: what it shows.
        plane: of `utils.figures.cases.PLANES`.
        size: of a voxel along each axis.

    Attributes:
        axes: the panels, set by `page_of_rows`.
    """

    axes: Sequence[Axes]

    def __init__(self, case: Case, plane: str, size: np.ndarray):
        instead = case.target if case.instead is None else case.instead
        check_shapes(case.image, case.target, instead)
        self.case = case
        self._size = size
        whole = tuple(slice(0, extent) for extent in case.image.shape)
        mask = mask_of(instead, case.target)
        self.plane: Plane = largest_plane(plane, mask, case.image.shape, whole)

    def aspect(self) -> float:
        """Width of a panel over its height."""
        return self.plane.aspect(self._size)

    def place(self) -> str:
        """The plane's name and the number of its slice, from 1."""
        axis = PLANES[self.plane.name][0]
        return f"{self.plane.name} {self.case.start[axis] + self.plane.index + 1}"

    def draw_image(self, ax: Axes) -> None:
        self.plane.draw_image(ax, self.case.image, window_of(self.case.image), self._size)

    def draw_labels(self, ax: Axes, labels: np.ndarray, colors: Sequence[str]) -> None:
        """Fill the voxels of each label, from 1, with its colour."""
        cut = self.plane.cut(labels)
        tint = np.zeros((*cut.shape, 4), np.float32)
        for label, color in enumerate(colors, 1):
            tint[cut == label] = to_rgba(color, 0.7)
        self.plane.draw(ax, tint, self._size, interpolation="nearest")

    def draw_map(self, ax: Axes, values: np.ndarray, norm: Normalize, colors: Colormap) -> None:
        """The values `(*S)` of a map in place of the image."""
        cut = self.plane.cut(values)
        self.plane.draw(ax, cut, self._size, cmap=colors, norm=norm, interpolation="bilinear")

    def outline(self, ax: Axes, labels: np.ndarray, color: str, width: float, last: int) -> None:
        """The border of each label from 1 to `last`."""
        cut = self.plane.cut(labels)
        for label in range(1, last + 1):
            contour(ax, cut == label, color, width)

    def scale(self) -> None:
        """A bar of some mm in the first panel."""
        width, _ = self.plane.extents(self._size)
        self.plane.scale(self.axes[0], bar_length([width]), self._size)


def page_of_rows(
    cases: Sequence[Case],
    columns: Sequence[str],
    title: str,
    spacing: Sequence[float] | None = None,
    plane: str = "axial",
    foot: float = FOOT,
) -> tuple[Figure, list[Row]]:
    """A figure with a row for each case. Each row's first panel shows the image; the others are
    empty.

    Args:
        cases: what the rows show.
        columns: names of the panels of a row, written above the first one.
        title: set in bold above.
        spacing: size of a voxel along each axis in mm: gives the aspect, and a scale bar.
        plane: `axial`, `coronal`, `sagittal`, or `slice` of a stack.
        foot: inches below the panels.

    Raises:
        ValueError: no case, or the arrays of one differ in shape.
    """
    if not cases:
        raise ValueError("need at least one case")
    size = voxel_size(spacing)
    rows = [Row(case, plane, size) for case in cases]
    several = len(rows) > 1
    aspects = [[row.aspect()] * len(columns) for row in rows]
    figure, axes = page(aspects, HEAD + OVER, foot, left=0.2 if several else 0.0)
    for row, panels in zip(rows, axes, strict=True):
        row.axes = panels
        row.draw_image(panels[0])
        corner_text(panels[0], row.place())
        if several:
            beside(panels[0], row.case.name)
        if spacing is not None:
            row.scale()
    for ax, name in zip(rows[0].axes, columns, strict=True):
        over(ax, name)
    headline(figure, title)
    return figure, rows


def lower_text(ax: Axes, text: str) -> None:
    """Write in white in the lower right corner of an image."""
    white_text(ax, 0.97, 0.04, text, ha="right", va="bottom", transform=ax.transAxes)
