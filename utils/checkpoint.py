"""Files that are whole or not there: atomic writes, and checkpoints whose misfits are told in one
line.
"""

import torch

from utils.errors import UserError


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
