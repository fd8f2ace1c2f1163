"""Times a training step of each method, part by part, beside a pipeline written as the field's
research code.

    python benchmarks/bench_step.py [--methods supervised dtml …] [--json FILE]
    python benchmarks/bench_step.py --device cuda --compile 1 graphs --steps 40

Ours is the script itself: its `main` runs in a process of its own, and what its loop calls is timed
from outside, a GPU waited for around each part. "losses" is all that the loop's body computes
besides (CutMix, components, distance maps, thresholds), "teacher" what runs without gradient (a
teacher's passes, pseudo-labels) and the teacher's update, "rest" the log, the checkpoint's
bookkeeping and the loop itself. "step" and the ratio are of steps that are not taken apart; "other"
is the share of all but the networks' passes, backward and optimizer in those that are.

The research side is `research.py`: a DataLoader with 4 workers (2 on two cores), contiguous float32
(on a GPU TF32, torch's default), torch's own allocator, and the same batch. In every round each
side has a process of its own, one after the other, so that a busy machine slows both alike. The
first steps of a process are not counted.

First of all one step of both is compared, on the very same batch and weights, in float32 and
without dropout: the loss and every term of it must agree to 2e-4. Left out on both sides is
CoraNet's relabelling, which is no part of a step (its pseudo-labels are what is bright in the
image). DTML runs with `--dis_loss both`, as its distance maps are made in any case by research
code.

Data are real left atria where $DATA_ROOT (default: data/) holds LA, else synthetic volumes.
"""

import contextlib
import copy
import functools
import itertools
import statistics
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass, field, replace
from pathlib import Path

import harness
import numpy as np
import research
import torch

import dataloaders.two_stream
import utils.inference
import utils.ops
import utils.schedules
from dataloaders import open_dataset
from networks.vnet import VNet
from utils.training.run import Run

# columns, and what was timed that they show; "passes" are those of networks without gradient
PARTS = {
    part: (part,)
    for part in ("data", "forward", "losses", "backward", "optimizer", "teacher", "rest")
}
PARTS["teacher"] = ("passes", "update")
NETWORK = ("forward", "passes", "backward", "optimizer")  # all else is "other"
RTOL = 2e-4
ITERATIONS = 6000


@dataclass(frozen=True)
class Case:
    """What is timed: a script, its options, and how many labelled and unlabelled crops a step
    has.
    """

    method: str
    phase: str
    batch: tuple
    options: tuple = ()

    @property
    def pretraining(self):
        return self.phase == "pre-training"

    def __str__(self):
        return f"{self.method}, {self.phase}" if self.phase else self.method


CASES = [
    Case("supervised", "", (4, 0)),
    Case("dmd", "", (2, 2), ("--temperature", "1.93")),
    Case("dtml", "", (2, 2), ("--dis_loss", "both")),
    Case("ugmcl", "", (2, 2)),
    Case("cml", "pre-training", (4, 4)),
    Case("cml", "self-training", (4, 4), ("--pretrain_iterations", "0")),
    Case("coranet", "pre-training", (4, 4)),
    Case("coranet", "self-training", (4, 4), ("--pretrain_epochs", "0")),
]
METHODS = list(dict.fromkeys(case.method for case in CASES))


@dataclass(frozen=True)
class Variant:
    """How our script is run."""

    name: str
    options: tuple = ()
    contiguous: bool = False


@dataclass(frozen=True)
class Settings:
    """What all measurements have in common, as it goes from process to process."""

    root: Path
    device: str
    threads: int
    patch: tuple
    n_filters: int
    labelnum: int
    warmup: int
    steps: int
    workers: int


# ------------------------------------------------------------------------------------------------------ our own scripts


