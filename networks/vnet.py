"""V-Net as semi-supervised segmentation uses it (Milletari et al., 3DV 2016); 9,448,866 parameters as it stands.

Nine stages of 1, 2, 3, 3, 3, 3, 3, 2, 1 convolutions 3×3×3 with 16, 32, 64, 128, 256, 128, 64, 32, 16 channels; 2×2×2
convolutions of stride two lead down, transposed ones up; skips are added, not concatenated.
"""

import torch
import torch.nn as nn

CONVOLUTIONS = (1, 2, 3, 3, 3, 3, 3, 2, 1)


def norm(kind, channels):
    """The layer that follows a convolution: `batchnorm`, `instancenorm`, `groupnorm` (up to 16 groups) or `none`."""
    if kind == "batchnorm":
        return nn.BatchNorm3d(channels)
    if kind == "instancenorm":
        return nn.InstanceNorm3d(channels)
    if kind == "groupnorm":
        return nn.GroupNorm(min(16, channels), channels)
    if kind == "none":
        return nn.Identity()
    raise ValueError(f"normalization is batchnorm, instancenorm, groupnorm or none, got {kind!r}")


def stage(n, in_channels, channels, kind):
    """`n` times convolution 3×3×3, norm, ReLU; the size stays."""
    layers = []
    for i in range(n):
        layers += [
            nn.Conv3d(in_channels if i == 0 else channels, channels, 3, padding=1),
            norm(kind, channels),
            nn.ReLU(inplace=True),
        ]
    return nn.Sequential(*layers)


def down(channels, kind):
    """Half the size, twice the channels."""
    return nn.Sequential(
        nn.Conv3d(channels, 2 * channels, 2, stride=2), norm(kind, 2 * channels), nn.ReLU(inplace=True)
    )


