"""A report of runs that were tested, as one HTML file: it opens in any browser without a network,
and prints.

    python code/report.py runs/LA/dmd_8/seed1337                             # report.html
    python code/report.py runs/LA/dmd_8:last_nms0 --output dmd.html
    python code/report.py runs/LA/supervised_8 runs/LA/dmd_8 --baseline supervised_8

It says what was run (options and where each came from, seeds, commit, hardware), and shows the
results of every class and case, the spread of the metrics, learning curves, and the figures of the
best, median and worst case, with the others folded. A report of several runs begins with the table,
tests and figures of code/compare.py; RUN, --test, --names and --baseline are the same there. A row
of several seeds is reported as their mean, with the case figures of the first seed.
"""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

import _root  # noqa: F401
from utils import command
from utils.errors import UserError
from utils.files import write_atomically
from utils.reporting import html, report_sections
from utils.reporting.compare import Comparison, compare
from utils.reporting.entries import open_entries


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
        "--output", type=Path, default="report.html", metavar="FILE", help="file to write"
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
        "--cases",
        choices=("all", "three", "none"),
        default="all",
        help="cases whose figures are shown; three: the best, median and worst",
    )
    args = parser.parse_args(argv)
    if not args.output.parent.is_dir():
        raise UserError(f"{args.output.parent}: no such folder; make it, or name another --output")
    return args


def blocks_of(compared: Comparison, title: str, cases: str) -> list[str]:
    """The blocks of the whole page."""
    blocks = [html.text(title, "h1")]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        if len(compared.entries) == 1:
            (entry,) = compared.entries
            blocks += report_sections.lead(compared)
            return blocks + report_sections.entry_blocks(entry, folder, cases, "h2")
        blocks.append(report_sections.links(compared.entries))
        blocks += report_sections.comparison_blocks(compared, folder)
        for i, entry in enumerate(compared.entries):
            blocks.append(html.text(entry.label, "h2", id=f"run{i}"))
            blocks += report_sections.entry_blocks(entry, folder, cases, "h3")
    return blocks


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    entries = open_entries(args.runs, args.test, args.names or ())
    compared = compare(entries, baseline=args.baseline)
    data = ", ".join(dict.fromkeys(entry.first.trained["dataset"] for entry in entries))
    subject = entries[0].label if len(entries) == 1 else f"{len(entries)} runs"
    title = f"{subject} on {data}"
    text = html.page(title, blocks_of(compared, title, args.cases))
    write_atomically(args.output, lambda path: path.write_text(text, encoding="utf-8"))
    print(f"{args.output}, {len(text) / 2**20:.1f} MB")


if __name__ == "__main__":
    command.run(main)
