"""Tables of runs: the commands that make each row, and what the runs' test results say beside
published numbers.

What a row would train with is asked of its script (`options_of`), never guessed. So a row that
comes to the defaults shares the default's run, a flag that does not exist stops everything before
it begins, and a result counts for a row only where the run was trained with exactly these options
and to its end.
"""

import difflib
import functools
import json
import os
import runpy
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from utils.errors import UserError
from utils.metrics import NAMES, OVERLAPS
from utils.training import options, run

NOT_COMPARED = options.MAY_DIFFER | {
    "name",
    "precision",
    "precision_asked",
}  # what the device made of what was asked


@dataclass(frozen=True)
class Row:
    """A line of a table.

    Attributes:
        label: as in the paper.
        method: of `train_<method>.py`; None for one that is not here: its published numbers alone.
        flags: of the training script, beside the data set, the labels, the seed and places.
        variant: what the run's name ends in, unless the flags come to the defaults.
        test: flags of the test script.
        labelnum: where the rows of a table differ in it.
        published: what the paper prints under the table's metrics, None where it gives none.
    """

    label: str
    method: str | None = None
    flags: str = ""
    variant: str = ""
    test: str = ""
    labelnum: int | None = None
    published: tuple[float | None, ...] | None = None


@dataclass(frozen=True)
class Table:
    """A table or figure of a paper.

    Attributes:
        title: what it shows.
        rows: of a data set and a number of labels.
        dataset, labelnum: the paper's; `labelnum` None where each row has its own.
        note: for the reader, below it.
    """

    title: str
    rows: Callable[[str, int], list[Row]]
    dataset: str = "LA"
    labelnum: int | None = 16
    note: str = ""


@dataclass(frozen=True)
class Job:
    """A row with one seed.

    Attributes:
        train, test: its commands.
        folder: of the run.
        results: where its result may lie: which component filter a test script's folders name
            depends on its default.
        nms: the filter that the result must be with, as text; None for the test script's default.
        options: what it is trained with.
        default: whether that is what the method is trained with by default.
    """

    train: list[str]
    test: list[str]
    folder: Path
    results: list[Path]
    nms: str | None
    options: dict
    default: bool

    def result(self):
        """The summary of the finished run, or None, and why there is none (None where it was never
        tested).
        """
        for path in filter(Path.is_file, self.results):
            try:
                summary = json.loads(path.read_text(encoding="utf-8"))
                trained, step, last = summary["trained"], summary["step"], summary["last_step"]
                nms = str(summary["test"]["nms"])
            except (OSError, ValueError, LookupError, TypeError):
                return None, f"{path}: damaged; delete it and test again"
            if nms != (self.nms or nms):
                continue
            if step < last:
                return None, f"{self.folder}: tested at step {step} of {last}"
            key = other_option(trained, self.options)
            if key:
                return (
                    None,
                    f"{self.folder}: trained with {key} {trained[key]}, not {self.options[key]}",
                )
            return summary, None
        return None, None


def other_option(trained, options):
    """The first option, by name, that a run was trained with otherwise than a script would with
    `options`, or None.
    """
    key = options.first_difference(trained, options, NOT_COMPARED)
    if key:
        return key
    asked, made = trained.get("precision_asked", options["precision"]), trained.get("precision")
    return None if options["precision"] in (asked, made) else "precision"


class _Reached(BaseException):
    """A script is about to make its `Run`: carries the options. No Exception, so that no script
    handles it.
    """


@functools.cache
def options_of(script, *arguments):
    """What a training script would train with: its own `main`, as far as its `Run`.

    Raises:
        SystemExit: the script's parser or its checks refuse the arguments; it has said why, in one
            line.
    """

    def reached(args, _):
        raise _Reached(vars(args))

    before = sys.argv, run.Run
    sys.argv, run.Run = [str(script), *arguments], reached
    try:
        runpy.run_path(str(script), run_name="__main__")
    except _Reached as found:
        known = {key: value for key, value in found.args[0].items() if key != "sources"}
        return json.loads(json.dumps(known))  # as `args.json` holds them
    finally:
        sys.argv, run.Run = before
    raise AssertionError(f"{script} makes no Run")


