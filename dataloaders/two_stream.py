"""Batches of labelled and unlabelled crops or slices, indexed by the step: batch 4711 is always the
same.

Every draw is seeded by (seed, step, sample) and every order of cases by (seed, stream, pass), so a
resumed run, or one that looks ahead, sees exactly what an uninterrupted one would.
"""

import hashlib
from dataclasses import dataclass

import numpy as np
import torch

from dataloaders import open_dataset
from dataloaders.cache import Resident, values
from dataloaders.hold_out import hold_out
from dataloaders.transforms import AUGMENTS, draw_crop, draw_warp, warp_slices
from utils.distributed import rank, world_size
from utils.errors import UserError
from utils.ops import crop_rot_flip

LABELED, UNLABELED, CROP, VALIDATION = range(4)  # independent random streams of one seed


@dataclass
class Batch:
    """One step's samples, the labelled ones first; or where they are shared out, one share of both
    kinds.

    Attributes:
        image: float32 `(B, 1, *patch)`.
        label: int64 `(labeled_bs, *patch)`: there is none for the unlabelled.
        crops: the `Crop`, in 2-D the `Warp`, of each sample.
        names: of the case, in 2-D of the slice, of each sample.
        labeled_bs: how many samples are labelled.
        part: number of the share among those that this process sees of the step, from 0.
        parts: how many shares of the step this process sees; 1 without `--accumulate`.
    """

    image: torch.Tensor
    label: torch.Tensor
    crops: list
    names: list
    labeled_bs: int
    part: int = 0
    parts: int = 1

    @property
    def first_part(self) -> bool:
        """Whether this process has seen nothing of the step yet."""
        return self.part == 0

    @property
    def last_part(self) -> bool:
        """Whether this process sees nothing of the step after this."""
        return self.part == self.parts - 1


