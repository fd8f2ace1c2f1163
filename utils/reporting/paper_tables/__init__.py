"""The tables and figures of the papers, as rows that can be trained and tested.

A file a paper; `TABLES` holds all of them by name. The printed numbers stand in `published.csv`.
To add a table, write its rows and add its line to the `TABLES` of its paper's file.
"""

import functools

from utils.reporting.experiments import Row, Table
from utils.reporting.paper_tables import cml, coranet, dmd, dtml, ugmcl
from utils.reporting.published import PAPERS, Published, share

PAPER_TABLES = {
    **dmd.TABLES,
    **dtml.TABLES,
    **ugmcl.TABLES,
    **cml.TABLES,
    **coranet.TABLES,
}

# label: script and flags
RIVALS = {
    "MT": ("mt", ""),
    "UA-MT": ("uamt", ""),
    "ICT": ("ict", ""),
    "TCSE": ("tcse", ""),
    "Π-model": ("pi", ""),
    "temporal ensembling": ("tempens", ""),
    "EM": ("entropy", ""),
    "ADVENT": ("entropy", "--adversarial"),
    "VAT": ("vat", ""),
    "pseudo-labels": ("pseudo", ""),
    "CPS": ("cps", ""),
    "DAN": ("dan", ""),
    "DTC": ("dtc", ""),
    "SASSNet": ("sassnet", ""),
    "MC-Net": ("mcnet", ""),
    "MC-Net+": ("mcnet", "--decoders 3"),
    "URPC": ("urpc", ""),
    "SS-Net": ("ssnet", ""),
    "MCF": ("mcf", ""),
    "BCP": ("bcp", ""),
    "UniMatch": ("unimatch", ""),
    "AD-MT": ("admt", ""),
}


def comparison(dataset: str, n: int) -> list[Row]:
    """Every method of this repository, and both supervised bounds. A method has the numbers of its
    own paper.
    """
    coranet = "coranet_ovr" if dataset == "ACDC" else "coranet"  # its paper's form
    methods = {name: method for method, name in PAPERS.items()}
    methods[PAPERS["coranet"]] = coranet
    rows = [Row("supervised", "supervised")]
    for name, method in methods.items():
        rows.append(Row(name, method, published=_own_numbers(name, method, dataset, n)))
    for label, (method, flags) in RIVALS.items():
        rows.append(Row(label, method, flags, flags.replace("--", "").replace(" ", "")))
    rows.append(Row("supervised, all labels", "supervised", labelnum=share(dataset, 1)))
    return rows


@functools.cache
def printed_rows(method: str, dataset: str, labelnum: int) -> list[Row]:
    """The rows of all papers' tables that a script can train on a data set with a number of labels,
    and that have printed numbers.
    """
    found = []
    for table in PAPER_TABLES.values():
        if dataset not in table.parts:
            continue
        for row in table.part(dataset):
            if row.published and (row.method, row.labelnum) == (method, labelnum):
                found.append(row)
    return found


def _own_numbers(name: str, method: str, dataset: str, n: int) -> tuple[Published, ...]:
    """The numbers that a method's own paper prints for its defaults, of the first table that has
    them.
    """
    for row in printed_rows(method, dataset, n):
        if PAPERS[row.published[0].paper] == name and not row.flags:
            return row.published
    return ()


TABLES = {
    "comparison": Table(
        "every method of this repository, and both supervised bounds", comparison, {"LA": 16}
    ),
    **PAPER_TABLES,
}
