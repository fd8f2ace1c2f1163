"""What a number must be read with: versions, commit and hardware."""

import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import torch

from utils.device import (
    describe,
)

ROOT = Path(__file__).resolve().parent.parent


def environment(devices):
    """Versions, commit and hardware: what a number must be read with."""

    def git(*command):
        try:
            answer = subprocess.run(
                ["git", "-C", ROOT, *command], capture_output=True, text=True, check=False
            )
        except OSError:  # no git here
            return None
        return answer.stdout.strip() if answer.returncode == 0 else None

    changes = git("status", "--porcelain")
    return {
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": git("rev-parse", "HEAD"),
        "dirty": bool(changes) if changes is not None else None,
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "numpy": np.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "devices": [describe(device) for device in devices],
    }
