"""The one entry of every script: a parser with helpful errors, number types, and what ends a run."""

import argparse
import difflib
import math
import os
import re
import signal
import sys
import time
import warnings
from pathlib import Path

from utils import distributed
from utils.errors import UserError


class Parser(argparse.ArgumentParser):
    """argparse with one-line errors, a suggestion for a misspelt flag, and defaults in the help.

    Args:
        doc: the script's docstring, shown by `--help`.
        script: the script's `__file__`; its name begins every error message.
        options: passed on to `argparse.ArgumentParser`.
    """

    def __init__(self, doc: str, script: str, **options):
        super().__init__(
            prog=Path(script).name,
            description=doc,
            formatter_class=_Help,
            allow_abbrev=False,
            **options,
        )

    def error(self, message):
        unknown = (
            message.removeprefix("unrecognized arguments: ").split()[0]
            if "unrecognized" in message
            else ""
        )
        near = (
            difflib.get_close_matches(unknown.split("=")[0], self._option_string_actions, n=1)
            if unknown
            else []
        )
        hint = f"did you mean {near[0]}?" if near else "--help lists the options"
        self.exit(2, f"{self.prog}: {message}; {hint}\n")


class _Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    def _get_help_string(self, action):  # an option without a default explains itself
        return action.help if action.default is None else super()._get_help_string(action)


def _number(convert, holds, description):
    """An argparse type: `convert` the text, insist on `holds`, and say `description` of what was
    expected.
    """

    def parse(text):
        try:
            value = convert(text)
        except ValueError:
            value = math.nan
        if not holds(value):
            raise argparse.ArgumentTypeError(f"{text} is not {description}")
        return value

    return parse


positive_int = _number(int, lambda v: v >= 1, "a whole number from 1")
non_negative_int = _number(int, lambda v: v >= 0, "a whole number from 0")
non_negative = _number(float, lambda v: 0 <= v < math.inf, "a number from 0")
positive = _number(float, lambda v: 0 < v < math.inf, "a number above 0")
fraction = _number(float, lambda v: 0 <= v <= 1, "a number from 0 to 1")


SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def run(function):
    """Call a script's `main`: a `UserError` is one line on stderr and exit status 2, a warning one
    line, a closed pipe nothing but status 141."""
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"
    if not distributed.is_first():  # the first process has the same to say
        warnings.simplefilter("ignore")
    try:
        try:
            function()
            distributed.stop()
        except UserError as error:
            if (
                not distributed.is_first()
            ):  # where the first process has the same to say, torchrun ends this one now
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
                time.sleep(3)
            which = "" if distributed.is_first() else f" (process {distributed.rank()})"
            print(f"{Path(sys.argv[0]).name}{which}: {error}", file=sys.stderr)
            sys.exit(2)
        except RuntimeError as error:
            reason = _known(error)
            if reason is None:
                raise
            print(f"{Path(sys.argv[0]).name}: {reason}", file=sys.stderr)
            sys.exit(2)
        except KeyboardInterrupt:
            sys.exit(130)
        finally:
            sys.stdout.flush()
    except (
        BrokenPipeError
    ):  # who read the output has left, as `head` does; Python flushes once more at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)


def _known(error):
    """What a user can make of an error that torch raises, or None."""
    text = str(error)
    if distributed.launched() and re.search(
        "closed by peer|reset by peer|Broken pipe|NCCL|ProcessGroup", text
    ):
        return "another process has ended; what it said tells why"
    if "does not have a deterministic implementation" in text:
        return f"--deterministic 1: {text.split(' ')[0]} has no deterministic form on this device; leave it out"
    return None
