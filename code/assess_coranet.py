"""How good CoraNet's certain region is: Figs. 3 and 4 of Shi et al., IEEE TMI 41(3), 2022.

    # pre-training only, so that the predictions are the initial ones
    python code/train_coranet.py --selftrain_epochs 0 --name initial
    # on the test list, and on unlabelled training cases
    python code/assess_coranet.py --run runs/LA/initial/seed1337
    python code/assess_coranet.py --run runs/LA/initial/seed1337 --split train

It assesses runs of `train_coranet.py`: one network with three branches. The network gives a
prediction, and a certain region that is chosen without the label. For each foreground class, and
within that region only:

    TP, FP, FN    voxels of the class in prediction and label, only in the prediction, only in the
                  label
    PPV = TP / (TP + FP)      TPR = TP / (TP + FN)      CSI = TP / (TP + FP + FN)
    certain = voxels of the region / voxels of the volume

    coranet       D's argmax; certain where D_con's and D_rad's argmax agree
    softmax t     D's argmax; certain where its softmax is at least t = 0.5, 0.7, 0.9

PPV, TPR and CSI are means over the foreground classes, then over cases, with their sample sd; a
ratio 0 / 0 is left out of a mean. Labels of unlabelled training cases are read only for this
assessment: nothing is trained. Writes certain_per_case.csv, a line for each case, class and region
with the voxel counts, and certain.csv, the table, into <run>/test/<checkpoint>/.
"""

import argparse
import math
from collections.abc import Sequence

import torch
from torch import Tensor

import _root  # noqa: F401
from dataloaders import DATASETS
from utils import command, distributed
from utils.evaluation import options
from utils.evaluation.test_script import Test
from utils.files import write_csv
from utils.inference import whole_image
from utils.metrics import means, spread, spread_text
from utils.reporting.predicted_split import branch_probabilities, insist_on_branches

THRESHOLDS = (0.5, 0.7, 0.9)
MEASURES = ("PPV", "TPR", "CSI", "certain")
TRAINED_ON = ("LA", *(name for name in DATASETS if name != "LA"))  # the default first


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    return options.parse(
        __doc__, __file__, argv, datasets=TRAINED_ON, splits=("test", "train"), scores=False
    )


def regions(prob: Tensor, num_classes: int) -> tuple[Tensor, dict[str, Tensor]]:
    """D's prediction `(*S)`, and each certain region bool `(*S)` by name, from the three branches'
    `(3 C, *S)`.
    """
    normal, con, rad = prob.split(num_classes)
    confidence, pred = normal.max(0)
    certain = {"coranet": con.argmax(0) == rad.argmax(0)}
    for threshold in THRESHOLDS:
        certain[f"softmax {threshold}"] = confidence >= threshold
    return pred, certain


def measure(pred: Tensor, label: Tensor, certain: Tensor, num_classes: int) -> dict[int, dict]:
    """PPV, TPR, CSI and their counts within `certain` for each foreground class, all arrays
    `(*S)`.
    """
    region = int(certain.sum())
    volume = certain.numel()
    rows = {}
    for c in range(1, num_classes):
        predicted = (pred == c) & certain
        true = (label == c) & certain
        tp = int((predicted & true).sum())
        fp = int(predicted.sum()) - tp
        fn = int(true.sum()) - tp
        rows[c] = {
            "PPV": _ratio(tp, tp + fp),
            "TPR": _ratio(tp, tp + fn),
            "CSI": _ratio(tp, tp + fp + fn),
            "certain": _ratio(region, volume),
            "TP": tp,
            "FP": fp,
            "FN": fn,
            "certain_voxels": region,
            "voxels": volume,
        }
    return rows


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else math.nan


def assess(test: Test) -> tuple[list[dict], dict[str, list[dict]]]:
    """The rows of all cases, classes and regions; and for each region the measures of each case,
    means over the classes.
    """
    classes = test.num_classes
    branches = branch_probabilities(test.networks[0])
    rows: list[dict] = []
    by_region: dict[str, list[dict]] = {}
    for case, image, label in test.cases():
        label = torch.from_numpy(label).to(test.device)
        prob = whole_image(branches, image, test.patch, test.stride, 3 * classes, **test.options)
        pred, certain = regions(prob, classes)
        for region, mask in certain.items():
            scores = measure(pred, label, mask, classes)
            for c, score in scores.items():
                name = test.data.class_names[c - 1]
                rows.append({"region": region, "case": case, "class": name, **score})
            by_region.setdefault(region, []).append(means(scores.values(), MEASURES))
    return rows, by_region


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    distributed.alone()
    test = Test(args, datasets=DATASETS)
    insist_on_branches(test.networks[0], test.path)
    rows, by_region = assess(test)
    table = []
    print(f"{'region':14}" + "".join(f"{m + ' %':18}" for m in MEASURES))
    for region, cases in by_region.items():
        line = {"region": region}
        cells = []
        for m in MEASURES:
            found = spread(case[m] for case in cases)
            line |= {m: found.mean, f"{m}_sd": found.sd}
            cells.append(f"{spread_text(found, 100):18}")
        table.append(line | {"cases": len(cases)})
        print(f"{region:14}" + "".join(cells))
    test.output.mkdir(parents=True, exist_ok=True)
    for name, lines in (("certain_per_case.csv", rows), ("certain.csv", table)):
        write_csv(test.output / name, lines)
        print(test.output / name)


if __name__ == "__main__":
    command.run(main)
