"""The plumbing of every test script: options, the run and its networks, the list, the folder that
is filled.

What moves a number stands in the script: its data sets, the filter of components, and what
predicts.

    test = Test(__doc__, ("LA", "phantom"), nms=1)       options, with the script's defaults; run, checkpoint, list
    test.evaluate(mean_probability(test.networks))       windows or slices, filter, scores, files
"""

import hashlib
import os
import sys
from pathlib import Path

import numpy as np
import torch

from dataloaders import dataset_class, default_root, open_dataset
from utils import command, distributed, environment, progress
from utils.device import resolve_precision, select_device
from utils.errors import UserError
from utils.evaluation.scoring import EMPTY, evaluate
from utils.figures import FORMATS
from utils.inference import check_stride, usual_stride, whole_image
from utils.metrics import METRICS, SHOWN
from utils.ops import largest_component
from utils.trained import (
    checkpoint_name,
    find_checkpoint,
    find_run,
    load_networks,
    selection,
    unseen,
)

LISTS = {
    "test": "the test list",
    "val": "the validation list",
    "train": "the run's unlabelled training cases",
}
NAMING = (
    "method",
    "labelnum",
    "seed",
    "dataset",
    "runs",
)  # the options that name a run where --run does not
GUESTS = {
    "phantom": "LA",
    "phantom2d": "ACDC",
    "own2d": "own",
}  # data sets without a script of their own


