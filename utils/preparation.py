"""What the ``prepare_<dataset>.py`` scripts share: a folder made once and whole, cases as h5 files,
lists by patient from a seed, and a report that tells what is wrong with which case.

    if begin(root, recipe, files, overwrite): ...        the same recipe has filled this folder: nothing to do
    report = Report(class_names)
    for ...:
        with report.case(name, split) as row:            a UserError in here leaves out this case, not the others
            row.look(image, label, source=path)          SimpleITK images: hash, geometry, volumes; what cannot be right
            prepared = how.apply(image, label)           dataloaders.preprocessing
            write_case(file, prepared.image, prepared.label, grid=prepared.place.grid, source=path,
            sha256=row.sha256) row.show(prepared.image, prepared.label, prepared.place.grid.spacing)
    write_list(root / "train.list", [case for case in train if case in report.good])
    problems = report.finish(root)                       report.csv, overlays.png, a table, and the problems as lines
    complete(root, problems)
    sys.exit(1 if problems else 0)

``prepare_all`` is all of that for a data set whose cases are known before any is read, several at a
time. ``relabel`` maps the values of a label file to classes, ``misfit`` says how two geometries
differ, ``split_units`` draws patients. A file that cannot be written ends the script; all else that
is wrong with a case is told at the end.
"""

import argparse
import contextlib
import csv
import hashlib
import io
import json
import math
import os
import shutil
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import SimpleITK
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from scipy import ndimage
from tqdm import tqdm

from dataloaders.h5 import h5_bytes
from dataloaders.preprocessing import MARKER, Grid, Preprocessing
from utils import options
from utils.checkpoint import write_atomically
from utils.errors import UserError
from utils.figures import CLASSES
from utils.images import to_array

RESULTS = ("report.csv", "overlays.png")
TILE = 160  # pixels: of a case's picture in the contact sheet


class CannotWriteError(UserError):
    """What no other case would fare better with: a full disk, a folder that may not be written."""


# --------------------------------------------------------------------------------------------------------- the folder


def begin(
    root: str | Path, recipe: Mapping, files: Sequence[str], overwrite: bool = False
) -> dict | None:
    """Make a folder ready to be filled, unless it is whole already.

    Args:
        root: the folder; made where it is not there.
        recipe: what the files depend on, as JSON can hold it: script, options, sources.
        files: what is going to be written, relative to ``root``, besides :data:`RESULTS`.
        overwrite: remove what another recipe has written, and that alone.

    Returns:
        What :func:`complete` has noted, where this recipe has filled the folder and its files are
        still there.

    Raises:
        UserError: the folder holds what another recipe, or none, has written, or not all that this
            one has; or it may not be written.
    """
    root, recipe = Path(root), json.loads(json.dumps(recipe))
    marker = root / MARKER
    found = read_json(marker) if marker.is_file() else None
    if found is not None and not {"recipe", "files", "complete"} <= found.keys():
        raise UserError(
            f"{marker}: none of these scripts wrote it; choose another folder with --root"
        )
    if found is None:
        strangers = sorted(root.iterdir()) if root.is_dir() else []
        if strangers:
            raise UserError(f"{strangers[0]} was there before; choose an empty folder with --root")
    elif found["complete"] and found["recipe"] != recipe and not overwrite:
        differ = [
            key
            for key in {**found["recipe"], **recipe}
            if found["recipe"].get(key) != recipe.get(key)
        ]
        raise UserError(
            f"{root} holds another preparation (it differs in {', '.join(differ)}); choose another "
            "--root, or replace "
            "it: --overwrite"
        )
    elif not overwrite and found["complete"]:
        gone = [file for file in found["kept"] if not (root / file).is_file()]
        if gone:
            raise UserError(
                f"{root / gone[0]}: gone since it was prepared; --overwrite prepares {root} anew"
            )
        return found
    else:
        for file in (*found["files"], *RESULTS):
            with _writing():
                (root / file).unlink(missing_ok=True)
    with _writing():
        for folder in {(root / file).parent for file in files} | {root}:
            folder.mkdir(parents=True, exist_ok=True)
    write_json(marker, {"recipe": recipe, "files": list(files), "complete": False})
    return None


