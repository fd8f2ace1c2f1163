"""One's own images, in 3-D and slice by slice, as `code/prepare_nifti.py` lays them out:

    <root>/dataset.json                                  the protocol: classes, spacing, patch, which cases have labels
    <root>/train.list, <root>/test.list, maybe val.list  cases; in train.list those with a label first
    <root>/data/<case>.h5                                image float32 (X, Y, Z), label uint8 where there is one

The lists may be edited: a case without a label may stand anywhere in train.list, and nowhere else.
"""

import json
from pathlib import Path
from types import MappingProxyType

import numpy as np

from dataloaders.preprocessing import Preprocessing
from dataloaders.slices import Slices
from dataloaders.volumes import Volumes
from utils.errors import UserError

FILE = "dataset.json"
MULTIPLE = 16  # of extents: what the networks halve four times
LARGEST = 112 * 112 * 80  # voxels of a patch: LA's, which fits common GPUs
LARGEST_SLICE = 256


class Own(Volumes):
    """One split of the data in a folder; see :class:`dataloaders.volumes.Volumes`. The protocol, of
    which only what is the same for all folders stands here, comes from the folder's file:
    `Own.at(root)` is the class to use.

    Class attributes:
        cases: what the file says of each case: `labeled`, `patient`.
    """

    name = "own"
    stride = (16, 16, 16)
    net = "vnet"
    labeled_bs, unlabeled_bs = 2, 2
    val_from = "labeled"  # the others' labels are what one does not have
    splits = ("train", "val", "test")

    @classmethod
    def at(cls, root):
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
    def _common(root, table):
        names, cases, spacing = table["class_names"], table["cases"], table["spacing"]
        if not names or not all(isinstance(name, str) for name in names):
            raise ValueError("class_names are to be words, one at least")
        return {
            "num_classes": len(names) + 1,
            "class_names": tuple(names),
            "spacing": None if spacing is None else _numbers("spacing", spacing, 3, float),
            "labelnum": table["labelnum"],
            "unit": "cases"
            if all(case["patient"] == name for name, case in cases.items())
            else "patients",
            "splits": ("train", "val", "test")
            if (root / "val.list").is_file()
            else ("train", "test"),
            "source": f"{table['name']}'s {FILE}",
            "preprocessing": Preprocessing.from_dict(table["preprocessing"]),
            "cases": cases,
        }

    @staticmethod
    def _of_dimension(table):
        return {
            "patches": MappingProxyType(
                {n: _numbers("patch", table["patch"][str(n)], 3) for n in (1, 2)}
            ),
            "stride": None,
            "augment": table["augment"],
        }

    def __init__(self, root, split="train", downsample=1):
        super().__init__(root, split, downsample)
        if split != "train":
            for index, name in enumerate(self.names):
                if not self._has_label(index):
                    raise UserError(
                        f"{self.root}: {name} in {split}.list has no label; only train.list may "
                        "hold it"
                    )

    def unit_of(self, name):
        if name not in self.cases:
            raise UserError(
                f"{self.root / FILE} knows no case {name}, which a list names; prepare the images "
                "again"
            )
        return self.cases[name]["patient"]

    def read(self, path, label=True):
        if label and not self.cases[path.stem]["labeled"]:
            raise UserError(
                f"{path}: an image without a label, which is needed here: take other cases "
                "(--split test, to validate "
                "--val_from labeled)"
            )
        return super().read(path, label)

    def labeled(self, labelnum):
        """Indices of the samples with a label of the first `labelnum` units that have any, in the
        order of the list.

        Raises:
            UserError: fewer have.
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

    def _has_label(self, index):
        return self.cases[self._volume(index)]["labeled"]

    def _volume(self, index):
        """The case of a sample."""
        return self.names[index]


class Own2d(Slices, Own):
    """Its slices across the axis with the largest spacing; see
    :class:`dataloaders.slices.Slices`.
    """

    name = "own2d"
    tested_by = "own"
    stride = None
    net = "unet"
    augment = "rotate"
    labeled_bs, unlabeled_bs = 12, 12

    @staticmethod
    def _of_dimension(table):
        axes = _numbers("axes", table["slices"]["axes"], 3)
        if sorted(axes) != [0, 1, 2]:
            raise ValueError(f"axes {axes} of the slices are not 0, 1 and 2 in some order")
        return {
            "patches": MappingProxyType({1: _numbers("patch", table["slices"]["patch"], 2)}),
            "file_axes": axes,
            "image_axes": axes,
        }

    def _volume(self, index):
        return self.paths[self._places[index][0] if self.split == "train" else index].stem


def protocol(shapes, spacing):
    """The part of the file that follows from the data: patches, augmentation, and the slices of
    2-D.

    Args:
        shapes: of the prepared training images.
        spacing: mm along their axes, at least typically.
    """
    shape = np.median(np.array(shapes), axis=0)
    patch = _patch(shape)
    # a crop that is turned by a quarter is to lie in the image too
    turns = patch[0] == patch[1] or max(patch[:2]) <= min(shape[:2])
    turns &= abs(spacing[0] - spacing[1]) <= 0.05 * spacing[0]
    thick = max(
        range(3), key=lambda axis: (shape[axis] == 1, round(spacing[axis], 3), axis)
    )  # 1: images of 2 axes
    columns, rows = (axis for axis in range(3) if axis != thick)
    largest = max(shape[rows], shape[columns])
    scale = min(1.0, LARGEST_SLICE / largest)
    return {
        "patch": {"1": patch, "2": _patch(np.array(patch) / 2)},
        "augment": "rot_flip" if turns else "crop",
        "slices": {
            "axes": [rows, columns, thick],
            "patch": [max(2 * MULTIPLE, _round(scale * shape[axis])) for axis in (rows, columns)],
        },
    }


def _patch(shape):
    """Extents near `shape`, multiples of 16, the longest shortened first until the patch is small
    enough.
    """
    patch = [_round(extent) for extent in shape]
    while np.prod(patch) > LARGEST:
        patch[max(range(3), key=lambda axis: (patch[axis], axis != 2))] -= MULTIPLE
    if max(patch) == MULTIPLE:  # a network's deepest stage needs more than one voxel
        patch[int(np.argmax(shape))] *= 2
    return patch


def _round(extent):
    return max(MULTIPLE, int(extent / MULTIPLE + 0.5) * MULTIPLE)


def _read(path):
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


def _numbers(key, values, count, kind=int):
    if len(values) != count or not all(
        isinstance(value, (int, kind)) and value >= 0 for value in values
    ):
        raise ValueError(f"{key} {values} is not {count} numbers")
    return tuple(values)
