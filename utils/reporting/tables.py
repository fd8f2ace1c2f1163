"""A comparison as tables of text, and as CSV."""

import csv
import io
import math
from collections.abc import Sequence

from dataloaders.hold_out import SOURCES
from utils.metrics import NAMES, OVERLAPS, heading, spread_text
from utils.reporting.cells import unit_of
from utils.reporting.comparability import Printed
from utils.reporting.compare import LEVEL, Comparison, Difference
from utils.reporting.entries import Entry
from utils.reporting.results import Result

PUBLISHED = "as published"  # label of the rows of the papers' numbers


def table(comparison: Comparison) -> list[list[str]]:
    """Header and rows of the main table; below a row the papers' numbers, a row for each paper that
    prints others.
    """
    head = ["", "labels", "steps", "crops", "cases", "empty", *map(heading, comparison.metrics)]
    cells = [[*head, "seeds", "checkpoint", "notes"]]
    for entry in comparison.entries:
        cells.append(_row(comparison, entry))
        cells += _published_rows(comparison, entry)
    return cells


def _row(comparison: Comparison, entry: Entry) -> list[str]:
    trained = entry.first.trained
    crops = [trained.get("labeled_bs"), trained.get("unlabeled_bs")]
    seeds = ", ".join(map(str, entry.seeds)) if len(entry.seeds) < 4 else str(len(entry.seeds))
    return [
        entry.label,
        _labels(entry.first),
        _steps(entry.first.summary),
        " + ".join(str(number) for number in crops if number) or "-",
        str(len(entry.case_names)),
        str(entry.empty_predictions(comparison.of_class)),
        *(_cell(comparison, entry.label, m) for m in comparison.metrics),
        seeds,
        entry.first.checkpoint,
        _brackets(comparison.marks[entry.label]),
    ]


def _published_rows(comparison: Comparison, entry: Entry) -> list[list[str]]:
    labels = str(entry.first.trained["labelnum"])
    known = comparison.published.get(entry.label, [])
    marks = comparison.published_marks.get(entry.label, [])
    rows = []
    for printed, numbers in zip(known, marks, strict=True):
        cells = [printed.text(m) for m in comparison.metrics]
        notes = f"{printed.source} {_brackets(numbers)}".rstrip()
        rows.append([PUBLISHED, labels, "", "", "", "", *cells, "", "", notes])
    return rows


def difference_table(comparison: Comparison) -> list[list[str]]:
    """Header and rows of the differences from the baseline, a line an entry and metric."""
    interval = f"{100 * comparison.bootstrap['confidence']:g} % interval"
    head = ["minus " + comparison.baseline.label, "metric", "difference", interval, "cases"]
    cells = [[*head, "p t-test (Holm)", "p Wilcoxon (Holm)", "notes"]]
    for label, row in comparison.differences.items():
        for m, found in row.items():
            pair = found.paired
            first = m == comparison.metrics[0]
            interval = f"{_signed(pair.low)} to {_signed(pair.high)}"
            cells.append(
                [
                    label if first else "",
                    heading(m),
                    _signed(pair.mean) + _star(found),
                    "-" if math.isnan(pair.low) else interval,
                    str(pair.n),
                    f"{_p(pair.t_test)} ({_p(found.t_test)})",
                    f"{_p(pair.wilcoxon)} ({_p(found.wilcoxon)})",
                    _brackets(comparison.marks[label]) if first else "",
                ]
            )
    return cells


def legend(comparison: Comparison) -> list[str]:
    """The explanation of the tables, a sentence or two a line; the numbered notes come last."""
    lines = [_legend_of_cells(comparison)]
    if any(len(entry.seeds) > 1 for entry in comparison.entries):
        lines.append(
            "Each case was first averaged over the seeds; sd over cases, intervals and tests use "
            "these averages."
        )
    results = [result for entry in comparison.entries for result in entry.results]
    rules = dict.fromkeys((result.checkpoint, result.summary["selection"]) for result in results)
    lines += [f"Checkpoint {name}: {rule}." for name, rule in rules]
    rows = [row for result in results for row in result.rows]
    if any(0 in (row["prediction_voxels"], row["reference_voxels"]) for row in rows):
        scoring = dict.fromkeys(entry.first.summary["empty"] for entry in comparison.entries)
        lines += [f"Empty: {how}." for how in scoring]
    else:
        lines.append("No prediction and no reference was empty.")
    if comparison.baseline:
        lines += _legend_of_tests(comparison)
    return lines + [f"[{number}] {note}" for number, note in enumerate(comparison.notes, 1)]


def _legend_of_cells(comparison: Comparison) -> str:
    first = comparison.entries[0].first
    line = "Mean ± sample sd over cases"
    if comparison.class_name:
        line += f" of {comparison.class_name}"
    elif len(first.classes) > 1:
        line += " of the mean over classes"
    if any(len(entry.seeds) > 1 for entry in comparison.entries):
        line += "; in brackets the sample sd over the seeds' means"
    distances = [NAMES[m] for m in comparison.metrics if m not in OVERLAPS]
    if distances:
        line += f". {' and '.join(distances)} in {first.summary['units']['hd']}"
    return f"{line}."


