"""The files of a test: label maps, a table of all cases, a summary."""

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import SimpleITK

from utils.errors import UserError
from utils.figures import FORMATS
from utils.files import write_atomically, write_csv

PER_CASE = "per_case.csv"
SUMMARY = "summary.json"
NIFTI = "nifti"
FIGURES = "figures"
WRITTEN = (  # patterns of all files that a test writes
    PER_CASE,
    SUMMARY,
    f"{NIFTI}/*.nii.gz",
    *(f"summary.{kind}" for kind in FORMATS),
    *(f"{FIGURES}/*.{kind}" for kind in FORMATS),
)


def clear(folder: Path) -> None:
    """Remove from the folder only the results of an earlier test.

    Raises:
        UserError: a file cannot be removed.
    """
    for pattern in WRITTEN:
        for path in folder.glob(pattern):
            try:
                path.unlink()
            except OSError as error:
                raise UserError(f"{path}: cannot be removed ({error.strerror})") from None


def make_folder(folder: Path) -> None:
    """Make a folder and those above it.

    Raises:
        UserError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be made ({error.strerror})") from None


def write_nifti(path: Path, labels: np.ndarray, spacing: Sequence[float] | None = None) -> None:
    """Write labels `(X, Y, Z)` as uint8; voxel (i, j, k) of the array is voxel (i, j, k) of the
    file.

    Args:
        path: ends with `.nii.gz`.
        labels: of any integer type, values 0 to 255.
        spacing: mm along each axis; None: 1 mm.

    Raises:
        UserError: it cannot be written.
    """
    # SimpleITK reads arrays as (z, y, x)
    image = SimpleITK.GetImageFromArray(labels.astype(np.uint8).transpose(2, 1, 0))
    if spacing is not None:
        image.SetSpacing([float(s) for s in spacing])

    def write(part: Path) -> None:
        named = part.with_name(f"{part.name}.nii.gz")  # the ending chooses the format
        try:
            SimpleITK.WriteImage(image, str(named), useCompression=True)
            os.replace(named, part)
        finally:
            named.unlink(missing_ok=True)

    write_atomically(path, write)


def write_tables(folder: Path, rows: Sequence[dict], summary: dict) -> None:
    """Write `per_case.csv` and `summary.json`; NaN is `nan` in the one and null in the other.

    Raises:
        UserError: one of them cannot be written.
    """
    make_folder(folder)
    write_csv(folder / PER_CASE, rows)
    text = json.dumps(_without_nan(summary), indent=1, ensure_ascii=False) + "\n"
    write_atomically(folder / SUMMARY, lambda path: path.write_text(text, encoding="utf-8"))


def _without_nan(value):
    """JSON knows no NaN: null in its place."""
    if isinstance(value, dict):
        return {k: _without_nan(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
