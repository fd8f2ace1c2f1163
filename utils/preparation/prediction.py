"""A prepared image segmented by a trained network, on the grid of the file that it came from."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
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
    turned = place.oriented
    fine = place.resampled
    first = fine.axes.T @ np.subtract(turned.origin, fine.origin) / fine.spacing
    inside = []
    places = []
    for axis, box in enumerate(place.box):
        step = turned.spacing[axis] / fine.spacing[axis]
        at = first[axis] + np.arange(turned.size[axis]) * step
        # rounding of the origin must not move a voxel
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
    """Labels and maps of an image.

    Args:
        model: the networks; their mean softmax is used.
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
    if model.downsample > 1:
        array = _downsampled(array, model.downsample)
    order, slabs = _predict(model, array, axes, settings)
    places = []
    for axis in order:
        places.append(_in_blocks(target.places[axis], model.downsample, array.shape[axis]))
    size = [target.size[axis] for axis in order]
    inside = tuple(target.inside[axis] for axis in order)
    results = _fill(size, inside, interpolate_slabs(slabs, places), maps)
    if keep_largest:
        labels = torch.from_numpy(results["labels"])
        results["labels"] = largest_component(labels[None], model.num_classes)[0].numpy()
    back = np.argsort(order)
    return {name: found.transpose(back) for name, found in results.items()}


def _downsampled(array: np.ndarray, factor: int) -> np.ndarray:
    if min(array.shape) < factor:
        raise UserError(f"shape {array.shape} is too small for a network trained with --downsample")
    return downsample_image(array, factor)


def _predict(
    model: Trained, array: np.ndarray, axes: Sequence[int] | None, settings: Mapping
) -> tuple[tuple[int, int, int], Iterator[Tensor]]:
    """Probabilities `(C, n, …)` of one slab of the array after another, and the order of the
    array's axes in a slab.
    """
    predictor = mean_probability(model.networks)
    classes = model.num_classes
    if axes is None:
        slabs = window_slabs(predictor, array, model.patch, num_classes=classes, **settings)
        return (0, 1, 2), slabs
    rows, columns, slices = axes
    slabs = slice_slabs(predictor, array.transpose(axes), model.patch, classes, **settings)
    return (slices, rows, columns), slabs


def _fill(
    size: Sequence[int], inside: tuple[slice, ...], slabs: Iterable[Tensor], maps: Sequence[str]
) -> dict[str, np.ndarray]:
    """`labels` and each map, of this size, from slabs of probabilities that fill the part `inside`
    one after another; the rest is background.
    """
    labels = np.zeros(size, np.uint8)
    values = {name: np.zeros(size, np.float32) for name in maps}
    done = inside[0].start
    for prob in slabs:
        here = (slice(done, done + prob.shape[1]), *inside[1:])
        labels[here] = likeliest(prob).cpu().numpy()
        for name in maps:
            values[name][here] = _map(name, prob).cpu().numpy()
        done += prob.shape[1]
    if "probability_0" in maps:
        outside = np.ones(size, bool)
        outside[inside] = False
        values["probability_0"][outside] = 1
    return {"labels": labels, **values}


def likeliest(prob: Tensor) -> Tensor:
    """`prob.argmax(0)` of `(C, *S)` as uint8, the first of equal ones; several times as fast as
    argmax on a CPU.
    """
    best = torch.zeros_like(prob[0], dtype=torch.uint8)
    most = prob[0]
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
