"""`sweep.py` writes commands that the scripts take and that can be resumed."""

import json
import os
import re
import shlex
import subprocess

import pytest
import sweep
from conftest import ROOT
from result_folders import write_summary
from small import make_tiny_la

from utils.errors import UserError
from utils.reporting import experiments, paper_tables, scripts
from utils.reporting.scripts import options_of

NOWHERE = ("--root", "no_such_data")


@pytest.fixture
def call(monkeypatch, capsys):
    """Runs `sweep.main` and returns its lines."""

    def run(*arguments):
        sweep.main(list(map(str, arguments)))
        return capsys.readouterr().out.splitlines()

    monkeypatch.chdir(ROOT)
    return run


def commands(lines):
    """`(training, testing)` of each line, lists of words."""
    return [[shlex.split(part) for part in line.split(" && ")] for line in lines]


def value(words, flag):
    return words[words.index(flag) + 1]


def finish(command, runs, **changed):
    """A run's folder as training and testing leave it; `changed` are options that it was trained
    with instead.
    """
    train, test = command
    folder = ROOT / value(test, "--run")
    assert str(folder).startswith(str(runs))
    folder.mkdir(parents=True)
    options = options_of(train[1], *train[2:])
    options |= {"precision_asked": options["precision"]} | changed
    (folder / "args.json").write_text(json.dumps(options))
    tag, nms = ("last_nms0", 0) if "--nms" in test else ("last", 1)
    write_summary(folder, tag, trained=options, step=5, last_step=5, test={"nms": nms})


def test_every_combination_is_a_line_that_its_scripts_take(call):
    lines = call("--methods", "dmd", "supervised", "--labelnum", 8, 16, "--seeds", 1, 2, *NOWHERE)
    found = []
    for train, test in commands(lines):
        assert train[:2] == [
            "python",
            f"code/train_{'dmd' if 'dmd' in train[1] else 'supervised'}.py",
        ]
        options = options_of(*train[1:])
        assert options["resume"]
        method = train[1].removeprefix("code/train_").removesuffix(".py")
        assert (
            value(test, "--run") == f"runs/LA/{method}_{options['labelnum']}/seed{options['seed']}"
        )
        assert test[:2] == ["python", "code/test_LA.py"]
        found.append((method, options["labelnum"], options["seed"]))
    assert sorted(found) == [
        (m, n, s) for m in ("dmd", "supervised") for n in (8, 16) for s in (1, 2)
    ]
    assert found[:4] == [("dmd", 8, 1), ("supervised", 8, 1), ("dmd", 16, 1), ("supervised", 16, 1)]


@pytest.mark.parametrize(("dataset", "labelnum"), [("LA", 8), ("ACDC", 7)])
def test_the_commands_are_those_of_the_comparison_of_all_methods(dataset, labelnum, call):
    lines = call(
        "--methods", *sweep.METHODS, "--dataset", dataset, "--labelnum", labelnum, *NOWHERE
    )
    places = {"--root": NOWHERE[1]}
    for row in paper_tables.comparison(dataset, labelnum):
        if row.labelnum is None and not row.flags:  # forms of a method are varied
            job = experiments.make_job(row, dataset, labelnum, 1337, places=places)
            assert f"{scripts.shell(job.train)} && {scripts.shell(job.test)}" in lines


def test_gpus_take_turns(call):
    found = commands(call("--methods", "dmd", "dtml", "ugmcl", "--gpu", "0", "1", *NOWHERE))
    gpus = [[value(words, "--gpu") for words in pair] for pair in found]
    assert gpus == [["0", "0"], ["1", "1"], ["0", "0"]]


def test_what_varies_is_in_the_name_unless_it_is_the_default(call):
    lines = call(
        "--methods",
        "dmd",
        "--vary",
        "distill=dice,kl",
        "--vary",
        "patch=112 112 80,96 96 64",
        *NOWHERE,
    )
    names = [value(test, "--run").split("/")[2] for _, test in commands(lines)]
    assert names == [
        "dmd_16",
        "dmd_16_distilldice_patch96-96-64",
        "dmd_16_distillkl_patch112-112-80",
        "dmd_16_distillkl_patch96-96-64",
    ]
    options = options_of(*commands(lines)[-1][0][1:])
    assert (options["distill"], options["patch"], options["name"]) == (
        "kl",
        [96, 96, 64],
        names[-1],
    )


