"""AD-MT's loss, turns and strong views (Zhao et al., ECCV 2024) in NumPy float64, from the facts,
section "AD-MT". One student, two teachers.

The functions take logits `(B, C, *S)`, labels and confidences `(B, *S)`, images `(B, 1, *S)` and
bool masks `(B, *S)`. z1, z2: teachers on weak U; z_s: the student on weak U, for votes only; z_u:
the student on strong U. `data` is "la", "pancreas" or "acdc".
"""

import math

import numpy as np
from numpy_reference import dice, softmax

LONGEST_TURN = {"la": 19, "pancreas": 14, "acdc": 50}
RAMP = {"la": 40, "pancreas": 40, "acdc": 50}
THRESHOLD = {"la": 0.8, "pancreas": 0.8, "acdc": 0.95}


def log_softmax(z):
    z = z - z.max(1, keepdims=True)
    return z - np.log(np.exp(z).sum(1, keepdims=True))


def voxel_cross_entropy(z, y):
    log_p = log_softmax(z)
    return -sum((y == c) * log_p[:, c] for c in range(z.shape[1]))


def ramp_up(t, T):
    return math.exp(-5 * (1 - min(t, T) / T) ** 2)


def consistency_weight(t, data="la"):
    """λ(t) = 2 r(t // 150, R), R = 40, ACDC 50. The first step is t = 0 (open)."""
    return 2 * ramp_up(t // 150, RAMP[data])


def learning_rate(t, t_max, base=0.01):
    """0.01 (1 - t / tmax)^0.9, tmax 15 000 (3-D) or 30 000 (ACDC)."""
    return base * (1 - t / t_max) ** 0.9


def teacher_decay(t, data="la"):
    """a of the teacher whose turn it is: 0 while t // 2 < R, then the smaller of 0.99 and
    1 - 1/(t // 2 - R + 1).
    θ' = a θ' + (1 - a) θ for parameters and buffers; the other teacher stays as it is.
    """
    since = t // 2 - RAMP[data]
    return 0.0 if since < 0 else min(1 - 1 / (since + 1), 0.99)


def teacher_update(teacher, student, a):
    return a * teacher + (1 - a) * student


def turns(lengths, steps):
    """The teacher, 1 or 2, of each of so many steps, given the turns' drawn lengths: 1 first, then
    in alternation. Teacher k predicts in train mode in its turn and in eval mode in the other's.
    """
    order = []
    for k, length in enumerate(lengths):
        order += [1 + k % 2] * length
    return order[:steps]


def draw_length(rng, data="la"):
    """n ~ U{1…P}, drawn anew for each turn; P = 19 LA, 14 Pancreas-CT, 50 ACDC."""
    return int(rng.integers(1, LONGEST_TURN[data] + 1))


def entropy(p):
    """H = -Σ p log2 p of each voxel, `(B, *S)`; 0 log 0 = 0."""
    return -(p * np.log2(np.where(p > 0, p, 1.0))).sum(1)


def ensemble(z1, z2, form="released"):
    """p̄ = Σ_k e^{-H_k} p_k / Σ_k e^{-H_k}; no gradient. "plain": the mean of both, as the code had
    it until January 2024 (both weights were e^{-(H_1 + H_2)}); the logs are older.
    """
    p1, p2 = softmax(z1), softmax(z2)
    if form == "plain":
        return (p1 + p2) / 2
    w1, w2 = np.exp(-entropy(p1))[:, None], np.exp(-entropy(p2))[:, None]
    return (w1 * p1 + w2 * p2) / (w1 + w2)


def pseudo_labels(z1, z2, form="released"):
    """ŷ = argmax p̄, c = max p̄, and the conflicts, where the teachers' argmax differ. No
    gradient.
    """
    p = ensemble(z1, z2, form)
    return p.argmax(1), p.max(1), z1.argmax(1) != z2.argmax(1)


def student_vote(z_s):
    """The student's argmax and max p on weak U, in a train-mode pass. No gradient."""
    p = softmax(z_s)
    return p.argmax(1), p.max(1)


def settle(label, confidence, conflict, vote, vote_confidence):
    """CCM: in a conflict where the student's label is not ŷ and its max p is above c, ŷ and c
    become the student's. The figure's CCM has no student: `pseudo_labels` by itself.
    """
    takes = conflict & (vote != label) & (vote_confidence > confidence)
    return np.where(takes, vote, label), np.where(takes, vote_confidence, confidence)


def mix(own, partner, box):
    """The partner's inside the boxes `(B, *S)`, the own outside; images or maps (open: which)."""
    return np.where(box if own.ndim == box.ndim else box[:, None], partner, own)


def targets(z1, z2, z_s, box=None, order=None, form="released", mix_vote=True):
    """ŷ and c of the strong view. Turn 1 (intensity): no box. Turn 2: boxes `(B, *S)` and the
    permutation of U that gives the partners; ŷ, c and conflicts are mixed, then settled by the
    student's vote, mixed too. Released: the vote is not mixed (`mix_vote=False`, a defect).
    """
    label, confidence, conflict = pseudo_labels(z1, z2, form)
    vote, vote_confidence = student_vote(z_s)
    if box is not None:
        label, confidence, conflict = (mix(m, m[order], box) for m in (label, confidence, conflict))
        if mix_vote:
            vote, vote_confidence = (mix(m, m[order], box) for m in (vote, vote_confidence))
    return settle(label, confidence, conflict, vote, vote_confidence)


def masked_dice(p, y, kept=None):
    """SSL4MIS's Dice loss (squares, 1e-5, sums over the batch, mean over all classes with the
    background), over the kept voxels. None kept: 0.
    """
    kept = np.ones(y.shape) if kept is None else kept.astype(np.float64)
    C = p.shape[1]
    return sum(dice(p[:, c] * kept, (y == c) * kept) for c in range(C)) / C


def supervised_loss(z, y):
    """(CE + Dice) / 2 of the labelled crops. Gradient reaches z."""
    return 0.5 * (voxel_cross_entropy(z, y).mean() + masked_dice(softmax(z), y))


def unlabelled_loss(z_u, label, confidence, data="la", threshold=None, empty=0.0):
    """L_u over the voxels where c ≥ τ: LA and Pancreas-CT the mean cross-entropy, τ = 0.8; ACDC
    `masked_dice`, τ = 0.95. Conflicts weigh 1. Gradient reaches z_u; label, confidence: none.
    With no such voxel the released mean is NaN (`empty=math.nan`); open: 0 here.
    """
    kept = confidence >= (THRESHOLD[data] if threshold is None else threshold)
    if data == "acdc":
        return masked_dice(softmax(z_u), label, kept)
    return voxel_cross_entropy(z_u, label)[kept].mean() if kept.any() else empty


def loss(z_l, y, z_u, label, confidence, t, data="la", threshold=None):
    """The loss of a step: L_sup + λ(t) L_u, `label` and `confidence` from `targets`. Gradient
    reaches z_l and z_u.
    """
    unlabelled = unlabelled_loss(z_u, label, confidence, data, threshold)
    return supervised_loss(z_l, y) + consistency_weight(t, data) * unlabelled


def intensity(x, alpha, beta):
    """A 3-D crop scaled to [0, 1] by its own limits, clip(α x + β mean(α x)) to [0, 1], and scaled
    back. A constant crop stays as it is (open).
    """
    low, high = x.min(), x.max()
    if low == high:
        return x.copy()
    y = alpha * (x - low) / (high - low)
    return np.clip(y + beta * y.mean(), 0, 1) * (high - low) + low


def noise(draw, sigma):
    """Noise to add, of a standard normal draw: σ N, clamped at ±2σ. Open: it is added to the crop's
    own scale, after `intensity`.
    """
    return np.clip(sigma * draw, -2 * sigma, 2 * sigma)


def intensity_view(x, rng, jitter=0.8, noisy=0.2):
    """Strong view of one 3-D crop in turn 1: with 0.8 `intensity`, α ~ U(0.5, 1.5), β ~ U(±0.5);
    with 0.2 noise, σ ~ U(0.1, 1). ACDC: UniMatch's strong view with its blur at 0.2.
    """
    if rng.random() < jitter:
        x = intensity(x, rng.uniform(0.5, 1.5), rng.uniform(-0.5, 0.5))
    if rng.random() < noisy:
        x = x + noise(rng.normal(size=x.shape), rng.uniform(0.1, 1))
    return x


def box_sides(shape, b):
    """√(1 - b) of each axis, in whole voxels (open: rounded down)."""
    return tuple(int(n * math.sqrt(1 - b)) for n in shape)


def centre_limits(n):
    """A centre's place on an axis: the smallest, and the first that is not drawn: [n/8, n)."""
    return n // 8, n


def box_slices(shape, sides, centre):
    """The box around the centre, clipped at the patch. Open: half a side, rounded down, to either
    side of the centre.
    """
    return tuple(
        slice(max(c - side // 2, 0), min(c + side // 2, n))
        for n, side, c in zip(shape, sides, centre, strict=True)
    )


def draw_boxes(batch, shape, rng):
    """Bool `(B, *S)`, True inside: b ~ Beta(4, 4) of the batch; a centre for each image and axis.
    The mean share of the patch is 0.22 in 3-D and 0.36 in 2-D.
    """
    sides = box_sides(shape, rng.beta(4, 4))
    boxes = np.zeros((batch, *shape), bool)
    for box in boxes:
        box[box_slices(shape, sides, [rng.integers(*centre_limits(n)) for n in shape])] = True
    return boxes


def draw_partners(batch, rng):
    """A permutation of U; of two crops each is its own partner half of the time."""
    return rng.permutation(batch)
