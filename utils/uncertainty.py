"""How sure a prediction is: entropy, and what it is taken of - means over flips, passes with
dropout, noisy logits.
"""

import itertools

import torch
from torch.nn.modules.dropout import _DropoutNd

from networks.one_vs_rest import problems


def entropy(prob):
    """-Σ p ln p of probabilities `(B, C, *S)`: `(B, *S)`, from 0 (sure) to ln C."""
    return -torch.xlogy(prob, prob).sum(1)


def mean_over_flips(predict, x):
    """Mean of `predict(x)` `(B, C, *S)` over all flips of the spatial axes of `x` `(B, 1, *S)`,
    each turned back.
    """
    axes = range(2, x.ndim)
    flips = [flip for n in range(len(axes) + 1) for flip in itertools.combinations(axes, n)]
    return sum(predict(x.flip(flip)).flip(flip) for flip in flips) / len(flips)


def mean_over_dropout(predict, x, network, passes):
    """Mean of some `predict(x)` of `network` in eval mode, but with dropout: batch norm stays
    put.
    """
    layers = [layer for layer in network.modules() if isinstance(layer, _DropoutNd)]
    for layer in layers:
        layer.train()
    mean = sum(predict(x) for _ in range(passes)) / passes
    for layer in layers:
        layer.eval()
    return mean


def noisy_softmax(logits, log_variance, draws):
    """Mean softmax of `draws` of logits + σ ε (Kendall & Gal, NeurIPS 2017, equation 12): all
    `(B, C, *S)`.

    ε is standard normal and σ² = exp(log_variance), kept between e⁻¹⁰ and e¹⁰.
    """
    sigma = (log_variance.clamp(-10, 10) / 2).exp()
    return sum((logits + sigma * torch.randn_like(logits)).softmax(1) for _ in range(draws)) / draws


def views(kind, network, x, draws):
    """What a network says of `x`, and what tells how sure it is, all as softmax `(B, ·, *S)` behind
    each other.

    The probabilities of the first branch, those of all binary problems behind each other, then as
    many again: for `crm` (conservative, radical) of the second and of the third branch, else one
    mean, over flips (`tta`), over `draws` passes with dropout (`mcdropout`), or over `draws` of
    logits with the noise that the second branch says (`aleatoric`).
    """

    def softmax(outputs, branch=0):
        return torch.cat([branches[branch].softmax(1) for branches in problems(outputs)], 1)

    outputs = network(x)
    if kind == "crm":
        others = [softmax(outputs, branch) for branch in (1, 2)]
    elif kind == "tta":
        others = [mean_over_flips(lambda flipped: softmax(network(flipped)), x)]
    elif kind == "mcdropout":
        others = [mean_over_dropout(lambda same: softmax(network(same)), x, network, draws)]
    else:
        others = [
            noisy_softmax(logits, log_variance, draws) for logits, log_variance in problems(outputs)
        ]
    return torch.cat([softmax(outputs), *others], 1)
