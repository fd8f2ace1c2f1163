"""Data flows one way: dataset file -> transforms -> two-stream loader -> script."""

from importlib import import_module

# name of --dataset: (file, class, folder below data/)
DATASETS = {
    "LA": ("la", "LA", "LA"),
    "ACDC": ("acdc", "ACDC", "ACDC"),
    "Pancreas": ("pancreas", "Pancreas", "Pancreas"),
    "Pancreas2d": ("pancreas", "Pancreas2d", "Pancreas"),
    "BraTS2019": ("brats", "BraTS2019", "BraTS2019"),
    "endocardium": ("endocardium", "Endocardium", "endocardium"),
    "own": ("own", "Own", "own"),
    "own2d": ("own", "Own2d", "own"),
    "phantom": ("phantom", "Phantom", "phantom"),
    "phantom2d": ("phantom", "Phantom2d", "phantom"),
}


def dataset_class(name, root=None):
    """The class of a data set, whose attributes are its protocol
    (:class:`dataloaders.volumes.Volumes`).

    One's own data have their protocol in a file of theirs: their `root` brings it.
    """
    module, cls, _ = DATASETS[name]
    cls = getattr(import_module(f"dataloaders.{module}"), cls)
    return cls if root is None else cls.at(root)


def evaluation_script(name):
    """File name of the script in `code/` that tests data set `name`; of one that is not known here,
    the script of its own name.
    """
    owner = dataset_class(name).tested_by if name in DATASETS else None
    return f"test_{owner or name}.py"


def default_root(name):
    """Where data set `name` is looked for without `--root`."""
    return f"data/{DATASETS[name][2]}"


def open_dataset(name, root=None, split="train", downsample=1):
    """A split of data set `name`; `root` is its folder below `data/` by default."""
    root = root or default_root(name)
    return dataset_class(name, root)(root, split, downsample)
