"""Resident data: every way to keep it gives the same bits, and cache files that are never
trusted.
"""

import json
import os
import subprocess
import sys
import time
import warnings
from argparse import Namespace

import h5py
import numpy as np
import pytest
import torch
from conftest import ROOT
from small import FOLDER, make_tiny_la, write_case

from dataloaders import cache, cache_files, h5
from dataloaders.cache import Resident, Stored, store, values
from dataloaders.cache_files import read_arrays, write_arrays
from dataloaders.la import LA
from dataloaders.two_stream import two_stream_loader
from utils import device
from utils.errors import UserError
from utils.ops import crop_rot_flip

LABELED = 3


@pytest.fixture
def mixed_la(tiny_la):
    """Volumes of which two are kept as codes, two as float16 and two as float32, smaller than a
    patch on an axis.
    """
    for i in range(6):
        path = tiny_la / FOLDER / f"CASE{i:02d}" / "mri_norm2.h5"
        with h5py.File(path, "r+") as file:
            image = file["image"][()]
            if i % 3 < 2:
                file["image"][...] = [image.round(1), image.astype(np.float16)][i % 3]
    return tiny_la


def loader(root, mode="ram", cache_dir=None, to="cpu", **changes):
    options = {
        "dataset": "LA",
        "root": root,
        "downsample": 1,
        "labelnum": LABELED,
        "labeled_bs": 2,
        "unlabeled_bs": 2,
    }
    options |= {
        "patch": [18, 44, 20],
        "seed": 1,
        "augment": "rot_flip",
        "cache": mode,
        "cache_dir": cache_dir,
    }
    return two_stream_loader(Namespace(**options | changes), torch.device(to))


def slices(root, *arguments, **changes):
    settings = {"generator": 1, "seed": 0, "size": [40, 36, 20], "train": 6, "test": 2}
    (root / "phantom.json").write_text(json.dumps(settings))
    return loader(
        root,
        *arguments,
        **{"dataset": "phantom2d", "patch": [32, 48], "augment": "affine", **changes},
    )


def assert_equal_batches(one, other, steps=6):
    assert one.fingerprint() == other.fingerprint()
    for step in range(1, steps + 1):
        a, b = one.batch(step), other.batch(step)
        assert a.image.dtype == b.image.dtype == torch.float32
        assert torch.equal(a.image.cpu().view(torch.int32), b.image.cpu().view(torch.int32))
        assert torch.equal(a.label.cpu(), b.label.cpu())
        assert a.names == b.names


# ---- the forms


def bits(array):
    return np.asarray(array, dtype=np.float32).view(np.uint32)


def few(n, zero):
    return np.arange(n, dtype=np.float32) * 0.1 + (0 if zero else 0.05)


FORMS = {
    "256 values with 0": (np.tile(few(256, True), 9), torch.uint8),
    "256 values without 0": (np.tile(few(256, False), 9), torch.float32),
    "255 values without 0": (np.tile(few(255, False), 9), torch.uint8),
    "257 values": (np.tile(few(257, True), 9), torch.float32),
    "rare values": (np.r_[np.zeros(2000), few(200, False)].astype(np.float32), torch.uint8),
    "signs of zero": (np.tile(np.array([0.0, -0.0, 1.1], np.float32), 999), torch.uint8),
    "-0.0 alone": (np.full(999, -0.0, np.float32), torch.uint8),
    "denormals": (
        np.tile(np.array([1, 2, 2**23 - 1], np.uint32).view(np.float32), 999),
        torch.uint8,
    ),
    "largest": (np.tile(np.array([3.4e38, -3.4e38, 1e-30], np.float32), 999), torch.uint8),
    "float16": (np.arange(2000, dtype=np.float16).astype(np.float32) / -8, torch.float16),
    "denormals of float16": (
        np.arange(1, 1000, dtype=np.uint16).view(np.float16).astype(np.float32),
        torch.float16,
    ),
    "one voxel is no float16": (np.r_[np.arange(2000), 0.1].astype(np.float32), torch.float32),
    "too large for float16": (np.r_[np.arange(2000), 1e6].astype(np.float32), torch.float32),
    "-0.0 in float16": (np.r_[np.arange(1000), -0.0].astype(np.float32), torch.float16),
    "few voxels": (np.array([0.1, 0.2, 0.3], np.float32), torch.float32),
}


