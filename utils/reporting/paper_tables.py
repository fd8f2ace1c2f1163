"""The tables and figures of the papers, as rows that can be trained and tested.

Each function makes the rows of one table for a data set and a number of labels `n`; `TABLES` names
them. To add a table, write its rows and add its line to `TABLES`.
"""

import math

from dataloaders import dataset_class
from utils.reporting.experiments import Row, Table

# Supervised training in CoraNet's paper, by data set and number of labels. The paper does not train
# as `train_supervised.py` does, so these numbers are printed below a table and not beside a row.
CORANET_BASELINES = {
    ("Pancreas", 12): "Dice 69.96, Jaccard 55.55, HD 14.27, ASD 1.64, from Adam and a V-Net with "
    "instance norm",
    ("Pancreas2d", 31): "Dice 57.53, precision 67.78, recall 52.92, HD 27.65, from Adam and a "
    "wider U-Net",
    ("endocardium", 5): "Dice 76.13, precision 82.73, recall 74.62, HD 15.80, from Adam and a "
    "wider U-Net",
    ("ACDC", 70): "Dice 88.79, from Adam and a wider U-Net",
}

Printed = tuple[float | None, ...]


def dice(value: float, holds: bool) -> Printed | None:
    """The published numbers of a row where the paper gives only Dice; None unless `holds`."""
    return (value, None, None, None) if holds else None


def units(dataset: str, share: float) -> int:
    """A share of the data set's training units, half a unit rounded up."""
    return math.floor(share * dataset_class(dataset).training_units + 0.5)


# --------------------------------------------------------------------------- all methods at once


def comparison(dataset: str, n: int) -> list[Row]:
    return [
        Row("supervised", "supervised"),
        Row("DMD", "dmd"),
        Row("DTML", "dtml"),
        Row("UG-MCL", "ugmcl"),
        Row("CML", "cml"),
        Row("CoraNet", "coranet_ovr" if dataset == "ACDC" else "coranet"),  # its paper's form
        Row("supervised, all labels", "supervised", labelnum=units(dataset, 1)),
    ]


# -------------------------------------------------------------------------------------------- DMD


def dmd_temperature(dataset: str, n: int) -> list[Row]:
    return [
        Row(f"T = {t}", "dmd", flags=f"--temperature {t}", variant=f"t{t}")
        for t in (1, 1.93, 2, 3, 4, 5)
    ]


def dmd_lambda(dataset: str, n: int) -> list[Row]:
    rows = []
    for name, kind in (("Dice", "dice"), ("KL", "kl")):
        for weight in range(1, 7):
            flags = f"--distill {kind} --lambda_distill {weight}"
            rows.append(Row(f"{name}, λ = {weight}", "dmd", flags, f"{kind}{weight}"))
    return rows


def dmd_rivals(dataset: str, n: int) -> list[Row]:
    """CPS is trained by `train_cml.py` with DMD's steps, crops and rate, and is tested like DMD."""
    here = (dataset, n) == ("LA", 8)
    data = dataset_class(dataset)
    cps = (
        "--framework cps --pretrain_iterations 0 --max_iterations 6000 --lr_step 2500 --lambda_u 1"
        f" --labeled_bs {data.labeled_bs} --unlabeled_bs {data.unlabeled_bs}"
    )
    dml = "--distill kl --temperature 1"
    as_dmd = "--network net --nms 0"
    return [
        Row("CPS", "cml", cps, "cps_6000", as_dmd, published=dice(87.49, here)),
        Row("MC-Net", published=dice(87.71, here)),
        Row("DML", "dmd", dml, "dml", published=dice(88.19, here)),
        Row("DMD", "dmd"),
    ]


# ------------------------------------------------------------------------------------------- DTML


def dtml_loss(dataset: str, n: int) -> list[Row]:
    here = (dataset, n) == ("LA", 16)
    return [
        Row("L_sdm", "dtml", "--dis_loss sdm", "sdm", published=dice(89.72, here)),
        Row("L_mask", "dtml", "--dis_loss mask"),
        Row("L_sdm + L_mask", "dtml", "--dis_loss both", "both", published=dice(89.89, here)),
    ]


def dtml_tasks(dataset: str, n: int) -> list[Row]:
    """The first two rows test one run: without consistency, M_s and M_d train independently."""
    here = (dataset, n) == ("LA", 16)
    apart = "--consistency 0 --unlabeled 0"
    labelled = "--unlabeled 0"
    return [
        Row("M_s only", "dtml", apart, "alone", published=dice(86.03, here)),
        Row("M_d only", "dtml", apart, "alone", "--network dis", published=dice(88.69, here)),
        Row("DTML, labelled only", "dtml", labelled, "labelled", published=dice(89.17, here)),
        Row("DTML", "dtml"),
    ]


