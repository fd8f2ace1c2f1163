"""Runs side by side: means, paired tests against a baseline, what the papers print, and what may
not be compared.

A :class:`Comparison` holds the numbers, overlaps in percent; the functions below it make tables of
it. Cases are the units of all tests: where an entry has several seeds, a case's value is its mean
over them.
"""

import csv
import difflib
import io
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dataloaders import dataset_class
from dataloaders.validation import SOURCES
from utils.errors import UserError
from utils.evaluation import UNFINISHED
from utils.figures import NAMES
from utils.metrics import METRICS, OVERLAPS
from utils.published import NMS, published
from utils.results import SEED, Entry, Result, differing
from utils.run import ROOT
from utils.statistics import Paired, Spread, bootstrap_interval, holm, paired, spread
from utils.tables import NOT_COMPARED, options_of

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
            m: {c: _factor(m) * v for c, v in entry.cases(m, of_class).items()} for m in metrics
        }
        for entry in entries
    }
    cells = {
        entry.label: {
            m: Cell(
                spread(list(values[entry.label][m].values())),
                spread([_factor(m) * mean for mean in entry.seed_means(m, of_class)]),
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


def table(comparison: Comparison) -> list[list[str]]:
    """Header and rows of the main table, as :func:`utils.tables.render` takes them; below a row its
    paper's numbers.
    """
    metrics = comparison.metrics
    head = ["", "labels", "steps", "crops", "cases", "empty", *map(heading, metrics)]
    cells = [[*head, "seeds", "checkpoint", "notes"]]
    for entry in comparison.entries:
        trained, summary = entry.first.trained, entry.first.summary
        crops = [trained.get("labeled_bs"), trained.get("unlabeled_bs")]
        cells.append(
            [
                entry.label,
                _labels(entry.first),
                _steps(summary),
                " + ".join(str(number) for number in crops if number) or "-",
                str(len(entry.case_names)),
                str(empty_predictions(entry, comparison.of_class)),
                *(_cell(comparison, entry.label, m) for m in metrics),
                ", ".join(map(str, entry.seeds)) if len(entry.seeds) < 4 else str(len(entry.seeds)),
                summary["checkpoint"].removesuffix(".pth").replace("_", " "),
                _brackets(comparison.marks[entry.label]),
            ]
        )
        if known := comparison.published.get(entry.label):
            numbers = [f"{known[m]:.2f}" if m in known else "-" for m in metrics]
            marks = _brackets(comparison.published_marks[entry.label])
            cells.append([PUBLISHED, cells[-1][1], *[""] * 4, *numbers, "", "", marks])
    return cells


def difference_table(comparison: Comparison) -> list[list[str]]:
    """Header and rows of the differences from the baseline, a line an entry and metric."""
    interval = f"{100 * comparison.bootstrap['confidence']:g} % interval"
    head = ["minus " + comparison.baseline.label, "metric", "difference", interval, "cases"]
    cells = [[*head, "p t-test (Holm)", "p Wilcoxon (Holm)", "notes"]]
    for label, row in comparison.differences.items():
        for m, found in row.items():
            pair, first = found.paired, m == comparison.metrics[0]
            cells.append(
                [
                    label if first else "",
                    heading(m),
                    _signed(pair.mean) + "*" * found.holds,
                    "-" if math.isnan(pair.low) else f"{_signed(pair.low)} to {_signed(pair.high)}",
                    str(pair.n),
                    f"{_p(pair.t_test)} ({_p(found.t_test)})",
                    f"{_p(pair.wilcoxon)} ({_p(found.wilcoxon)})",
                    _brackets(comparison.marks[label]) if first else "",
                ]
            )
    return cells


def legend(comparison: Comparison) -> list[str]:
    """What must be known to read the tables, a sentence or two a line; the numbered notes last."""
    entries = comparison.entries
    first = entries[0].first
    several = any(len(entry.seeds) > 1 for entry in entries)
    what = f"of {comparison.class_name}" if comparison.class_name else ""
    if not what and len(first.classes) > 1:
        what = "of the mean over classes"
    distances = [NAMES[m] for m in comparison.metrics if m not in OVERLAPS]
    lines = [
        f"Mean ± sample sd over cases{' ' + what if what else ''}"
        + ("; in brackets the sample sd over the seeds' means" if several else "")
        + (f". {' and '.join(distances)} in {first.summary['units']['hd']}" if distances else "")
        + "."
    ]
    if several:
        lines.append(
            "Each case was averaged over the seeds first: sd over cases, intervals and tests are "
            "of that."
        )
    rules = dict.fromkeys(
        (r.summary["checkpoint"].removesuffix(".pth").replace("_", " "), r.summary["selection"])
        for entry in entries
        for r in entry.results
    )
    lines += [f"Checkpoint {stem}: {rule}." for stem, rule in rules]
    scoring = dict.fromkeys(entry.first.summary["empty"] for entry in entries)
    empty = any(
        0 in (row["prediction_voxels"], row["reference_voxels"])
        for e in entries
        for r in e.results
        for row in r.rows
    )
    lines += (
        [f"Empty: {how}." for how in scoring]
        if empty
        else ["No prediction and no reference was empty."]
    )
    if comparison.baseline:
        lines += _legend_of_tests(comparison)
    return lines + [f"[{number}] {note}" for number, note in enumerate(comparison.notes, 1)]


def _legend_of_tests(comparison: Comparison) -> list[str]:
    settings, count = comparison.bootstrap, len(comparison.differences)
    tests = "Two-sided tests paired over the cases that both have"
    tests += (
        f"; in brackets p with Holm's correction over the {count} comparisons of a metric"
        if count > 1
        else ""
    )
    lines = [
        f"{tests}. *: below {LEVEL} in both{' after it' if count > 1 else ''}.",
        f"Intervals of the mean difference: BCa bootstrap over cases, {settings['resamples']} "
        "resamples, seed "
        f"{settings['seed']}.",
    ]
    pairs = [found.paired.n for row in comparison.differences.values() for found in row.values()]
    if min(pairs, default=9) < 6:
        lines.append("Below 6 cases Wilcoxon's test cannot reach 0.05, whatever they are.")
    if any(len(entry.seeds) == 1 for entry in comparison.entries):
        lines.append(
            "The tests speak of cases. Of another seed's training they say nothing: that takes "
            "several seeds."
        )
    return lines


def latex(cells: Sequence[Sequence[str]], caption: str, notes: Sequence[str], label: str) -> str:
    """A table for the packages booktabs and graphicx, the notes below it; columns as of
    :func:`utils.tables.render`.
    """
    numbers = range(1, len(cells[0]) - 3)
    columns = "".join("r" if i in numbers else "l" for i in range(len(cells[0])))
    lines = [" & ".join(map(_escape, row)) + r" \\" for row in cells]
    below = [r"\par\smallskip\footnotesize\raggedright", *(_escape(note) + r"\\" for note in notes)]
    return "\n".join(
        [
            r"\begin{table*}",
            r"\centering\footnotesize\setlength{\tabcolsep}{3pt}",
            rf"\caption{{{_escape(caption)}}}\label{{{label}}}",
            # shrinks what is wider than the page
            r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
            rf"\begin{{tabular}}{{{columns}}}",
            *(r"\toprule", lines[0], r"\midrule", *lines[1:], r"\bottomrule"),
            r"\end{tabular}}",
            *(below if notes else ()),
            r"\end{table*}",
        ]
    )


def csv_text(comparison: Comparison) -> str:
    """All numbers, a line an entry and metric, for other software; what is not known is empty."""
    rows = []
    for entry in comparison.entries:
        trained, summary = entry.first.trained, entry.first.summary
        for m in comparison.metrics:
            cell = comparison.cells[entry.label][m]
            row = {
                "run": entry.label,
                "data_set": trained["dataset"],
                "method": trained["method"],
                "labels": trained["labelnum"],
                "steps": summary["step"],
                "checkpoint": summary["checkpoint"].removesuffix(".pth"),
                "selection": summary["selection"],
                "seeds": " ".join(map(str, entry.seeds)),
                "empty_predictions": empty_predictions(entry, comparison.of_class),
                "class": comparison.class_name or "mean",
                "metric": m,
                "unit": "%" if m in OVERLAPS else summary["units"][m],
                "cases": cell.cases.n,
                "mean": cell.cases.mean,
                "sd_cases": cell.cases.sd,
                "sd_seeds": cell.seeds.sd,
                "low": cell.low,
                "high": cell.high,
                "published": comparison.published.get(entry.label, {}).get(m, math.nan),
                "baseline": comparison.baseline.label if comparison.baseline else "",
            }
            found = comparison.differences.get(entry.label, {}).get(m)
            pair = found.paired if found else None
            row |= {
                "pairs": pair.n if pair else "",
                "difference": pair.mean if pair else math.nan,
                "difference_low": pair.low if pair else math.nan,
                "difference_high": pair.high if pair else math.nan,
                "p_t_test": pair.t_test if pair else math.nan,
                "p_t_test_holm": found.t_test if found else math.nan,
                "p_wilcoxon": pair.wilcoxon if pair else math.nan,
                "p_wilcoxon_holm": found.wilcoxon if found else math.nan,
            }
            numbers = [
                *comparison.marks[entry.label],
                *comparison.published_marks.get(entry.label, ()),
            ]
            row["notes"] = " ".join(comparison.notes[number - 1] for number in numbers)
            rows.append({key: "" if value != value else value for key, value in row.items()})
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _labels(result: Result) -> str:
    """Number of labelled cases, and how many of them were kept aside for validation."""
    held = result.summary.get("validation")
    kept = len(held["cases"]) if held and held["from"] == SOURCES["labeled"] else 0
    return str(result.trained["labelnum"]) + (f" - {kept}" if kept else "")


def _steps(summary: dict) -> str:
    """Step of the checkpoint, and of how many."""
    last = summary.get("last_step") or summary["step"]
    return str(last) if summary["step"] == last else f"{summary['step']} of {last}"


def heading(metric: str) -> str:
    """A metric's name, with % where it is shown so."""
    return NAMES[metric] + " %" * (metric in OVERLAPS)


def empty_predictions(entry: Entry, of_class: int | None = None) -> int:
    """Masks without a voxel over all seeds, cases and classes, or of one class."""
    rows = (row for result in entry.results for row in result.rows)
    return sum(row["prediction_voxels"] == 0 and of_class in (None, row["class"]) for row in rows)


def _cell(comparison: Comparison, label: str, metric: str) -> str:
    cell = comparison.cells[label][metric]
    if not cell.cases.n:
        return "-"
    found = comparison.differences.get(label, {}).get(metric)
    text = f"{cell.cases.mean:.2f}" + (
        "" if math.isnan(cell.cases.sd) else f" ± {cell.cases.sd:.2f}"
    )
    text += "" if math.isnan(cell.seeds.sd) else f" ({cell.seeds.sd:.2f})"
    return text + "*" * bool(found and found.holds)


def _factor(metric: str) -> int:
    return 100 if metric in OVERLAPS else 1


def _signed(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:+.2f}"


def _p(value: float) -> str:
    return "-" if math.isnan(value) else "<0.0001" if value < 0.0001 else f"{value:.4f}"


def _brackets(numbers: Sequence[int]) -> str:
    return f"[{', '.join(map(str, numbers))}]" if numbers else ""


def _short(value) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def _escape(text: str) -> str:
    """Text as LaTeX sets it."""
    text = re.sub(r"([&%$#_{}])", r"\\\1", text.replace("\\", r"/"))
    text = re.sub(r"(?<![\w.])([+-])(?=\d)", r"$\1$", text)  # signs, no hyphens
    for sign, spelt in {
        "±": r"$\pm$",
        "<": "$<$",
        ">": "$>$",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
    }.items():
        text = text.replace(sign, spelt)
    return re.sub(r"^\[", "{[}", text)  # after a line's end it would be its argument
