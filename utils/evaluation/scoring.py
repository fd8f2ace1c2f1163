"""What the test scripts share: score every case of a test list, and write down all that a table in
a paper needs.

A script says how a volume becomes a segmentation; :func:`evaluate` runs it over the cases and fills
one folder, ``runs/<dataset>/<name>/seed<seed>/test/<checkpoint>/``:

    per_case.csv        one line per case and class: all metrics, voxel counts, seconds
    summary.json        mean and sample sd of every metric, empty predictions, and how the numbers came about
    summary.png         the spread of the metrics that the table shows, best and worst case named
    figures/<case>.png  reference and prediction in three planes, or three slices
    figures/<case>_errors.png   false positives and false negatives there, a row a class
    figures/<case>_surface.png  of volumes: both surfaces, shaded, coloured by their distance
    nifti/<case>_*.nii.gz  label and prediction, (x, y, z)

Dice, Jaccard, precision and recall are fractions in the files and percent in the printed table.
Under torchrun each process is given a share of the cases, and the first one writes the table of
all.
"""

import json
import math
import os
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import SimpleITK

from utils import distributed
from utils.errors import UserError
from utils.figures import FORMATS, case_figure, error_figure, summary_figure, surface_figure
from utils.files import write_atomically, write_csv
from utils.metrics import METRICS, NAMES, OVERLAPS, SHOWN, multiclass_metrics

RESULTS = ("per_case.csv", "summary.json", "nifti/*.nii.gz")
RESULTS += tuple(f"{name}.{kind}" for name in ("summary", "figures/*") for kind in FORMATS)
EMPTY = {
    "zero": "an empty mask scores 0 everywhere, as in released codes; its distances of 0 flatter 95HD and ASD",
    "nan": "an empty mask has overlap 0 and is left out of the mean distances; two are left out of all",
    "diagonal": "an empty mask has overlap 0 and the volume's diagonal as distance; two agree",
}


