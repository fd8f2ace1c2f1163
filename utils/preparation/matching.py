"""Matches the images and the labels of two folders by their names."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dataloaders.h5 import read_list
from utils.errors import UserError
from utils.preparation.images import find_images, stem

CHANNEL = re.compile(r"_(\d{4})$")  # nnU-Net's, at the end of an image's name
# words in a file's name that say whether it is an image or a label
ROLE = r"image|images|img|scan|volume|vol|label|labels|lbl|seg|segmentation|mask|gt"
AROUND = re.compile(rf"^({ROLE})([-_.]|(?=\d))|[-_.]({ROLE})$", re.IGNORECASE)


@dataclass
class Case:
    """An image, perhaps with a label.

    Attributes:
        name: of the case in lists.
        image, label: their files.
        patient: the patient that the image is of.
        split: its list; None as long as the seed may choose it.
        sha256, axes, spacing, values: found by `own.survey`: hash of the image's voxels, where its
            axes point to, mm, values of the label.
    """

    name: str
    image: Path
    label: Path | None
    patient: str
    split: str | None = None
    sha256: str = ""
    axes: str = ""
    spacing: tuple = ()
    values: list[int] = field(default_factory=list)


def find_cases(images: Path, labels: Path | None, channel: str) -> list[Case]:
    """The cases of a folder of images and one of labels, sorted by name.

    Args:
        channel: number of the images to take where the names end in nnU-Net's channel numbers.

    Raises:
        UserError: no image, two files of one case, a label without an image, or no such channel.
    """
    image_files, label_files = _files(images, labels)
    names = _names(image_files, images)
    targets = _names(label_files, labels)
    if _have_channels(names, targets):
        image_files, names = _take_channel(image_files, names, images, channel)
    keys = names
    if not set(targets) <= set(names):
        # compare the names without the words for images and labels
        keys = [bare(name) for name in names]
        targets = [bare(target) for target in targets]
    cases = {}
    for key, name, image in zip(keys, names, image_files, strict=True):
        if key in cases:
            raise UserError(f"{cases[key].image} and {image} are both case {key}: rename one")
        cases[key] = Case(name, image, None, name)
    for key, label in zip(targets, label_files, strict=True):
        if key not in cases:
            raise UserError(
                f"{label}: no image of this name in {images}; rename or remove the label"
            )
        case = cases[key]
        if case.label:
            raise UserError(
                f"{case.label} and {label} are both the label of {case.image}: remove one"
            )
        case.label = label
    return sorted(cases.values(), key=lambda case: case.name)


def bare(name: str) -> str:
    """A name without the words that say whether it is an image or a label."""
    return AROUND.sub("", name) or name


def name_patients(cases: Sequence[Case], pattern: str) -> None:
    """Note the patient of each image: the pattern's first group in its name, or the whole match.

    Raises:
        UserError: a name without a match.
    """
    expression = re.compile(pattern)
    for case in cases:
        found = expression.search(case.name)
        if not found:
            raise UserError(f"--patient {pattern}: nothing in case {case.name} fits it")
        case.patient = found.group(1 if expression.groups else 0)


def choose_test(cases: Sequence[Case], file: Path) -> None:
    """Put the cases that a file lists into the test list.

    Raises:
        UserError: a line names no case, or one without a label.
    """
    by_name = {case.name: case for case in cases}
    by_name |= {bare(case.name): case for case in cases}
    for line in read_list(file):
        candidates = (line, stem(line), bare(stem(line)))
        name = next((name for name in candidates if name in by_name), None)
        if name is None:
            raise UserError(
                f"{file}: {line} is none of the cases, which have names such as {cases[0].name}"
            )
        if by_name[name].label is None:
            raise UserError(f"{file}: {line} has no label, so it cannot be tested on")
        by_name[name].split = "test"


def _files(images: Path, labels: Path | None) -> tuple[list[Path], list[Path]]:
    """The files of both folders; one folder may lie in the other."""
    image_files = find_images(images)
    if not labels:
        return image_files, []
    image_files = _without(image_files, images, labels)
    label_files = _without(find_images(labels), labels, images)
    if images.resolve() == labels.resolve() or not image_files or not label_files:
        raise UserError(f"{images} and {labels}: put images and labels into a folder each")
    return image_files, label_files


def _without(files: Sequence[Path], folder: Path, other: Path) -> list[Path]:
    """The files of `folder`, but those of `other` where that lies in it."""
    folder = folder.resolve()
    other = other.resolve()
    if other == folder or other in folder.parents:
        return list(files)
    return [file for file in files if other not in file.resolve().parents]


def _names(files: Sequence[Path], folder: Path | None) -> list[str]:
    """The name of each file; with its folders' names before it where the files' own names are not
    all different.
    """
    plain = [stem(file) for file in files]
    if len(set(plain)) == len(plain):
        return plain
    return [
        "_".join((*file.relative_to(folder).parts[:-1], name))
        for file, name in zip(files, plain, strict=True)
    ]


def _have_channels(names: Sequence[str], targets: Sequence[str]) -> bool:
    """Whether all images' names end in a channel's number that the labels' names lack."""
    if not all(CHANNEL.search(name) for name in names):
        return False
    without = {bare(CHANNEL.sub("", name)) for name in names}
    return any(bare(target) in without for target in targets)


def _take_channel(
    files: Sequence[Path], names: Sequence[str], folder: Path, channel: str
) -> tuple[list[Path], list[str]]:
    """The images of one channel, and their names without its number."""
    if not channel.isdecimal():
        raise UserError(f"--channel {channel}: a number is expected, as at the end of {names[0]}")
    end = f"_{int(channel):04d}"
    taken = [place for place, name in enumerate(names) if name.endswith(end)]
    if not taken:
        raise UserError(f"--channel {channel}: no image in {folder} ends in {end}")
    return [files[place] for place in taken], [names[place].removesuffix(end) for place in taken]
