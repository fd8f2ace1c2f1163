"""The benchmarks run where nothing is timed in earnest, and leave what they found when they are cut
short.
"""

import contextlib
import io
import json
import os
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))

import bench_gpu
import bench_inference
import bench_step
import harness
import research

BENCH_GPU = ROOT / "benchmarks" / "bench_gpu.py"


def python(*arguments):
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_gpu_benchmark_tries_out_on_a_cpu(tmp_path):
    out = tmp_path / "results.json"
    sections = python(BENCH_GPU, "--list").split()
    python(BENCH_GPU, "--device", "cpu", "--json", out)
    found = json.loads(out.read_text())
    assert found["environment"]["torch"]
    assert list(found["sections"]) == sections
    for section in found["sections"].values():
        assert all(row.get("skipped") or row["eager_us"] > 0 for row in section["rows"])
    assert "driven" in python(BENCH_GPU, "drive", "--device", "cpu")


@pytest.fixture
def sections_after(tmp_path):
    """What gpu.sh records with an interpreter that builds nothing: it gives the status instead."""

    def run(build_status, *names):
        stub = tmp_path / "python"
        stub.write_text(
            "#!/usr/bin/env bash\n"
            f'case "$*" in *build_ext*) echo "no compiler here"; exit {build_status};; esac\n'
            f'exec "{sys.executable}" "$@"\n'
        )
        stub.chmod(0o755)
        done = subprocess.run(
            [ROOT / "benchmarks" / "gpu.sh", "gpu.json", *names],  # from where the caller stands
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env=os.environ | {"PYTHON": str(stub)},
            check=False,
        )
        assert done.returncode == 1, done.stderr
        return json.loads((tmp_path / "gpu.json").read_text())["sections"]

    return run


def test_nothing_is_timed_after_a_failed_build(sections_after):
    sections = sections_after(build_status=7)
    assert sections["build"]["status"] == 7
    assert sections["build"]["tail"] == ["no compiler here"]
    for name in (
        "check",
        "tests",
        "memcheck",
        "copy_bandwidth",
        "crop_rot_flip",
        "step_dtml",
        "test_cases",
    ):
        assert sections[name] == {"not_run": "build failed"}