@dataclass
class Watch:
    """Seconds of a loop's steps: some whole, then some taken apart.

    Attributes:
        ends: when each step was over.
        parts: seconds by part, of each step that is taken apart.
        precision: of the run.
    """

    settings: Settings
    ends: list = field(default_factory=list)
    parts: list = field(default_factory=list)
    precision: str = ""
    _apart: bool = False
    _inner: list = field(default_factory=list)

    def now(self, wait=True):
        if wait and self.settings.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def timed(self, call, part):
        """`call`, its seconds put down as `part` (a name, or a function that gives one), less those
        of parts in it.
        """

        @functools.wraps(call)
        def run(*args, **kwargs):
            if not self._apart:
                return call(*args, **kwargs)
            name = part if isinstance(part, str) else part()
            start = self.now()
            self._inner.append(0.0)
            try:
                return call(*args, **kwargs)
            finally:
                elapsed = self.now() - start
                self.parts[-1][name] += elapsed - self._inner.pop()
                if self._inner:
                    self._inner[-1] += elapsed

        return run

    def steps(self, original):
        """In place of `Run.steps`: stops after the steps that are wanted, whatever the run's last
        step is.
        """
        warmup, count = self.settings.warmup, self.settings.steps

        def steps(job, data, last):
            self.precision, inner = job.precision, original(job, data, last)
            with contextlib.closing(inner):
                for number in range(warmup + 2 * count):
                    self._apart = number >= warmup + count
                    if self._apart:
                        self.parts.append(defaultdict(float))
                        start = self.now()
                    item = next(inner)
                    if self._apart:
                        begin, loaded = self.now(), sum(self.parts[-1].values())
                    yield item
                    self.ends.append(
                        self.now(number in (warmup - 1, warmup + count - 1) or self._apart)
                    )
                    if self._apart:
                        found = self.parts[-1]
                        body = sum(found.values()) - loaded
                        found["losses"] += self.ends[-1] - begin - body
                        found["rest"] += begin - start - loaded
                self._apart = False

        return steps

    def result(self):
        first, count = self.settings.warmup - 1, self.settings.steps
        ends = self.ends[first : first + count + 1]
        whole = [after - before for before, after in itertools.pairwise(ends)]
        if (
            self.settings.device == "cuda"
        ):  # the host runs ahead: only the whole stretch has a true length
            whole = [(ends[-1] - ends[0]) / count]
        return {
            "steps": whole,
            "parts": [dict(found) for found in self.parts],
            "precision": self.precision,
        }


def run_script(case, settings, patches, options=()):
    """Run a method's script in this process, with what `patches` puts in the place of
    attributes.
    """
    labeled, unlabeled = case.batch
    with tempfile.TemporaryDirectory() as runs:
        argv = [
            "--dataset",
            "LA",
            "--root",
            settings.root,
            "--labelnum",
            settings.labelnum,
            "--runs",
            runs,
        ]
        argv += [
            "--patch",
            *settings.patch,
            "--n_filters",
            settings.n_filters,
            "--labeled_bs",
            labeled,
        ]
        argv += ["--unlabeled_bs", unlabeled] if unlabeled else []
        argv += [
            "--save_minutes",
            600,
            "--gpu",
            0 if settings.device == "cuda" else -1,
            *case.options,
            *options,
        ]
        patches = [(utils.inference, "whole_image", stand_in_probability), *patches]
        harness.run_script(f"train_{case.method}.py", argv, patches)


def stand_in_probability(look, image, patch, stride, channels, **where):
    """In place of CoraNet's look at whole images: branches whose argmax is what `research.stand_in`
    says.
    """
    pseudo, certain = research.stand_in(image)
    other = torch.where(certain, pseudo, 1 - pseudo)
    return torch.stack([label == c for label in (pseudo, other, pseudo) for c in range(2)]).float()


