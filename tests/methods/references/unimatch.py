"""UniMatch's loss on ACDC (Yang et al., CVPR 2023, medical folder) in NumPy float64, from the
facts, section "UniMatch".

The functions take logits `(B, C, *S)`, labels and confidences `(B, *S)`, images `(B, 1, *S)` and
bool masks `(B, *S)`. Views of an unlabelled image: weak w; strong s1 and s2, both of that w; v is
the partner, unlabelled too, of another shuffle. f: the logits of w with dropped features.
"""

import math

import numpy as np
from numpy_reference import softmax


def log_softmax(z):
    z = z - z.max(1, keepdims=True)
    return z - np.log(np.exp(z).sum(1, keepdims=True))


def cross_entropy(z, y):
    log_p = log_softmax(z)
    return -sum((y == c) * log_p[:, c] for c in range(z.shape[1])).mean()


def masked_dice(p, y, kept=None, eps=1e-5):
    """D: the mean over all classes with the background of SSL4MIS's Dice loss, with squares, summed
    over the kept pixels of the whole batch. None kept: 0. A class that is absent from the kept
    labels costs almost 1 while its p there is not 0.
    """
    kept = np.ones(y.shape) if kept is None else kept.astype(np.float64)
    total = 0.0
    for c in range(p.shape[1]):
        a, b = p[:, c] * kept, (y == c) * kept
        total += 1 - (2 * (a * b).sum() + eps) / ((a**2).sum() + (b**2).sum() + eps)
    return total / p.shape[1]


def supervised_loss(z, y):
    """(CE + Dice) / 2 of the labelled images. Gradient reaches z."""
    return 0.5 * (cross_entropy(z, y) + masked_dice(softmax(z), y))


def pseudo_labels(z):
    """ŷ = argmax p and c = max p; no gradient. Of w: logits of the train-mode pass on L ∪ w. Of v:
    logits of an eval-mode pass under no_grad.
    """
    p = softmax(z)
    return p.argmax(1), p.max(1)


def mix(own, partner, box):
    """The partner's inside the boxes `(B, *S)`, the own outside: of strong views `(B, 1, *S)`, of
    ŷ and of c. View k takes the partner's view k.
    """
    return np.where(box if own.ndim == box.ndim else box[:, None], partner, own)


def unlabelled_term(z, target, confidence, threshold=0.95):
    """D of one view against the target where its confidence is at least the threshold. Gradient
    reaches z; target and confidence: no gradient.
    """
    return masked_dice(softmax(z), target, confidence >= threshold)


def loss(z_l, y, z_s, z_f, z_w, z_v, boxes, threshold=0.95):
    """L_sup / 2 + D(s1) / 8 + D(s2) / 8 + D(f) / 4, without a ramp.

    z_l: logits of L; z_s: pair of logits of the mixed s1, s2; z_f: logits of w under dropped
    features; gradient reaches these. z_w, z_v: logits that give ŷ, c and ŷ_v, c_v, no gradient
    by this way (the pass of z_w has no other use than its argmax, as z_l is of the same pass).
    boxes: pair of bool `(B, *S)`, one box for each strong view of each image.
    """
    label, confidence = pseudo_labels(z_w)
    label_v, confidence_v = pseudo_labels(z_v)
    total = supervised_loss(z_l, y) / 2
    for z, box in zip(z_s, boxes, strict=True):
        target = mix(label, label_v, box)
        total += unlabelled_term(z, target, mix(confidence, confidence_v, box), threshold) / 8
    return total + unlabelled_term(z_f, label, confidence, threshold) / 4


def drop_features(features, keep, rate=0.5):
    """Dropout2d (3-D: Dropout3d) of encoder features `(B, F, *S)`: whole channels, kept where
    `keep` `(B, F)`, divided by 1 - rate. All five outputs of the encoder, skips too, each with its
    own draw. The decoder takes [plain, dropped] as one batch, so they share its batch norm.
    """
    channel = keep.reshape(*keep.shape, *[1] * (features.ndim - 2))
    return features * channel / (1 - rate)


def box_sides(area, aspect):
    """⌊√(s / q)⌋ and ⌊√(s q)⌋ of an area s in pixels and an aspect q. Open: the first is the number
    of columns, the second of rows.
    """
    return int(math.sqrt(area / aspect)), int(math.sqrt(area * aspect))


def largest_side(n, share=0.4):
    """An upper limit of a side: that of the largest area at the most extreme aspect, or n."""
    return min(n, int(math.sqrt(share * n * n / 0.3)))


def draw_box(n, rng, probability=0.5, share=(0.02, 0.4), aspect=0.3):
    """The box of one strong view of one n × n image: (row, column, rows, columns), or None.

    Absent with probability 1/2. The area's share ~ U(0.02, 0.4) is drawn once; the aspect
    ~ U(0.3, 1/0.3) and the corner, each of its numbers in 0…n-1, are redrawn until the box fits.
    The mean share of the image over all draws, absent ones included, is 0.10.
    """
    if rng.random() >= probability:
        return None
    area = rng.uniform(*share) * n * n
    while True:
        columns, rows = box_sides(area, rng.uniform(aspect, 1 / aspect))
        row, column = (int(rng.integers(n)) for _ in range(2))
        if row + rows <= n and column + columns <= n:
            return row, column, rows, columns


def box_mask(shape, box):
    """True inside the box, False everywhere without one."""
    mask = np.zeros(shape, bool)
    if box is not None:
        row, column, rows, columns = box
        mask[row : row + rows, column : column + columns] = True
    return mask


def to_8_bits(x):
    """Images of [0, 1] as 0…255, truncated (open: rounding). w, s1 and s2, but not L."""
    return np.floor(np.clip(x, 0, 1) * 255)


def brightness(x, factor):
    """f x, within 0…255."""
    return np.floor(np.clip(factor * x, 0, 255))


def contrast(x, factor):
    """m + f (x - m), within 0…255, m the image's mean, rounded. Open: the rounding, as Pillow's."""
    mean = math.floor(x.mean() + 0.5)
    return np.floor(np.clip(mean + factor * (x - mean), 0, 255))


def blur(x, radius):
    """Gaussian blur of an image `(H, W)` with standard deviation `radius` pixels, its edge
    repeated. Open: the exact kernel, up to four radii; Pillow approximates it.
    """
    reach = math.ceil(4 * radius)
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / radius) ** 2)
    kernel /= kernel.sum()
    for axis in range(2):
        n, result = x.shape[axis], np.zeros_like(x)
        for k, weight in zip(range(-reach, reach + 1), kernel, strict=True):
            result += weight * np.take(x, np.clip(np.arange(n) + k, 0, n - 1), axis)
        x = result
    return x


def strong_view(x, rng, jitter=0.8, blurring=0.5):
    """s of an 8-bit w `(H, W)`, drawn anew for s1 and s2: with 0.8 brightness and contrast, factors
    U(0.5, 1.5), in random order; then with 0.5 blur, radius U(0.1, 2).
    """
    if rng.random() < jitter:
        steps = [(brightness, rng.uniform(0.5, 1.5)), (contrast, rng.uniform(0.5, 1.5))]
        for step, factor in steps if rng.random() < 0.5 else steps[::-1]:
            x = step(x, factor)
    return np.floor(blur(x, rng.uniform(0.1, 2)) + 0.5) if rng.random() < blurring else x


def learning_rate(t, t_max, base=0.01):
    """0.01 (1 - t / tmax)^0.9."""
    return base * (1 - t / t_max) ** 0.9
