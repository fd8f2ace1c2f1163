"""code/compare.py: its numbers against those computed here, what it marks, what it draws, and what
it refuses.
"""

import csv
import io
import json
import re
from dataclasses import replace
from itertools import pairwise

import compare as compare_script
import matplotlib
import numpy as np
import pytest
from matplotlib.image import imread
from result_folders import write_cases, write_run, write_training
from scipy import stats

from dataloaders.hold_out import SOURCES
from utils.environment import ROOT
from utils.errors import UserError
from utils.reporting import compare, comparison_plots, training_curves
from utils.reporting.entries import open_entries
from utils.reporting.results import read_result
from utils.reporting.scripts import options_of
from utils.reporting.statistics import paired

BASE = np.array([0.70, 0.75, 0.80, 0.72, 0.78, 0.81, 0.69, 0.77])
GAIN = np.array([0.05, 0.04, 0.06, 0.03, 0.05, 0.02, 0.07, -0.01])


@pytest.fixture
def call(capsys):
    """`compare.py` with a command line, in this process; returns what it prints."""

    def main(*arguments):
        compare_script.main([*map(str, arguments), "--resamples", "99"])
        return capsys.readouterr().out

    return main


def rows_of(text):
    """The cells of the main table by label, by header; a label's published row under
    `as published`.
    """
    lines = text.split("\n\n")[0].splitlines()
    cells = [re.split(r" {2,}", line) for line in lines]
    return {row[0]: row[1:] for row in cells}


def csv_of(path):
    return {
        (row["run"], row["metric"]): row for row in csv.DictReader(io.StringIO(path.read_text()))
    }


# ------------------------------------------------------------------------------------------ numbers


def test_the_numbers_are_those_of_the_cases(tmp_path, call):
    base, other = (
        write_run(tmp_path, "base", BASE),
        write_run(tmp_path, "other", BASE + GAIN, trained={"labelnum": 5}),
    )
    text = call(base, other, "--baseline", "base", "--csv", tmp_path / "t.csv")
    assert rows_of(text)["base"][5] == f"{100 * BASE.mean():.2f} ± {100 * BASE.std(ddof=1):.2f}"
    assert (
        rows_of(text)["other"][5]
        == f"{100 * (BASE + GAIN).mean():.2f} ± {100 * (BASE + GAIN).std(ddof=1):.2f}*"
    )
    row = csv_of(tmp_path / "t.csv")["other", "dice"]
    assert float(row["difference"]) == pytest.approx(100 * GAIN.mean())
    assert float(row["p_t_test"]) == pytest.approx(stats.ttest_rel(BASE + GAIN, BASE).pvalue)
    assert float(row["p_wilcoxon"]) == pytest.approx(stats.wilcoxon(GAIN).pvalue)
    assert row["p_t_test_holm"] == row["p_t_test"]
    assert float(row["difference_low"]) < 100 * GAIN.mean() < float(row["difference_high"])
    assert (row["labels"], row["steps"], row["checkpoint"], row["seeds"]) == (
        "5",
        "100",
        "last",
        "1337",
    )
    assert csv_of(tmp_path / "t.csv")["base", "asd"]["p_t_test"] == ""


def test_cases_are_averaged_over_seeds_before_the_test(tmp_path, call):
    base = write_run(tmp_path, "base", BASE)
    for seed, shift in ((1, -0.02), (2, 0.04), (10, 0.04)):
        write_run(tmp_path, "other", BASE + GAIN + shift, seed=seed)
    text = call(base, tmp_path / "LA" / "other", "--baseline", "base", "--csv", tmp_path / "t.csv")
    row = csv_of(tmp_path / "t.csv")["other", "dice"]
    mean = BASE + GAIN + 0.02
    assert row["seeds"] == "1 2 10"
    assert (row["pairs"], row["cases"]) == ("8", "8")
    assert float(row["p_t_test"]) == pytest.approx(stats.ttest_rel(mean, BASE).pvalue)
    assert float(row["sd_cases"]) == pytest.approx(100 * mean.std(ddof=1))
    assert float(row["sd_seeds"]) == pytest.approx(100 * np.std([-0.02, 0.04, 0.04], ddof=1))
    assert (
        rows_of(text)["other"][5]
        == f"{100 * mean.mean():.2f} ± {100 * mean.std(ddof=1):.2f} (3.46)*"
    )
    assert "averaged over the seeds" in text
    seeds = sorted((tmp_path / "LA" / "other").iterdir())
    assert (
        rows_of(call(base, *seeds, "--baseline", "base"))["other"][5] == rows_of(text)["other"][5]
    )


