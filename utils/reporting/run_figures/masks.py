"""Figures of masks: pseudo-labels of runs, and CoraNet's certain and uncertain region."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from utils.device import select_device
from utils.errors import UserError
from utils.figures import UNCERTAIN, Case, MaskRow, masks_figure
from utils.reporting.predicted_split import (
    certain_regions,
    epochs,
    evenly,
    insist_on_branches,
    kept_steps,
    steps_of_all,
)
from utils.reporting.run_figures.shared import (
    cut_of,
    dice_text,
    draw,
    look_of_classes,
    method_of,
    named,
    open_split,
    run_names,
    segment,
    share_text,
    title_at,
)
from utils.trained import find_checkpoint, load_networks


def pseudo_labels(args: argparse.Namespace) -> None:
    """DMD, Fig. 2: the pseudo-labels of several runs, such as CPS and DMD, on one unlabelled case
    in the course of training, a row for each run.

    A pseudo-label is the argmax of the first tested network. Its Dice on the volume is written,
    with several classes their mean.
    """
    device = select_device(args.gpu)
    steps = args.steps or evenly(steps_of_all(args.runs), 4)
    wanted = args.case
    rows = []
    shape = None
    for run, name in zip(args.runs, run_names(args), strict=True):
        masks = []
        texts = []
        for step in steps:
            (network, *_), checkpoint = load_networks(find_checkpoint(run, str(step)), device)
            split = open_split(args, checkpoint, device)
            ((case, image, label),) = split.named(wanted)
            wanted = [case]
            if shape not in (None, image.shape):
                raise UserError(
                    f"{run}: {case} has the shape {image.shape} here, and {shape} in "
                    f"{args.runs[0]}; take runs on the same data at the same --downsample"
                )
            shape = image.shape
            masks.append(segment(split, network, image))
            texts.append(dice_text(masks[-1], label, split.num_classes))
        rows.append(MaskRow(Case(name, image, label), masks, texts))
    look = look_of_classes(split)
    if split.num_classes == 2:
        look["names"] = ["pseudo-label"]
    draw(
        args,
        f"pseudo_labels_{'_'.join(map(str, steps))}_{case}",
        masks_figure,
        rows,
        f"{case}: pseudo-labels" + (f" of {rows[0].case.name}" if len(rows) == 1 else ""),
        columns=[f"step {step}" for step in steps],
        **look,
        **cut_of(args, split),
    )


def regions(args: argparse.Namespace) -> None:
    """CoraNet, Fig. 1: the conservative and the radical prediction, and the regions that they make.
    Where both predict one class the voxel is certain; the others are uncertain, and their share of
    the volume is written.
    """
    device = select_device(args.gpu)
    path = find_checkpoint(args.run, args.checkpoint)
    (network, *_), checkpoint = load_networks(path, device)
    insist_on_branches(network, path)
    split = open_split(args, checkpoint, device)
    rows = []
    for case, image, label in split.named(args.case):
        con, rad = (branch.numpy() for branch in certain_regions(split, network, image))
        both = np.where(con == rad, con, split.num_classes)
        texts = ["", "", share_text(con != rad)]
        rows.append(MaskRow(Case(case, image, label, rad), [con, rad, both], texts))
    title, ending = named(method_of(args.run), [row.case.name for row in rows])
    look = look_of_classes(split)
    look["colors"] = [*look["colors"], UNCERTAIN]
    look["names"] = [*look["names"], "uncertain (share of the volume)"]
    draw(
        args,
        f"regions_{path.stem}_{ending}",
        masks_figure,
        rows,
        title_at(title, checkpoint),
        columns=["conservative", "radical", "certain and uncertain"],
        **look,
        **cut_of(args, split),
    )


def uncertainty(args: argparse.Namespace) -> None:
    """CoraNet, Fig. 5: the voxels where D_con and D_rad predict different classes in the course of
    training, with their share of the volume.
    """
    steps = args.steps or evenly(kept_steps(args.run), 4)
    epoch_of = epochs(args.run)
    columns = [f"step {step}" for step in steps]
    if all(step in epoch_of for step in steps):  # --log_every and --keep_every need not agree
        columns = [f"epoch {epoch_of[step]} (step {step})" for step in steps]
    paths = [find_checkpoint(args.run, str(step)) for step in steps]
    file = f"uncertainty_{'_'.join(map(str, steps))}"
    draw_uncertain(args, file, paths, columns, method_of(args.run))


def alphas(args: argparse.Namespace) -> None:
    """CoraNet, Fig. 8: the initial uncertain voxels of several runs, such as with α = 2, 5 and 10,
    with their share of the volume.

    Train the runs with `--selftrain_epochs 0`, or name a kept step of pre-training with
    --checkpoint.
    """
    paths = [find_checkpoint(run, args.checkpoint) for run in args.runs]
    found = []
    for path in paths:
        trained = load_networks(path, "cpu")[1]["args"]
        if "alpha" not in trained:
            raise UserError(f"{path}: trained without α; take runs of train_coranet.py")
        if args.checkpoint == "last" and trained["selftrain_epochs"] > 0:
            raise UserError(
                f"{path}: self-trained, so its masks are not the initial ones; train with "
                "--selftrain_epochs 0, or name a kept step of pre-training with --checkpoint"
            )
        found.append(f"α = {trained['alpha']:g}")
    columns = args.names or (found if len(set(found)) == len(found) else run_names(args))
    draw_uncertain(args, f"alphas_{paths[0].stem}", paths, columns, "initial uncertain region")


def draw_uncertain(
    args: argparse.Namespace, file: str, paths: Sequence[Path], columns: Sequence[str], title: str
) -> None:
    """The uncertain voxels of each checkpoint, in a column each."""
    device = select_device(args.gpu)
    wanted = args.case
    shown: dict[str, MaskRow] = {}
    for path in paths:
        (network, *_), checkpoint = load_networks(path, device)
        insist_on_branches(network, path)
        split = open_split(args, checkpoint, device)
        for case, image, label in split.named(wanted):
            con, rad = certain_regions(split, network, image)
            row = shown.setdefault(case, MaskRow(Case(case, image, label), [], []))
            if row.case.image.shape != image.shape:
                raise UserError(
                    f"{path}: {case} has the shape {image.shape} here, and {row.case.image.shape} "
                    f"in {paths[0]}; take runs on the same data at the same --downsample"
                )
            mask = (con != rad).numpy()
            row.masks.append(mask.astype(np.uint8))
            row.texts.append(share_text(mask))
        wanted = list(shown)
    title, ending = named(title, list(shown))
    draw(
        args,
        f"{file}_{ending}",
        masks_figure,
        list(shown.values()),
        title,
        columns=columns,
        colors=[UNCERTAIN],
        names=["uncertain (share of the volume)"],
        classes=split.num_classes - 1,
        **cut_of(args, split),
    )
