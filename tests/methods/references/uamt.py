"""UA-MT in NumPy: "Mean teacher (MT); UA-MT" of the facts.

The teacher's target p' is one noisy pass. Apart from it T = 8 noisy passes with dropout give the
uncertainty, and the consistency counts where that is below H(t). z_teacher are the logits of the
target's pass, `passes` `(T, B, C, *S)` those of the uncertainty's. With `on="u"` (released script)
both hold U, with `on="lu"` (the paper's form, from general knowledge) L and then U. The teacher's
update and noise are in shared.py.
"""

import numpy as np
from numpy_reference import softmax
from references.shared import dice_uamt, ramp, ramp_in_blocks, supervised, teacher_noise


def consistency_weight(t, weight=0.1, length=40):
    """λ(t) = 0.1 r(t//150, 40)."""
    return weight * ramp_in_blocks(t, length)


def noisy_inputs(x, normals):
    """The T inputs of the uncertainty: the batch doubled T/2 times, each copy with its own noise
    clamp(0.1 N, ±0.2); `normals` are `(T, *x.shape)`. Returns `(T/2, 2 B, …)`: the two copies of a
    pass share its batch-norm statistics.
    """
    pairs = []
    for first in range(0, len(normals), 2):
        copies = [x + teacher_noise(normals[first + i]) for i in range(2)]
        pairs.append(np.concatenate(copies))
    return np.stack(pairs)


def split_passes(z):
    """`(T/2, 2 B, C, *S)`, the outputs of noisy_inputs, to `(T, B, C, *S)`."""
    passes = []
    for pair in z:
        passes += [pair[: len(pair) // 2], pair[len(pair) // 2 :]]
    return np.stack(passes)


def mean_probability(passes):
    """p̂: the mean over the passes of the softmax, not the softmax of the mean."""
    return sum(softmax(z) for z in passes) / len(passes)


def uncertainty(passes):
    """u = -Σ_c p̂ ln(p̂ + 1e-6), `(B, *S)`. No gradient."""
    p = mean_probability(passes)
    return -(p * np.log(p + 1e-6)).sum(1)


def threshold(t, tmax, classes=2, as_released=False):
    """H(t) = (3/4 + 1/4 r(t, tmax)) ln C, smooth in t. Released, as SSL4MIS keeps it: ln 2 for
    any C; no difference for two classes.
    """
    return (0.75 + 0.25 * ramp(t, tmax)) * np.log(2 if as_released else classes)


def certain(passes, t, tmax, as_released=False):
    """1[u < H(t)], bool `(B, *S)`. No gradient."""
    return uncertainty(passes) < threshold(t, tmax, passes[0].shape[1], as_released)


def consistency(z, z_teacher, mask, as_released=False):
    """L_c = Σ 1[u<H] Σ_c (p - p')² / (C Σ 1[u<H]). Released: 2 instead of C. No certain voxel: 0
    (open). Gradient reaches z; z_teacher and mask: no gradient.
    """
    squares = ((softmax(z) - softmax(z_teacher)) ** 2).sum(1)
    if not mask.any():
        return 0.0
    return squares[mask].sum() / ((2 if as_released else z.shape[1]) * mask.sum())


def loss(
    z_l,
    label,
    z_u,
    z_teacher,
    passes,
    t,
    tmax,
    on="u",
    dice=dice_uamt,
    as_released=False,
    weight=None,
):
    """The whole loss of a step. Gradient reaches z_l and z_u only. weight: λ(t) if not given."""
    z = z_u if on == "u" else np.concatenate([z_l, z_u])
    mask = certain(passes, t, tmax, as_released)
    weight = consistency_weight(t) if weight is None else weight
    return supervised(z_l, label, dice) + weight * consistency(z, z_teacher, mask, as_released)
