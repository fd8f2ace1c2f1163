"""Discriminators, which tell a network's outputs on labelled crops from those on unlabelled ones.

A method trains two networks in turn: the segmenter's step makes the discriminator take its outputs
on unlabelled crops for outputs on labelled ones; the discriminator's step learns to tell them
apart. For the first call `judge`, for the second the discriminator itself.

    verdict = judge(discriminator, maps, image)         a gradient to `maps`, none to the weights
    verdict = discriminator(maps.detach(), image)       a gradient to the weights
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import ClassVar

import torch
import torch.nn as nn
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from networks.base import CONV

CHANNEL_DROPOUT = {2: nn.Dropout2d, 3: nn.Dropout3d}


def judge(discriminator: nn.Module, *inputs: Tensor) -> Tensor:
    """The output of a discriminator that judges and does not learn: in eval mode, and a loss of the
    output has a gradient for the inputs and none for the discriminator's weights.

    So the step of another network can neither change nor disturb the discriminator's own step,
    whatever is summed up with `--accumulate` or between the processes of torchrun.

    Args:
        discriminator: the network, or what `Run.parallel` makes of it.
        inputs: of its forward pass.
    """
    if isinstance(discriminator, DistributedDataParallel):
        discriminator = discriminator.module  # which has no gradients to average here
    learning = [p for p in discriminator.parameters() if p.requires_grad]
    modes = [(module, module.training) for module in discriminator.modules()]
    try:
        discriminator.eval()
        for parameter in learning:
            parameter.requires_grad_(False)
        return discriminator(*inputs)
    finally:
        for module, training in modes:
            module.training = training
        for parameter in learning:
            parameter.requires_grad_(True)


def halve(dims: int, in_channels: int, channels: int) -> nn.Module:
    """A convolution of size 4 that halves the extents, rounded down."""
    return CONV[dims](in_channels, channels, 4, stride=2, padding=1)


class Discriminator(nn.Module):
    """What both discriminators share; a subclass has `stages`, which `run` calls.

    Class attributes:
        halvings: how often the extents are halved; each must be at least 2^halvings.

    Attributes:
        dims: axes of S.
        config: all arguments of the constructor.
    """

    halvings: ClassVar[int]
    stages: nn.ModuleList
    _recompute = False

    def checkpoint_activations(self, on: bool = True) -> None:
        """In training store only each stage's input and recompute the rest in the backward pass."""
        self._recompute = bool(on)

    def run(self, x: Tensor) -> Tensor:
        """The stages one after another."""
        for stage in self.stages:
            if self._recompute and self.training and torch.is_grad_enabled():
                x = checkpoint(stage, x, use_reentrant=False)
            else:
                x = stage(x)
        return x

    def check(self, maps: Tensor) -> None:
        """Raise `ValueError` unless `maps` is `(B, C, *S)` with extents that can be halved."""
        least = 2**self.halvings
        if maps.ndim != self.dims + 2 or min(maps.shape[2:]) < least:
            raise ValueError(
                f"the input of {type(self).__name__} must be (B, C, *S), {self.dims} extents S of "
                f"at least {least}, got {tuple(maps.shape)}"
            )


class MapImageDiscriminator(Discriminator):
    """Judges a map together with its image (DAN; SASSNet).

    Map and image each go through a convolution to `n_filters` channels and are added up; three more
    convolutions lead to 8 times as many; a mean over all that is left and a linear layer give two
    logits. All convolutions are 4 wide and halve the extents, and have LeakyReLU 0.2 behind them;
    behind all but the last one channels are dropped.

    Args:
        map_channels: of the map: classes of a softmax, or signed distance maps.
        in_channels: of the image.
        dims: 2 or 3.
        n_filters: channels of the first stage.
        dropout: probability of dropping a channel in training.

    `forward` maps a map `(B, map_channels, *S)` and an image `(B, in_channels, *S)` to logits
    `(B, 2)`: 0 for unlabelled, 1 for labelled.
    """

    halvings = 4

    def __init__(
        self,
        map_channels: int = 2,
        in_channels: int = 1,
        dims: int = 3,
        n_filters: int = 64,
        dropout: float = 0.5,
    ):
        super().__init__()
        self.config = {
            "map_channels": map_channels,
            "in_channels": in_channels,
            "dims": dims,
            "n_filters": n_filters,
            "dropout": dropout,
        }
        self.dims = dims
        self.of_map = halve(dims, map_channels, n_filters)
        self.of_image = halve(dims, in_channels, n_filters)
        self.first = nn.Sequential(*self._behind(dropout))
        widths = [n_filters * 2**i for i in range(4)]  # 64, 128, 256, 512
        self.stages = nn.ModuleList(
            nn.Sequential(halve(dims, before, after), *self._behind(drop))
            for (before, after), drop in zip(pairwise(widths), (dropout, dropout, 0), strict=True)
        )
        self.linear = nn.Linear(widths[-1], 2)

    def _behind(self, dropout: float) -> Iterator[nn.Module]:
        yield nn.LeakyReLU(0.2, inplace=True)
        yield CHANNEL_DROPOUT[self.dims](dropout)

    def forward(self, maps: Tensor, image: Tensor) -> Tensor:
        self.check(maps)
        x = self.first(self.of_map(maps) + self.of_image(image))
        return self.linear(self.run(x).flatten(2).mean(2))


class PatchDiscriminator(Discriminator):
    """Judges each part of a map by itself (ADVENT): five convolutions, 4 wide, each of which halves
    the extents, with LeakyReLU 0.2 between them.

    Args:
        map_channels: of the map.
        dims: 2 or 3.
        n_filters: channels of the first stage; the next three have twice as many each.

    `forward` maps `(B, map_channels, *S)` to logits `(B, 1, *S/32)`: large where it takes a part
    for one of a labelled crop.
    """

    halvings = 5

    def __init__(self, map_channels: int = 2, dims: int = 3, n_filters: int = 64):
        super().__init__()
        self.config = {"map_channels": map_channels, "dims": dims, "n_filters": n_filters}
        self.dims = dims
        widths = [map_channels, *(n_filters * 2**i for i in range(4))]
        self.stages = nn.ModuleList(
            nn.Sequential(halve(dims, before, after), nn.LeakyReLU(0.2, inplace=True))
            for before, after in pairwise(widths)
        )
        self.stages.append(halve(dims, widths[-1], 1))

    def forward(self, maps: Tensor) -> Tensor:
        self.check(maps)
        return self.run(maps)
