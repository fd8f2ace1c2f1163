"""The numbers of a run: metrics.jsonl, TensorBoard, a progress bar or lines, and the stop at a NaN.

Training does not wait for a GPU: numbers travel to the host behind the step that made them, and are
checked when they have arrived. Each of them is checked, and before a checkpoint is written all that
are still on their way.
"""

import json
import math
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
from torch import Tensor

from utils import distributed, progress
from utils.errors import UserError
from utils.files import write_atomically
from utils.training.tensorboard import Board, tag

ON_THEIR_WAY = 32  # steps whose numbers may be on their way before the host waits for them
SPEAK_SECONDS = 30  # between two lines where no terminal shows a bar


class Records:
    """What a run writes down of its steps; only its first process writes.

    Args:
        folder: of the run.
        info: called with a line for the log.
        log_every: steps between records.
        start: step that the run goes on from.
        last: its last step.
        epoch: from a step to its epoch.
        saved: gives the step of the last checkpoint, for error messages.
    """

    def __init__(
        self,
        folder: Path,
        info: Callable[[str], None],
        log_every: int,
        start: int,
        last: int,
        epoch: Callable[[int], int],
        saved: Callable[[], int],
    ):
        self.folder = folder
        self.info = info
        self.log_every = log_every
        self.last = last
        self.epoch = epoch
        self.board = Board(folder / "tensorboard", start, info) if distributed.is_first() else None
        self._saved = saved
        self._bar = progress.bar(total=last, done=start, unit="step", keep=True)
        self._parts: list[tuple[Tensor, dict, list[str]]] = []
        self._pending: deque[_Step] = deque()
        self._clock = _Clock()
        self._start = start
        self._began = time.monotonic()
        self._spoke_at = self._began
        self._spoke_of = start

    # ---- a step's time

    def begin(self) -> None:
        """A step begins."""
        self._clock.start()

    def loading(self) -> "_Clock":
        """A context: the step waits for its data."""
        return self._clock

    def end(self) -> None:
        """The step is over."""
        self._clock.stop()
        self._bar.update()

    # ---- a step's numbers

    def add(
        self,
        step: int,
        values: Mapping[str, float | Tensor],
        cases: list[str],
        last_part: bool = True,
    ) -> None:
        """Take numbers or 0-d tensors of a part of a step. The mean over the parts is recorded, at
        the last one.

        Raises:
            UserError: a value of this step, or of one before it, is NaN or infinite; names the
                step, all its values and its cases.
        """
        tensors = {name: value.detach() for name, value in values.items() if torch.is_tensor(value)}
        numbers = {name: float(value) for name, value in values.items() if name not in tensors}
        self._parts.append((_stack(list(tensors.values())), numbers, cases))
        if not last_part:
            return
        rows = [row for row, _, _ in self._parts]
        row = rows[0] if len(rows) == 1 else torch.stack(rows).mean(0)
        numbers = {
            name: sum(of_part[name] for _, of_part, _ in self._parts) / len(self._parts)
            for name in numbers
        }
        cases = [case for _, _, of_part in self._parts for case in of_part]
        self._parts = []
        row = row[None]
        times = None
        if step % self.log_every == 0 or step == self.last:
            row = torch.cat((row, distributed.mean(row)))  # this process's and all processes'
            times = self._clock.means()
        row, arrived = _to_host(row)
        self._pending.append(
            _Step(step, list(values), list(tensors), row, numbers, cases, times, arrived)
        )
        more = step < self.last
        self._look(len(self._pending) - ON_THEIR_WAY if more else len(self._pending))

    def settle(self) -> None:
        """Wait for all numbers that are on their way, and check them."""
        self._look(len(self._pending))

    def _look(self, insist: int) -> None:
        """Check the numbers that have arrived, in order; wait for those of the first `insist`
        steps.
        """
        while self._pending:
            first = self._pending[0]
            if first.arrived is not None and not first.arrived.query():
                if insist <= 0:
                    return
                first.arrived.synchronize()
            self._pending.popleft()
            insist -= 1
            self._take(first)

    def _take(self, step: "_Step") -> None:
        own, *shared = [step.by_name(row) for row in step.row.tolist()]
        if not all(map(math.isfinite, own.values())):
            terms = ", ".join(f"{name} {value:.4g}" for name, value in own.items())
            raise UserError(
                f"step {step.number}: not finite: {terms}; cases {', '.join(step.cases)}; "
                f"last checkpoint: step {self._saved()}"
            )
        if not distributed.is_first():
            return
        self._bar.set_postfix_str(f"loss {own.get('loss', math.nan):.4f}", refresh=False)
        if self._bar.disable:
            waited = time.monotonic() - self._spoke_at
            if waited > SPEAK_SECONDS or step.number == self.last:
                self._speak(step.number, own)
        if not shared:
            return
        (values,) = shared
        if all(map(math.isfinite, values.values())):  # else another process stops the run
            record = {tag(name): value for name, value in values.items()}
            record["time/step"], record["time/data"] = step.times
            self.write(step.number, record)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Write numbers by tag to metrics.jsonl and to TensorBoard."""
        path = self.folder / "metrics.jsonl"
        record = {"step": step, "epoch": self.epoch(step), **values}
        try:
            with open(path, "a") as file:
                file.write(json.dumps(record) + "\n")
        except OSError as error:
            raise UserError(f"{path}: cannot be written ({error.strerror})") from None
        self.board.scalars(step, values)

    def _speak(self, step: int, values: Mapping[str, float]) -> None:
        """Write a line in place of a bar, with the time left at the pace since the line before."""
        now = time.monotonic()
        pace = (now - self._spoke_at) / max(step - self._spoke_of, 1)
        left = timedelta(seconds=round(pace * (self.last - step)))
        terms = " ".join(f"{name} {value:.4g}" for name, value in values.items())
        self.info(
            f"step {step}/{self.last} epoch {self.epoch(step)} {terms} | {pace:.2f} s a step, "
            f"{left} left"
        )
        self._spoke_at = now
        self._spoke_of = step

    # ---- the end

    def complete(self) -> None:
        """Check the last numbers, and say that the run is complete."""
        self.settle()
        minutes = timedelta(seconds=round(time.monotonic() - self._began))
        self.info(
            f"complete: {self.last - self._start} steps in {minutes}, {self.folder / 'last.pth'}"
        )

    def close(self) -> None:
        """Remove the bar and close TensorBoard's file."""
        self._bar.close()
        if self.board:
            self.board.close()


