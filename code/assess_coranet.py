"""How good CoraNet's certain region is: Figs. 3 and 4 of Shi et al., IEEE TMI 41(3), 2022.

    # Fig. 3: pre-training only, so that the predictions are the initial ones; unlabelled cases
    python code/train_coranet.py --selftrain_epochs 0 --name initial
    python code/assess_coranet.py --run runs/LA/initial/seed1337 --split train
    # Fig. 4: self-training on the certain region, at all steps that were kept
    python code/train_coranet.py --train seg+st_mask --keep_every 100 --name st
    python code/assess_coranet.py --run runs/LA/st/seed1337 --split train --checkpoint kept
    python code/figures.py certain_curves runs/LA/st/seed1337 --split train

It assesses runs of `train_coranet.py` and of `train_coranet_uncertainty.py`. A voxel of a certain
region is given D's argmax as its label; the other voxels are given none. The region is chosen
without the reference. For each foreground class

    TP    voxels that are given the class, and have it
    FP    voxels that are given the class, and do not have it
    FN    voxels that have the class, and are given another one or none
    PPV = TP / (TP + FP)      TPR = TP / (TP + FN)      CSI = TP / (TP + FP + FN)
    certain = voxels of the region / voxels of the volume

The regions are that of the run's training and those of three softmax thresholds:

    coranet       D_con's and D_rad's argmax agree
    tta, mcdropout, aleatoric
                  as `train_coranet_uncertainty.py` finds it, with the options of the training
    softmax t     D's largest softmax is above t = 0.5, 0.7, 0.9, or the training's threshold

With two classes `softmax 0.5` is the whole image. The paper does not say whether its figures count
uncertain voxels of CoraNet as missed; here they do, as those below a threshold.

PPV, TPR and CSI are means over the foreground classes, then over cases, with their sample sd; a
ratio 0 / 0 is left out of a mean. Labels of unlabelled training cases are read only for this
assessment: nothing is trained. Writes certain_per_case.csv, a line for each case, class and region
with the voxel counts, and certain.csv, the table, into <run>/test/<checkpoint>/.
"""

import argparse
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

import _root  # noqa: F401
from dataloaders import DATASETS
from utils import command, distributed
from utils.errors import UserError
from utils.evaluation import options
from utils.evaluation.test_script import Test, run_folder
from utils.files import write_csv
from utils.inference import whole_image
from utils.metrics import means, spread, spread_text
from utils.reporting.predicted_split import branch_probabilities, insist_on_branches, kept_steps
from utils.uncertainty import certain_region

THRESHOLDS = (0.5, 0.7, 0.9)
MEASURES = ("PPV", "TPR", "CSI", "certain")
TRAINED_ON = ("LA", *(name for name in DATASETS if name != "LA"))  # the default first

Regions = dict[str, Tensor]  # certain voxels bool `(*S)` by name; that of the training comes first


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    return options.parse(
        __doc__,
        __file__,
        argv,
        datasets=TRAINED_ON,
        splits=("test", "train"),
        scores=False,
        several=True,
    )


# ------------------------------------------------------------------------------------ the regions


def regions(test: Test, image: np.ndarray) -> tuple[Tensor, Regions]:
    """D's prediction for an image, `(*S)`, and the certain regions."""
    if "uncertainty" in test.trained:
        prob, name, own = region_of_uncertainty(test, image)
    else:
        prob, name, own = region_of_branches(test, image)
    confidence, pred = prob.max(0)
    found = {name: own}
    for threshold in THRESHOLDS:
        found.setdefault(softmax_name(threshold), confidence > threshold)
    return pred, found


def region_of_branches(test: Test, image: np.ndarray) -> tuple[Tensor, str, Tensor]:
    """D's softmax `(C, *S)`; name and voxels of the region where D_con and D_rad agree."""
    predict = branch_probabilities(test.networks[0])
    classes = test.num_classes
    prob = whole_image(predict, image, test.patch, test.stride, 3 * classes, **test.options)
    normal, con, rad = prob.split(classes)
    return normal, "coranet", con.argmax(0) == rad.argmax(0)


