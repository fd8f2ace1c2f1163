"""Numbers on their way from a GPU: none is lost, none is waited for too early, no checkpoint is
ahead of them.
"""

import json

import pytest
import torch

from utils.errors import UserError
from utils.training import log


class Event:
    """As torch.cuda.Event, of numbers that arrive when the test says so."""

    def __init__(self):
        self.there, self.waited = False, False

    def query(self):
        return self.there

    def synchronize(self):
        self.there = self.waited = True


@pytest.fixture
def late(tmp_path, monkeypatch):
    """Records whose numbers are late, and the events of their arrival."""
    events = []

    def to_host(row):
        events.append(Event())
        return row, events[-1]

    monkeypatch.setattr(log, "_to_host", to_host)
    (tmp_path / "metrics.jsonl").write_text("")
    return log.Records(tmp_path, print, 2, 0, 1000, epoch=lambda step: 1, saved=lambda: 0), events


def add(record, step, value, last_part=True):
    record.begin()
    with record.loading():
        pass
    record.add(step, {"loss": torch.tensor(value), "lr": 0.1}, [f"case {step}"], last_part)
    record.end()


def written(record):
    return [json.loads(line) for line in (record.folder / "metrics.jsonl").read_text().splitlines()]


def test_numbers_are_written_in_order_once_they_are_there(late):
    record, events = late
    for step in range(1, 6):
        add(record, step, step / 10)
    assert not written(record)
    events[0].there = events[1].there = events[3].there = True  # the third is late
    add(record, 6, 0.6)
    assert [row["step"] for row in written(record)] == [2]
    record.settle()
    assert {row["step"]: row["loss/loss"] for row in written(record)} == pytest.approx(
        {2: 0.2, 4: 0.4, 6: 0.6}
    )


def test_a_late_nan_stops_the_run_with_its_own_step(late):
    record, events = late
    add(record, 1, 1.0)
    add(record, 2, float("nan"))
    for step in range(3, 8):
        add(record, step, 1.0)
    with pytest.raises(
        UserError,
        match=r"step 2: not finite: loss nan, lr 0.1; cases case 2; last checkpoint: step 0",
    ):
        record.settle()  # as before a checkpoint
    assert not any(event.waited for event in events[2:])


def test_the_host_runs_ahead_by_so_many_steps_and_no_more(late):
    record, events = late
    for step in range(1, log.ON_THEIR_WAY + 4):
        add(record, step, 1.0)
    assert [event.waited for event in events] == [True] * 3 + [False] * log.ON_THEIR_WAY


def test_parts_of_a_step_become_their_mean(late):
    record, events = late
    add(record, 1, 5.0)
    add(record, 2, 1.0, last_part=False)
    add(record, 2, 2.0)
    record.settle()
    assert len(events) == 2
    assert written(record)[0]["loss/loss"] == 1.5
    add(record, 3, float("inf"), last_part=False)
    add(record, 3, 1.0)
    with pytest.raises(UserError, match=r"step 3.*cases case 3, case 3"):
        record.settle()
