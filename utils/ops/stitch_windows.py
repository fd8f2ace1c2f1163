"""Stitches sliding windows into one volume: activation and weighted mean, without copies."""

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from utils.ops import _checks, _library

MAX_STARTS = 768  # WindowGrid::kMaxStarts in csrc/core/stitch_windows.h
_LEAST, _MOST = 1e-30, 1e30  # weights whose sums and quotients are numbers in float32


def window_starts(
    shape: Sequence[int], patch: Sequence[int], stride: Sequence[int]
) -> list[list[int]]:
    """The first voxel of every window along each axis. The last window ends at the volume's edge.

    An axis of S voxels has `ceil((S - P) / stride) + 1` windows of P voxels. They begin at
    `min(i * stride, S - P)`.

    Raises:
        TypeError: not integers.
        ValueError: the lengths differ, a patch or stride is below 1, a patch is larger than the
            volume (pad it first), or a stride is larger than the patch, which leaves holes.
    """
    shape, patch = _checks.integers(shape, "shape"), _checks.integers(patch, "patch")
    stride = _checks.integers(stride, "stride")
    if not len(shape) == len(patch) == len(stride):
        raise ValueError(
            f"shape {tuple(shape)}, patch {tuple(patch)} and stride {tuple(stride)} differ in "
            "length"
        )
    starts = []
    for axis, (size, extent, step) in enumerate(zip(shape, patch, stride, strict=True)):
        if extent < 1 or step < 1 or extent > size:
            raise ValueError(
                f"axis {axis}: need 1 <= patch <= size and stride >= 1, got {extent}, {size}, "
                f"{step}"
            )
        if step > extent:
            raise ValueError(
                f"axis {axis}: stride {step} leaves holes between windows of patch {extent}"
            )
        last = size - extent
        starts.append([min(step * i, last) for i in range(math.ceil(last / step) + 1)])
    return starts


class WindowStitcher:
    """Probabilities of one volume from the windows of a grid, a few windows at a time.

    The result has the same bits as that of `stitch_windows`, however the windows are split. Memory
    holds only the result and the windows of one call.

        stitcher = WindowStitcher(shape, patch, window_starts(shape, patch, stride), num_classes)
        for x in batches_of_windows:  # in C order of the grid
            stitcher.add(network(x))
        prob = stitcher.result()

    Args:
        shape: the volume, `(X, Y, Z)` or `(X, Y)`, fewer than 2^31 voxels.
        patch: the extents of a window, in voxels.
        starts: the first voxels of the windows along each axis, as from `window_starts`: ascending,
            without holes, and at most 768 over all axes.
        num_classes: C, at least 1.
        activation: from logits to probabilities: `"softmax"` over the classes, `"sigmoid"`, or
            None.
        weights: the weight of each place in a window: a floating-point tensor of shape `patch`,
            read as float32, with values from 1e-30 to 1e30; None for equal weights. Values are
            checked only on the CPU and outside of `torch.compile`: the check would wait for a GPU,
            and break the capture of a CUDA graph or a compiled graph.
        device: the device of the logits.

    Attributes:
        patch: the extents of a window, a tuple.
        windows: the number of windows of the grid.
        done: the number of windows added so far.

    Raises:
        ValueError: wrong starts, no class, an unknown activation, or weights of another shape or
            out of range.
        TypeError: extents, starts or classes that are no integers, or weights that are no
            floating-point tensor.
    """

    def __init__(
        self,
        shape: Sequence[int],
        patch: Sequence[int],
        starts: Sequence[Sequence[int]],
        num_classes: int,
        *,
        activation: str | None = "softmax",
        weights: Tensor | None = None,
        device: torch.device | str = "cpu",
    ):
        shape, self.patch, self._grid = _checked_grid(shape, patch, starts)
        num_classes = _checks.integer(num_classes, "the number of classes")
        if num_classes < 1:
            raise ValueError(f"expected at least 1 class, got {num_classes}")
        self._activation = _checked_activation(activation)
        self._weights = _checked_weights(weights, self.patch, device)
        self._total = torch.zeros((num_classes, *shape), device=device)
        self._num_classes, self._device = num_classes, self._total.device
        self.windows = math.prod(self._grid[1])
        self.done = 0

    def add(self, logits: Tensor) -> None:
        """Adds the next windows in C order of the grid.

        Args:
            logits: `(n, C, *patch)` of any floating-point type and any strides, read as float32.
                No gradient.

        Raises:
            TypeError: not a floating-point tensor.
            ValueError: another shape or device, more windows than are left, or a call after
                `result`.
        """
        _check_logits(logits)
        self._check_open()
        expected, device = (self._num_classes, *self.patch), self._device
        if logits.shape[1:] != expected or logits.device != device:
            got = f"{tuple(logits.shape)} on {logits.device}"
            raise ValueError(
                f"expected logits (n, {', '.join(map(str, expected))}) on {device}, got {got}"
            )
        if len(logits) > self.windows - self.done:
            raise ValueError(
                f"got {len(logits)} windows where {self.windows - self.done} of {self.windows} are "
                "left"
            )
        _add(self._total, logits.detach(), self._weights, *self._grid, self.done, self._activation)
        self.done += len(logits)

    def result(self) -> Tensor:
        """The probabilities, `(C, *shape)` float32. Call it once, after the last window.

        Raises:
            ValueError: windows are missing, or this is the second call.
        """
        self._check_open()
        if self.done < self.windows:
            raise ValueError(f"windows are missing: {self.done} of {self.windows} are there")
        total, self._total = self._total, None
        _divide(total, self._weights, self.patch, *self._grid)
        return total

    def _check_open(self) -> None:
        if self._total is None:
            raise ValueError(
                "a WindowStitcher returns its result once; make another one for another volume"
            )


