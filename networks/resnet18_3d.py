"""CoraNet's 3-D ResNet-18 (Shi et al., TMI 2022, after Xia et al., WACV 2020).

ResNet-18 (He et al., CVPR 2016) with a 7×7×3 stem and 3×3×1 convolutions elsewhere, so that the
encoder sees volumes with about as many weights as in 2-D. Its features at 1/2, 1/4, 1/8, 1/16 and
1/32 have 64, 64, 128, 256 and 512 channels. Skips are added, and a 3×3×3 convolution follows each.

The papers leave some things open. Here max pooling halves the number of slices where a stage's
stride halves their extents, as in the released code. The stem strides along all axes, which saves
half of the largest features. Extents are rounded up on the way down and cropped on the way up, so
that they may be multiples of 16. The decoder goes on to full resolution with a quarter of the
channels (16 of 64), as many as V-Net has; the released one has dense blocks and stops at half
resolution.
"""

from itertools import pairwise

import torch.nn as nn
from torch import Tensor

from networks.base import Defaults, SegmentationNetwork, enlarge, norm, stage


def in_plane(in_channels: int, channels: int, size: int, stride: int, kind: str) -> nn.Sequential:
    """A convolution size×size×1 with an in-plane stride, and norm."""
    half = size // 2
    convolution = nn.Conv3d(
        in_channels, channels, (size, size, 1), (stride, stride, 1), (half, half, 0)
    )
    return nn.Sequential(convolution, norm(3, kind, channels))


def higher(grow: nn.Module, convolve: nn.Module, x: Tensor, skip: Tensor | None = None) -> Tensor:
    """A level of the decoder; the last has no skip."""
    x = grow(x)
    if skip is not None:
        extents = skip.shape[2:]
        x = x[..., : extents[0], : extents[1], : extents[2]] + skip
    return convolve(x)


class Block(nn.Module):
    """ResNet's basic block of two 3×3×1 convolutions; only the pooling of a `stride` of two joins
    slices.
    """

    def __init__(self, in_channels: int, channels: int, stride: int, kind: str):
        super().__init__()
        self.pool = nn.MaxPool3d((1, 1, stride), ceil_mode=True) if stride > 1 else nn.Identity()
        self.first = in_plane(in_channels, channels, 3, stride, kind)
        self.second = in_plane(channels, channels, 3, 1, kind)
        same = stride == 1 and in_channels == channels
        self.shortcut = nn.Identity() if same else in_plane(in_channels, channels, 1, stride, kind)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(x)
        return self.relu(self.second(self.relu(self.first(x))) + self.shortcut(x))


class ResNet18(SegmentationNetwork):
    """The options of `SegmentationNetwork`; dropout drops channels after the bottom and after the
    last stage.
    """

    multiples = (16, 16, 16)
    bottom = (32, 32, 32)
    pools_volumes = True
    defaults = Defaults(n_filters=64, dropout=0.0, upsampling="linear")
    source = "custom of the field: CoraNet"

    def build(
        self,
        in_channels: int,
        n_filters: int,
        normalization: str,
        dropout: float,
        upsampling: str,
    ) -> int:
        widths = [n_filters, n_filters, 2 * n_filters, 4 * n_filters, 8 * n_filters]
        stem = nn.Sequential(
            nn.Conv3d(in_channels, n_filters, (7, 7, 3), 2, (3, 3, 1)),
            norm(3, normalization, n_filters),
            nn.ReLU(inplace=True),
        )
        self.encoder = nn.ModuleList([stem])
        for i, (before, width) in enumerate(pairwise(widths)):
            shrink = nn.MaxPool3d(3, 2, 1) if i == 0 else nn.Identity()
            first = Block(before, width, 1 if i == 0 else 2, normalization)
            self.encoder.append(nn.Sequential(shrink, first, Block(width, width, 1, normalization)))
        self.ups = nn.ModuleList()
        self.decoder = nn.ModuleList()
        last = max(n_filters // 4, 1)
        for deep, width in zip(widths[::-1], [*widths[-2::-1], last], strict=True):
            if upsampling == "transposed":
                self.ups.append(nn.ConvTranspose3d(deep, width, 2, stride=2))
            else:
                self.ups.append(
                    nn.Sequential(nn.Conv3d(deep, width, 1), enlarge(3, kind=upsampling))
                )
            self.decoder.append(stage(3, 1, width, width, normalization))
        self.dropout = nn.Dropout3d(dropout)
        return last

    def encode(self, x: Tensor) -> list[Tensor]:
        """The features at 1/2 to 1/32; the last and deepest are `(B, 8·n_filters, ⌈X/32⌉, ⌈Y/32⌉,
        ⌈Z/32⌉)`.
        """
        features = []
        for convolve in self.encoder:
            x = self.run_stage(convolve, x)
            features.append(x)
        return [*features[:-1], self.dropout(features[-1])]

    def decode_levels(self, features: list[Tensor]) -> list[Tensor]:
        """From `encode`'s list to the features of the decoder's levels; the last are `(B, n_filters
        / 4, X, Y, Z)`.
        """
        levels = [features[-1]]
        for grow, convolve, skip in zip(self.ups, self.decoder, features[-2::-1], strict=False):
            levels.append(self.run_stage(higher, grow, convolve, levels[-1], skip))
        full = self.run_stage(higher, self.ups[-1], self.decoder[-1], levels[-1])
        return [*levels[1:], self.dropout(full)]