def test_holm_counts_the_comparisons_of_a_metric(tmp_path, call):
    noise = np.random.default_rng(0).normal(0, 0.02, (3, 8))
    runs = [write_run(tmp_path, f"run{i}", BASE + 0.01 * i + row) for i, row in enumerate(noise)]
    call(
        write_run(tmp_path, "base", BASE), *runs, "--baseline", "base", "--csv", tmp_path / "t.csv"
    )
    rows = [csv_of(tmp_path / "t.csv")[f"run{i}", "hd95"] for i in range(3)]
    plain = sorted((float(row["p_t_test"]), float(row["p_t_test_holm"])) for row in rows)
    assert plain[0][1] == pytest.approx(min(1, 3 * plain[0][0]))
    assert plain[1][1] == pytest.approx(min(1, max(plain[0][1], 2 * plain[1][0])))
    assert plain[2][1] == pytest.approx(max(plain[1][1], plain[2][0]))


def test_a_difference_holds_where_both_tests_say_so():
    pair = paired([1, 2, 3], [0, 0, 0], resamples=99)
    values = [(0.01, 0.01), (0.01, 0.06), (0.06, 0.01), (float("nan"), float("nan"))]
    assert [compare.Difference(pair, *both).holds for both in values] == [
        True,
        False,
        False,
        False,
    ]


def test_only_cases_that_both_have_are_tested(tmp_path, call):
    base = write_run(tmp_path, "base", BASE)
    other = write_run(tmp_path, "other", (BASE + GAIN)[2:], cases=list("CDEFGX"))
    text = call(base, other, "--baseline", "base", "--csv", tmp_path / "t.csv")
    assert csv_of(tmp_path / "t.csv")["other", "dice"]["pairs"] == "5"
    assert "not comparable with base: 6 cases; 5 of them are among the other's 8" in text
    assert "fewer than 6 cases" in text


def test_distances_that_nothing_had_are_left_out(tmp_path, call):
    folder = write_run(tmp_path, "base", BASE)
    rows = read_result(folder, "last").rows
    for row in rows[1:]:
        row["hd95"] = float("nan")
    write_cases(folder / "test" / "last", rows)
    other = write_run(tmp_path, "other", BASE + GAIN)
    text = call(
        folder, other, "--baseline", "base", "--figures", tmp_path / "figures", "--format", "svg"
    )
    assert rows_of(text)["base"][7] == "6.00"  # of one case: no sd
    assert re.search(r" 95HD +-?\+?[\d.-]+ +- +1 +- \(-\) +- \(-\)", text)


def test_a_class_and_the_mean_over_classes(tmp_path, call):
    folder = write_run(tmp_path, "base", BASE, classes=("RV", "LV"))
    rows = read_result(folder, "last").rows
    for row in rows:
        row["dice"] += 0.1 * (row["class"] == 2)
        row["prediction_voxels"] *= row["class"] != 2
    write_cases(folder / "test" / "last", rows)
    whole, one = rows_of(call(folder))["base"], rows_of(call(folder, "--class", "LV"))["base"]
    assert whole[5] == f"{100 * BASE.mean() + 5:.2f} ± {100 * BASE.std(ddof=1):.2f}"
    assert one[5] == f"{100 * BASE.mean() + 10:.2f} ± {100 * BASE.std(ddof=1):.2f}"
    assert (whole[4], one[4]) == ("8", "8")
    assert rows_of(call(folder, "--class", "RV"))["base"][4] == "0"


def test_a_class_has_the_papers_numbers_of_it(tmp_path, call):
    trained = {"dataset": "ACDC", "labelnum": 14, "method": "coranet_ovr"}
    folder = write_run(tmp_path, "ours", BASE, classes=("RV", "Myo", "LV"), trained=trained)
    path = tmp_path / "table.csv"
    text = call(folder, "--class", "RV", "--csv", path)
    assert "82.69 ± 0.48" in rows_of(text)["as published"]
    assert "CoraNet, Table IX is over runs" in text
    assert csv_of(path)["ours", "dice"]["published"] == "82.69 ± 0.48 (CoraNet, Table IX)"