def stitch_windows(
    logits: Tensor,
    starts: Sequence[Sequence[int]],
    shape: Sequence[int],
    activation: str | None = "softmax",
    weights: Tensor | None = None,
) -> Tensor:
    """Probabilities of one volume: the weighted mean over the windows that cover a voxel.

    This is the field's sliding-window inference, with equal weights (UA-MT, DTC, MC-Net) or with
    Gaussian weights (nnU-Net, MONAI). A voxel visits its windows in the grid's order, so the result
    does not depend on the number of threads.

    Args:
        logits: `(N, C, *P)`, the windows of one volume in C order of the grid, with 2 or 3 axes P;
            any floating-point type, read as float32 (float64 too), and any strides, including
            channels-last.
        starts: the first voxels along each axis, see `WindowStitcher`. N is the product of their
            numbers.
        shape: the volume's extents.
        activation, weights: see `WindowStitcher`.

    Returns:
        `(C, *shape)` float32 on the logits' device, no gradient. Softmax and sigmoid treat
        infinite logits and NaN as torch does.

    Raises:
        TypeError, ValueError: as in `WindowStitcher`, or another number of windows than the grid
            has.
    """
    _check_logits(logits)
    options = {"activation": activation, "weights": weights, "device": logits.device}
    stitcher = WindowStitcher(shape, logits.shape[2:], starts, logits.shape[1], **options)
    if logits.shape[0] != stitcher.windows:
        raise ValueError(f"got {logits.shape[0]} windows for a grid of {stitcher.windows}")
    stitcher.add(logits)
    return stitcher.result()


def stitch_windows_reference(
    logits: Tensor,
    starts: Sequence[Sequence[int]],
    shape: Sequence[int],
    activation: str | None = "softmax",
    weights: Tensor | None = None,
) -> Tensor:
    """`stitch_windows` by its definition, one window at a time, in float64 on the CPU."""
    shape, patch, grid = _checked_grid(shape, logits.shape[2:], starts)
    total = torch.zeros((logits.shape[1], *shape), dtype=torch.float64)
    weights = None if weights is None else weights.cpu().double()
    _reference_add(total, logits.cpu().double(), weights, *grid, 0, _checked_activation(activation))
    _reference_divide(total, weights, patch, *grid)
    return total


def _check_logits(logits: Tensor) -> None:
    _checks.floating(logits, "logits")
    if logits.ndim not in (4, 5):
        raise ValueError(
            f"expected logits (N, C, X, Y) or (N, C, X, Y, Z), got {tuple(logits.shape)}"
        )


