"""What CoraNet's certain region is worth: Figs. 3 and 4 of Shi et al., IEEE TMI 41(3), 2022.

    python code/train_coranet.py --selftrain_epochs 0 --name initial       # pre-training alone: predictions are initial
    python code/assess_coranet.py --run runs/LA/initial/seed1337           # on the test list
    python code/assess_coranet.py --run runs/LA/initial/seed1337 --split train     # on unlabelled training cases

One network is assessed: on ACDC train it with `--multiclass direct`. A prediction and a certain
region, chosen without the label. Within that region alone, of a foreground class:

    TP, FP, FN    voxels of the class in prediction and label, in the prediction alone, in the label alone
    PPV = TP / (TP + FP)      TPR = TP / (TP + FN)      CSI = TP / (TP + FP + FN)
    certain = voxels of the region / voxels of the volume

    coranet       D's argmax; certain where D_con's and D_rad's argmax agree
    softmax t     D's argmax; certain where its softmax is at least t = 0.5, 0.7, 0.9

PPV, TPR and CSI are means over the foreground classes, then over cases, with their sample sd; what
is 0 / 0 is left out of a mean. Labels of unlabelled training cases are read for this assessment
alone: nothing is trained. Writes certain_per_case.csv, a line a case, class and region with the
voxel counts, and certain.csv, the table, into <run>/test/<checkpoint>/.
"""

import numpy as np
import torch

import _root  # noqa: F401
from dataloaders import DATASETS
from utils import command, distributed
from utils.errors import UserError
from utils.evaluation.test_script import Test
from utils.files import write_csv
from utils.inference import whole_image

THRESHOLDS = (0.5, 0.7, 0.9)
MEASURES = ("PPV", "TPR", "CSI", "certain")


def regions(prob, num_classes):
    """D's prediction `(*S)`, and each certain region bool `(*S)` by name, from the three branches'
    `(3 C, *S)`.
    """
    normal, con, rad = prob.split(num_classes)
    confidence, pred = normal.max(0)
    certain = {"coranet": con.argmax(0) == rad.argmax(0)}
    return pred, certain | {f"softmax {t}": confidence >= t for t in THRESHOLDS}


def measure(pred, label, certain, num_classes):
    """PPV, TPR, CSI and their counts within `certain` for each foreground class, all arrays
    `(*S)`.
    """
    rows = {}
    for c in range(1, num_classes):
        predicted, true = (pred == c) & certain, (label == c) & certain
        tp = int((predicted & true).sum())
        fp, fn = int(predicted.sum()) - tp, int(true.sum()) - tp
        shares = {"PPV": (tp, tp + fp), "TPR": (tp, tp + fn), "CSI": (tp, tp + fp + fn)}
        shares["certain"] = int(certain.sum()), certain.numel()
        rows[c] = {
            name: part / whole if whole else np.nan for name, (part, whole) in shares.items()
        }
        rows[c] |= {
            "TP": tp,
            "FP": fp,
            "FN": fn,
            "certain_voxels": shares["certain"][0],
            "voxels": certain.numel(),
        }
    return rows


def mean_and_sd(values):
    """Mean and sample sd of what is no NaN; NaN where nothing is, or nothing to spread."""
    values = [value for value in values if not np.isnan(value)]
    return np.mean(values) if values else np.nan, np.std(values, ddof=1) if len(
        values
    ) > 1 else np.nan


def main():
    distributed.alone()
    test = Test(
        __doc__,
        ("LA", *(name for name in DATASETS if name != "LA")),
        splits=("test", "train"),
        scores=False,
    )
    net, classes = test.networks[0], test.num_classes
    if net.config.get("branches") != 3:
        raise UserError(
            f"{test.path}: its network has no conservative and radical branch; name a run of "
            "CoraNet"
        )
    if "network" in net.config:
        raise UserError(
            f"{test.path}: one network a class, each with a region of its own; assess --multiclass "
            "direct"
        )

    def branches(x):
        return torch.cat([logits.float().softmax(1) for logits in net(x)], dim=1)

    rows, table = [], {}
    for case, image, label in test.cases():
        label = torch.from_numpy(label).to(test.device)
        prob = whole_image(branches, image, test.patch, test.stride, 3 * classes, **test.options)
        pred, certain = regions(prob, classes)
        for region, mask in certain.items():
            scores = measure(pred, label, mask, classes)
            for c, score in scores.items():
                rows.append(
                    {"region": region, "case": case, "class": test.data.class_names[c - 1], **score}
                )
            means = {m: mean_and_sd([score[m] for score in scores.values()])[0] for m in MEASURES}
            table.setdefault(region, []).append(means)

    summary = []
    print(f"{'region':14}" + "".join(f"{m + ' %':18}" for m in MEASURES))
    for region, cases in table.items():
        spread = {m: mean_and_sd([case[m] for case in cases]) for m in MEASURES}
        cells = [
            f"{100 * mean:.2f} ± {100 * sd:.2f}".replace("nan", "-") for mean, sd in spread.values()
        ]
        print(f"{region:14}" + "".join(f"{cell:18}" for cell in cells))
        values = {
            f"{m}{end}": value
            for m in MEASURES
            for end, value in zip(("", "_sd"), spread[m], strict=True)
        }
        summary.append({"region": region, **values, "cases": len(cases)})
    test.output.mkdir(parents=True, exist_ok=True)
    for name, lines in (("certain_per_case.csv", rows), ("certain.csv", summary)):
        write_csv(test.output / name, lines)
        print(test.output / name)


if __name__ == "__main__":
    command.run(main)
