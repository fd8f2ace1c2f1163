"""What all tests share: the root and `code/` on the path, a data set of a few small volumes, a way
to run scripts.
"""

import json
import locale
import os
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "code")]

FOLDER = "2018LA_Seg_Training Set"


def write_case(root, name, image, label):
    """One h5 file of LA's layout; `label=None` leaves the key out."""
    path = Path(root) / FOLDER / name / "mri_norm2.h5"
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file["image"] = image
        if label is not None:
            file["label"] = label
    return path


def blob(rng, shape):
    """A bright ball at a random place in noise, and its label."""
    centre = [rng.uniform(0.35, 0.65) * extent for extent in shape]
    grid = np.meshgrid(*map(np.arange, shape), indexing="ij")
    distance = np.sqrt(sum((g - c) ** 2 for g, c in zip(grid, centre, strict=True)))
    label = (distance < 0.3 * min(shape)).astype(np.uint8)
    return (2.0 * label + 0.3 * rng.standard_normal(shape) - 0.5).astype(np.float32), label


def make_tiny_la(root):
    """Six training and two test volumes of about 40×36×20 voxels in LA's layout."""
    rng = np.random.default_rng(0)
    names = [f"CASE{i:02d}" for i in range(8)]
    for i, name in enumerate(names):
        write_case(root, name, *blob(rng, (40 + i % 3, 36 + i % 2, 20)))
    (root / "train.list").write_text("\n".join(names[:6]) + "\n")
    (root / "test.list").write_text("\n".join(names[6:]) + "\n")


def make_tiny_acdc(root):
    """Four training, one validation and two test patients of three slices 36×32 in ACDC's layout, 4
    classes.
    """
    rng = np.random.default_rng(0)
    lists = {"train_slices": [], "train": [], "val": [], "test": []}
    (root / "data" / "slices").mkdir(parents=True)

    def write(path, image, label):
        with h5py.File(path, "w") as file:
            file["image"], file["label"] = image, label

    for patient in range(1, 8):
        split = "train" if patient <= 4 else "val" if patient == 5 else "test"
        name = f"patient{patient:03d}_frame01"
        image, label = blob(rng, (12, 36, 32))
        image, label = (
            image[4:7],
            label[4:7] + (np.arange(32) > 12) * label[4:7] + (np.arange(32) > 18) * label[4:7],
        )
        write(root / "data" / f"{name}.h5", image, label)
        lists[split].append(name)
        for k in range(3 if split == "train" else 0):
            write(root / "data" / "slices" / f"{name}_slice_{k + 1}.h5", image[k], label[k])
            lists["train_slices"].append(f"{name}_slice_{k + 1}")
    for split, names in lists.items():
        (root / f"{split}.list").write_text("\n".join(names) + "\n")


class Script:
    """`code/<name>` in a process of its own; one thread, as tiny networks wait for each other's
    threads longer than they compute.

    It is forked from a process that has imported torch (`forkserver.py`), or where a test has
    changed the environment started anew.
    """

    _server = _environment = None

    def __init__(self, name, *arguments):
        self.command = [str(ROOT / "code" / name), *map(str, arguments)]
        self.folder = tempfile.TemporaryDirectory()
        self.outputs = [str(Path(self.folder.name) / stream) for stream in ("stdout", "stderr")]
        for path in self.outputs:
            Path(path).touch()
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTEST_CURRENT_TEST": ""}
        if Script._server is None:
            Script._environment = environment
            server = [sys.executable, str(Path(__file__).with_name("forkserver.py"))]
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
            Script._server = subprocess.Popen(server, **pipes, text=True, env=environment)
        if environment == Script._environment:
            job = dict(zip(("stdout", "stderr"), self.outputs, strict=True), folder=os.getcwd())
            job |= {"script": self.command[0], "arguments": self.command[1:]}
            print(json.dumps(job), file=Script._server.stdin, flush=True)
            self.pid, self._process = int(Script._server.stdout.readline()), None
        else:
            with open(self.outputs[0], "w") as out, open(self.outputs[1], "w") as err:
                command = [sys.executable, *self.command]
                self._process = subprocess.Popen(command, stdout=out, stderr=err, env=environment)
            self.pid = self._process.pid

    def send_signal(self, number):
        os.kill(self.pid, number)

    def wait(self, timeout=120):
        """The finished process with `returncode`, `stdout` and `stderr`; killed after so many
        seconds.
        """
        timer = threading.Timer(timeout, self.send_signal, [signal.SIGKILL])
        timer.start()
        status = self._process.wait() if self._process else int(Script._server.stdout.readline())
        timer.cancel()
        out, err = (Path(path).read_text(encoding="utf-8") for path in self.outputs)
        self.folder.cleanup()
        return subprocess.CompletedProcess(self.command, status, out, err)


def run_script(name, *arguments, timeout=120):
    """Run `code/<name>` in a process of its own and return it finished, with `stdout` and `stderr`
    as text.
    """
    return Script(name, *arguments).wait(timeout)


@pytest.fixture
def tiny_la(tmp_path):
    """The folder of `make_tiny_la`, fresh for each test to spoil."""
    root = tmp_path / "tiny_la"
    make_tiny_la(root)
    return root


@pytest.fixture
def tiny_acdc(tmp_path):
    """The folder of `make_tiny_acdc`."""
    root = tmp_path / "tiny_acdc"
    root.mkdir()
    make_tiny_acdc(root)
    return root


@pytest.fixture(autouse=True)
def same_locale():
    """Writing DICOM files, as some tests do, leaves the process in the C locale, where text files
    are ASCII.
    """
    before = locale.setlocale(locale.LC_ALL)
    yield
    locale.setlocale(locale.LC_ALL, before)


@pytest.fixture
def script():
    """`run_script`."""
    return run_script


@pytest.fixture(params=["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"])
def device(request):
    """Every device that this machine has."""
    return torch.device(request.param)


@pytest.fixture
def one_thread():
    """Threads of tiny convolutions wait for one another longer than they work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def la_root():
    """The real LA data under `$DATA_ROOT` or `data/`; skips where it is absent."""
    root = Path(os.environ.get("DATA_ROOT", ROOT / "data")) / "LA"
    if (root / "train.list").is_file():
        return root
    pytest.skip("no LA data in $DATA_ROOT or data/: see the README on how to get it")


@pytest.fixture(scope="session")
def left_atria(la_root):
    """Centre-near crops of four real left-atrium labels, ``(4, 112, 112, 80)`` uint8."""
    labels = []
    for file in sorted(la_root.glob("**/mri_norm2.h5"))[:4]:
        with h5py.File(file) as case:
            label = torch.from_numpy(case["label"][:])
        corner = [
            (extent - size) // 2 for extent, size in zip(label.shape, (112, 112, 80), strict=True)
        ]
        labels.append(
            label[tuple(slice(c, c + size) for c, size in zip(corner, (112, 112, 80), strict=True))]
        )
    return torch.stack(labels)