def evaluate(
    cases: Iterable[tuple[str, np.ndarray, np.ndarray]],
    segment: Callable[[np.ndarray], np.ndarray],
    folder: str | Path,
    num_classes: int,
    *,
    record: dict,
    title: str = "",
    empty: str = "zero",
    spacing: Sequence[float] | None = None,
    class_names: Sequence[str] = (),
    metrics: Sequence[str] = SHOWN,
    nifti: bool = True,
    figures: Sequence[str] | bool = True,
    slices: bool = False,
    image_axes: Sequence[int] | None = None,
    per_slice: bool = False,
) -> dict:
    """Segment and score every case, print the table as it grows, and fill ``folder``.

    Distances are in voxels, as the field reports them; ``spacing`` goes into NIfTI files and
    figures alone. Results of an earlier call are removed from ``folder`` first.

    Args:
        cases: ``(name, image (X, Y, Z), label (X, Y, Z))``, best read lazily; this process's share
            of them.
        segment: image ``(X, Y, Z)`` to labels ``(X, Y, Z)``; its seconds are recorded.
        folder: written file by file, each whole or not at all.
        num_classes: with the background.
        record: what ``summary.json`` says besides: run, checkpoint, selection rule, options,
            environment.
        title: of the summary figure.
        empty: how pairs with an empty mask are scored (:func:`utils.metrics.binary_metrics`).
        spacing: size of a voxel along each axis in mm.
        class_names: of the foreground classes.
        metrics: shown in the table and the figures; the files hold all.
        figures: of :data:`utils.figures.FORMATS`, those to draw in; True for png, False for none.
        slices: the volumes are stacks of slices, ``(rows, columns, slices)``: drawn so, and written
            as ``(x, y, z)`` like all others.
        image_axes: which of x, y and z the arrays' axes are; None: in their order, of slices y, x
            and z.
        per_slice: score as :func:`slice_metrics`; distances are in pixels then.

    Returns:
        What ``summary.json`` holds.

    Raises:
        UserError: no cases, or a file cannot be written.
    """
    folder = Path(folder)
    names = list(class_names) or [
        "foreground" if num_classes == 2 else f"class {c}" for c in range(1, num_classes)
    ]
    unit = "pixels" if per_slice else "voxels"
    kinds = (("png",) if figures else ()) if isinstance(figures, bool | int) else tuple(figures)
    axes = np.argsort(
        image_axes or ((1, 0, 2) if slices else (0, 1, 2))
    )  # of the arrays: x, y and z
    voxel = None if spacing is None else [spacing[axis] for axis in axes]
    scored, widths = [], None
    if distributed.is_first():
        _clear(folder)
    distributed.gather(None)  # nobody writes before
    for case, image, label in cases:
        start = time.perf_counter()
        pred = segment(image)
        seconds = time.perf_counter() - start
        scores = (slice_metrics if per_slice else multiclass_metrics)(
            pred, label, num_classes, empty=empty
        )
        new = [
            {
                "case": case,
                "class": c,
                "class_name": names[c - 1],
                **score,
                "prediction_voxels": int(np.count_nonzero(pred == c)),
                "reference_voxels": int(np.count_nonzero(label == c)),
                "seconds": seconds,
            }
            for c, score in scores.items()
        ]
        scored.append(new)
        if widths is None:
            widths = max(len(case) + 2, 22), max(map(len, names)) + 2 if num_classes > 2 else 0
            if distributed.is_first():
                print(_header(widths, metrics), flush=True)
        for row in new:
            cells = [_cell(m, row[m]) for m in metrics]
            print(_line(case, row["class_name"], cells, widths, seconds), flush=True)
        if nifti:
            _make(folder / "nifti")
            for kind, labels in (("pred", pred), ("label", label)):
                write_nifti(
                    folder / "nifti" / f"{case}_{kind}.nii.gz", labels.transpose(axes), voxel
                )
        if kinds:
            _make(folder / "figures")
            mean = {m: _mean([score[m] for score in scores.values()]) for m in metrics}
        for kind in kinds:
            drawn, shown = {"spacing": spacing, "class_names": names}, (image, pred, label)
            path = folder / "figures" / case
            case_figure(f"{path}.{kind}", *shown, case, mean, unit=unit, slices=slices, **drawn)
            error_figure(f"{path}_errors.{kind}", *shown, case, slices=slices, **drawn)
            if not slices:  # which are too far apart, or no neighbours at all
                surface_figure(f"{path}_surface.{kind}", pred, label, case, **drawn)
    rows = [row for case in distributed.collect(scored) for row in case]
    if not rows:
        raise UserError("no case to test")

    summary = summarise(rows) | {
        "sd": "sample standard deviation over cases (ddof 1)",
        "units": {m: "fraction" if m in OVERLAPS else unit for m in METRICS},
        "scored": "slices, then their mean in each case" if per_slice else "whole volumes",
        "empty": EMPTY[empty],
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        **record,
    }
    if not distributed.is_first():
        return summary
    _make(folder)
    write_csv(folder / "per_case.csv", rows)
    text = json.dumps(_without_nan(summary), indent=1, ensure_ascii=False) + "\n"
    write_atomically(folder / "summary.json", lambda path: path.write_text(text, encoding="utf-8"))
    for kind in kinds:
        summary_figure(
            folder / f"summary.{kind}", rows, title, unit, class_names=names, metrics=metrics
        )
    _report(summary, folder, widths, metrics, nifti, kinds)
    return summary


def slice_metrics(
    pred: np.ndarray, label: np.ndarray, num_classes: int, **options
) -> dict[int, dict[str, float]]:
    """:func:`utils.metrics.multiclass_metrics` of each slice of ``(X, Y, slices)``, then the mean
    over the slices that hold the class in prediction or reference. For stacks whose slices are no
    neighbours in space.
    """
    slices = range(pred.shape[2])
    scores = [
        multiclass_metrics(pred[..., k], label[..., k], num_classes, **options) for k in slices
    ]
    means = {}
    for c in range(1, num_classes):
        shown = ((pred == c) | (label == c)).any((0, 1))
        rows = [scores[k][c] for k in slices if shown[k] or not shown.any()]
        means[c] = {m: _mean([row[m] for row in rows]) for m in METRICS}
    return means


def summarise(rows: Sequence[dict]) -> dict:
    """Mean, sample sd (None for one case) and number of values of each metric, for each class and
    for their mean.

    The mean over classes is taken within each case first, so its sd is one over cases. NaN is left
    out.
    """
    by_class, by_case = {}, {}
    for row in rows:
        by_class.setdefault(row["class_name"], []).append(row)
        by_case.setdefault(row["case"], []).append(row)
    means = [{m: _mean([row[m] for row in case]) for m in METRICS} for case in by_case.values()]
    return {
        "cases": len(by_case),
        "mean": {m: _spread([case[m] for case in means]) for m in METRICS},
        "classes": {
            name: {m: _spread([row[m] for row in part]) for m in METRICS}
            for name, part in by_class.items()
        },
        "empty_predictions": sum(row["prediction_voxels"] == 0 for row in rows),
        "empty_references": sum(row["reference_voxels"] == 0 for row in rows),
        "seconds_per_case": _mean([case[0]["seconds"] for case in by_case.values()]),
    }


