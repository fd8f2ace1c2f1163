"""Virtual adversarial training in NumPy, its direction also in torch: "VAT" of the facts.

d ← ∇_d KL(p(x) ‖ p(x + ξ d/|d|)), one power step, |·| per sample; r = ε d/|d|;
L = L_sup + λ(t) KL(stopgrad p(x) ‖ p(x + r)) on L ∪ U.

As the ports do it, d is normalised first and the gradient is taken at the normalised d; the
derivative of d/|d| itself is not part of it. The perturbed passes update no batch-norm statistics,
and the direction's pass leaves no gradient in the model's parameters.
"""

import numpy as np
import torch
from numpy_reference import softmax
from references.shared import (
    dice_ssl4mis,
    dice_without_squares,
    log_softmax,
    ramp,
    supervised,
)

# (ξ, ε): here as SS-Net's on LA
SETTINGS = {"LA": (10.0, 10.0), "ACDC": (10.0, 6.0), "port": (10.0, 1.0)}


def consistency_weight(t, tmax, weight=0.1):
    """Here: λ(t) = 0.1 r(t, tmax), smooth in t."""
    return weight * ramp(t, tmax)


def consistency_weight_dct(epoch, weight=0.5, first=10, last=80):
    """DCT-Seg's repository: 0.5 ramped over epochs 10 to 80; its form is open: 0 before epoch 10,
    then 0.5 r(epoch - 10, 70).
    """
    return 0.0 if epoch < first else weight * ramp(epoch - first, last - first)


# Distances


def kl(z, z_perturbed, mean_over="voxels"):
    """KL(p ‖ q) = Σ_c p (ln p - ln q) of p = softmax(z), q = softmax(z_perturbed): the mean over
    images and voxels, or, as in the port, the sum over voxels and the mean over images
    (mean_over="images"). Which is open. Gradient reaches z_perturbed; z: no gradient.
    """
    voxels = (softmax(z) * (log_softmax(z) - log_softmax(z_perturbed))).sum(1)
    return voxels.mean() if mean_over == "voxels" else voxels.sum() / len(z)


def dice_distance(z, z_perturbed):
    """SS-Net on LA, in place of KL: 1 - (2 Σ p q + 1e-8) / (Σ p + Σ q + 1e-8) of the objects'
    probabilities over the batch, the mean over objects. p = softmax(z): no gradient.
    """
    p, q = softmax(z), softmax(z_perturbed)
    losses = [dice_without_squares(q[:, k], p[:, k], 1e-8) for k in range(1, p.shape[1])]
    return sum(losses) / len(losses)


# The direction


def normalise(d):
    """d/|d|, the norm over all but the first axis. A zero stays zero (open)."""
    unit = np.zeros_like(d)
    for i in range(len(d)):
        norm = np.sqrt((d[i] ** 2).sum())
        if norm > 0:
            unit[i] = d[i] / norm
    return unit


def random_start(rng, shape):
    """Normal numbers (open); direction() normalises them."""
    return rng.standard_normal(shape)


def direction(x, d, gradient, xi):
    """One power step: the unit vector along ∇ KL at x + ξ d/|d|. `gradient(x, x_perturbed)` is the
    gradient of the KL with respect to x_perturbed, for example of linear_gradient. Positive factors
    of the KL, such as 1/voxels, cancel, as each sample is normalised.
    """
    return normalise(gradient(x, x + xi * normalise(d)))


def perturbation(x, d, gradient, xi=10.0, eps=10.0):
    """r = ε d/|d| after one power step. No gradient runs through r."""
    return eps * direction(x, d, gradient, xi)


def clipped(x, r):
    """DCT-Seg's repository: x + r clipped to [0, 1]. The others do not clip."""
    return np.clip(x + r, 0, 1)


def linear_model(x, W, b):
    """A 1×1 convolution: z[i, c] = Σ_k W[c, k] x[i, k] + b[c] at each voxel."""
    z = np.zeros((len(x), len(W), *x.shape[2:]))
    for c in range(len(W)):
        z[:, c] = b[c]
        for k in range(x.shape[1]):
            z[:, c] += W[c, k] * x[:, k]
    return z


def linear_gradient(W, b, mean_over="voxels"):
    """The function `gradient` of the linear model for KL: ∂KL/∂z_perturbed = q - p at each voxel,
    so ∂KL/∂x[k] = Σ_c W[c, k] (q - p)[c], divided as kl() is.
    """

    def gradient(x, x_perturbed):
        p = softmax(linear_model(x, W, b))
        q = softmax(linear_model(x_perturbed, W, b))
        g = np.zeros_like(x)
        for k in range(x.shape[1]):
            for c in range(len(W)):
                g[:, k] += W[c, k] * (q - p)[:, c]
        voxels = p[:, 0].size
        return g / (voxels if mean_over == "voxels" else len(x))

    return gradient


def model_gradient(model, distance="kl"):
    """The function `gradient` of any torch model in float64 (its input to its logits), by autograd
    with respect to the input only, so that the parameters' .grad stay as they are. distance: "kl",
    or SS-Net's "dice".
    """

    def gradient(x, x_perturbed):
        with torch.no_grad():
            p = torch.softmax(model(torch.from_numpy(x)), 1)
        at = torch.from_numpy(x_perturbed).requires_grad_()
        z = model(at)
        if distance == "kl":
            q = torch.log_softmax(z, 1)
            value = (p * (torch.log(p.clamp_min(1e-300)) - q)).sum(1).mean()
        else:
            q = torch.softmax(z, 1)
            value = 0
            for k in range(1, p.shape[1]):
                above = 2 * (p[:, k] * q[:, k]).sum() + 1e-8
                value = value + 1 - above / (p[:, k].sum() + q[:, k].sum() + 1e-8)
            value = value / (p.shape[1] - 1)
        (g,) = torch.autograd.grad(value, at)
        return g.numpy()

    return gradient


# The loss


def loss(z_l, label, z_u, z_l_perturbed, z_u_perturbed, weight, distance=kl, dice=dice_ssl4mis):
    """The whole loss of a step; weight is λ(t); distance: kl, or dice_distance for SS-Net's. z_l
    and z_u are of the clean pass, the others of x + r. Gradient reaches z_l by L_sup only,
    the perturbed logits by the distance, and z_u not at all.
    """
    clean = np.concatenate([z_l, z_u])
    perturbed = np.concatenate([z_l_perturbed, z_u_perturbed])
    return supervised(z_l, label, dice) + weight * distance(clean, perturbed)
