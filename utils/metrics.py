"""Overlap and surface metrics of a segmentation, with the definitions of `medpy.metric.binary`, and
how their values are averaged and written.

Every method of the field is compared with medpy's numbers, so these equal them (a test holds them
to 1e-9). The voxel counts and both directed sets of surface distances are computed once for all
metrics, by one compiled operator.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from utils.ops import _checks
from utils.ops.surface_distances import surface_distances_and_overlap

METRICS = ("dice", "jaccard", "precision", "recall", "hd", "hd95", "asd", "assd")
OVERLAPS, DISTANCES = METRICS[:4], METRICS[4:]
NAMES = {
    "dice": "Dice",
    "jaccard": "Jaccard",
    "precision": "Precision",
    "recall": "Recall",
    "hd": "HD",
    "hd95": "95HD",
    "asd": "ASD",
    "assd": "ASSD",
}
SHOWN = ("dice", "jaccard", "hd95", "asd")  # the columns of the field's tables

# ------------------------------------------------------------------ of a pair of masks


def binary_metrics(
    pred: np.ndarray | torch.Tensor,
    target: np.ndarray | torch.Tensor,
    spacing: Sequence[float] | None = None,
    hd95: str = "pooled",
    empty: str = "zero",
) -> dict[str, float]:
    """Dice, Jaccard, precision, recall (all in [0, 1]), HD, 95HD, ASD and ASSD of a prediction.

    `asd` is the mean distance from the prediction to the target only, as medpy has it and the
    papers report it; `assd` is the mean over both directions together. Distances are in the unit
    of `spacing`, and in voxels without it.

    A mask without voxels has no surface to measure from. `empty` says how such a pair is scored:

    - `zero`: everything is 0, whether one mask is empty or both, as in the released codes of the
      field. A distance of 0 is the best there is, which flatters the method: count the empty
      predictions.
    - `nan`: one empty mask has overlaps of 0 and distances of NaN (left out of means); two empty
      masks have NaN everywhere.
    - `diagonal`: one empty mask has overlaps of 0 and the volume's diagonal as every distance; two
      empty masks have overlaps of 1 and distances of 0 (the rule of BraTS).

    Args:
        pred, target: one pair, no batch: `(X, Y, Z)` or `(X, Y)`, arrays or tensors on one device,
            of bools, integers or floats; whatever is not zero is foreground.
        spacing: size of a voxel along each axis.
        hd95: `pooled`, the 95th percentile of both directions together (medpy), or `max`, the
            larger of the two directed percentiles (MONAI, DeepMind surface-distance).
        empty: `zero`, `nan` or `diagonal`.

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
        wanted = f"a positive finite spacing for each of {pred.ndim} axes"
        spacing = _checks.numbers(spacing, wanted)
    there, back, voxels = surface_distances_and_overlap(pred, target, spacing)
    n_pred, n_target, both = voxels.tolist()
    if not n_pred or not n_target:
        overlap, distance = _score_empty(empty, not n_pred and not n_target, pred.shape, spacing)
        return dict.fromkeys(OVERLAPS, overlap) | dict.fromkeys(DISTANCES, distance)
    overlaps = {
        "dice": 2 * both / (n_pred + n_target),
        "jaccard": both / (n_pred + n_target - both),
        "precision": both / n_pred,
        "recall": both / n_target,
    }
    return overlaps | _distances(there.cpu().numpy(), back.cpu().numpy(), hd95)


def multiclass_metrics(
    pred: np.ndarray | torch.Tensor, target: np.ndarray | torch.Tensor, num_classes: int, **options
) -> dict[int, dict[str, float]]:
    """`binary_metrics` of each foreground class 1 … num_classes - 1 against all else.

    Raises:
        TypeError: as `binary_metrics`, or a number of classes that is no integer.
        ValueError: as `binary_metrics`; a label outside of `[0, num_classes)` or between
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


def _distances(there: np.ndarray, back: np.ndarray, hd95: str) -> dict[str, float]:
    """The surface metrics of both directed sets of distances, neither of them empty."""
    pooled = np.concatenate((there, back))
    sets = [pooled] if hd95 == "pooled" else [there, back]
    values = {
        "hd": pooled.max(),
        "hd95": max(_percentile(distances, 95) for distances in sets),
        "asd": there.mean(),
        "assd": pooled.mean(),
    }
    return {name: float(value) for name, value in values.items()}


def _mask(labels: np.ndarray | torch.Tensor) -> torch.Tensor:
    mask = _checks.real(labels, "labels")
    return mask != 0 if mask.is_floating_point() else mask


def _percentile(values: np.ndarray, q: float) -> float:
    """`np.percentile(values, q)` in a third of its time, bit-identical; no value may be NaN, and
    there must be one.
    """
    rank = (len(values) - 1) * (q / 100)
    low, high = math.floor(rank), math.ceil(rank)
    values = np.partition(values, [low, high])
    step = values[high] - values[low]
    share = rank - low
    # From the nearer end, as NumPy does.
    return values[low] + step * share if share < 0.5 else values[high] - step * (1 - share)


def _score_empty(
    mode: str, both: bool, shape: Sequence[int], spacing: Sequence[float] | None
) -> tuple[float, float]:
    """(overlap, distance) of a pair with an empty mask, as `binary_metrics` describes them."""
    if mode == "zero":
        return 0.0, 0.0
    if mode == "nan":
        return (np.nan, np.nan) if both else (0.0, np.nan)
    if both:
        return 1.0, 0.0
    return 0.0, float(np.linalg.norm(np.multiply(shape, 1.0 if spacing is None else spacing)))


# ------------------------------------------------------------------ of many cases


@dataclass(frozen=True)
class Spread:
    """Mean and sample sd (`ddof` 1) of `n` values: NaN where there are too few."""

    mean: float
    sd: float
    n: int


def spread(values: Iterable[float]) -> Spread:
    """Mean, sample sd and number of the values; NaN is left out."""
    kept = np.array(list(values), dtype=float)
    kept = kept[~np.isnan(kept)]
    average = float(kept.mean()) if len(kept) else math.nan
    sd = float(kept.std(ddof=1)) if len(kept) > 1 else math.nan
    return Spread(average, sd, len(kept))


def mean(values: Iterable[float]) -> float:
    """Mean of the values; NaN is left out, and is the mean of none."""
    return spread(values).mean


def means(rows: Iterable[Mapping[str, float]], names: Iterable[str] = METRICS) -> dict[str, float]:
    """The mean of each of these columns of the rows, as `mean` takes it."""
    rows = list(rows)
    found = {}
    for name in names:
        found[name] = mean(row[name] for row in rows)
    return found


def factor(metric: str) -> int:
    """The number that a metric is multiplied with to be shown: overlaps are shown in percent."""
    return 100 if metric in OVERLAPS else 1


def heading(metric: str) -> str:
    """A metric's name, with % where it is shown so."""
    return f"{NAMES[metric]} %" if metric in OVERLAPS else NAMES[metric]


def spread_text(found: Spread, times: float = 1, width: int = 0) -> str:
    """Mean ± sd, both multiplied by `times`; `-` for no value, and one value without sd.

    The mean is set to the right in `width` characters.
    """
    if math.isnan(found.mean):
        return f"{'-':>{width}}"
    sd = "" if math.isnan(found.sd) else f" ± {times * found.sd:.2f}"
    return f"{times * found.mean:{width}.2f}{sd}"
