"""Files that are whole or not there: atomic writes, and checkpoints whose misfits are told in one
line.
"""

import os
import shutil
from pathlib import Path

import torch

from utils.errors import UserError


def write_atomically(path, write):
    """Call `write(temporary path)`, sync, and rename to `path`: a reader sees the old file or the
    new one, whole.

    Raises:
        UserError: the disk is full or may not be written.
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


def load_checkpoint(path):
    """A checkpoint's dict, tensors on the CPU, loaded with `weights_only=True`.

    Raises:
        UserError: not there, or damaged.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{path}: no such checkpoint") from None
    except (
        Exception
    ) as error:  # garbage makes the unpickler raise whatever its bytes happen to mean
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        reason = (
            "it holds more than tensors"
            if reason.startswith("Weights only load failed")
            else reason
        )
        raise UserError(f"{path}: damaged or not a checkpoint ({reason[:120]})") from None


def load_state(path, name, target, state):
    """`target.load_state_dict(state)`, a misfit told in one line.

    Raises:
        UserError: the first key that is missing, unexpected or of another shape.
    """
    if isinstance(target, torch.nn.Module):
        own = target.state_dict()
        for key in [*own, *state]:
            if key not in own or key not in state:
                which = "has no" if key not in state else "has an unexpected"
                raise UserError(f"{path}: another architecture than this {name}: it {which} {key}")
            if own[key].shape != state[key].shape:
                shapes = f"{tuple(state[key].shape)}, not {tuple(own[key].shape)}"
                raise UserError(
                    f"{path}: another architecture than this {name}: its {key} is {shapes}"
                )
    try:
        target.load_state_dict(state)
    except (ValueError, KeyError, RuntimeError) as error:
        raise UserError(
            f"{path}: its {name} does not fit this run ({str(error).splitlines()[0]})"
        ) from None
