"""Image files through SimpleITK, 3-D, one value a voxel: NIfTI, NRRD and MetaImage in and out,
DICOM series in.

Faults that SimpleITK passes over are refused here: NIfTI files that end early, which it fills with
zeros, compressed voxels with a wrong checksum, DICOM series with a slice missing, files that a full
disk cut off.
"""

import contextlib
import math
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import SimpleITK

from utils.errors import UserError
from utils.files import write_atomically
from utils.preparation.itk_errors import as_user_error, quiet, reason
from utils.preparation.whole_files import check_whole

SUFFIXES = (".nii", ".nii.gz", ".nrrd", ".mha", ".mhd")
DICOM = (".dcm", ".ima")


def read_image(path: str | Path, frame: int | None = None) -> SimpleITK.Image:
    """An image file, or a folder that holds one DICOM series, as a 3-D image of one value a voxel.

    The pixel type is the file's (where NIfTI scales its integers: floats). An image of 2 axes
    becomes one slice.

    Args:
        path: of one of `SUFFIXES`, a DICOM file of several frames, or a DICOM series' folder.
        frame: number of the frame to take of an image with a time axis, from 0.

    Raises:
        UserError: missing, damaged, cut off or no image; several frames and none chosen; several
            values a voxel; voxels that are not finite; a geometry that is none; a folder with no or
            several DICOM series, or a gap in one.
    """
    path = Path(path)
    if path.is_dir():
        image = _read_series(path)
        axes = 3
    elif path.is_file():
        image, axes = _read_file(path, frame)
    else:
        raise UserError(f"{path}: no such file or folder")
    if frame and axes < 4:
        raise UserError(f"{path}: has one frame, so there is no frame {frame}")
    _check_geometry(path, image)
    if 0 in image.GetSize():
        raise UserError(f"{path}: holds no voxel")
    voxels = SimpleITK.GetArrayViewFromImage(image)
    if voxels.dtype.kind == "f" and not np.isfinite(voxels).all():
        bad = int(np.count_nonzero(~np.isfinite(voxels)))
        raise UserError(f"{path}: image has {bad} voxels that are NaN or infinite")
    return image


def find_images(path: str | Path, suffixes: Sequence[str] = SUFFIXES) -> list[Path]:
    """A file itself, or the images of a folder and of all folders below it, sorted; hidden ones are
    left out.

    A folder that holds DICOM files and no image of another type is one image, a series.

    Raises:
        UserError: no such file, or no image in the folder.
    """
    path = Path(path)
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise UserError(f"{path}: no such file or folder")
    found = []
    for folder, below, files in os.walk(path, followlinks=True):
        below[:] = sorted(name for name in below if not name.startswith("."))
        shown = sorted(Path(folder, name) for name in files if not name.startswith("."))
        images = [file for file in shown if file.name.lower().endswith(tuple(suffixes))]
        if not images and any(map(_is_dicom, shown)):
            images = [Path(folder)]
        found += images
    if not found:
        raise UserError(
            f"{path}: no image in this folder; {', '.join(suffixes)} and DICOM series are read"
        )
    return sorted(found)


def suffix(path: str | Path) -> str:
    """A file's type, `.nii.gz` as one; of a DICOM series' folder nothing."""
    path = Path(path)
    if path.is_dir():
        return ""
    return path.name[-7:] if path.name.lower().endswith(".nii.gz") else path.suffix


def stem(path: str | Path) -> str:
    """A file's name without its type, or a folder's name."""
    path = Path(path)
    return path.name[: len(path.name) - len(suffix(path))] or path.resolve().name


def to_array(image: SimpleITK.Image) -> np.ndarray:
    """The voxels as `(X, Y, Z)`, where SimpleITK gives z, y, x; a copy."""
    return np.ascontiguousarray(SimpleITK.GetArrayViewFromImage(image).transpose(2, 1, 0))


def from_array(array: np.ndarray, like: SimpleITK.Image) -> SimpleITK.Image:
    """Voxels `(X, Y, Z)` as an image with the spacing, origin and direction of another of that
    size.

    Raises:
        ValueError: another size.
    """
    if tuple(array.shape) != like.GetSize():
        raise ValueError(f"expected voxels {like.GetSize()}, got {tuple(array.shape)}")
    image = SimpleITK.GetImageFromArray(array.transpose(2, 1, 0))
    image.CopyInformation(like)
    return image


def write_image(path: str | Path, image: SimpleITK.Image) -> None:
    """Write an image in the format of its name, compressed where the format can, whole or not at
    all.

    Raises:
        UserError: a type that is none of `SUFFIXES`, a full disk, or a folder that is not there or
            not writable.
    """
    path = Path(path)
    if not path.name.lower().endswith(SUFFIXES):
        raise UserError(f"{path}: images are written as {', '.join(SUFFIXES)}")

    def write(part: Path) -> None:
        # a header may name its file of voxels, which keeps its name
        folder = part.with_name(f"{part.name}.parts")
        folder.mkdir()
        try:
            with quiet():
                SimpleITK.WriteImage(image, str(folder / path.name), useCompression=True)
            check_whole(folder / path.name)
            for voxels in folder.iterdir():
                if voxels.name != path.name:
                    with open(voxels, "rb") as file:
                        os.fsync(file.fileno())
                    os.replace(voxels, path.with_name(voxels.name))
            os.replace(folder / path.name, part)
        except (RuntimeError, UserError) as error:
            full = shutil.disk_usage(folder).free < 2**20
            raise OSError("the disk is full" if full else reason(error)) from None
        finally:
            shutil.rmtree(folder)

    write_atomically(path, write)


