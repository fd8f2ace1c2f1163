"""The tables and figures of CoraNet's paper (Shi et al., IEEE TMI 2022)."""

from collections.abc import Sequence
from dataclasses import replace

from dataloaders import dataset_class
from utils.reporting.experiments import Point, Row, Table
from utils.reporting.paper_tables.rows import make_row, printed
from utils.reporting.published import MEAN, PAPERS, Published, published_rows, share

ADAM = {"flags": "--optimizer adam", "variant": "adam"}  # "in all experiments" (section IV-A)
RONNEBERGER = {"flags": "--net unet_ronneberger", "variant": "ronneberger"}  # section IV-D
SUPERVISED = ("U-Net", "V-Net", "supervised")
HALF = share("Pancreas2d", 1 / 2)  # 1 : 1
FIFTH = share("endocardium", 1 / 5)  # 1 : 4
MEASURES = {
    "uncertainty: test augmentation": ("test augmentation", "tta"),
    "uncertainty: MC dropout": ("MC dropout", "mcdropout"),
    "uncertainty: aleatoric": ("aleatoric uncertainty", "aleatoric"),
}


def setting_of(method: str, dataset: str) -> dict[str, str]:
    """Flags and variant of a method's row: Adam for the supervised ones, and on slices CoraNet's
    U-Net for the rivals.
    """
    if method in SUPERVISED:
        return ADAM
    in_2d = len(dataset_class(dataset).patches[1]) == 2
    return RONNEBERGER if in_2d and method != PAPERS["coranet"] else {}


def methods(table: str, dataset: str, n: int | None) -> list[Row]:
    """Rows of a method each."""
    rows = []
    for line in printed("coranet", table, dataset):
        rows.append(make_row(line, dataset, n, **setting_of(line.method, dataset)))
    return rows


def slices(dataset: str, n: int | None) -> list[Row]:
    """Table II; the costs that section III-D.2 states are remarks on its rows."""
    costs = {line.method: line for line in published_rows("coranet", "text III.D.2")}
    rows = []
    for row in methods("II", dataset, n):
        cost = costs.get(row.label)
        if row.published and cost:
            row = replace(row, published=(*row.published, cost))
        rows.append(row)
    return rows


def ratios(dataset: str, n: int | None) -> list[Row]:
    """Table III."""
    rows = []
    for line in printed("coranet", "III", dataset):
        ratio = line.labelled.replace(":", " : ")
        rows.append(
            make_row(
                line,
                dataset,
                n,
                label=f"{line.method}, {ratio}",
                point=Point("labelled : unlabelled", ratio, line.method),
                **setting_of(line.method, dataset),
            )
        )
    return rows


def losses(dataset: str, n: int | None) -> list[Row]:
    """Table IV. The masked mean teacher has a row for either reading."""
    rows = []
    for line in printed("coranet", "IV", dataset):
        train = line.variant.replace(" (mask)", "_mask").replace("ours", "full")
        trained = {line.variant: train}
        if train == "seg+mt_mask":
            trained = {
                f"{line.variant}, certain voxels": train,
                f"{line.variant}, uncertain voxels": "seg+mt_uncertain",
            }
        for label, name in trained.items():
            flags = f"--train {name}"
            rows.append(make_row(line, dataset, n, label=label, flags=flags, variant=name))
    return rows


def volumes(dataset: str, n: int | None) -> list[Row]:
    """Table V. A row of UMCT cannot be run: no script here trains several views."""
    rows = []
    for line in printed("coranet", "V", dataset):
        backbone = line.variant.removeprefix("backbone ")
        label = f"{line.method}, {backbone}"
        setting = {}
        if line.method in SUPERVISED:
            label = line.method
            setting = ADAM
        elif "ResNet-18" in backbone:
            setting = {"flags": "--net resnet18", "variant": "resnet18"}
        row = make_row(line, dataset, n, label=label, **setting)
        if line.method == "UMCT":
            views = backbone.removeprefix("ResNet-18 ")
            label = f"UMCT ({views}), ResNet-18"
            row = replace(row, label=label, method=None, flags="", variant="")
        rows.append(row)
    return rows


