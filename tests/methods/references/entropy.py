"""Entropy minimisation and its adversarial form (ADVENT) in NumPy: "Entropy minimisation (EM,
"Entropy Mini") and ADVNET" of the facts.

z_l, z_u: the network's logits of L and U. d_l, d_u: the patch discriminator's logits of L's and U's
entropy maps, any shape. The discriminator is given in torch, as a step's gradient runs through it.
"""

from itertools import pairwise

import numpy as np
import torch
from numpy_reference import softmax
from references.shared import (
    dice_ssl4mis,
    log_softmax,
    polynomial_learning_rate,
    ramp_in_blocks,
    supervised,
)

ADVERSARIAL_WEIGHT = 0.001
MINENT_WEIGHT = 0.001


# Direct form


def consistency_weight(t, weight=0.1, length=200):
    """λ(t) = 0.1 r(t//150, 200)."""
    return weight * ramp_in_blocks(t, length)


def entropy_maps(z):
    """I = -p ln p / ln C of each class, `(B, C, *S)`: the discriminator's input. p ln p is 0 at
    p = 0, and nothing is added inside the logarithm (open). Gradient reaches z in the segmenter's
    step, not in the discriminator's.
    """
    return -softmax(z) * log_softmax(z) / np.log(z.shape[1])


def entropy_loss(z):
    """The mean over images and voxels of -Σ_c p ln p / ln C, in [0, 1]. Gradient reaches z."""
    return entropy_maps(z).sum(1).mean()


def loss(z_l, label, z_u, weight, on="lu", dice=dice_ssl4mis):
    """EM: L_sup + λ(t) entropy on L ∪ U (one mean over both). Gradient reaches z_l and z_u."""
    z = z_u if on == "u" else np.concatenate([z_l, z_u])
    return supervised(z_l, label, dice) + weight * entropy_loss(z)


def loss_minent(z_l, label, z_u, dice=dice_ssl4mis):
    """Original MinEnt: U only, 0.001, no ramp."""
    return loss(z_l, label, z_u, MINENT_WEIGHT, on="u", dice=dice)


# Adversarial form


def binary_cross_entropy(d, target):
    """The mean over all patches of BCE between σ(d) and target 0 or 1; d are logits."""
    return (np.logaddexp(0, d) - target * d).mean()


def segmenter_loss(z_l, label, d_u, weight=ADVERSARIAL_WEIGHT, labelled=1, dice=dice_ssl4mis):
    """L_sup + 0.001 BCE(D(I_u), labelled). Gradient reaches z_l, and through D and I_u the network;
    D's parameters get no update. Which number `labelled` is, is open: 1 as in the shared
    discriminator.
    """
    return supervised(z_l, label, dice) + weight * binary_cross_entropy(d_u, labelled)


def discriminator_loss(d_l, d_u, labelled=1):
    """½ BCE(D(I_l), labelled) + ½ BCE(D(I_u), unlabelled). The maps are detached: gradient reaches
    D's parameters only.
    """
    halves = [binary_cross_entropy(d_l, labelled), binary_cross_entropy(d_u, 1 - labelled)]
    return sum(halves) / 2


def discriminator_learning_rate(t, tmax, base=1e-4, power=0.9):
    """Adam 1e-4, betas (0.9, 0.99), polynomial decay; the power 0.9 is open."""
    return polynomial_learning_rate(t, tmax, base, power)


def discriminator_parameters(classes, dims, generator):
    """Weights and biases of five convolutions 4×4 (3-D: 4×4×4) to 64, 128, 256, 512 and 1 channels,
    random, float64.
    """
    channels = [classes, 64, 128, 256, 512, 1]
    parameters = []
    for before, after in pairwise(channels):
        weight = generator.normal(0, 0.05, (after, before) + (4,) * dims)
        parameters.append((torch.from_numpy(weight), torch.zeros(after, dtype=torch.float64)))
    return parameters


def discriminator(maps, parameters):
    """Patch logits `(B, 1, *S/32)`: stride 2, padding 1 (open), LeakyReLU 0.2 between, none after
    the last. `maps` is a torch tensor `(B, C, *S)`.
    """
    convolution = {2: torch.nn.functional.conv2d, 3: torch.nn.functional.conv3d}[maps.dim() - 2]
    for i, (weight, bias) in enumerate(parameters):
        maps = convolution(maps, weight, bias, stride=2, padding=1)
        if i < len(parameters) - 1:
            maps = torch.nn.functional.leaky_relu(maps, 0.2)
    return maps
