"""Every table's commands against the scripts' parsers, how results fill a table, the figure of a
sweep, what `--run` runs; and docs/methods.md and rivals.md.
"""

import contextlib
import csv
import io
import json
import re
import signal
import subprocess
import threading
import time
from fractions import Fraction
from functools import cache
from pathlib import Path

import ablate
import pytest
from conftest import ROOT
from result_folders import write_cases, write_summary

from dataloaders import DATASETS
from utils.errors import UserError
from utils.metrics import METRICS
from utils.reporting import cells, experiments, filled_tables, scripts, sweep_plots
from utils.reporting.paper_tables import TABLES
from utils.reporting.published import share

CODE = ROOT / "code"
PARTS = [(name, dataset) for name, table in TABLES.items() for dataset in table.parts]
ABLATIONS = ("comparison", "dtml-table1", "ugmcl-table1", "cml-fig5", "coranet-table3")
OTHER = [(name, "phantom") for name in ABLATIONS]
OTHER += [(name, "phantom2d") for name in ABLATIONS]
OTHER += [("coranet-table8", "LA"), ("ugmcl-table1", "BraTS2019"), ("dmd-table1", "ACDC")]


@cache
def options_in_help(name):
    """All options that the help of a script names."""
    text = io.StringIO()
    with contextlib.redirect_stdout(text), pytest.raises(SystemExit):
        scripts.load_script(CODE / name).parse(["--help"])
    return set(re.findall(r"--\w+", text.getvalue()))


def plan(name, dataset=None, labelnum=None, seeds=(1337,), runs="runs", **given):
    """The rows of a table with their jobs, as `ablate.py` makes them of its command line."""
    words = [name, "--runs", str(runs), "--seeds", *map(str, seeds)]
    words += ["--dataset", dataset] if dataset else []
    words += ["--labelnum", str(labelnum)] if labelnum else []
    for option, value in given.items():
        words += [f"--{option}", str(value)]
    return ablate.plan(TABLES[name], ablate.parse(words))


def call(*arguments):
    """`ablate.py` with a command line, in this process."""
    ablate.main(list(map(str, arguments)))


def by_label(rows):
    return {row.label: jobs[0] for row, jobs in rows if jobs}


def write_result(job, dice=0.9, nms=None, step=3, folder=None, **trained):
    """What a test script leaves of a run; `folder` is that of the test, if not the job's own."""
    values = dict.fromkeys(METRICS, dice) | {"jaccard": 0.8, "hd95": 7.0, "asd": None}
    write_summary(
        job.folder,
        folder or job.summary.parent.name,
        trained={"precision_asked": job.options["precision"], **job.options, **trained},
        test={"nms": job.nms if nms is None else nms},
        step=step,
        last_step=3,
        checkpoint=f"{(folder or 'last').split('_nms')[0]}.pth",
        selection="last iteration",
        cases=1,
        units=dict.fromkeys(METRICS, "voxels"),
        mean={metric: {"mean": value} for metric, value in values.items()},
        empty_predictions=1,
        empty="scores 0",
    )


# ----------------------------------------------------------------------------------------- commands


@pytest.mark.parametrize(("name", "dataset"), PARTS + OTHER)
def test_the_scripts_take_every_command(name, dataset):
    rows = plan(name, dataset, runs="there", gpu=1, root="elsewhere", extra="--base_lr 0.5")
    commands = [words for _, _, words in experiments.commands(rows)]
    assert commands
    for script, *arguments in commands:
        args = scripts.load_script(Path(script)).parse(arguments)
        assert (args.root, args.gpu) == ("elsewhere", 1)
        assert getattr(args, "base_lr", 0.5) == 0.5
    for row, jobs in rows:
        for job in jobs:
            assert job.options["dataset"] == dataset
            assert job.options["labelnum"] == row.labelnum or row.labelnum is None
            assert job.options["base_lr"] == 0.5
            assert job.default or row.variant


