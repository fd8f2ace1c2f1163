"""ACDC: cine MR of 100 hearts at end diastole and end systole, 4 classes (Bernard et al., IEEE TMI
37(11), 2018).

The published layout of SSL4MIS (Luo et al.), read as it is:

    <root>/train_slices.list                    1312 slices of 70 patients; 3 and 7 patients have
                                                68 and 136
    <root>/val.list, <root>/test.list           20 and 40 volumes of 10 and 20 patients
    <root>/data/slices/<volume>_slice_<k>.h5    image float32 (y, x), label uint8 {0, 1, 2, 3}
    <root>/data/<volume>.h5                     image float32 (slice, y, x), label uint8

A volume is called `<patient>_frame<01|02>`. Its slices are 5 to 10 mm apart, so the data is used in
2-D.
"""

from pathlib import Path
from types import MappingProxyType

from dataloaders.h5 import read_image, read_label
from dataloaders.preprocessing import Preprocessing
from dataloaders.slices import with_axes
from dataloaders.volumes import Sample, Volumes


class ACDC(Volumes):
    """One split of the data set: slices `(H, W)` in the train split, volumes `(H, W, slices)` in
    the others; see `dataloaders.volumes.Volumes`.
    """

    name = "ACDC"
    num_classes = 4
    class_names = ("RV", "Myo", "LV")
    patches = MappingProxyType({1: (256, 256)})
    stride = None
    spacing = None
    file_axes = (1, 2, 0)
    net = "unet"
    augment = "rotate"
    labelnum = 7
    labeled_bs, unlabeled_bs = 12, 12
    unit = "patients"
    training_units = 70
    splits = ("train", "val", "test")
    source = "custom of the field: SSL4MIS"
    preprocessing = Preprocessing(intensity="minmax")

    def list_files(self, split: str) -> list[Path]:
        return [self.root / ("train_slices.list" if split == "train" else f"{split}.list")]

    def path(self, name: str) -> Path:
        folder = self.root / "data"
        if self.split == "train":
            folder = folder / "slices"
        return folder / f"{name}.h5"

    def unit_of(self, name: str) -> str:
        return name.partition("_")[0]

    def read(self, path: Path, label: bool = True) -> Sample:
        train = self.split == "train"
        image = read_image(path, 2 if train else 3)
        target = read_label(path, image.shape, self.num_classes) if label else None
        return (image, target) if train else with_axes(image, target, self.file_axes)
