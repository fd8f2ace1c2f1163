"""The rules of the house that a machine can check."""

import re
import subprocess
import sys

import pytest
from conftest import ROOT

FOLDERS = ("code", "dataloaders", "networks", "utils", "tests", "benchmarks")
PYTHON = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]
TRAINING = sorted((ROOT / "code").glob("train_*.py"))


def test_code_is_no_package():
    """With an `__init__.py` it would shadow the standard library's `code`, which `pdb` imports."""
    assert not (ROOT / "code" / "__init__.py").exists()
    probe = "import sys; sys.path.insert(0, sys.argv[1]); import code, pdb; print(code.InteractiveConsole.__name__)"
    answer = subprocess.run(
        [sys.executable, "-c", probe, ROOT], capture_output=True, text=True, check=True
    )
    assert answer.stdout.strip() == "InteractiveConsole"


@pytest.mark.parametrize("path", TRAINING, ids=lambda p: p.name)
def test_a_training_script_is_short_honest_and_alone(path):
    text = path.read_text()
    assert text.count("\n") <= 200
    assert not re.search(r"test\.(list|txt)|split=.test|\"test\"", text)
    assert not re.search(r"^(from|import) (train|test)_", text, re.MULTILINE)
    assert text.startswith('"""')
    assert "python code/" + path.name in text.split('"""')[1]


@pytest.mark.parametrize("path", TRAINING, ids=lambda p: p.name)
def test_training_never_opens_the_test_list(path, tiny_la, tmp_path, script, monkeypatch):
    """Python tells an audit hook of every file that it opens; this one ends the process at the test
    list.
    """
    hook = "import sys\nsys.addaudithook(lambda event, args: event == 'open' and 'test.list' in str(args[0]) and exit(9))"
    (tmp_path / "sitecustomize.py").write_text(hook)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    short = {
        "train_coranet.py": ["--unlabeled_bs", 1, "--pretrain_epochs", 1, "--selftrain_epochs", 1],
        "train_cml.py": ["--labeled_bs", 2, "--pretrain_iterations", 1, "--max_iterations", 1],
    }.get(path.name, ["--max_iterations", 1])
    small = [
        "--gpu",
        -1,
        "--patch",
        32,
        16,
        16,
        "--n_filters",
        2,
        "--labelnum",
        2,
        "--labeled_bs",
        1,
    ]
    done = script(path.name, "--root", tiny_la, "--runs", tmp_path / "runs", *small, *short)
    assert done.returncode == 0, done.stderr
    probe = subprocess.run(
        [sys.executable, "-c", f"open({str(tiny_la / 'test.list')!r})"], check=False
    )
    assert probe.returncode == 9  # the hook works


@pytest.mark.parametrize("path", PYTHON, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_device_is_hard_wired(path):
    if path.name != "test_house.py":
        assert ".cuda(" not in path.read_text()


@pytest.mark.parametrize("package", ["dataloaders", "networks", "utils/ops"])
def test_data_flows_one_way(package):
    for path in (ROOT / package).glob("*.py"):
        imports = re.findall(r"^\s*(?:from|import) ([\w.]+)", path.read_text(), re.MULTILINE)
        forbidden = {"dataloaders": ("utils.training", "networks")}.get(
            package, ("dataloaders", "utils.training")
        )
        assert not [name for name in imports if name.startswith(forbidden)], path


@pytest.mark.parametrize("path", TRAINING, ids=lambda p: p.name)
def test_help_works(path, script):
    done = script(path.name, "--help")
    assert done.returncode == 0
    assert "--labelnum" in done.stdout