def test_precisions_are_runs_of_their_own(call, tmp_path):
    given = ("--methods", "dmd", "--runs", tmp_path, *NOWHERE)
    lines = call(*given, "--vary", "precision=fp32,bf16")
    names = [value(test, "--run").split("/")[-2] for _, test in commands(lines)]
    assert names == ["dmd_16_precisionfp32", "dmd_16_precisionbf16"]
    finish(commands(lines)[0], tmp_path)
    assert call(*given, "--vary", "precision=fp32,bf16", "--pending") == lines[1:]
    asked = ("--", "--precision", "bf16")
    finish(commands(call(*given))[0], tmp_path, precision="bf16", precision_asked="auto")
    assert call(*given, "--pending") == []
    assert (
        call(*given, "--pending", *asked) == []
    )  # what the device made of it is what is asked for here
    with pytest.raises(UserError, match=r"holds a run with precision bf16, not fp32"):
        call(*given, *asked[:-1], "fp32")


def test_options_for_all_are_named_where_a_name_is_given(call):
    half = ("--", "--downsample", 2)
    ((train, test),) = commands(call("--methods", "cml", *NOWHERE, *half))
    assert value(test, "--run") == "runs/LA/cml_16/seed1337"
    assert value(train, "--downsample") == "2"
    ((train, test),) = commands(call("--methods", "cml", "--name", "half", *NOWHERE, *half))
    assert value(test, "--run") == "runs/LA/cml_16_half/seed1337"
    assert options_of(*train[1:])["downsample"] == 2


def test_pending_leaves_out_what_is_trained_and_tested(call, tmp_path):
    given = (
        "--methods",
        "dmd",
        "supervised",
        "--seeds",
        1,
        2,
        "--runs",
        tmp_path,
        "--gpu",
        0,
        1,
        *NOWHERE,
    )
    lines = call(*given)
    finish(commands(lines)[0], tmp_path)
    left = call(*given, "--pending")
    assert [line.split(" --gpu")[0] for line in left] == [
        line.split(" --gpu")[0] for line in lines[1:]
    ]
    assert [value(train, "--gpu") for train, _ in commands(left)] == ["0", "1", "0"]
    assert len(call(*given)) == 4
    for command in commands(lines)[1:]:
        finish(command, tmp_path)
    assert call(*given, "--pending") == []


def test_a_run_with_other_options_is_not_gone_on_with(call, tmp_path):
    given = ("--methods", "dmd", "--runs", tmp_path, *NOWHERE)
    finish(commands(call(*given))[0], tmp_path, base_lr=0.5, gpu="7", cache="nonsense")
    with pytest.raises(
        UserError, match=r"dmd_16/seed1337 holds a run with base_lr 0.5, not 0.01: --name"
    ):
        call(*given)
    call(*given, "--name", "slow", "--", "--base_lr", 0.02)
    (tmp_path / "LA" / "dmd_16" / "seed1337" / "args.json").write_text("{")
    with pytest.raises(UserError, match=r"args.json: damaged"):
        call(*given)


