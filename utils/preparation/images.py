"""Image files through SimpleITK, 3-D, one value a voxel: NIfTI, NRRD and MetaImage in and out,
DICOM series in.

What SimpleITK lets pass is refused here: NIfTI files that end early, which it fills with zeros,
compressed voxels whose checksum is wrong, DICOM series with a slice missing, files that a full disk
cut off.
"""

import contextlib
import locale
import math
import os
import re
import shutil
import struct
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import SimpleITK

from utils.errors import UserError
from utils.files import write_atomically

SUFFIXES = (".nii", ".nii.gz", ".nrrd", ".mha", ".mhd")
DICOM = (".dcm", ".ima")

SimpleITK.ProcessObject.SetGlobalWarningDisplay(
    False
)  # what matters of them is told below, in one line


def read_image(path: str | Path, frame: int | None = None) -> SimpleITK.Image:
    """An image file, or a folder that holds one DICOM series, as a 3-D image of one value a voxel.

    The pixel type is the file's (where NIfTI scales its integers: floats). An image of 2 axes
    becomes one slice.

    Args:
        path: of one of :data:`SUFFIXES`, a DICOM file of several frames, or a DICOM series' folder.
        frame: which one to take of an image with a time axis, counted from 0.

    Raises:
        UserError: missing, damaged, cut off or no image; several frames and none chosen; several
            values a voxel; voxels that are not finite; a geometry that is none; a folder with no or
            several DICOM series, or a gap in one.
    """
    path = Path(path)
    if path.is_dir():
        image = _read_series(path)
    elif path.is_file():
        _check_whole(path)
        reader = SimpleITK.ImageFileReader()
        reader.SetFileName(str(path))
        with _as_user_error(path):
            reader.ReadImageInformation()
            _check_pixels(path, reader.GetNumberOfComponents())
            axes, frames = len(reader.GetSize()), reader.GetSize()[3:]
            if _is_dicom(path) and reader.GetSize()[2:] in ((), (1,)):
                raise UserError(f"{path}: one slice of a DICOM series; name its folder")
            if axes > 3:
                _choose_frame(path, reader, frames, frame)
            image = reader.Execute()
        if axes == 2:
            image = SimpleITK.JoinSeries([image])
    else:
        raise UserError(f"{path}: no such file or folder")
    if frame and (path.is_dir() or axes < 4):
        raise UserError(f"{path}: has one frame, so there is no frame {frame}")
    geometry = (*image.GetSpacing(), *image.GetOrigin(), *image.GetDirection())
    turned = abs(np.linalg.det(np.reshape(image.GetDirection(), (3, 3))))
    if (
        not np.isfinite(geometry).all()
        or min(image.GetSpacing()) <= 0
        or not abs(turned - 1) < 1e-3
    ):
        raise UserError(f"{path}: its spacing, origin or direction are no numbers that make sense")
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
    """A file's type, ``.nii.gz`` as one; of a DICOM series' folder nothing."""
    path = Path(path)
    if path.is_dir():
        return ""
    return path.name[-7:] if path.name.lower().endswith(".nii.gz") else path.suffix


def stem(path: str | Path) -> str:
    """A file's name without its type, or a folder's name."""
    path = Path(path)
    return path.name[: len(path.name) - len(suffix(path))] or path.resolve().name


def to_array(image: SimpleITK.Image) -> np.ndarray:
    """The voxels as ``(X, Y, Z)``, where SimpleITK gives z, y, x; a copy."""
    return np.ascontiguousarray(SimpleITK.GetArrayViewFromImage(image).transpose(2, 1, 0))


