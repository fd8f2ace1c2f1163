"""A sweep over methods, numbers of labels and seeds: a file of commands, one run a line, which
trains and then tests.

    python code/sweep.py --methods dmd cml supervised --labelnum 8 16 --seeds 1337 1338 1339 --output sweep.txt
    python code/sweep.py --methods dmd --vary lambda_distill=1,2,4 --vary distill=dice,kl --output sweep.txt
    python code/sweep.py --methods cml dtml --dataset LA ACDC --name half -- --downsample 2 --max_iterations 2000

The file runs in any of these ways, two at a time, each with a GPU of its own:

    xargs -d '\\n' -n 1 -P 2 --process-slot-var GPU sh -c 'CUDA_VISIBLE_DEVICES=$GPU sh -c "$0"' < sweep.txt
    parallel -j 2 'CUDA_VISIBLE_DEVICES=$(({%} - 1)) sh -c {}' < sweep.txt
    sbatch --array=1-$(wc -l < sweep.txt) --gpus=1 --wrap 'eval "$(sed -n "${SLURM_ARRAY_TASK_ID}p"
    sweep.txt)"'

A line that was stopped can simply be run again: its training goes on where it was. --pending leaves
out what is trained and tested. The run of a line is <method>_<labelnum>, with --name and what is
varied behind unless that comes to the method's defaults. Before anything is written each training
command is given to its script, as far as its run.
"""

import argparse
import itertools
import json
import re
import shlex
import sys
from pathlib import Path

import _root  # noqa: F401
from dataloaders import DATASETS, dataset_class, default_root, open_dataset
from utils import command
from utils.errors import UserError
from utils.evaluation.test_script import GUESTS
from utils.files import write_atomically
from utils.reporting import experiments
from utils.reporting.experiments import Row

CODE = Path(__file__).resolve().parent
METHODS = sorted(path.stem.removeprefix("train_") for path in CODE.glob("train_*.py"))
OWN = (
    "--dataset",
    "--labelnum",
    "--seed",
    "--gpu",
    "--root",
    "--runs",
    "--name",
    "--resume",
)  # not for `--`, --vary
TESTS = {"dmd": "--nms 0"}  # where a method's paper tests otherwise than the data set's script


def variation(text):
    """The argparse type of --vary: `option=value,value` to the option and its values, each a list
    of words.
    """
    key, equals, values = text.partition("=")
    if not equals or not re.fullmatch(r"[A-Za-z]\w*", key):
        raise argparse.ArgumentTypeError(f"{text} is not option=value,value")
    return f"--{key}", [shlex.split(value) for value in values.split(",")]


def arguments():
    words = sys.argv[1:]
    cut = words.index("--") if "--" in words else len(words)
    parser = command.Parser(
        __doc__, __file__, usage="%(prog)s --methods METHOD … [option …] [-- training option …]"
    )
    several = {"nargs": "+", "metavar": "N"}
    what = parser.add_argument_group("what is trained")
    what.add_argument(
        "--methods", nargs="+", choices=METHODS, required=True, help="train_<method>.py"
    )
    what.add_argument(
        "--dataset", nargs="+", choices=sorted(DATASETS), default=["LA"], help="data sets"
    )
    what.add_argument(
        "--labelnum", type=command.positive_int, **several, help="labels (default: the data set's)"
    )
    what.add_argument(
        "--seeds", type=command.non_negative_int, **several, default=[1337], help="one run each"
    )
    what.add_argument(
        "--vary",
        type=variation,
        action="append",
        default=[],
        metavar="OPTION=VALUE,VALUE",
        help="a training option and its values; with several of these, every combination",
    )
    what.add_argument(
        "--name", help="ends the names of runs whose options after -- are not the defaults"
    )
    how = parser.add_argument_group("how")
    how.add_argument(
        "--gpu", nargs="+", help="as of the scripts; with several the lines take turns"
    )
    how.add_argument("--root", help="folder of the data (default: data/<dataset>)")
    how.add_argument("--runs", default="runs", help="folder of all runs")
    how.add_argument(
        "--pending", action="store_true", help="leave out lines whose run is complete and tested"
    )
    how.add_argument("--output", type=Path, help="file for the commands (default: the terminal)")
    args = parser.parse_args(words[:cut])
    args.extra = words[cut + 1 :]
    taken = [
        flag for flag in (*args.extra, *(key for key, _ in args.vary)) if flag.split("=")[0] in OWN
    ]
    if taken:
        raise UserError(
            f"{taken[0]}: every line has its own; see the options of this script itself"
        )
    if args.root and len(args.dataset) > 1:
        raise UserError("--root: one folder is one data set; write a sweep for each")
    varied = [key for key, _ in args.vary]
    twice = [key for key in varied if varied.count(key) > 1]
    if twice:
        raise UserError(f"--vary {twice[0][2:]}: given twice; write its values with commas between")
    return args


