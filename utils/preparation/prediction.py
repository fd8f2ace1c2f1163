"""A prepared image segmented by a trained network, on the grid of the file that it came from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dataloaders.transforms import downsample_image
from utils.errors import UserError
from utils.inference import mean_probability, slice_slabs
from utils.ops import largest_component
from utils.preparation.preprocess import Place
from utils.slabs import interpolate_slabs, window_slabs
from utils.trained import Trained
from utils.uncertainty import entropy


@dataclass(frozen=True)
class Target:
    """The grid that a network's output is brought to, along the axes of the prepared array.

    Attributes:
        size: of the grid.
        inside: for each axis the slice of the grid that the array covers; outside is background.
        places: for each axis where the grid's voxels inside lie, in voxels of the array.
    """

    size: Sequence[int]
    inside: Sequence[slice]
    places: Sequence[np.ndarray]


def whole(size: Sequence[int]) -> Target:
    """The grid of a prepared array of this size itself."""
    inside = [slice(0, extent) for extent in size]
    return Target(size, inside, [np.arange(extent, dtype=np.float64) for extent in size])


def around(place: Place) -> Target:
    """The grid of the file, its axes turned, around a prepared array that lies in this place."""
    turned, fine = place.oriented, place.resampled
    first = fine.axes.T @ np.subtract(turned.origin, fine.origin) / fine.spacing
    inside, places = [], []
    for axis, box in enumerate(place.box):
        step = turned.spacing[axis] / fine.spacing[axis]
        at = first[axis] + np.arange(turned.size[axis]) * step
        # a voxel is a voxel, whatever its origin
        at = np.where(np.abs(at - np.rint(at)) < 1e-6, np.rint(at), at)
        low = box.start - 0.5 if box.start > 0 else -np.inf
        high = box.stop - 0.5 if box.stop < fine.size[axis] else np.inf
        begin, end = (int(number) for number in np.searchsorted(at, (low, high)))
        inside.append(slice(begin, end))
        places.append(at[begin:end] - box.start)
    return Target(turned.size, inside, places)


def segment(
    model: Trained,
    array: np.ndarray,
    axes: Sequence[int] | None,
    target: Target,
    maps: Sequence[str],
    keep_largest: bool,
    settings: Mapping,
) -> dict[str, np.ndarray]:
    """Labels, and the maps asked for.

    Args:
        model: the networks, of which the mean softmax counts.
        array: prepared image, three axes.
        axes: in 2-D, which of them are rows, columns and slices; None in 3-D.
        target: the grid of the results.
        maps: names of the maps: `uncertainty`, `probability_<class>`.
        keep_largest: keep only the largest component of each class.
        settings: options of `window_slabs` (3-D) or `slice_slabs` (2-D).

    Returns:
        `labels` uint8 and each map float32, all of the target's size.

    Raises:
        UserError: the image is too small for the network.
    """
    factor = model.downsample
    if factor > 1:
        if min(array.shape) < factor:
            raise UserError(
                f"shape {array.shape} is too small for a network trained with --downsample"
            )
        array = downsample_image(array, factor)
    places = [
        _in_blocks(at, factor, extent)
        for at, extent in zip(target.places, array.shape, strict=True)
    ]
    predictor = mean_probability(model.networks)
    if axes is None:
        order = (0, 1, 2)
        slabs = window_slabs(
            predictor, array, model.patch, num_classes=model.num_classes, **settings
        )
    else:
        order = (axes[2], axes[0], axes[1])
        slabs = slice_slabs(
            predictor, array.transpose(axes), model.patch, model.num_classes, **settings
        )
    size = [target.size[axis] for axis in order]
    inside = tuple(target.inside[axis] for axis in order)
    labels = np.zeros(size, np.uint8)
    values = {name: np.zeros(size, np.float32) for name in maps}
    done = inside[0].start
    for prob in interpolate_slabs(slabs, [places[axis] for axis in order]):
        here = (slice(done, done + prob.shape[1]), *inside[1:])
        labels[here] = likeliest(prob).cpu().numpy()
        for name in maps:
            values[name][here] = _map(name, prob).cpu().numpy()
        done += prob.shape[1]
    if "probability_0" in maps:
        outside = np.ones(size, bool)
        outside[inside] = False
        values["probability_0"][outside] = 1
    if keep_largest:
        kept = largest_component(torch.from_numpy(labels)[None], model.num_classes)
        labels = kept[0].numpy()
    back = np.argsort(order)
    return {name: found.transpose(back) for name, found in {"labels": labels, **values}.items()}


def likeliest(prob: Tensor) -> Tensor:
    """`prob.argmax(0)` of `(C, *S)` as uint8; of equal ones the first. On a CPU it is several times
    as fast.
    """
    best, most = torch.zeros_like(prob[0], dtype=torch.uint8), prob[0]
    for c, other in enumerate(prob[1:], 1):
        best.masked_fill_(other > most, c)
        most = torch.maximum(most, other)
    return best


def _map(name: str, prob: Tensor) -> Tensor:
    """A map of these names, of probabilities `(C, *S)`."""
    if name == "uncertainty":
        return entropy(prob[None])[0]
    return prob[int(name.removeprefix("probability_"))]


def _in_blocks(at: np.ndarray, factor: int, extent: int) -> np.ndarray:
    """Places in voxels as places in the `extent` blocks of `factor` voxels each; places beyond the
    first and the last block's centre move to it.
    """
    return np.clip((at - (factor - 1) / 2) / factor, 0, extent - 1)
