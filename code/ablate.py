"""The tables and figures of the papers: the commands that train and test each row, and the filled
tables.

    python code/ablate.py --list                              # every table, one line each
    python code/ablate.py ugmcl-table1                        # its commands, for a shell
    python code/ablate.py ugmcl-table1 --run                  # runs them, then fills the table
    python code/ablate.py ugmcl-table1 --fill                 # fills the table with what is there
    python code/ablate.py coranet-table6 --dataset Pancreas   # the 3-D part of that table
    python code/ablate.py coranet-table8 --dataset LA --labelnum 8 --seeds 1337 1338 1339 --run
    python code/ablate.py dmd-fig4 --fill --figure fig4.pdf   # draws the sweep, and writes fig4.csv

A table has the rows of the paper in its order. A row whose script is not here yet has only its
printed numbers. A cell is the mean over the cases in runs/<dataset>/<name>/seed<seed>/test/; with
several seeds it is their mean ± sample sd. Beside it stands the number that the paper prints for
this row, data set and number of labels, or `-` where it prints none.

--run skips finished commands and resumes stopped ones, so the same command can be given again. A
row with all defaults has the run that its script makes by itself, so no two tables train it twice.
For a quick look give --extra "--downsample 2 --max_iterations 2000" --runs runs_quick, to tables
with CoraNet --extra "--downsample 2 --pretrain_epochs 6 --selftrain_epochs 12". --fill needs the
same --extra: it leaves out runs with other options. The rows themselves are written in
utils/reporting/paper_tables/, the printed numbers in utils/reporting/published.csv.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import _root  # noqa: F401
from dataloaders import DATASETS, dataset_class
from utils import command
from utils.errors import UserError
from utils.figures.style import FORMATS
from utils.reporting import experiments, filled_tables, scripts, sweep_plots
from utils.reporting.cells import render
from utils.reporting.experiments import Job, Row, Table
from utils.reporting.filled_tables import Filled
from utils.reporting.paper_tables import TABLES

Rows = list[tuple[Row, list[Job]]]
COUNTED = sorted(name for name in DATASETS if dataset_class(name).training_units)
# set for every row, so not for --extra
OWN = ("--dataset", "--labelnum", "--seed", "--gpu", "--root", "--runs", "--name", "--resume")


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = command.Parser(__doc__, __file__)
    parser.add_argument("table", nargs="?", help="name of the table; --list shows all")
    parser.add_argument("--list", action="store_true", help="print every table, one line each")
    action = parser.add_mutually_exclusive_group()
    action.add_argument(
        "--run", action="store_true", help="run the commands one after another, then fill the table"
    )
    action.add_argument(
        "--fill", action="store_true", help="fill the table with the results that there are"
    )
    parser.add_argument(
        "--figure",
        nargs="?",
        const="",
        metavar="FILE",
        help="draw a sweep with --fill or --run, and write its numbers beside it as CSV "
        "(default file: <table>_<dataset>.png)",
    )
    parser.add_argument(
        "--dataset",
        choices=COUNTED,
        help="data set, which picks the part of a table of several (default: the table's first)",
    )
    parser.add_argument(
        "--labelnum",
        type=command.positive_int,
        help="number of labels (default: the table's, else the data set's)",
    )
    parser.add_argument(
        "--seeds",
        type=command.non_negative_int,
        nargs="+",
        default=[1337],
        help="seeds of the runs; take several to see their spread",
    )
    parser.add_argument(
        "--gpu", type=command.gpu, help="number of the GPU, passed on to the scripts"
    )
    parser.add_argument("--root", help="folder of the data (default: data/<dataset>)")
    parser.add_argument("--runs", default="runs", help="folder of all runs")
    parser.add_argument(
        "--extra",
        type=shlex.split,
        default=[],
        help='further options of every training, such as "--downsample 2"',
    )
    parser.add_argument(
        "--format", choices=("text", "markdown"), default="text", help="format of the table"
    )
    args = parser.parse_args(argv)
    if args.list:
        return args
    if args.table is None:
        raise UserError("name a table: --list shows all")
    table = experiments.find_table(TABLES, args.table)
    if table.own_labels and args.labelnum:
        raise UserError(
            f"--labelnum {args.labelnum}: the rows of {args.table} have their own; leave it out"
        )
    for flag in args.extra:
        if flag.split("=")[0] in OWN:
            raise UserError(
                f"--extra {flag}: it is set for every row; use the option of ablate.py itself"
            )
    if args.dataset is None:
        args.dataset = table.dataset
    if args.labelnum is None and not table.own_labels:
        args.labelnum = table.parts.get(args.dataset) or dataset_class(args.dataset).labelnum
    if args.figure is not None:
        check_figure(args, table)
    return args


def check_figure(args: argparse.Namespace, table: Table) -> None:
    """Fill in the file of --figure.

    Raises:
        UserError: the table is no sweep, it is not filled, or the file cannot be written.
    """
    if not is_sweep(table):
        sweeps = ", ".join(name for name, other in TABLES.items() if is_sweep(other))
        raise UserError(f"--figure: {args.table} is no sweep; these are: {sweeps}")
    if not args.fill and not args.run:
        raise UserError("--figure draws the results: add --fill, or --run to make them first")
    args.figure = Path(args.figure or f"{args.table}_{args.dataset}.png")
    if args.figure.suffix[1:] not in FORMATS:
        raise UserError(f"--figure {args.figure}: the file must end in .{', .'.join(FORMATS)}")
    if not args.figure.parent.is_dir():
        raise UserError(f"{args.figure.parent}: no such folder; make it, or name another --figure")


def is_sweep(table: Table) -> bool:
    """Whether the rows of a table lie on an axis."""
    return any(row.point for row in table.part(table.dataset))


def plan(table: Table, args: argparse.Namespace) -> Rows:
    """Each row with its jobs, one a seed; a row without a script has none."""
    given = {"--gpu": args.gpu, "--root": args.root}
    places = {flag: str(value) for flag, value in given.items() if value is not None}
    rows = []
    for row in table.rows(args.dataset, args.labelnum):
        jobs = []
        if row.script:
            labelnum = row.labelnum or args.labelnum
            for seed in args.seeds:
                jobs.append(
                    experiments.make_job(
                        row, args.dataset, labelnum, seed, args.runs, places, args.extra
                    )
                )
        rows.append((row, jobs))
    return rows


def run_commands(rows: Rows, run: bool) -> None:
    """Print every command, and with `run` run those that are not done; stops at the first that
    fails.
    """
    for row, job, words in experiments.commands(rows):
        summary, _ = job.result()
        done = summary is not None
        print(f"{scripts.shell(words)}  # {row.label}{', done' if done else ''}", flush=True)
        if not run or done:
            continue
        status = scripts.call(words)
        if status:
            sys.exit(
                f"ablate.py: the rest is not run, exit status {status} from: {scripts.shell(words)}"
            )
    missing: dict[str, list[str]] = {}
    for row, jobs in rows:
        if not jobs:
            labels = missing.setdefault(filled_tables.missing_script(row), [])
            labels.append(row.label)
    for reason, labels in missing.items():
        print(f"# {', '.join(dict.fromkeys(labels))}: {reason}")


def print_table(
    table: Table, filled: Sequence[Filled], notes: Sequence[str], args: argparse.Namespace
) -> None:
    """Print the filled table, and its notes below it."""
    cells = filled_tables.fill(filled, args.dataset)
    lines = [*table.notes, *filled_tables.remarks(filled), *notes]
    if args.extra:
        extra = shlex.join(args.extra)
        lines.insert(0, f"Trained with {extra}: the papers' numbers are not of this setting.")
    words = filled_tables.text_columns(cells)
    print(f"\n{table.title} ({args.dataset})\n\n{render(cells, args.format, words)}")
    if lines:
        print("", *lines, sep="\n")


def draw_sweep(table: Table, filled: Sequence[Filled], args: argparse.Namespace) -> None:
    """Draw the figure, and write its numbers beside it."""
    points = sweep_plots.sweep_points(table, filled, args.dataset)
    sweep_plots.sweep_figure(args.figure, points)
    numbers = args.figure.with_suffix(".csv")
    sweep_plots.write_points(numbers, points)
    print("", args.figure, numbers, sep="\n")


def print_list() -> None:
    """Print every table with its data sets and numbers of labels, a line each."""
    for name, table in TABLES.items():
        parts = []
        for dataset, labelnum in table.parts.items():
            parts.append(f"{dataset}, {labelnum} labels" if labelnum else dataset)
        sweep = ", sweep" if is_sweep(table) else ""
        print(f"{name:15} {table.title} ({'; '.join(parts)}{sweep})")


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    if args.list:
        print_list()
        return
    table = TABLES[args.table]
    rows = plan(table, args)
    if not args.fill:
        run_commands(rows, args.run)
    if args.fill or args.run:
        filled, notes = filled_tables.read_results(rows)
        print_table(table, filled, notes, args)
        if args.figure:
            draw_sweep(table, filled, args)


if __name__ == "__main__":
    command.run(main)
