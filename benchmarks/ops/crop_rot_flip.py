"""crop_rot_flip against NumPy and torch: crop first or last, from memory and from files."""

import functools

import h5py
import numpy as np
import torch
from harness import CROP, compare, data_root, times, volumes

from utils.ops import crop_rot_flip

ROT, FLIP = (0, 1, 2, 3), (0, 1, 1, 0)


def part(volume, start, rot):
    """The crop before it is turned."""
    extents = (CROP[1], CROP[0], CROP[2]) if rot % 2 else CROP
    return volume[
        tuple(slice(corner, corner + n) for corner, n in zip(start, extents, strict=True))
    ]


def crop_first(volume, start, rot, flip):
    return np.ascontiguousarray(np.flip(np.rot90(part(volume, start, rot), rot, (0, 1)), flip))


def crop_first_torch(volume, start, rot, flip):
    return torch.rot90(part(volume, start, rot), rot, (0, 1)).flip(flip)


def turn_first(volume, start, rot, flip):
    """The research code's order: turn, flip and copy the whole volume, then take the same crop."""
    turned = np.flip(np.rot90(volume, rot, (0, 1)), flip).copy()
    inside = []
    for axis, n in enumerate(CROP):
        source = 1 - axis if rot % 2 and axis < 2 else axis
        backwards = (rot in ((1, 2), (2, 3), ())[axis]) != (axis == flip)
        corner = volume.shape[source] - start[source] - n if backwards else start[source]
        inside.append(slice(corner, corner + n))
    return np.ascontiguousarray(turned[tuple(inside)])


def run(args):
    cases, source = volumes()
    tensors = [(torch.from_numpy(image), torch.from_numpy(label)) for image, label in cases]
    random = np.random.default_rng(0)
    starts = [
        [int(random.integers(n - size + 1)) for n, size in zip(image.shape, CROP, strict=True)]
        for image, _ in cases
    ]
    files = sorted(data_root().glob("**/mri_norm2.h5"))[: len(cases)]

    def pairs(function, given=cases):
        """Image and label of one sample after the other."""
        for case, *where in zip(given, starts, ROT, FLIP, strict=True):
            yield [function(volume, *where) for volume in case]

    def batch(function, stack=np.stack, given=cases):
        return lambda: [stack(volumes) for volumes in zip(*pairs(function, given), strict=True)]

    def from_files():
        taken = []
        for file, *where in zip(files, starts, ROT, FLIP, strict=True):
            with h5py.File(file) as case:
                taken.append([turn_first(case[key][:], *where) for key in ("image", "label")])
        return [np.stack(volumes) for volumes in zip(*taken, strict=True)]

    def singly():
        for (image, label), start, rot, flip in zip(tensors, starts, ROT, FLIP, strict=True):
            yield crop_rot_flip([image], [label], [start], CROP, [rot], [flip])

    images, labels = zip(*tensors, strict=True)
    data = f"{source}, 4 crops {times(CROP)}, float32 and uint8"
    inputs = [volume for case in cases for volume in case]
    timed = functools.partial(compare, rounds=3 * args.rounds, inputs=inputs)
    yield from timed(
        "crop_rot_flip, one at a time",
        data,
        lambda: [volumes[0] for sample in singly() for volumes in sample],
        {
            "NumPy, crop first": ([], lambda: list(pairs(crop_first))),
            "NumPy, volume turned first": ([], lambda: list(pairs(turn_first))),
        },
    )
    peers = {
        "NumPy, crop first": ([], batch(crop_first)),
        "torch, crop first": ([], batch(crop_first_torch, torch.stack, tensors)),
        "NumPy, volume turned first": ([], batch(turn_first)),
    }
    if len(files) == len(cases):
        peers["the same from h5 files"] = ([], from_files)
    yield from timed(
        "crop_rot_flip, one batch",
        data,
        lambda: crop_rot_flip(images, labels, starts, CROP, ROT, FLIP),
        peers,
    )
