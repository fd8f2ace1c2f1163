"""Data flows one way: dataset file -> transforms -> two-stream loader -> script."""

from importlib import import_module

# name of --dataset: (file, class, folder below data/)
DATASETS = {"LA": ("la", "LA", "LA"), "phantom": ("phantom", "Phantom", "phantom")}


def dataset_class(name):
    """The class of a data set, with its defaults `num_classes`, `patch`, `stride` and `spacing`."""
    module, cls, _ = DATASETS[name]
    return getattr(import_module(f"dataloaders.{module}"), cls)


def default_root(name):
    """Where data set `name` is looked for without `--root`."""
    return f"data/{DATASETS[name][2]}"


def open_dataset(name, root=None, split="train", downsample=1):
    """A split of data set `name`; `root` is `data/<name>` by default."""
    return dataset_class(name)(root or default_root(name), split, downsample)
