"""The cases of a data set: their labels, whether image and label fit, and their h5 files."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import SimpleITK

from dataloaders.h5 import h5_bytes
from utils.errors import UserError
from utils.files import write_atomically
from utils.preparation.folder import writing
from utils.preparation.grid import Grid
from utils.preparation.images import to_array


def relabel(label: SimpleITK.Image, values: Sequence[int]) -> SimpleITK.Image:
    """A label, uint8, in which class `c` stands for every `values[c]`.

    Raises:
        UserError: it has another value.
    """
    array = SimpleITK.GetArrayViewFromImage(label)
    result = np.zeros(array.shape, np.uint8)
    known = np.zeros(array.shape, bool)
    for c, value in enumerate(values):
        found = array == value
        known |= found
        result[found] = c
    if not known.all():
        others = np.unique(array[~known])
        listed = ", ".join(f"{value:g}" for value in others[:5])
        more = ", …" if len(others) > 5 else ""
        expected = ", ".join(map(str, values))
        raise UserError(
            f"label has values {listed}{more} in {np.count_nonzero(~known)} voxels; {expected} are "
            "expected"
        )
    image = SimpleITK.GetImageFromArray(result)
    image.CopyInformation(label)
    return image


def misfit(image: SimpleITK.Image, label: SimpleITK.Image) -> str | None:
    """The difference between a label's geometry and its image's in words, or None; rounding by file
    formats does not count.
    """
    a = Grid.of(image)
    b = Grid.of(label)
    if a.size != b.size:
        return f"label has shape {b.size}, but the image has {a.size}"
    if not np.allclose(a.spacing, b.spacing, rtol=1e-3):
        return f"label has spacing {_numbers(b.spacing)}, but the image has {_numbers(a.spacing)}"
    if not np.allclose(a.direction, b.direction, atol=1e-3):
        axes = f"axes {b.orientation} of the label, {a.orientation} of the image"
        return f"label has another direction than the image ({axes})"
    if not np.allclose(a.origin, b.origin, atol=0.1 * min(a.spacing)):
        return f"label has origin {_numbers(b.origin)}, but the image has {_numbers(a.origin)}"
    return None


def voxel_hash(image: SimpleITK.Image) -> str:
    """SHA-256 of an image's size and values, with axes to the left, the back and the head: equal
    for one scan in two formats, types or orders of axes.
    """
    oriented = to_array(SimpleITK.DICOMOrient(image, "LPS")).astype(np.float32)
    return hashlib.sha256(repr(oriented.shape).encode() + oriented.tobytes()).hexdigest()


def write_case(
    path: str | Path,
    image: np.ndarray,
    label: np.ndarray | None = None,
    *,
    grid: Grid | None = None,
    source: str | Path = "",
    sha256: str = "",
) -> None:
    """One h5 file: `image` float32 and, where there is one, `label` uint8 of the same shape,
    compressed.

    Args:
        path: of the file; its folder is made.
        grid: where the arrays' voxels lie, if their axes are x, y and z: attributes `spacing`,
            `origin`, `direction`.
        source: the image file, an attribute too, as is `sha256` (see `voxel_hash`).
    """
    arrays = {"image": np.asarray(image, dtype=np.float32)}
    if label is not None:
        arrays["label"] = np.asarray(label, dtype=np.uint8)
    attributes = {"source": str(source), "sha256": sha256}
    if grid is not None:
        attributes |= {"spacing": grid.spacing, "origin": grid.origin, "direction": grid.direction}
    content = h5_bytes(arrays, attributes)
    with writing():
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, lambda part: part.write_bytes(content))


def _numbers(values: Sequence[float]) -> str:
    return " ".join(f"{value:.6g}" for value in values)
