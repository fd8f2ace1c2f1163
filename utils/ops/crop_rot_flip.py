"""Crops of volumes of any shape, turned and flipped into one batch: image and label in one pass."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from utils.ops import _library


def crop_rot_flip(
    image: Sequence[torch.Tensor],
    label: Sequence[torch.Tensor] | None,
    starts: Sequence[Sequence[int]],
    size: Sequence[int],
    rot: Sequence[int],
    flip: Sequence[int | None],
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """A batch of crops, each taken from its volume, turned by quarters in the plane of the first two axes and flipped.

    What a crop takes before it is turned has the extents `size`, the first two exchanged for an odd number of quarter
    turns. Turning and flipping are those of ``torch.rot90(crop, rot, (0, 1))`` and ``.flip(flip)``.

    Args:
        image: B volumes ``(X, Y, Z)`` or images ``(X, Y)``, each of its own shape, one dtype, any, and one device.
        label: the labels of the first samples, each of its image's shape, one dtype. The rest, or all for None or an
            empty sequence, have none.
        starts: B corners of crops, in voxels; where a crop leaves its volume the result is 0.
        size: extents of the result.
        rot: B numbers of quarter turns from axis 0 to axis 1: 0, 1, 2 or 3.
        flip: B axes reversed after turning, None for none.

    Returns:
        image: ``(B, *size)``, no gradient.
        label: ``(len(label), *size)``, or None where no label was given.

    Raises:
        TypeError: no tensors, or of several dtypes.
        ValueError: no image; shapes, numbers or devices do not fit; or a result has 2^31 voxels or more.
    """
    arguments = _checked(image, label, starts, size, rot, flip)
    crops, labels = _operator(*arguments)
    return crops, labels if arguments[1] else None


def crop_rot_flip_reference(
    image: Sequence[torch.Tensor],
    label: Sequence[torch.Tensor] | None,
    starts: Sequence[Sequence[int]],
    size: Sequence[int],
    rot: Sequence[int],
    flip: Sequence[int | None],
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """:func:`crop_rot_flip` by its definition: pad, crop, ``rot90`` and ``flip``, volume by volume."""
    arguments = _checked(image, label, starts, size, rot, flip)
    crops, labels = _reference(*arguments)
    return crops, labels if arguments[1] else None


def _one(volume: torch.Tensor, start: Sequence[int], size: Sequence[int], rot: int, flip: int) -> torch.Tensor:
    extents = [size[1], size[0], *size[2:]] if rot % 2 else size
    padding = []  # negative to crop; `pad` wants the last axis first
    for corner, n, extent in reversed(list(zip(start, extents, volume.shape, strict=True))):
        corner = max(-n, min(corner, extent))  # further out there are zeros all the same
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

    return crops(images), crops(labels) if labels else _fake(images, labels, starts, size, rot, flip)[1]


def _checked(image, label, starts, size, rot, flip) -> tuple[list, list, list[int], list[int], list[int], list[int]]:
    """The operator's arguments, of samples that are fit for use."""
    images, labels = list(image), [] if label is None else list(label)
    for volume in [*images, *labels]:
        if not isinstance(volume, torch.Tensor):
            raise TypeError(f"expected tensors, got {type(volume).__name__}")
    if not images:
        raise ValueError("expected at least one image")
    for volumes in (images, labels):
        if len({volume.dtype for volume in volumes}) > 1:
            raise TypeError(f"expected one dtype, got {', '.join(str(volume.dtype) for volume in volumes)}")
    if len({volume.device for volume in [*images, *labels]}) > 1:
        raise ValueError(f"expected one device, got {', '.join(str(v.device) for v in [*images, *labels])}")
    size = [int(extent) for extent in size]
    if len(size) not in (2, 3) or min(size) < 0 or torch.Size(size).numel() >= 2**31:
        raise ValueError(f"expected a size of 2 or 3 axes and fewer than 2^31 voxels, got {tuple(size)}")
    if any(volume.ndim != len(size) for volume in images):
        raise ValueError(f"expected volumes of {len(size)} axes, got {[tuple(volume.shape) for volume in images]}")
    if len(labels) > len(images):
        raise ValueError(f"expected at most {len(images)} labels, one an image, got {len(labels)}")
    for k, (volume, target) in enumerate(zip(images, labels, strict=False)):
        if volume.shape != target.shape:
            raise ValueError(f"label {k} has shape {tuple(target.shape)}, but its image has {tuple(volume.shape)}")
    if any(len(given) != len(images) for given in (starts, rot, flip)):
        counts = f"{len(starts)} starts, {len(rot)} rot and {len(flip)} flip"
        raise ValueError(f"expected one start, rot and flip for each of {len(images)} images, got {counts}")
    if any(len(start) != len(size) for start in starts):
        raise ValueError(f"expected starts of {len(size)} numbers, got {starts}")
    rot, flip = [int(turns) for turns in rot], [-1 if axis is None else int(axis) for axis in flip]
    if not all(0 <= turns < 4 for turns in rot):
        raise ValueError(f"expected 0, 1, 2 or 3 quarter turns, got {rot}")
    if not all(-1 <= axis < len(size) for axis in flip):
        raise ValueError(f"expected axes below {len(size)} to flip, or None, got {flip}")
    return images, labels, [int(corner) for start in starts for corner in start], size, rot, flip


def _fake(images, labels, starts, size, rot, flip) -> tuple[torch.Tensor, torch.Tensor]:
    of_type = labels[0] if labels else images[0].new_empty(0, dtype=torch.uint8)
    return images[0].new_empty((len(images), *size)), of_type.new_empty((len(labels), *size))


_operator = _library.register(
    "crop_rot_flip(Tensor[] images, Tensor[] labels, int[] starts, int[] size, int[] rot, int[] flip)"
    " -> (Tensor, Tensor)",
    _reference,
    _fake,
)
