"""TCSE (TCSM) in NumPy: "TCSE (TCSM)" of the facts.

L = CE + λ(t) mean (p(x) - π⁻¹ p'(π(x + noise)))². π is a rotation by 90° `turns` times in the plane
of the first two spatial axes, then a flip along one spatial axis or none (open: the order); no
scaling in 3-D. z_teacher are the teacher's logits of π(x + noise), in π's frame.
"""

import numpy as np
from numpy_reference import softmax
from references.shared import (
    cross_entropy,
    mean_squared_error,
    ramp,
    supervised,
    teacher_decay,
)


def consistency_weight(epoch, length=600, weight=1.0):
    """λ = r(epoch, 600) of 800 epochs of 10 steps: 600 of 800 epochs. In steps: length = 0.75 tmax.
    The facts propose no other ramp.
    """
    return weight * ramp(epoch, length)


def original_teacher_decay(t):
    """Code: at most 0.999 instead of 0.99."""
    return teacher_decay(t, most=0.999)


def transform(x, turns, flip=None):
    """π of `(B, C, *S)` or a label `(B, 1, *S)`: turn, then flip. flip is None or a spatial axis
    0, 1, 2. One π for the batch; give parts of a batch apart for one each.
    """
    x = np.rot90(x, turns, axes=(2, 3))
    return x if flip is None else np.flip(x, flip + 2)


def inverse(x, turns, flip=None):
    """π⁻¹: flip, then turn back."""
    x = x if flip is None else np.flip(x, flip + 2)
    return np.rot90(x, -turns, axes=(2, 3))


def consistency(z, z_teacher, turns, flip=None):
    """mean over images, classes and voxels of (p - π⁻¹ p')². Gradient reaches z; z_teacher: no
    gradient.
    """
    return mean_squared_error(softmax(z), inverse(softmax(z_teacher), turns, flip))


def loss(
    z_l,
    label,
    z_u,
    z_teacher,
    weight,
    turns,
    flip=None,
    on="u",
    class_weights=None,
    dice=None,
):
    """The whole loss of a step; weight is λ(t). on="u": z_teacher holds U; on="lu" (`--wlabeled`):
    L and then U. class_weights: the code's (1.93, 8.06) (open: the order, background first). dice:
    None is the facts' CE only; a Dice of shared.py makes it (CE + Dice)/2 (open). Gradient
    reaches z_l and z_u; z_teacher: no gradient.

    Released: both outputs of the consistency are under no_grad. The value is the same, but the
    gradient is that of the labelled loss only: `released_gradient_loss`.
    """
    z = z_u if on == "u" else np.concatenate([z_l, z_u])
    labelled = labelled_loss(z_l, label, class_weights, dice)
    return labelled + weight * consistency(z, z_teacher, turns, flip)


def labelled_loss(z_l, label, class_weights=None, dice=None):
    """CE, weighted by class as torch does (the sum of the weights divides), or (CE + Dice)/2."""
    if dice is not None:
        return supervised(z_l, label, dice)
    return cross_entropy(z_l, label, class_weights=class_weights)


def released_gradient_loss(z_l, label, class_weights=None):
    """The function whose gradient the released code follows: labelled_loss."""
    return labelled_loss(z_l, label, class_weights)
