"""Sentences on the rows of a comparison that cannot be compared, because they differ in their test,
and on published numbers of another setting.
"""

from collections.abc import Sequence

from dataloaders import dataset_class
from utils.reporting.entries import Entry, differing
from utils.reporting.results import Result
from utils.reporting.scripts import flags_of_test, options_of, training_script
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


def other_settings(entry: Entry) -> list[str]:
    """Why an entry's numbers cannot be compared with its paper's."""
    parts = [*_other_training(entry.first), *_other_test(entry)]
    if not parts:
        return []
    return [f"{{}}: the published numbers are of another setting: {'; '.join(parts)}."]


def _other_training(result: Result) -> list[str]:
    """Training options that differ from the defaults of the run's script."""
    trained = result.trained
    script = training_script(trained["method"])
    if not script.is_file():
        return []
    setting = ("--dataset", trained["dataset"], "--labelnum", str(trained["labelnum"]))
    usual = options_of(script, *setting)
    keys = (trained.keys() & usual.keys()) - NOT_COMPARED - KERNELS - {"seed"}
    if trained.get("downsample", 1) != 1:
        keys -= {"patch"}  # follows from it
    return [
        f"{key} {_short(trained[key])}, not {_short(usual[key])}"
        for key in sorted(keys)
        if trained[key] != usual[key]
    ]


def _other_test(entry: Entry) -> list[str]:
    """How the run's test differs from its paper's."""
    result = entry.first
    trained = result.trained
    summary = result.summary
    test = summary["test"]
    parts = []
    paper = flags_of_test(trained["method"], trained["dataset"])
    if "--nms" in paper and test["nms"] != int(paper["--nms"]):
        nms = int(paper["--nms"])
        parts.append(f"components {COMPONENTS[1 - nms]}, not {COMPONENTS[nms]}")
    if result.checkpoint != "last":
        parts.append(f"{result.checkpoint} tested, not the last iteration")
    if any(UNFINISHED in one.summary["selection"] for one in entry.results):
        parts.append("the run is unfinished")
    if test.get("network"):
        parts.append(f"only its network {test['network']} tested")
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


def _short(value) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)
