"""What all segmentation networks share: options, heads and outputs. A network adds its encoder and
its decoder.
"""

import contextlib
import math
from typing import NamedTuple

import torch
import torch.nn as nn
from torch.utils.checkpoint import checkpoint

CONV = {2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
BATCH_NORM = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
INSTANCE_NORM = {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}
DROPOUT = (nn.Dropout, nn.Dropout2d, nn.Dropout3d)


def norm(dims, kind, channels):
    """The layer that follows a convolution: `batchnorm`, `instancenorm`, `groupnorm` (16 groups, or
    the most that divide both 16 and the channels) or `none`."""
    if kind == "batchnorm":
        return BATCH_NORM[dims](channels)
    if kind == "instancenorm":
        return INSTANCE_NORM[dims](channels)
    if kind == "groupnorm":
        return nn.GroupNorm(math.gcd(16, channels), channels)
    if kind == "none":
        return nn.Identity()
    raise ValueError(f"normalization is batchnorm, instancenorm, groupnorm or none, got {kind!r}")


def stage(dims, n, in_channels, channels, kind):
    """`n` times convolution of size 3, norm, ReLU; the extents stay."""
    layers = []
    for i in range(n):
        layers += [
            CONV[dims](in_channels if i == 0 else channels, channels, 3, padding=1),
            norm(dims, kind, channels),
            nn.ReLU(inplace=True),
        ]
    return nn.Sequential(*layers)


def enlarge(dims, align_corners=False):
    """Twice the extents, bilinear or trilinear."""
    return Enlarge(
        scale_factor=2, mode="bilinear" if dims == 2 else "trilinear", align_corners=align_corners
    )


class Enlarge(nn.Upsample):
    """Twice the extents; where a run is deterministic by sums of a fixed order, as torch's
    trilinear gradient on a GPU has none."""

    def forward(self, x):
        plain = self.mode == "trilinear" and not self.align_corners
        if plain and x.is_cuda and torch.are_deterministic_algorithms_enabled():
            return enlarge_by_slices(x)
        return super().forward(x)


def enlarge_by_slices(x):
    """Trilinear interpolation of `(B, C, X, Y, Z)` to twice the extents, corners not aligned, an
    axis at a time.
    """
    for axis in (2, 3, 4):
        last = x.shape[axis] - 1
        before = torch.cat((x.narrow(axis, 0, 1), x.narrow(axis, 0, last)), axis)
        after = torch.cat((x.narrow(axis, 1, last), x.narrow(axis, last, 1)), axis)
        x = torch.stack((0.75 * x + 0.25 * before, 0.75 * x + 0.25 * after), axis + 1).flatten(
            axis, axis + 1
        )
    return x


def branch(dims, channels, num_classes, kind):
    """CoraNet's task branch: two convolutions of size 3 and one of size 1 to the classes (Shi et
    al., TMI 2022).
    """
    return nn.Sequential(
        stage(dims, 2, channels, channels, kind), CONV[dims](channels, num_classes, 1)
    )


@contextlib.contextmanager
def statistics_kept(modules):
    """Batch norms below `modules` count the batches that they see in here on copies that are thrown
    away.
    """
    norms = [
        m
        for module in modules
        for m in module.modules()
        if isinstance(m, nn.modules.batchnorm._BatchNorm)
    ]
    kept = [dict(module._buffers) for module in norms]
    try:
        for module, buffers in zip(norms, kept, strict=True):
            module._buffers.update(
                {name: b if b is None else b.clone() for name, b in buffers.items()}
            )
        yield
    finally:
        for module, buffers in zip(norms, kept, strict=True):
            module._buffers.update(buffers)


class Defaults(NamedTuple):
    """What a network takes where the option is None."""

    n_filters: int
    dropout: float
    upsampling: str


class SegmentationNetwork(nn.Module):
    """Encoder, decoder and heads; every extent of the input must be a multiple of the network's
    `multiples`.

    Args:
        in_channels: channels of the image.
        num_classes: channels of the logits, background included.
        n_filters: channels of the first stage.
        normalization: `batchnorm`, `instancenorm`, `groupnorm` or `none`.
        dropout: probability of dropping in training, at the encoder's bottom; each network says
            where else. 0: none.
        sdm_head: add a head of `num_classes - 1` signed distance maps through tanh (DTC, DTML,
            UG-MCL).
        branches: 1 for a plain segmentation head, or CoraNet's 3: normal, conservative, radical.
        segmentation_head: False for a network of distance maps alone (DTML's second).
        upsampling: `transposed` convolutions or `linear` interpolation (the second network of CML,
            MC-Net).
        deepest: give the encoder's deepest features too (CML).
        inference: build what `segment` needs alone, in the shapes of training; `forward` is
            `segment` then.
        extras: what a network takes beyond these, see its `build`.

    Where `n_filters`, `dropout` or `upsampling` is None it is the network's own default, which
    stands in `defaults`.

    `forward` maps `(B, in_channels, *S)` to logits `(B, num_classes, *S)`; with `branches > 1` to a
    tuple of them; with `sdm_head` to `(logits, sdm)`, sdm `(B, num_classes - 1, *S)` in [-1, 1], or
    to sdm alone; with `deepest` to `(logits, features)`, features what `encode` gives last.

    A network sets `dims`, `multiples`, `bottom` and `defaults`, and has the methods `build`, which
    makes its layers and returns the number of channels that `decode` gives, `encode`, from an image
    to a list of features of falling extents, and `decode`, from that list to features of the
    image's extents; both call their stages by `run_stage`.

    Class attributes:
        dims: axes of S.
        multiples: what each extent of the input must be a multiple of.
        bottom: what each extent is divided by at the encoder's bottom, rounded up.
        defaults: see `Defaults`.
    """

    dims = 3
    head_size = 1  # of the heads' convolution
    _recompute = False

    def __init__(
        self,
        in_channels=1,
        num_classes=2,
        n_filters=None,
        normalization="batchnorm",
        dropout=None,
        sdm_head=False,
        branches=1,
        segmentation_head=True,
        upsampling=None,
        deepest=False,
        inference=False,
        **extras,
    ):
        super().__init__()
        n_filters = self.defaults.n_filters if n_filters is None else n_filters
        dropout = self.defaults.dropout if dropout is None else dropout
        upsampling = self.defaults.upsampling if upsampling is None else upsampling
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
            "inference": inference,
            **extras,
        }
        for key, least in (
            ("in_channels", 1),
            ("num_classes", 2),
            ("n_filters", 1),
            ("branches", 1),
        ):
            if self.config[key] < least:
                raise ValueError(f"{key} must be at least {least}, got {self.config[key]}")
        if upsampling not in ("transposed", "linear"):
            raise ValueError(f"upsampling is transposed or linear, got {upsampling!r}")
        if not segmentation_head and not (sdm_head and branches == 1):
            raise ValueError(
                "a network without a segmentation head needs sdm_head, and has no branches"
            )
        if deepest and (sdm_head or branches > 1):
            raise ValueError("a network gives its deepest features beside logits alone")
        channels = self.build(in_channels, n_filters, normalization, dropout, upsampling, **extras)
        if not segmentation_head:
            self.heads = nn.ModuleList()
        elif branches == 1:
            self.heads = nn.ModuleList([self._head(channels, num_classes)])
        else:
            kept = 1 if inference else branches
            self.heads = nn.ModuleList(
                branch(self.dims, channels, num_classes, normalization) for _ in range(kept)
            )
        needed = sdm_head and not (inference and segmentation_head)
        self.sdm = self._head(channels, num_classes - 1) if needed else None

    def _head(self, channels, outputs):
        return CONV[self.dims](channels, outputs, self.head_size, padding=self.head_size // 2)

    def checkpoint_activations(self, on=True):
        """Keep of each stage what goes in alone, in training, and compute it again in backward:
        less memory, a forward pass more, the same numbers. No part of the architecture, so not of
        `config`.
        """
        self._recompute = bool(on)

    def run_stage(self, function, *inputs):
        """`function(*inputs)`, of tensors and of the modules that it calls: a stage of
        `checkpoint_activations`.
        """
        if not (self._recompute and self.training and torch.is_grad_enabled()):
            return function(*inputs)
        if (
            torch.compiler.is_compiling()
        ):  # the compiled graph has batch norm's update of its statistics once
            return checkpoint(function, *inputs, use_reentrant=False)
        modules = [value for value in (function, *inputs) if isinstance(value, nn.Module)]
        drops = any(isinstance(m, DROPOUT) and m.p for module in modules for m in module.modules())
        return checkpoint(
            function,
            *inputs,
            use_reentrant=False,
            preserve_rng_state=drops,
            context_fn=lambda: (contextlib.nullcontext(), statistics_kept(modules)),
        )

    def _encode(self, x):
        extents = x.shape[2:]
        if len(extents) != self.dims or any(
            e % m for e, m in zip(extents, self.multiples, strict=True)
        ):
            expected = f"(B, C, *S), each of S a multiple of {', '.join(map(str, self.multiples))}"
            raise ValueError(
                f"the input of {type(self).__name__} must be {expected}, got {tuple(x.shape)}"
            )
        return self.encode(x)

    def segment(self, x):
        """Logits of the first head alone: the one that is tested, without the cost of the others.

        Of distance maps alone: 0 for the background and -1500 d for a class, so that softmax gives
        σ(-1500 d).
        """
        x = self.decode(self._encode(x))
        if self.heads:
            return self.heads[0](x)
        sdm = torch.tanh(self.sdm(x))
        return torch.cat((torch.zeros_like(sdm[:, :1]), -1500 * sdm), 1)

    def forward(self, x):
        if self.config["inference"]:
            return self.segment(x)
        features = self._encode(x)
        x = self.decode(features)
        logits = tuple(self.run_stage(head, x) for head in self.heads)
        if self.sdm is not None:
            sdm = torch.tanh(self.sdm(x))
            return (logits[0], sdm) if logits else sdm
        if self.config["deepest"]:
            return logits[0], features[-1]
        return logits if len(logits) > 1 else logits[0]