# ----------------------------------------------------------------------------------- what is marked


def test_labelled_cases_kept_aside_are_taken_off(tmp_path, call):
    for source, shown in (("labeled", "8 - 2"), ("unlabeled", "8")):
        held = {"from": SOURCES[source], "cases": ["X", "Y"]}
        run = write_run(tmp_path, source, BASE, validation=held)
        assert rows_of(call(run))[source][0] == shown


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ({"trained": {"downsample": 2}, "test": {"stride": [9, 9, 1]}}, "resolution 1/2, not full"),
        ({"test": {"nms": 0}}, "components all, not the largest only"),
        ({"test": {"empty": "nan"}}, "empty masks nan, not zero"),
        ({"test": {"network": "net_2"}}, "network net_2, not as its paper"),
        ({"test": {"stride": [32, 32, 16]}}, "stride 32 32 16, not 18 18 4"),
        ({"list": "the validation list"}, "scored on the validation list, not the test list"),
        ({"scored": "slices"}, "scored by slices, not whole volumes"),
        ({"trained": {"dataset": "ACDC"}}, "data set ACDC, not LA"),
        (
            {"checkpoint": "step_50.pth", "selection": "a step on the way", "step": 50},
            "checkpoint step 50, a step on the way, not of the last iteration",
        ),
        (
            {
                "checkpoint": "best.pth",
                "selection": "best on validation cases: 4 labelled ones, Dice 81.00",
            },
            "checkpoint best, best on validation cases: 4 labelled ones, not of the last iteration",
        ),
        ({"classes": ("RV", "LV")}, "classes 2, not 1"),
    ],
)
def test_rows_that_may_not_be_compared_are_marked(told, words, tmp_path, call):
    base, same = write_run(tmp_path, "base", BASE), write_run(tmp_path, "same", BASE + GAIN)
    text = call(base, same, write_run(tmp_path, "other", BASE + GAIN, **told), "--baseline", "base")
    (note,) = [line for line in text.splitlines() if "other: not comparable with base" in line]
    assert note.endswith(f"not comparable with base: {words}.")
    rows = rows_of(text)
    assert rows["other"][-1] == note.split(" ")[0]
    assert rows["same"][-1] != rows["other"][-1]
    assert (
        sum(line.endswith(rows["other"][-1]) for line in text.splitlines()) == 2
    )  # in both tables


def test_cases_of_one_name_but_of_other_references_are_told(tmp_path, call):
    base, other = write_run(tmp_path, "base", BASE), write_run(tmp_path, "other", BASE)
    rows = read_result(other, "last").rows
    rows[0]["reference_voxels"] += 1
    write_cases(other / "test" / "last", rows)
    assert "other: not comparable with base: other references in 1 cases." in call(base, other)
    other = write_run(tmp_path, "other", BASE, trained={"downsample": 2})
    write_cases(other / "test" / "last", rows)  # at another resolution every reference is another
    assert "other references" not in call(base, other)


def test_the_dice_that_chose_a_checkpoint_does_not_mark_it(tmp_path, call):
    chosen = {"checkpoint": "best.pth", "tag": "best"}
    rule = "best on validation cases: 4 labelled ones, Dice "
    runs = [
        write_run(tmp_path, name, BASE, selection=rule + name, **chosen)
        for name in ("81.00", "82.00")
    ]
    text = call(*runs, "--test", "best")
    assert "not comparable" not in text
    assert f"Checkpoint best: {rule}81.00." in text


def test_what_is_no_result_yet_is_marked(tmp_path, call):
    run = write_run(
        tmp_path, "run", BASE, step=60, selection="the run is unfinished", listed_cases=20
    )
    text = call(run)
    assert "run, seed 1337: the run is unfinished, step 60 of 100." in text
    assert "run: only 8 of the list's 20 cases." in text
    assert rows_of(text)["run"][-1] == "[1, 2]"
    assert rows_of(text)["run"][1] == "60 of 100"


