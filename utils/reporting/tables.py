"""A comparison as tables: text, Markdown, LaTeX and CSV."""

import csv
import io
import math
import re
from collections.abc import Sequence

from dataloaders.hold_out import SOURCES
from utils.metrics import NAMES, OVERLAPS
from utils.reporting.compare import LEVEL, PUBLISHED, Comparison
from utils.reporting.results import Entry, Result


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


def _signed(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:+.2f}"


def _p(value: float) -> str:
    return "-" if math.isnan(value) else "<0.0001" if value < 0.0001 else f"{value:.4f}"


def _brackets(numbers: Sequence[int]) -> str:
    return f"[{', '.join(map(str, numbers))}]" if numbers else ""


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


def render(cells, kind):
    """The cells as aligned `text`, or as `markdown`; labels and metrics to the right."""
    numbers = range(1, len(cells[0]) - 3)
    if kind == "markdown":
        rule = "|" + "|".join("---:" if i in numbers else "---" for i in range(len(cells[0]))) + "|"
        lines = ["| " + " | ".join(row) + " |" for row in cells]
        return "\n".join([lines[0], rule, *lines[1:]])
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        [
            cell.rjust(w) if i in numbers else cell.ljust(w)
            for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ]
        for row in cells
    ]
    return "\n".join("  ".join(line).rstrip() for line in lines)
