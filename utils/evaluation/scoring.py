"""The scores of a case, and their means over the cases of a list."""

from collections.abc import Sequence
from dataclasses import asdict

import numpy as np

from utils.metrics import METRICS, mean, means, multiclass_metrics, spread

EMPTY = {
    "zero": "an empty mask scores 0 everywhere, as in released codes; its distances of 0 flatter "
    "95HD and ASD",
    "nan": "an empty mask has overlap 0 and is left out of the mean distances; two are left out of "
    "all",
    "diagonal": "an empty mask has overlap 0 and the volume's diagonal as distance; two agree",
}


def score_case(
    case: str,
    pred: np.ndarray,
    label: np.ndarray,
    class_names: Sequence[str],
    *,
    empty: str = "zero",
    per_slice: bool = False,
) -> list[dict]:
    """One row a foreground class: all metrics and voxel counts of a case.

    Args:
        case: its name.
        pred, label: `(X, Y, Z)`.
        class_names: of the foreground classes.
        empty: how a pair with an empty mask is scored (`utils.metrics.binary_metrics`).
        per_slice: score as `slice_metrics`.
    """
    metrics = slice_metrics if per_slice else multiclass_metrics
    scores = metrics(pred, label, len(class_names) + 1, empty=empty)
    return [
        {
            "case": case,
            "class": c,
            "class_name": class_names[c - 1],
            **score,
            "prediction_voxels": int(np.count_nonzero(pred == c)),
            "reference_voxels": int(np.count_nonzero(label == c)),
        }
        for c, score in scores.items()
    ]


def slice_metrics(
    pred: np.ndarray, label: np.ndarray, num_classes: int, **options
) -> dict[int, dict[str, float]]:
    """`utils.metrics.multiclass_metrics` of each slice of `(X, Y, slices)`, then the mean over the
    slices that hold the class in prediction or reference. It is meant for stacks of slices that are
    no neighbours in space.
    """
    slices = range(pred.shape[2])
    scores = [
        multiclass_metrics(pred[..., k], label[..., k], num_classes, **options) for k in slices
    ]
    of_class = {}
    for c in range(1, num_classes):
        shown = ((pred == c) | (label == c)).any((0, 1))
        rows = [scores[k][c] for k in slices if shown[k] or not shown.any()]
        of_class[c] = means(rows)
    return of_class


def summarise(rows: Sequence[dict]) -> dict:
    """Mean, sample sd (NaN for one case) and number of values of each metric, for each class and
    for their mean.

    The mean over classes is taken within each case first, so its sd is one over cases. NaN is left
    out.

    Args:
        rows: as `score_case` gives them, with the `seconds` of each case.
    """
    by_class = {}
    by_case = {}
    for row in rows:
        by_class.setdefault(row["class_name"], []).append(row)
        by_case.setdefault(row["case"], []).append(row)
    over_classes = [means(case) for case in by_case.values()]
    return {
        "cases": len(by_case),
        "mean": _spreads(over_classes),
        "classes": {name: _spreads(part) for name, part in by_class.items()},
        "empty_predictions": sum(row["prediction_voxels"] == 0 for row in rows),
        "empty_references": sum(row["reference_voxels"] == 0 for row in rows),
        "seconds_per_case": mean(case[0]["seconds"] for case in by_case.values()),
    }


def _spreads(rows: Sequence[dict]) -> dict[str, dict]:
    found = {}
    for m in METRICS:
        values = [row[m] for row in rows]
        found[m] = asdict(spread(values))
    return found
