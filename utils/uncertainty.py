"""Measures of uncertainty: the entropy of a prediction, and where a prediction is certain.

    tta          confidence of the mean softmax over views of the image (test-time augmentation)
    mcdropout    confidence of the mean softmax over passes with dropout
    aleatoric    standard deviation of the softmax over draws of noisy logits
    softmax      confidence of the prediction itself

The confidence is the softmax of the most likely class.
"""

import itertools
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from utils.inference import open_windows, whole_image, window_outputs
from utils.ops import WindowStitcher

Predictor = Callable[[Tensor], Tensor]

MEASURES = ("tta", "mcdropout", "aleatoric", "softmax")
SCALES = (0.8, 1.1)  # of the views of a slice


def entropy(prob: Tensor) -> Tensor:
    """-Σ p ln p of probabilities `(B, C, *S)`: `(B, *S)`, from 0 (sure) to ln C."""
    return -torch.xlogy(prob, prob).sum(1)


# ------------------------------------------------------------------------------- what is certain


def certain_region(
    network: nn.Module,
    image: np.ndarray | Tensor,
    measure: Namespace,
    patch: Sequence[int],
    stride: Sequence[int] | None,
    num_classes: int,
    **options,
) -> tuple[Tensor, Tensor]:
    """The prediction for a whole image, and where it is certain.

    Args:
        network: in eval mode; its `segment` gives the prediction's logits. For `aleatoric` its
            forward pass gives these logits and ln σ².
        image: `(*S)`.
        measure: `uncertainty`, which is one of `MEASURES`. `tta`: `views`, which are `random` or
            `flips`. `tta`, `mcdropout` and `aleatoric`: `looks`, the number of views, passes or
            draws. `aleatoric`: `certain_sd`, below which a voxel is certain. The others:
            `certain_confidence`, above which it is.
        patch, stride, num_classes: as in `whole_image`.
        options: device, precision, batch and progress of `whole_image`.

    Returns:
        Probabilities `(C, *S)` float32 and certain voxels bool `(*S)`.
    """
    kind = measure.uncertainty

    def softmax_of(x):
        return network.segment(x).float().softmax(1)

    def whole(predict, channels=num_classes):
        return whole_image(predict, image, patch, stride, channels, **options)

    prob = whole(softmax_of)
    if kind == "softmax":
        mean = prob
    elif kind == "aleatoric":
        sd = whole(lambda x: largest_sd_over_noise(*network(x), measure.looks), 1)[0]
        return prob, sd < measure.certain_sd
    elif kind == "mcdropout":
        mean = whole(lambda x: mean_over_dropout(network, x, measure.looks))
    elif measure.views == "flips":
        mean = whole(lambda x: mean_over_flips(softmax_of, x))
    elif len(patch) == 3:
        mean = mean_over_crops(softmax_of, image, patch, num_classes, measure.looks, **options)
    else:
        mean = whole(
            lambda x: mean_over_slice_views(softmax_of, x, measure.looks, network.multiples)
        )
    return prob, mean.amax(0) > measure.certain_confidence


# ------------------------------------------------------------------------------------------- views


def mean_over_flips(predict: Predictor, x: Tensor) -> Tensor:
    """Mean of `predict(x)` over all flips of the spatial axes of `x`, each flipped back.

    Args:
        predict: `(B, C_in, *S)` to `(B, C, *S)`.
        x: `(B, C_in, *S)`.
    """
    axes = range(2, x.ndim)
    flips = [flip for n in range(len(axes) + 1) for flip in itertools.combinations(axes, n)]
    return sum(predict(x.flip(flip)).flip(flip) for flip in flips) / len(flips)