def complete(root: str | Path, problems: Sequence[str]) -> None:
    """Note that the folder is whole, and which problems were told."""
    marker = Path(root) / MARKER
    found = read_json(marker)
    kept = [file for file in found["files"] if (Path(root) / file).is_file()]
    write_json(marker, found | {"complete": True, "kept": kept, "problems": list(problems)})


def add_options(
    parser: argparse.ArgumentParser,
    root: str,
    lists: str,
    workers: str,
    seed: int | None = 1337,
    at_once: int = 4,
) -> None:
    """The options that all scripts for an official download share.

    Args:
        parser: of the script.
        root: default of ``--root``.
        lists, workers: help of the options of these names.
        seed: default; None where the lists do not depend on one unasked.
        at_once: workers at most, by default.
    """
    parser.add_argument("--root", type=Path, default=root, help="folder to write")
    parser.add_argument("--lists", type=Path, metavar="FOLDER", help=lists)
    drawn = "draw the lists from it" if seed is None else "of the lists, without --lists"
    parser.add_argument("--seed", type=options.non_negative_int, default=seed, help=drawn)
    count = min(at_once, os.cpu_count() or 1)
    parser.add_argument("--workers", type=options.positive_int, default=count, help=workers)
    parser.add_argument(
        "--overwrite", action="store_true", help="replace what was prepared in --root before"
    )


def stamp(files: Iterable[Path]) -> list[int]:
    """What tells a changed source: the number of its files, in folders too, their size, and the
    latest time.
    """
    paths = [
        path for file in files if file for path in ([file] if file.is_file() else file.rglob("*"))
    ]
    stats = [path.stat() for path in paths if path.is_file()]
    return [
        len(stats),
        sum(s.st_size for s in stats),
        max((s.st_mtime_ns for s in stats), default=0),
    ]


def prepare_all(
    prepare: Callable[[tuple], "Row"],
    jobs: Sequence[tuple],
    paths: Mapping[str, Sequence[str]],
    lists: Mapping[str, Mapping[str, str]],
    root: Path,
    recipe: Mapping,
    class_names: Sequence[str],
    workers: int = 1,
    overwrite: bool = False,
) -> list[str]:
    """Fill a folder case by case, several at a time, and end in the report.

    Args:
        prepare: a job to the row of its case, which it has written; a function of a module.
        jobs: of all cases. Of a scan in two lists the one whose job comes first stays: begin with
            the test list.
        paths: case to the files that it is written to, relative to ``root``.
        lists: file of a list to its lines, each with the case that it belongs to; those of cases
            left out are dropped.
        root, recipe, overwrite: as :func:`begin`.
        class_names: of the foreground classes.
        workers: cases at a time.

    Returns:
        What was left out, a line each; of a folder that was whole before, what was left out then.
    """
    files = [*(file for written in paths.values() for file in written), *lists]
    whole = begin(root, recipe, files, overwrite)
    if whole:
        print(f"{root}: prepared already, nothing to do")
        tell(whole["problems"])
        return whole["problems"]
    report = Report(class_names)
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        before = signal.signal(
            signal.SIGINT, signal.SIG_IGN
        )  # the processes inherit it: Ctrl-C is for this one alone
        rows = map(prepare, jobs) if workers == 1 else pool.map(prepare, jobs)
        signal.signal(signal.SIGINT, before)
        for row in tqdm(rows, total=len(jobs), unit="case", disable=None):
            report.rows[row.case] = row
            with report.case(row.case):
                if row.problem is None:
                    report.check_new(row)
    good = set(report.good)
    for file in (file for case in paths.keys() - good for file in paths[case]):
        (root / file).unlink(missing_ok=True)
    for file, lines in lists.items():
        write_list(root / file, [line for line, case in lines.items() if case in good])
    problems = report.finish(root)
    complete(root, problems)
    return problems


def read_json(path: str | Path) -> dict:
    """A JSON file that holds a table.

    Raises:
        UserError: missing, damaged, or something else.
    """
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: missing or damaged ({error})") from None
    if not isinstance(found, dict):
        raise UserError(f"{path}: a JSON table is expected")
    return found


