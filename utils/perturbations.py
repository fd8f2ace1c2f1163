"""Perturbations of a batch of images, which a consistency loss compares predictions under: noise,
the direction in which a prediction changes most, other intensities, blur, and the boxes of CutMix.

All draw from torch's global generator, which a run seeds by the step and the process.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def noisy(image: Tensor, sd: float = 0.1, limit: float = 0.2) -> Tensor:
    """The image plus noise clamp(N(0, sd²), ±limit), whatever the scale of the image (UA-MT)."""
    return image + (sd * torch.randn_like(image)).clamp(-limit, limit)


def unit_norm(direction: Tensor) -> Tensor:
    """Each sample of `(B, ...)` divided by its Euclidean norm; a sample of zeros stays."""
    norms = direction.flatten(1).norm(dim=1).clamp(min=torch.finfo(direction.dtype).tiny)
    return direction / norms.view(-1, *[1] * (direction.ndim - 1))


def adversarial_direction(
    divergence: Callable[[Tensor], Tensor], image: Tensor, xi: float
) -> Tensor:
    """The direction in which a prediction changes most, by one step of power iteration from random
    noise (Miyato et al., TPAMI 2019): ∇_d divergence(ξ d/‖d‖), of norm 1 for each sample.

    No gradient is left in the network's parameters.

    Args:
        divergence: of the prediction for the image plus its argument from that for the image, 0-d.
        image: `(B, C, *S)`.
        xi: ξ, the length of the finite step.
    """
    direction = xi * unit_norm(torch.randn_like(image))
    with torch.enable_grad():
        direction.requires_grad_()
        (gradient,) = torch.autograd.grad(divergence(direction), direction)
    return unit_norm(gradient)


# -------------------------------------------------------------------- intensities, blur and noise


def scaled_and_shifted(image: Tensor, probability: float, limit: float = 0.5) -> Tensor:
    """Some samples, each with this probability, with other intensities: clip(α x + β mean(α x)) of
    x between 0 and 1 (AD-MT, on volumes).

    α is drawn from 1 ± limit, β from ±limit. A sample is scaled to [0, 1] by its own limits,
    channel by channel, and back. A constant one stays.
    """
    x, low, extent = _between_0_and_1(image)
    x = _of_each(image, 1 - limit, 1 + limit) * x
    x = x + _of_each(image, -limit, limit) * _mean(x)
    return torch.where(_of_each(image) < probability, x.clamp(0, 1) * extent + low, image)


def jittered(image: Tensor, probability: float, limit: float = 0.5) -> Tensor:
    """Some samples, each with this probability, with another brightness f x and another contrast
    m + g (x - m), in random order; m is the mean of x (UniMatch, on slices).

    f and g are drawn from 1 ± limit. A sample is scaled to [0, 1] by its own limits, channel by
    channel, and back; after each change it is cut off at 0 and 1.
    """
    x, low, extent = _between_0_and_1(image)
    f = _of_each(image, 1 - limit, 1 + limit)
    g = _of_each(image, 1 - limit, 1 + limit)
    brightness_first = _contrasted((f * x).clamp(0, 1), g)
    contrast_first = (f * _contrasted(x, g)).clamp(0, 1)
    x = torch.where(_of_each(image) < 0.5, brightness_first, contrast_first)
    return torch.where(_of_each(image) < probability, x * extent + low, image)


def blurred(image: Tensor, probability: float, radii: tuple[float, float] = (0.1, 2.0)) -> Tensor:
    """Some samples, each with this probability, after Gaussian blur (UniMatch, on slices).

    The standard deviation is drawn between the radii, in voxels. The kernel ends at four times the
    larger radius, and the edge of the image is repeated.
    """
    sd = _of_each(image, *radii)
    reach = math.ceil(4 * radii[1])
    offsets = range(-reach, reach + 1)
    weights = [torch.exp(-0.5 * (k / sd).square()) for k in offsets]
    total = sum(weights)
    x = image
    for axis in range(2, image.ndim):
        last = image.shape[axis] - 1
        places = torch.arange(last + 1, device=image.device)
        x = sum(
            weight / total * x.index_select(axis, (places + k).clamp(0, last))
            for k, weight in zip(offsets, weights, strict=True)
        )
    return torch.where(_of_each(image) < probability, x, image)


def noisier(image: Tensor, probability: float, sds: tuple[float, float] = (0.1, 1.0)) -> Tensor:
    """Some samples, each with this probability, plus noise clamp(N(0, sd²), ±2 sd), whatever the
    scale of the image; sd is drawn between `sds` (AD-MT, on volumes).
    """
    noise = _of_each(image, *sds) * torch.randn_like(image).clamp(-2, 2)
    return torch.where(_of_each(image) < probability, image + noise, image)


def _of_each(image: Tensor, low: float = 0.0, high: float = 1.0) -> Tensor:
    """A uniform draw for each sample, `(B, 1, …)`."""
    return image.new_empty(len(image), *[1] * (image.ndim - 1)).uniform_(low, high)


def _mean(x: Tensor) -> Tensor:
    return x.mean(tuple(range(2, x.ndim)), keepdim=True)


def _between_0_and_1(image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The image scaled by the limits of each sample and channel, the lower one, and their
    distance.
    """
    axes = tuple(range(2, image.ndim))
    low = image.amin(axes, keepdim=True)
    extent = image.amax(axes, keepdim=True) - low
    return (image - low) / extent.clamp(min=torch.finfo(image.dtype).tiny), low, extent