@pytest.mark.parametrize("name", FORMS)
def test_every_form_is_the_smallest_and_gives_every_bit_back(name):
    image, form = FORMS[name]
    stored = store(image.reshape(1, 1, -1))
    assert stored.data.dtype == form
    np.testing.assert_array_equal(bits(stored.image())[0, 0], bits(image))
    padded, _ = crop_rot_flip(
        [stored.data], None, [(-1, 0, -2)], (3, 2, image.size + 4), [0], [None]
    )
    padded = bits(values([stored], padded)[0])
    np.testing.assert_array_equal(padded[1, 0, 2:-2], bits(image))
    padded[1, 0, 2:-2] = 0
    assert not padded.any()  # 0.0, and its sign is plus


def test_values_that_a_first_hash_confuses():
    """Their upper halves are one value's: no multiplier but a drawn one keeps them apart."""
    image = np.tile((np.arange(250, dtype=np.uint32) + 0x3F800000).view(np.float32), 9)
    stored = store(image)
    assert stored.data.dtype == torch.uint8
    np.testing.assert_array_equal(bits(stored.image()), bits(image))


# ---- the modes


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("changes", [{}, {"downsample": 2, "patch": [16, 24, 8]}])
def test_volumes_are_the_same_to_the_bit_in_every_mode(mixed_la, tmp_path, cached, changes):
    ram = loader(mixed_la, **changes)
    folder = tmp_path / "cache" if cached else None
    assert_equal_batches(ram, loader(mixed_la, "off", folder, **changes))
    assert_equal_batches(ram, loader(mixed_la, "off", folder, **changes))
    assert_equal_batches(ram, loader(mixed_la, "ram", folder, **changes))
    plain = Resident(
        LA(mixed_la, downsample=changes.get("downsample", 1)), range(LABELED), range(6)
    )
    if not changes:
        forms = [torch.uint8, torch.float16, torch.float32] * 2
        assert [plain.stored(case)[0].data.dtype for case in range(6)] == forms
    for case in range(6):  # and as they would be without any of this
        image, _ = LA(mixed_la, downsample=changes.get("downsample", 1)).load(case)
        np.testing.assert_array_equal(bits(plain.images[case]), bits(image))
        plain._kept[case] = Stored(torch.from_numpy(image)), plain._kept[case][1]
    before = loader(mixed_la, **changes)
    before.volumes = plain
    assert_equal_batches(ram, before)


@pytest.mark.parametrize("augment", ["rotate", "affine", "resize"])
def test_slices_are_the_same_to_the_bit_in_every_mode(mixed_la, tmp_path, augment):
    ram = slices(mixed_la, augment=augment)
    for folder in (None, tmp_path / "cache", tmp_path / "cache"):
        assert_equal_batches(ram, slices(mixed_la, "off", folder, augment=augment))
    assert_equal_batches(ram, slices(mixed_la, "ram", tmp_path / "cache", augment=augment))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("mode", ["gpu", "auto", "ram", "off"])
def test_the_gpu_gives_the_same_bits(mixed_la, mode):
    data = loader(mixed_la, mode, to="cuda")
    assert data.volumes.cache == ("gpu" if mode == "auto" else mode)
    assert data.batch(1).image.device.type == "cuda"
    assert_equal_batches(loader(mixed_la), data)
    stored, label = data.volumes.stored(0)
    assert (
        stored.data.device.type
        == ("cuda" if data.volumes.cache == "gpu" else "cpu")
        == label.device.type
    )


