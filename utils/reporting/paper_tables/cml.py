"""The tables and figures of CML's paper (Wu et al., ACM MM 2024)."""

from utils.reporting.experiments import Point, Row, Table
from utils.reporting.paper_tables.rows import make_row, plain_rows, printed
from utils.reporting.published import PAPERS, published_rows

TENTH = {"LA": 8, "ACDC": 7, "BraTS2019": 25}  # a tenth of the labels (sections 4.4 to 4.6)
WEIGHTS = (0.1, 0.2, 0.5, 1)
SIDES = {"1/3": 1 / 3, "1/2": 1 / 2, "2/3": 2 / 3, "5/6": 5 / 6}


def left_atria(dataset: str, n: int | None) -> list[Row]:
    """Table 1."""
    return plain_rows("cml", "1", dataset, n)


def hearts(dataset: str, n: int | None) -> list[Row]:
    """Table 2."""
    return plain_rows("cml", "2", dataset, n)


def tumours(dataset: str, n: int | None) -> list[Row]:
    """Table 3."""
    return plain_rows("cml", "3", dataset, n)


def terms(dataset: str, n: int | None) -> list[Row]:
    """Table 4."""
    settings = {
        "L_sup^l": {"method": "supervised"},
        "L_sup^l+L_dis": {"flags": "--lambda_u 0", "variant": "u0"},
        "L_sup^l+L_sup^u": {"flags": "--lambda_dis 0", "variant": "dis0"},
        "L_sup^l+L_dis+L_sup^u": {},
    }
    rows = []
    for line in printed("cml", "4", dataset):
        label = line.variant.replace("+", " + ")
        rows.append(make_row(line, dataset, n, label=label, **settings[line.variant]))
    return rows


def parameters(dataset: str, n: int | None) -> list[Row]:
    """Fig. 5: λ₁, λ₂ and β, each with the others at their defaults."""
    rows = []
    for symbol, name in (("λ₁", "u"), ("λ₂", "dis")):
        for weight in WEIGHTS:
            point = Point(symbol, weight, PAPERS["cml"])
            flags = f"--lambda_{name} {weight}"
            rows.append(Row(f"{symbol} = {weight}", "cml", flags, f"{name}{weight}", point=point))
    for name, side in SIDES.items():
        point = Point("β", name, PAPERS["cml"])
        variant = f"beta{name.replace('/', '-')}"
        rows.append(Row(f"β = {name}", "cml", f"--beta {side}", variant, point=point))
    return rows


def frameworks(dataset: str, n: int | None) -> list[Row]:
    """Fig. 6. The gain of CML is over CFL."""
    gains = {(line.dataset, line.labelnum): line for line in published_rows("cml", "fig 6 text")}
    gain = gains.get((dataset, n))
    rows = []
    for name in ("CPS", "CFL", "CML"):
        own = name == "CML"
        rows.append(
            Row(
                name,
                "cml",
                f"--framework {name.lower()}",
                name.lower(),
                published=(gain,) if own and gain else (),
                point=Point("framework", name, "a tenth of the labels"),
                gain_over="CFL" if own else "",
            )
        )
    return rows


RELEASED = (
    "The paper does not say these; they are the released code's: the decay of the rate and the "
    "component filter of the test on LA, linear upsampling in the second network, the largest "
    "component as NMS of the pseudo-labels, and the optimizer's state, which goes on from "
    "pre-training into self-training."
)
TABLES = {
    "cml-table1": Table("CML, Table 1: methods on LA", left_atria, {"LA": None}, notes=(RELEASED,)),
    "cml-table2": Table("CML, Table 2: methods on ACDC", hearts, {"ACDC": None}, notes=(RELEASED,)),
    "cml-table3": Table(
        "CML, Table 3: methods on BraTS2019",
        tumours,
        {"BraTS2019": None},
        notes=(
            RELEASED,
            "The paper does not say how long the other methods train. Those that SSL4MIS has train "
            "30 000 steps here, V-Net and MCF 6000.",
        ),
    ),
    "cml-table4": Table(
        "CML, Table 4: terms of the loss",
        terms,
        {"LA": 8, "ACDC": 7},
        notes=("L_sup^l is train_supervised.py: one network.", RELEASED),
    ),
    "cml-fig5": Table(
        "CML, Fig. 5: λ₁, λ₂ and the extent β of CutMix's box",
        parameters,
        TENTH,
        notes=("The paper draws its numbers and prints none.", RELEASED),
    ),
    "cml-fig6": Table(
        "CML, Fig. 6: CPS, CFL and CML",
        frameworks,
        TENTH,
        notes=(
            "The paper draws its numbers, and prints the gain in Dice of CML over CFL on LA and "
            "ACDC (section 4.6).",
            RELEASED,
        ),
    ),
}
