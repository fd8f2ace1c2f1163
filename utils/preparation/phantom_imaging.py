"""The scan of the phantom: the signal of each tissue, a scanner's flaws, and whole cases.

A case is a late-gadolinium-like volume of the chest, made from a seed in a fraction of a second.
"""

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from dataloaders.phantom import FIELD_OF_VIEW, SIZE
from utils.preparation.phantom_anatomy import Atrium, paint_case
from utils.preparation.phantom_shapes import Space


def make_case(seed: int, index: int, size: Sequence[int] = SIZE) -> tuple[np.ndarray, np.ndarray]:
    """Case `index` of the phantom `seed`. Its bits do not depend on the order of the cases or the
    process.

    Args:
        seed, index: non-negative integers.
        size: voxels (X, Y, Z) of the field of view of 128×128×80 mm. It only sets how finely that
            is sampled: a case shows the same heart at every size.

    Returns:
        image: float32 (X, Y, Z), zero mean, unit standard deviation.
        label: uint8 (X, Y, Z), 1 in the left atrium with its appendage and the first centimetre of
            its veins.
    """
    streams = np.random.SeedSequence(seed, spawn_key=(index,)).spawn(3)
    shape, look, scanner = (np.random.default_rng(stream) for stream in streams)
    space = Space(size, shape)
    atrium = Atrium(shape)
    image, mask = paint_case(space, shape, draw_tissue(look), atrium)
    return acquire(image, space, scanner), mask.astype(np.uint8)


def draw_tissue(rng: np.random.Generator) -> dict[str, float]:
    """Signal of each tissue, about 1 for bright blood: how well the atrium stands out differs from
    case to case.

    Late after the contrast agent all blood is alike; early, each side of the heart and each vessel
    has its own signal.
    """
    late = rng.random() < 0.45
    left, right, aorta, pulmonary = rng.normal(1, 0.04, 4) if late else rng.uniform(0.55, 1.45, 4)
    tissue = {
        "left": left,
        "right": right,
        "cava": right * rng.uniform(0.85, 1.15),
        "pulmonary": pulmonary,
        "aorta": aorta,
        "aortic wall": rng.uniform(0.35, 0.9),
        "wall": rng.uniform(0.4, 1.0),
        "scar": rng.uniform(1.1, 1.9),
        "myocardium": rng.uniform(0.35, 0.95),
        "muscle": rng.uniform(0.28, 0.7),
    }
    suppressed = rng.random() < 0.6
    tissue["fat"] = rng.uniform(0.15, 0.45) if suppressed else rng.uniform(0.45, 0.95)
    return tissue | {
        "hernia": rng.uniform(0.3, 1.2),
        "liver": rng.uniform(0.4, 1.3),
        "bone": rng.uniform(0.05, 0.15),
        "marrow": rng.uniform(0.12, 0.6),
        "disc": rng.uniform(0.15, 0.5),
        "lung": rng.uniform(0.04, 0.15),
        "air": 0.03,
    }


def acquire(image: np.ndarray, space: Space, rng: np.random.Generator) -> np.ndarray:
    """The signal (X, Y, Z) as a scanner would show it, float32, of zero mean and unit standard
    deviation: blurred, with a coil's bias field, a ghost and Rician noise.
    """
    coarser = np.array([1.0, 1.0, rng.uniform(1.2, 2.0)])  # along z
    blur = coarser * rng.uniform(0.7, 1.1) / space.spacing  # voxels
    image = ndimage.gaussian_filter(image, blur)
    image = image * _bias(space, rng)

    step = round(rng.uniform(0.2, 0.5) * space.size[1])
    ghost = np.roll(image, step, axis=1)  # breathing, along the phase axis
    image = image + np.float32(rng.uniform(0, 0.06)) * ghost

    sigma = np.float32(rng.uniform(0.05, 0.24))
    real = _noise(space, rng, blur)
    imaginary = _noise(space, rng, blur)
    image = np.hypot(image + real * sigma, imaginary * sigma)
    mean, sd = image.mean(dtype=np.float64), image.std(dtype=np.float64)
    return ((image - mean) / sd).astype(np.float32)


def _bias(space: Space, rng: np.random.Generator) -> np.ndarray:
    """The factor (X, Y, Z) by which the coil, which lies on the chest, sees each voxel."""
    x, y, z = (
        axis / np.float32(extent) for axis, extent in zip(space.axes, FIELD_OF_VIEW, strict=True)
    )
    slopes = rng.normal((0, -0.35, 0), (0.35, 0.45, 0.35)).astype(np.float32)
    bias = slopes[0] * x[:, None, None] + slopes[1] * y[:, None] + slopes[2] * z
    return np.exp(bias + np.float32(rng.uniform(0.05, 0.2)) * space.field(rng, 110))


def _noise(space: Space, rng: np.random.Generator, blur: np.ndarray) -> np.ndarray:
    noise = rng.standard_normal(space.size, dtype=np.float32)
    noise = ndimage.gaussian_filter(noise, 0.5 * blur)
    return noise / noise.std()
