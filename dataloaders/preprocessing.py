"""How an image file becomes the array that a network sees, and how labels find back onto the file's
own grid.

    how = Preprocessing(orientation="LPS", spacing=(1, 1, 1), crop="nonzero", intensity="zscore")
    prepared = how.apply(image, label)                   SimpleITK images to float32 and uint8 arrays (X, Y, Z)
    prepared.place.restore(labels)                       a SimpleITK image of the original's size, spacing, origin, axes

In this order: axes, spacing, crop, grey values. A step that is not asked for leaves every bit as it
is, and axes are no more than permuted and reversed: without another spacing a label comes back as
it went in, however it was stored.
"""

import math
from dataclasses import asdict, dataclass, fields

import numpy as np
import SimpleITK

from utils.errors import UserError
from utils.preparation.images import to_array

MARKER = "preparation.json"  # what notes in a data set's folder how it was prepared
CROPS = ("none", "nonzero", "label")
INTENSITIES = ("none", "zscore", "zscore_nonzero", "window", "minmax", "percentile")
# part of a voxel's size; a difference below it is a header's rounding, and not worth a resampling
SAME_SPACING = 1e-3


@dataclass(frozen=True)
class Grid:
    """Where the voxels of an image lie: its `size` in voxels, `spacing` in mm, `origin`, and the
    nine numbers of its `direction`, as SimpleITK gives them."""

    size: tuple
    spacing: tuple
    origin: tuple
    direction: tuple

    @classmethod
    def of(cls, image):
        return cls(image.GetSize(), image.GetSpacing(), image.GetOrigin(), image.GetDirection())

    @property
    def orientation(self):
        """Where its axes point to, at least nearly: LPS where x grows to the left, y to the back, z
        to the head.
        """
        return SimpleITK.DICOMOrientImageFilter.GetOrientationFromDirectionCosines(self.direction)

    def image(self, array):
        """An array `(X, Y, Z)` as a SimpleITK image on this grid."""
        image = SimpleITK.GetImageFromArray(np.ascontiguousarray(array.transpose(2, 1, 0)))
        image.SetSpacing(self.spacing)
        image.SetOrigin(self.origin)
        image.SetDirection(self.direction)
        return image

    def point(self, index):
        """The place in mm of a voxel, whole or not."""
        axes = np.reshape(self.direction, (3, 3))
        return tuple(np.add(self.origin, axes @ np.multiply(index, self.spacing)).tolist())

    def oriented(self, orientation):
        """The order of axes and the reversed ones among them that make an image point nearly to
        these directions, and its grid then."""
        turn, probe = (
            SimpleITK.DICOMOrientImageFilter(),
            SimpleITK.Image(1, 1, 1, SimpleITK.sitkUInt8),
        )
        probe.SetDirection(self.direction)
        turn.SetDesiredCoordinateOrientation(orientation)
        turn.Execute(probe)
        order, flips = (
            tuple(turn.GetPermuteOrder()),
            tuple(np.flatnonzero(turn.GetFlipAxes()).tolist()),
        )
        first, signs = [0, 0, 0], [1, 1, 1]
        for axis in flips:
            first[order[axis]], signs[axis] = self.size[order[axis]] - 1, -1
        axes = np.reshape(self.direction, (3, 3))[:, order] * signs
        size, spacing = (
            tuple(values[axis] for axis in order) for values in (self.size, self.spacing)
        )
        return order, flips, Grid(size, spacing, self.point(first), tuple(axes.ravel().tolist()))

    def respaced(self, spacing):
        """The grid of this `spacing` over the same extents, as nearly as whole voxels can, about
        the same centre.
        """
        near = [
            abs(new - old) <= SAME_SPACING * old
            for new, old in zip(spacing, self.spacing, strict=True)
        ]
        spacing = tuple(
            old if same else new for new, old, same in zip(spacing, self.spacing, near, strict=True)
        )
        size = tuple(
            max(1, math.floor(extent * old / new + 0.5))
            for extent, old, new in zip(self.size, self.spacing, spacing, strict=True)
        )
        # the index, on this grid, of the centre of the other's first voxel
        first = [
            (extent - 1) / 2 - (count - 1) / 2 * new / old
            for extent, count, old, new in zip(self.size, size, self.spacing, spacing, strict=True)
        ]
        return Grid(size, spacing, self.point(first), self.direction)

    def cropped(self, box):
        """The grid of a box of slices."""
        return Grid(
            tuple(part.stop - part.start for part in box),
            self.spacing,
            self.point([part.start for part in box]),
            self.direction,
        )


