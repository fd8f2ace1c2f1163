"""Batches of labelled and unlabelled crops or slices, indexed by the step: batch 4711 is always the
same.

Every draw is seeded by (seed, step, sample) and every order of cases by (seed, stream, pass). So a
resumed run, or one that looks ahead, sees exactly the batches of an uninterrupted run.
"""

import argparse
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dataloaders import open_dataset
from dataloaders.cache import Resident, values
from dataloaders.hold_out import Validation, hold_out
from dataloaders.transforms import AUGMENTS, SMOOTH, Crop, Warp, draw_crop, draw_warp, warp_slices
from utils.distributed import rank, world_size
from utils.errors import UserError
from utils.ops import crop_rot_flip

# independent random streams of one seed; the first two are also the loader's streams of cases
LABELED = 0
UNLABELED = 1
CROP = 2
VALIDATION = 3


@dataclass
class Batch:
    """The samples of a step, or one part of them with its share of both kinds; the labelled ones
    come first.

    Attributes:
        image: float32 `(B, C, *patch)`.
        label: int64 `(labeled_bs, *patch)`: there is none for the unlabelled samples.
        crops: the `Crop`, in 2-D the `Warp`, of each sample.
        names: of the case, in 2-D of the slice, of each sample.
        labeled_bs: how many samples are labelled.
        part: number of the part among those that this process sees of the step, from 0.
        parts: how many parts of the step this process sees; 1 without `--accumulate`.
    """

    image: Tensor
    label: Tensor
    crops: list[Crop] | list[Warp]
    names: list[str]
    labeled_bs: int
    part: int = 0
    parts: int = 1

    @property
    def first_part(self) -> bool:
        """Whether this is the first part that the process sees of the step."""
        return self.part == 0

    @property
    def last_part(self) -> bool:
        """Whether this is the last part that the process sees of the step."""
        return self.part == self.parts - 1