# ----------------------------------------------------------------------------------------- UG-MCL


def ugmcl_terms(dataset: str, n: int) -> list[Row]:
    return [
        Row("L_seg (supervised)", "supervised"),
        Row("L_seg, beside unlabelled crops", "ugmcl", "--terms", "seg"),
        Row("L_seg + L_dis", "ugmcl", "--terms dis", "dis"),
        Row("without L_dis", "ugmcl", "--terms itc ctc", "itc_ctc"),
        Row("without L_itc", "ugmcl", "--terms dis ctc", "dis_ctc"),
        Row("without L_ctc", "ugmcl", "--terms dis itc", "dis_itc"),
        Row("all", "ugmcl", "--terms dis itc ctc"),
    ]


def ugmcl_beta(dataset: str, n: int) -> list[Row]:
    return [
        Row(f"β = {beta}", "ugmcl", f"--beta {beta}", f"beta{beta}")
        for beta in (0, 0.25, 0.5, 0.75, 1)
    ]


def ugmcl_threshold(dataset: str, n: int) -> list[Row]:
    return [
        Row("U_max", "ugmcl", "--threshold_start 1", "threshold1"),
        Row("1/2 U_max to U_max", "ugmcl", "--threshold_start 0.5", "threshold0.5"),
        Row("3/4 U_max to U_max", "ugmcl", "--threshold_start 0.75", "threshold0.75"),
    ]


def ugmcl_labels(dataset: str, n: int) -> list[Row]:
    rows = []
    for percent in (5, 10, 20, 30, 40, 50):
        labelnum = units(dataset, percent / 100)
        rows.append(Row(f"supervised, {percent} %", "supervised", labelnum=labelnum))
        rows.append(Row(f"UG-MCL, {percent} %", "ugmcl", labelnum=labelnum))
    return rows


# -------------------------------------------------------------------------------------------- CML


def cml_terms(dataset: str, n: int) -> list[Row]:
    reported = {  # by CML's paper itself
        ("LA", 8): (82.74, None, 13.35, 3.26),
        ("ACDC", 7): (79.41, None, None, None),
    }
    return [
        Row("L_sup^l (supervised)", "supervised", published=reported.get((dataset, n))),
        Row("L_sup^l + L_dis", "cml", "--lambda_u 0", "u0"),
        Row("L_sup^l + L_sup^u", "cml", "--lambda_dis 0", "dis0"),
        Row("all", "cml"),
    ]


def cml_box(dataset: str, n: int) -> list[Row]:
    shares = {"1/3": 1 / 3, "1/2": 1 / 2, "2/3": 2 / 3, "5/6": 5 / 6}
    return [
        Row(f"β = {name}", "cml", f"--beta {share}", f"beta{name.replace('/', '-')}")
        for name, share in shares.items()
    ]


def cml_frameworks(dataset: str, n: int) -> list[Row]:
    return [Row(name.upper(), "cml", f"--framework {name}", name) for name in ("cps", "cfl", "cml")]


def cml_lambda(dataset: str, n: int) -> list[Row]:
    rows = []
    for symbol, name in (("λ₁", "u"), ("λ₂", "dis")):
        for weight in (0.1, 0.2, 0.5, 1):
            flags = f"--lambda_{name} {weight}"
            rows.append(Row(f"{symbol} = {weight}", "cml", flags, f"{name}{weight}"))
    return rows


# ---------------------------------------------------------------------------------------- CoraNet


def coranet_ratios(dataset: str, n: int) -> list[Row]:
    rows = []
    for unlabelled in (4, 2, 1):
        labelnum = units(dataset, 1 / (1 + unlabelled))
        rows.append(Row(f"supervised, 1 : {unlabelled}", "supervised", labelnum=labelnum))
        rows.append(Row(f"CoraNet, 1 : {unlabelled}", "coranet", labelnum=labelnum))
    return rows


def coranet_terms(dataset: str, n: int) -> list[Row]:
    here = (dataset, n) == ("Pancreas2d", 31)
    printed = {
        "seg": 60.10,
        "seg+st": 62.33,
        "seg+st_mask": 64.23,
        "seg+mt": 61.23,
        "seg+mt_mask": 63.69,
    }
    rows = [
        Row(terms, "coranet", f"--train {terms}", terms, published=dice(value, here))
        for terms, value in printed.items()
    ]
    return [*rows, Row("full", "coranet", "--train full")]


