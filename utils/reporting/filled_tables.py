"""Tables of runs, filled: the results of their runs beside the numbers that the papers print."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from dataloaders import dataset_class
from utils.metrics import factor, heading
from utils.reporting.cells import mean_sd
from utils.reporting.experiments import Job, Row
from utils.reporting.published import GAIN, Published

Cells = list[list[str]]
MANY = 8  # so many rows are counted in a remark, not named


@dataclass(frozen=True)
class Column:
    """A number of each row.

    Attributes:
        metric: name as in `summary.json`, or `gain`: the gain in Dice over another row.
        class_name: empty for the mean over the classes.
    """

    metric: str
    class_name: str = ""

    @property
    def heading(self) -> str:
        if self.metric == GAIN:
            return "gain in Dice"
        return f"{heading(self.metric)} {self.class_name}".rstrip()

    @property
    def factor(self) -> int:
        """The number that a measured value is multiplied with to be shown."""
        return factor("dice" if self.metric == GAIN else self.metric)


@dataclass(frozen=True)
class Filled:
    """A row and its results.

    Attributes:
        row: of the table.
        jobs: one a seed; empty where the row cannot be run.
        summaries: content of `summary.json` by seed, of the runs that are finished and tested.
        base: the row that this row's gain is over, or None.
    """

    row: Row
    jobs: Sequence[Job]
    summaries: dict[int, dict]
    base: "Filled | None" = None

    def values(self, column: Column) -> list[float]:
        """A number of each seed that has it, as measured: overlaps and gains as shares of 1."""
        if column.metric != GAIN:
            found = [_value(summary, column) for summary in self.summaries.values()]
            return [value for value in found if value is not None]
        if self.base is None:
            return []
        gains = []
        for seed, summary in self.summaries.items():
            if seed in self.base.summaries:
                before = _value(self.base.summaries[seed], Column("dice"))
                gains.append(_value(summary, Column("dice")) - before)
        return gains

    def printed(self, column: Column) -> tuple[float, float | None, Published] | None:
        """The paper's number, its sd or None, and the row that it stands in; None without one."""
        for line in self.row.published:
            if line.class_name == column.class_name and column.metric in line.compared:
                return line.compared[column.metric], line.sd, line
        return None


def _value(summary: dict, column: Column) -> float | None:
    """The mean over the cases in a summary; None where it has none."""
    means = summary["mean"]
    if column.class_name:
        means = summary.get("classes", {}).get(column.class_name, {})
    return means.get(column.metric, {}).get("mean")


def read_results(rows: Iterable[tuple[Row, Sequence[Job]]]) -> tuple[list[Filled], list[str]]:
    """The results of all rows, and notes on runs: why one does not count, empty predictions."""
    filled: list[Filled] = []
    notes = []
    for row, jobs in rows:
        summaries = {}
        for job in jobs:
            summary, reason = job.result()
            if reason:
                notes.append(reason)
            if summary is None:
                continue
            summaries[job.options["seed"]] = summary
            empty = summary["empty_predictions"]
            if empty:
                notes.append(f"{job.folder}: {empty} empty predictions: {summary['empty']}")
        base = next((one for one in filled if one.row.label == row.gain_over), None)
        filled.append(Filled(row, jobs, summaries, base))
    return filled, list(dict.fromkeys(notes))


def columns(filled: Sequence[Filled], dataset: str) -> list[Column]:
    """The metrics that papers report on the data set, and others that the rows print, as far as a
    row has a printed or measured number; all of them where none has. A metric's classes stand
    before their mean.
    """
    lines = [line for one in filled for line in one.row.published]
    metrics = dict.fromkeys(dataset_class(dataset).reported)
    for line in lines:
        metrics |= dict.fromkeys(line.values)
    if any(one.row.gain_over for one in filled):
        metrics[GAIN] = None
    found = []
    for metric in metrics:
        names = [line.class_name for line in lines if line.class_name and metric in line.values]
        found += [Column(metric, name) for name in dict.fromkeys(names)]
        found.append(Column(metric))
    known = [c for c in found if any(one.printed(c) or one.values(c) for one in filled)]
    return known or found


def fill(filled: Sequence[Filled], dataset: str) -> Cells:
    """The header and the rows of a table: beside a measured number the paper's, where it prints
    one.

    The last two columns are the number of seeds and the run. A third names the papers where the
    rows print numbers of several tables.
    """
    shown = columns(filled, dataset)
    with_paper = {
        column for column in shown if any(one.printed(column) is not None for one in filled)
    }
    sources = dict.fromkeys(source for one in filled for source in _sources(one))
    head = ["", "labels"]
    for column in shown:
        head.append(column.heading)
        if column in with_paper:
            head.append("paper")
    head += ["seeds", "run"]
    if len(sources) > 1:
        head.append("paper's table")
    cells = [head]
    for one in filled:
        line = [one.row.label, _labels(one)]
        for column in shown:
            line.append(mean_sd(one.values(column), "dice" if column.factor > 1 else "hd"))
            if column in with_paper:
                line.append(_printed(one, column))
        line += [_seeds(one), _run(one)]
        if len(sources) > 1:
            line.append(", ".join(_sources(one)) or "-")
        cells.append(line)
    return cells


def text_columns(cells: Cells) -> int:
    """How many columns at the right hold words."""
    return len(cells[0]) - cells[0].index("seeds")


def _sources(one: Filled) -> list[str]:
    """The tables that a row's printed numbers stand in."""
    return list(dict.fromkeys(line.source for line in one.row.published if line.values))


def _labels(one: Filled) -> str:
    """The number of labels, with the paper's words where it prints a ratio or a share."""
    number = one.jobs[0].options["labelnum"] if one.jobs else one.row.labelnum
    words = [line.labelled for line in one.row.published if not line.labelled.isdigit()]
    words = [word.replace(":", " : ").replace("%", " %") for word in words if word]
    return f"{number} ({words[0]})" if words else str(number or "-")


def _printed(one: Filled, column: Column) -> str:
    found = one.printed(column)
    if found is None:
        return "-"
    value, sd, _ = found
    text = f"{value:g}" if column.metric == GAIN else f"{value:.2f}"
    return text if sd is None else f"{text} ± {sd:.2f}"


def _seeds(one: Filled) -> str:
    return f"{len(one.summaries)} of {len(one.jobs)}" if one.jobs else "-"


def _run(one: Filled) -> str:
    """The name of the row's run, or why it has none."""
    if one.jobs:
        return one.jobs[0].folder.parent.name
    return missing_script(one.row)


def missing_script(row: Row) -> str:
    """Why a row cannot be run."""
    if row.method is None:
        return "no script for this row"
    return f"no script code/train_{row.method}.py yet"


def remarks(filled: Sequence[Filled]) -> list[str]:
    """The remarks on the printed numbers, each with the rows that it is on."""
    rows_of: dict[str, list[str]] = {}
    printed = []
    for one in filled:
        if not one.row.published:
            continue
        label = one.row.label
        if sum(other.row.label == label for other in filled) > 1:
            label += f" with {one.row.labelnum} labels"
        printed.append(label)
        for line in one.row.published:
            for remark in line.remarks:
                rows_of.setdefault(remark, [])
                if label not in rows_of[remark]:
                    rows_of[remark].append(label)
    everywhere = [remark for remark, labels in rows_of.items() if labels == printed]
    notes = [f"On all printed rows: {'; '.join(everywhere)}."] if everywhere else []
    for remark, labels in rows_of.items():
        if remark not in everywhere:
            which = ", ".join(labels) if len(labels) < MANY else f"{len(labels)} rows"
            notes.append(f"{which}: {remark}.")
    return notes
