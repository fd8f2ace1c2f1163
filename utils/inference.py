"""From a trained run to probabilities of a whole volume: networks, sliding window, slices.

The windows, the padding and the averaging, and the resizing of slices, are those of the field's
research code (UA-MT, DTC, MC-Net and every method compared with them), so that numbers are
comparable with the published tables; tests hold them equal to those loops written out, one window
or slice at a time.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from utils.device import autocast, channels_last
from utils.errors import UserError
from utils.ops import WindowStitcher, _checks, window_starts

Predictor = Callable[[Tensor], Tensor]


def sliding_window(
    predictor: Predictor,
    image: np.ndarray | Tensor,
    patch: Sequence[int],
    stride: Sequence[int],
    num_classes: int,
    *,
    batch: int | None = None,
    activation: str | None = "softmax",
    weights: Tensor | None = None,
    device: torch.device | str = "cpu",
    precision: str = "fp32",
    progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Class probabilities of a volume or an image: the mean over all windows that cover a voxel.

    What is smaller than the patch is padded with zeros, ``(P - S) // 2`` in front and the rest
    behind, and cropped back. The predictor runs without gradients and under autocast; activation
    and sum are float32. Its train or eval mode is the caller's business.

    Args:
        predictor: ``(B, 1, *patch)`` float32, channels last, to ``(B, C, *patch)`` logits (or
            probabilities), of any floating-point type. It may not keep its input, which the next
            windows overwrite.
        image: one, no batch: ``(*S)`` or ``(1, *S)``, of 3 or 2 axes as the patch has; read as
            float32.
        patch, stride: voxels along each axis.
        num_classes: C.
        batch: windows per forward pass; memory grows with it, the result does not depend on it.
            None: 4 on a GPU, and 1 on the CPU, where a window fills the caches and all threads.
        activation: ``softmax`` or ``sigmoid`` for logits, None for a predictor that gives
            probabilities.
        weights: ``(*patch)``, from 1e-30 to 1e30, how much each place of a window counts, such as
            :func:`gaussian_weights`; None, the field's protocol: all the same.
        device: where the predictor lives; the volume is summed and returned there.
        precision: ``fp32`` or ``bf16``, as :func:`utils.device.resolve_precision` gives it.
        progress: called with (windows done, windows in all) after each batch.

    Returns:
        ``(C, *S)`` float32 on ``device``.

    Raises:
        TypeError: an image of other than bools, integers or floats, extents that are no integers,
            or a predictor that gives no tensor.
        ValueError: wrong image shape, activation, weights, batch, precision, or output shape of the
            predictor; or more than 768 first voxels of windows over all axes: take a larger stride.
        UserError: the predictor's output is not finite.
    """
    volume, patch, starts, crop = _opened(image, patch, stride)
    device = torch.device(device)
    volume = volume.to(device)
    options = {"activation": activation, "weights": weights, "device": device}
    stitcher = WindowStitcher(volume.shape, patch, starts, num_classes, **options)
    for output in _outputs(
        predictor, volume, patch, starts, num_classes, batch, device, precision, progress
    ):
        stitcher.add(output)
        del output
    prob = stitcher.result()
    _check_finite(prob)
    return prob[(slice(None), *crop)]


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
    """:func:`sliding_window` of a volume and a predictor of probabilities, planes along the first
    axis at a time.

    The same numbers to the bit, for each voxel still goes through its windows in their order.
    Memory on ``device`` is the sums over one patch's planes, however long the volume is, which
    stays where it is; and the first axis may have any number of windows.

    Yields:
        ``(C, n, Y, Z)`` float32 on ``device``, planes in order.

    Raises:
        As :func:`sliding_window`.
    """
    volume, patch, starts, crop = _opened(image, patch, stride)
    if len(patch) != 3:
        raise ValueError(f"patch must have 3 axes, got {patch}")
    device = torch.device(device)
    numbers = [
        _covering(along, extent, size)
        for along, extent, size in zip(starts, patch, volume.shape, strict=True)
    ]
    across = numbers[1][:, None] * numbers[2]
    total = torch.zeros((num_classes, patch[0], *volume.shape[1:]), device=device)
    first = 0  # the plane of the volume that the total begins with

    def finished(count):
        """The first planes of the total as probabilities, those of the padding left out, not too
        many at once.
        """
        begin, end = max(crop[0].start - first, 0), min(crop[0].stop - first, count)
        step = _planes_at_once(num_classes, *volume.shape[1:])
        for at in range(begin, end, step):
            planes = slice(at, min(at + step, end))
            cover = numbers[0][first + planes.start : first + planes.stop, None, None] * across
            prob = total[:, planes] / cover.to(device)
            _check_finite(prob)
            yield prob[:, :, crop[1], crop[2]]

    corners = itertools.product(*starts)
    for output in _outputs(
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


def _opened(
    image: np.ndarray | Tensor, patch: Sequence[int], stride: Sequence[int]
) -> tuple[Tensor, tuple[int, ...], list[list[int]], list[slice]]:
    """The volume, padded to the patch at least, in float32; the patch; the windows' starts; where
    the image lies.
    """
    patch = tuple(_checks.integers(patch, "patch"))
    if len(patch) not in (2, 3):
        raise ValueError(f"patch must have 2 or 3 axes, got {patch}")
    volume = _checks.real(image, "an image").to(torch.float32)
    if volume.ndim == len(patch) + 1 and volume.shape[0] == 1:
        volume = volume[0]
    if volume.ndim != len(patch):
        axes = "X, Y, Z"[: 3 * len(patch) - 2]
        raise ValueError(f"image must be ({axes}) or (1, {axes}), got {tuple(volume.shape)}")
    missing = [max(p - s, 0) for s, p in zip(volume.shape, patch, strict=True)]
    crop = [slice(m // 2, m // 2 + s) for m, s in zip(missing, volume.shape, strict=True)]
    if any(missing):
        volume = F.pad(volume, [side for m in reversed(missing) for side in (m // 2, m - m // 2)])
    return volume, patch, window_starts(volume.shape, patch, stride), crop


@torch.no_grad()
def _outputs(
    predictor: Predictor,
    volume: Tensor,
    patch: tuple[int, ...],
    starts: list[list[int]],
    num_classes: int,
    batch: int | None,
    device: torch.device,
    precision: str,
    progress: Callable[[int, int], None] | None,
) -> Iterator[Tensor]:
    """What the predictor gives of all windows, in C order of the grid, a batch at a time."""
    batch = _batch(batch, device, 1, 4)
    corners = list(itertools.product(*starts))
    # One input for all windows: a fresh tensor a window costs more in page faults than its sum
    # does. For the same reason no name holds an output while the next is made, here or where it
    # goes: it then takes the same memory.
    x = torch.empty((min(batch, len(corners)), 1, *patch), device=device).to(
        memory_format=channels_last(len(patch))
    )
    for first in range(0, len(corners), batch):
        chunk = corners[first : first + batch]
        for i, corner in enumerate(chunk):
            x[i, 0].copy_(
                volume[tuple(slice(a, a + p) for a, p in zip(corner, patch, strict=True))]
            )
        with autocast(device, precision):
            output = predictor(x[: len(chunk)])
        if not isinstance(output, Tensor):
            raise TypeError(
                f"the predictor gave a {type(output).__name__}, expected one tensor of logits"
            )
        if output.shape != (len(chunk), num_classes, *patch):
            expected = (len(chunk), num_classes, *patch)
            raise ValueError(f"the predictor gave {tuple(output.shape)}, expected {expected}")
        yield output
        del output
        if progress is not None:
            progress(first + len(chunk), len(corners))


def _batch(batch: int | None, device: torch.device, on_cpu: int, on_gpu: int) -> int:
    if batch is None:
        batch = on_cpu if device.type == "cpu" else on_gpu
    if _checks.integer(batch, "batch") < 1:
        raise ValueError(f"batch must be at least 1, got {batch}")
    return batch


def _planes_at_once(num_classes: int, rows: int, columns: int) -> int:
    """How many planes of probabilities fill 64 MB, one at least."""
    return max(1, 2**24 // max(1, num_classes * rows * columns))


def _covering(starts: Sequence[int], extent: int, size: int) -> Tensor:
    """How many windows lie over each place along an axis, float32."""
    number = torch.zeros(size)
    for start in starts:
        number[start : start + extent] += 1
    return number


def slice_by_slice(
    predictor: Predictor,
    volume: np.ndarray | Tensor,
    patch: Sequence[int],
    num_classes: int,
    *,
    batch: int | None = None,
    device: torch.device | str = "cpu",
    precision: str = "fp32",
    progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Class probabilities of a volume from a network of slices, each resized to the patch and its
    probabilities back.

    Both times by nearest neighbour, corner to corner, as ``scipy.ndimage.zoom`` with order 0. Where
    the field resizes labels back, argmax gives the same ones here, for it commutes with taking the
    nearest.

    Args:
        predictor: ``(B, 1, *patch)`` float32, channels last, to ``(B, C, *patch)`` probabilities.
        volume: ``(X, Y, slices)``, read as float32.
        patch: extents of the slices that the network takes.
        num_classes: C.
        batch: slices per forward pass; memory grows with it, the result does not depend on it.
            None: 16 on a GPU, and 4 on the CPU.
        device, precision, progress: as :func:`sliding_window`, of slices.

    Returns:
        ``(C, X, Y, slices)`` float32 on ``device``.

    Raises:
        TypeError: a volume of other than bools, integers or floats, or extents that are no
            integers.
        ValueError: wrong shape of volume, patch or predictor's output, batch or precision.
        UserError: the predictor's output is not finite.
    """
    slabs = slice_slabs(
        predictor,
        volume,
        patch,
        num_classes,
        batch=batch,
        device=device,
        precision=precision,
        progress=progress,
    )
    prob, done = None, 0
    for slab in slabs:
        if prob is None:
            prob = slab.new_empty((num_classes, volume.shape[2], *slab.shape[2:]))
        prob[:, done : done + slab.shape[1]] = slab
        done += slab.shape[1]
    return prob.permute(0, 2, 3, 1)


@torch.no_grad()
def slice_slabs(
    predictor: Predictor,
    volume: np.ndarray | Tensor,
    patch: Sequence[int],
    num_classes: int,
    *,
    batch: int | None = None,
    device: torch.device | str = "cpu",
    precision: str = "fp32",
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[Tensor]:
    """:func:`slice_by_slice`, a batch of slices at a time: ``(C, n, X, Y)`` float32 on ``device``,
    in order.
    """
    device, patch = torch.device(device), tuple(_checks.integers(patch, "patch"))
    if len(patch) != 2:
        raise ValueError(f"patch must have 2 axes, got {patch}")
    batch = _batch(batch, device, 4, 16)
    slices = _checks.real(volume, "a volume").to(torch.float32)
    if slices.ndim != 3 or not slices.numel():
        raise ValueError(f"volume must be (X, Y, slices), got {tuple(slices.shape)}")
    slices = slices.permute(2, 0, 1)
    for first in range(0, len(slices), batch):
        x = _resize(slices[first : first + batch].to(device), patch)[:, None]
        with autocast(device, precision):
            output = predictor(x.contiguous(memory_format=channels_last(2)))
        if output.shape != (len(x), num_classes, *patch):
            expected = (len(x), num_classes, *patch)
            raise ValueError(f"the predictor gave {tuple(output.shape)}, expected {expected}")
        prob = _resize(output.float(), slices.shape[1:]).transpose(0, 1)
        _check_finite(prob)
        yield prob
        if progress is not None:
            progress(first + len(x), len(slices))


def whole_image(
    predictor: Predictor,
    image: np.ndarray | Tensor,
    patch: Sequence[int],
    stride: Sequence[int] | None,
    num_classes: int,
    **options,
) -> Tensor:
    """Class probabilities ``(C, *S)`` of a whole image ``(*S)``, as the patch's axes say:
    :func:`sliding_window` of a predictor of probabilities, or :func:`slice_by_slice`, of a volume
    or of one slice, which needs no stride.
    """
    if len(patch) == 3:
        return sliding_window(
            predictor, image, patch, stride, num_classes, activation=None, **options
        )
    if image.ndim == 2:
        return slice_by_slice(predictor, image[..., None], patch, num_classes, **options)[..., 0]
    return slice_by_slice(predictor, image, patch, num_classes, **options)


def interpolate_slabs(slabs: Iterable[Tensor], places: Sequence[np.ndarray]) -> Iterator[Tensor]:
    """Linear interpolation of a volume that comes a few planes at a time, on a grid along the same
    axes.

    Which planes come together makes no difference to a bit, and where all places are the voxels
    themselves they come out as they went in.

    Args:
        slabs: ``(C, n, Y, Z)``, the planes of a volume ``(C, X, Y, Z)`` in order.
        places: where the grid's planes, rows and columns lie along X, Y and Z, in voxels of the
            volume, ascending and from 0 to its last.

    Yields:
        ``(C, m, Y', Z')``, planes of the grid in order.
    """
    below = [np.floor(along).astype(np.int64) for along in places]
    shares = [along - low for along, low in zip(places, below, strict=True)]
    above = [low + (share > 0) for low, share in zip(below, shares, strict=True)]
    known, first, done = (
        None,
        0,
        0,
    )  # planes that are at hand, the first one's number, and how many have been given
    for slab in slabs:
        known = torch.cat((known, slab), 1) if known is not None and known.shape[1] else slab
        most = _planes_at_once(slab.shape[0], len(places[1]), len(places[2]))
        ready = int(np.searchsorted(above[0], first + known.shape[1]))
        while done < ready:
            end = min(ready, done + most)
            out = _between(
                known,
                1,
                below[0][done:end] - first,
                above[0][done:end] - first,
                shares[0][done:end],
            )
            for axis in (1, 2):
                out = _between(out, axis + 1, below[axis], above[axis], shares[axis])
            yield out
            done = end
        past = (
            min(int(below[0][done]) - first, known.shape[1])
            if done < len(places[0])
            else known.shape[1]
        )
        known, first = known[:, past:], first + past


def _between(
    volume: Tensor, axis: int, below: np.ndarray, above: np.ndarray, share: np.ndarray
) -> Tensor:
    """``volume`` between two indices each along an axis."""

    def at(indices):
        if len(indices) and (indices == np.arange(indices[0], indices[0] + len(indices))).all():
            return volume.narrow(axis, int(indices[0]), len(indices))
        return volume.index_select(axis, torch.from_numpy(indices).to(volume.device))

    if not share.any():
        return at(below)
    share = torch.from_numpy(share.astype(np.float32)).to(volume.device)
    low = at(
        below
    )  # torch.lerp would round otherwise here and there, as its vectors happen to fall
    return low + (at(above) - low) * share.reshape([-1] + [1] * (volume.ndim - axis - 1))


def _resize(images: Tensor, size: Sequence[int]) -> Tensor:
    """The last two axes to ``size`` by nearest neighbour, the corners' centres kept, halves rounded
    up.

    What scipy computes, but where it rounds the last place to beyond the edge and writes 0 there.
    """
    for axis, new in zip((-2, -1), size, strict=True):
        old = images.shape[axis]
        step = (old - 1) / (new - 1) if new > 1 else 0.0
        nearest = (
            (torch.arange(new, dtype=torch.float64) * step + 0.5).floor().long().clamp_(max=old - 1)
        )
        images = images.index_select(axis, nearest.to(images.device))
    return images


def _check_finite(prob: Tensor) -> None:
    low, high = prob.aminmax()  # NaN passes through; a sum of large values may overflow
    if not math.isfinite(low) or not math.isfinite(high):
        raise UserError(
            "the network's output is not finite: its weights diverged, or the image holds NaN or "
            "infinity"
        )


def gaussian_weights(patch: Sequence[int], sigma_scale: float = 1 / 8) -> Tensor:
    """Weights for :func:`sliding_window` that trust a window's centre most: a Gaussian of
    ``sigma_scale`` times the patch along each axis, 1 at the centre (between two voxels where an
    extent is even) and nowhere below a thousandth.

    MONAI's ``compute_importance_map(patch, "gaussian")``, to its rounding; nnU-Net's map is this
    one without the floor.

    Returns:
        ``patch`` float32 on the CPU.

    Raises:
        TypeError: extents that are no integers.
        ValueError: an extent below 1, or a scale that is not positive.
    """
    patch = _checks.integers(patch, "patch")
    if min(patch, default=0) < 1:
        raise ValueError(f"expected extents of at least 1, got {tuple(patch)}")
    if not sigma_scale > 0:
        raise ValueError(f"sigma_scale must be positive, got {sigma_scale}")
    weights = torch.ones((), dtype=torch.float64)
    for extent in patch:
        distance = torch.arange(extent, dtype=torch.float64) - (extent - 1) / 2
        weights = weights[..., None] * torch.exp(-0.5 * (distance / (sigma_scale * extent)) ** 2)
    return weights.clamp_min_(1e-3).float()


def mean_probability(networks: Sequence[nn.Module]) -> Predictor:
    """A predictor of probabilities, as :func:`slice_by_slice` takes it, and :func:`sliding_window`
    with ``activation=None``: the mean of the networks' softmax outputs.

    Each network offers ``segment(x)``, ``(B, 1, *S)`` to logits ``(B, C, *S)`` of the head that is
    tested.
    """
    if not networks:
        raise ValueError("mean_probability needs at least one network")

    def predict(x: Tensor) -> Tensor:
        prob = torch.softmax(networks[0].segment(x).float(), 1)
        for network in networks[1:]:
            prob += torch.softmax(network.segment(x).float(), 1)
        return prob.div_(len(networks))

    return predict


def usual_stride(
    protocol: Sequence[int] | None, patch: Sequence[int], downsample: int = 1
) -> list[int] | None:
    """Steps of a window on the network's grid: the data set's protocol's, or half the patch where
    it has none; None for slices."""
    if len(patch) == 2:
        return None
    if protocol is None:
        return [max(1, extent // 2) for extent in patch]
    return [
        min(max(1, step // downsample), extent)
        for step, extent in zip(protocol, patch, strict=True)
    ]


def check_stride(stride: Sequence[int], patch: Sequence[int]) -> None:
    """Raise `UserError` where windows would not touch."""
    if any(step > extent for step, extent in zip(stride, patch, strict=True)):
        wide, extents = (" ".join(map(str, numbers)) for numbers in (stride, patch))
        raise UserError(f"--stride {wide} leaves gaps between windows of {extents}")
