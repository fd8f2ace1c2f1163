"""The 3-D U-Net of semi-supervised segmentation on BraTS2019 (Çiçek et al., MICCAI 2016); 5.88 M
parameters.

It has the levels of the 2-D one, with convolutions 3×3×3 and ReLU; trilinear interpolation without
a convolution leads up; the head is 1×1×1. The released code of UG-MCL and its lineage normalises by
`instancenorm`.
"""

import torch.nn as nn

from networks.base import Defaults, enlarge
from networks.unet import UNet


class UNet3D(UNet):
    """The options of `UNet`; dropout drops single values after the bottom and after the last
    level.
    """

    dims = 3
    pools_volumes = True
    multiples = bottom = (16, 16, 16)
    defaults = Defaults(n_filters=16, dropout=0.3, upsampling="linear")
    source = "custom of the field: SSL4MIS"
    head_size = 1
    slope = 0.0
    dropout_in_levels = False

    def grow(self, deep: int, channels: int, upsampling: str) -> tuple[nn.Module, int]:
        if upsampling != "transposed":
            return enlarge(3, kind=upsampling), deep
        return super().grow(deep, channels, upsampling)
