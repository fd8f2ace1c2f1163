"""Every table's commands against the scripts' parsers, how results fill a table, what `--run` runs;
and docs/methods.md.
"""

import contextlib
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
from result_folders import write_summary

from dataloaders import DATASETS
from utils.errors import UserError
from utils.metrics import SHOWN
from utils.reporting import cells, experiments, scripts
from utils.reporting.paper_tables import TABLES, units

CODE = ROOT / "code"
OWN = [(name, table.dataset) for name, table in TABLES.items()]
OTHER = [(name, "phantom") for name in TABLES]
OTHER += [(name, "phantom2d") for name in TABLES if name != "coranet-3d"]
OTHER += [
    ("coranet-table6", "LA"),
    ("cml-framework", "ACDC"),
    ("ugmcl-table1", "BraTS2019"),
    ("comparison", "Pancreas"),
]


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


def write_result(job, dice=0.9, nms=1, step=3, folder=None, **trained):
    """What a test script leaves of a run; `folder` is that of the test, if not the job's own."""
    values = {"dice": dice, "jaccard": 0.8, "hd95": 7.0, "asd": None}
    write_summary(
        job.folder,
        folder or job.summary.parent.name,
        trained={"precision_asked": job.options["precision"], **job.options, **trained},
        test={"nms": nms},
        step=step,
        last_step=3,
        mean={metric: {"mean": value} for metric, value in values.items()},
        empty_predictions=1,
        empty="scores 0",
    )


# ----------------------------------------------------------------------------------------- commands


@pytest.mark.parametrize(("name", "dataset"), OWN + OTHER)
def test_the_scripts_take_every_command(name, dataset):
    rows = plan(name, dataset, runs="there", gpu=1, root="elsewhere", extra="--base_lr 0.5")
    commands = [words for _, _, words in experiments.commands(rows)]
    assert commands
    for script, *arguments in commands:
        args = scripts.load_script(Path(script)).parse(arguments)
        assert (args.root, args.gpu) == ("elsewhere", 1)
        assert getattr(args, "base_lr", 0.5) == 0.5
    for _, jobs in rows:
        for job in jobs:
            assert job.options["dataset"] == dataset
            assert job.options["base_lr"] == 0.5


@pytest.mark.parametrize("dataset", ["LA", "phantom2d"])
def test_a_name_is_a_training(dataset):
    """No two trainings of all tables share a name, and no training has two: nothing is trained
    twice.
    """
    by_name, by_options = {}, {}
    for name, table in TABLES.items():
        if dataset == "phantom2d" and name == "coranet-3d":
            continue
        for row, jobs in plan(name, dataset, labelnum=table.labelnum and 8):
            for job in jobs:
                key = row.method + json.dumps(job.options, sort_keys=True)
                assert by_name.setdefault(job.folder, key) == key
                assert by_options.setdefault(key, job.folder) == job.folder
    assert len(by_name) > 50


def test_the_defaults_share_the_plain_run_and_have_its_published_numbers():
    rows = {row.label: (row, jobs[0]) for row, jobs in plan("dmd-fig3b", labelnum=8)}
    row, job = rows["T = 2"]
    assert job.folder.parts[-2] == "dmd_8"
    assert "--name" not in job.train
    assert row.published == (89.70, 81.42, 6.88, 1.78)
    row, job = rows["T = 1.93"]
    assert job.folder.parts[-2] == "dmd_8_t1.93"
    assert row.published is None
    assert plan("dmd-fig3b", labelnum=16)[1][1][0].folder.parts[-2] == "dmd_16"
    assert all(row.published is None for row, _ in plan("dmd-table3", "phantom"))


def test_two_tests_of_one_run_train_once(capsys):
    call("dtml-table2", "--labelnum", 8, "--seeds", 1, 2)
    lines = capsys.readouterr().out.splitlines()
    assert sum("--consistency 0" in line for line in lines) == 2
    assert sum("dtml_8_alone/seed1 --network dis" in line for line in lines) == 1
    assert len(lines) == 2 * (3 + 4)


