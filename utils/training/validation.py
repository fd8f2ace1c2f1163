"""The Dice of networks on cases kept aside, as selection of a checkpoint needs it: quick, and the
same every time.
"""

from collections.abc import Sequence

import torch
from torch import nn

from utils import distributed
from utils.inference import mean_probability, whole_image


def validation_dice(
    networks: Sequence[nn.Module], cases: dict, patch: Sequence[int], num_classes: int, **options
) -> list[float]:
    """Dice of each foreground class, the mean over cases, of the networks' mean softmax.

    Windows overlap by half, and no component is filtered: a choice among checkpoints needs no more.
    A case's slices are scored together. A class that a case has in neither prediction nor label is
    left out of the mean. The processes of torchrun share the cases out.

    Args:
        networks: in any mode, which they are in again afterwards.
        cases: by name, pairs of image and label, ``(X, Y, Z)``, ``(H, W, slices)`` or ``(H, W)``.
        patch: extents of a window or of a slice.
        num_classes: background included.
        options: device, precision and batch of :func:`utils.inference.whole_image`.

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


def _case_dice(predictor, pairs, patch, stride, num_classes, options) -> torch.Tensor:
    both, sizes = torch.zeros(2, num_classes - 1, dtype=torch.float64)
    for image, label in pairs:
        pred = whole_image(predictor, image, patch, stride, num_classes, **options).argmax(0).cpu()
        for c in range(1, num_classes):
            one, other = pred == c, label == c
            both[c - 1] += (one & other).sum()
            sizes[c - 1] += one.sum() + other.sum()
    return 2 * both / sizes  # 0 / 0 is NaN