@dataclass(frozen=True)
class Place:
    """Where a prepared array lies in its original image.

    Attributes:
        original: grid of the image.
        order, flips: how its axes were permuted, and which of the permuted ones reversed.
        oriented: grid of the image after that.
        resampled: its grid at the other spacing; `oriented` itself without one.
        box: the slices of the crop on it.
    """

    original: Grid
    order: tuple
    flips: tuple
    oriented: Grid
    resampled: Grid
    box: tuple

    @property
    def grid(self):
        """Of the prepared array."""
        return self.resampled.cropped(self.box)

    def restore(self, labels):
        """Labels `(X, Y, Z)` of the prepared array as an image on the original grid, uint8, 0
        outside the crop.

        Where the spacing was changed each voxel takes the nearest label.
        """
        return self._finish(
            self._spread(np.asarray(labels, dtype=np.uint8), 0, SimpleITK.sitkNearestNeighbor)
        )

    def restore_probability(self, prob):
        """The likeliest class at each voxel of the original grid, of the prepared array's
        probabilities `(C, X, Y, Z)`.

        Where the spacing was changed the probabilities are interpolated linearly, which leaves no
        steps of the coarser grid. Outside the crop is background; of equal probabilities the lower
        class wins.
        """
        spread = (
            (
                c,
                self._spread(
                    np.asarray(channel, dtype=np.float32), float(c == 0), SimpleITK.sitkLinear
                ),
            )
            for c, channel in enumerate(prob)
        )
        return self._finish(_largest(spread))

    def _spread(self, array, outside, interpolator):
        """An array of the crop on the oriented grid, `outside` around it."""
        if array.shape != self.grid.size:
            raise ValueError(f"an array of {self.grid.size} is expected, got {array.shape}")
        whole = np.full(self.resampled.size, outside, array.dtype)
        whole[self.box] = array
        return _resample(whole, self.resampled, self.oriented, interpolator)

    def _finish(self, labels):
        return self.original.image(np.flip(labels, self.flips).transpose(np.argsort(self.order)))


@dataclass(frozen=True)
class Prepared:
    """What :meth:`Preprocessing.apply` gives: `image` float32 and `label` uint8 (or None)
    `(X, Y, Z)`, and their `place`."""

    image: np.ndarray
    label: np.ndarray | None
    place: Place


