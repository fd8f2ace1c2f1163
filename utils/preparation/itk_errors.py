"""SimpleITK's errors as messages of one line."""

import contextlib
import locale
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import SimpleITK

from utils.errors import UserError

# warnings that matter are checked for and reported in one line
SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)


@contextlib.contextmanager
def as_user_error(path: Path) -> Iterator[None]:
    """Turn SimpleITK's errors of many lines into a `UserError` of one."""
    try:
        with quiet():
            yield
    except RuntimeError as error:
        if "orthonormal" in str(error):
            raise UserError(
                f"{path}: its axes are not at right angles (a sheared affine); resample it first"
            ) from None
        raise UserError(f"{path}: not an image that can be read ({reason(error)})") from None
    except (MemoryError, OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({str(error) or type(error).__name__})") from None


def reason(error: Exception) -> str:
    """The message of an exception of SimpleITK, without where in its source it arose."""
    text = str(error).replace("\n", " ").strip()
    text = re.sub(r"^.*?(?:ITK ERROR|(?:sitk|itk)::ERROR): (?:\w+\(0x\w+\): )?", "", text)
    return text[:160].rstrip(" :.")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the messages of the libraries below SimpleITK from the terminal: their errors are raised
    too.

    And keep the process's locale, which reading DICOM sets to C: text files would be ASCII from
    then on.
    """
    sys.stderr.flush()
    spoken = locale.setlocale(locale.LC_ALL)
    kept = os.dup(2)
    null = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, 2)
        yield
    finally:
        locale.setlocale(locale.LC_ALL, spoken)
        os.dup2(kept, 2)
        os.close(kept)
        os.close(null)
