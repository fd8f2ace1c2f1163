"""SASSNet's losses (Li et al., MICCAI 2020) in NumPy float64, from the facts, section "SASSNet",
with the supervised loss of section "DTC".

The functions take segmentation logits `z`, maps `d` after tanh and targets of them `sdm`, each
`(B, K, *S)` with one channel for each of K objects, labels `y` `(B, *S)`, integers of 0 to K, and
logits of the discriminator `(B, 2)`, class 1 = labelled. With K > 1, `z` is `(B, K + 1, *S)`; with
K = 1 it may be `(B, 2, *S)` too. The crops of a batch are in the order labelled, unlabelled.
"""

import math

import numpy as np
from numpy_reference import dice, softmax


def ramp_up(t, T):
    return math.exp(-5 * (1 - min(t, T) / T) ** 2)


def adversarial_weight(t, weight=0.01):
    """λ(t) = w r(t // 150, 40): w = 0.01 with 16 labels, 0.015 with 8 (README); paper 0.001. The
    first step is t = 0 (open).
    """
    return weight * ramp_up(t // 150, 40)


def learning_rate(t, base=0.01):
    """Recipe A: × 0.1 from t = 2500 and again from t = 5000, of 6000 steps. The discriminator has
    Adam with 1e-4 and betas (0.9, 0.99), constant (open).
    """
    if t >= 5000:
        return base * 0.01
    return base * 0.1 if t >= 2500 else base


def objects(z):
    """Probabilities of the objects, without the background's: `(B, K, *S)`."""
    return 0.5 * (1 + np.tanh(0.5 * z)) if z.shape[1] == 1 else softmax(z)[:, 1:]


def supervised_loss(z, d, y, sdm, sdm_weight=0.3):
    """Dice(p, Y) + 0.3 mean (d - SDM(Y))² on the labelled crops, as DTC's. Dice: foreground, sums
    over the batch, squares, 1e-5; of several objects the mean (open). Gradient reaches z and d.
    """
    p = objects(z)
    K = p.shape[1]
    overlap = sum(dice(p[:, k], (y == k + 1).astype(np.float64)) for k in range(K)) / K
    return overlap + sdm_weight * ((d - sdm) ** 2).mean()


def cross_entropy(logits, target):
    """Mean over the crops of -ln softmax(logits)_target."""
    shifted = logits - logits.max(1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    return -sum(log_p[b, target[b]] for b in range(len(target))) / len(target)


def adversarial_loss(logits_u):
    """CE(D(d_u, x_u), labelled) of the unlabelled crops, for the step of the network. D is in eval
    mode; gradient reaches d_u through D, and D's own parameters take no step by it.
    """
    return cross_entropy(logits_u, [1] * len(logits_u))


def discriminator_loss(logits, n_labelled):
    """D's loss: CE over all crops, labelled 1, unlabelled 0. D sees (d, x), d from the network in
    eval mode without gradient; gradient reaches D only. One step an iteration. With DAN, D sees
    softmax maps in place of d.
    """
    return cross_entropy(logits, [1] * n_labelled + [0] * (len(logits) - n_labelled))


def loss(z, d, y, sdm, logits_u, t, weight=0.01, sdm_weight=0.3):
    """The loss of the network's step. `z`, `d`: of L ∪ U or L alone, labelled first; `logits_u`:
    the discriminator's of the unlabelled (d, x). Gradient reaches z and d.
    """
    n = len(y)
    supervised = supervised_loss(z[:n], d[:n], y, sdm, sdm_weight)
    return supervised + adversarial_weight(t, weight) * adversarial_loss(logits_u)
