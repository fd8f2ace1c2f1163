"""The runs that a command line names, as rows of a table.

    entries = open_entries(["runs/LA/dmd_8:last_nms0", "runs/LA/supervised_8/seed1337"], "last")

An entry has one row in a table: it is a run, or several runs that differ only in the seed.
"""

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from utils.errors import UserError
from utils.metrics import mean
from utils.reporting.results import Result, read_result
from utils.training.options import NOT_COMPARED

SEED = re.compile(r"seed(\d+)")


@dataclass(frozen=True)
class Entry:
    """Tests of runs that differ only in the seed: a row of a table.

    Attributes:
        label: its name in the table.
        results: one a seed.
    """

    label: str
    results: tuple[Result, ...]

    @property
    def first(self) -> Result:
        """The result of the first seed, which speaks for all where they agree."""
        return self.results[0]

    @property
    def seeds(self) -> list[int]:
        return [result.seed for result in self.results]

    @property
    def rows(self) -> list[dict]:
        """The rows of `per_case.csv` of all seeds."""
        return [row for result in self.results for row in result.rows]

    @cached_property
    def case_names(self) -> list[str]:
        """The cases of all seeds, in their order."""
        return list(dict.fromkeys(row["case"] for row in self.rows))

    def cases(self, metric: str, of_class: int | None = None) -> dict[str, float]:
        """A metric by case, the mean over the seeds."""
        values: dict[str, list[float]] = {case: [] for case in self.case_names}
        for result in self.results:
            for case, value in result.cases(metric, of_class).items():
                values[case].append(value)
        return {case: mean(of_seeds) for case, of_seeds in values.items()}

    def seed_means(self, metric: str, of_class: int | None = None) -> list[float]:
        """The mean over cases of each seed."""
        return [mean(result.cases(metric, of_class).values()) for result in self.results]

    def empty_predictions(self, of_class: int | None = None) -> int:
        """Masks without a voxel over all seeds, cases and classes, or of one class."""
        rows = [row for row in self.rows if of_class in (None, row["class"])]
        return sum(row["prediction_voxels"] == 0 for row in rows)


def open_entries(runs: Sequence[str], tag: str, names: Sequence[str] = ()) -> list[Entry]:
    """The entries that a command line names.

    Seeds of one folder are one entry, whether the folder is named or the seeds are. Labels are the
    names of the runs' folders, with as much of the path as tells them apart.

    Args:
        runs: each the folder of a run, of its seeds, or of a test; `<folder>:<tag>` takes another
            test than `tag`.
        tag: name of the folder below `test/`.
        names: labels in the order of the entries, in place of their own.

    Raises:
        UserError: no such run, no or damaged results, or another number of names than of entries.
    """
    groups: dict[tuple[Path, str], dict[Path, Path]] = {}
    for text in runs:
        for folder, own in _find(text, tag):
            place = Path(os.path.abspath(folder))
            group = place.parent if SEED.fullmatch(place.name) else place
            groups.setdefault((group, own), {}).setdefault(place, folder)
    if names and len(names) != len(groups):
        raise UserError(f"--names: {len(names)} names for {len(groups)} rows; give one each")
    if len(set(names)) < len(names):
        raise UserError("--names: two of them are the same")
    labels = names or _labels(list(groups))
    entries = []
    for label, ((_, own), members) in zip(labels, groups.items(), strict=True):
        results = tuple(read_result(folder, own) for folder in members.values())
        entries.append(Entry(label, results))
    return entries


def differing(results: Iterable[Result]) -> list[str]:
    """Options of the training that are not the same in all, except the seed and those that move no
    number.
    """
    trained = [result.trained for result in results]
    keys = set.intersection(*map(set, trained)) - NOT_COMPARED - {"seed"}
    first = trained[0]
    found = []
    for key in sorted(keys):
        if any(options[key] != first[key] for options in trained):
            found.append(key)
    return found


def _find(text: str, tag: str) -> Iterator[tuple[Path, str]]:
    """`(folder of a run, tag)` of each run that one argument names."""
    folder = Path(text)
    if not folder.exists() and ":" in text:
        name, _, tag = text.rpartition(":")
        folder = Path(name)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; name the folder of a run, or of its seeds")
    if _is_test(folder):
        tag = folder.name
        folder = folder.parent.parent
    if _is_run(folder):
        yield folder, tag
        return
    seeds = [path for path in folder.iterdir() if SEED.fullmatch(path.name) and _is_run(path)]
    if not seeds:
        folders = [path for path in folder.iterdir() if path.is_dir()]
        inside = [path.name for path in folders if any(map(_is_run, path.glob("*")))]
        hint = ""
        if inside:
            listed = ", ".join(sorted(inside))
            hint = f"; there are runs in {listed}: name them, as {folder}/*"
        raise UserError(f"{folder}: neither a run nor a folder of seeds{hint}")
    for path in sorted(seeds, key=lambda path: int(SEED.fullmatch(path.name)[1])):
        yield path, tag


def _is_run(folder: Path) -> bool:
    return (folder / "args.json").is_file() or (folder / "test").is_dir()


def _is_test(folder: Path) -> bool:
    if folder.parent.name != "test" or SEED.fullmatch(folder.name):
        return False
    return (folder / "summary.json").is_file()


def _labels(groups: Sequence[tuple[Path, str]]) -> list[str]:
    """The folders' names, with as much of their paths and tags as tells them apart."""
    for depth in (1, 2, None):
        names = [
            str(folder if depth is None else Path(*folder.parts[-depth:])) for folder, _ in groups
        ]
        tagged = [f"{name}:{tag}" for name, (_, tag) in zip(names, groups, strict=True)]
        for labels in (names, tagged):
            if len(set(labels)) == len(labels):
                return labels
    raise AssertionError("two groups of one folder and tag")
