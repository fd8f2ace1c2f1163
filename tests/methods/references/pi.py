"""The Π-model in NumPy: "Π-model; temporal ensembling" of the facts.

L = L_sup + w(t) mean (p(x; η1) - p(x; η2))² on L ∪ U: two passes of one network over the same
crops, each with its own noise. z1_l, z1_u and z2_l, z2_u are the logits of the first and second
pass.
"""

import numpy as np
from numpy_reference import softmax
from references.shared import dice_ssl4mis, mean_squared_error, ramp, supervised, teacher_noise


def consistency_weight(t, tmax, weight=0.1):
    """Here: w(t) = 0.1 r(t, tmax), smooth in t."""
    return weight * ramp(t, tmax)


def consistency_weight_original(epoch, labelled, images, c=100.0, length=80):
    """Original: c (M/N) r(epoch, 80), M of N images labelled, 0 in the first epoch, which is
    epoch 0 (open: the count of the epochs).
    """
    return 0.0 if epoch == 0 else c * labelled / images * ramp(epoch, length)


def noisy_inputs(x, normal1, normal2):
    """Here: ε = clamp(0.1 N, ±0.2) on both passes, drawn apart."""
    return x + teacher_noise(normal1), x + teacher_noise(normal2)


def consistency(z1, z2):
    """The mean over images, classes and voxels. Gradient reaches z1 and z2 both."""
    return mean_squared_error(softmax(z1), softmax(z2))


def loss(z1_l, label, z1_u, z2_l, z2_u, weight, dice=dice_ssl4mis):
    """The whole loss of a step; weight is w(t). L_sup is of the first pass (open). Gradient reaches
    all four logits.
    """
    z1 = np.concatenate([z1_l, z1_u])
    z2 = np.concatenate([z2_l, z2_u])
    return supervised(z1_l, label, dice) + weight * consistency(z1, z2)