class TwoStream:
    """A loader over resident volumes or slices, indexed by the step. A case below is a volume, or a
    slice where the patch has two extents.

    An epoch is one pass over the labelled cases, in an order of its own; where `labeled_bs` does
    not divide their number, the last batch is filled up from the pass's start. The unlabelled
    stream passes over its own cases without end.

    Attributes:
        in_channels: channels of an image.
        num_classes: background included.
        description: the facts of the data set in a checkpoint (`Volumes.description`).
        validation: the training cases kept aside, or None.
        steps_per_epoch: steps of one pass.
        summary: a line for the log: where the data is kept, and how.

    Args:
        volumes: the cases.
        labeled, unlabeled: case indices of the two streams.
        labeled_bs, unlabeled_bs: samples a step from each; `unlabeled_bs` 0 for supervised
            training.
        patch: extents of a sample.
        seed: of the orders and the crops.
        augment: of `dataloaders.transforms.AUGMENTS`, for as many axes as the patch has.
        device: where batches go.
        validation: None for none.
    """

    def __init__(
        self,
        volumes: Resident,
        labeled: Sequence[int],
        unlabeled: Sequence[int],
        labeled_bs: int,
        unlabeled_bs: int,
        patch: Sequence[int],
        seed: int,
        augment: str,
        device: torch.device | str,
        validation: Validation | None = None,
    ):
        self.volumes = volumes
        self.patch = tuple(patch)
        self.seed = seed
        self.augment = augment
        self.device = torch.device(device)
        self.cases = {LABELED: list(labeled), UNLABELED: list(unlabeled)}
        self.labeled_bs = labeled_bs
        self.unlabeled_bs = unlabeled_bs
        self.in_channels = volumes.in_channels
        self.num_classes = volumes.num_classes
        self.description = volumes.description
        self.summary = volumes.summary
        self.validation = validation
        self.steps_per_epoch = -(-len(labeled) // labeled_bs)

    def epoch(self, step: int) -> int:
        """Epoch of a step; both count from 1."""
        return (step - 1) // self.steps_per_epoch + 1

    def fingerprint(self) -> str:
        """A hash of the cases, and their shapes, that are labelled, unlabelled and kept aside; a
        resumed run must find the same ones.
        """
        shapes = []
        for stream in (LABELED, UNLABELED):
            cases = self.cases[stream]
            shapes.append([(self.volumes.names[case], self.volumes.shapes[case]) for case in cases])
        if self.validation:
            shapes.append(self.validation.names())
        return hashlib.sha256(repr(shapes).encode()).hexdigest()[:16]

    def samples(self, step: int) -> list[int]:
        """Case indices of step `step` (from 1), labelled first; nothing is loaded for it."""
        position = (step - 1) % self.steps_per_epoch * self.labeled_bs
        order = self._order(LABELED, self.epoch(step) - 1)
        labeled = [order[(position + k) % len(order)] for k in range(self.labeled_bs)]
        unlabeled = []
        for k in range((step - 1) * self.unlabeled_bs, step * self.unlabeled_bs):
            turn, place = divmod(k, len(self.cases[UNLABELED]))
            unlabeled.append(self._order(UNLABELED, turn)[place])
        return labeled + unlabeled

    def batch(self, step: int, part: int = 0, parts: int = 1) -> Batch:
        """The batch of step `step` (from 1) on the device, or one of the `parts` that this process
        sees of it.

        A part is every n-th sample of each stream. So it keeps the streams' ratio, and the pairs of
        samples half a stream apart that CutMix mixes.
        """
        samples = range(self.labeled_bs + self.unlabeled_bs)
        labeled, unlabeled = self._share(samples, part, parts)
        crops = self._draw(step, (*labeled, *unlabeled))
        self._read_ahead(step, parts)
        image, label = self._take(crops, len(labeled))
        names = [self.volumes.names[crop.case] for crop in crops]
        return Batch(image.unsqueeze(1), label.long(), crops, names, len(labeled), part, parts)

    def images(self, step: int) -> Tensor:
        """All images of step `step`, `(B, C, *patch)`, labelled first, whatever the processes."""
        crops = self._draw(step, range(self.labeled_bs + self.unlabeled_bs))
        image, _ = self._take(crops, self.labeled_bs)
        return image.unsqueeze(1)

    def _draw(self, step: int, samples: Sequence[int]) -> list[Crop] | list[Warp]:
        """The crops of some of a step's samples, by their numbers."""
        draw = draw_crop if len(self.patch) == 3 else draw_warp
        cases = self.samples(step)
        crops = []
        for sample in samples:
            rng = np.random.default_rng((self.seed, CROP, step, sample))
            case = cases[sample]
            crops.append(draw(rng, case, self.volumes.shapes[case], self.patch, self.augment))
        return crops

    def gather(self, store: Mapping[int, Tensor], crops: Sequence[Crop | Warp]) -> Tensor:
        """The crops `(len(crops), *patch)`, on the device, of a tensor for each case, such as its
        pseudo-labels.

        Slices are looked up by nearest neighbour, also where `augment` interpolates images.
        """
        return self._send(self.cut(store, crops))

    def cut(self, store: Mapping[int, Tensor], crops: Sequence[Crop | Warp]) -> Tensor:
        """`gather`, but the crops stay where the store is."""
        return self._cut(crops, [store[crop.case] for crop in crops])[0]

    def _take(self, crops: Sequence[Crop | Warp], labeled: int) -> tuple[Tensor, Tensor]:
        """The images of a batch and the labels of its first `labeled` samples, on the device."""
        samples = [self.volumes.stored(crop.case) for crop in crops]
        images = [image for image, _ in samples]
        labels = [label for _, label in samples[:labeled]]
        if len(self.patch) == 2:  # interpolating takes values, not codes
            whole = [image.image() for image in images]
            image, label = self._cut(crops, whole, labels, smooth=self.augment in SMOOTH)
            return self._send(image), self._send(label)
        kinds: dict[torch.dtype, list[int]] = {}  # one call of the operator takes one type
        for k, image in enumerate(images):
            kinds.setdefault(image.data.dtype, []).append(k)
        image_parts = []
        label_parts = []
        for members in kinds.values():
            own = [labels[k] for k in members if k < labeled]
            part, label = self._cut(
                [crops[k] for k in members], [images[k].data for k in members], own
            )
            image_parts.append(values([images[k] for k in members], self._send(part)))
            if label is not None:
                label_parts.append(self._send(label))
        if len(kinds) == 1:
            return image_parts[0], label_parts[0]
        order = [k for members in kinds.values() for k in members]
        image = torch.cat(image_parts)[np.argsort(order)]
        label = torch.cat(label_parts)[np.argsort([k for k in order if k < labeled])]
        return image, label

    def _send(self, part: Tensor) -> Tensor:
        """To the device. A GPU reads pinned pages by itself, without which the host would wait."""
        if self.device.type == "cuda" and not part.is_cuda:
            part = part.pin_memory()
        return part.to(self.device, non_blocking=True)

    def _cut(
        self,
        crops: Sequence[Crop | Warp],
        images: Sequence[Tensor],
        labels: Sequence[Tensor] = (),
        smooth: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Tensors of one type through the crops, and the labels of the first of them."""
        if len(self.patch) == 2:
            image = warp_slices(images, crops, self.patch, smooth)
            if not labels:
                return image, None
            return image, warp_slices(labels, crops[: len(labels)], self.patch)
        corners = [crop.start for crop in crops]
        turns = [crop.rot for crop in crops]
        flips = [crop.flip for crop in crops]
        return crop_rot_flip(images, labels, corners, self.patch, turns, flips)

    def _read_ahead(self, step: int, parts: int) -> None:
        """Name the samples that this process will see of this step and the next."""
        if self.volumes.cache != "off":
            return
        needed = []
        for samples in (self.samples(step), self.samples(step + 1)):
            for part in range(parts):
                labeled, unlabeled = self._share(samples, part, parts)
                needed += [*labeled, *unlabeled]
        self.volumes.read_ahead(needed)

    def _share(
        self, samples: Sequence[int], part: int, parts: int
    ) -> tuple[Sequence[int], Sequence[int]]:
        """Of a step's samples the labelled and the unlabelled ones that belong to a part of this
        process.
        """
        first = part + parts * rank()
        every = parts * world_size()
        labeled = samples[: self.labeled_bs]
        unlabeled = samples[self.labeled_bs :]
        return labeled[first::every], unlabeled[first::every]

    def _order(self, stream: int, turn: int) -> list[int]:
        """The cases of a stream in the order of a pass."""
        rng = np.random.default_rng((self.seed, stream, turn))
        return rng.permutation(self.cases[stream]).tolist()


def two_stream_loader(args: argparse.Namespace, device: torch.device | str) -> TwoStream:
    """Decode a training split and make its loader: the first `labelnum` units are labelled, the
    rest unlabelled.

    Args:
        args: the options of `utils.training.options`: dataset, root, downsample, labelnum,
            labeled_bs, unlabeled_bs (absent for supervised training, which then leaves the
            unlabelled cases on the disk), patch, seed, augment, cache, cache_dir, val_fraction,
            val_from.
        device: where batches go.

    Raises:
        UserError: fewer units than `labelnum`, or none left for the unlabelled stream; an
            augmentation of another number of axes than the data set's; and see the data set's own.
    """
    dataset = open_dataset(args.dataset, args.root, "train", args.downsample)
    axes = len(dataset.patches[1])
    if AUGMENTS.get(args.augment) != axes:
        fit = ", ".join(name for name, of in AUGMENTS.items() if of == axes)
        raise UserError(
            f"--augment {args.augment}: {dataset.name} is {axes}-D, choose one of {fit}"
        )
    unlabeled_bs = getattr(args, "unlabeled_bs", 0)
    labeled = dataset.labeled(args.labelnum)
    unlabeled = sorted(set(range(len(dataset))) - set(labeled))
    if unlabeled_bs and not unlabeled:
        unit = dataset.unit.removesuffix("s")
        raise UserError(
            f"--labelnum {args.labelnum} leaves no unlabelled {unit}; train_supervised.py needs "
            "none"
        )
    labeled, unlabeled, validation = hold_out(dataset, labeled, unlabeled, args, VALIDATION)
    if not unlabeled_bs:
        unlabeled = []
    volumes = Resident(dataset, labeled, [*labeled, *unlabeled], args.cache, device, args.cache_dir)
    return TwoStream(
        volumes,
        labeled,
        unlabeled,
        args.labeled_bs,
        unlabeled_bs,
        args.patch,
        args.seed,
        args.augment,
        device,
        validation,
    )
