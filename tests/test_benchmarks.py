"""The benchmarks run where nothing is timed in earnest, and leave what they found when they are cut short."""

import json
import os
import subprocess
import sys

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
        assert all(row["eager_us"] > 0 for row in section["rows"])
    assert "driven" in python(BENCH_GPU, "drive", "--device", "cpu")


def test_a_failed_section_is_recorded_and_the_rest_goes_on(tmp_path):
    stub = tmp_path / "python"
    stub.write_text(
        "#!/usr/bin/env bash\n"
        f'case "$*" in *--record*|*--list*) exec "{sys.executable}" "$@";; esac\n'
        'echo "no $1 here"; exit 7\n'
    )
    stub.chmod(0o755)
    out = tmp_path / "gpu.json"
    script = [ROOT / "benchmarks" / "gpu.sh", out]
    done = subprocess.run(script, capture_output=True, text=True, env=os.environ | {"PYTHON": str(stub)}, check=False)
    assert done.returncode == 1
    sections = json.loads(out.read_text())["sections"]
    assert sections["build"]["status"] == 7
    assert sections["build"]["tail"] == ["no setup.py here"]
    assert {"tests", "copy_bandwidth", "crop_rot_flip"} <= sections.keys()