def test_without_a_gpu_all_is_ram(tiny_la):
    device.warn_once.cache_clear()
    with pytest.warns(
        UserWarning, match="--cache gpu: no GPU is used here, the data stays in RAM"
    ) as told:
        assert [loader(tiny_la, "gpu").volumes.cache for _ in range(2)] == ["ram"] * 2
    assert len(told) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert loader(tiny_la, "auto").volumes.cache == "ram"


@pytest.mark.parametrize(
    ("mode", "free", "chosen"), [("auto", 10**7, "gpu"), ("auto", 10**6, "ram"), ("gpu", 1, "gpu")]
)
def test_auto_takes_a_share_of_the_free_memory(tiny_la, monkeypatch, mode, free, chosen):
    """The arithmetic, where there is no GPU: the CPU stands for it."""
    monkeypatch.setattr(cache, "_possible", lambda mode, *_: mode)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (free, 10**8))
    volumes = loader(tiny_la, mode).volumes
    assert volumes.cache == chosen
    assert 10**6 * cache.SHARE < volumes._bytes() < 10**7 * cache.SHARE


def test_a_gpu_that_is_too_small(tiny_la, monkeypatch):
    def full(self, _):
        raise torch.cuda.OutOfMemoryError

    monkeypatch.setattr(cache, "_possible", lambda mode, *_: mode)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (2 * 10**6, 10**8))
    monkeypatch.setattr(Stored, "to", full)
    with pytest.raises(
        UserError,
        match="--cache gpu: the data takes 1 MB on this GPU, and 2 MB are free; give --cache",
    ):
        loader(tiny_la, "gpu")


def test_shapes_are_known_without_decoding(mixed_la, monkeypatch):
    data = loader(mixed_la)
    monkeypatch.setattr(Stored, "image", lambda self: pytest.fail("decoded"))
    assert data.fingerprint()
    assert data.batch(1).image.shape == (4, 1, 18, 44, 20)
    assert set(data.volumes.images) == set(range(6))
    assert 6 not in data.volumes.images
    with pytest.raises(KeyError):
        data.volumes.labels[LABELED]  # unlabelled


def test_off_reads_the_next_step_before_it_is_asked_for(tiny_la):
    data = loader(tiny_la, "off")
    assert not data.volumes._kept
    data.batch(1)
    soon = data.samples(1) + data.samples(2)
    assert data.volumes._pending.keys() == set(soon)
    assert all(task.result(timeout=60)[0].data.shape for task in data.volumes._pending.values())
    data._dataset = data.volumes._dataset.load = lambda *_, **__: pytest.fail("read again")
    data.volumes._pending = {
        case: task for case, task in data.volumes._pending.items() if case in data.samples(2)
    }
    data._read_ahead = lambda *_: None
    assert data.batch(2).image.isfinite().all()


def test_off_tells_of_a_file_that_went_bad(tiny_la):
    data = loader(tiny_la, "off")
    for i in range(6):
        (tiny_la / FOLDER / f"CASE{i:02d}" / "mri_norm2.h5").write_bytes(b"no h5 file")
    with pytest.raises(UserError, match=r"mri_norm2.h5: damaged or not an h5 file"):
        data.batch(1)


def test_off_tells_of_a_file_that_changed(tiny_la):
    data = loader(tiny_la, "off")
    for i in range(6):
        write_case(
            tiny_la,
            f"CASE{i:02d}",
            np.ones((30, 30, 30), np.float32),
            np.ones((30, 30, 30), np.uint8),
        )
    with pytest.raises(UserError, match="changed since training began"):
        data.batch(1)


def test_the_first_bad_file_of_the_list_is_named(tiny_la):
    for i in (2, 4):
        (tiny_la / FOLDER / f"CASE{i:02d}" / "mri_norm2.h5").write_bytes(b"")
    for mode in ("ram", "off"):
        with pytest.raises(UserError, match=r"CASE02.*damaged or not an h5 file"):
            loader(tiny_la, mode)


