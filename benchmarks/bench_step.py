"""Times a training step of each method, part by part, beside a pipeline written as the field's
research code.

    python benchmarks/bench_step.py [--methods supervised dtml …] [--json FILE]
    python benchmarks/bench_step.py --device cuda --compile 1 --steps 40

Our side is the script itself: its `main` runs in its own process, and the calls of its loop are
timed from outside, waiting for a GPU around each part. "losses" is everything else that the loop's
body computes (CutMix, components, distance maps, thresholds). "teacher" is everything without
gradient (a teacher's passes, pseudo-labels) and the teacher's update. "rest" is the log, the
checkpoint's bookkeeping and the loop itself. "step" and "ratio" come from steps that are not taken
apart. "other" comes from steps that are: it is their share without the networks' passes, backward
and optimizer.

The research side is `research.py`: a DataLoader with 4 workers (2 on two cores), contiguous float32
(on a GPU TF32, torch's default), torch's own allocator, and the same batch. In every round the two
sides run one after the other, each in its own process, so that a busy machine slows both equally.
The first steps of a process are not counted.

Before anything is timed, one step of both sides is compared on the same batch and weights, in
float32 and without dropout: the loss and every term must agree to 2e-4. Both sides leave out
CoraNet's relabelling, which is no part of a step; its pseudo-labels are the bright voxels of the
image. DTML runs with `--dis_loss both`, because research code makes its distance maps in any case.

The rivals of the papers have no research side: only our step is timed, and taken apart. "× passes"
is the whole step over its networks' passes, backward and optimizer.

Data are real left atria if $DATA_ROOT (default: data/) holds LA, and synthetic volumes otherwise.
"""

import contextlib
import copy
import functools
import itertools
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import harness
import numpy as np
import research
import torch
from watched_step import Case, Settings, Variant, ours, run_script

import utils.ops
from dataloaders import open_dataset
from networks.vnet import VNet
from utils import command
from utils.training.run import Run

# Column of the table -> the timed parts that it adds up; "passes" run networks without gradient.
PARTS = {
    "data": ("data",),
    "forward": ("forward",),
    "losses": ("losses",),
    "backward": ("backward",),
    "optimizer": ("optimizer",),
    "teacher": ("passes", "update"),
    "rest": ("rest",),
}
NETWORK = ("forward", "passes", "backward", "optimizer")  # everything else is "other"
RTOL = 2e-4
ITERATIONS = 6000

# one step on the sum of the losses, as research-style code has it
JOINT = ("--updates", "joint", "--masks", "relabelling")

CASES = [
    Case("supervised", "", (4, 0)),
    Case("dmd", "", (2, 2), ("--temperature", "1.93")),
    Case("dtml", "", (2, 2), ("--dis_loss", "both")),
    Case("ugmcl", "", (2, 2)),
    Case("cml", "pre-training", (4, 4)),
    Case("cml", "self-training", (4, 4), ("--pretrain_iterations", "0")),
    Case("coranet", "pre-training", (4, 4)),
    Case("coranet", "self-training", (4, 4), ("--pretrain_epochs", "0", *JOINT)),
]
RIVALS = (
    "mt uamt ict tcse pi tempens entropy vat pseudo cps dan dtc sassnet mcnet urpc ssnet mcf "
    "unimatch admt"
)
CASES += [Case(name, "", (2, 2)) for name in RIVALS.split()]
CASES.append(Case("bcp", "self-training", (4, 4), ("--pretrain_iterations", "0")))
METHODS = list(dict.fromkeys(case.method for case in CASES))


# ------------------------------------------------------------------------------- the research side


def theirs(case: Case, settings: Settings) -> list[float]:
    """Seconds of the research-style pipeline's steps."""
    torch.set_num_threads(settings.threads)
    torch.backends.cudnn.benchmark = True
    device = torch.device(settings.device)
    labeled, unlabeled = case.batch
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


# ---------------------------------------------------------------------------------- equality first


def check(case: Case, settings: Settings) -> float:
    """Compare one step of both sides: same batch, same weights, float32, no dropout.

    Returns:
        The largest relative difference of a term.

    Raises:
        AssertionError: a term of the loss differs by more than `RTOL`, or is missing.
    """
    torch.set_num_threads(settings.threads)
    seen = our_step(case, settings)
    terms = seen["terms"]
    found = their_step(case, settings, seen)
    for name, value in found.items():
        assert name in terms, f"{case}: our script logs no {name}"
        message = f"{case}: {name} of the research-style pipeline against our script's"
        np.testing.assert_allclose(value, terms[name], rtol=RTOL, atol=1e-7, err_msg=message)
    return max(abs(value - terms[name]) / (abs(value) + 1e-7) for name, value in found.items())


