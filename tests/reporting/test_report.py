"""code/report.py writes one file that needs no other: what was run, the numbers, and the cases in
their order.
"""

import base64
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import report
from PIL import Image
from result_folders import write_cases, write_run, write_training

from utils.errors import UserError
from utils.reporting import html, report_sections, training_curves
from utils.reporting.results import read_result

DICE = [0.9, 0.5, 0.8, 0.7, 0.0]


@pytest.fixture
def call(tmp_path, capsys):
    """`report.py` with a command line, in this process; returns the page."""

    def main(*arguments):
        path = tmp_path / "report.html"
        report.main([*map(str, arguments), "--output", str(path)])
        assert capsys.readouterr().out.startswith(str(path))
        return path.read_text(encoding="utf-8")

    return main


@pytest.fixture
def quick(monkeypatch):
    """No drawing, for tests that look at something else."""
    draw = lambda path, *_, **__: path.write_text("<svg/>")  # noqa: E731
    monkeypatch.setattr(report_sections, "summary_figure", draw)


def draw_cases(folder, tag="last"):
    """A small picture a case, as grey as the case's place in the list."""
    figures = folder / "test" / tag / "figures"
    figures.mkdir()
    for i, case in enumerate("ABCDE"):
        Image.new("RGB", (40, 20), (10 * i,) * 3).save(figures / f"{case}.png")


def pictures(page):
    """The place in the list of each case that is shown, in the page's order."""
    shown = [
        Image.open(io.BytesIO(base64.b64decode(text)))
        for text in re.findall(r"image/jpeg;base64,([^\"]*)", page)
    ]
    return [round(np.asarray(picture).mean() / 10) for picture in shown]


