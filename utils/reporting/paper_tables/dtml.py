"""The tables of DTML's paper (Zhang and Zhang, PRCV 2021)."""

from utils.reporting.experiments import Row, Table
from utils.reporting.paper_tables.rows import crops_of_a_step, make_row, plain_rows, printed


def losses(dataset: str, n: int | None) -> list[Row]:
    """Table 1."""
    settings = {
        "L_seg/L_dis": {"flags": "--dis_loss l2", "variant": "l2"},
        "L_seg/L_mask": {"flags": "--dis_loss mask"},
        "L_seg/L_dis+L_mask": {"flags": "--dis_loss both", "variant": "both"},
    }
    rows = []
    for line in printed("dtml", "1", dataset):
        label = line.variant.replace("/", " / ").replace("+", " + ")
        rows.append(make_row(line, dataset, n, label=label, **settings[line.variant]))
    return rows


def parts(dataset: str, n: int | None) -> list[Row]:
    """Table 2. The first two rows test one run: without consistency M_s and M_d train apart."""
    labelled = f"--unlabeled 0 --labeled_bs {crops_of_a_step(dataset)}"
    apart = f"--consistency 0 {labelled}"
    settings = {
        "M_s only": {"flags": apart, "variant": "apart"},
        "M_d only": {"flags": apart, "variant": "apart", "test": "--network dis"},
        "M_s and M_d without unlabelled scans": {"flags": labelled, "variant": "labelled"},
    }
    lines = printed("dtml", "2", dataset)
    return [
        make_row(line, dataset, n, label=line.variant, **settings[line.variant]) for line in lines
    ]


def left_atria(dataset: str, n: int | None) -> list[Row]:
    """Table 3."""
    return plain_rows("dtml", "3", dataset, n)


TABLES = {
    "dtml-table1": Table("DTML, Table 1: supervised losses of M_s / M_d", losses, {"LA": 16}),
    "dtml-table2": Table(
        "DTML, Table 2: one network only, and both without unlabelled data",
        parts,
        {"LA": 16},
        notes=(
            "How many labelled crops a step these rows see is not said. They see as many here as "
            "the labelled and unlabelled crops of DTML together, which is 4 on LA: the only batch "
            "size that the paper states (section 4.1).",
        ),
    ),
    "dtml-table3": Table("DTML, Table 3: methods on LA", left_atria, {"LA": None}),
}
