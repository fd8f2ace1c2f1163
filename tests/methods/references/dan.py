"""Deep adversarial network in NumPy: "DAN" and "Discriminator" of the facts (SSL4MIS's code; of the
paper only the abstract could be read).

L = L_sup + λ(t) CE(D(p_u, x_u), labelled). D learns by CE over the batch, labelled 1 and unlabelled
0, on the softmax maps. d, d_l, d_u are D's two logits of each image, `(B, 2)`. D itself is given in
torch, as the segmenter's gradient runs through it.
"""

import numpy as np
import torch
from references.shared import cross_entropy, dice_ssl4mis, ramp_in_blocks, supervised

LABELLED = 1
UNLABELLED = 0


def consistency_weight(t, weight=0.1, length=200):
    """λ(t) = 0.1 r(t//150, 200)."""
    return weight * ramp_in_blocks(t, length)


def image_cross_entropy(d, target):
    """The mean over the images of the CE of two logits; target is a number for all or `(B,)`."""
    return cross_entropy(d, np.broadcast_to(target, len(d)))


def segmenter_loss(z_l, label, d_u, weight, dice=dice_ssl4mis):
    """L_sup + λ(t) CE(D(p_u, x_u), labelled). D is in eval mode. Gradient reaches z_l, and through
    D and p_u the network; D's parameters get no update.
    """
    return supervised(z_l, label, dice) + weight * image_cross_entropy(d_u, LABELLED)


loss = segmenter_loss


def discriminator_loss(d_l, d_u):
    """One mean over all images of the batch, so that of unequal parts the larger weighs more. The
    segmenter is in eval mode and its maps are detached: gradient reaches D's parameters only. With
    2 + 2 images the released targets are [1, 1, 0, 0].
    """
    d = np.concatenate([d_l, d_u])
    return image_cross_entropy(d, np.array([LABELLED] * len(d_l) + [UNLABELLED] * len(d_u)))


# The discriminator


def discriminator_parameters(classes, image_channels, dims, rng, width=64):
    """Random weights, float64: "map", "image" (each to 64), "second" (128), "third" (256), "fourth"
    (512), each `(out, in, 4, …)` with a bias, and "linear" (2, 512).
    """
    sizes = {
        "map": (width, classes),
        "image": (width, image_channels),
        "second": (2 * width, width),
        "third": (4 * width, 2 * width),
        "fourth": (8 * width, 4 * width),
    }
    parameters = {}
    for name, (after, before) in sizes.items():
        weight = rng.normal(0, 0.05, (after, before) + (4,) * dims)
        parameters[name] = torch.from_numpy(weight), torch.zeros(after, dtype=torch.float64)
    weight = rng.normal(0, 0.05, (2, 8 * width))
    parameters["linear"] = torch.from_numpy(weight), torch.zeros(2, dtype=torch.float64)
    return parameters


def discriminator(maps, image, parameters, dropout=None):
    """Logits `(B, 2)` of torch tensors `(B, C, *S)`, softmax maps and image. Convolutions 4³,
    stride 2, padding 1 (112×112×80 then gives the 7×7×5 of the facts). Map and image each through
    one, summed, LeakyReLU 0.2, dropout 0.5; 128 and 256 the same; 512 with LeakyReLU; the mean
    over the rest; linear. Class 1 is labelled.

    dropout: None in eval mode; in train mode three arrays of 0 or 2 that broadcast to the features
    of 64, 128 and 256 channels (whole channels or single values: open).
    """
    convolution = {2: torch.nn.functional.conv2d, 3: torch.nn.functional.conv3d}[maps.dim() - 2]

    def convolve(x, name):
        return convolution(x, *parameters[name], stride=2, padding=1)

    def leaky(x):
        return torch.nn.functional.leaky_relu(x, 0.2)

    masks = [1, 1, 1] if dropout is None else dropout
    features = leaky(convolve(maps, "map") + convolve(image, "image")) * masks[0]
    features = leaky(convolve(features, "second")) * masks[1]
    features = leaky(convolve(features, "third")) * masks[2]
    features = leaky(convolve(features, "fourth"))
    pooled = features.flatten(2).mean(2)
    return torch.nn.functional.linear(pooled, *parameters["linear"])
