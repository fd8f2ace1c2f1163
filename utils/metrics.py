"""Overlap and surface metrics of a segmentation, with the definitions of ``medpy.metric.binary``.

Every method of the field is compared with medpy's numbers, so these equal them (a test holds them
to 1e-9), but take the voxel counts and both directed sets of surface distances once for all
metrics, from one compiled operator.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch

from utils.ops import _checks
from utils.ops.surface_distances import surface_distances_and_overlap

METRICS = ("dice", "jaccard", "precision", "recall", "hd", "hd95", "asd", "assd")
OVERLAPS, DISTANCES = METRICS[:4], METRICS[4:]


def binary_metrics(
    pred: np.ndarray | torch.Tensor,
    target: np.ndarray | torch.Tensor,
    spacing: Sequence[float] | None = None,
    hd95: str = "pooled",
    empty: str = "zero",
) -> dict[str, float]:
    """Dice, Jaccard, precision, recall (all in [0, 1]), HD, 95HD, ASD and ASSD of a prediction.

    ``asd`` is the mean from prediction to target alone, as medpy has it and the papers report it;
    ``assd`` is the mean over both directions together. Distances are in the unit of ``spacing``, in
    voxels without it.

    Args:
        pred, target: one pair, no batch: ``(X, Y, Z)`` or ``(X, Y)``, arrays or tensors on one
            device, of bools, integers or floats; what is not zero is foreground.
        spacing: size of a voxel along each axis.
        hd95: ``pooled``, the 95th percentile of both directions together (medpy), or ``max``, the
            larger of the two directed percentiles (MONAI, DeepMind surface-distance).
        empty: how a pair is scored when a mask has no voxel, and no surface to measure from.

            ========== ============================================
            ================================== empty      one mask is empty                            both are
            ========== ============================================
            ================================== zero       all 0, as the released codes of the field    all 0, as those codes
                       score an empty prediction. A distance of 0
                       is the best there is: this flatters the
                       method, so count the empty predictions
            nan        overlaps 0, distances NaN (left out)         all NaN: nothing to score
            diagonal   overlaps 0, distances the volume's diagonal  overlaps 1, distances 0 (BraTS)
            ========== ============================================
            ==================================

    Raises:
        TypeError: complex numbers, objects or text, or a spacing that is a single number.
        ValueError: shapes differ, neither 2-D nor 3-D, a bad spacing, or an unknown mode.
    """
    if hd95 not in ("pooled", "max"):
        raise ValueError(f"hd95 {hd95!r} is neither pooled nor max")
    if empty not in ("zero", "nan", "diagonal"):
        raise ValueError(f"empty {empty!r} is none of zero, nan, diagonal")

    pred, target = _mask(pred), _mask(target)
    if spacing is not None:
        spacing = _checks.numbers(
            spacing, f"a positive finite spacing for each of {pred.ndim} axes"
        )
    there, back, voxels = surface_distances_and_overlap(pred, target, spacing)
    n_pred, n_target, both = voxels.tolist()
    if not n_pred or not n_target:
        overlap, distance = _score_empty(empty, not n_pred and not n_target, pred.shape, spacing)
        return dict.fromkeys(OVERLAPS, overlap) | dict.fromkeys(DISTANCES, distance)

    there, back = there.cpu().numpy(), back.cpu().numpy()
    pooled = np.concatenate((there, back))
    sets = [pooled] if hd95 == "pooled" else [there, back]
    values = {
        "dice": 2 * both / (n_pred + n_target),
        "jaccard": both / (n_pred + n_target - both),
        "precision": both / n_pred,
        "recall": both / n_target,
        "hd": pooled.max(),
        "hd95": max(_percentile(s, 95) for s in sets),
        "asd": there.mean(),
        "assd": pooled.mean(),
    }
    return {name: float(value) for name, value in values.items()}


def multiclass_metrics(
    pred: np.ndarray | torch.Tensor, target: np.ndarray | torch.Tensor, num_classes: int, **options
) -> dict[int, dict[str, float]]:
    """:func:`binary_metrics` of each foreground class 1 … num_classes - 1 against all else.

    Raises:
        TypeError: as :func:`binary_metrics`, or a number of classes that is no integer.
        ValueError: as :func:`binary_metrics`; a label outside of ``[0, num_classes)`` or between
            two integers; or fewer than 2 classes.
    """
    if _checks.integer(num_classes, "the number of classes") < 2:
        raise ValueError(f"expected at least 2 classes with the background, got {num_classes}")
    pred, target = _checks.real(pred, "labels"), _checks.real(target, "labels")
    for name, labels in (("prediction", pred), ("target", target)):
        if not labels.numel():
            continue
        low, high = labels.min().item(), labels.max().item()
        if not 0 <= low <= high < num_classes:  # NaN is in no range
            raise ValueError(
                f"{name} holds labels {low} to {high}, expected 0 to {num_classes - 1}"
            )
        if labels.is_floating_point() and labels.frac().any():
            raise ValueError(f"{name} holds labels that are no integers")
    return {c: binary_metrics(pred == c, target == c, **options) for c in range(1, num_classes)}


def _mask(labels: np.ndarray | torch.Tensor) -> torch.Tensor:
    mask = _checks.real(labels, "labels")
    return mask != 0 if mask.is_floating_point() else mask


def _percentile(values: np.ndarray, q: float) -> float:
    """``np.percentile(values, q)``, to the bit and in a third of its time, of values that are not
    empty nor NaN.
    """
    rank = (len(values) - 1) * (q / 100)
    low, high = math.floor(rank), math.ceil(rank)
    values = np.partition(values, [low, high])
    step = values[high] - values[low]
    # From the nearer end, as NumPy does.
    return (
        values[low] + step * (rank - low)
        if rank - low < 0.5
        else values[high] - step * (1 - (rank - low))
    )


def _score_empty(
    mode: str, both: bool, shape: Sequence[int], spacing: Sequence[float] | None
) -> tuple[float, float]:
    """(overlap, distance) of a pair with an empty mask, after the table of
    :func:`binary_metrics`.
    """
    if mode == "zero":
        return 0.0, 0.0
    if mode == "nan":
        return (np.nan, np.nan) if both else (0.0, np.nan)
    if both:
        return 1.0, 0.0
    return 0.0, float(np.linalg.norm(np.multiply(shape, 1.0 if spacing is None else spacing)))


# How the metrics are written; overlaps in percent.
NAMES = {"dice": "Dice", "jaccard": "Jaccard", "precision": "Precision", "recall": "Recall"}


NAMES |= {"hd": "HD", "hd95": "95HD", "asd": "ASD", "assd": "ASSD"}


SHOWN = (
    "dice",
    "jaccard",
    "hd95",
    "asd",
)  # where nothing else is asked for: the columns of the field's tables