def variants(args):
    """`(flags, name)` of each combination of what varies."""
    keys = [key for key, _ in args.vary]
    for values in itertools.product(*(values for _, values in args.vary)):
        parts = [f"{key[2:]}{'-'.join(value)}" for key, value in zip(keys, values, strict=True)]
        flags = [word for key, value in zip(keys, values, strict=True) for word in (key, *value)]
        name = "_".join(
            [args.name] * bool(args.name) + [re.sub(r"[^\w.+-]+", "-", part) for part in parts]
        )
        yield flags, name


def make_job(args, method, dataset, labelnum, seed, flags, name, gpu):
    """The job of one line; options after -- are part of its name where there is a --name for
    them.
    """
    train, test = CODE / f"train_{method}.py", CODE / f"test_{GUESTS.get(dataset, dataset)}.py"
    places = {
        flag: value for flag, value in (("--gpu", gpu), ("--root", args.root)) if value is not None
    }
    named, extra = (flags + args.extra, []) if args.name else (flags, args.extra)
    row = Row(method, method, shlex.join(named), name, TESTS.get(method, ""))
    return experiments.make_job(row, train, test, dataset, labelnum, seed, args.runs, places, extra)


def check_run(job):
    """Insist that a run that is there already can go on with these options."""
    try:
        before = json.loads((job.folder / "args.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return
    except (OSError, ValueError):
        raise UserError(
            f"{job.folder / 'args.json'}: damaged, so this run cannot go on; --name another"
        ) from None
    key = experiments.other_option(before, job.options)
    if key:
        raise UserError(
            f"{job.folder} holds a run with {key} {before[key]}, not {job.options[key]}: "
            "--name sets the runs of this sweep beside it"
        )


def check_labels(dataset, jobs):
    """Insist that a data set has the labels that its runs want, and others for their unlabelled
    streams.
    """
    for job in jobs:
        labelnum = job.options["labelnum"]
        if len(dataset.labeled(labelnum)) == len(dataset.names) and job.options.get("unlabeled_bs"):
            raise UserError(
                f"--labelnum {labelnum} leaves nothing unlabelled of {dataset.name} for "
                f"{job.train[0]}"
            )


def plan(args):
    """The jobs in the order of their lines: a seed of everything, then the next, so that tables
    fill evenly.

    Raises:
        UserError: two of them come to one run or to one folder, or a run that is there has other
            options.
    """
    jobs, folders, trained = [], {}, {}
    methods, datasets, seeds = (
        list(dict.fromkeys(given)) for given in (args.methods, args.dataset, args.seeds)
    )
    for seed, dataset in itertools.product(seeds, datasets):
        usual = dataset_class(dataset, args.root or default_root(dataset)).labelnum
        labels = dict.fromkeys(args.labelnum or [usual])
        for labelnum, method, (flags, name) in itertools.product(labels, methods, variants(args)):
            gpu = args.gpu and args.gpu[len(jobs) % len(args.gpu)]
            job = make_job(args, method, dataset, labelnum, seed, flags, name, gpu)
            own = job.options.keys() - experiments.NOT_COMPARED | {"precision"}
            moves = {key: job.options[key] for key in own}
            same = trained.setdefault((method, json.dumps(moves, sort_keys=True)), flags)
            if same is not flags:
                raise UserError(
                    f"{method}: {shlex.join(same)} and {shlex.join(flags)} are one and the same run"
                )
            other = folders.setdefault(job.folder, flags)
            if other is not flags:
                raise UserError(
                    f"{shlex.join(other)} and {shlex.join(flags)}: both are called "
                    f"{job.folder.parent.name}"
                )
            check_run(job)
            if not (args.pending and job.result()[0]):
                jobs.append(job)
    return jobs


def main():
    args = arguments()
    jobs = plan(args)
    for name in dict.fromkeys(job.options["dataset"] for job in jobs):
        if Path(
            root := args.root or default_root(name)
        ).is_dir():  # a sweep may be written where the data are not
            check_labels(
                open_dataset(name, root), [job for job in jobs if job.options["dataset"] == name]
            )
    text = "".join(
        f"{experiments.shell(job.train)} && {experiments.shell(job.test)}\n" for job in jobs
    )
    if args.output:
        write_atomically(args.output, lambda path: path.write_text(text, encoding="utf-8"))
        print(f"{args.output}: {len(jobs)} commands")
    else:
        print(text, end="")


if __name__ == "__main__":
    command.run(main)
