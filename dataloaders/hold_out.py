"""Training cases kept aside, to choose a checkpoint without a look at the test list."""

from dataclasses import dataclass

import numpy as np
import torch

from dataloaders import open_dataset
from utils.errors import UserError

SOURCES = {
    "unlabeled": "unlabelled training cases, whose labels are read for this alone",
    "labeled": "labelled training cases, which are not trained on",
    "list": "the published validation list",
}


@dataclass(frozen=True)
class Validation:
    """What a run is validated on.

    Attributes:
        source: key of `SOURCES`.
        cases: by name, the pairs `(image, label)` of tensors that a case is made of: one volume, or
            slices.
    """

    source: str
    cases: dict

    def names(self):
        return list(self.cases)


def hold_out(dataset, labeled, unlabeled, args, stream):
    """Keep cases aside as `args` say.

    Args:
        dataset: the train split.
        labeled, unlabeled: its indices.
        args: val_fraction, val_from (both absent: nothing is kept aside), seed, and what opens the
            data set.
        stream: number of the random stream that draws the cases.

    Returns:
        The indices that are left of both, and `Validation` or None.

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
        kind = args.val_from.replace("eled", "elled")
        other = (
            "; --val_from labeled takes labelled ones"
            if args.val_from == "unlabeled" and not units
            else ""
        )
        raise UserError(
            f"--val_fraction {args.val_fraction:g} of {len(units)} {kind} {dataset.unit} leaves "
            f"none to train on{other}"
        )
    chosen = np.random.default_rng((args.seed, stream)).permutation(len(units))[:count]
    cases = {units[place]: [] for place in sorted(chosen)}
    for index in pool:
        if dataset.units[index] in cases:
            cases[dataset.units[index]].append(_pair(dataset, index))
    labeled, unlabeled = (
        [i for i in part if dataset.units[i] not in cases] for part in (labeled, unlabeled)
    )
    return labeled, unlabeled, Validation(args.val_from, cases)


def _pair(dataset, index):
    return tuple(torch.from_numpy(part) for part in dataset.load(index))
