"""Temporal ensembling in NumPy: "Π-model; temporal ensembling" of the facts.

L = L_sup + w(t) mean (p - z)² on L ∪ U in one pass. z, the ensemble's target, has no gradient.

The original keeps one Z for each image and updates it after each epoch. Here the crops are random:
each case has Z `(C - 1, *V)`, the objects' probabilities in image space (the background is the rest
to 1), and a count `(*V)` of the visits of each voxel.
"""

import numpy as np
from numpy_reference import softmax
from references.shared import dice_ssl4mis, ramp, supervised


def consistency_weight(t, tmax, weight=0.1):
    """Here, as for the Π-model (open: the facts say so of Π only): 0.1 r(t, tmax)."""
    return weight * ramp(t, tmax)


def consistency_weight_original(epoch, labelled, images, c=30.0, length=80):
    """Original: c (M/N) r(epoch, 80), c = 30 or 100, 0 in the first epoch, epoch 0."""
    return 0.0 if epoch == 0 else c * labelled / images * ramp(epoch, length)


# The original's ensemble


def ensemble_update(Z, p, a=0.6):
    """Z ← 0.6 Z + 0.4 p, from Z = 0."""
    return a * Z + (1 - a) * p


def ensemble_target(Z, updates, a=0.6):
    """z = Z / (1 - 0.6^epoch); the epoch is the number of updates made, at least 1."""
    return Z / (1 - a**updates)


# A crop and its way back


def to_patch(volume, corner, size, turns=0, flip=None):
    """Cut `size` at `corner` from `(*V)`, then turn it by 90° `turns` times in the plane of the
    first two axes, then flip it along the axis `flip` (open: this order). Outside the volume, where
    the corner is negative or the crop ends beyond it: -1.
    """
    patch = np.full(size, -1, volume.dtype)
    for place in np.ndindex(*size):
        source = tuple(c + i for c, i in zip(corner, place, strict=True))
        if all(0 <= i < n for i, n in zip(source, volume.shape, strict=True)):
            patch[place] = volume[source]
    patch = np.rot90(patch, turns, axes=(0, 1))
    return patch if flip is None else np.flip(patch, flip)


def places(shape, corner, size, turns=0, flip=None):
    """The flat index in a volume of `shape` that each voxel of the patch comes from, -1 in padding.
    The store is read and written through it.
    """
    volume = np.arange(np.prod(shape)).reshape(shape)
    return to_patch(volume, corner, size, turns, flip)


# The store of one case


def write(Z, count, p, place):
    """Put a patch's objects' probabilities p `(C - 1, *S)` into copies of Z and count, voxel by
    voxel: Z ← 0.6 Z + 0.4 p, count + 1. Padding is skipped. No gradient; after the target is read.
    """
    Z = Z.copy()
    count = count.copy()
    for voxel in np.ndindex(*place.shape):
        if place[voxel] < 0:
            continue
        where = np.unravel_index(place[voxel], count.shape)
        for k in range(len(Z)):
            Z[(k, *where)] = ensemble_update(Z[(k, *where)], p[(k, *voxel)])
        count[where] += 1
    return Z, count


def read(Z, count, place):
    """The target of a patch, `(C, *S)` with the background, and `visited`, bool `(*S)`. The bias is
    corrected by the voxel's own count: z = Z / (1 - 0.6^count). Unvisited voxels and padding: 0.
    """
    target = np.zeros((len(Z) + 1, *place.shape))
    visited = np.zeros(place.shape, bool)
    for voxel in np.ndindex(*place.shape):
        if place[voxel] < 0:
            continue
        where = np.unravel_index(place[voxel], count.shape)
        if count[where] == 0:
            continue
        visited[voxel] = True
        for k in range(len(Z)):
            target[(k + 1, *voxel)] = ensemble_target(Z[(k, *where)], int(count[where]))
        target[(0, *voxel)] = 1 - target[(slice(1, None), *voxel)].sum()
    return target, visited


# The loss


def consistency(z, target, visited=None, mean_over="visited"):
    """The mean of (p - target)² over classes and visited voxels of all images; 0 where none is
    visited. With mean_over="all" the sum over the visited is divided by all voxels. Which of the
    two is open. Gradient reaches z; target and visited: no gradient.
    """
    squares = ((softmax(z) - target) ** 2).mean(1)
    if visited is None:
        return squares.mean()
    if not visited.any():
        return 0.0
    return squares[visited].sum() / (visited.sum() if mean_over == "visited" else visited.size)


def loss(z_l, label, z_u, target, weight, visited=None, mean_over="visited", dice=dice_ssl4mis):
    """The whole loss of a step; weight is w(t); target `(B, C, *S)` and visited `(B, *S)` hold L
    and then U. Gradient reaches z_l and z_u. The original has no `visited`.
    """
    z = np.concatenate([z_l, z_u])
    unlabelled = consistency(z, target, visited, mean_over)
    return supervised(z_l, label, dice) + weight * unlabelled
