"""V-Net with the encoder of a ResNet-34 (MCF; Wang et al., CVPR 2023), for volumes and for slices.

A convolution of size 7 and four groups of 3, 4, 6, 3 basic blocks (He et al., CVPR 2016) with 16,
32, 64, 128, 256 channels; the first block of each group halves the extents, and nothing is pooled.
The decoder is V-Net's (`vnet.py`): 3, 3, 2, 1 convolutions of size 3, transposed ones of size 2
lead up, skips are added.

MCF has it for volumes. For slices it is ours: the same with 2-D convolutions.
"""

import torch.nn as nn
from torch import Tensor

from networks.base import CONV, TRANSPOSED, Defaults, SegmentationNetwork, enlarge, norm, stage

BLOCKS = (3, 4, 6, 3)
CONVOLUTIONS = (3, 3, 2, 1)  # of the decoder
CHANNEL_DROPOUT = {2: nn.Dropout2d, 3: nn.Dropout3d}


def layer(
    dims: int, in_channels: int, channels: int, size: int, stride: int, kind: str
) -> nn.Sequential:
    """A convolution and norm."""
    convolution = CONV[dims](in_channels, channels, size, stride, size // 2)
    return nn.Sequential(convolution, norm(dims, kind, channels))


class Block(nn.Module):
    """ResNet's basic block: two convolutions of size 3 beside a shortcut.

    Args:
        dims: 2 or 3.
        in_channels, channels: before and behind the block.
        stride: 2 halves the extents.
        kind: of `norm`.
    """

    def __init__(self, dims: int, in_channels: int, channels: int, stride: int, kind: str):
        super().__init__()
        self.steps = (..., *[slice(None, None, stride)] * dims)
        self.first = layer(dims, in_channels, channels, 3, stride, kind)
        self.second = layer(dims, channels, channels, 3, 1, kind)
        same = stride == 1 and in_channels == channels
        self.shortcut = nn.Identity() if same else layer(dims, in_channels, channels, 1, 1, kind)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        # a strided convolution of size 1 is the same; oneDNN 3.12 (torch 2.13, CPU) writes beyond
        # its memory in it where channels are few and last
        shortcut = self.shortcut(x[self.steps])
        return self.relu(self.second(self.relu(self.first(x))) + shortcut)


class ResNet34(SegmentationNetwork):
    """The options of `SegmentationNetwork`; dropout drops channels after the bottom and after the
    last stage.
    """

    multiples = bottom = (16, 16, 16)
    defaults = Defaults(n_filters=16, dropout=0.5, upsampling="transposed")
    source = "released code: MCF"

    def build(
        self,
        in_channels: int,
        n_filters: int,
        normalization: str,
        dropout: float,
        upsampling: str,
    ) -> int:
        dims = self.dims
        stem = nn.Sequential(
            CONV[dims](in_channels, n_filters, 7, padding=3),
            norm(dims, normalization, n_filters),
            nn.ReLU(inplace=True),
        )
        widths = [n_filters * 2**i for i in range(5)]  # 16, 32, 64, 128, 256
        self.encoder = nn.ModuleList([stem])
        for n, before, width in zip(BLOCKS, widths, widths[1:], strict=False):
            first = Block(dims, before, width, 2, normalization)
            others = (Block(dims, width, width, 1, normalization) for _ in range(n - 1))
            self.encoder.append(nn.Sequential(first, *others))
        self.ups = nn.ModuleList(
            self._up(width, normalization, upsampling) for width in widths[:0:-1]
        )
        self.decoder = nn.ModuleList(
            stage(dims, n, width, width, normalization)
            for n, width in zip(CONVOLUTIONS, widths[-2::-1], strict=True)
        )
        self.dropout = CHANNEL_DROPOUT[dims](dropout)
        return n_filters

    def _up(self, channels: int, kind: str, upsampling: str) -> nn.Sequential:
        """Doubles the extents and halves the channels."""
        dims, half = self.dims, channels // 2
        if upsampling == "transposed":
            grow = [TRANSPOSED[dims](channels, half, 2, stride=2)]
        else:
            grow = [enlarge(dims, kind=upsampling), CONV[dims](channels, half, 3, padding=1)]
        return nn.Sequential(*grow, norm(dims, kind, half), nn.ReLU(inplace=True))

    def encode(self, x: Tensor) -> list[Tensor]:
        """The features of stem and groups; the last and deepest are `(B, 16·n_filters, *S/16)`."""
        features = []
        for convolve in self.encoder:
            x = self.run_stage(convolve, x)
            features.append(x)
        return [*features[:-1], self.dropout(features[-1])]

    def decode_levels(self, features: list[Tensor]) -> list[Tensor]:
        """From `encode`'s list to the features of the decoder's levels; the last are `(B,
        n_filters, *S)`.
        """
        levels = [features[-1]]
        for grow, convolve, skip in zip(self.ups, self.decoder, features[-2::-1], strict=True):
            levels.append(self.run_stage(convolve, self.run_stage(grow, levels[-1]) + skip))
        return [*levels[1:-1], self.dropout(levels[-1])]


class ResNet34Slices(ResNet34):
    """The same for slices."""

    dims = 2
    multiples = bottom = (16, 16)
    source = "ours"
