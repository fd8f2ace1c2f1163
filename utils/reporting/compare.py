"""Runs side by side: means, paired tests against a baseline, what the papers print, and what may
not be compared.

A :class:`Comparison` holds the numbers, overlaps in percent; the functions below it make tables of
it. Cases are the units of all tests: where an entry has several seeds, a case's value is its mean
over them.
"""

import difflib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dataloaders import dataset_class
from utils.environment import ROOT
from utils.errors import UserError
from utils.metrics import METRICS, OVERLAPS
from utils.reporting.experiments import NOT_COMPARED, options_of
from utils.reporting.published import NMS, published
from utils.reporting.results import SEED, Entry, Result, differing
from utils.reporting.statistics import Paired, Spread, bootstrap_interval, holm, paired, spread
from utils.trained import UNFINISHED

LEVEL = 0.05
KERNELS = {"compile", "deterministic"}  # options of how the same is computed
PUBLISHED = "as published"  # label of the rows of the papers' numbers
COMPONENTS = {0: "all", 1: "the largest alone"}


@dataclass(frozen=True)
class Cell:
    """A metric of an entry.

    Attributes:
        cases: spread over the cases, each its mean over seeds.
        seeds: spread of the seeds' means.
        low, high: bootstrap interval of the mean over cases.
    """

    cases: Spread
    seeds: Spread
    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """An entry's metric minus the baseline's, over the cases that both have.

    Attributes:
        paired: the differences and their tests.
        t_test, wilcoxon: p with Holm's correction over the entries, within the metric.
    """

    paired: Paired
    t_test: float
    wilcoxon: float

    @property
    def holds(self) -> bool:
        """Whether both tests say so after the correction."""
        return max(self.t_test, self.wilcoxon) < LEVEL


@dataclass(frozen=True)
class Comparison:
    """Entries side by side.

    Attributes:
        entries: the rows.
        metrics: the columns.
        baseline: what the others are tested against, or None.
        of_class, class_name: the class that is compared; None and empty for the mean over classes.
        cells, differences: by label, then by metric; the baseline has no differences.
        published: the papers' numbers, by label, then by metric.
        notes: what must be known of single rows.
        marks: numbers of these notes from 1, by label; those of its published numbers apart.
        bootstrap: how the intervals came about.
    """

    entries: list[Entry]
    metrics: tuple[str, ...]
    baseline: Entry | None
    of_class: int | None
    class_name: str
    cells: dict[str, dict[str, Cell]]
    differences: dict[str, dict[str, Difference]]
    published: dict[str, dict[str, float]]
    notes: list[str]
    marks: dict[str, list[int]]
    published_marks: dict[str, list[int]]
    bootstrap: dict


def compare(
    entries: Sequence[Entry],
    metrics: Sequence[str] = (),
    baseline: str | None = None,
    class_name: str | None = None,
    confidence: float = 0.95,
    resamples: int = 9999,
    seed: int = 0,
) -> Comparison:
    """Set entries side by side.

    Args:
        entries: at least one.
        metrics: of :data:`utils.metrics.METRICS`; those that the first entry's test showed by
            default.
        baseline: label, or folder, of the entry that the others are tested against; none by
            default.
        class_name: compares this class; the mean over classes by default.
        confidence, resamples, seed: of the bootstrap intervals.

    Raises:
        UserError: no such entry or class.
    """
    bootstrap = {"confidence": confidence, "resamples": resamples, "seed": seed}
    metrics = tuple(metrics) or tuple(
        entries[0].first.summary["test"].get("metrics") or METRICS[:2] + METRICS[5:7]
    )
    base = find_entry(entries, baseline) if baseline else None
    of_class = find_class(entries, class_name) if class_name else None
    values = {
        entry.label: {
            m: {c: factor(m) * v for c, v in entry.cases(m, of_class).items()} for m in metrics
        }
        for entry in entries
    }
    cells = {
        entry.label: {
            m: Cell(
                spread(list(values[entry.label][m].values())),
                spread([factor(m) * mean for mean in entry.seed_means(m, of_class)]),
                *bootstrap_interval(list(values[entry.label][m].values()), **bootstrap),
            )
            for m in metrics
        }
        for entry in entries
    }
    notes = _Notes()
    marks = {
        entry.label: notes.add(entry.label, _reservations(entry, base or entries[0]))
        for entry in entries
    }
    known = {} if class_name else {entry.label: _published(entry) for entry in entries}
    published_marks = {
        entry.label: notes.add(entry.label, _other_settings(entry))
        for entry in entries
        if known.get(entry.label)
    }
    return Comparison(
        entries=list(entries),
        metrics=metrics,
        baseline=base,
        of_class=of_class,
        class_name=class_name or "",
        cells=cells,
        differences=_differences(values, base.label, metrics, bootstrap) if base else {},
        published=known,
        notes=notes.lines,
        marks=marks,
        published_marks=published_marks,
        bootstrap=bootstrap,
    )