def test_a_name_is_a_training():
    """No two trainings of all tables share a name, and no training has two: nothing is trained
    twice.
    """
    by_name, by_options = {}, {}
    for name, dataset in PARTS:
        for row, jobs in plan(name, dataset):
            for job in jobs:
                key = row.method + json.dumps(job.options, sort_keys=True)
                assert by_name.setdefault(job.folder, key) == key
                assert by_options.setdefault(key, job.folder) == job.folder
    assert len(by_name) > 100


def test_the_tables_of_the_papers_are_there():
    numbers = {"dmd": 3, "dtml": 3, "ugmcl": 4, "cml": 4, "coranet": 9}
    for paper, last in numbers.items():
        first = 2 if paper == "coranet" else 1
        assert all(f"{paper}-table{number}" in TABLES for number in range(first, last + 1))
    figures = {"dmd-fig3b", "dmd-fig4", "ugmcl-fig3", "ugmcl-fig4", "cml-fig5", "cml-fig6"}
    assert figures | {"coranet-fig4"} == {name for name in TABLES if "-fig" in name}


def test_dmd_varies_the_weight_in_fig_3b_and_the_temperature_in_fig_4():
    rows = [jobs[0].options for _, jobs in plan("dmd-fig3b")]
    assert {(o["distill"], o["temperature"], o["labelnum"]) for o in rows} == {("dice", 2.0, 8)}
    assert len({o["lambda_distill"] for o in rows}) == len(rows)
    rows = [jobs[0].options for _, jobs in plan("dmd-fig4")]
    assert {(o["distill"], o["lambda_distill"]) for o in rows} == {("dice", 4.0), ("kl", 1.0)}
    temperatures = [o["temperature"] for o in rows if o["distill"] == "kl"]
    assert temperatures == [o["temperature"] for o in rows if o["distill"] == "dice"]
    assert by_label(plan("dmd-fig4"))["KL, λ = 1, T = 1 (DML)"].folder.parts[-2] == "dmd_8_dml"
    assert by_label(plan("dmd-table3"))["DML"].folder.parts[-2] == "dmd_8_dml"


def test_dmd_has_either_schedule_on_acdc():
    jobs = by_label(plan("dmd-table2"))
    for method in ("DMD", "U-Net"):
        short = jobs[f"{method}, 6000 steps"].options
        long = jobs[f"{method}, 30 000 steps"].options
        assert (short["max_iterations"], short["lr_step"]) == (6000, 2500)
        assert (long["max_iterations"], long["lr_step"]) == (30000, 0)


def test_dtml_learns_the_squared_distance_and_sees_four_labelled_crops():
    kinds = [jobs[0].options["dis_loss"] for _, jobs in plan("dtml-table1")]
    assert kinds == ["l2", "mask", "both"]
    for _, jobs in plan("dtml-table2"):
        options = jobs[0].options
        assert (options["labeled_bs"], options["unlabeled"]) == (4, 0)


def test_ugmcl_has_six_experiments():
    rows = plan("ugmcl-table1")
    assert rows[0][0].method == "supervised"
    found = []
    for row, jobs in rows[1:]:
        assert row.method == "ugmcl"
        found.append(jobs[0].options)
    assert [o["terms"] for o in found] == [
        ["dis"],
        ["itc"],
        ["dis", "itc"],
        ["dis", "ctc"],
        ["dis", "itc", "ctc"],
    ]
    assert [o["beta"] for o in found] == [0.75, 1, 0.75, 0.75, 0.75]
    assert [o["unlabeled"] for o in found] == [0, 1, 1, 1, 1]
    assert found[0]["labeled_bs"] == 4


def flags_by_method(name, dataset):
    """The flags of each method's rows in a table, of those too that have no script yet."""
    return {(row.method, row.flags) for row in TABLES[name].rows(dataset, None)}


@pytest.mark.parametrize("name", ["ugmcl-table1", "ugmcl-table3", "ugmcl-table4", "ugmcl-fig4"])
def test_all_of_ugmcls_rows_have_its_crops_on_the_tumours(name):
    for row, jobs in plan(name, "BraTS2019"):
        for job in jobs:
            assert job.options["patch"] == [112, 112, 80]
            assert job.options["max_iterations"] == 6000
        if row.method != "ugmcl":
            assert row.flags.startswith("--patch 112 112 80")
    assert all("--patch" not in row.flags for row, _ in plan(name, "LA"))
    assert by_label(plan("cml-table3"))["V-Net"].options["patch"] == [96, 96, 96]


