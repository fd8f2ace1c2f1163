"""Figures of distance maps and of uncertain regions, on one plane of a case."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from utils.figures.cases import (
    Plane,
    check_shapes,
    contour,
    largest_plane,
    mask_of,
    voxel_size,
    window_of,
)
from utils.figures.style import (
    BAR_FOOT,
    HEAD,
    INK,
    OVER,
    PREDICTION,
    REFERENCE,
    bar_length,
    beside,
    colour_bar,
    corner_text,
    headline,
    legend,
    over,
    page,
    save,
    white_text,
)

SIGNED = matplotlib.colormaps["PRGn"]  # colour-blind readers can tell its ends apart
UNCERTAIN = "#F0E442"


def sdm_figure(
    path: str | Path,
    image: np.ndarray,
    target: np.ndarray,
    sdm: np.ndarray,
    title: str,
    spacing: Sequence[float] | None = None,
    class_names: Sequence[str] = ("",),
    plane: str = "axial",
) -> None:
    """A signed distance map and the mask that it stands for: image, reference, map with its zero
    level, mask, in a row a class (Zhang & Zhang, PRCV 2021, Fig. 2).

    Args:
        path: file to write, whole or not at all.
        image: `(X, Y, Z)`, or `(rows, columns, slices)`.
        target: labels of the image's shape, 0 the background.
        sdm: `(classes, *S)`, a map for each foreground class, negative inside.
        title: set in bold above.
        spacing: size of a voxel along each axis in mm: gives the aspect, and a scale bar.
        class_names: of the foreground classes.
        plane: `axial`, `coronal`, `sagittal`, or `slice` of a stack; cut where the reference is
            largest, without a reference where the masks are.

    Raises:
        ValueError: the arrays do not fit one another.
    """
    mask = sdm < 0
    check_shapes(image, target, mask[0])
    if len(sdm) != len(class_names):
        raise ValueError(
            f"need a distance map for each of {len(class_names)} classes, got {len(sdm)}"
        )
    size = voxel_size(spacing)
    several = len(class_names) > 1
    shown = largest_plane(plane, mask_of(mask.any(0), target), image.shape, _whole(image))
    aspects = [[shown.aspect(size)] * 4] * len(class_names)
    figure, rows = page(aspects, HEAD + OVER, BAR_FOOT, left=0.2 if several else 0)
    farthest = max(float(np.abs(shown.cut(one)).max()) for one in sdm)
    limit = farthest or 1.0
    norm = Normalize(-limit, limit)
    for c, (name, row) in enumerate(zip(class_names, rows, strict=True), 1):
        _sdm_row(row, shown, size, image, target == c, sdm[c - 1], norm)
        if several:
            beside(row[0], name)
    names = ("image", "reference", "distance map", "mask of the map")
    for ax, name in zip(rows[0], names, strict=True):
        over(ax, name)
    corner_text(rows[0][0], f"{shown.name} {shown.index + 1}")
    if spacing is not None:
        shown.scale(rows[-1][0], bar_length([shown.extents(size)[0]]), size)
    headline(figure, title)
    colour_bar(figure, 0.72, norm, SIGNED, ("inside", "outside"))
    handles = [Patch(color=REFERENCE), Patch(color=PREDICTION), Line2D([], [], color=INK, lw=1)]
    legend(figure, handles, ["reference", "mask", "zero level"], x=0.25)
    save(figure, path)


def _sdm_row(
    row: Sequence[Axes],
    shown: Plane,
    size: np.ndarray,
    image: np.ndarray,
    reference: np.ndarray,
    sdm: np.ndarray,
    norm: Normalize,
) -> None:
    """The four panels of a class."""
    window = window_of(image)
    plain, with_reference, with_map, with_mask = row
    shown.draw_image(plain, image, window, size)
    shown.draw_image(with_reference, image, window, size)
    shown.draw_mask(with_reference, reference, REFERENCE, 0.7, size)
    distances = shown.cut(sdm)
    shown.draw(with_map, distances, size, cmap=SIGNED, norm=norm, interpolation="bilinear")
    if distances.min() < 0 < distances.max():
        with_map.contour(distances, levels=[0], colors=INK, linewidths=0.8)
    shown.draw_image(with_mask, image, window, size)
    shown.draw_mask(with_mask, sdm < 0, PREDICTION, 0.7, size)
    contour(with_mask, shown.cut(reference), REFERENCE, 1.0)


def uncertainty_figure(
    path: str | Path,
    cases: Sequence[tuple[str, np.ndarray, np.ndarray, Sequence[np.ndarray]]],
    names: Sequence[str],
    title: str,
    spacing: Sequence[float] | None = None,
    plane: str = "axial",
) -> None:
    """Where a network was uncertain in the course of training, in a row a case: the image, then the
    uncertain voxels of each checkpoint with their share of the volume (Shi et al., TMI 2022, Fig.
    5).

    Args:
        path: file to write, whole or not at all.
        cases: name, image and target as for `sdm_figure`, and for each checkpoint the uncertain
            voxels, bool `(*S)`.
        names: of the checkpoints.
        title: set in bold above.
        spacing, plane: as for `sdm_figure`.

    Raises:
        ValueError: arrays of different shapes, or not one mask for each checkpoint.
    """
    for _, image, target, masks in cases:
        for mask in masks:
            check_shapes(image, target, mask)
        if len(masks) != len(names):
            raise ValueError(f"need a mask for each of {len(names)} checkpoints, got {len(masks)}")
    size = voxel_size(spacing)
    planes = [
        largest_plane(plane, mask_of(target, target), image.shape, _whole(image))
        for _, image, target, _ in cases
    ]
    aspects = [[shown.aspect(size)] * (len(names) + 1) for shown in planes]
    figure, rows = page(aspects, HEAD + OVER, left=0.15 if len(cases) > 1 else 0)
    for (case, image, target, masks), shown, row in zip(cases, planes, rows, strict=True):
        _uncertain_row(row, shown, size, image, target, masks)
        if len(cases) > 1:
            beside(row[0], case)
        if spacing is not None:
            shown.scale(row[0], bar_length([shown.extents(size)[0]]), size)
    for ax, name in zip(rows[0], ("image", *names), strict=True):
        over(ax, name)
    headline(figure, title)
    handles = [Line2D([], [], color=REFERENCE, lw=1.6), Patch(color=UNCERTAIN)]
    legend(figure, handles, ["reference", "uncertain (share of the volume)"])
    save(figure, path)


def _uncertain_row(
    row: Sequence[Axes],
    shown: Plane,
    size: np.ndarray,
    image: np.ndarray,
    target: np.ndarray,
    masks: Sequence[np.ndarray],
) -> None:
    """The panels of a case: its image, then each checkpoint's uncertain voxels."""
    for ax in row:
        shown.draw_image(ax, image, window_of(image), size)
    for ax, mask in zip(row[1:], masks, strict=True):
        shown.draw_mask(ax, mask, UNCERTAIN, 0.9, size)
        share = f"{100 * mask.mean():.2f} %"
        white_text(ax, 0.97, 0.04, share, ha="right", va="bottom", transform=ax.transAxes)
    for ax in row:
        for c in np.unique(target[target > 0]):
            contour(ax, shown.cut(target) == c, REFERENCE, 0.8)
    corner_text(row[0], f"{shown.name} {shown.index + 1}")


def _whole(image: np.ndarray) -> tuple[slice, slice, slice]:
    return tuple(slice(0, extent) for extent in image.shape)
