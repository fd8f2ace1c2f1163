"""Pancreas-CT: 82 abdominal CT volumes of the NIH, of which 80 are left, in 3-D and slice by slice
(Roth et al., MICCAI 2015).

The published layouts, read as they are (CoraNet's, or that of DTC and MC-Net):

    <root>/train_lab.txt, <root>/train_unlab.txt    12 + 50 cases, or one train.list that begins
                                                    with the labelled ones
    <root>/test.txt                                 20 or 18 cases, or test.list
    <root>/<case>.h5                                image float32 (X, Y, Z) in [0, 1], label uint8
                                                    {0, 1}

The files may lie in a folder `Pancreas_h5`, and be called `<case>_norm.h5`. They hold 1 mm voxels
around the pancreas. CoraNet's paper has all 82 cases (IV-B) and trains on 12 + 50 in 3-D (IV-D), so
20 are left to test; the lists of DTC and MC-Net have as many. Cases 25 and 70 repeat two others,
which may put one patient into training and test, and the collection has dropped them since. That
its 80 cases are parted into 62 + 18 is a custom of the field. A warning says that a list holds 25
or 70.

The slices of `Pancreas2d` are in a folder of their own, in the same layout. CoraNet's paper (IV-B,
IV-D) takes another window for them, [-100, 240], cuts each to 192×240 pixels, speaks of no
resampling, and trains on 80 % of the 82 cases, half of them labelled. Of 80 cases these are
32 + 32, and 16 to test. Nobody publishes these files; `prepare_pancreas.py --for 2d` makes them.
"""

import re
import warnings
from pathlib import Path
from types import MappingProxyType

from dataloaders.preprocessing import Preprocessing
from dataloaders.slices import Slices
from dataloaders.volumes import Volumes

REPEATED = re.compile(r"(image|label|case|pancreas|pancreas_ct)?[-_]?0*(25|70)", re.IGNORECASE)


class Pancreas(Volumes):
    """One split of the data set; see `dataloaders.volumes.Volumes`.

    Class attributes:
        form: of `prepare_pancreas.py --for` that makes its files.
        misfit: why the files are not of that form, in a few words, or None.
    """

    name = "Pancreas"
    form = "3d"
    misfit: str | None = None
    num_classes = 2
    class_names = ("pancreas",)
    patches = MappingProxyType({1: (96, 96, 96)})
    stride = (16, 16, 4)
    spacing = (1.0, 1.0, 1.0)
    net = "vnet"
    augment = "crop"
    labelnum = 12
    labeled_bs, unlabeled_bs = 4, 4
    training_units = 62
    reported = (*Volumes.reported, "hd")
    source = "custom of the field: CoraNet"
    sources = MappingProxyType({"labeled_bs": "ours", "unlabeled_bs": "ours"})
    preprocessing = Preprocessing(
        orientation="LPS",
        spacing=(1.0, 1.0, 1.0),
        crop="label",
        margin=(25, 25, 25),
        at_least=(96, 96, 96),
        intensity="window",
        low=-125.0,
        high=275.0,
    )
    as_published = False  # spacings, windows and margins differ from one publication to the next

    @classmethod
    def at(cls, root: str | Path) -> "type[Pancreas]":
        found = super().at(root)
        how = found.preprocessing
        if how is not None:
            form = "2d" if how.exactly == Pancreas2d.preprocessing.exactly else "3d"
            found.misfit = f"files are prepared for {form}" if form != cls.form else None
        elif cls.form == "2d":  # the published files are for 3-D
            found.misfit = "nothing says that the files are prepared for 2d"
        if found.misfit:
            found.unlike_published = (*found.unlike_published, found.misfit)
        elif how is not None:
            found.unlike_published = (*found.unlike_published, *cls.other_window(how))
        return found

    @classmethod
    def other_window(cls, how: Preprocessing) -> list[str]:
        """That files have another window than published ones, in a few words, if they have."""
        usual = cls.preprocessing
        if how.intensity != "window" or (how.low, how.high) == (usual.low, usual.high):
            return []
        return [f"window {how.low:g} to {how.high:g} HU, not {usual.low:g} to {usual.high:g}"]

    def __init__(self, root: str | Path, split: str = "train", downsample: int = 1):
        super().__init__(root, split, downsample)
        if self.misfit:
            warnings.warn(
                f"{self.root}: {self.misfit}; prepare_pancreas.py DOWNLOAD --for {self.form} makes "
                f"those of {self.name}",
                stacklevel=2,
            )
        repeated = [unit for unit in dict.fromkeys(self.units) if REPEATED.fullmatch(unit)]
        if repeated:
            warnings.warn(
                f"{self.root}: the {split} list holds {' and '.join(repeated)}, and cases 25 and "
                "70 repeat others' scans: the papers' 82 cases hold them, the 80 that the "
                "collection has now do not",
                stacklevel=2,
            )

    def list_files(self, split: str) -> list[Path]:
        files = [self.root / f"{split}.txt"]
        if split == "train":
            files = [self.root / "train_lab.txt", self.root / "train_unlab.txt"]
        other = self.root / f"{split}.list"
        return [other] if other.exists() and not files[0].exists() else files

    def unit_of(self, name: str) -> str:
        return name.removesuffix("_norm")

    def path(self, name: str) -> Path:
        folder = self.root / "Pancreas_h5"
        if not folder.is_dir():
            folder = self.root
        file = folder / f"{name}.h5"
        return file if file.exists() or name.endswith("_norm") else folder / f"{name}_norm.h5"


class Pancreas2d(Slices, Pancreas):
    """Its axial slices `(y, x)`, as a reader sees them; see `dataloaders.slices.Slices`."""

    name = "Pancreas2d"
    form = "2d"
    patches = MappingProxyType({1: (192, 240)})
    stride = None
    spacing = None
    net = "unet"
    augment = "affine"
    labelnum = 32
    labeled_bs, unlabeled_bs = 2, 2
    training_units = 64
    preprocessing = Preprocessing(
        orientation="LPS",
        crop="label",
        exactly=(240, 192, None),
        intensity="window",
        low=-100.0,
        high=240.0,
    )
    sources = MappingProxyType({"net": "custom of the field: SSL4MIS"})
    file_axes = (1, 0, 2)
    shown = reported = ("dice", "precision", "recall", "hd")
