"""Volumes or slices, decoded once and kept in memory.

Each is kept in the smallest form that loses no bit: 8-bit codes and a table of their float32 values
(the published LA images have at most 233 values each), float16, or float32. Crops are cut from the
codes and looked up afterwards, which takes 2 to 3 ms for a batch of four 112×112×80 crops on two
CPU cores, and a quarter of the memory.
"""

import mmap
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from copy import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from dataloaders.cache_files import CacheFiles
from utils import progress
from utils.device import warn_once
from utils.errors import UserError

if TYPE_CHECKING:
    from dataloaders.volumes import Volumes

MODES = ("auto", "gpu", "ram", "off")  # --cache
SHARE = 0.25  # of a GPU's free memory that `auto` may take; the rest is for the network
CODES = 256
HASH_BITS = 16
KINDS = {torch.uint8: "8-bit codes", torch.float16: "float16", torch.float32: "float32"}
PLACES = {"gpu": "on the GPU", "ram": "in RAM", "off": "mapped from their cache files"}


# ------------------------------------------------------------------------------------ one image


@dataclass(frozen=True)
class Stored:
    """An image as it is kept.

    Attributes:
        data: of the image's shape: float32, float16, or uint8 codes.
        table: the float32 values of the codes; code 0 is 0.0, the value outside of an image. None
            where `data` holds values.
    """

    data: Tensor
    table: Tensor | None = None

    def image(self) -> Tensor:
        """All of it, float32."""
        return values([self], self.data[None])[0]

    def to(self, device: torch.device) -> "Stored":
        """A copy on the device."""
        return Stored(self.data.to(device), None if self.table is None else self.table.to(device))

    def copy(self) -> "Stored":
        """A copy in memory of its own."""
        return Stored(self.data.clone(), None if self.table is None else self.table.clone())

    def arrays(self) -> list[np.ndarray]:
        """Data and table as a cache file holds them; without a table an empty one."""
        table = torch.empty(0) if self.table is None else self.table
        return [self.data.numpy(), table.numpy()]

    @property
    def bytes(self) -> int:
        """Size in memory."""
        return self.data.nbytes + (0 if self.table is None else self.table.nbytes)


Sample = tuple[Stored, Tensor | None]  # an image, and its label where that is read


def values(images: Sequence[Stored], parts: Tensor) -> Tensor:
    """The float32 values of parts `(len(images), ...)` that were cut from the data of images of one
    type, on the parts' device.
    """
    if images[0].table is None:
        return parts.float()
    result = torch.empty(parts.shape, device=parts.device)
    for image, part, out in zip(images, parts, result, strict=True):
        if part.is_cuda:
            table = image.table.to(part.device)
            torch.index_select(table, 0, part.flatten().long(), out=out.view(-1))
        else:  # in NumPy, whose one thread is nearly done before torch's threads would meet
            np.take(image.table.numpy(), part.numpy(), out=out.numpy(), mode="clip")
    return result


def store(image: np.ndarray) -> Stored:
    """A float32 array in the smallest form that gives every bit back, also the sign of zero."""
    image = np.ascontiguousarray(image)
    coded = _codes(image)
    if coded is not None:
        codes, table = coded
        if codes.nbytes + table.nbytes <= image.nbytes // 2:
            return Stored(torch.from_numpy(codes), torch.from_numpy(table))
    if _is_half(image.ravel()[::101]) and _is_half(image):  # a few voxels rule most images out
        return Stored(torch.from_numpy(image.astype(np.float16)))
    return Stored(torch.from_numpy(image))


def _is_half(image: np.ndarray) -> bool:
    """Whether float16 gives every bit of a float32 array back."""
    with np.errstate(over="ignore"):
        again = image.astype(np.float16).astype(np.float32)
    return np.array_equal(again.view(np.int32), image.view(np.int32))


