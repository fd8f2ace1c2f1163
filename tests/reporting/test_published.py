"""The printed numbers: their file, which table each line of it stands in, and those that a run is
compared with.
"""

import re

import pytest
from result_folders import write_run

from utils.errors import UserError
from utils.reporting import published
from utils.reporting.comparability import printed_numbers
from utils.reporting.entries import open_entries
from utils.reporting.filled_tables import Filled, columns, fill, remarks
from utils.reporting.paper_tables import PAPER_TABLES
from utils.reporting.published import GAIN, all_published, published_rows, read_published

NUMERALS = {"I": 1, "II": 2, "III": 3, "IV": 4, "V": 5, "VI": 6, "VII": 7, "VIII": 8, "IX": 9}
IN_TEXT = {"fig 6 text": "fig6", "text 4.4": "fig4", "text III.D.2": "table2"}
PARTS = [(name, dataset) for name, table in PAPER_TABLES.items() for dataset in table.parts]


def table_of(line):
    """The name of the table that a line of the file belongs to."""
    number = NUMERALS.get(line.table, line.table)
    return f"{line.paper}-{IN_TEXT.get(line.table, f'table{number}')}"


def filled(name, dataset):
    """The rows of a part of a table without any run."""
    return [Filled(row, [], {}) for row in PAPER_TABLES[name].part(dataset)]


# ----------------------------------------------------------------------------------------- the file


def test_every_printed_row_is_there():
    lines = all_published()
    counts = {paper: sum(line.paper == paper for line in lines) for paper in published.PAPERS}
    assert counts == {"dmd": 34, "dtml": 15, "ugmcl": 42, "cml": 67, "coranet": 114}
    assert len({tuple(map(str, vars(line).values())) for line in lines}) == len(lines)


def test_labels_are_counted_as_labelnum_counts_them():
    of = {(line.dataset, line.labelled): line.labelnum for line in all_published()}
    half = of["Pancreas2d", "1:1"]
    assert of["Pancreas2d", "1:4"] < of["Pancreas2d", "1:2"] < half
    assert of["endocardium", "1:4"] == 5
    assert (of["ACDC", "20%"], of["ACDC", "all"], of["LA", "16"]) == (14, 70, 16)
    assert of["Pancreas2d", ""] is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace("79.99", "79,99"), "line 2: another number of cells"),
        (lambda text: text.replace("79.99", "seventy"), "line 2: dice 'seventy' is no number"),
        (lambda text: text.replace("hd95", "hausdorff", 1), "no column hd95"),
        (lambda text: text.replace("dmd,1,LA,8", "dmd,1,LA,eight"), "labelled 'eight'"),
        (lambda text: text.replace("dmd,1,LA", "dmd,1,Mars"), "no such data set: 'Mars'"),
        (lambda text: text.replace("dmd,1", "dms,1"), "no such paper: 'dms'"),
        (lambda text: text.rpartition(",")[0], "line 273: another number of cells"),
        (lambda text: "\0", "no column"),
    ],
)
def test_a_damaged_file_is_refused(change, message, tmp_path):
    path = tmp_path / "published.csv"
    path.write_text(change(published.FILE.read_text(encoding="utf-8")), encoding="utf-8")
    with pytest.raises(UserError, match=re.escape(message)) as error:
        read_published(path)
    assert "restore it" in str(error.value)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"none\.csv: cannot be read.*restore it"):
        read_published(tmp_path / "none.csv")


# --------------------------------------------------------------------------------------- the tables


def test_each_printed_row_stands_in_its_table_and_in_no_other():
    places = {id(line): set() for line in all_published()}
    for name, dataset in PARTS:
        for row in PAPER_TABLES[name].part(dataset):
            for line in row.published:
                assert line.dataset == dataset
                places[id(line)].add(name)
    for line in all_published():
        assert places[id(line)] == {table_of(line)}, line


