"""Builds the compiled operators, csrc/, into one library that torch loads: utils/ops/_C.abi3.so.

A machine with a CUDA build of torch, a GPU and nvcc gets the CUDA kernels too. FORCE_CUDA=1 builds them without a GPU
(for the architectures of TORCH_CUDA_ARCH_LIST, default "8.0;9.0+PTX") or fails. WERROR=1 turns warnings into errors.
"""

import os
import sys
from pathlib import Path

import torch
from setuptools import setup
from torch.utils import cpp_extension

ROOT = Path(__file__).resolve().parent


def wants_cuda() -> bool:
    """Whether to build the CUDA kernels; exits where FORCE_CUDA=1 asks for what this machine cannot do."""
    nvcc = cpp_extension.CUDA_HOME is not None and (Path(cpp_extension.CUDA_HOME) / "bin" / "nvcc").exists()
    forced = os.environ.get("FORCE_CUDA", "0") == "1"
    if forced and torch.version.cuda is None:
        sys.exit(f"FORCE_CUDA=1 needs a CUDA build of torch, and torch {torch.__version__} is built without CUDA")
    if forced and not nvcc:
        sys.exit(f"FORCE_CUDA=1 needs nvcc, and there is none under CUDA_HOME={cpp_extension.CUDA_HOME}")
    return forced or (torch.version.cuda is not None and nvcc and torch.cuda.is_available())


def extension():
    """The one extension, for CPU or for CPU and CUDA."""
    cuda = wants_cuda()
    folders = ["csrc", "csrc/cpu"] + ["csrc/cuda"] * cuda
    sources = sorted(
        str(path.relative_to(ROOT))
        for folder in folders
        for path in (ROOT / folder).iterdir()
        if path.suffix in {".cpp", ".cu"}
    )
    # Loops with roots vectorise only where roots set no errno and raise no signal; values stay the same to the bit.
    cxx = ["-O3", "-g0", "-std=c++17", "-fvisibility=hidden", "-fno-math-errno", "-fno-trapping-math"]
    nvcc = ["-O3", "-std=c++17"]
    link = []
    if sys.platform == "linux":  # at::parallel_for runs on OpenMP, with the runtime that torch has loaded
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
        sources,
        depends=sorted(str(path.relative_to(ROOT)) for path in (ROOT / "csrc").glob("**/*.h")),
        extra_compile_args={"cxx": cxx, "nvcc": nvcc},
        extra_link_args=link,
        py_limited_api=True,  # no call into Python: one build serves every Python version
    )


if __name__ == "__main__":
    setup(
        ext_modules=[extension()],
        cmdclass={"build_ext": cpp_extension.BuildExtension},
        options={"bdist_wheel": {"py_limited_api": "cp310"}},
    )
