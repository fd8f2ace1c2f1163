"""Crops of volumes of any shape, turned and flipped into one batch: image and label in one pass."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F

from utils.ops import _checks, _library


def crop_rot_flip(
    images: Sequence[torch.Tensor],
    labels: Sequence[torch.Tensor] | None,
    corners: Sequence[Sequence[int]],
    size: Sequence[int],
    rot: Sequence[int],
    flip: Sequence[int | None],
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """A batch of crops, each cut from its volume, turned by quarter turns and flipped.

    Turns are in the plane of the first two axes: `torch.rot90(crop, rot, (0, 1)).flip(flip)`. A
    crop has the extents `size` after it is turned. Before, the first two extents are exchanged if
    the number of quarter turns is odd.

    Args:
        images: B volumes `(X, Y, Z)` or images `(X, Y)`. Their shapes may differ. They share one
            dtype, which may be any, and one device.
        labels: labels of the first samples, each of its image's shape, all of one dtype. The other
            samples have none. None or an empty sequence: no sample has a label.
        corners: the first corner of each of the B crops, in voxels. Outside of the volume the
            result is 0.
        size: extents of the result, in voxels.
        rot: B numbers of quarter turns from axis 0 to axis 1: 0, 1, 2 or 3.
        flip: for each of the B crops the axis to reverse after turning; None for none.

    Returns:
        images: `(B, *size)`, no gradient.
        labels: `(len(labels), *size)`, or None if no label was given.

    Raises:
        TypeError: not tensors, or tensors of several dtypes; not sequences, or not of integers (a
            bool is no integer).
        ValueError: no image; shapes, numbers or devices that do not fit; or a crop of 2^31 voxels
            or more.
    """
    arguments = _checked(images, labels, corners, size, rot, flip)
    crops, targets = _operator(*arguments)
    return crops, targets if arguments[1] else None


def crop_rot_flip_reference(
    images: Sequence[torch.Tensor],
    labels: Sequence[torch.Tensor] | None,
    corners: Sequence[Sequence[int]],
    size: Sequence[int],
    rot: Sequence[int],
    flip: Sequence[int | None],
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """`crop_rot_flip` by its definition: pad, crop, `rot90` and `flip`, volume by volume."""
    arguments = _checked(images, labels, corners, size, rot, flip)
    crops, targets = _reference(*arguments)
    return crops, targets if arguments[1] else None


def _one(
    volume: torch.Tensor, start: Sequence[int], size: Sequence[int], rot: int, flip: int
) -> torch.Tensor:
    extents = [size[1], size[0], *size[2:]] if rot % 2 else size
    padding = []  # negative values crop; `pad` takes the last axis first
    for corner, n, extent in reversed(list(zip(start, extents, volume.shape, strict=True))):
        corner = max(-n, min(corner, extent))  # farther out the crop is 0 anyway
        padding += [-corner, corner + n - extent]
    crop = torch.rot90(F.pad(volume, padding), rot, (0, 1))
    return crop if flip < 0 else crop.flip(flip)


def _reference(images, labels, starts, size, rot, flip) -> tuple[torch.Tensor, torch.Tensor]:
    def crops(volumes):
        return torch.stack(
            [
                _one(volume, starts[k * len(size) : (k + 1) * len(size)], size, rot[k], flip[k])
                for k, volume in enumerate(volumes)
            ]
        )

    if labels:
        return crops(images), crops(labels)
    _, no_labels = _fake(images, labels, starts, size, rot, flip)
    return crops(images), no_labels


def _checked(
    images, labels, corners, size, rot, flip
) -> tuple[list, list, list[int], list[int], list[int], list[int]]:
    """The operator's arguments, after all checks."""
    images = _checks.sequence(images, "images")
    labels = [] if labels is None else _checks.sequence(labels, "labels")
    for volume in [*images, *labels]:
        if not isinstance(volume, torch.Tensor):
            raise TypeError(f"expected tensors, got {type(volume).__name__}")
    images, labels = ([volume.detach() for volume in volumes] for volumes in (images, labels))
    if not images:
        raise ValueError("expected at least one image")
    for volumes in (images, labels):
        if len({volume.dtype for volume in volumes}) > 1:
            raise TypeError(
                f"expected one dtype, got {', '.join(str(volume.dtype) for volume in volumes)}"
            )
    if len({volume.device for volume in [*images, *labels]}) > 1:
        raise ValueError(
            f"expected one device, got {', '.join(str(v.device) for v in [*images, *labels])}"
        )
    size = _checks.integers(size, "size")
    if len(size) not in (2, 3) or min(size) < 0 or max(max(size), math.prod(size)) >= 2**31:
        raise ValueError(
            f"expected a size of 2 or 3 axes and fewer than 2^31 voxels, got {tuple(size)}"
        )
    if any(volume.ndim != len(size) for volume in images):
        raise ValueError(
            f"expected volumes of {len(size)} axes, got "
            f"{[tuple(volume.shape) for volume in images]}"
        )
    if len(labels) > len(images):
        raise ValueError(f"expected at most {len(images)} labels, one an image, got {len(labels)}")
    for k, (volume, target) in enumerate(zip(images, labels, strict=False)):
        if volume.shape != target.shape:
            raise ValueError(
                f"label {k} has shape {tuple(target.shape)}, but its image has "
                f"{tuple(volume.shape)}"
            )
    corners = [
        _checks.integers(corner, "a corner") for corner in _checks.sequence(corners, "corners")
    ]
    rot, flip = _checks.integers(rot, "rot"), _checks.sequence(flip, "flip, each an axis or None")
    if any(len(given) != len(images) for given in (corners, rot, flip)):
        counts = f"{len(corners)} corners, {len(rot)} rot and {len(flip)} flip"
        raise ValueError(
            f"expected one corner, rot and flip for each of {len(images)} images, got {counts}"
        )
    if any(len(corner) != len(size) for corner in corners):
        raise ValueError(f"expected corners of {len(size)} numbers, got {corners}")
    if not all(-(2**63) <= number < 2**63 for corner in corners for number in corner):
        raise ValueError(f"expected corners within 64 bits, got {corners}")
    if not all(0 <= turns < 4 for turns in rot):
        raise ValueError(f"expected 0, 1, 2 or 3 quarter turns, got {rot}")
    axes = [-1 if axis is None else _checks.integer(axis, "the axis to flip") for axis in flip]
    for axis, given in zip(axes, flip, strict=True):
        if given is not None and not 0 <= axis < len(size):
            raise ValueError(
                f"expected axes from 0 to {len(size) - 1} to flip, or None, got {flip}"
            )
    starts = [number for corner in corners for number in corner]
    return images, labels, starts, size, rot, axes


def _fake(images, labels, starts, size, rot, flip) -> tuple[torch.Tensor, torch.Tensor]:
    of_type = labels[0] if labels else images[0].new_empty(0, dtype=torch.uint8)
    return images[0].new_empty((len(images), *size)), of_type.new_empty((len(labels), *size))


_operator = _library.register(
    "crop_rot_flip(Tensor[] images, Tensor[] labels, int[] starts, int[] size, int[] rot, "
    "int[] flip) -> (Tensor, Tensor)",
    _reference,
    _fake,
)
