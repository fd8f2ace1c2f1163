"""Shapes, types and helpers that the tests of several operators share."""

from collections.abc import Callable, Sequence

import torch
from torch.utils._pytree import tree_leaves

INTEGERS = [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64]
UNSIGNED = [torch.uint16, torch.uint32, torch.uint64]  # torch has few operations for these
MOVED = [  # types of every size, for operators that only move voxels
    torch.bool,
    torch.uint8,
    torch.int16,
    torch.bfloat16,
    torch.float32,
    torch.int64,
    torch.complex128,
]


def ball(shape: Sequence[int], centre: Sequence[float], radius: float) -> torch.Tensor:
    """A bool mask of the given shape."""
    axes = torch.meshgrid(*(torch.arange(n) for n in shape), indexing="ij")
    return sum((a - c) ** 2 for a, c in zip(axes, centre, strict=True)) <= radius**2


def spiral(size: int) -> torch.Tensor:
    """A square spiral, one voxel wide: every voxel is on the boundary and nothing is convex."""
    mask = torch.zeros(size, size, dtype=torch.bool)
    x, y, dx, dy = 0, 0, 0, 1
    for length in [size] + [n for n in range(size - 1, 0, -2) for _ in range(2)]:
        for _ in range(length - 1):
            mask[x, y] = True
            x, y = x + dx, y + dy
        mask[x, y] = True
        dx, dy = dy, -dx
        x, y = x + dx, y + dy
    return mask


def same_bits_on_any_threads(run: Callable, counts: Sequence[int] = (1, 2, 5)) -> bool:
    """Whether `run()` returns the same tensors on every number of threads."""
    before = torch.get_num_threads()
    results = []
    try:
        for count in counts:
            torch.set_num_threads(count)
            results.append(tree_leaves(run()))
    finally:
        torch.set_num_threads(before)
    first = results[0]
    assert first
    return all(
        torch.equal(a, b) for other in results[1:] for a, b in zip(first, other, strict=True)
    )