@dataclass(frozen=True)
class _Step:
    """The numbers of a step, on their way to the host.

    Attributes:
        number: of the step.
        order: names of all values.
        tensors: names of those in `row`.
        row: `(1 or 2, values)`: this process's, and where they are recorded the mean over all.
        numbers: the values that were no tensors, by name.
        cases: of the step's batch.
        times: seconds a step, and of these waiting for data; None where nothing is recorded.
        arrived: event after which `row` may be read; None where it may be read at once.
    """

    number: int
    order: list[str]
    tensors: list[str]
    row: Tensor
    numbers: dict[str, float]
    cases: list[str]
    times: tuple[float, float] | None
    arrived: torch.cuda.Event | None

    def by_name(self, row: Sequence[float]) -> dict[str, float]:
        """All values in the order in which they were given, those of tensors from `row`."""
        values = self.numbers | dict(zip(self.tensors, row, strict=True))
        return {name: values[name] for name in self.order}


def _stack(values: Sequence[Tensor]) -> Tensor:
    """0-d tensors as one, in float64 on a CPU and float32 on a GPU."""
    if not values:
        return torch.zeros(0)
    wide = torch.float32 if values[0].is_cuda else torch.float64
    return torch.stack([value.to(wide) for value in values])


def _to_host(row: Tensor) -> tuple[Tensor, torch.cuda.Event | None]:
    """The numbers on the host, or on their way to it and the event of their arrival."""
    if row.device.type != "cuda":
        return row, None
    row = torch.empty_like(row, device="cpu", pin_memory=True).copy_(row, non_blocking=True)
    arrived = torch.cuda.Event()
    arrived.record()
    return row, arrived


def forget_after(path: Path, step: int) -> None:
    """Drop from a metrics.jsonl the records of the steps that a resumed run makes again."""
    lines = path.read_text().splitlines() if path.exists() else []
    kept = [line for line in lines if line.endswith("}") and json.loads(line)["step"] <= step]
    if len(kept) < len(lines):
        text = "".join(line + "\n" for line in kept)
        write_atomically(path, lambda temporary: temporary.write_text(text))


class _Clock:
    """Mean seconds a step, and of these waiting for data, over the steps that ended since it was
    asked last. As a context it counts the time spent in it as waiting.
    """

    def __init__(self):
        self._reset()

    def _reset(self):
        self.steps = 0
        self.total = 0.0
        self.waited = 0.0

    def start(self):
        self.began = time.perf_counter()

    def __enter__(self):
        self.entered = time.perf_counter()

    def __exit__(self, *_):
        self.waited += time.perf_counter() - self.entered

    def stop(self):
        self.steps += 1
        self.total += time.perf_counter() - self.began

    def means(self):
        if not self.steps:  # the first step is not over yet
            return time.perf_counter() - self.began, self.waited
        means = self.total / self.steps, self.waited / self.steps
        self._reset()
        return means
