"""Checks of arguments that several operators share."""

import math
import operator
from collections.abc import Sequence

import numpy as np
import torch

# Their squares times the longest squared diagonal are still finite, nonzero numbers in float32.
_FINEST = 1e-12
_COARSEST = 1e12


def integer(value: object, what: str) -> int:
    """The value as an int. Unlike `int()`, this accepts no fraction, no text and no bool.

    Raises:
        TypeError: it is no integer.
    """
    if type(value) is int:
        return value
    try:
        if isinstance(value, bool):
            raise TypeError
        return operator.index(value)
    except TypeError:
        raise TypeError(f"expected an integer as {what}, got {value!r}") from None


def sequence(values: object, what: str) -> list:
    """The values in a list.

    Raises:
        TypeError: the value is not iterable, for example a single number or None.
    """
    try:
        return list(values)
    except TypeError:
        raise TypeError(f"expected a sequence of {what}, got {values!r}") from None


def integers(values: object, what: str) -> list[int]:
    """The integers of any sequence, including an array or a tensor.

    Raises:
        TypeError: no sequence, or not of integers.
    """
    return [integer(value, f"each of {what}") for value in sequence(values, what)]


def numbers(values: object, what: str) -> list[float]:
    """The numbers of any sequence, including an array or a tensor.

    Raises:
        TypeError: no sequence, or not of numbers (text is no number).
    """
    try:
        values = list(values)
        if any(isinstance(value, str | bytes) for value in values):
            raise TypeError
        return [float(value) for value in values]
    except (TypeError, ValueError, OverflowError):
        raise TypeError(f"expected {what}, got {values!r}") from None


def voxel_size(spacing: Sequence[float] | None, axes: int) -> list[float]:
    """The spacing, one number an axis; 1 if not given.

    Raises:
        TypeError: not a sequence of numbers.
        ValueError: not one positive finite number an axis, or a number so far from 1 that its
            square overflows or vanishes in float32.
    """
    if spacing is None:
        return [1.0] * axes
    wanted = f"a positive finite spacing for each of {axes} axes"
    steps = numbers(spacing, wanted)
    if len(steps) != axes or not all(0 < step < math.inf for step in steps):
        raise ValueError(f"expected {wanted}, got {tuple(steps)}")
    if not all(_FINEST <= step <= _COARSEST for step in steps):
        raise ValueError(
            f"expected spacings from {_FINEST:g} to {_COARSEST:g}, got {tuple(steps)}: "
            "use another unit"
        )
    return steps


def real(values: object, what: str) -> torch.Tensor:
    """The array or tensor as a tensor; copied only if torch cannot hold the values as they are.

    Raises:
        TypeError: the values are not bools, integers or floats.
    """
    if not isinstance(values, torch.Tensor):
        values = np.asarray(values)
        if values.dtype.kind not in "biuf":
            raise TypeError(f"expected {what} of bools, integers or floats, got {values.dtype}")
        native = values.dtype.newbyteorder("=") if values.itemsize <= 8 else np.float64
        values = np.require(values, native, ["C", "W"])
        # An axis of one element may have a negative stride and still count as contiguous.
        if any(stride < 0 for stride in values.strides):
            values = values.copy()
        values = torch.from_numpy(values)
    if values.is_complex():
        raise TypeError(f"expected {what} of bools, integers or floats, got {values.dtype}")
    # torch has these types, but few operations for them.
    return values.long() if values.dtype in (torch.uint16, torch.uint32, torch.uint64) else values


def integral(tensor: object, what: str) -> None:
    """Raises TypeError if this is no bool or integer tensor."""
    if not isinstance(tensor, torch.Tensor) or tensor.is_floating_point() or tensor.is_complex():
        raise TypeError(f"expected {what} of bool or an integer type, got {_kind(tensor)}")


def floating(tensor: object, what: str) -> None:
    """Raises TypeError if this is no floating-point tensor."""
    if not isinstance(tensor, torch.Tensor) or not tensor.is_floating_point():
        raise TypeError(f"expected floating-point {what}, got {_kind(tensor)}")


def _kind(value: object) -> object:
    return value.dtype if isinstance(value, torch.Tensor) else type(value).__name__