def test_labels_beyond_the_data_are_refused_where_the_data_are(call, tmp_path):
    make_tiny_la(tmp_path / "la")
    small = ("--root", tmp_path / "la", "--labelnum")
    assert len(call("--methods", "supervised", *small, 6)) == 1
    assert len(call("--methods", "dmd", *small, 5)) == 1
    with pytest.raises(UserError, match="--labelnum 7: LA has 6 training cases"):
        call("--methods", "supervised", *small, 7)
    with pytest.raises(
        UserError, match=r"--labelnum 6 leaves nothing unlabelled of LA for .*train_dmd.py"
    ):
        call("--methods", "dmd", *small, 6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--methods", "dmd", "--vary", "temperature=2,2.0"],
            "dmd: --temperature 2 and --temperature 2.0 are one and",
        ),
        (["--methods", "dmd", "--vary", "root=a,b"], "--root: every line has its own"),
        (["--methods", "dmd", "--", "--name", "x"], "--name: every line has its own"),
        (["--methods", "dmd", "--", "--seed=3"], "--seed=3: every line has its own"),
        (["--methods", "dmd", "--dataset", "LA", "ACDC"], "--root: one folder is one data set"),
        (
            ["--methods", "dmd", "--vary", "base_lr=1", "--vary", "base_lr=2"],
            "--vary base_lr: given twice",
        ),
        (["--methods", "dmd", "--dataset", "own"], "no_such_data/dataset.json: not there"),
        (["--methods", "dmd", "--vary", "runs_=1"], "--runs_"),
        (
            ["--methods", "dmd", "--output", "no_such_folder/sweep.txt"],
            "no_such_folder/sweep.txt: cannot be written",
        ),
    ],
)
def test_what_cannot_be_is_refused(arguments, message, call, capsys):
    at = arguments.index("--") if "--" in arguments else len(arguments)
    with pytest.raises((UserError, SystemExit)) as stopped:
        call(*arguments[:at], *NOWHERE, *arguments[at:])
    assert message in f"{stopped.value} {capsys.readouterr().err}"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods", "dmx"], "sweep.py: argument --methods: invalid choice: 'dmx'"),
        (
            ["--methods", "dmd", "--", "--lamda_distill", "2"],
            "train_dmd.py: unrecognized arguments: --lamda_distill",
        ),
        (
            ["--methods", "dmd", "cml", "--vary", "distill=kl"],
            "train_cml.py: unrecognized arguments: --distill",
        ),
        (["--methods", "dmd", "--vary", "distill"], "distill is not option=value,value"),
    ],
)
def test_what_a_script_would_refuse_is_refused_with_its_words(arguments, message, call, capsys):
    with pytest.raises(SystemExit) as stopped:
        call(*arguments)
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_check_of_the_script_is_told_with_its_name(call):
    with pytest.raises(UserError, match=r"^train_dmd.py: --patch 30 30 30"):
        call("--methods", "dmd", "--", "--patch", "30", "30", "30")


def test_the_file_runs_as_the_help_says(call, tmp_path, monkeypatch):
    """Each way of the docstring that this machine has a tool for, with lines that say where they
    ran.
    """
    joined = sweep.__doc__.replace("\\\n", "")
    ways = re.findall(r"^ {4}((?:xargs|parallel|sbatch) .*)$", joined, re.MULTILINE)
    assert len(ways) == 3
    lines = [
        f"echo {shlex.quote(f'a {i}')} && test {i} -ne 2 && printenv CUDA_VISIBLE_DEVICES"
        for i in range(4)
    ]
    (tmp_path / "sweep.txt").write_text("".join(f"{line}\n" for line in lines))
    done = subprocess.run(
        ["bash", "-c", ways[0]], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 123  # one of the lines failed, and the others ran
    words = done.stdout.split("\n")
    assert sorted(word for word in words if word.startswith("a ")) == [f"a {i}" for i in range(4)]
    assert {word for word in words if word.isdecimal()} == {"0", "1"}
    task = re.search(r"--wrap '(.*)'$", ways[2])[1]
    environment = {**os.environ, "SLURM_ARRAY_TASK_ID": "2"}
    given = {
        "cwd": tmp_path,
        "env": environment,
        "capture_output": True,
        "text": True,
        "check": False,
    }
    assert subprocess.run(["sh", "-c", task], **given).stdout.startswith("a 1\n")


@pytest.mark.parametrize(
    "dataset", ["LA", "ACDC", "phantom", "phantom2d", "BraTS2019", "Pancreas", "Pancreas2d"]
)
def test_the_tests_are_of_the_data_set(dataset, call, tmp_path):
    """Each takes its options, and then misses the run."""
    given = ("--dataset", dataset, "--labelnum", 7, "--gpu", -1, "--runs", tmp_path, *NOWHERE)
    for _, test in commands(call("--methods", "dmd", "dtml", *given)):
        folder = value(test, "--run")
        assert dataset in folder
        with pytest.raises(UserError, match=folder):
            scripts.load_script(ROOT / test[1]).main(test[2:])


def test_a_line_is_one_command_of_a_shell(call, tmp_path):
    """It tests after training alone; another `python` says what it was called with."""
    python, out = tmp_path / "python", tmp_path / "sweep.txt"
    python.write_text('#!/bin/sh\necho "$@"\ncase $1 in *train_cml*) exit 143;; esac\n')
    python.chmod(0o755)
    places = ("--root", "a $folder 'with'", "--output", out)
    assert call("--methods", "cml", "dmd", *places) == [f"{out}: 2 commands"]
    path = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["sh", out], cwd=ROOT, env=path, capture_output=True, text=True, check=False
    )
    assert re.findall(r"code/\w+", done.stdout) == [
        "code/train_cml",
        "code/train_dmd",
        "code/test_LA",
    ]
    assert done.stdout.count("a $folder 'with'") == 3
