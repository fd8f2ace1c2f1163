"""binary_metrics, which uses surface_distances, against medpy, MONAI, and SciPy and edt."""

import functools

import numpy as np
import torch
from harness import compare, times, volumes
from scipy import ndimage
from scipy.spatial import cKDTree

from utils.metrics import binary_metrics

SPACING = (0.625, 0.625, 1.25)


def prediction(label):
    """The label a little off: shifted and smoothed."""
    shifted = np.roll(label, (2, -1, 1), (0, 1, 2)).astype(np.float32)
    return (ndimage.gaussian_filter(shifted, 1.5) > 0.5).astype(np.uint8)


def with_noise(mask, count=10, radius=9):
    """The mask and balls at random places, as in a network's first predictions."""
    random = np.random.default_rng(0)
    noisy = mask.copy()
    axes = np.ogrid[tuple(slice(0, extent) for extent in mask.shape)]
    for _ in range(count):
        centre = [random.integers(radius, extent - radius) for extent in mask.shape]
        noisy |= sum((a - c) ** 2 for a, c in zip(axes, centre, strict=True)) <= radius**2
    return noisy


def ours(pred, target, spacing=None, hd95="pooled"):
    values = binary_metrics(pred, target, spacing, hd95)
    return [values[name] for name in ("dice", "jaccard", "hd95", "asd")]


def medpy_metrics(pred, target, spacing=None):
    from medpy.metric import binary

    return [
        binary.dc(pred, target),
        binary.jc(pred, target),
        binary.hd95(pred, target, voxelspacing=spacing),
        binary.asd(pred, target, voxelspacing=spacing),
    ]


def monai_metrics(pred, target):
    from monai import metrics

    pred, target = (torch.from_numpy(mask)[None, None] for mask in (pred, target))
    return [
        metrics.compute_dice(pred, target).item(),
        metrics.compute_iou(pred, target).item(),
        metrics.compute_hausdorff_distance(
            pred, target, include_background=True, percentile=95
        ).item(),
        metrics.compute_average_surface_distance(pred, target, include_background=True).item(),
    ]


def box(mask):
    """The smallest box that holds the mask."""
    sides = []
    for others in ((1, 2), (0, 2), (0, 1)):
        hits = np.flatnonzero(mask.any(axis=others))
        sides.append(slice(hits[0], hits[-1] + 1))
    return tuple(sides)


def surface(mask):
    inner = mask.copy()
    for axis in range(3):
        source, to = np.moveaxis(mask, axis, 0), np.moveaxis(inner, axis, 0)
        to[1:] &= source[:-1]
        to[:-1] &= source[1:]
        to[0] = to[-1] = False
    return mask & ~inner


def tree_distances(pred, target, spacing, threads):
    scale = 1.0 if spacing is None else spacing
    points = [np.argwhere(surface(mask)) * scale for mask in (pred, target)]
    # Unbalanced trees are built much faster, and points of a surface need no balance.
    trees = [cKDTree(p, balanced_tree=False, compact_nodes=False) for p in points]
    there, _ = trees[1].query(points[0], workers=threads)
    back, _ = trees[0].query(points[1], workers=threads)
    return there, back


def edt_distances(pred, target, spacing, threads):
    import edt

    surfaces = surface(pred), surface(target)
    maps = [edt.edt(~mask, anisotropy=spacing, parallel=threads) for mask in surfaces]
    return maps[1][surfaces[0]], maps[0][surfaces[1]]


def composite(distances, pred, target, spacing, threads):
    """All four metrics in the box of both masks; each directed distance is computed once."""
    pred, target = pred.view(bool), target.view(bool)
    crop = box(pred | target)
    pred, target = pred[crop], target[crop]
    there, back = distances(pred, target, spacing, threads)
    sizes, both = np.count_nonzero(pred) + np.count_nonzero(target), np.count_nonzero(pred & target)
    hd95 = np.percentile(np.concatenate((there, back)), 95)
    return [2 * both / sizes, both / (sizes - both), hd95, there.mean()]


def run(args):
    cases, source = volumes()
    target = np.ascontiguousarray(cases[0][1])
    clean = prediction(target)
    noisy = with_noise(clean)
    data = f"{source}, {times(target.shape)}"
    timed = functools.partial(compare, rounds=args.rounds, inputs=[clean, target])

    def peers(pred, spacing=None):
        return {
            f"box, cKDTree of the surfaces, {args.threads} threads": (
                [],
                lambda: composite(tree_distances, pred, target, spacing, args.threads),
            ),
            f"box, edt, {args.threads} threads": (
                ["edt"],
                lambda: composite(edt_distances, pred, target, spacing, args.threads),
            ),
            "medpy dc, jc, hd95, asd": (["medpy"], lambda: medpy_metrics(pred, target, spacing)),
        }

    yield from timed("binary_metrics", data, lambda: ours(clean, target), peers(clean), atol=1e-6)
    yield from timed(
        "binary_metrics, spacing",
        f"{data}, spacing {times(SPACING)}",
        lambda: ours(clean, target, SPACING),
        peers(clean, SPACING),
        atol=1e-6,
    )
    yield from timed(
        "binary_metrics, noise",
        f"{data}, 10 balls of noise",
        lambda: ours(noisy, target),
        peers(noisy),
        atol=1e-5,
    )
    yield from timed(
        "binary_metrics, hd95 max",
        data,
        lambda: ours(clean, target, hd95="max"),
        {"MONAI dice, iou, hausdorff 95, asd": (["monai"], lambda: monai_metrics(clean, target))},
        atol=1e-6,
    )