def uncertainties(dataset: str, n: int | None) -> list[Row]:
    """Table VI. CRM finds its masks when the other measures do."""
    rows = []
    for line in printed("coranet", "VI", dataset):
        if line.variant not in MEASURES:
            rows.append(
                make_row(
                    line,
                    dataset,
                    n,
                    label="CRM (CoraNet)",
                    flags="--masks relabelling",
                    variant="relabelling",
                )
            )
            continue
        label, kind = MEASURES[line.variant]
        rows.append(
            make_row(
                line,
                dataset,
                n,
                label=label,
                method="coranet_uncertainty",
                flags=f"--uncertainty {kind}",
                variant=kind,
            )
        )
    return rows


def endocardium(dataset: str, n: int | None) -> list[Row]:
    """Table VII."""
    return methods("VII", dataset, n)


def costs(dataset: str, n: int | None) -> list[Row]:
    """Table VIII."""
    rows = []
    for line in printed("coranet", "VIII", dataset):
        alpha = line.variant.removeprefix("alpha=")
        rows.append(
            make_row(
                line,
                dataset,
                n,
                label=f"α = {alpha}",
                flags=f"--alpha {alpha}",
                variant=f"alpha{alpha}",
                point=Point("α", float(alpha), PAPERS["coranet"]),
            )
        )
    return rows


def classes(dataset: str, n: int | None) -> list[Row]:
    """Table IX: a row a method, with a number for each class and for their mean."""
    by_method: dict[str, list[Published]] = {}
    for line in published_rows("coranet", "IX"):
        by_method.setdefault(line.method, []).append(line)
    rows = [_classes_row(lines, dataset) for lines in by_method.values()]
    labelnum = next(row.labelnum for row in rows if row.label == PAPERS["coranet"])
    rows.append(Row("CoraNet, one network (not in the paper)", "coranet", labelnum=labelnum))
    return rows


def _classes_row(lines: Sequence[Published], dataset: str) -> Row:
    mean = next(line for line in lines if line.variant == MEAN)
    setting = {}
    if mean.method in SUPERVISED:
        setting = ADAM
    elif mean.method == PAPERS["coranet"]:
        setting = {"method": "coranet_ovr"}  # a binary network a class (section IV-F)
    elif mean.method == "ADVNET":
        setting = {"flags": "--adversarial", "variant": "adversarial"}
    row = make_row(mean, dataset, None, **setting)
    return replace(row, published=tuple(lines) if row.published else ())


def masks(dataset: str, n: int | None) -> list[Row]:
    """Fig. 4: self-training on voxels that a threshold of the softmax, or CRM, calls certain."""
    rows = []
    for threshold in (0.5, 0.7, 0.9):
        label = f"softmax > {threshold}"
        flags = f"--uncertainty softmax --certain_confidence {threshold} --train seg+st_mask"
        variant = f"softmax{threshold}_st_mask"
        point = Point("certain voxels", label, label)
        rows.append(Row(label, "coranet_uncertainty", flags, variant, point=point))
    point = Point("certain voxels", "CRM", "CRM (CoraNet)")
    flags = "--masks relabelling --train seg+st_mask"
    rows.append(Row("CRM (CoraNet)", "coranet", flags, "relabelling_st_mask", point=point))
    return rows


