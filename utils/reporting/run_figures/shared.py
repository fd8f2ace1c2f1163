"""Shared by the figures of runs: data, names, texts and files."""

import argparse
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from utils.errors import UserError
from utils.figures import CLASSES, PREDICTION
from utils.files import write_csv
from utils.reporting.kept_steps import dice
from utils.reporting.predicted_split import Split


def open_split(args: argparse.Namespace, checkpoint: dict, device: torch.device) -> Split:
    return Split(checkpoint, args.split, args.root, device, args.batch, args.precision)


def cut_of(args: argparse.Namespace, split: Split) -> dict:
    """The voxel's size and the plane in which a figure cuts the split's cases."""
    return {"spacing": split.spacing, "plane": "slice" if split.sliced else args.plane}


def segment(split: Split, network: nn.Module, image: np.ndarray) -> np.ndarray:
    """The classes uint8 `(X, Y, Z)` that a network predicts."""

    def softmax(x: Tensor) -> Tensor:
        return network.segment(x).float().softmax(1)

    return split.predict(softmax, image, split.num_classes).argmax(0).numpy().astype(np.uint8)


def dice_text(pred: np.ndarray, label: np.ndarray, num_classes: int) -> str:
    """The mean Dice over the foreground classes; a dash where neither has a voxel."""
    score = dice(pred, label, num_classes)
    return "Dice –" if math.isnan(score) else f"Dice {100 * score:.1f} %"


def share_text(mask: np.ndarray) -> str:
    return f"{100 * mask.mean():.2f} %"


def look_of_classes(split: Split) -> dict:
    """How `masks_figure` shows predicted classes."""
    classes = split.num_classes - 1
    if classes == 1:
        return {"colors": [PREDICTION], "names": ["prediction"]}
    return {
        "colors": [CLASSES[c % len(CLASSES)] for c in range(classes)],
        "names": split.class_names,
        "classes": classes,
        "reference": "white",
    }


def run_names(args: argparse.Namespace) -> list[str]:
    """The names of the runs: --names, or those of their methods' folders, with their seeds where
    these do not differ.
    """
    if args.names:
        return args.names
    names = [method_of(run) for run in args.runs]
    if len(set(names)) == len(names):
        return names
    return [f"{name}, {run.name}" for name, run in zip(names, args.runs, strict=True)]


def method_of(run: Path) -> str:
    """The folder above that of a run's seed."""
    return run.resolve().parent.name


def named(title: str, cases: Sequence[str]) -> tuple[str, str]:
    """Title, and ending of the file's name, of a figure of these cases."""
    different = list(dict.fromkeys(cases))
    if len(different) == 1:
        return f"{different[0]}, {title}", different[0]
    return title, f"{len(different)}cases"


def title_at(title: str, checkpoint: dict) -> str:
    return f"{title}, step {checkpoint['step']}"


def folder_of(args: argparse.Namespace) -> Path:
    """The folder of the files: --output, or `figures` in the run; of several runs, in the first."""
    run = args.runs[0] if "runs" in args else args.run
    return getattr(args, "output", None) or run / "figures"


def draw(
    args: argparse.Namespace, name: str, figure: Callable, *given: object, **look: object
) -> None:
    """Write a figure in each format that was asked for."""
    folder = folder_of(args)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be made ({error.strerror})") from None
    for kind in args.format:
        path = folder / f"{name}.{kind}"
        figure(path, *given, **look)
        print(path)


def write_table(args: argparse.Namespace, name: str, rows: Sequence[dict]) -> None:
    """Write the numbers of a figure beside it."""
    table = folder_of(args) / f"{name}.csv"
    write_csv(table, rows)
    print(table)
