"""A run opened for testing: its networks, the list of cases, the folder that is filled.

    test = Test(options.parse(__doc__, __file__, argv))     run, checkpoint and list of the options
    test.evaluate(mean_probability(test.networks))          windows or slices, filter, scores, files

The script chooses the predictor. The data set's class (`dataloaders.volumes.Volumes`) holds the
protocol of its tests: stride, filter of components, scoring slice by slice.
"""

import argparse
import hashlib
import os
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import numpy as np

from dataloaders import dataset_class, default_root, evaluation_script, open_dataset
from utils import distributed, environment, progress
from utils.batchnorm import retake
from utils.device import resolve_precision, select_device
from utils.errors import UserError
from utils.evaluation.evaluate import Case, Protocol, evaluate
from utils.evaluation.options import LISTS, NAMING
from utils.inference import (
    Predictor,
    check_stride,
    predicted_labels,
    usual_stride,
    whole_image,
)
from utils.trained import find_checkpoint, find_run, load_networks, selection, unseen


class Test:
    """A run, opened for testing as the options say.

    Args:
        args: as `utils.evaluation.options.parse` gives them.
        datasets: names of the data sets whose runs may be opened; those that have the same test
            script as `--dataset` by default.

    Attributes:
        args: the options, with the data set's values where they were not given.
        folder, path: of the run, and of its checkpoint.
        device: where the networks are.
        networks: those that are tested, in eval mode on the device.
        checkpoint: as it was loaded, on the CPU.
        trained: the options that the networks were trained with.
        data: the data set's split.
        patch, stride: extents of a window, and its steps; in 2-D the extents of a slice, and None.
        num_classes: background included.
        options: further options of the prediction: batch, device, precision, progress.
        indices: of the cases that are tested.
        selection: the rule that chose the checkpoint, in words.

    Raises:
        UserError: no such run, one of another data set, or options that do not fit it.
    """

    __test__ = False  # for pytest, which takes it for a test

    def __init__(self, args: argparse.Namespace, datasets: Collection[str] | None = None):
        self.args = args = argparse.Namespace(**vars(args))
        self._open_run(datasets)
        trained = self.trained
        self.data = open_dataset(
            trained["dataset"], args.root or trained["root"], args.split, trained["downsample"]
        )
        self.num_classes = self.data.num_classes
        self.patch = trained["patch"]
        self.stride = self._stride()
        if hasattr(args, "nms") and args.nms is None:
            args.nms = int(self.data.keep_largest)
        if hasattr(args, "metrics"):
            args.metrics = list(args.metrics or self.data.shown)
        self.precision = resolve_precision(args.precision, self.device)
        self.options = {
            "batch": args.batch,
            "device": self.device,
            "precision": self.precision,
            "progress": progress.Windows(),
        }
        self._listed = self._list_cases()
        self.indices = self._listed[: args.cases]
        self.selection = selection(self.checkpoint, args.checkpoint, self.folder)
        if distributed.is_first():
            step, last = self.checkpoint["step"], self.checkpoint["last"]
            print(f"{self.path}, step {step} of {last}: {self.selection}")
            if args.split != "test":
                print(f"scored on {LISTS[args.split]}")
        if args.batchnorm == "retaken":
            self._retake_statistics()

    # ---- opening

    def _open_run(self, datasets: Collection[str] | None) -> None:
        args = self.args
        self.folder = run_folder(args)
        self.path = find_checkpoint(self.folder, args.checkpoint)
        self.device = select_device(args.gpu)
        distributed.start(self.device)
        self.networks, self.checkpoint = load_networks(self.path, self.device, args.network)
        self.trained = self.checkpoint["args"]
        trained_on = self.trained["dataset"]
        script = evaluation_script(trained_on)
        known = script == evaluation_script(args.dataset)
        if datasets is not None:
            known = trained_on in datasets
        if not known:
            raise UserError(f"{self.folder}: trained on {trained_on}; test it with code/{script}")

    def _retake_statistics(self) -> None:
        root = self.args.training_root
        with progress.Windows("batch norm") as bar:
            line = retake(
                self.networks, self.checkpoint, root, self.device, self.precision, progress=bar
            )
        if distributed.is_first():
            print(line)

    def _stride(self) -> list[int] | None:
        wanted = getattr(self.args, "stride", None)
        if len(self.patch) == 2:
            if wanted:
                raise UserError(
                    f"--stride: {self.data.name} is predicted slice by slice, without windows"
                )
            return None
        usual = usual_stride(self.data.stride, self.patch, self.trained["downsample"])
        check_stride(wanted or usual, self.patch)
        return wanted or usual

    def _list_cases(self) -> Sequence[int]:
        """Indices of the cases of the list."""
        if self.args.split != "train":
            return range(len(self.data.names))
        listed = unseen(self.data, self.checkpoint)
        if not listed:
            raise UserError(
                f"{self.folder}: the label of every training case was seen; take --split test"
            )
        return listed

    # ---- the folder of the results, and their record

    @property
    def output(self) -> Path:
        """The folder for the results; the options that change a number are part of its name."""
        args = self.args
        parts = [self.path.stem]
        if args.split != "test":
            parts.append(args.split)
        if args.network:
            parts.append(args.network)
        if hasattr(args, "nms"):
            if args.nms != self.data.keep_largest:
                parts.append(f"nms{args.nms}")
            if args.empty != "zero":
                parts.append(args.empty)
        if args.batchnorm != "trained":
            parts.append(args.batchnorm)
        if getattr(args, "stride", None):
            parts.append(f"stride{'-'.join(map(str, self.stride))}")
        root = self.data.root.resolve()
        if root != self._recorded_root():
            # many roots have the same name: the hash distinguishes them
            place = hashlib.sha256(str(root).encode()).hexdigest()[:6]
            parts.append(f"root-{root.name}-{place}")
        if args.precision != "auto":
            parts.append(args.precision)
        if len(self.indices) < len(self._listed):
            parts.append(f"cases{len(self.indices)}")
        return self.folder / "test" / "_".join(parts)

    def _recorded_root(self) -> Path:
        """Where the data of the training lay.

        A relative path is taken from the folder in which the training was started. The run's own
        place says which that is, as long as it still ends with `--runs`.
        """
        root = Path(self.trained["root"] or default_root(self.trained["dataset"]))
        runs = Path(self.trained.get("runs", "runs")).parts
        above = Path(os.path.abspath(self.folder)).parts[:-3]
        if above[-len(runs) :] != runs:
            return root.resolve()
        return Path(*above[: -len(runs)], root).resolve()

    def record(self) -> dict:
        """How the numbers came about, as `summary.json` says it."""
        given = vars(self.args) | {
            "stride": self.stride and list(self.stride),
            "precision": self.precision,
            "patch": list(self.patch),
        }
        if self.args.run:  # then the options that name a run do not describe this one
            given = {key: value for key, value in given.items() if key not in NAMING}
        place = environment.environment([self.device])
        return {
            "run": str(self.folder),
            "checkpoint": self.path.name,
            "step": self.checkpoint["step"],
            "last_step": self.checkpoint["last"],
            "selection": self.selection,
            "validation": self.checkpoint.get("validation"),
            "unlike_published": self.checkpoint["dataset"]["unlike_published"],
            "list": LISTS[self.args.split],
            "listed_cases": len(self._listed),
            "trained": self.trained,
            "test": given,
            "environment": place | {"processes": distributed.world_size()},
        }

    # ---- testing

    def cases(self, indices: Sequence[int] | None = None) -> Iterator[Case]:
        """`(name, image, label)` of each case, `(X, Y, Z)`, read when it is its turn; a slice has
        an extent of 1.
        """
        for index in self.indices if indices is None else indices:
            image, label = self.data.load(index)
            yield self.data.names[index], np.atleast_3d(image), np.atleast_3d(label)

    def segment(self, predictor: Predictor, image: np.ndarray) -> np.ndarray:
        """The labels `(X, Y, Z)` uint8 of an image `(X, Y, Z)`.

        `--nms 1` keeps the largest component of each class, in each slice by itself where the data
        set's slices are no neighbours in space.

        Args:
            predictor: `(B, 1, *patch)` to probabilities `(B, C, *patch)`.
            image: float32.
        """
        classes = self.num_classes
        prob = whole_image(predictor, image, self.patch, self.stride, classes, **self.options)
        return predicted_labels(prob, bool(self.args.nms), self.data.per_slice).cpu().numpy()

    def evaluate(self, predictor: Predictor) -> dict:
        """Segment and score every case, fill `output`, and return the content of `summary.json`.

        Args:
            predictor: `(B, 1, *patch)` to probabilities `(B, C, *patch)`.
        """
        return evaluate(
            self.cases(distributed.share_out(self.indices)),
            lambda image: self.segment(predictor, image),
            self.output,
            self._protocol(),
            self.record(),
        )

    def _protocol(self) -> Protocol:
        args, data = self.args, self.data
        slices = self.stride is None
        scale = self.trained["downsample"]
        return Protocol(
            class_names=data.class_names,
            spacing=data.spacing and [extent * scale for extent in data.spacing],
            empty=args.empty,
            per_slice=data.per_slice,
            slices=slices,
            axes=data.image_axes if slices else (0, 1, 2),
            metrics=args.metrics,
            nifti=bool(args.nifti),
            formats=args.format if args.figures else (),
            title=self._title(),
        )

    def _title(self) -> str:
        """Of the summary figure."""
        args = self.args
        cases = f"{len(self.indices)} cases"
        if args.split != "test":
            cases += f" of {LISTS[args.split]}"
        run = f"{self.trained['dataset']}, {self.folder.parent.name}, {self.folder.name}"
        return f"{run}: {cases}, {args.checkpoint}"


