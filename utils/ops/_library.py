"""Finds the compiled library and puts every operator under ``torch.ops.semiseg``, compiled or not."""

import functools
import warnings
from collections.abc import Callable
from pathlib import Path

import torch

REBUILD = "rebuild it with `pip install --no-build-isolation -e .`"


def load(folder: Path) -> bool:
    """Loads the compiled library of a folder into torch; False where there is none.

    Raises:
        ImportError: there is one and it does not load, for example because it was built for another torch.
    """
    found = sorted(folder.glob("_C*.so"))
    if not found:
        return False
    try:
        for path in found:
            torch.ops.load_library(path)
    except OSError as error:
        raise ImportError(f"{path} does not load with torch {torch.__version__} ({error}): {REBUILD}") from error
    return True


BUILT = load(Path(__file__).resolve().parent)
"""Whether the operators are compiled; else their NumPy references run in their place."""


@functools.cache
def _warn_once() -> None:
    warnings.warn(
        "the compiled operators are not built, so their slow NumPy references run: "
        "build them with `pip install --no-build-isolation -e .`",
        stacklevel=2,
    )


def register(schema: str, reference: Callable, fake: Callable) -> Callable:
    """The operator of this schema, ready for ``torch.compile``.

    Args:
        schema: as it stands in csrc/ops.cpp, ``name(arguments) -> result``.
        reference: the same arguments, any device; runs, with one warning a process, where nothing is compiled.
        fake: the same arguments; the result's shape, dtype and device, and no values.

    Raises:
        ImportError: the compiled library has no operator of this schema: it was built from other sources.
    """
    name = schema.partition("(")[0]
    if not BUILT:

        def fallback(*args):
            _warn_once()
            return reference(*args)

        torch.library.define(f"semiseg::{name}", schema.removeprefix(name), tags=torch.Tag.pt2_compliant_tag)
        torch.library.impl(f"semiseg::{name}", ("cpu", "cuda"), fallback)
    operator = getattr(getattr(torch.ops.semiseg, name, None), "default", None)
    if operator is None or str(operator._schema) != f"semiseg::{schema}":
        raise ImportError(f"the compiled library has no operator {schema}: {REBUILD}")
    torch.library.register_fake(f"semiseg::{name}", fake)
    return operator
