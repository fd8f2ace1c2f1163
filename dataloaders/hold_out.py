"""Training cases kept aside, to choose a checkpoint without a look at the test list."""

import argparse
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from dataloaders import open_dataset
from utils.errors import UserError

if TYPE_CHECKING:
    from dataloaders.volumes import Volumes

SOURCES = {
    "unlabeled": "unlabelled training cases; their labels are read only for this",
    "labeled": "labelled training cases, which are not trained on",
    "list": "the published validation list",
}


@dataclass(frozen=True)
class Validation:
    """The cases that a run is validated on.

    Attributes:
        source: key of `SOURCES`.
        cases: by name, the pairs `(image, label)` of tensors that a case consists of: one volume,
            or slices.
    """

    source: str
    cases: dict[str, list[tuple[Tensor, Tensor]]]

    def names(self) -> list[str]:
        """The cases' names."""
        return list(self.cases)


def hold_out(
    dataset: "Volumes",
    labeled: list[int],
    unlabeled: list[int],
    args: argparse.Namespace,
    stream: int,
) -> tuple[list[int], list[int], Validation | None]:
    """Keep cases aside as `args` say.

    Args:
        dataset: the train split.
        labeled, unlabeled: its indices.
        args: val_fraction, val_from (absent or None: nothing is kept aside), seed, dataset, root
            and downsample.
        stream: number of the random stream that draws the cases.

    Returns:
        The indices that are left of both, and the cases kept aside or None.

    Raises:
        UserError: nothing would be left to train on, a kept case has no label, or no validation
            list is published.
    """
    if getattr(args, "val_from", None) is None:
        return labeled, unlabeled, None
    if args.val_from == "list":
        listed = open_dataset(args.dataset, args.root, "val", args.downsample)
        cases = {name: [_pair(listed, index)] for index, name in enumerate(listed.names)}
        return labeled, unlabeled, Validation("list", cases)
    pool = labeled if args.val_from == "labeled" else unlabeled
    units = list(dict.fromkeys(dataset.units[index] for index in pool))
    count = max(1, round(args.val_fraction * len(units)))
    if count >= len(units):
        kind = "labelled" if args.val_from == "labeled" else "unlabelled"
        hint = ""
        if args.val_from == "unlabeled" and not units:
            hint = "; --val_from labeled takes labelled ones"
        raise UserError(
            f"--val_fraction {args.val_fraction:g} of {len(units)} {kind} {dataset.unit} leaves "
            f"none to train on{hint}"
        )
    chosen = np.random.default_rng((args.seed, stream)).permutation(len(units))[:count]
    cases = {units[place]: [] for place in sorted(chosen)}
    for index in pool:
        if dataset.units[index] in cases:
            cases[dataset.units[index]].append(_pair(dataset, index))
    labeled = [index for index in labeled if dataset.units[index] not in cases]
    unlabeled = [index for index in unlabeled if dataset.units[index] not in cases]
    return labeled, unlabeled, Validation(args.val_from, cases)


def _pair(dataset: "Volumes", index: int) -> tuple[Tensor, Tensor]:
    image, label = dataset.load(index)
    return torch.from_numpy(image), torch.from_numpy(label)