@pytest.mark.parametrize(
    ("name", "dataset"),
    [
        ("coranet-table2", "Pancreas2d"),
        ("coranet-table3", "Pancreas2d"),
        ("coranet-table7", "endocardium"),
    ],
)
def test_coranets_rivals_have_its_unet_on_slices(name, dataset):
    found = flags_by_method(name, dataset)
    for method in ("pi", "tempens", "mt", "uamt"):
        assert (method, "--net unet_ronneberger") in found
        assert (method, "") in flags_by_method(name, "LA")  # which is 3-D
    assert ("coranet", "") in found


def test_umct_is_never_run():
    rows = [row for row, _ in plan("coranet-table5") if row.label.startswith("UMCT")]
    assert [row.published[0].values["dice"] for row in rows] == [79.77, 80.35, 81.18]
    assert {(row.method, row.flags) for row in rows} == {(None, "")}


@pytest.mark.parametrize(
    ("name", "dataset", "run"),
    [
        ("coranet-table6", "Pancreas2d", "coranet_32_relabelling"),
        ("coranet-table6", "Pancreas", "coranet_12_relabelling"),
        ("coranet-fig4", "Pancreas2d", "coranet_32_relabelling_st_mask"),
    ],
)
def test_crm_finds_its_masks_when_the_other_measures_do(name, dataset, run):
    job = by_label(plan(name, dataset))["CRM (CoraNet)"]
    assert (job.options["masks"], job.folder.parts[-2]) == ("relabelling", run)
    assert by_label(plan("coranet-table8"))["α = 5"].options["masks"] == "step"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("coranet-table5", ("82 cases", "18 test", "95HD")),
        ("coranet-table6", ("Algorithm 1", "plain head", "82 cases")),
        ("coranet-table9", ("14 of the 70",)),
        ("coranet-fig4", ("Algorithm 1", "plain head")),
        ("dmd-table2", ("settings",)),
        ("dmd-table3", ("neither the loss nor the weight",)),
        *((f"cml-table{number}", ("released code",)) for number in (1, 2, 3, 4)),
        ("cml-fig5", ("released code",)),
        ("cml-fig6", ("released code",)),
    ],
)
def test_a_table_says_where_it_departs_from_the_paper(name, words, capsys, tmp_path):
    call(name, "--fill", "--runs", tmp_path)
    printed = " ".join(capsys.readouterr().out.split())
    for word in words:
        assert word in printed


def test_ugmcls_shares_of_the_labels():
    rows = plan("ugmcl-fig4")
    for method in ("supervised", "UA-MT", "DTC", "UG-MCL"):
        numbers = [row.labelnum for row, _ in rows if row.label.startswith(f"{method},")]
        assert numbers == [4, 8, 12, 16, 24, 40]


@pytest.mark.parametrize(
    ("name", "dataset"),
    [
        ("coranet-table2", "Pancreas2d"),
        ("coranet-table3", "Pancreas2d"),
        ("coranet-table5", "Pancreas"),
        ("coranet-table7", "endocardium"),
        ("coranet-table9", "ACDC"),
    ],
)
def test_coranets_supervised_rows_are_trained_as_coranet_is(name, dataset):
    rows = plan(name, dataset)
    jobs = [jobs[0] for row, jobs in rows if row.method == "supervised"]
    assert jobs
    for job in jobs:
        assert job.options["optimizer"] == "adam"
        assert job.options["base_lr"] == 1e-3
        assert job.folder.parts[-2].endswith("_adam")


