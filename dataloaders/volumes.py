"""What all data sets share: lists of cases, one h5 file a case, half resolution. A data set's own
file is what is left: its protocol, its layout, and what its voxels mean."""

import json
from pathlib import Path

from dataloaders.h5 import check_disjoint, read_image, read_label, read_list
from dataloaders.preprocessing import MARKER, Preprocessing
from dataloaders.transforms import downsample_image, downsample_label
from utils.errors import UserError


class Volumes:
    """One split of a data set.

    Args:
        root: folder of the data set's layout.
        split: one of `splits`. A split opens its own list and those before it, to see that no unit
            is in both: the train split opens neither the validation nor the test list.
        downsample: 2 for half the resolution: images averaged over 2×2×2 voxels, labels by
            majority.

    Attributes:
        names: one a sample.
        units: the unit of each sample.

    Class attributes, the protocol:
        name: as in `--dataset`.
        in_channels: channels of an image.
        num_classes, class_names: background included; the foreground's names alone.
        patches: patch by `--downsample`; of two extents for a data set of slices.
        stride: of the sliding window; None in 2-D.
        spacing: mm; None where it differs from case to case.
        file_axes: in 2-D, which axes of a file's arrays are a sample's rows, columns and slices;
            None in 3-D, where files are read as they are.
        net, augment, labelnum, labeled_bs, unlabeled_bs: defaults of the options of these names.
        unit: what `labelnum` counts.
        training_units: how many units the train list has as it is published; None where the folder
            says it.
        splits: the lists that are published, in the order of their use.
        source: whose protocol this is.
        tested_by: the data set whose script `code/test_<name>.py` tests this one too; None: it has
            a script of its own.
        keep_largest: whether its tests keep the largest component of each class only.
        per_slice: whether its tests score each slice by itself, because a volume's slices are no
            neighbours in space.
        shown: metrics that its tests show where `--metrics` asks for no others.
        reported: metrics that papers report on it.
        preprocessing: how the files are made of the images
            (`dataloaders.preprocessing.Preprocessing`); None: unknown.
        as_published: whether those that are published were made so too.
        unlike_published: why numbers of this data may not be set beside published ones, a few words
            each.
        val_from: default of the option, for `--val_fraction`.
        image_axes: in 2-D, which of an image's axes x, y and z are a sample's rows, columns and
            slices.

    Raises:
        UserError: a list or a case is missing, a case is listed twice or a unit in two lists.
    """

    in_channels = 1
    file_axes = None
    unit = "cases"
    training_units = None
    splits = ("train", "test")
    tested_by = None
    keep_largest = False
    per_slice = False
    shown = ("dice", "jaccard", "hd95", "asd")
    reported = shown
    image_axes = (1, 0, 2)
    val_from = "unlabeled"
    preprocessing = None
    as_published = True
    unlike_published = ()

    @classmethod
    def at(cls, root):
        """The class of the data in `root`, which knows how its files were made: as their
        preparation has noted, or else as the published ones.

        Raises:
            UserError: the note is damaged.
        """
        note = Path(root) / MARKER
        if not note.is_file():
            return cls if cls.as_published else type(cls.__name__, (cls,), {"preprocessing": None})
        try:
            recipe = json.loads(note.read_text(encoding="utf-8"))["recipe"]
            made = recipe.get("preprocessing", cls.preprocessing and cls.preprocessing.as_dict())
            attributes = {"preprocessing": made and Preprocessing.from_dict(made)}
            attributes["unlike_published"] = tuple(recipe.get("unlike_published", ()))
        except (OSError, ValueError, LookupError, TypeError, AttributeError, UserError) as error:
            raise UserError(f"{note}: damaged ({error}); prepare the data again") from None
        return type(cls.__name__, (cls,), attributes)

    @classmethod
    def description(cls):
        """What prediction must know of the data that a network has learnt from, as JSON can hold
        it.
        """
        return {
            "name": cls.name,
            "in_channels": cls.in_channels,
            "num_classes": cls.num_classes,
            "class_names": list(cls.class_names),
            "spacing": cls.spacing and list(cls.spacing),
            "stride": cls.stride and list(cls.stride),
            "keep_largest": cls.keep_largest,
            "file_axes": cls.file_axes and list(cls.file_axes),
            "image_axes": list(cls.image_axes) if len(cls.patches[1]) == 2 else None,
            "preprocessing": cls.preprocessing and cls.preprocessing.as_dict(),
            "unlike_published": list(cls.unlike_published),
        }

    def __init__(self, root, split="train", downsample=1):
        self.root, self.split, self.downsample = Path(root), split, downsample
        if not self.root.is_dir():
            raise UserError(
                f"{self.root}: no such folder; get {self.name} as docs/data.md says, or name its "
                "folder with --root"
            )
        if split not in self.splits:
            raise UserError(f"{self.name} has no {split} list; it has {', '.join(self.splits)}")
        if downsample != 1 and len(self.patches[1]) == 2:
            raise UserError(
                f"--downsample {downsample}: {self.name} is made of slices, choose their size with "
                "--patch"
            )
        earlier = self.splits[: self.splits.index(split)]
        lists = {
            path: read_list(path)
            for other in earlier
            for path in self.list_files(other)
            if path.exists()
        }
        self.names, self.paths = [], []
        for path in self.list_files(split):
            names = read_list(path)
            for other, others in lists.items():
                units, known = (
                    [self.unit_of(name) for name in listed] for listed in (names, others)
                )
                check_disjoint(path, units, other, known, self.unit.removesuffix("s"))
            lists[path] = names
            files = [self.path(name) for name in names]
            missing = [file for file in files if not file.is_file()]
            if missing:
                more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
                raise UserError(f"{missing[0]}{more}: file not found, though {path} lists its case")
            self.names += names
            self.paths += files
        self.units = [self.unit_of(name) for name in self.names]

    # ---- the layout: what a data set's file overrides

    def list_files(self, split):
        """The list files of a split, which together name its cases."""
        return [self.root / f"{split}.list"]

    def path(self, name):
        """The h5 file of a listed case."""
        return self.root / "data" / f"{name}.h5"

    def unit_of(self, name):
        """The unit that a listed case belongs to."""
        return name

    def read(self, path, label=True):
        """A file as `(image, label)`, with the axes and the classes that `load` promises."""
        image = read_image(path)
        return image, read_label(path, image.shape, self.num_classes) if label else None

    # ---- what the loaders use

    @property
    def total(self):
        """How many units the split has."""
        return len(set(self.units))

    def __len__(self):
        return len(self.names)

    def labeled(self, labelnum):
        """Indices of the samples of the first `labelnum` units, in the order of the list.

        Raises:
            UserError: the split has fewer units.
        """
        if labelnum > self.total:
            raise UserError(
                f"--labelnum {labelnum}: {self.name} has {self.total} training {self.unit}"
            )
        first = set(list(dict.fromkeys(self.units))[:labelnum])
        return [index for index, unit in enumerate(self.units) if unit in first]

    def load(self, index, label=True):
        """Sample `index` as `(image, label)`: float32 and uint8, both `(X, Y, Z)`.

        With `label=False` the label is neither opened nor needed, and None is returned in its
        place.
        """
        path = self.paths[index]
        image, target = self.read(path, label)
        if self.downsample > 1:
            if min(image.shape) < self.downsample:
                raise UserError(
                    f"{path}: shape {image.shape} is too small for --downsample {self.downsample}"
                )
            image = downsample_image(image, self.downsample)
            target = downsample_label(target, self.downsample, self.num_classes) if label else None
        return image, target
