"""BCP's loss (Bai et al., CVPR 2023) in NumPy float64, from the facts, section "BCP", and from
those of CML for CutMix and the halves of a batch.

The functions take images `(B, 1, *S)`, labels `(B, *S)`, logits `(B, C, *S)` and a mask `M` `(*S)`
that is False in one box and True around it, the same for the whole batch. A batch of labelled
crops has two halves a and b, and so has one of unlabelled crops.
"""

import itertools

import numpy as np
from numpy_reference import softmax


def box_sides(shape, beta=2 / 3):
    """The box's sides: ⌊β n⌋ of each axis (64 of 96 on Pancreas-CT)."""
    return tuple(int(n * beta + 1e-9) for n in shape)


def box_corners(shape, beta=2 / 3):
    """The smallest and the largest corner, both possible, on each axis: the box never leaves the
    patch. Open: whether the last place is drawn.
    """
    return tuple((0, n - side) for n, side in zip(shape, box_sides(shape, beta), strict=True))


def box_mask(shape, corner, beta=2 / 3):
    """M: False in the box at the corner."""
    M = np.ones(shape, bool)
    sides = box_sides(shape, beta)
    M[tuple(slice(k, k + side) for k, side in zip(corner, sides, strict=True))] = False
    return M


def mix(outside, inside, M):
    """outside M + inside (1 - M), of images or labels."""
    return np.where(M, outside, inside)


def pretraining_pair(x, y, M):
    """CML's CutMix of a labelled batch: its first half around the box, its second half inside.
    Open: which half is where.
    """
    n = len(x) // 2
    return mix(x[:n], x[n:], M), mix(y[:n], y[n:], M)


def mixed_images(x, u, M):
    """X_in = X_a M + U_a (1 - M) and X_out = U_b M + X_b (1 - M)."""
    n = len(x) // 2
    return mix(x[:n], u[:n], M), mix(u[n:], x[n:], M)


def mixed_targets(y, pseudo, M):
    """The targets of X_in and X_out, mixed like the images."""
    n = len(y) // 2
    return mix(y[:n], pseudo[:n], M), mix(pseudo[n:], y[n:], M)


def neighbours(dimensions, connectivity):
    """Steps to a voxel's neighbours; connectivity 4 or 8 in 2-D, 6, 18 or 26 in 3-D."""
    axes = {(2, 4): 1, (2, 8): 2, (3, 6): 1, (3, 18): 2, (3, 26): 3}[dimensions, connectivity]
    steps = itertools.product((-1, 0, 1), repeat=dimensions)
    return [step for step in steps if 1 <= np.count_nonzero(step) <= axes]


def largest_component(mask, connectivity):
    """The largest connected component of a bool mask; the first in memory of equal ones (open)."""
    steps, seen, best = neighbours(mask.ndim, connectivity), np.zeros_like(mask), []
    for start in map(tuple, np.argwhere(mask)):
        if seen[start]:
            continue
        seen[start], component = True, [start]
        for place in component:
            for step in steps:
                near = tuple(int(p + s) for p, s in zip(place, step, strict=True))
                inside = all(0 <= k < n for k, n in zip(near, mask.shape, strict=True))
                if inside and mask[near] and not seen[near]:
                    seen[near] = True
                    component.append(near)
        if len(component) > len(best):
            best = component
    kept = np.zeros_like(mask)
    for place in best:
        kept[place] = True
    return kept


def pseudo_labels(z_teacher, connectivity=26):
    """The teacher's argmax on the unmixed U, the largest component of each object kept, crop by
    crop, the rest background. LA: 26; Pancreas-CT: 18; ACDC: each class and slice (open: 8, with
    diagonals). z_teacher: no gradient.
    """
    label = softmax(z_teacher).argmax(1)
    kept = np.zeros_like(label)
    for b in range(len(label)):
        for c in range(1, z_teacher.shape[1]):
            kept[b][largest_component(label[b] == c, connectivity)] = c
    return kept


def dice(p, y, region, form="la"):
    """Dice loss of one region, a bool mask `(*S)`.

    "la": mean over samples and classes, background included, no squares, 1e-5.
    "acdc": mean over classes, background included, sums over the batch, squares, 1e-10 (open: the
    facts give the Dice of LA only; this is SS-Net's on ACDC).
    """
    terms = []
    for c in range(p.shape[1]):
        a, b = p[:, c] * region, (y == c) * region.astype(np.float64)
        if form == "acdc":
            inter, union = 2 * (a * b).sum() + 1e-10, (a**2).sum() + (b**2).sum() + 1e-10
            terms.append(1 - inter / union)
            continue
        for i in range(len(p)):
            inter, union = 2 * (a[i] * b[i]).sum() + 1e-5, a[i].sum() + b[i].sum() + 1e-5
            terms.append(1 - inter / union)
    return sum(terms) / len(terms)


def cross_entropy(z, y, region=None):
    """Mean of -ln p_y over the batch's voxels in the region; 0 of an empty region (open)."""
    z = z - z.max(1, keepdims=True)
    log_p = z - np.log(np.exp(z).sum(1, keepdims=True))
    voxels = -sum((y == c) * log_p[:, c] for c in range(z.shape[1]))
    if region is None:
        return voxels.mean()
    weight = np.broadcast_to(region, voxels.shape)
    return (voxels * weight).sum() / weight.sum() if weight.any() else 0.0


def region_loss(z, y, region, form="la"):
    """½ (Dice + CE) of one region by itself. Gradient reaches z."""
    return 0.5 * (dice(softmax(z), y, region, form) + cross_entropy(z, y, region))


def pretraining_loss(z_mixed, y_mixed, form="la"):
    """(Dice + CE) / 2 of the student on the labelled pair's CutMix, without regions."""
    return region_loss(z_mixed, y_mixed, np.ones(y_mixed.shape[1:], bool), form)


def loss(z_in, z_out, y, pseudo, M, alpha=0.5, form="la"):
    """The loss of a step; no ramp. `z_in`, `z_out`: the student's logits of X_in and X_out,
    gradient. `y`: labels of both halves of L; `pseudo`: of both halves of U, no gradient.
    Labelled regions weigh 1, pseudo-labelled ones α.
    """
    target_in, target_out = mixed_targets(y, pseudo, M)
    labelled_in = region_loss(z_in, target_in, M, form)
    pseudo_in = region_loss(z_in, target_in, ~M, form)
    labelled_out = region_loss(z_out, target_out, ~M, form)
    pseudo_out = region_loss(z_out, target_out, M, form)
    return labelled_in + alpha * pseudo_in + labelled_out + alpha * pseudo_out


def teacher_update(teacher, student, a=0.99):
    """θ' = a θ' + (1 - a) θ with a = 0.99 from the first step; at the start the teacher has the
    pre-trained weights. LA: parameters only; ACDC: the batch norm's buffers too.
    """
    return a * teacher + (1 - a) * student


def learning_rate(t, data="la", base=0.01):
    """LA: × 0.1 every 2500 steps, 1e-6 from 10 000 on. ACDC: constant."""
    return base if data == "acdc" else base * 0.1 ** min(t // 2500, 4)
