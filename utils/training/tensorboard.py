"""TensorBoard events as the field tags them, written so that no failure of theirs can stop or hang
a training run.

The events go straight to their file: a writer with a thread and a queue, as `SummaryWriter` is,
would wait for ever once its thread has died of a full disk.
"""

import time

import numpy as np
import torch

FLUSH_SECONDS = 30


class Board:
    """The event file of a run.

    Args:
        folder: made if it is not there.
        resumed_at: step of the checkpoint that the run goes on from; what was shown of later steps
            is struck out.
        complain: called with one line when a write fails, after which the board stays silent.
    """

    def __init__(self, folder, resumed_at=0, complain=print):
        self._complain, self._file, self._flushed_at = complain, None, time.monotonic()
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

    def scalars(self, step, values):
        """Show a mapping of tags to numbers."""
        from tensorboardX.summary import scalar

        self._write(step, lambda: [scalar(tag, value) for tag, value in values.items()])

    def images(self, step, volumes):
        """Show a mapping of tags to slices `(X, Y)` or volumes `(X, Y, Z)`, of these five axial
        slices.
        """
        from tensorboardX.summary import image

        self._write(
            step, lambda: [image(tag, _mosaic(v), dataformats="HW") for tag, v in volumes.items()]
        )

    def close(self):
        """Write what is still in memory."""
        if self._file is not None:
            try:
                self._file.close()
            except Exception as error:
                self._give_up(error)

    def _write(self, step, summaries):
        if self._file is None:
            return
        try:
            for summary in summaries():
                self._file.write_event(
                    self._event(wall_time=time.time(), step=step, summary=summary)
                )
            if time.monotonic() - self._flushed_at > FLUSH_SECONDS:
                self._file.flush()
                self._flushed_at = time.monotonic()
        except Exception as error:
            self._give_up(error)

    def _give_up(self, error):
        self._file = None
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        self._complain(
            f"TensorBoard: no more events ({reason}); training goes on, metrics.jsonl has the "
            "numbers"
        )


def tag(name):
    """The field's tag of a logged value: `lr` as it is, losses under `loss/`, everything else under
    `info/`.
    """
    if name == "lr":
        return name
    return f"loss/{name}" if name.startswith("loss") else f"info/{name}"


def _mosaic(volume):
    """A slice `(X, Y)`, or five of `(X, Y, Z)` side by side, scaled to [0, 1]."""
    if volume.ndim == 3:
        picks = np.linspace(0, volume.shape[2] - 1, 7).round().astype(int)[1:-1]
        volume = torch.cat([volume[:, :, k] for k in picks], dim=1)
    image = volume.float().cpu()
    low, high = image.min(), image.max()
    return (
        ((image - low) / (high - low).clamp(min=1e-6)).numpy()
        if high > 1 or low < 0
        else image.numpy()
    )
