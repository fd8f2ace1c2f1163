"""The result of one test of one run, read back from the run's folder."""

import csv
import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dataloaders import evaluation_script
from utils.errors import UserError
from utils.metrics import METRICS, mean

TEXT = ("case", "class_name")  # columns of per_case.csv that hold text
COUNTS = ("class", "prediction_voxels", "reference_voxels")


@dataclass(frozen=True)
class Result:
    """One test of one run.

    Attributes:
        folder: of the run.
        tag: name of the test's folder below `test/`.
        summary: the content of `summary.json`.
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
    def checkpoint(self) -> str:
        """The checkpoint in words, such as `last` or `step 2000`."""
        return self.summary["checkpoint"].removesuffix(".pth").replace("_", " ")

    @property
    def classes(self) -> dict[int, str]:
        """The foreground classes' names by number."""
        return {row["class"]: row["class_name"] for row in self.rows}

    def cases(self, metric: str, of_class: int | None = None) -> dict[str, float]:
        """A metric by case: of one class, or the mean over the classes without NaN."""
        values: dict[str, list[float]] = {}
        for row in self.rows:
            if of_class in (None, row["class"]):
                values.setdefault(row["case"], []).append(row[metric])
        return {case: mean(row) for case, row in values.items()}

    def environments(self) -> list[dict]:
        """Versions, commit and hardware, one for each part of a run that was resumed; empty if not
        recorded.
        """
        try:
            parts = json.loads((self.folder / "environment.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return []
        return [part for part in parts if isinstance(part, dict)] if isinstance(parts, list) else []

    def sources(self) -> dict[str, list[str]]:
        """Names of the training's options by the source of their values, as the log begins with
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
            names = re.findall(r"(?:^| )(\w+)=", found[2])
            groups[found[1]] = [name for name in names if name in self.trained]
        return groups

    def training_minutes(self) -> float:
        """How long the steps took; 0 if not recorded."""
        before = 0
        seconds = 0.0
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
        """Tests of the steps that the run kept, made with this test's options, and this test at its
        own step; empty if no kept step was tested.
        """
        options = self.tag.removeprefix(self.summary["checkpoint"].removesuffix(".pth"))
        found = {}
        for path in self.folder.glob("test/step_*/summary.json"):
            checkpoint, others = re.fullmatch(r"(step_\d+)(.*)", path.parent.name).groups()
            if others == options:
                found[int(checkpoint[5:])] = read_result(self.folder, path.parent.name)
        if not found:
            return {}
        found[self.summary["step"]] = self
        return dict(sorted(found.items()))


def read_result(folder: Path, tag: str) -> Result:
    """The results below `test/<tag>` of a run.

    Raises:
        UserError: there are none, or they are damaged; says which command makes them.
    """
    path = folder / "test" / tag
    how = _how(folder, tag)
    if not (path / "summary.json").is_file():
        others = sorted(other.parent.name for other in folder.glob("test/*/summary.json"))
        hint = ""
        if others:
            hint = f"; it has {', '.join(others)}: take one with --test or {folder}:{others[0]}"
        raise UserError(f"{folder}: no results {tag}; {how}{hint}")
    try:
        summary = json.loads((path / "summary.json").read_text(encoding="utf-8"))
        for key in ("cases", "step", "checkpoint", "selection", "empty"):
            summary[key]
        for key in ("dataset", "labelnum", "method", "seed"):
            summary["trained"][key]
        summary["units"]["hd"]
        summary["test"]["nms"]
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        raise UserError(f"{path / 'summary.json'}: damaged; {how}") from None
    rows = _read_rows(path / "per_case.csv", how)
    if len({row["case"] for row in rows}) != summary["cases"]:
        raise UserError(f"{path}: per_case.csv and summary.json are not of one test; {how}")
    return Result(folder, tag, summary, rows)


def _read_rows(path: Path, how: str) -> list[dict]:
    try:
        with open(path, encoding="utf-8", newline="") as file:
            rows = [_numbers(row) for row in csv.DictReader(file)]
    except FileNotFoundError:
        raise UserError(f"{path}: missing; {how}") from None
    except (OSError, ValueError, TypeError):
        raise UserError(f"{path}: damaged; {how}") from None
    wanted = {*TEXT, *COUNTS, *METRICS, "seconds"}
    twice = len({(row.get("case"), row.get("class")) for row in rows}) < len(rows)
    if not rows or twice or any(wanted - row.keys() for row in rows):
        raise UserError(f"{path}: damaged; {how}")
    return rows


def _numbers(row: Mapping[str, str]) -> dict:
    """A row of text with its numbers as such."""
    kinds = dict.fromkeys(TEXT, str) | dict.fromkeys(COUNTS, int)
    return {key: kinds.get(key, float)(text) for key, text in row.items()}


def _how(folder: Path, tag: str) -> str:
    """How the results are made."""
    if not any(folder.glob("*.pth")):
        return "it has no checkpoint to test: train it first"
    try:
        dataset = json.loads((folder / "args.json").read_text())["dataset"]
    except (OSError, ValueError, LookupError, TypeError):
        return "test it with code/test_<dataset>.py"
    return f"make them with: {command_of_test(folder, tag, dataset)}"


# parts of the name of a test's folder: a pattern, and the option that it stands for
_TAGS = {
    r"^step_(\d+)": "--checkpoint",
    r"^(best)": "--checkpoint",
    r"_(val|train)(?=_|$)": "--split",
    r"_nms([01])(?=_|$)": "--nms",
    r"_(nan|diagonal)(?=_|$)": "--empty",
    r"_(retaken)(?=_|$)": "--batchnorm",
    r"_stride([\d-]+)(?=_|$)": "--stride",
    r"_(fp32|bf16)(?=_|$)": "--precision",
    r"_cases(\d+)(?=_|$)": "--cases",
}


def command_of_test(folder: Path, tag: str, dataset: str, test: Mapping | None = None) -> str:
    """The command that makes the results of a name, as far as the name and the options of an
    earlier test say it.
    """
    flags = []
    for pattern, option in _TAGS.items():
        for value in re.findall(pattern, tag):
            words = value.replace("-", " ") if option == "--stride" else value
            flags.append(f"{option} {words}")
    for option in ("network", "root", "training_root"):
        value = (test or {}).get(option)
        if value is not None:
            flags.append(f"--{option} {shlex.quote(str(value))}")
    script = f"code/{evaluation_script(dataset)}"
    return " ".join(["python", script, "--run", shlex.quote(str(folder)), *flags])