def facts(page):
    return dict(re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", page))


class Balance(HTMLParser):
    """Raises where a tag is closed that was not opened last."""

    def __init__(self):
        super().__init__()
        self.open = []

    def handle_starttag(self, tag, attributes):
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_whole_and_needs_nothing_else(tmp_path, call):
    folder = write_run(tmp_path, "run", DICE)
    draw_cases(folder)
    write_training(folder, loss__loss=lambda step: 1 / step)
    page = call(folder, write_run(tmp_path, "<b>&", DICE[::-1]), "--baseline", "run")
    checked = Balance()
    checked.feed(page)
    assert not checked.open
    assert page.startswith("<!doctype html>")
    sources = re.findall(r'(?:src|href)\s*=\s*"([^"]*)"', page)
    assert {source.split(",")[0] for source in sources} == {
        "data:image/svg+xml;base64",
        "data:image/jpeg;base64",
        "#run0",
        "#run1",
    }
    assert not re.search(r"@import|url\(|<link|<script [^>]*src", page)
    assert "<b>&" not in page
    assert "&lt;b&gt;&amp;" in page


@pytest.mark.usefixtures("quick")
def test_what_was_run_and_from_where_each_option_came(tmp_path, call):
    trained = {
        "method": "dmd",
        "net": "vnet",
        "normalization": "batchnorm",
        "n_filters": 16,
        "unlabeled_bs": 2,
    }
    trained |= {"lr_step": 834, "keep": True, "root": "my data/LA", "name": None}
    folder = write_run(tmp_path, "run", DICE, trained=trained, tag="last_nms0", test={"nms": 0})
    log = [
        "10:00:00 runs/LA/run/seed1337: commit 0123456789",
        "10:00:00 torch 2.13.0, bf16, a machine",
        "10:00:00 script: dataset=LA keep=True",
        "10:00:00 command line: root=my data/LA patch=112,112,80 keep=True lr_step=834 labelnum=8 "
        "downsample=1",
        "10:00:00 Xie et al., MICCAI 2023 (DMD): labeled_bs=4 net=vnet",
        "10:00:05 step 20/100 epoch 1 loss 0.5 | 1.00 s a step, 0:01:20 left",
    ]
    (folder / "log.txt").write_text("\n".join(log))
    parts = [
        {
            "commit": "0123456789abcdef",
            "dirty": True,
            "devices": ["a GPU"],
            "started": "2026-01-02T",
            "torch": "2.13",
        },
        {
            "commit": "0123456789abcdef",
            "dirty": False,
            "devices": ["a GPU"],
            "started": "2026-01-03T",
            "torch": "2.13",
        },
    ]
    (folder / "environment.json").write_text(json.dumps(parts))
    write_training(folder, steps=600, loss__loss=lambda step: 1 / step)
    page = call(folder, "--test", "last_nms0")
    numbers = "Dice 89.70 %, Jaccard 81.42 %, 95HD 6.88 voxels, ASD 1.78 voxels"
    assert f"As published in DMD, Table 1: {numbers}." in page
    told = facts(page)
    assert told["commit"] == "0123456789, modified; 0123456789"
    assert (told["hardware"], told["software"], told["time"]) == (
        "a GPU",
        "torch 2.13",
        "5 min of training",
    )
    assert told["training"] == "100 steps of 4 labelled and 2 unlabelled crops"
    assert told["network"] == "vnet batchnorm, 16 filters"
    assert (told["components"], told["seed"], told["started"]) == (
        "all kept",
        "1337",
        "2026-01-02, 2026-01-03",
    )
    (typed,) = re.findall(r"<pre>(.*?)</pre>", page, re.DOTALL)
    train, more, test = typed.replace("&#x27;", "'").splitlines()
    shown = "python code/train_dmd.py --root 'my data/LA' --patch 112 112 80 --keep --lr_step 834"
    assert (train, more) == (f"{shown} --labelnum 8 \\", "    --downsample 1")
    assert test == f"python code/test_LA.py --run {folder} --nms 0"
    options = re.findall(r"<tr><td>(\w+)</td><td>([^<]*)</td><td>([^<]*)</td></tr>", page)
    assert ("labeled_bs", "4", "Xie et al., MICCAI 2023 (DMD)") in options
    assert ("lr_step", "834", "command line") in options
    assert "name" not in [option[0] for option in options]


@pytest.mark.usefixtures("quick")
def test_a_run_of_which_little_is_recorded(tmp_path, call):
    folder = write_run(tmp_path, "run", DICE)
    (folder / "environment.json").write_text("[")
    call(folder)
    (folder / "environment.json").write_text('{"commit": "0123456789"}')
    page = call(folder)
    assert not {"commit", "hardware", "time"} & facts(page).keys()
    assert "<h2>Training</h2>" not in page
    assert "the test drew none in PNG or SVG" in page


@pytest.mark.usefixtures("quick")
def test_the_numbers_of_classes_and_cases(tmp_path, call):
    folder = write_run(tmp_path, "run", DICE, classes=("RV", "LV"))
    rows = read_result(folder, "last").rows
    rows[1]["dice"], rows[2]["dice"] = 0.7, float("nan")  # A's LV, B's RV
    write_cases(folder / "test" / "last", rows)
    page = call(folder)
    classes = re.findall(
        r"<tr(?: class=sum)?><td>(RV|LV|mean over classes)</td><td class=number>([^<]*)<", page
    )
    means = {
        "RV": [0.9, 0.8, 0.7, 0],
        "LV": [0.7, 0.5, 0.8, 0.7, 0],
        "mean over classes": [0.8, 0.5, 0.8, 0.7, 0],
    }
    assert classes == [
        (name, f"{100 * np.mean(v):.2f} ± {100 * np.std(v, ddof=1):.2f}")
        for name, v in means.items()
    ]
    cases = re.findall(r"<tr><td>([A-E])</td><td>(\w+)</td><td class=number>([^<]*)<", page)
    assert [row[2] for row in cases] == [
        "90.00",
        "80.00",
        "80.00",
        "70.00",
        "70.00",
        "70.00",
        "50.00",
        "0.00",
        "0.00",
        "-",
    ]
    assert cases[-1] == ("B", "RV", "-")
    assert "over 5 cases, 2 empty predictions." in page


@pytest.mark.usefixtures("quick")
def test_best_median_and_worst_are_shown_and_the_others_folded(tmp_path, call):
    folder = write_run(tmp_path, "run", DICE)
    draw_cases(folder)
    page = call(folder)
    assert pictures(page) == [0, 3, 4, 2, 1]  # A, D, E; then by Dice
    folded = "".join(re.findall(r"<details>.*?</details>", page, re.DOTALL))
    assert pictures(folded) == [2, 1]
    assert [word for word in ("best", "median", "worst") if f"{word} of 5 by Dice" in page] == [
        "best",
        "median",
        "worst",
    ]
    assert pictures(call(folder, "--cases", "three")) == [0, 3, 4]
    assert pictures(call(folder, "--cases", "none")) == []
    figures = folder / "test" / "last" / "figures"
    for name, grey in (("A_errors", 50), ("A_surface", 60), ("B_errors", 70)):
        Image.new("RGB", (40, 20), (grey,) * 3).save(figures / f"{name}.png")
    assert pictures(call(folder)) == [
        0,
        5,
        6,
        3,
        4,
        2,
        1,
    ]  # the errors of those that are folded are left out
    (figures / "E.png").unlink()
    assert "E: no figure. worst of 5 by Dice" in call(folder)


@pytest.mark.usefixtures("quick")
def test_one_case_is_neither_best_nor_worst(tmp_path, call):
    folder = write_run(tmp_path, "run", [0.9])
    draw_cases(folder)
    page = call(folder)
    assert pictures(page) == [0]
    assert "by Dice" not in page
    assert "Dice 90.00 %" in page


def test_seeds_are_one_entry_of_their_means(tmp_path, call):
    for seed, shift in ((1, 0.0), (2, 0.1)):
        folder = write_run(tmp_path, "run", np.array([0.5, 0.7, 0.6]) + shift, seed=seed)
        write_training(folder, loss__loss=lambda step: 1 / step)
    page = call(folder.parent)
    assert facts(page)["seeds"] == "1, 2"
    assert re.findall(r"<tr><td>([A-C])</td><td class=number>([^<]*)<", page) == [
        ("B", "75.00"),
        ("C", "65.00"),
        ("A", "55.00"),
    ]
    assert "<tr class=sum><td>mean ± sd over seeds</td><td class=number>65.00 ± 7.07</td>" in page
    assert "Learning curves of seed 1" in page
    assert page.count("python code/test_LA.py") == 2


def test_several_runs_begin_with_their_comparison(tmp_path, call):
    low = write_run(tmp_path, "low", [0.5, 0.6, 0.7, 0.55, 0.66, 0.71, 0.8, 0.52])
    high = write_run(tmp_path, "high", [0.8, 0.8, 0.85, 0.7, 0.8, 0.9, 0.85, 0.8], test={"nms": 0})
    page = call(low, high, "--baseline", "low", "--names", "low", "high")
    before, *sections = page.split("<h2 ")
    assert len(sections) == 2
    assert "[1] high: not comparable with low: components all, not the largest only." in before
    assert re.search(
        r"<td>high</td><td class=number>Dice %</td><td class=number>\+18.25\*</td>", before
    )
    assert "<tr class=aside><td>as published</td>" in before
    assert (
        before.count("<figure>") == 5
    )  # boxes, and pairs by four metrics: no curves, no numbers of labels
    assert all("<h3>Results</h3>" in section for section in sections)


def test_a_long_picture_is_held_smaller(tmp_path):
    Image.new("RGB", (400, 100)).save(tmp_path / "wide.png")
    text = html.figure(tmp_path / "wide.png", "a <caption>", wide=200)
    held = Image.open(io.BytesIO(base64.b64decode(re.search(r"base64,([^\"]*)", text)[1])))
    assert held.size == (200, 50)
    assert 'alt="a &lt;caption&gt;"' in text


def test_the_terms_of_a_loss_have_a_line_each(tmp_path, monkeypatch):
    folder = write_run(tmp_path, "run", DICE)
    drawn = []
    monkeypatch.setattr(training_curves, "save", lambda figure, path: drawn.append(figure))
    terms = {
        "loss__loss": lambda s: 2 / s,
        "loss__loss_con": lambda s: 1 / s,
        "info__weight": lambda s: s,
    }
    write_training(folder, **terms)
    assert training_curves.training_figure("curves.svg", read_result(folder, "last"))
    assert [text.get_text() for text in drawn[0].legends[0].get_texts()] == ["loss", "loss_con"]
    (panel,) = drawn[0].axes
    assert panel.get_yscale() == "log"
    write_training(folder, loss__loss=lambda step: -1.0)
    training_curves.training_figure("curves.svg", read_result(folder, "last"))
    assert drawn[1].axes[0].get_yscale() == "linear"


@pytest.mark.usefixtures("quick")
def test_errors(tmp_path, call):
    folder = write_run(tmp_path, "run", DICE)
    draw_cases(folder)
    with pytest.raises(
        UserError, match="nowhere: no such folder; make it, or name another --output"
    ):
        report.main(
            [str(folder), "--output", str(tmp_path / "nowhere" / "report.html"), "--cases", "none"]
        )
    (folder / "test" / "last" / "figures" / "A.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"A.png: missing or damaged; delete it, or test again"):
        call(folder)