def test_a_binary_coranet_a_class_has_a_script_of_its_own():
    methods = {row.label: row.method for row, _ in plan("coranet-table9")}
    assert methods["CoraNet"] == "coranet_ovr"
    assert methods["CoraNet, one network (not in the paper)"] == "coranet"
    for dataset in ("Pancreas2d", "Pancreas"):
        kinds = [row.method for row, _ in plan("coranet-table6", dataset)]
        assert kinds == ["coranet_uncertainty"] * 3 + ["coranet"]


def test_either_reading_of_the_masked_mean_teacher():
    trained = {
        label: job.options["train"] for label, job in by_label(plan("coranet-table4")).items()
    }
    assert trained["seg+mt (mask), certain voxels"] == "seg+mt_mask"
    assert trained["seg+mt (mask), uncertain voxels"] == "seg+mt_uncertain"
    assert trained["ours"] == "full"


def test_two_tests_of_one_run_train_once(capsys):
    call("dtml-table2", "--labelnum", 8, "--seeds", 1, 2)
    lines = capsys.readouterr().out.splitlines()
    assert sum("--consistency 0" in line for line in lines) == 2
    assert sum("dtml_8_apart/seed1 --network dis" in line for line in lines) == 1
    assert len(lines) == 2 * (2 + 3)


def test_every_data_set_counts_its_units():
    assert set(ablate.COUNTED) == DATASETS.keys() - {"own", "own2d"}
    assert [share("BraTS2019", part) for part in (0.05, 0.5, 1)] == [13, 125, 250]


def test_a_rival_runs_as_soon_as_its_script_is_there(tmp_path, monkeypatch, capsys):
    call("dmd-table1")
    assert "# DUWM: no script code/train_duwm.py yet" in capsys.readouterr().out
    for path in CODE.glob("*.py"):
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "train_duwm.py").symlink_to(CODE / "train_dmd.py")
    monkeypatch.setattr(scripts, "CODE", tmp_path)
    jobs = [jobs[0] for row, jobs in plan("dmd-table1") if row.label == "DUWM"]
    assert [job.folder.parts[-2] for job in jobs] == ["duwm_8", "duwm_16"]
    assert [job.options["labelnum"] for job in jobs] == [8, 16]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["dmd-fig3"], "no such table; did you mean dmd-fig3b"),
        (["nonsense"], "no such table; --list"),
        ([], "name a table"),
        (["ugmcl-fig4", "--labelnum", 8], "leave it out"),
        (
            ["dmd-fig3b", "--extra", "--base_lr 1 --seed 3"],
            "--extra --seed: it is set for every row",
        ),
        (["dmd-table1", "--fill", "--figure"], "dmd-table1 is no sweep; these are: dmd-fig3b"),
        (["dmd-fig4", "--figure"], "add --fill"),
        (["dmd-fig4", "--fill", "--figure", "a.bmp"], "must end in .png, .pdf, .svg"),
        (["dmd-fig4", "--fill", "--figure", "nowhere/a.png"], "nowhere: no such folder"),
    ],
)
def test_errors(arguments, message):
    with pytest.raises(UserError, match=message):
        call(*arguments)


def test_an_unknown_flag_stops_before_anything_runs(capsys, monkeypatch):
    monkeypatch.setattr(scripts, "call", lambda command: pytest.fail("ran"))
    with pytest.raises(SystemExit) as stop:
        call("dmd-fig3b", "--run", "--extra", "--temprature 3")
    assert stop.value.code == 2
    assert (
        "train_dmd.py: unrecognized arguments: --temprature 3; did you mean --temperature?"
        in capsys.readouterr().err
    )


def test_the_list_names_all_parts(capsys):
    call("--list")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(TABLES)
    (line,) = [line for line in lines if line.startswith("cml-table4 ")]
    assert line.endswith("(LA, 8 labels; ACDC, 7 labels)")
    assert sum(line.endswith("sweep)") for line in lines) == 10


# ------------------------------------------------------------------------------------------ filling


