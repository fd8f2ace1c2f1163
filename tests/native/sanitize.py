"""Builds the operators with sanitizers and runs their tests on the builds: `make sanitize`.

    cpu    the CPU kernels, with the address and undefined-behaviour sanitizers
    cuda   the CUDA kernels on an emulated device (cuda_on_cpu/), with the same sanitizers, no GPU
    race   the union-find on several threads, with the thread sanitizer

    python tests/native/sanitize.py [cpu] [cuda] [race] [-- arguments for pytest]

Files among the arguments, such as tests/ops/test_cutmix.py, replace tests/ops. Needs Linux and g++.
Objects are kept in build/sanitize/ and compiled again if a source or header is newer.
"""

import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch.utils import cpp_extension

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CSRC = ROOT / "csrc"
BUILD = ROOT / "build" / "sanitize"
SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"]
FLAGS = ["-O2", "-g1", "-std=c++17", "-fPIC", "-fopenmp", "-Wall", "-Wextra", "-Werror", *SANITIZE]
FLAGS += [flag for folder in cpp_extension.include_paths() for flag in ("-isystem", folder)]
FLAGS += [f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}"]

# Parts of the names of tests that are not run on the emulated device. It has one instruction set
# and one thread, so some tests show nothing new; others take too long.
NOT_EMULATED = [
    "instruction_sets",
    "threads",
    "slabs",
    "built_",  # these test other builds
    "not_compiled",
    "graph_break",  # these test the operators' Python
    "opcheck",
    "reference_is",  # these test the references
    "references_are",
    "random_box",
    "skimage",
    "peak_memory",  # volumes too large for the emulator
]
# nvcc crashes with the sanitizer's runtime loaded.
IGNORED = ["--ignore", "tests/ops/test_cuda_compiles.py"]


def library(name, sources, flags=()):
    """Compiles the sources, two at a time, and links them into build/sanitize/<name>/_C.so."""
    folder = BUILD / name
    folder.mkdir(parents=True, exist_ok=True)
    headers = [path for place in (CSRC, HERE) for path in place.rglob("*.h")]
    newest = max(path.stat().st_mtime for path in [*headers, Path(__file__)])

    def compiled(source):
        made = folder / f"{source.parent.name}_{source.name}.o"
        if not made.is_file() or made.stat().st_mtime < max(newest, source.stat().st_mtime):
            run(["g++", *FLAGS, *flags, "-x", "c++", "-c", source, "-o", made])
        return made

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compiled, sources))
    built = folder / "_C.so"
    libraries = [f"-L{folder}" for folder in cpp_extension.library_paths()]
    libraries += ["-lc10", "-ltorch", "-ltorch_cpu"]
    run(["g++", "-shared", "-fopenmp", *SANITIZE, *objects, *libraries, "-o", built])
    return built


def run(command, **options):
    command = [str(part) for part in command]
    done = subprocess.run(command, check=False, **options)
    if done.returncode:
        sys.exit(f"sanitize: {' '.join(command[:3])} … failed with status {done.returncode}")


def test(built, arguments, **variables):
    """Runs the operators' tests on a build, in a Python with the sanitizer's runtime."""
    runtimes = []
    for name in ("libasan.so", "libubsan.so", "libstdc++.so"):
        command = ["g++", f"-print-file-name={name}"]
        found = subprocess.run(command, capture_output=True, text=True, check=True)
        runtimes.append(found.stdout.strip())
    environment = os.environ | variables
    environment |= {
        "SEMISEG_LIBRARY": str(built),
        "LD_PRELOAD": ":".join(runtimes),
        "ASAN_OPTIONS": "detect_leaks=0",  # Python frees little at its end
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }
    if not any("/" in part and (ROOT / part.partition("::")[0]).exists() for part in arguments):
        arguments = [*arguments, "tests/ops"]
    command = [sys.executable, "-m", "pytest", "-q", "--maxfail=5", *IGNORED, *arguments]
    run(command, cwd=ROOT, env=environment)


def sanitize_cpu(arguments):
    test(library("cpu", [CSRC / "ops.cpp", *sorted((CSRC / "cpu").glob("*.cpp"))]), arguments)


def sanitize_cuda(arguments):
    emulated = HERE / "cuda_on_cpu"
    flags = ["-I", emulated, "-include", emulated / "as_cpu.h", "-Wno-unknown-pragmas"]
    sources = sorted([*(CSRC / "cuda").glob("*.cpp"), *(CSRC / "cuda").glob("*.cu")])
    built = library("cuda", [CSRC / "ops.cpp", *sources], flags)
    chosen = ["-k", " and ".join(f"not {name}" for name in NOT_EMULATED)]
    # Without the real volumes, which would take minutes here.
    test(built, [*chosen, *arguments], DATA_ROOT=os.devnull)


def sanitize_race(_):
    BUILD.mkdir(parents=True, exist_ok=True)
    program = BUILD / "union_find_race"
    flags = ["-std=c++17", "-O1", "-g", "-fsanitize=thread", "-pthread"]
    warnings = ["-Wall", "-Wextra", "-Werror"]
    run(["g++", *flags, *warnings, HERE / "union_find_race.cpp", "-o", program])
    run([program])


STAGES = {"cpu": sanitize_cpu, "cuda": sanitize_cuda, "race": sanitize_race}


def parse(argv=None):
    """The stages to run, and the arguments for pytest."""
    given = sys.argv[1:] if argv is None else argv
    cut = given.index("--") if "--" in given else len(given)
    stages = given[:cut] or list(STAGES)
    unknown = [stage for stage in stages if stage not in STAGES]
    if unknown:
        sys.exit(f"sanitize: unknown stage {', '.join(unknown)}; choose from {', '.join(STAGES)}")
    return stages, given[cut + 1 :]


def main(argv=None):
    stages, arguments = parse(argv)
    if sys.platform != "linux" or shutil.which("g++") is None:
        sys.exit("sanitize: needs Linux and g++")
    for stage in stages:
        start = time.monotonic()
        STAGES[stage](arguments)
        print(f"sanitize: {stage} passed in {time.monotonic() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