@pytest.mark.parametrize(("name", "dataset"), PARTS)
def test_the_rows_stand_in_the_papers_order_with_all_their_numbers(name, dataset):
    rows = filled(name, dataset)
    shown = columns(rows, dataset)
    header, *cells = fill(rows, dataset)
    seen = []
    for one, row in zip(rows, cells, strict=True):
        assert len(row) == len(header)
        for line in one.row.published:
            seen.append(line)
            for metric, value in line.values.items():
                assert any(
                    column.metric == metric and one.printed(column)[0] == value
                    for column in shown
                    if column.class_name == line.class_name
                )
                text = f"{value:g}" if metric == GAIN else f"{value:.2f}"
                assert any(cell.split(" ±")[0] == text for cell in row), (line, row)
    order = {id(line): place for place, line in enumerate(all_published())}
    numbers = [order[id(line)] for line in seen if not line.table.startswith("text III")]
    assert numbers == sorted(numbers)
    notes = "\n".join(remarks(rows))
    for line in seen:
        assert all(remark in notes for remark in line.remarks)


def test_each_class_has_a_column_and_its_sd():
    header, *rows = fill(filled("coranet-table9", "ACDC"), "ACDC")
    assert header[2:10] == [
        "Dice % RV",
        "paper",
        "Dice % Myo",
        "paper",
        "Dice % LV",
        "paper",
        "Dice %",
        "paper",
    ]
    by_label = {row[0]: row[3:10:2] for row in rows}
    assert by_label["CoraNet"] == ["82.69 ± 0.48", "84.87 ± 0.55", "90.74 ± 0.84", "86.10 ± 0.62"]
    assert by_label["supervised"][-1] == "88.79 ± 0.13"
    assert len(rows) == 13  # twelve of the paper, and one network for all classes


def test_an_hd_that_may_be_95hd_stands_beside_both():
    header, *rows = fill(filled("coranet-table5", "Pancreas"), "Pancreas")
    (row,) = [row for row in rows if row[0] == "CoraNet, V-Net"]
    for metric in ("95HD", "HD"):
        assert row[header.index(metric) + 1] == "7.59"
    slices, *_ = fill(filled("coranet-table2", "Pancreas2d"), "Pancreas2d")
    assert "HD" in slices
    assert "95HD" not in slices  # the released code has no test of slices


def test_nobody_says_whether_the_supervised_row_is_copied():
    lines = [line for line in published_rows("coranet", "IX") if line.variant == "mean"]
    copied = [line.method for line in lines if "copied from its paper" in line.remarks]
    assert [line.method for line in lines if line.method not in copied] == ["CoraNet", "supervised"]
    assert "does not say whether" in lines[-1].note


def test_no_paper_has_anothers_number():
    """The faults that mixing papers makes."""
    of = {(line.paper, line.table, line.labelled, line.method): line for line in all_published()}
    assert of["cml", "1", "8", "V-Net"].values["dice"] == 82.74
    assert of["dmd", "1", "8", "V-Net"].values["dice"] == 79.99
    assert of["cml", "3", "25", "V-Net"].values["dice"] == 78.32
    assert of["ugmcl", "4", "25", "V-Net"].values["dice"] == 73.00
    assert of["dmd", "1", "16", "DTC"].values["jaccard"] == 80.98
    assert of["dtml", "3", "16", "DTC"].values["jaccard"] == 80.89
    # CML's section 4.4 swaps its data sets; by its Table 4 the gains are these
    dice = {
        (line.dataset, line.variant): line.values["dice"] for line in published_rows("cml", "4")
    }
    for dataset, without, more in (("LA", 5.42, 2.2), ("ACDC", 8.34, 1.67)):
        alone = dice[dataset, "L_sup^l"]
        both = dice[dataset, "L_sup^l+L_sup^u"]
        assert both - alone == pytest.approx(without)
        assert dice[dataset, "L_sup^l+L_dis+L_sup^u"] - both == pytest.approx(more)


