"""Figures of one case on planes of its volume."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke

from utils.figures.style import (
    EDGE,
    FAINT,
    PREDICTION,
    REFERENCE,
    bar_length,
    beside,
    colour,
    corner_text,
    headline,
    legend,
    page,
    save,
    white_text,
)
from utils.metrics import NAMES, OVERLAPS, factor

# Name, the axis that is cut, and the two that stay: the horizontal first. Arrays are (x, y, z) with
# x to the patient's left, y to the back and z to the head, so axial planes run downwards and the
# other two upwards.
PLANES = {
    "axial": (2, (0, 1), "upper"),
    "coronal": (1, (0, 2), "lower"),
    "sagittal": (0, (1, 2), "lower"),
    "slice": (2, (1, 0), "upper"),  # of a stack of slices, (rows, columns, slices)
}


class Plane(NamedTuple):
    """A plane of a volume, or a part of it.

    Attributes:
        name: in `PLANES`.
        index: where its axis is cut.
        box: part of the volume; the plane is shown within it.
    """

    name: str
    index: int
    box: tuple[slice, slice, slice]

    def cut(self, volume: np.ndarray) -> np.ndarray:
        """The picture `(rows, columns)`; its first row is the lowest unless the plane is axial."""
        axis, (across, up), _ = PLANES[self.name]
        plane = volume[tuple(self.index if a == axis else part for a, part in enumerate(self.box))]
        return plane.T if across < up else plane

    def extents(self, size: Sequence[float]) -> tuple[float, float]:
        """Width and height of the plane, with voxels of `size`."""
        _, across_up, _ = PLANES[self.name]
        return tuple((self.box[a].stop - self.box[a].start) * size[a] for a in across_up)

    def aspect(self, size: Sequence[float]) -> float:
        width, height = self.extents(size)
        return width / height

    def draw(self, ax: Axes, picture: np.ndarray, size: Sequence[float], **options) -> None:
        """Show a picture that `cut` made."""
        _, (across, up), origin = PLANES[self.name]
        ax.imshow(picture, origin=origin, aspect=size[up] / size[across], **options)

    def draw_image(
        self, ax: Axes, image: np.ndarray, window: Sequence[float], size: Sequence[float]
    ) -> None:
        """An image's grey values within `window`."""
        options = {
            "cmap": "gray",
            "vmin": window[0],
            "vmax": window[1],
            "interpolation": "bilinear",
        }
        self.draw(ax, self.cut(image), size, **options)

    def draw_mask(
        self, ax: Axes, mask: np.ndarray, color: str, alpha: float, size: Sequence[float]
    ) -> None:
        """The voxels of a mask, each as a square."""
        mask = self.cut(mask)
        tint = np.zeros((*mask.shape, 4), np.float32)
        tint[mask] = to_rgba(color, alpha)
        self.draw(ax, tint, size, interpolation="nearest")

    def scale(self, ax: Axes, length: float, size: Sequence[float]) -> None:
        """A bar of `length` mm at the lower right."""
        _, (across, _), _ = PLANES[self.name]
        (left, right), (bottom, top) = ax.get_xlim(), ax.get_ylim()
        x, y = right - 0.03 * (right - left), bottom + 0.05 * (top - bottom)
        start = x - length / size[across]
        ax.plot([start, x], [y, y], color="white", lw=1.5, solid_capstyle="butt", path_effects=EDGE)
        above = y + 0.03 * (top - bottom)
        white_text(ax, x, above, f"{length:g} mm", ha="right", va="bottom")


