"""BraTS 2019: FLAIR volumes of 335 gliomas, 1 mm, the whole tumour (Menze et al., IEEE TMI 34(10),
2015).

The published layout of SSL4MIS (Luo et al.), read as it is:

    <root>/train.txt                    250 cases; the first 25 or 50 are labelled
    <root>/val.txt, <root>/test.txt     25 and 60 cases
    <root>/data/<case>.h5               image float32 (X, Y, Z), label integers

The label is the whole tumour as 1, or the challenge's 1, 2 and 4 (necrosis, oedema, enhancing),
which are joined. The challenge does not use 3, which is refused.
"""

from pathlib import Path
from types import MappingProxyType

import numpy as np

from dataloaders.h5 import read_image, read_label
from dataloaders.preprocessing import Preprocessing
from dataloaders.volumes import Sample, Volumes
from utils.errors import UserError


class BraTS2019(Volumes):
    """One split of the data set; see `dataloaders.volumes.Volumes`."""

    name = "BraTS2019"
    num_classes = 2
    class_names = ("whole tumour",)
    patches = MappingProxyType({1: (96, 96, 96)})
    stride = (64, 64, 64)
    spacing = (1.0, 1.0, 1.0)
    net = "vnet"
    augment = "rot_flip"
    labelnum = 25
    labeled_bs, unlabeled_bs = 2, 2
    training_units = 250
    splits = ("train", "val", "test")
    source = "custom of the field: SSL4MIS"
    sources = MappingProxyType({"net": "custom of the field: UG-MCL, CML"})
    preprocessing = Preprocessing(orientation="LPS", crop="nonzero", intensity="zscore_nonzero")
    # the published files have their brightest voxels clipped, and their background is not 0
    as_published = False

    def list_files(self, split: str) -> list[Path]:
        return [self.root / f"{split}.txt"]

    def read(self, path: Path, label: bool = True) -> Sample:
        image = read_image(path)
        if not label:
            return image, None
        target = read_label(path, image.shape, 5)
        if (target == 3).any():
            raise UserError(
                f"{path}: label has value 3, which BraTS 2019 does not use; 0, 1, 2 and 4 are "
                "expected"
            )
        return image, (target > 0).astype(np.uint8)
