"""Lists of cases: drawn by patient, the same ones from the same seed."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path

import numpy as np

from dataloaders.h5 import check_disjoint, read_list
from utils.errors import UserError
from utils.preparation.matching import Case

SPLITS = ("train", "val", "test")


def split_units(
    units: Sequence[str], fractions: Mapping[str, float], seed: int, keep: int = 1
) -> dict[str, list[str]]:
    """Draw units (patients, cases) for some splits. The same seed draws the same ones, in any order
    of `units`.

    Args:
        units: names; repeated ones count once.
        fractions: split to its part of the units; more than 0 is at least one unit.
        seed: of the draw.
        keep: how many have to stay undrawn, at least.

    Returns:
        Split to its units, in the order in which `units` has them.

    Raises:
        UserError: fewer would be left.
    """
    names = sorted(set(units))
    counts = {
        split: max(1, round(part * len(names))) if part > 0 else 0
        for split, part in fractions.items()
    }
    if sum(counts.values()) > max(len(names) - keep, 0):
        wanted = " and ".join(f"{count} for {split}" for split, count in counts.items() if count)
        raise UserError(
            f"{wanted} of {len(names)} patients with labels leave too few to train on; take "
            "smaller fractions, or 0"
        )
    order = np.random.default_rng(seed).permutation(len(names)).tolist()
    drawn = {}
    for split, count in counts.items():
        taken = {names[place] for place in order[:count]}
        order = order[count:]
        drawn[split] = [unit for unit in dict.fromkeys(units) if unit in taken]
    return drawn


def draw_lists(
    names: Sequence[str], fractions: Mapping[str, float], seed: int
) -> dict[str, list[str]]:
    """`split_units`, and all other names as `train`, in an order that the seed decides too."""
    drawn = split_units(names, fractions, seed)
    taken = {name for split in drawn.values() for name in split}
    left = [name for name in names if name not in taken]
    return {"train": np.random.default_rng(seed).permutation(left).tolist(), **drawn}


def read_lists(
    files: Mapping[str, Path],
    unit: str = "case",
    unit_of: Callable[[str], Hashable] = lambda name: name,
) -> dict[str, list[str]]:
    """The names in list files, which may have no unit in common.

    Args:
        files: split, or another key, to the file of its list.
        unit: the word for a unit in messages.
        unit_of: the unit that a listed name belongs to.

    Raises:
        UserError: a file is missing, or a unit is in two of them.
    """
    lists: dict[str, list[str]] = {}
    for split, file in files.items():
        names = read_list(file)
        for other, known in lists.items():
            check_disjoint(file, map(unit_of, names), files[other], map(unit_of, known), unit)
        lists[split] = names
    return lists


def assign_lists(
    cases: Sequence[Case], val_fraction: float, test_fraction: float, seed: int
) -> None:
    """Put every case into a list.

    Patients with a label for each of their images can be drawn; all others train. Two files with
    one image belong to one patient, even if their names differ.

    Args:
        test_fraction: of the patients; none are drawn where cases are in the test list already.

    Raises:
        UserError: too few patients would be left to train on.
    """
    _join_patients(cases)
    fixed = {case.patient for case in cases if case.split == "test"}
    free = [case for case in cases if case.patient not in fixed]
    known = {case.patient for case in free if case.label}
    known -= {case.patient for case in free if not case.label or case.split == "train"}
    others = any(case.label and case.patient not in known for case in free)  # to train on
    fractions = {"val": val_fraction, "test": 0 if fixed else test_fraction}
    drawn = split_units(sorted(known), fractions, seed, keep=0 if others else 1)
    place = {patient: split for split, patients in drawn.items() for patient in patients}
    for case in cases:
        case.split = case.split or place.get(case.patient, "train")


def in_order(cases: Sequence[Case], seed: int) -> list[Case]:
    """Cases in the order of their list: those with a label first, patients in an order that the
    seed decides.
    """
    patients = sorted({case.patient for case in cases})
    order = np.random.default_rng((seed, 1)).permutation(len(patients)).tolist()
    rank = dict(zip(patients, order, strict=True))
    return sorted(cases, key=lambda case: (case.label is None, rank[case.patient], case.name))


def _join_patients(cases: Sequence[Case]) -> None:
    """Give cases that share an image one patient, and all other cases of these patients too."""
    same: dict[str, str] = {}  # a patient to another name of the same one

    def patient_of(case: Case) -> str:
        name = case.patient
        while name in same:
            name = same[name]
        return name

    first: dict[str, Case] = {}  # the first case with an image
    for case in cases:
        one = patient_of(first.setdefault(case.sha256, case))
        other = patient_of(case)
        if one != other:
            same[other] = one
    for case in cases:
        case.patient = patient_of(case)
