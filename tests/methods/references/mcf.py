"""MCF's losses (Wang et al., CVPR 2023) in NumPy float64, from the facts, section "MCF".

The functions take the logits of networks A (V-Net) and B (ResNet-34 V-Net), `(B, C, *S)`, the
labelled crops first, and labels `y` `(B_L, *S)`. Each network has an optimizer and a loss.
"""

import math

import numpy as np
from numpy_reference import dice as binary_dice
from numpy_reference import softmax


def ramp_up(t, T):
    return math.exp(-5 * (1 - min(t, T) / T) ** 2)


def consistency_weight(t):
    """λ(t) = 0.1 r(t // 150, 40), recipe A. The first step is t = 0 (open)."""
    return 0.1 * ramp_up(t // 150, 40)


def learning_rate(t, base=0.01):
    """Recipe A: × 0.1 from t = 2500 and again from t = 5000, of 6000 steps."""
    if t >= 5000:
        return base * 0.01
    return base * 0.1 if t >= 2500 else base


def cross_entropy(z, y):
    z = z - z.max(1, keepdims=True)
    log_p = z - np.log(np.exp(z).sum(1, keepdims=True))
    return -sum((y == c) * log_p[:, c] for c in range(z.shape[1])).mean()


def dice(p, y):
    """Foreground, sums over the batch, squares, 1e-5; of several objects the mean (open)."""
    C = p.shape[1]
    return sum(binary_dice(p[:, c], (y == c).astype(np.float64)) for c in range(1, C)) / (C - 1)


def disagreement(z_a, z_b):
    """Voxels where the networks' argmax differ. No gradient."""
    return z_a.argmax(1) != z_b.argmax(1)


def rectification(z, y, differing):
    """mean over the differing voxels of (p_fg - Y)², of the labelled crops. Gradient reaches z. Of
    several objects it is the mean over them too (open). No such voxel: 0 (open; a mean would be
    NaN).
    """
    if not differing.any():
        return 0.0
    p, total = softmax(z), 0.0
    for c in range(1, z.shape[1]):
        total += ((p[:, c] - (y == c)) ** 2)[differing].mean()
    return total / (z.shape[1] - 1)


def supervised_loss(z, z_other, y, weight=0.5):
    """CE + Dice + 0.5 `rectification` of one network. Gradient reaches z, not z_other."""
    differing = disagreement(z, z_other)
    return cross_entropy(z, y) + dice(softmax(z), y) + weight * rectification(z, y, differing)


def sharpen(p, power=10):
    """s = p^10 / Σ_c p^10. No gradient."""
    return p**power / (p**power).sum(1, keepdims=True)


def teacher(z_a, z_b, y):
    """A or B, whichever has the lower Dice loss on this step's labelled crops. Equal: B (open:
    the facts do not say).
    """
    return "A" if dice(softmax(z_a), y) < dice(softmax(z_b), y) else "B"


def consistency(z, z_teacher):
    """mean (p - s)² over unlabelled crops, classes and voxels. z: gradient; z_teacher: none."""
    return ((softmax(z) - sharpen(softmax(z_teacher))) ** 2).mean()


def losses(z_a, z_b, y, t):
    """The losses of A and of B in a step: the supervised loss of each, and for the one that does
    not teach λ(t) times the consistency on U. Logits of L ∪ U, `y` of L, which comes first.
    """
    n = len(y)
    a = supervised_loss(z_a[:n], z_b[:n], y)
    b = supervised_loss(z_b[:n], z_a[:n], y)
    if teacher(z_a[:n], z_b[:n], y) == "A":
        b += consistency_weight(t) * consistency(z_b[n:], z_a[n:])
    else:
        a += consistency_weight(t) * consistency(z_a[n:], z_b[n:])
    return a, b


def loss(z_a, z_b, y, t):
    """Their sum, which gives each network the same gradient, as nothing crosses over."""
    return sum(losses(z_a, z_b, y, t))


def predict(z_a, z_b):
    """Probabilities at test time: the mean of both (open: of probabilities, not of logits)."""
    return (softmax(z_a) + softmax(z_b)) / 2
