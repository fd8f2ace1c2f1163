"""The Dice of networks on cases kept aside, by which a checkpoint is chosen."""

from collections.abc import Callable, Sequence

import torch
from torch import nn

from utils import distributed
from utils.inference import mean_probability, whole_image


def validation_dice(
    networks: Sequence[nn.Module], cases: dict, patch: Sequence[int], num_classes: int, **options
) -> list[float]:
    """Dice of each foreground class, the mean over cases, of the networks' mean softmax.

    Windows overlap by half, and no component is filtered: the choice needs no more. A case's slices
    are scored together. A class that a case has in neither prediction nor label is left out of the
    mean. The processes of torchrun share the cases.

    Args:
        networks: in any mode; they are in it again afterwards.
        cases: by name, pairs of image and label, `(X, Y, Z)`, `(H, W, slices)` or `(H, W)`.
        patch: extents of a window or of a slice.
        num_classes: background included.
        options: device, precision and batch of `utils.inference.whole_image`.

    Returns:
        Fractions, one a foreground class; 0 for a class that no case has.
    """
    stride = [max(1, extent // 2) for extent in patch] if len(patch) == 3 else None
    modes = [network.training for network in networks]
    for network in networks:
        network.eval()
    try:
        predictor = mean_probability(networks)
        own = distributed.share_out(cases.values())
        scores = [
            _case_dice(predictor, pairs, patch, stride, num_classes, options) for pairs in own
        ]
    finally:
        for network, mode in zip(networks, modes, strict=True):
            network.train(mode)
    scores = distributed.collect(scores)
    return torch.stack(scores).nanmean(0).nan_to_num(0.0).tolist()


def _case_dice(
    predictor: Callable[[torch.Tensor], torch.Tensor],
    pairs: Sequence[tuple[torch.Tensor, torch.Tensor]],
    patch: Sequence[int],
    stride: Sequence[int] | None,
    num_classes: int,
    options: dict,
) -> torch.Tensor:
    """Dice of each foreground class, `(C - 1,)`; NaN for a class that is nowhere."""
    both = torch.zeros(num_classes - 1, dtype=torch.float64)
    sizes = torch.zeros(num_classes - 1, dtype=torch.float64)
    for image, label in pairs:
        pred = whole_image(predictor, image, patch, stride, num_classes, **options).argmax(0).cpu()
        for c in range(1, num_classes):
            predicted = pred == c
            true = label == c
            both[c - 1] += (predicted & true).sum()
            sizes[c - 1] += predicted.sum() + true.sum()
    return 2 * both / sizes  # 0 / 0 is NaN
