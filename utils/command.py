"""The one entry of every script: a parser with helpful errors, number types, and how a run ends."""

import argparse
import difflib
import math
import os
import re
import signal
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

from utils import distributed
from utils.errors import UserError

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


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

    def error(self, message: str):
        hint = self._similar(message) or "--help lists the options"
        self.exit(2, f"{self.prog}: {message}; {hint}\n")

    def _similar(self, message: str) -> str | None:
        """A guess which flag was meant, where the message names one that does not exist."""
        names = message.partition("unrecognized arguments: ")[2].split()
        if not names:
            return None
        flag = names[0].split("=")[0]
        near = difflib.get_close_matches(flag, self._option_string_actions, n=1)
        return f"did you mean {near[0]}?" if near else None


class _Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    def _get_help_string(self, action):  # without a default there is none to show
        return action.help if action.default is None else super()._get_help_string(action)


# ---------------------------------------------------------------------------------- argparse types


def _number(convert: Callable, holds: Callable, description: str) -> Callable:
    """An argparse type that converts the text and insists on `holds`; its error says that the text
    is not `description`.
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
_gpu = _number(int, lambda v: v >= -1, "the number of a GPU, counted from 0, or -1 for the CPU")


def gpu(text: str) -> int:
    """The argparse type of `--gpu`: one number from 0, or -1 for the CPU."""
    if "," in text and distributed.launched():
        raise argparse.ArgumentTypeError(
            f"{text} is more than one GPU: under torchrun leave --gpu out, and choose the GPUs "
            f"with CUDA_VISIBLE_DEVICES={text}"
        )
    if "," in text:
        raise argparse.ArgumentTypeError(
            f"{text} is more than one GPU: start a process for each with torchrun "
            f"--nproc_per_node={text.count(',') + 1}, and leave --gpu out"
        )
    return _gpu(text)


def add_device(group: argparse._ActionsContainer) -> None:
    """The options of whatever predicts: --batch, --gpu and --precision."""
    group.add_argument(
        "--batch",
        type=positive_int,
        help="windows or slices per forward pass; lower it when memory runs out, the numbers stay "
        "the same (default: 4 windows or 16 slices on a GPU, 1 or 4 on the CPU)",
    )
    group.add_argument("--gpu", type=gpu, default=0, help="number of the GPU; -1 takes the CPU")
    group.add_argument(
        "--precision",
        choices=("auto", "fp32", "bf16"),
        default="auto",
        help="number format of the networks' arithmetic; auto takes bf16 where the device is fast "
        "with it, fp32 gives the most exact numbers",
    )


def add_batchnorm(group: argparse._ActionsContainer) -> None:
    """`--batchnorm` and `--training_root`, of whatever predicts with a trained network."""
    group.add_argument(
        "--batchnorm",
        choices=("trained", "retaken"),
        default="trained",
        help="statistics of batch norm: trained keeps those of the training; retaken takes them "
        "again without dropout from 40 batches of training images, which helps after short "
        "trainings (the training data must be there)",
    )
    group.add_argument(
        "--training_root",
        metavar="FOLDER",
        help="folder of the training data, for --batchnorm retaken (default: as in training)",
    )


def check_batchnorm(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """End with an error where `--training_root` has no effect."""
    if args.training_root and args.batchnorm == "trained":
        parser.error("--training_root is only for --batchnorm retaken")


# ----------------------------------------------------------------------------------- a script's end


def run(function: Callable[[], object]) -> None:
    """Call a script's `main`.

    A `UserError` becomes one line on stderr and exit status 2, a warning one line; a closed pipe
    ends the script silently with status 141.
    """
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"
    if not distributed.is_first():  # the first process shows the same warnings
        warnings.simplefilter("ignore")
    try:
        try:
            function()
            distributed.stop()
        except UserError as error:
            _let_the_first_speak()
            _fail(str(error))
        except RuntimeError as error:
            reason = _known(error)
            if reason is None:
                raise
            _fail(reason)
        except KeyboardInterrupt:
            sys.exit(130)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:  # the reader of the output has left, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more
        sys.exit(128 + signal.SIGPIPE)


def _let_the_first_speak() -> None:
    """Under torchrun wait in all processes but the first: if it reports the same error, torchrun
    ends this process meanwhile.
    """
    if not distributed.is_first():
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        time.sleep(3)


def _fail(reason: str) -> None:
    which = "" if distributed.is_first() else f" (process {distributed.rank()})"
    print(f"{Path(sys.argv[0]).name}{which}: {reason}", file=sys.stderr)
    sys.exit(2)


def _known(error: RuntimeError) -> str | None:
    """A line for an error of torch that a user can mend, or None."""
    text = str(error)
    lost = "closed by peer|reset by peer|Broken pipe|NCCL|ProcessGroup"
    if distributed.launched() and re.search(lost, text):
        return "another process has ended; its message says why"
    if "does not have a deterministic implementation" in text:
        name = text.split(" ")[0]
        return (
            f"--deterministic 1: {name} has no deterministic form on this device; "
            "leave the option out"
        )
    return None
