"""Sentences on the rows of a comparison that cannot be compared, because they differ in their test;
and the numbers that papers print, with what their setting has different.
"""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace

from dataloaders import dataset_class
from utils.reporting.entries import Entry, differing
from utils.reporting.experiments import Row
from utils.reporting.paper_tables import printed_rows
from utils.reporting.paper_tables.rows import script_name
from utils.reporting.published import GAIN, IS_HD95
from utils.reporting.results import Result
from utils.reporting.scripts import flags_of_test, options_of, pairs, training_script
from utils.trained import UNFINISHED
from utils.training.options import NOT_COMPARED

KERNELS = {"compile", "deterministic"}  # options of how the same is computed
COMPONENTS = {0: "all", 1: "the largest only"}


class Notes:
    """Sentences about rows, each with a number; rows share a sentence that holds for both."""

    def __init__(self):
        self._rows: dict[str, list[str]] = {}

    def add(self, label: str, sentences: Sequence[str]) -> list[int]:
        """Add sentences in which `{}` stands for the label, and return their numbers from 1."""
        for sentence in sentences:
            labels = self._rows.setdefault(sentence, [])
            if label not in labels:
                labels.append(label)
        known = list(self._rows)
        return [known.index(sentence) + 1 for sentence in sentences]

    @property
    def lines(self) -> list[str]:
        return [
            sentence.replace("{}", ", ".join(labels), 1) for sentence, labels in self._rows.items()
        ]


def conditions(result: Result) -> dict[str, str]:
    """The conditions that two results must share to be compared, in words. A condition that an old
    summary does not record is left out.
    """
    summary = result.summary
    test = summary["test"]
    trained = result.trained
    downsample = trained.get("downsample", 1)
    stride = test.get("stride")
    found = {
        "data set": trained["dataset"],
        "scored on": summary.get("list", "the test list"),
        "classes": str(len(result.classes)),
        "resolution": "full" if downsample == 1 else f"1/{downsample}",
        "scored by": summary.get("scored", "whole volumes"),
        "distances in": summary["units"]["hd"],
        "empty masks": test.get("empty", "zero"),
        "components": COMPONENTS.get(test["nms"]),
        "checkpoint": _checkpoint(result),
        "network": test.get("network") or "as its paper",
        "batch norm's statistics": test.get("batchnorm", "trained"),
        "stride": stride and " ".join(str(step * downsample) for step in stride),
    }
    return {name: value for name, value in found.items() if value is not None}


def _checkpoint(result: Result) -> str:
    """The rule that chose the checkpoint; the Dice that it was chosen by is not part of it."""
    if result.checkpoint == "last":
        return "of the last iteration"
    rule = result.summary["selection"].partition(", Dice")[0]
    return f"{result.checkpoint}, {rule}"


def reservations(entry: Entry, reference: Entry) -> list[str]:
    """Why an entry's numbers are not final, or cannot be compared with the reference's."""
    lines = [*_incomplete(entry), *_unlike_seeds(entry)]
    if entry is not reference:
        parts = _unlike(entry, reference)
        if parts:
            lines.append(f"{{}}: not comparable with {reference.label}: {'; '.join(parts)}.")
    return list(dict.fromkeys(lines))


def _incomplete(entry: Entry) -> list[str]:
    lines = []
    for result in entry.results:
        summary = result.summary
        if UNFINISHED in summary["selection"]:
            last = f" of {summary['last_step']}" if "last_step" in summary else ""
            lines.append(
                f"{{}}, seed {result.seed}: the run is unfinished, step {summary['step']}{last}."
            )
        listed = summary.get("listed_cases", 0)
        if summary["cases"] < listed:
            lines.append(f"{{}}: only {summary['cases']} of the list's {listed} cases.")
        if summary["test"].get("batchnorm", "trained") == "retaken":
            lines.append("{}: batch norm's statistics were taken again from training images.")
    return lines


def _unlike_seeds(entry: Entry) -> list[str]:
    """How the seeds of an entry differ from its first."""
    lines = []
    options = differing(entry.results)
    if options:
        lines.append(f"{{}}: its seeds were trained differently: {', '.join(options)}.")
    usual = conditions(entry.first)
    cases = set(entry.first.cases("dice"))
    for result in entry.results[1:]:
        other = _others(usual, conditions(result))
        if other or {row["case"] for row in result.rows} != cases:
            differences = ", ".join(other) or "other cases"
            lines.append(f"{{}}: its seeds were tested differently: {differences}.")
    return lines


def _unlike(entry: Entry, reference: Entry) -> list[str]:
    """How an entry's test differs from the reference's."""
    ours = conditions(entry.first)
    theirs = conditions(reference.first)
    other = _others(ours, theirs)
    if "resolution" in other and "stride" in other:
        other.remove("stride")
    parts = [f"{name} {ours[name]}, not {theirs[name]}" for name in other]
    cases = set(entry.case_names)
    others = set(reference.case_names)
    if cases != others:
        common = len(cases & others)
        parts.append(f"{len(cases)} cases; {common} of them are among the other's {len(others)}")
    if ours["resolution"] == theirs["resolution"]:
        changed = _other_references(entry.first, reference.first)
        if changed:
            parts.append(f"other references in {changed} cases")
    return parts


def _others(ours: dict[str, str], theirs: dict[str, str]) -> list[str]:
    """Conditions that both know and that differ."""
    return [name for name in ours if theirs.get(name, ours[name]) != ours[name]]


def _other_references(one: Result, other: Result) -> int:
    """Number of common cases whose references differ, as their numbers of voxels show."""
    sizes = {(row["case"], row["class"]): row["reference_voxels"] for row in other.rows}
    changed = set()
    for row in one.rows:
        key = row["case"], row["class"]
        if row["reference_voxels"] != sizes.get(key, row["reference_voxels"]):
            changed.add(row["case"])
    return len(changed)


