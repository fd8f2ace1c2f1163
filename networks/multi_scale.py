"""Segmentation at four scales of one decoder (URPC; Luo et al., MICCAI 2021).

It is built on any network of `networks.network_class`: each of the last four levels of the decoder
gets a head, whose logits are enlarged to the image's extents.
"""

from collections.abc import Sequence

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from networks import NETWORKS, network_class
from networks.base import CONV

SCALES = 4


class MultiScale(nn.Module):
    """A head at each of the decoder's last four levels.

    In training each level sees other perturbations. Of volumes, each level of the decoder drops
    channels, in place of the network's own dropout, and the next level sees what is left. Of
    slices, the network keeps its dropout, and what the three coarse heads see is perturbed:
    `dropped_channels`, `without_peaks` and `scaled`, from the coarsest on.

    Args:
        network: name of the architecture in `networks.NETWORKS`.
        in_channels: channels of the image.
        num_classes: background included.
        dropouts: for volumes, probability of dropping a channel of each level, the coarsest first.
        inference: build only what `segment` needs; `forward` is then `segment`.
        options: further arguments of the network's constructor.

    Raises:
        ValueError: no such architecture, or not four probabilities.
    """

    def __init__(
        self,
        network: str,
        in_channels: int = 1,
        num_classes: int = 2,
        dropouts: Sequence[float] = (0.5, 0.3, 0.2, 0.1),
        inference: bool = False,
        **options,
    ):
        super().__init__()
        if network not in NETWORKS:
            raise ValueError(f"network is one of {', '.join(NETWORKS)}, got {network!r}")
        if len(dropouts) != SCALES:
            raise ValueError(f"dropouts are {SCALES} numbers, got {len(dropouts)}")
        self.config = {
            "network": network,
            "in_channels": in_channels,
            "num_classes": num_classes,
            "dropouts": list(dropouts),
            "inference": inference,
            **options,
        }
        architecture = network_class(network)
        self.dims = architecture.dims
        if self.dims == 3:
            options = {**options, "dropout": 0.0}
        self.network = architecture(in_channels, num_classes, **options)
        self.multiples = self.network.multiples

        levels = self.network.decoder
        first = len(levels) - SCALES
        heads = [self.network.heads[0]]
        for k in range(len(levels) - 2, first - 1, -1):
            channels = _channels(levels[k])
            size = architecture.head_size
            heads.append(CONV[self.dims](channels, num_classes, size, padding=size // 2))
        self.network.heads = nn.ModuleList()
        self.heads = nn.ModuleList(heads[:1] if inference else heads)  # the finest is the first
        if self.dims == 3:
            for k, dropout in enumerate(dropouts, first):
                levels[k] = nn.Sequential(levels[k], nn.Dropout3d(dropout))

    def checkpoint_activations(self, on: bool = True) -> None:
        """`SegmentationNetwork.checkpoint_activations`."""
        self.network.checkpoint_activations(on)

    def segment(self, x: Tensor) -> Tensor:
        """Logits `(B, num_classes, *S)` of the finest head."""
        return self.heads[0](self.network.decode(self.network._encode(x)))

    def forward(self, x: Tensor) -> tuple[Tensor, ...] | Tensor:
        """The logits `(B, num_classes, *S)` of all heads, the finest first; of a network that was
        built for inference `segment`.
        """
        if self.config["inference"]:
            return self.segment(x)
        levels = self.network.decode_levels(self.network._encode(x))[-SCALES:]
        if self.dims == 2 and self.training:
            coarsest, coarse, fine, finest = levels
            levels = [dropped_channels(coarsest), without_peaks(coarse), scaled(fine), finest]
        logits = []
        for head, features in zip(self.heads, reversed(levels), strict=True):
            small = self.network.run_stage(head, features)
            logits.append(resize(small, x.shape[2:]))
        return tuple(logits)


def _channels(stage: nn.Module) -> int:
    """Channels of a stage's result."""
    convolutions = [m for m in stage.modules() if isinstance(m, (nn.Conv2d, nn.Conv3d))]
    return convolutions[-1].out_channels


def resize(logits: Tensor, extents: Sequence[int]) -> Tensor:
    """Logits `(B, C, *S)` in larger extents: of volumes by trilinear interpolation, corners not
    aligned, of slices by repeating.
    """
    if tuple(logits.shape[2:]) == tuple(extents):
        return logits
    if len(extents) == 2:
        return F.interpolate(logits, tuple(extents), mode="nearest")
    if logits.is_cuda and torch.are_deterministic_algorithms_enabled():
        return resize_by_axes(logits, extents)
    return F.interpolate(logits, tuple(extents), mode="trilinear", align_corners=False)


def resize_by_axes(x: Tensor, extents: Sequence[int]) -> Tensor:
    """Linear interpolation of `(B, C, *S)`, one axis after another, by products with matrices. A
    GPU sums these in a fixed order, which it does not in torch's trilinear gradient.
    """
    for axis, extent in enumerate(extents, 2):
        n = x.shape[axis]
        centres = (torch.arange(extent, device=x.device) + 0.5) * (n / extent) - 0.5
        places = torch.arange(n, device=x.device)
        apart = (centres.clamp(0, n - 1)[:, None] - places).abs()
        weights = (1 - apart).clamp(min=0).to(x.dtype)
        x = (x.movedim(axis, -1) @ weights.T).movedim(-1, axis)
    return x


# ------------------------------------------------------------------ what the heads of slices see


def dropped_channels(features: Tensor) -> Tensor:
    """Each channel of each sample is 0 with probability 1/2, and doubled otherwise."""
    return F.dropout2d(features, 0.5)


def without_peaks(features: Tensor) -> Tensor:
    """Features `(B, F, *S)` that are 0 where their mean over the channels is largest: from a share
    of its maximum over the sample on, which is drawn for all samples from 0.7 to 0.9.
    """
    mean = features.mean(1, keepdim=True)
    share = 0.7 + 0.2 * torch.rand((), device=features.device)
    return features * (mean < share * mean.amax((2, 3), keepdim=True))


def scaled(features: Tensor) -> Tensor:
    """Each value times a factor from 0.7 to 1.3, which is the same in all samples."""
    factors = 1 + 0.3 * (2 * torch.rand_like(features[:1]) - 1)
    return features * factors
