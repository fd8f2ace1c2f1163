"""Mean teacher in NumPy: "Mean teacher (MT)" of the facts (SSL4MIS's and UA-MT's code).

L = L_sup + λ(t) mean over U, voxels, classes of (p(x) - p'(x + ε))². z_l and z_u are the student's
logits of the clean labelled and unlabelled patches, z_teacher the teacher's of the noisy U. The
teacher's update and noise are in shared.py.
"""

from numpy_reference import softmax
from references.shared import (
    dice_ssl4mis,
    mean_squared_error,
    ramp_in_blocks,
    supervised,
    teacher_decay,
)


def consistency_weight(t, weight=0.1, length=200, block=150, start=0):
    """λ(t) = 0.1 r(t//150, 200), SSL4MIS's; 0 while t < start, which is 1000 on ACDC. UA-MT's
    recipe on LA has length = 40. block = 1 and length = tmax make it smooth. Open: the facts
    print "0.1 r" only; the arguments of r are recipe D's.
    """
    return 0.0 if t < start else weight * ramp_in_blocks(t, length, block)


def consistency(z_u, z_teacher):
    """Gradient reaches z_u; z_teacher: no gradient."""
    return mean_squared_error(softmax(z_u), softmax(z_teacher))


def loss(z_l, label, z_u, z_teacher, weight, dice=dice_ssl4mis):
    """The whole loss of a step; weight is λ(t). Gradient reaches z_l and z_u, not z_teacher."""
    return supervised(z_l, label, dice) + weight * consistency(z_u, z_teacher)


def original_teacher_decay(t):
    """The original's: at most 0.999 instead of 0.99."""
    return teacher_decay(t, most=0.999)