def test_the_summary_says_what_was_chosen(mixed_la, tmp_path):
    form = "8-bit codes and float16 and float32"
    assert f"6 cases, 1 MB as {form} in RAM, decoded in" in loader(mixed_la).volumes.summary
    assert "6 cases, read again for each step, decoded" in loader(mixed_la, "off").volumes.summary
    assert "6 decoded in" in loader(mixed_la, "ram", tmp_path / "cache").volumes.summary
    assert (
        f"6 read from {tmp_path / 'cache'} in"
        in loader(mixed_la, "off", tmp_path / "cache").volumes.summary
    )
    assert "120 slices, " in slices(mixed_la).volumes.summary


# ---- cache files


@pytest.fixture
def decoded(monkeypatch):
    """Names of the cases of which anything was decoded since the list was last cleared."""
    seen, original = [], h5._dataset

    def spy(path, key, *read):
        if not read:  # a shape is not decoded
            seen.append(f"{path.parent.name}/{key}")
        return original(path, key, *read)

    monkeypatch.setattr(h5, "_dataset", spy)
    return seen


@pytest.mark.parametrize("form", [loader, slices])
@pytest.mark.parametrize("mode", ["ram", "off"])
def test_a_second_start_decodes_nothing(tiny_la, tmp_path, decoded, form, mode):
    form(tiny_la, mode, tmp_path / "cache")
    assert len(decoded) == 6 + LABELED
    decoded.clear()
    data = form(tiny_la, mode, tmp_path / "cache")
    data.batch(1)
    assert not decoded


def test_labels_that_nobody_asked_for_are_neither_read_nor_written(tiny_la, tmp_path, decoded):
    folder = tmp_path / "cache"
    loader(tiny_la, "ram", folder)
    assert len(list(folder.glob("*.image"))) == 6
    assert len(list(folder.glob("*.label"))) == LABELED
    assert {name[:6] for name in decoded if name.endswith("label")} == {
        "CASE00",
        "CASE01",
        "CASE02",
    }
    for file in folder.glob("*.label"):  # another run's: it stays unread
        file.write_bytes(b"damaged")
    decoded.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Resident(LA(tiny_la), [], range(6), cache_dir=folder)
    assert not decoded
    loader(tiny_la, "ram", tmp_path / "other")
    decoded.clear()
    loader(tiny_la, "ram", tmp_path / "other", labelnum=5)  # more labels: these alone are new
    assert sorted(name for name in decoded if name.endswith("label")) == [
        "CASE03/label",
        "CASE04/label",
    ]
    assert len(list((tmp_path / "other").glob("*.label"))) == 5


def test_another_content_or_resolution_is_decoded_anew(tiny_la, tmp_path, decoded):
    folder = tmp_path / "cache"
    loader(tiny_la, "ram", folder)
    image = np.random.default_rng(0).random((40, 36, 20), dtype=np.float32)
    path = tiny_la / FOLDER / "CASE00" / "mri_norm2.h5"
    before = path.stat()
    with h5py.File(path, "r+") as file:
        file["image"][...] = image
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # dates prove nothing
    decoded.clear()
    data = loader(tiny_la, "ram", folder)
    assert decoded == ["CASE00/image", "CASE00/label"]
    np.testing.assert_array_equal(data.volumes.images[0].numpy(), image)
    decoded.clear()
    loader(tiny_la, "ram", folder, downsample=2, patch=[16, 16, 16])
    assert len(decoded) == 6 + LABELED
    decoded.clear()
    assert_equal_batches(loader(tiny_la, "ram", folder), loader(tiny_la))