class Test:
    """A run, opened for testing as the command line says.

    Args:
        doc: the script's docstring.
        datasets: names of those that it tests, the default first.
        splits: lists that may be taken, the default first; of them only those that one of the data
            sets has.
        scores: False leaves out the options of `evaluate`.
        defaults: the script's own, such as `nms` and `metrics`.

    Attributes:
        args: the options.
        folder: of the run.
        networks: those that are tested, in eval mode on the device.
        trained: the options that they were trained with.
        data: the data set's split.
        patch, stride: extents of a window, and its steps; in 2-D the extents of a slice, and None.
        num_classes: background included.
        options: what prediction depends on besides: batch, device, precision, progress.

    Raises:
        UserError: no such run, one of another data set, or options that do not fit it.
    """

    __test__ = False  # for pytest, which takes it for a test

    def __init__(self, doc, datasets, splits=("test", "val"), scores=True, **defaults):
        parser = _parser(doc, datasets, splits, scores)
        parser.set_defaults(**defaults)
        self.args = args = parser.parse_args()
        self._usual_nms = parser.get_default("nms")
        if scores:
            args.metrics = list(dict.fromkeys(args.metrics))
        if not args.run and args.labelnum is None:
            args.labelnum = getattr(
                dataset_class(args.dataset), "labelnum", None
            ) or _only_labelnum(args)
        self.folder = find_run(
            args.run, args.runs, args.dataset, f"{args.method}_{args.labelnum}", args.seed
        )
        self.path = find_checkpoint(self.folder, args.checkpoint)
        self.device = select_device(args.gpu)
        distributed.start(self.device)
        self.precision = resolve_precision(args.precision, self.device)
        self.networks, self.checkpoint = load_networks(self.path, self.device, args.network)
        self.trained = trained = self.checkpoint["args"]
        name = trained["dataset"]
        if name not in datasets:
            raise UserError(
                f"{self.folder}: trained on {name}; test it with "
                f"code/test_{GUESTS.get(name, name)}.py"
            )

        self.data = open_dataset(
            name, args.root or trained["root"], args.split, trained["downsample"]
        )
        self.num_classes = self.data.num_classes
        self.patch, self.stride = trained["patch"], self._stride()
        self.options = {
            "batch": args.batch,
            "device": self.device,
            "precision": self.precision,
            "progress": progress.Windows(),
        }
        self.listed = range(len(self.data.names))
        if args.split == "train":
            self.listed = unseen(self.data, self.checkpoint)
            if not self.listed:
                raise UserError(
                    f"{self.folder}: the label of every training case was seen; take --split test"
                )
        self.indices = self.listed[: args.cases]
        self.selection = selection(self.checkpoint, args.checkpoint, self.folder)
        if distributed.is_first():
            print(
                f"{self.path}, step {self.checkpoint['step']} of {self.checkpoint['last']}: "
                f"{self.selection}"
            )
            if args.split != "test":
                print(f"scored on {LISTS[args.split]}")

    def _stride(self):
        wanted, patch = getattr(self.args, "stride", None), self.trained["patch"]
        if len(patch) == 2:
            if wanted:
                raise UserError(
                    f"--stride: {self.data.name} is predicted slice by slice, without windows"
                )
            return None
        stride = wanted or usual_stride(self.data.stride, patch, self.trained["downsample"])
        check_stride(stride, patch)
        return stride

    @property
    def output(self):
        """The folder for the results; the options that move a number are part of its name."""
        args = self.args
        tag = self.path.stem + (f"_{args.split}" if args.split != "test" else "")
        tag += f"_{args.network}" if args.network else ""
        if self._usual_nms is not None:
            tag += f"_nms{args.nms}" if args.nms != self._usual_nms else ""
            tag += f"_{args.empty}" if args.empty != "zero" else ""
        tag += f"_stride{'-'.join(map(str, self.stride))}" if getattr(args, "stride", None) else ""
        root = self.data.root.resolve()
        if root != self._recorded_root():  # told by its place: many roots have the same name
            tag += f"_root-{root.name}-{hashlib.sha256(str(root).encode()).hexdigest()[:6]}"
        tag += f"_{args.precision}" if args.precision != "auto" else ""
        tag += f"_cases{len(self.indices)}" if len(self.indices) < len(self.listed) else ""
        return self.folder / "test" / tag

    def _recorded_root(self):
        """Where the data of the training lay: a relative path began in the folder that the run's
        own place tells.
        """
        root = Path(self.trained["root"] or default_root(self.trained["dataset"]))
        runs, place = (
            Path(self.trained.get("runs", "runs")).parts,
            Path(os.path.abspath(self.folder)).parts[:-3],
        )
        return Path(*(place[: -len(runs)] if place[-len(runs) :] == runs else ()), root).resolve()

    def cases(self, indices=None):
        """`(name, image, label)` of each case, `(X, Y, Z)`, read when it is its turn; a slice has
        an extent of 1.
        """
        for index in self.indices if indices is None else indices:
            image, label = self.data.load(index)
            yield self.data.names[index], *(np.atleast_3d(array) for array in (image, label))

    def record(self):
        """How the numbers came about."""
        settings = {
            "stride": self.stride and list(self.stride),
            "precision": self.precision,
            "patch": list(self.patch),
        }
        given = vars(self.args) | settings
        if self.args.run:  # the options that name a run without it say nothing of this one
            given = {key: value for key, value in given.items() if key not in NAMING}
        return {
            "run": str(self.folder),
            "checkpoint": self.path.name,
            "step": self.checkpoint["step"],
            "last_step": self.checkpoint["last"],
            "selection": self.selection,
            "validation": self.checkpoint.get("validation"),
            "unlike_published": self.checkpoint.get("dataset", {}).get("unlike_published", []),
            "list": LISTS[self.args.split],
            "listed_cases": len(self.listed),
            "trained": self.trained,
            "test": given,
            "environment": environment.environment([self.device])
            | {"processes": distributed.world_size()},
        }

    def evaluate(self, predictor, per_slice=False):
        """Score a predictor of probabilities, `(B, 1, *patch)` to `(B, C, *patch)`, on every case,
        and write it down.

        `per_slice` scores each slice by itself, and filters its components by itself: for stacks
        whose slices are no neighbours in space.
        """
        args, spacing = self.args, self.data.spacing

        def segment(image):
            prob = whole_image(
                predictor, image, self.patch, self.stride, self.num_classes, **self.options
            )
            labels = prob.argmax(0).to(torch.uint8)
            if args.nms and per_slice:
                labels = largest_component(labels.permute(2, 0, 1), self.num_classes).permute(
                    1, 2, 0
                )
            elif args.nms:
                labels = largest_component(labels[None], self.num_classes)[0]
            return labels.cpu().numpy()

        cases = f"{len(self.indices)} cases" + (
            f" of {LISTS[args.split]}" if args.split != "test" else ""
        )
        name = f"{self.trained['dataset']}, {self.folder.parent.name}, {self.folder.name}"
        return evaluate(
            self.cases(distributed.share_out(self.indices)),
            segment,
            self.output,
            self.num_classes,
            record=self.record(),
            title=f"{name}: {cases}, {args.checkpoint}",
            empty=args.empty,
            spacing=None if spacing is None else [s * self.trained["downsample"] for s in spacing],
            class_names=self.data.class_names,
            metrics=args.metrics,
            nifti=args.nifti,
            figures=args.format if args.figures else (),
            slices=self.stride is None,
            image_axes=self.data.image_axes if self.stride is None else None,
            per_slice=per_slice,
        )


