"""The sections of a report: blocks of HTML on one entry, and on several side by side."""

import math
from collections.abc import Sequence
from pathlib import Path

from utils.figures import summary_figure
from utils.metrics import METRICS, NAMES, SHOWN, heading, mean, means, spread_text
from utils.reporting import comparison_plots, html, training_curves
from utils.reporting.cells import mean_sd, number, number_columns, unit_of
from utils.reporting.compare import Comparison
from utils.reporting.entries import Entry
from utils.reporting.report_facts import commands, facts, option_table
from utils.reporting.results import Result
from utils.reporting.tables import PUBLISHED, difference_table, legend, table

CURVES = "as recorded (faint) and smoothed."
CAPTIONS = {
    "boxes": "Every case under every run.",
    "pairs": "Each case under the baseline and under another run.",
    "curves": f"Learning curves: {CURVES}",
    "labels": "Dice by the number of labelled cases.",
}


# ------------------------------------------------------------------------------------ one entry


def lead(compared: Comparison) -> list[str]:
    """The result of the only entry in one sentence, the paper's numbers, and the notes on it."""
    (entry,) = compared.entries
    units = {m: unit_of(m, entry.first.summary["units"]) for m in compared.metrics}
    cells = compared.cells[entry.label]
    shown = [f"{NAMES[m]} {spread_text(cells[m].cases)} {units[m]}" for m in compared.metrics]
    cases = f"{len(entry.case_names)} cases"
    empty = entry.empty_predictions()
    if empty:
        cases += f", {empty} empty predictions"
    lines = []
    for printed in compared.published.get(entry.label, ()):
        known = [f"{NAMES[m]} {v:.2f} {units[m]}" for m, v in printed.values.items() if m in units]
        lines.append(f"As published in {printed.source}: {', '.join(known)}.")
    lines += compared.notes
    return [
        html.text(f"{', '.join(shown)} over {cases}.", class_="lead"),
        *(html.text(line, class_="soft") for line in lines),
    ]


def entry_blocks(entry: Entry, folder: Path, cases: str, level: str) -> list[str]:
    """All blocks of one entry.

    Args:
        folder: figures are drawn into it.
        cases: whose figures are shown: `all`, `three` or `none`.
        level: tag of the headings.
    """
    result = entry.first
    several = len(entry.seeds) > 1
    blocks = [
        html.facts(facts(entry)),
        commands(entry),
        html.folded("all options, and where each came from", [option_table(result)]),
        html.text("Results", level),
        *_result_blocks(entry, folder),
    ]
    if training_curves.training_figure(folder / "curves.svg", result):
        seed = f" of seed {result.seed}" if several else ""
        caption = f"Learning curves{seed}: {CURVES}"
        blocks += [html.text("Training", level), html.figure(folder / "curves.svg", caption)]
    figures = case_figures(result, cases)
    if figures:
        seed = f", seed {result.seed}" if several else ""
        blocks += [html.text(f"Cases{seed}", level), *figures]
    words = "Prediction and reference in voxels. A click on a column's head sorts by it."
    return [
        *blocks,
        html.text("Case by case", level),
        case_table(entry),
        html.text(words, class_="soft"),
    ]


def _result_blocks(entry: Entry, folder: Path) -> list[str]:
    """Tables and figure of the metrics."""
    summary = entry.first.summary
    unit = summary["units"]["hd"]
    several = len(entry.seeds) > 1
    over = f"; each case the mean over {len(entry.seeds)} seeds" if several else ""
    words = f"Mean ± sample sd over cases{over}; distances in {unit}."
    blocks = [class_table(entry), html.text(words, class_="soft")]
    if several:
        blocks.append(seed_table(entry))
    path = folder / "summary.svg"
    summary_figure(
        path,
        case_rows(entry),
        "",
        unit,
        class_names=list(entry.first.classes.values()),
        metrics=summary["test"].get("metrics") or SHOWN,
    )
    blocks.append(html.figure(path, "Every case, a panel a metric."))
    return blocks


def class_table(entry: Entry) -> str:
    """Mean ± sd over cases of every metric: of each class, and of their mean."""
    groups: list[tuple[int | None, str]] = list(entry.first.classes.items())
    several = len(groups) > 1
    if several:
        groups.append((None, "mean over classes"))
    cells = [["class", *map(heading, METRICS), "empty"]]
    for c, name in groups:
        of_group = [mean_sd(entry.cases(m, c).values(), m) for m in METRICS]
        cells.append([name, *of_group, str(entry.empty_predictions(c))])
    return html.table(cells, range(1, len(cells[0])), last=several)


