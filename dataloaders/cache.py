"""Volumes or slices decoded once and kept in memory: the slowest part of other loaders, gone after
the first seconds.

Each is kept in the smallest form that is lossless to the last bit: 8-bit codes and a table of their
float32 values (the published LA images have at most 233 values each), float16, or float32. Crops
are cut from what is kept and looked up afterwards, which takes 2 to 3 ms a batch of four 112×112×80
crops on two CPU cores, and a quarter of the memory.
"""

import mmap
import os
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from dataclasses import dataclass

import numpy as np
import torch

from dataloaders.cache_files import CacheFiles
from utils import progress
from utils.device import warn_once
from utils.errors import UserError

MODES = ("auto", "gpu", "ram", "off")  # --cache
SHARE = 0.25  # of a GPU's free memory that `auto` takes: the rest is for the network
CODES = 256
HASH_BITS = 16
KINDS = {torch.uint8: "8-bit codes", torch.float16: "float16", torch.float32: "float32"}


@dataclass(frozen=True)
class Stored:
    """An image as it is kept.

    Attributes:
        data: of the image's shape: float32, float16, or uint8 codes.
        table: the float32 values of the codes, that of code 0 is 0.0, which is what lies outside an
            image; None where `data` holds values.
    """

    data: torch.Tensor
    table: torch.Tensor | None = None

    def image(self):
        """All of it, float32."""
        return values([self], self.data[None])[0]

    def to(self, device):
        return Stored(self.data.to(device), None if self.table is None else self.table.to(device))

    def arrays(self):
        """Both as arrays, as a cache file holds them: without a table an empty one."""
        return [
            part.numpy()
            for part in (self.data, torch.empty(0) if self.table is None else self.table)
        ]

    @property
    def bytes(self):
        return self.data.nbytes + (0 if self.table is None else self.table.nbytes)


def values(images, parts):
    """The float32 values of parts `(len(images), ...)` that were cut from the data of `Stored`
    images of one type, on the parts' device."""
    if images[0].table is None:
        return parts.float()
    result = torch.empty(parts.shape, device=parts.device)
    for image, part, out in zip(images, parts, result, strict=True):
        if part.is_cuda:
            torch.index_select(
                image.table.to(part.device), 0, part.flatten().long(), out=out.view(-1)
            )
        else:  # NumPy's one thread: in the time that torch's need to meet it is nearly done
            np.take(image.table.numpy(), part.numpy(), out=out.numpy(), mode="clip")
    return result


def copied(image, label):
    """A sample in memory of its own."""
    image = Stored(image.data.clone(), None if image.table is None else image.table.clone())
    return image, None if label is None else label.clone()


def store(image):
    """`Stored` of a float32 array: the smallest form that gives every bit back, the sign of zero
    included.
    """
    image = np.ascontiguousarray(image)
    coded = _codes(image)
    if coded is not None and coded[0].nbytes + coded[1].nbytes <= image.nbytes // 2:
        return Stored(*map(torch.from_numpy, coded))
    if _is_half(image.ravel()[::101]) and _is_half(image):  # most images say no after a few voxels
        return Stored(torch.from_numpy(image.astype(np.float16)))
    return Stored(torch.from_numpy(image))


def _is_half(image):
    with np.errstate(over="ignore"):
        return np.array_equal(
            image.astype(np.float16).astype(np.float32).view(np.int32), image.view(np.int32)
        )


def _codes(image):
    """Codes and table of an image of few values, or None.

    The values of some voxels are a first guess at the table; what it does not give back is added,
    until nothing is.
    """
    bits = image.view(np.uint32)
    values, known = np.unique(bits.ravel()[::101]), 0
    while len(values) > known:
        known, own = len(values), values[values != 0]
        if len(own) >= CODES:
            return None
        table = np.concatenate([np.zeros(1, np.uint32), own])
        codes = _look_up(bits, own)
        missed = bits[table[codes] != bits]
        values = np.union1d(values, missed)
    return codes, table.view(np.float32)


def _look_up(bits, values):
    """Of each voxel the place of its bits in `values`, from 1; of other bits 0 or anything.

    A binary search costs three times as much: a multiplier that sends all values to places of their
    own is soon found.
    """
    multiplier, shift = np.uint32(1), np.uint32(32 - HASH_BITS)
    rng = np.random.default_rng(0)
    while len(np.unique(values * multiplier >> shift)) < len(values):
        multiplier = np.uint32(rng.integers(2**31) * 2 + 1)
    places = np.zeros(2**HASH_BITS, dtype=np.uint8)
    places[values * multiplier >> shift] = np.arange(1, len(values) + 1)
    hashed = bits * multiplier
    hashed >>= shift
    return places[hashed]


