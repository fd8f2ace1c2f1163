"""How a printed row becomes a row that can be trained and tested."""

import re

from dataloaders import dataset_class
from utils.reporting.experiments import Point, Row
from utils.reporting.published import Published, published_rows, share

# scripts that are not called as the papers call the method
SCRIPTS = {
    "V-Net": "supervised",
    "U-Net": "supervised",
    "Pi-model": "pi",
    "TE": "tempens",
    "EM": "entropy",
    "ADVNET": "entropy",
    "PL": "pseudo",
    "DCT-Seg": "dct",
    "Mut. Info.": "mutualinfo",
}


def script_name(method: str) -> str:
    """The name of a method's script, as in `train_<name>.py`: `UA-MT` is `uamt`."""
    return SCRIPTS.get(method) or re.sub(r"[^a-z0-9]", "", method.lower())


def printed(paper: str, table: str, dataset: str) -> list[Published]:
    """The rows that a paper prints in a table on a data set, in its order.

    On a data set that the table does not speak of they are those of its first data set, so that the
    same rows can be run there.
    """
    lines = published_rows(paper, table)
    datasets = [line.dataset for line in lines]
    wanted = dataset if dataset in datasets else datasets[0]
    return [line for line in lines if line.dataset == wanted]


def labels_on(line: Published, dataset: str) -> int:
    """The number of labels of a printed row: on another data set the same share of its cases."""
    total = dataset_class(line.dataset).training_units
    return max(1, share(dataset, line.labelnum / total))


def make_row(
    line: Published,
    dataset: str,
    n: int | None,
    *,
    label: str = "",
    method: str | None = None,
    flags: str = "",
    variant: str = "",
    test: str = "",
    point: Point | None = None,
    gain_over: str = "",
) -> Row:
    """A printed row on a data set. Its published numbers are those of the paper's own data set and
    number of labels only.

    Args:
        n: number of labels; None takes the row's own.
        label: as in the paper; by default the method's name.
        method: by default the script of the method's name.
        flags, variant, test, point, gain_over: as in `Row`.
    """
    labelnum = n or labels_on(line, dataset)
    same = (line.dataset, line.labelnum) == (dataset, labelnum)
    return Row(
        label=label or line.method,
        method=method or script_name(line.method),
        flags=flags,
        variant=variant,
        test=test,
        labelnum=labelnum,
        published=(line,) if same else (),
        point=point,
        gain_over=gain_over,
    )


def plain_rows(paper: str, table: str, dataset: str, n: int | None) -> list[Row]:
    """The rows of a table in which every method is trained with the defaults of its script."""
    return [make_row(line, dataset, n) for line in printed(paper, table, dataset)]


def crops_of_a_step(dataset: str) -> int:
    """All crops of a step: a row without unlabelled data sees so many labelled ones."""
    data = dataset_class(dataset)
    return data.labeled_bs + data.unlabeled_bs
