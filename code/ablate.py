"""The tables and figures of the papers: the commands that train and test each row, and the filled
tables.

    python code/ablate.py --list                              # every table, one line each
    python code/ablate.py ugmcl-table1 --labelnum 16          # its commands, for a shell
    python code/ablate.py ugmcl-table1 --labelnum 16 --run    # runs them, then fills the table
    python code/ablate.py ugmcl-table1 --labelnum 16 --fill   # fills the table with what is there
    python code/ablate.py coranet-table8 --dataset LA --labelnum 8 --seeds 1337 1338 1339 --run

A cell is the mean over the cases in runs/<dataset>/<name>/seed<seed>/test/; with several seeds it
is their mean ± sample sd. Beside the cells stand the numbers that the paper prints for this row,
data set and number of labels, or `-` where we know none.

--run skips finished commands and resumes stopped ones, so the same command can be given again. A
row that comes to the defaults is the run without a name, and no two tables train it twice. For a
quick look: --extra "--downsample 2 --max_iterations 2000" --runs runs_quick. The rows themselves
are written in utils/reporting/paper_tables.py.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace

import _root  # noqa: F401
from dataloaders import DATASETS, dataset_class
from utils import command
from utils.errors import UserError
from utils.reporting import experiments, scripts
from utils.reporting.cells import render
from utils.reporting.experiments import Job, Row, Table
from utils.reporting.paper_tables import CORANET_BASELINES, TABLES
from utils.reporting.published import published_row

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
    parser.add_argument("--dataset", choices=COUNTED, help="data set (default: the table's)")
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
    if table.labelnum is None and args.labelnum:
        raise UserError(
            f"--labelnum {args.labelnum}: the rows of {args.table} differ in it; leave it out"
        )
    for flag in args.extra:
        if flag.split("=")[0] in OWN:
            raise UserError(
                f"--extra {flag}: it is set for every row; use the option of ablate.py itself"
            )
    if args.dataset is None:
        args.dataset = table.dataset
    if args.labelnum is None:
        usual = dataset_class(args.dataset).labelnum
        args.labelnum = (table.labelnum if args.dataset == table.dataset else None) or usual
    return args


def plan(table: Table, args: argparse.Namespace) -> list[tuple[Row, list[Job]]]:
    """Each row with its jobs, one a seed. A row that comes to the defaults gets the method's
    published numbers.
    """
    given = {"--gpu": args.gpu, "--root": args.root}
    places = {flag: str(value) for flag, value in given.items() if value is not None}
    rows = []
    for row in table.rows(args.dataset, args.labelnum):
        if row.method is None:
            rows.append((row, []))
            continue
        labelnum = row.labelnum or args.labelnum
        jobs = [
            experiments.make_job(row, args.dataset, labelnum, seed, args.runs, places, args.extra)
            for seed in args.seeds
        ]
        if jobs[0].default and row.published is None:
            printed = published_row(row.method, args.dataset, labelnum)
            row = replace(row, published=printed)
        rows.append((row, jobs))
    return rows


def baselines(rows: Sequence[tuple[Row, Sequence[Job]]]) -> list[str]:
    """Lines with the supervised numbers of CoraNet's paper, and why they do not stand beside the
    supervised rows.
    """
    settings = set()
    for row, jobs in rows:
        if row.method == "supervised" and jobs:
            first = jobs[0].options
            settings.add((first["dataset"], first["labelnum"]))
    return [
        f"Supervised with {labelnum} labels CoraNet's paper has "
        f"{CORANET_BASELINES[dataset, labelnum]}; the row is of SGD and batch norm, so it is "
        "another one."
        for dataset, labelnum in sorted(settings & CORANET_BASELINES.keys())
    ]


def run_commands(rows: Sequence[tuple[Row, Sequence[Job]]], run: bool) -> None:
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


def print_table(
    table: Table, rows: Sequence[tuple[Row, Sequence[Job]]], args: argparse.Namespace
) -> None:
    """Print the filled table, and its notes below it."""
    cells, notes = experiments.fill(rows, dataset_class(args.dataset).reported)
    notes = [*baselines(rows), *notes]
    if table.note:
        notes.insert(0, table.note)
    if args.extra:
        extra = shlex.join(args.extra)
        notes.insert(0, f"Trained with {extra}: the published numbers are not of this setting.")
    print(f"\n{table.title} ({args.dataset})\n\n{render(cells, args.format)}")
    if notes:
        print("", *notes, sep="\n")


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    if args.list:
        for name, table in TABLES.items():
            labels = f", {table.labelnum} labels" if table.labelnum else ""
            print(f"{name:15} {table.title} ({table.dataset}{labels})")
        return
    table = TABLES[args.table]
    rows = plan(table, args)
    if not args.fill:
        run_commands(rows, args.run)
    if args.fill or args.run:
        print_table(table, rows, args)


if __name__ == "__main__":
    command.run(main)
