"""The benchmarks run where nothing is timed in earnest, and leave what they found when they are cut short."""

import json
import os
import subprocess
import sys

import pytest
import torch
from conftest import ROOT

BENCH_GPU = ROOT / "benchmarks" / "bench_gpu.py"


def python(*arguments):
    done = subprocess.run([sys.executable, *map(str, arguments)], capture_output=True, text=True, cwd=ROOT, check=False)
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

    def run(build_status):
        stub = tmp_path / "python"
        stub.write_text(
            "#!/usr/bin/env bash\n"
            f'case "$*" in *build_ext*) echo "no compiler here"; exit {build_status};; esac\n'
            f'exec "{sys.executable}" "$@"\n'
        )
        stub.chmod(0o755)
        done = subprocess.run(
            [ROOT / "benchmarks" / "gpu.sh", "gpu.json"],  # from where the caller stands
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
    for name in ("check", "tests", "memcheck", "copy_bandwidth", "crop_rot_flip"):
        assert sections[name] == {"not_run": "build failed"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_nothing_is_timed_without_a_gpu(sections_after):
    sections = sections_after(build_status=0)
    assert sections["check"]["status"] == 1
    assert sections["check"]["tail"] == [
        "bench_gpu.py: torch sees no GPU; --device cpu tries the script out",
    ]
    for name in ("tests", "memcheck", "copy_bandwidth", "crop_rot_flip"):
        assert sections[name] == {"not_run": "check failed"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nonsense"], "unknown section nonsense: choose from copy_bandwidth"),
        (["--record", "build"], "--record needs --json"),
        (["--record", "build", "--json", "x.json"], "--record needs --not-run, or --status and a file for --log"),
        (["--device", "tpu"], "invalid choice: 'tpu'"),
    ],
)
def test_wrong_options(arguments, message):
    done = subprocess.run([sys.executable, BENCH_GPU, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert message in done.stderr
