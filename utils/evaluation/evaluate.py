"""Segment and score every case of a test list, and fill one folder with everything that a table in
a paper needs, `runs/<dataset>/<name>/seed<seed>/test/<checkpoint>/`:

    per_case.csv                one line a case and class: all metrics, voxel counts, seconds
    summary.json                mean and sample sd of every metric, empty predictions, and how the
                                numbers came about
    summary.png                 the spread of the metrics that the table shows, best and worst case
                                named
    figures/<case>.png          reference and prediction in three planes, or three slices
    figures/<case>_errors.png   false positives and false negatives there, a row a class
    figures/<case>_surface.png  of volumes: both surfaces, shaded, coloured by their distance
    nifti/<case>_*.nii.gz       label and prediction, (x, y, z)

Dice, Jaccard, precision and recall are fractions in the files and percent in the printed table.
Under torchrun each process tests a share of the cases, and the first one writes the tables of all.
"""

import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import numpy as np

from utils import distributed
from utils.errors import UserError
from utils.evaluation.printing import Table
from utils.evaluation.scoring import EMPTY, score_case, summarise
from utils.evaluation.writing import (
    FIGURES,
    NIFTI,
    PER_CASE,
    SUMMARY,
    clear,
    make_folder,
    write_nifti,
    write_tables,
)
from utils.figures import case_figure, error_figure, summary_figure, surface_figure
from utils.metrics import METRICS, OVERLAPS, SHOWN, means

Case = tuple[str, np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Protocol:
    """How cases are scored and shown.

    Attributes:
        class_names: of the foreground classes.
        spacing: size of a voxel along each axis of the arrays in mm, for NIfTI files and figures;
            distances are in voxels, as the field reports them.
        empty: how pairs with an empty mask are scored (`utils.metrics.binary_metrics`).
        per_slice: score each slice by itself (`utils.evaluation.scoring.slice_metrics`); distances
            are in pixels then.
        slices: the volumes are stacks of slices, `(rows, columns, slices)`; figures show slices.
        axes: which of x, y and z the arrays' axes are; files are written as `(x, y, z)`.
        metrics: shown in the table and the figures; the files hold all.
        nifti: write labels and predictions.
        formats: of the figures, of `utils.figures.FORMATS`; none: no figures.
        title: of the summary figure.
    """

    class_names: Sequence[str]
    spacing: Sequence[float] | None = None
    empty: str = "zero"
    per_slice: bool = False
    slices: bool = False
    axes: Sequence[int] = (0, 1, 2)
    metrics: Sequence[str] = SHOWN
    nifti: bool = True
    formats: Sequence[str] = ("png",)
    title: str = ""

    @property
    def unit(self) -> str:
        """Of distances."""
        return "pixels" if self.per_slice else "voxels"


def evaluate(
    cases: Iterable[Case],
    segment: Callable[[np.ndarray], np.ndarray],
    folder: str | Path,
    protocol: Protocol,
    record: dict,
) -> dict:
    """Segment and score every case, print the table as it grows, and fill `folder`.

    Results of an earlier call are removed from `folder` first.

    Args:
        cases: `(name, image (X, Y, Z), label (X, Y, Z))`, best read lazily; this process's share
            of them.
        segment: image `(X, Y, Z)` to labels `(X, Y, Z)`; its seconds are recorded.
        folder: written file by file, each whole or not at all.
        protocol: how they are scored and shown.
        record: further entries of `summary.json`: run, checkpoint, selection rule, options,
            environment.

    Returns:
        The content of `summary.json`, with NaN in place of null.

    Raises:
        UserError: no cases, or a file cannot be written.
    """
    folder = Path(folder)
    table = Table(protocol.metrics, protocol.class_names)
    if distributed.is_first():
        clear(folder)
    distributed.gather(None)  # nobody writes before
    scored = [_evaluate_case(case, segment, folder, protocol, table) for case in cases]
    rows = [row for of_case in distributed.collect(scored) for row in of_case]
    if not rows:
        raise UserError("no case to test")

    summary = summarise(rows) | _explain(protocol) | record
    if distributed.is_first():
        write_tables(folder, rows, summary)
        _draw_summary(folder, rows, protocol)
        table.print_summary(summary)
        _print_files(folder, protocol)
    return summary


def _evaluate_case(
    case: Case,
    segment: Callable[[np.ndarray], np.ndarray],
    folder: Path,
    protocol: Protocol,
    table: Table,
) -> list[dict]:
    """Segment and score one case, print its lines, write its files; returns its rows."""
    name, image, label = case
    start = time.perf_counter()
    pred = segment(image)
    seconds = time.perf_counter() - start
    scores = score_case(
        name,
        pred,
        label,
        protocol.class_names,
        empty=protocol.empty,
        per_slice=protocol.per_slice,
    )
    rows = [row | {"seconds": seconds} for row in scores]
    table.print_case(rows)
    if protocol.nifti:
        _write_label_maps(folder / NIFTI, name, pred, label, protocol)
    if protocol.formats:
        _draw_case(folder / FIGURES, case, pred, rows, protocol)
    return rows


def _explain(protocol: Protocol) -> dict:
    """The meaning of a summary's numbers."""
    return {
        "sd": "sample standard deviation over cases (ddof 1)",
        "units": {m: "fraction" if m in OVERLAPS else protocol.unit for m in METRICS},
        "scored": "slices, then their mean in each case" if protocol.per_slice else "whole volumes",
        "empty": EMPTY[protocol.empty],
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def _write_label_maps(
    folder: Path, case: str, pred: np.ndarray, label: np.ndarray, protocol: Protocol
) -> None:
    make_folder(folder)
    order = np.argsort(protocol.axes)  # of the arrays: x, y and z
    spacing = protocol.spacing and [protocol.spacing[axis] for axis in order]
    for kind, labels in (("pred", pred), ("label", label)):
        write_nifti(folder / f"{case}_{kind}.nii.gz", labels.transpose(order), spacing)


def _draw_case(
    folder: Path, case: Case, pred: np.ndarray, rows: Sequence[dict], protocol: Protocol
) -> None:
    make_folder(folder)
    name, image, label = case
    shown = means(rows, protocol.metrics)
    options = {"spacing": protocol.spacing, "class_names": protocol.class_names}
    slices = protocol.slices
    for kind in protocol.formats:
        path = folder / f"{name}.{kind}"
        case_figure(
            path, image, pred, label, name, shown, unit=protocol.unit, slices=slices, **options
        )
        path = folder / f"{name}_errors.{kind}"
        error_figure(path, image, pred, label, name, slices=slices, **options)
        if not slices:  # slices are too far apart for a surface, or no neighbours at all
            surface_figure(folder / f"{name}_surface.{kind}", pred, label, name, **options)


def _draw_summary(folder: Path, rows: Sequence[dict], protocol: Protocol) -> None:
    for kind in protocol.formats:
        summary_figure(
            folder / f"summary.{kind}",
            rows,
            protocol.title,
            protocol.unit,
            class_names=protocol.class_names,
            metrics=protocol.metrics,
        )


def _print_files(folder: Path, protocol: Protocol) -> None:
    names = [PER_CASE, SUMMARY, *(f"summary.{kind}" for kind in protocol.formats)]
    for name in names:
        print(folder / name)
    for name, written in ((FIGURES, protocol.formats), (NIFTI, protocol.nifti)):
        if written:
            print(f"{folder / name}{os.sep}")