@dataclass(frozen=True)
class Printed:
    """Numbers that papers print for a method, data set and number of labels.

    Attributes:
        sources: the tables that they stand in, as `DMD, Table 1`.
        values: by metric, overlaps in percent.
        differences: of an entry from the setting that they are of, in words.
        sd: over runs with other seeds, of a row's one number; None where none is printed.
        maybe_hd95: whether the HD may be 95HD; it stands beside both.
    """

    sources: tuple[str, ...]
    values: dict[str, float]
    differences: tuple[str, ...]
    sd: float | None = None
    maybe_hd95: bool = False

    @property
    def source(self) -> str:
        return "; ".join(self.sources)

    @property
    def reservations(self) -> list[str]:
        """Why an entry cannot be compared with them, and with what they can; `{}` stands for its
        label.
        """
        lines = []
        if self.differences:
            reasons = "; ".join(self.differences)
            lines.append(f"{{}}: the numbers of {self.source} are of another setting: {reasons}.")
        if self.maybe_hd95:
            lines.append(
                f"{{}}: {self.source} calls its distance HD, but {IS_HD95}: the number stands "
                "beside our HD and our 95HD."
            )
        if self.sd is not None:
            lines.append(f"{{}}: the sd of {self.source} is over runs with other seeds.")
        return lines

    def text(self, metric: str) -> str:
        """A number with its sd, where one is printed; `-` where there is no number."""
        if metric not in self.values:
            return "-"
        number = f"{self.values[metric]:.2f}"
        return number if self.sd is None else f"{number} ± {self.sd:.2f}"


def printed_numbers(entry: Entry, class_name: str = "") -> list[Printed]:
    """The numbers that papers print for an entry's method, data set and number of labels: of each
    paper the row whose setting is nearest to the entry's, for a class or for the mean over the
    classes. A row of another method that the same
    script can train counts only where the training is the same. Papers that print the same numbers
    for the same setting share one.
    """
    trained = entry.first.trained
    method = trained["method"].split("_")[0]  # train_coranet_ovr.py trains a form of CoraNet
    wanted = class_name if len(entry.first.classes) > 1 else ""  # the only class is the mean too
    nearest: dict[str, Printed] = {}
    for row in printed_rows(trained["method"], trained["dataset"], trained["labelnum"]):
        line = next((line for line in row.published if line.class_name == wanted), None)
        if line is None:
            continue
        values = {name: value for name, value in line.compared.items() if name != GAIN}
        training = _other_training(entry.first, row)
        if not values or (training and script_name(line.method) != method):
            continue
        differences = (*training, *_other_test(entry, row))
        maybe_hd95 = line.compared != line.values
        found = Printed((line.source,), values, differences, line.sd, maybe_hd95)
        known = nearest.get(line.paper)
        if known is None or len(found.differences) < len(known.differences):
            nearest[line.paper] = found
    same: dict[tuple, Printed] = {}
    for found in nearest.values():
        key = (tuple(found.values.items()), found.differences, found.sd, found.maybe_hd95)
        sources = (*same[key].sources, *found.sources) if key in same else found.sources
        same[key] = replace(found, sources=sources)
    return list(same.values())


def _other_training(result: Result, row: Row) -> list[str]:
    """Training options that differ from those of a printed row."""
    trained = result.trained
    script = training_script(trained["method"])
    if not script.is_file():
        return []
    setting = ("--dataset", trained["dataset"], "--labelnum", str(trained["labelnum"]))
    usual = options_of(script, *setting, *shlex.split(row.flags))
    keys = (trained.keys() & usual.keys()) - NOT_COMPARED - KERNELS - {"seed"}
    if trained.get("downsample", 1) != 1:
        keys -= {"patch"}  # follows from it
    return [
        f"{key} {_short(trained[key])}, not {_short(usual[key])}"
        for key in sorted(keys)
        if trained[key] != usual[key]
    ]


def _other_test(entry: Entry, row: Row) -> list[str]:
    """How the run's test differs from that of a printed row."""
    result = entry.first
    trained = result.trained
    summary = result.summary
    test = summary["test"]
    parts = []
    flags = flags_of_test(trained["method"], trained["dataset"]) | pairs(row.test)
    if "--nms" in flags and test["nms"] != int(flags["--nms"]):
        nms = int(flags["--nms"])
        parts.append(f"components {COMPONENTS[1 - nms]}, not {COMPONENTS[nms]}")
    if test.get("batchnorm", "trained") != "trained":
        parts.append(f"batch norm's statistics {test['batchnorm']}, not as trained")
    if result.checkpoint != "last":
        parts.append(f"{result.checkpoint} tested, not the last iteration")
    if any(UNFINISHED in one.summary["selection"] for one in entry.results):
        parts.append("the run is unfinished")
    if test.get("network") != flags.get("--network"):
        parts.append(f"{_network(test.get('network'))}, not {_network(flags.get('--network'))}")
    stride = dataset_class(trained["dataset"]).stride
    if stride and trained.get("downsample", 1) == 1:
        own = test.get("stride") or stride
        if list(own) != list(stride):
            parts.append(f"stride {_short(own)}, not {_short(list(stride))}")
    parts += summary.get("unlike_published", [])
    if test.get("empty", "zero") != "zero":
        parts.append("empty masks scored otherwise")
    if summary.get("list", "the test list") != "the test list":
        parts.append(f"scored on {summary['list']}")
    if summary["cases"] < summary.get("listed_cases", 0):
        parts.append(f"{summary['cases']} of {summary['listed_cases']} cases")
    return parts


def _network(name: str | None) -> str:
    return f"only its network {name} tested" if name else "what its paper tests"


def _short(value) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)
