"""The documentation's commands, links and examples work as they stand there."""

import contextlib
import importlib
import io
import re
from functools import cache

import pytest
import torch
from conftest import ROOT

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
CODE = ROOT / "code"


@cache
def options_of(script):
    """All options that the help of a script in `code/` names."""
    text = io.StringIO()
    module = importlib.import_module(script.removesuffix(".py"))
    for subcommand in ([], *([name] for name in getattr(module, "FIGURES", ()))):
        with contextlib.redirect_stdout(text), pytest.raises(SystemExit):
            module.parse([*subcommand, "--help"])
    return set(re.findall(r"--\w+", text.getvalue()))


def commands(text):
    """Each command of a script in `code/`: the script's name, and the options behind it."""
    spans = re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    blocks = re.findall(r"```(?:bash)?\n(.*?)```", text, re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    for line in [*spans, *lines]:
        for script, rest in re.findall(r"code/(\w+\.py)([^&|;#]*)", line):
            own, *_ = rest.split(" -- ")  # what follows is for other scripts
            yield script, re.findall(r"(?<=\s)--\w+", own)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_commands_name_scripts_and_options_that_exist(page):
    example = re.compile(r"train_(maxsquare|yours)|(test|prepare)_[sS]pleen")  # made by the reader
    for script, options in commands(page.read_text()):
        if example.match(script):
            continue
        assert (CODE / script).is_file(), script
        assert not set(options) - options_of(script), script


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_links_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)#]*)(?:#[^)]*)?\)", text):
        if target and not target.startswith("http"):
            assert (page.parent / target).exists(), target


def test_the_operations_run_as_shown():
    page = (ROOT / "docs" / "operations.md").read_text()
    (code,) = re.findall(r"```python\n(from utils\.inference.*?)```", page, re.DOTALL)
    generator = torch.Generator().manual_seed(0)
    volumes = [torch.rand(shape, generator=generator) for shape in ((130, 120, 90), (100, 140, 80))]
    targets = [(volume > 0.5).byte() for volume in volumes]
    pair = torch.rand((2, 1, 112, 112, 80), generator=generator)
    names = {
        "mask": targets[0][None],
        "image_a": pair,
        "image_b": pair.flip(0),
        "label_a": pair[:, 0] > 0.5,
        "label_b": pair[:, 0] > 0.7,
        "pseudo_a": pair[:, 0],
        "pseudo_b": pair[:, 0].flip(0),
        "labels": targets[0][None],
        "shape": (20, 24, 16),
        "patch": (12, 16, 8),
        "stride": (8, 4, 8),
        "logits": torch.randn((12, 2, 12, 16, 8), generator=generator),
        "volume": volumes[0][:20, :24, :16],
        "network": torch.nn.Conv3d(1, 2, 1),
        "pred": targets[0][:40, :40, :30],
        "target": targets[0][20:60, :40, :30],
        "spacing": (1.0, 1.0, 2.5),
        "volumes": volumes,
        "targets": targets,
        "corners": [(0, 0, 0), (-5, 9, 2)],
    }
    exec(code, names)
    assert names["mixed"].shape == pair.shape
    assert names["prob"].shape == (2, 20, 24, 16)
    assert 0 < names["scores"]["dice"] < 1
    assert names["image"].shape == names["label"].shape == (2, 112, 112, 80)


def test_what_the_papers_say_names_code_and_tests_that_exist():
    text = (ROOT / "docs" / "papers.md").read_text()
    rows = [line for line in text.splitlines() if re.match(r"\| (?!the paper)", line)]
    assert len(rows) > 80
    for row in rows:
        _, code, tests = row.strip("| ").split(" | ")
        path = None
        for span in re.findall(r"`([^`]+)`", f"{code}; {tests}"):
            file, _, test = span.partition("::")
            if "/" in file:
                path = ROOT / file
                assert path.is_file(), row
            name = test or span.removesuffix("()")
            if test or span.endswith("()"):
                assert re.search(rf"\bdef {name}\(", path.read_text()), f"{name}: {row}"
        assert "::" in tests, row