def _codes(image: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Codes and table of an image of few values, or None.

    The values of some voxels are a first guess at the table. Values that it does not give back are
    added until there are none.
    """
    bits = image.view(np.uint32)
    values = np.unique(bits.ravel()[::101])
    known = 0
    while len(values) > known:
        known = len(values)
        own = values[values != 0]
        if len(own) >= CODES:
            return None
        table = np.concatenate([np.zeros(1, np.uint32), own])
        codes = _look_up(bits, own)
        missed = bits[table[codes] != bits]
        values = np.union1d(values, missed)
    return codes, table.view(np.float32)


def _look_up(bits: np.ndarray, values: np.ndarray) -> np.ndarray:
    """For each voxel the place of its bits in `values`, counted from 1, as uint8. Bits that are not
    in `values` get 0 or any place.

    The places are found by a multiplier that sends all values to different places of a table, which
    a few tries find. `np.searchsorted` takes six times as long: 0.18 instead of 0.03 s for a volume
    of LA, whose file is read in 0.1 s.
    """
    multiplier = np.uint32(1)
    shift = np.uint32(32 - HASH_BITS)
    rng = np.random.default_rng(0)
    while len(np.unique(values * multiplier >> shift)) < len(values):
        multiplier = np.uint32(rng.integers(2**31) * 2 + 1)
    places = np.zeros(2**HASH_BITS, dtype=np.uint8)
    places[values * multiplier >> shift] = np.arange(1, len(values) + 1)
    hashed = bits * multiplier
    hashed >>= shift
    return places[hashed]


# ----------------------------------------------------------------------------------- all images


class _Lazy(Mapping):
    """A mapping of `keys` whose values are made when they are asked for."""

    def __init__(self, keys: Iterable[int], get: Callable[[int], Tensor]):
        self._keys = dict.fromkeys(keys)
        self._get = get

    def __getitem__(self, key: int) -> Tensor:
        if key not in self._keys:
            raise KeyError(key)
        return self._get(key)

    def __contains__(self, key: object) -> bool:  # without making the value
        return key in self._keys

    def __iter__(self) -> Iterator[int]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)


class Resident:
    """The samples of a data set, kept where `cache` says.

    Args:
        dataset: the samples.
        labeled: indices whose label is read; no other label is read.
        cases: indices to decode, of volumes or, in 2-D, of slices.
        cache: one of `MODES`. `gpu` needs volumes and a CUDA device, where `crop_rot_flip` has a
            kernel, and is `ram` with a warning otherwise; `auto` is `gpu` where that takes no more
            than `SHARE` of the free memory, else `ram`; `off` reads each step's samples from their
            files, ahead of time (`read_ahead`).
        device: where batches go.
        cache_dir: folder of decoded files (`dataloaders.cache_files`), which `off` maps into
            memory; None for none.

    Attributes:
        names, in_channels, num_classes, description: of the data set.
        cache: the choice that was made: `gpu`, `ram` or `off`.
        shapes: index to extents.
        images: index to float32 tensor `(X, Y, Z)` or `(H, W)`, made when it is asked for.
        labels: index to uint8 tensor of the image's shape, for the labelled cases only.
        summary: one line for the log.

    Raises:
        UserError: a file cannot be read, or the GPU is too small for `gpu`.
    """

    def __init__(
        self,
        dataset: "Volumes",
        labeled: Iterable[int],
        cases: Sequence[int],
        cache: str = "ram",
        device: torch.device | str = "cpu",
        cache_dir: str | None = None,
    ):
        device = torch.device(device)
        volumes = len(dataset.patches[1]) == 3
        self.names = dataset.names
        self.in_channels = dataset.in_channels
        self.num_classes = dataset.num_classes
        self.description = dataset.description()
        self.cache = _possible(cache, device, volumes)
        self.shapes: dict[int, tuple[int, ...]] = {}
        self._dataset = dataset
        self._labeled = set(labeled)
        self._kept: dict[int, Sample] = {}
        self._files = None
        if cache_dir:
            self._files = CacheFiles(cache_dir, dataset, mapped=self.cache != "ram")
        began = time.monotonic()
        from_cache = self._fill(cases)
        if self.cache in ("auto", "gpu"):
            self.cache = self._to_gpu(device)
            if self.cache == "ram" and self._files:  # so far the samples are mapped files
                self._kept = {case: _copied(*sample) for case, sample in self._kept.items()}
        seconds = time.monotonic() - began
        known = [case for case in self.shapes if case in self._labeled]
        self.images = _Lazy(self.shapes, lambda case: self.stored(case)[0].image())
        self.labels = _Lazy(known, lambda case: self.stored(case)[1])
        self.summary = self._summary("cases" if volumes else "slices", from_cache, seconds)
        self._pending: dict[int, Future[Sample]] = {}
        self._reader = ThreadPoolExecutor(1)  # one, so that it has the data set to itself

    def stored(self, case: int) -> Sample:
        """A sample as `(Stored, label)`, None in place of a label that is not read."""
        if case in self._kept:
            return self._kept[case]
        task = self._pending.get(case) or self._reader.submit(self._read, case)
        return task.result()

    def read_ahead(self, cases: Sequence[int]) -> None:
        """Name the samples that will be asked for next. With `off` they are read in the background,
        and all others are forgotten.
        """
        if self.cache != "off":
            return
        for case in self._pending.keys() - set(cases):
            self._pending.pop(case).cancel()
        for case in cases:
            if case not in self._pending:
                self._pending[case] = self._reader.submit(self._read, case)

    def _read(self, case: int) -> Sample:
        if case in self._kept:  # mapped; touching each page reads it
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

    def _fill(self, cases: Sequence[int]) -> int:
        """Decode the cases, those of one file together; returns how many came from cache files.

        Threads do it: the h5 library decodes one file at a time, while checks, halving, coding and
        hashing go on beside it. Processes could decode beside each other, but each takes 2 s of a
        core to start, and all of LA takes 5 s.
        """
        groups: dict[str, list[int]] = {}
        for case in cases:
            groups.setdefault(_source(self._dataset, case)[0], []).append(case)
        from_cache = 0
        pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1))
        try:
            tasks = [
                (group, pool.submit(self._decode, path, group)) for path, group in groups.items()
            ]
            for group, task in progress.bar(tasks, title="decoding", unit="file"):
                found = task.result()
                self.shapes.update(zip(group, found.shapes, strict=True))
                if found.samples is not None:
                    self._kept.update(zip(group, found.samples, strict=True))
                if found.cached:
                    from_cache += len(group)
        finally:  # after an error or Ctrl-C, tasks that have not begun never do
            pool.shutdown(cancel_futures=True)
        return from_cache

    def _decode(self, path: str, cases: list[int]) -> "_Decoded":
        """The samples of one file, from its cache files where they hold all of them."""
        labeled = cases[0] in self._labeled  # either all slices of a file have labels or none
        files = self._files
        images = labels = None
        if files:
            key = files.key(path, [_source(self._dataset, case)[1] for case in cases])
            images, labels = self._read_cached(key, labeled)
            if images and (labels or not labeled):
                return _decoded(images, labels, cached=True)
        dataset = copy(self._dataset)  # a data set of slices keeps a file open
        loaded = [dataset.load(case, label=labeled) for case in cases]
        unread = _Decoded([image.shape for image, _ in loaded], None, cached=False)
        if self.cache == "off" and not files:
            return unread
        image_arrays = [array for image, _ in loaded for array in store(image).arrays()]
        label_arrays = [label for _, label in loaded] if labeled else None
        if files and not images:
            files.write(key, "image", image_arrays)
        if files and labeled and not labels:
            files.write(key, "label", label_arrays)
        if self.cache != "off":
            return _decoded(image_arrays, label_arrays, cached=False)
        images, labels = self._read_cached(key, labeled)  # from now on the files' pages are used
        if images and (labels or not labeled):
            return _decoded(images, labels, cached=False)
        return unread

    def _read_cached(self, key: str, labeled: bool) -> tuple[list | None, list | None]:
        """The arrays of a file's images and labels, None where its cache files lack them."""
        images = self._files.read(key, "image")
        return images, self._files.read(key, "label") if labeled else None

    def _to_gpu(self, device: torch.device) -> str:
        """Move everything to the GPU where that is wanted and possible; returns where it is now."""
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

    def _bytes(self) -> int:
        images = sum(image.bytes for image, _ in self._kept.values())
        return images + sum(label.nbytes for _, label in self._kept.values() if label is not None)

    def _summary(self, unit: str, from_cache: int, seconds: float) -> str:
        decoded = len(self.shapes) - from_cache
        if not self._files:
            ways = ["decoded"]
        else:
            ways = [f"{decoded} decoded"] if decoded else []
            if from_cache:
                ways.append(f"{from_cache} read from {self._files.folder}")
        kept = "read again for each step"
        if self._kept:
            kinds = sorted({KINDS[image.data.dtype] for image, _ in self._kept.values()})
            kept = f"{self._bytes() / 1e6:.0f} MB as {' and '.join(kinds)} {PLACES[self.cache]}"
        return f"data: {len(self.shapes)} {unit}, {kept}, {' and '.join(ways)} in {seconds:.1f} s"


@dataclass(frozen=True)
class _Decoded:
    """The samples of one file.

    Attributes:
        shapes: their extents.
        samples: None where they are to be read again for each step.
        cached: whether they came from cache files.
    """

    shapes: list[tuple[int, ...]]
    samples: list[Sample] | None
    cached: bool


def _decoded(
    images: Sequence[np.ndarray], labels: Sequence[np.ndarray] | None, cached: bool
) -> _Decoded:
    """Samples from the arrays of cache files: data and table of each image, and the labels."""
    samples = []
    for k in range(len(images) // 2):
        data = torch.from_numpy(images[2 * k])
        table = torch.from_numpy(images[2 * k + 1])
        label = torch.from_numpy(labels[k]) if labels else None
        samples.append((Stored(data, table if len(table) else None), label))
    return _Decoded([tuple(image.data.shape) for image, _ in samples], samples, cached)


def _copied(image: Stored, label: Tensor | None) -> Sample:
    """A sample in memory of its own."""
    return image.copy(), None if label is None else label.clone()


def _possible(cache: str, device: torch.device, volumes: bool) -> str:
    """`cache`, or `ram` where there is no GPU, or it is of no use."""
    if cache in ("ram", "off") or (device.type == "cuda" and volumes):
        return cache
    if cache == "gpu":
        on_gpu = device.type == "cuda"
        reason = "slices are looked up by the CPU" if on_gpu else "no GPU is used here"
        warn_once(f"--cache gpu: {reason}, the data stays in RAM")
    return "ram"


def _source(dataset: "Volumes", case: int) -> tuple[str, int | None]:
    """The h5 file of a sample, and its number where it is one of several slices in the file."""
    places = getattr(dataset, "_places", None)
    if places is None:
        return dataset.paths[case], None
    volume, number = places[case]
    return dataset.paths[volume], number
