"""DTC's loss (Luo et al., AAAI 2021) in NumPy float64, from the facts, section "DTC", and from the
shared protocol's signed distance map.

The functions take segmentation logits `z`, maps `d` after tanh and targets of them `sdm`, each
`(B, K, *S)` with one channel for each of K objects, and labels `y` `(B, *S)`, integers of 0 to K.
With K = 1 the network has one logit and `z` may also be given as two softmax logits `(B, 2, *S)`.
With K > 1, `z` is `(B, K + 1, *S)` and goes through softmax.
The crops of a batch are in the order labelled, unlabelled.
"""

import math

import numpy as np
from numpy_reference import softmax


def sigmoid(x):
    return 0.5 * (1 + np.tanh(0.5 * x))


def objects(z):
    """Probabilities of the objects, without the background's: `(B, K, *S)`."""
    return sigmoid(z) if z.shape[1] == 1 else softmax(z)[:, 1:]


def dice(p, q, eps=1e-5):
    """The family's first Dice loss: foreground, sums over the batch, squares below. With several
    objects their mean (open: the released code has one object).
    """
    total = 0.0
    for k in range(p.shape[1]):
        a, b = p[:, k], q[:, k]
        total += 1 - (2 * (a * b).sum() + eps) / ((a**2).sum() + (b**2).sum() + eps)
    return total / p.shape[1]


def object_masks(y, K):
    return np.stack([y == k + 1 for k in range(K)], 1).astype(np.float64)


def inner_boundary(mask):
    """Voxels of the mask with a neighbour across a face that is outside of it. A voxel at the edge
    of the patch has no neighbour there.
    """
    boundary = np.zeros_like(mask)
    for place in np.argwhere(mask):
        for axis in range(mask.ndim):
            for step in (-1, 1):
                neighbour = place.copy()
                neighbour[axis] += step
                inside = 0 <= neighbour[axis] < mask.shape[axis]
                if inside and not mask[tuple(neighbour)]:
                    boundary[tuple(place)] = True
    return boundary


def signed_distance(mask):
    """SDM of one bool mask `(*S)`: negative inside, 0 on the boundary, positive outside, each side
    divided by its own maximum over the patch. A distance is Euclidean, from a voxel's centre to the
    nearest centre of the other side. The map of an empty mask is 0 everywhere.

    Open: the boundary is the inner one, across faces; a mask that fills the patch gives 0 too.
    """
    sdm = np.zeros(mask.shape)
    if not mask.any() or mask.all():
        return sdm
    inside, outside = np.argwhere(mask), np.argwhere(~mask)
    for place in inside:
        sdm[tuple(place)] = -np.sqrt(((outside - place) ** 2).sum(1).min())
    for place in outside:
        sdm[tuple(place)] = np.sqrt(((inside - place) ** 2).sum(1).min())
    sdm[mask] /= -sdm[mask].min()
    sdm[~mask] /= sdm[~mask].max()
    sdm[inner_boundary(mask)] = 0
    return sdm


def signed_distances(y, K):
    """`signed_distance` of every crop and object: `(B, K, *S)`."""
    return np.stack([[signed_distance(crop == k + 1) for k in range(K)] for crop in y])


def mask_of_map(d, k=1500):
    """σ(-k d), the soft mask that a map stands for. The paper prints +k (k = -1500 here)."""
    return sigmoid(-k * d)


def ramp_up(t, T):
    return math.exp(-5 * (1 - min(t, T) / T) ** 2)


def consistency_weight(t, weight=1.0, T=40, stair=150):
    """λ(t) = weight r(t // 150, 40); DTML and UG-MCL weigh DTC with 0.1. The first step is t = 0
    (open).
    """
    return weight * ramp_up(t // stair, T)


def learning_rate(t, base=0.01):
    """Recipe A: × 0.1 from t = 2500 and again from t = 5000, of 6000 steps."""
    if t >= 5000:
        return base * 0.01
    return base * 0.1 if t >= 2500 else base


def supervised_loss(z, d, y, sdm, sdm_weight=0.3):
    """Dice(p, Y) + 0.3 mean (d - SDM(Y))² on the labelled crops; the paper has no 0.3
    (`sdm_weight=1`). Gradient reaches z and d.
    """
    p = objects(z)
    return dice(p, object_masks(y, p.shape[1])) + sdm_weight * ((d - sdm) ** 2).mean()


def consistency(z, d, k=1500):
    """mean (p - σ(-k d))² over crops, objects and voxels, L ∪ U. Gradient reaches z and d."""
    return ((objects(z) - mask_of_map(d, k)) ** 2).mean()


def loss(z, d, y, sdm, t, sdm_weight=0.3, k=1500, weight=1.0):
    """The loss of a step. `z` and `d` are of labelled and unlabelled crops, `y` and `sdm` of the
    labelled ones, which come first. Gradient reaches z and d in both terms.
    """
    n = len(y)
    supervised = supervised_loss(z[:n], d[:n], y, sdm, sdm_weight)
    return supervised + consistency_weight(t, weight) * consistency(z, d, k)


def predict(z, threshold=0.5):
    """Labels at test time: the segmentation head above 0.5; of several objects the argmax. The
    largest component is kept afterwards by default.
    """
    if z.shape[1] == 1:
        return (objects(z)[:, 0] > threshold).astype(int)
    return softmax(z).argmax(1) if z.shape[1] > 2 else (softmax(z)[:, 1] > threshold).astype(int)
