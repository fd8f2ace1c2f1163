"""Figures of a network's maps: signed distances, entropy, gradients."""

import argparse
import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from networks.base import DROPOUT
from utils.device import select_device
from utils.errors import UserError
from utils.figures import Case, DistanceRow, Heat, HeatRow, heat_figure, sdm_figure
from utils.reporting.distillation import Distillation, crop_around, gradient_predictor
from utils.reporting.run_figures.shared import (
    cut_of,
    dice_text,
    draw,
    method_of,
    named,
    open_split,
    segment,
    title_at,
)
from utils.reporting.scripts import load_script, training_script
from utils.trained import find_checkpoint, load_networks
from utils.uncertainty import entropy as entropy_of


def sdm(args: argparse.Namespace) -> None:
    """DTML, Fig. 2: image, reference, predicted signed distance map with its zero level, the mask
    where the map is negative, and the segmentation of M_s; of UG-MCL the two heads of its network.

    With several classes there is a row for each. Of a mask the Dice on the volume is written.
    """
    device = select_device(args.gpu)
    path = find_checkpoint(args.run, args.checkpoint)
    network, checkpoint = load_distance_network(path, device)
    (segmenter, *_), _ = load_networks(path, device)

    def distances(x: Tensor) -> Tensor:
        output = network(x)
        return (output[1] if isinstance(output, tuple) else output).float()

    split = open_split(args, checkpoint, device)
    rows = []
    for case, image, label in split.named(args.case):
        maps = split.predict(distances, image, split.num_classes - 1).numpy()
        segmentation = segment(split, segmenter, image)
        for c, name in enumerate(split.class_names, 1):
            words = [case] if split.num_classes == 2 else [case, name]
            of_class = (maps[c - 1] < 0, segmentation == c)
            texts = [dice_text(mask, label == c, 2) for mask in of_class]
            shown = Case("\n".join(words), image, (label == c).astype(np.uint8), of_class[1])
            rows.append(DistanceRow(shown, maps[c - 1], of_class[1], texts))
    title, ending = named(method_of(args.run), [row.case.name.split("\n")[0] for row in rows])
    title = title_at(title, checkpoint)
    draw(args, f"sdm_{path.stem}_{ending}", sdm_figure, rows, title, **cut_of(args, split))


def load_distance_network(path: Path, device: torch.device) -> tuple[nn.Module, dict]:
    """The first network of a checkpoint that gives distance maps, and the checkpoint."""
    _, checkpoint = load_networks(path, device)
    specs = checkpoint["networks"]
    for name in (*checkpoint["test_networks"], *specs):
        if specs[name]["kwargs"].get("sdm_head"):
            (network,), _ = load_networks(path, device, name)
            return network, checkpoint
    raise UserError(
        f"{path}: none of its networks gives distance maps, as those of DTML and UG-MCL do; take "
        "--checkpoint last of such a run"
    )


def entropy(args: argparse.Namespace) -> None:
    """UG-MCL, Fig. 1: the uncertainty of the mean teacher, which is the entropy of the mean of its
    passes with noise and dropout (equation 3), beside the student's prediction.

    It is drawn for a run of any method that has a mean teacher, whose batch norm is in eval mode
    here. Black is the largest possible entropy, ln C with C classes.
    """
    device = select_device(args.gpu)
    path = find_checkpoint(args.run, args.checkpoint)
    (student, *_), checkpoint = load_networks(path, device)
    if "teacher" not in checkpoint["networks"]:
        raise UserError(
            f"{path}: holds no mean teacher; take --checkpoint last of a run that has one, such as "
            "those of train_ugmcl.py"
        )
    (teacher,), _ = load_networks(path, device, "teacher")
    for layer in teacher.modules():
        if isinstance(layer, DROPOUT):
            layer.train()
    noisy = load_script(training_script("ugmcl")).noisy
    torch.manual_seed(checkpoint["args"]["seed"])

    def uncertainty_of(x: Tensor) -> Tensor:
        passes = (teacher.segment(noisy(x)).float().softmax(1) for _ in range(args.passes))
        return entropy_of(sum(passes) / args.passes).unsqueeze(1)

    split = open_split(args, checkpoint, device)
    rows = []
    for case, image, label in split.named(args.case):
        (u,) = split.predict(uncertainty_of, image, 1).numpy()
        share = f"mean {u.mean():.3f}"
        prediction = segment(split, student, image)
        rows.append(HeatRow(Case(case, image, label, prediction), prediction, [u], [share]))
    title, ending = named(method_of(args.run), [row.case.name for row in rows])
    draw(
        args,
        f"entropy_{path.stem}_{ending}",
        heat_figure,
        rows,
        title_at(title, checkpoint),
        heats=[Heat("entropy of the mean teacher", math.log(split.num_classes), "(ln C)")],
        classes=split.num_classes - 1,
        **cut_of(args, split),
    )


def gradients(args: argparse.Namespace) -> None:
    """DMD, Fig. 3a: where the distillation pulls. |∂L/∂z| of the first network's logits z, with
    L = λ L_distill on one crop, for Dice and for KL: the Euclidean length over the classes.

    The networks are in eval mode. Each map has a scale of its own, so compare where a map is dark,
    and read how dark from the scale. Of each map the share is written that lies on the reference.
    """
    device = select_device(args.gpu)
    path = find_checkpoint(args.run, args.checkpoint)
    _, checkpoint = load_networks(path, device)
    if not checkpoint["networks"].keys() >= {"net", "net_2"}:
        raise UserError(
            f"{path}: holds no two networks that learn from each other; take --checkpoint last of "
            "a run of train_dmd.py"
        )
    pair = [load_networks(path, device, name)[0][0] for name in ("net", "net_2")]
    dmd = load_script(training_script("dmd"))
    distillations = (
        Distillation("Dice", dmd.distillation_loss, *args.dice),
        Distillation("KL", dmd.distillation_loss_kl, *args.kl),
    )
    split = open_split(args, checkpoint, device)
    rows = []
    for case, image, label in split.named(args.case):
        crop = crop_around(label > 0, split.patch)
        image, label = image[crop], label[crop]
        predictor = gradient_predictor(pair, distillations)
        prediction, *maps = split.predict(predictor, image, 1 + len(distillations)).numpy()
        prediction = prediction.round().astype(np.uint8)
        texts = [f"{100 * g[label > 0].sum() / g.sum():.0f} % on the reference" for g in maps]
        start = [part.start or 0 for part in crop]
        shown = Case(case, image, label, prediction, start)
        rows.append(HeatRow(shown, prediction, maps, texts))
    title, ending = named(method_of(args.run), [row.case.name for row in rows])
    draw(
        args,
        f"gradients_{path.stem}_{ending}",
        heat_figure,
        rows,
        f"{title_at(title, checkpoint)}: |∂ λ L_distill / ∂z|",
        heats=[Heat(str(one), None, "") for one in distillations],
        classes=split.num_classes - 1,
        **cut_of(args, split),
    )