def write_json(path: str | Path, values: Mapping | Sequence) -> None:
    write_text(path, json.dumps(values, indent=1, ensure_ascii=False) + "\n")


def write_text(path: str | Path, text: str) -> None:
    with _writing():
        write_atomically(path, lambda part: part.write_text(text, encoding="utf-8"))


def copy_file(source: str | Path, path: str | Path) -> None:
    with _writing():
        write_atomically(path, lambda part: shutil.copyfile(source, part))


def write_list(path: str | Path, names: Sequence[str]) -> None:
    """Case names, one a line."""
    write_text(path, "".join(f"{name}\n" for name in names))


def write_case(
    path: str | Path,
    image: np.ndarray,
    label: np.ndarray | None = None,
    *,
    grid: Grid | None = None,
    source: str | Path = "",
    sha256: str = "",
) -> None:
    """One h5 file: ``image`` float32 and, where there is one, ``label`` uint8 of the same shape,
    compressed.

    Args:
        path: of the file; its folder is made.
        grid: where the arrays' voxels lie, if their axes are x, y and z: attributes ``spacing``,
            ``origin``, ``direction``.
        source: the image file, an attribute too, as is ``sha256`` (:func:`voxel_hash`).
    """

    arrays = {"image": np.asarray(image, dtype=np.float32)}
    if label is not None:
        arrays["label"] = np.asarray(label, dtype=np.uint8)
    attributes = {"source": str(source), "sha256": sha256}
    if grid is not None:
        attributes |= {"spacing": grid.spacing, "origin": grid.origin, "direction": grid.direction}
    content = h5_bytes(arrays, attributes)

    with _writing():
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, lambda part: part.write_bytes(content))


@contextlib.contextmanager
def _writing() -> Iterator[None]:
    """What the file system refuses, as one line that ends the script."""
    try:
        yield
    except OSError as error:
        raise CannotWriteError(f"{error.filename}: cannot be written ({error.strerror})") from None
    except UserError as error:
        raise CannotWriteError(str(error)) from None


# ----------------------------------------------------------------------------------------------------------- the cases


def split_units(
    units: Sequence[str], fractions: Mapping[str, float], seed: int, keep: int = 1
) -> dict[str, list[str]]:
    """Draw units (patients, cases) for some splits, the same ones from the same seed in whatever
    order they come.

    Args:
        units: names; repeated ones count once.
        fractions: split to its part of the units; more than 0 is at least one unit.
        seed: of the draw.
        keep: at least so many stay undrawn.

    Returns:
        Split to its units, in the order in which ``units`` has them.

    Raises:
        UserError: fewer would be left.
    """
    names = sorted(set(units))
    counts = {
        split: max(1, round(part * len(names))) if part > 0 else 0
        for split, part in fractions.items()
    }
    if sum(counts.values()) > max(len(names) - keep, 0):
        wanted = " and ".join(f"{count} for {split}" for split, count in counts.items() if count)
        raise UserError(
            f"{wanted} of {len(names)} patients with labels leave too few to train on; take "
            "smaller fractions, or 0"
        )
    order, drawn = np.random.default_rng(seed).permutation(len(names)).tolist(), {}
    for split, count in counts.items():
        taken = {names[place] for place in order[:count]}
        order = order[count:]
        drawn[split] = [unit for unit in dict.fromkeys(units) if unit in taken]
    return drawn


def draw_lists(
    names: Sequence[str], fractions: Mapping[str, float], seed: int
) -> dict[str, list[str]]:
    """:func:`split_units`, and as ``train``, in an order of the seed's too, the names that no split
    has.
    """
    drawn = split_units(names, fractions, seed)
    taken = {name for split in drawn.values() for name in split}
    left = [name for name in names if name not in taken]
    return {"train": np.random.default_rng(seed).permutation(left).tolist(), **drawn}


