"""Decoded samples on the disk (`--cache_dir`), for a start without decoding.

One file holds the images of an h5 file and one its labels, so that labels that nobody asks for are
neither read nor written. A name is a hash of the h5 file's content and of everything that was done
to it. Another file, another resolution or another format has another name, so nothing is ever out
of date. A file starts with its own checksum, and is made anew where the checksum does not fit.
"""

import hashlib
import json
import os
import threading
import warnings
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from utils.errors import UserError

if TYPE_CHECKING:
    from dataloaders.volumes import Volumes

# count it up with every change to the files, or to how samples are made
FORMAT = b"semiseg cache 1\n"
# where the header starts: after a checksum of the rest of the file, and the header's length
START = len(FORMAT) + 8
ALIGNMENT = 64


class CacheFiles:
    """The decoded files of one data set in a folder.

    Args:
        folder: made where it is missing. One that cannot be written to is only read, with one
            warning.
        dataset: what is done to the content of its files: `name`, `downsample`, `num_classes` and,
            of slices, `axes`.
        mapped: map the files into memory, which costs nothing until they are used, instead of
            reading them.
    """

    def __init__(self, folder: str | Path, dataset: "Volumes", mapped: bool):
        self.folder = Path(folder)
        self.mapped = mapped
        axes = getattr(dataset, "axes", None)
        self._made = [dataset.name, dataset.downsample, dataset.num_classes, axes]
        self._lock = threading.Lock()
        self._writes = True

    def key(self, path: str | Path, slices: Sequence[int | None]) -> str:
        """The name for the samples of an h5 file, or of these slices of it.

        Raises:
            UserError: the file cannot be read.
        """
        try:
            with open(path, "rb") as file:
                content = hashlib.blake2b(file.read(), digest_size=16)
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror})") from None
        content.update(FORMAT + json.dumps([*self._made, slices]).encode())
        return content.hexdigest()

    def read(self, key: str, kind: str) -> list[np.ndarray] | None:
        """The arrays under a key, of `kind` `image` or `label`; None where there are none or they
        are damaged.
        """
        path = self.folder / f"{key}.{kind}"
        try:
            return read_arrays(path, self.mapped)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError) as error:
            warnings.warn(f"{path}: damaged ({error}), decoding its case again", stacklevel=2)
            return None

    def write(self, key: str, kind: str, arrays: Sequence[np.ndarray]) -> None:
        """Keep arrays under a key, whole or not at all. After a failure, which gets one warning,
        nothing more is written.

        Other than for a checkpoint nobody waits until the file is on the disk, which would take
        13 ms: a file cut short by a power failure does not fit its checksum.
        """
        path = self.folder / f"{key}.{kind}"
        temporary = self.folder / f".{path.name}.{os.getpid()}.{threading.get_ident()}"
        if not self._writes:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            try:
                write_arrays(temporary, arrays)
                os.replace(temporary, path)
            finally:
                temporary.unlink(missing_ok=True)
        except OSError as error:
            with self._lock:
                first = self._writes
                self._writes = False
            if first:
                warnings.warn(
                    f"--cache_dir: {path} cannot be written ({error.strerror}); going on without",
                    stacklevel=2,
                )


def write_arrays(path: str | Path, arrays: Sequence[np.ndarray]) -> None:
    """Write arrays as one file: the format's name, a checksum, the header's length, the header, the
    arrays' bytes.
    """
    at = 0
    table = []
    for array in arrays:
        table.append([array.dtype.str, array.shape, at])
        at += -(-array.nbytes // ALIGNMENT) * ALIGNMENT
    header = json.dumps(table).encode()
    header += b" " * (-(START + len(header)) % ALIGNMENT)
    body = bytearray(len(header) + at)
    body[: len(header)] = header
    for array, (_, _, offset) in zip(arrays, table, strict=True):
        first = len(header) + offset
        body[first : first + array.nbytes] = np.ascontiguousarray(array).tobytes()
    with open(path, "wb") as file:
        file.write(FORMAT + np.array([zlib.crc32(body), len(header)], "<u4").tobytes())
        file.write(body)


def read_arrays(path: str | Path, mapped: bool = False) -> list[np.ndarray]:
    """The arrays of a file of `write_arrays`, in memory of their own or in the file's pages.

    Raises:
        OSError: it cannot be read.
        ValueError: it is of another format, or damaged.
    """
    if mapped:  # copy on write: torch wants arrays that it could write to
        content = np.memmap(path, np.uint8, mode="c").view(np.ndarray)
    else:
        content = np.fromfile(path, np.uint8)
    if content[: len(FORMAT)].tobytes() != FORMAT or len(content) < START:
        raise ValueError("of another format")
    checksum, length = content[len(FORMAT) : START].view("<u4")
    if zlib.crc32(content[START:]) != checksum:
        raise ValueError("its checksum does not fit")
    first = START + int(length)
    arrays = []
    for dtype, shape, offset in json.loads(content[START:first].tobytes()):
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        arrays.append(content[first + offset : first + offset + size].view(dtype).reshape(shape))
    return arrays