def test_seeds_that_differ_in_more_are_marked(tmp_path, call):
    write_run(tmp_path, "run", BASE, seed=1)
    write_run(
        tmp_path,
        "run",
        BASE,
        seed=2,
        trained={"labeled_bs": 2, "root": "elsewhere"},
        test={"nms": 0},
    )
    write_run(
        tmp_path, "asked", BASE, seed=1, trained={"precision": "fp32", "precision_asked": "fp32"}
    )
    write_run(
        tmp_path, "asked", BASE, seed=2, trained={"precision": "fp32", "precision_asked": "auto"}
    )
    assert "trained differently" not in call(tmp_path / "LA" / "asked")
    text = call(tmp_path / "LA" / "run")
    assert "run: its seeds were trained differently: labeled_bs." in text
    assert "run: its seeds were tested differently: components." in text


def test_empty_predictions_are_counted_and_told(tmp_path, call):
    for seed in (1, 2):
        run = write_run(tmp_path, "run", [0.0, 0.8, 0.0, 0.9], seed=seed)
    text = call(run.parent)
    assert rows_of(text)["run"][4] == "4"
    assert "Empty: an empty mask scores 0 everywhere." in text
    assert "No prediction and no reference was empty." in call(write_run(tmp_path, "full", BASE))


@pytest.mark.parametrize(
    ("told", "words"),
    [
        (
            {"checkpoint": "step_50.pth", "step": 50, "selection": "a step on the way"},
            "step 50 tested, not the last",
        ),
        (
            {"checkpoint": "best.pth", "selection": "best on validation cases"},
            "best tested, not the last iteration",
        ),
        ({"step": 50, "selection": "the run is unfinished"}, "the run is unfinished"),
        ({"test": {"network": "net_2"}}, "only its network net_2 tested"),
        ({"test": {"stride": [64, 64, 64]}}, "stride 64,64,64, not 18,18,4"),
        ({"unlike_published": ["lists drawn from seed 3"]}, "lists drawn from seed 3"),
    ],
    ids=["kept", "best", "unfinished", "network", "stride", "lists"],
)
def test_published_numbers_are_marked_where_the_result_is_another(told, words, tmp_path, call):
    printed = " ".join(call(write_run(tmp_path, "one", [0.7, 0.8], **told)).split())
    assert "one: the numbers of DMD, Table 1 are of another setting: " in printed
    assert words in printed.partition("another setting")[2]


def test_published_numbers_stand_below_and_are_marked_where_the_setting_is_another(tmp_path, call):
    usual = options_of(ROOT / "code" / "train_supervised.py", "--dataset", "LA", "--labelnum", "8")
    same = {"deterministic": 1, "compile": "1", "precision_asked": "fp32"}  # computed otherwise
    as_paper = write_run(
        tmp_path, "paper", BASE, trained=usual | {"seed": 1337, "root": "here", **same}
    )
    small = write_run(
        tmp_path, "small", BASE, trained=usual | {"downsample": 2, "patch": [64, 64, 32]}
    )
    dmd = write_run(tmp_path, "dmd", BASE, trained={"method": "dmd", "labeled_bs": 2})
    lines = call(as_paper, small, dmd).splitlines()
    below = [re.split(" {2,}", after) for line, after in pairwise(lines) if "±" in line]
    numbers = ["79.99", "68.12", "21.11", "5.48"]
    assert below[0] == ["as published", "8", *numbers, "DMD, Table 1"]
    assert below[1] == ["as published", "8", *numbers, "DMD, Table 1 [2]"]
    assert below[2][2:] == ["89.70", "81.42", "6.88", "1.78", "DMD, Table 1 [4]"]
    others = [line.split() for line in lines if line.endswith("CML, Table 1")]
    assert [line[3:7] for line in others] == [["82.74", "-", "13.35", "3.26"]]
    assert (
        "[2] small: the numbers of DMD, Table 1 are of another setting: downsample 2, not 1."
        in lines
    )
    assert (
        "[4] dmd: the numbers of DMD, Table 1 are of another setting: components the largest "
        "only, not all." in lines
    )


# -------------------------------------------------------------------------------------------- files


