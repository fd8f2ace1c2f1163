"""What the benchmarks share: real data, equality before time, medians of rounds taken in turns,
peak memory.
"""

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

import numpy as np
import torch
from scipy import ndimage

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from dataloaders.h5 import h5_bytes  # noqa: E402
from dataloaders.la import FOLDER  # noqa: E402
from utils.environment import environment  # noqa: E402
from utils.files import write_atomically  # noqa: E402
from utils.ops import _library  # noqa: E402

CROP = (112, 112, 80)
SHAPE = (190, 142, 88)  # of a volume, about


def parser(description: str, rounds: int = 9) -> argparse.ArgumentParser:
    """The options of every benchmark."""
    options = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument(
        "--threads", type=int, default=os.cpu_count(), help="of every tool (default: all cores)"
    )
    help_rounds = f"repetitions; the median is reported (default: {rounds})"
    options.add_argument("--rounds", type=int, default=rounds, help=help_rounds)
    options.add_argument("--json", type=Path, help="also write environment and rows to this file")
    return options


def conditions(threads: int, device: str = "cpu") -> dict:
    """The run record's facts, and what else a timing depends on."""
    facts = environment([torch.device(device)])
    facts |= {"cpu_capability": torch.backends.cpu.get_cpu_capability(), "threads": threads}
    return facts | {"compiled": _library.BUILT, "command": " ".join(["python", *sys.argv])}


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
    """Rows for our operator and for each peer that is installed, after checking that all give the
    same.

    Args:
        operation, data: what the table says.
        ours: calls the operator; returns a tensor, an array, a number, or a sequence or dict of
            them.
        peers: name -> (packages it needs, callable that returns the same).
        rounds: how often each is timed, after as many runs that are not; all take turns, so that a
            busy machine slows all alike.
        inputs: what the operator reads; peak memory is printed as a multiple of inputs and outputs.
        atol: how far a peer may lie from ours, for peers that compute in another precision.
        marks: name -> callable that is timed beside the peers and not compared, such as a plain
            copy.

    Raises:
        AssertionError: a peer gives another result.
    """
    runs = {f"**{operation}**": ours}
    result = _arrays(ours())
    for name, (packages, run) in peers.items():
        missing = [package for package in packages if importlib.util.find_spec(package) is None]
        if missing:
            print(f"skipped {name}: no {', '.join(missing)}; pip install .[bench]", file=sys.stderr)
            continue
        for mine, theirs in zip(result, _arrays(run()), strict=True):
            np.testing.assert_allclose(
                mine, theirs, rtol=0, atol=atol, err_msg=f"{operation} against {name}"
            )
        runs[name] = run
    runs |= marks or {}
    peaks = {name: peak_bytes(run) for name, run in runs.items()}
    milliseconds = {name: [] for name in runs}
    for number in range(
        -rounds, rounds
    ):  # before 0, the heap is still growing: page faults would be what is timed
        # In another order every round: whoever comes after one that read the same finds it in the
        # caches.
        for name, run in Random(number).sample(list(runs.items()), len(runs)):
            start = time.perf_counter()
            run()
            if number >= 0:
                milliseconds[name].append(1e3 * (time.perf_counter() - start))
    medians = {name: statistics.median(values) for name, values in milliseconds.items()}
    reference = next(iter(medians.values()))
    touched = sum(array.nbytes for array in [*inputs, *result])
    return [
        {
            "operation": operation,
            "data": data,
            "implementation": name,
            "median_ms": round(median, 3),
            "fastest_ms": round(min(milliseconds[name]), 3),
            "ratio": round(median / reference, 2),
            "peak_mb": None if peaks[name] is None else round(peaks[name] / 1e6, 1),
            "peak_over_inputs_and_outputs": (
                round(peaks[name] / touched, 2)
                if touched and peaks[name] is not None and not position
                else None
            ),
        }
        for position, (name, median) in enumerate(medians.items())
    ]


