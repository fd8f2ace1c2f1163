"""Folders of runs with results, written as the training and test scripts leave them, for tables,
figures and reports to read.
"""

import csv
import json

from utils.metrics import METRICS, OVERLAPS, SHOWN

EMPTY = "an empty mask scores 0 everywhere"


def write_run(
    root,
    name,
    dice,
    *,
    seed=1337,
    tag="last",
    classes=("left atrium",),
    cases=None,
    trained=None,
    test=None,
    **summary,
):
    """A tested run `<root>/LA/<name>/seed<seed>`; returns its folder.

    Args:
        dice: one a case, the same for every class; the other metrics follow from it. 0 is an empty
            prediction.
        cases: their names (default: A, B, C, …).
        trained: options of the training besides the usual.
        test: options of the test besides the usual.
        summary: entries of `summary.json` besides the usual.
    """
    folder = root / "LA" / name / f"seed{seed}"
    results = folder / "test" / tag
    results.mkdir(parents=True, exist_ok=True)
    options = {
        "dataset": "LA",
        "labelnum": 8,
        "method": "supervised",
        "seed": seed,
        "labeled_bs": 4,
        "patch": [112, 112, 80],
        "downsample": 1,
        "name": name,
        **(trained or {}),
    }
    (folder / "args.json").write_text(json.dumps(options))
    (folder / "last.pth").touch()
    names = cases or [chr(ord("A") + i) for i in range(len(dice))]
    rows = []
    for case, value in zip(names, dice, strict=True):
        for c, class_name in enumerate(classes, 1):
            rows.append({"case": case, "class": c, "class_name": class_name, **scores(value)})
    write_cases(results, rows)
    usual = {
        "cases": len(dice),
        "listed_cases": len(dice),
        "empty": EMPTY,
        "checkpoint": "last.pth",
        "step": 100,
        "last_step": 100,
        "selection": "last iteration; nothing was selected",
        "list": "the test list",
        "units": dict.fromkeys(METRICS, "voxels"),
        "scored": "whole volumes",
        "trained": options,
        "test": {
            "nms": 1,
            "empty": "zero",
            "stride": [18, 18, 4],
            "metrics": SHOWN,
            **(test or {}),
        },
    }
    (results / "summary.json").write_text(json.dumps(usual | summary))
    return folder


def scores(dice):
    """All metrics of a prediction with this Dice, and its voxels."""
    overlaps = dict.fromkeys(OVERLAPS, dice) | {"jaccard": dice / (2 - dice)}
    distances = {"hd": 20, "hd95": 20, "asd": 5, "assd": 5}
    return {
        **overlaps,
        **{metric: worst * (1 - dice) for metric, worst in distances.items()},
        "prediction_voxels": int(1000 * dice),
        "reference_voxels": 900,
        "seconds": 1.5,
    }


def write_summary(folder, tag, **summary):
    """Only `summary.json` of a test, with these entries."""
    path = folder / "test" / tag / "summary.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(summary))


def write_cases(results, rows):
    """`per_case.csv`."""
    with open(results / "per_case.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def write_training(folder, steps=40, **series):
    """`metrics.jsonl` of half a second a step, recorded every tenth; `series` are functions of the
    step by tag, `__` for `/`.
    """
    lines = []
    for step in range(10, steps + 1, 10):
        record = {"step": step, "epoch": 1, "time/step": 0.5, "time/data": 0.1}
        for tag, value in series.items():
            record[tag.replace("__", "/")] = value(step)
        lines.append(json.dumps(record))
    lines.append('{"step": 4')  # a line that was cut short
    (folder / "metrics.jsonl").write_text("\n".join(lines))
