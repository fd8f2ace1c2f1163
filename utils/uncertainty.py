"""Measures of uncertainty: entropy, and the mean predictions that it is taken of."""

import itertools
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd


def entropy(prob: Tensor) -> Tensor:
    """-Σ p ln p of probabilities `(B, C, *S)`: `(B, *S)`, from 0 (sure) to ln C."""
    return -torch.xlogy(prob, prob).sum(1)


def mean_over_flips(predict: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Mean of `predict(x)` over all flips of the spatial axes of `x`, each flipped back.

    Args:
        predict: `(B, C_in, *S)` to `(B, C, *S)`.
        x: `(B, C_in, *S)`.
    """
    axes = range(2, x.ndim)
    flips = [flip for n in range(len(axes) + 1) for flip in itertools.combinations(axes, n)]
    return sum(predict(x.flip(flip)).flip(flip) for flip in flips) / len(flips)


def mean_over_dropout(
    predict: Callable[[Tensor], Tensor], x: Tensor, network: nn.Module, passes: int
) -> Tensor:
    """Mean of `passes` times `predict(x)` with dropout switched on in `network`.

    The network is in eval mode before and after, so batch norm does not move.
    """
    layers = [layer for layer in network.modules() if isinstance(layer, _DropoutNd)]
    for layer in layers:
        layer.train()
    mean = sum(predict(x) for _ in range(passes)) / passes
    for layer in layers:
        layer.eval()
    return mean


def noisy_softmax(logits: Tensor, log_variance: Tensor, draws: int) -> Tensor:
    """Mean softmax of `draws` of logits + σ ε (Kendall & Gal, NeurIPS 2017, equation 12).

    Args:
        logits: `(B, C, *S)`.
        log_variance: ln σ², of the same shape, clamped to [-10, 10]; ε is standard normal.
        draws: number of draws.
    """
    sigma = (log_variance.clamp(-10, 10) / 2).exp()
    noisy = (logits + sigma * torch.randn_like(logits) for _ in range(draws))
    return sum(z.softmax(1) for z in noisy) / draws