def region_of_uncertainty(test: Test, image: np.ndarray) -> tuple[Tensor, str, Tensor]:
    """D's softmax `(C, *S)`; name and voxels of the region that the run's measure calls certain.

    The draws depend on the run's seed only, and not on the cases before.
    """
    measure = argparse.Namespace(**test.trained)
    torch.manual_seed(measure.seed)
    prob, certain = certain_region(
        test.networks[0],
        image,
        measure,
        test.patch,
        test.stride,
        test.num_classes,
        **test.options,
    )
    name = measure.uncertainty
    if name == "softmax":
        name = softmax_name(measure.certain_confidence)
    return prob, name, certain


def softmax_name(threshold: float) -> str:
    return f"softmax {threshold:g}"


def check_run(test: Test) -> None:
    """Raise `UserError` where a run has no region of its own."""
    if "uncertainty" not in test.trained:
        insist_on_branches(test.networks[0], test.path)
    elif "certain_sd" not in test.trained:
        raise UserError(
            f"{test.path}: trained by an earlier version, whose certain voxels were found in "
            "another way; train it again"
        )


# ----------------------------------------------------------------------------------- the measures


def measure(pred: Tensor, label: Tensor, certain: Tensor, num_classes: int) -> dict[int, dict]:
    """PPV, TPR, CSI and their counts for each foreground class; all arrays `(*S)`. Voxels outside
    of `certain` are given no label.
    """
    region = int(certain.sum())
    volume = certain.numel()
    rows = {}
    for c in range(1, num_classes):
        given = (pred == c) & certain
        true = label == c
        tp = int((given & true).sum())
        fp = int(given.sum()) - tp
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
    rows: list[dict] = []
    by_region: dict[str, list[dict]] = {}
    for case, image, label in test.cases():
        label = torch.from_numpy(label).to(test.device)
        pred, certain = regions(test, image)
        for region, mask in certain.items():
            scores = measure(pred, label, mask, test.num_classes)
            for c, score in scores.items():
                name = test.data.class_names[c - 1]
                rows.append({"region": region, "case": case, "class": name, **score})
            by_region.setdefault(region, []).append(means(scores.values(), MEASURES))
    return rows, by_region


def summarize(by_region: dict[str, list[dict]], step: int) -> list[dict]:
    """The table, and its printed form: a row for each region."""
    table = []
    print(f"{'region':14}" + "".join(f"{name + ' %':18}" for name in MEASURES))
    for region, cases in by_region.items():
        line = {"region": region}
        cells = []
        for name in MEASURES:
            found = spread(case[name] for case in cases)
            line |= {name: found.mean, f"{name}_sd": found.sd}
            cells.append(f"{spread_text(found, 100):18}")
        line |= {"cases": len(cases), "step": step, "of_training": int(not table)}
        table.append(line)
        print(f"{region:14}" + "".join(cells))
    return table


def checkpoints(args: argparse.Namespace) -> list[str]:
    """Names of the checkpoints that `--checkpoint` asks for."""
    names = []
    for name in args.checkpoint:
        if name == options.KEPT:
            names += [str(step) for step in kept_steps(run_folder(args))]
        else:
            names.append(name)
    return list(dict.fromkeys(names))


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    distributed.alone()
    for name in checkpoints(args):
        one = argparse.Namespace(**vars(args) | {"checkpoint": name})
        test = Test(one, datasets=DATASETS)
        check_run(test)
        rows, by_region = assess(test)
        table = summarize(by_region, test.checkpoint["step"])
        test.output.mkdir(parents=True, exist_ok=True)
        for file, lines in (("certain_per_case.csv", rows), ("certain.csv", table)):
            write_csv(test.output / file, lines)
            print(test.output / file)


if __name__ == "__main__":
    command.run(main)
