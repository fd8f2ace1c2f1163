"""Class probabilities of a whole volume: from a sliding window, or slice by slice.

Windows, padding, averaging and the resizing of slices are those of the field's research code
(UA-MT, DTC, MC-Net and every method compared with them), so that numbers can be compared with the
published tables. Tests hold them equal to those loops written out, one window or slice at a time.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from utils.device import autocast, channels_last
from utils.errors import UserError
from utils.ops import WindowStitcher, _checks, largest_component, window_starts

Predictor = Callable[[Tensor], Tensor]


def mean_probability(networks: Sequence[nn.Module]) -> Predictor:
    """A predictor of probabilities: the mean of the networks' softmax outputs.

    `slice_by_slice` takes it as it is, and `sliding_window` with `activation=None`. Each network
    offers `segment(x)`, `(B, 1, *S)` to logits `(B, C, *S)` of the head that is tested.

    Raises:
        ValueError: no network is given.
    """
    if not networks:
        raise ValueError("mean_probability needs at least one network")

    def predict(x: Tensor) -> Tensor:
        prob = torch.softmax(networks[0].segment(x).float(), 1)
        for network in networks[1:]:
            prob += torch.softmax(network.segment(x).float(), 1)
        return prob.div_(len(networks))

    return predict


def whole_image(
    predictor: Predictor,
    image: np.ndarray | Tensor,
    patch: Sequence[int],
    stride: Sequence[int] | None,
    num_classes: int,
    **options,
) -> Tensor:
    """Class probabilities `(C, *S)` of a whole image `(*S)`, from a predictor of probabilities.

    A patch of three axes is predicted by `sliding_window`, a patch of two by `slice_by_slice`,
    which needs no stride; the image is a volume or, in 2-D, one slice.
    """
    if len(patch) == 3:
        return sliding_window(
            predictor, image, patch, stride, num_classes, activation=None, **options
        )
    if image.ndim == 2:
        return slice_by_slice(predictor, image[..., None], patch, num_classes, **options)[..., 0]
    return slice_by_slice(predictor, image, patch, num_classes, **options)


# ------------------------------------------------------------------ sliding window


def predicted_labels(prob: Tensor, keep_largest: bool, per_slice: bool) -> Tensor:
    """The labels uint8 `(X, Y, Z)` of class probabilities `(C, X, Y, Z)`.

    Args:
        prob: background first.
        keep_largest: whether only the largest component of each class stays.
        per_slice: whether each slice has components of its own, because slices are no neighbours in
            space.
    """
    classes = len(prob)
    labels = prob.argmax(0).to(torch.uint8)
    if keep_largest and per_slice:
        return largest_component(labels.permute(2, 0, 1), classes).permute(1, 2, 0)
    if keep_largest:
        return largest_component(labels[None], classes)[0]
    return labels


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

    An image smaller than the patch is padded with zeros, `(P - S) // 2` in front and the rest
    behind, and its probabilities are cropped back. The predictor runs without gradients and under
    autocast; activation and sum are float32. The caller sets its train or eval mode.

    Args:
        predictor: `(B, 1, *patch)` float32, channels last, to `(B, C, *patch)` logits (or
            probabilities), of any floating-point type. It must not keep its input, which the next
            windows overwrite.
        image: one, no batch: `(*S)` or `(1, *S)`, of 3 or 2 axes as the patch has; read as
            float32.
        patch, stride: voxels along each axis.
        num_classes: C.
        batch: windows per forward pass; memory grows with it, the result does not depend on it.
            None: 4 on a GPU, and 1 on the CPU, where a window fills the caches and all threads.
        activation: `softmax` or `sigmoid` for logits, None for a predictor that gives
            probabilities.
        weights: `(*patch)`, from 1e-30 to 1e30, how much each place of a window counts, such as
            `gaussian_weights`; None, the field's protocol: all places count the same.
        device: where the predictor lives; the volume is summed and returned there.
        precision: `fp32` or `bf16`, as `utils.device.resolve_precision` gives it.
        progress: called with (windows done, windows in all) after each batch.

    Returns:
        `(C, *S)` float32 on `device`.

    Raises:
        TypeError: an image of other than bools, integers or floats, extents that are no integers,
            or a predictor that gives no tensor.
        ValueError: wrong image shape, activation, weights, batch, precision, or output shape of the
            predictor; or more than 768 window starts over all axes: take a larger stride.
        UserError: the predictor's output is not finite.
    """
    volume, patch, starts, crop = open_windows(image, patch, stride)
    device = torch.device(device)
    volume = volume.to(device)
    options = {"activation": activation, "weights": weights, "device": device}
    stitcher = WindowStitcher(volume.shape, patch, starts, num_classes, **options)
    for output in window_outputs(
        predictor, volume, patch, starts, num_classes, batch, device, precision, progress
    ):
        stitcher.add(output)
        del output
    prob = stitcher.result()
    check_finite(prob)
    return prob[(slice(None), *crop)]


