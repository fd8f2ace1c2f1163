"""What all tests share: the root and `code/` on the path, a data set of a few small volumes, a way to run scripts."""

import locale
import os
import subprocess
import sys
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
    """Four training, one validation and two test patients of three slices 36×32 in ACDC's layout, 4 classes."""
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
        image, label = image[4:7], label[4:7] + (np.arange(32) > 12) * label[4:7] + (np.arange(32) > 18) * label[4:7]
        write(root / "data" / f"{name}.h5", image, label)
        lists[split].append(name)
        for k in range(3 if split == "train" else 0):
            write(root / "data" / "slices" / f"{name}_slice_{k + 1}.h5", image[k], label[k])
            lists["train_slices"].append(f"{name}_slice_{k + 1}")
    for split, names in lists.items():
        (root / f"{split}.list").write_text("\n".join(names) + "\n")


def run_script(name, *arguments, timeout=120):
    """Run `code/<name>` in a process of its own and return it finished, with `stdout` and `stderr` as text.

    One thread: tiny networks wait for each other's threads longer than they compute.
    """
    return subprocess.run(
        [sys.executable, str(ROOT / "code" / name), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )


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
    """Writing DICOM files, as some tests do, leaves the process in the C locale, where text files are ASCII."""
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
        corner = [(extent - size) // 2 for extent, size in zip(label.shape, (112, 112, 80), strict=True)]
        labels.append(label[tuple(slice(c, c + size) for c, size in zip(corner, (112, 112, 80), strict=True))])
    return torch.stack(labels)