def ours(case, settings, variant):
    """Seconds of our script's steps: `steps` of whole ones, `parts` of those taken apart."""
    torch.set_num_threads(settings.threads)
    watch = Watch(settings)

    def parallel(job, network, original=Run.parallel):
        return watch.timed(
            original(job, network), lambda: "forward" if torch.is_grad_enabled() else "passes"
        )

    loader = dataloaders.two_stream.TwoStream
    named = [
        (loader, "batch", "data"),
        (loader, "gather", "data"),
        (torch.Tensor, "backward", "backward"),
    ]
    named += [
        (cls, name, "optimizer")
        for cls in (torch.optim.SGD, torch.optim.Adam)
        for name in ("step", "zero_grad")
    ]
    named += [
        (utils.schedules, "update_teacher", "update"),
        (Run, "log", "rest"),
        (Run, "checkpoint", "rest"),
    ]
    patches = [
        (target, name, watch.timed(getattr(target, name), part)) for target, name, part in named
    ]
    patches += [(Run, "steps", watch.steps(Run.steps)), (Run, "parallel", parallel)]
    if variant.contiguous:
        patches.append((Run, "to_device", lambda job, network: network.to(job.device)))
    run_script(case, settings, patches, variant.options)
    return watch.result()


def theirs(case, settings):
    """Seconds of the research-style pipeline's steps."""
    torch.set_num_threads(settings.threads)
    torch.backends.cudnn.benchmark = True
    device, (labeled, unlabeled) = torch.device(settings.device), case.batch
    dataset = open_dataset("LA", settings.root)
    batch = (labeled, 0 if case.pretraining else unlabeled)
    loader = research.loader(
        dataset.paths, settings.labelnum, batch, settings.patch, settings.workers, device
    )
    batches = iter(loader)  # starts the workers, before there are threads
    method = research.METHODS[case.method](settings.n_filters, device, pretraining=case.pretraining)
    ends = []
    for image, label in itertools.islice(batches, settings.warmup + settings.steps):
        method.step(image, label, labeled)  # reads the losses, and so waits for a GPU
        ends.append(time.perf_counter())
    return [after - before for before, after in itertools.pairwise(ends[settings.warmup - 1 :])]


# ---------------------------------------------------------------------------------------------------- equality first