def from_array(array: np.ndarray, like: SimpleITK.Image) -> SimpleITK.Image:
    """Voxels ``(X, Y, Z)`` as an image with the spacing, origin and direction of another of that
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
        UserError: a type that is none of :data:`SUFFIXES`, a full disk, or a folder that is not
            there or not writable.
    """
    path = Path(path)
    if not path.name.lower().endswith(SUFFIXES):
        raise UserError(f"{path}: images are written as {', '.join(SUFFIXES)}")

    def write(part: Path) -> None:
        folder = part.with_name(
            f"{part.name}.parts"
        )  # a header may name its file of voxels, which keeps its name
        folder.mkdir()
        try:
            with _quiet():
                SimpleITK.WriteImage(image, str(folder / path.name), useCompression=True)
            _check_whole(folder / path.name)
            for voxels in folder.iterdir():
                if voxels.name != path.name:
                    with open(voxels, "rb") as file:
                        os.fsync(file.fileno())
                    os.replace(voxels, path.with_name(voxels.name))
            os.replace(folder / path.name, part)
        except (RuntimeError, UserError) as error:
            full = shutil.disk_usage(folder).free < 2**20
            raise OSError("the disk is full" if full else _reason(error)) from None
        finally:
            shutil.rmtree(folder)

    write_atomically(path, write)


# ---------------------------------------------------------------------------------------------------------- one image


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
    place, left = [], frame or 0
    for extent in frames:
        place.append(left % extent)
        left //= extent
    reader.SetExtractSize([*reader.GetSize()[:3], *[0] * len(frames)])
    reader.SetExtractIndex([0, 0, 0, *place])


def _read_series(folder: Path) -> SimpleITK.Image:
    with _as_user_error(folder):
        series = SimpleITK.ImageSeriesReader.GetGDCMSeriesIDs(str(folder))
        if not series:
            raise UserError(
                f"{folder}: a folder without a DICOM series; name an image file, or the series' "
                "own folder"
            )
        files = {
            key: SimpleITK.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), key)
            for key in series
        }
        if len(series) > 1:
            shown = ", ".join(f"{key} ({len(files[key])} files)" for key in series[:4])
            more = ", …" if len(series) > 4 else ""
            raise UserError(
                f"{folder}: {len(series)} DICOM series, put each in a folder of its own: "
                f"{shown}{more}"
            )
        reader = SimpleITK.ImageSeriesReader()
        reader.SetFileNames(files[series[0]])
        reader.MetaDataDictionaryArrayUpdateOn()
        image = reader.Execute()
        _check_pixels(folder, image.GetNumberOfComponentsPerPixel())
        if image.GetDimension() != 3:
            raise UserError(
                f"{folder}: its DICOM series has {image.GetDimension()} axes, 3 are expected"
            )
        # along the normal, where the series says where its slices lie
        normal, places = np.reshape(image.GetDirection(), (3, 3))[:, 2], []
        for k in range(len(files[series[0]])):
            if reader.HasMetaDataKey(k, "0020|0032"):
                position = reader.GetMetaData(k, "0020|0032").strip(" \0").split("\\")
                places.append(float(np.dot(normal, [float(number) for number in position])))
    steps = np.diff(places)
    if (
        len(places) > 2
        and np.abs(steps - np.median(steps)).max() > 0.05 * abs(np.median(steps)) + 1e-3
    ):
        worst = int(np.abs(steps - np.median(steps)).argmax())
        told = f"{abs(steps[worst]):.3g} mm from slice {worst} to {worst + 1}, {abs(np.median(steps)):.3g} mm elsewhere"
        raise UserError(f"{folder}: its slices are not evenly spaced ({told}): is one missing?")
    return image


def _is_dicom(path: Path) -> bool:
    if path.suffix.lower() in DICOM:
        return True
    if path.name == "DICOMDIR":
        return False
    with contextlib.suppress(OSError), open(path, "rb") as file:
        file.seek(128)
        return file.read(4) == b"DICM"
    return False


# -------------------------------------------------------------------------------------------------------- whole files


def _check_whole(path: Path) -> None:
    """Raise `UserError` where a NIfTI file holds fewer bytes than its header says, or where the
    checksum of compressed voxels is wrong."""
    try:
        with open(path, "rb") as file:
            head = file.read(2**16)
            start = _compressed_from(path, head)
            if start is None:
                size, head = path.stat().st_size, head[:544]
            else:
                file.seek(start)
                size, head = _inflated(file)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except (EOFError, zlib.error) as error:
        raise UserError(f"{path}: damaged ({error}); copy or make it again") from None
    if path.name.lower().endswith((".nii", ".nii.gz")) and size < (least := _nifti_size(head)):
        raise UserError(
            f"{path}: damaged (it ends after {size} of {least} bytes); copy or make it again"
        )


