"""Versions, commit and hardware that a number was made with."""

import subprocess
import sys
from collections.abc import Iterable
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import torch

from utils.device import describe

ROOT = Path(__file__).resolve().parent.parent


def environment(devices: Iterable[torch.device]) -> dict:
    """The record of this process, as JSON can hold it.

    `commit` and `dirty` are None outside of a git repository or without git.
    """
    changes = _git("status", "--porcelain")
    return {
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": _git("rev-parse", "HEAD"),
        "dirty": None if changes is None else bool(changes),
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "numpy": np.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "devices": [describe(device) for device in devices],
    }


def _git(*command: str) -> str | None:
    """What git answers about this repository, or None."""
    try:
        answer = subprocess.run(
            ["git", "-C", ROOT, *command], capture_output=True, text=True, check=False
        )
    except OSError:  # no git here
        return None
    return answer.stdout.strip() if answer.returncode == 0 else None
