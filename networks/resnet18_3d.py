"""CoraNet's 3-D ResNet-18 (Shi et al., TMI 2022, after Xia et al., WACV 2020).

ResNet-18 (He et al., CVPR 2016) with a 7×7×3 stem and 3×3×1 convolutions elsewhere, so that an
encoder of 2-D weights' size sees volumes: features at 1/2, 1/4, 1/8, 1/16 and 1/32 with 64, 64,
128, 256, 512 channels. Skips are added, and 3×3×3 convolutions follow them, one a level.

What the papers leave open is chosen as follows. Where a stage halves the slices in plane by its
stride, max pooling halves their number, as in the released code; the stem strides along all axes,
which spares half of the largest features. Extents are rounded up on the way down and cropped on the
way up, so that multiples of 16 do. The decoder goes on to full resolution with a quarter of the
channels there (16 of 64), as many as V-Net has; the released one is of dense blocks and stops at
half resolution.
"""

from itertools import pairwise

import torch.nn as nn

from networks.base import Defaults, SegmentationNetwork, enlarge, norm, stage


def in_plane(in_channels, channels, size, stride, kind):
    """Convolution size×size×1 with an in-plane stride, and norm."""
    half = size // 2
    convolution = nn.Conv3d(
        in_channels, channels, (size, size, 1), (stride, stride, 1), (half, half, 0)
    )
    return nn.Sequential(convolution, norm(3, kind, channels))


def higher(grow, convolve, x, skip=None):
    """A level of the decoder; the last has no skip."""
    x = grow(x)
    if skip is not None:
        extents = skip.shape[2:]
        x = x[..., : extents[0], : extents[1], : extents[2]] + skip
    return convolve(x)


class Block(nn.Module):
    """ResNet's basic block of two 3×3×1 convolutions; slices stay apart, but for the pooling of a
    `stride` of two.
    """

    def __init__(self, in_channels, channels, stride, kind):
        super().__init__()
        self.pool = nn.MaxPool3d((1, 1, stride), ceil_mode=True) if stride > 1 else nn.Identity()
        self.first = in_plane(in_channels, channels, 3, stride, kind)
        self.second = in_plane(channels, channels, 3, 1, kind)
        same = stride == 1 and in_channels == channels
        self.shortcut = nn.Identity() if same else in_plane(in_channels, channels, 1, stride, kind)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        x = self.pool(x)
        return self.relu(self.second(self.relu(self.first(x))) + self.shortcut(x))


class ResNet18(SegmentationNetwork):
    """The options of `SegmentationNetwork`; dropout drops channels after the bottom and after the
    last stage.
    """

    multiples, bottom = (16, 16, 16), (32, 32, 32)
    defaults = Defaults(n_filters=64, dropout=0.0, upsampling="linear")

    def build(self, in_channels, n_filters, normalization, dropout, upsampling):
        widths = [n_filters, n_filters, 2 * n_filters, 4 * n_filters, 8 * n_filters]
        self.encoder = nn.ModuleList(
            [
                nn.Sequential(
                    nn.Conv3d(in_channels, n_filters, (7, 7, 3), 2, (3, 3, 1)),
                    norm(3, normalization, n_filters),
                    nn.ReLU(inplace=True),
                )
            ]
        )
        for i, (before, width) in enumerate(pairwise(widths)):
            shrink = nn.MaxPool3d(3, 2, 1) if i == 0 else nn.Identity()
            first = Block(before, width, 1 if i == 0 else 2, normalization)
            self.encoder.append(nn.Sequential(shrink, first, Block(width, width, 1, normalization)))
        self.ups, self.decoder = nn.ModuleList(), nn.ModuleList()
        last = max(n_filters // 4, 1)
        for deep, width in zip(widths[::-1], [*widths[-2::-1], last], strict=True):
            if upsampling == "transposed":
                self.ups.append(nn.ConvTranspose3d(deep, width, 2, stride=2))
            else:
                self.ups.append(nn.Sequential(nn.Conv3d(deep, width, 1), enlarge(3)))
            self.decoder.append(stage(3, 1, width, width, normalization))
        self.dropout = nn.Dropout3d(dropout)
        return last

    def encode(self, x):
        """The features at 1/2 to 1/32, the deepest, `(B, 8·n_filters, ⌈X/32⌉, ⌈Y/32⌉, ⌈Z/32⌉)`,
        last.
        """
        features = []
        for convolve in self.encoder:
            features.append(x := self.run_stage(convolve, x))
        return [*features[:-1], self.dropout(features[-1])]

    def decode(self, features):
        """From `encode`'s list to features `(B, n_filters / 4, X, Y, Z)`."""
        x = features[-1]
        for grow, convolve, skip in zip(self.ups, self.decoder, features[-2::-1], strict=False):
            x = self.run_stage(higher, grow, convolve, x, skip)
        return self.dropout(self.run_stage(higher, self.ups[-1], self.decoder[-1], x))
