"""The report of a preparation: what each case is, and what is wrong with it."""

import contextlib
import csv
import io
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import SimpleITK
from matplotlib.colors import to_rgb
from scipy import ndimage

from dataloaders.preprocessing import Preprocessing
from utils.errors import UserError
from utils.figures import CLASSES
from utils.figures.contact_sheet import TILE, contact_sheet
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
        prepared = preprocess(how, image, label)
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
            contact_sheet(root / "overlays.png", shown)
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


def _tilt(grid: Grid) -> float:
    """Degrees between the axis furthest from the patient's and the nearest of these."""
    nearest = np.abs(np.reshape(grid.direction, (3, 3))).max(axis=0).min()
    return math.degrees(math.acos(min(1.0, nearest)))
