"""The 3-D U-Net of semi-supervised segmentation on BraTS2019 (Çiçek et al., MICCAI 2016); 5.88 M
parameters.

The 2-D one's levels with convolutions 3×3×3 and ReLU; trilinear interpolation, without a
convolution, leads up; a 1×1×1 head. The released code of UG-MCL and its lineage normalises by
`instancenorm`.
"""

import torch.nn as nn

from networks.base import Defaults, enlarge
from networks.unet import UNet


class UNet3D(UNet):
    """The options of `UNet`; dropout drops single values after the bottom and after the last
    level.
    """

    dims, multiples, bottom = 3, (16, 16, 16), (16, 16, 16)
    defaults = Defaults(n_filters=16, dropout=0.3, upsampling="linear")
    head_size = 1
    slope = 0.0

    def build(self, in_channels, n_filters, normalization, dropout, upsampling, levels=5):
        self.dropout = nn.Dropout(dropout)
        return super().build(in_channels, n_filters, normalization, 0.0, upsampling, levels)

    def grow(self, deep, channels, upsampling):
        return (
            (enlarge(3), deep)
            if upsampling == "linear"
            else super().grow(deep, channels, upsampling)
        )

    def encode(self, x):
        *features, bottom = super().encode(x)
        return [*features, self.dropout(bottom)]

    def decode(self, features):
        return self.dropout(super().decode(features))
