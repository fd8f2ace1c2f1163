"""The command line of the test scripts.

    args = options.parse(__doc__, __file__, argv)

A script tests the data sets whose classes name it (`dataloaders.volumes.Volumes.tested_by`). The
classes also hold the defaults of some options: the number of labels, the stride, whether the
largest component is kept, and the metrics that are shown.
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dataloaders import DATASETS, dataset_class, evaluation_script
from utils import command
from utils.evaluation.printing import listed
from utils.evaluation.scoring import EMPTY
from utils.figures import FORMATS
from utils.metrics import METRICS
from utils.trained import checkpoint_name

if TYPE_CHECKING:
    from dataloaders.volumes import Volumes

LISTS = {
    "test": "the test list",
    "val": "the validation list",
    "train": "the run's unlabelled training cases",
}
KEPT = "kept"  # in a list of checkpoints: all steps that the run kept
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
    several: bool = False,
) -> argparse.Namespace:
    """The options of a test script, with all checks that need no run and no data.

    Args:
        doc: the script's docstring.
        script: its `__file__`.
        argv: the command line; None: that of the process.
        datasets: names of the data sets that it tests, the default first; by default those that
            name the script.
        splits: lists that may be chosen, the default first; only those that one of the data sets
            has are offered.
        scores: False leaves out the options of scoring, drawing and writing.
        several: `--checkpoint` takes a list, in which `kept` stands for all steps that were kept.
    """
    datasets = datasets or datasets_of(script)
    classes = [dataset_class(name) for name in datasets]
    published = set().union(*(data.splits for data in classes))
    offered = [split for split in splits if split in published]
    parser = command.Parser(doc, script)
    _add_run(parser, classes, several)
    group = parser.add_argument_group("test")
    _add_data(group, classes, offered)
    if scores:
        _add_scores(group, classes)
    command.add_batchnorm(group)
    command.add_device(group)
    if len(offered) == 1:
        parser.set_defaults(split=offered[0])
    args = parser.parse_args(argv)
    command.check_batchnorm(parser, args)
    if scores and args.metrics:
        args.metrics = list(dict.fromkeys(args.metrics))
    return args


def _by_dataset(
    classes: Sequence["type[Volumes]"], attribute: str, show: Callable[[object], str]
) -> str:
    """A class attribute in words, such as `1 on LA and phantom`; without the name where there is
    only one data set, and empty where no class has the attribute.
    """
    names: dict[str, list[str]] = {}
    for data in classes:
        value = getattr(data, attribute, None)
        if value is not None:
            names.setdefault(show(value), []).append(data.name)
    if len(classes) == 1:
        return "".join(names)
    return "; ".join(f"{value} on {listed(on)}" for value, on in names.items())


def _spaced(values: Sequence) -> str:
    """Values as one types them behind an option."""
    return " ".join(map(str, values))


def _add_run(
    parser: argparse.ArgumentParser, classes: Sequence["type[Volumes]"], several: bool
) -> None:
    names = [data.name for data in classes]
    labelnum = _by_dataset(classes, "labelnum", str) or "that of the method's only run"
    group = parser.add_argument_group("run")
    group.add_argument(
        "--run", help="folder of the run; without it, the next five options name the run"
    )
    group.add_argument(
        "--method", default="coranet", help="method of the run, as in train_<method>.py"
    )
    group.add_argument(
        "--labelnum",
        type=command.positive_int,
        help=f"number of labels that the run was trained with (default: {labelnum})",
    )
    group.add_argument(
        "--seed",
        type=command.non_negative_int,
        default=1337,
        help="seed that the run was trained with",
    )
    group.add_argument(
        "--dataset", choices=names, default=names[0], help="data set that the run was trained on"
    )
    group.add_argument("--runs", default="runs", help="folder that holds all runs")
    if several:
        group.add_argument(
            "--checkpoint",
            nargs="+",
            type=lambda text: text if text == KEPT else checkpoint_name(text),
            default=["last"],
            metavar="NAME",
            help="checkpoints to test: last, best, the numbers of kept steps, or kept for all of "
            "these",
        )
        return
    group.add_argument(
        "--checkpoint",
        type=checkpoint_name,
        default="last",
        help="checkpoint to test: last, best, or the number of a kept step",
    )


def _add_data(
    group: argparse._ArgumentGroup, classes: Sequence["type[Volumes]"], splits: Sequence[str]
) -> None:
    group.add_argument(
        "--root", help="folder of the data (default: the folder that the run was trained on)"
    )
    if len(splits) > 1:
        lists = "; ".join(f"{split}: {LISTS[split]}" for split in splits)
        group.add_argument("--split", choices=splits, default=splits[0], help=lists)
    group.add_argument(
        "--cases",
        type=command.positive_int,
        help="test only this many cases, from the start of the list, for a quick look",
    )
    stride = _by_dataset(classes, "stride", _spaced)
    if stride:
        group.add_argument(
            "--stride",
            type=command.positive_int,
            nargs=3,
            metavar=("X", "Y", "Z"),
            help="steps of the window along each axis, in voxels that the network sees; larger "
            f"steps are faster (default: {stride}; divided by --downsample of the training)",
        )
    group.add_argument(
        "--network",
        help="test only this network of the checkpoint (default: those that the paper tests)",
    )


def _add_scores(group: argparse._ArgumentGroup, classes: Sequence["type[Volumes]"]) -> None:
    nms = _by_dataset(classes, "keep_largest", lambda keep: str(int(keep)))
    shown = _by_dataset(classes, "shown", _spaced)
    group.add_argument(
        "--nms",
        type=int,
        choices=(0, 1),
        help="1 keeps only the largest component of each class, slice by slice where slices are "
        f"scored one by one (default: {nms})",
    )
    group.add_argument(
        "--empty",
        choices=tuple(EMPTY),
        default="zero",
        help="how empty masks score; keep zero to compare with the papers",
    )
    group.add_argument(
        "--metrics",
        nargs="+",
        choices=METRICS,
        metavar="METRIC",
        help=f"metrics to show, of {', '.join(METRICS)}; the CSV file has all (default: {shown})",
    )
    group.add_argument(
        "--figures",
        type=int,
        choices=(0, 1),
        default=1,
        help="1 draws figures; 0 saves their time",
    )
    group.add_argument(
        "--format",
        nargs="+",
        choices=FORMATS,
        default=["png"],
        help="formats of the figures; take pdf or svg for a paper",
    )
    group.add_argument(
        "--nifti",
        type=int,
        choices=(0, 1),
        default=1,
        help="1 writes labels and predictions as NIfTI files; 0 saves disk space",
    )
