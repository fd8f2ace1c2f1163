"""What a run's checkpoints hold: last.pth everything that resuming needs, the kept ones only the
networks.
"""

import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dataloaders.hold_out import SOURCES
from dataloaders.two_stream import TwoStream
from utils.checkpoint import load_checkpoint, load_state
from utils.errors import UserError
from utils.files import write_atomically


class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: of the run.
        options: of the run, as its args.json has them.
        objects: by name, anything with `state_dict` and `load_state_dict`; networks have a
            `config`.
        test_networks: names of the networks whose mean softmax is the prediction.

    Attributes:
        best: step and Dice of the best validation so far, or None.
        saved: step of last.pth; 0 where there is none.
        saved_at: when it was saved or loaded, in seconds of `time.monotonic`.
    """

    def __init__(
        self,
        folder: Path,
        options: dict,
        objects: dict[str, Any],
        test_networks: Sequence[str],
    ):
        self.folder = folder
        self.objects = objects
        self.test_networks = list(test_networks)
        self.best: dict | None = None
        self.saved = 0
        self.saved_at = time.monotonic()
        self._options = options
        self._fingerprint: str | None = None

    # ---- before the loop

    def load(self) -> int | None:
        """Load last.pth into the objects; its step, or None where it is not there.

        Raises:
            UserError: it is damaged, lacks something, or does not fit the objects.
        """
        path = self.folder / "last.pth"
        if not path.exists():
            return None
        state = load_checkpoint(path)
        for name in (*self.objects, "step", "data"):
            if name not in state:
                raise UserError(
                    f"{path}: no {name} in this checkpoint; it is of another script or version"
                )
        for name, target in self.objects.items():
            load_state(path, name, target, state[name])
        self.saved = state["step"]
        self.best = state.get("best")  # only validated runs have one
        self._fingerprint = state["data"]
        return self.saved

    def begin(self, data: TwoStream, last: int) -> None:
        """Say on which data the run goes on, and up to which step.

        Raises:
            UserError: they are not the cases that the loaded checkpoint was trained on.
        """
        self._data = data
        self._last = last
        if self.saved and self._fingerprint != data.fingerprint():
            raise UserError(
                f"{self.folder} was trained on other cases than these: check --root and its lists"
            )

    # ---- in the loop

    def networks(self) -> list[nn.Module]:
        """All networks of the run."""
        return [target for target in self.objects.values() if isinstance(target, nn.Module)]

    def tested(self) -> list[nn.Module]:
        """The networks that are tested."""
        return [self.objects[name] for name in self.test_networks]

    def save(self, step: int) -> None:
        """Write last.pth."""
        self._write("last.pth", step, self.objects)

    def keep(self, step: int, name: str) -> None:
        """Write a file with only the networks."""
        names = [n for n, target in self.objects.items() if isinstance(target, nn.Module)]
        self._write(name, step, names)

    def _write(self, name: str, step: int, names: Iterable[str]) -> None:
        state = self._state(step, names)
        write_atomically(self.folder / name, lambda path: torch.save(state, path))

    def _state(self, step: int, names: Iterable[str]) -> dict:
        """A checkpoint's dict, with the objects of these names."""
        objects = {name: self.objects[name] for name in names}
        for name, target in objects.items():
            if isinstance(target, nn.Module) and not _is_finite(target):
                raise UserError(
                    f"step {step}: {name} is not finite any more; last checkpoint: step "
                    f"{self.saved}"
                )
        state = {
            "step": step,
            "last": self._last,
            "data": self._data.fingerprint(),
            "args": self._options,
            "dataset": self._data.description,
            "networks": {
                name: {"class": _class_name(target), "kwargs": target.config}
                for name, target in objects.items()
                if hasattr(target, "config")
            },
            "test_networks": self.test_networks,
        }
        validation = self._data.validation
        if validation:
            cases = {"from": SOURCES[validation.source], "cases": validation.names()}
            state |= {"validation": cases, "best": self.best}
        return state | {name: target.state_dict() for name, target in objects.items()}


def _is_finite(network: nn.Module) -> bool:
    return all(bool(parameter.isfinite().all()) for parameter in network.parameters())


def _class_name(network: nn.Module) -> str:
    return f"{type(network).__module__}.{type(network).__name__}"
