"""What all data sets share: lists of cases, one h5 file a case, half resolution.

A data set's own file holds the rest: its protocol, its layout, and what its voxels mean.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from dataloaders.h5 import check_disjoint, read_image, read_label, read_list
from dataloaders.preprocessing import MARKER, Preprocessing
from dataloaders.transforms import downsample_image, downsample_label
from utils.errors import UserError

Sample = tuple[np.ndarray, np.ndarray | None]  # image, and label where it is asked for


class Volumes:
    """One split of a data set. All facts about a data set are attributes of its class.

    Args:
        root: folder of the data set's layout.
        split: one of `splits`. A split opens its own list and those before it, to see that no unit
            is in both: the train split opens neither the validation nor the test list.
        downsample: 2 for half the resolution: images are averaged over 2×2×2 voxels, labels take
            the majority.

    Attributes:
        names: one a sample.
        paths: the h5 file of each listed case.
        units: the unit of each sample.

    Class attributes, the images:
        name: as in `--dataset`.
        in_channels: channels of an image.
        num_classes: with the background.
        class_names: without the background.
        spacing: mm; None where it differs from case to case.
        file_axes: in 2-D, which axes of a file's arrays are a sample's rows, columns and slices;
            None in 3-D, where files are read as they are.
        image_axes: in 2-D, which of an image's axes x, y and z are a sample's rows, columns and
            slices.
        preprocessing: how the files are made from the images
            (`dataloaders.preprocessing.Preprocessing`); None: unknown.
        as_published: whether the published files were made in this way too.
        unlike_published: why numbers of this data cannot be compared with published ones, a few
            words each.

    Class attributes, the training:
        patches: patch by `--downsample`; of two extents for a data set of slices.
        net, augment, labelnum, labeled_bs, unlabeled_bs, val_from: defaults of the options of these
            names.
        unit: what `labelnum` counts.
        training_units: how many units the published train list has; None where the folder says it.
        splits: the lists that are published, in the order of their use.
        source: whose protocol this is, as `utils.training.options` names sources.
        sources: of the options that come from elsewhere, by their names.

    Class attributes, the test:
        tested_by: the data set whose script `code/test_<name>.py` tests this one too; None: it has
            a script of its own.
        stride: of the sliding window; None in 2-D.
        keep_largest: whether only the largest component of each class is kept.
        per_slice: whether each slice is scored by itself, because a volume's slices are no
            neighbours in space.
        shown: metrics that are shown where `--metrics` asks for no others.
        reported: metrics that papers report on it.

    Raises:
        UserError: a list or a case is missing, a case is listed twice or a unit in two lists.
    """

    name: str
    in_channels: int = 1
    num_classes: int
    class_names: Sequence[str]
    spacing: Sequence[float] | None
    file_axes: Sequence[int] | None = None
    image_axes: Sequence[int] = (1, 0, 2)
    preprocessing: Preprocessing | None = None
    as_published: bool = True
    unlike_published: Sequence[str] = ()

    patches: Mapping[int, Sequence[int]]
    net: str
    augment: str
    labelnum: int
    labeled_bs: int
    unlabeled_bs: int
    val_from: str = "unlabeled"
    unit: str = "cases"
    training_units: int | None = None
    splits: Sequence[str] = ("train", "test")
    source: str
    sources: Mapping[str, str] = MappingProxyType({})

    tested_by: str | None = None
    stride: Sequence[int] | None
    keep_largest: bool = False
    per_slice: bool = False
    shown: Sequence[str] = ("dice", "jaccard", "hd95", "asd")
    reported: Sequence[str] = shown

    @classmethod
    def at(cls, root: str | Path) -> "type[Volumes]":
        """The class of the data in `root`.

        It knows how the files were made: as their preparation has noted it, or else as the
        published ones.

        Raises:
            UserError: the note is damaged.
        """
        note = Path(root) / MARKER
        if not note.is_file():
            return cls if cls.as_published else type(cls.__name__, (cls,), {"preprocessing": None})
        try:
            recipe = json.loads(note.read_text(encoding="utf-8"))["recipe"]
            made = recipe.get("preprocessing", cls.preprocessing and cls.preprocessing.as_dict())
            attributes = {"preprocessing": made and Preprocessing.from_dict(made)}
            attributes["unlike_published"] = tuple(recipe.get("unlike_published", ()))
        except (OSError, ValueError, LookupError, TypeError, AttributeError, UserError) as error:
            raise UserError(f"{note}: damaged ({error}); prepare the data again") from None
        return type(cls.__name__, (cls,), attributes)

    @classmethod
    def source_of(cls, option: str) -> str:
        """Where the protocol's value of an option comes from."""
        return cls.sources.get(option, cls.source)

    @classmethod
    def description(cls) -> dict[str, Any]:
        """The facts that prediction needs about the training's data, as JSON can hold them."""
        return {
            "name": cls.name,
            "in_channels": cls.in_channels,
            "num_classes": cls.num_classes,
            "class_names": list(cls.class_names),
            "spacing": cls.spacing and list(cls.spacing),
            "stride": cls.stride and list(cls.stride),
            "keep_largest": cls.keep_largest,
            "file_axes": cls.file_axes and list(cls.file_axes),
            "image_axes": list(cls.image_axes) if len(cls.patches[1]) == 2 else None,
            "preprocessing": cls.preprocessing and cls.preprocessing.as_dict(),
            "unlike_published": list(cls.unlike_published),
        }

    def __init__(self, root: str | Path, split: str = "train", downsample: int = 1):
        self.root = Path(root)
        self.split = split
        self.downsample = downsample
        self._check()
        self.names: list[str] = []
        self.paths: list[Path] = []
        self._read_lists()
        self.units = [self.unit_of(name) for name in self.names]

    def _check(self) -> None:
        """See that there is such a split of such data."""
        split, downsample = self.split, self.downsample
        if not self.root.is_dir():
            raise UserError(
                f"{self.root}: no such folder; get {self.name} as docs/data.md says, or name its "
                "folder with --root"
            )
        if split not in self.splits:
            raise UserError(f"{self.name} has no {split} list; it has {', '.join(self.splits)}")
        if downsample != 1 and len(self.patches[1]) == 2:
            raise UserError(
                f"--downsample {downsample}: {self.name} is made of slices, choose their size with "
                "--patch"
            )

    def _read_lists(self) -> None:
        """Read the split's lists and find its files, and compare its units with those of the lists
        before it.
        """
        known = {}  # the units of each list
        for earlier in self.splits[: self.splits.index(self.split)]:
            for path in self.list_files(earlier):
                if path.exists():
                    known[path] = [self.unit_of(name) for name in read_list(path)]
        unit = self.unit.removesuffix("s")
        for path in self.list_files(self.split):
            names = read_list(path)
            units = [self.unit_of(name) for name in names]
            for other, others in known.items():
                check_disjoint(path, units, other, others, unit)
            known[path] = units
            files = [self.path(name) for name in names]
            missing = [file for file in files if not file.is_file()]
            if missing:
                more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
                raise UserError(f"{missing[0]}{more}: file not found, though {path} lists its case")
            self.names += names
            self.paths += files

    # ---- the layout, which a data set's file overrides

    def list_files(self, split: str) -> list[Path]:
        """The list files of a split, which together name its cases."""
        return [self.root / f"{split}.list"]

    def path(self, name: str) -> Path:
        """The h5 file of a listed case."""
        return self.root / "data" / f"{name}.h5"

    def unit_of(self, name: str) -> str:
        """The unit that a listed case belongs to."""
        return name

    def read(self, path: Path, label: bool = True) -> Sample:
        """A file as `(image, label)`, with the axes and the classes that `load` promises."""
        image = read_image(path)
        return image, read_label(path, image.shape, self.num_classes) if label else None

    # ---- for the loaders

    @property
    def total(self) -> int:
        """How many units the split has."""
        return len(set(self.units))

    def __len__(self) -> int:
        return len(self.names)

    def labeled(self, labelnum: int) -> list[int]:
        """Indices of the samples of the first `labelnum` units, in the order of the list.

        Raises:
            UserError: the split has fewer units.
        """
        if labelnum > self.total:
            raise UserError(
                f"--labelnum {labelnum}: {self.name} has {self.total} training {self.unit}"
            )
        first = set(list(dict.fromkeys(self.units))[:labelnum])
        return [index for index, unit in enumerate(self.units) if unit in first]

    def load(self, index: int, label: bool = True) -> Sample:
        """Sample `index` as `(image, label)`: float32 and uint8, both `(X, Y, Z)`.

        With `label=False` the label is neither opened nor needed, and None is returned in its
        place.

        Raises:
            UserError: the file is damaged, or does not fit the protocol.
        """
        path = self.paths[index]
        image, target = self.read(path, label)
        if self.downsample > 1:
            if min(image.shape) < self.downsample:
                raise UserError(
                    f"{path}: shape {image.shape} is too small for --downsample {self.downsample}"
                )
            image = downsample_image(image, self.downsample)
            target = downsample_label(target, self.downsample, self.num_classes) if label else None
        return image, target
