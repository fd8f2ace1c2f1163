"""The command line of the test scripts.

    args = options.parse(__doc__, __file__, argv)

A script tests the data sets whose classes name it (`dataloaders.volumes.Volumes.tested_by`). What
an option is where it is not given stands in the class too: how many labels, which stride, whether
the largest component is kept, which metrics are shown.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from dataloaders import DATASETS, dataset_class, evaluation_script
from utils import command
from utils.evaluation.scoring import EMPTY
from utils.figures import FORMATS
from utils.metrics import METRICS
from utils.trained import checkpoint_name

LISTS = {
    "test": "the test list",
    "val": "the validation list",
    "train": "the run's unlabelled training cases",
}
NAMING = ("method", "labelnum", "seed", "dataset", "runs")  # they name a run where --run does not


def datasets_of(script: str | Path) -> tuple[str, ...]:
    """The data sets that a test script tests, the one that it is named after first."""
    name = Path(script).name
    tested = [dataset for dataset in DATASETS if evaluation_script(dataset) == name]
    return tuple(sorted(tested, key=lambda dataset: f"test_{dataset}.py" != name))


def parse(
    doc: str,
    script: str | Path,
    argv: Sequence[str] | None = None,
    *,
    datasets: Sequence[str] = (),
    splits: Sequence[str] = ("test", "val"),
    scores: bool = True,
) -> argparse.Namespace:
    """The options of a test script, checked as far as that needs neither run nor data.

    Args:
        doc: the script's docstring.
        script: its `__file__`.
        argv: the command line; None: that of the process.
        datasets: names of those that it tests, the default first; those that name it by default.
        splits: lists that may be chosen, the default first; only those that one of the data sets
            has are offered.
        scores: False leaves out the options of scoring, drawing and writing.
    """
    datasets = datasets or datasets_of(script)
    classes = [dataset_class(name) for name in datasets]
    offered = [split for split in splits if any(split in data.splits for data in classes)]
    parser = command.Parser(doc, script)
    _add_run(parser, datasets)
    group = parser.add_argument_group("test")
    _add_data(group, offered, windows=any(data.stride for data in classes))
    if scores:
        _add_scores(group)
    _add_device(group)
    if len(offered) == 1:
        parser.set_defaults(split=offered[0])
    args = parser.parse_args(argv)
    if scores and args.metrics:
        args.metrics = list(dict.fromkeys(args.metrics))
    return args


def _add_run(parser: argparse.ArgumentParser, datasets: Sequence[str]) -> None:
    group = parser.add_argument_group("run")
    group.add_argument("--run", help="its folder; without it the next five name it")
    group.add_argument("--method", default="coranet", help="train_<method>.py")
    group.add_argument(
        "--labelnum",
        type=command.positive_int,
        help="number of labels that it was trained with (default: the data set's)",
    )
    group.add_argument("--seed", type=command.non_negative_int, default=1337, help="its seed")
    group.add_argument(
        "--dataset", choices=datasets, default=datasets[0], help="data set that it was trained on"
    )
    group.add_argument("--runs", default="runs", help="folder of all runs")
    group.add_argument(
        "--checkpoint",
        type=checkpoint_name,
        default="last",
        help="last, best, or a kept step's number",
    )


def _add_data(group: argparse._ArgumentGroup, splits: Sequence[str], windows: bool) -> None:
    group.add_argument(
        "--root", help="folder of the data (default: the one that the run was trained on)"
    )
    if len(splits) > 1:
        lists = "; ".join(f"{split}: {LISTS[split]}" for split in splits)
        group.add_argument("--split", choices=splits, default=splits[0], help=lists)
    group.add_argument(
        "--cases", type=command.positive_int, help="test only so many cases, the first of the list"
    )
    if windows:
        group.add_argument(
            "--stride",
            type=command.positive_int,
            nargs=3,
            metavar=("X", "Y", "Z"),
            help="of the windows (default: the data set's)",
        )
    group.add_argument(
        "--network", help="one of the checkpoint's networks (default: those that the paper tests)"
    )


def _add_scores(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--nms",
        type=int,
        choices=(0, 1),
        help="1: keep only the largest component of each class, slice by slice where slices are "
        "scored one by one (default: the data set's)",
    )
    group.add_argument(
        "--empty",
        choices=tuple(EMPTY),
        default="zero",
        help="how empty masks score; zero: as in the papers",
    )
    group.add_argument(
        "--metrics",
        nargs="+",
        choices=METRICS,
        metavar="METRIC",
        help=f"metrics to show, of {', '.join(METRICS)} (default: the data set's); the CSV has all",
    )
    group.add_argument("--figures", type=int, choices=(0, 1), default=1, help="1: draw figures")
    group.add_argument(
        "--format", nargs="+", choices=FORMATS, default=["png"], help="of the figures"
    )
    group.add_argument(
        "--nifti", type=int, choices=(0, 1), default=1, help="1: write labels and predictions"
    )


def _add_device(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--batch",
        type=command.positive_int,
        help="windows or slices at once (default: GPU 4 or 16, CPU 1 or 4); it changes memory, not "
        "numbers",
    )
    group.add_argument(
        "--gpu", type=command.gpu, default=0, help="number of the GPU, or -1 for the CPU"
    )
    group.add_argument(
        "--precision",
        choices=("auto", "fp32", "bf16"),
        default="auto",
        help="auto: bf16 where the device is fast with it",
    )