def relabel(label: SimpleITK.Image, values: Sequence[int]) -> SimpleITK.Image:
    """A label whose ``values[c]`` became class ``c``, uint8.

    Raises:
        UserError: it has another value.
    """
    array = SimpleITK.GetArrayViewFromImage(label)
    result, known = np.zeros(array.shape, np.uint8), np.zeros(array.shape, bool)
    for c, value in enumerate(values):
        found = array == value
        known |= found
        result[found] = c
    if not known.all():
        others = np.unique(array[~known])
        listed = ", ".join(f"{value:g}" for value in others[:5]) + (
            ", …" if len(others) > 5 else ""
        )
        expected = ", ".join(map(str, values))
        raise UserError(
            f"label has values {listed} in {np.count_nonzero(~known)} voxels; {expected} are "
            "expected"
        )
    image = SimpleITK.GetImageFromArray(result)
    image.CopyInformation(label)
    return image


def misfit(image: SimpleITK.Image, label: SimpleITK.Image) -> str | None:
    """How a label's geometry differs from its image's, beyond what file formats round; None where
    it does not.
    """
    a, b = Grid.of(image), Grid.of(label)
    if a.size != b.size:
        return f"label has shape {b.size}, but the image has {a.size}"
    if not np.allclose(a.spacing, b.spacing, rtol=1e-3):
        return f"label has spacing {_numbers(b.spacing)}, but the image has {_numbers(a.spacing)}"
    if not np.allclose(a.direction, b.direction, atol=1e-3):
        axes = f"axes {b.orientation} of the label, {a.orientation} of the image"
        return f"label has another direction than the image ({axes})"
    if not np.allclose(a.origin, b.origin, atol=0.1 * min(a.spacing)):
        return f"label has origin {_numbers(b.origin)}, but the image has {_numbers(a.origin)}"
    return None


def voxel_hash(image: SimpleITK.Image) -> str:
    """SHA-256 of an image's size and values, with axes to the left, the back and the head: equal
    for one scan in two formats, types or orders of axes."""
    oriented = to_array(SimpleITK.DICOMOrient(image, "LPS")).astype(np.float32)
    return hashlib.sha256(repr(oriented.shape).encode() + oriented.tobytes()).hexdigest()


# ---------------------------------------------------------------------------------------------------------- the report


