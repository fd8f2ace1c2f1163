"""largest_component against cc3d, skimage and SciPy, on clean and on noisy labels."""

import numpy as np
import torch
from harness import compare, label_crops, times, volumes
from scipy import ndimage

from utils.ops import largest_component


def noisy(label):
    """The label with one voxel in a hundred flipped, and with small blobs of noise."""
    random = np.random.default_rng(0)
    salt = random.random(label.shape) < 0.01
    smooth = ndimage.gaussian_filter(random.standard_normal(label.shape), 1.5)
    return (label ^ salt) | (smooth > 2.8 * smooth.std()).astype(label.dtype)


def largest_of(components, label):
    """The largest component as in research code, for a mask that is not empty."""
    return (components == 1 + np.bincount(components.flat)[1:].argmax()).astype(label.dtype)


def cc3d_largest_k(label):
    import cc3d

    return cc3d.largest_k(label, k=1, connectivity=26)


def cc3d_bincount(label):
    import cc3d

    return largest_of(cc3d.connected_components(label, connectivity=26), label)


def skimage_bincount(label):
    from skimage.measure import label as connected_components

    return largest_of(connected_components(label), label)


def scipy_bincount(label):
    return largest_of(ndimage.label(label, np.ones((3, 3, 3)))[0], label)


def run(args):
    cases, source = volumes()
    volume = cases[0][1][None]
    crops = label_crops()[0].numpy()
    noisy_crops = np.stack([noisy(crop) for crop in crops])
    data = {
        f"{source}, {times(volume.shape)}, clean": volume,
        f"{source}, {times(volume.shape)}, noisy": noisy(volume[0])[None],
        f"{source}, {times(crops.shape)}, clean": crops,
        f"{source}, {times(crops.shape)}, noisy": noisy_crops,
        f"{source}, {times(crops.shape)}, clean, int64": crops.astype(np.int64),
        f"{source}, {times(crops.shape)}, noisy, int64": noisy_crops.astype(np.int64),
    }
    for name, labels in data.items():
        given = torch.from_numpy(labels)

        def each(function, labels=labels):
            return lambda: [function(label) for label in labels]

        yield from compare(
            "largest_component",
            name,
            lambda given=given: largest_component(given, 2).unbind(),
            {
                "cc3d largest_k": (["cc3d"], each(cc3d_largest_k)),
                "cc3d connected_components, bincount": (["cc3d"], each(cc3d_bincount)),
                "research: skimage label, bincount": (["skimage"], each(skimage_bincount)),
                "SciPy label, bincount": ([], each(scipy_bincount)),
            },
            args.rounds,
            inputs=[labels],
        )
