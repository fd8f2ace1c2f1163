"""Losses that several methods share; what a single paper introduces stands in its own script.

All compute in float32 or better, whatever the precision of the network's output. Under torchrun
their sums run over the voxels of all processes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from utils.distributed import total, world_size
from utils.ops import normalized_sdm


def _wide(values: Tensor) -> Tensor:
    """Float32, or float64 where it is that already, as where gradients are checked."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def dice_loss(prob: Tensor, target: Tensor, eps: float = 1e-5, squares: bool = True) -> Tensor:
    """Dice loss with squares in the denominator (Milletari et al., 3DV 2016): 1 - (2 Σpy + ε) /
    (Σp² + Σy² + ε).

    Args:
        prob: probabilities of one class, any shape.
        target: of the same shape; {0, 1} or probabilities.
        eps: ε.
        squares: False for Σp + Σy in the denominator (MC-Net's code).

    Raises:
        ValueError: the shapes differ (they would broadcast to a wrong number).
    """
    if prob.shape != target.shape:
        raise ValueError(
            f"prob {tuple(prob.shape)} and target {tuple(target.shape)} must have one shape"
        )
    prob, target = _wide(prob), _wide(target)
    sizes = (prob.square(), target.square()) if squares else (prob, target)
    overlap, p, t = total(torch.stack(((prob * target).sum(), sizes[0].sum(), sizes[1].sum())))
    return 1 - (2 * overlap + eps) / (p + t + eps)


def class_dice_loss(
    prob: Tensor,
    label: Tensor,
    mask: Tensor | None = None,
    *,
    background: bool = True,
    eps: float = 1e-5,
    squares: bool = True,
) -> Tensor:
    """Mean of `dice_loss` over the classes (SSL4MIS).

    Args:
        prob: `(B, C, *S)`.
        label: integers `(B, *S)`.
        mask: only its voxels count, bool `(B, *S)`.
        background: False leaves class 0 out.
        eps, squares: of `dice_loss`.
    """
    classes = range(0 if background else 1, prob.shape[1])
    losses = []
    for c in classes:
        p, y = prob[:, c], label == c
        if mask is not None:
            p, y = p * mask, y & mask
        losses.append(dice_loss(p, y, eps, squares))
    return sum(losses) / len(losses)


def foreground_dice_loss(prob: Tensor, label: Tensor, mask: Tensor | None = None) -> Tensor:
    """`class_dice_loss` over the foreground classes: prob `(B, C, *S)`, label `(B, *S)` integers.

    With `mask`, bool `(B, *S)`, only its voxels count.
    """
    return class_dice_loss(prob, label, mask, background=False)


def mean_dice_loss(prob: Tensor, target: Tensor) -> Tensor:
    """Mean of `dice_loss` over the channels: both `(B, K, *S)`."""
    return (
        sum(dice_loss(p, t) for p, t in zip(prob.unbind(1), target.unbind(1), strict=True))
        / prob.shape[1]
    )


def cross_entropy(
    logits: Tensor, label: Tensor, weight: Tensor | None = None, reduction: str = "mean"
) -> Tensor:
    """`torch.nn.functional.cross_entropy`, apart from two cases.

    With class weights the mean is taken over the voxels of all processes. With `--deterministic 1`
    a GPU sums over voxels in a fixed order, which torch's own sum does not.

    Args:
        logits: `(B, C, *S)`.
        label: int64 `(B, *S)`.
        weight: of the classes, `(C,)`.
        reduction: `mean` or `none`.
    """
    logits = _wide(logits)
    fixed = logits.is_cuda and torch.are_deterministic_algorithms_enabled()
    if not fixed and (world_size() == 1 or weight is None or reduction == "none"):
        return F.cross_entropy(logits, label, weight, reduction=reduction)
    return _summed_cross_entropy(logits, label, weight, reduction)


def _summed_cross_entropy(
    logits: Tensor, label: Tensor, weight: Tensor | None, reduction: str
) -> Tensor:
    of_class = (-1, *[1] * (label.ndim - 1))
    classes = torch.arange(logits.shape[1], device=label.device).view(of_class)
    one_hot = label.unsqueeze(1) == classes
    share = one_hot if weight is None else one_hot * weight.view(of_class)
    losses = -(logits.log_softmax(1) * share).sum(1)
    if reduction == "none":
        return losses
    if weight is None:
        return losses.mean()
    weighted, weights = total(torch.stack((losses.sum(), share.sum())))
    return weighted / weights


def supervised_loss(logits: Tensor, label: Tensor, background: bool = False) -> Tensor:
    """(CE + Dice) / 2: logits `(B, C, *S)`, label `(B, *S)` int64.

    Dice is the mean over the foreground classes; with `background` over all classes (SSL4MIS).
    """
    logits = _wide(logits)
    dice = class_dice_loss(logits.softmax(1), label, background=background)
    return (cross_entropy(logits, label) + dice) / 2


def distance_to_mask(sdm: Tensor, steepness: float = 1500.0) -> Tensor:
    """σ(-k d): a mask from a signed distance map, negative inside (Luo et al., AAAI 2021)."""
    return torch.sigmoid(-steepness * sdm)


def sdm_targets(masks: Tensor) -> Tensor:
    """Signed distance maps to learn, `(B, K, *S)`: `normalized_sdm` of masks, bool `(B, K, *S)`.

    Where a crop lacks the class the map is 1 everywhere. The published map is 0 there, the value of
    a boundary, from which σ(-k d) makes 1/2 of a class that is nowhere.
    """
    sdm = normalized_sdm(masks.flatten(0, 1)).view_as(masks)
    absent = ~masks.flatten(2).any(2)
    return sdm + absent.view(*absent.shape, *[1] * (masks.ndim - 2))


def class_masks(label: Tensor, classes: int) -> Tensor:
    """A label `(B, *S)` as one bool mask for each of so many foreground classes, `(B, K, *S)`."""
    return torch.stack([label == c for c in range(1, classes + 1)], 1)


def distance_loss(sdm: Tensor, label: Tensor) -> Tensor:
    """mean (d - SDM(Y))² of signed distance maps `(B, C - 1, *S)` and labels `(B, *S)`."""
    return (sdm - sdm_targets(class_masks(label, sdm.shape[1]))).square().mean()


def adversarial_loss(verdict: Tensor) -> Tensor:
    """CE of a discriminator's logits `(B, 2)` against "labelled", class 1: what it judged ought to
    pass for outputs on labelled crops.
    """
    return cross_entropy(verdict, torch.ones_like(verdict[:, 0], dtype=torch.long))


def discriminator_loss(verdict: Tensor, labelled: int) -> Tensor:
    """CE of a discriminator's logits `(B, 2)` against the truth: 1 for the first `labelled` crops,
    0 for the others.
    """
    truth = torch.arange(len(verdict), device=verdict.device) < labelled
    return cross_entropy(verdict, truth.long())


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of `values` where `mask` (same shape, bool or weights) is set; 0 if it is nowhere."""
    mask = mask.to(values.dtype)
    weighted, weights = total(torch.stack(((values * mask).sum(), mask.sum())))
    return weighted / weights.clamp(min=torch.finfo(values.dtype).tiny)
