"""The original 2-D U-Net with batch norm (Ronneberger et al., MICCAI 2015); 31.0 M parameters.

Five levels of 64, 128, 256, 512, 1024 channels and two convolutions 3×3 each, with ReLU; four times
max pooling leads down, and transposed convolutions up; skips are concatenated; a 1×1 head. Unlike
the original it pads, so that the logits have the extents of the image.

CoraNet's paper (Shi et al., TMI 2022, IV-A) takes a "four-level" U-Net with batch norm, ReLU, max
pooling, transposed convolutions and 64 channels in the last level, and counts 29.6 M parameters
(III-D.2). A network of four poolings comes near that number; one of three has 7.7 M.
"""

from networks.base import Defaults
from networks.unet import UNet


class RonnebergerUNet(UNet):
    """The options of `UNet`. There is no dropout unless `dropout` asks for it: it drops single
    values after the bottom and after the last level.
    """

    defaults = Defaults(n_filters=64, dropout=0.0, upsampling="transposed")
    source = "custom of the field: Ronneberger et al., MICCAI 2015"
    head_size = 1
    slope = 0.0
    dropout_in_levels = False