class Row:
    """One case of a report.

    Attributes:
        case, split: its name; its list, None as long as there is none.
        problem: why it was left out, or None.
        flags: what is odd about it.
        sha256: of the image's voxels.
        values: what the table says of it.
    """

    def __init__(self, report: "Report", case: str):
        self.report, self.case, self.split = report, case, None
        self.problem, self.flags, self.sha256, self.values, self.tile = None, [], "", {}, None

    def look(
        self,
        image: SimpleITK.Image,
        label: SimpleITK.Image | None = None,
        source: str | Path = "",
        trust_voxels: bool = False,
    ) -> None:
        """Take down what the image and its label are, and see that they fit each other and are new.

        Args:
            image, label: as read, the label's values being classes.
            source: the image's file.
            trust_voxels: the label's voxels belong to the image's one by one, whatever the label's
                header says.

        Raises:
            UserError: shape or geometry differ, a value is no class, or the image is in another
                split too (where no split is known yet, :meth:`Report.check_new` sees to it later).
        """
        grid = Grid.of(image)
        self.sha256 = voxel_hash(image)
        self.values |= {
            "source": str(source),
            "shape": "×".join(map(str, grid.size)),
            "spacing": "×".join(f"{s:.4g}" for s in grid.spacing),
            "axes": grid.orientation,
            "oblique": f"{_tilt(grid):.0f}°",
            "sha256": self.sha256,
        }
        voxels = to_array(image)
        if voxels.min() == voxels.max():
            self.flags.append(f"every voxel is {voxels.flat[0]:g}")
        if label is not None:
            wrong = misfit(image, label)
            if wrong and (not trust_voxels or label.GetSize() != image.GetSize()):
                raise UserError(wrong)
            if wrong:
                self.flags.append(wrong)
            self._measure(voxels, to_array(label), grid)
        if self.split is not None:
            self.report.check_new(self)

    def _measure(self, image: np.ndarray, label: np.ndarray, grid: Grid) -> None:
        names = self.report.class_names
        counts = {
            int(value): int(count)
            for value, count in zip(*np.unique(label, return_counts=True), strict=True)
        }
        outside = [value for value in counts if not 0 <= value <= len(names)]
        if outside:
            raise UserError(f"label has values {outside[:5]} outside the classes 0 … {len(names)}")
        for c, name in enumerate(names, 1):
            self.values[f"{name} ml"] = f"{counts.get(c, 0) * math.prod(grid.spacing) / 1000:.2f}"
        mask = label > 0
        if not mask.any():
            self.flags.append("empty label")
        elif np.count_nonzero(image[mask] == image.min()) > 0.5 * np.count_nonzero(mask):
            self.flags.append("label lies on empty voxels")

    def prepare(
        self,
        how: Preprocessing,
        image: SimpleITK.Image,
        label: SimpleITK.Image,
        path: Path,
        source: str | Path,
    ) -> None:
        """Write the case as ``how`` prepares it, and show it."""
        prepared = how.apply(image, label)
        grid = prepared.place.grid
        write_case(
            path, prepared.image, prepared.label, grid=grid, source=source, sha256=self.sha256
        )
        self.show(prepared.image, prepared.label, grid.spacing)

    def show(self, image: np.ndarray, label: np.ndarray | None, spacing: Sequence[float]) -> None:
        """Draw the prepared case into the contact sheet: the slice across the longest voxels with
        most label.
        """
        self.values["prepared"] = "×".join(map(str, image.shape))
        axis = max(range(3), key=lambda a: (image.shape[a] == 1, round(spacing[a], 3), a))
        others = [a for a in range(3) if a != axis]
        known = label is not None and label.any()
        at = int((label > 0).sum(axis=tuple(others)).argmax()) if known else image.shape[axis] // 2
        plane = image.take(
            at, axis
        ).T  # as on a light box: the first axis to the right, the second downwards
        classes = label.take(at, axis).T if known else np.zeros(plane.shape, np.uint8)
        extents = [plane.shape[0] * spacing[others[1]], plane.shape[1] * spacing[others[0]]]
        rows, columns = (max(1, round(TILE * extent / max(extents))) for extent in extents)
        pick = np.ix_(
            *(
                (np.arange(n) * extent) // n
                for n, extent in zip((rows, columns), plane.shape, strict=True)
            )
        )
        low, high = np.percentile(plane, (0.5, 99.8))
        grey = np.clip((plane[pick] - low) / ((high - low) or 1), 0, 1)
        picture, classes = np.repeat(grey[..., None], 3, 2), classes[pick]
        for c in np.unique(classes[classes > 0]):
            mask = classes == c
            picture[mask & ~ndimage.binary_erosion(mask)] = to_rgb(CLASSES[(c - 1) % len(CLASSES)])
        self.tile = np.zeros((TILE, TILE, 3), np.uint8)
        top, left = (TILE - rows) // 2, (TILE - columns) // 2
        self.tile[top : top + rows, left : left + columns] = (255 * picture).astype(np.uint8)