def _compressed_from(path: Path, head: bytes) -> int | None:
    """Where in a file its deflated voxels begin, None where they are not deflated or lie in another
    file.
    """
    name = path.name.lower()
    if name.endswith(".gz"):
        return 0 if head.startswith(b"\x1f\x8b") else None
    if name.endswith(".nrrd"):
        end = re.search(rb"\r?\n\r?\n", head)
        lines = head[: end.start()].lower() if end else b""
        attached = (
            re.search(rb"^encoding: *gz(ip)? *\r?$", lines, re.MULTILINE)
            and b"data file:" not in lines
        )
        return end.end() if attached and b"datafile:" not in lines else None
    if name.endswith(".mha"):
        end = re.search(rb"ElementDataFile *= *LOCAL *\r?\n", head)
        return (
            end.end()
            if end and re.search(rb"CompressedData *= *True", head[: end.start()])
            else None
        )
    return None


def _inflated(file) -> tuple[int, bytes]:
    """How many bytes a gzip or zlib stream holds, and the first of them; its checksums are seen to.

    Raises:
        EOFError: it ends early.
        zlib.error: it is damaged.
    """
    size, head, stream = 0, b"", zlib.decompressobj(47)
    data = file.read(2**20)
    while data:
        text = stream.decompress(data, 2**24)
        size, head = size + len(text), head if len(head) >= 544 else head + text[:544]
        data = stream.unconsumed_tail
        if stream.eof:  # gzip files may be several behind each other, and padded with zeros
            data = (stream.unused_data or file.read(2**20)).lstrip(b"\0")
            if not data.startswith(b"\x1f\x8b"):
                return size, head
            stream = zlib.decompressobj(47)
        elif not data:
            data = file.read(2**20)
    raise EOFError("its compressed data ends early")


def _nifti_size(head: bytes) -> int:
    """The bytes of a NIfTI file by its first 544, 0 where they are no NIfTI header."""
    for order in "<>":
        if head[:4] == struct.pack(f"{order}i", 348) and len(head) >= 348:
            axes, *dims = struct.unpack_from(f"{order}8h", head, 40)
            (bits,), (first,) = (
                struct.unpack_from(f"{order}h", head, 72),
                struct.unpack_from(f"{order}f", head, 108),
            )
        elif head[:4] == struct.pack(f"{order}i", 540) and len(head) >= 540:
            axes, *dims = struct.unpack_from(f"{order}8q", head, 16)
            (bits,), (first,) = (
                struct.unpack_from(f"{order}h", head, 14),
                struct.unpack_from(f"{order}q", head, 168),
            )
        else:
            continue
        if 0 < axes <= 7 and math.isfinite(first):
            return (
                int(first) + (math.prod(max(extent, 1) for extent in dims[:axes]) * bits + 7) // 8
            )
    return 0


# ------------------------------------------------------------------------------------------------------------ messages


@contextlib.contextmanager
def _as_user_error(path: Path):
    """SimpleITK's errors of many lines as a `UserError` of one."""
    try:
        with _quiet():
            yield
    except RuntimeError as error:
        if "orthonormal" in str(error):
            raise UserError(
                f"{path}: its axes are not at right angles (a sheared affine); resample it first"
            ) from None
        raise UserError(f"{path}: not an image that can be read ({_reason(error)})") from None
    except (MemoryError, OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({str(error) or type(error).__name__})") from None


def _reason(error: Exception) -> str:
    """What an exception of SimpleITK says, without where in its source."""
    text = str(error).replace("\n", " ").strip()
    text = re.sub(r"^.*?(?:ITK ERROR|(?:sitk|itk)::ERROR): (?:\w+\(0x\w+\): )?", "", text)
    return text[:160].rstrip(" :.")


@contextlib.contextmanager
def _quiet():
    """Keep what the libraries below SimpleITK write to stderr from the terminal: their errors are
    raised too.

    And keep the process's locale, which reading DICOM sets to C: text files would be ASCII from
    then on.
    """
    sys.stderr.flush()
    spoken = locale.setlocale(locale.LC_ALL)
    kept, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, 2)
        yield
    finally:
        locale.setlocale(locale.LC_ALL, spoken)
        os.dup2(kept, 2)
        os.close(kept)
        os.close(null)
