"""Times a test case of LA end to end, part by part, beside the loop of the field's research code.

    python benchmarks/bench_inference.py [--run runs/LA/coranet_16/seed1337] [--windows 12] [--json FILE]
    python benchmarks/bench_inference.py --device cuda --cases 20

Ours is what `test_LA.py` does with a case, by the same functions: read the h5 file, `whole_image`
over windows of 112×112×80 with stride 18, 18, 4, argmax, `largest_component`, the metrics. The
research side is `research.py`: one window a forward pass in contiguous float32 (on a GPU TF32,
torch's default), softmax and sum in NumPy, skimage's components, medpy's metrics, in torch's own
allocator. The weights are the same: those of `--run` (of several networks the first), or else of a
V-Net that `train_supervised.py` trains for some steps first, so that its labels look like labels.
"network" is the network's forward pass alone, "stitching" all else that leads to labels.

In every round each side has a process of its own, one after the other, so that a busy machine slows
both alike. The first windows of a process are not counted. Before, both sides predict a case in
float32: at most one voxel in a hundred thousand may differ (the sums are taken in another order),
and where none does the metrics must agree to 1e-6. The Dice between the labels of the timed runs,
in their own precisions, stands in the table.

`--windows N` lets the network see the first N windows of a case; in all others both sides take its
output of the N-th. The network's time is then scaled to all windows, on both sides, and the table
says so. A full case on two cores takes us half a minute, and the research loop minutes.
"""

import contextlib
import importlib.util
import math
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path

import h5py
import harness
import numpy as np
import research
import torch

from dataloaders import open_dataset
from utils.device import resolve_precision, select_device
from utils.inference import mean_probability, whole_image
from utils.metrics import multiclass_metrics
from utils.ops import largest_component
from utils.trained import load_networks

PARTS = ("read", "network", "stitching", "components", "metrics")
MAY_DIFFER = 1e-5  # of the voxels, in float32
SCORES = ("dice", "jaccard", "hd95", "asd")


@dataclass(frozen=True)
class Settings:
    """What both sides share, as it goes from process to process."""

    root: Path
    checkpoint: Path
    device: str
    precision: str
    threads: int
    patch: tuple
    stride: tuple
    cases: int
    windows: int | None


class Watch:
    """Seconds by part of a case, a GPU waited for around each."""

    def __init__(self, device):
        self.device, self.seconds = device, defaultdict(float)

    @contextlib.contextmanager
    def part(self, name):
        start = self.now()
        yield
        self.seconds[name] += self.now() - start

    def now(self):
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


class FirstWindows:
    """A network that sees the first windows alone, and gives of all others its last output; its
    time, as if it saw all.

    Args:
        network: its `segment` maps `(B, 1, *patch)` to `(B, C, *patch)`.
        seen: how many windows it sees; None: all.
    """

    def __init__(self, network, seen, watch):
        self.network, self.seen, self.watch = network, seen or math.inf, watch
        self.ran, self.windows, self.spent, self.last = 0, 0, 0.0, None

    def segment(self, x):
        self.windows += len(x)
        if self.ran >= self.seen:
            return self.last.expand(len(x), *self.last.shape[1:])
        start = self.watch.now()
        output = self.network.segment(x)
        self.spent += self.watch.now() - start
        self.ran += len(x)
        if self.seen < math.inf:
            self.last = output[-1:].clone()
        return output

    def scaled(self):
        """Seconds, spent and as if it had seen all windows."""
        return self.spent, self.spent * self.windows / self.ran


def ours(settings):
    """Of each case the seconds by part, its labels and its scores, as `test_LA.py` makes them."""
    torch.set_num_threads(settings.threads)
    device = select_device(0 if settings.device == "cuda" else -1)  # and a script's allocator
    torch.backends.cudnn.benchmark = True
    precision = resolve_precision(settings.precision, device)
    network = load_networks(settings.checkpoint, device)[0][0]
    data = open_dataset("LA", settings.root, "test")
    where = {"device": device, "precision": precision}
    whole_image(
        mean_probability([network]),
        torch.rand(settings.patch),
        settings.patch,
        settings.stride,
        2,
        **where,
    )
    results = []
    for case in range(settings.cases):
        watch = Watch(settings.device)
        first = FirstWindows(network, settings.windows, watch)
        with watch.part("read"):
            image, label = data.load(case)
        with watch.part("stitching"):
            prob = whole_image(
                mean_probability([first]), image, settings.patch, settings.stride, 2, **where
            )
            labels = prob.argmax(0).to(torch.uint8)
        with watch.part("components"):
            labels = largest_component(labels[None], 2)[0].cpu().numpy()
        with watch.part("metrics"):
            scores = multiclass_metrics(labels, label, 2)[1]
        results.append(result_of(watch, first, labels, scores, precision))
    return results


