"""stitch_windows, and sliding_window with cheap networks, against the research loop and MONAI."""

import functools
import itertools

import numpy as np
import torch
from harness import CROP, compare, times, volumes

from utils.inference import gaussian_weights, sliding_window
from utils.ops import stitch_windows, window_starts

STRIDE = (18, 18, 4)
CONVOLUTION = torch.nn.Conv3d(1, 2, 1).requires_grad_(False)


def two_classes(x):
    return torch.cat((x, -x), 1)


def places(starts):
    for corner in itertools.product(*starts):
        yield tuple(slice(a, a + p) for a, p in zip(corner, CROP, strict=True))


def research_loop(network, image):
    """The field's test code: one window at a time, softmax, score and count maps in NumPy."""
    score = np.zeros((2, *image.shape), np.float32)
    count = np.zeros(image.shape, np.float32)
    with torch.no_grad():
        for place in places(window_starts(image.shape, CROP, STRIDE)):
            window = torch.from_numpy(image[place][None, None].astype(np.float32))
            score[(slice(None), *place)] += torch.softmax(network(window), 1).numpy()[0]
            count[place] += 1
    return score / count


def monai(network, image, mode="constant"):
    from monai.inferers import sliding_window_inference

    # MONAI rounds the stride down
    overlap = [1 - (step + 0.5) / extent for step, extent in zip(STRIDE, CROP, strict=True)]
    volume = torch.from_numpy(image)[None, None]
    with torch.no_grad():
        prob = sliding_window_inference(
            volume, CROP, 1, lambda x: network(x).softmax(1), overlap, mode
        )
    return prob[0].numpy()


def window_by_window(logits, starts, shape):
    total, count = torch.zeros(2, *shape), torch.zeros(shape)
    for window, place in zip(logits, places(starts), strict=True):
        total[(slice(None), *place)] += window.float().softmax(0)
        count[place] += 1
    return total / count


def run(args):
    cases, source = volumes(1)
    image = cases[0][0]
    starts = window_starts(image.shape, CROP, STRIDE)
    windows = len(list(places(starts)))
    data = f"{source}, {times(image.shape)}, {windows} windows"
    timed = functools.partial(compare, atol=1e-5)

    logits = torch.randn((windows, 2, *CROP), generator=torch.Generator().manual_seed(0))
    channels_last = {"memory_format": torch.channels_last_3d}
    for name, values in {
        "float32": logits,
        "bfloat16, channels last": logits.to(torch.bfloat16, **channels_last),
    }.items():
        yield from timed(
            "stitch_windows",
            f"{name} logits of {data}",
            lambda values=values: stitch_windows(values, starts, image.shape),
            {
                "torch, window by window": (
                    [],
                    lambda values=values: window_by_window(values, starts, image.shape),
                )
            },
            args.rounds,
            inputs=[values.view(torch.int16) if values.dtype == torch.bfloat16 else values],
        )
    del logits, values

    for name, network in {"1×1×1 convolution": CONVOLUTION, "x and -x": two_classes}.items():
        yield from timed(
            "sliding_window",
            f"{data}, {name}",
            lambda network=network: sliding_window(network, image, CROP, STRIDE, 2),
            {
                "research loop": ([], lambda network=network: research_loop(network, image)),
                "MONAI, batch 1": (["monai"], lambda network=network: monai(network, image)),
            },
            args.rounds,
            inputs=[image],
        )
    weights = gaussian_weights(CROP)
    yield from timed(
        "sliding_window, Gaussian",
        f"{data}, x and -x",
        lambda: sliding_window(two_classes, image, CROP, STRIDE, 2, weights=weights),
        {"MONAI, Gaussian, batch 1": (["monai"], lambda: monai(two_classes, image, "gaussian"))},
        args.rounds,
        inputs=[image],
    )
