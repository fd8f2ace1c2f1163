"""What the machine can do for a run: options that it cannot serve are refused, and a precision that
it computes wrongly is avoided.
"""

import argparse
import math
import os
import shutil
from collections.abc import Iterator

import torch

from networks import network_class
from utils import distributed
from utils.device import bf16_agrees, resolve_precision, warn_once
from utils.errors import UserError


def check(args: argparse.Namespace, device: torch.device) -> None:
    """Raise `UserError` where the options ask for something that this machine cannot do."""
    on_gpu = device.type == "cuda"
    if args.deterministic and on_gpu and network_class(args.net).pools_volumes:
        raise UserError(
            f"--deterministic 1: {args.net}'s 3-D max pooling has no deterministic gradient on a "
            "GPU"
        )
    if args.sync_batchnorm and not (on_gpu and distributed.launched()):
        raise UserError("--sync_batchnorm 1 needs several GPUs: start the script with torchrun")
    compiler = os.environ.get("CXX", "g++")
    if args.compile and not on_gpu and not shutil.which(compiler):
        raise UserError(f"--compile 1: no C++ compiler {compiler} here; name another in CXX")
    shares = args.accumulate * distributed.started()
    for name in ("labeled_bs", "unlabeled_bs"):
        count = getattr(args, name, 0)
        if count % shares:
            raise UserError(
                f"--{name} {count} cannot be divided into {shares} equal shares; take a multiple "
                f"of {shares}"
            )


def choose_precision(args: argparse.Namespace, device: torch.device) -> str:
    """`fp32`, `tf32` or `bf16`: the one that `--precision` asks for, or `fp32` with a warning where
    the device computes bfloat16 convolutions wrongly at one of the network's resolutions.
    """
    precision = resolve_precision(args.precision, device)
    if precision != "bf16":
        return precision
    for extents in _resolutions(args.patch, network_class(args.net).bottom):
        if not bf16_agrees(device, extents):
            warn_once(
                f"bf16 convolutions over {extents} voxels go wrong on this device: training in fp32"
            )
            return resolve_precision("fp32", device)
    return precision


def _resolutions(patch: list[int], bottom: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """The extents of a patch's features at each level of a network, from its bottom up, without
    full resolution.
    """
    levels = max(bottom).bit_length() - 1
    for level in range(levels, 0, -1):
        yield tuple(
            math.ceil(extent / min(2**level, most))
            for extent, most in zip(patch, bottom, strict=True)
        )
