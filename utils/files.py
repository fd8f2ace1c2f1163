"""Files that are whole or not there."""

import csv
import io
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from utils.errors import UserError


def write_atomically(path: str | Path, write: Callable[[Path], object]) -> None:
    """Call `write(temporary path)`, sync, and rename to `path`: a reader sees the old file or the
    new one, whole.

    Raises:
        UserError: the disk is full, or the file may not be written.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write(temporary)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        folder = os.open(path.parent, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)
    except (OSError, RuntimeError) as error:  # torch.save raises RuntimeError on a full disk
        full = path.parent.is_dir() and shutil.disk_usage(path.parent).free < 2**20
        reason = "the disk is full" if full else str(error).splitlines()[0]
        raise UserError(f"{path}: cannot be written ({reason})") from None
    finally:
        temporary.unlink(missing_ok=True)


def write_csv(path: Path, rows: Sequence[dict]) -> None:
    """Write the rows under the keys of the first; numbers in full precision, NaN as `nan`."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, lambda part: part.write_text(text.getvalue(), encoding="utf-8"))
