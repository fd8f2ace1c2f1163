"""signed_distance and normalized_sdm against edt, SciPy and the research code's compute_sdf."""

import functools

import numpy as np
import torch
from harness import compare, label_crops, times
from scipy import ndimage

from utils.ops import normalized_sdm, signed_distance

LARGE = (512, 512, 256)
SPACING = (0.7, 0.7, 2.5)


def scipy_signed(mask, spacing=None):
    outside = ndimage.distance_transform_edt(mask == 0, sampling=spacing)
    return outside - ndimage.distance_transform_edt(mask, sampling=spacing)


def edt_unsigned(mask, threads, spacing=None):
    """Both sides in one pass: the labels are 1 and 2, and edt measures to the other label."""
    import edt

    return edt.edt(mask + 1, parallel=threads, anisotropy=spacing)


def edt_signed(mask, threads, spacing=None):
    distance = edt_unsigned(mask, threads, spacing)
    return np.where(mask, -distance, distance)


def edt_normalized(mask, threads):
    distance = edt_unsigned(mask, threads)
    inside = mask != 0
    sdm = np.where(
        inside, distance * (-1 / distance[inside].max()), distance * (1 / distance[~inside].max())
    )
    sdm[inside & (distance == 1)] = 0
    return sdm


def research_normalized(mask):
    """`compute_sdf` of the research repositories, by its definition."""
    from skimage.segmentation import find_boundaries

    inside = ndimage.distance_transform_edt(mask)
    outside = ndimage.distance_transform_edt(mask == 0)
    sdm = (outside - outside.min()) / (outside.max() - outside.min())
    sdm -= (inside - inside.min()) / (inside.max() - inside.min())
    sdm[find_boundaries(mask, mode="inner")] = 0
    return sdm


def run(args):
    crops, source = label_crops()
    masks, data = crops.numpy(), f"{source}, {times(crops.shape)}"

    def each(function, *options):
        return lambda: np.stack([function(mask, *options) for mask in masks])

    edt_name = f"edt(mask + 1), {args.threads} threads"
    timed = functools.partial(compare, rounds=args.rounds, inputs=[masks])
    yield from timed(
        "signed_distance",
        data,
        lambda: signed_distance(crops),
        {
            edt_name: (["edt"], each(edt_signed, args.threads)),
            "SciPy, both sides": ([], each(scipy_signed)),
        },
        atol=1e-5,
    )
    yield from timed(
        "signed_distance, spacing",
        f"{data}, spacing {times(SPACING)}",
        lambda: signed_distance(crops, SPACING),
        {
            edt_name: (["edt"], each(edt_signed, args.threads, SPACING)),
            "SciPy, both sides": ([], each(scipy_signed, SPACING)),
        },
        atol=1e-4,
    )
    yield from timed(
        "normalized_sdm",
        data,
        lambda: normalized_sdm(crops),
        {
            f"{edt_name}, NumPy": (["edt"], each(edt_normalized, args.threads)),
            "research compute_sdf": (["skimage"], each(research_normalized)),
        },
        atol=1e-6,
    )
    if args.large:
        large = torch.nn.functional.interpolate(crops[:1, None].float(), LARGE).to(torch.uint8)[0]
        masks = large.numpy()
        yield from compare(
            "signed_distance",
            f"{source}, enlarged to {times(LARGE)}",
            lambda: signed_distance(large),
            {edt_name: (["edt"], lambda: edt_signed(masks[0], args.threads)[None])},
            min(args.rounds, 3),
            inputs=[masks],
            atol=1e-4,
        )
