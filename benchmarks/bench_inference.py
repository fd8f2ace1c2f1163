"""Times a test case of LA end to end, part by part, beside the loop of the field's research code.

    python benchmarks/bench_inference.py [--run runs/LA/coranet_16/seed1337] [--windows 12]
    python benchmarks/bench_inference.py --device cuda --cases 20

Our side calls the functions with which `test_LA.py` treats a case: it reads the h5 file, runs
`whole_image` over windows of 112×112×80 with stride 18, 18, 4, and takes the argmax,
`largest_component` and the metrics. The research side is `research.py`: one window a forward pass
in contiguous float32 (on a GPU TF32, torch's default), softmax and sum in NumPy, skimage's
components, medpy's metrics, in torch's own allocator. Both use the same weights: those of the first
network of `--run`, or else of a V-Net that `train_supervised.py` trains for some steps first, so
that its labels look like labels. "network" is the time of the network's forward passes; "stitching"
is everything else up to the labels.

In every round the two sides run one after the other, each in its own process, so that a busy
machine slows both equally. The first windows of a process are not counted. Before anything is
timed, both sides predict a case in float32: at most one voxel in a hundred thousand may differ,
because the sums are taken in another order, and if none does the metrics must agree to 1e-6. The
table shows the Dice between the labels of the timed runs, each in its own precision.

With `--windows N` the network sees only the first N windows of a case; for the others both sides
reuse its output of the N-th. The network's time is then scaled to all windows, on both sides, and
the table says so. On two cores a full case takes us half a minute, and the research loop minutes.
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
from utils import command
from utils.device import resolve_precision, select_device
from utils.inference import mean_probability, whole_image
from utils.metrics import multiclass_metrics
from utils.ops import largest_component
from utils.trained import load_networks

PARTS = ("read", "network", "stitching", "components", "metrics")
MAY_DIFFER = 1e-5  # share of the voxels, in float32
SCORES = ("dice", "jaccard", "hd95", "asd")


@dataclass(frozen=True)
class Settings:
    """The settings that both sides share; they are sent to other processes."""

    root: Path
    checkpoint: Path
    device: str
    precision: str
    threads: int
    patch: tuple[int, int, int]
    stride: tuple[int, int, int]
    cases: int
    windows: int | None


class Watch:
    """Seconds of a case by part; waits for a GPU around each part."""

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
    """A network that sees only the first windows, and repeats its last output for all others.

    Args:
        network: its `segment` maps `(B, 1, *patch)` to `(B, C, *patch)`.
        seen: how many windows it sees; None for all.

    Attributes:
        ran: the windows that it has seen.
        windows: all windows so far.
        spent: seconds of its forward passes.
    """

    def __init__(self, network, seen, watch):
        self.network = network
        self.seen = math.inf if seen is None else seen
        self.watch = watch
        self.ran = 0
        self.windows = 0
        self.spent = 0.0
        self.last = None

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
        """Its seconds, and its seconds scaled to all windows."""
        return self.spent, self.spent * self.windows / self.ran


def ours(settings):
    """For each case the seconds by part, labels and scores, as in `test_LA.py`."""
    torch.set_num_threads(settings.threads)
    device = select_device(0 if settings.device == "cuda" else -1)  # and a script's allocator
    torch.backends.cudnn.benchmark = True
    precision = resolve_precision(settings.precision, device)
    network = load_networks(settings.checkpoint, device)[0][0]
    data = open_dataset("LA", settings.root, "test")
    where = {"device": device, "precision": precision}
    windows = (settings.patch, settings.stride, 2)
    whole_image(mean_probability([network]), torch.rand(settings.patch), *windows, **where)
    results = []
    for case in range(settings.cases):
        watch = Watch(settings.device)
        first = FirstWindows(network, settings.windows, watch)
        with watch.part("read"):
            image, label = data.load(case)
        with watch.part("stitching"):
            prob = whole_image(mean_probability([first]), image, *windows, **where)
            labels = prob.argmax(0).to(torch.uint8)
        with watch.part("components"):
            labels = largest_component(labels[None], 2)[0].cpu().numpy()
        with watch.part("metrics"):
            scores = multiclass_metrics(labels, label, 2)[1]
        results.append(result_of(watch, first, labels, scores, precision))
    return results


def theirs(settings):
    """For each case the seconds by part, labels and scores, as in research code."""
    torch.set_num_threads(settings.threads)
    torch.backends.cudnn.benchmark = True
    if settings.precision == "fp32":
        torch.backends.cudnn.allow_tf32 = False
    device = torch.device(settings.device)
    network = load_networks(settings.checkpoint, device)[0][0]
    network = network.to(memory_format=torch.contiguous_format)
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
    spent, scaled = first.scaled()
    seconds = dict(watch.seconds)
    seconds["stitching"] -= spent
    seconds["network"] = scaled
    return {
        "seconds": seconds,
        "labels": labels,
        "scores": {name: scores[name] for name in SCORES},
        "precision": precision,
        "windows": first.windows,
        "windows_seen": first.ran,
    }


def dice_between(a, b):
    both = np.count_nonzero(a) + np.count_nonzero(b)
    return 2 * np.count_nonzero(a & b) / both if both else 1.0


def check(mine, reference):
    """The number of voxels of a case that differ.

    Raises:
        AssertionError: it is too large; or scores differ although no voxel does.
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
    """The two rows, ours first, after `check`.

    Args:
        source: what the data are.
        run: calls a function with its arguments, in its own process.
    """
    few = replace(settings, precision="fp32", cases=1, windows=min(settings.windows or 4, 4))
    different = check(run(ours, few)[0], run(theirs, few)[0])
    found = {"ours": [], "research loop": []}
    for _ in range(rounds):
        found["ours"] += run(ours, settings)
        found["research loop"] += run(theirs, settings)
    pairs = zip(*found.values(), strict=True)
    agreement = [dice_between(mine["labels"], reference["labels"]) for mine, reference in pairs]
    seconds = {side: seconds_of(cases) for side, cases in found.items()}
    for side, cases in found.items():
        precision = cases[0]["precision"]
        parts, whole, each = seconds[side]
        yield {
            "implementation": f"{side}, {precision}" if side == "ours" else side,
            "data": source,
            "patch": list(settings.patch),
            "stride": list(settings.stride),
            "cases": settings.cases,
            "windows": statistics.median(case["windows"] for case in cases),
            "windows_seen": statistics.median(case["windows_seen"] for case in cases),
            "parts_s": {part: round(value, 5) for part, value in parts.items()},
            "case_s": round(whole, 4),
            "cases_s": [round(value, 4) for value in each],
            "ratio": round(whole / seconds["ours"][1], 2),
            "dice_between_labels": round(float(np.mean(agreement)), 5),
            "voxels_that_differ_in_fp32": different,
            "scores": cases[-1]["scores"],
        }


