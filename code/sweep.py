"""A sweep over methods, numbers of labels and seeds: a file of commands, one run a line, which
trains and then tests.

    python code/sweep.py --methods dmd cml --labelnum 8 16 --seeds 1337 1338 --output sweep.txt
    python code/sweep.py --methods dmd --vary lambda_distill=1,2,4 --vary distill=dice,kl
    python code/sweep.py --methods cml dtml --dataset LA ACDC --name half -- --downsample 2

The file runs in any of these ways, two at a time, each with a GPU of its own:

    xargs -d '\\n' -n 1 -P 2 --process-slot-var GPU \\
        sh -c 'CUDA_VISIBLE_DEVICES=$GPU sh -c "$0"' < sweep.txt
    parallel -j 2 'CUDA_VISIBLE_DEVICES=$(({%} - 1)) sh -c {}' < sweep.txt
    sbatch --array=1-$(wc -l < sweep.txt) --gpus=1 \\
        --wrap 'eval "$(sed -n "${SLURM_ARRAY_TASK_ID}p" sweep.txt)"'

A line that was stopped can be run again: its training resumes where it stopped. --pending leaves
out the lines that are trained and tested. The run of a line is called <method>_<labelnum>; --name
and the varied options are appended unless they come to the method's defaults. Each training script
checks its command before anything is written.
"""

import argparse
import itertools
import json
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import _root  # noqa: F401
from dataloaders import DATASETS, dataset_class, default_root, open_dataset
from dataloaders.volumes import Volumes
from utils import command
from utils.errors import UserError
from utils.files import write_atomically
from utils.reporting import experiments, scripts
from utils.reporting.experiments import Job, Row
from utils.training import options

METHODS = sorted(path.stem.removeprefix("train_") for path in scripts.CODE.glob("train_*.py"))
# set for every line, so not for `--` and --vary
OWN = ("--dataset", "--labelnum", "--seed", "--gpu", "--root", "--runs", "--name", "--resume")


def variation(text: str) -> tuple[str, list[list[str]]]:
    """The argparse type of --vary: `option=value,value` to the option and its values, each a list
    of words.
    """
    key, equals, values = text.partition("=")
    if not equals or not re.fullmatch(r"[A-Za-z]\w*", key):
        raise argparse.ArgumentTypeError(f"{text} is not option=value,value")
    return f"--{key}", [shlex.split(value) for value in values.split(",")]


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    words = list(sys.argv[1:] if argv is None else argv)
    cut = words.index("--") if "--" in words else len(words)
    args = _parser().parse_args(words[:cut])
    args.extra = words[cut + 1 :]
    varied = [key for key, _ in args.vary]
    for flag in (*args.extra, *varied):
        if flag.split("=")[0] in OWN:
            raise UserError(f"{flag}: every line has its own; use the option of sweep.py itself")
    if args.root and len(args.dataset) > 1:
        raise UserError("--root: one folder is one data set; write a sweep for each")
    for key in varied:
        if varied.count(key) > 1:
            raise UserError(f"--vary {key[2:]}: given twice; write its values with commas between")
    return args


def _parser() -> command.Parser:
    usage = "%(prog)s --methods METHOD … [option …] [-- training option …]"
    parser = command.Parser(__doc__, __file__, usage=usage)
    runs = parser.add_argument_group("runs to train")
    runs.add_argument(
        "--methods",
        nargs="+",
        choices=METHODS,
        required=True,
        help="methods, as in train_<method>.py",
    )
    runs.add_argument(
        "--dataset",
        nargs="+",
        choices=sorted(DATASETS),
        default=["LA"],
        help="data sets to train on",
    )
    runs.add_argument(
        "--labelnum",
        type=command.positive_int,
        nargs="+",
        metavar="N",
        help="numbers of labels (default: the data set's)",
    )
    runs.add_argument(
        "--seeds",
        type=command.non_negative_int,
        nargs="+",
        metavar="N",
        default=[1337],
        help="seeds of the runs; take several to see their spread",
    )
    runs.add_argument(
        "--vary",
        type=variation,
        action="append",
        default=[],
        metavar="OPTION=VALUE,VALUE",
        help="a training option and its values; give several for every combination",
    )
    runs.add_argument(
        "--name", help="appended to the names of runs that the options after -- change"
    )
    how = parser.add_argument_group("places and devices")
    how.add_argument(
        "--gpu",
        type=command.gpu,
        nargs="+",
        help="number of the GPU, passed on to the scripts; with several the lines take turns",
    )
    how.add_argument("--root", help="folder of the data (default: data/<dataset>)")
    how.add_argument("--runs", default="runs", help="folder of all runs")
    how.add_argument(
        "--pending", action="store_true", help="leave out runs that are complete and tested"
    )
    how.add_argument("--output", type=Path, help="file for the commands (default: the terminal)")
    return parser