def test_a_section_that_does_not_exist():
    command = [ROOT / "benchmarks" / "gpu.sh", "x.json", "tests", "nonsense"]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHON": sys.executable},
        check=False,
    )
    assert done.returncode == 2
    assert "no section nonsense: choose from tests memcheck" in done.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_chosen_section_is_timed_without_a_gpu(sections_after):
    chosen = ("tests", "copy_bandwidth", "step_dtml")
    sections = sections_after(0, *chosen)
    assert sections.keys() == {"build", "check", *chosen}
    assert sections["check"]["status"] == 1
    assert sections["check"]["tail"] == [
        "bench_gpu.py: torch sees no GPU; --device cpu tries the script out",
    ]
    for name in chosen:
        assert sections[name] == {"not_run": "check failed"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nonsense"], "unknown section nonsense: choose from copy_bandwidth"),
        (["--record", "build"], "--record needs --json"),
        (
            ["--record", "build", "--json", "x.json"],
            "--record needs --not-run, or --status and a file for --log",
        ),
        (["--device", "tpu"], "invalid choice: 'tpu'"),
    ],
)
def test_wrong_options(arguments, message):
    done = subprocess.run(
        [sys.executable, BENCH_GPU, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert message in done.stderr


# ----------------------------------------------------------------------------------- a step and a test case, end to end


@pytest.fixture
def bench(monkeypatch, one_thread):
    """Run a benchmark's `main` in this process and give back what it printed."""

    def run(module, *arguments):
        monkeypatch.setattr(sys, "argv", [f"{module.__name__}.py", *map(str, arguments)])
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            module.main()
        return printed.getvalue()

    return run


@pytest.fixture
def settings(tmp_path, one_thread):
    """Of `bench_step.check`, tiny."""
    root, _ = harness.la_root(tmp_path, small=True)
    sizes = {
        "patch": (32, 32, 16),
        "n_filters": 2,
        "labelnum": 4,
        "warmup": 1,
        "steps": 1,
        "workers": 1,
    }
    return bench_step.Settings(root, "cpu", 1, **sizes)


def small(case):
    return bench_step.replace(case, batch=(2, 2) if case.batch[1] else (2, 0))


def test_rows_of_another_benchmark_are_recorded(bench, tmp_path):
    out, log, rows = (tmp_path / name for name in ("out.json", "log", "rows.json"))
    log.write_text("| dtml |\n")
    rows.write_text('{"environment": {}, "rows": [{"method": "dtml"}]}')
    ended = "--json", out, "--status", 0, "--seconds", 9, "--log", log
    bench(bench_gpu, "--record", "step_dtml", *ended, "--rows", rows)
    bench(bench_gpu, "--record", "tests", *ended, "--rows", tmp_path / "none.json")
    sections = json.loads(out.read_text())["sections"]
    assert sections["step_dtml"] == {
        "status": 0,
        "seconds": 9,
        "tail": ["| dtml |"],
        "rows": [{"method": "dtml"}],
    }
    assert "rows" not in sections["tests"]


def test_a_step_is_taken_apart(bench, tmp_path):
    out = tmp_path / "step.json"
    printed = bench(
        bench_step, "--small", "--methods", "cml", "--phase", "self-training", "--json", out
    )
    found = json.loads(out.read_text())
    (row,) = found["rows"]
    assert found["environment"]["torch"]
    assert (row["method"], row["phase"], row["crops"]) == ("cml", "self-training", [2, 2])
    assert row["parts_ms"].keys() == bench_step.PARTS.keys()
    assert all(row["parts_ms"][part] > 0 for part in bench_step.PARTS)  # the teacher: pseudo-labels
    assert 0 < row["other_share"] < 1
    assert row["ratio"] == pytest.approx(row["research_step_ms"] / row["step_ms"], abs=0.01)
    assert "| cml, self-training | " in printed


@pytest.mark.parametrize("case", bench_step.CASES, ids=str)
def test_both_sides_of_a_step_agree(case, settings):
    assert bench_step.check(small(case), settings) < bench_step.RTOL


def test_no_step_is_timed_where_the_sides_differ(bench, monkeypatch):
    monkeypatch.setattr(research, "compute_sdf", lambda label: torch.zeros(label.shape))
    with pytest.raises(
        AssertionError, match="dtml: loss of the research-style pipeline against our script's"
    ):
        bench(bench_step, "--small", "--methods", "dtml")


def test_parts_leave_out_what_is_timed_inside_them(monkeypatch):
    clock = iter(range(0, 100, 10))
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    watch = bench_step.Watch(
        SimpleNamespace(device="cpu"), parts=[bench_step.defaultdict(float)], _apart=True
    )
    inner = watch.timed(lambda: None, "inner")
    watch.timed(lambda: (inner(), inner()), "outer")()
    assert watch.parts == [{"inner": 20, "outer": 30}]


def test_a_test_case_end_to_end(bench, tmp_path):
    out = tmp_path / "case.json"
    printed = bench(bench_inference, "--small", "--windows", 3, "--cases", 5, "--json", out)
    mine, reference = json.loads(out.read_text())["rows"]
    assert "8 windows of 32×32×16, of which the network saw 3 and its time was scaled" in printed
    for row in (mine, reference):
        assert row["parts_s"].keys() == set(bench_inference.PARTS)
        assert all(seconds > 0 for seconds in row["parts_s"].values())
        assert row["cases"] == 2  # all there are
    assert mine["ratio"] == 1
    assert reference["ratio"] == pytest.approx(reference["case_s"] / mine["case_s"], abs=0.02)
    assert mine["dice_between_labels"] > 0.9


def test_the_research_loop_predicts_by_the_protocol():
    """Windows that the network tells apart by their corner: each voxel has the mean over those that
    cover it.
    """
    image = np.zeros((5, 4, 2), np.float32)
    image[0] = 1

    def network(x):
        bright = x.amax((2, 3, 4), keepdim=True).expand(1, 1, 4, 4, 2)
        return torch.cat((torch.zeros_like(bright), 4 * bright - 1), 1)

    labels = research.predict(network, image, (4, 4, 2), (1, 1, 1), torch.device("cpu"))
    # the first window says 0.95, the second 0.27: together 0.61
    assert labels[:, 0, 0].tolist() == [1, 1, 1, 1, 0]


def test_no_case_is_timed_where_the_labels_differ(bench, monkeypatch):
    monkeypatch.setattr(research, "keep_largest", lambda label: 1 - label)
    with pytest.raises(AssertionError, match="voxels differ from the research loop's"):
        bench(bench_inference, "--small")


def test_the_network_sees_the_first_windows_alone():
    network = SimpleNamespace(segment=lambda x: 2 * x)
    first = bench_inference.FirstWindows(network, 2, bench_inference.Watch("cpu"))
    outputs = [first.segment(torch.full((1, 1, 2, 2, 2), float(k))).mean().item() for k in range(6)]
    assert outputs == [0, 2, 2, 2, 2, 2]
    spent, scaled = first.scaled()
    assert scaled == pytest.approx(3 * spent)


def test_a_process_of_its_own():
    assert harness.in_own_process(os.getpid) != os.getpid()


@pytest.mark.parametrize(
    ("module", "arguments", "message"),
    [
        (bench_step, ["--methods", "nonsense"], "invalid choice: 'nonsense'"),
        (bench_step, ["--warmup", 0], "--steps, --warmup and --rounds must be at least 1"),
        (bench_inference, ["--run", "nowhere"], "--run nowhere: no last.pth in it"),
        (bench_inference, ["--windows", 0], "must be at least 1"),
    ],
)
def test_wrong_options_of_a_step_and_of_a_case(module, arguments, message, bench, capsys):
    with pytest.raises(SystemExit):
        bench(module, *arguments)
    assert message in capsys.readouterr().err
