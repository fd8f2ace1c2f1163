"""Signals that ask a run to end: it finishes its step and saves first."""

import contextlib
import signal
import sys
from collections.abc import Callable, Iterator

from utils import distributed
from utils.command import SIGNALS


class Asked:
    """Whether a signal has asked the run to end.

    Args:
        info: called with one line when a signal comes.

    Attributes:
        number: of the signal; 0 where none has come.
    """

    def __init__(self, info: Callable[[str], None]):
        self.number = 0
        self._info = info

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """A context in which signals are noted. A second one ends the process at once."""
        before = {number: signal.signal(number, self._note) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _note(self, number, _frame):
        if self.number and distributed.launched():
            return  # torchrun passes on a signal that its processes may have got already
        if self.number:
            sys.exit(128 + number)
        self.number = number
        self._info(f"{signal.Signals(number).name}: finishing this step, then saving")
