"""SS-Net's loss (Wu et al., MICCAI 2022) in NumPy float64, from the facts, section "SS-Net"; the
direction of the perturbation, section "VAT", in PyTorch float64 or for a linear model.

The functions take logits `(B, C, *S)`, labels `(B, *S)`, features `(N, F)` with one row for each
voxel, and scores of the selectors before σ, `(N,)`.
"""

import math

import numpy as np
import torch
from numpy_reference import softmax


def dice(p, q, form="3d"):
    """Dice loss of p against q, both `(B, C, *S)`: one-hot labels or probabilities; sums over the
    batch. NumPy arrays or tensors.

    "3d": foreground, no squares, 1e-8; with several objects their mean (open).
    "acdc": mean over all classes with the background, squares, 1e-10.
    """
    total, classes = 0.0, range(p.shape[1]) if form == "acdc" else range(1, p.shape[1])
    for c in classes:
        a, b = p[:, c], q[:, c]
        if form == "acdc":
            total = total + 1 - (2 * (a * b).sum() + 1e-10) / ((a**2).sum() + (b**2).sum() + 1e-10)
        else:
            total = total + 1 - (2 * (a * b).sum() + 1e-8) / (a.sum() + b.sum() + 1e-8)
    return total / len(classes)


def prediction_dice(p, q, form="3d"):
    """Dice between two predictions, for L_lds. "acdc": `dice`. "3d": one Dice over all channels of
    the softmax at once, background included, no squares, 1e-8 (the released code's function for
    two predictions; the facts only say "VAT with Dice").
    """
    if form == "acdc":
        return dice(p, q, form)
    return 1 - (2 * (p * q).sum() + 1e-8) / (p.sum() + q.sum() + 1e-8)


def one_hot(y, C):
    return np.stack([y == c for c in range(C)], 1).astype(np.float64)


def ramp_up(t, T):
    return math.exp(-5 * (1 - min(t, T) / T) ** 2)


