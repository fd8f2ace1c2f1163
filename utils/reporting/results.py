"""Results of tests, read back from the folders of their runs, for tables, figures and reports.

    entries = open_entries(["runs/LA/dmd_8:last_nms0", "runs/LA/supervised_8/seed1337"], "last")

An entry is what has one row in a table: a run, or several that differ in nothing but the seed.
"""

import csv
import json
import math
import os
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from utils.errors import UserError
from utils.evaluation.test_script import GUESTS
from utils.metrics import METRICS
from utils.reporting.experiments import NOT_COMPARED

SEED = re.compile(r"seed(\d+)")
TEXT = ("case", "class_name")  # columns of per_case.csv that are no numbers
COUNTS = ("class", "prediction_voxels", "reference_voxels")


@dataclass(frozen=True)
class Result:
    """One test of one run.

    Attributes:
        folder: of the run.
        tag: name of the test's folder below `test/`.
        summary: what `summary.json` holds.
        rows: those of `per_case.csv`, one a case and class, numbers as such.
    """

    folder: Path
    tag: str
    summary: dict
    rows: list[dict]

    @property
    def path(self) -> Path:
        """The folder of the results."""
        return self.folder / "test" / self.tag

    @property
    def trained(self) -> dict:
        """Options of the training."""
        return self.summary["trained"]

    @property
    def seed(self) -> int:
        return self.trained["seed"]

    @property
    def classes(self) -> dict[int, str]:
        """The foreground classes' names by number."""
        return {row["class"]: row["class_name"] for row in self.rows}

    def cases(self, metric: str, of_class: int | None = None) -> dict[str, float]:
        """A metric by case: of one class, or the mean over classes; what is NaN is left out of
        it.
        """
        values = {}
        for row in self.rows:
            if of_class in (None, row["class"]):
                values.setdefault(row["case"], []).append(row[metric])
        return {case: _mean(row) for case, row in values.items()}

    def environments(self) -> list[dict]:
        """Versions, commit and hardware, one a part of a run that was resumed; empty if not
        recorded.
        """
        try:
            parts = json.loads((self.folder / "environment.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return []
        return [part for part in parts if isinstance(part, dict)] if isinstance(parts, list) else []

    def sources(self) -> dict[str, list[str]]:
        """Names of the training's options by where their values came from, as the log begins with
        them.
        """
        try:
            lines = (self.folder / "log.txt").read_text(encoding="utf-8").splitlines()
        except (OSError, ValueError):
            return {}
        groups = {}
        for line in lines[2:]:  # below the folder and the hardware
            found = re.fullmatch(r"\S+ (.+?): (\w+=.*)", line)
            if not found:
                break
            groups[found[1]] = [
                name for name in re.findall(r"(?:^| )(\w+)=", found[2]) if name in self.trained
            ]
        return groups

    def training_minutes(self) -> float:
        """What the steps took; 0 if not recorded."""
        before, seconds = 0, 0.0
        for record in self.training():
            if "time/step" in record:  # the mean of the steps since the record before
                seconds += (record["step"] - before) * record["time/step"]
                before = record["step"]
        return seconds / 60

    def training(self) -> list[dict]:
        """Records of `metrics.jsonl`, as far as there are any."""
        records = []
        try:
            text = (self.folder / "metrics.jsonl").read_text(encoding="utf-8")
        except (OSError, ValueError):
            return []
        for line in text.splitlines():
            try:
                record = json.loads(line)
            except ValueError:  # the last line of a run that was killed
                continue
            if isinstance(record, dict) and isinstance(record.get("step"), int):
                records.append(record)
        return records

    def steps(self) -> dict[int, "Result"]:
        """Tests of the steps that the run kept, made with this test's options; this one among them
        at its step.
        """
        stem = self.summary["checkpoint"].removesuffix(".pth")
        found = {}
        for path in self.folder.glob("test/step_*/summary.json"):
            checkpoint, options = re.fullmatch(r"(step_\d+)(.*)", path.parent.name).groups()
            if options == self.tag.removeprefix(stem):
                found[int(checkpoint[5:])] = read_result(self.folder, path.parent.name)
        return dict(sorted((found | {self.summary["step"]: self}).items())) if found else {}


@dataclass(frozen=True)
class Entry:
    """Tests of runs that differ in nothing but the seed: a row of a table.

    Attributes:
        label: how it is called there.
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

    @cached_property
    def case_names(self) -> list[str]:
        """The cases of all seeds, in their order."""
        return list(dict.fromkeys(row["case"] for result in self.results for row in result.rows))

    def cases(self, metric: str, of_class: int | None = None) -> dict[str, float]:
        """A metric by case, the mean over the seeds."""
        seeds = [result.cases(metric, of_class) for result in self.results]
        return {
            case: _mean([values[case] for values in seeds if case in values])
            for case in self.case_names
        }

    def seed_means(self, metric: str, of_class: int | None = None) -> list[float]:
        """The mean over cases of each seed."""
        return [_mean(result.cases(metric, of_class).values()) for result in self.results]


def open_entries(runs: Sequence[str], tag: str, names: Sequence[str] = ()) -> list[Entry]:
    """The entries that a command line names.

    Seeds of one folder are one entry, whether it is named or they are. Labels are the names of the
    runs' folders, with what tells them apart where two are the same.

    Args:
        runs: each the folder of a run, of its seeds, or of a test; `<folder>:<tag>` takes another
            test than `tag`.
        tag: name of the folder below `test/`.
        names: labels in the order of the entries, in place of their own.

    Raises:
        UserError: no such run, no or damaged results, or another number of names than of entries.
    """
    groups = {}
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
    return [
        Entry(label, tuple(read_result(folder, own) for folder in members.values()))
        for label, ((_, own), members) in zip(labels, groups.items(), strict=True)
    ]


def read_result(folder: Path, tag: str) -> Result:
    """The results below `test/<tag>` of a run.

    Raises:
        UserError: there are none, or they are damaged; says which command makes them.
    """
    path = folder / "test" / tag
    if not (path / "summary.json").is_file():
        others = sorted(other.parent.name for other in folder.glob("test/*/summary.json"))
        hint = (
            f"; it has {', '.join(others)}: take one with --test or {folder}:{others[0]}"
            if others
            else ""
        )
        raise UserError(f"{folder}: no results {tag}; {_how(folder, tag)}{hint}")
    try:
        summary = json.loads((path / "summary.json").read_text(encoding="utf-8"))
        needed = (
            summary["cases"],
            summary["step"],
            summary["checkpoint"],
            summary["selection"],
            summary["empty"],
        )
        needed += tuple(
            summary["trained"][key] for key in ("dataset", "labelnum", "method", "seed")
        )
        summary["units"]["hd"], summary["test"]["nms"]
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        raise UserError(f"{path / 'summary.json'}: damaged; {_how(folder, tag)}") from None
    rows = _read_rows(path / "per_case.csv", _how(folder, tag))
    if len({row["case"] for row in rows}) != summary["cases"]:
        raise UserError(
            f"{path}: per_case.csv and summary.json are not of one test; {_how(folder, tag)}"
        )
    return Result(folder, tag, summary, rows)


def _read_rows(path: Path, how: str) -> list[dict]:
    try:
        with open(path, encoding="utf-8", newline="") as file:
            rows = [
                {
                    key: text if key in TEXT else int(text) if key in COUNTS else float(text)
                    for key, text in row.items()
                }
                for row in csv.DictReader(file)
            ]
    except FileNotFoundError:
        raise UserError(f"{path}: missing; {how}") from None
    except (OSError, ValueError, TypeError):
        raise UserError(f"{path}: damaged; {how}") from None
    wanted = {*TEXT, *COUNTS, *METRICS, "seconds"}
    twice = len({(row.get("case"), row.get("class")) for row in rows}) < len(rows)
    if not rows or twice or any(wanted - row.keys() for row in rows):
        raise UserError(f"{path}: damaged; {how}")
    return rows


def _how(folder: Path, tag: str) -> str:
    """How the results are made."""
    if not any(folder.glob("*.pth")):
        return "it has no checkpoint to test: train it first"
    try:
        dataset = json.loads((folder / "args.json").read_text())["dataset"]
    except (OSError, ValueError, LookupError, TypeError):
        return "test it with code/test_<dataset>.py"
    return f"make them with: {command_of_test(folder, tag, dataset)}"


def command_of_test(folder: Path, tag: str, dataset: str, test: Mapping | None = None) -> str:
    """The command that makes the results of a name, as far as it and the options of an earlier test
    tell it.
    """
    flags = [
        f"--checkpoint {step or best}" for step, best in re.findall(r"^(?:step_(\d+)|(best))", tag)
    ]
    flags += [f"--split {split}" for split in re.findall(r"_(val|train)(?=_|$)", tag)]
    flags += [f"--nms {value}" for value in re.findall(r"_nms([01])(?=_|$)", tag)]
    flags += [f"--empty {value}" for value in re.findall(r"_(nan|diagonal)(?=_|$)", tag)]
    flags += [
        f"--stride {value.replace('-', ' ')}"
        for value in re.findall(r"_stride([\d-]+)(?=_|$)", tag)
    ]
    flags += [f"--precision {value}" for value in re.findall(r"_(fp32|bf16)(?=_|$)", tag)]
    flags += [f"--cases {value}" for value in re.findall(r"_cases(\d+)(?=_|$)", tag)]
    given = {key: (test or {}).get(key) for key in ("network", "root")}
    flags += [
        f"--{key} {shlex.quote(str(value))}" for key, value in given.items() if value is not None
    ]
    script = f"code/test_{GUESTS.get(dataset, dataset)}.py"
    return " ".join(["python", script, "--run", shlex.quote(str(folder)), *flags])


def _find(text: str, tag: str) -> Iterator[tuple[Path, str]]:
    """`(folder of a run, tag)` of what one argument names."""
    folder = Path(text)
    if not folder.exists() and ":" in text:
        folder, _, tag = text.rpartition(":")
        folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; name the folder of a run, or of its seeds")
    if (
        folder.parent.name == "test"
        and not SEED.fullmatch(folder.name)
        and (folder / "summary.json").is_file()
    ):
        folder, tag = folder.parent.parent, folder.name
    if _is_run(folder):
        yield folder, tag
        return
    seeds = [path for path in folder.iterdir() if SEED.fullmatch(path.name) and _is_run(path)]
    if not seeds:
        inside = sorted(
            path.name
            for path in folder.iterdir()
            if path.is_dir() and any(map(_is_run, path.glob("*")))
        )
        hint = (
            f"; there are runs in {', '.join(inside)}: name them, as {folder}/*" if inside else ""
        )
        raise UserError(f"{folder}: neither a run nor a folder of seeds{hint}")
    for path in sorted(seeds, key=lambda path: int(SEED.fullmatch(path.name)[1])):
        yield path, tag


def _is_run(folder: Path) -> bool:
    return (folder / "args.json").is_file() or (folder / "test").is_dir()


def _labels(groups: Sequence[tuple[Path, str]]) -> list[str]:
    """The folders' names, or with as much besides as tells them apart."""
    folders, tags = zip(*groups, strict=True)
    for depth in (1, 2, None):
        names = [
            str(folder if depth is None else Path(*folder.parts[-depth:])) for folder in folders
        ]
        for labels in (names, [f"{name}:{tag}" for name, tag in zip(names, tags, strict=True)]):
            if len(set(labels)) == len(labels):
                return labels
    raise AssertionError("two groups of one folder and tag")


def differing(results: Iterable[Result]) -> list[str]:
    """Options of the training that are not the same in all, but for the seed and what moves no
    number.
    """
    trained = [result.trained for result in results]
    keys = sorted(set.intersection(*map(set, trained)) - NOT_COMPARED - {"seed"})
    return [key for key in keys if any(options[key] != trained[0][key] for options in trained)]


def _mean(values: Iterable[float]) -> float:
    kept = [value for value in values if not math.isnan(value)]
    return sum(kept) / len(kept) if kept else math.nan
