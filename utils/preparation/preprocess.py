"""How an image file becomes the array that a network sees, and where its voxels lie in the file.

    how = Preprocessing(orientation="LPS", spacing=(1, 1, 1), crop="nonzero", intensity="zscore")
    prepared = preprocess(how, image, label)      SimpleITK images to float32 and uint8 (X, Y, Z)
    prepared.place                                where these lie in the image

The steps are, in this order: axes, spacing, crop, grey values. A step that is not asked for leaves
every bit as it is, and axes are only permuted and reversed. So without another spacing a label
comes back exactly as it was, in any order of the file's axes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import SimpleITK

from dataloaders.preprocessing import Preprocessing
from utils.errors import UserError
from utils.preparation.grid import Grid, resample, resample_labels
from utils.preparation.images import to_array


@dataclass(frozen=True)
class Place:
    """Where a prepared array lies in its image.

    Attributes:
        order, flips: how the image's axes were permuted, and which of the permuted ones reversed.
        oriented: grid of the image after that.
        resampled: its grid at the other spacing; `oriented` itself without one.
        box: the slices of the crop on it.
    """

    order: tuple
    flips: tuple
    oriented: Grid
    resampled: Grid
    box: tuple

    @property
    def grid(self) -> Grid:
        """Grid of the prepared array."""
        return self.resampled.cropped(self.box)

    def turn(self, array: np.ndarray) -> np.ndarray:
        """Voxels with the axes of the file, as they lie on the grid `oriented`."""
        return np.flip(array.transpose(self.order), self.flips)

    def turn_back(self, array: np.ndarray) -> np.ndarray:
        """Voxels on the grid `oriented`, with the axes of the file."""
        return np.flip(array, self.flips).transpose(np.argsort(self.order))


@dataclass(frozen=True)
class Prepared:
    """A prepared image.

    Attributes:
        image: float32 `(X, Y, Z)`.
        label: uint8 `(X, Y, Z)`, or None.
        place: where both lie in the file.
    """

    image: np.ndarray
    label: np.ndarray | None
    place: Place


def preprocess(
    how: Preprocessing, image: SimpleITK.Image, label: SimpleITK.Image | None = None
) -> Prepared:
    """Prepare an image, and its label of the same voxels, both 3-D and scalar.

    The label is assumed to lie on the image's grid: the code that reads the files checks that their
    headers agree.

    Raises:
        UserError: voxels that are not finite; a label of another size, or with values that are
            no classes.
    """
    original = Grid.of(image)
    if label is not None and label.GetSize() != original.size:
        raise UserError(f"label has shape {label.GetSize()}, but the image has {original.size}")
    target = None if label is None else label_values(label)
    values = _finite_values(image)

    if how.orientation is None:
        order, flips, oriented = (0, 1, 2), (), original
    else:
        order, flips, oriented = original.oriented(how.orientation)
    resampled = oriented.respaced(how.spacing) if how.spacing else oriented
    uncropped = tuple(slice(0, extent) for extent in resampled.size)
    place = Place(order, flips, oriented, resampled, uncropped)

    values = resample(place.turn(values), oriented, resampled, SimpleITK.sitkLinear)
    if target is not None:
        target = resample_labels(place.turn(target), oriented, resampled)

    mask = {"none": None, "nonzero": values, "label": target}[how.crop]
    box = None if mask is None else bounding_box(mask, how.margin, how.at_least)
    box = with_extents(box or uncropped, how.exactly, values.shape)
    place = Place(order, flips, oriented, resampled, box)

    crop = np.ascontiguousarray(values[box])
    crop = _normalise(how, crop, values if how.statistics == "whole" else crop)
    return Prepared(crop, None if target is None else np.ascontiguousarray(target[box]), place)


def label_values(image: SimpleITK.Image) -> np.ndarray:
    """The labels of a SimpleITK image as uint8 `(X, Y, Z)`.

    Raises:
        UserError: values that are no whole numbers from 0 to 255.
    """
    array = to_array(image)
    if array.dtype.kind == "f":
        odd = array[(array != np.floor(array)) | ~np.isfinite(array)]
        if odd.size:
            raise UserError(f"label has value {odd[0]:g}, whole numbers are expected")
    low, high = array.min(), array.max()
    if low < 0 or high > 255:
        wrong = low if low < 0 else high
        raise UserError(f"label has value {wrong:g}, classes from 0 to 255 are expected")
    return array.astype(np.uint8)


def bounding_box(
    mask: np.ndarray, margin: Sequence[int] = (0, 0, 0), at_least: Sequence[int] = (1, 1, 1)
) -> tuple[slice, ...] | None:
    """The slices around the voxels that are not 0 in `mask` `(X, Y, Z)`; None where all are 0.

    Args:
        margin: voxels on either side of the box, along each axis.
        at_least: least extents of the box, as far as the mask has them.
    """
    known = mask != 0
    box = []
    for axis, (extent, wide, least) in enumerate(zip(mask.shape, margin, at_least, strict=True)):
        others = tuple(other for other in range(3) if other != axis)
        found = np.flatnonzero(known.any(axis=others))
        if not found.size:
            return None
        low = max(int(found[0]) - wide, 0)
        high = min(int(found[-1]) + 1 + wide, extent)
        width = max(high - low, min(least, extent))
        centred = low - (width - (high - low)) // 2
        low = min(max(centred, 0), extent - width)
        box.append(slice(low, low + width))
    return tuple(box)


def with_extents(
    box: tuple[slice, ...], extents: Sequence[int | None], shape: Sequence[int]
) -> tuple[slice, ...]:
    """A box of other extents about the same middle, within an image of this shape, and as far as it
    goes; None along an axis leaves the box's.
    """
    result = []
    for part, width, extent in zip(box, extents, shape, strict=True):
        if width is not None:
            width = min(width, extent)
            low = (part.start + part.stop - width) // 2
            low = min(max(low, 0), extent - width)
            part = slice(low, low + width)
        result.append(part)
    return tuple(result)


def _finite_values(image: SimpleITK.Image) -> np.ndarray:
    """The grey values of an image as float32 `(X, Y, Z)`."""
    values = to_array(image).astype(np.float32)
    bad = int(np.count_nonzero(~np.isfinite(values)))
    if bad:
        raise UserError(f"image has {bad} voxels that are NaN or infinite")
    return values


def _normalise(how: Preprocessing, image: np.ndarray, within: np.ndarray) -> np.ndarray:
    """The grey values of a crop, normalised with the statistics of `within`."""
    if how.intensity == "none":
        return image
    if how.intensity == "window":
        clipped = np.clip(image, how.low, how.high)
        return ((clipped - how.low) / (how.high - how.low)).astype(np.float32)
    if how.intensity == "minmax":
        low = float(within.min())
        extent = float(within.max()) - low
        return ((image - low) / (extent or 1)).astype(np.float32)
    if how.intensity == "percentile":
        low, high = np.percentile(within, (0.5, 99.5))
        return _z_scores(np.clip(image, low, high), np.clip(within, low, high))
    if how.intensity == "zscore":
        return _z_scores(image, within)
    known = within[within != 0]  # zscore_nonzero
    if not known.size:
        return image
    return np.where(image != 0, _z_scores(image, known), 0).astype(np.float32)


def _z_scores(image: np.ndarray, within: np.ndarray) -> np.ndarray:
    mean = float(within.mean(dtype=np.float64))
    sd = float(within.std(dtype=np.float64))
    return ((image - mean) / (sd or 1)).astype(np.float32)
