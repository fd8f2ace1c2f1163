import importlib.util
from pathlib import Path

import pytest
import torch
from torch.utils import cpp_extension

pytest.importorskip("setuptools")
SETUP = Path(__file__).resolve().parents[1] / "setup.py"


@pytest.fixture
def setup():
    """setup.py as a module, without building anything."""
    spec = importlib.util.spec_from_file_location("setup_py", SETUP)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """Simulates a machine: machine(torch's CUDA version, nvcc's version or None, has a GPU)."""

    def pretend(cuda, nvcc, gpu, force="0"):
        home = tmp_path / "cuda"
        (home / "bin").mkdir(parents=True)
        if nvcc:
            path = home / "bin" / "nvcc"
            path.write_text(
                f"#!/bin/sh\necho 'Cuda compilation tools, release {nvcc}, V{nvcc}.88'\n"
            )
            path.chmod(0o755)
        monkeypatch.setattr(torch.version, "cuda", cuda)
        monkeypatch.setattr(cpp_extension, "CUDA_HOME", str(home))
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
        monkeypatch.setenv("FORCE_CUDA", force)

    return pretend


@pytest.mark.parametrize(
    ("cuda", "nvcc", "gpu", "force", "wanted"),
    [
        ("13.0", "13.0", True, "0", True),
        ("13.0", "13.2", True, "0", True),  # torch builds across minor versions
        ("13.0", "12.8", True, "0", False),
        ("13.0", "13.0", False, "0", False),
        ("13.0", None, True, "0", False),
        (None, "13.0", False, "0", False),
        ("13.0", "13.0", False, "1", True),
    ],
)
def test_cuda_is_built_where_it_can_run_or_is_forced(
    setup, machine, cuda, nvcc, gpu, force, wanted
):
    machine(cuda, nvcc, gpu, force)
    assert setup.wants_cuda() is wanted


def test_another_nvcc_than_torchs_is_reported_in_one_line(setup, machine, capsys):
    machine("13.0", "12.8", gpu=True)
    assert setup.wants_cuda() is False
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert "CUDA 13.0" in message
    assert "nvcc 12.8" in message


def test_nvcc_that_does_not_run_is_none(setup, machine):
    machine("13.0", "13.0", gpu=True)
    (Path(cpp_extension.CUDA_HOME) / "bin" / "nvcc").write_text("#!/bin/sh\nexit 1\n")
    assert setup.wants_cuda() is False


@pytest.mark.parametrize(
    ("cuda", "nvcc", "message"),
    [
        (None, "13.0", "without CUDA"),
        ("13.0", None, "nvcc"),
        ("13.0", "12.8", r"CUDA 13\.0, .* nvcc 12\.8"),
    ],
)
def test_forced_cuda_that_cannot_be_built_exits_with_one_line(setup, machine, cuda, nvcc, message):
    machine(cuda, nvcc, gpu=False, force="1")
    with pytest.raises(SystemExit, match=message) as exit_:
        setup.wants_cuda()
    assert "\n" not in str(exit_.value)


def test_the_extension_holds_every_source(setup, machine):
    machine(None, nvcc=None, gpu=False)
    extension = setup.extension()
    root = SETUP.parent
    expected = {
        str(path.relative_to(root))
        for path in [*root.glob("csrc/*.cpp"), *root.glob("csrc/cpu/*.cpp")]
    }
    assert set(extension.sources) == expected
    assert "csrc/ops.cpp" in expected
    assert extension.name == "utils.ops._C"


def test_werror_counts_only_our_warnings(setup, machine, monkeypatch):
    machine(None, nvcc=None, gpu=False)
    monkeypatch.setenv("WERROR", "1")
    flags = setup.extension().extra_compile_args["cxx"]
    assert "-Werror" in flags
    for path in cpp_extension.include_paths():
        assert flags[flags.index(path) - 1] == "-isystem"
    monkeypatch.setenv("WERROR", "0")
    assert "-Werror" not in setup.extension().extra_compile_args["cxx"]
