"""What all tests share: the paths, small data sets, the real ones, and a way to run scripts."""

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
import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "code"), str(ROOT / "tests")]

from small import make_tiny_acdc, make_tiny_la  # noqa: E402


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


DATA = Path(os.environ.get("DATA_ROOT", ROOT / "data"))
REAL = {"LA": "train.list", "ACDC": "train_slices.list"}  # data set to a file of its folder


def real_data(name):
    """The folder of a real data set under `$DATA_ROOT` or `data/`; skips the test without it."""
    root = DATA / name
    if not (root / REAL[name]).is_file():
        pytest.skip(f"no {name} data in {DATA}")
    return root


@pytest.fixture(scope="session")
def la_root():
    return real_data("LA")


@pytest.fixture(scope="session")
def acdc_root():
    return real_data("ACDC")


# what trains, runs whole scripts or compiles, below tests/: `make quick` leaves it out
SLOW = (
    "benchmarks/",
    "dataloaders/test_new_dataset.py",
    "evaluation/test_scoring.py",
    "evaluation/test_scripts.py",
    "figures/",
    "methods/test_limits.py",
    "methods/test_loops.py",
    "ops/",
    "preparation/test_phantom.py",
    "preparation/test_predict.py",
    "preparation/test_prepare_official.py",
    "reporting/test_sweep.py",
    "scripts/",
    "training/",
)
QUICK_AFTER_ALL = ("ops/test_cutmix.py", "training/test_options.py", "training/test_log.py")


def pytest_collection_modifyitems(items):
    for item in items:
        file = item.path.relative_to(ROOT / "tests").as_posix()
        if file.startswith(SLOW) and file not in QUICK_AFTER_ALL:
            item.add_marker("slow")


def pytest_terminal_summary(terminalreporter):
    """Say how to get the tests that need real data, where there is none."""
    missing = [name for name, file in REAL.items() if not (DATA / name / file).is_file()]
    if missing:
        terminalreporter.write_line(
            f"Tests on real {' and '.join(missing)} volumes were skipped: docs/data.md says how to "
            "get the data; put it into data/, or name its folder in DATA_ROOT."
        )


@pytest.fixture(scope="session")
def left_atria(la_root):
    """Crops about the centre of four real left-atrium labels, `(4, 112, 112, 80)` uint8."""
    size = (112, 112, 80)
    labels = []
    for file in sorted(la_root.glob("**/mri_norm2.h5"))[:4]:
        with h5py.File(file) as case:
            label = torch.from_numpy(case["label"][:])
        corner = [(whole - part) // 2 for whole, part in zip(label.shape, size, strict=True)]
        crop = tuple(slice(c, c + part) for c, part in zip(corner, size, strict=True))
        labels.append(label[crop])
    return torch.stack(labels)
