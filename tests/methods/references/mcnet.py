"""MC-Net's and MC-Net+'s loss (Wu et al., MICCAI 2021; MedIA 2022) in NumPy float64, from the
facts, section "MC-Net, MC-Net+".

The functions take a list of logits, one `(B, C, *S)` for each of the n decoders (2: transposed,
trilinear; 3: and nearest), the labelled crops first, and labels `y` `(B_L, *S)`.
"""

import math

import numpy as np
from numpy_reference import softmax


def dice(p, y, form="3d"):
    """Dice loss of probabilities `(B, C, *S)`, sums over the batch.

    "3d": foreground, no squares, 1e-8; with several objects their mean (open).
    "acdc": mean over all classes with the background, squares, 1e-10 (open: the facts give this one
    for SS-Net by the same authors, and no other for MC-Net on ACDC).
    """
    total, classes = 0.0, range(p.shape[1]) if form == "acdc" else range(1, p.shape[1])
    for c in classes:
        a, b = p[:, c], (y == c).astype(np.float64)
        if form == "acdc":
            total += 1 - (2 * (a * b).sum() + 1e-10) / ((a**2).sum() + (b**2).sum() + 1e-10)
        else:
            total += 1 - (2 * (a * b).sum() + 1e-8) / (a.sum() + b.sum() + 1e-8)
    return total / len(classes)


def sharpen(p, power=10):
    """s(p) = p^10 / (p^10 + (1 - p)^10), of each class by itself: of three or more classes the
    result need not sum to 1.
    """
    return p**power / (p**power + (1 - p) ** power)


def ramp_up(t, T):
    return math.exp(-5 * (1 - min(t, T) / T) ** 2)


def consistency_weight(t, data="3d"):
    """λ(t): r(t // 150, 40) on LA and Pancreas-CT, 0.1 r(t // 150, 200) on ACDC. The first step is
    t = 0 (open).
    """
    return 0.1 * ramp_up(t // 150, 200) if data == "acdc" else ramp_up(t // 150, 40)


def learning_rate(t, base=0.01, form="released"):
    """Released: constant. Paper: lowered every 2500 of 6000 steps (open: by × 0.1)."""
    return base if form == "released" else base * 0.1 ** (t // 2500)


def supervised_loss(zs, y, form="3d"):
    """0.5 Σ_i Dice_i, on ACDC 1.0 Σ_i Dice_i, of the labelled crops. Gradient reaches every z."""
    return (1.0 if form == "acdc" else 0.5) * sum(dice(softmax(z), y, form) for z in zs)


def consistency(zs, power=10):
    """Σ over i ≠ j of mean (p_i - s(p_j))², the mean over crops, all classes and voxels, L ∪ U.
    Gradient reaches p_i and s(p_j): nothing is detached.
    """
    total = 0.0
    for i in range(len(zs)):
        for j in range(len(zs)):
            if i != j:
                total += ((softmax(zs[i]) - sharpen(softmax(zs[j]), power)) ** 2).mean()
    return total


def loss(zs, y, t, form="3d"):
    """The loss of a step: `zs` of L ∪ U, `y` of L, which comes first in the batch."""
    supervised = supervised_loss([z[: len(y)] for z in zs], y, form)
    return supervised + consistency_weight(t, form) * consistency(zs)


def predict(zs, decoder="first"):
    """Probabilities at test time: the first decoder's (released) or the mean of the decoders'
    (paper; open: the mean of probabilities, not of logits).
    """
    return softmax(zs[0]) if decoder == "first" else sum(softmax(z) for z in zs) / len(zs)
