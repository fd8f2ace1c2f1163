"""How numbers are written in tables, and tables of text as text, Markdown and LaTeX."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence

from utils.metrics import OVERLAPS, factor, spread, spread_text


def unit_of(metric: str, units: Mapping[str, str]) -> str:
    """The unit that a metric is shown in; `units` as in `summary.json`."""
    return "%" if metric in OVERLAPS else units[metric]


def number(value: float, metric: str) -> str:
    """One value of a metric; `-` for NaN."""
    return "-" if math.isnan(value) else f"{factor(metric) * value:.2f}"


def mean_sd(values: Iterable[float | None], metric: str) -> str:
    """Mean ± sample sd of a metric's values, as `spread_text` writes them.

    None and NaN are left out: distances that nothing had.
    """
    return spread_text(spread(v for v in values if v is not None), factor(metric))


def number_columns(cells: Sequence[Sequence[str]], words: int = 3) -> range:
    """The columns that are set to the right: all but the first and the last `words`."""
    return range(1, len(cells[0]) - words)


def render(cells: Sequence[Sequence[str]], kind: str, words: int = 3) -> str:
    """A table as aligned `text`, or as `markdown`; `cells` are the header and the rows, with
    `words` columns of text at the right.
    """
    numbers = number_columns(cells, words)
    if kind == "markdown":
        rules = ["---:" if i in numbers else "---" for i in range(len(cells[0]))]
        lines = [f"| {' | '.join(row)} |" for row in cells]
        return "\n".join([lines[0], f"|{'|'.join(rules)}|", *lines[1:]])
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = []
    for row in cells:
        aligned = [
            cell.rjust(width) if i in numbers else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(aligned).rstrip())
    return "\n".join(lines)


def latex(cells: Sequence[Sequence[str]], caption: str, notes: Sequence[str], label: str) -> str:
    """A table for the packages booktabs and graphicx, with the notes below it."""
    numbers = number_columns(cells)
    columns = "".join("r" if i in numbers else "l" for i in range(len(cells[0])))
    lines = [" & ".join(map(_escape, row)) + r" \\" for row in cells]
    below = [r"\par\smallskip\footnotesize\raggedright", *(_escape(note) + r"\\" for note in notes)]
    return "\n".join(
        [
            r"\begin{table*}",
            r"\centering\footnotesize\setlength{\tabcolsep}{3pt}",
            rf"\caption{{{_escape(caption)}}}\label{{{label}}}",
            # shrinks a table that is wider than the page
            r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
            rf"\begin{{tabular}}{{{columns}}}",
            r"\toprule",
            lines[0],
            r"\midrule",
            *lines[1:],
            r"\bottomrule",
            r"\end{tabular}}",
            *(below if notes else ()),
            r"\end{table*}",
        ]
    )


_SIGNS = {
    "±": r"$\pm$",
    "<": "$<$",
    ">": "$>$",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
}


def _escape(text: str) -> str:
    """Text as LaTeX sets it."""
    text = re.sub(r"([&%$#_{}])", r"\\\1", text.replace("\\", r"/"))
    text = re.sub(r"(?<![\w.])([+-])(?=\d)", r"$\1$", text)  # signs, no hyphens
    for sign, spelt in _SIGNS.items():
        text = text.replace(sign, spelt)
    return re.sub(r"^\[", "{[}", text)  # after a line's end it would be its argument
