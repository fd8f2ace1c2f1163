"""Perturbations of a batch of images, which a consistency loss compares predictions under: noise,
mixtures of two images, and the direction in which a prediction changes most.

All draw from torch's global generator, which a run seeds by the step and the process.
"""

from collections.abc import Callable

import torch
from torch import Tensor


def noisy(image: Tensor, sd: float = 0.1, limit: float = 0.2) -> Tensor:
    """The image plus noise clamp(N(0, sd²), ±limit), whatever the scale of the image (UA-MT)."""
    return image + (sd * torch.randn_like(image)).clamp(-limit, limit)


def unit_norm(direction: Tensor) -> Tensor:
    """Each sample of `(B, ...)` divided by its Euclidean norm; a sample of zeros stays."""
    norms = direction.flatten(1).norm(dim=1).clamp(min=torch.finfo(direction.dtype).tiny)
    return direction / norms.view(-1, *[1] * (direction.ndim - 1))


def adversarial_direction(
    divergence: Callable[[Tensor], Tensor], image: Tensor, xi: float
) -> Tensor:
    """The direction in which a prediction changes most, by one step of power iteration from random
    noise (Miyato et al., TPAMI 2019): ∇_d divergence(ξ d/‖d‖), of norm 1 for each sample.

    No gradient is left in the network's parameters.

    Args:
        divergence: of the prediction for the image plus its argument from that for the image, 0-d.
        image: `(B, C, *S)`.
        xi: ξ, the length of the finite step.
    """
    direction = xi * unit_norm(torch.randn_like(image))
    with torch.enable_grad():
        direction.requires_grad_()
        (gradient,) = torch.autograd.grad(divergence(direction), direction)
    return unit_norm(gradient)
