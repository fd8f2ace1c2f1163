"""Compare runs that were tested: one table, paired tests against a baseline, figures for a paper.

    python code/compare.py runs/LA/supervised_8 runs/LA/dmd_8:last_nms0 --baseline supervised_8
    python code/compare.py runs/LA/*_8/seed1337 --markdown table.md --csv table.csv
    python code/compare.py runs/LA/dmd_8/seed* runs/LA/cml_8 --names DMD CML --figures figures

A RUN is the folder of a run, or of its seeds, which make one row together; a colon and the name of
its results follow where they are others than --test. The table shows mean ± sd over cases (in
brackets over seeds), the number of empty predictions, the budget, and the rule that chose the
checkpoint. Below a row stand the numbers that papers print for its method, each with its table.
Cases are averaged over seeds before they are tested. Rows that cannot be compared (other cases,
resolution, component filter, …) are marked, and so are published numbers of another setting; the
notes below the table say why. --csv has every number.
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import _root  # noqa: F401
from utils import command
from utils.errors import UserError
from utils.files import write_atomically
from utils.metrics import METRICS
from utils.reporting import comparison_plots
from utils.reporting.cells import latex, render
from utils.reporting.compare import Comparison, compare
from utils.reporting.entries import open_entries
from utils.reporting.tables import csv_text, difference_table, legend, table

Tables = list[tuple[list[list[str]], str]]  # cells and title of each


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = command.Parser(__doc__, __file__)
    parser.add_argument(
        "runs", nargs="+", metavar="RUN", help="folder of a run or of its seeds, or folder:results"
    )
    parser.add_argument(
        "--test",
        default="last",
        metavar="RESULTS",
        help="name of the results, a folder below <run>/test/",
    )
    parser.add_argument(
        "--baseline",
        metavar="ROW",
        help="row that the others are tested against: its name in the table, or folder",
    )
    parser.add_argument(
        "--names",
        nargs="+",
        metavar="NAME",
        help="names of the rows, in their order (default: of the folders)",
    )
    parser.add_argument(
        "--metrics",
        nargs="+",
        choices=METRICS,
        metavar="METRIC",
        help=f"columns, of {', '.join(METRICS)} (default: those that the test showed)",
    )
    parser.add_argument(
        "--class",
        dest="class_name",
        metavar="NAME",
        help="compare this class (default: the mean over classes)",
    )
    parser.add_argument(
        "--confidence", type=level, default=0.95, help="confidence of the bootstrap intervals"
    )
    parser.add_argument(
        "--resamples", type=command.positive_int, default=9999, help="resamples of the bootstrap"
    )
    parser.add_argument(
        "--seed", type=command.non_negative_int, default=0, help="seed of the bootstrap"
    )
    files = parser.add_argument_group("files")
    files.add_argument("--markdown", metavar="FILE", help="write the tables and notes as Markdown")
    files.add_argument(
        "--latex", metavar="FILE", help="write the tables and notes for LaTeX with booktabs"
    )
    files.add_argument("--csv", metavar="FILE", help="write every number, a line a run and metric")
    files.add_argument(
        "--figures", metavar="FOLDER", help="draw boxes, pairs, learning curves, Dice by labels"
    )
    files.add_argument(
        "--format", choices=("png", "pdf", "svg"), default="png", help="format of the figures"
    )
    return parser.parse_args(argv)


def level(text: str) -> float:
    """The argparse type of `--confidence`."""
    value = command.fraction(text)
    if not 0.5 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not from 0.5 to below 1")
    return value


def tables(compared: Comparison) -> Iterator[tuple[list[list[str]], str]]:
    """`(cells, title)` of each table."""
    data = ", ".join(dict.fromkeys(entry.first.trained["dataset"] for entry in compared.entries))
    yield table(compared), f"Results on {data}"
    if compared.differences:
        yield difference_table(compared), f"Differences from {compared.baseline.label}"


def write(path: str | Path, text: str) -> None:
    """Write a file whose folder may not be there yet."""
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path.parent}: cannot be made ({error.strerror})") from None
    write_atomically(path, lambda part: part.write_text(text, encoding="utf-8"))
    print(path)


def as_markdown(made: Tables, notes: Sequence[str]) -> str:
    parts = [f"{title}\n\n{render(cells, 'markdown')}" for cells, title in made]
    parts.append("\n".join(f"- {note}" for note in notes))
    return "\n\n".join(parts) + "\n"


def as_latex(made: Tables, notes: Sequence[str]) -> str:
    """The notes stand below the last table."""
    parts = ["% needs \\usepackage{booktabs,graphicx}"]
    for i, (cells, title) in enumerate(made):
        below = notes if i == len(made) - 1 else []
        label = "tab:differences" if i else "tab:comparison"
        parts.append(latex(cells, f"{title}.", below, label))
    return parts[0] + "\n" + "\n\n".join(parts[1:]) + "\n"


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    entries = open_entries(args.runs, args.test, args.names or ())
    compared = compare(
        entries,
        metrics=dict.fromkeys(args.metrics or ()),  # each once
        baseline=args.baseline,
        class_name=args.class_name,
        confidence=args.confidence,
        resamples=args.resamples,
        seed=args.seed,
    )
    made = list(tables(compared))
    notes = legend(compared)

    print("\n\n".join(render(cells, "text") for cells, _ in made), "", *notes, sep="\n")
    if len(entries) == 1:
        print("One row: name a second run to compare it with.")
    elif not args.baseline:
        print(
            f"No tests: name the row to test against with --baseline, such as {entries[0].label}."
        )
    if args.markdown:
        write(args.markdown, as_markdown(made, notes))
    if args.latex:
        write(args.latex, as_latex(made, notes))
    if args.csv:
        write(args.csv, csv_text(compared))
    if args.figures:
        for path in comparison_plots.draw(compared, Path(args.figures), args.format):
            print(path)


if __name__ == "__main__":
    command.run(main)
