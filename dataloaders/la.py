"""Left atrium: 100 gadolinium-enhanced MR volumes, 0.625 mm (Xiong et al., Medical Image Analysis
67, 2021, 101832).

The published layout, read as it is, with or without the folder in the middle:

    <root>/train.list                                   80 cases; the first 4, 8 or 16 are labelled
    <root>/test.list                                    20 cases
    <root>/2018LA_Seg_Training Set/<case>/mri_norm2.h5  image float32 (X, Y, Z), label uint8 {0, 1}

`root` may also be the folder in the middle itself, with the lists in it or beside it.
"""

from pathlib import Path
from types import MappingProxyType

from dataloaders.preprocessing import Preprocessing
from dataloaders.volumes import Volumes

FOLDER = "2018LA_Seg_Training Set"


class LA(Volumes):
    """One split of the data set; see `dataloaders.volumes.Volumes`."""

    name = "LA"
    num_classes = 2
    class_names = ("left atrium",)
    patches = MappingProxyType({1: (112, 112, 80), 2: (64, 64, 32)})
    stride = (18, 18, 4)
    spacing = (0.625, 0.625, 0.625)
    net = "vnet"
    augment = "rot_flip"
    labelnum = 16
    labeled_bs, unlabeled_bs = 2, 2
    training_units = 80
    keep_largest = True
    source = "custom of the field: UA-MT"
    # the published margins are random, with these means; all slices are kept
    preprocessing = Preprocessing(
        crop="label", margin=(14, 14, 0), at_least=(141, 141, 1000), intensity="zscore"
    )

    def list_files(self, split: str) -> list[Path]:
        file = self.root / f"{split}.list"
        if self.root.name == FOLDER and not file.exists():
            file = self.root.parent / file.name
        return [file]

    def path(self, name: str) -> Path:
        volumes = self.root / FOLDER
        if not volumes.is_dir():
            volumes = self.root
        return volumes / name / "mri_norm2.h5"