def _read_file(path: Path, frame: int | None) -> tuple[SimpleITK.Image, int]:
    """The image of a file, and how many axes the file has."""
    check_whole(path)
    reader = SimpleITK.ImageFileReader()
    reader.SetFileName(str(path))
    with as_user_error(path):
        reader.ReadImageInformation()
        _check_pixels(path, reader.GetNumberOfComponents())
        size = reader.GetSize()
        if _is_dicom(path) and size[2:] in ((), (1,)):
            raise UserError(f"{path}: one slice of a DICOM series; name its folder")
        if len(size) > 3:
            _choose_frame(path, reader, size[3:], frame)
        image = reader.Execute()
    if len(size) == 2:
        image = SimpleITK.JoinSeries([image])
    return image, len(size)


def _check_geometry(path: Path, image: SimpleITK.Image) -> None:
    numbers = (*image.GetSpacing(), *image.GetOrigin(), *image.GetDirection())
    volume = abs(np.linalg.det(np.reshape(image.GetDirection(), (3, 3))))
    good = np.isfinite(numbers).all() and min(image.GetSpacing()) > 0 and abs(volume - 1) < 1e-3
    if not good:
        raise UserError(f"{path}: its spacing, origin or direction are no numbers that make sense")


def _check_pixels(path: Path, components: int) -> None:
    if components != 1:
        raise UserError(
            f"{path}: has {components} values a voxel (a colour, vector or complex image), one is "
            "expected"
        )


def _choose_frame(
    path: Path, reader: SimpleITK.ImageFileReader, frames: Sequence[int], frame: int | None
) -> None:
    """Make the reader extract one frame of an image of more than 3 axes."""
    count = math.prod(frames)
    if count > 1 and frame is None:
        raise UserError(
            f"{path}: has {count} frames; choose one with --frame 0 … {count - 1}, or split the "
            "file"
        )
    if not 0 <= (frame or 0) < count:
        raise UserError(f"{path}: has frames 0 … {count - 1}, not {frame}")
    place = []
    left = frame or 0
    for extent in frames:
        place.append(left % extent)
        left //= extent
    reader.SetExtractSize([*reader.GetSize()[:3], *[0] * len(frames)])
    reader.SetExtractIndex([0, 0, 0, *place])


def _read_series(folder: Path) -> SimpleITK.Image:
    with as_user_error(folder):
        files = _series_files(folder)
        reader = SimpleITK.ImageSeriesReader()
        reader.SetFileNames(files)
        reader.MetaDataDictionaryArrayUpdateOn()
        image = reader.Execute()
        _check_pixels(folder, image.GetNumberOfComponentsPerPixel())
        if image.GetDimension() != 3:
            raise UserError(
                f"{folder}: its DICOM series has {image.GetDimension()} axes, 3 are expected"
            )
        normal = np.reshape(image.GetDirection(), (3, 3))[:, 2]
        _check_steps(folder, _places_along(normal, reader, len(files)))
    return image


def _series_files(folder: Path) -> Sequence[str]:
    """The files of the only DICOM series in a folder."""
    reader = SimpleITK.ImageSeriesReader
    series = reader.GetGDCMSeriesIDs(str(folder))
    if not series:
        raise UserError(
            f"{folder}: a folder without a DICOM series; name an image file, or the series' own "
            "folder"
        )
    files = {key: reader.GetGDCMSeriesFileNames(str(folder), key) for key in series}
    if len(series) > 1:
        shown = ", ".join(f"{key} ({len(files[key])} files)" for key in series[:4])
        more = ", …" if len(series) > 4 else ""
        raise UserError(
            f"{folder}: {len(series)} DICOM series, put each in a folder of its own: {shown}{more}"
        )
    return files[series[0]]


def _places_along(
    normal: np.ndarray, reader: SimpleITK.ImageSeriesReader, count: int
) -> list[float]:
    """Where slices lie along their normal in mm, as far as the series says."""
    places = []
    for k in range(count):
        if reader.HasMetaDataKey(k, "0020|0032"):
            position = reader.GetMetaData(k, "0020|0032").strip(" \0").split("\\")
            places.append(float(np.dot(normal, [float(number) for number in position])))
    return places


def _check_steps(folder: Path, places: Sequence[float]) -> None:
    """See that slices are evenly spaced."""
    if len(places) < 3:
        return
    steps = np.diff(places)
    usual = np.median(steps)
    off = np.abs(steps - usual)
    if off.max() > 0.05 * abs(usual) + 1e-3:
        worst = int(off.argmax())
        gap = f"{abs(steps[worst]):.3g} mm from slice {worst} to {worst + 1}"
        raise UserError(
            f"{folder}: its slices are not evenly spaced ({gap}, {abs(usual):.3g} mm elsewhere): "
            "is one missing?"
        )


def _is_dicom(path: Path) -> bool:
    if path.suffix.lower() in DICOM:
        return True
    if path.name == "DICOMDIR":
        return False
    with contextlib.suppress(OSError), open(path, "rb") as file:
        file.seek(128)
        return file.read(4) == b"DICM"
    return False