def planes_of(
    pred: np.ndarray, target: np.ndarray, slices: bool = False, near: bool = False
) -> list[Plane]:
    """The planes that show a case: axial, coronal and sagittal, each through the reference where
    its cut is largest; without a reference through the prediction, without either through the
    middle. A stack of `slices` is too thick to be cut across: up to three slices show it, near both
    ends of the reference and half-way.

    Args:
        near: show only the surroundings of reference and prediction, not the whole volume.
    """
    mask = mask_of(pred, target)
    box = around((pred > 0) | (target > 0)) if near else tuple(slice(0, s) for s in target.shape)
    if slices:
        shown = np.arange(pred.shape[2]) if mask is None else np.flatnonzero(mask.any((0, 1)))
        places = {int(shown[len(shown) * n // 6]) for n in (1, 3, 5)}
        return [Plane("slice", place, box) for place in sorted(places)]
    return [
        largest_plane(name, mask, target.shape, box) for name in ("axial", "coronal", "sagittal")
    ]


def largest_plane(
    name: str, mask: np.ndarray | None, shape: Sequence[int], box: tuple[slice, slice, slice]
) -> Plane:
    """The plane of this name where `mask` is largest; the middle without one."""
    axis = PLANES[name][0]
    if mask is None:
        return Plane(name, shape[axis] // 2, box)
    return Plane(name, int(mask.sum(axis=tuple(a for a in range(3) if a != axis)).argmax()), box)


def mask_of(pred: np.ndarray, target: np.ndarray) -> np.ndarray | None:
    """The mask that a figure is cut through: the reference if there is one, else the prediction;
    None without either.
    """
    for labels in (target, pred):
        if labels.any():
            return labels > 0
    return None


def around(mask: np.ndarray) -> tuple[slice, slice, slice]:
    """The box of a mask with a margin of a fifth of its extents, of at least 4 voxels; the whole
    volume without a mask.
    """
    box = []
    for axis, extent in enumerate(mask.shape):
        shown = np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis)))
        if not len(shown):
            return tuple(slice(0, s) for s in mask.shape)
        margin = max(4, (shown[-1] + 1 - shown[0]) // 5)
        box.append(slice(max(0, int(shown[0] - margin)), min(extent, int(shown[-1] + 1 + margin))))
    return tuple(box)


def window_of(image: np.ndarray) -> np.ndarray:
    """The lowest and the highest grey value that are shown."""
    return np.percentile(image, (0.5, 99.8))


def voxel_size(spacing: Sequence[float] | None) -> np.ndarray:
    """The size of a voxel along each axis; 1 where it is not known."""
    return np.asarray(spacing if spacing is not None else (1, 1, 1), dtype=float)


def contour(ax: Axes, mask: np.ndarray, color: str, width: float, filled: bool = False) -> None:
    """The border of a mask in a plane; a border of background closes it at the volume's edge."""
    limits = ax.get_xlim(), ax.get_ylim()
    mask = np.pad(mask, 1).astype(np.float32)
    x, y = np.arange(-1, mask.shape[1] - 1), np.arange(-1, mask.shape[0] - 1)
    if mask.any() and filled:
        ax.contourf(x, y, mask, levels=[0.5, 1.5], colors=color, alpha=0.4)
    elif mask.any():
        ax.contour(x, y, mask, levels=[0.5], colors=color, linewidths=width)
    ax.set_xlim(limits[0])
    ax.set_ylim(limits[1])


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
    """Three planes of a case with its reference and prediction. One class is drawn as contours in
    two colours; of several classes, each in its colour, the reference is filled and the prediction
    drawn as contours.

    The planes are those of `planes_of`. Grey values are clipped to the 0.5th and 99.8th percentile.

    Args:
        path: file to write, whole or not at all.
        image: `(X, Y, Z)`, or `(rows, columns, slices)`.
        pred, target: labels of the image's shape, 0 the background.
        title: set in bold above the planes, commonly the name of the case.
        metrics: names of `utils.metrics.METRICS` and values, overlaps in [0, 1] and distances in
            `unit`, set after the title.
        spacing: size of a voxel along each axis in mm: gives the aspect, and a scale bar.
        unit: of the distances in `metrics`.
        class_names: of the foreground classes; their number chooses the style.
        slices: the last axis counts slices.

    Raises:
        ValueError: the three arrays are not 3-D of one shape.
    """
    check_shapes(image, pred, target)
    size = voxel_size(spacing)
    window = window_of(image)
    planes = planes_of(pred, target, slices)
    figure, (row,) = page([[plane.aspect(size) for plane in planes]])
    bar = bar_length([plane.extents(size)[0] for plane in planes])
    for ax, plane in zip(row, planes, strict=True):
        plane.draw_image(ax, image, window, size)
        draw_labels(ax, plane.cut(pred), plane.cut(target), len(class_names))
        corner_text(ax, f"{plane.name} {plane.index + 1}")
        if spacing is not None:
            plane.scale(ax, bar, size)
    text = ""
    if metrics is not None:
        text = _line(metrics, unit)
        if len(class_names) > 1:
            text = f"mean over classes   {text}"
    headline(figure, title, text)
    prediction = "prediction" if pred.any() else "prediction (empty)"
    if len(class_names) > 1:
        handles = [Patch(color=colour(c)) for c in range(1, len(class_names) + 1)]
        handles += [Patch(color=FAINT, alpha=0.5, lw=0), Line2D([], [], color=FAINT, lw=1.2)]
    else:
        handles = [Line2D([], [], color=REFERENCE, lw=2.4)]
        handles.append(Line2D([], [], color=PREDICTION, lw=1.2))
    legend(figure, handles, [*class_names, "reference", prediction][-len(handles) :])
    save(figure, path)


def error_figure(
    path: str | Path,
    image: np.ndarray,
    pred: np.ndarray,
    target: np.ndarray,
    title: str,
    spacing: Sequence[float] | None = None,
    class_names: Sequence[str] = ("",),
    slices: bool = False,
) -> None:
    """The errors of a prediction, in a row a class: voxels that only the prediction has, and voxels
    that only the reference has.

    The planes are those of `case_figure`; a volume of several classes is cut anew for each class.
    They are shown around reference and prediction; the counts are the whole volume's.

    Args:
        path, image, pred, target, title, spacing, slices: as for `case_figure`.
        class_names: of the foreground classes.

    Raises:
        ValueError: the three arrays are not 3-D of one shape.
    """
    check_shapes(image, pred, target)
    size = voxel_size(spacing)
    window = window_of(image)
    several = len(class_names) > 1
    planes = planes_of(pred, target, slices, near=True)
    aspects = [plane.aspect(size) for plane in planes]
    bar = bar_length([plane.extents(size)[0] for plane in planes])
    figure, rows = page(
        [aspects] * len(class_names), left=0.3 * several, tallest=2.0 if several else 3.0
    )
    for c, (name, row) in enumerate(zip(class_names, rows, strict=True), 1):
        wrong = {PREDICTION: (pred == c) & (target != c), REFERENCE: (pred != c) & (target == c)}
        if several and not slices:
            mask = mask_of(pred == c, target == c)
            planes = [largest_plane(plane.name, mask, image.shape, plane.box) for plane in planes]
        for ax, plane in zip(row, planes, strict=True):
            plane.draw_image(ax, image, window, size)
            for color, mask in wrong.items():
                plane.draw_mask(ax, mask, color, 0.85, size)
            contour(ax, plane.cut(target) == c, "white", 0.5)
            corner_text(ax, f"{plane.name} {plane.index + 1}")
            if spacing is not None and c == len(class_names):
                plane.scale(ax, bar, size)
        counts = "FP {:,}   FN {:,}".format(*(np.count_nonzero(mask) for mask in wrong.values()))
        if several:
            beside(row[0], f"{name}\n{counts}")
    headline(figure, title, "FP, FN: voxels of the whole volume" if several else f"{counts} voxels")
    outline = [withStroke(linewidth=2.6, foreground=FAINT)]
    handles = [Patch(color=color) for color in wrong]
    handles.append(Line2D([], [], color="white", lw=1.4, path_effects=outline))
    legend(figure, handles, ["false positive (FP)", "false negative (FN)", "reference"])
    save(figure, path)


def check_shapes(image: np.ndarray, pred: np.ndarray, target: np.ndarray) -> None:
    """Raise `ValueError` unless the three are volumes of one shape."""
    if image.ndim != 3 or not image.shape == pred.shape == target.shape:
        raise ValueError(
            f"need three volumes of one shape, got {image.shape}, {pred.shape} and {target.shape}"
        )


def draw_labels(ax: Axes, pred: np.ndarray, target: np.ndarray, classes: int) -> None:
    """Reference and prediction `(rows, columns)` of a plane, over its image.

    The reference is the wider line beneath: where the two agree, both can be seen. Lines of several
    classes would hide one another where the classes touch, so their reference is filled.
    """
    for labels, color, width in ((target, REFERENCE, 1.2), (pred, PREDICTION, 0.6)):
        for c in np.unique(labels[labels > 0]):
            if classes == 1:
                contour(ax, labels == c, color, width)
            else:
                contour(ax, labels == c, colour(c), 0.9, filled=labels is target)


def _line(metrics: Mapping[str, float], unit: str) -> str:
    parts = []
    for metric, value in metrics.items():
        shown = "%" if metric in OVERLAPS else unit
        parts.append(f"{NAMES[metric]} {factor(metric) * value:.2f} {shown}")
    return "   ".join(parts)