def run_folder(args: argparse.Namespace) -> Path:
    """The folder of the run that the options name; it sets `labelnum` where they leave it open.

    Raises:
        UserError: no such run, or several.
    """
    if not args.run and args.labelnum is None:
        usual = getattr(dataset_class(args.dataset), "labelnum", None)
        args.labelnum = usual or _only_labelnum(args)
    name = f"{args.method}_{args.labelnum}"
    return find_run(args.run, args.runs, args.dataset, name, args.seed)


def _only_labelnum(args: argparse.Namespace) -> int:
    """The number of labels of the method's only runs, for data that have no usual number."""
    found = sorted(Path(args.runs, args.dataset).glob(f"{args.method}_*/seed{args.seed}"))
    words = {folder.parent.name.rpartition("_")[2] for folder in found}
    numbers = [int(word) for word in words if word.isdecimal()]
    if len(numbers) == 1:
        return numbers[0]
    if numbers:
        there = ", ".join(map(str, found))
        raise UserError(f"several runs of {args.method}: name one with --run: {there}")
    others = sorted(path.parent for path in Path(args.runs, args.dataset).glob("*/seed*/last.pth"))
    there = ", ".join(map(str, others)) or "none; train one first"
    raise UserError(
        f"no run of --method {args.method} in {Path(args.runs, args.dataset)}; there are: {there}"
    )
