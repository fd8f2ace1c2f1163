"""The figure of several runs on one case: opens the runs, predicts the cases, chooses the form."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from dataloaders import dataset_class
from utils.device import select_device
from utils.errors import UserError
from utils.figures import Compared, contours_figure, surfaces_figure, together_figure
from utils.figures.cases import PLANES
from utils.inference import mean_probability, predicted_labels
from utils.reporting.kept_steps import dice
from utils.reporting.run_figures.shared import cut_of, draw, open_split, run_names
from utils.reporting.scripts import flags_of_test
from utils.trained import find_checkpoint, load_networks

Opened = tuple[list[nn.Module], dict]  # the networks that are tested, and their checkpoint


def side_by_side(args: argparse.Namespace) -> None:
    """Several runs on one case, or a row for each of several cases: the reference, then a column
    for each run with its Dice. DTML, Fig. 3; UG-MCL, Figs. 5 and 6; CML, Fig. 4; with --together
    CoraNet, Figs. 6, 7 and 9.

    The plane is the one in which the reference is largest, or that of --slice. --together draws the
    contours of all runs into one picture, --surfaces draws the surfaces of volumes. A run predicts
    as its test script does: the mean of the networks that are tested, and the component filter of
    its data set's protocol. Its Dice is of the whole volume, with several classes their mean.
    """
    device = select_device(args.gpu)
    paths = [find_checkpoint(run, args.checkpoint) for run in args.runs]
    opened = [load_networks(path, device) for path in paths]
    insist_on_one_data_set(args.runs, [checkpoint for _, checkpoint in opened])
    split = open_split(args, opened[0][1], device)
    if split.sliced and args.surfaces:
        raise UserError("--surfaces: the runs are of slices, which are too far apart; leave it out")
    if split.sliced and args.plane:
        raise UserError("--plane: the runs are of slices, which are cut in no other plane")
    args.plane = args.plane or "axial"
    cases = predict_cases(args, opened, device)
    cases = choose_slices(args, cases, "slice" if split.sliced else args.plane)

    ending = cases[0].name if len(cases) == 1 else f"{len(cases)}cases"
    title = f"{cases[0].name if len(cases) == 1 else f'{len(cases)} cases'}, {args.split} list"
    given = cases, run_names(args), title
    look = {"spacing": split.spacing, "class_names": split.class_names}
    file = f"side_by_side_{paths[0].stem}_{ending}"
    if args.surfaces:
        draw(args, f"{file}_surfaces", surfaces_figure, *given, **look)
        return
    look |= cut_of(args, split) | {"near": args.near}
    if args.together:
        del look["class_names"]
        draw(args, f"{file}_together", together_figure, *given, **look)
    else:
        draw(args, file, contours_figure, *given, **look)


def insist_on_one_data_set(runs: Sequence[Path], checkpoints: Sequence[dict]) -> None:
    """Raise `UserError` where runs are of other data or of another resolution than the first."""
    first = checkpoints[0]["args"]
    for run, checkpoint in zip(runs, checkpoints, strict=True):
        trained = checkpoint["args"]
        if trained["dataset"] != first["dataset"]:
            raise UserError(
                f"{run}: trained on {trained['dataset']}, and {runs[0]} on {first['dataset']}; "
                "take runs of one data set"
            )
        if trained["downsample"] != first["downsample"]:
            raise UserError(
                f"{run}: trained at --downsample {trained['downsample']}, and {runs[0]} at "
                f"--downsample {first['downsample']}; take runs of one resolution"
            )


def predict_cases(
    args: argparse.Namespace, opened: Sequence[Opened], device: torch.device
) -> list[Compared]:
    """The cases, with the prediction of each run.

    Raises:
        UserError: no such case, or a case that is not the same in all runs' data.
    """
    found: dict[str, Compared] = {}
    wanted = args.case
    for run, (networks, checkpoint) in zip(args.runs, opened, strict=True):
        split = open_split(args, checkpoint, device)
        predictor = mean_probability(networks)
        filtered = is_filtered(checkpoint, args.nms)
        per_slice = dataset_class(checkpoint["args"]["dataset"]).per_slice
        for name, image, label in split.named(wanted):
            case = found.setdefault(name, Compared(name, image, label, [], []))
            if not np.array_equal(case.target, label):
                raise UserError(
                    f"{run}: {name} has another label than for {args.runs[0]}; name the folder of "
                    "the data with --root"
                )
            prob = split.predict(predictor, image, split.num_classes)
            pred = predicted_labels(prob, filtered, per_slice).numpy()
            case.preds.append(pred)
            case.scores.append(dice(pred, label, split.num_classes))
        wanted = list(found)
    return list(found.values())


def is_filtered(checkpoint: dict, nms: int | None) -> bool:
    """Whether a run's predictions keep only the largest component of each class.

    `--nms` says it; without it the method's paper or code, else the data set's protocol.
    """
    if nms is not None:
        return bool(nms)
    trained = checkpoint["args"]
    of_method = flags_of_test(trained.get("method", ""), trained["dataset"])
    return bool(int(of_method.get("--nms", checkpoint["dataset"]["keep_largest"])))


def choose_slices(
    args: argparse.Namespace, cases: Sequence[Compared], plane: str
) -> list[Compared]:
    """The cases with the slices of `--slice`, which counts from 1: one for all, or one for each."""
    if not args.slice:
        return list(cases)
    if len(args.slice) not in (1, len(cases)):
        raise UserError(f"--slice: {len(args.slice)} numbers for {len(cases)} cases")
    numbers = args.slice if len(args.slice) == len(cases) else args.slice * len(cases)
    chosen = []
    for case, number in zip(cases, numbers, strict=True):
        most = case.image.shape[PLANES[plane][0]]
        if number > most:
            raise UserError(f"--slice {number}: {case.name} has {most} {plane} planes")
        chosen.append(case._replace(index=number - 1))
    return chosen
