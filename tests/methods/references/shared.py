"""What the family of baselines shares, in NumPy: schedules, the teacher's update and noise, cross
entropy and the five Dice losses.

Source: "Facts shared by the family" and the notation of "Shared protocol". Logits z are float64
`(B, C, *S)`, labels integers `(B, *S)`, class 0 is the background; t is the number of updates
already made, so the first step has t = 0 (open: the facts give no order of update and count).
"""

import numpy as np
from numpy_reference import softmax


def log_softmax(z):
    """ln p, without the logarithm of a rounded zero."""
    z = z - z.max(1, keepdims=True)
    return z - np.log(np.exp(z).sum(1, keepdims=True))


def one_hot(label, classes):
    """`(B, *S)` to `(B, C, *S)`."""
    return np.stack([label == k for k in range(classes)], 1).astype(np.float64)


# Ramp-ups


def ramp(t, T):
    """r(t, T) = exp(-5 (1 - min(t, T)/T)²), smooth in t; r(0, T) = exp(-5), not 0. T = 0 gives 1
    (open).
    """
    if T == 0:
        return 1.0
    return float(np.exp(-5 * (1 - min(t, T) / T) ** 2))


def ramp_in_blocks(t, T, block=150):
    """r(t // 150, T): a staircase; T counts blocks, not steps."""
    return ramp(t // block, T)


# Recipes A to E: the weight without the method's own factor w, and the learning rate


def consistency_weight(t, recipe, weight=1.0):
    """λ(t) of a recipe: A, B, C: w r(t//150, 40); D, E: 0.1 r(t//150, 200) is weight = 0.1."""
    return weight * ramp_in_blocks(t, {"A": 40, "B": 40, "C": 40, "D": 200, "E": 200}[recipe])


def polynomial_learning_rate(t, tmax, base=0.01, power=0.9):
    """base (1 - t/tmax)^power."""
    return base * (1 - t / tmax) ** power


def step_learning_rate(t, base=0.01, every=2500, factor=0.1, lowest=0.0):
    """base × factor after each `every` steps, never below `lowest`: the step t = 2500 is the first
    that is made with 0.1 base.
    """
    return max(base * factor ** (t // every), lowest)


def learning_rate(t, recipe, tmax=None):
    """A: steps at 2500 and 5000 of 6000. B, E: constant. C: steps, 1e-6 from 10 000 on, so that the
    step at 12 500 is not taken (open: a plain step rule would give 1e-7 there). D: polynomial.
    """
    if recipe == "A":
        return step_learning_rate(t)
    if recipe == "C":
        return step_learning_rate(t, lowest=1e-6)
    if recipe == "D":
        return polynomial_learning_rate(t, 30_000 if tmax is None else tmax)
    return {"B": 0.01, "E": 0.01}[recipe]


# The teacher


def teacher_decay(t, most=0.99):
    """a = min(1 - 1/(t + 1), 0.99): 0 at t = 0, so the teacher becomes a copy; 0.99 from t = 99 on.
    The original mean teacher has most = 0.999.
    """
    return min(1 - 1 / (t + 1), most)


def teacher_update(teacher, student, t, most=0.99):
    """θ' = a θ' + (1 - a) θ of each parameter, after the student's update, without gradient.
    Buffers (batch-norm statistics) are not averaged: give parameters only. Lists of arrays.
    """
    a = teacher_decay(t, most)
    return [a * old + (1 - a) * new for old, new in zip(teacher, student, strict=True)]


def teacher_noise(normal, sd=0.1, limit=0.2):
    """ε = clamp(N(0, 0.1²), ±0.2) from standard normal numbers of the input's shape; it is added to
    the teacher's input, the student's stays clean.
    """
    return np.clip(sd * normal, -limit, limit)


# Cross entropy and Dice: z receives the gradient, the label none. ε stands above and below the line
# (open: the facts give its size only).


def cross_entropy(z, label, kept=None, class_weights=None):
    """The mean over all images' voxels of -ln p[label]. `kept` (bool, like label) leaves voxels out
    and divides by the number kept; 0 where none is (open). With class weights the mean is weighted:
    Σ w[label] (-ln p[label]) / Σ w[label] (open).
    """
    voxels = -(one_hot(label, z.shape[1]) * log_softmax(z)).sum(1)
    weights = np.ones(label.shape) if class_weights is None else np.asarray(class_weights)[label]
    if kept is not None:
        weights = weights * kept
    return (weights * voxels).sum() / weights.sum() if weights.sum() > 0 else 0.0


def _masked(p, q, kept):
    """Both maps, zero where a voxel is left out."""
    return (p, q) if kept is None else (p * kept, q * kept)


def dice_with_squares(p, q, eps):
    """1 - (2 Σ p q + ε) / (Σ p² + Σ q² + ε), over everything given."""
    return 1 - (2 * (p * q).sum() + eps) / ((p**2).sum() + (q**2).sum() + eps)


def dice_without_squares(p, q, eps):
    """1 - (2 Σ p q + ε) / (Σ p + Σ q + ε), over everything given."""
    return 1 - (2 * (p * q).sum() + eps) / (p.sum() + q.sum() + eps)


def _mean_over_classes(z, label, kept, one_class, eps, first):
    p = softmax(z)
    q = one_hot(label, z.shape[1])
    losses = []
    for k in range(first, z.shape[1]):
        losses.append(one_class(*_masked(p[:, k], q[:, k], kept), eps))
    return sum(losses) / len(losses)


def dice_uamt(z, label, kept=None):
    """UA-MT, DTC, SASSNet, MCF: foreground, squares, 1e-5; sums over the batch. More than one
    object: the mean over the objects (open).
    """
    return _mean_over_classes(z, label, kept, dice_with_squares, 1e-5, first=1)


def dice_ssl4mis(z, label, kept=None):
    """SSL4MIS: as UA-MT's, mean over all classes with the background."""
    return _mean_over_classes(z, label, kept, dice_with_squares, 1e-5, first=0)


def dice_mcnet(z, label, kept=None):
    """MC-Net, SS-Net, CAML in 3-D: foreground, no squares, 1e-8; sums over the batch. More than one
    object: the mean over the objects (open).
    """
    return _mean_over_classes(z, label, kept, dice_without_squares, 1e-8, first=1)


def dice_ssnet_acdc(z, label, kept=None):
    """SS-Net on ACDC: all classes, squares, 1e-10; sums over the batch."""
    return _mean_over_classes(z, label, kept, dice_with_squares, 1e-10, first=0)


def dice_bcp(z, label, kept=None):
    """BCP on LA: per sample and class, background included, no squares, 1e-5; the mean over samples
    and classes.
    """
    p = softmax(z)
    q = one_hot(label, z.shape[1])
    losses = []
    for i in range(z.shape[0]):
        for k in range(z.shape[1]):
            kept_i = None if kept is None else kept[i]
            losses.append(dice_without_squares(*_masked(p[i, k], q[i, k], kept_i), 1e-5))
    return sum(losses) / len(losses)


def supervised(z, label, dice=dice_ssl4mis, kept=None):
    """L_sup = (CE + Dice)/2 of UA-MT (dice = dice_uamt) and SSL4MIS (dice = dice_ssl4mis)."""
    return (cross_entropy(z, label, kept) + dice(z, label, kept)) / 2


def supervised_dice_only(z, label, dice=dice_mcnet):
    """DTC, SASSNet, MC-Net, SS-Net and CAML train on Dice without CE."""
    return dice(z, label)


def mean_squared_error(p, q):
    """The mean over images, classes and voxels of (p - q)²."""
    return ((p - q) ** 2).mean()