def find_entry(entries: Sequence[Entry], name: str) -> Entry:
    """The entry of a label or folder.

    Raises:
        UserError: there is none; names those that there are.
    """
    place = Path(os.path.abspath(name))
    for entry in entries:
        seeds = {Path(os.path.abspath(result.folder)) for result in entry.results}
        folders = seeds | {seed.parent for seed in seeds if SEED.fullmatch(seed.name)}
        if name == entry.label or place in folders:
            return entry
    labels = [entry.label for entry in entries]
    near = difflib.get_close_matches(name, labels, n=1)
    hint = f"did you mean {near[0]}?" if near else f"it must be one of {', '.join(labels)}"
    raise UserError(f"--baseline {name}: not among these runs; {hint}")


def find_class(entries: Sequence[Entry], name: str) -> int:
    """The number of a class.

    Raises:
        UserError: an entry has no class of that number, or none has the name.
    """
    for entry in entries:
        for number, known in entry.first.classes.items():
            if known == name:
                for other in entries:
                    if number not in other.first.classes:
                        raise UserError(f"--class {name}: {other.label} was not tested on it")
                return number
    names = dict.fromkeys(known for entry in entries for known in entry.first.classes.values())
    raise UserError(f"--class {name}: no such class; there are {', '.join(names)}")


def _differences(values, baseline, metrics, bootstrap) -> dict[str, dict[str, Difference]]:
    found = {}
    for label, own in values.items():
        if label != baseline:
            found[label] = {}
            for m in metrics:
                common = [case for case in own[m] if case in values[baseline][m]]
                pairs = ([side[m][case] for case in common] for side in (own, values[baseline]))
                found[label][m] = paired(*pairs, **bootstrap)
    differences = {label: {} for label in found}
    for m in metrics:
        corrected = [
            holm([getattr(row[m], test) for row in found.values()])
            for test in ("t_test", "wilcoxon")
        ]
        for label, t_test, wilcoxon in zip(found, *corrected, strict=True):
            differences[label][m] = Difference(found[label][m], t_test, wilcoxon)
    return differences


def _published(entry: Entry) -> dict[str, float]:
    trained = entry.first.trained
    return published(trained["method"], trained["dataset"], trained["labelnum"])


# --------------------------------------------------------------------------------------- what may not be compared


class _Notes:
    """Sentences about rows, each with a number; rows of which the same is to be said share one."""

    def __init__(self):
        self._rows = {}

    def add(self, label: str, sentences: Sequence[str]) -> list[int]:
        """Sentences in which `{}` stands for the label."""
        for sentence in sentences:
            labels = self._rows.setdefault(sentence, [])
            labels += [label] if label not in labels else []
        return [list(self._rows).index(sentence) + 1 for sentence in sentences]

    @property
    def lines(self) -> list[str]:
        return [
            sentence.replace("{}", ", ".join(labels), 1) for sentence, labels in self._rows.items()
        ]