def test_markdown_and_latex_hold_both_tables_and_the_notes(tmp_path, call):
    base, other = (
        write_run(tmp_path, "base", BASE),
        write_run(tmp_path, "other", BASE + GAIN, test={"nms": 0}),
    )
    names = ["--names", "50 % & _x_", "[new]"]
    files = ["--markdown", tmp_path / "new" / "t.md", "--latex", tmp_path / "t.tex"]
    call(base, other, *names, "--baseline", "50 % & _x_", *files)
    markdown = (tmp_path / "new" / "t.md").read_text()
    assert {line.count("|") for line in markdown.splitlines() if line.startswith("|")} == {14, 9}
    assert "- [1] [new]: not comparable with 50 % & _x_: components" in markdown
    text = (tmp_path / "t.tex").read_text()
    assert "not comparable" not in text[: text.rindex(r"\end{tabular}")]
    assert text.count("not comparable") == 1
    assert (
        text.count(r"\begin{tabular}")
        == text.count(r"\end{tabular}")
        == text.count(r"\bottomrule")
        == 2
    )
    assert r"50 \% \& \_x\_ & 8 &" in text
    assert "{[}new] & 8 &" in text  # a bracket after the end of a line would be its argument
    assert re.search(r"\$\+\$3.88\*? & \$\+\$[\d.]+ to \$\+\$[\d.]+ & 8 &", text)
    for rows in re.findall(r"\\midrule\n(.*?)\\bottomrule", text, re.DOTALL):
        assert len({len(re.findall(r"(?<!\\)&", row)) for row in rows.splitlines()}) == 1
    assert not re.search(r"(?<!\\)[%_#]", text.split("\n", 1)[1].replace("{%", ""))


# ------------------------------------------------------------------------------------------ figures


@pytest.fixture
def compared(tmp_path):
    """Three methods, two of them with two numbers of labels, with learning curves and kept
    steps.
    """
    for method, gain in (("dmd", 0.1), ("supervised", 0.0)):
        for n in (4, 8):
            dice = BASE + gain + 0.01 * n
            folder = write_run(
                tmp_path, f"{method}_{n}_half", dice, trained={"labelnum": n, "method": method}
            )
            series = {
                "loss__loss": lambda s: 1 / s,
                "loss__loss_x": lambda s: -s,
                "val__dice": lambda s: s / 100,
            }
            write_training(folder, **series)
            kept = {"checkpoint": "step_30.pth", "step": 30, "tag": "step_30_nms0"}
            write_run(
                tmp_path, folder.parent.name, dice, trained={"labelnum": n}, **kept
            )  # of other options
            for step in (20, 40):
                kept = {"checkpoint": f"step_{step}.pth", "step": step, "tag": f"step_{step}"}
                write_run(
                    tmp_path,
                    folder.parent.name,
                    0.01 * step * dice,
                    trained={"labelnum": n},
                    **kept,
                )
    write_run(tmp_path, "cml_8", BASE + GAIN)
    runs = [str(tmp_path / "LA" / name) for name in ("supervised_8_half", "dmd_8_half", "cml_8")]
    runs += [str(tmp_path / "LA" / name) for name in ("supervised_4_half", "dmd_4_half")]
    return compare.compare(open_entries(runs, "last"), baseline="supervised_8_half", resamples=99)


def test_every_figure_is_drawn_on_a_page(compared, tmp_path, monkeypatch):
    monkeypatch.setattr("utils.figures.style.DPI", 50)  # quickly
    paths = list(comparison_plots.draw(compared, tmp_path / "figures"))
    names = ["boxes", *(f"pairs_{m}" for m in compared.metrics), "curves", "labels"]
    assert [path.name for path in paths] == [f"{name}.png" for name in names]
    widths = [imread(path).shape[1] / 50 for path in paths]
    assert widths == [7.0] * 6 + [3.5]


def texts(draw, path):
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        assert draw(path) is not False
    return re.findall(r"<text[^>]*>([^<]*)<", path.read_text())


