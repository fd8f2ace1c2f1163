"""What happens to a volume between the file and the network: half resolution, and one crop, rotation and flip a sample.

The crop is drawn first and turned afterwards (`utils.ops.crop_rot_flip`), which moves a patch of memory instead of a
volume and gives the same distribution as the field's order.
"""

from dataclasses import dataclass

import numpy as np


def _blocks(volume, factor):
    """`(X, Y, Z)` as blocks `(X/f, f, Y/f, f, Z/f, f)`, without the voxels at an axis's end that fill no block."""
    x, y, z = (extent // factor for extent in volume.shape)
    return volume[: x * factor, : y * factor, : z * factor].reshape(x, factor, y, factor, z, factor)


def downsample_image(image, factor):
    """Mean over blocks of `factor`³ voxels: `(X, Y, Z)` to `(X//factor, Y//factor, Z//factor)`, float32."""
    return _blocks(image, factor).mean(axis=(1, 3, 5), dtype=np.float32)


def downsample_label(label, factor, num_classes):
    """Most frequent class of each block of `factor`³ voxels, uint8; equal counts go to the higher class, so a binary
    block that is half object is object."""
    best = np.zeros([extent // factor for extent in label.shape], dtype=np.uint8)
    most = np.zeros(best.shape, dtype=np.int64)
    for c in range(num_classes):
        count = np.count_nonzero(_blocks(label == c, factor), axis=(1, 3, 5))
        best[count >= most] = c
        most = np.maximum(most, count)
    return best


@dataclass(frozen=True)
class Crop:
    """Where a sample is cut from its volume, and how it is turned in the axial plane and flipped.

    Attributes:
        case: index of the volume.
        start: corner of the crop `(x, y, z)`; negative where the volume is smaller than the patch.
        rot: quarter turns, 0 … 3, from axis x to axis y.
        flip: axis reversed after turning, 0 or 1, or None.
    """

    case: int
    start: tuple
    rot: int = 0
    flip: int | None = None


def draw_crop(rng, case, shape, patch, augment="rot_flip"):
    """Draw a sample's `Crop`, each possible corner equally likely; a volume smaller than the patch is centred.

    `augment` is `crop`, or `rot_flip` to turn by 0, 90, 180 or 270° and flip x or y as the LA protocol does.
    """
    rot, flip = (int(rng.integers(4)), int(rng.integers(2))) if augment == "rot_flip" else (0, None)
    size = turned(patch, rot)
    start = tuple(
        int(rng.integers(extent - p + 1)) if extent >= p else -((p - extent) // 2)
        for extent, p in zip(shape, size, strict=True)
    )
    return Crop(case, start, rot, flip)


def turned(patch, rot):
    """The crop that becomes `patch` after `rot` quarter turns: x and y change places for an odd number."""
    return (patch[1], patch[0], *patch[2:]) if rot % 2 else tuple(patch)
