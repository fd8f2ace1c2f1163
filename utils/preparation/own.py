"""One's own images made a data set: looked through, numbered, prepared, described.

The steps of `code/prepare_nifti.py`, in its order.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import SimpleITK

from dataloaders.own import FILE, protocol
from dataloaders.preprocessing import Preprocessing
from utils import progress
from utils.errors import UserError
from utils.preparation.cases import misfit, relabel, voxel_hash
from utils.preparation.folder import write_json, write_list
from utils.preparation.grid import Grid
from utils.preparation.images import read_image, to_array
from utils.preparation.lists import SPLITS, in_order
from utils.preparation.matching import Case
from utils.preparation.report import Report


def survey(
    cases: Sequence[Case],
    report: Report,
    orientation: str | None,
    frame: int | None,
    trust_voxels: bool,
) -> None:
    """Read every file once, and note in each case the facts that the options depend on.

    Args:
        report: takes the problems of files that cannot be used.
        orientation: where axes will point to; None leaves them.
        frame: number of the frame to take of an image with a time axis.
        trust_voxels: take a label whose header contradicts its image's.
    """
    for case in progress.bar(cases, unit="case", title="reading"):
        with report.case(case.name):
            image = read_image(case.image, frame)
            grid = Grid.of(image)
            case.sha256 = voxel_hash(image)
            case.axes = grid.orientation
            turned = grid if orientation is None else grid.oriented(orientation)[2]
            case.spacing = turned.spacing
            if case.label:
                label = read_image(case.label)
                _check_geometry(case.label, image, label, trust_voxels)
                case.values = _whole_values(case.label, label)


def number_classes(
    cases: Sequence[Case], names: Sequence[str] | None, values: Sequence[int] | None
) -> tuple[list[str], list[int]]:
    """The names of the classes, and the value of each in the labels.

    Args:
        names, values: as far as they are given; else they come from the labels.

    Raises:
        UserError: the labels' values are not 1, 2, …, and nothing says which of them are classes.
    """
    if values:
        return list(names or _numbered(len(values))), list(values)
    if names:
        return list(names), list(range(1, len(names) + 1))
    seen: dict[int, list[str]] = {}
    for case in cases:
        for value in case.values:
            seen.setdefault(value, []).append(case.name)
    found = sorted(value for value in seen if value)
    if not found:
        raise UserError("all labels are 0, so there is nothing to learn; are they the right files?")
    if found != list(range(1, len(found) + 1)):
        rare = min(found, key=lambda value: len(seen[value]))
        shown = " ".join(map(str, found[:20])) + (" …" if len(found) > 20 else "")
        raise UserError(
            f"labels have values {shown} and 0 ({rare} in {len(seen[rare])} of them, "
            f"{seen[rare][0]} first); name those that are classes, in their order: --values {shown}"
        )
    return ["foreground"] if len(found) == 1 else _numbered(len(found)), found


def median_spacing(cases: Sequence[Case]) -> tuple[float, ...]:
    """The median voxel size in mm, to six digits."""
    median = np.median([case.spacing for case in cases], axis=0)
    return tuple(float(f"{s:.6g}") for s in median)


def prepare_cases(
    root: Path,
    cases: Sequence[Case],
    how: Preprocessing,
    values: Sequence[int],
    report: Report,
    frame: int | None,
    trust_voxels: bool,
) -> dict[str, tuple]:
    """Write every case that nothing is wrong with.

    Args:
        root: the data set's folder.
        values: of the classes in the labels.
        report: takes the rows of all cases.

    Returns:
        Name of each written case to its shape.
    """
    tested = {case.patient for case in cases if case.split == "test"}
    # an image in two lists stays in the test list
    order = sorted(cases, key=lambda case: (-SPLITS.index(case.split), case.name))
    shapes = {}
    for case in progress.bar(order, unit="case", title="preparing"):
        with report.case(case.name, case.split) as row:
            if row.problem:
                continue
            image = read_image(case.image, frame)
            label = relabel(read_image(case.label), [0, *values]) if case.label else None
            row.look(image, label, case.image, trust_voxels)
            if case.split != "test" and case.patient in tested:
                raise UserError(f"patient {case.patient} is in the test list with another image")
            path = root / "data" / f"{case.name}.h5"
            shapes[case.name] = row.prepare(how, image, label, path, case.image).shape
    return shapes


def write_lists(root: Path, cases: Sequence[Case], seed: int) -> None:
    """Write the list of every split that has cases."""
    for split in SPLITS:
        listed = in_order([case for case in cases if case.split == split], seed)
        if listed:
            write_list(root / f"{split}.list", [case.name for case in listed])


def write_table(
    root: Path,
    name: str,
    cases: Sequence[Case],
    class_names: Sequence[str],
    values: Sequence[int],
    how: Preprocessing,
    shapes: Mapping[str, tuple],
) -> None:
    """Write `dataset.json`, the protocol that `dataloaders.own` reads.

    Args:
        name: of the data set.
        cases: those that were prepared.
        class_names, values: of the foreground classes, and their values in the labels.
        how: how they were prepared.
        shapes: case to shape.
    """
    train = [case for case in cases if case.split == "train"]
    typical = how.spacing or tuple(np.median([case.spacing for case in cases], axis=0).tolist())
    alike = how.spacing or all(np.allclose(case.spacing, typical, rtol=0.01) for case in cases)
    table = {
        "name": name,
        "class_names": list(class_names),
        "values": [0, *values],
        "spacing": list(typical) if alike else None,
        "labelnum": len({case.patient for case in train if case.label}),
        **protocol([shapes[case.name] for case in train], typical),
        "preprocessing": how.as_dict(),
        "cases": {
            case.name: {
                "labeled": case.label is not None,
                "patient": case.patient,
                "list": case.split,
                "source": str(case.image),
                "hash": case.sha256,
            }
            for case in cases
        },
    }
    write_json(root / FILE, table)


def _check_geometry(
    path: Path, image: SimpleITK.Image, label: SimpleITK.Image, trust_voxels: bool
) -> None:
    wrong = misfit(image, label)
    if not wrong:
        return
    if label.GetSize() != image.GetSize():
        raise UserError(f"{path}: {wrong}")
    if not trust_voxels:
        raise UserError(f"{path}: {wrong}; --trust_voxels takes it voxel by voxel")


def _whole_values(path: Path, label: SimpleITK.Image) -> list[int]:
    """The values in a label image, in ascending order."""
    values = np.unique(to_array(label))
    odd = values[values != np.floor(values)]
    if odd.size:
        raise UserError(f"{path}: label has value {odd[0]:g}, whole numbers are expected")
    return values.astype(int).tolist()


def _numbered(count: int) -> list[str]:
    return [f"class {c}" for c in range(1, count + 1)]