def test_pairs_join_the_cases_and_say_what_came_of_them(compared, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(comparison_plots, "save", lambda figure, path: drawn.append(figure))
    comparison_plots.pairs_figure(tmp_path / "pairs.svg", compared, "dice")
    panel = next(ax for ax in drawn[0].axes if ax.get_xticklabels()[1].get_text() == "cml_8")
    *cases, mean = (line.get_ydata() for line in panel.lines)
    assert np.allclose(
        sorted(map(tuple, cases)),
        sorted(zip(100 * (BASE + 0.08), 100 * (BASE + GAIN), strict=True)),
    )
    assert np.allclose(mean, [100 * (BASE + 0.08).mean(), 100 * (BASE + GAIN).mean()])
    assert panel.get_title().startswith("0 of 8 better\n-4.12 (")
    assert {line.get_linestyle() for line in panel.lines[:-1]} == {"--"}
    comparison_plots.pairs_figure(tmp_path / "pairs.svg", compared, "hd95")  # where less is better
    panel = next(ax for ax in drawn[1].axes if ax.get_xticklabels()[1].get_text() == "dmd_8_half")
    assert panel.get_title().startswith("8 of 8 better\n-2.00 (")
    assert {line.get_linestyle() for line in panel.lines} == {"-"}


def test_the_curves_hold_losses_validation_and_kept_steps(compared, tmp_path, monkeypatch):
    look = comparison_plots.looks(compared)
    words = texts(
        lambda path: training_curves.comparison_figure(path, compared, look),
        tmp_path / "curves.svg",
    )
    assert {"Dice (%)", "validation (dotted) and test (points)"} <= set(words)
    assert "cml_8" not in words  # it has no curve
    drawn = []
    monkeypatch.setattr(training_curves, "save", lambda figure, path: drawn.append(figure))
    training_curves.comparison_figure("curves.svg", compared, look)
    loss, dice = drawn[0].axes
    assert len(loss.lines) == 2 * 4
    tested = next(line for line in dice.lines if line.get_marker() == "o")
    assert list(tested.get_xdata()) == [20, 40, 100]
    mean = 100 * (BASE + 0.08).mean()
    assert tested.get_ydata() == pytest.approx([0.2 * mean, 0.4 * mean, mean])
    without = replace(compared, entries=compared.entries[2:3])
    assert not training_curves.comparison_figure("curves.svg", without, look)


def test_a_line_joins_the_runs_that_differ_in_labels_alone(compared, tmp_path, monkeypatch):
    words = texts(
        lambda path: comparison_plots.labels_figure(path, compared), tmp_path / "labels.svg"
    )
    assert {"supervised half", "dmd half", "cml"} <= set(words)
    assert [word for word in words if word in ("4", "8")] == ["4", "8"]
    one = replace(compared, entries=compared.entries[:3])
    assert not comparison_plots.labels_figure(tmp_path / "none.svg", one)
    assert not (tmp_path / "none.svg").exists()


def test_the_mean_over_records_keeps_what_is_constant_and_shortens_at_the_ends():
    assert training_curves.smooth(np.full(100, 3.0)) == pytest.approx(np.full(100, 3.0))
    smooth = training_curves.smooth(np.arange(100.0))
    assert (smooth[0], smooth[50], smooth[99]) == (1.0, 50.0, 98.0)  # over 2 records to either side


# ------------------------------------------------------------------------------------------- errors


def test_one_run_alone_is_a_table_without_tests(tmp_path, call):
    text = call(write_run(tmp_path, "run", BASE), "--metrics", "recall")
    assert list(rows_of(text)[""][4:6]) == ["empty", "Recall %"]
    assert "name a second run" in text
    assert "p t-test" not in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{}/nothing"], r"nothing: no such folder"),
        (["{}"], r"neither a run nor a folder of seeds"),
        (["{}/LA"], r"there are runs in base, half, other, untested: name them"),
        (
            ["{}/LA/base", "--baseline", "bas"],
            r"--baseline bas: not among these runs; did you mean base\?",
        ),
        (["{}/LA/base", "--baseline", "zzz"], r"must be one of base"),
        (["{}/LA/base", "--class", "LV"], r"--class LV: no such class; there are left atrium"),
        (["{}/LA/base", "--names", "a", "b"], r"--names: 2 names for 1 rows"),
        (
            ["{}/LA/base", "{}/LA/other:last_nms0", "--names", "a", "a"],
            r"--names: two of them are the same",
        ),
        (
            ["{}/LA/other"],
            r"no results last; make them with: .*test_LA.py --run .*1337; it has last_nms0: take",
        ),
        (
            ["{}/LA/base:step_500_nms0"],
            r"test_LA.py --run \S+ --checkpoint 500 --nms 0; it has last",
        ),
        (["{}/LA/untested"], r"no results last; it has no checkpoint to test: train it first"),
    ],
)
def test_errors(arguments, message, tmp_path, call):
    write_run(tmp_path, "base", BASE)
    write_run(tmp_path, "other", BASE, tag="last_nms0")
    write_run(tmp_path, "half", BASE)
    folder = tmp_path / "LA" / "untested" / "seed1"
    folder.mkdir(parents=True)
    (folder / "args.json").write_text("{}")
    with pytest.raises(UserError, match=message) as error:
        call(*(argument.format(tmp_path) for argument in arguments))
    assert "\n" not in str(error.value)


