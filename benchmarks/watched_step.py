"""Our side of `bench_step.py`: runs a training script and times its steps from outside."""

import contextlib
import functools
import itertools
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import harness
import research
import torch

import dataloaders.two_stream
import utils.inference
import utils.schedules
from utils.training.run import Run


@dataclass(frozen=True)
class Case:
    """A script to time: its options, and the labelled and unlabelled crops of a step."""

    method: str
    phase: str
    batch: tuple[int, int]
    options: tuple[str, ...] = ()

    @property
    def pretraining(self) -> bool:
        return self.phase == "pre-training"

    def __str__(self) -> str:
        return f"{self.method}, {self.phase}" if self.phase else self.method


@dataclass(frozen=True)
class Variant:
    """How our script is run."""

    name: str
    options: tuple[str, ...] = ()
    contiguous: bool = False


@dataclass(frozen=True)
class Settings:
    """The settings that all measurements share; they are sent to other processes."""

    root: Path
    device: str
    threads: int
    patch: tuple[int, int, int]
    n_filters: int
    labelnum: int
    warmup: int
    steps: int
    workers: int


@dataclass
class Watch:
    """Seconds of a loop's steps: first some whole steps, then some taken apart.

    Attributes:
        ends: when each step ended.
        parts: for each step that is taken apart, its seconds by part.
        precision: the run's precision.
    """

    settings: Settings
    ends: list = field(default_factory=list)
    parts: list = field(default_factory=list)
    precision: str = ""
    _apart: bool = False
    _inner: list = field(default_factory=list)

    def now(self, wait: bool = True) -> float:
        if wait and self.settings.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def timed(self, call: Callable, part: str | Callable[[], str]) -> Callable:
        """`call`, whose seconds are added to `part`, without the seconds of other parts in it.

        Args:
            part: the part's name, or a function that returns it.
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

    def steps(self, original: Callable) -> Callable:
        """A replacement for `Run.steps` that stops after the steps of the settings."""
        warmup = self.settings.warmup
        count = self.settings.steps
        borders = (warmup - 1, warmup + count - 1)  # of the whole steps: a GPU is waited for here

        def steps(job, data, last):
            self.precision = job.precision
            inner = original(job, data, last)
            with contextlib.closing(inner):
                for number in range(warmup + 2 * count):
                    self._apart = number >= warmup + count
                    if self._apart:
                        yield from self._step_apart(inner)
                    else:
                        yield next(inner)
                        self.ends.append(self.now(wait=number in borders))
                self._apart = False

        return steps

    def _step_apart(self, inner: Iterable):
        """One step; what is timed by no other part is the loop's body, or the loop itself."""
        found = defaultdict(float)
        self.parts.append(found)
        start = self.now()
        item = next(inner)
        begin = self.now()
        loaded = sum(found.values())
        yield item
        self.ends.append(self.now())
        body = sum(found.values()) - loaded
        found["losses"] += self.ends[-1] - begin - body
        found["rest"] += begin - start - loaded

    def result(self) -> dict:
        first = self.settings.warmup - 1
        count = self.settings.steps
        ends = self.ends[first : first + count + 1]
        whole = [after - before for before, after in itertools.pairwise(ends)]
        if self.settings.device == "cuda":  # the host runs ahead: only the total time is right
            whole = [(ends[-1] - ends[0]) / count]
        return {
            "steps": whole,
            "parts": [dict(found) for found in self.parts],
            "precision": self.precision,
        }


def run_script(
    case: Case, settings: Settings, patches: Iterable[tuple], options: tuple[str, ...] = ()
) -> None:
    """Run a method's script in this process.

    Args:
        patches: as `harness.run_script` takes them.
        options: added to the case's own.
    """
    labeled, unlabeled = case.batch
    with tempfile.TemporaryDirectory() as runs:
        argv = ["--dataset", "LA", "--root", settings.root, "--labelnum", settings.labelnum]
        argv += ["--runs", runs, "--save_minutes", 600]
        argv += ["--gpu", 0 if settings.device == "cuda" else -1]
        argv += ["--patch", *settings.patch, "--n_filters", settings.n_filters]
        argv += ["--labeled_bs", labeled]
        argv += ["--unlabeled_bs", unlabeled] if unlabeled else []
        argv += [*case.options, *options]
        patches = [(utils.inference, "whole_image", stand_in_probability), *patches]
        harness.run_script(f"train_{case.method}.py", argv, patches)


def stand_in_probability(network, image, patch, stride, channels, **options):
    """Replaces CoraNet's pass over whole images: branches whose argmax is `research.stand_in`."""
    pseudo, certain = research.stand_in(image)
    other = torch.where(certain, pseudo, 1 - pseudo)
    branches = [torch.stack([label == 0, label == 1]) for label in (pseudo, other, pseudo)]
    return torch.cat(branches).float()


def ours(case: Case, settings: Settings, variant: Variant) -> dict:
    """Seconds of our script's steps: `steps` of whole steps, `parts` of steps taken apart."""
    torch.set_num_threads(settings.threads)
    watch = Watch(settings)
    loader = dataloaders.two_stream.TwoStream
    timed = [
        (loader, "batch", "data"),
        (loader, "gather", "data"),
        (torch.Tensor, "backward", "backward"),
        (torch.autograd, "grad", "backward"),
        (torch.optim.SGD, "step", "optimizer"),
        (torch.optim.SGD, "zero_grad", "optimizer"),
        (torch.optim.Adam, "step", "optimizer"),
        (torch.optim.Adam, "zero_grad", "optimizer"),
        (utils.schedules, "update_teacher", "update"),
        (Run, "log", "rest"),
        (Run, "checkpoint", "rest"),
    ]
    patches = []
    for target, name, part in timed:
        patches.append((target, name, watch.timed(getattr(target, name), part)))

    def forward_or_passes():
        return "forward" if torch.is_grad_enabled() else "passes"

    def parallel(job, network, *args, original=Run.parallel, **options):
        return watch.timed(original(job, network, *args, **options), forward_or_passes)

    patches += [(Run, "steps", watch.steps(Run.steps)), (Run, "parallel", parallel)]
    if variant.contiguous:
        patches.append((Run, "to_device", lambda job, network: network.to(job.device)))
    run_script(case, settings, patches, variant.options)
    return watch.result()
