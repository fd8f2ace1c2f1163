"""Metrics of a run's networks at the steps that it kept: read from its tests, or scored here."""

import json
import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from utils.errors import UserError
from utils.metrics import METRICS, means, multiclass_metrics
from utils.ops import largest_component
from utils.reporting.predicted_split import Split, kept_steps
from utils.trained import find_checkpoint, load_networks

Scores = dict[str, float]  # by metric
Curves = dict[str, dict[int, Scores]]  # by network, then by step
MEAN = "mean"  # name of the curve of the networks' mean
STUDENT, TEACHER = "student", "teacher"  # of a network with a mean teacher


@dataclass(frozen=True)
class StepResult:
    """One test, as far as curves need it.

    Attributes:
        options: the test's options, as they end the name of its folder.
        network: the network that was tested; `mean` for all of the paper's together.
    """

    options: str
    network: str
    nms: int
    step: int
    cases: int
    scores: Scores


def read_curves(run: Path, steps: Collection[int] | None, nms: int | None) -> tuple[Curves, str]:
    """The curves of the tests of the kept steps. Where the tests' options differ, the largest group
    with the same options is taken; the others are printed.

    Args:
        steps: those that are taken; None takes all.
        nms: component filter of the tests that are taken; None takes either.

    Returns:
        The curves, and the cases that they are of, in words.

    Raises:
        UserError: no such results, or damaged ones.
    """
    groups: dict[str, list[StepResult]] = {}
    for path in sorted(run.glob("test/*/summary.json")):  # networks in the order of their names
        found = _read(path)
        if found is None or nms not in (None, found.nms):
            continue
        if not steps or found.step in steps:
            groups.setdefault(found.options, []).append(found)
    if not groups:
        raise UserError(
            f"{run}: no results of kept steps; test them, python code/test_<dataset>.py --run "
            f"{run} --checkpoint <step>, or take --split train"
        )
    options = max(groups, key=lambda name: len(groups[name]))
    others = ", ".join(sorted(f"step_<n>{name}" for name in groups if name != options))
    print(f"results of step_<n>{options}" + (f"; left out: {others}" if others else ""))
    curves: Curves = {}
    for found in groups[options]:
        curves.setdefault(found.network, {})[found.step] = found.scores
    if MEAN in curves:
        curves[MEAN] = curves.pop(MEAN)  # as the last
    if curves.keys() == {MEAN, TEACHER}:  # one network was tested, and its teacher
        curves = {STUDENT: curves[MEAN], TEACHER: curves[TEACHER]}
    return curves, f"{groups[options][0].cases} cases"


def _read(path: Path) -> StepResult | None:
    """A test of a step on the test list; None for any other."""
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
        checkpoint = summary["checkpoint"]
        network = summary["test"]["network"]
        listed = summary["list"]
        scores = {}
        for metric in METRICS:
            value = summary["mean"][metric]["mean"]
            scores[metric] = math.nan if value is None else value
        tag = path.parent.name.removeprefix(Path(checkpoint).stem)
        found = StepResult(
            options=tag.replace(f"_{network}", "", 1),
            network=network or MEAN,
            nms=summary["test"]["nms"],
            step=summary["step"],
            cases=summary["cases"],
            scores=scores,
        )
    except (OSError, ValueError, LookupError, TypeError):
        raise UserError(f"{path}: damaged; delete it and test again") from None
    return None if listed != "the test list" or checkpoint == "best.pth" else found


def score_steps(
    run: Path,
    steps: Sequence[int] | None,
    split_of: Callable[[dict], Split],
    device: torch.device,
    cases: int | None,
    nms: bool,
) -> tuple[Curves, str]:
    """The curves of predictions that are made here: of the networks that are tested, of their mean,
    and of a mean teacher. Empty predictions are left out of distances.

    Args:
        steps: those that are scored; None scores all.
        split_of: opens the split that a checkpoint is scored on.
        cases: scores only the first so many.
        nms: keep the largest component of each class only.

    Returns:
        The curves, and the cases that they are of, in words.
    """
    curves: Curves = {}
    for step in steps or kept_steps(run):
        path = find_checkpoint(run, str(step))
        networks, checkpoint = load_networks(path, device)
        named = dict(zip(checkpoint["test_networks"], networks, strict=True))
        if len(named) == 1 and TEACHER in checkpoint["networks"]:
            (teacher,), _ = load_networks(path, device, TEACHER)
            named = {STUDENT: networks[0], TEACHER: teacher}
        split = split_of(checkpoint)
        scores: dict[str, list[Scores]] = {}
        for _, image, label in split.cases(cases):
            for name, prob in _probabilities(split, named, image).items():
                scores.setdefault(name, []).append(_score(prob, label, nms))
        for name, of_cases in scores.items():
            of_step = means(of_cases)
            curves.setdefault(name, {})[step] = of_step
            print(f"step {step}, {name}: Dice {100 * of_step['dice']:.2f} %", flush=True)
    kind = "unlabelled training" if split.split == "train" else "validation"
    number = min(len(split), cases or len(split))
    return curves, f"{number} {kind} case{'s' if number > 1 else ''}"


def _probabilities(
    split: Split, networks: dict[str, nn.Module], image: np.ndarray
) -> dict[str, Tensor]:
    """Class probabilities `(C, X, Y, Z)` of each network, and the sum of those that are tested
    together.
    """

    def predict(x: Tensor) -> Tensor:
        outputs = [network.segment(x).float() for network in networks.values()]
        return torch.cat([logits.softmax(1) for logits in outputs], 1)

    classes = split.num_classes
    probs = split.predict(predict, image, len(networks) * classes).split(classes)
    named = dict(zip(networks, probs, strict=True))
    if len(networks) > 1 and TEACHER not in networks:
        named[MEAN] = sum(probs)
    return named


def _score(prob: Tensor, label: np.ndarray, nms: bool) -> Scores:
    """The metrics of a case, each the mean over the foreground classes."""
    classes = len(prob)
    labels = prob.argmax(0).to(torch.uint8)
    if nms:
        labels = largest_component(labels[None], classes)[0]
    scored = multiclass_metrics(labels.numpy(), label, classes, empty="nan")
    return means(scored.values())


def dice(labels: np.ndarray, label: np.ndarray, num_classes: int) -> float:
    """Mean Dice over the foreground classes of a case's two label maps `(X, Y, Z)`; NaN where both
    are empty.
    """
    scored = multiclass_metrics(labels, label, num_classes, empty="nan")
    return means(scored.values(), ["dice"])["dice"]