def up(channels, kind, upsampling):
    """Twice the size, half the channels: a `transposed` convolution, or `trilinear` and a convolution 3×3×3."""
    if upsampling == "transposed":
        grow = [nn.ConvTranspose3d(channels, channels // 2, 2, stride=2)]
    elif upsampling == "trilinear":
        grow = [
            nn.Upsample(scale_factor=2, mode="trilinear", align_corners=False),
            nn.Conv3d(channels, channels // 2, 3, padding=1),
        ]
    else:
        raise ValueError(f"upsampling is transposed or trilinear, got {upsampling!r}")
    return nn.Sequential(*grow, norm(kind, channels // 2), nn.ReLU(inplace=True))


def branch(channels, num_classes, kind):
    """CoraNet's task branch: two convolutions 3×3×3 and one 1×1×1 to the classes (Shi et al., TMI 2021, Fig. 2)."""
    return nn.Sequential(stage(2, channels, channels, kind), nn.Conv3d(channels, num_classes, 1))


class VNet(nn.Module):
    """Encoder, decoder and heads; every extent of the input must be a multiple of 16.

    Args:
        in_channels: channels of the image.
        num_classes: channels of the logits, background included.
        n_filters: channels of the first stage.
        normalization: `batchnorm`, `instancenorm`, `groupnorm` or `none`.
        dropout: probability of dropping a channel after stages five and nine in training; 0 for none.
        sdm_head: add a head of `num_classes - 1` signed distance maps through tanh (DTC, DTML, UG-MCL).
        segmentation_head: False for a network of distance maps alone (DTML's second).
        upsampling: `transposed` or `trilinear` (the second network of CML, MC-Net).
        deepest: give the encoder's deepest features too (CML).
        branches: 1 for a 1×1×1 segmentation head, or CoraNet's 3: normal, conservative, radical.

    `forward` maps `(B, in_channels, X, Y, Z)` to logits `(B, num_classes, X, Y, Z)`; with `branches > 1` to a tuple of
    them; with `sdm_head` to `(logits, sdm)`, sdm `(B, num_classes - 1, X, Y, Z)` in [-1, 1], or to sdm alone;
    with `deepest` to `(logits, features)`, features `(B, 16·n_filters, X/16, Y/16, Z/16)`.
    """

    def __init__(
        self,
        in_channels=1,
        num_classes=2,
        n_filters=16,
        normalization="batchnorm",
        dropout=0.5,
        sdm_head=False,
        branches=1,
        segmentation_head=True,
        upsampling="transposed",
        deepest=False,
    ):
        super().__init__()
        self.config = {
            "in_channels": in_channels,
            "num_classes": num_classes,
            "n_filters": n_filters,
            "normalization": normalization,
            "dropout": dropout,
            "sdm_head": sdm_head,
            "branches": branches,
            "segmentation_head": segmentation_head,
            "upsampling": upsampling,
            "deepest": deepest,
        }
        if not segmentation_head and not (sdm_head and branches == 1):
            raise ValueError("a V-Net without a segmentation head needs sdm_head, and has no branches")
        if deepest and (sdm_head or branches > 1):
            raise ValueError("a V-Net gives its deepest features beside logits alone")
        widths = [n_filters * 2**i for i in range(5)]  # 16, 32, 64, 128, 256
        self.encoder = nn.ModuleList(
            stage(n, in_channels if i == 0 else width, width, normalization)
            for i, (n, width) in enumerate(zip(CONVOLUTIONS[:5], widths, strict=True))
        )
        self.downs = nn.ModuleList(down(width, normalization) for width in widths[:4])
        self.ups = nn.ModuleList(up(width, normalization, upsampling) for width in widths[:0:-1])
        self.decoder = nn.ModuleList(
            stage(n, width, width, normalization) for n, width in zip(CONVOLUTIONS[5:], widths[-2::-1], strict=True)
        )
        self.dropout = nn.Dropout3d(dropout)
        if not segmentation_head:
            self.heads = nn.ModuleList()
        elif branches == 1:
            self.heads = nn.ModuleList([nn.Conv3d(n_filters, num_classes, 1)])
        else:
            self.heads = nn.ModuleList(branch(n_filters, num_classes, normalization) for _ in range(branches))
        self.sdm = nn.Conv3d(n_filters, num_classes - 1, 1) if sdm_head else None

    def encode(self, x):
        """The five stages' features, the deepest, `(B, 16·n_filters, X/16, Y/16, Z/16)`, last."""
        if any(extent % 16 for extent in x.shape[2:]):
            raise ValueError(f"every extent of a V-Net's input must be a multiple of 16, got {tuple(x.shape)}")
        features = [self.encoder[0](x)]
        for shrink, convolve in zip(self.downs, self.encoder[1:], strict=True):
            features.append(convolve(shrink(features[-1])))
        return [*features[:-1], self.dropout(features[-1])]

    def decode(self, features):
        """From `encode`'s list to the last stage's features `(B, n_filters, X, Y, Z)`."""
        x = features[-1]
        for grow, convolve, skip in zip(self.ups, self.decoder, features[-2::-1], strict=True):
            x = convolve(grow(x) + skip)
        return self.dropout(x)

    def segment(self, x):
        """Logits of the first head alone: the one that is tested, without the cost of the others.

        Of distance maps alone: 0 for the background and -1500 d for a class, so that softmax gives σ(-1500 d).
        """
        x = self.decode(self.encode(x))
        if self.heads:
            return self.heads[0](x)
        sdm = torch.tanh(self.sdm(x))
        return torch.cat((torch.zeros_like(sdm[:, :1]), -1500 * sdm), 1)

    def forward(self, x):
        features = self.encode(x)
        x = self.decode(features)
        logits = tuple(head(x) for head in self.heads)
        if self.sdm is not None:
            sdm = torch.tanh(self.sdm(x))
            return (logits[0], sdm) if logits else sdm
        if self.config["deepest"]:
            return logits[0], features[-1]
        return logits if len(logits) > 1 else logits[0]
