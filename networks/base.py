"""The options, heads and outputs that all segmentation networks share. A network adds its encoder
and its decoder.
"""

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
import torch.nn as nn
from torch import Tensor
from torch.utils.checkpoint import checkpoint

CONV = {2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
BATCH_NORM = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
INSTANCE_NORM = {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}
DROPOUT = (nn.Dropout, nn.Dropout2d, nn.Dropout3d)
UPSAMPLINGS = ("transposed", "linear", "nearest")


# ----------------------------------------------------------------------------------------- layers


def norm(dims: int, kind: str, channels: int) -> nn.Module:
    """The layer that follows a convolution.

    Args:
        dims: 2 or 3.
        kind: `batchnorm`, `instancenorm`, `groupnorm` (16 groups, or the largest number that
            divides both 16 and the channels) or `none`.
        channels: of the convolution.

    Raises:
        ValueError: another kind.
    """
    if kind == "batchnorm":
        return BATCH_NORM[dims](channels)
    if kind == "instancenorm":
        return INSTANCE_NORM[dims](channels)
    if kind == "groupnorm":
        return nn.GroupNorm(math.gcd(16, channels), channels)
    if kind == "none":
        return nn.Identity()
    raise ValueError(f"normalization is batchnorm, instancenorm, groupnorm or none, got {kind!r}")


def stage(dims: int, n: int, in_channels: int, channels: int, kind: str) -> nn.Sequential:
    """`n` times a convolution of size 3, norm, ReLU; the extents stay."""
    layers = []
    for i in range(n):
        layers += [
            CONV[dims](in_channels if i == 0 else channels, channels, 3, padding=1),
            norm(dims, kind, channels),
            nn.ReLU(inplace=True),
        ]
    return nn.Sequential(*layers)


def enlarge(dims: int, align_corners: bool = False, kind: str = "linear") -> nn.Upsample:
    """A layer that doubles the extents by bilinear or trilinear interpolation, or, if `kind` is
    `nearest`, by repeating each value.
    """
    if kind == "nearest":
        return nn.Upsample(scale_factor=2, mode="nearest")
    mode = "bilinear" if dims == 2 else "trilinear"
    return Enlarge(scale_factor=2, mode=mode, align_corners=align_corners)


class Enlarge(nn.Upsample):
    """Doubles the extents. In a deterministic run on a GPU it sums in a fixed order, which torch's
    trilinear gradient does not.
    """

    def forward(self, x: Tensor) -> Tensor:
        plain = self.mode == "trilinear" and not self.align_corners
        if plain and x.is_cuda and torch.are_deterministic_algorithms_enabled():
            return enlarge_by_slices(x)
        return super().forward(x)


def enlarge_by_slices(x: Tensor) -> Tensor:
    """Trilinear interpolation of `(B, C, X, Y, Z)` to twice the extents, one axis after another;
    corners are not aligned.
    """
    for axis in (2, 3, 4):
        last = x.shape[axis] - 1
        before = torch.cat((x.narrow(axis, 0, 1), x.narrow(axis, 0, last)), axis)
        after = torch.cat((x.narrow(axis, 1, last), x.narrow(axis, last, 1)), axis)
        halves = torch.stack((0.75 * x + 0.25 * before, 0.75 * x + 0.25 * after), axis + 1)
        x = halves.flatten(axis, axis + 1)
    return x


def without_half_of_channels(features: Tensor) -> Tensor:
    """Features `(B, F, *S)` of which each channel is 0 with probability 1/2, and doubled otherwise,
    in training and in a test.
    """
    kept = torch.rand(features.shape[:2], device=features.device) < 0.5
    scale = 2.0 * kept.to(features.dtype)
    return features * scale.view(*scale.shape, *[1] * (features.ndim - 2))


def branch(dims: int, channels: int, num_classes: int, kind: str) -> nn.Sequential:
    """CoraNet's task branch: two convolutions of size 3 and one of size 1 to the classes (Shi et
    al., TMI 2022).
    """
    last = stage(dims, 2, channels, channels, kind)
    return nn.Sequential(last, CONV[dims](channels, num_classes, 1))


def batch_norms(modules: Iterable[nn.Module]) -> list[nn.modules.batchnorm._BatchNorm]:
    """The batch norms below `modules`."""
    below = [found for module in modules for found in module.modules()]
    return [found for found in below if isinstance(found, nn.modules.batchnorm._BatchNorm)]


@contextlib.contextmanager
def statistics_kept(modules: Iterable[nn.Module]) -> Iterator[None]:
    """A context in which batch norms below `modules` update copies of their statistics, which are
    thrown away.
    """
    norms = batch_norms(modules)
    kept = [dict(module._buffers) for module in norms]
    try:
        for module, buffers in zip(norms, kept, strict=True):
            for name, buffer in buffers.items():
                if buffer is not None:
                    module._buffers[name] = buffer.clone()
        yield
    finally:
        for module, buffers in zip(norms, kept, strict=True):
            module._buffers.update(buffers)


# -------------------------------------------------------------------------------------- a network


class Defaults(NamedTuple):
    """A network's values for options that are None."""

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
        dropout: probability of dropping in training, at the encoder's bottom and where the network
            says; 0: none.
        sdm_head: add a head of `num_classes - 1` signed distance maps through tanh (DTC, DTML,
            UG-MCL).
        branches: 1 for a plain segmentation head, or CoraNet's 3: normal, conservative, radical.
        segmentation_head: False for a network that gives only distance maps (DTML's second).
        upsampling: `transposed` convolutions, or `linear` or `nearest` interpolation and a
            convolution (the second network of CML; the decoders of MC-Net+).
        deepest: return the encoder's deepest features too (CML).
        last: return the decoder's last features too, those that the head sees (SS-Net).
        inference: build only what `segment` needs, in the shapes of training; `forward` is then
            `segment`.
        extras: further options of a network's `build`.

    Where `n_filters`, `dropout` or `upsampling` is None, the network takes its own `defaults`.

    `forward` maps `(B, in_channels, *S)` to logits `(B, num_classes, *S)`. With `branches > 1` it
    returns a tuple of them; `forward(x, first_only=True)` returns the first, without the cost of
    the others. With `sdm_head` it returns `(logits, sdm)`, sdm `(B, num_classes - 1, *S)` in
    [-1, 1], or only sdm; with `deepest` `(logits, features)`, where features are the last of
    `encode`, and with `last` the last of `decode_levels`. `forward(x, with_dropped=True)` returns
    the logits twice, the second time of features of which each level has lost half of its channels.

    A subclass sets the class attributes and has three methods. `build` makes its layers and returns
    the number of channels of the decoder's last level; `encode` maps an image to a list of features
    of falling extents; `decode_levels` maps that list to the features of the decoder's levels, the
    last of the image's extents. Both call their stages through `run_stage`.

    Class attributes:
        dims: axes of S.
        multiples: each extent of the input must be a multiple of its number here.
        bottom: at the encoder's bottom each extent is divided by its number here, rounded up.
        defaults: see `Defaults`.
        source: whose network this is, as `utils.training.options` names sources.
        of_encoder: names of the modules that only `encode` calls.

    Attributes:
        config: all arguments of the constructor.

    Raises:
        ValueError: an argument out of its range, or two that exclude each other.
    """

    dims = 3
    pools_volumes = False  # 3-D max pooling, whose gradient a GPU does not take in a fixed order
    multiples: tuple[int, ...]
    bottom: tuple[int, ...]
    defaults: Defaults
    source: str
    of_encoder: tuple[str, ...] = ("encoder",)
    head_size = 1  # of the heads' convolution
    _recompute = False

    def __init__(
        self,
        in_channels: int = 1,
        num_classes: int = 2,
        n_filters: int | None = None,
        normalization: str = "batchnorm",
        dropout: float | None = None,
        sdm_head: bool = False,
        branches: int = 1,
        segmentation_head: bool = True,
        upsampling: str | None = None,
        deepest: bool = False,
        last: bool = False,
        inference: bool = False,
        **extras: Any,
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
            "last": last,
            "inference": inference,
            **extras,
        }
        _check(self.config)
        channels = self.build(in_channels, n_filters, normalization, dropout, upsampling, **extras)
        if not segmentation_head:
            self.heads = nn.ModuleList()
        elif branches == 1:
            self.heads = nn.ModuleList([self._head(channels, num_classes)])
        else:
            count = 1 if inference else branches
            self.heads = nn.ModuleList(
                branch(self.dims, channels, num_classes, normalization) for _ in range(count)
            )
        needed = sdm_head and not (inference and segmentation_head)
        self.sdm = self._head(channels, num_classes - 1) if needed else None

    def _head(self, channels: int, outputs: int) -> nn.Module:
        return CONV[self.dims](channels, outputs, self.head_size, padding=self.head_size // 2)

    def checkpoint_activations(self, on: bool = True) -> None:
        """In training store only each stage's input and recompute the rest in the backward pass:
        less memory, one more forward pass, the same numbers. It is no part of the architecture, so
        not of `config`.
        """
        self._recompute = bool(on)

    def run_stage(self, function: Callable, *inputs: Tensor | nn.Module) -> Tensor:
        """`function(*inputs)`, as one stage of `checkpoint_activations`; among the inputs are all
        modules that the function calls.
        """
        if not (self._recompute and self.training and torch.is_grad_enabled()):
            return function(*inputs)
        if torch.compiler.is_compiling():  # a compiled graph updates the statistics only once
            return checkpoint(function, *inputs, use_reentrant=False)
        modules = [value for value in (function, *inputs) if isinstance(value, nn.Module)]
        below = [found for module in modules for found in module.modules()]
        drops = any(isinstance(found, DROPOUT) and found.p for found in below)
        return checkpoint(
            function,
            *inputs,
            use_reentrant=False,
            preserve_rng_state=drops,
            context_fn=lambda: (contextlib.nullcontext(), statistics_kept(modules)),
        )

    def _encode(self, x: Tensor) -> list[Tensor]:
        extents = x.shape[2:]
        fits = len(extents) == self.dims
        if fits:
            fits = not any(e % m for e, m in zip(extents, self.multiples, strict=True))
        if not fits:
            expected = f"(B, C, *S), each of S a multiple of {', '.join(map(str, self.multiples))}"
            raise ValueError(
                f"the input of {type(self).__name__} must be {expected}, got {tuple(x.shape)}"
            )
        return self.encode(x)

    def decode(self, features: list[Tensor]) -> Tensor:
        """From `encode`'s list to the last of `decode_levels`."""
        return self.decode_levels(features)[-1]

    def segment(self, x: Tensor) -> Tensor:
        """Logits `(B, num_classes, *S)` of the first head, the one that is tested, without the cost
        of the others.

        A network that gives only distance maps d has the logits 0 for the background and -1500 d
        for a class, so that softmax gives σ(-1500 d).
        """
        x = self.decode(self._encode(x))
        if self.heads:
            return self.heads[0](x)
        sdm = torch.tanh(self.sdm(x))
        return torch.cat((torch.zeros_like(sdm[:, :1]), -1500 * sdm), 1)

    def forward(
        self, x: Tensor, first_only: bool = False, with_dropped: bool = False
    ) -> Tensor | tuple[Tensor, ...]:
        if self.config["inference"]:
            return self.segment(x)
        features = self._encode(x)
        if with_dropped:
            both = [torch.cat((f, without_half_of_channels(f))) for f in features]
            return self.run_stage(self.heads[0], self.decode(both)).chunk(2)
        x = self.decode(features)
        if first_only:
            return self.run_stage(self.heads[0], x)
        logits = tuple(self.run_stage(head, x) for head in self.heads)
        if self.sdm is not None:
            sdm = torch.tanh(self.sdm(x))
            return (logits[0], sdm) if logits else sdm
        if self.config["deepest"]:
            return logits[0], features[-1]
        if self.config["last"]:
            return logits[0], x
        return logits if len(logits) > 1 else logits[0]


def _check(config: dict[str, Any]) -> None:
    """Raise `ValueError` where the arguments of a network cannot be."""
    smallest = {"in_channels": 1, "num_classes": 2, "n_filters": 1, "branches": 1}
    for key, least in smallest.items():
        if config[key] < least:
            raise ValueError(f"{key} must be at least {least}, got {config[key]}")
    if config["upsampling"] not in UPSAMPLINGS:
        raise ValueError(
            f"upsampling is one of {', '.join(UPSAMPLINGS)}, got {config['upsampling']!r}"
        )
    alone = config["sdm_head"] and config["branches"] == 1
    if not config["segmentation_head"] and not alone:
        raise ValueError(
            "a network without a segmentation head needs sdm_head, and has no branches"
        )
    features = config["deepest"] + config["last"]
    if features and (config["sdm_head"] or config["branches"] > 1 or features > 1):
        raise ValueError(
            "a network gives its deepest features, or its last ones, only beside logits"
        )
