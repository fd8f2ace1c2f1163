"""Losses that several methods share; what a single paper introduces stands in its own script.

All compute in float32 or better, whatever the precision of the network's output.
"""

import torch
import torch.nn.functional as F


def _wide(values):
    """Float32, or float64 where it is that already, as where gradients are checked."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def dice_loss(prob, target, eps=1e-5):
    """Dice loss with squares in the denominator (Milletari et al., 3DV 2016): 1 - (2 Σpy + ε) / (Σp² + Σy² + ε).

    Args:
        prob: probabilities of one class, any shape.
        target: of the same shape; {0, 1} or probabilities.

    Raises:
        ValueError: the shapes differ (they would broadcast to a wrong number).
    """
    if prob.shape != target.shape:
        raise ValueError(f"prob {tuple(prob.shape)} and target {tuple(target.shape)} must have one shape")
    prob, target = _wide(prob), _wide(target)
    overlap = (prob * target).sum()
    return 1 - (2 * overlap + eps) / (prob.square().sum() + target.square().sum() + eps)


def foreground_dice_loss(prob, label, mask=None):
    """Mean of `dice_loss` over the foreground classes: prob `(B, C, *S)`, label `(B, *S)` integers.

    With `mask`, bool `(B, *S)`, over its voxels alone.
    """
    classes = range(1, prob.shape[1])
    if mask is None:
        return sum(dice_loss(prob[:, c], label == c) for c in classes) / len(classes)
    return sum(dice_loss(prob[:, c] * mask, mask & (label == c)) for c in classes) / len(classes)


def mean_dice_loss(prob, target):
    """Mean of `dice_loss` over the channels: both `(B, K, *S)`."""
    return sum(dice_loss(p, t) for p, t in zip(prob.unbind(1), target.unbind(1), strict=True)) / prob.shape[1]


def supervised_loss(logits, label):
    """(CE + Dice) / 2, Dice over the foreground: logits `(B, C, *S)`, label `(B, *S)` int64."""
    logits = _wide(logits)
    return (F.cross_entropy(logits, label) + foreground_dice_loss(logits.softmax(1), label)) / 2


def distance_to_mask(sdm, steepness=1500.0):
    """σ(-k d), a mask from a signed distance map that is negative inside (Luo et al., AAAI 2021)."""
    return torch.sigmoid(-steepness * sdm)


def masked_mean(values, mask):
    """Mean of `values` where `mask` (same shape, bool or weights) is set; 0 where it is set nowhere."""
    mask = mask.to(values.dtype)
    return (values * mask).sum() / mask.sum().clamp(min=torch.finfo(values.dtype).tiny)
