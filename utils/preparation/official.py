"""What the scripts for official downloads share: options, and every case prepared, several at a time."""

import argparse
import os
import signal
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from tqdm import tqdm

from utils import command
from utils.preparation.folder import (
    begin,
    complete,
    write_list,
)
from utils.preparation.report import Report, Row, print_problems


def add_options(
    parser: argparse.ArgumentParser,
    root: str,
    lists: str,
    workers: str,
    seed: int | None = 1337,
    at_once: int = 4,
) -> None:
    """The options that all scripts for an official download share.

    Args:
        parser: of the script.
        root: default of ``--root``.
        lists, workers: help of the options of these names.
        seed: default; None where the lists do not depend on one unasked.
        at_once: workers at most, by default.
    """
    parser.add_argument("--root", type=Path, default=root, help="folder to write")
    parser.add_argument("--lists", type=Path, metavar="FOLDER", help=lists)
    drawn = "draw the lists from it" if seed is None else "of the lists, without --lists"
    parser.add_argument("--seed", type=command.non_negative_int, default=seed, help=drawn)
    count = min(at_once, os.cpu_count() or 1)
    parser.add_argument("--workers", type=command.positive_int, default=count, help=workers)
    parser.add_argument(
        "--overwrite", action="store_true", help="replace what was prepared in --root before"
    )


def stamp(files: Iterable[Path]) -> list[int]:
    """What tells a changed source: the number of its files, in folders too, their size, and the
    latest time.
    """
    paths = [
        path for file in files if file for path in ([file] if file.is_file() else file.rglob("*"))
    ]
    stats = [path.stat() for path in paths if path.is_file()]
    return [
        len(stats),
        sum(s.st_size for s in stats),
        max((s.st_mtime_ns for s in stats), default=0),
    ]


def prepare_all(
    prepare: Callable[[tuple], Row],
    jobs: Sequence[tuple],
    paths: Mapping[str, Sequence[str]],
    lists: Mapping[str, Mapping[str, str]],
    root: Path,
    recipe: Mapping,
    class_names: Sequence[str],
    workers: int = 1,
    overwrite: bool = False,
) -> list[str]:
    """Fill a folder case by case, several at a time, and end in the report.

    Args:
        prepare: a job to the row of its case, which it has written; a function of a module.
        jobs: of all cases. Of a scan in two lists the one whose job comes first stays: begin with
            the test list.
        paths: case to the files that it is written to, relative to ``root``.
        lists: file of a list to its lines, each with the case that it belongs to; those of cases
            left out are dropped.
        root, recipe, overwrite: as :func:`begin`.
        class_names: of the foreground classes.
        workers: cases at a time.

    Returns:
        What was left out, a line each; of a folder that was whole before, what was left out then.
    """
    files = [*(file for written in paths.values() for file in written), *lists]
    whole = begin(root, recipe, files, overwrite)
    if whole:
        print(f"{root}: prepared already, nothing to do")
        print_problems(whole["problems"])
        return whole["problems"]
    report = Report(class_names)
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        before = signal.signal(
            signal.SIGINT, signal.SIG_IGN
        )  # the processes inherit it: Ctrl-C is for this one alone
        rows = map(prepare, jobs) if workers == 1 else pool.map(prepare, jobs)
        signal.signal(signal.SIGINT, before)
        for row in tqdm(rows, total=len(jobs), unit="case", disable=None):
            report.rows[row.case] = row
            with report.case(row.case):
                if row.problem is None:
                    report.check_new(row)
    good = set(report.good)
    for file in (file for case in paths.keys() - good for file in paths[case]):
        (root / file).unlink(missing_ok=True)
    for file, lines in lists.items():
        write_list(root / file, [line for line, case in lines.items() if case in good])
    problems = report.finish(root)
    complete(root, problems)
    return problems
