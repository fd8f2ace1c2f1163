"""Data flows one way: dataset file -> transforms -> two-stream loader -> script."""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dataloaders.volumes import Volumes

# name of --dataset: (file, class, folder below data/)
DATASETS = {
    "LA": ("la", "LA", "LA"),
    "ACDC": ("acdc", "ACDC", "ACDC"),
    "Pancreas": ("pancreas", "Pancreas", "Pancreas"),
    "Pancreas2d": ("pancreas", "Pancreas2d", "Pancreas2d"),
    "BraTS2019": ("brats", "BraTS2019", "BraTS2019"),
    "endocardium": ("endocardium", "Endocardium", "endocardium"),
    "own": ("own", "Own", "own"),
    "own2d": ("own", "Own2d", "own"),
    "phantom": ("phantom", "Phantom", "phantom"),
    "phantom2d": ("phantom", "Phantom2d", "phantom"),
}


def dataset_class(name: str, root: str | Path | None = None) -> "type[Volumes]":
    """The class of a data set, whose attributes are its protocol (`dataloaders.volumes.Volumes`).

    With `root` it is the class of the data in that folder (`Volumes.at`). The protocol of one's own
    data stands in a file of that folder, so it is not known without it.
    """
    module, class_name, _ = DATASETS[name]
    found = getattr(import_module(f"dataloaders.{module}"), class_name)
    return found if root is None else found.at(root)


def evaluation_script(name: str) -> str:
    """File name of the script in `code/` that tests data set `name`.

    A data set that is not known here has a script of its own name.
    """
    owner = dataset_class(name).tested_by if name in DATASETS else None
    return f"test_{owner or name}.py"


def default_root(name: str) -> str:
    """The folder in which data set `name` is looked for without `--root`."""
    return f"data/{DATASETS[name][2]}"


def open_dataset(
    name: str, root: str | Path | None = None, split: str = "train", downsample: int = 1
) -> "Volumes":
    """A split of data set `name`; `root` is its folder below `data/` by default.

    Raises:
        UserError: the data is not there, or its lists are wrong.
    """
    root = root or default_root(name)
    return dataset_class(name, root)(root, split, downsample)
