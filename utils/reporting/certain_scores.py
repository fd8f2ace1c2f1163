"""PPV, TPR and CSI of certain regions, as `code/assess_coranet.py` wrote them."""

import csv
import re
from collections.abc import Collection
from pathlib import Path

from utils.errors import UserError

MEASURES = ("PPV", "TPR", "CSI")
Scores = dict[str, float]  # by the column of certain.csv
Regions = dict[str, Scores]  # by the name of the region


def read_certain(run: Path, tag: str) -> Regions:
    """The table of one assessment of a run: by region the mean of each measure, its sd under
    `<measure>_sd`, the number of `cases`, and under `of_training` 1 for the region that the run was
    trained with, 0 for the others.

    Args:
        tag: the folder in `<run>/test/`, such as `last` or `step_200_train`.

    Raises:
        UserError: the run was not assessed, or the file is damaged.
    """
    path = run / "test" / tag / "certain.csv"
    if not path.is_file():
        raise UserError(f"{path}: not there; {_advice(run, tag)}")
    columns = ("cases", "of_training", *MEASURES, *(f"{measure}_sd" for measure in MEASURES))
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        return {row["region"]: {name: float(row[name]) for name in columns} for row in rows}
    except (ValueError, LookupError, TypeError, csv.Error):
        raise UserError(f"{path}: damaged; assess the run again") from None


def read_certain_steps(run: Path, split: str, steps: Collection[int] | None) -> dict[int, Regions]:
    """The tables of the kept steps that were assessed, by step.

    Args:
        split: list of the cases, `test` or `train`.
        steps: those that are taken; None takes all.

    Raises:
        UserError: none of them was assessed.
    """
    ending = "" if split == "test" else f"_{split}"
    found = {}
    for path in run.glob("test/step_*/certain.csv"):
        match = re.fullmatch(rf"step_(\d+){ending}", path.parent.name)
        if match and (not steps or int(match[1]) in steps):
            found[int(match[1])] = read_certain(run, path.parent.name)
    missing = sorted(set(steps or ()) - found.keys())
    if missing or not found:
        raise UserError(
            f"{run}: no assessment of {f'step {missing[0]}' if missing else 'kept steps'}; "
            f"{_advice(run, f'step_kept{ending}')}"
        )
    return dict(sorted(found.items()))


def _advice(run: Path, tag: str) -> str:
    """The command that writes the table."""
    checkpoint = tag.removeprefix("step_").removesuffix("_train")
    command = f"python code/assess_coranet.py --run {run} --checkpoint {checkpoint}"
    if tag.endswith("_train"):
        command += " --split train"
    return f"assess it, {command}"
