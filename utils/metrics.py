"""Overlap and surface metrics of a segmentation, with the definitions of ``medpy.metric.binary``.

Every method of the field is compared with medpy's numbers, so these equal them (a test holds them to 1e-9) but take the
surfaces and the two directed sets of distances once for all metrics, on the bounding box of both masks. The crop is
exact: beyond the box both masks are background, and so is what lies beyond an array's edge when it is eroded.
"""

from collections.abc import Sequence

import numpy as np
from scipy.spatial import cKDTree

METRICS = ("dice", "jaccard", "precision", "recall", "hd", "hd95", "asd", "assd")
OVERLAPS, DISTANCES = METRICS[:4], METRICS[4:]


def surface(mask: np.ndarray) -> np.ndarray:
    """Voxels of a mask with a face on the background: the mask without its 6-connected (2-D: 4-connected) erosion.

    What lies outside of the array is background.
    """
    inner = mask.copy()
    for axis in range(mask.ndim):
        src, dst = np.moveaxis(mask, axis, 0), np.moveaxis(inner, axis, 0)
        dst[1:] &= src[:-1]
        dst[:-1] &= src[1:]
        dst[0] = dst[-1] = False
    return mask & ~inner


def surface_distances(
    pred: np.ndarray, target: np.ndarray, spacing: Sequence[float] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Distance of each surface voxel of one mask to the nearest surface voxel of the other, both directions.

    Args:
        pred, target: non-empty boolean masks of one shape.
        spacing: size of a voxel along each axis; without it distances are in voxels.

    Returns:
        Two float64 vectors: from prediction to target, from target to prediction.
    """
    scale = np.ones(pred.ndim) if spacing is None else np.asarray(spacing, dtype=np.float64)
    points = [np.argwhere(surface(mask)) * scale for mask in (pred, target)]
    # Unbalanced trees are built far faster, and points of a surface need no balance.
    trees = [cKDTree(p, balanced_tree=False, compact_nodes=False) for p in points]
    return trees[1].query(points[0])[0], trees[0].query(points[1])[0]


def binary_metrics(
    pred: np.ndarray,
    target: np.ndarray,
    spacing: Sequence[float] | None = None,
    hd95: str = "pooled",
    empty: str = "zero",
) -> dict[str, float]:
    """Dice, Jaccard, precision, recall (all in [0, 1]), HD, 95HD, ASD and ASSD of a prediction.

    ``asd`` is the mean from prediction to target alone, as medpy has it and the papers report it; ``assd`` is the mean
    over both directions together. Distances are in the unit of ``spacing``, in voxels without it.

    Args:
        pred, target: ``(X, Y, Z)`` or ``(X, Y)``; what is not zero is foreground.
        spacing: size of a voxel along each axis.
        hd95: ``pooled``, the 95th percentile of both directions together (medpy), or ``max``, the larger of the two
            directed percentiles (MONAI, DeepMind surface-distance).
        empty: how a pair is scored when a mask has no voxel, and no surface to measure from.

            ========== ============================================ ==================================
            empty      one mask is empty                            both are
            ========== ============================================ ==================================
            zero       all 0, as the released codes of the field    all 0, as those codes
                       score an empty prediction. A distance of 0
                       is the best there is: this flatters the
                       method, so count the empty predictions
            nan        overlaps 0, distances NaN (left out)         all NaN: nothing to score
            diagonal   overlaps 0, distances the volume's diagonal  overlaps 1, distances 0 (BraTS)
            ========== ============================================ ==================================

    Raises:
        ValueError: shapes differ, neither 2-D nor 3-D, a bad spacing, or an unknown mode.
    """
    pred, target = np.asarray(pred).astype(bool), np.asarray(target).astype(bool)
    if pred.shape != target.shape:
        raise ValueError(f"prediction {pred.shape} and target {target.shape} differ in shape")
    if pred.ndim not in (2, 3):
        raise ValueError(f"masks must be (X, Y, Z) or (X, Y), got {pred.shape}")
    if spacing is not None and (len(spacing) != pred.ndim or not all(0 < s < np.inf for s in spacing)):
        raise ValueError(f"spacing must be {pred.ndim} positive numbers, got {tuple(spacing)}")
    if hd95 not in ("pooled", "max"):
        raise ValueError(f"hd95 {hd95!r} is neither pooled nor max")
    if empty not in ("zero", "nan", "diagonal"):
        raise ValueError(f"empty {empty!r} is none of zero, nan, diagonal")

    box = _bounding_box(pred | target)
    pred_box, target_box = pred[box], target[box]
    n_pred, n_target = np.count_nonzero(pred_box), np.count_nonzero(target_box)
    if not n_pred or not n_target:
        overlap, distance = _score_empty(empty, not n_pred and not n_target, pred.shape, spacing)
        return dict.fromkeys(OVERLAPS, overlap) | dict.fromkeys(DISTANCES, distance)

    both = np.count_nonzero(pred_box & target_box)
    there, back = surface_distances(pred_box, target_box, spacing)
    pooled = np.concatenate((there, back))
    sets = [pooled] if hd95 == "pooled" else [there, back]
    values = {
        "dice": 2 * both / (n_pred + n_target),
        "jaccard": both / (n_pred + n_target - both),
        "precision": both / n_pred,
        "recall": both / n_target,
        "hd": pooled.max(),
        "hd95": max(np.percentile(s, 95) for s in sets),
        "asd": there.mean(),
        "assd": pooled.mean(),
    }
    return {name: float(value) for name, value in values.items()}


def multiclass_metrics(
    pred: np.ndarray, target: np.ndarray, num_classes: int, **options
) -> dict[int, dict[str, float]]:
    """:func:`binary_metrics` of each foreground class 1 … num_classes - 1 against all else.

    Raises:
        ValueError: as :func:`binary_metrics`, or a label outside of ``[0, num_classes)``.
    """
    pred, target = np.asarray(pred), np.asarray(target)
    for name, labels in (("prediction", pred), ("target", target)):
        if labels.size and not 0 <= labels.min() <= labels.max() < num_classes:
            raise ValueError(f"{name} holds labels {labels.min()} to {labels.max()}, expected 0 to {num_classes - 1}")
    return {c: binary_metrics(pred == c, target == c, **options) for c in range(1, num_classes)}


def _bounding_box(mask: np.ndarray) -> tuple[slice, ...]:
    """The smallest box that holds the mask; an empty mask gives an empty box."""
    box = []
    for axis in range(mask.ndim):
        hit = np.flatnonzero(mask.any(axis=tuple(a for a in range(mask.ndim) if a != axis)))
        box.append(slice(hit[0], hit[-1] + 1) if hit.size else slice(0, 0))
    return tuple(box)


def _score_empty(mode: str, both: bool, shape: Sequence[int], spacing: Sequence[float] | None) -> tuple[float, float]:
    """(overlap, distance) of a pair with an empty mask, after the table of :func:`binary_metrics`."""
    if mode == "zero":
        return 0.0, 0.0
    if mode == "nan":
        return (np.nan, np.nan) if both else (0.0, np.nan)
    if both:
        return 1.0, 0.0
    return 0.0, float(np.linalg.norm(np.multiply(shape, 1.0 if spacing is None else spacing)))
