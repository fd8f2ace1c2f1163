"""Checks that an image file is whole. SimpleITK fills a NIfTI file that ends early with zeros, and
ignores checksums.
"""

import math
import re
import struct
import zlib
from pathlib import Path
from typing import BinaryIO

from utils.errors import UserError

NIFTI_HEADER = 544  # bytes that hold all of a header's numbers, of version 1 and 2


def check_whole(path: Path) -> None:
    """Check that a NIfTI file holds the bytes that its header says, and that compressed voxels have
    the right checksum.

    Raises:
        UserError: it does not, or it cannot be read.
    """
    try:
        with open(path, "rb") as file:
            head = file.read(2**16)
            start = _compressed_from(path, head)
            if start is None:
                size = path.stat().st_size
                head = head[:NIFTI_HEADER]
            else:
                file.seek(start)
                size, head = _inflated(file)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except (EOFError, zlib.error) as error:
        raise UserError(f"{path}: damaged ({error}); copy or make it again") from None
    if path.name.lower().endswith((".nii", ".nii.gz")):
        least = _nifti_size(head)
        if size < least:
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
        deflated = re.search(rb"^encoding: *gz(ip)? *\r?$", lines, re.MULTILINE)
        elsewhere = b"data file:" in lines or b"datafile:" in lines
        return end.end() if deflated and not elsewhere else None
    if name.endswith(".mha"):
        end = re.search(rb"ElementDataFile *= *LOCAL *\r?\n", head)
        if end and re.search(rb"CompressedData *= *True", head[: end.start()]):
            return end.end()
    return None


def _inflated(file: BinaryIO) -> tuple[int, bytes]:
    """The number of bytes in a gzip or zlib stream, and the first of them; checks its checksums.

    Raises:
        EOFError: it ends early.
        zlib.error: it is damaged.
    """
    size = 0
    head = b""
    stream = zlib.decompressobj(47)
    data = file.read(2**20)
    while data:
        text = stream.decompress(data, 2**24)
        size += len(text)
        if len(head) < NIFTI_HEADER:
            head += text[:NIFTI_HEADER]
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
    """The bytes of a NIfTI file by its header, 0 where that is no NIfTI header."""
    for order in "<>":
        if len(head) >= 348 and head[:4] == struct.pack(f"{order}i", 348):  # version 1
            axes, *dims = struct.unpack_from(f"{order}8h", head, 40)
            (bits,) = struct.unpack_from(f"{order}h", head, 72)
            (first,) = struct.unpack_from(f"{order}f", head, 108)
        elif len(head) >= 540 and head[:4] == struct.pack(f"{order}i", 540):  # version 2
            axes, *dims = struct.unpack_from(f"{order}8q", head, 16)
            (bits,) = struct.unpack_from(f"{order}h", head, 14)
            (first,) = struct.unpack_from(f"{order}q", head, 168)
        else:
            continue
        if 0 < axes <= 7 and math.isfinite(first):
            voxels = math.prod(max(extent, 1) for extent in dims[:axes])
            return int(first) + (voxels * bits + 7) // 8
    return 0
