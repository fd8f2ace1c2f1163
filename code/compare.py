"""Compare runs that were tested: one table, paired tests against a baseline, figures for a paper.

    python code/compare.py runs/LA/supervised_8 runs/LA/dmd_8:last_nms0 --baseline supervised_8
    python code/compare.py runs/LA/*_8/seed1337 --markdown table.md --latex table.tex --csv table.csv
    python code/compare.py runs/LA/dmd_8/seed* runs/LA/cml_8 --names DMD CML --baseline DMD --figures figures

A RUN is the folder of a run, or of its seeds, which make one row together; after a colon, the name
of its results where they are others than --test. In the table stand mean ± sd over cases (in
brackets over seeds), the number of empty predictions, the budget and the rule that chose the
checkpoint, and what the paper prints. Cases are averaged over seeds before they are tested. Rows
that may not be set beside one another (other cases, resolution, filter of components, …) are
marked, and so are published numbers of another setting; the notes below say why. --csv has every
number.
"""

import argparse
from pathlib import Path

import _root  # noqa: F401
from utils import command
from utils.errors import UserError
from utils.files import write_atomically
from utils.metrics import METRICS
from utils.reporting import plots
from utils.reporting.compare import compare
from utils.reporting.results import open_entries
from utils.reporting.tables import csv_text, difference_table, latex, legend, render, table


def arguments(argv=None):
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
        help="of the rows, in their order (default: of the folders)",
    )
    listed = {"nargs": "+", "choices": METRICS, "metavar": "METRIC"}
    parser.add_argument(
        "--metrics", **listed, help=f"of {', '.join(METRICS)} (default: those that the test showed)"
    )
    parser.add_argument(
        "--class",
        dest="class_name",
        metavar="NAME",
        help="one class (default: the mean over classes)",
    )
    parser.add_argument("--confidence", type=level, default=0.95, help="of the bootstrap intervals")
    parser.add_argument(
        "--resamples", type=command.positive_int, default=9999, help="of the bootstrap"
    )
    parser.add_argument("--seed", type=command.non_negative_int, default=0, help="of the bootstrap")
    written = parser.add_argument_group("files")
    written.add_argument("--markdown", metavar="FILE", help="the tables and notes")
    written.add_argument(
        "--latex", metavar="FILE", help="the tables and notes, for LaTeX with booktabs"
    )
    written.add_argument("--csv", metavar="FILE", help="every number, a line a run and metric")
    written.add_argument(
        "--figures", metavar="FOLDER", help="boxes, pairs, learning curves, Dice by labels"
    )
    written.add_argument(
        "--format", choices=("png", "pdf", "svg"), default="png", help="of the figures"
    )
    return parser.parse_args(argv)


def level(text):
    """The argparse type of `--confidence`."""
    value = command.fraction(text)
    if not 0.5 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not from 0.5 to below 1")
    return value


def tables(compared):
    """`(cells, title)` of each table."""
    data = ", ".join(dict.fromkeys(entry.first.trained["dataset"] for entry in compared.entries))
    yield table(compared), f"Results on {data}"
    if compared.differences:
        yield difference_table(compared), f"Differences from {compared.baseline.label}"


def write(path, text):
    """Write a file whose folder may not be there yet."""
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path.parent}: cannot be made ({error.strerror})") from None
    write_atomically(path, lambda part: part.write_text(text, encoding="utf-8"))
    print(path)


def main(argv=None):
    args = arguments(argv)
    entries = open_entries(args.runs, args.test, args.names or ())
    bootstrap = {"confidence": args.confidence, "resamples": args.resamples, "seed": args.seed}
    compared = compare(
        entries, dict.fromkeys(args.metrics or ()), args.baseline, args.class_name, **bootstrap
    )
    made, notes = list(tables(compared)), legend(compared)

    print("\n\n".join(render(cells, "text") for cells, _ in made), "", *notes, sep="\n")
    if len(entries) == 1:
        print("One row: name a second run to compare it with.")
    elif not args.baseline:
        print(
            f"No tests: name the row to test against with --baseline, such as {entries[0].label}."
        )
    if args.markdown:
        parts = [f"{title}\n\n{render(cells, 'markdown')}" for cells, title in made]
        write(args.markdown, "\n\n".join([*parts, "\n".join(f"- {note}" for note in notes)]) + "\n")
    if args.latex:
        last = len(made) - 1
        parts = [
            latex(
                cells,
                title + ".",
                notes if i == last else [],
                f"tab:{'differences' if i else 'comparison'}",
            )
            for i, (cells, title) in enumerate(made)
        ]
        write(args.latex, "% needs \\usepackage{booktabs,graphicx}\n" + "\n\n".join(parts) + "\n")
    if args.csv:
        write(args.csv, csv_text(compared))
    if args.figures:
        for path in plots.draw(compared, Path(args.figures), args.format):
            print(path)


if __name__ == "__main__":
    command.run(main)