@pytest.mark.parametrize("mode", ["ram", "off"])
@pytest.mark.parametrize("how", ["cut", "empty", "one bit", "header", "another format"])
def test_a_damaged_file_is_made_anew(mixed_la, tmp_path, decoded, mode, how):
    folder = tmp_path / "cache"
    loader(mixed_la, "ram", folder)
    for kind in ("image", "label"):
        path = next(folder.glob(f"*.{kind}"))
        content = bytearray(path.read_bytes())
        if how == "one bit":
            content[len(content) * 2 // 3] ^= 4
        elif how == "header":
            content[30] ^= 1
        elif how == "another format":
            content[:8] = b"other_fm"
        path.write_bytes(content[: {"cut": len(content) // 2, "empty": 0}.get(how)])
    decoded.clear()
    with pytest.warns(
        UserWarning, match=r"\.(image|label): damaged \(.*\), decoding its case again"
    ):
        data = loader(mixed_la, mode, folder)
    assert 1 <= len({name[:6] for name in decoded}) <= 2
    assert_equal_batches(data, loader(mixed_la))
    decoded.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loader(mixed_la, mode, folder)
    assert not decoded


def test_a_folder_that_cannot_be_made_costs_one_warning(tiny_la, tmp_path):
    (tmp_path / "file").write_text("in the way")
    for mode in ("ram", "off"):
        with pytest.warns(
            UserWarning, match="--cache_dir: .* cannot be written .*; going on without"
        ) as told:
            data = loader(tiny_la, mode, tmp_path / "file")
        assert len(told) == 1
        assert_equal_batches(data, loader(tiny_la))


def test_a_full_disk_costs_one_warning_and_leaves_nothing_broken(tiny_la, tmp_path, monkeypatch):
    folder, original, written = tmp_path / "cache", os.replace, []

    def replace(source, target):
        if len(written) >= 3:
            raise OSError(28, "No space left on device")
        written.append(target)
        original(source, target)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.warns(
        UserWarning, match="--cache_dir: .* cannot be written .*; going on without"
    ) as told:
        data = loader(tiny_la, "off", folder)
    assert len(told) == 1
    assert len(list(folder.iterdir())) == len(written) < 6 + LABELED
    assert_equal_batches(data, loader(tiny_la))
    monkeypatch.undo()
    assert_equal_batches(loader(tiny_la, "off", folder), data)
    assert len(list(folder.iterdir())) == 6 + LABELED


def test_arrays_come_back_as_they_were(tmp_path):
    arrays = [np.arange(24, dtype=t).reshape(2, 3, 4) for t in (np.uint8, np.float16, np.float32)]
    arrays += [np.zeros(0, np.float32), np.array([-0.0], np.float32), arrays[0].T]
    write_arrays(tmp_path / "a", arrays)
    for mapped in (False, True):
        for one, other in zip(arrays, read_arrays(tmp_path / "a", mapped), strict=True):
            assert one.dtype == other.dtype
            assert one.shape == other.shape
            assert one.tobytes() == other.tobytes()
            torch.from_numpy(other)
    assert cache_files.ALIGNMENT % 16 == 0


def test_two_processes_at_once(tmp_path):
    """Each finds whole what it or the other has just written."""
    probe = """
import sys
from types import SimpleNamespace
import numpy as np
from dataloaders.cache_files import CacheFiles
protocol = SimpleNamespace(name="LA", downsample=1, num_classes=2)
files = [CacheFiles(sys.argv[1], protocol, mapped) for mapped in (False, True)]
arrays = [np.arange(100_000, dtype=np.float32)]
for step in range(60):
    files[0].write("key", "image", arrays)
    assert np.array_equal(files[step % 2].read("key", "image"), arrays)
"""
    command = [sys.executable, "-W", "error", "-c", probe, tmp_path / "cache"]
    started = [
        subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) for _ in range(2)
    ]
    for process in started:
        assert not process.communicate(timeout=120)[1]
        assert process.returncode == 0
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["key.image"]


def test_interrupted_starts_begin_nothing_more(tmp_path, monkeypatch):
    make_tiny_la(tmp_path / "la")
    begun = []

    def load(self, index, label=True):
        begun.append(index)
        if len(begun) > 1:  # time for the first one's interrupt to be heard
            time.sleep(0.5)
        raise KeyboardInterrupt

    monkeypatch.setattr(LA, "load", load)
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    with pytest.raises(KeyboardInterrupt):
        loader(tmp_path / "la")
    assert len(begun) < 6
