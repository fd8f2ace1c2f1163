"""TensorBoard events with the field's tags, written so that no failure can stop or hang a run.

The events go straight to their file. A writer with a thread and a queue, such as `SummaryWriter`,
would wait for ever once its thread has died of a full disk.
"""

import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

FLUSH_SECONDS = 30


class Board:
    """The event file of a run.

    Args:
        folder: made if it is not there.
        resumed_at: step of the checkpoint that the run goes on from; TensorBoard then hides what
            was written of later steps.
        complain: called with one line when a write fails; nothing is written from then on.
    """

    def __init__(self, folder: Path, resumed_at: int = 0, complain: Callable[[str], None] = print):
        self._complain = complain
        self._file = None
        self._flushed_at = time.monotonic()
        try:
            from tensorboardX.event_file_writer import EventsWriter
            from tensorboardX.proto.event_pb2 import Event, SessionLog

            folder.mkdir(parents=True, exist_ok=True)
            self._event, self._file = Event, EventsWriter(str(folder / "events"))
            if resumed_at:
                restart = SessionLog(status=SessionLog.START)
                self._file.write_event(
                    Event(wall_time=time.time(), step=resumed_at + 1, session_log=restart)
                )
        except Exception as error:
            self._give_up(error)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Show a mapping of tags to numbers."""
        from tensorboardX.summary import scalar

        self._write(step, lambda: [scalar(tag, value) for tag, value in values.items()])

    def images(self, step: int, volumes: Mapping[str, Tensor]) -> None:
        """Show a mapping of tags to slices `(X, Y)`, or to volumes `(X, Y, Z)`, of which five axial
        slices are shown.
        """
        from tensorboardX.summary import image

        def summaries():
            return [image(tag, _mosaic(v), dataformats="HW") for tag, v in volumes.items()]

        self._write(step, summaries)

    def close(self) -> None:
        """Write what is still in memory."""
        if self._file is not None:
            try:
                self._file.close()
            except Exception as error:
                self._give_up(error)

    def _write(self, step: int, summaries: Callable[[], list]) -> None:
        if self._file is None:
            return
        try:
            for summary in summaries():
                event = self._event(wall_time=time.time(), step=step, summary=summary)
                self._file.write_event(event)
            if time.monotonic() - self._flushed_at > FLUSH_SECONDS:
                self._file.flush()
                self._flushed_at = time.monotonic()
        except Exception as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        self._file = None
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        self._complain(
            f"TensorBoard: no more events ({reason}); training goes on, metrics.jsonl has the "
            "numbers"
        )


def tag(name: str) -> str:
    """The field's tag of a logged value: `lr` as it is, losses under `loss/`, everything else under
    `info/`.
    """
    if name == "lr":
        return name
    return f"loss/{name}" if name.startswith("loss") else f"info/{name}"


def _mosaic(volume: Tensor) -> np.ndarray:
    """A slice `(X, Y)`, or five of `(X, Y, Z)` side by side, scaled to [0, 1] where it is not in
    it.
    """
    if volume.ndim == 3:
        picks = np.linspace(0, volume.shape[2] - 1, 7).round().astype(int)[1:-1]
        volume = torch.cat([volume[:, :, k] for k in picks], dim=1)
    image = volume.float().cpu()
    low, high = image.min(), image.max()
    if high > 1 or low < 0:
        image = (image - low) / (high - low).clamp(min=1e-6)
    return image.numpy()
