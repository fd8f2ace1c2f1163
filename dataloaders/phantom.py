"""The phantom: procedural left atria in the layout of the LA data set, made from a seed in seconds.

<root>/phantom.json      seed, size and number of cases; `code/prepare_phantom.py` writes it
<root>/                  otherwise as `dataloaders/la.py` says
"""

import json
from pathlib import Path
from types import MappingProxyType

import numpy as np

from dataloaders.la import LA
from dataloaders.slices import Slices
from utils.errors import UserError

SETTINGS = "phantom.json"
SIZE = (64, 64, 40)  # voxels, by default
FIELD_OF_VIEW = np.array([128.0, 128.0, 80.0])  # mm


class Phantom(LA):
    """One split of a phantom that `code/prepare_phantom.py` made; see `dataloaders.la.LA`."""

    name = "phantom"
    tested_by = "LA"
    patches = MappingProxyType({1: (48, 48, 32)})
    stride = (16, 16, 8)
    spacing = tuple((FIELD_OF_VIEW / SIZE).tolist())  # mm
    source = "ours"  # LA's protocol on volumes of half the size

    @classmethod
    def at(cls, root: str | Path) -> type:
        """The class of the phantom in `root`, which has the size that it was made in."""
        settings = read_settings(root)
        spacing = cls.spacing
        if settings is not None:
            spacing = tuple((FIELD_OF_VIEW / settings["size"]).tolist())
        return type(cls.__name__, (cls,), {"spacing": spacing})

    def __init__(self, root: str | Path, split: str = "train", downsample: int = 1):
        if read_settings(root) is None:
            there = Path(root)
            if there.is_dir() and any(there.iterdir()):
                raise UserError(f"{root}: this folder holds something else than the phantom")
            raise UserError(
                f"{root}: no phantom here; make it with: python code/prepare_phantom.py --root "
                f"{root}"
            )
        super().__init__(root, split, downsample)


class Phantom2d(Slices, Phantom):
    """The axial slices `(y, x)` of a phantom, for trying a 2-D method in minutes."""

    name = "phantom2d"
    tested_by = "ACDC"
    keep_largest = False
    patches = MappingProxyType({1: (64, 64)})
    stride = None
    net = "unet"
    augment = "rotate"
    labeled_bs, unlabeled_bs = 4, 4
    source = "ours"  # ACDC's protocol
    file_axes = (1, 0, 2)


def read_settings(root: str | Path) -> dict | None:
    """The settings of the phantom in folder `root`, None where there is none.

    Raises:
        UserError: `root` cannot be read, or its `phantom.json` is damaged.
    """
    path = Path(root) / SETTINGS
    try:
        settings = json.loads(path.read_text())
        return {key: settings[key] for key in ("generator", "seed", "size", "train", "test")}
    except FileNotFoundError:
        return None
    except NotADirectoryError:
        raise UserError(
            f"{root}: is, or lies below, a file, not a folder; name another with --root"
        ) from None
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}); name another folder with --root"
        ) from None
    except (ValueError, KeyError, TypeError):
        raise UserError(
            f"{path}: damaged; restore it, or move {root} away and make the phantom again"
        ) from None
