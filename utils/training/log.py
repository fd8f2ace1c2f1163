"""The numbers of a run as they come: metrics.jsonl, TensorBoard, a progress bar or lines, and the
stop at a NaN.

A GPU is never waited for: numbers travel to the host behind the step that made them and are looked
at when they have arrived, every one of them, and all that are on their way before a checkpoint is
written.
"""

import json
import math
import time
from collections import deque
from datetime import timedelta

import torch
from tqdm import tqdm

from utils import distributed
from utils.errors import UserError
from utils.files import write_atomically
from utils.training.tensorboard import Board, tag

ON_THEIR_WAY = 32  # steps whose numbers may be, before the host waits for them
SPEAK_SECONDS = 30  # between lines where there is no terminal for a bar


class Records:
    """What a run writes down of its steps, in its first process alone.

    Args:
        folder: of the run.
        info: called with a line for the log.
        log_every: steps between records.
        start, last: step that the run goes on from, and its last.
        epoch: from a step to its epoch.
    """

    def __init__(self, folder, info, log_every, start, last, epoch):
        self.folder, self.info, self.log_every, self.last, self.epoch = (
            folder,
            info,
            log_every,
            last,
            epoch,
        )
        self.saved = start  # step of the last checkpoint, which an error names
        self.board = Board(folder / "tensorboard", start, info) if distributed.is_first() else None
        silent = None if distributed.is_first() else True
        self._bar = tqdm(
            total=last,
            initial=start,
            unit="step",
            dynamic_ncols=True,
            disable=silent,
            smoothing=0.05,
        )
        self._parts, self._pending, self._clock = [], deque(), _Clock()
        self._began = self._spoke_at = time.monotonic()
        self._start = self._spoke_of = start

    # ---- a step's time

    def begin(self):
        self._clock.start()

    def loading(self):
        """A context: the step waits for its data."""
        return self._clock

    def end(self):
        self._clock.stop()
        self._bar.update()

    # ---- a step's numbers

    def add(self, step, values, cases, final=True):
        """Take a step's numbers or 0-d tensors; of the parts of a step, the mean, at the `final`
        one.

        Raises:
            UserError: a value of this step, or of one before it, is NaN or infinite; names the
                step, all its values and its cases.
        """
        tensors = {name: value.detach() for name, value in values.items() if torch.is_tensor(value)}
        numbers = {name: float(value) for name, value in values.items() if name not in tensors}
        device = next((value.device for value in tensors.values()), torch.device("cpu"))
        wide = torch.float32 if device.type == "cuda" else torch.float64
        row = (
            torch.stack([value.to(wide) for value in tensors.values()])
            if tensors
            else torch.zeros(0)
        )
        self._parts.append((row, numbers, cases))
        if not final:
            return
        rows, each, cases = zip(*self._parts, strict=True)
        row = rows[0] if len(rows) == 1 else torch.stack(rows).mean(0)
        numbers = {name: sum(part[name] for part in each) / len(each) for name in numbers}
        self._parts = []
        times, row = None, row[None]
        if step % self.log_every == 0 or step == self.last:
            row, times = torch.cat((row, distributed.mean(row))), self._clock.means()
        row, arrived = _to_host(row)
        names = [case for part in cases for case in part]
        self._pending.append(
            (step, list(values), list(tensors), row, numbers, names, times, arrived)
        )
        self._look(len(self._pending) - ON_THEIR_WAY if step < self.last else len(self._pending))

    def settle(self):
        """Wait for all numbers that are on their way, and look at them."""
        self._look(len(self._pending))

    def _look(self, insist):
        """Look at the numbers that have arrived, in order, and at the first `insist` of them in any
        case.
        """
        while self._pending:
            step, order, names, row, numbers, cases, times, arrived = self._pending[0]
            if arrived is not None and not arrived.query():
                if insist <= 0:
                    return
                arrived.synchronize()
            self._pending.popleft()
            insist -= 1
            in_order = dict.fromkeys(order) | numbers
            own, *shared = [
                in_order | dict(zip(names, values, strict=True)) for values in row.tolist()
            ]
            self._take(step, own, cases, shared, times)

    def _take(self, step, values, cases, shared, times):
        if not all(map(math.isfinite, values.values())):
            terms = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
            last = f"last checkpoint: step {self.saved}"
            raise UserError(f"step {step}: not finite: {terms}; cases {', '.join(cases)}; {last}")
        if not distributed.is_first():
            return
        self._bar.set_postfix_str(f"loss {values.get('loss', math.nan):.4f}", refresh=False)
        if self._bar.disable and (
            time.monotonic() - self._spoke_at > SPEAK_SECONDS or step == self.last
        ):
            self._speak(step, values)
        if times and all(
            map(math.isfinite, shared[0].values())
        ):  # else the process that it comes from stops the run
            record = {tag(name): value for name, value in shared[0].items()}
            self.write(step, record | dict(zip(("time/step", "time/data"), times, strict=True)))

    def write(self, step, values):
        """Numbers by tag, to the file that tables are made of and to TensorBoard."""
        try:
            with open(self.folder / "metrics.jsonl", "a") as file:
                file.write(json.dumps({"step": step, "epoch": self.epoch(step), **values}) + "\n")
        except OSError as error:
            raise UserError(
                f"{self.folder / 'metrics.jsonl'}: cannot be written ({error.strerror})"
            ) from None
        self.board.scalars(step, values)

    def _speak(self, step, values):
        """Where there is no terminal for a bar: a line now and then, with the time left at the pace
        since the last.
        """
        now = time.monotonic()
        pace = (now - self._spoke_at) / max(step - self._spoke_of, 1)
        left = timedelta(seconds=round(pace * (self.last - step)))
        terms = " ".join(f"{name} {value:.4g}" for name, value in values.items())
        self.info(
            f"step {step}/{self.last} epoch {self.epoch(step)} {terms} | {pace:.2f} s a step, "
            f"{left} left"
        )
        self._spoke_at, self._spoke_of = now, step

    # ---- the end

    def complete(self):
        self.settle()
        minutes = timedelta(seconds=round(time.monotonic() - self._began))
        self.info(
            f"complete: {self.last - self._start} steps in {minutes}, {self.folder / 'last.pth'}"
        )

    def close(self):
        self._bar.close()
        if self.board:
            self.board.close()


def _to_host(row):
    """The numbers on the host, or on their way to it and the event of their arrival."""
    if row.device.type != "cuda":
        return row, None
    row = torch.empty_like(row, device="cpu", pin_memory=True).copy_(row, non_blocking=True)
    arrived = torch.cuda.Event()
    arrived.record()
    return row, arrived


def forget_after(path, step):
    """Drop from a metrics.jsonl the records of steps that a resumed run makes again."""
    lines = path.read_text().splitlines() if path.exists() else []
    kept = [line for line in lines if line.endswith("}") and json.loads(line)["step"] <= step]
    if len(kept) < len(lines):
        text = "".join(line + "\n" for line in kept)
        write_atomically(path, lambda temporary: temporary.write_text(text))


class _Clock:
    """Mean seconds a step, and of these waiting for data, over the steps that ended since it was
    last asked. As a context, the time that is spent in it is waiting."""

    def __init__(self):
        self.steps, self.total, self.waited = 0, 0.0, 0.0

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
        self.steps, self.total, self.waited = 0, 0.0, 0.0
        return means