def theirs(settings):
    """Of each case the seconds by part, its labels and its scores, as research code makes them."""
    torch.set_num_threads(settings.threads)
    torch.backends.cudnn.benchmark = True
    if settings.precision == "fp32":
        torch.backends.cudnn.allow_tf32 = False
    device = torch.device(settings.device)
    network = load_networks(settings.checkpoint, device)[0][0].to(
        memory_format=torch.contiguous_format
    )
    paths = open_dataset("LA", settings.root, "test").paths
    with torch.no_grad():
        network.segment(torch.rand((1, 1, *settings.patch), device=device))
    results = []
    for path in paths[: settings.cases]:
        watch = Watch(settings.device)
        first = FirstWindows(network, settings.windows, watch)
        with watch.part("read"), h5py.File(path) as file:
            image, label = file["image"][:], file["label"][:]
        with watch.part("stitching"):
            labels = research.predict(first.segment, image, settings.patch, settings.stride, device)
        with watch.part("components"):
            labels = research.keep_largest(labels)
        with watch.part("metrics"):
            scores = research.metrics(labels, label)
        results.append(result_of(watch, first, labels.astype(np.uint8), scores, "fp32"))
    return results


def result_of(watch, first, labels, scores, precision):
    spent, network = first.scaled()
    watch.seconds["stitching"] -= spent
    seconds = {**watch.seconds, "network": network}
    scores = {name: scores[name] for name in SCORES}
    return {
        "seconds": seconds,
        "labels": labels,
        "scores": scores,
        "precision": precision,
        "windows": first.windows,
        "windows_seen": first.ran,
    }


def dice_between(a, b):
    both = np.count_nonzero(a) + np.count_nonzero(b)
    return 2 * np.count_nonzero(a & b) / both if both else 1.0


def check(mine, reference):
    """How many voxels of a case differ.

    Raises:
        AssertionError: too many, or scores that differ where no voxel does.
    """
    different = int(np.count_nonzero(mine["labels"] != reference["labels"]))
    size = mine["labels"].size
    assert different <= MAY_DIFFER * size, (
        f"in float32 {different} of {size} voxels differ from the research loop's"
    )
    if not different:
        for name, value in reference["scores"].items():
            message = f"{name} against medpy's"
            np.testing.assert_allclose(
                mine["scores"][name], value, rtol=0, atol=1e-6, err_msg=message
            )
    return different


def measure(settings, rounds, source, run):
    """The two rows, after `check`; `run` calls a function, in a process of its own."""
    few = replace(settings, precision="fp32", cases=1, windows=min(settings.windows or 4, 4))
    different = check(run(ours, few)[0], run(theirs, few)[0])
    found = {"ours": [], "research loop": []}
    for _ in range(rounds):
        found["ours"].append(run(ours, settings))
        found["research loop"].append(run(theirs, settings))
    mine, reference = (found[side][-1] for side in found)
    agreement = [
        dice_between(a["labels"], b["labels"]) for a, b in zip(mine, reference, strict=True)
    ]
    medians = {}
    for side, results in found.items():
        cases = [case for result in results for case in result]
        parts = {part: statistics.median(case["seconds"][part] for case in cases) for part in PARTS}
        medians[side] = (
            parts,
            statistics.median(sum(case["seconds"].values()) for case in cases),
            cases,
        )
    whole_ours = medians["ours"][1]
    for side, (parts, whole, cases) in medians.items():
        yield {
            "implementation": f"{side}, {mine[0]['precision']}" if side == "ours" else side,
            "data": source,
            "patch": list(settings.patch),
            "stride": list(settings.stride),
            "cases": settings.cases,
            "windows": statistics.median(case["windows"] for case in cases),
            "windows_seen": statistics.median(case["windows_seen"] for case in cases),
            "parts_s": {part: round(value, 5) for part, value in parts.items()},
            "case_s": round(whole, 4),
            "cases_s": [round(sum(case["seconds"].values()), 4) for case in cases],
            "ratio": round(whole / whole_ours, 2),
            "dice_between_labels": round(float(np.mean(agreement)), 5),
            "voxels_that_differ_in_fp32": different,
            "scores": cases[-1]["scores"],
        }


