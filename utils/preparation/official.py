"""Shared by the scripts for official downloads: options, and all cases prepared, several at a
time.
"""

import argparse
import itertools
import os
import signal
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from utils import command, progress
from utils.preparation.folder import begin, complete, write_list
from utils.preparation.report import Report, Row, print_problems


def add_options(
    parser: argparse.ArgumentParser,
    root: str | None,
    lists: str,
    workers: str,
    seed: int | None = 1337,
    at_once: int = 4,
) -> None:
    """The options that all scripts for an official download share.

    Args:
        parser: of the script.
        root: default of `--root`; None where the script chooses it.
        lists, workers: help of the options of these names.
        seed: default; None where the lists are drawn only if a seed is given.
        at_once: workers at most, by default.
    """
    parser.add_argument(
        "--root", type=Path, default=root, help="folder for the data set; it is made"
    )
    parser.add_argument("--lists", type=Path, metavar="FOLDER", help=lists)
    drawn = "seed that draws the lists, where --lists is not given"
    if seed is None:
        drawn += " (default: none are drawn)"
    parser.add_argument("--seed", type=command.non_negative_int, default=seed, help=drawn)
    count = min(at_once, os.cpu_count() or 1)
    parser.add_argument("--workers", type=command.positive_int, default=count, help=workers)
    parser.add_argument(
        "--overwrite", action="store_true", help="replace an earlier preparation in --root"
    )


def stamp(files: Iterable[Path | None]) -> list[int]:
    """Numbers that change with the sources: the number of files, with those in folders, their size,
    and their latest time.
    """
    paths: list[Path] = []
    for file in files:
        if file is not None:
            paths += [file] if file.is_file() else file.rglob("*")
    stats = [path.stat() for path in paths if path.is_file()]
    size = sum(stat.st_size for stat in stats)
    return [len(stats), size, max((stat.st_mtime_ns for stat in stats), default=0)]


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
        prepare: writes the case of a job and returns its row; a function of a module, so that
            processes can find it.
        jobs: of all cases, the test list first: of a scan in two lists, the first job stays.
        paths: case to the files that it is written to, relative to `root`.
        lists: file of a list to its lines, each with the case that it belongs to; lines of cases
            left out are dropped.
        root, recipe, overwrite: as in `folder.begin`.
        class_names: of the foreground classes.
        workers: cases at a time.

    Returns:
        The cases that were left out, a line each; of a folder that was whole before, those that
        were left out then.
    """
    files = [*itertools.chain.from_iterable(paths.values()), *lists]
    whole = begin(root, recipe, files, overwrite)
    if whole:
        print(f"{root}: prepared already, nothing to do")
        print_problems(whole["problems"])
        return whole["problems"]
    report = Report(class_names)
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        # the processes inherit this: only the first one answers Ctrl-C
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        rows = map(prepare, jobs) if workers == 1 else pool.map(prepare, jobs)
        signal.signal(signal.SIGINT, before)
        for row in progress.bar(rows, len(jobs), unit="case", keep=True):
            report.rows[row.case] = row
            with report.case(row.case):
                if row.problem is None:
                    report.check_new(row)
    good = set(report.good)
    for case in paths.keys() - good:
        for file in paths[case]:
            (root / file).unlink(missing_ok=True)
    for file, lines in lists.items():
        write_list(root / file, [line for line, case in lines.items() if case in good])
    problems = report.finish(root)
    complete(root, problems)
    return problems