@dataclass(frozen=True)
class Preprocessing:
    """How images are prepared. All of it can be written as JSON (`as_dict`, `from_dict`).

    Attributes:
        orientation: axes are permuted and reversed to point nearly to these directions: `LPS` is
            left, back, head; None leaves them as stored.
        spacing: mm along the axes after that, images interpolated linearly, labels too, class by
            class; None leaves it.
        crop: `none`; `nonzero`, to the box of the voxels that are not 0; `label`, to the label's
            box, for which an image without one is taken whole, as at prediction.
        margin: voxels on either side of the box, along each axis, after resampling.
        at_least: least extents of the crop in voxels, as far as the image has them.
        intensity: `none`; `zscore`: mean 0 and standard deviation 1; `zscore_nonzero`: the same of
            the voxels that are not 0, which stay 0; `window`: from [`low`, `high`], in the image's
            units, to [0, 1]; `minmax`: to [0, 1];
            `percentile`: clipped to the percentiles 0.5 and 99.5, then as `zscore`.
        low, high: of `window`.
        statistics: mean, extremes and percentiles are of the `whole` image or of the `crop`.

    Raises:
        UserError: one of them is out of its range.
    """

    orientation: str | None = None
    spacing: tuple | None = None
    crop: str = "none"
    margin: tuple = (0, 0, 0)
    at_least: tuple = (1, 1, 1)
    intensity: str = "zscore"
    low: float | None = None
    high: float | None = None
    statistics: str = "whole"

    def __post_init__(self):
        for name, choices in (
            ("crop", CROPS),
            ("intensity", INTENSITIES),
            ("statistics", ("whole", "crop")),
        ):
            if getattr(self, name) not in choices:
                raise UserError(
                    f"preprocessing: {name} {getattr(self, name)} is none of {', '.join(choices)}"
                )
        if self.orientation is not None and not _names_three_axes(self.orientation):
            raise UserError(
                f"preprocessing: orientation {self.orientation} is not one each of L/R, A/P and I/S"
            )
        for name, least in (("spacing", 1e-6), ("margin", 0), ("at_least", 1)):
            _check_three(name, getattr(self, name), least)
        window = (self.low, self.high)
        if self.intensity == "window":
            numbers = all(
                isinstance(value, (int, float)) and math.isfinite(value) for value in window
            )
            if not numbers or not self.low < self.high:
                raise UserError(
                    f"preprocessing: intensity window from {self.low} to {self.high}: low < high "
                    "is expected"
                )
        elif window != (None, None):
            raise UserError(
                f"preprocessing: low and high belong to intensity window, not to {self.intensity}"
            )

    def as_dict(self):
        """Of numbers, words and lists alone."""
        return {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in asdict(self).items()
        }

    @classmethod
    def from_dict(cls, values):
        """Of what `as_dict` gave.

        Raises:
            UserError: it is none, or a value is out of its range.
        """
        known = {field.name for field in fields(cls)}
        if not isinstance(values, dict) or not values.keys() <= known:
            raise UserError(
                f"preprocessing: a table of {', '.join(sorted(known))} is expected, got {values}"
            )
        return cls(
            **{
                key: tuple(value) if isinstance(value, list) else value
                for key, value in values.items()
            }
        )

    def apply(self, image, label=None):
        """Prepare an image, and its label of the same voxels, both 3-D and scalar, as
        :class:`Prepared`.

        The label lies on the image's grid, whatever its own header says: who reads the files sees
        that they agree.

        Raises:
            UserError: voxels that are not finite; a label of another size, or with values that are
                no classes.
        """
        original = Grid.of(image)
        if label is not None and label.GetSize() != original.size:
            raise UserError(f"label has shape {label.GetSize()}, but the image has {original.size}")
        target = None if label is None else label_values(label)
        order, flips, oriented = (0, 1, 2), (), original
        if self.orientation is not None:
            order, flips, oriented = original.oriented(self.orientation)
        image = to_array(image).astype(np.float32)
        if not np.isfinite(image).all():
            raise UserError(
                f"image has {int(np.count_nonzero(~np.isfinite(image)))} voxels that are NaN or "
                "infinite"
            )
        image, target = (
            None if a is None else np.flip(a.transpose(order), flips) for a in (image, target)
        )
        resampled = oriented.respaced(self.spacing) if self.spacing else oriented
        image = _resample(image, oriented, resampled, SimpleITK.sitkLinear)
        target = None if target is None else _resample_labels(target, oriented, resampled)
        mask = {"none": None, "nonzero": image, "label": target}[self.crop]
        box = bounding_box(mask, self.margin, self.at_least) if mask is not None else None
        box = box or tuple(slice(0, extent) for extent in image.shape)
        crop = np.ascontiguousarray(image[box])
        crop = self._normalise(crop, image if self.statistics == "whole" else crop)
        place = Place(original, order, flips, oriented, resampled, box)
        return Prepared(crop, None if target is None else np.ascontiguousarray(target[box]), place)

    def _normalise(self, image, within):
        """The grey values of a crop, by the statistics of what is `within`."""
        if self.intensity == "none":
            return image
        if self.intensity == "window":
            return (
                (np.clip(image, self.low, self.high) - self.low) / (self.high - self.low)
            ).astype(np.float32)
        if self.intensity == "minmax":
            low, high = float(within.min()), float(within.max())
            return ((image - low) / ((high - low) or 1)).astype(np.float32)
        known = np.ones((), dtype=bool)
        if self.intensity == "zscore_nonzero":
            known, within = image != 0, within[within != 0]
        elif self.intensity == "percentile":
            low, high = np.percentile(within, (0.5, 99.5))
            image, within = (np.clip(a, low, high) for a in (image, within))
        if not within.size:
            return image
        mean, sd = float(within.mean(dtype=np.float64)), float(within.std(dtype=np.float64))
        return np.where(known, (image - mean) / (sd or 1), 0).astype(np.float32)


