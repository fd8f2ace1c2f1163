"""The scripts in `code/`: the options that one would train with, and running one to its end."""

import functools
import importlib.util
import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from utils import command
from utils.environment import ROOT
from utils.errors import UserError

CODE = ROOT / "code"


def training_script(method: str) -> Path:
    """The script that trains a method; it need not exist."""
    return CODE / f"train_{method}.py"


def options_of(script: str | Path, *arguments: str) -> dict:
    """The options that a training script would train with, as `args.json` holds them.

    The script's own `parse` says them, so its defaults, rules and checks hold.

    Raises:
        UserError: the script refuses the options.
        SystemExit: its parser refuses the command line, and has printed why in one line.
    """
    return dict(_options_of(Path(script).resolve(), arguments))


@functools.cache
def _options_of(script: Path, arguments: tuple[str, ...]) -> dict:
    try:
        args = load_script(script).parse(list(arguments))
    except UserError as error:
        raise UserError(f"{script.name}: {error}") from None
    known = {key: value for key, value in vars(args).items() if key != "sources"}
    return json.loads(json.dumps(known))


def flags_of_test(method: str, dataset: str) -> dict[str, str]:
    """Flags of the test script that a method is tested with on a data set, as its paper or its
    released code does.

    They are `TEST_FLAGS` of the training script, by data set, `*` for all others. There are none
    where neither says, or where the method has no script here.
    """
    script = training_script(method)
    if not script.is_file():
        return {}
    flags = getattr(load_script(script), "TEST_FLAGS", {})
    return pairs(flags.get(dataset, flags.get("*", "")))


def pairs(flags: str) -> dict[str, str]:
    """Flags that have one value each, as `{"--nms": "0"}`.

    Raises:
        UserError: a flag has no value, or several.
    """
    words = shlex.split(flags)
    names = words[::2]
    if len(words) % 2 or not all(name.startswith("--") for name in names):
        raise UserError(f"{flags!r}: give each flag of a test script one value")
    return dict(zip(names, words[1::2], strict=True))


@functools.cache
def load_script(path: Path) -> ModuleType:
    """A script as a module. Its folder is on the path only while it loads."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.parent))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(path.parent))
    return module


def shell(words: Sequence[str]) -> str:
    """A command as one types it in the current folder."""
    return shlex.join(["python", os.path.relpath(words[0]), *words[1:]])


def call(words: Sequence[str]) -> int:
    """Run a Python script to its end.

    The script has a session of its own and gets each signal once, from here: a training script
    saves at the first signal and leaves at once at the second.

    Returns:
        Its exit status, negative for a signal as in `subprocess`.
    """
    process = None
    early = []  # signals that come while the script is being started

    def pass_on(number, _):
        if process is None:
            early.append(number)
        else:
            process.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in command.SIGNALS}
    try:
        process = subprocess.Popen([sys.executable, *words], start_new_session=True)
        for number in early:
            process.send_signal(number)
        return process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
