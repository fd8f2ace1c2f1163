"""From a file's arrays to a network's samples: half resolution, crops of volumes, warps of slices.

A volume is cropped first and turned afterwards (`utils.ops.crop_rot_flip`). This moves a patch of
memory instead of a volume, and gives the same distribution as the field's order. A slice is turned,
flipped, scaled and resized by one lookup, where the field's code rounds or interpolates two or
three times.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

# choices of --augment, and the axes of their samples
AUGMENTS = {"rot_flip": 3, "crop": 3, "rotate": 2, "affine": 2, "rotate_crop": 2, "resize": 2}
SMOOTH = ("affine", "rotate_crop")  # those that interpolate images; labels never are

Matrix = tuple[tuple[float, float], tuple[float, float]]


# -------------------------------------------------------------------------------- half resolution


def _blocks(volume: np.ndarray, factor: int) -> np.ndarray:
    """`(X, Y, Z)` as blocks `(X/f, f, Y/f, f, Z/f, f)`; voxels at an axis's end that fill no block
    are left out.
    """
    x, y, z = (extent // factor for extent in volume.shape)
    return volume[: x * factor, : y * factor, : z * factor].reshape(x, factor, y, factor, z, factor)


def downsample_image(image: np.ndarray, factor: int) -> np.ndarray:
    """Mean over blocks of `factor`³ voxels: `(X, Y, Z)` to `(X//factor, Y//factor, Z//factor)`,
    float32.
    """
    return _blocks(image, factor).mean(axis=(1, 3, 5), dtype=np.float32)


def downsample_label(label: np.ndarray, factor: int, num_classes: int) -> np.ndarray:
    """Most frequent class of each block of `factor`³ voxels, uint8 `(X//factor, Y//factor,
    Z//factor)`. Equal counts go to the higher class: a binary block that is half object is object.
    """
    best = np.zeros([extent // factor for extent in label.shape], dtype=np.uint8)
    most = np.zeros(best.shape, dtype=np.int64)
    for c in range(num_classes):
        count = np.count_nonzero(_blocks(label == c, factor), axis=(1, 3, 5))
        best[count >= most] = c
        most = np.maximum(most, count)
    return best


# ------------------------------------------------------------------------------------------ crops


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
    start: tuple[int, int, int]
    rot: int = 0
    flip: int | None = None


def draw_crop(
    rng: np.random.Generator,
    case: int,
    shape: Sequence[int],
    patch: Sequence[int],
    augment: str = "rot_flip",
) -> Crop:
    """Draw a sample's `Crop`, each possible corner equally likely; a volume smaller than the patch
    is centred.

    Args:
        rng: draws.
        case: index of the volume.
        shape: its extents.
        patch: extents of the sample.
        augment: `crop`, or `rot_flip` to turn by 0, 90, 180 or 270° and flip x or y as the LA
            protocol does.
    """
    rot, flip = 0, None
    if augment == "rot_flip":
        rot = int(rng.integers(4))
        flip = int(rng.integers(2))
    start = []
    for extent, size in zip(shape, turned(patch, rot), strict=True):
        if extent >= size:
            start.append(int(rng.integers(extent - size + 1)))
        else:
            start.append(-((size - extent) // 2))
    return Crop(case, tuple(start), rot, flip)


def turned(patch: Sequence[int], rot: int) -> tuple[int, ...]:
    """The extents that become `patch` after `rot` quarter turns: x and y change places for an odd
    number.
    """
    return (patch[1], patch[0], *patch[2:]) if rot % 2 else tuple(patch)


# ------------------------------------------------------------------------------------------ warps


@dataclass(frozen=True)
class Warp:
    """Where the pixels of a sample come from: the pixel at `offset` from the sample's centre is
    looked up at `matrix @ offset + shift` from the slice's centre.

    Attributes:
        case: index of the slice.
        matrix: `((a, b), (c, d))`, for offsets in pixels along rows and columns.
        shift: from the slice's centre to what the sample's centre shows, in pixels of the slice.
    """

    case: int
    matrix: Matrix
    shift: tuple[float, float] = (0.0, 0.0)


def draw_warp(
    rng: np.random.Generator,
    case: int,
    shape: Sequence[int],
    patch: Sequence[int],
    augment: str,
) -> Warp:
    """Draw a sample's `Warp`: the slice, turned and cut as `augment` says, resized so that corners
    meet corners.

    Args:
        rng: draws.
        case: index of the slice.
        shape: its extents.
        patch: extents of the sample.
        augment: `rotate` turns by quarters and flips one sample in two, and turns one in four by up
            to 20°, as the ACDC protocol does. `affine` turns each by up to 30°, scales it by 0.5 to
            2 and flips each axis of one in two, as CoraNet does on Pancreas-CT. `rotate_crop` is
            CoraNet's on ACDC: a crop of 85 to 95 % of the area, turned one time in two by up to
            45°, and each axis flipped one time in two. `resize` does none of it.
    """
    if augment == "affine":
        angle = rng.uniform(-30, 30)
        scale = rng.uniform(0.5, 2)
        flips = rng.random(2) < 0.5
        return Warp(case, warp_matrix(shape, patch, flips=flips, angle=angle, scale=scale))
    if augment == "rotate_crop":
        return _draw_turned_crop(rng, case, shape, patch)
    rot, flips, angle = 0, [False, False], 0.0
    if augment == "rotate" and rng.random() < 0.5:
        rot = int(rng.integers(4))
        flips[int(rng.integers(2))] = True
    elif augment == "rotate" and rng.random() < 0.5:
        angle = rng.uniform(-20, 20)
    return Warp(case, warp_matrix(shape, patch, rot, flips, angle))


def _draw_turned_crop(
    rng: np.random.Generator, case: int, shape: Sequence[int], patch: Sequence[int]
) -> Warp:
    """`rotate_crop`: the slice is turned and flipped, and a part of it of the same proportions is
    cut anywhere.

    The paper (CoraNet, IV-F) says: random rotation, flip, and random crop of 85 to 95 % of the
    area, as DCT-Seg. It leaves open how far slices are turned, and how often they are turned and
    flipped. This is from DCT-Seg's released code, which crops one slice in five; the paper says of
    no such chance, so each is cropped here.
    """
    flips = rng.random(2) < 0.5
    angle = rng.uniform(-45, 45) if rng.random() < 0.5 else 0.0
    side = math.sqrt(rng.uniform(0.85, 0.95))  # of the crop, as a share of the slice's
    matrix = warp_matrix(shape, patch, flips=flips, angle=angle, scale=1 / side)
    # how far the crop may lie from the slice's centre, in pixels of the sample
    room = [(1 / side - 1) * (size - 1) / 2 for size in patch]
    x = rng.uniform(-room[0], room[0])
    y = rng.uniform(-room[1], room[1])
    shift = tuple(a * x + b * y for a, b in matrix)
    return Warp(case, matrix, shift)


def warp_matrix(
    shape: Sequence[int],
    patch: Sequence[int],
    rot: int = 0,
    flips: Sequence[bool] = (False, False),
    angle: float = 0.0,
    scale: float = 1.0,
) -> Matrix:
    """The matrix of a `Warp` from a slice of extents `shape` to a sample of extents `patch`.

    The slice is turned by `rot` quarters and by `angle` in degrees (as `numpy.rot90` and
    `scipy.ndimage.rotate` turn), enlarged by `scale` about its centre, reversed along the axes of
    `flips`, and resized.
    """
    cosine, sine = ((1, 0), (0, 1), (-1, 0), (0, -1))[rot]  # exact
    if angle:
        radians = math.radians(90 * rot + angle)
        cosine, sine = math.cos(radians), math.sin(radians)
    columns = []
    for extent, size, flip in zip(turned(shape, rot), patch, flips, strict=True):
        column = (extent - 1) / max(size - 1, 1) / scale
        columns.append(-column if flip else column)
    return (cosine * columns[0], sine * columns[1]), (-sine * columns[0], cosine * columns[1])


def warp_slices(
    slices: Sequence[Tensor], warps: Sequence[Warp], patch: Sequence[int], smooth: bool = False
) -> Tensor:
    """A batch `(len(slices), *patch)` of slices through their warps; 0 outside of a slice.

    Args:
        slices: tensors `(H, W)`, each of its own shape, all of one type.
        warps: of each.
        patch: extents of the result.
        smooth: interpolate bilinearly, for images; else the nearest pixel is taken.
    """
    # in NumPy, whose one thread is done before torch's threads would meet
    result = torch.empty((len(slices), *patch), dtype=slices[0].dtype)
    rows = (np.arange(patch[0]) - (patch[0] - 1) / 2)[:, None]
    columns = (np.arange(patch[1]) - (patch[1] - 1) / 2)[None]
    for pixels, warp, out in zip(slices, warps, result.numpy(), strict=True):
        x = _coordinates(pixels.shape[0], warp.matrix[0], warp.shift[0], rows, columns)
        y = _coordinates(pixels.shape[1], warp.matrix[1], warp.shift[1], rows, columns)
        framed = np.pad(pixels.cpu().numpy(), 1)  # zeros for the outside
        if smooth:
            _bilinear(framed, x, y, out)
        else:
            _nearest(framed, x, y, out)
    return result


def _coordinates(
    extent: int,
    row: tuple[float, float],
    shift: float,
    rows: np.ndarray,
    columns: np.ndarray,
) -> np.ndarray:
    """Where a sample's pixels lie along one axis of a slice with a frame 1 wide.

    A zero factor is left out: an axis that keeps its direction stays a vector until the lookup,
    which saves most of the time that turning takes.
    """
    coordinates = 0
    for factor, offset in zip(row, (rows, columns), strict=True):
        if factor:
            coordinates = coordinates + factor * offset
    return (extent + 1) / 2 + shift + coordinates


def _nearest(framed: np.ndarray, x: np.ndarray, y: np.ndarray, out: np.ndarray) -> None:
    i = np.clip(np.floor(x + 0.5), 0, framed.shape[0] - 1).astype(np.intp)
    j = np.clip(np.floor(y + 0.5), 0, framed.shape[1] - 1).astype(np.intp)
    np.take(framed, np.broadcast_to(i * framed.shape[1] + j, out.shape), out=out, mode="clip")


def _bilinear(framed: np.ndarray, x: np.ndarray, y: np.ndarray, out: np.ndarray) -> None:
    height, width = framed.shape
    x = np.clip(x, 0, height - 1)
    y = np.clip(y, 0, width - 1)
    i = np.minimum(x.astype(np.intp), height - 2)
    j = np.minimum(y.astype(np.intp), width - 2)
    u = (x - i).astype(np.float32)
    v = (y - j).astype(np.float32)
    flat = framed.ravel()
    first = i * width + j
    upper = flat[first] + (flat[first + 1] - flat[first]) * v
    first = first + width
    lower = flat[first] + (flat[first + 1] - flat[first]) * v
    out[:] = upper + (lower - upper) * u
