"""Loads the compiled library and registers every operator under `torch.ops.semiseg`."""

import functools
import os
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch.utils._pytree import tree_leaves, tree_map_only

REBUILD = "rebuild it with `pip install --no-build-isolation -e .`"


def load(folder: Path) -> bool:
    """Loads the compiled library of a folder, or the one that $SEMISEG_LIBRARY names, into torch.

    Returns:
        Whether there is a library.

    Raises:
        ImportError: the library does not load, for example because it was built for another torch.
    """
    named = os.environ.get("SEMISEG_LIBRARY")  # how `make sanitize` runs the tests on other builds
    found = [Path(named)] if named else sorted(folder.glob("_C*.so"))
    if not found:
        return False
    try:
        for path in found:
            torch.ops.load_library(path)
    except OSError as error:
        raise ImportError(
            f"{path} does not load with torch {torch.__version__} ({error}): {REBUILD}"
        ) from error
    return True


BUILT = load(Path(__file__).resolve().parent)
"""Whether the operators are compiled. If not, their references run instead."""

CUDA = any(
    name.startswith("semiseg::")
    for name in torch._C._dispatch_get_registrations_for_dispatch_key("CUDA")
)
"""Whether the library has the CUDA kernels. If not, tensors on a GPU go through the CPU."""


_NOT_BUILT = (
    "the compiled operators are not built, so their slow references run: "
    "build them with `pip install --no-build-isolation -e .`"
)
_NO_CUDA = (
    "the operators' CUDA kernels are not built, so tensors on a GPU go through the CPU: "
    "build them with `FORCE_CUDA=1 pip install --no-build-isolation -e .`, which needs nvcc"
)


@functools.cache
def _warn_once(message: str) -> None:
    warnings.warn(message, stacklevel=2)


def through_cpu(operator: Callable) -> Callable:
    """The operator by its CPU kernel, for tensors on another device.

    The result goes to the device of the first tensor. Arguments that the schema marks as written
    are copied back in place.
    """
    arguments = operator._schema.arguments
    written = [
        i
        for i, argument in enumerate(arguments)
        if argument.alias_info and argument.alias_info.is_write
    ]

    def run(*args):
        _warn_once(_NO_CUDA)
        device = next(leaf.device for leaf in tree_leaves(args) if isinstance(leaf, torch.Tensor))
        copies = tree_map_only(torch.Tensor, torch.Tensor.cpu, args)
        result = operator(*copies)
        for i in written:
            args[i].copy_(copies[i])
        return tree_map_only(torch.Tensor, lambda tensor: tensor.to(device), result)

    return run


def register(schema: str, reference: Callable, fake: Callable) -> Callable:
    """The operator of this schema, ready for `torch.compile`.

    Args:
        schema: as written in csrc/ops.cpp, `name(arguments) -> result`.
        reference: takes the same arguments, on any device. It runs, with one warning a process, if
            nothing is compiled.
        fake: takes the same arguments; returns the result's shape, dtype and device, without
            values.

    Raises:
        ImportError: the compiled library has no operator of this schema, because it was built from
            other sources.
    """
    name = schema.partition("(")[0]
    if not BUILT:

        def fallback(*args):
            _warn_once(_NOT_BUILT)
            return reference(*args)

        torch.library.define(
            f"semiseg::{name}", schema.removeprefix(name), tags=torch.Tag.pt2_compliant_tag
        )
        torch.library.impl(f"semiseg::{name}", ("cpu", "cuda"), fallback)
    operator = getattr(getattr(torch.ops.semiseg, name, None), "default", None)
    if operator is None or str(operator._schema) != f"semiseg::{schema}":
        raise ImportError(f"the compiled library has no operator {schema}: {REBUILD}")
    on_cuda = torch._C._dispatch_has_kernel_for_dispatch_key(f"semiseg::{name}", "CUDA")
    if not on_cuda:
        torch.library.impl(f"semiseg::{name}", "cuda", through_cpu(operator))
    torch.library.register_fake(f"semiseg::{name}", fake)
    return operator