def mean_over_slice_views(
    predict: Predictor, x: Tensor, looks: int, multiples: Sequence[int]
) -> Tensor:
    """Mean of `predict(x)` over random views of slices: each view is flipped from left to right one
    time in two, and scaled by a factor between 0.8 and 1.1. Its prediction is brought back.

    Args:
        predict: `(B, C_in, H, W)` to `(B, C, H, W)`, for any extents of these multiples.
        x: `(B, C_in, X, Y)`; all slices of a batch are seen in the same views.
        looks: number of views.
        multiples: a view is filled up to them with zeros, behind its last row and column.
    """
    extents = x.shape[2:]
    total = 0
    for _ in range(looks):
        flip = [3] if torch.rand(()) < 0.5 else []
        scale = torch.empty(()).uniform_(*SCALES).item()
        rows, columns = (max(1, round(scale * extent)) for extent in extents)
        view = F.interpolate(x.flip(flip), (rows, columns), mode="bilinear")
        below = -rows % multiples[0]
        behind = -columns % multiples[1]
        prob = predict(F.pad(view, (0, behind, 0, below)))[..., :rows, :columns]
        total = total + F.interpolate(prob, tuple(extents), mode="bilinear").flip(flip)
    return total / looks


def mean_over_crops(
    predict: Predictor,
    image: np.ndarray | Tensor,
    patch: Sequence[int],
    num_classes: int,
    looks: int,
    *,
    batch: int | None = None,
    device: torch.device | str = "cpu",
    precision: str = "fp32",
    progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Mean of the predictions for a volume over random crops.

    In each look crops of the patch's extents cover the volume side by side, from a random place
    on; those that would reach beyond an edge are moved into the volume. So each look sees each
    voxel, in another place of a crop. Where crops of a look overlap, their mean counts.

    Args:
        looks: number of looks.
        progress: called with (looks done, looks in all) after each.
        predict, image, patch, num_classes, batch, device, precision: as in `whole_image`.

    Returns:
        Probabilities `(C, *S)` float32.
    """
    volume, patch, _, inside = open_windows(image, patch, patch)
    device = torch.device(device)
    volume = volume.to(device)
    total = torch.zeros((num_classes, *volume.shape), device=device)
    for look in range(looks):
        starts = [
            random_starts(extent, size) for extent, size in zip(volume.shape, patch, strict=True)
        ]
        stitcher = WindowStitcher(
            volume.shape, patch, starts, num_classes, activation=None, device=device
        )
        for output in window_outputs(
            predict, volume, patch, starts, num_classes, batch, device, precision, None
        ):
            stitcher.add(output)
            del output
        total += stitcher.result()
        if progress is not None:
            progress(look + 1, looks)
    return (total / looks)[(slice(None), *inside)]


def random_starts(extent: int, size: int) -> list[int]:
    """The first voxels of windows of `size` that stand side by side along an axis of `extent`
    voxels, from a random place on; the outer ones are moved inside.
    """
    last = extent - size
    first = int(torch.randint(-size, 0, ()))
    return sorted({min(max(start, 0), last) for start in range(first, last + size, size)})


# --------------------------------------------------------------------------------- dropout, noise


def mean_over_dropout(network: nn.Module, x: Tensor, passes: int) -> Tensor:
    """Mean softmax `(B, C, *S)` over passes with dropout at the deepest and at the final feature.

    The encoder comes before both, so that it runs only once.

    Args:
        network: in eval mode; its `dropout` stands at these two places.
        x: `(B, C_in, *S)`.
        passes: number of passes.
    """
    *skips, deepest = network.encode(x)
    total = 0
    network.dropout.train()
    for _ in range(passes):
        final = network.decode([*skips, network.dropout(deepest)])
        total = total + network.heads[0](final).float().softmax(1)
    network.dropout.eval()
    return total / passes


def noisy_logits(logits: Tensor, log_variance: Tensor, draws: int) -> Iterator[Tensor]:
    """Draws of logits + σ ε (Kendall & Gal, NeurIPS 2017, equation 12).

    Args:
        logits: `(B, C, *S)`.
        log_variance: ln σ², of the same shape, clamped to [-20, 20]; ε is standard normal.
        draws: number of draws.
    """
    sigma = (log_variance.clamp(-20, 20) / 2).exp()
    for _ in range(draws):
        yield logits + sigma * torch.randn_like(logits)


def largest_sd_over_noise(logits: Tensor, log_variance: Tensor, draws: int) -> Tensor:
    """The standard deviation of the softmax over `noisy_logits`, of the class for which it is
    largest: `(B, 1, *S)`. The sum of squares is divided by the number of draws.
    """
    noisy = noisy_logits(logits.float(), log_variance.float(), draws)
    prob = torch.stack([z.softmax(1) for z in noisy])
    return prob.std(0, correction=0).amax(1, keepdim=True)
