"""Pancreas-CT: 80 abdominal CT volumes of the NIH, in 3-D and slice by slice (Roth et al., MICCAI
2015).

The published layouts, read as they are (CoraNet's, or that of DTC and MC-Net):

    <root>/train_lab.txt, <root>/train_unlab.txt    12 + 50 cases, or one train.list that begins
                                                    with the labelled ones
    <root>/test.txt                                 18 cases, or test.list
    <root>/<case>.h5                                image float32 (X, Y, Z) in [0, 1], label uint8
                                                    {0, 1}

The files may lie in a folder `Pancreas_h5`, and be called `<case>_norm.h5`. They hold 1 mm voxels
around the pancreas. Cases 25 and 70 of the original 82 repeat two others, which may put one patient
into training and test. DTC's and MC-Net's lists hold them: numbers on these 62 + 20 cases follow
MC-Net's protocol, numbers on the 62 + 18 without them CoraNet's. A warning says that a list holds
them.
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
    """One split of the data set; see `dataloaders.volumes.Volumes`."""

    name = "Pancreas"
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
    source = "Shi et al., TMI 2022 (CoraNet)"
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

    def __init__(self, root: str | Path, split: str = "train", downsample: int = 1):
        super().__init__(root, split, downsample)
        repeated = [unit for unit in dict.fromkeys(self.units) if REPEATED.fullmatch(unit)]
        if repeated:
            warnings.warn(
                f"{self.root}: the {split} list holds {' and '.join(repeated)}, and 25 and 70 of "
                "the 82 cases repeat others' scans: numbers follow MC-Net's protocol, CoraNet's "
                "leaves them out",
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
    patches = MappingProxyType({1: (192, 240)})
    stride = None
    net = "unet"
    augment = "affine"
    labelnum = 31
    labeled_bs, unlabeled_bs = 2, 2
    source = "Shi et al., TMI 2022 (CoraNet), 1 labelled : 1 unlabelled"
    file_axes = (1, 0, 2)
    shown = reported = ("dice", "precision", "recall", "hd")