def test_every_data_set_counts_its_units():
    assert set(ablate.COUNTED) == DATASETS.keys() - {"own", "own2d"}
    assert [units("BraTS2019", share) for share in (0.05, 0.5, 1)] == [13, 125, 250]
    assert [units("Pancreas2d", 1 / (1 + ratio)) for ratio in (4, 2, 1)] == [12, 21, 31]


def test_a_binary_coranet_a_class_has_a_script_of_its_own():
    rows = {row.label: row for row, _ in plan("coranet-acdc")}
    assert rows["a binary CoraNet a class"].method == "coranet_ovr"
    assert rows["a binary CoraNet a class"].published == (86.10, None, None, None)
    assert (rows["one CoraNet"].method, rows["one CoraNet"].published) == ("coranet", None)
    kinds = [row.method for row, _ in plan("coranet-table6")]
    assert kinds == ["coranet_uncertainty"] * 3 + ["coranet"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["dmd-fig3"], "no such table; did you mean dmd-fig3b"),
        (["nonsense"], "no such table; --list"),
        ([], "name a table"),
        (["ugmcl-labels", "--labelnum", 8], "leave it out"),
        (
            ["dmd-fig3b", "--extra", "--base_lr 1 --seed 3"],
            "--extra --seed: it is set for every row",
        ),
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


# ------------------------------------------------------------------------------------------ filling


def test_fill(tmp_path):
    rows = plan("dtml-table1", runs=tmp_path, seeds=[1, 2, 3])
    (_, sdm), (_, mask), (_, both) = rows
    for seed, dice in enumerate((0.90, 0.92)):
        write_result(mask[seed], dice)
    write_result(sdm[0], lr_step=1)
    write_result(sdm[1], step=2)
    sdm[2].summary.parent.mkdir(parents=True)
    sdm[2].summary.write_text("{")
    (header, *filled), notes = experiments.fill(rows, SHOWN)
    assert [dict(zip(header, row, strict=True)) for row in filled[:2]] == [
        dict(zip(header, row, strict=True))
        for row in (
            ["L_sdm", "16", "-", "-", "-", "-", "89.72 / - / - / -", "0 of 3", "dtml_16_sdm"],
            [
                "L_mask",
                "16",
                "91.00 ± 1.41",
                "80.00 ± 0.00",
                "7.00 ± 0.00",
                "-",
                "90.12 / 82.14 / 7.01 / 1.82",
                "2 of 3",
                "dtml_16",
            ],
        )
    ]
    assert filled[2][2:6] == ["-"] * 4
    assert both[0].result() == (None, None)
    text = "\n".join(notes)
    for part in (
        "trained with lr_step 1, not 2500",
        "step 2 of 3",
        "summary.json: damaged",
        "seed1: 1 empty predictions",
    ):
        assert part in text
    markdown = cells.render([header, *filled], "markdown").splitlines()
    assert len({line.count("|") for line in markdown}) == 1
    aligned = cells.render([header, *filled], "text").splitlines()
    last = ("run", "dtml_16_s", "dtml_16", "dtml_16_b")
    assert len({line.index(word) for line, word in zip(aligned, last, strict=True)}) == 1


def test_the_component_filter_is_the_papers(tmp_path):
    """DMD's paper keeps all components. On LA that takes `--nms 0`, on ACDC the tests keep all."""
    job = plan("dmd-table3", runs=tmp_path)[-1][1][0]
    assert job.test[-2:] == ["--nms", "0"]
    assert job.summary.parent.name == "last_nms0"
    write_result(job, nms=1, folder="last")
    assert job.result() == (None, None)
    write_result(job, nms=1)
    assert job.result() == (None, None)
    write_result(job, nms=0)
    assert job.result()[0]["test"]["nms"] == 0
    job = plan("comparison", "ACDC", runs=tmp_path)[1][1][0]
    assert "--nms" not in job.test
    assert job.summary.parent.name == "last"


