"""CoraNet's equations in NumPy, written from the paper's text (Shi et al., TMI 2022, III-B to
III-C) and not from the code. Logits are float64 `(B, C, *S)`, labels integers and masks bool
`(B, *S)`; class 0 is the background.

The paper sums over voxels. A training step cannot: its loss would grow with the crop. So each sum
also comes divided by the number of all voxels, `…_per_voxel`, which leaves the terms of one crop in
the paper's proportion.
"""

import numpy as np


def log_softmax(z):
    z = z - z.max(1, keepdims=True)
    return z - np.log(np.exp(z).sum(1, keepdims=True))


def one_hot(label, classes):
    return np.stack([label == k for k in range(classes)], 1).astype(np.float64)


def weights(classes, alpha):
    """w_k of L_ce-con and of L_ce-rad, each `(C,)`; more than one object is our extension."""
    con = np.ones(classes)
    con[0] = alpha
    rad = np.full(classes, float(alpha))
    rad[0] = 1.0
    return con, rad


def crm(D, D_con, D_rad, label, alpha):
    """Equation 1: a voxel's cross-entropy times the weight of its true class, summed over the
    labelled images. Nothing is divided by the weights.
    """
    q = one_hot(label, D.shape[1])
    per_class = (slice(None), *[None] * (q.ndim - 2))
    con, rad = weights(D.shape[1], alpha)
    return -(
        (q * log_softmax(D)).sum()
        + (con[per_class] * q * log_softmax(D_con)).sum()
        + (rad[per_class] * q * log_softmax(D_rad)).sum()
    )


def crm_per_voxel(D, D_con, D_rad, label, alpha):
    return crm(D, D_con, D_rad, label, alpha) / label.size


def csn(D, pseudo, certain):
    """Equation 7: the mean over images of the masked cross-entropy's sum over voxels."""
    voxels = -(one_hot(pseudo, D.shape[1]) * log_softmax(D)).sum(1)
    return (voxels * certain).sum() / len(D)


def csn_per_voxel(D, pseudo, certain):
    return csn(D, pseudo, certain) / certain[0].size


def cnt(D, D_teacher, uncertain):
    """Equation 8: the mean over images of the squared norm of the masked difference of the
    probabilities. The norm runs over the voxels and the classes; of two classes it is twice the
    object's.
    """
    difference = np.exp(log_softmax(D)) - np.exp(log_softmax(D_teacher))
    return ((uncertain[:, None] * difference) ** 2).sum() / len(D)


def cnt_per_voxel(D, D_teacher, uncertain):
    return cnt(D, D_teacher, uncertain) / uncertain[0].size
