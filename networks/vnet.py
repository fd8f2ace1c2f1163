"""V-Net as semi-supervised segmentation uses it (Milletari et al., 3DV 2016); by default 9,448,866
parameters.

Nine stages of 1, 2, 3, 3, 3, 3, 3, 2, 1 convolutions 3×3×3 with 16, 32, 64, 128, 256, 128, 64, 32,
16 channels; 2×2×2 convolutions of stride two lead down, transposed ones up; skips are added, not
concatenated.
"""

import torch.nn as nn
from torch import Tensor

from networks.base import Defaults, SegmentationNetwork, enlarge, norm, stage

CONVOLUTIONS = (1, 2, 3, 3, 3, 3, 3, 2, 1)


def down(channels: int, kind: str) -> nn.Sequential:
    """Halves the extents and doubles the channels."""
    return nn.Sequential(
        nn.Conv3d(channels, 2 * channels, 2, stride=2),
        norm(3, kind, 2 * channels),
        nn.ReLU(inplace=True),
    )


def up(channels: int, kind: str, upsampling: str) -> nn.Sequential:
    """Doubles the extents and halves the channels, by a `transposed` convolution, or by `linear` or
    `nearest` interpolation and a convolution 3×3×3.
    """
    if upsampling == "transposed":
        grow = [nn.ConvTranspose3d(channels, channels // 2, 2, stride=2)]
    else:
        grow = [enlarge(3, kind=upsampling), nn.Conv3d(channels, channels // 2, 3, padding=1)]
    return nn.Sequential(*grow, norm(3, kind, channels // 2), nn.ReLU(inplace=True))


class VNet(SegmentationNetwork):
    """The options of `SegmentationNetwork`; dropout drops channels after stages five and nine."""

    multiples = bottom = (16, 16, 16)
    defaults = Defaults(n_filters=16, dropout=0.5, upsampling="transposed")
    source = "custom of the field: UA-MT"
    of_encoder = ("encoder", "downs")

    def build(
        self,
        in_channels: int,
        n_filters: int,
        normalization: str,
        dropout: float,
        upsampling: str,
    ) -> int:
        widths = [n_filters * 2**i for i in range(5)]  # 16, 32, 64, 128, 256
        self.encoder = nn.ModuleList(
            stage(3, n, in_channels if i == 0 else width, width, normalization)
            for i, (n, width) in enumerate(zip(CONVOLUTIONS[:5], widths, strict=True))
        )
        self.downs = nn.ModuleList(down(width, normalization) for width in widths[:4])
        self.ups = nn.ModuleList(up(width, normalization, upsampling) for width in widths[:0:-1])
        self.decoder = nn.ModuleList(
            stage(3, n, width, width, normalization)
            for n, width in zip(CONVOLUTIONS[5:], widths[-2::-1], strict=True)
        )
        self.dropout = nn.Dropout3d(dropout)
        return n_filters

    def encode(self, x: Tensor) -> list[Tensor]:
        """The features of the five stages; the last and deepest are `(B, 16·n_filters, X/16, Y/16,
        Z/16)`.
        """
        features = [self.run_stage(self.encoder[0], x)]
        for shrink, convolve in zip(self.downs, self.encoder[1:], strict=True):
            smaller = self.run_stage(shrink, features[-1])
            features.append(self.run_stage(convolve, smaller))
        return [*features[:-1], self.dropout(features[-1])]

    def decode_levels(self, features: list[Tensor]) -> list[Tensor]:
        """From `encode`'s list to the features of stages six to nine; the last are `(B, n_filters,
        X, Y, Z)`.
        """
        levels = [features[-1]]
        for grow, convolve, skip in zip(self.ups, self.decoder, features[-2::-1], strict=True):
            levels.append(self.run_stage(convolve, self.run_stage(grow, levels[-1]) + skip))
        return [*levels[1:-1], self.dropout(levels[-1])]
