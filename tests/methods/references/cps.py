"""Cross pseudo supervision in NumPy: "CPS; DML" of the facts (TorchSemiSeg's and SSL4MIS's code).

L = Σ_i L_sup,i + λ [CE(z1, argmax p2) + CE(z2, argmax p1)]. z1_l, z1_u and z2_l, z2_u are the
logits of networks 1 and 2 on L and U.
"""

import numpy as np
from references.shared import cross_entropy, dice_ssl4mis, ramp_in_blocks, supervised

ORIGINAL_WEIGHTS = {"VOC": 1.5, "Cityscapes": 6.0}  # no ramp


def consistency_weight(t, weight=0.1, length=200):
    """SSL4MIS: λ(t) = 0.1 r(t//150, 200). The original has a constant, ORIGINAL_WEIGHTS."""
    return weight * ramp_in_blocks(t, length)


def pseudo_labels(z):
    """argmax_c p, the first class of equals; no gradient."""
    return z.argmax(1)


def cross_supervision(z1, z2):
    """CE(z1, argmax p2) + CE(z2, argmax p1), a sum and not a mean of the two. Gradient reaches z1
    from the first term and z2 from the second, no argmax.
    """
    return cross_entropy(z1, pseudo_labels(z2)) + cross_entropy(z2, pseudo_labels(z1))


def loss(z1_l, z2_l, label, z1_u, z2_u, weight, on="u", dice=dice_ssl4mis):
    """The whole loss of a step. on="u": SSL4MIS; on="lu": the original, whose L voxels too learn
    the other network's argmax, in one mean over L ∪ U. Gradient reaches all four logits.
    """
    if on == "u":
        unlabelled = cross_supervision(z1_u, z2_u)
    else:
        unlabelled = cross_supervision(np.concatenate([z1_l, z1_u]), np.concatenate([z2_l, z2_u]))
    labelled = supervised(z1_l, label, dice) + supervised(z2_l, label, dice)
    return labelled + weight * unlabelled


def prediction(z1, z2):
    """Network 1 is tested, not the mean of both."""
    return z1.argmax(1)
