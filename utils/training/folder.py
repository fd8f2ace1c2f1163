"""The folder of a run: one process writes to it, and a run in it is resumed only with its own
options.

    args.json           the options, with the method and the precision in use
    environment.json    versions, commit and hardware of each part of the run
    train_<method>.py   a copy of the script
    log.txt             what the run says
"""

import fcntl
import json
import logging
import shutil
from pathlib import Path

from utils import distributed, progress
from utils.errors import UserError
from utils.files import write_atomically
from utils.training.options import MAY_DIFFER


class RunFolder:
    """A run's folder, held until `close`.

    Args:
        path: made if it is not there.
        script: the training script, which is copied into the folder.
        options: all options of the run, as JSON can hold them.
        resume: whether a run in the folder may be gone on with.

    Attributes:
        options: those given; of a run that is resumed, with the `precision_asked` of its start.
        environments: records of the parts of the run, one each.

    Raises:
        UserError: the folder cannot be made, another process holds it, or it holds a run and
            `resume` is false, the run has other options, or its records are damaged.
    """

    def __init__(self, path: Path, script: Path, options: dict, resume: bool):
        self.path = path
        self.options = options
        self.environments: list[dict] = []
        last = path / "last.pth"
        if last.exists() and not resume:
            raise UserError(
                f"{path} already holds a run: --resume goes on with it, --name starts another "
                "beside it"
            )
        self._make()
        self._lock()
        self._remove_leftovers()
        if last.exists():
            self._go_on()
        else:
            self._begin(script)

    def close(self) -> None:
        """Let another process have the folder."""
        self._held.close()

    def note_environment(self, record: dict) -> None:
        """Add the record of this part of the run."""
        self.environments.append(record)
        self._write_json("environment.json", self.environments)

    def _make(self) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{self.path}: cannot be made ({error.strerror})") from None

    def _lock(self) -> None:
        self._held = open(self.path / ".lock", "w")  # noqa: SIM115 - closing it releases the lock
        try:
            fcntl.flock(self._held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(
                f"{self.path}: another process trains here; wait for it, or start another run "
                "with --name"
            ) from None

    def _remove_leftovers(self) -> None:
        for leftover in self.path.glob(".*.pth.*"):  # of a process that was killed while it saved
            leftover.unlink()

    def _begin(self, script: Path) -> None:
        self._write_json("args.json", self.options)
        shutil.copy(script, self.path / script.name)
        (self.path / "metrics.jsonl").write_text("")

    def _go_on(self) -> None:
        before = self._read_json("args.json")
        insist_on_options(self.path, before, self.options)
        self.options["precision_asked"] = before["precision_asked"]
        self.environments = self._read_json("environment.json")

    def _read_json(self, name: str):
        try:
            return json.loads((self.path / name).read_text())
        except (OSError, ValueError):
            raise UserError(
                f"{self.path / name}: missing or damaged, so this run cannot be resumed"
            ) from None

    def _write_json(self, name: str, content) -> None:
        text = json.dumps(content, indent=1) + "\n"
        write_atomically(self.path / name, lambda path: path.write_text(text))


def insist_on_options(path: Path, before: dict, options: dict) -> None:
    """Raise `UserError` where a run's options are not those that it was started with.

    Options that move no number (`MAY_DIFFER`) may differ, and so may the precision that is asked
    for, as long as the same comes of it.
    """
    another = "; start another run with --name"
    method = before.get("method")
    if method != options["method"]:
        raise UserError(
            f"{path} was started with method {method}, not {options['method']}{another}"
        )
    unknown = sorted(before.keys() ^ options.keys())
    if unknown:
        raise UserError(
            f"{path} was started by another version of the script, in which --{unknown[0]} "
            f"differs{another}"
        )
    for key in sorted(options.keys() - MAY_DIFFER - {"precision_asked"}):
        old, new = before[key], options[key]
        if type(old) is not type(new) and str(old) == str(new):
            raise UserError(f"{path} was started by another version of the script{another}")
        if old != new:
            raise UserError(
                f"{path} was started with {key} {old}, not {new}: resume it with {old}{another}"
            )


def open_log(path: Path) -> logging.Logger:
    """The logger of a run: in the first process it writes to log.txt and to the terminal, above the
    progress bar.
    """
    logger = logging.getLogger(f"run.{path}")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    logger.handlers = [logging.NullHandler()]
    if distributed.is_first():
        logger.handlers = [
            logging.FileHandler(path / "log.txt", encoding="utf-8"),
            _TerminalHandler(),
        ]
    for handler in logger.handlers:
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    return logger


class _TerminalHandler(logging.Handler):
    def emit(self, record):
        progress.write(self.format(record))