def test_a_row_may_be_tested_otherwise_than_its_method():
    cps = plan("dmd-table3")[0][1][0]
    assert cps.test[-4:] == ["--network", "net", "--nms", "0"]
    assert cps.summary.parent.name == "last_net_nms0"
    cml = plan("cml-table4")[-1][1][0]
    assert "--nms" not in cml.test  # its paper keeps the largest component, as LA's tests do


@pytest.mark.parametrize("dataset", ["LA", "ACDC", "BraTS2019", "Pancreas"])
def test_cps_is_trained_as_what_it_is_compared_with(dataset):
    cps, _, _, dmd = (jobs[0].options if jobs else None for _, jobs in plan("dmd-table3", dataset))
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
    assert (cps["pretrain_iterations"], cps["lambda_u"]) == (0, 1)


def test_a_method_that_is_not_here_has_its_published_number(capsys, tmp_path):
    call("dmd-table3", "--fill", "--runs", tmp_path, "--extra", "--downsample 2")
    out = capsys.readouterr().out
    assert re.search(r"MC-Net +(- +){5}87.71 / - / - / - +- +-\n", out)
    assert "Trained with --downsample 2" in out


@pytest.mark.parametrize(
    ("table", "dataset", "told"),
    [
        ("coranet-table3", "Pancreas2d", "57.53"),
        ("coranet-table3", "endocardium", "76.13"),
        ("coranet-3d", "Pancreas", "69.96"),
        ("coranet-acdc", "ACDC", "88.79"),
        ("dtml-table2", "LA", None),
    ],
)
def test_a_baseline_of_another_protocol_is_told_below_the_table(
    table, dataset, told, capsys, tmp_path
):
    call(table, "--dataset", dataset, "--fill", "--runs", tmp_path)
    rows, notes = capsys.readouterr().out.rsplit("\n\n", 1)
    assert ("CoraNet's paper has Dice" in notes) == bool(told)
    if told:
        assert notes.count(told) == 1
        assert told not in rows


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

SECTIONS = re.split(r"^## ", (ROOT / "docs" / "methods.md").read_text(), flags=re.MULTILINE)[1:]
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


def as_in_the_docs(option, value):
    if option == "beta" and value == 2 / 3:
        return str(Fraction(value).limit_denominator(9))
    if isinstance(value, list):
        return " ".join(value)
    return f"{value:g}" if isinstance(value, float) else str(value)


@pytest.mark.parametrize("section", METHODS, ids=lambda s: s.split("\n")[0])
def test_methods_shows_the_defaults_on_the_left_atria(section):
    defaults = scripts.options_of(CODE / script_of(section), "--dataset", "LA")
    for line in re.findall(r"^\|(.*)\|$", section, re.MULTILINE):
        columns = [cell.strip() for cell in line.split("|")]
        if len(columns) == 4 and "code/" not in columns[2]:
            for option in re.findall(r"--(\w+)", columns[2]):
                shown = as_in_the_docs(option, defaults[option])
                pattern = rf"(?<![\w.]){re.escape(shown)}(?![\w.]\w)"
                assert re.search(pattern, columns[3]), f"--{option}: {shown}"


def test_methods_links_and_tables_exist():
    text = (ROOT / "docs" / "methods.md").read_text()
    headings = {
        re.sub(r"[^\w -]", "", h).strip().lower().replace(" ", "-")
        for h in re.findall(r"^## (.*)", text, re.M)
    }
    for target in re.findall(r"\]\(([^)]+)\)", text):
        assert (
            target[1:] in headings if target.startswith("#") else (ROOT / "docs" / target).exists()
        ), target
    for name in re.findall(r"`((?:dmd|dtml|ugmcl|cml|coranet)-\w+)`", text):
        assert name in TABLES
    missing = [name for name in TABLES if f"`{name}`" not in text]
    assert not missing
