"""Every CUDA kernel compiles without warnings on a machine with nvcc. Nothing is run."""

import shutil
import subprocess

import pytest
from conftest import ROOT


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc on this machine")
def test_kernels_compile_for_sm_80_and_sm_90():
    script = ROOT / ".ci" / "compile_cuda"
    done = subprocess.run([script], capture_output=True, text=True, check=False)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    for architecture in ("sm_80", "sm_90"):
        assert done.stdout.count(architecture) == len(list((ROOT / "csrc" / "cuda").glob("*.cu")))
