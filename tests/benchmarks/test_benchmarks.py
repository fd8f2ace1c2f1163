"""The benchmarks run on tiny data, compare before they time, and write what they found."""

import contextlib
import io
import json
import os
import subprocess
import sys
import time
from collections import defaultdict
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))

import bench_gpu
import bench_inference
import bench_memory
import bench_ops
import bench_step
import harness
import research
from watched_step import Watch

GPU_SH = ROOT / "benchmarks" / "gpu.sh"


@pytest.fixture
def bench(one_thread):
    """Run a benchmark's `main` in this process and return what it printed."""

    def run(module, *arguments):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            module.main([str(word) for word in arguments])
        return printed.getvalue()

    return run


# --------------------------------------------------------------------- what only a GPU can show


def test_the_gpu_benchmark_tries_out_on_a_cpu(bench, tmp_path):
    out = tmp_path / "results.json"
    bench(bench_gpu, "--device", "cpu", "--json", out)
    found = json.loads(out.read_text())
    assert found["environment"]["torch"]
    sections = bench(bench_gpu, "--list").split()
    assert list(dict.fromkeys(row["section"] for row in found["rows"])) == sections
    assert all(row.get("skipped") or row["eager_us"] > 0 for row in found["rows"])
    assert "driven" in bench(bench_gpu, "drive", "--device", "cpu")


def gpu_sh(folder, build_status, *sections):
    """Run gpu.sh with an interpreter that exits with `build_status` instead of building."""
    stub = folder / "python"
    stub.write_text(
        "#!/usr/bin/env bash\n"
        f'case "$*" in *build_ext*) echo "no compiler here"; exit {build_status};; esac\n'
        f'exec "{sys.executable}" "$@"\n'
    )
    stub.chmod(0o755)
    environment = os.environ | {"PYTHON": str(stub)}
    command = [GPU_SH, "found/", *sections]  # a folder below the caller's
    return subprocess.run(
        command, capture_output=True, text=True, cwd=folder, env=environment, check=False
    )


def test_nothing_is_timed_after_a_failed_build(tmp_path):
    assert gpu_sh(tmp_path, 7).returncode == 1
    assert [path.name for path in (tmp_path / "found").iterdir()] == ["build.log"]
    assert (tmp_path / "found" / "build.log").read_text() == "no compiler here\n"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_chosen_section_is_timed_without_a_gpu(tmp_path):
    assert gpu_sh(tmp_path, 0, "tests", "copy_bandwidth", "step_dtml").returncode == 1
    logs = {path.name: path.read_text() for path in (tmp_path / "found").iterdir()}
    assert logs.keys() == {"build.log", "check.log"}
    assert "no GPU" in logs["check.log"]


def test_a_section_that_does_not_exist(tmp_path):
    done = gpu_sh(tmp_path, 0, "tests", "nonsense")
    assert done.returncode == 2
    assert "nonsense" in done.stderr
    assert "memcheck" in done.stderr


# --------------------------------------------------------------- a step and a test case, end to end


@pytest.fixture
def settings(tmp_path, one_thread):
    """Tiny settings for `bench_step.check`."""
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


def test_a_rivals_step_is_ours_only(bench, tmp_path):
    """SS-Net also has networks whose shapes depend on values."""
    out = tmp_path / "step.json"
    methods = ["mt", "ssnet"]
    printed = bench(bench_step, "--small", "--rounds", 1, "--methods", *methods, "--json", out)
    rows = json.loads(out.read_text())["rows"]
    assert [row["method"] for row in rows] == methods
    for row in rows:
        assert row["ratio"] is None
        assert row["times_of_passes"] == pytest.approx(1 / (1 - row["other_share"]), abs=1e-3)
        assert f"| {row['method']} | " in printed


def test_every_method_has_a_step_to_time():
    scripts = {path.stem.removeprefix("train_") for path in (ROOT / "code").glob("train_*.py")}
    forms = {"coranet_ovr", "coranet_uncertainty"}  # of CoraNet
    assert scripts - forms == set(bench_step.METHODS)


BOTH_SIDES = [case for case in bench_step.CASES if case.method in research.METHODS]


@pytest.mark.parametrize("case", BOTH_SIDES, ids=str)
def test_both_sides_of_a_step_agree(case, settings):
    assert bench_step.check(small(case), settings) < bench_step.RTOL


def test_no_step_is_timed_where_the_sides_differ(bench, monkeypatch):
    monkeypatch.setattr(research, "compute_sdf", lambda label: torch.zeros(label.shape))
    with pytest.raises(AssertionError, match="dtml: loss"):
        bench(bench_step, "--small", "--methods", "dtml")


def test_parts_leave_out_what_is_timed_inside_them(monkeypatch):
    clock = iter(range(0, 100, 10))
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    watch = Watch(SimpleNamespace(device="cpu"), parts=[defaultdict(float)], _apart=True)
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
    """Each voxel has the mean over its windows, which the network tells apart by their corner."""
    image = np.zeros((5, 4, 2), np.float32)
    image[0] = 1

    def network(x):
        bright = x.amax((2, 3, 4), keepdim=True).expand(1, 1, 4, 4, 2)
        return torch.cat((torch.zeros_like(bright), 4 * bright - 1), 1)

    labels = research.predict(network, image, (4, 4, 2), (1, 1, 1), torch.device("cpu"))
    # the first window gives 0.95, the second 0.27, and their mean is 0.61
    assert labels[:, 0, 0].tolist() == [1, 1, 1, 1, 0]


def test_no_case_is_timed_where_the_labels_differ(bench, monkeypatch):
    monkeypatch.setattr(research, "keep_largest", lambda label: 1 - label)
    with pytest.raises(AssertionError, match="voxels differ"):
        bench(bench_inference, "--small")


def test_the_network_sees_only_the_first_windows():
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
        (bench_gpu, ["nonsense"], "copy_bandwidth"),
        (bench_gpu, ["--device", "tpu"], "tpu"),
        (bench_ops, ["nonsense"], "largest_component"),
        (bench_step, ["--methods", "nonsense"], "nonsense"),
        (bench_step, ["--warmup", "0"], "--warmup"),
        (bench_inference, ["--run", "nowhere"], "last.pth"),
        (bench_inference, ["--windows", "0"], "--windows"),
        (bench_memory, ["--precision", "fp8"], "fp8"),
    ],
)
def test_wrong_options(module, arguments, message, capsys):
    with pytest.raises(SystemExit) as ended:
        module.parse(arguments)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