def our_step(case: Case, settings: Settings) -> dict:
    """Run our script for one step, and keep what the other side needs to repeat it.

    Returns:
        `weights` of the networks, `boxes` drawn, the `batch`, the states `random` and `random_cuda`
        of the generators before the step, and the logged `terms`.
    """
    seen = {"weights": [], "boxes": []}

    def to_device(job, network, original=Run.to_device):
        seen["weights"].append(copy.deepcopy(network.state_dict()))
        return original(job, network)

    def random_box(*args, original=utils.ops.random_box, **kwargs):
        box = original(*args, **kwargs)
        seen["boxes"].append(box)
        return box

    def steps(job, data, last, original=Run.steps):
        with contextlib.closing(original(job, data, last)) as inner:
            step, seen["batch"] = next(inner)
            seen["random"] = torch.get_rng_state()
            if job.device.type == "cuda":
                seen["random_cuda"] = torch.cuda.get_rng_state()
            yield step, seen["batch"]

    def log(job, step, **values):
        seen["terms"] = {name: torch.as_tensor(value).item() for name, value in values.items()}

    patches = [
        (Run, "to_device", to_device),
        (Run, "steps", steps),
        (Run, "log", log),
        (VNet, "defaults", VNet.defaults._replace(dropout=0.0)),
        (utils.ops, "random_box", random_box),
    ]
    run_script(case, settings, patches, ("--precision", "fp32"))
    return seen