def seconds_of(cases):
    """Median seconds by part, the median of a whole case, and the seconds of each case."""
    parts = {part: statistics.median(case["seconds"][part] for case in cases) for part in PARTS}
    each = [sum(case["seconds"].values()) for case in cases]
    return parts, statistics.median(each), each


def table(rows):
    columns = [f"{part} s" for part in PARTS]
    head = ["implementation", *columns, "case s", "ratio", "Dice between labels"]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for row in rows:
        cells = [row["implementation"]]
        cells += [f"{row['parts_s'][part]:.3f}" for part in PARTS]
        cells.append(f"{row['case_s']:.2f}")
        cells += [f"{row['ratio']:.1f}", f"{row['dice_between_labels']:.4f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def trained(root, folder, device, steps, n_filters, patch):
    """The checkpoint of a short supervised run in `folder`."""
    argv = ["--dataset", "LA", "--root", root, "--labelnum", 4, "--runs", folder, "--patch", *patch]
    argv += ["--max_iterations", steps, "--n_filters", n_filters]
    argv += ["--gpu", 0 if device == "cuda" else -1]
    harness.run_script("train_supervised.py", argv)
    return Path(folder) / "LA" / "supervised_4" / "seed1337" / "last.pth"


# ------------------------------------------------------------------------------------- the options


def parse(argv=None):
    parser = harness.parser(__doc__, __file__, rounds=2)
    parser.add_argument(
        "--run", type=Path, help="folder of a run on LA; without it a V-Net is trained briefly"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where to predict")
    parser.add_argument(
        "--precision", choices=("auto", "fp32", "bf16"), default="auto", help="of our side"
    )
    parser.add_argument(
        "--stride",
        type=int,
        nargs=3,
        default=(18, 18, 4),
        metavar=("X", "Y", "Z"),
        help="stride of the windows",
    )
    parser.add_argument(
        "--cases", type=int, default=1, help="number of test cases, from the list's first on"
    )
    parser.add_argument(
        "--windows", type=int, help="only the first so many windows go through the network"
    )
    parser.add_argument(
        "--train_steps", type=int, default=100, help="training steps of the V-Net without --run"
    )
    parser.add_argument(
        "--small", action="store_true", help="tiny, and all in one process: tries the script out"
    )
    args = parser.parse_args(argv)
    windows = 1 if args.windows is None else args.windows
    if min(args.rounds, args.cases, args.train_steps, windows) < 1:
        parser.error("--rounds, --cases, --windows and --train_steps must be at least 1")
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no GPU")
    if args.run and not (args.run / "last.pth").is_file():
        parser.error(f"--run {args.run}: no last.pth in it")
    if args.small:
        args.stride = (8, 4, 8)
        args.rounds = args.threads = 1
        args.train_steps = 3
    if args.windows and args.device == "cuda":  # our side takes four windows at a time there
        args.windows = 4 * math.ceil(args.windows / 4)
    return args


def main(argv=None):
    args = parse(argv)
    if importlib.util.find_spec("medpy") is None:
        sys.exit(
            "bench_inference.py: the research loop needs medpy for its metrics: "
            "pip install .[bench]"
        )
    patch = (32, 32, 16) if args.small else harness.CROP
    run = harness.in_this_process if args.small else harness.in_own_process
    torch.set_num_threads(args.threads)
    facts = harness.conditions(args.threads, args.device)
    facts["research_loop"] = "contiguous float32" + ", TF32" * (args.device == "cuda")
    harness.show(facts)
    with tempfile.TemporaryDirectory() as folder:
        root, source = harness.la_root(Path(folder), args.small)
        if args.run:
            checkpoint = args.run / "last.pth"
            facts["checkpoint"] = str(args.run)
        else:
            shape = (4, (32, 32, 16)) if args.small else (16, (64, 64, 32))
            checkpoint = run(trained, root, folder, args.device, args.train_steps, *shape)
            facts["checkpoint"] = f"train_supervised.py, {args.train_steps} steps"
        settings = Settings(
            root=root,
            checkpoint=checkpoint,
            device=args.device,
            precision=args.precision,
            threads=args.threads,
            patch=patch,
            stride=tuple(args.stride),
            cases=min(args.cases, len(open_dataset("LA", root, "test"))),
            windows=args.windows,
        )
        rows = list(measure(settings, args.rounds, source, run))
    harness.report(rows, facts, args.json)
    seen = rows[0]["windows_seen"]
    windows = rows[0]["windows"]
    note = f"{source}, {windows:.0f} windows of {harness.times(patch)}"
    if seen < windows:
        note += f", of which the network saw {seen:.0f} and its time was scaled"
    print(f"\n{note}\n\n{table(rows)}")


if __name__ == "__main__":
    command.run(main)
