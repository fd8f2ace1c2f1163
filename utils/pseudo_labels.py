"""Pseudo-labels of whole images, and which of their voxels are uncertain."""

import zlib
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


class PseudoLabels:
    """Pseudo-labels by case, as two volumes of a byte a voxel; a checkpoint holds them compressed.

    Beyond an image's edge a crop of either volume is 0, which is certain background: what padding
    is in a labelled crop too.

    Attributes:
        labels: case to classes, uint8 `(*S)`.
        uncertain: case to 1 where the label is not to be trusted, else 0, uint8 `(*S)`.
    """

    def __init__(self):
        self.labels: dict[int, Tensor] = {}
        self.uncertain: dict[int, Tensor] = {}

    def replace(self, found: Mapping[int, tuple[Tensor, Tensor]]) -> None:
        """Hold these and no others.

        Args:
            found: case to its classes (integers from 0 to 255, `(*S)`) and whether each voxel is
                certain (bool `(*S)`).
        """
        self.labels = {case: label.to("cpu", torch.uint8) for case, (label, _) in found.items()}
        self.uncertain = {
            case: (~certain).to("cpu", torch.uint8) for case, (_, certain) in found.items()
        }

    def images_with(self, c: int, certain_only: bool) -> int:
        """Number of images in which class `c` has a voxel, or with `certain_only` a certain one."""
        count = 0
        for case, label in self.labels.items():
            found = label == c
            if certain_only:
                found &= self.uncertain[case] == 0
            count += bool(found.any())
        return count

    def state_dict(self) -> dict:
        return {"labels": _compressed(self.labels), "uncertain": _compressed(self.uncertain)}

    def load_state_dict(self, state: dict) -> None:
        self.labels = _decompressed(state["labels"])
        self.uncertain = _decompressed(state["uncertain"])


def relabelling_summary(
    images: int, counts: Sequence[int], names: Sequence[str], certain_only: bool
) -> str:
    """A line for the log: in how many relabelled images each class is, and which class is in none.

    Args:
        images: number of relabelled images.
        counts: for each class, the number of images that have it (`PseudoLabels.images_with`).
        names: of these classes.
        certain_only: whether only certain voxels counted.
    """
    found = ", ".join(f"{name} in {count}" for name, count in zip(names, counts, strict=True))
    missing = [name for name, count in zip(names, counts, strict=True) if count == 0]
    line = f"relabelled images: {images}; {'certain' if certain_only else 'pseudo-label'} {found}"
    return f"{line} - none has {', '.join(missing)}" if missing else line


def _compressed(volumes: Mapping[int, Tensor]) -> dict:
    """Volumes as bytes in tensors, since a checkpoint holds only tensors, and their shapes."""
    packed = {}
    for case, volume in volumes.items():
        content = bytearray(zlib.compress(volume.numpy(), 1))
        packed[case] = (torch.frombuffer(content, dtype=torch.uint8), list(volume.shape))
    return packed


def _decompressed(packed: Mapping[int, tuple[Tensor, list[int]]]) -> dict[int, Tensor]:
    volumes = {}
    for case, (content, shape) in packed.items():
        raw = bytearray(zlib.decompress(content.numpy()))
        volumes[case] = torch.frombuffer(raw, dtype=torch.uint8).view(shape)
    return volumes