def conditions(result: Result) -> dict[str, str]:
    """What two results must have in common to be compared, in words; without what an old summary
    does not tell.
    """
    summary, test, trained = result.summary, result.summary["test"], result.trained
    downsample = trained.get("downsample", 1)
    stride = test.get("stride")
    told = {
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
    return {name: value for name, value in told.items() if value is not None}


def _checkpoint(result: Result) -> str:
    """The rule that chose the checkpoint; the Dice that it was chosen by is not part of it."""
    stem = result.summary["checkpoint"].removesuffix(".pth")
    if stem == "last":
        return "of the last iteration"
    return f"{stem.replace('_', ' ')}, {result.summary['selection'].partition(', Dice')[0]}"


def _reservations(entry: Entry, reference: Entry) -> list[str]:
    """Why an entry's numbers may not be set beside the reference's, or are no result yet."""
    lines = []
    for result in entry.results:
        summary = result.summary
        if UNFINISHED in summary["selection"]:
            last = f" of {summary['last_step']}" if "last_step" in summary else ""
            lines.append(
                f"{{}}, seed {result.seed}: the run is unfinished, step {summary['step']}{last}."
            )
        if summary["cases"] < summary.get("listed_cases", 0):
            lines.append(
                f"{{}}: {summary['cases']} of the list's {summary['listed_cases']} cases alone."
            )
    options = differing(entry.results)
    if options:
        lines.append(f"{{}}: its seeds are of different training: {', '.join(options)}.")
    told = conditions(entry.first)
    for result in entry.results[1:]:
        own = conditions(result)
        other = [name for name in told if own.get(name, told[name]) != told[name]]
        if other or {row["case"] for row in result.rows} != set(entry.first.cases("dice")):
            what = ", ".join(other) or "other cases"
            lines.append(f"{{}}: its seeds were tested differently: {what}.")
    if entry is not reference:
        theirs = conditions(reference.first)
        other = [name for name in told if theirs.get(name, told[name]) != told[name]]
        if "resolution" in other and "stride" in other:
            other.remove("stride")
        parts = [f"{name} {told[name]}, not {theirs[name]}" for name in other]
        cases, others = set(entry.case_names), set(reference.case_names)
        if cases != others:
            parts.append(
                f"{len(cases)} cases, of which {len(cases & others)} are among the other's "
                f"{len(others)}"
            )
        if told["resolution"] == theirs["resolution"] and (
            changed := _other_references(entry.first, reference.first)
        ):
            parts.append(f"other references in {changed} cases")
        if parts:
            lines.append(f"{{}}: not comparable with {reference.label}: {'; '.join(parts)}.")
    return list(dict.fromkeys(lines))


def _other_references(one: Result, other: Result) -> int:
    """Cases of one name whose references have not the same number of voxels: no one reference."""
    sizes = [
        {(row["case"], row["class"]): row["reference_voxels"] for row in r.rows}
        for r in (one, other)
    ]
    return len(
        {
            case
            for case, c in sizes[0].keys() & sizes[1].keys()
            if sizes[0][case, c] != sizes[1][case, c]
        }
    )


def _other_settings(entry: Entry) -> list[str]:
    """Why an entry's numbers may not be set beside its paper's."""
    trained, summary = entry.first.trained, entry.first.summary
    parts = []
    script = ROOT / "code" / f"train_{trained['method']}.py"
    if script.is_file():
        usual = options_of(
            script, "--dataset", trained["dataset"], "--labelnum", str(trained["labelnum"])
        )
        keys = sorted((trained.keys() & usual.keys()) - NOT_COMPARED - KERNELS - {"seed"})
        if trained.get("downsample", 1) != 1:
            keys = [key for key in keys if key != "patch"]  # follows from it
        parts += [
            f"{key} {_short(trained[key])}, not {_short(usual[key])}"
            for key in keys
            if trained[key] != usual[key]
        ]
    nms = NMS.get((trained["method"], trained["dataset"]))
    if nms is not None and entry.first.summary["test"]["nms"] != nms:
        parts.append(f"components {COMPONENTS[1 - nms]}, not {COMPONENTS[nms]}")
    if summary["checkpoint"] != "last.pth":
        parts.append(
            f"{summary['checkpoint'].removesuffix('.pth').replace('_', ' ')} tested, not the last "
            "iteration"
        )
    if any(UNFINISHED in result.summary["selection"] for result in entry.results):
        parts.append("the run is unfinished")
    if summary["test"].get("network"):
        parts.append(f"of its network {summary['test']['network']} alone")
    stride = dataset_class(trained["dataset"]).stride if trained.get("downsample", 1) == 1 else None
    if stride and list(summary["test"].get("stride") or stride) != list(stride):
        parts.append(f"stride {_short(summary['test']['stride'])}, not {_short(list(stride))}")
    parts += summary.get("unlike_published", [])
    if entry.first.summary["test"].get("empty", "zero") != "zero":
        parts.append("empty masks scored otherwise")
    if summary.get("list", "the test list") != "the test list":
        parts.append(f"scored on {summary['list']}")
    if summary["cases"] < summary.get("listed_cases", 0):
        parts.append(f"{summary['cases']} of {summary['listed_cases']} cases")
    return (
        [f"{{}}: the published numbers are of another setting: {'; '.join(parts)}."]
        if parts
        else []
    )


# ----------------------------------------------------------------------------------------------------------- tables


def _short(value) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def factor(metric: str) -> int:
    return 100 if metric in OVERLAPS else 1
