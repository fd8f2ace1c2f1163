"""The report of a preparation: a row of facts and problems for each case."""

import contextlib
import csv
import io
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import SimpleITK

from dataloaders.preprocessing import Preprocessing
from utils.errors import UserError
from utils.figures.contact_sheet import Tile, contact_sheet, slice_picture
from utils.preparation.cases import misfit, voxel_hash, write_case
from utils.preparation.folder import CannotWriteError, write_text
from utils.preparation.grid import Grid
from utils.preparation.images import to_array
from utils.preparation.preprocess import preprocess


class Row:
    """One case of a report.

    Attributes:
        case, split: its name; its list, None as long as there is none.
        problem: why it was left out, or None.
        flags: its oddities, a few words each.
        sha256: of the image's voxels.
        values: its cells in the table, by column.
        picture: its slice for the contact sheet, or None.
    """

    def __init__(self, report: "Report", case: str):
        self.report = report
        self.case = case
        self.split: str | None = None
        self.problem: str | None = None
        self.flags: list[str] = []
        self.sha256 = ""
        self.values: dict[str, str] = {}
        self.picture: np.ndarray | None = None

    def look(
        self,
        image: SimpleITK.Image,
        label: SimpleITK.Image | None = None,
        source: str | Path = "",
        trust_voxels: bool = False,
    ) -> None:
        """Note facts of the image and its label, and check that they fit each other and are new.

        Args:
            image, label: as read; the label's values are classes.
            source: the image's file.
            trust_voxels: match the label's voxels to the image's one by one, and ignore the label's
                header.

        Raises:
            UserError: shape or geometry differ, a value is no class, or the image is in another
                split too (where no split is known yet, `Report.check_new` finds it later).
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
        found, numbers = np.unique(label, return_counts=True)
        counts = dict(zip(found.astype(int).tolist(), numbers.tolist(), strict=True))
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
        label: SimpleITK.Image | None,
        path: Path,
        source: str | Path,
    ) -> np.ndarray:
        """Write the case as `how` prepares it, and show it; returns the prepared image.

        A crop that cuts the label is noted among the oddities.
        """
        prepared = preprocess(how, image, label)
        grid = prepared.place.grid
        write_case(
            path, prepared.image, prepared.label, grid=grid, source=source, sha256=self.sha256
        )
        self.show(prepared.image, prepared.label, grid.spacing)
        if label is not None and how.exactly != (None, None, None) and how.spacing is None:
            before = np.count_nonzero(to_array(label))
            cut = before - np.count_nonzero(prepared.label)
            if cut:
                self.flags.append(f"the crop leaves out {cut} of the label's {before} voxels")
        return prepared.image

    def show(self, image: np.ndarray, label: np.ndarray | None, spacing: Sequence[float]) -> None:
        """Draw a slice of the prepared case for the contact sheet."""
        self.values["prepared"] = "×".join(map(str, image.shape))
        self.picture = slice_picture(image, label, spacing)


class Report:
    """The facts and problems of all cases.

    Args:
        class_names: of the foreground classes.

    Attributes:
        rows: case to `Row`, in the order in which they came.
    """

    def __init__(self, class_names: Sequence[str]):
        self.class_names = list(class_names)
        self.rows: dict[str, Row] = {}
        self._hashes: dict[str, list[Row]] = {}

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
        """See that no case of another split has the same voxels; one of the same split is flagged.

        Raises:
            UserError: one has.
        """
        same = self._hashes.setdefault(row.sha256, [])
        for other in same:
            if other is not row and other.problem is None:
                if other.split != row.split:
                    raise UserError(
                        f"the same voxels as {other.case}, which is in the {other.split} list"
                    )
                row.flags.append(f"the same voxels as {other.case}")
        same.append(row)

    def finish(self, root: str | Path) -> list[str]:
        """Write `report.csv` and `overlays.png`, print the table, the flags and the problems.

        Returns:
            The problems, a line for each case that was left out.
        """
        root = Path(root)
        rows = list(self.rows.values())
        volumes = [f"{name} ml" for name in self.class_names]
        keys = ["shape", "spacing", "axes", "oblique", *volumes, "prepared"]
        self._write_csv(root / "report.csv", [*keys, "sha256", "source"])
        tiles = [
            Tile(f"{row.case} {row.split or ''}".strip(), row.picture, bool(row.flags))
            for row in rows
            if row.picture is not None
        ]
        if tiles:
            contact_sheet(root / "overlays.png", tiles)
        self._print_table(keys)
        for row in rows:
            for flag in row.flags:
                print(f"{row.case}: {flag}")
        problems = [f"{row.case}: {row.problem}" for row in rows if row.problem is not None]
        flagged = sum(bool(row.flags) for row in rows)
        good = len(rows) - len(problems)
        print(f"{good} of {len(rows)} cases prepared, {flagged} of them to look at")
        print(root / "report.csv")
        if tiles:
            print(root / "overlays.png")
        print_problems(problems)
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

    def _print_table(self, keys: Sequence[str]) -> None:
        table = [["case", "list", *keys]]
        for row in self.rows.values():
            cells = [row.values.get(key, "") for key in keys]
            table.append([row.case, row.split or "-", *cells])
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        for cells in table:
            padded = [f"{cell:{width}}" for cell, width in zip(cells, widths, strict=True)]
            print("  ".join(padded).rstrip())


def print_problems(problems: Sequence[str]) -> None:
    """Print the cases that were left out, last of all, where they are seen."""
    if problems:
        print(f"{len(problems)} left out:")
        for problem in problems:
            print(f"  {problem}")


def _tilt(grid: Grid) -> float:
    """Degrees between the axis furthest from the patient's and the nearest of these."""
    nearest = np.abs(grid.axes).max(axis=0).min()
    return math.degrees(math.acos(min(1.0, nearest)))