def test_fill(tmp_path):
    rows = plan("dtml-table1", runs=tmp_path, seeds=[1, 2, 3])
    (_, l2), (_, mask), (_, both) = rows
    for seed, dice in enumerate((0.90, 0.92)):
        write_result(mask[seed], dice)
    write_result(l2[0], lr_step=1)
    write_result(l2[1], step=2)
    l2[2].summary.parent.mkdir(parents=True)
    l2[2].summary.write_text("{")
    filled, notes = filled_tables.read_results(rows)
    header, *lines = filled_tables.fill(filled, "LA")
    assert header == [
        *("", "labels", "Dice %", "paper", "Jaccard %", "paper"),
        *("95HD", "paper", "ASD", "paper", "seeds", "run"),
    ]
    assert lines[0] == [
        *("L_seg / L_dis", "16", "-", "89.72", "-", "81.55"),
        *("-", "7.64", "-", "1.97", "0 of 3", "dtml_16_l2"),
    ]
    assert lines[1] == [
        *("L_seg / L_mask", "16", "91.00 ± 1.41", "90.12", "80.00 ± 0.00", "82.14"),
        *("7.00 ± 0.00", "7.01", "-", "1.82", "2 of 3", "dtml_16"),
    ]
    assert both[0].result() == (None, None)
    text = "\n".join(notes)
    for part in (
        "trained with lr_step 1, not 2500",
        "step 2 of 3",
        "summary.json: damaged",
        "seed1: 1 empty predictions",
    ):
        assert part in text
    table = [header, *lines]
    words = filled_tables.text_columns(table)
    markdown = cells.render(table, "markdown", words).splitlines()
    assert len({line.count("|") for line in markdown}) == 1
    aligned = cells.render(table, "text", words).splitlines()
    last = ("run", "dtml_16_l", "dtml_16", "dtml_16_b")
    assert len({line.index(word) for line, word in zip(aligned, last, strict=True)}) == 1


def test_the_printed_numbers_are_of_the_papers_setting_only():
    for name, dataset, labelnum in (("ugmcl-table1", "LA", 8), ("coranet-table8", "LA", 16)):
        assert all(not row.published for row, _ in plan(name, dataset, labelnum))
    assert all(row.published for row, _ in plan("ugmcl-table1"))


def test_the_comparison_says_whose_numbers_it_has(capsys, tmp_path):
    call("comparison", "--labelnum", 8, "--fill", "--runs", tmp_path)
    lines = capsys.readouterr().out.splitlines()
    (dmd,) = [line for line in lines if line.startswith("DMD ")]
    (cml,) = [line for line in lines if line.startswith("CML ")]
    assert ("89.70" in dmd, dmd.endswith("DMD, Table 1")) == (True, True)
    assert ("90.36" in cml, cml.endswith("CML, Table 1")) == (True, True)
    assert not any("79.99" in line or "82.74" in line for line in lines)


def test_the_component_filter_is_that_of_the_paper_or_of_its_code(tmp_path):
    """DMD's code keeps all components. On LA that takes `--nms 0`, on ACDC the tests keep all."""
    job = by_label(plan("dmd-table3", runs=tmp_path))["DMD"]
    assert job.test[-2:] == ["--nms", "0"]
    assert job.summary.parent.name == "last_nms0"
    write_result(job, nms=1, folder="last")
    assert job.result() == (None, None)
    write_result(job, nms=1)
    assert job.result() == (None, None)
    write_result(job, nms=0)
    assert job.result()[0]["test"]["nms"] == 0
    job = by_label(plan("coranet-table8", "LA", 8))["α = 5"]
    assert job.summary.parent.name == "last_nms0"  # CoraNet's paper, IV-D: no post-processing
    job = plan("comparison", "ACDC", runs=tmp_path)[1][1][0]
    assert "--nms" not in job.test
    assert job.summary.parent.name == "last"


def test_a_row_may_be_tested_otherwise_than_its_method():
    rows = plan("dtml-table2")
    apart = [job for _, jobs in rows for job in jobs if "--network" in job.test]
    assert apart
    assert all(job.summary.parent.name == "last_dis" for job in apart)
    cml = plan("cml-table4")[-1][1][0]
    assert "--nms" not in cml.test  # the largest component is kept, as LA's tests do


