"""The tables and figures of CoraNet's paper (Shi et al., IEEE TMI 2022)."""

from collections.abc import Sequence
from dataclasses import replace

from utils.reporting.experiments import Point, Row, Table
from utils.reporting.paper_tables.rows import make_row, printed
from utils.reporting.published import MEAN, PAPERS, Published, published_rows, share

ADAM = {"flags": "--optimizer adam", "variant": "adam"}  # "in all experiments" (section IV-A)
SUPERVISED = ("U-Net", "V-Net", "supervised")
HALF = share("Pancreas2d", 1 / 2)  # 1 : 1
FIFTH = share("endocardium", 1 / 5)  # 1 : 4
MEASURES = {
    "uncertainty: test augmentation": ("test augmentation", "tta"),
    "uncertainty: MC dropout": ("MC dropout", "mcdropout"),
    "uncertainty: aleatoric": ("aleatoric uncertainty", "aleatoric"),
}


def methods(table: str, dataset: str, n: int | None) -> list[Row]:
    """Rows of a method each; the supervised ones are trained by Adam, as CoraNet is."""
    rows = []
    for line in printed("coranet", table, dataset):
        setting = ADAM if line.method in SUPERVISED else {}
        rows.append(make_row(line, dataset, n, **setting))
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
        setting = ADAM if line.method in SUPERVISED else {}
        ratio = line.labelled.replace(":", " : ")
        rows.append(
            make_row(
                line,
                dataset,
                n,
                label=f"{line.method}, {ratio}",
                point=Point("labelled : unlabelled", ratio, line.method),
                **setting,
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
    """Table V."""
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
        if line.method == "UMCT":
            views = backbone.removeprefix("ResNet-18 ")
            label = f"UMCT ({views}), ResNet-18"
            number = views.removesuffix("+").removesuffix("v")
            setting = {"flags": f"--net resnet18 --views {number}", "variant": f"views{number}"}
        row = make_row(line, dataset, n, label=label, **setting)
        if backbone.endswith("+"):
            row = replace(row, method=None)  # an ensemble of its views, which no script makes
        rows.append(row)
    return rows


def uncertainties(dataset: str, n: int | None) -> list[Row]:
    """Table VI."""
    rows = []
    for line in printed("coranet", "VI", dataset):
        if line.variant not in MEASURES:
            rows.append(make_row(line, dataset, n, label="CRM (CoraNet)"))
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
    row = make_row(mean, dataset, None, **setting)
    return replace(row, published=tuple(lines) if row.published else ())


def masks(dataset: str, n: int | None) -> list[Row]:
    """Fig. 4: self-training on voxels that a threshold of the softmax, or CRM, calls certain."""
    rows = []
    for threshold in (0.5, 0.7, 0.9):
        label = f"softmax ≥ {threshold}"
        flags = f"--uncertainty softmax --certain_confidence {threshold} --train seg+st_mask"
        variant = f"softmax{threshold}_st_mask"
        point = Point("certain voxels", label, label)
        rows.append(Row(label, "coranet_uncertainty", flags, variant, point=point))
    point = Point("certain voxels", "CRM", "CRM (CoraNet)")
    train = "seg+st_mask"
    rows.append(Row("CRM (CoraNet)", "coranet", f"--train {train}", train, point=point))
    return rows


ADAM_NOTE = (
    "Supervised rows are trained as CoraNet is: by Adam, in 2-D with its U-Net, in 3-D with "
    "instance norm."
)
COPIED = "Table IX's numbers for the other methods are copied from their papers (section IV-F)."
TABLES = {
    "coranet-table2": Table(
        "CoraNet, Table II: methods on slices of the pancreas",
        slices,
        {"Pancreas2d": HALF},
        notes=(ADAM_NOTE,),
    ),
    "coranet-table3": Table(
        "CoraNet, Table III: labelled to unlabelled cases",
        ratios,
        {"Pancreas2d": None},
        notes=(ADAM_NOTE,),
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
        notes=(ADAM_NOTE,),
    ),
    "coranet-table6": Table(
        "CoraNet, Table VI: measures of uncertainty",
        uncertainties,
        {"Pancreas2d": HALF, "Pancreas": 12},
    ),
    "coranet-table7": Table(
        "CoraNet, Table VII: methods on the endocardium",
        endocardium,
        {"endocardium": FIFTH},
        notes=(ADAM_NOTE,),
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
        notes=(ADAM_NOTE, COPIED),
    ),
    "coranet-fig4": Table(
        "CoraNet, Fig. 4: self-training on certain voxels by softmax and by CRM",
        masks,
        {"Pancreas2d": HALF},
        notes=(
            "The figure shows PPV (precision), TPR (recall) and CSI (Jaccard) of the tests of the "
            'kept steps: train with --extra "--keep_every 500" and test these steps. Those of the '
            "certain voxels themselves are drawn by code/figures.py.",
        ),
        metrics=("precision", "recall", "jaccard"),
        over_steps=True,
    ),
}
