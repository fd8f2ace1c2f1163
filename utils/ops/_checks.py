"""Checks of arguments that several operators share."""

import operator
from collections.abc import Sequence

import torch


def integer(value, what: str) -> int:
    """The value as an int; unlike ``int()`` this takes no fraction, no text and no bool.

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


def sequence(values, what: str) -> list:
    """The values in a list.

    Raises:
        TypeError: there is nothing to go through, as in a single number or None.
    """
    try:
        return list(values)
    except TypeError:
        raise TypeError(f"expected a sequence of {what}, got {values!r}") from None


def integers(values, what: str) -> list[int]:
    """The integers of any sequence, an array or a tensor included.

    Raises:
        TypeError: no sequence, or not of integers.
    """
    return [integer(value, f"each of {what}") for value in sequence(values, what)]


def voxel_size(spacing: Sequence[float] | None, axes: int) -> list[float]:
    """The spacing, one number an axis; 1 if not given.

    Raises:
        TypeError: not a sequence of numbers.
        ValueError: not one positive finite number an axis.
    """
    if spacing is None:
        return [1.0] * axes
    wanted = f"expected a positive finite spacing for each of {axes} axes"
    try:
        steps = [float(step) for step in spacing]
    except TypeError:
        raise TypeError(f"{wanted}, got {spacing!r}") from None
    if len(steps) != axes or not all(0 < step < float("inf") for step in steps):
        raise ValueError(f"{wanted}, got {tuple(steps)}")
    return steps


def integral(tensor: torch.Tensor, what: str) -> None:
    """Raises TypeError for what is no bool or integer tensor."""
    if not isinstance(tensor, torch.Tensor) or tensor.is_floating_point() or tensor.is_complex():
        raise TypeError(f"expected {what} of bool or an integer type, got {_kind(tensor)}")


def floating(tensor: torch.Tensor, what: str) -> None:
    """Raises TypeError for what is no floating-point tensor."""
    if not isinstance(tensor, torch.Tensor) or not tensor.is_floating_point():
        raise TypeError(f"expected floating-point {what}, got {_kind(tensor)}")


def _kind(value):
    return value.dtype if isinstance(value, torch.Tensor) else type(value).__name__
