"""The 2-D U-Net of semi-supervised segmentation on ACDC; 1.81 M parameters.

Five levels of 16, 32, 64, 128, 256 channels and two convolutions 3×3 each, with LeakyReLU(0.01);
max pooling leads down, a 1×1 convolution and bilinear interpolation with aligned corners up; skips
are concatenated; a 3×3 head. It is narrower than the original (`unet_ronneberger.py`).
"""

import torch
import torch.nn as nn
from torch import Tensor

from networks.base import CONV, TRANSPOSED, Defaults, SegmentationNetwork, enlarge, norm


def deeper(shrink: nn.Module, convolve: nn.Module, x: Tensor) -> Tensor:
    """A level of the encoder."""
    return convolve(shrink(x))


def higher(grow: nn.Module, convolve: nn.Module, skip: Tensor, x: Tensor) -> Tensor:
    """A level of the decoder."""
    return convolve(torch.cat((skip, grow(x)), 1))


class UNet(SegmentationNetwork):
    """The options of `SegmentationNetwork`, and `levels` (5); extents must be multiples of
    2^(levels - 1).

    Each level of the encoder has dropout between its two convolutions. `dropout` is the probability
    at the bottom; from the top the other levels have 0.1, 0.2, 0.4 and 0.6 of it, and further ones
    all of it. With five levels 0.5 gives the field's 0.05, 0.1, 0.2, 0.3, 0.5.
    """

    dims = 2
    multiples = bottom = (16, 16)
    defaults = Defaults(n_filters=16, dropout=0.5, upsampling="linear")
    source = "custom of the field: SSL4MIS"
    head_size = 3
    slope = 0.01  # of the activation below 0
    dropout_in_levels = True  # False: after the bottom and after the last level of the decoder

    def build(
        self,
        in_channels: int,
        n_filters: int,
        normalization: str,
        dropout: float,
        upsampling: str,
        levels: int = 5,
    ) -> int:
        if levels < 2:
            raise ValueError(f"levels must be at least 2, got {levels}")
        self.multiples = self.bottom = (2 ** (levels - 1),) * self.dims
        widths = [n_filters * 2**i for i in range(levels)]
        shares = [0.1, 0.2, 0.4, 0.6, *[1.0] * levels][: levels - 1]
        shares.append(1.0)
        within = dropout if self.dropout_in_levels else 0.0
        self.dropout = nn.Dropout(dropout - within)
        self.encoder = nn.ModuleList(
            self.level(before, width, normalization, share * within)
            for before, width, share in zip([in_channels, *widths], widths, shares, strict=False)
        )
        self.ups = nn.ModuleList()
        self.decoder = nn.ModuleList()
        for deep, width in zip(widths[:0:-1], widths[-2::-1], strict=True):
            grow, channels = self.grow(deep, width, upsampling)
            self.ups.append(grow)
            self.decoder.append(self.level(width + channels, width, normalization, 0.0))
        self.shrink = nn.MaxPool2d(2) if self.dims == 2 else nn.MaxPool3d(2)
        return n_filters

    def level(self, in_channels: int, channels: int, kind: str, dropout: float) -> nn.Sequential:
        """Two convolutions with dropout between them; the extents stay."""
        layers = []
        for before in (in_channels, channels):
            layers += [
                CONV[self.dims](before, channels, 3, padding=1),
                norm(self.dims, kind, channels),
                nn.LeakyReLU(self.slope, inplace=True),
            ]
        return nn.Sequential(*layers[:3], nn.Dropout(dropout), *layers[3:])

    def grow(self, deep: int, channels: int, upsampling: str) -> tuple[nn.Module, int]:
        """A layer that doubles the extents of `deep` channels, and how many channels it gives."""
        if upsampling == "transposed":
            return TRANSPOSED[self.dims](deep, channels, 2, stride=2), channels
        narrow = CONV[self.dims](deep, channels, 1)
        return nn.Sequential(narrow, enlarge(self.dims, True, upsampling)), channels

    def encode(self, x: Tensor) -> list[Tensor]:
        """The features of all levels; the last and deepest are `(B, 2^(levels - 1)·n_filters,
        …)`.
        """
        features = [self.run_stage(self.encoder[0], x)]
        for convolve in self.encoder[1:]:
            features.append(self.run_stage(deeper, self.shrink, convolve, features[-1]))
        return [*features[:-1], self.dropout(features[-1])]

    def decode_levels(self, features: list[Tensor]) -> list[Tensor]:
        """From `encode`'s list to the features of the decoder's levels; the last are `(B,
        n_filters, *S)`.
        """
        levels = [features[-1]]
        for grow, convolve, skip in zip(self.ups, self.decoder, features[-2::-1], strict=True):
            levels.append(self.run_stage(higher, grow, convolve, skip, levels[-1]))
        return [*levels[1:-1], self.dropout(levels[-1])]
