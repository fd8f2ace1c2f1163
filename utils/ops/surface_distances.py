"""Distances between the surfaces of two masks, for Hausdorff and mean surface distances."""

from collections.abc import Sequence

import numpy as np
import torch
from scipy import ndimage

from utils.ops import _checks, _library


def surface_distances(
    pred: torch.Tensor, target: torch.Tensor, spacing: Sequence[float] | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The exact Euclidean distances between the surface voxels of two masks, in both directions.

    The surface of a mask is every foreground voxel that shares a face (2-D: an edge) with a
    background voxel. Everything outside of the volume is background. Distances are between voxel
    centres.

    Args:
        pred, target: one pair, no batch: `(X, Y, Z)` or `(X, Y)`, of one shape and on one device,
            bool or any integer type; nonzero is foreground. Made contiguous if they are not.
        spacing: the size of a voxel along each axis, in any unit; 1 if not given.

    Returns:
        there: float64 vector in the unit of `spacing`: for each surface voxel of `pred`, in scan
            order (last axis fastest), the distance to the nearest surface voxel of `target`.
        back: the same from `target` to `pred`.

        No gradients. If one mask is empty, its vector is empty and the other vector is `+inf`
        everywhere.

    Raises:
        TypeError: a mask is not a bool or integer tensor, or the spacing is a single number.
        ValueError: the masks differ in shape or device, have other than 2 or 3 axes or 2^31 - 64
            voxels or more, or the spacing is not one positive finite number an axis.

    With equal spacing along all axes squared distances are int64 and hence exact; otherwise they
    are float64. Surfaces and distances agree with `medpy.metric.binary` (`__surface_distances` with
    connectivity 1). The sizes of the result depend on the values, so the call waits for a GPU once,
    as `torch.nonzero` does. Scratch memory is half a byte a voxel, and more if the last axis is
    much shorter than a word of 64 voxels.
    """
    return _operator(pred, target, _checked(pred, target, spacing))[:2]


def surface_distances_and_overlap(
    pred: torch.Tensor, target: torch.Tensor, spacing: Sequence[float] | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """`surface_distances` and the sizes of the masks, from the same pass.

    Returns:
        there, back: as from `surface_distances`.
        voxels: int64 `(3,)`: the number of voxels of `pred`, of `target` and of their
            intersection.
    """
    return _operator(pred, target, _checked(pred, target, spacing))


def surface_distances_reference(
    pred: torch.Tensor, target: torch.Tensor, spacing: Sequence[float] | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """`surface_distances` by its definition, with SciPy, on the CPU."""
    spacing = _checked(pred, target, spacing)
    pred, target = (_surface(mask.cpu().numpy() != 0) for mask in (pred, target))
    return _directed(pred, target, spacing), _directed(target, pred, spacing)


def _surface(mask: np.ndarray) -> np.ndarray:
    return mask ^ ndimage.binary_erosion(mask) if mask.size else mask


def _directed(surface: np.ndarray, other: np.ndarray, spacing: Sequence[float]) -> torch.Tensor:
    if not other.any():
        return torch.full((np.count_nonzero(surface),), torch.inf, dtype=torch.float64)
    return torch.from_numpy(ndimage.distance_transform_edt(~other, sampling=spacing)[surface])


def _checked(
    pred: torch.Tensor, target: torch.Tensor, spacing: Sequence[float] | None
) -> list[float]:
    """The spacing, one number an axis, after all checks."""
    for mask in (pred, target):
        _checks.integral(mask, "masks")
    if pred.shape != target.shape:
        raise ValueError(
            f"expected masks of one shape, got {tuple(pred.shape)} and {tuple(target.shape)}"
        )
    if pred.device != target.device:
        raise ValueError(f"expected masks on one device, got {pred.device} and {target.device}")
    if pred.ndim not in (2, 3):
        raise ValueError(f"expected masks (X, Y) or (X, Y, Z), got {tuple(pred.shape)}")
    if pred.numel() >= 2**31 - 64:
        raise ValueError(f"expected masks under 2^31 - 64 voxels, got {tuple(pred.shape)}")
    return _checks.voxel_size(spacing, pred.ndim)


def _reference(
    pred: torch.Tensor, target: torch.Tensor, spacing: Sequence[float]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    there, back = surface_distances_reference(pred, target, spacing)
    voxels = torch.stack(
        [torch.count_nonzero(mask) for mask in (pred, target, (pred != 0) & (target != 0))]
    )
    return there.to(pred.device), back.to(pred.device), voxels


def _fake(
    pred: torch.Tensor, target: torch.Tensor, spacing: Sequence[float]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    there = pred.new_empty(torch.library.get_ctx().new_dynamic_size(), dtype=torch.float64)
    back = pred.new_empty(torch.library.get_ctx().new_dynamic_size(), dtype=torch.float64)
    return there, back, pred.new_empty(3, dtype=torch.int64)


_operator = _library.register(
    "surface_distances(Tensor pred, Tensor target, float[] spacing) -> (Tensor, Tensor, Tensor)",
    _reference,
    _fake,
)