def coranet_uncertainty(dataset: str, n: int) -> list[Row]:
    kinds = {"TTA": "tta", "MC dropout": "mcdropout", "aleatoric": "aleatoric"}
    rows = [
        Row(name, "coranet_uncertainty", f"--uncertainty {kind}", kind)
        for name, kind in kinds.items()
    ]
    return [*rows, Row("CRM", "coranet")]


def coranet_alpha(dataset: str, n: int) -> list[Row]:
    return [
        Row(f"α = {alpha}", "coranet", f"--alpha {alpha}", f"alpha{alpha}")
        for alpha in (1, 2, 5, 10)
    ]


def coranet_backbones(dataset: str, n: int) -> list[Row]:
    resnet = (80.58, 67.91, None, 2.27, 8.34) if (dataset, n) == ("Pancreas", 12) else None
    return [
        Row("supervised", "supervised"),
        Row("CoraNet, V-Net", "coranet", "--net vnet", "vnet"),
        Row("CoraNet, ResNet-18", "coranet", "--net resnet18", "resnet18", published=resnet),
    ]


def coranet_classes(dataset: str, n: int) -> list[Row]:
    return [
        Row("supervised, all labels", "supervised", labelnum=units(dataset, 1)),
        Row("a binary CoraNet a class", "coranet_ovr"),
        Row("one CoraNet", "coranet"),
    ]


BETWEEN = "The paper prints {} for the rows in between, but not which belongs to which."
TABLES = {
    "comparison": Table("every method of this repository, and both supervised bounds", comparison),
    "dmd-fig3b": Table("DMD, Fig. 3b: temperature", dmd_temperature),
    "dmd-fig4": Table("DMD, Fig. 4: weight of the distillation, by Dice or KL", dmd_lambda),
    "dmd-table3": Table(
        "DMD, Table 3: CPS, MC-Net, DML, DMD",
        dmd_rivals,
        labelnum=8,
        note="CPS is CML's: CE and Dice, pseudo-labels without small components, linear upsampling "
        "in one network; the paper's is DMD's pair with only cross-entropy.",
    ),
    "dtml-table1": Table("DTML, Table 1: what M_d learns", dtml_loss),
    "dtml-table2": Table(
        "DTML, Table 2: one network only, and without unlabelled data", dtml_tasks
    ),
    "ugmcl-table1": Table(
        "UG-MCL: terms of the loss",
        ugmcl_terms,
        note=BETWEEN.format("87.88, 88.68, 89.15 and 89.42 (LA, 16)")
        + " The second row is not in the paper: the first sees only labelled crops and halves its "
        "loss.",
    ),
    "ugmcl-beta": Table("UG-MCL: share of the probabilities in L_itc", ugmcl_beta),
    "ugmcl-threshold": Table("UG-MCL: threshold of the certain voxels", ugmcl_threshold),
    "ugmcl-labels": Table(
        "UG-MCL: 5 to 50 % labels",
        ugmcl_labels,
        labelnum=None,
        note="The paper prints gains in Dice over a supervised baseline, but not the baseline: "
        "21.07, 6.95, 5.78, 4.13, 2.05 and 1.36 % with 5, 10, 15, 20, 30 and 50 % of LA.",
    ),
    "cml-table4": Table(
        "CML, Table 4: terms of the loss",
        cml_terms,
        labelnum=8,
        note=BETWEEN.format("83.73 and 88.16 (LA, 8), 80.27 and 87.75 (ACDC, 7)"),
    ),
    "cml-beta": Table("CML: box of CutMix", cml_box, labelnum=8),
    "cml-lambda": Table("CML: weights of the loss", cml_lambda, labelnum=8),
    "cml-framework": Table("CML: CPS, CFL, CML", cml_frameworks, labelnum=8),
    "coranet-table3": Table(
        "CoraNet, Table III: labelled to unlabelled cases", coranet_ratios, "Pancreas2d", None
    ),
    "coranet-table4": Table(
        "CoraNet, Table IV: terms of the loss and their masks", coranet_terms, "Pancreas2d", 31
    ),
    "coranet-table6": Table(
        "CoraNet, Table VI: measure of uncertainty", coranet_uncertainty, "Pancreas2d", 31
    ),
    "coranet-table8": Table("CoraNet, Table VIII: cost ratio", coranet_alpha, "Pancreas2d", 31),
    "coranet-3d": Table("CoraNet in 3-D, by network", coranet_backbones, "Pancreas", 12),
    "coranet-acdc": Table("CoraNet with several classes", coranet_classes, "ACDC", 14),
}
