"""One's own images, in 3-D and slice by slice, as `code/prepare_nifti.py` lays them out:

    <root>/dataset.json                   the protocol: classes, spacing, patch, which cases have
                                          labels
    <root>/train.list, <root>/test.list   cases; train.list begins with those that have a label
    <root>/val.list                       cases, where there are any for validation
    <root>/data/<case>.h5                 image float32 (X, Y, Z), label uint8 where there is one

The lists may be edited: a case without a label may stand anywhere in train.list, and in no other
list.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np

from dataloaders.preprocessing import Preprocessing
from dataloaders.slices import Slices
from dataloaders.volumes import Sample, Volumes
from utils.errors import UserError

FILE = "dataset.json"
MULTIPLE = 16  # extents are multiples of it, for networks halve them four times
LARGEST = 112 * 112 * 80  # voxels of a patch, as many as LA's, which fits common GPUs
LARGEST_SLICE = 256


class Own(Volumes):
    """One split of the data in a folder; see `dataloaders.volumes.Volumes`.

    Only the facts that are the same for all folders stand here. The others come from the folder's
    file, so `Own.at(root)` is the class to use.

    Class attributes:
        cases: by name, a case's entry in the file: `labeled`, `patient`.
    """

    name = "own"
    stride = (16, 16, 16)
    net = "vnet"
    labeled_bs, unlabeled_bs = 2, 2
    val_from = "labeled"  # the other cases have no labels
    splits = ("train", "val", "test")
    sources = MappingProxyType({"net": "ours", "labeled_bs": "ours", "unlabeled_bs": "ours"})
    cases: Mapping[str, dict]

    @classmethod
    def at(cls, root: str | Path) -> "type[Own]":
        """The class of the data in `root`.

        Raises:
            UserError: its file is missing or damaged.
        """
        path = Path(root) / FILE
        table = _read(path)
        try:
            attributes = cls._common(Path(root), table) | cls._of_dimension(table)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            reason = f"no {error}" if isinstance(error, KeyError) else str(error)
            raise UserError(f"{path}: damaged ({reason}); prepare the images again") from None
        except UserError as error:
            raise UserError(f"{path}: {error}") from None
        return type(cls.__name__, (cls,), attributes)

    @staticmethod
    def _common(root: Path, table: dict) -> dict:
        """The class attributes of 3-D and 2-D."""
        names, cases, spacing = table["class_names"], table["cases"], table["spacing"]
        if not names or not all(isinstance(name, str) for name in names):
            raise ValueError("class_names must be words, at least one")
        one_each = all(case["patient"] == name for name, case in cases.items())
        validated = (root / "val.list").is_file()
        return {
            "num_classes": len(names) + 1,
            "class_names": tuple(names),
            "spacing": None if spacing is None else _numbers("spacing", spacing, 3, float),
            "labelnum": table["labelnum"],
            "unit": "cases" if one_each else "patients",
            "splits": ("train", "val", "test") if validated else ("train", "test"),
            "source": f"{table['name']}'s {FILE}",
            "preprocessing": Preprocessing.from_dict(table["preprocessing"]),
            "cases": cases,
        }

    @staticmethod
    def _of_dimension(table: dict) -> dict:
        """The class attributes in which 3-D and 2-D differ."""
        patches = {scale: _numbers("patch", table["patch"][str(scale)], 3) for scale in (1, 2)}
        return {
            "patches": MappingProxyType(patches),
            "stride": None,
            "augment": table["augment"],
        }

    def __init__(self, root: str | Path, split: str = "train", downsample: int = 1):
        super().__init__(root, split, downsample)
        if split != "train":
            for index, name in enumerate(self.names):
                if not self._has_label(index):
                    raise UserError(
                        f"{self.root}: {name} in {split}.list has no label; only train.list may "
                        "hold it"
                    )

    def unit_of(self, name: str) -> str:
        if name not in self.cases:
            raise UserError(
                f"{self.root / FILE} knows no case {name}, which a list names; prepare the images "
                "again"
            )
        return self.cases[name]["patient"]

    def read(self, path: Path, label: bool = True) -> Sample:
        if label and not self.cases[path.stem]["labeled"]:
            raise UserError(
                f"{path}: an image without a label, which is needed here: take other cases "
                "(--split test, to validate --val_from labeled)"
            )
        return super().read(path, label)

    def labeled(self, labelnum: int) -> list[int]:
        """Indices of the samples that have a label, of the first `labelnum` units with such
        samples, in the order of the list.

        Raises:
            UserError: fewer units have any.
        """
        known = [index for index in range(len(self)) if self._has_label(index)]
        units = list(dict.fromkeys(self.units[index] for index in known))
        if labelnum > len(units):
            all_of_them = f"{self.total} training {self.unit} in {self.root}"
            raise UserError(
                f"--labelnum {labelnum}: {len(units)} of the {all_of_them} have a label"
            )
        first = set(units[:labelnum])
        return [index for index in known if self.units[index] in first]

    def _has_label(self, index: int) -> bool:
        return self.cases[self._volume(index)]["labeled"]

    def _volume(self, index: int) -> str:
        """The case of a sample."""
        return self.names[index]


class Own2d(Slices, Own):
    """Its slices across the axis with the largest spacing; see `dataloaders.slices.Slices`."""

    name = "own2d"
    tested_by = "own"
    stride = None
    net = "unet"
    augment = "rotate"
    labeled_bs, unlabeled_bs = 12, 12

    @staticmethod
    def _of_dimension(table: dict) -> dict:
        axes = _numbers("axes", table["slices"]["axes"], 3)
        if sorted(axes) != [0, 1, 2]:
            raise ValueError(f"axes {axes} of the slices are not 0, 1 and 2 in some order")
        return {
            "patches": MappingProxyType({1: _numbers("patch", table["slices"]["patch"], 2)}),
            "file_axes": axes,
            "image_axes": axes,
        }

    def _volume(self, index: int) -> str:
        case = self._places[index][0] if self.split == "train" else index
        return self.paths[case].stem


def protocol(shapes: Sequence[Sequence[int]], spacing: Sequence[float]) -> dict:
    """The part of the file that follows from the data: patches, augmentation, and the slices of
    2-D.

    Args:
        shapes: of the prepared training images.
        spacing: mm along their axes, typical ones where images differ.
    """
    shape = np.median(np.array(shapes), axis=0)
    patch = _patch(shape)
    # a crop that is turned by a quarter must lie in the image too
    fits = patch[0] == patch[1] or max(patch[:2]) <= min(shape[:2])
    square = abs(spacing[0] - spacing[1]) <= 0.05 * spacing[0]
    # across the slices: the axis with one plane (images of 2 axes), or else of the largest spacing
    thick = max(range(3), key=lambda axis: (shape[axis] == 1, round(spacing[axis], 3), axis))
    columns, rows = (axis for axis in range(3) if axis != thick)
    largest = max(shape[rows], shape[columns])
    scale = min(1.0, LARGEST_SLICE / largest)
    return {
        "patch": {"1": patch, "2": _patch(np.array(patch) / 2)},
        "augment": "rot_flip" if fits and square else "crop",
        "slices": {
            "axes": [rows, columns, thick],
            "patch": [max(2 * MULTIPLE, _round(scale * shape[axis])) for axis in (rows, columns)],
        },
    }


def _patch(shape: Sequence[float]) -> list[int]:
    """Extents near `shape`, multiples of 16; the longest is shortened until the patch is small
    enough.
    """
    patch = [_round(extent) for extent in shape]
    while np.prod(patch) > LARGEST:
        patch[max(range(3), key=lambda axis: (patch[axis], axis != 2))] -= MULTIPLE
    if max(patch) == MULTIPLE:  # a network's deepest stage needs more than one voxel
        patch[int(np.argmax(shape))] *= 2
    return patch


def _round(extent: float) -> int:
    return max(MULTIPLE, int(extent / MULTIPLE + 0.5) * MULTIPLE)


def _read(path: Path) -> dict:
    if not path.is_file():
        raise UserError(
            f"{path}: not there; make it with code/prepare_nifti.py, or name its folder with --root"
        )
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: damaged ({error}); prepare the images again") from None
    if not isinstance(table, dict):
        raise UserError(f"{path}: damaged (a JSON table is expected); prepare the images again")
    return table


def _numbers(key: str, values: Sequence, count: int, kind: type = int) -> tuple:
    """The values, checked: `count` of them, of type int or `kind`, none negative."""
    fits = all(isinstance(value, (int, kind)) and value >= 0 for value in values)
    if len(values) != count or not fits:
        raise ValueError(f"{key} {values} is not {count} numbers")
    return tuple(values)
