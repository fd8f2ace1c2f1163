"""Interpolation consistency training in NumPy: "ICT" of the facts (SSL4MIS's and ICT's code).

x_m = (1 - κ) u0 + κ u1; L = L_sup + λ(t) mean (p(x_m) - ((1 - κ) p'(u0) + κ p'(u1)))². u0 is the
first half of U, u1 the second. z_mixed are the student's logits of x_m; z0_teacher and z1_teacher
the teacher's of u0 and u1, clean.
"""

from numpy_reference import softmax
from references.shared import (
    cross_entropy,
    dice_ssl4mis,
    mean_squared_error,
    ramp,
    ramp_in_blocks,
    supervised,
    teacher_decay,
)


def consistency_weight(t, weight=0.1, length=200, block=150):
    """SSL4MIS: λ(t) = 0.1 r(t//150, 200). Open: the facts print "0.1 r" only; the arguments of r
    are recipe D's.
    """
    return weight * ramp_in_blocks(t, length, block)


def consistency_weight_original(t, tmax, weight=100.0):
    """ICT: 100 ramped over a quarter of training; the form r(t, tmax/4) is open."""
    return weight * ramp(t, tmax / 4)


def original_teacher_decay(t):
    """ICT: at most 0.999 instead of 0.99."""
    return teacher_decay(t, most=0.999)


def mixing_coefficients(rng, pairs, alpha=0.2):
    """κ ~ Beta(0.2, 0.2), one for each pair. ICT: alpha = 1.0 or 0.1."""
    return rng.beta(alpha, alpha, pairs)


def halves(u):
    """The first half of U and the second: 2 images give 1 pair, 12 give 6."""
    return u[: len(u) // 2], u[len(u) // 2 :]


def mix(a, b, kappa):
    """(1 - κ) a + κ b, a κ for each pair; of images, probabilities or logits."""
    kappa = kappa.reshape(-1, *[1] * (a.ndim - 1))
    return (1 - kappa) * a + kappa * b


def target(z0_teacher, z1_teacher, kappa, of="probabilities"):
    """(1 - κ) p'(u0) + κ p'(u1). ICT, of="logits": softmax((1 - κ) z'(u0) + κ z'(u1)). No
    gradient.
    """
    if of == "logits":
        return softmax(mix(z0_teacher, z1_teacher, kappa))
    return mix(softmax(z0_teacher), softmax(z1_teacher), kappa)


def consistency(z_mixed, z0_teacher, z1_teacher, kappa, of="probabilities"):
    """The mean over pairs, classes and voxels. Gradient reaches z_mixed only."""
    return mean_squared_error(softmax(z_mixed), target(z0_teacher, z1_teacher, kappa, of))


def loss(
    z_l,
    label,
    z_mixed,
    z0_teacher,
    z1_teacher,
    kappa,
    weight,
    of="probabilities",
    dice=dice_ssl4mis,
):
    """The whole loss of a step; weight is λ(t). Gradient reaches z_l and z_mixed; the teacher's
    logits: no gradient.
    """
    unlabelled = consistency(z_mixed, z0_teacher, z1_teacher, kappa, of)
    return supervised(z_l, label, dice) + weight * unlabelled


def mixed_cross_entropy(z_mixed_l, label0, label1, kappa):
    """ICT mixes the labelled images too: the mean over pairs of (1 - κ) CE(z, y0) + κ CE(z, y1), of
    the logits of (1 - κ) x0 + κ x1. SSL4MIS does not. Open: how ICT pairs its labelled images.
    """
    total = 0.0
    for i in range(len(z_mixed_l)):
        one = slice(i, i + 1)
        total += (1 - kappa[i]) * cross_entropy(z_mixed_l[one], label0[one])
        total += kappa[i] * cross_entropy(z_mixed_l[one], label1[one])
    return total / len(z_mixed_l)
