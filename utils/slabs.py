"""Prediction of volumes of any length, a few planes at a time: windows summed slab by slab, and
slabs interpolated onto another grid.

Both give the same numbers as the whole volume at once, bit-identical.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from utils.inference import Predictor, check_finite, open_windows, window_outputs


def window_slabs(
    predictor: Predictor,
    image: np.ndarray | Tensor,
    patch: Sequence[int],
    stride: Sequence[int],
    num_classes: int,
    *,
    batch: int | None = None,
    device: torch.device | str = "cpu",
    precision: str = "fp32",
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[Tensor]:
    """`utils.inference.sliding_window` of a volume and a predictor of probabilities, a few planes
    along the first axis at a time.

    The numbers are bit-identical, because each voxel still sums its windows in their order. Memory
    on `device` holds the sums over one patch's planes, however long the volume is; the volume stays
    where it is, and the first axis may have any number of windows.

    Yields:
        `(C, n, Y, Z)` float32 on `device`, planes in order.

    Raises:
        The errors of `sliding_window`, and ValueError for a patch that has not 3 axes.
    """
    volume, patch, starts, crop = open_windows(image, patch, stride)
    if len(patch) != 3:
        raise ValueError(f"patch must have 3 axes, got {patch}")
    device = torch.device(device)
    along_x, along_y, along_z = map(_covering, starts, patch, volume.shape)
    across = along_y[:, None] * along_z
    total = torch.zeros((num_classes, patch[0], *volume.shape[1:]), device=device)
    first = 0  # the plane of the volume that the total begins with

    def finished(count):
        """The first planes of the total as probabilities, without those of the padding, not too
        many at once.
        """
        begin = max(crop[0].start - first, 0)
        end = min(crop[0].stop - first, count)
        step = _planes_at_once(num_classes, *volume.shape[1:])
        for at in range(begin, end, step):
            planes = slice(at, min(at + step, end))
            cover = along_x[first + planes.start : first + planes.stop, None, None] * across
            prob = total[:, planes] / cover.to(device)
            check_finite(prob)
            yield prob[:, :, crop[1], crop[2]]

    corners = itertools.product(*starts)
    for output in window_outputs(
        predictor, volume, patch, starts, num_classes, batch, device, precision, progress
    ):
        for window in output:
            x, y, z = next(corners)
            if x > first:
                yield from finished(x - first)
                left = patch[0] - (x - first)
                for of_class in total:
                    of_class[:left] = of_class[x - first :].clone()
                total[:, left:] = 0
                first = x
            total[:, :, y : y + patch[1], z : z + patch[2]] += window
            del window
        del output
    yield from finished(patch[0])


def _covering(starts: Sequence[int], extent: int, size: int) -> Tensor:
    """How many windows lie over each place along an axis, float32."""
    number = torch.zeros(size)
    for start in starts:
        number[start : start + extent] += 1
    return number


def interpolate_slabs(slabs: Iterable[Tensor], places: Sequence[np.ndarray]) -> Iterator[Tensor]:
    """Linear interpolation of a volume that comes a few planes at a time, on a grid along the same
    axes.

    The result does not depend on how the planes are grouped, bit for bit; voxels come out unchanged
    where all places are the voxels themselves.

    Args:
        slabs: `(C, n, Y, Z)`, the planes of a volume `(C, X, Y, Z)` in order.
        places: where the grid's planes, rows and columns lie along X, Y and Z, in voxels of the
            volume, ascending and from 0 to its last.

    Yields:
        `(C, m, Y', Z')`, planes of the grid in order.
    """
    below = [np.floor(along).astype(np.int64) for along in places]
    shares = [along - low for along, low in zip(places, below, strict=True)]
    above = [low + (share > 0) for low, share in zip(below, shares, strict=True)]
    known = None  # planes that are at hand
    first = 0  # the number of the first of them
    done = 0  # planes of the grid that have been given
    for slab in slabs:
        known = torch.cat((known, slab), 1) if known is not None and known.shape[1] else slab
        most = _planes_at_once(slab.shape[0], len(places[1]), len(places[2]))
        ready = int(np.searchsorted(above[0], first + known.shape[1]))
        while done < ready:
            end = min(ready, done + most)
            now = slice(done, end)
            out = _between(known, 1, below[0][now] - first, above[0][now] - first, shares[0][now])
            for axis in (1, 2):
                out = _between(out, axis + 1, below[axis], above[axis], shares[axis])
            yield out
            done = end
        past = known.shape[1]
        if done < len(places[0]):
            past = min(past, int(below[0][done]) - first)
        known = known[:, past:]
        first += past


def _between(
    volume: Tensor, axis: int, below: np.ndarray, above: np.ndarray, share: np.ndarray
) -> Tensor:
    """`volume` between two indices along an axis, `share` of the way from the one below to the one
    above.
    """

    def at(indices):
        if len(indices) and (indices == np.arange(indices[0], indices[0] + len(indices))).all():
            return volume.narrow(axis, int(indices[0]), len(indices))
        return volume.index_select(axis, torch.from_numpy(indices).to(volume.device))

    if not share.any():
        return at(below)
    share = torch.from_numpy(share.astype(np.float32)).to(volume.device)
    low = at(below)
    # Not torch.lerp: it rounds differently where its vectors begin and end.
    return low + (at(above) - low) * share.reshape([-1] + [1] * (volume.ndim - axis - 1))


def _planes_at_once(num_classes: int, rows: int, columns: int) -> int:
    """How many planes of probabilities fill 64 MB, one at least."""
    return max(1, 2**24 // max(1, num_classes * rows * columns))
