"""The table that a test script prints."""

import math
from collections.abc import Sequence

from utils import distributed
from utils.metrics import NAMES, OVERLAPS, Spread, factor, heading, spread_text

CELL = 17  # characters of a cell: "100.00 ± 100.00" and a gap


class Table:
    """A line a case and class while the cases are scored, then their means.

    Overlaps are shown in percent. With one foreground class, classes are not named.

    Args:
        metrics: the columns.
        class_names: of the foreground classes.
    """

    def __init__(self, metrics: Sequence[str], class_names: Sequence[str]):
        self.metrics = metrics
        self._class_width = max(map(len, class_names)) + 2 if len(class_names) > 1 else 0
        self._case_width = 0  # known from the first case on

    def print_case(self, rows: Sequence[dict]) -> None:
        """Print a case, before the first one the header.

        Args:
            rows: as `utils.evaluation.scoring.score_case` gives them, with `seconds`.
        """
        if not self._case_width:
            self._case_width = max(len(rows[0]["case"]) + 2, 22)
            if distributed.is_first():
                self._print_header()
        for row in rows:
            values = [Spread(row[m], math.nan, 1) for m in self.metrics]
            cells = self._cells(values)
            line = self._line(row["case"], row["class_name"], cells, row["seconds"])
            print(line, flush=True)

    def print_summary(self, summary: dict) -> None:
        """Print the means over cases, and how they came about.

        Args:
            summary: as `summary.json` has it.
        """
        groups = dict(summary["classes"]) if self._class_width else {}
        groups["mean"] = summary["mean"]
        for name, group in groups.items():
            cells = self._cells([Spread(**group[m]) for m in self.metrics])
            seconds = summary["seconds_per_case"] if name == "mean" else None
            print(self._line("mean ± sd", name, cells, seconds))
        distances = [NAMES[m] for m in self.metrics if m not in OVERLAPS]
        measured = f"{listed(distances)} in {summary['units']['hd']}; " if distances else ""
        print(f"{summary['cases']} cases; {measured}sd over cases (ddof 1)")
        predictions = summary["empty_predictions"]
        references = summary["empty_references"]
        masks = ""
        if self._class_width:
            masks = f" of {summary['cases'] * len(summary['classes'])} masks"
        meaning = f": {summary['empty']}" if predictions or references else ""
        print(f"{predictions} empty predictions, {references} empty references{masks}{meaning}")

    def _cells(self, values: Sequence[Spread]) -> list[str]:
        """One value of each metric, as text."""
        return [spread_text(v, factor(m), 7) for m, v in zip(self.metrics, values, strict=True)]

    def _print_header(self) -> None:
        cells = [f"{heading(m):>7}" for m in self.metrics]
        width = self._case_width + self._class_width + CELL * len(cells)
        print(self._line("case", "class", cells).ljust(width) + " seconds", flush=True)

    def _line(
        self, case: str, class_name: str, cells: Sequence[str], seconds: float | None = None
    ) -> str:
        left = f"{case:{self._case_width}}"
        if self._class_width:
            left += f"{class_name:{self._class_width}}"
        middle = "".join(f"{cell:{CELL}}" for cell in cells)
        right = "" if seconds is None else f"{seconds:8.2f}"
        return (left + middle + right).rstrip()


def listed(words: Sequence[str]) -> str:
    """The words with commas and one "and"."""
    *first, last = words
    return f"{', '.join(first)} and {last}" if first else last