def label_values(image):
    """The labels of a SimpleITK image as uint8 `(X, Y, Z)`.

    Raises:
        UserError: values that are no whole numbers from 0 to 255.
    """
    array = to_array(image)
    if array.dtype.kind == "f" and not (
        np.isfinite(array).all() and (array == np.floor(array)).all()
    ):
        odd = array[~(array == np.floor(array)) | ~np.isfinite(array)].flat[0]
        raise UserError(f"label has value {odd:g}, whole numbers are expected")
    low, high = array.min(), array.max()
    if low < 0 or high > 255:
        raise UserError(
            f"label has value {low if low < 0 else high:g}, classes from 0 to 255 are expected"
        )
    return array.astype(np.uint8)


def bounding_box(mask, margin=(0, 0, 0), at_least=(1, 1, 1)):
    """The slices around what is not 0 in `mask` `(X, Y, Z)`, as :class:`Preprocessing` widens them;
    None of nothing.
    """
    mask, box = mask != 0, []
    for axis, (extent, wide, least) in enumerate(zip(mask.shape, margin, at_least, strict=True)):
        found = np.flatnonzero(mask.any(axis=tuple(other for other in range(3) if other != axis)))
        if not found.size:
            return None
        low, high = max(int(found[0]) - wide, 0), min(int(found[-1]) + 1 + wide, extent)
        width = max(high - low, min(least, extent))
        low = min(max(low - (width - (high - low)) // 2, 0), extent - width)
        box.append(slice(low, low + width))
    return tuple(box)


def _names_three_axes(axes):
    return isinstance(axes, str) and sorted(axes.translate(str.maketrans("RPI", "LAS"))) == [
        "A",
        "L",
        "S",
    ]


def _check_three(name, values, least):
    if values is None and name == "spacing":
        return
    kinds = int if name != "spacing" else (int, float)
    if (
        not isinstance(values, tuple)
        or len(values) != 3
        or not all(isinstance(value, kinds) and least <= value < math.inf for value in values)
    ):
        raise UserError(f"preprocessing: {name} {values} is no three numbers of at least {least:g}")


def _resample(array, source, target, interpolator):
    """An array on the grid `source` on the grid `target`; what lies just outside takes the edge's
    value.
    """
    if source == target:
        return array
    take = SimpleITK.ResampleImageFilter()
    take.SetSize(target.size)
    take.SetOutputSpacing(target.spacing)
    take.SetOutputOrigin(target.origin)
    take.SetOutputDirection(target.direction)
    take.SetInterpolator(interpolator)
    take.UseNearestNeighborExtrapolatorOn()
    return to_array(take.Execute(source.image(array)))


def _resample_labels(labels, source, target):
    """Each class's share of a voxel interpolated linearly; the largest wins, of equal ones the
    lower class.
    """
    if source == target:
        return labels
    return _largest(
        (c, _resample((labels == c).astype(np.float32), source, target, SimpleITK.sitkLinear))
        for c in np.unique(labels)
    )


def _largest(shares):
    """The class of the largest share at each voxel, uint8, of pairs of class and array that come
    one at a time; of equal ones the first."""
    best = most = None
    for c, share in shares:
        if best is None:
            best, most = np.full(share.shape, c, np.uint8), share
        else:
            np.putmask(best, share > most, c)
            most = np.maximum(most, share)
    return best