def break_json(results):
    (results / "summary.json").write_text('{"cases": 8')


def drop_a_key(results):
    summary = json.loads((results / "summary.json").read_text())
    del summary["trained"]["method"]
    (results / "summary.json").write_text(json.dumps(summary))


def cut_the_cases(results):
    lines = (results / "per_case.csv").read_text().splitlines()
    (results / "per_case.csv").write_text("\n".join(lines[:-1]) + "\n")


def break_a_number(results):
    (results / "per_case.csv").write_text(
        (results / "per_case.csv").read_text().replace("0.7,", "0.7x,", 1)
    )


def drop_a_column(results):
    (results / "per_case.csv").write_text(
        (results / "per_case.csv").read_text().replace("hd95", "hd90", 1)
    )


def repeat_a_case(results):
    (results / "per_case.csv").write_text(
        (results / "per_case.csv").read_text().replace("\nB,", "\nA,", 1)
    )


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (break_json, r"summary.json: damaged; make them with: python code/test_LA.py --run "),
        (drop_a_key, r"summary.json: damaged"),
        (cut_the_cases, r"per_case.csv and summary.json are not of one test"),
        (break_a_number, r"per_case.csv: damaged"),
        (drop_a_column, r"per_case.csv: damaged"),
        (repeat_a_case, r"per_case.csv: damaged"),
        (lambda results: (results / "per_case.csv").unlink(), r"per_case.csv: missing"),
        (lambda results: (results / "per_case.csv").write_text(""), r"per_case.csv: damaged"),
    ],
)
def test_damaged_results(spoil, message, tmp_path, call):
    folder = write_run(tmp_path, "run", BASE)
    spoil(folder / "test" / "last")
    with pytest.raises(UserError, match=message):
        call(folder)


def test_a_run_is_called_by_its_folder_from_wherever_it_is_named(tmp_path, monkeypatch):
    folder = write_run(tmp_path, "run", BASE)
    monkeypatch.chdir(folder)
    (entry,) = open_entries([".", str(folder), ".."], "last")
    assert (entry.label, len(entry.results)) == ("run", 1)
    assert compare.find_entry([entry], "..") is compare.find_entry([entry], str(folder)) is entry


def test_runs_of_one_name_are_told_apart(tmp_path):
    one, two = write_run(tmp_path / "a", "run", BASE), write_run(tmp_path / "b", "run", BASE)
    write_run(tmp_path / "a", "run", BASE, tag="last_nms0")
    labels = [entry.label for entry in open_entries([str(one), f"{one}:last_nms0"], "last")]
    assert labels == ["run:last", "run:last_nms0"]
    labels = [entry.label for entry in open_entries([str(one), str(two)], "last")]
    assert labels == [str(one.parent), str(two.parent)]
    (entry,) = open_entries([str(one), str(one / "test" / "last")], "last_nms0")[1:]
    assert entry.first.tag == "last"


def test_the_metrics_that_the_test_showed_are_the_columns(tmp_path, call):
    shown = {"test": {"metrics": ["dice", "hd"]}}
    text = call(write_run(tmp_path, "run", BASE, **shown), write_run(tmp_path, "other", BASE))
    assert rows_of(text)[""][5:7] == ["Dice %", "HD"]