def write_nifti(path: Path, labels: np.ndarray, spacing: Sequence[float] | None = None) -> None:
    """Labels ``(X, Y, Z)`` as uint8; voxel (i, j, k) of the array is voxel (i, j, k) of the
    file.
    """
    image = SimpleITK.GetImageFromArray(
        labels.astype(np.uint8).transpose(2, 1, 0)
    )  # SimpleITK reads arrays as z, y, x
    if spacing is not None:
        image.SetSpacing([float(s) for s in spacing])

    def write(part: Path) -> None:
        named = part.with_name(f"{part.name}.nii.gz")  # the ending chooses the format
        try:
            SimpleITK.WriteImage(image, str(named), useCompression=True)
            os.replace(named, part)
        finally:
            named.unlink(missing_ok=True)

    write_atomically(path, write)


def _clear(folder: Path) -> None:
    """Remove what an earlier call wrote into the folder, and nothing else."""
    for pattern in RESULTS:
        for path in folder.glob(pattern):
            try:
                path.unlink()
            except OSError as error:
                raise UserError(f"{path}: cannot be removed ({error.strerror})") from None


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be made ({error.strerror})") from None


def _mean(values: Sequence[float]) -> float:
    finite = [v for v in values if not math.isnan(v)]
    return float(np.mean(finite)) if finite else math.nan


def _spread(values: Sequence[float]) -> dict:
    finite = [v for v in values if not math.isnan(v)]
    sd = float(np.std(finite, ddof=1)) if len(finite) > 1 else None
    return {"mean": _mean(finite), "sd": sd, "n": len(finite)}


def _without_nan(value):
    """JSON knows no NaN: null in its place."""
    if isinstance(value, dict):
        return {k: _without_nan(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _cell(metric: str, mean: float, sd: float | None = None) -> str:
    factor = 100 if metric in OVERLAPS else 1
    return f"{factor * mean:7.2f}" + ("" if sd is None else f" ± {factor * sd:.2f}")


def _line(
    case: str,
    name: str,
    cells: Sequence[str],
    widths: tuple[int, int],
    seconds: float | None = None,
) -> str:
    left = f"{case:{widths[0]}}" + (f"{name:{widths[1]}}" if widths[1] else "")
    right = "" if seconds is None else f"{seconds:8.2f}"
    return (left + "".join(f"{cell:17}" for cell in cells) + right).rstrip()


def _header(widths: tuple[int, int], metrics: Sequence[str]) -> str:
    cells = [f"{NAMES[m] + (' %' if m in OVERLAPS else ''):>7}" for m in metrics]
    return _line("case", "class", cells, widths).ljust(sum(widths) + 17 * len(cells)) + " seconds"


def _report(
    summary: dict,
    folder: Path,
    widths: tuple[int, int],
    metrics: Sequence[str],
    nifti: bool,
    kinds: Sequence[str],
) -> None:
    groups = dict(summary["classes"]) if widths[1] else {}
    groups["mean"] = summary["mean"]
    for name, group in groups.items():
        cells = [_cell(m, group[m]["mean"], group[m]["sd"]) for m in metrics]
        print(
            _line(
                "mean ± sd",
                name,
                cells,
                widths,
                summary["seconds_per_case"] if name == "mean" else None,
            )
        )
    distances = [NAMES[m] for m in metrics if m not in OVERLAPS]
    listed = " and ".join(filter(None, [", ".join(distances[:-1]), *distances[-1:]]))
    measured = f"{listed} in {summary['units']['hd']}; " if distances else ""
    print(f"{summary['cases']} cases; {measured}sd over cases (ddof 1)")
    empty = summary["empty_predictions"], summary["empty_references"]
    masks = f" of {summary['cases'] * len(summary['classes'])} masks" if widths[1] else ""
    meaning = f": {summary['empty']}" if any(empty) else ""
    print(f"{empty[0]} empty predictions, {empty[1]} empty references{masks}{meaning}")
    written = ["per_case.csv", "summary.json"]
    written += [f"summary.{kind}" for kind in kinds] + ["figures/"] * bool(kinds)
    written += ["nifti/"] if nifti else []
    for name in written:
        print(folder / name if not name.endswith("/") else f"{folder / name}{os.sep}")