@pytest.mark.parametrize("dataset", ["LA", "ACDC"])
def test_cps_is_trained_as_what_it_is_compared_with(dataset):
    jobs = by_label(plan("dmd-table3", dataset))
    cps = jobs["CPS"].options
    dmd = jobs["DMD"].options
    same = (
        "labeled_bs",
        "unlabeled_bs",
        "patch",
        "max_iterations",
        "lr_step",
        "base_lr",
        "net",
        "augment",
    )
    assert {key: cps[key] for key in same} == {key: dmd[key] for key in same}
    assert (cps["consistency"], cps["consistency_on"]) == (1.5, "all")


def test_a_method_that_is_not_here_has_its_published_numbers(capsys, tmp_path):
    call("dmd-table1", "--fill", "--runs", tmp_path, "--extra", "--downsample 2")
    out = capsys.readouterr().out
    assert re.search(r"DUWM +8 +- +85.91 +- +75.75 .* no script code/train_duwm.py yet\n", out)
    assert "Trained with --downsample 2" in out


def test_a_gain_is_over_the_row_of_the_same_seed(tmp_path):
    rows = plan("cml-fig6", "ACDC", runs=tmp_path, seeds=[1, 2, 3])
    (_, _), (_, cfl), (_, cml) = rows
    for job, dice in ((cfl[0], 0.80), (cfl[1], 0.82), (cml[0], 0.83), (cml[2], 0.9)):
        write_result(job, dice)
    filled, _ = filled_tables.read_results(rows)
    gain = filled_tables.Column("gain")
    assert filled[2].values(gain) == [pytest.approx(0.03)]
    header, *lines = filled_tables.fill(filled, "ACDC")
    place = header.index("gain in Dice")
    assert lines[2][place : place + 2] == ["3.00", "1.3"]


# ------------------------------------------------------------------------------------------- sweeps


def points_of(path):
    """The points of a sweep's CSV by line, value and metric."""
    rows = csv.DictReader(io.StringIO(path.read_text()))
    return {(row["line"], row["value"], row["metric"]): row for row in rows}


def test_a_sweep_is_drawn_from_its_results(tmp_path, capsys):
    rows = plan("ugmcl-table2", runs=tmp_path, seeds=[1, 2])
    for _, jobs in rows[:2]:
        write_result(jobs[0], 0.8)
        write_result(jobs[1], 0.9)
    figure = tmp_path / "beta.svg"
    arguments = ("--runs", tmp_path, "--seeds", 1, 2, "--fill", "--figure", figure)
    call("ugmcl-table2", *arguments)
    assert capsys.readouterr().out.endswith(f"{figure}\n{tmp_path / 'beta.csv'}\n")
    found = points_of(tmp_path / "beta.csv")
    row = found["UG-MCL", "0.25", "dice"]
    assert (row["axis"], row["unit"], row["seeds"]) == ("β", "%", "2")
    assert float(row["mean"]) == pytest.approx(85)
    assert float(row["sd"]) == pytest.approx(50**0.5)
    assert (row["printed"], row["printed_in"]) == ("89.86", "UG-MCL, Table 2")
    row = found["UG-MCL", "1.0", "dice"]  # printed, and no run of it
    assert (row["seeds"], row["mean"], row["printed"]) == ("0", "", "89.99")
    assert "as printed in UG-MCL, Table 2" in figure.read_text()


