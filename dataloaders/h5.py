"""Reading and writing of the published h5 layouts. An error in a list or a file is reported in one
line.

Keys: `image` float32 of any shape, `label` integers of the same shape (unlabelled cases need none).
"""

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from utils.errors import UserError


def read_list(path: str | Path) -> list[str]:
    """The case names of a list file, one a line, with or without the ending `.h5`; blank lines are
    skipped.

    Raises:
        UserError: the file is missing, no text, empty, or names a case twice.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(
            f"{path}: list not found; name the folder that holds it (with --root in training)"
        )
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path}: not a list of case names in UTF-8, one a line ({error})"
        ) from None
    names = [line.strip().removesuffix(".h5") for line in text.splitlines() if line.strip()]
    if not names:
        raise UserError(f"{path}: the list is empty")
    seen = set()
    for name in names:
        if name in seen:
            raise UserError(f"{path}: case {name} is listed twice; remove one of the lines")
        seen.add(name)
    return names


def check_disjoint(
    a: Path, names_a: Sequence[str], b: Path, names_b: Sequence[str], unit: str = "case"
) -> None:
    """See that no name stands in two lists, of the files `a` and `b`; `unit` says what a name is.

    Raises:
        UserError: a name stands in both.
    """
    known = set(names_b)
    both = [name for name in dict.fromkeys(names_a) if name in known]
    if both:
        more = f" (and {len(both) - 1} more)" if len(both) > 1 else ""
        raise UserError(
            f"{unit} {both[0]}{more} is in both {a} and {b}; a {unit} belongs to one list"
        )


def _dataset(path: Path, key: str, read: Callable = lambda found: found[()]) -> Any:
    """The result of `read` for the array under `key`; every error becomes a `UserError` that names
    the file.
    """
    try:
        with h5py.File(path, "r") as file:
            if key not in file:
                raise UserError(
                    f"{path}: no key '{key}' (it has {', '.join(sorted(file)) or 'none'})"
                )
            found = file[key]
            if not isinstance(found, h5py.Dataset) or found.shape is None:
                kind = type(found).__name__.lower()
                other = "empty" if isinstance(found, h5py.Dataset) else f"a {kind}"
                raise UserError(f"{path}: {key} is {other}, an array is expected")
            if found.dtype.kind not in "biuf":
                raise UserError(f"{path}: {key} has dtype {found.dtype}, numbers are expected")
            return read(found)
    except FileNotFoundError:
        raise UserError(f"{path}: file not found, though its case is listed") from None
    except (OSError, KeyError, RuntimeError, TypeError, ValueError, MemoryError) as error:
        # damaged bytes can make h5py raise any of these, such as for a shape of petabytes
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"{path}: damaged or not an h5 file ({reason}); download or prepare it again"
        ) from None


def image_shape(path: Path, ndim: int = 3) -> tuple[int, ...]:
    """The shape of a case's image. Neither its voxels nor its label are read.

    Raises:
        UserError: missing, damaged, of another number of axes, or empty.
    """
    shape = _dataset(path, "image", lambda found: found.shape)
    _check_axes(path, shape, ndim)
    return shape


def _check_axes(path: Path, shape: Sequence[int], ndim: int) -> None:
    if len(shape) != ndim or 0 in shape:
        raise UserError(f"{path}: image has shape {shape}, {ndim} axes are expected")


def read_image(path: Path, ndim: int = 3) -> np.ndarray:
    """The image of a case, `ndim` axes, float32.

    Raises:
        UserError: missing, damaged, of another number of axes, empty, or with values that are not
            finite.
    """
    image = np.asarray(_dataset(path, "image"), dtype=np.float32)
    _check_axes(path, image.shape, ndim)
    if not np.isfinite(image).all():
        bad = int(np.count_nonzero(~np.isfinite(image)))
        raise UserError(f"{path}: image has {bad} voxels that are NaN or infinite")
    return image


def read_label(path: Path, shape: Sequence[int], num_classes: int) -> np.ndarray:
    """The label of a case as uint8, of the image's `shape`, values 0 … `num_classes - 1`.

    Raises:
        UserError: missing, damaged, of another shape than the image, or with values outside the
            classes.
    """
    label = np.asarray(_dataset(path, "label"))
    if label.shape != tuple(shape):
        raise UserError(f"{path}: label has shape {label.shape}, but the image has {tuple(shape)}")
    values = np.unique(label)
    if not np.isin(values, np.arange(num_classes)).all():
        outside = [value.item() for value in values if value not in range(num_classes)]
        raise UserError(
            f"{path}: label has values {outside[:5]} outside the classes 0 … {num_classes - 1}"
        )
    return label.astype(np.uint8)


def h5_bytes(
    arrays: Mapping[str, np.ndarray], attributes: Mapping[str, Any] | None = None
) -> memoryview:
    """The bytes of an h5 file with these arrays, compressed, and these attributes, both by name.

    It is made in memory, because on a full disk the h5 library would crash the process at its end.
    """
    memory = io.BytesIO()
    with h5py.File(memory, "w") as file:
        for key, array in arrays.items():
            file.create_dataset(key, data=array, compression="gzip")
        file.attrs.update(attributes or {})
    return memory.getbuffer()
