"""URPC's loss (Luo et al., MICCAI 2021; MedIA 2022) in NumPy float64, from the facts, section
"URPC".

The functions take a list of logits, one `(B, C, *S)` for each of the decoder's four scales, finest
first (the order matters for `predict` only), upsampled to the crop. The labelled crops come first.
"""

import math

import numpy as np
from numpy_reference import dice, softmax


def log_softmax(z):
    z = z - z.max(1, keepdims=True)
    return z - np.log(np.exp(z).sum(1, keepdims=True))


def ramp_up(t, T):
    return math.exp(-5 * (1 - min(t, T) / T) ** 2)


def consistency_weight(t, T=200):
    """λ(t) = 0.1 r(t // 150, 200), recipe D; the released 3-D file's default is T = 400. The first
    step is t = 0 (open).
    """
    return 0.1 * ramp_up(t // 150, T)


def learning_rate(t, t_max, base=0.01):
    """0.01 (1 - t / tmax)^0.9."""
    return base * (1 - t / t_max) ** 0.9


def cross_entropy(z, y):
    log_p = log_softmax(z)
    return -sum((y == c) * log_p[:, c] for c in range(z.shape[1])).mean()


def mean_dice(p, y):
    """SSL4MIS's Dice loss: squares, 1e-5, sums over the batch, mean over all classes with the
    background.
    """
    C = p.shape[1]
    return sum(dice(p[:, c], (y == c).astype(np.float64)) for c in range(C)) / C


def supervised_loss(zs, y):
    """Mean over the heads of (CE + Dice) / 2, of the labelled crops. Gradient reaches every z."""
    terms = [(cross_entropy(z, y) + mean_dice(softmax(z), y)) / 2 for z in zs]
    return sum(terms) / len(terms)


def discrepancy(z, mean_p):
    """D_s = Σ_c p̄ ln(p̄ / p_s) of each voxel, `(B, *S)`."""
    return (mean_p * (np.log(mean_p) - log_softmax(z))).sum(1)


def consistency(zs):
    """mean over s of [mean((p̄ - p_s)² e^{-D_s}) / mean(e^{-D_s}) + mean D_s], of the unlabelled
    crops. The first mean is over crops, classes and voxels, the others over crops and voxels.
    Gradient reaches every z by all terms: neither p̄ nor the weights e^{-D_s} are detached.
    """
    mean_p = sum(softmax(z) for z in zs) / len(zs)
    total = 0.0
    for z in zs:
        D = discrepancy(z, mean_p)
        certainty = np.exp(-D)
        rectified = ((mean_p - softmax(z)) ** 2 * certainty[:, None]).mean() / certainty.mean()
        total += rectified + D.mean()
    return total / len(zs)


def loss(zs, y, t, T=200):
    """The loss of a step: `zs` of L ∪ U, `y` of L, which comes first in the batch."""
    n = len(y)
    supervised = supervised_loss([z[:n] for z in zs], y)
    return supervised + consistency_weight(t, T) * consistency([z[n:] for z in zs])


def predict(zs):
    """Probabilities at test time: the finest head's."""
    return softmax(zs[0])