def test_a_line_a_loss_and_a_panel_a_metric(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(sweep_plots, "save", lambda figure, path: drawn.append(figure))
    rows = plan("dmd-fig4", runs=tmp_path)
    for number, (_, jobs) in enumerate(rows):
        write_result(jobs[0], 0.8 + 0.01 * number)
    filled, _ = filled_tables.read_results(rows)
    points = sweep_plots.sweep_points(TABLES["dmd-fig4"], filled, "LA")
    sweep_plots.sweep_figure("figure.png", points)
    panels = drawn[0].axes
    assert [ax.get_title() for ax in panels[:2]] == ["Dice (%)", "Jaccard (%)"]
    assert len(panels) == 3  # no ASD was measured
    for ax in panels:
        assert len(ax.containers) == 2
        ticks = [text.get_text() for text in ax.get_xticklabels()]
        assert ticks == ["1", "1.5", "2", "3", "4", "5"]
    means = panels[0].containers[1].lines[0].get_ydata()
    assert list(means) == pytest.approx([86, 87, 88, 89, 90, 91])
    (legend,) = drawn[0].legends
    assert [text.get_text() for text in legend.get_texts()] == ["Dice, λ = 4", "KL, λ = 1"]
    assert legend.get_title().get_text() == "filled: one seed"


def test_a_figure_over_steps_has_the_tests_of_the_kept_steps(tmp_path):
    rows = plan("coranet-fig4", runs=tmp_path)
    job = by_label(rows)["CRM (CoraNet)"]
    row = {"case": "A", "class": 1, "class_name": "pancreas", "seconds": 1}
    row |= dict.fromkeys((*METRICS, "prediction_voxels", "reference_voxels"), 1)
    for folder, step, dice in (("last", 3, 0.9), ("step_1", 1, 0.6), ("step_2", 2, 0.7)):
        write_result(job, dice, step=step, folder=folder, method="coranet")
        write_cases(job.folder / "test" / folder, [row])
    filled, _ = filled_tables.read_results(rows)
    points = sweep_plots.sweep_points(TABLES["coranet-fig4"], filled, "Pancreas2d")
    found = {(p.place.value, p.column.metric): p.values for p in points}
    assert found[1, "precision"] == (pytest.approx(60),)
    assert found[3, "recall"] == (pytest.approx(90),)
    assert {metric for _, metric in found} == {"precision", "recall", "jaccard"}


def test_a_sweep_without_results_is_refused(tmp_path, capsys):
    with pytest.raises(UserError, match=r"no results to draw.*--run"):
        call("dmd-fig4", "--runs", tmp_path, "--fill", "--figure", tmp_path / "a.png")
    assert not list(tmp_path.iterdir())
    assert "Dice %" in capsys.readouterr().out  # the table is printed before


# ------------------------------------------------------------------------------------------ running


def test_run_skips_goes_on_and_stops(capsys, monkeypatch, tmp_path):
    rows, ran, failing = plan("dtml-table1", runs=tmp_path), [], []
    jobs = {str(job.folder): job for _, (job,) in rows}
    write_result(rows[0][1][0])

    def fake(command):
        ran.append(command)
        if "--run" in command:
            write_result(jobs[command[command.index("--run") + 1]])
        return 5 if "both" in command and failing else 0

    monkeypatch.setattr(scripts, "call", fake)
    failing.append(1)
    with pytest.raises(
        SystemExit,
        match=r"the rest is not run, exit status 5 from: python .*train_dtml.py .*dis_loss both",
    ):
        call("dtml-table1", "--run", "--runs", tmp_path)
    assert len(ran) == 3  # train and test L_mask, train both
    assert "--resume" in ran[0]
    failing.clear()
    ran.clear()
    call("dtml-table1", "--run", "--runs", tmp_path)
    assert len(ran) == 2
    assert capsys.readouterr().out.count(" 90.00 ") == 3
    ran.clear()
    call("dtml-table1", "--run", "--runs", tmp_path)
    assert not ran


@pytest.mark.parametrize("early", [False, True])
def test_call_passes_status_and_each_signal_once(tmp_path, monkeypatch, early):
    """Also a signal that comes when the script runs and `Popen` has not returned."""
    script = tmp_path / "script.py"
    script.write_text(
        "import pathlib, signal, sys, time\n"
        "seen = []\n"
        "signal.signal(signal.SIGTERM, lambda *_: seen.append(1))\n"
        f"pathlib.Path({str(tmp_path / 'ready')!r}).touch()\n"
        "for _ in range(500): seen or time.sleep(0.01)\n"
        "time.sleep(0.2)\n"
        "sys.exit(40 + len(seen))\n"
    )

    def stop():
        while not (tmp_path / "ready").exists():
            time.sleep(0.01)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGTERM)

    class Popen(subprocess.Popen):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            stop()

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=stop)
    if early:
        monkeypatch.setattr(subprocess, "Popen", Popen)
    else:
        thread.start()
    assert scripts.call([str(script)]) == 41
    if not early:
        thread.join()
    assert signal.getsignal(signal.SIGTERM) == before