def check(case, settings):
    """One step of both sides, on one batch, with equal weights, in float32 without dropout.

    Returns:
        The largest relative difference of a term.

    Raises:
        AssertionError: a term of the loss differs by more than `RTOL`, or is missing.
    """
    torch.set_num_threads(settings.threads)
    seen = {"weights": [], "boxes": []}

    def to_device(job, network, original=Run.to_device):
        seen["weights"].append(copy.deepcopy(network.state_dict()))
        return original(job, network)

    def random_box(*args, original=utils.ops.random_box, **kwargs):
        seen["boxes"].append(original(*args, **kwargs))
        return seen["boxes"][-1]

    def steps(job, data, last, original=Run.steps):
        with contextlib.closing(original(job, data, last)) as inner:
            step, seen["batch"] = next(inner)
            seen["random"] = torch.get_rng_state()
            if job.device.type == "cuda":
                seen["random_cuda"] = torch.cuda.get_rng_state()
            yield step, seen["batch"]

    def log(job, step, **values):
        seen["terms"] = {name: torch.as_tensor(value).item() for name, value in values.items()}

    without_dropout = (VNet, "defaults", VNet.defaults._replace(dropout=0.0))
    patches = [
        (Run, "to_device", to_device),
        (Run, "steps", steps),
        (Run, "log", log),
        without_dropout,
    ]
    patches += [(utils.ops, "random_box", random_box)]
    run_script(case, settings, patches, ("--precision", "fp32"))

    batch, device = seen["batch"], torch.device(settings.device)
    method = research.METHODS[case.method](
        settings.n_filters, device, dropout=0.0, pretraining=case.pretraining
    )
    for network, weights in zip(method.networks, seen["weights"], strict=True):
        network.load_state_dict(weights)
    method.box = functools.partial(_mask_of, iter(seen["boxes"]))
    torch.set_rng_state(seen["random"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(seen["random_cuda"])
    found = method.step(batch.image.contiguous(), batch.label, batch.labeled_bs)
    for name, value in found.items():
        assert name in seen["terms"], f"{case}: our script logs no {name}"
        message = f"{case}: {name} of the research-style pipeline against our script's"
        np.testing.assert_allclose(
            value, seen["terms"][name], rtol=RTOL, atol=1e-7, err_msg=message
        )
    return max(
        abs(value - seen["terms"][name]) / (abs(value) + 1e-7) for name, value in found.items()
    )


def _mask_of(boxes, image):
    box = next(boxes).cpu()
    mask = torch.ones(image.shape[2:], device=image.device)
    mask[tuple(slice(low, high) for low, high in box.T.tolist())] = 0
    return mask


# ---------------------------------------------------------------------------------------------------------- the table


def variants(device, compiled):
    """Of our script, the one that counts last."""
    if device == "cpu":
        found = [Variant("as it stands")]
        return found + [Variant(f"--compile {mode}", ("--compile", mode)) for mode in compiled]
    found = [Variant("TF32, contiguous", ("--precision", "tf32"), contiguous=True)]
    found.append(Variant("channels last", ("--precision", "bf16")))
    return found + [
        Variant(f"--compile {mode}", ("--precision", "bf16", "--compile", mode))
        for mode in compiled
    ]


def measure(case, settings, rounds, ways, source, run=harness.in_own_process):
    """Rows of a case, one a variant of ours, after `check`; `run` calls a function, in a process of
    its own.
    """
    check_patch = tuple(
        min(extent, limit) for extent, limit in zip(settings.patch, (64, 64, 32), strict=True)
    )
    difference = run(check, case, replace(settings, patch=check_patch))
    found, research_steps = {variant: [] for variant in ways}, []
    for _ in range(rounds):
        for variant in ways:
            found[variant].append(run(ours, case, settings, variant))
        research_steps += run(theirs, case, settings)
    research_s = statistics.median(research_steps)
    for variant, results in found.items():
        steps = [step for result in results for step in result["steps"]]
        parts = [step for result in results for step in result["parts"]]
        step_s = statistics.median(steps)

        def milliseconds(*names, parts=parts):
            return round(
                1e3
                * statistics.median(sum(step.get(name, 0.0) for name in names) for step in parts),
                3,
            )

        other = [
            1 - sum(step.get(name, 0.0) for name in NETWORK) / sum(step.values()) for step in parts
        ]
        yield {
            "method": case.method,
            "phase": case.phase,
            "crops": list(case.batch),
            "options": list(case.options),
            "patch": list(settings.patch),
            "n_filters": settings.n_filters,
            "data": source,
            "ours": f"{results[0]['precision']}, {variant.name}",
            "parts_ms": {
                part: milliseconds(*(("passes", "update") if part == "teacher" else (part,)))
                for part in PARTS
            },
            "other_share": round(statistics.median(other), 4),
            "step_ms": round(1e3 * step_s, 3),
            "research_step_ms": round(1e3 * research_s, 3),
            "ratio": round(research_s / step_s, 2),
            "steps_ms": [round(1e3 * step, 3) for step in steps],
            "research_steps_ms": [round(1e3 * step, 3) for step in research_steps],
            "minutes_of_6000": round(ITERATIONS * step_s / 60, 2),
            "research_minutes_of_6000": round(ITERATIONS * research_s / 60, 2),
            "largest_difference_of_a_term": float(f"{difference:.1e}"),
        }


HEAD = [
    "method",
    "ours",
    *(f"{part} ms" for part in PARTS),
    "other",
    "step ms",
    "research step ms",
    "ratio",
]


def line(cells):
    return f"| {' | '.join(cells)} |"


def cells_of(row):
    name = f"{row['method']}, {row['phase']}" if row["phase"] else row["method"]
    cells = [
        name,
        row["ours"],
        *(f"{row['parts_ms'][part]:.1f}" for part in PARTS),
        f"{row['other_share']:.1%}",
    ]
    return [
        *cells,
        f"{row['step_ms']:.1f}",
        f"{row['research_step_ms']:.1f}",
        f"{row['ratio']:.2f}",
    ]


def main():
    parser = harness.parser(__doc__, rounds=2)
    parser.add_argument(
        "--methods", nargs="+", choices=METHODS, default=METHODS, help="default: all"
    )
    parser.add_argument(
        "--phase",
        choices=("pre-training", "self-training"),
        help="of cml and coranet (default: both)",
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="default: cpu")
    parser.add_argument("--patch", type=int, nargs=3, default=harness.CROP, metavar=("X", "Y", "Z"))
    parser.add_argument("--n_filters", type=int, default=16)
    parser.add_argument(
        "--labeled_bs", type=int, help="labelled crops a step (default: the method's)"
    )
    parser.add_argument(
        "--unlabeled_bs", type=int, help="unlabelled crops a step (default: the method's)"
    )
    parser.add_argument(
        "--steps", type=int, default=3, help="timed steps of a process (default: 3)"
    )
    parser.add_argument(
        "--warmup", type=int, default=2, help="steps of a process that are not counted (default: 2)"
    )
    parser.add_argument(
        "--compile",
        nargs="+",
        choices=("1", "graphs"),
        default=(),
        help="also with these --compile",
    )
    parser.add_argument(
        "--small", action="store_true", help="tiny, and all in one process: tries the script out"
    )
    args = parser.parse_args()
    if min(args.steps, args.warmup, args.rounds) < 1:
        parser.error("--steps, --warmup and --rounds must be at least 1")
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no GPU")
    if args.small:
        args.patch, args.n_filters, args.rounds, args.steps, args.warmup = (32, 32, 16), 4, 1, 2, 1
        args.labeled_bs, args.unlabeled_bs, args.threads = 2, 2, 1
    run = harness.in_this_process if args.small else harness.in_own_process
    workers = 4 if args.threads >= 4 else 2
    torch.set_num_threads(args.threads)
    facts = harness.conditions(args.threads, args.device)
    facts |= {
        "research_workers": workers,
        "research_pipeline": "contiguous float32" + ", TF32" * (args.device == "cuda"),
    }
    print(", ".join(f"{name} {value}" for name, value in facts.items()))
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        root, source = harness.la_root(Path(folder), args.small)
        labelnum = 4 if args.small else 16
        sizes = tuple(args.patch), args.n_filters, labelnum, args.warmup, args.steps, workers
        settings = Settings(root, args.device, args.threads, *sizes)
        print(f"\n{source}\n\n{line(HEAD)}\n{'|---' * len(HEAD)}|")
        for case in CASES:
            if case.method not in args.methods or (
                case.phase and args.phase not in (None, case.phase)
            ):
                continue
            ways = variants(args.device, args.compile)
            for row in measure(resized(case, args), settings, args.rounds, ways, source, run):
                rows.append(row)
                print(line(cells_of(row)), flush=True)
            harness.report(rows, facts, args.json)
    for row in rows:
        if row["method"] == "dtml":
            both = f"{row['minutes_of_6000']:.1f} minutes, research-style {row['research_minutes_of_6000']:.1f}"
            print(f"DTML, {ITERATIONS} iterations, extrapolated, {row['ours']}: {both}")


def resized(case, args):
    """The case with the numbers of crops of the command line; supervised training takes both
    streams' together.
    """
    if args.labeled_bs is None and args.unlabeled_bs is None:
        return case
    batch = (args.labeled_bs or case.batch[0], args.unlabeled_bs or case.batch[1])
    return replace(case, batch=batch if case.batch[1] else (sum(batch), 0))


if __name__ == "__main__":
    main()