def table(rows):
    head = [
        "implementation",
        *(f"{part} s" for part in PARTS),
        "case s",
        "ratio",
        "Dice between labels",
    ]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for row in rows:
        cells = [
            row["implementation"],
            *(f"{row['parts_s'][part]:.3f}" for part in PARTS),
            f"{row['case_s']:.2f}",
        ]
        cells += [f"{row['ratio']:.1f}", f"{row['dice_between_labels']:.4f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def trained(root, folder, device, steps, n_filters, patch):
    """The checkpoint of a short supervised run in `folder`."""
    argv = ["--dataset", "LA", "--root", root, "--labelnum", 4, "--runs", folder, "--patch", *patch]
    argv += [
        "--max_iterations",
        steps,
        "--n_filters",
        n_filters,
        "--gpu",
        0 if device == "cuda" else -1,
    ]
    harness.run_script("train_supervised.py", argv)
    return Path(folder) / "LA" / "supervised_4" / "seed1337" / "last.pth"


def main():
    parser = harness.parser(__doc__, rounds=2)
    parser.add_argument(
        "--run", type=Path, help="folder of a run on LA (default: a V-Net is trained for a little)"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="default: cpu")
    parser.add_argument(
        "--precision", choices=("auto", "fp32", "bf16"), default="auto", help="ours (default: auto)"
    )
    parser.add_argument("--stride", type=int, nargs=3, default=(18, 18, 4), metavar=("X", "Y", "Z"))
    parser.add_argument(
        "--cases", type=int, default=1, help="of the test list, the first so many (default: 1)"
    )
    parser.add_argument(
        "--windows", type=int, help="only the first so many of a case go through the network"
    )
    parser.add_argument(
        "--train_steps", type=int, default=100, help="of the V-Net without --run (default: 100)"
    )
    parser.add_argument(
        "--small", action="store_true", help="tiny, and all in one process: tries the script out"
    )
    args = parser.parse_args()
    if (
        min(args.rounds, args.cases, args.train_steps, 1 if args.windows is None else args.windows)
        < 1
    ):
        parser.error("--rounds, --cases, --windows and --train_steps must be at least 1")
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no GPU")
    if args.run and not (args.run / "last.pth").is_file():
        parser.error(f"--run {args.run}: no last.pth in it")
    if importlib.util.find_spec("medpy") is None:
        sys.exit(
            "bench_inference.py: no medpy, which the research loop measures with: pip install "
            ".[bench]"
        )
    patch, n_filters, crop = harness.CROP, 16, (64, 64, 32)
    run = harness.in_own_process
    if args.small:
        patch, n_filters, crop, args.stride, args.rounds, args.threads = (
            (32, 32, 16),
            4,
            (32, 32, 16),
            (8, 4, 8),
            1,
            1,
        )
        args.train_steps, run = 3, harness.in_this_process
    torch.set_num_threads(args.threads)
    facts = harness.conditions(args.threads, args.device)
    facts["research_loop"] = "contiguous float32" + ", TF32" * (args.device == "cuda")
    print(", ".join(f"{name} {value}" for name, value in facts.items()))
    with tempfile.TemporaryDirectory() as folder:
        root, source = harness.la_root(Path(folder), args.small)
        checkpoint = args.run / "last.pth" if args.run else None
        if checkpoint is None:
            checkpoint = run(trained, root, folder, args.device, args.train_steps, n_filters, crop)
        if args.windows and args.device == "cuda":  # there ours come four at a time
            args.windows = 4 * math.ceil(args.windows / 4)
        args.cases = min(args.cases, len(open_dataset("LA", root, "test")))
        where = args.device, args.precision, args.threads
        settings = Settings(
            root, checkpoint, *where, patch, tuple(args.stride), args.cases, args.windows
        )
        rows = list(measure(settings, args.rounds, source, run))
    facts["checkpoint"] = (
        str(args.run) if args.run else f"train_supervised.py, {args.train_steps} steps"
    )
    harness.report(rows, facts, args.json)
    seen, windows = rows[0]["windows_seen"], rows[0]["windows"]
    scaled = (
        f", of which the network saw {seen:.0f} and its time was scaled" if seen < windows else ""
    )
    print(f"\n{source}, {windows:.0f} windows of {harness.times(patch)}{scaled}\n\n{table(rows)}")


if __name__ == "__main__":
    main()