# ------------------------------------------------------------------------------------------ methods

PAGES = [(ROOT / "docs" / name).read_text() for name in ("methods.md", "rivals.md")]
SECTIONS = [s for page in PAGES for s in re.split(r"^## ", page, flags=re.MULTILINE)[1:]]
METHODS = [s for s in SECTIONS if re.search(r"\(\.\./code/train_", s)]


def script_of(section):
    return re.search(r"code/(train_\w+\.py)", section)[1]


@pytest.mark.parametrize("section", SECTIONS, ids=lambda s: s.split("\n")[0])
def test_methods_names_options_and_functions_that_exist(section):
    """In a span that names a script its own; else the section's, or of all training scripts where
    it has none.
    """
    if section in METHODS:
        names = [script_of(section)]
    else:
        names = sorted(path.name for path in CODE.glob("train_*.py"))
    functions = vars(scripts.load_script(CODE / names[0]))
    text = re.sub(r"```.*?```", "", section, flags=re.DOTALL)
    for span in re.findall(r"`([^`\n]+)`", text):
        named = re.findall(r"code/(\w+\.py)", span) or names
        for option in re.findall(r"--\w+", span):
            assert any(option in options_in_help(name) for name in named), f"{named}: no {option}"
        for function in re.findall(r"^(\w+)\(\)$", span):
            assert callable(functions.get(function)), f"{names[0]}: no {function}"


def as_in_the_docs(value):
    """The ways in which the docs may write a default."""
    if isinstance(value, list):
        return [" ".join(map(str, value)), " to ".join(map(str, value))]
    if isinstance(value, float):
        exponent = re.sub(r"\.?0*e-0*", "e-", f"{value:e}")
        return [f"{value:g}", exponent, str(Fraction(value).limit_denominator(30))]
    return [str(value)]


@pytest.mark.parametrize("section", METHODS, ids=lambda s: s.split("\n")[0])
def test_methods_shows_the_defaults_on_the_left_atria(section):
    defaults = scripts.options_of(CODE / script_of(section), "--dataset", "LA")
    for line in re.findall(r"^\|(.*)\|$", section, re.MULTILINE):
        columns = [cell.strip() for cell in line.split("|")]
        if len(columns) == 4 and "code/" not in columns[2]:
            for option in re.findall(r"--(\w+)", columns[2]):
                if defaults[option] is None:  # it has no value on volumes
                    assert re.search("None|slices", columns[3])
                    continue
                shown = "|".join(map(re.escape, as_in_the_docs(defaults[option])))
                pattern = rf"(?<![\w.])({shown})(?![\w.]\w)"
                assert re.search(pattern, columns[3]), f"--{option}: {defaults[option]}"


def test_every_method_has_a_section():
    named = {script_of(section) for section in METHODS}
    assert named == {path.name for path in CODE.glob("train_*.py")}


def test_methods_links_and_tables_exist():
    text = (ROOT / "docs" / "methods.md").read_text()
    headings = {
        re.sub(r"[^\w -]", "", h).strip().lower().replace(" ", "-")
        for h in re.findall(r"^## (.*)", text, re.M)
    }
    for target in re.findall(r"\]\(([^)]+)\)", text):
        page, _, _ = target.partition("#")
        assert target[1:] in headings if not page else (ROOT / "docs" / page).exists(), target
    for paper, first, last in re.findall(r"`(\w+)-table(\d)` to\s`\1-table(\d)`", text):
        numbers = range(int(first), int(last) + 1)
        text += " ".join(f"`{paper}-table{number}`" for number in numbers)
    for name in re.findall(r"`((?:dmd|dtml|ugmcl|cml|coranet)-\w+)`", text):
        assert name in TABLES
    missing = [name for name in TABLES if f"`{name}`" not in text]
    assert not missing
