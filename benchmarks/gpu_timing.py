"""Times calls on a GPU, cold and replayed from a graph, and keeps them as rows of a table."""

import functools
import importlib.util
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence

import harness
import torch
import torch.nn.functional as F

REPEATS = 30
UNCOUNTED = 3
FLUSH = 256 * 10**6  # bytes, several times the largest L2 cache


class Bench:
    """Times calls on one device and keeps the rows of a section.

    Attributes:
        small: whether the data are tiny, to try a script out without a GPU.
        rows: the rows so far.
        patch, scan, volume: extents of a crop, of a large scan, and of a left atrium's volume.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.small = device.type == "cpu"
        self.rows: list[dict] = []
        self.patch = (24, 20, 16) if self.small else harness.CROP
        self.scan = (48, 40, 32) if self.small else (512, 512, 256)
        self.volume = (40, 36, 24) if self.small else harness.SHAPE
        self.copied = 2**16 if self.small else 2**30  # bytes

    @functools.cached_property
    def copy_bandwidth(self) -> float:
        """Bytes a second, read and written, of a device copy far larger than its caches."""
        source = torch.ones(self.copied, dtype=torch.uint8, device=self.device)
        target = torch.empty_like(source)
        return 2 * source.numel() / self.seconds(lambda: target.copy_(source))

    @functools.cached_property
    def flushed(self) -> torch.Tensor:
        return torch.empty(FLUSH, dtype=torch.uint8, device=self.device)

    def seconds(self, call: Callable, repeats: int = REPEATS, cold: bool = True) -> float:
        """Median of `repeats` runs, after some that are not counted; `cold` empties the caches."""
        run = self._on_gpu if self.device.type == "cuda" else self._on_cpu
        times = [run(call, cold) for _ in range(repeats + UNCOUNTED)]
        return statistics.median(times[UNCOUNTED:])

    def _on_gpu(self, call: Callable, cold: bool) -> float:
        if cold:
            self.flushed.zero_()
            torch.cuda.synchronize()
        start = torch.cuda.Event(enable_timing=True)
        end = torch.cuda.Event(enable_timing=True)
        start.record()
        call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3

    def _on_cpu(self, call: Callable, cold: bool) -> float:
        begin = time.perf_counter()
        call()
        return time.perf_counter() - begin

    def replayed(self, call: Callable) -> float | None:
        """Median time of the call replayed from a CUDA graph; None without a GPU."""
        if self.device.type != "cuda":
            return None
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            call()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            call()
        return self.seconds(graph.replay, cold=False)

    def ours(
        self,
        name: str,
        data: str,
        call: Callable,
        moved: int | None = None,
        expected: str | None = None,
        graph: bool = True,
    ) -> None:
        """Add a row of an operator.

        Args:
            moved: the bytes that it must at least read and write.
            expected: microseconds, estimated before anything was measured.
            graph: whether to replay it from a graph too.
        """
        row = {"what": f"**{name}**", "data": data, "expected_us": expected}
        times = {"eager": self.seconds(call), "graph": self.replayed(call) if graph else None}
        for kind, seconds in times.items():
            if seconds is None:
                continue
            row[f"{kind}_us"] = 1e6 * seconds
            if moved:
                row[f"{kind}_share_of_copy_bandwidth"] = moved / seconds / self.copy_bandwidth
        self.rows.append(row)

    def peer(
        self,
        name: str,
        data: str,
        call: Callable,
        packages: Iterable[str] = (),
        repeats: int = 10,
        check: Callable | None = None,
    ) -> None:
        """Add a row of a peer, after `check`; skip it, and say so, if a package is missing."""
        row = {"what": name, "data": data}
        missing = self.missing(packages)
        if missing:
            print(f"skipped {name}: {missing}", file=sys.stderr)
            row["skipped"] = missing
        else:
            if check:
                check()
            row["eager_us"] = 1e6 * self.seconds(call, repeats)
        self.rows.append(row)

    def missing(self, packages: Iterable[str]) -> str | None:
        """Why a peer cannot run here, or None."""
        if "cupy" in packages and self.device.type != "cuda":
            return "CuPy needs a GPU"
        absent = [package for package in packages if importlib.util.find_spec(package) is None]
        return f"no {', '.join(absent)}" if absent else None

    def trusted(self, operator: Callable, reference: Callable) -> Callable:
        """What to compare with on the CPU: the CPU kernel, or the reference if that is timed."""
        return reference if self.small else operator

    def labels(self, shape: Sequence[int], dtype: torch.dtype = torch.uint8) -> torch.Tensor:
        """Real labels, or blobs, resized to `(B, *shape)`."""
        crops, _ = harness.label_crops()
        resized = F.interpolate(crops[: shape[0], None].float(), shape[1:])[:, 0]
        return resized.to(self.device, dtype).contiguous()


def same(ours, theirs, atol: float = 0.0) -> None:
    """Raises AssertionError if tensors, or sequences of them, differ by more than `atol`."""
    if isinstance(ours, torch.Tensor):
        ours, theirs = [ours], [theirs]
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.shape == other.shape, f"{tuple(mine.shape)} beside {tuple(other.shape)}"
        torch.testing.assert_close(mine.cpu().double(), other.cpu().double(), rtol=0, atol=atol)


def table(rows: list[dict]) -> str:
    lines = [
        "| data | what | eager µs (cold) | of copy | graph µs (warm) | of copy | expected µs |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = [row["data"], row["what"]]
        if "skipped" in row:
            cells += [f"skipped: {row['skipped']}", "", "", "", ""]
        else:
            for kind in ("eager", "graph"):
                time_us = row.get(f"{kind}_us")
                share = row.get(f"{kind}_share_of_copy_bandwidth")
                cells.append("" if time_us is None else f"{time_us:.1f}")
                cells.append("" if share is None else f"{share:.0%}")
            cells.append(row.get("expected_us") or "")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