class TwoStream:
    """Step-indexed loader over resident volumes or, where the patch has two extents, slices; a case
    below is either.

    An epoch is one pass over the labelled cases, in an order of its own; where `labeled_bs` does
    not divide their number the last batch is filled up from the pass's start. The unlabelled stream
    passes over its own cases without end.

    Attributes:
        in_channels: channels of an image.
        num_classes: background included.
        description: what a checkpoint says of the data set (`Volumes.description`).
        validation: the training cases kept aside (`dataloaders.validation.Validation`), or None.
        steps_per_epoch: steps of one pass.
        summary: where the data is kept, and how, for the log.

    Args:
        volumes: `Resident`.
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
        volumes,
        labeled,
        unlabeled,
        labeled_bs,
        unlabeled_bs,
        patch,
        seed,
        augment,
        device,
        validation=None,
    ):
        self.volumes, self.patch, self.seed, self.augment = volumes, tuple(patch), seed, augment
        self.device = torch.device(device)
        self.cases = {LABELED: list(labeled), UNLABELED: list(unlabeled)}
        self.labeled_bs, self.unlabeled_bs = labeled_bs, unlabeled_bs
        self.in_channels, self.num_classes = volumes.in_channels, volumes.num_classes
        self.description = volumes.description
        self.validation, self.summary = validation, volumes.summary
        self.steps_per_epoch = -(-len(labeled) // labeled_bs)

    def epoch(self, step):
        """Epoch of a step; both count from 1."""
        return (step - 1) // self.steps_per_epoch + 1

    def fingerprint(self):
        """Which cases, of which shapes, are labelled, unlabelled and kept aside: what a resumed run
        must find again.
        """
        shapes = [
            [(self.volumes.names[case], self.volumes.shapes[case]) for case in self.cases[stream]]
            for stream in (LABELED, UNLABELED)
        ]
        shapes += [self.validation.names()] if self.validation else []
        return hashlib.sha256(repr(shapes).encode()).hexdigest()[:16]

    def samples(self, step):
        """Case indices of step `step` (from 1), labelled first, known without loading anything."""
        position = (step - 1) % self.steps_per_epoch * self.labeled_bs
        order = self._order(LABELED, self.epoch(step) - 1)
        labeled = [order[(position + k) % len(order)] for k in range(self.labeled_bs)]
        unlabeled = []
        for k in range((step - 1) * self.unlabeled_bs, step * self.unlabeled_bs):
            turn, place = divmod(k, len(self.cases[UNLABELED]))
            unlabeled.append(self._order(UNLABELED, turn)[place])
        return labeled + unlabeled

    def batch(self, step, part=0, parts=1):
        """The `Batch` of step `step` (from 1), on the device: all of it, or of `parts` for each
        process one.

        A share is every n-th sample of each stream, so that it keeps their ratio, and the pairs of
        samples half a stream apart that CutMix mixes.
        """
        draw = draw_crop if len(self.patch) == 3 else draw_warp
        cases = self.samples(step)
        labeled, unlabeled = self._share(range(len(cases)), part, parts)
        crops = []
        for sample in (*labeled, *unlabeled):
            rng, case = np.random.default_rng((self.seed, CROP, step, sample)), cases[sample]
            crops.append(draw(rng, case, self.volumes.shapes[case], self.patch, self.augment))
        self._read_ahead(step, parts)
        image, label = self._take(crops, len(labeled))
        names = [self.volumes.names[crop.case] for crop in crops]
        return Batch(image.unsqueeze(1), label.long(), crops, names, len(labeled), part, parts)

    def gather(self, store, crops):
        """`(len(crops), *patch)` on the device, from any store of one tensor a case, such as
        pseudo-labels.

        Slices are looked up by nearest neighbour, whatever `augment` says of images.
        """
        return self._send(self._cut(crops, [store[crop.case] for crop in crops])[0])

    def _take(self, crops, labeled):
        """The images of a batch and the labels of its first `labeled` samples, on the device."""
        samples = [self.volumes.stored(crop.case) for crop in crops]
        images, labels = [image for image, _ in samples], [label for _, label in samples[:labeled]]
        if len(self.patch) == 2:  # between codes there is no interpolating
            parts = self._cut(
                crops, [image.image() for image in images], labels, smooth=self.augment == "affine"
            )
            return [self._send(part) for part in parts]
        kinds = {}  # one call of the operator takes volumes of one type
        for k, image in enumerate(images):
            kinds.setdefault(image.data.dtype, []).append(k)
        taken = []
        for members in kinds.values():
            own = [labels[k] for k in members if k < labeled]
            part, label = self._cut(
                [crops[k] for k in members], [images[k].data for k in members], own
            )
            part = values([images[k] for k in members], self._send(part))
            taken.append((part, None if label is None else self._send(label)))
        if len(taken) == 1:
            return taken[0]
        order = [k for members in kinds.values() for k in members]
        image = torch.cat([part for part, _ in taken])[np.argsort(order)]
        label = torch.cat([label for _, label in taken if label is not None])
        return image, label[np.argsort([k for k in order if k < labeled])]

    def _send(self, part):
        """To the device; from pages that a GPU may read by itself, or the host would wait for
        it.
        """
        if self.device.type == "cuda" and not part.is_cuda:
            part = part.pin_memory()
        return part.to(self.device, non_blocking=True)

    def _cut(self, crops, images, labels=(), smooth=False):
        """Tensors of one type through the crops, and as many labels."""
        if len(self.patch) == 2:
            image = warp_slices(images, crops, self.patch, smooth)
            return image, warp_slices(labels, crops[: len(labels)], self.patch) if labels else None
        corners, rot, flip = zip(
            *[(crop.start, crop.rot, crop.flip) for crop in crops], strict=True
        )
        return crop_rot_flip(images, labels, corners, self.patch, rot, flip)

    def _read_ahead(self, step, parts):
        """Name the samples that this process will see of this step and the next."""
        if self.volumes.cache == "off":
            steps = self.samples(step), self.samples(step + 1)
            shares = [
                self._share(samples, part, parts) for samples in steps for part in range(parts)
            ]
            self.volumes.read_ahead(
                [case for share in shares for stream in share for case in stream]
            )

    def _share(self, samples, part, parts):
        """Of a step's samples, the labelled and the unlabelled ones that are this process's in a
        part.
        """
        first, every = part + parts * rank(), parts * world_size()
        return [
            stream[first::every]
            for stream in (samples[: self.labeled_bs], samples[self.labeled_bs :])
        ]

    def _order(self, stream, turn):
        rng = np.random.default_rng((self.seed, stream, turn))
        return rng.permutation(self.cases[stream]).tolist()


def two_stream_loader(args, device):
    """Decode a training split and make its `TwoStream`: the first `labelnum` units are labelled,
    the rest unlabelled.

    Args:
        args: the options of `utils.options.parser`: dataset, root, downsample, labelnum,
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
    unlabeled = unlabeled if unlabeled_bs else []
    volumes = Resident(dataset, labeled, [*labeled, *unlabeled], args.cache, device, args.cache_dir)
    batch = args.labeled_bs, unlabeled_bs, args.patch
    return TwoStream(
        volumes, labeled, unlabeled, *batch, args.seed, args.augment, device, validation
    )
