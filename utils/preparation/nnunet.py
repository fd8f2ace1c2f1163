"""nnU-Net's raw data sets (version 2): their cases, and how to write one."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from dataloaders.preprocessing import MARKER
from utils import progress
from utils.errors import UserError
from utils.preparation.cases import relabel
from utils.preparation.folder import begin, complete, copy_file, read_json, write_json
from utils.preparation.images import read_image, suffix, write_image
from utils.preparation.matching import Case

TABLE = "dataset.json"
PARTS = (("Tr", None), ("Un", "train"), ("Ts", "test"))  # end of a folder's name, and its list


def find_nnunet(folder: Path, channel: str) -> tuple[list[Case], list[str], list[int]]:
    """The cases of an nnU-Net data set, sorted by name.

    Args:
        channel: the image of a case to take, by number or name.

    Returns:
        The cases, the names of the classes, and their values in the labels.

    Raises:
        UserError: its `dataset.json` is missing or of a kind that is not supported, no such
            channel, no image, a label without an image, or a case in two folders.
    """
    table = read_json(folder / TABLE)
    labels = table.get("labels")
    channels = table.get("channel_names", table.get("modality", {}))
    if not isinstance(labels, dict) or not isinstance(channels, dict):
        raise UserError(f"{folder / TABLE}: labels and channel_names are expected in it")
    values = _values(folder / TABLE, labels)
    number = _channel_number(folder, channels, channel)
    cases = _cases(folder, f"_{number:04d}", table.get("file_ending", ".nii.gz"))
    names = sorted(values, key=values.get)
    return cases, names, [values[name] for name in names]


def write_nnunet(
    folder: Path, root: Path, cases: Sequence[Case], frame: int | None, ct: bool, overwrite: bool
) -> None:
    """Write the cases of a data set as an nnU-Net data set: images and labels on their own grid,
    images without a label in `imagesUn`.

    Args:
        folder: to write.
        root: folder of the prepared data set.
        cases: with their files.
        frame: number of the frame to take of an image with a time axis.
        ct: whether grey values are Hounsfield units, for which nnU-Net has a normalisation of its
            own.
        overwrite: replace the files of another recipe.
    """
    table = read_json(root / TABLE)
    kept = table["cases"]
    cases = [case for case in cases if case.name in kept]
    parts = {case.name: _part(case, kept) for case in cases}
    val = sorted(name for name in kept if kept[name]["list"] == "val")
    files = [f"images{parts[case.name]}/{case.name}_0000.nii.gz" for case in cases]
    files += [f"labels{parts[case.name]}/{case.name}.nii.gz" for case in cases if case.label]
    files += [TABLE, *(["splits_final.json"] if val else [])]
    if begin(folder, {"from": read_json(root / MARKER)["recipe"]}, files, overwrite):
        return
    for case in progress.bar(cases, unit="case", title="nnU-Net"):
        _write_case(folder, parts[case.name], case, table["values"], frame)
    described = {
        "channel_names": {"0": "CT" if ct else "image"},
        "labels": {"background": 0} | {name: c for c, name in enumerate(table["class_names"], 1)},
        "numTraining": sum(part == "Tr" for part in parts.values()),
        "file_ending": ".nii.gz",
    }
    if val:
        train = sorted(name for name, part in parts.items() if part == "Tr" and name not in val)
        write_json(folder / "splits_final.json", [{"train": train, "val": val}])
    write_json(folder / TABLE, described)
    complete(folder, [])
    print(f"{folder}: nnU-Net data set of {len(cases)} cases")


def _values(path: Path, labels: Mapping) -> dict[str, int]:
    """The value of each class except the background."""
    if all(str(key).isdecimal() for key in labels):  # as in version 1, number to name
        names = [str(name) for name in labels.values()]
        if len(set(names)) < len(names):
            raise UserError(f"{path}: two labels have one name")
        labels = dict(zip(names, labels, strict=True))
    for name, value in labels.items():
        if not str(value).isdecimal() or name == "ignore":
            raise UserError(
                f"{path}: label {name} is a region or to be ignored: not supported here"
            )
    values = {name: int(value) for name, value in labels.items() if int(value)}
    if len(set(values.values())) < len(values):
        raise UserError(f"{path}: two labels have one value")
    if not values:
        raise UserError(f"{path}: labels names no class but the background")
    return values


def _channel_number(folder: Path, channels: Mapping, channel: str) -> int:
    if not all(str(number).isdecimal() for number in channels):
        raise UserError(f"{folder / TABLE}: channel_names goes from numbers to names")
    known = {str(number): number for number in channels}
    known |= {str(name): number for number, name in channels.items()}
    if channel not in known:
        listed = ", ".join(f"{number} ({name})" for number, name in channels.items())
        raise UserError(f"--channel {channel}: {folder} has {listed}")
    return int(known[channel])


def _cases(folder: Path, end: str, ending: str) -> list[Case]:
    """The cases whose images' names end in this channel and file ending."""
    cases = []
    for part, split in PARTS:
        found = _cases_of_part(folder, part, split, end, ending)
        # nobody can score a test image without a label
        cases += [case for case in found if part != "Ts" or case.label]
    if not cases:
        raise UserError(f"{folder}: no image *{end}{ending} in its imagesTr")
    names = [case.name for case in cases]
    for name in names:
        if names.count(name) > 1:
            raise UserError(
                f"{folder}: {name} is in two of imagesTr, imagesUn and imagesTs; a case belongs "
                "into one"
            )
    return sorted(cases, key=lambda case: case.name)


def _cases_of_part(folder: Path, part: str, split: str | None, end: str, ending: str) -> list[Case]:
    images = folder / f"images{part}"
    labels = folder / f"labels{part}"
    cases = []
    for image in sorted(images.glob(f"*{end}{ending}")):
        name = image.name.removesuffix(end + ending)
        label = labels / (name + ending)
        known = part != "Un" and label.is_file()
        cases.append(Case(name, image, label if known else None, name, split))
    have = {case.label for case in cases}
    for label in sorted(labels.glob(f"*{ending}")):
        if label not in have:
            image = f"{label.name.removesuffix(ending)}{end}{ending}"
            raise UserError(f"{label}: no image {image} in {images.name}")
    return cases


def _part(case: Case, kept: Mapping) -> str:
    if kept[case.name]["list"] == "test":
        return "Ts"
    return "Tr" if case.label else "Un"


def _write_case(
    folder: Path, part: str, case: Case, values: Sequence[int], frame: int | None
) -> None:
    image = read_image(case.image, frame)
    target = folder / f"images{part}" / f"{case.name}_0000.nii.gz"
    if suffix(case.image) == ".nii.gz" and frame is None:
        copy_file(case.image, target)
    else:
        write_image(target, image)
    if case.label:
        label = relabel(read_image(case.label), values)
        label.CopyInformation(image)
        write_image(folder / f"labels{part}" / f"{case.name}.nii.gz", label)