def _checked_grid(
    shape: Sequence[int], patch: Sequence[int], starts: Sequence[Sequence[int]]
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[list[int], list[int]]]:
    """Shape, window, and the grid: the starts of all axes in one list, and their number by axis."""
    shape = tuple(_checks.integers(shape, "shape"))
    patch = tuple(_checks.integers(patch, "the window"))
    axes = _checks.sequence(starts, "starts, one list an axis")
    starts = [_checks.integers(along, "starts") for along in axes]
    if len(shape) not in (2, 3) or not len(shape) == len(patch) == len(starts):
        lengths = f"{len(shape)}, {len(patch)} and {len(starts)}"
        raise ValueError(f"expected shape, window and starts of 2 or 3 axes, got {lengths} axes")
    if math.prod(shape) >= 2**31:
        raise ValueError(f"expected a volume of fewer than 2^31 voxels, got {shape}")
    if sum(map(len, starts)) > MAX_STARTS:
        got = f"got {sum(map(len, starts))}: take a larger stride"
        raise ValueError(f"expected at most {MAX_STARTS} starts over all axes, {got}")
    for axis, (size, extent, along) in enumerate(zip(shape, patch, starts, strict=True)):
        if extent < 1 or not along or along[0] != 0 or along[-1] != size - extent:
            raise ValueError(
                f"axis {axis}: windows of {extent} at {along} do not reach from end to end of "
                f"{size} voxels"
            )
        if not all(0 < after - start <= extent for start, after in itertools.pairwise(along)):
            raise ValueError(
                f"axis {axis}: windows of {extent} at {along} leave holes or do not ascend"
            )
    in_one_list = [start for along in starts for start in along]
    return shape, patch, (in_one_list, [len(along) for along in starts])


def _checked_activation(activation: str | None) -> str:
    if activation not in ("softmax", "sigmoid", None):
        raise ValueError(f"activation {activation!r}: expected 'softmax', 'sigmoid' or None")
    return activation or "none"


def _checked_weights(
    weights: Tensor | None, patch: Sequence[int], device: torch.device | str
) -> Tensor | None:
    if weights is None:
        return None
    _checks.floating(weights, "weights")
    if tuple(weights.shape) != tuple(patch):
        raise ValueError(
            f"expected weights of the window's shape {tuple(patch)}, got {tuple(weights.shape)}"
        )
    weights = weights.detach().float()
    if weights.device.type == "cpu" and not torch.compiler.is_compiling():
        low, high = (value.item() for value in weights.aminmax())
        if not _LEAST <= low <= high <= _MOST:  # false for NaN
            raise ValueError(f"expected weights from {_LEAST:g} to {_MOST:g}, got {low} to {high}")
    return weights.to(device).contiguous()


def _windows(
    patch: Sequence[int], starts: Sequence[int], counts: Sequence[int]
) -> list[tuple[slice, ...]]:
    """Where the windows lie in the volume, in the grid's order."""
    given = iter(starts)
    axes = []
    for extent, count in zip(patch, counts, strict=True):
        along = itertools.islice(given, count)
        axes.append([slice(start, start + extent) for start in along])
    return list(itertools.product(*axes))


def _reference_add(total, logits, weights, starts, counts, first, activation):
    prob = logits.to(total.dtype)
    if activation == "softmax":
        prob = prob.softmax(1)
    elif activation == "sigmoid":
        prob = prob.sigmoid()
    if weights is not None:
        prob = prob * weights
    windows = _windows(logits.shape[2:], starts, counts)[first : first + len(logits)]
    for window, values in zip(windows, prob, strict=True):
        total[(slice(None), *window)] += values


def _reference_divide(total, weights, patch, starts, counts):
    cover = torch.zeros_like(total[0])
    for window in _windows(patch, starts, counts):
        cover[window] += 1 if weights is None else weights
    total /= cover


def _fake(*_) -> None:
    """Returns nothing: these two operators, unlike the others, write their result in place."""


_add = _library.register(
    "stitch_add(Tensor(a!) total, Tensor logits, Tensor? weights, int[] starts, int[] counts, "
    "int first, str activation) -> ()",
    _reference_add,
    _fake,
)
_divide = _library.register(
    "stitch_divide(Tensor(a!) total, Tensor? weights, int[] patch, int[] starts, int[] counts) "
    "-> ()",
    _reference_divide,
    _fake,
)