def _only_labelnum(args):
    """The number of labels that the method was trained with, of data that have no usual one."""
    found = sorted(Path(args.runs, args.dataset).glob(f"{args.method}_*/seed{args.seed}"))
    numbers = {
        int(label)
        for folder in found
        if (label := folder.parent.name.rpartition("_")[2]).isdecimal()
    }
    if len(numbers) != 1:
        there = ", ".join(map(str, found)) or "there is none"
        raise UserError(f"no --labelnum given: name the run with --run, of {there}")
    return numbers.pop()


def _parser(doc, datasets, splits, scores):
    classes = [dataset_class(name) for name in datasets]
    splits = [split for split in splits if any(split in data.splits for data in classes)]
    parser = command.Parser(doc, sys.argv[0])
    which = parser.add_argument_group("run")
    which.add_argument("--run", help="its folder; without it the next five name it")
    which.add_argument("--method", default="coranet", help="train_<method>.py")
    which.add_argument(
        "--labelnum",
        type=command.positive_int,
        help="what it was trained with (default: the data set's)",
    )
    which.add_argument("--seed", type=command.non_negative_int, default=1337, help="its seed")
    which.add_argument(
        "--dataset", choices=datasets, default=datasets[0], help="data set that it was trained on"
    )
    which.add_argument("--runs", default="runs", help="folder of all runs")
    which.add_argument(
        "--checkpoint",
        type=checkpoint_name,
        default="last",
        help="last, best, or a kept step's number",
    )
    test = parser.add_argument_group("test")
    test.add_argument(
        "--root", help="folder of the data (default: the one that the run was trained on)"
    )
    if len(splits) > 1:
        lists = "; ".join(f"{split}: {LISTS[split]}" for split in splits)
        test.add_argument("--split", choices=splits, default=splits[0], help=lists)
    else:
        parser.set_defaults(split=splits[0])
    test.add_argument(
        "--cases", type=command.positive_int, help="the first so many of the list alone"
    )
    if any(data.stride for data in classes):
        stride = {"nargs": 3, "metavar": ("X", "Y", "Z")}
        test.add_argument(
            "--stride",
            type=command.positive_int,
            **stride,
            help="of the windows (default: data set's)",
        )
    test.add_argument(
        "--network", help="one of the checkpoint's networks (default: those that the paper tests)"
    )
    if scores:
        filtered = "1: keep each class's largest component alone, of each slice where slices are scored by themselves"
        test.add_argument("--nms", type=int, choices=(0, 1), default=0, help=filtered)
        test.add_argument(
            "--empty",
            choices=tuple(EMPTY),
            default="zero",
            help="how empty masks score; zero: as papers",
        )
        listed = {"nargs": "+", "choices": METRICS, "metavar": "METRIC", "default": SHOWN}
        test.add_argument(
            "--metrics", **listed, help=f"of {', '.join(METRICS)}: what is shown; the CSV has all"
        )
        test.add_argument("--figures", type=int, choices=(0, 1), default=1, help="1: draw figures")
        test.add_argument(
            "--format", nargs="+", choices=FORMATS, default=["png"], help="of the figures"
        )
        test.add_argument(
            "--nifti", type=int, choices=(0, 1), default=1, help="1: write labels and predictions"
        )
    at_once = "windows or slices at once (default: GPU 4 or 16, CPU 1 or 4): memory, not numbers"
    test.add_argument("--batch", type=command.positive_int, help=at_once)
    test.add_argument(
        "--gpu", type=command.gpu, default=0, help="number of the GPU, or -1 for the CPU"
    )
    test.add_argument(
        "--precision",
        choices=("auto", "fp32", "bf16"),
        default="auto",
        help="auto: bf16 where fast",
    )
    return parser