class Report:
    """What is known of all cases.

    Args:
        class_names: of the foreground classes.

    Attributes:
        rows: case to `Row`, in the order in which they came.
    """

    def __init__(self, class_names: Sequence[str]):
        self.class_names, self.rows, self._hashes = list(class_names), {}, {}

    @contextlib.contextmanager
    def case(self, name: str, split: str | None = None) -> Iterator[Row]:
        """Work on a case, for the first time or again: a `UserError` within is noted, and the case
        left out.

        A file that cannot be written is no case's problem and ends the script.
        """
        row = self.rows.setdefault(name, Row(self, name))
        row.split = split or row.split
        try:
            yield row
        except CannotWriteError:
            raise
        except UserError as error:
            row.problem = row.problem or str(error)

    @property
    def good(self) -> list[str]:
        """The cases that nothing was wrong with, so far."""
        return [name for name, row in self.rows.items() if row.problem is None]

    def check_new(self, row: Row) -> None:
        """See that no case of another split has the same voxels; one of the same split is told.

        Raises:
            UserError: one has.
        """
        for other in self._hashes.setdefault(row.sha256, []):
            if other is not row and other.problem is None:
                if other.split != row.split:
                    raise UserError(
                        f"the same voxels as {other.case}, which is in the {other.split} list"
                    )
                row.flags.append(f"the same voxels as {other.case}")
        self._hashes[row.sha256].append(row)

    def finish(self, root: str | Path) -> list[str]:
        """Write ``report.csv`` and ``overlays.png``, print the table, the flags and the problems.

        Returns:
            The problems, a line each: of the cases that were left out.
        """
        root, rows = Path(root), list(self.rows.values())
        keys = [
            "shape",
            "spacing",
            "axes",
            "oblique",
            *(f"{name} ml" for name in self.class_names),
            "prepared",
        ]
        self._write_csv(root / "report.csv", [*keys, "sha256", "source"])
        shown = [row for row in rows if row.tile is not None]
        if shown:
            _contact_sheet(root / "overlays.png", shown)
        table = [["case", "list", *keys]]
        table += [
            [row.case, row.split or "-", *(row.values.get(key, "") for key in keys)] for row in rows
        ]
        widths = [max(len(cells[place]) for cells in table) for place in range(len(table[0]))]
        for cells in table:
            print(
                "  ".join(
                    f"{cell:{width}}" for cell, width in zip(cells, widths, strict=True)
                ).rstrip()
            )
        for row in rows:
            for flag in row.flags:
                print(f"{row.case}: {flag}")
        problems = [f"{row.case}: {row.problem}" for row in rows if row.problem is not None]
        flagged = sum(bool(row.flags) for row in rows)
        print(
            f"{len(rows) - len(problems)} of {len(rows)} cases prepared, {flagged} of them to look "
            "at"
        )
        for name in ["report.csv", *(["overlays.png"] if shown else [])]:
            print(root / name)
        tell(problems)
        return problems

    def _write_csv(self, path: Path, keys: Sequence[str]) -> None:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["case", "list", *keys, "flags", "left out because"])
        for row in self.rows.values():
            cells = [row.values.get(key, "") for key in keys]
            writer.writerow(
                [row.case, row.split or "", *cells, "; ".join(row.flags), row.problem or ""]
            )
        write_text(path, text.getvalue())


def tell(problems: Sequence[str]) -> None:
    """Print the cases that were left out, last of all, where they are seen."""
    if problems:
        print(f"{len(problems)} left out:")
        for problem in problems:
            print(f"  {problem}")


def _contact_sheet(path: Path, rows: Sequence[Row]) -> None:
    columns = min(len(rows), max(4, math.ceil(math.sqrt(1.5 * len(rows)))))
    lines, name = -(-len(rows) // columns), 20  # pixels for the name
    sheet = np.zeros((lines * (TILE + name), columns * TILE, 3), np.uint8)
    figure = Figure(
        figsize=(sheet.shape[1] / 100, sheet.shape[0] / 100), dpi=100, facecolor="black"
    )
    FigureCanvasAgg(figure)
    for place, row in enumerate(rows):
        top, left = place // columns * (TILE + name), place % columns * TILE
        sheet[top + name : top + name + TILE, left : left + TILE] = row.tile
        text = f"{row.case} {row.split or ''}".strip()
        colour = CLASSES[1] if row.flags else "white"
        where = (left + 3) / sheet.shape[1], 1 - (top + name / 2) / sheet.shape[0]
        figure.text(
            *where, text if len(text) < 30 else f"…{text[-28:]}", size=6, color=colour, va="center"
        )
    ax = figure.add_axes((0, 0, 1, 1), zorder=-1)
    ax.set_axis_off()
    ax.imshow(sheet, interpolation="nearest", aspect="auto")
    with _writing():
        write_atomically(path, lambda part: figure.savefig(part, format="png"))


def _tilt(grid: Grid) -> float:
    """Degrees between the axis furthest from the patient's and the nearest of these."""
    nearest = np.abs(np.reshape(grid.direction, (3, 3))).max(axis=0).min()
    return math.degrees(math.acos(min(1.0, nearest)))


def _numbers(values: Sequence[float]) -> str:
    return " ".join(f"{value:.6g}" for value in values)
