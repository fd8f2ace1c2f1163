"""Gradients of DMD's distillation losses on a crop."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from utils.inference import Predictor

Loss = Callable[[Tensor, Tensor, float], Tensor]  # of the logits z_1 and z_2 `(B, C, *S)` and T


class Distillation(NamedTuple):
    """λ L_distill: a loss between two networks, its weight λ and its temperature T."""

    name: str
    loss: Loss
    weight: float
    temperature: float

    def __str__(self) -> str:
        return f"{self.name} (λ = {self.weight:g}, T = {self.temperature:g})"


def gradient_predictor(
    networks: Sequence[nn.Module], distillations: Sequence[Distillation]
) -> Predictor:
    """A predictor `(B, C_in, *S)` to `(B, 1 + n, *S)`: the argmax of the first network, and for
    each of the n losses its gradient with respect to that network's logits, the Euclidean length
    over the classes.
    """

    def predict(x: Tensor) -> Tensor:
        z_1, z_2 = (network.segment(x).float() for network in networks)
        maps = [z_1.argmax(1).float()]
        for one in distillations:
            maps.append(_gradient(one, z_1, z_2).norm(dim=1))
        return torch.stack(maps, 1)

    return predict


def _gradient(distillation: Distillation, z_1: Tensor, z_2: Tensor) -> Tensor:
    with torch.enable_grad():  # prediction runs without
        z = z_1.detach().requires_grad_()
        loss = distillation.weight * distillation.loss(z, z_2.detach(), distillation.temperature)
        (gradient,) = torch.autograd.grad(loss, z)
    return gradient


def crop_around(mask: np.ndarray, patch: Sequence[int]) -> tuple[slice, ...]:
    """A crop of the patch's extents with the mask's box in its middle, as far as the image goes;
    the middle of the image without a mask. Of a patch of two extents it is the slice where the mask
    is largest, as a whole.
    """
    if len(patch) == 2:
        place = int(mask.sum((0, 1)).argmax())
        return (slice(None), slice(None), slice(place, place + 1))
    crop = []
    for axis, (extent, wanted) in enumerate(zip(mask.shape, patch, strict=True)):
        others = tuple(a for a in range(3) if a != axis)
        shown = np.flatnonzero(mask.any(others))
        middle = (int(shown[0]) + int(shown[-1])) // 2 if len(shown) else extent // 2
        start = max(0, min(middle - wanted // 2, extent - wanted))
        crop.append(slice(start, min(start + wanted, extent)))
    return tuple(crop)
