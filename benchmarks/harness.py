"""Shared by the benchmarks: data, comparison before timing, medians of rounds, peak memory."""

import argparse
import contextlib
import ctypes
import functools
import gc
import importlib.util
import io
import json
import os
import signal
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from random import Random
from unittest import mock

import h5py
import numpy as np
import torch
from scipy import ndimage

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from dataloaders.h5 import h5_bytes  # noqa: E402
from dataloaders.la import FOLDER  # noqa: E402
from utils import command  # noqa: E402
from utils.environment import environment  # noqa: E402
from utils.files import write_atomically  # noqa: E402
from utils.ops import _library  # noqa: E402

CROP = (112, 112, 80)
SHAPE = (190, 142, 88)  # the usual extents of a left atrium's volume


def parser(doc: str, script: str, rounds: int = 9) -> command.Parser:
    """A parser with the options of every benchmark.

    Args:
        doc: the benchmark's docstring.
        script: its `__file__`.
        rounds: the default of `--rounds`.
    """
    options = command.Parser(doc, script)
    options.add_argument(
        "--threads", type=int, default=os.cpu_count(), help="threads of every tool"
    )
    options.add_argument(
        "--rounds", type=int, default=rounds, help="repetitions, whose median is reported"
    )
    add_json(options)
    return options


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add the option `--json` of every benchmark."""
    parser.add_argument("--json", type=Path, help="also write environment and rows to this file")


def conditions(threads: int, device: str = "cpu") -> dict:
    """The facts of a run's record, and others on which a timing depends."""
    facts = environment([torch.device(device)])
    facts |= {"cpu_capability": torch.backends.cpu.get_cpu_capability(), "threads": threads}
    return facts | {"compiled": _library.BUILT, "command": " ".join(["python", *sys.argv])}


def show(facts: Mapping) -> None:
    """Print the conditions in one line."""
    print(", ".join(f"{name} {value}" for name, value in facts.items()))


def compare(
    operation: str,
    data: str,
    ours: Callable,
    peers: Mapping[str, tuple[Iterable[str], Callable]],
    rounds: int,
    *,
    inputs: Iterable[torch.Tensor | np.ndarray] = (),
    atol: float = 0.0,
    marks: Mapping[str, Callable] | None = None,
) -> list[dict]:
    """Rows for our operator and for each installed peer, after checking that results agree.

    Args:
        operation, data: the names in the table.
        ours: calls the operator; returns a tensor, an array, a number, or a sequence or dict of
            them.
        peers: name -> (packages it needs, callable that returns the same).
        rounds: how often each is timed. As many runs before them are not counted.
        inputs: what the operator reads; peak memory is printed as a multiple of inputs and outputs.
        atol: the allowed difference of a peer that computes in another precision.
        marks: name -> callable that is timed too but not compared, such as a plain copy.

    Raises:
        AssertionError: a peer returns another result.
    """
    result = _arrays(ours())
    runs = {f"**{operation}**": ours}
    runs |= _agreeing(operation, result, peers, atol)
    runs |= marks or {}
    peaks = {name: peak_bytes(run) for name, run in runs.items()}
    milliseconds = _timed(runs, rounds)
    reference = statistics.median(next(iter(milliseconds.values())))
    touched = sum(array.nbytes for array in [*inputs, *result])
    rows = []
    for name, values in milliseconds.items():
        median = statistics.median(values)
        peak = peaks[name]
        share = None
        ours_is_first = not rows
        if ours_is_first and touched and peak is not None:
            share = round(peak / touched, 2)
        rows.append(
            {
                "operation": operation,
                "data": data,
                "implementation": name,
                "median_ms": round(median, 3),
                "fastest_ms": round(min(values), 3),
                "ratio": round(median / reference, 2),
                "peak_mb": None if peak is None else round(peak / 1e6, 1),
                "peak_over_inputs_and_outputs": share,
            }
        )
    return rows


