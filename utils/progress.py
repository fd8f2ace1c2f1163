"""Progress bars: shown on a terminal only, and by the first process only."""

import contextlib
import sys
from collections.abc import Iterable

from tqdm import tqdm

from utils import distributed


def bar(
    iterable: Iterable | None = None,
    total: int | None = None,
    *,
    done: int = 0,
    unit: str = "it",
    title: str | None = None,
    keep: bool = False,
) -> tqdm:
    """A bar on stderr; its `disable` says whether it is hidden.

    Args:
        iterable: what the bar counts while it is iterated over; None: call `update`.
        total: where the bar ends; the length of `iterable` by default.
        done: where the bar begins.
        unit: what is counted.
        title: shown before the bar.
        keep: leave the bar on the screen when it ends.
    """
    return tqdm(
        iterable,
        total=total,
        initial=done,
        unit=unit,
        desc=title,
        leave=keep,
        disable=None if distributed.is_first() else True,  # None hides it without a terminal
        dynamic_ncols=True,
        smoothing=0.05,
    )


class Windows:
    """The `progress` of `utils.inference.whole_image`: a bar over the windows or slices of one
    volume after another, each of which leaves when its volume is done.

    As a context it removes the bar of a volume that an error has ended.

    Args:
        title: shown before the bar.
    """

    def __init__(self, title: str | None = None):
        self._title = title
        self._bar: tqdm | None = None

    def __call__(self, done: int, total: int) -> None:
        if self._bar is None:
            self._bar = bar(total=total, title=self._title)
        self._bar.update(done - self._bar.n)
        if done == total:
            self.close()

    def close(self) -> None:
        """Remove the bar, if there is one."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def __enter__(self) -> "Windows":
        return self

    def __exit__(self, *_) -> None:
        self.close()


def write(line: str) -> None:
    """Print a line on stderr, above a bar instead of through it."""
    # nobody may read stderr any more, which is no reason to stop
    with contextlib.suppress(OSError, ValueError):
        tqdm.write(line, file=sys.stderr)