def _legend_of_tests(comparison: Comparison) -> list[str]:
    settings = comparison.bootstrap
    count = len(comparison.differences)
    tests = "Two-sided tests paired over the cases that both have"
    star = f"*: below {LEVEL} in both"
    if count > 1:
        tests += f"; in brackets p with Holm's correction over the {count} comparisons of a metric"
        star += " after it"
    lines = [
        f"{tests}. {star}.",
        f"Intervals of the mean difference: BCa bootstrap over cases, {settings['resamples']} "
        f"resamples, seed {settings['seed']}.",
    ]
    pairs = [found.paired.n for row in comparison.differences.values() for found in row.values()]
    if min(pairs, default=9) < 6:
        lines.append("With fewer than 6 cases Wilcoxon's test cannot reach p < 0.05.")
    if any(len(entry.seeds) == 1 for entry in comparison.entries):
        lines.append(
            "The tests are over cases. They do not show whether training with another seed gives "
            "the same: test several seeds for that."
        )
    return lines


def csv_text(comparison: Comparison) -> str:
    """All numbers, a line an entry and metric, for other software; unknown values are empty."""
    rows = []
    for entry in comparison.entries:
        for m in comparison.metrics:
            row = _setting(comparison, entry) | _numbers(comparison, entry, m)
            rows.append({key: "" if value != value else value for key, value in row.items()})
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _setting(comparison: Comparison, entry: Entry) -> dict:
    """The columns that an entry's lines share."""
    trained = entry.first.trained
    summary = entry.first.summary
    return {
        "run": entry.label,
        "data_set": trained["dataset"],
        "method": trained["method"],
        "labels": trained["labelnum"],
        "steps": summary["step"],
        "checkpoint": summary["checkpoint"].removesuffix(".pth"),
        "selection": summary["selection"],
        "seeds": " ".join(map(str, entry.seeds)),
        "empty_predictions": entry.empty_predictions(comparison.of_class),
        "class": comparison.class_name or "mean",
    }


def _numbers(comparison: Comparison, entry: Entry, metric: str) -> dict:
    """The columns of one metric."""
    cell = comparison.cells[entry.label][metric]
    found = comparison.differences.get(entry.label, {}).get(metric)
    pair = found.paired if found else None
    notes = list(comparison.marks[entry.label])
    for marks in comparison.published_marks.get(entry.label, ()):
        notes += marks
    return {
        "metric": metric,
        "unit": unit_of(metric, entry.first.summary["units"]),
        "cases": cell.cases.n,
        "mean": cell.cases.mean,
        "sd_cases": cell.cases.sd,
        "sd_seeds": cell.seeds.sd,
        "low": cell.low,
        "high": cell.high,
        "published": _published_text(comparison.published.get(entry.label, ()), metric),
        "baseline": comparison.baseline.label if comparison.baseline else "",
        "pairs": pair.n if pair else "",
        "difference": pair.mean if pair else math.nan,
        "difference_low": pair.low if pair else math.nan,
        "difference_high": pair.high if pair else math.nan,
        "p_t_test": pair.t_test if pair else math.nan,
        "p_t_test_holm": found.t_test if found else math.nan,
        "p_wilcoxon": pair.wilcoxon if pair else math.nan,
        "p_wilcoxon_holm": found.wilcoxon if found else math.nan,
        "notes": " ".join(comparison.notes[number - 1] for number in notes),
    }


def _published_text(known: Sequence[Printed], metric: str) -> str:
    """A metric as the papers print it, each with its tables."""
    texts = []
    for printed in known:
        if metric in printed.values:
            texts.append(f"{printed.text(metric)} ({printed.source})")
    return "; ".join(texts)


def _labels(result: Result) -> str:
    """Number of labelled cases, and how many of them were kept aside for validation."""
    held = result.summary.get("validation")
    kept = len(held["cases"]) if held and held["from"] == SOURCES["labeled"] else 0
    labelnum = result.trained["labelnum"]
    return f"{labelnum} - {kept}" if kept else str(labelnum)


def _steps(summary: dict) -> str:
    """Step of the checkpoint, and of how many."""
    last = summary.get("last_step") or summary["step"]
    return str(last) if summary["step"] == last else f"{summary['step']} of {last}"


def _cell(comparison: Comparison, label: str, metric: str) -> str:
    cell = comparison.cells[label][metric]
    text = spread_text(cell.cases)
    if cell.cases.n and not math.isnan(cell.seeds.sd):
        text += f" ({cell.seeds.sd:.2f})"
    found = comparison.differences.get(label, {}).get(metric)
    return text + _star(found)


def _star(found: Difference | None) -> str:
    return "*" if found and found.holds else ""


def _signed(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:+.2f}"


def _p(value: float) -> str:
    if math.isnan(value):
        return "-"
    return "<0.0001" if value < 0.0001 else f"{value:.4f}"


def _brackets(numbers: Sequence[int]) -> str:
    return f"[{', '.join(map(str, numbers))}]" if numbers else ""