def _agreeing(
    operation: str,
    result: list[np.ndarray],
    peers: Mapping[str, tuple[Iterable[str], Callable]],
    atol: float,
) -> dict[str, Callable]:
    """The installed peers, whose results have been compared."""
    found = {}
    for name, (packages, run) in peers.items():
        missing = [package for package in packages if importlib.util.find_spec(package) is None]
        if missing:
            print(f"skipped {name}: no {', '.join(missing)}; pip install .[bench]", file=sys.stderr)
            continue
        for mine, theirs in zip(result, _arrays(run()), strict=True):
            np.testing.assert_allclose(
                mine, theirs, rtol=0, atol=atol, err_msg=f"{operation} against {name}"
            )
        found[name] = run
    return found


def _timed(runs: Mapping[str, Callable], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of each callable, all taking turns, so that a busy machine slows all equally.

    Rounds before number 0 are not counted: the heap still grows, and page faults would be timed.
    The order differs from round to round, because a run that follows one on the same data finds
    them in the caches.
    """
    milliseconds = {name: [] for name in runs}
    for number in range(-rounds, rounds):
        for name, run in Random(number).sample(list(runs.items()), len(runs)):
            start = time.perf_counter()
            run()
            elapsed = time.perf_counter() - start
            if number >= 0:
                milliseconds[name].append(1e3 * elapsed)
    return milliseconds


def table(rows: list[dict]) -> str:
    """Markdown. The ratio is a row's time over ours; the peak includes its results."""
    lines = [
        "| data | implementation | median ms | fastest ms | ratio | peak MB |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        peak = "" if row["peak_mb"] is None else f"{row['peak_mb']:.1f}"
        share = row["peak_over_inputs_and_outputs"]
        peak += "" if share is None else f" ({share:.1f} × in + out)"
        times = f"{row['median_ms']:.2f} | {row['fastest_ms']:.2f} | {row['ratio']:.1f}"
        lines.append(f"| {row['data']} | {row['implementation']} | {times} | {peak} |")
    return "\n".join(lines)


def peak_bytes(run: Callable) -> int | None:
    """How far resident memory rises while `run` works, including its result (Linux; else None).

    Memory that the C library keeps for later is given back first, so that it hides nothing.
    """
    status, clear = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if not os.access(clear, os.W_OK):
        return None
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)

    def kilobytes(key: str) -> int:
        lines = status.read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(key))

    before = kilobytes("VmRSS")
    clear.write_text("5")  # resets the high-water mark
    result = run()
    peak = kilobytes("VmHWM")
    del result
    return max(1024 * (peak - before), 0)


def report(rows: list[dict], facts: dict, path: Path | None) -> None:
    """Write facts and rows as JSON, if a path is given."""
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"environment": facts, "rows": rows}, indent=1) + "\n"
        write_atomically(path, lambda part: part.write_text(text))


def in_own_process(function: Callable, *args):
    """Call `function` in a new process, which inherits no allocator settings and no heap."""
    with ProcessPoolExecutor(
        1, mp_context=get_context("spawn"), initializer=_end_with_parent
    ) as pool:
        return pool.submit(function, *args).result()


