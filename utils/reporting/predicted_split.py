"""A split of a data set as a checkpoint was trained on it, with its images predicted by any
network, and the steps that a run kept.
"""

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from dataloaders import open_dataset
from utils.device import resolve_precision
from utils.errors import UserError
from utils.inference import Predictor, usual_stride, whole_image
from utils.trained import unseen

Case = tuple[str, np.ndarray, np.ndarray]  # name, image and label `(X, Y, Z)`


class Split:
    """The cases of a split, and how their images are predicted.

    Args:
        checkpoint: as `utils.trained.load_networks` gives it.
        split: `val`, `test`, or `train`, without the training cases whose labels the run has seen.
        root: folder of the data; None takes the one that the run was trained on.
        device: where the networks are.
        batch: windows or slices at once; None chooses by the device.
        precision: as `--precision`.

    Attributes:
        num_classes, class_names: of the data set.
        spacing: mm of a voxel at the resolution of the training; None where it is not known.
        patch: extents of a window, or of a slice.
        sliced: whether the network is of slices.

    Raises:
        UserError: no such data or split, or a train split without such a case.
    """

    def __init__(
        self,
        checkpoint: dict,
        split: str,
        root: str | None,
        device: torch.device,
        batch: int | None = None,
        precision: str = "auto",
    ):
        trained = checkpoint["args"]
        scale = trained["downsample"]
        self._data = open_dataset(trained["dataset"], root or trained["root"], split, scale)
        self.split = split
        self._indices = list(range(len(self._data.names)))
        if split == "train":
            self._indices = unseen(self._data, checkpoint)
            if not self._indices:
                raise UserError("the label of every training case was seen; take another --split")
        spacing = self._data.spacing
        self.num_classes = self._data.num_classes
        self.class_names = self._data.class_names
        self.spacing = None if spacing is None else [size * scale for size in spacing]
        self.patch = trained["patch"]
        self.sliced = len(self.patch) == 2
        self._stride = usual_stride(self._data.stride, self.patch, scale)
        self._options = {
            "batch": batch,
            "device": device,
            "precision": resolve_precision(precision, device),
        }

    def __len__(self) -> int:
        return len(self._indices)

    def cases(self, most: int | None = None) -> Iterator[Case]:
        """The first so many cases, each read when it is its turn."""
        for index in self._indices[:most]:
            yield self._load(index)

    def named(self, names: Sequence[str] | None) -> Iterator[Case]:
        """The cases of these names; without names the first case.

        Raises:
            UserError: no such case in the split.
        """
        known = {self._data.names[index]: index for index in self._indices}
        for name in names or list(known)[:1]:
            if name not in known:
                where = f"in the {self.split} list"
                if self.split == "train":
                    where = "an unlabelled training case"
                raise UserError(f"--case {name}: not {where}; the first is {next(iter(known))}")
            yield self._load(known[name])

    def _load(self, index: int) -> Case:
        image, label = self._data.load(index)
        return self._data.names[index], np.atleast_3d(image), np.atleast_3d(label)

    def predict(self, predictor: Predictor, image: np.ndarray, channels: int) -> Tensor:
        """Output of `predictor` for an image `(X, Y, Z)`, its mean over windows: `(channels, X, Y,
        Z)` on the CPU.
        """
        predicted = whole_image(
            predictor, image, self.patch, self._stride, channels, **self._options
        )
        return predicted.cpu()


def branch_probabilities(network: nn.Module) -> Predictor:
    """A predictor of the softmax of all branches of a network behind each other, `(B, n C, *S)`."""

    def predict(x: Tensor) -> Tensor:
        return torch.cat([logits.float().softmax(1) for logits in network(x)], dim=1)

    return predict


def certain_regions(split: Split, network: nn.Module, image: np.ndarray) -> tuple[Tensor, Tensor]:
    """The classes uint8 `(X, Y, Z)` that D_con and D_rad predict; they agree on the certain
    region.
    """
    classes = split.num_classes
    branches = split.predict(branch_probabilities(network), image, 3 * classes)
    _, con, rad = branches.split(classes)
    return con.argmax(0).to(torch.uint8), rad.argmax(0).to(torch.uint8)


def insist_on_branches(network: nn.Module, path: Path) -> None:
    """Raise `UserError` where a network is not one network with three branches, as those of
    `train_coranet.py`.
    """
    if "network" in network.config:
        raise UserError(
            f"{path}: one network a class, each with a region of its own; take a run of "
            "train_coranet.py"
        )
    if network.config.get("branches") != 3:
        raise UserError(
            f"{path}: its network has no conservative and radical branch; take a run of "
            "train_coranet.py"
        )


def kept_steps(run: Path) -> list[int]:
    """The steps that a run kept, ascending.

    Raises:
        UserError: it kept none.
    """
    names = [path.stem for path in run.glob("step_*.pth")]
    steps = sorted(int(name[5:]) for name in names if re.fullmatch(r"step_\d+", name))
    if not steps:
        raise UserError(f"{run}: it kept no steps; train with --keep_every")
    return steps


def steps_of_all(runs: Sequence[Path]) -> list[int]:
    """The steps that every one of the runs kept, ascending.

    Raises:
        UserError: there are none.
    """
    kept = [set(kept_steps(run)) for run in runs]
    common = sorted(set.intersection(*kept))
    if not common:
        raise UserError(f"{', '.join(map(str, runs))}: they kept no step in common")
    return common


def evenly(steps: Sequence[int], most: int) -> list[int]:
    """At most so many of the steps, from the first to the last."""
    places = np.linspace(0, len(steps) - 1, min(most, len(steps))).round().astype(int)
    return [steps[place] for place in dict.fromkeys(places.tolist())]


def epochs(run: Path) -> dict[int, int]:
    """The epoch of each step that the training recorded."""
    try:
        lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    records = [json.loads(line) for line in lines if line.endswith("}")]
    return {record["step"]: record["epoch"] for record in records}