def their_step(case: Case, settings: Settings, seen: dict) -> dict[str, float]:
    """The terms of the research-style step on what `our_step` has seen."""
    device = torch.device(settings.device)
    method = research.METHODS[case.method](
        settings.n_filters, device, dropout=0.0, pretraining=case.pretraining
    )
    for network, weights in zip(method.networks, seen["weights"], strict=True):
        network.load_state_dict(weights)
    method.box = functools.partial(mask_of, iter(seen["boxes"]))
    torch.set_rng_state(seen["random"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(seen["random_cuda"])
    batch = seen["batch"]
    return method.step(batch.image.contiguous(), batch.label, batch.labeled_bs)


def mask_of(boxes, image):
    """The next box as research code has it: 0 inside, 1 outside."""
    box = next(boxes).cpu()
    mask = torch.ones(image.shape[2:], device=image.device)
    mask[tuple(slice(low, high) for low, high in box.T.tolist())] = 0
    return mask


# ---------------------------------------------------------------------------------------- the rows


def variants(device: str, compiled: list[str]) -> list[Variant]:
    """The variants of our script on a device; the last one counts."""
    if device == "cpu":
        found = [Variant("as it stands")]
        precision = ()
    else:
        precision = ("--precision", "bf16")
        found = [Variant("TF32, contiguous", ("--precision", "tf32"), contiguous=True)]
        found.append(Variant("channels last", precision))
    for mode in compiled:
        found.append(Variant(f"--compile {mode}", (*precision, "--compile", mode)))
    return found


def measure(case, settings, rounds, ways, source, run=harness.in_own_process):
    """The rows of a case, one for each variant of our script, after `check`.

    Args:
        ways: the variants.
        source: what the data are.
        run: calls a function with its arguments, in its own process.
    """
    has_other_side = case.method in research.METHODS
    difference = 0.0
    if has_other_side:
        check_patch = tuple(map(min, settings.patch, (64, 64, 32)))
        difference = run(check, case, replace(settings, patch=check_patch))
    found = {variant: [] for variant in ways}
    research_steps = []
    for _ in range(rounds):
        for variant in ways:
            found[variant].append(run(ours, case, settings, variant))
        if has_other_side:
            research_steps += run(theirs, case, settings)
    for variant, results in found.items():
        yield {
            "method": case.method,
            "phase": case.phase,
            "crops": list(case.batch),
            "options": list(case.options),
            "patch": list(settings.patch),
            "n_filters": settings.n_filters,
            "data": source,
            "ours": f"{results[0]['precision']}, {variant.name}",
            **parts_of(results),
            **steps_of(results, research_steps),
            "largest_difference_of_a_term": float(f"{difference:.1e}") if has_other_side else None,
        }


def parts_of(results: list[dict]) -> dict:
    """Median milliseconds of each part over the steps that were taken apart, and "other"."""
    steps = [step for result in results for step in result["parts"]]

    def seconds(step, names):
        return sum(step.get(name, 0.0) for name in names)

    parts_ms = {}
    for part, names in PARTS.items():
        median = statistics.median(seconds(step, names) for step in steps)
        parts_ms[part] = round(1e3 * median, 3)
    other = statistics.median(1 - seconds(step, NETWORK) / sum(step.values()) for step in steps)
    return {
        "parts_ms": parts_ms,
        "other_share": round(other, 4),
        "times_of_passes": round(1 / (1 - other), 3),
    }


def steps_of(results: list[dict], research_steps: list[float]) -> dict:
    """Medians and single values of the whole steps of both sides, given in seconds; those of the
    research side are None where there is none.
    """
    steps = [step for result in results for step in result["steps"]]
    step_s = statistics.median(steps)
    found = {
        "step_ms": round(1e3 * step_s, 3),
        "research_step_ms": None,
        "ratio": None,
        "steps_ms": [round(1e3 * step, 3) for step in steps],
        "research_steps_ms": [round(1e3 * step, 3) for step in research_steps],
        "minutes_of_6000": round(ITERATIONS * step_s / 60, 2),
        "research_minutes_of_6000": None,
    }
    if research_steps:
        research_s = statistics.median(research_steps)
        found["research_step_ms"] = round(1e3 * research_s, 3)
        found["ratio"] = round(research_s / step_s, 2)
        found["research_minutes_of_6000"] = round(ITERATIONS * research_s / 60, 2)
    return found


# --------------------------------------------------------------------------------------- the table


PARTS_HEAD = [f"{part} ms" for part in PARTS]
OURS = ["method", "ours", *PARTS_HEAD, "other", "× passes", "step ms"]
HEAD = [*OURS, "research step ms", "ratio"]


def line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def cells_of(row: dict) -> list[str]:
    name = f"{row['method']}, {row['phase']}" if row["phase"] else row["method"]
    parts = [f"{row['parts_ms'][part]:.1f}" for part in PARTS]
    parts += [f"{row['other_share']:.1%}", f"{row['times_of_passes']:.2f}"]
    steps = [f"{row['step_ms']:.1f}", "-", "-"]
    if row["ratio"] is not None:
        steps = [steps[0], f"{row['research_step_ms']:.1f}", f"{row['ratio']:.2f}"]
    return [name, row["ours"], *parts, *steps]


# ------------------------------------------------------------------------------------- the options


def parse(argv=None):
    parser = harness.parser(__doc__, __file__, rounds=2)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument(
        "--phase", choices=("pre-training", "self-training"), help="only this phase of cml, coranet"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where to train")
    parser.add_argument(
        "--patch",
        type=int,
        nargs=3,
        default=harness.CROP,
        metavar=("X", "Y", "Z"),
        help="extents of a crop",
    )
    parser.add_argument("--n_filters", type=int, default=16, help="channels of the first level")
    parser.add_argument("--labeled_bs", type=int, help="labelled crops a step, if not the method's")
    parser.add_argument(
        "--unlabeled_bs", type=int, help="unlabelled crops a step, if not the method's"
    )
    parser.add_argument("--steps", type=int, default=3, help="timed steps of a process")
    parser.add_argument("--warmup", type=int, default=2, help="steps of a process before those")
    parser.add_argument(
        "--compile", nargs="+", choices=("1",), default=(), help="also time with these --compile"
    )
    parser.add_argument(
        "--small", action="store_true", help="tiny, and all in one process: tries the script out"
    )
    args = parser.parse_args(argv)
    if min(args.steps, args.warmup, args.rounds) < 1:
        parser.error("--steps, --warmup and --rounds must be at least 1")
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no GPU")
    if args.small:
        args.patch = (32, 32, 16)
        args.n_filters = 4
        args.rounds = args.warmup = args.threads = 1
        args.steps = args.labeled_bs = args.unlabeled_bs = 2
    return args


def resized(case: Case, args) -> Case:
    """The case with the crops of the command line; supervised training takes both streams'."""
    if args.labeled_bs is None and args.unlabeled_bs is None:
        return case
    labeled = args.labeled_bs or case.batch[0]
    unlabeled = args.unlabeled_bs or case.batch[1]
    batch = (labeled, unlabeled) if case.batch[1] else (labeled + unlabeled, 0)
    return replace(case, batch=batch)


def chosen(args) -> list[Case]:
    """The cases that the command line asks for."""
    found = []
    for case in CASES:
        wanted = args.phase is None or case.phase in ("", args.phase)
        if case.method in args.methods and wanted:
            found.append(resized(case, args))
    return found


def main(argv=None):
    args = parse(argv)
    run = harness.in_this_process if args.small else harness.in_own_process
    workers = 4 if args.threads >= 4 else 2
    torch.set_num_threads(args.threads)
    facts = harness.conditions(args.threads, args.device)
    facts["research_workers"] = workers
    facts["research_pipeline"] = "contiguous float32" + ", TF32" * (args.device == "cuda")
    harness.show(facts)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        root, source = harness.la_root(Path(folder), args.small)
        settings = Settings(
            root=root,
            device=args.device,
            threads=args.threads,
            patch=tuple(args.patch),
            n_filters=args.n_filters,
            labelnum=4 if args.small else 16,
            warmup=args.warmup,
            steps=args.steps,
            workers=workers,
        )
        print(f"\n{source}\n\n{line(HEAD)}\n{'|---' * len(HEAD)}|")
        for case in chosen(args):
            ways = variants(args.device, args.compile)
            for row in measure(case, settings, args.rounds, ways, source, run):
                rows.append(row)
                print(line(cells_of(row)), flush=True)
            harness.report(rows, facts, args.json)
    for row in rows:
        if row["method"] == "dtml":
            print(
                f"DTML, {ITERATIONS} iterations, extrapolated, {row['ours']}: "
                f"{row['minutes_of_6000']:.1f} minutes, "
                f"research-style {row['research_minutes_of_6000']:.1f}"
            )


if __name__ == "__main__":
    command.run(main)