ADAM_NOTE = (
    "Supervised rows are trained as CoraNet is: by Adam, in 2-D with its U-Net, in 3-D with "
    "instance norm."
)
RIVALS_NOTE = (
    "Section IV-A has Adam in all experiments, and section IV-D gives Π-model, TE and MT the "
    "U-Net; of UA-MT's network it does not speak. The rows of all four have the U-Net, "
    "and the optimizer of their scripts, which is SGD."
)
RELABELLING_NOTE = (
    "CRM finds its masks together with the pseudo-labels here, as the other measures do. By "
    "default CoraNet finds them in each step (Algorithm 1)."
)
BRANCH_NOTE = (
    "With CRM and aleatoric uncertainty D is a branch with two more convolutions. With the other "
    "measures it is the network's plain head."
)
CASES_NOTE = (
    "In 3-D the paper has 82 cases: 12 + 50 to train (section IV-D), so 20 to test. Two of them "
    "repeat others and were dropped from the collection later; here 12 + 50 train and 18 test "
    "(custom of the field)."
)
HD_NOTE = (
    "The paper calls its distance HD, and its released code computes 95HD. So the printed number "
    "stands beside our 95HD and beside our HD."
)
COPIED = "The numbers of the other methods are copied from their papers (section IV-F)."
ADVENT_NOTE = (
    "ADVNET is the paper's name for ADVENT (its reference 53), which has a direct and an "
    "adversarial form. The row of Table V equals that of entropy minimisation in DTC's tables, so "
    "it has the direct form here. Table IX does not say which form its number is of; the row has "
    "the adversarial one."
)
SHARE_NOTE = (
    "The paper labels 20 % of the samples (section IV-F) and does not say which. Here they are 14 "
    "of the 70 training patients of SSL4MIS' split into 70, 10 and 20 to train, validate and test "
    "(custom of the field)."
)
TABLES = {
    "coranet-table2": Table(
        "CoraNet, Table II: methods on slices of the pancreas",
        slices,
        {"Pancreas2d": HALF},
        notes=(ADAM_NOTE, RIVALS_NOTE),
    ),
    "coranet-table3": Table(
        "CoraNet, Table III: labelled to unlabelled cases",
        ratios,
        {"Pancreas2d": None},
        notes=(ADAM_NOTE, RIVALS_NOTE),
    ),
    "coranet-table4": Table(
        "CoraNet, Table IV: terms of the loss and their masks",
        losses,
        {"Pancreas2d": HALF},
        notes=(
            "The text says of seg+mt (mask) that the uncertain region is not involved: a mean "
            "teacher on the certain voxels. This may be a slip for the contrary, which is the row "
            "after it; the printed numbers stand beside both.",
        ),
    ),
    "coranet-table5": Table(
        "CoraNet, Table V: methods on volumes of the pancreas",
        volumes,
        {"Pancreas": 12},
        notes=(ADAM_NOTE, ADVENT_NOTE, CASES_NOTE, HD_NOTE),
    ),
    "coranet-table6": Table(
        "CoraNet, Table VI: measures of uncertainty",
        uncertainties,
        {"Pancreas2d": HALF, "Pancreas": 12},
        notes=(RELABELLING_NOTE, BRANCH_NOTE, CASES_NOTE),
    ),
    "coranet-table7": Table(
        "CoraNet, Table VII: methods on the endocardium",
        endocardium,
        {"endocardium": FIFTH},
        notes=(ADAM_NOTE, RIVALS_NOTE),
    ),
    "coranet-table8": Table(
        "CoraNet, Table VIII: α, the ratio of the costs",
        costs,
        {"Pancreas2d": HALF, "endocardium": FIFTH},
    ),
    "coranet-table9": Table(
        "CoraNet, Table IX: methods on ACDC by class",
        classes,
        {"ACDC": None},
        notes=(ADAM_NOTE, COPIED, ADVENT_NOTE, SHARE_NOTE),
    ),
    "coranet-fig4": Table(
        "CoraNet, Fig. 4: self-training on certain voxels by softmax and by CRM",
        masks,
        {"Pancreas2d": HALF},
        notes=(
            "The figure shows PPV (precision), TPR (recall) and CSI (Jaccard) of the tests of the "
            'kept steps: train with --extra "--keep_every 500" and test these steps. Those of the '
            "certain voxels themselves are drawn by code/figures.py.",
            RELABELLING_NOTE,
            BRANCH_NOTE,
        ),
        metrics=("precision", "recall", "jaccard"),
        over_steps=True,
    ),
}
