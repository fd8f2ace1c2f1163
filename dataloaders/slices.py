"""What data sets of slices share: a network learns from one slice at a time and is scored on whole
volumes.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dataloaders.h5 import image_shape
from dataloaders.volumes import Sample, Volumes


def with_axes(image: np.ndarray, label: np.ndarray | None, axes: Sequence[int]) -> Sample:
    """A volume and its label (or None) as `(H, W, slices)`, which are the file's axes of these
    numbers.
    """
    image = np.ascontiguousarray(image.transpose(axes))
    return image, None if label is None else np.ascontiguousarray(label.transpose(axes))


class Slices(Volumes):
    """One split of a data set of volumes: its samples are slices `(H, W)` in the train split, in
    the order of the list, and volumes `(H, W, slices)` in the others. See
    `dataloaders.volumes.Volumes`.

    Class attributes:
        spacing: along the files' axes; an instance's along H, W and the slices.
    """

    file_axes = (0, 1, 2)

    def __init__(self, root: str | Path, split: str = "train", downsample: int = 1):
        super().__init__(root, split, downsample)
        if self.spacing is not None:
            self.spacing = tuple(self.spacing[axis] for axis in self.file_axes)
        if split == "train":
            counts = [image_shape(path)[self.file_axes[2]] for path in self.paths]
            self._places = [(case, k) for case, count in enumerate(counts) for k in range(count)]
            self.names = [f"{self.names[case]}_slice_{k + 1}" for case, k in self._places]
            self.units = [self.units[case] for case, _ in self._places]
            # the volume read last, as its slices are asked for one after the other
            self._open: tuple | None = None

    def read(self, path: Path, label: bool = True) -> Sample:
        return with_axes(*super().read(path, label), self.file_axes)

    def load(self, index: int, label: bool = True) -> Sample:
        """Sample `index` as `(image, label)`: float32 and uint8, both `(H, W)`, or `(H, W, slices)`
        of a volume.

        With `label=False` the label is neither opened nor needed, and None is returned in its
        place.
        """
        if self.split != "train":
            return super().load(index, label)
        case, k = self._places[index]
        if self._open is None or self._open[:2] != (case, label):
            self._open = case, label, *self.read(self.paths[case], label)
        _, _, image, target = self._open
        return image[..., k].copy(), None if target is None else target[..., k].copy()
