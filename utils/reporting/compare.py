"""Runs side by side: means, paired tests against a baseline, and the papers' numbers.

A `Comparison` holds the numbers, overlaps in percent; `tables` writes them down and `plots` draws
them. Cases are the units of all tests: where an entry has several seeds, a case's value is its mean
over them.
"""

import difflib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from utils.errors import UserError
from utils.metrics import SHOWN, Spread, factor, spread
from utils.reporting.comparability import Notes, Printed, printed_numbers, reservations
from utils.reporting.entries import SEED, Entry
from utils.reporting.statistics import Paired, bootstrap_interval, holm, paired

LEVEL = 0.05


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
        baseline: the entry that the others are tested against, or None.
        of_class, class_name: the class that is compared; None and empty for the mean over classes.
        cells, differences: by label, then by metric; the baseline has no differences.
        published: the papers' numbers by label, one entry for each paper that prints others.
        notes: sentences about single rows.
        marks: numbers of an entry's notes, from 1, by label.
        published_marks: numbers of the notes on each entry of `published`, by label.
        bootstrap: settings of the intervals.
    """

    entries: list[Entry]
    metrics: tuple[str, ...]
    baseline: Entry | None
    of_class: int | None
    class_name: str
    cells: dict[str, dict[str, Cell]]
    differences: dict[str, dict[str, Difference]]
    published: dict[str, list[Printed]]
    notes: list[str]
    marks: dict[str, list[int]]
    published_marks: dict[str, list[list[int]]]
    bootstrap: dict


# values of each case, by label, then by metric, then by case
Values = dict[str, dict[str, dict[str, float]]]


def compare(
    entries: Sequence[Entry],
    metrics: Iterable[str] = (),
    baseline: str | None = None,
    class_name: str | None = None,
    confidence: float = 0.95,
    resamples: int = 9999,
    seed: int = 0,
) -> Comparison:
    """Set entries side by side.

    Args:
        entries: at least one.
        metrics: of `utils.metrics.METRICS`; by default those that the first entry's test showed.
        baseline: label, or folder, of the entry that the others are tested against; none by
            default.
        class_name: compares this class; the mean over classes by default.
        confidence, resamples, seed: of the bootstrap intervals.

    Raises:
        UserError: no such entry or class.
    """
    bootstrap = {"confidence": confidence, "resamples": resamples, "seed": seed}
    metrics = tuple(metrics) or tuple(entries[0].first.summary["test"].get("metrics") or SHOWN)
    base = find_entry(entries, baseline) if baseline else None
    of_class = find_class(entries, class_name) if class_name else None
    values: Values = {}
    cells: dict[str, dict[str, Cell]] = {}
    for entry in entries:
        shown = {m: shown_cases(entry, m, of_class) for m in metrics}
        values[entry.label] = shown
        cells[entry.label] = {m: _cell(entry, shown[m], m, of_class, bootstrap) for m in metrics}

    notes = Notes()
    marks = {}
    for entry in entries:
        marks[entry.label] = notes.add(entry.label, reservations(entry, base or entries[0]))
    known = {}
    published_marks = {}
    for entry in entries:
        known[entry.label] = printed_numbers(entry, class_name or "")
        published_marks[entry.label] = [
            notes.add(entry.label, printed.reservations) for printed in known[entry.label]
        ]
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


def shown_cases(entry: Entry, metric: str, of_class: int | None) -> dict[str, float]:
    """A metric by case as it is shown: overlaps in percent."""
    cases = entry.cases(metric, of_class)
    return {case: factor(metric) * value for case, value in cases.items()}


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
    numbers: dict[str, int] = {}
    for entry in entries:
        for number, known in entry.first.classes.items():
            numbers.setdefault(known, number)
    if name not in numbers:
        raise UserError(f"--class {name}: no such class; there are {', '.join(numbers)}")
    for entry in entries:
        if numbers[name] not in entry.first.classes:
            raise UserError(f"--class {name}: {entry.label} was not tested on it")
    return numbers[name]


def _cell(
    entry: Entry,
    cases: Mapping[str, float],
    metric: str,
    of_class: int | None,
    bootstrap: Mapping,
) -> Cell:
    values = list(cases.values())
    seeds = [factor(metric) * mean for mean in entry.seed_means(metric, of_class)]
    low, high = bootstrap_interval(values, **bootstrap)
    return Cell(spread(values), spread(seeds), low, high)


def _differences(
    values: Values, baseline: str, metrics: Sequence[str], bootstrap: Mapping
) -> dict[str, dict[str, Difference]]:
    """Every entry but the baseline minus the baseline, by label, then by metric."""
    others = [label for label in values if label != baseline]
    differences: dict[str, dict[str, Difference]] = {label: {} for label in others}
    for m in metrics:
        theirs = values[baseline][m]
        found = []
        for label in others:
            own = values[label][m]
            common = [case for case in own if case in theirs]
            ours = [own[case] for case in common]
            baselines = [theirs[case] for case in common]
            found.append(paired(ours, baselines, **bootstrap))
        t_tests = holm([pair.t_test for pair in found])
        wilcoxons = holm([pair.wilcoxon for pair in found])
        for label, pair, t_test, wilcoxon in zip(others, found, t_tests, wilcoxons, strict=True):
            differences[label][m] = Difference(pair, t_test, wilcoxon)
    return differences
