"""The largest connected component of each class."""

import numpy as np
import torch
from scipy import ndimage

from utils.ops import _checks, _library

# (axes, connectivity): rank of SciPy's structure
_RANK = {(2, 4): 1, (2, 8): 2, (3, 6): 1, (3, 18): 2, (3, 26): 3}
_FULL = {2: 8, 3: 26}
_MOST_CLASSES = 1 << 15


def largest_component(
    labels: torch.Tensor, num_classes: int, connectivity: int | None = None
) -> torch.Tensor:
    """Keeps the largest connected component of each foreground class of each item.

    All other voxels become 0. A component is connected within its own class; voxels of other
    classes do not connect it. If components have equal size, the first in scan order (last axis
    fastest) is kept. A class without voxels has no component. Items of a batch are independent.

    For two classes this is `getLargestCC` or `LargestCC_pancreas` of the research code: the argmax
    over `np.bincount` of skimage's labels. That code fails on an empty mask; this one returns it
    empty.

    Args:
        labels: a batch, `(B, X, Y)` or `(B, X, Y, Z)`, bool or any integer type; made contiguous
            if it is not. Pass one volume as `labels[None]`, because `(X, Y, Z)` is read as X
            images. A label outside `[0, num_classes)` counts as background and becomes 0.
        num_classes: including the background; 2 to 32768.
        connectivity: the number of neighbours of a voxel: 4 or 8 in images, 6, 18 or 26 in volumes;
            8 and 26 if not given.

    Returns:
        Labels of the same shape and type, no gradient.

    Raises:
        TypeError: the labels are not a bool or integer tensor, or the numbers are no integers.
        ValueError: other than 3 or 4 axes, an item of 2^31 voxels or more, a connectivity that
            images or volumes do not have, or a number of classes out of range.

    The method is union-find, over runs of voxels on the CPU and over voxels on CUDA. The later
    component is always linked to the earlier one, so the result does not depend on the order of
    the threads.
    """
    return _operator(labels, *_checked(labels, num_classes, connectivity))


def largest_component_reference(
    labels: torch.Tensor, num_classes: int, connectivity: int | None = None
) -> torch.Tensor:
    """`largest_component` by its definition, with SciPy."""
    num_classes, connectivity = _checked(labels, num_classes, connectivity)
    structure = ndimage.generate_binary_structure(
        labels.ndim - 1, _RANK[labels.ndim - 1, connectivity]
    )
    items = labels.cpu().numpy()
    kept = np.zeros_like(items)
    for item, out in zip(items, kept, strict=True):
        for value in np.unique(item[(item > 0) & (item < num_classes)]):
            components, _ = ndimage.label(item == value, structure)
            sizes = np.bincount(components.ravel())
            sizes[0] = 0
            first = (sizes[components] == sizes.max()).argmax()  # in scan order
            out[components == components.flat[first]] = value
    return torch.from_numpy(kept).to(labels.device)


def _checked(labels: torch.Tensor, num_classes: int, connectivity: int | None) -> tuple[int, int]:
    """The number of classes and the connectivity, as integers, after all checks."""
    _checks.integral(labels, "labels")
    if labels.ndim not in (3, 4):
        raise ValueError(f"expected labels (B, X, Y) or (B, X, Y, Z), got {tuple(labels.shape)}")
    if labels[:1].numel() >= 2**31:
        raise ValueError(f"expected items of fewer than 2^31 voxels, got {tuple(labels.shape)}")
    num_classes = _checks.integer(num_classes, "the number of classes")
    if not 2 <= num_classes <= _MOST_CLASSES:
        raise ValueError(
            f"expected 2 to {_MOST_CLASSES} classes with the background, got {num_classes}"
        )
    axes = labels.ndim - 1
    if connectivity is None:
        connectivity = _FULL[axes]
    connectivity = _checks.integer(connectivity, "the connectivity")
    if (axes, connectivity) not in _RANK:
        known = " or ".join(str(number) for dimension, number in _RANK if dimension == axes)
        raise ValueError(
            f"expected connectivity {known} for labels {tuple(labels.shape)}, got {connectivity}"
        )
    return num_classes, connectivity


def _fake(labels: torch.Tensor, num_classes: int, connectivity: int) -> torch.Tensor:
    return labels.new_empty(labels.shape)


_operator = _library.register(
    "largest_component(Tensor labels, int num_classes, int connectivity) -> Tensor",
    largest_component_reference,
    _fake,
)
