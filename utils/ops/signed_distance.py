"""Exact Euclidean distance maps of masks, both sides in one pass."""

from collections.abc import Sequence

import numpy as np
import torch
from scipy import ndimage

from utils.ops import _checks, _library


def signed_distance(mask: torch.Tensor, spacing: Sequence[float] | None = None) -> torch.Tensor:
    """The exact signed Euclidean distance map of each mask: positive outside, negative inside.

    An outside voxel gets its distance to the nearest foreground voxel. An inside voxel gets minus
    its distance to the nearest background voxel. Distances are between voxel centres, so no
    absolute value is below the smallest spacing. The edge of the volume is no boundary. Items of a
    batch are independent.

    Args:
        mask: a batch, `(B, X, Y)` or `(B, X, Y, Z)`, bool or any integer type; nonzero is
            foreground. Made contiguous if it is not. Pass one volume as `mask[None]`, because
            `(X, Y, Z)` is read as X images.
        spacing: the size of a voxel along each axis, in any unit; 1 if not given.

    Returns:
        float32 of the mask's shape, in the unit of `spacing`, no gradient. An empty mask gives
        `+inf` everywhere and a full one `-inf`, because there is nothing to measure to.

    Raises:
        TypeError: the mask is not a bool or integer tensor, or the spacing is a single number.
        ValueError: the mask has other than 3 or 4 axes or a diagonal of 2^15 voxels or more, or the
            spacing is not one positive finite number an axis.

    With equal spacing along all axes squared distances are int32 and hence exact; otherwise they
    are float32. The method is the lower envelope of parabolas (Felzenszwalb and Huttenlocher,
    Theory of Computing 8, 2012) over signed squared distances.
    """
    return _operator(mask, _checked(mask, spacing), False)


def normalized_sdm(mask: torch.Tensor, spacing: Sequence[float] | None = None) -> torch.Tensor:
    """The normalized signed distance map that networks regress, in [-1, 1].

    Each side is divided by its largest distance; then the inner boundary is set to 0. The inner
    boundary is every foreground voxel that shares a face with a background voxel, for any spacing.
    With equal spacing these are exactly the voxels whose inside distance is one step. A row
    `1110000` becomes `-1 -.667 0 .25 .5 .75 1`.

    This is `compute_sdf` of Luo et al., DTC (AAAI 2021), after Xue et al. (AAAI 2020): SciPy's
    distance transforms, each divided by its maximum, and 0 on the boundary that skimage's
    `find_boundaries(mode="inner")` marks. That code gives 0 for an empty mask and NaN for a full
    one.

    Args:
        mask: as in `signed_distance`.
        spacing: as in `signed_distance`.

    Returns:
        float32 of the mask's shape, no gradient. An empty mask gives 0 everywhere, a full one -1
        everywhere.

    Raises:
        TypeError, ValueError: as in `signed_distance`.
    """
    return _operator(mask, _checked(mask, spacing), True)


def signed_distance_reference(
    mask: torch.Tensor, spacing: Sequence[float] | None = None
) -> torch.Tensor:
    """`signed_distance` by its definition, with SciPy, in float64 on the CPU."""
    spacing = _checked(mask, spacing)
    maps = [_distances(item, spacing) for item in mask.cpu().numpy() != 0]
    return _stack([outside - inside for inside, outside in maps], mask)


def normalized_sdm_reference(
    mask: torch.Tensor, spacing: Sequence[float] | None = None
) -> torch.Tensor:
    """`normalized_sdm` by its definition, with SciPy, in float64 on the CPU."""
    spacing = _checked(mask, spacing)
    return _stack([_normalized(item, spacing) for item in mask.cpu().numpy() != 0], mask)


def _distances(foreground: np.ndarray, spacing: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Distances inside (0 outside) and outside (0 inside); infinite if there is only one label."""
    if foreground.all() or not foreground.any():
        return np.where(foreground, np.inf, 0.0), np.where(foreground, 0.0, np.inf)
    return tuple(
        ndimage.distance_transform_edt(side, sampling=spacing) for side in (foreground, ~foreground)
    )


def _normalized(foreground: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
    if foreground.all() or not foreground.any():
        return -foreground.astype(np.float64)
    inside, outside = _distances(foreground, spacing)
    sdm = outside / outside.max() - inside / inside.max()
    sdm[foreground & ~ndimage.binary_erosion(foreground, border_value=1)] = 0
    return sdm


def _stack(maps: list[np.ndarray], mask: torch.Tensor) -> torch.Tensor:
    return (
        torch.from_numpy(np.stack(maps)) if maps else torch.empty(mask.shape, dtype=torch.float64)
    )


def _checked(mask: torch.Tensor, spacing: Sequence[float] | None) -> list[float]:
    """The spacing, one number an axis, after all checks."""
    _checks.integral(mask, "a mask")
    if mask.ndim not in (3, 4):
        raise ValueError(f"expected a mask (B, X, Y) or (B, X, Y, Z), got {tuple(mask.shape)}")
    if sum(extent**2 for extent in mask.shape[1:]) >= 2**30:
        raise ValueError(
            f"expected a mask with a diagonal under 2^15 voxels, got {tuple(mask.shape)}"
        )
    return _checks.voxel_size(spacing, mask.ndim - 1)


def _reference(mask: torch.Tensor, spacing: Sequence[float], normalized: bool) -> torch.Tensor:
    reference = normalized_sdm_reference if normalized else signed_distance_reference
    return reference(mask, spacing).to(mask.device, torch.float32)


def _fake(mask: torch.Tensor, spacing: Sequence[float], normalized: bool) -> torch.Tensor:
    return mask.new_empty(mask.shape, dtype=torch.float32)


_operator = _library.register(
    "signed_distance(Tensor mask, float[] spacing, bool normalized) -> Tensor", _reference, _fake
)