# --------------------------------------------------------------------------------- beside a test


def known(tmp_path, method, dice=(0.7, 0.8), test=None, classes=("one",), class_name="", **trained):
    options = {"method": method, **trained}
    folder = write_run(tmp_path, method, dice, trained=options, test=test, classes=classes)
    (entry,) = open_entries([str(folder)], "last")
    return printed_numbers(entry, class_name)


def test_papers_that_print_other_numbers_are_named_apart(tmp_path):
    ours, theirs = known(tmp_path, "supervised", labelnum=8)
    assert (ours.sources, ours.values["dice"]) == (("DMD, Table 1",), 79.99)
    assert (theirs.sources, theirs.values["dice"]) == (("CML, Table 1",), 82.74)


def test_papers_that_print_the_same_numbers_share_them(tmp_path):
    (found,) = known(tmp_path, "supervised", labelnum=16)
    assert found.source == "DMD, Table 1; DTML, Table 3; UG-MCL, Table 1"
    assert found.values == {"dice": 86.03, "jaccard": 76.06, "hd95": 14.26, "asd": 3.51}


def test_a_run_has_the_number_of_the_row_that_is_nearest(tmp_path):
    (found,) = known(tmp_path, "dtml", labelnum=16, labeled_bs=2, dis_loss="l2")
    assert (found.source, found.values["dice"]) == ("DTML, Table 1", 89.72)
    assert not found.differences
    (found,) = known(tmp_path, "ugmcl", labelnum=16, labeled_bs=2, beta=0.25)
    assert (found.source, found.values["dice"]) == ("UG-MCL, Table 2", 89.86)
    dml = {"distill": "kl", "temperature": 1, "lambda_distill": 1}
    (found,) = known(tmp_path, "dmd", labelnum=8, labeled_bs=2, **dml)
    assert (found.source, found.values["dice"]) == ("DMD, Table 3", 88.19)
    assert found.differences == ("components the largest only, not all",)
    (found,) = known(tmp_path, "cml", labelnum=8, framework="cml")
    assert found.source == "CML, Table 1"  # the same script trains DMD's CPS: another method


def test_a_method_that_no_paper_printed_there_has_none(tmp_path):
    assert known(tmp_path, "dmd", labelnum=5) == []
    assert known(tmp_path, "mine", labelnum=8) == []


def test_a_class_has_its_own_numbers_with_their_sd(tmp_path):
    run = {"dataset": "ACDC", "labelnum": 14, "classes": ("RV", "Myo", "LV")}
    (found,) = known(tmp_path, "coranet_ovr", class_name="RV", **run)
    assert (found.source, found.text("dice")) == ("CoraNet, Table IX", "82.69 ± 0.48")
    (found,) = known(tmp_path, "coranet_ovr", **run)
    assert found.text("dice") == "86.10 ± 0.62"
    assert "the sd of CoraNet, Table IX is over runs" in found.reservations[-1]
    seven = {**run, "labelnum": 7}
    assert known(tmp_path, "dmd", class_name="RV", **seven) == []  # Table 2 has only the mean


def test_the_only_class_has_the_numbers_of_the_mean(tmp_path):
    (ours, _) = known(tmp_path, "supervised", class_name="one", labelnum=8)
    assert ours.values["dice"] == 79.99


def test_a_run_has_an_hd_that_may_be_95hd_beside_both(tmp_path):
    (found,) = known(tmp_path, "coranet", dataset="Pancreas", labelnum=12)
    assert (found.values["hd"], found.values["hd95"]) == (7.59, 7.59)
    assert any("95HD" in line for line in found.reservations)
    (found,) = known(tmp_path, "coranet", dataset="Pancreas2d", labelnum=32)
    assert (found.values["hd"], "hd95" in found.values) == (15.90, False)
    assert not any("95HD" in line for line in found.reservations)