def make_job(row, train, test, dataset, labelnum, seed, runs, places, extra):
    """The job of a row with a seed.

    Args:
        train, test: paths of the scripts.
        runs: folder of all runs.
        places: `{"--gpu": …, "--root": …}`, those that were given.
        extra: further arguments of the training command.
    """
    base = ["--dataset", dataset, "--labelnum", str(labelnum), "--seed", str(seed)]
    flags = [*base, *shlex.split(row.flags), *extra]
    options = options_of(train, *flags)
    default = options == options_of(train, *base, *extra)
    name = f"{row.method}_{labelnum}" + ("" if default else f"_{row.variant}")
    folder = Path(runs) / dataset / name / f"seed{seed}"
    flags += [] if default else ["--name", name]
    flags += ["--runs", str(runs)] if str(runs) != "runs" else []
    test_flags = shlex.split(row.test)
    given = dict(zip(test_flags[::2], test_flags[1::2], strict=True))
    tag = "last" + (f"_{given['--network']}" if "--network" in given else "")
    tags = [tag] + ([f"{tag}_nms{given['--nms']}"] if "--nms" in given else [])
    return Job(
        train=[
            str(train),
            *flags,
            *(part for place in places.items() for part in place),
            "--resume",
        ],
        test=[
            *(str(test), "--run", str(folder), *test_flags),
            *(
                part for flag, value in places.items() for part in (flag, value.split(",")[0])
            ),  # tests use one GPU
        ],
        folder=folder,
        results=[folder / "test" / tag / "summary.json" for tag in tags],
        nms=given.get("--nms"),
        options=options,
        default=default,
    )


def commands(rows):
    """`(row, job, command)` for the commands of all jobs, each once: two rows may be two tests of
    one run.
    """
    seen = set()
    for row, jobs in rows:
        for job in jobs:
            for command in (job.train, job.test):
                if tuple(command) not in seen:
                    seen.add(tuple(command))
                    yield row, job, command


def shell(command):
    """A command as one types it, its script as seen from here."""
    return shlex.join(["python", os.path.relpath(command[0]), *command[1:]])


def call(command):
    """Run a Python script to its end and return its exit status, negative for a signal as in
    `subprocess`.

    It has a session of its own, and gets each signal once, from here: a training script saves at
    the first and leaves at once at the second.
    """
    process, early = None, []  # signals that come while the script is being started

    def pass_on(number, _):
        if process is None:
            early.append(number)
        else:
            process.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in command.SIGNALS}
    try:
        process = subprocess.Popen([sys.executable, *command], start_new_session=True)
        for number in early:
            process.send_signal(number)
        return process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def fill(rows, metrics):
    """The cells of a table, and what must be said below it.

    Args:
        rows: `(row, jobs)` of each, one job a seed.
        metrics: names of the columns, as in `summary.json`.

    Returns:
        The header and the rows, lists of text; notes, lines of text.
    """
    cells = [
        [
            "",
            "labels",
            *(NAMES[m] + " %" * (m in OVERLAPS) for m in metrics),
            "published",
            "seeds",
            "run",
        ]
    ]
    notes = []
    for row, jobs in rows:
        found = []
        for job in jobs:
            summary, reason = job.result()
            notes += [reason] if reason else []
            if summary:
                found.append(summary["mean"])
                empty = summary["empty_predictions"]
                notes += (
                    [f"{job.folder}: {empty} empty predictions: {summary['empty']}"]
                    if empty
                    else []
                )
        published = ["-" if value is None else f"{value:.2f}" for value in row.published or ()]
        last = [f"{len(found)} of {len(jobs)}", jobs[0].folder.parent.name] if jobs else ["-", "-"]
        cells.append(
            [
                row.label,
                str(jobs[0].options["labelnum"]) if jobs else "-",
                *(
                    _cell([mean[m]["mean"] for mean in found], 100 if m in OVERLAPS else 1)
                    for m in metrics
                ),
                " / ".join(published) or "-",
                *last,
            ]
        )
    return cells, list(dict.fromkeys(notes))


def _cell(values, factor):
    """Mean over seeds, with its sample sd from two on; `-` for none (a JSON null is a distance that
    nothing had).
    """
    values = [factor * value for value in values if value is not None]
    if not values:
        return "-"
    return f"{np.mean(values):.2f}" + (
        f" ± {np.std(values, ddof=1):.2f}" if len(values) > 1 else ""
    )


def find_table(tables, name):
    """The table of a name.

    Raises:
        UserError: there is none; names those that come near.
    """
    if name in tables:
        return tables[name]
    near = difflib.get_close_matches(name, tables, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else "--list shows all"
    raise UserError(f"{name}: no such table; {hint}")