def consistency_weight(t, form="3d"):
    """λ(t): r(t // 150, 40) on LA, 0.1 r(t // 150, 200) on ACDC. The first step is t = 0 (open)."""
    return 0.1 * ramp_up(t // 150, 200) if form == "acdc" else ramp_up(t // 150, 40)


def learning_rate(t, form="3d", base=0.01):
    """LA: × 0.1 every 2500 steps, 1e-6 from 10 000 on. ACDC: constant."""
    return base if form == "acdc" else base * 0.1 ** min(t // 2500, 4)


def normalized(d):
    """d / |d|, |·| of each sample. Open: nothing is added to the norm."""
    return d / np.sqrt((d**2).reshape(len(d), -1).sum(1)).reshape(-1, *[1] * (d.ndim - 1))


def direction(model, x, d, xi=10.0, form="3d"):
    """∇_d of Dice(p(x + ξ d / |d|), p(x)) with respect to d' = d / |d|, one power step, by autograd
    in float64. `model` maps a tensor of images to logits, without a change of batch-norm
    statistics; p(x): no gradient. `d` `(B, 1, *S)` is the first draw (open: its distribution). No
    gradient stays in the model.
    """
    step = torch.tensor(normalized(d), requires_grad=True)
    with torch.no_grad():
        p = torch.softmax(model(torch.tensor(x)), 1)
    moved = torch.softmax(model(torch.tensor(x) + xi * step), 1)
    (gradient,) = torch.autograd.grad(prediction_dice(moved, p, form), step)
    return gradient.numpy()


def direction_of_linear_model(W, x, d, xi=10.0):
    """`direction` with the 3-D Dice for the linear model z_c = Σ_k W_ck x_k of each voxel, by the
    chain rule: the Dice loss by the moved probability, that by the logits, these by x + ξ d'.
    W is `(2, K)`, x and d are `(B, K, *S)`.
    """
    moved = x + xi * normalized(d)
    p, q = (softmax(np.einsum("ck,bk...->bc...", W, image)) for image in (x, moved))
    top, bottom = 2 * (p * q).sum() + 1e-8, p.sum() + q.sum() + 1e-8
    by_q = -(2 * p * bottom - top) / bottom**2
    by_z1 = (by_q[:, 1] - by_q[:, 0]) * q[:, 1] * q[:, 0]
    by_z = np.stack([-by_z1, by_z1], 1)
    return xi * np.einsum("ck,bc...->bk...", W, by_z)


def perturbation(gradient, epsilon=10.0):
    """r = ε g / |g|, |·| of each sample; ε = 10 on LA, 6 on ACDC. No gradient."""
    return epsilon * normalized(gradient)


def smoothness(z, z_moved, form="3d"):
    """L_lds: Dice(p(x + r), p(x)) on L ∪ U. `z`: no gradient; `z_moved`: logits of x + r, gradient
    (r itself is constant).
    """
    return prediction_dice(softmax(z_moved), softmax(z), form)


def voxel_features(f):
    """`(B, F, *S)` as rows `(N, F)`, in the order of a label's `reshape(-1)`."""
    return np.moveaxis(f, 1, -1).reshape(-1, f.shape[1])


def prototype_voxels(z, y):
    """Voxels that give prototypes: labelled, foreground and correctly predicted; z from a pass in
    eval mode without gradient.
    """
    return (z.argmax(1) == y) & (y > 0)


def prototypes(features, y, scores, C, number=32):
    """The stored features of each class, replaced every step: `[None or (M, F), ...]` of C.

    `features`, `y`: projected features and labels of `prototype_voxels`; `scores`: list of C arrays
    `(N_c,)`, the class's memory selector on the class's features in their order (open: that it is
    this selector that ranks). Released: the lowest 32 scores are kept, against its comment. The
    background (class 0) has none, and neither has a class without such a voxel: the released code
    then leaves the class's former ones in place. No gradient.
    """
    stored = []
    for c in range(C):
        mine = features[y == c]
        lowest = np.argsort(scores[c], kind="stable")[:number] if c and len(mine) else None
        stored.append(None if lowest is None else mine[lowest])
    return stored


def selector_weights(score):
    """σ(selector), scaled to mean 1 over the class's voxels."""
    w = 1 / (1 + np.exp(-score))
    return w / w.mean()


def class_separation(features, y, stored, scores, minimum=2):
    """L_cl of L or of U. For each class the mean over its voxels n and its prototypes m of
    w_n (1 - cos(f_n, m)); summed over the classes and divided by C, though the background has none.

    `features`: after projection and prediction MLP, gradient. `y`: labels on L, argmax of the same
    pass on U, `(N,)`, no gradient. `stored`: no gradient. `scores`: list of C arrays of selector
    scores of the class's voxels in their order; gradient reaches the selector (open: whether it
    goes on into the features). The memory selector's weights cancel to 1. A class with fewer than
    two voxels or two prototypes adds nothing (not in the facts: the condition of the released
    code, as its copy in BCP's repository has it).
    """
    total, C = 0.0, len(stored)
    for c in range(C):
        mine = features[y == c]
        if stored[c] is None or len(mine) < minimum or len(stored[c]) < minimum:
            continue
        w, sum_c = selector_weights(scores[c]), 0.0
        for n, f in enumerate(mine):
            for m in stored[c]:
                sum_c += w[n] * (1 - f @ m / (np.sqrt(f @ f) * np.sqrt(m @ m)))
        total += sum_c / (len(mine) * len(stored[c]))
    return total / C


def loss(z, z_moved, y, separation_l, separation_u, t, form="3d", weight=0.1):
    """The loss of a step: Dice + λ(t) [L_lds + 0.1 (L_cl,L + L_cl,U)]. `z`, `z_moved`: logits of
    L ∪ U, the labelled first; `y`: labels of L; the separations: `class_separation` of L and of U.
    Gradient reaches `z` by the Dice loss only.
    """
    C, n = z.shape[1], len(y)
    supervised = dice(softmax(z[:n]), one_hot(y, C), form)
    unlabelled = smoothness(z, z_moved, form) + weight * (separation_l + separation_u)
    return supervised + consistency_weight(t, form) * unlabelled
