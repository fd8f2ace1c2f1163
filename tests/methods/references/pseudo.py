"""Pseudo label in NumPy: "Pseudo label" of the facts (Lee 2013 from general knowledge).

L = L_sup + α(t) CE(z, argmax p) on U. The labels come from the same network at the same step, so
z_u, the logits of U, is all that is needed.
"""

import numpy as np
from numpy_reference import softmax
from references.shared import cross_entropy, dice_ssl4mis, supervised


def consistency_weight(t, T1, T2, most=3.0):
    """α(t): 0 to T1, then linear to `most` at T2, then constant. Lee: epochs, T1 = 100, T2 = 600,
    most = 3.
    """
    if t < T1:
        return 0.0
    if t < T2:
        return most * (t - T1) / (T2 - T1)
    return most


def consistency_weight_here(t, tmax, most=1.0):
    """Here: T1 = tmax/6, T2 = tmax, most = 1; T1 is not rounded (open)."""
    return consistency_weight(t, tmax / 6, tmax, most)


def pseudo_labels(z_u):
    """argmax_c p, the first class of equals; no gradient."""
    return z_u.argmax(1)


def kept_voxels(z_u, threshold=0.0):
    """max_c p ≥ threshold (open: ≥), bool `(B, *S)`; no gradient. 0 keeps all."""
    return softmax(z_u).max(1) >= threshold


def pseudo_loss(z_u, threshold=0.0, mean_over="kept"):
    """CE(z_u, argmax p) where max p ≥ threshold. The mean is over the kept voxels, 0 where none is
    kept (open), or with mean_over="all" over all voxels. Gradient reaches z_u, not its argmax.
    """
    kept = kept_voxels(z_u, threshold)
    value = cross_entropy(z_u, pseudo_labels(z_u), kept)
    return value if mean_over == "kept" else value * np.mean(kept)


def loss(z_l, label, z_u, weight, threshold=0.0, mean_over="kept", dice=dice_ssl4mis):
    """The whole loss of a step; weight is α(t). Gradient reaches z_l and z_u."""
    return supervised(z_l, label, dice) + weight * pseudo_loss(z_u, threshold, mean_over)