def open_windows(
    image: np.ndarray | Tensor, patch: Sequence[int], stride: Sequence[int]
) -> tuple[Tensor, tuple[int, ...], list[list[int]], list[slice]]:
    """The image as float32, padded to the patch where it is smaller; the patch; the windows' starts
    along each axis; and where the image lies in the padded one.

    Arguments and errors are those of `sliding_window`.
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
def window_outputs(
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
    """The predictor's outputs of all windows, in C order of the grid, a batch `(B, C, *patch)` at a
    time.

    The arguments are those of `sliding_window`, and the volume, patch and starts that
    `open_windows` gives.
    """
    batch = _batch(batch, device, 1, 4)
    corners = list(itertools.product(*starts))
    # One input for all windows: a fresh tensor for each costs more in page faults than its sum
    # does. For the same reason no name holds an output while the next is made, here or in the
    # caller: the next then takes the same memory.
    shape = (min(batch, len(corners)), 1, *patch)
    x = torch.empty(shape, device=device).to(memory_format=channels_last(len(patch)))
    for first in range(0, len(corners), batch):
        chunk = corners[first : first + batch]
        for i, corner in enumerate(chunk):
            window = tuple(slice(a, a + p) for a, p in zip(corner, patch, strict=True))
            x[i, 0].copy_(volume[window])
        with autocast(device, precision):
            output = predictor(x[: len(chunk)])
        if not isinstance(output, Tensor):
            kind = type(output).__name__
            raise TypeError(f"the predictor gave a {kind}, expected one tensor of logits")
        expected = (len(chunk), num_classes, *patch)
        if output.shape != expected:
            raise ValueError(f"the predictor gave {tuple(output.shape)}, expected {expected}")
        yield output
        del output
        if progress is not None:
            progress(first + len(chunk), len(corners))


def gaussian_weights(patch: Sequence[int], sigma_scale: float = 1 / 8) -> Tensor:
    """Weights for `sliding_window` that trust a window's centre most: a Gaussian with a sigma of
    `sigma_scale` times the patch along each axis, 1 at the centre (between two voxels where an
    extent is even) and nowhere below a thousandth.

    They equal MONAI's `compute_importance_map(patch, "gaussian")` up to rounding; nnU-Net's map is
    this one without the floor.

    Returns:
        `patch` float32 on the CPU.

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


def usual_stride(
    protocol: Sequence[int] | None, patch: Sequence[int], downsample: int = 1
) -> list[int] | None:
    """The steps of a window on the network's grid, None for slices.

    They are the data set's (`protocol`), divided by `downsample`, or half the patch where the data
    set has none.
    """
    if len(patch) == 2:
        return None
    if protocol is None:
        return [max(1, extent // 2) for extent in patch]
    return [
        min(max(1, step // downsample), extent)
        for step, extent in zip(protocol, patch, strict=True)
    ]


def check_stride(stride: Sequence[int], patch: Sequence[int], option: str = "--stride") -> None:
    """Check the stride that an option gives.

    Raises:
        UserError: windows would not touch.
    """
    if any(step > extent for step, extent in zip(stride, patch, strict=True)):
        wide = " ".join(map(str, stride))
        extents = " ".join(map(str, patch))
        raise UserError(f"{option} {wide} leaves gaps between windows of {extents}")


# ------------------------------------------------------------------ slice by slice


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
    """Class probabilities of a volume from a network of slices: each slice is resized to the patch
    and its probabilities are resized back.

    Both use the nearest neighbour, corner to corner, as `scipy.ndimage.zoom` with order 0. The
    field resizes labels back; the argmax of these probabilities gives the same labels, because it
    commutes with taking the nearest neighbour.

    Args:
        predictor: `(B, 1, *patch)` float32, channels last, to `(B, C, *patch)` probabilities.
        volume: `(X, Y, slices)`, read as float32.
        patch: extents of the slices that the network takes.
        num_classes: C.
        batch: slices per forward pass; memory grows with it, the result does not depend on it.
            None: 16 on a GPU, and 4 on the CPU.
        device, precision, progress: as `sliding_window` takes them; progress counts slices.

    Returns:
        `(C, X, Y, slices)` float32 on `device`.

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
    prob = None
    done = 0
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
    """`slice_by_slice`, a batch of slices at a time: `(C, n, X, Y)` float32 on `device`, in
    order.
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
        expected = (len(x), num_classes, *patch)
        if output.shape != expected:
            raise ValueError(f"the predictor gave {tuple(output.shape)}, expected {expected}")
        prob = _resize(output.float(), slices.shape[1:]).transpose(0, 1)
        check_finite(prob)
        yield prob
        if progress is not None:
            progress(first + len(x), len(slices))


def _resize(images: Tensor, size: Sequence[int]) -> Tensor:
    """The last two axes resized to `size` by nearest neighbour: the corners' centres stay in place,
    and halves are rounded up.

    This is scipy's result, except where scipy rounds the last place to beyond the edge and writes
    0 there.
    """
    for axis, new in zip((-2, -1), size, strict=True):
        old = images.shape[axis]
        step = (old - 1) / (new - 1) if new > 1 else 0.0
        places = torch.arange(new, dtype=torch.float64) * step
        nearest = (places + 0.5).floor().long().clamp_(max=old - 1)
        images = images.index_select(axis, nearest.to(images.device))
    return images


# ------------------------------------------------------------------ of both


def _batch(batch: int | None, device: torch.device, on_cpu: int, on_gpu: int) -> int:
    """The batch asked for, or else the usual one of the device."""
    if batch is None:
        batch = on_cpu if device.type == "cpu" else on_gpu
    if _checks.integer(batch, "batch") < 1:
        raise ValueError(f"batch must be at least 1, got {batch}")
    return batch


def check_finite(prob: Tensor) -> None:
    """Check a network's output.

    Raises:
        UserError: a value is not finite.
    """
    low, high = prob.aminmax()  # NaN passes through; a sum of large values may overflow
    if not math.isfinite(low) or not math.isfinite(high):
        raise UserError(
            "the network's output is not finite: its weights diverged, or the image holds NaN or "
            "infinity"
        )
