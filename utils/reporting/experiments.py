"""Tables of runs: their rows, and the commands that train and test each row.

The script of a row lists the options that it would train with (`scripts.options_of`). So a row that
comes to the defaults shares the default's run, a flag that does not exist stops everything before
it begins, and a result counts for a row only where the run was trained with exactly these options
and to its end.
"""

import difflib
import json
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dataloaders import dataset_class, evaluation_script
from utils.errors import UserError
from utils.reporting.published import Published
from utils.reporting.scripts import CODE, flags_of_test, options_of, pairs, training_script
from utils.training import options


@dataclass(frozen=True)
class Point:
    """The place of a row in the figure of a sweep.

    Attributes:
        axis: the quantity that is varied.
        value: its value, a number or a word.
        line: name of the line that joins the rows of one loss or method.
    """

    axis: str
    value: float | str
    line: str


@dataclass(frozen=True)
class Row:
    """A row of a table.

    Attributes:
        label: as in the paper.
        method: of `train_<method>.py`, which need not exist yet; None where a row cannot be run.
        flags: of the training script, added to those for the data set, labels, seed and places.
        variant: ends the run's name, unless the flags come to the defaults.
        test: flags of the test script, added to `TEST_FLAGS` of the training script.
        labelnum: where the rows of a table differ in it.
        published: the paper's numbers, one entry for the mean over the classes or for each class;
            empty where the paper prints none.
        point: for a row of a sweep.
        gain_over: label of the row that this row's gain in Dice is over.
    """

    label: str
    method: str | None = None
    flags: str = ""
    variant: str = ""
    test: str = ""
    labelnum: int | None = None
    published: tuple[Published, ...] = ()
    point: Point | None = None
    gain_over: str = ""

    @property
    def script(self) -> Path | None:
        """The script that trains the row; None where there is none yet."""
        if self.method is None:
            return None
        path = training_script(self.method)
        return path if path.is_file() else None


@dataclass(frozen=True)
class Table:
    """A table or figure of a paper.

    Attributes:
        title: its subject.
        rows: makes the rows of a data set and a number of labels, which is None where each row has
            its own.
        parts: the paper's data sets, the default first, and the number of labels in each; None
            where each row has its own.
        notes: for the reader, printed below the table.
        metrics: those of the figure; empty for those that papers report on the data set.
        over_steps: the figure shows the tests of the kept steps, a line a row.
    """

    title: str
    rows: Callable[[str, int | None], list[Row]]
    parts: Mapping[str, int | None]
    notes: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ()
    over_steps: bool = False

    @property
    def dataset(self) -> str:
        """The data set that is taken by default."""
        return next(iter(self.parts))

    @property
    def own_labels(self) -> bool:
        """Whether each row has its own number of labels."""
        return self.parts[self.dataset] is None

    def part(self, dataset: str) -> list[Row]:
        """The rows on one of the paper's data sets, with its number of labels."""
        return self.rows(dataset, self.parts[dataset])


@dataclass(frozen=True)
class Job:
    """A row with one seed.

    Attributes:
        train, test: its commands.
        folder: of the run.
        summary: file of its test's result.
        nms: the component filter that the result must be with, 0 or 1.
        options: the options that it is trained with.
        default: whether the method is trained with these options by default.
    """

    train: list[str]
    test: list[str]
    folder: Path
    summary: Path
    nms: int
    options: dict
    default: bool

    def result(self) -> tuple[dict | None, str | None]:
        """The summary of the finished run, or None and the reason; both None where it was never
        tested.
        """
        if not self.summary.is_file():
            return None, None
        try:
            summary = json.loads(self.summary.read_text(encoding="utf-8"))
            trained = summary["trained"]
            step = summary["step"]
            last = summary["last_step"]
            nms = summary["test"]["nms"]
            key = options.other_option(trained, self.options)
        except (OSError, ValueError, LookupError, TypeError):
            return None, f"{self.summary}: damaged; delete it and test again"
        if nms != self.nms:
            return None, None
        if step < last:
            return None, f"{self.folder}: tested at step {step} of {last}"
        if key:
            other = f"trained with {key} {trained[key]}, not {self.options[key]}"
            return None, f"{self.folder}: {other}"
        return summary, None


def make_job(
    row: Row,
    dataset: str,
    labelnum: int,
    seed: int,
    runs: str | Path = "runs",
    places: Mapping[str, str] | None = None,
    extra: Sequence[str] = (),
) -> Job:
    """The job of a row with a seed.

    Args:
        runs: folder of all runs.
        places: `{"--gpu": …, "--root": …}`, those that were given.
        extra: further arguments of the training command, of all rows.

    Raises:
        UserError, SystemExit: as `scripts.options_of`.
    """
    places = places or {}
    train = training_script(row.method)
    base = ["--dataset", dataset, "--labelnum", str(labelnum), "--seed", str(seed)]
    flags = [*base, *shlex.split(row.flags), *extra]
    asked = options_of(train, *flags)
    default = asked == options_of(train, *base, *extra)
    name = f"{row.method}_{labelnum}"
    if not default:
        name += f"_{row.variant}"
        flags += ["--name", name]
    if str(runs) != "runs":
        flags += ["--runs", str(runs)]
    folder = Path(runs) / dataset / name / f"seed{seed}"

    usual_nms = int(dataset_class(dataset).keep_largest)
    tested = pairs(row.test)
    for flag, value in flags_of_test(row.method, dataset).items():
        tested.setdefault(flag, value)
    nms = int(tested.get("--nms", usual_nms))
    if nms == usual_nms:
        tested.pop("--nms", None)
    tag = "last"
    tag += f"_{tested['--network']}" if "--network" in tested else ""
    tag += f"_nms{nms}" if nms != usual_nms else ""
    test = {"--run": str(folder), **tested, **places}
    return Job(
        train=[str(train), *flags, *_words(places), "--resume"],
        test=[str(CODE / evaluation_script(dataset)), *_words(test)],
        folder=folder,
        summary=folder / "test" / tag / "summary.json",
        nms=nms,
        options=asked,
        default=default,
    )


def _words(flags: Mapping[str, str]) -> list[str]:
    return [word for pair in flags.items() for word in pair]


def commands(
    rows: Iterable[tuple[Row, Sequence[Job]]],
) -> Iterator[tuple[Row, Job, list[str]]]:
    """`(row, job, command)` of all jobs, each command once: two rows may test one run."""
    seen = set()
    for row, jobs in rows:
        for job in jobs:
            for command in (job.train, job.test):
                if tuple(command) not in seen:
                    seen.add(tuple(command))
                    yield row, job, command


def find_table(tables: Mapping[str, Table], name: str) -> Table:
    """The table of a name.

    Raises:
        UserError: there is none; names those that come near.
    """
    if name in tables:
        return tables[name]
    near = difflib.get_close_matches(name, tables, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else "--list shows all"
    raise UserError(f"{name}: no such table; {hint}")
