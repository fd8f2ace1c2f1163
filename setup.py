"""Builds the compiled operators in csrc/ into one library that torch loads: utils/ops/_C.abi3.so.

The CUDA kernels are built too if torch is built for CUDA, there is a GPU, and nvcc has the same
major version. FORCE_CUDA=1 builds them without a GPU (for the architectures in
TORCH_CUDA_ARCH_LIST, default "8.0;9.0+PTX"), or fails. WERROR=1 turns warnings into errors.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import torch
from setuptools import Extension, setup
from torch.utils import cpp_extension

ROOT = Path(__file__).resolve().parent


def nvcc_version() -> str | None:
    """CUDA version of the nvcc under CUDA_HOME, such as "13.0"; None if no nvcc runs there."""
    if cpp_extension.CUDA_HOME is None:
        return None
    command = [Path(cpp_extension.CUDA_HOME) / "bin" / "nvcc", "--version"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    release = re.search(r"release (\d+\.\d+)", done.stdout)
    return release and release[1]


def wants_cuda() -> bool:
    """Whether to build the CUDA kernels. Exits if FORCE_CUDA=1 is set and this machine cannot."""
    forced = os.environ.get("FORCE_CUDA", "0") == "1"
    if torch.version.cuda is None:
        if forced:
            sys.exit(
                f"FORCE_CUDA=1 needs a CUDA build of torch, and torch {torch.__version__} is built "
                "without CUDA"
            )
        return False
    if not forced and not torch.cuda.is_available():
        return False
    nvcc = nvcc_version()
    if nvcc is None:
        if forced:
            sys.exit(
                f"FORCE_CUDA=1 needs nvcc, and none runs under CUDA_HOME={cpp_extension.CUDA_HOME}"
            )
        return False
    # torch refuses to build across major versions
    if nvcc.split(".")[0] != torch.version.cuda.split(".")[0]:
        versions = (
            f"torch is built for CUDA {torch.version.cuda}, and {cpp_extension.CUDA_HOME} holds "
            f"nvcc {nvcc}"
        )
        if forced:
            sys.exit(f"FORCE_CUDA=1 needs nvcc of torch's major version: {versions}")
        print(f"building the operators only for the CPU: {versions}", file=sys.stderr)
        return False
    return True


def extension() -> Extension:
    """The extension, for the CPU or for CPU and CUDA."""
    cuda = wants_cuda()
    folders = ["csrc", "csrc/cpu"]
    if cuda:
        folders.append("csrc/cuda")
    sources = []
    for folder in folders:
        for pattern in ("*.cpp", "*.cu"):
            sources += [str(path.relative_to(ROOT)) for path in (ROOT / folder).glob(pattern)]
    cxx = ["-O3", "-g0", "-std=c++17", "-fvisibility=hidden"]
    # Loops with square roots vectorise only if roots set no errno and raise no signal. The values
    # keep the same bits.
    cxx += ["-fno-math-errno", "-fno-trapping-math"]
    nvcc = ["-O3", "-std=c++17"]
    link = []
    # at::parallel_for uses OpenMP, with the runtime that torch has loaded.
    if sys.platform == "linux":
        cxx.append("-fopenmp")
        link.append("-fopenmp")
    if os.environ.get("WERROR", "0") == "1":
        cxx += ["-Wall", "-Wextra", "-Werror"]
        for path in cpp_extension.include_paths("cuda" if cuda else "cpu"):
            cxx += ["-isystem", path]
        nvcc += ["-Werror", "all-warnings"]
    if cuda and not torch.cuda.is_available():
        os.environ.setdefault("TORCH_CUDA_ARCH_LIST", "8.0;9.0+PTX")
    kind = cpp_extension.CUDAExtension if cuda else cpp_extension.CppExtension
    return kind(
        "utils.ops._C",
        sorted(sources),
        depends=sorted(str(path.relative_to(ROOT)) for path in (ROOT / "csrc").glob("**/*.h")),
        extra_compile_args={"cxx": cxx, "nvcc": nvcc},
        extra_link_args=link,
        py_limited_api=True,  # it calls no Python, so one build serves every version
    )


if __name__ == "__main__":
    setup(
        ext_modules=[extension()],
        cmdclass={"build_ext": cpp_extension.BuildExtension},
        options={"bdist_wheel": {"py_limited_api": "cp310"}},
    )