def _contrasted(x: Tensor, factor: Tensor) -> Tensor:
    mean = _mean(x)
    return (mean + factor * (x - mean)).clamp(0, 1)


# ---------------------------------------------------------------------------------- CutMix boxes


def boxes_of_area(count: int, shape: Sequence[int], share: Sequence[float]) -> Tensor:
    """Boxes of a random share of a slice's area (UniMatch), int64 `(count, 2, 2)` as
    `utils.ops.splice` takes them.

    The share s of a box is drawn once. Its aspect q from 0.3 to 1/0.3, which gives the extents
    √(s q) and √(s / q) of the slice's, rounded down, and its corner are drawn until it fits.

    Args:
        count: number of boxes.
        shape: extents of the slice.
        share: the smallest and the largest s; close to 1 a box hardly ever fits.
    """
    boxes = torch.zeros(count, 2, 2, dtype=torch.int64)
    for box in boxes:
        s = _uniform(*share)
        fits = False
        while not fits:
            q = _uniform(0.3, 1 / 0.3)
            extents = [int(math.sqrt(s * q) * shape[0]), int(math.sqrt(s / q) * shape[1])]
            first = [int(_uniform(0, n)) for n in shape]
            last = [corner + extent for corner, extent in zip(first, extents, strict=True)]
            fits = last[0] <= shape[0] and last[1] <= shape[1]
        box[0] = torch.tensor(first)
        box[1] = torch.tensor(last)
    return boxes


def boxes_of_beta(count: int, shape: Sequence[int], beta: float) -> Tensor:
    """Boxes of one random size for all, each at a place of its own (AD-MT), int64 `(count, 2, D)`
    as `utils.ops.splice` takes them.

    With b from the distribution Beta(β, β) a side is √(1 - b) of the axis, rounded down. The centre
    is drawn from the axis without its first eighth; what stands beyond the edge is cut off.

    Args:
        count: number of boxes.
        shape: extents of the images.
        beta: β; the larger, the less the sizes differ.
    """
    b = torch.distributions.Beta(float(beta), float(beta)).sample().item()
    boxes = torch.zeros(count, 2, len(shape), dtype=torch.int64)
    for axis, n in enumerate(shape):
        half = int(n * math.sqrt(1 - b)) // 2
        centre = torch.randint(n // 8, n, (count,))
        boxes[:, 0, axis] = (centre - half).clamp(min=0)
        boxes[:, 1, axis] = (centre + half).clamp(max=n)
    return boxes


def some_boxes(boxes: Tensor, probability: float) -> Tensor:
    """The boxes, of which each is left with this probability; the others become empty."""
    left = torch.rand(len(boxes)) < probability
    return boxes * left.view(-1, 1, 1)


def _uniform(low: float, high: float) -> float:
    return low + (high - low) * torch.rand(()).item()