class _Lazy(Mapping):
    """A mapping of `keys` whose values are made when they are asked for."""

    def __init__(self, keys, get):
        self._keys, self._get = dict.fromkeys(keys), get

    def __getitem__(self, key):
        if key not in self._keys:
            raise KeyError(key)
        return self._get(key)

    def __contains__(self, key):  # without making it
        return key in self._keys

    def __iter__(self):
        return iter(self._keys)

    def __len__(self):
        return len(self._keys)


class Resident:
    """The samples of a data set, kept where `cache` says.

    Args:
        dataset: see :class:`dataloaders.volumes.Volumes`.
        labeled: indices whose label is read; every other label stays unread.
        cases: indices to decode, of volumes or, in 2-D, of slices.
        cache: of `MODES`. `gpu` is for volumes and a CUDA device, where `crop_rot_flip` has a
            kernel, and RAM with a warning otherwise; `auto` is `gpu` where that takes no more than
            `SHARE` of the free memory, else `ram`; `off` reads what a step needs from its files,
            ahead of time (`read_ahead`).
        device: where batches go.
        cache_dir: folder of decoded files (`dataloaders.cache_files`), which `off` maps into
            memory; None for none.

    Attributes:
        names, in_channels, num_classes, description: of the data set.
        cache: what was chosen: `gpu`, `ram` or `off`.
        shapes: index to extents.
        images: index to float32 tensor `(X, Y, Z)` or `(H, W)`, made when it is asked for.
        labels: index to uint8 tensor of the image's shape, for the labelled cases alone.
        summary: one line for the log.

    Raises:
        UserError: a file that cannot be read, or a GPU too small for `gpu`.
    """

    def __init__(self, dataset, labeled, cases, cache="ram", device="cpu", cache_dir=None):
        device, volumes = torch.device(device), len(dataset.patches[1]) == 3
        self.names = dataset.names
        self.in_channels, self.num_classes = dataset.in_channels, dataset.num_classes
        self.description = dataset.description()
        self.cache = _possible(cache, device, volumes)
        self._dataset, self._labeled, self._kept, self.shapes = dataset, set(labeled), {}, {}
        self._files = (
            CacheFiles(cache_dir, dataset, mapped=self.cache != "ram") if cache_dir else None
        )
        began = time.monotonic()
        from_cache = self._fill(cases)
        if self.cache in ("auto", "gpu"):
            self.cache = self._to_gpu(device)
            if self.cache == "ram" and self._files:  # mapped so far
                self._kept = {case: copied(*sample) for case, sample in self._kept.items()}
        seconds = time.monotonic() - began
        self.images = _Lazy(self.shapes, lambda case: self.stored(case)[0].image())
        self.labels = _Lazy(
            [case for case in self.shapes if case in self._labeled],
            lambda case: self.stored(case)[1],
        )
        self.summary = self._summary("cases" if volumes else "slices", from_cache, seconds)
        self._pending, self._reader = (
            {},
            ThreadPoolExecutor(1),
        )  # one: it has the data set for itself

    def stored(self, case):
        """A sample as `(Stored, label)`, None in place of a label that is not read."""
        if case in self._kept:
            return self._kept[case]
        return (self._pending.get(case) or self._reader.submit(self._read, case)).result()

    def read_ahead(self, cases):
        """Say what will be asked for next: with `off` it is read in the background, and all else is
        forgotten.
        """
        if self.cache != "off":
            return
        for case in self._pending.keys() - set(cases):
            self._pending.pop(case).cancel()
        for case in cases:
            if case not in self._pending:
                self._pending[case] = self._reader.submit(self._read, case)

    def _read(self, case):
        if case in self._kept:  # mapped: touching each of its pages reads it
            image, label = self._kept[case]
            for part in (image.data, label):
                if part is not None:
                    part.numpy().ravel().view(np.uint8)[:: mmap.PAGESIZE].max()
            return image, label
        image, label = self._dataset.load(case, label=case in self._labeled)
        if image.shape != self.shapes[case]:
            path = _source(self._dataset, case)[0]
            raise UserError(
                f"{path}: its image has changed since training began; --resume goes on from the "
                "last save"
            )
        return Stored(torch.from_numpy(image)), None if label is None else torch.from_numpy(label)

    # ---- the start

    def _fill(self, cases):
        """Decode the cases, those of one file together; how many came from cache files.

        In threads: the h5 library lets one at a time decode, while checks, halving, coding and
        hashing go on beside it. Processes could decode beside each other, but each takes 2 s of a
        core to start, and all of LA 5 s.
        """
        groups, from_cache = {}, 0
        for case in cases:
            groups.setdefault(_source(self._dataset, case)[0], []).append(case)
        pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1))
        try:
            tasks = [
                (group, pool.submit(self._decode, path, group)) for path, group in groups.items()
            ]
            for group, task in progress.bar(tasks, title="decoding", unit="file"):
                shapes, samples, cached = task.result()
                self.shapes.update(zip(group, shapes, strict=True))
                self._kept.update(zip(group, samples, strict=bool(samples)))
                from_cache += cached * len(group)
        finally:  # after an error or Ctrl-C what has not begun never does
            pool.shutdown(cancel_futures=True)
        return from_cache

    def _decode(self, path, cases):
        """Of the samples of one file: extents; `(Stored, label or None)`, of none where they are to
        be read again and again; and whether they came from cache files."""
        labeled, files = (
            cases[0] in self._labeled,
            self._files,
        )  # labels are given to all slices of a case or to none
        key = files and files.key(path, [_source(self._dataset, case)[1] for case in cases])
        image, label = (
            files and files.read(key, "image"),
            files and labeled and files.read(key, "label"),
        )
        cached = bool(image) and (bool(label) or not labeled)
        if not cached:
            dataset = copy(self._dataset)  # one of slices keeps a file open
            loaded = [dataset.load(case, label=labeled) for case in cases]
            shapes = [volume.shape for volume, _ in loaded]
            if self.cache == "off" and not files:
                return shapes, [], False
            arrays = [array for volume, _ in loaded for array in store(volume).arrays()]
            if files and not image:
                files.write(key, "image", arrays)
            if files and labeled and not label:
                files.write(key, "label", [target for _, target in loaded])
            if self.cache == "off":  # from now on the files' pages
                image, label = files.read(key, "image"), labeled and files.read(key, "label")
                if not image or (labeled and not label):
                    return shapes, [], False
            else:
                image, label = arrays, [target for _, target in loaded]
        image = [torch.from_numpy(array) for array in image]
        stored = [
            Stored(data, table if len(table) else None)
            for data, table in zip(image[::2], image[1::2], strict=True)
        ]
        labels = [torch.from_numpy(target) for target in label] if labeled else [None] * len(cases)
        return (
            [tuple(one.data.shape) for one in stored],
            list(zip(stored, labels, strict=True)),
            cached,
        )

    def _to_gpu(self, device):
        """Move all to the GPU where that is wanted and possible; where all is now."""
        free = torch.cuda.mem_get_info(device)[0]
        if self.cache == "auto" and self._bytes() > SHARE * free:
            return "ram"
        try:
            for case, (image, label) in self._kept.items():
                self._kept[case] = image.to(device), None if label is None else label.to(device)
        except torch.cuda.OutOfMemoryError:
            size = f"{self._bytes() / 1e6:.0f} MB on this GPU, and {free / 1e6:.0f} MB are free"
            raise UserError(f"--cache gpu: the data takes {size}; give --cache ram") from None
        return "gpu"

    def _bytes(self):
        return sum(
            image.bytes + (0 if label is None else label.nbytes)
            for image, label in self._kept.values()
        )

    def _summary(self, unit, from_cache, seconds):
        rest = len(self.shapes) - from_cache
        ways = (
            [f"{rest} decoded"] * bool(rest)
            + [f"{from_cache} read from {self._files.folder}"] * bool(from_cache)
            if self._files
            else ["decoded"]
        )
        kinds = " and ".join(sorted({KINDS[image.data.dtype] for image, _ in self._kept.values()}))
        where = {"gpu": "on the GPU", "ram": "in RAM", "off": "mapped from their cache files"}[
            self.cache
        ]
        what = (
            f"{self._bytes() / 1e6:.0f} MB as {kinds} {where}"
            if self._kept
            else "read again for each step"
        )
        return f"data: {len(self.shapes)} {unit}, {what}, {' and '.join(ways)} in {seconds:.1f} s"


def _possible(cache, device, volumes):
    """`cache`, or `ram` where there is no GPU for it or none of use."""
    if cache in ("ram", "off") or (device.type == "cuda" and volumes):
        return cache
    if cache == "gpu":
        why = "slices are looked up by the CPU" if device.type == "cuda" else "no GPU is used here"
        warn_once(f"--cache gpu: {why}, the data stays in RAM")
    return "ram"


def _source(dataset, case):
    """The h5 file of a sample and, where it is one of several slices in there, its number."""
    places = getattr(dataset, "_places", None)
    if places is None:
        return dataset.paths[case], None
    volume, number = places[case]
    return dataset.paths[volume], number
