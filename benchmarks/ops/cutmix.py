"""cutmix and splice against slice assignment, torch.where and the research code's arithmetic."""

import functools

import torch
from harness import CROP, compare, label_crops, times

from utils.ops import cutmix, random_box, splice


def by_slices(pairs, inside):
    mixed = []
    for a, b in pairs:
        out = a.clone()
        out[inside] = b[inside]
        mixed.append(out)
    return mixed


def by_where(pairs, mask):
    return [torch.where(mask, b, a) for a, b in pairs]


def by_arithmetic(pairs, inside):
    """Arithmetic with a mask, 0 in the box, which the research repositories make in every step."""
    keep = torch.ones(CROP, dtype=torch.int64)
    keep[inside] = 0
    return [a * keep + b * (1 - keep) for a, b in pairs]


def run(args):
    crops, source = label_crops()
    images = crops[:, None].float() + 0.1 * torch.rand(
        (4, 1, *CROP), generator=torch.Generator().manual_seed(0)
    )
    box = random_box(CROP, 2 / 3, torch.Generator().manual_seed(0))
    inside = (..., *(slice(*corners) for corners in box.t().tolist()))
    mask = torch.zeros(CROP, dtype=torch.bool)
    mask[inside] = True
    timed = functools.partial(compare, rounds=5 * args.rounds)
    for dtype in (torch.int64, torch.uint8):
        labels = crops.to(dtype)
        pairs = [(images[:2], images[2:]), (labels[:2], labels[2:])]
        peers = {
            "clone, slice assignment": ([], lambda pairs=pairs: by_slices(pairs, inside)),
            "torch.where": ([], lambda pairs=pairs: by_where(pairs, mask)),
        }
        if dtype == torch.int64:
            peers["research mask arithmetic"] = (
                [],
                lambda pairs=pairs: by_arithmetic(pairs, inside),
            )
        yield from timed(
            "cutmix",
            f"{source}, 2 pairs {times(CROP)}, float32 and {str(dtype)[6:]}",
            lambda pairs=pairs: cutmix(*pairs[0], *pairs[1], box),
            peers,
            inputs=[images, labels],
            marks={"clone": lambda pairs=pairs: [a.clone() for a, _ in pairs]},
        )
    pairs = [(images[:2], images[2:])]
    boxes = random_box(CROP, 2 / 3, torch.Generator().manual_seed(0), count=2)
    corners = [(slice(None), *(slice(*pair) for pair in one.t().tolist())) for one in boxes]

    def a_box_a_sample():
        out = images[:2].clone()
        for k, here in enumerate(corners):
            out[k][here] = images[2 + k][here]
        return out

    yield from timed(
        "splice, a box a sample",
        f"{source}, 2 pairs {times(CROP)}, float32",
        lambda: splice(*pairs[0], boxes),
        {"clone, slice assignment": ([], a_box_a_sample)},
        inputs=[images],
        marks={"clone": lambda: images[:2].clone()},
    )