def seed_table(entry: Entry) -> str:
    """The mean over cases of each seed."""
    cells = [["seed", *map(heading, METRICS)]]
    for result in entry.results:
        of_seed = [number(mean(result.cases(m).values()), m) for m in METRICS]
        cells.append([str(result.seed), *of_seed])
    over_seeds = [mean_sd(entry.seed_means(m), m) for m in METRICS]
    cells.append(["mean ± sd over seeds", *over_seeds])
    return html.table(cells, range(1, len(cells[0])), last=True)


def case_table(entry: Entry) -> str:
    """Every case and class, best Dice first."""
    several = len(entry.first.classes) > 1
    names = ["case", "class"] if several else ["case"]
    cells = [[*names, *map(heading, METRICS), "prediction", "reference"]]
    for row in sorted(case_rows(entry), key=lambda row: _worth(row["dice"])):
        names_of_row = [row["case"], row["class_name"]] if several else [row["case"]]
        scores = [number(row[m], m) for m in METRICS]
        voxels = [f"{row[key]:.0f}" for key in ("prediction_voxels", "reference_voxels")]
        cells.append([*names_of_row, *scores, *voxels])
    return html.table(cells, range(len(names), len(cells[0])), sortable=True)


def case_rows(entry: Entry) -> list[dict]:
    """The rows of `per_case.csv`, numbers their mean over the seeds."""
    groups: dict[tuple, list[dict]] = {}
    for row in entry.rows:
        groups.setdefault((row["case"], row["class"]), []).append(row)
    numbers = (*METRICS, "prediction_voxels", "reference_voxels")
    return [rows[0] | means(rows, numbers) for rows in groups.values()]


def case_figures(result: Result, which: str) -> list[str]:
    """The figures of the best, median and worst case by Dice, and of the others, folded."""
    dice = result.cases("dice")
    order = sorted(dice, key=lambda case: (_worth(dice[case]), case))
    if which == "none":
        return []
    if not any(_picture(result, case) for case in order):
        return [html.text("No figures of cases: the test drew none in PNG or SVG.", class_="soft")]
    best, median, worst = order[0], order[len(order) // 2], order[-1]
    places = {best: "best", median: "median", worst: "worst"}
    blocks = []
    for case, place in places.items():
        words = f"{place} of {len(order)} by Dice" if len(order) > 1 else ""
        blocks.append(_case_block(result, case, words))
        more = [_picture(result, f"{case}_{kind}") for kind in ("errors", "surface")]
        more = [html.figure(path, "") for path in more if path]
        if more:
            blocks.append(html.folded("errors and surfaces", more))
    others = [case for case in order if case not in places]
    if others and which == "all":
        folded = [_case_block(result, case, "") for case in others]
        blocks.append(html.folded(f"the other {len(others)} cases, best first", folded))
    return blocks


def _case_block(result: Result, case: str, words: str) -> str:
    path = _picture(result, case)
    return html.figure(path, words) if path else html.text(f"{case}: no figure. {words}")


def _picture(result: Result, name: str) -> Path | None:
    """A figure of the test in a format that a page can hold, or None."""
    paths = [result.path / "figures" / f"{name}.{kind}" for kind in ("png", "svg")]
    return next((path for path in paths if path.is_file()), None)


def _worth(dice: float) -> float:
    """Sorts the best first, and last those that were not scored."""
    return math.inf if math.isnan(dice) else -dice


# ---------------------------------------------------------------------------------- all entries


def links(entries: Sequence[Entry]) -> str:
    """A line of links to the sections of the entries, `#run0`, `#run1`, …"""
    parts = [f'<a href="#run{i}">{html.escape(entry.label)}</a>' for i, entry in enumerate(entries)]
    return f'<nav class="lead">{" · ".join(parts)}</nav>'


def comparison_blocks(compared: Comparison, folder: Path) -> list[str]:
    """The blocks on all entries: tables, notes, figures; these are drawn into `folder`."""
    cells = table(compared)
    blocks = [html.table(cells, number_columns(cells), aside=PUBLISHED)]
    if compared.differences:
        cells = difference_table(compared)
        blocks.append(html.table(cells, number_columns(cells)))
    blocks.append(html.listed(legend(compared)))
    folded = []
    first_pairs = f"pairs_{compared.metrics[0]}"
    for path in comparison_plots.draw(compared, folder, "svg"):
        kind = path.stem.split("_")[0]
        if kind == "pairs" and path.stem != first_pairs:
            folded.append(html.figure(path, ""))
        else:
            width = "50%" if kind == "labels" else "100%"
            blocks.append(html.figure(path, CAPTIONS[kind], width=width))
    if folded:
        blocks.append(html.folded("pairs by the other metrics", folded))
    return blocks
