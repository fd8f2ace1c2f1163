"""From a trained run to probabilities of a whole volume: networks and sliding window.

The windows, the padding and the averaging are those of the field's research code (UA-MT, DTC, MC-Net and every
method compared with them), so that numbers are comparable with the published tables; a test holds them equal to that
loop written out one window at a time.
"""

import importlib
import itertools
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from utils.checkpoint import load_checkpoint, load_state
from utils.device import autocast
from utils.errors import UserError
from utils.ops import WindowStitcher, _checks, window_starts

Predictor = Callable[[Tensor], Tensor]


def sliding_window(
    predictor: Predictor,
    image: np.ndarray | Tensor,
    patch: Sequence[int],
    stride: Sequence[int],
    num_classes: int,
    *,
    batch: int | None = None,
    activation: str | None = "softmax",
    weights: Tensor | None = None,
    device: torch.device | str = "cpu",
    precision: str = "fp32",
    progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Class probabilities of a volume or an image: the mean over all windows that cover a voxel.

    What is smaller than the patch is padded with zeros, ``(P - S) // 2`` in front and the rest behind, and cropped
    back. The predictor runs without gradients and under autocast; activation and sum are float32. Its train or eval
    mode is the caller's business.

    Args:
        predictor: ``(B, 1, *patch)`` float32, channels last, to ``(B, C, *patch)`` logits (or probabilities), of any
            floating-point type. It may not keep its input, which the next windows overwrite.
        image: one, no batch: ``(*S)`` or ``(1, *S)``, of 3 or 2 axes as the patch has; read as float32.
        patch, stride: voxels along each axis.
        num_classes: C.
        batch: windows per forward pass; memory grows with it, the result does not depend on it. None: 4 on a GPU, and
            1 on the CPU, where a window fills the caches and all threads.
        activation: ``softmax`` or ``sigmoid`` for logits, None for a predictor that gives probabilities.
        weights: ``(*patch)``, from 1e-30 to 1e30, how much each place of a window counts, such as
            :func:`gaussian_weights`; None, the field's protocol: all the same.
        device: where the predictor lives; the volume is summed and returned there.
        precision: ``fp32`` or ``bf16``, as :func:`utils.device.resolve_precision` gives it.
        progress: called with (windows done, windows in all) after each batch.

    Returns:
        ``(C, *S)`` float32 on ``device``.

    Raises:
        TypeError: an image of other than bools, integers or floats, extents that are no integers, or a predictor that
            gives no tensor.
        ValueError: wrong image shape, activation, weights, batch, precision, or output shape of the predictor; or more
            than 768 first voxels of windows over all axes: take a larger stride.
        UserError: the predictor's output is not finite.
    """
    device, patch = torch.device(device), tuple(_checks.integers(patch, "patch"))
    if len(patch) not in (2, 3):
        raise ValueError(f"patch must have 2 or 3 axes, got {patch}")
    if batch is None:
        batch = 1 if device.type == "cpu" else 4
    if _checks.integer(batch, "batch") < 1:
        raise ValueError(f"batch must be at least 1, got {batch}")
    volume = _checks.real(image, "an image").to(device, torch.float32)
    if volume.ndim == len(patch) + 1 and volume.shape[0] == 1:
        volume = volume[0]
    if volume.ndim != len(patch):
        axes = "X, Y, Z"[: 3 * len(patch) - 2]
        raise ValueError(f"image must be ({axes}) or (1, {axes}), got {tuple(volume.shape)}")

    missing = [max(p - s, 0) for s, p in zip(volume.shape, patch, strict=True)]
    crop = [slice(m // 2, m // 2 + s) for m, s in zip(missing, volume.shape, strict=True)]
    if any(missing):
        volume = F.pad(volume, [side for m in reversed(missing) for side in (m // 2, m - m // 2)])

    starts = window_starts(volume.shape, patch, stride)
    options = {"activation": activation, "weights": weights, "device": device}
    stitcher = WindowStitcher(volume.shape, patch, starts, num_classes, **options)
    corners = list(itertools.product(*starts))
    # One input for all windows: a fresh tensor a window costs more in page faults than its sum does. For the same
    # reason no name holds an output while the next is made: it then takes the same memory.
    memory_format = torch.channels_last if len(patch) == 2 else torch.channels_last_3d
    x = torch.empty((min(batch, len(corners)), 1, *patch), device=device).to(memory_format=memory_format)
    with torch.no_grad():
        for first in range(0, len(corners), batch):
            chunk = corners[first : first + batch]
            for i, corner in enumerate(chunk):
                x[i, 0].copy_(volume[tuple(slice(a, a + p) for a, p in zip(corner, patch, strict=True))])
            with autocast(device, precision):
                output = predictor(x[: len(chunk)])
            if not isinstance(output, Tensor):
                raise TypeError(f"the predictor gave a {type(output).__name__}, expected one tensor of logits")
            if output.shape != (len(chunk), num_classes, *patch):
                expected = (len(chunk), num_classes, *patch)
                raise ValueError(f"the predictor gave {tuple(output.shape)}, expected {expected}")
            stitcher.add(output)
            del output
            if progress is not None:
                progress(first + len(chunk), len(corners))
    prob = stitcher.result()
    low, high = prob.aminmax()  # NaN passes through; a sum of large values may overflow
    if not math.isfinite(low) or not math.isfinite(high):
        raise UserError("the network's output is not finite: its weights diverged, or the image holds NaN or infinity")
    return prob[(slice(None), *crop)]


def gaussian_weights(patch: Sequence[int], sigma_scale: float = 1 / 8) -> Tensor:
    """Weights for :func:`sliding_window` that trust a window's centre most: a Gaussian of ``sigma_scale`` times the
    patch along each axis, 1 at the centre (between two voxels where an extent is even) and nowhere below a thousandth.

    MONAI's ``compute_importance_map(patch, "gaussian")``, to its rounding; nnU-Net's map is this one without the floor.

    Returns:
        ``patch`` float32 on the CPU.

    Raises:
        TypeError: extents that are no integers.
        ValueError: an extent below 1, or a scale that is not positive.
    """
    patch = _checks.integers(patch, "patch")
    if min(patch, default=0) < 1:
        raise ValueError(f"expected extents of at least 1, got {tuple(patch)}")
    if not sigma_scale > 0:
        raise ValueError(f"sigma_scale must be positive, got {sigma_scale}")
    weights = torch.ones((), dtype=torch.float64)
    for extent in patch:
        distance = torch.arange(extent, dtype=torch.float64) - (extent - 1) / 2
        weights = weights[..., None] * torch.exp(-0.5 * (distance / (sigma_scale * extent)) ** 2)
    return weights.clamp_min_(1e-3).float()


def mean_probability(networks: Sequence[nn.Module]) -> Predictor:
    """A predictor for :func:`sliding_window` (``activation=None``): the mean of the networks' softmax outputs.

    Each network offers ``segment(x)``, ``(B, 1, X, Y, Z)`` to logits ``(B, C, X, Y, Z)`` of the head that is tested.
    """
    if not networks:
        raise ValueError("mean_probability needs at least one network")

    def predict(x: Tensor) -> Tensor:
        prob = torch.softmax(networks[0].segment(x).float(), 1)
        for network in networks[1:]:
            prob += torch.softmax(network.segment(x).float(), 1)
        return prob.div_(len(networks))

    return predict


def load_networks(
    path: str | Path, device: torch.device | str, only: str | None = None
) -> tuple[list[nn.Module], dict]:
    """The networks of a checkpoint that are tested, in eval mode on ``device``, and the checkpoint itself (on the CPU).

    ``only`` names one of its networks to take in their place.

    The checkpoint names the class and the constructor's arguments of each network (``networks``), and which of them
    are tested (``test_networks``). It is read with ``weights_only=True`` and classes come from the package
    ``networks`` alone, so a checkpoint of unknown origin cannot run code.

    Raises:
        UserError: no such file, not a checkpoint, no network of that name, a class that does not exist, or weights that
            do not fit it.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint; train first (python code/train_<method>.py) or name another run")
    checkpoint = load_checkpoint(path)
    keys = ("step", "last", "args", "networks", "test_networks")
    if not isinstance(checkpoint, dict) or not checkpoint.keys() >= set(keys):
        raise UserError(f"{path}: not a checkpoint of these scripts, which hold {', '.join(keys)}")
    if not checkpoint["test_networks"]:
        raise UserError(f"{path}: lists no network to test")
    if only is not None and only not in checkpoint["networks"]:
        raise UserError(f"{path}: holds no network {only!r}; choose from {', '.join(checkpoint['networks'])}")
    names = checkpoint["test_networks"] if only is None else [only]
    return [_build(checkpoint, name, path).to(device).eval() for name in names], checkpoint


def _build(checkpoint: dict, name: str, path: Path) -> nn.Module:
    try:
        state, spec = checkpoint[name], checkpoint["networks"][name]
        module, _, cls = spec["class"].rpartition(".")
        kwargs = spec["kwargs"]
    except (KeyError, TypeError):
        raise UserError(f"{path}: incomplete, it lists the network {name!r} but does not hold it") from None
    try:
        if module.split(".")[0] != "networks":
            raise ImportError("classes come from the package networks alone")
        cls = getattr(importlib.import_module(module), cls)
        if not (isinstance(cls, type) and issubclass(cls, nn.Module)):
            raise TypeError("it is no network")
        network = cls(**kwargs)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise UserError(f"{path}: its network {spec['class']} cannot be built here: {error}") from None
    load_state(path, name, network, state)
    return network.to(memory_format=torch.channels_last_3d)
