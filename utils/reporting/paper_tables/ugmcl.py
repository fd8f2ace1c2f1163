"""The tables and figures of UG-MCL's paper (Zhang et al., Artificial Intelligence in Medicine
2022).
"""

from utils.reporting.experiments import Point, Row, Table
from utils.reporting.paper_tables.rows import (
    crops_of_a_step,
    make_row,
    printed,
    script_name,
)
from utils.reporting.published import PAPERS, published_rows, share

PERCENTS = (5, 10, 15, 20, 30, 50)
PATCH = {"flags": "--patch 112 112 80", "variant": "patch112"}
# rivals that would train 30 000 steps on BraTS2019, as SSL4MIS does
SHORT = "--decay step --max_iterations 6000 --lr_step 2500"
LONGER = ("MT", "UA-MT", "EM", "URPC", "TCSE")


def crops(method: str, dataset: str) -> dict[str, str]:
    """Flags and variant that give a method the paper's crops and steps, which are those of LA on
    BraTS2019 too (section 4.2). UG-MCL has them by default.
    """
    if dataset != "BraTS2019" or method == PAPERS["ugmcl"]:
        return {}
    if method in LONGER:
        return {"flags": f"{PATCH['flags']} {SHORT}", "variant": "patch112_6000"}
    return PATCH


def terms(dataset: str, n: int | None) -> list[Row]:
    """Table 1."""
    labelled = f"--terms dis --unlabeled 0 --labeled_bs {crops_of_a_step(dataset)}"
    settings = {
        "L_seg": {"method": "supervised", **crops("supervised", dataset)},
        "L_seg+L_dis": {"flags": labelled, "variant": "dis_labelled"},
        "L_seg+L_itc": {"flags": "--terms itc --beta 1", "variant": "itc"},
        "L_seg+L_dis+L_itc": {"flags": "--terms dis itc", "variant": "dis_itc"},
        "L_seg+L_dis+L_ctc": {"flags": "--terms dis ctc", "variant": "dis_ctc"},
        "L_seg+L_dis+L_itc+L_ctc": {"flags": "--terms dis itc ctc"},
    }
    rows = []
    for number, line in enumerate(printed("ugmcl", "1", dataset), 1):
        label = f"({number}) {line.variant.replace('+', ' + ')}"
        rows.append(make_row(line, dataset, n, label=label, **settings[line.variant]))
    return rows


def shares_of_probabilities(dataset: str, n: int | None) -> list[Row]:
    """Table 2."""
    rows = []
    for line in printed("ugmcl", "2", dataset):
        beta = line.variant.removeprefix("beta=")
        point = Point("β", float(beta), PAPERS["ugmcl"])
        rows.append(
            make_row(
                line,
                dataset,
                n,
                label=f"β = {beta}",
                flags=f"--beta {beta}",
                variant=f"beta{beta}",
                point=point,
            )
        )
    return rows


def methods(table: str, dataset: str, n: int | None) -> list[Row]:
    """Rows of a method each, all with the paper's crops."""
    lines = printed("ugmcl", table, dataset)
    return [make_row(line, dataset, n, **crops(line.method, dataset)) for line in lines]


def left_atria(dataset: str, n: int | None) -> list[Row]:
    """Table 3."""
    return methods("3", dataset, n)


def tumours(dataset: str, n: int | None) -> list[Row]:
    """Table 4."""
    return methods("4", dataset, n)


def thresholds(dataset: str, n: int | None) -> list[Row]:
    """Fig. 3."""
    rows = []
    starts = {"1": "1", "0.5": "1/2 to 1", "0.75": "3/4 to 1"}
    for start, words in starts.items():
        label = f"{words} U_max"
        point = Point("threshold / U_max", words, PAPERS["ugmcl"])
        flags = f"--threshold_start {start}"
        rows.append(Row(label, "ugmcl", flags, f"threshold{start}", point=point))
    return rows


def shares_of_labels(dataset: str, n: int | None) -> list[Row]:
    """Fig. 4. The gain of UG-MCL is over the supervised row of the same share."""
    gains = {(line.dataset, line.labelnum): line for line in published_rows("ugmcl", "text 4.4")}
    rows = []
    for method in ("supervised", "UA-MT", "DTC", "UG-MCL"):
        for percent in PERCENTS:
            labelnum = share(dataset, percent / 100)
            gain = gains.get((dataset, labelnum))
            own = method == "UG-MCL"
            rows.append(
                Row(
                    f"{method}, {percent} %",
                    script_name(method),
                    labelnum=labelnum,
                    published=(gain,) if own and gain else (),
                    point=Point("labelled cases (%)", percent, method),
                    gain_over=f"supervised, {percent} %" if own else "",
                    **crops(method, dataset),
                )
            )
    return rows


TABLES = {
    "ugmcl-table1": Table(
        "UG-MCL, Table 1: terms of the loss",
        terms,
        {"LA": 16},
        notes=(
            "(1) is train_supervised.py, which halves L_seg. (1) and (2) see labelled crops only. "
            "How many a step is not said; they see as many here as the labelled and unlabelled "
            "crops of UG-MCL together, which is 4 on LA: the only batch size that the paper states "
            "(section 4.2).",
            "(3) has no distance head, so β is 1.",
        ),
    ),
    "ugmcl-table2": Table(
        "UG-MCL, Table 2: β, the share of the probabilities in L_itc",
        shares_of_probabilities,
        {"LA": 16},
    ),
    "ugmcl-table3": Table("UG-MCL, Table 3: methods on LA", left_atria, {"LA": None}),
    "ugmcl-table4": Table(
        "UG-MCL, Table 4: methods on BraTS2019",
        tumours,
        {"BraTS2019": None},
        notes=(
            "All rows take crops of 112×112×80 and train 6000 steps: section 4.2 names no others "
            "for BraTS2019.",
        ),
    ),
    "ugmcl-fig3": Table(
        "UG-MCL, Fig. 3: threshold of the certain voxels",
        thresholds,
        {"LA": 16},
        notes=("The paper draws its numbers and prints none.",),
    ),
    "ugmcl-fig4": Table(
        "UG-MCL, Fig. 4: 5 to 50 % of the labels",
        shares_of_labels,
        {"LA": None},
        notes=(
            "The paper draws its numbers, and prints the gain in Dice over a supervised baseline "
            "that it does not print (section 4.4).",
        ),
    ),
}