def table(rows: list[dict]) -> str:
    """Markdown; the ratio says how many times the time of ours a row takes, the peak what it
    allocates, results included."""
    lines = [
        "| data | implementation | median ms | fastest ms | ratio | peak MB |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        peak = "" if row["peak_mb"] is None else f"{row['peak_mb']:.1f}"
        share = row["peak_over_inputs_and_outputs"]
        peak += "" if share is None else f" ({share:.1f} × in + out)"
        lines.append(
            "| {data} | {implementation} | {median_ms:.2f} | {fastest_ms:.2f} | {ratio:.1f} | {0} |".format(
                peak, **row
            )
        )
    return "\n".join(lines)


def peak_bytes(run: Callable) -> int | None:
    """How far resident memory rises above where it stood while `run` works, its result included
    (Linux; else None).

    What the C library keeps for later is given back first, so that it hides nothing.
    """
    status, clear = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if not os.access(clear, os.W_OK):
        return None
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)

    def kilobytes(key: str) -> int:
        return next(
            int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith(key)
        )

    before = kilobytes("VmRSS")
    clear.write_text("5")  # resets the high-water mark
    result = run()
    peak = kilobytes("VmHWM")
    del result
    return max(1024 * (peak - before), 0)


def report(rows: list[dict], facts: dict, path: Path | None) -> None:
    """Writes facts and rows as JSON, if a path is given."""
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"environment": facts, "rows": rows}, indent=1) + "\n"
        write_atomically(path, lambda part: part.write_text(text))


def in_own_process(function: Callable, *args):
    """What ``function`` returns in a fresh process: neither the allocator's settings nor the heap
    are inherited.
    """
    with ProcessPoolExecutor(
        1, mp_context=get_context("spawn"), initializer=_end_with_parent
    ) as pool:
        return pool.submit(function, *args).result()


def _end_with_parent() -> None:
    """Where the kernel can: a training script catches SIGTERM, and would go on alone after a time
    limit.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def run_script(name: str, argv: Iterable, patches: Iterable[tuple] = ()) -> None:
    """Run the ``main`` of ``code/<name>`` in this process, silently.

    Args:
        argv: its command line.
        patches: (object, name of an attribute, what to put there), from before the script is
            imported.
    """
    path = ROOT / "code" / name
    with contextlib.ExitStack() as stack:
        replaced = [
            (sys, "argv", [name, *map(str, argv)]),
            (sys, "path", [str(path.parent), *sys.path]),
            *patches,
        ]
        for target, attribute, value in replaced:
            stack.enter_context(mock.patch.object(target, attribute, value))
        stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
        spec = importlib.util.spec_from_file_location(path.stem, path)
        script = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(script)
        script.main()


def in_this_process(function: Callable, *args):
    """In place of :func:`in_own_process` where nothing is timed in earnest: starting one takes
    seconds.
    """
    return function(*args)


def la_root(folder: Path, small: bool = False) -> tuple[Path, str]:
    """The root of a data set in LA's layout, and what it is.

    The real one where $DATA_ROOT (default: data/) holds it. Otherwise, and where ``small`` asks for
    tiny volumes, synthetic blobs: 24 training cases (of four volumes) and two test cases, or 8 and
    2, written into ``folder``.
    """
    real = Path(os.environ.get("DATA_ROOT", ROOT / "data")) / "LA"
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


@functools.cache
def volumes(count: int = 4) -> tuple[list[tuple[np.ndarray, np.ndarray]], str]:
    """``count`` pairs of float32 image and uint8 label, ``(X, Y, Z)`` of about 190×142×88, and what
    they are.

    Real left atria where $DATA_ROOT (default: data/) holds LA, and synthetic blobs where it does
    not.
    """
    files = sorted(
        (Path(os.environ.get("DATA_ROOT", ROOT / "data")) / "LA").glob("**/mri_norm2.h5")
    )[:count]
    if len(files) == count:
        import h5py

        cases = []
        for file in files:
            with h5py.File(file) as case:
                cases.append((case["image"][:], case["label"][:]))
        return cases, "left atria"
    return blobs(count, SHAPE), "synthetic blobs"


def blobs(count: int, shape: tuple[int, ...]) -> list[tuple[np.ndarray, np.ndarray]]:
    """``count`` pairs of a float32 image and a uint8 label: bumpy ellipsoids in noise."""
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
    """``(count, 112, 112, 80)`` uint8, the centres of :func:`volumes`' labels, and what they
    are.
    """
    cases, source = volumes(count)
    crops = []
    for _, label in cases:
        corner = [(extent - size) // 2 for extent, size in zip(label.shape, CROP, strict=True)]
        crops.append(label[tuple(slice(c, c + size) for c, size in zip(corner, CROP, strict=True))])
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