def _end_with_parent() -> None:
    """End this process with its parent, on Linux.

    A training script catches SIGTERM, and would otherwise continue alone after a time limit.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def run_script(name: str, argv: Iterable, patches: Iterable[tuple] = ()) -> None:
    """Import `code/<name>` anew in this process and call its `main`, without its output on stderr.

    Args:
        argv: its command line.
        patches: (object, name of an attribute, replacement), applied before the script is imported.
    """
    path = ROOT / "code" / name
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(sys, "path", [str(path.parent), *sys.path]))
        for target, attribute, replacement in patches:
            stack.enter_context(mock.patch.object(target, attribute, replacement))
        stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
        spec = importlib.util.spec_from_file_location(path.stem, path)
        script = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(script)
        script.main([str(word) for word in argv])


def in_this_process(function: Callable, *args):
    """Replaces `in_own_process` where times do not matter, because a new process takes seconds."""
    return function(*args)


def la_root(folder: Path, small: bool = False) -> tuple[Path, str]:
    """The root of a data set in LA's layout, and what it is.

    It is the real one if $DATA_ROOT (default: data/) holds it. Otherwise, or with `small`,
    synthetic blobs are written into `folder`: 24 training cases (of four volumes) and two test
    cases, or with `small` 8 and 2 tiny ones.
    """
    real = data_root()
    if not small and (real / "train.list").is_file():
        return real.resolve(), "left atria"
    cases = blobs(2, (40, 36, 24)) if small else blobs(4, SHAPE)
    names = {
        "train": [f"CASE{k:02d}" for k in range(8 if small else 24)],
        "test": ["TEST00", "TEST01"],
    }
    for split, listed in names.items():
        (folder / f"{split}.list").write_text("\n".join(listed) + "\n")
        for k, name in enumerate(listed):
            path = folder / FOLDER / name / "mri_norm2.h5"
            path.parent.mkdir(parents=True)
            if k < len(cases):
                image, label = cases[k]
                path.write_bytes(
                    h5_bytes({"image": (image - image.mean()) / image.std(), "label": label})
                )
            else:
                os.link(folder / FOLDER / listed[k % len(cases)] / "mri_norm2.h5", path)
    return folder, f"synthetic blobs of {times(cases[0][0].shape)}"


def data_root() -> Path:
    """The folder of LA's real volumes, which may not exist."""
    return Path(os.environ.get("DATA_ROOT", ROOT / "data")) / "LA"


@functools.cache
def volumes(count: int = 4) -> tuple[list[tuple[np.ndarray, np.ndarray]], str]:
    """`count` pairs of a float32 image and a uint8 label, and what they are.

    They are real left atria, `(X, Y, Z)` of about 190×142×88 voxels, if $DATA_ROOT (default: data/)
    holds LA, and otherwise synthetic blobs.
    """
    files = sorted(data_root().glob("**/mri_norm2.h5"))[:count]
    if len(files) == count:
        cases = []
        for file in files:
            with h5py.File(file) as case:
                cases.append((case["image"][:], case["label"][:]))
        return cases, "left atria"
    return blobs(count, SHAPE), "synthetic blobs"


def blobs(count: int, shape: tuple[int, ...]) -> list[tuple[np.ndarray, np.ndarray]]:
    """`count` pairs of a float32 image and a uint8 label: bumpy ellipsoids in noise."""
    random = np.random.default_rng(0)
    centre = np.stack(np.meshgrid(*(np.linspace(-1.5, 1.5, size) for size in shape), indexing="ij"))
    cases = []
    for _ in range(count):
        bumps = ndimage.gaussian_filter(random.standard_normal(shape), 6)
        axes = random.uniform(0.35, 0.6, 3)[:, None, None, None]
        label = ((centre / axes) ** 2).sum(0) + 0.4 * bumps / bumps.std() < 1
        image = label + 0.5 * random.standard_normal(shape)
        cases.append((image.astype(np.float32), label.astype(np.uint8)))
    return cases


@functools.cache
def label_crops(count: int = 4) -> tuple[torch.Tensor, str]:
    """The centres of `volumes`' labels, `(count, 112, 112, 80)` uint8, and what they are."""
    cases, source = volumes(count)
    crops = []
    for _, label in cases:
        corner = [(extent - size) // 2 for extent, size in zip(label.shape, CROP, strict=True)]
        inside = tuple(slice(c, c + size) for c, size in zip(corner, CROP, strict=True))
        crops.append(label[inside])
    return torch.from_numpy(np.stack(crops)), source


def times(shape: Iterable[int]) -> str:
    """112×112×80 of (112, 112, 80)."""
    return "×".join(map(str, shape))


def _arrays(result) -> list[np.ndarray]:
    if isinstance(result, Mapping):
        result = list(result.values())
    if isinstance(result, tuple | list):
        return [array for part in result for array in _arrays(part)]
    return [np.asarray(result)]
