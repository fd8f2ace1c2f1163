"""Folders of runs with results, written as the training and test scripts leave them, for tables and
reports to read.
"""

import csv
import json

from utils.metrics import METRICS

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
    **told,
):
    """A tested run `<root>/LA/<name>/seed<seed>`; returns its folder.

    Args:
        dice: one a case, the same for every class; the other metrics follow from it. 0 is an empty
            prediction.
        cases: their names (default: A, B, C, …).
        trained: options of the training besides the usual.
        told: of `summary.json` besides the usual; `test` is merged into its own.
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
    }
    options |= {"patch": [112, 112, 80], "downsample": 1, "name": name} | (trained or {})
    (folder / "args.json").write_text(json.dumps(options))
    (folder / "last.pth").touch()
    names = cases or [chr(ord("A") + i) for i in range(len(dice))]
    rows = [
        {
            "case": case,
            "class": c,
            "class_name": class_name,
            **{m: value / (2 - value) if m == "jaccard" else value for m in METRICS[:4]},
            **{m: (20 if m.startswith("hd") else 5) * (1 - value) for m in METRICS[4:]},
            "prediction_voxels": int(1000 * value),
            "reference_voxels": 900,
            "seconds": 1.5,
        }
        for case, value in zip(names, dice, strict=True)
        for c, class_name in enumerate(classes, 1)
    ]
    write_cases(results, rows)
    summary = {
        "cases": len(dice),
        "listed_cases": len(dice),
        "empty": EMPTY,
        "checkpoint": "last.pth",
        "step": 100,
    }
    summary |= {
        "last_step": 100,
        "selection": "last iteration; nothing was selected",
        "list": "the test list",
    }
    summary |= {
        "units": dict.fromkeys(METRICS, "voxels"),
        "scored": "whole volumes",
        "trained": options,
    }
    test = {
        "nms": 1,
        "empty": "zero",
        "stride": [18, 18, 4],
        "metrics": ["dice", "jaccard", "hd95", "asd"],
    }
    test |= told.pop("test", {})
    (results / "summary.json").write_text(json.dumps(summary | {"test": test} | told))
    return folder


def write_cases(results, rows):
    """`per_case.csv`."""
    with open(results / "per_case.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def write_training(folder, steps=40, **series):
    """`metrics.jsonl` of half a second a step, recorded every tenth; `series` are functions of the
    step by tag.
    """
    records = [
        {
            "step": step,
            "epoch": 1,
            **{tag.replace("__", "/"): value(step) for tag, value in series.items()},
        }
        for step in range(10, steps + 1, 10)
    ]
    lines = [json.dumps(record | {"time/step": 0.5, "time/data": 0.1}) for record in records]
    (folder / "metrics.jsonl").write_text(
        "\n".join(lines) + '\n{"step": 4'
    )  # a line that was cut short