def variants(args: argparse.Namespace) -> Iterator[tuple[list[str], str]]:
    """`(flags, name)` of each combination of the varied options."""
    keys = [key for key, _ in args.vary]
    choices = [values for _, values in args.vary]
    for values in itertools.product(*choices):
        flags = []
        parts = [args.name] if args.name else []
        for key, value in zip(keys, values, strict=True):
            flags += [key, *value]
            parts.append(re.sub(r"[^\w.+-]+", "-", f"{key[2:]}{'-'.join(value)}"))
        yield flags, "_".join(parts)


def make_job(
    args: argparse.Namespace,
    method: str,
    dataset: str,
    labelnum: int,
    seed: int,
    flags: list[str],
    name: str,
    gpu: int | None,
) -> Job:
    """The job of one line. With --name the options after -- are part of the run's name."""
    given = {"--gpu": gpu, "--root": args.root}
    places = {flag: str(value) for flag, value in given.items() if value is not None}
    extra = args.extra
    if args.name:
        flags = flags + extra
        extra = []
    row = Row(method, method, shlex.join(flags), name)
    return experiments.make_job(row, dataset, labelnum, seed, args.runs, places, extra)


def check_run(job: Job) -> None:
    """Insist that a run that exists already can be resumed with these options."""
    path = job.folder / "args.json"
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
        key = options.other_option(before, job.options)
    except FileNotFoundError:
        return
    except (OSError, ValueError, LookupError):
        raise UserError(
            f"{path}: damaged, so this run cannot be resumed; take another --name"
        ) from None
    if key:
        raise UserError(
            f"{job.folder} holds a run with {key} {before[key]}, not {job.options[key]}: "
            "--name sets the runs of this sweep beside it"
        )


def check_labels(dataset: Volumes, jobs: Sequence[Job]) -> None:
    """Insist that the data set has the labels that its runs want, and unlabelled samples for those
    that need them.
    """
    for job in jobs:
        labelnum = job.options["labelnum"]
        labelled = dataset.labeled(labelnum)
        if len(labelled) == len(dataset.names) and job.options.get("unlabeled_bs"):
            raise UserError(
                f"--labelnum {labelnum} leaves nothing unlabelled of {dataset.name} for "
                f"{job.train[0]}"
            )


def plan(args: argparse.Namespace) -> list[Job]:
    """The jobs in the order of their lines: one seed of everything, then the next, so that tables
    fill evenly.

    Raises:
        UserError: two of them come to one run or to one folder, or a run that exists has other
            options.
    """
    jobs = []
    checks = _Distinct()
    for method, dataset, labelnum, seed, flags, name in _combinations(args):
        gpu = args.gpu[len(jobs) % len(args.gpu)] if args.gpu else None
        job = make_job(args, method, dataset, labelnum, seed, flags, name, gpu)
        checks.add(method, flags, job)
        check_run(job)
        summary, _ = job.result()
        if summary is None or not args.pending:
            jobs.append(job)
    return jobs


def _combinations(args: argparse.Namespace) -> Iterator[tuple]:
    """`(method, data set, labels, seed, flags, name)` of every line, each once."""
    choices = list(variants(args))
    for seed in dict.fromkeys(args.seeds):
        for dataset in dict.fromkeys(args.dataset):
            usual = dataset_class(dataset, args.root or default_root(dataset)).labelnum
            for labelnum in dict.fromkeys(args.labelnum or [usual]):
                for method in dict.fromkeys(args.methods):
                    for flags, name in choices:
                        yield method, dataset, labelnum, seed, flags, name


class _Distinct:
    """Insists that no two jobs are one run or lie in one folder."""

    def __init__(self):
        self._trained: dict[tuple, list[str]] = {}
        self._folders: dict[Path, list[str]] = {}

    def add(self, method: str, flags: list[str], job: Job) -> None:
        moves = {k: v for k, v in job.options.items() if k not in options.MAY_DIFFER | {"name"}}
        key = (method, json.dumps(moves, sort_keys=True))
        same = self._trained.setdefault(key, flags)
        if same is not flags:
            raise UserError(
                f"{method}: {shlex.join(same)} and {shlex.join(flags)} are one and the same run"
            )
        other = self._folders.setdefault(job.folder, flags)
        if other is not flags:
            raise UserError(
                f"{shlex.join(other)} and {shlex.join(flags)}: both are called "
                f"{job.folder.parent.name}"
            )


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    jobs = plan(args)
    for name in dict.fromkeys(job.options["dataset"] for job in jobs):
        root = args.root or default_root(name)
        if Path(root).is_dir():  # a sweep may be written where the data are not
            own = [job for job in jobs if job.options["dataset"] == name]
            check_labels(open_dataset(name, root), own)
    lines = [f"{scripts.shell(job.train)} && {scripts.shell(job.test)}\n" for job in jobs]
    text = "".join(lines)
    if args.output:
        write_atomically(args.output, lambda path: path.write_text(text, encoding="utf-8"))
        print(f"{args.output}: {len(jobs)} commands")
    else:
        print(text, end="")


if __name__ == "__main__":
    command.run(main)
