"""What happens between the file and the network: half resolution, and one look at the volume or the
slice a sample.

A volume is cropped first and turned afterwards (`utils.ops.crop_rot_flip`), which moves a patch of
memory instead of a volume and gives the same distribution as the field's order. A slice is turned,
flipped, scaled and resized by one lookup, where the field's code rounds or interpolates two or
three times.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch

AUGMENTS = {
    "rot_flip": 3,
    "crop": 3,
    "rotate": 2,
    "affine": 2,
    "resize": 2,
}  # --augment: axes of the samples


def _blocks(volume, factor):
    """`(X, Y, Z)` as blocks `(X/f, f, Y/f, f, Z/f, f)`, without the voxels at an axis's end that
    fill no block.
    """
    x, y, z = (extent // factor for extent in volume.shape)
    return volume[: x * factor, : y * factor, : z * factor].reshape(x, factor, y, factor, z, factor)


def downsample_image(image, factor):
    """Mean over blocks of `factor`³ voxels: `(X, Y, Z)` to `(X//factor, Y//factor, Z//factor)`,
    float32.
    """
    return _blocks(image, factor).mean(axis=(1, 3, 5), dtype=np.float32)


def downsample_label(label, factor, num_classes):
    """Most frequent class of each block of `factor`³ voxels, uint8; equal counts go to the higher
    class, so a binary block that is half object is object."""
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
    """Draw a sample's `Crop`, each possible corner equally likely; a volume smaller than the patch
    is centred.

    `augment` is `crop`, or `rot_flip` to turn by 0, 90, 180 or 270° and flip x or y as the LA
    protocol does.
    """
    rot, flip = (int(rng.integers(4)), int(rng.integers(2))) if augment == "rot_flip" else (0, None)
    size = turned(patch, rot)
    start = tuple(
        int(rng.integers(extent - p + 1)) if extent >= p else -((p - extent) // 2)
        for extent, p in zip(shape, size, strict=True)
    )
    return Crop(case, start, rot, flip)


def turned(patch, rot):
    """The crop that becomes `patch` after `rot` quarter turns: x and y change places for an odd
    number.
    """
    return (patch[1], patch[0], *patch[2:]) if rot % 2 else tuple(patch)


@dataclass(frozen=True)
class Warp:
    """Where the pixels of a sample come from: what is `offset` from its centre is `matrix @ offset`
    from the slice's.

    Attributes:
        case: index of the slice.
        matrix: `((a, b), (c, d))`, of offsets in pixels along rows and columns.
    """

    case: int
    matrix: tuple


def draw_warp(rng, case, shape, patch, augment):
    """Draw a sample's `Warp`: the whole slice, turned as `augment` says, resized so that corners
    meet corners.

    `rotate` turns by quarters and flips one sample in two, and turns one in four by up to 20°, as
    the ACDC protocol does; `affine` turns each by up to 30°, scales it by 0.5 to 2 and flips each
    axis of one in two, as CoraNet's does; `resize` does neither.
    """
    rot, flips, angle, scale = 0, [False, False], 0.0, 1.0
    if augment == "affine":
        angle, scale, flips = rng.uniform(-30, 30), rng.uniform(0.5, 2), rng.random(2) < 0.5
    elif augment == "rotate" and rng.random() < 0.5:
        rot, flips[int(rng.integers(2))] = int(rng.integers(4)), True
    elif augment == "rotate" and rng.random() < 0.5:
        angle = rng.uniform(-20, 20)
    return Warp(case, warp_matrix(shape, patch, rot, flips, angle, scale))


def warp_matrix(shape, patch, rot=0, flips=(False, False), angle=0.0, scale=1.0):
    """The matrix of a `Warp` from a slice of extents `shape` to a sample of extents `patch`.

    The slice is turned by `rot` quarters and by `angle` in degrees (as `numpy.rot90` and
    `scipy.ndimage.rotate` turn), enlarged by `scale` about its centre, reversed along the axes of
    `flips`, and resized.
    """
    cosine, sine = ((1, 0), (0, 1), (-1, 0), (0, -1))[rot]  # exact
    if angle:
        at = math.radians(90 * rot + angle)
        cosine, sine = math.cos(at), math.sin(at)
    resize = [
        (extent - 1) / max(p - 1, 1) for extent, p in zip(turned(shape, rot), patch, strict=True)
    ]
    columns = [-r / scale if flip else r / scale for r, flip in zip(resize, flips, strict=True)]
    return (cosine * columns[0], sine * columns[1]), (-sine * columns[0], cosine * columns[1])


def warp_slices(slices, warps, patch, smooth=False):
    """A batch `(len(slices), *patch)` of slices through their `Warp`s: the nearest pixel of each
    place, 0 outside.

    Args:
        slices: a sequence of tensors `(H, W)`, each of its own shape, of one type.
        warps: of each.
        patch: extents of the result.
        smooth: interpolate bilinearly, for images.
    """
    # NumPy's one thread: so small an operation takes less time than it takes torch's threads to
    # meet
    result = torch.empty((len(slices), *patch), dtype=slices[0].dtype)
    rows, columns = (np.arange(p) - (p - 1) / 2 for p in patch)
    offsets = rows[:, None], columns[None]
    for pixels, warp, out in zip(slices, warps, result.numpy(), strict=True):
        # axes that keep their direction stay vectors until the lookup, most of the time that
        # turning by angles takes
        x, y = (
            (extent + 1) / 2
            + sum(factor * offset for factor, offset in zip(row, offsets, strict=True) if factor)
            for extent, row in zip(pixels.shape, warp.matrix, strict=True)
        )
        framed = np.pad(pixels.cpu().numpy(), 1)  # with zeros for what lies outside
        _bilinear(framed, x, y, out) if smooth else _nearest(framed, x, y, out)
    return result


def _nearest(framed, x, y, out):
    i, j = (
        np.clip(np.floor(v + 0.5), 0, n - 1).astype(np.intp)
        for v, n in zip((x, y), framed.shape, strict=True)
    )
    np.take(framed, np.broadcast_to(i * framed.shape[1] + j, out.shape), out=out, mode="clip")


def _bilinear(framed, x, y, out):
    x, y = (np.clip(v, 0, n - 1) for v, n in zip((x, y), framed.shape, strict=True))
    i, j = (np.minimum(v.astype(np.intp), n - 2) for v, n in zip((x, y), framed.shape, strict=True))
    u, v = (x - i).astype(np.float32), (y - j).astype(np.float32)
    flat, first, down = framed.ravel(), i * framed.shape[1] + j, framed.shape[1]
    upper, lower = (flat[at] + (flat[at + 1] - flat[at]) * v for at in (first, first + down))
    out[:] = upper + (lower - upper) * u
