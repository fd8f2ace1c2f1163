"""The numbers that the papers print, read from `published.csv` beside this file.

    published_rows("dmd", "1")      # the rows of DMD's Table 1, in the paper's order

The file has a line for each row of a paper's tables, and for the numbers that stand only in its
text. Overlaps are in percent, distances in voxels, a gain in points of Dice. An empty cell is a
number that the paper does not print.
"""

import csv
import functools
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dataloaders import DATASETS, dataset_class
from utils.errors import UserError
from utils.metrics import METRICS

FILE = Path(__file__).with_suffix(".csv")
PAPERS = {
    "dmd": "DMD",
    "dtml": "DTML",
    "ugmcl": "UG-MCL",
    "cml": "CML",
    "coranet": "CoraNet",
}
GAIN = "gain"  # in Dice, over another row
MEAN = "mean"  # variant of a row that is the mean over the classes
IS_HD95 = "the released code computes 95HD"  # remark on a number that the paper calls HD
NUMBERS = (*(metric for metric in METRICS if metric != "assd"), GAIN)
COLUMNS = {"paper", "table", "dataset", "labelled", "unlabelled", "method", "variant", "sd", "note"}


@dataclass(frozen=True)
class Published:
    """A row of a paper's table.

    Attributes:
        paper: key of `PAPERS`.
        table: as the paper counts it, such as `1` or `IV`; `fig 6 text`, `text 4.4` for numbers
            that stand in the text.
        dataset: of `dataloaders.DATASETS`.
        labelled, unlabelled: as printed: numbers of cases, a ratio, a share, or empty.
        method: the same name in all papers.
        variant: a row's setting where a method has several rows, or a class of the data set.
        values: by metric.
        sd: over the runs of the row's one number; None where there is none.
        note: remarks, parted by semicolons.
    """

    paper: str
    table: str
    dataset: str
    labelled: str
    unlabelled: str
    method: str
    variant: str
    values: Mapping[str, float]
    sd: float | None
    note: str

    @property
    def source(self) -> str:
        """Whose number it is, such as `DMD, Table 1`."""
        if self.table.startswith("text "):
            place = f"section {self.table.removeprefix('text ')}"
        elif self.table.startswith("fig "):
            place = f"text on Fig. {self.table.split()[1]}"
        else:
            place = f"Table {self.table}"
        return f"{PAPERS[self.paper]}, {place}"

    @property
    def labelnum(self) -> int | None:
        """The number of labelled training cases as `--labelnum` counts them; None where the paper
        does not say. The ratio 1:4 is a fifth of the data set's training cases.
        """
        total = dataset_class(self.dataset).training_units
        if self.labelled == "all":
            return total
        if self.labelled.endswith("%"):
            return share(self.dataset, float(self.labelled[:-1]) / 100)
        if ":" in self.labelled:
            labelled, unlabelled = map(int, self.labelled.split(":"))
            return share(self.dataset, labelled / (labelled + unlabelled))
        return int(self.labelled) if self.labelled else None

    @property
    def class_name(self) -> str:
        """The class that the row is of; empty for the mean over the classes."""
        names = dataset_class(self.dataset).class_names
        return self.variant if self.variant in names else ""

    @property
    def compared(self) -> dict[str, float]:
        """The printed numbers by the metric of ours that they stand beside: an HD that may be 95HD
        stands beside both.
        """
        values = dict(self.values)
        if "hd" in values and IS_HD95 in self.remarks:
            values.setdefault("hd95", values["hd"])
        return values

    @property
    def remarks(self) -> list[str]:
        """The parts of the note. A semicolon within brackets parts nothing."""
        return re.split(r"; (?![^(]*\))", self.note) if self.note else []


def share(dataset: str, part: float) -> int:
    """A share of the data set's training cases, half a case rounded up."""
    return math.floor(part * dataset_class(dataset).training_units + 0.5)


def published_rows(paper: str, table: str) -> list[Published]:
    """The rows of a table in the paper's order; empty where the paper prints none.

    Raises:
        UserError: as `read_published`.
    """
    return [row for row in all_published() if (row.paper, row.table) == (paper, table)]


@functools.cache
def all_published() -> tuple[Published, ...]:
    """All rows of the file.

    Raises:
        UserError: as `read_published`.
    """
    return tuple(read_published(FILE))


def read_published(path: Path) -> list[Published]:
    """The rows of a file of published numbers.

    Raises:
        UserError: the file is missing, or a column, name or number is wrong; says which line.
    """
    hint = "it belongs to the repository, restore it with: git checkout -- utils/reporting"
    try:
        with open(path, encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            missing = (COLUMNS | set(NUMBERS)) - set(reader.fieldnames or ())
            if missing:
                raise UserError(f"{path}: no column {', '.join(sorted(missing))}; {hint}")
            rows = []
            for line in reader:
                try:
                    rows.append(_published(line))
                except ValueError as error:
                    raise UserError(f"{path}, line {reader.line_num}: {error}; {hint}") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read ({error}); {hint}") from None
    return rows


def _published(line: Mapping[str | None, str | None]) -> Published:
    """A line of the file as a row; raises ValueError where it is damaged."""
    if None in line or None in line.values():
        raise ValueError("another number of cells than the first line has")
    if line["paper"] not in PAPERS:
        raise ValueError(f"no such paper: {line['paper']!r}")
    if line["dataset"] not in DATASETS:
        raise ValueError(f"no such data set: {line['dataset']!r}")
    if not re.fullmatch(r"\d*|\d+:\d+|\d+%|all", line["labelled"]):
        raise ValueError(f"labelled {line['labelled']!r} is no number of cases, ratio or share")
    values = {name: _number(name, line[name]) for name in NUMBERS if line[name]}
    words = {
        name: line[name]
        for name in ("paper", "table", "dataset", "labelled", "unlabelled", "method", "variant")
    }
    sd = _number("sd", line["sd"]) if line["sd"] else None
    return Published(**words, values=values, sd=sd, note=line["note"])


def _number(name: str, text: str) -> float:
    """A printed number; raises ValueError for text that is none."""
    if not re.fullmatch(r"\d+(\.\d+)?", text):
        raise ValueError(f"{name} {text!r} is no number")
    return float(text)
