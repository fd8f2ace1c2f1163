"""The library is found, checked, and replaced by the references where it is not built."""

import os
import shutil
import subprocess
import sys

import pytest
import torch
from conftest import ROOT

from utils.ops import _library


def test_the_library_under_test_is_the_compiled_one():
    assert _library.BUILT, "these tests need the compiled operators: see docs/contributing.md"


def run_copy(folder, code):
    """Runs code on a copy of utils/ops that has no compiled library."""
    (folder / "utils").mkdir()
    (folder / "utils" / "__init__.py").touch()
    without_library = shutil.ignore_patterns("*.so", "*.pyd")
    shutil.copytree(ROOT / "utils" / "ops", folder / "utils" / "ops", ignore=without_library)
    environment = {name: value for name, value in os.environ.items() if name != "SEMISEG_LIBRARY"}
    command = [sys.executable, "-W", "always", "-c", code]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def test_not_built_means_one_warning_and_the_reference(tmp_path):
    code = """
import torch
from utils.ops import *
mask = torch.rand(2, 6, 7, generator=torch.Generator().manual_seed(0)) < 0.3
assert torch.equal(signed_distance(mask, (1, 2)), signed_distance_reference(mask, (1, 2)).float())
assert normalized_sdm(mask).dtype == torch.float32
compiled = torch.compile(normalized_sdm, fullgraph=True, backend="aot_eager")
assert torch.equal(compiled(mask), normalized_sdm_reference(mask).float())

starts = window_starts((9, 8), (4, 4), (3, 2))
logits, weights = torch.randn(9, 3, 4, 4), torch.rand(4, 4)
for activation in ("softmax", "sigmoid", None):
    want = stitch_windows_reference(logits, starts, (9, 8), activation, weights).float()
    torch.testing.assert_close(stitch_windows(logits, starts, (9, 8), activation, weights), want)
compiled = torch.compile(stitch_windows, fullgraph=True, backend="aot_eager")
torch.testing.assert_close(compiled(logits, starts, (9, 8), None, weights), want)
"""
    done = run_copy(tmp_path, code)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("not built") == 1, done.stderr


def test_built_but_broken_raises(tmp_path):
    code = "open('utils/ops/_C.abi3.so', 'w').write('torn'); import utils.ops"
    done = run_copy(tmp_path, code)
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError")
    assert "_C.abi3.so" in last
    assert "rebuild" in last


@pytest.mark.parametrize(
    "schema", ["signed_distance(Tensor mask) -> Tensor", "no_such_operator(Tensor mask) -> Tensor"]
)
def test_built_from_other_sources_raises(schema):
    with pytest.raises(ImportError, match="rebuild"):
        _library.register(schema, torch.neg, torch.neg)


def test_built_for_the_cpu_alone_serves_cuda_through_it():
    code = """
import torch
from utils.ops import _library, signed_distance
assert _library.BUILT
assert torch._C._dispatch_has_kernel_for_dispatch_key("semiseg::signed_distance", "CUDA")
operator = _library.through_cpu(torch.ops.semiseg.signed_distance.default)
mask = torch.rand(2, 6, 7, generator=torch.Generator().manual_seed(0)) < 0.3
for _ in range(2):
    assert torch.equal(operator(mask, [1.0, 2.0], False), signed_distance(mask, (1, 2)))
"""
    command = [sys.executable, "-W", "always", "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("FORCE_CUDA=1") == 1, done.stderr
