"""Loading checkpoints: one that does not fit is reported in one line."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from utils.errors import UserError


def load_checkpoint(path: str | Path) -> dict:
    """A checkpoint's dict, tensors on the CPU, loaded with `weights_only=True`.

    Raises:
        UserError: it is not there, or damaged.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{path}: no such checkpoint") from None
    except Exception as error:  # damaged bytes can make the unpickler raise anything
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if reason.startswith("Weights only load failed"):
            reason = "it holds more than tensors"
        raise UserError(f"{path}: damaged or not a checkpoint ({reason[:120]})") from None


def load_state(path: str | Path, name: str, target: Any, state: Mapping) -> None:
    """Call `target.load_state_dict(state)`.

    Args:
        path: of the checkpoint, for the message.
        name: of the target, for the message.
        target: a network, an optimizer, or anything else with `load_state_dict`.
        state: what the checkpoint holds of it.

    Raises:
        UserError: the first key that is missing, unexpected or of another shape.
    """
    if isinstance(target, torch.nn.Module):
        _check_architecture(path, name, target.state_dict(), state)
    try:
        target.load_state_dict(state)
    except (ValueError, KeyError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path}: its {name} does not fit this run ({reason})") from None


def _check_architecture(path: str | Path, name: str, own: Mapping, state: Mapping) -> None:
    for key in [*own, *state]:
        if key not in state:
            reason = f"it has no {key}"
        elif key not in own:
            reason = f"it has an unexpected {key}"
        elif own[key].shape != state[key].shape:
            reason = f"its {key} is {tuple(state[key].shape)}, not {tuple(own[key].shape)}"
        else:
            continue
        raise UserError(f"{path}: another architecture than this {name}: {reason}")
