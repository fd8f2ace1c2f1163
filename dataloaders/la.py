"""Left atrium: 100 gadolinium-enhanced MR volumes, 0.625 mm (Xiong et al., Medical Image Analysis 67, 2021, 101832).

The published layout, read as it is, with or without the folder in the middle:

    <root>/train.list                                           80 cases; the first 4, 8 or 16 are the labelled ones
    <root>/test.list                                            20 cases
    <root>/2018LA_Seg_Training Set/<case>/mri_norm2.h5          image float32 (X, Y, Z), label uint8 {0, 1}

`root` may also be the folder in the middle itself, with the lists in it or beside it.
"""

from pathlib import Path
from types import MappingProxyType

from dataloaders.h5 import check_disjoint, read_image, read_label, read_list
from dataloaders.transforms import downsample_image, downsample_label
from utils.errors import UserError

FOLDER = "2018LA_Seg_Training Set"


class LA:
    """One split of the data set.

    Args:
        root: folder of the layout above.
        split: `train` or `test`. Only the test split opens `test.list`; it also sees that no case is in both lists.
        downsample: 2 for half the resolution: images averaged over 2×2×2 voxels, labels by majority.

    Raises:
        UserError: a list or a case is missing, a case is listed twice or in both lists.
    """

    name = "LA"
    num_classes = 2
    patches = MappingProxyType({1: (112, 112, 80), 2: (64, 64, 32)})  # by --downsample
    stride = (18, 18, 4)
    spacing = (0.625, 0.625, 0.625)  # mm

    def __init__(self, root, split="train", downsample=1):
        root = Path(root)
        if not root.is_dir():
            raise UserError(
                f"{root}: no such folder; get {self.name} as the README says, or name its folder with --root"
            )
        self.split = split
        self.downsample = downsample
        lists = root.parent if root.name == FOLDER and not (root / f"{split}.list").exists() else root
        volumes = root / FOLDER if (root / FOLDER).is_dir() else root
        list_file = lists / f"{split}.list"
        self.names = read_list(list_file)
        if split == "test" and (lists / "train.list").exists():
            check_disjoint(list_file, self.names, lists / "train.list", read_list(lists / "train.list"))
        self.paths = [volumes / name / "mri_norm2.h5" for name in self.names]
        missing = [path for path in self.paths if not path.is_file()]
        if missing:
            more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
            raise UserError(f"{missing[0]}{more}: file not found, though {list_file} lists its case")

    def __len__(self):
        return len(self.names)

    def load(self, index, label=True):
        """Case `index` as `(image, label)`: float32 and uint8, both `(X, Y, Z)`.

        With `label=False` the label is neither opened nor needed, and None is returned in its place.
        """
        path = self.paths[index]
        image = read_image(path)
        target = read_label(path, image.shape, self.num_classes) if label else None
        if self.downsample > 1:
            if min(image.shape) < self.downsample:
                raise UserError(f"{path}: shape {image.shape} is too small for --downsample {self.downsample}")
            image = downsample_image(image, self.downsample)
            target = downsample_label(target, self.downsample, self.num_classes) if label else None
        return image, target
