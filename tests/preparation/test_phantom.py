"""The phantom: the same bits from the same seed, LA's layout, a whole atrium inside every
volume.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from scipy import ndimage

from dataloaders import open_dataset
from dataloaders.la import FOLDER
from dataloaders.phantom import Phantom
from utils.errors import UserError
from utils.preparation.phantom import MIN_SIZE, write_dataset
from utils.preparation.phantom_imaging import make_case

ROOT = Path(__file__).resolve().parents[2]
SMALL = MIN_SIZE


def contents(root):
    """Every file below `root` and its bytes."""
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def phantom(tmp_path_factory):
    """A phantom of 3 + 2 small cases, made in this process; tests only read it."""
    root = tmp_path_factory.mktemp("phantom")
    assert write_dataset(root, seed=7, size=SMALL, train=3, test=2, workers=1) == 5
    return root


def test_a_case_depends_on_seed_and_index_alone():
    image, label = make_case(7, 3, SMALL)
    for seed, index in ((8, 3), (7, 4)):
        other_image, other_label = make_case(seed, index, SMALL)
        assert not np.array_equal(image, other_image)
        assert not np.array_equal(label, other_label)
    again_image, again_label = make_case(7, 3, SMALL)
    assert image.tobytes() == again_image.tobytes()
    assert label.tobytes() == again_label.tobytes()


def test_files_do_not_depend_on_workers_or_order(phantom, tmp_path):
    """Spawned processes, and a phantom whose cases are made one after the other in reverse, write
    the same bytes.
    """
    assert write_dataset(tmp_path, seed=7, size=SMALL, train=3, test=2, workers=2) == 5
    assert contents(tmp_path) == contents(phantom)
    for name in ("PHANTOM0005", "PHANTOM0002"):
        (tmp_path / FOLDER / name / "mri_norm2.h5").unlink()
        assert write_dataset(tmp_path, seed=7, size=SMALL, train=3, test=2, workers=1) == 1
    assert contents(tmp_path) == contents(phantom)


def test_layout_and_keys(phantom):
    assert (phantom / "train.list").read_text().split() == [
        "PHANTOM0001",
        "PHANTOM0002",
        "PHANTOM0003",
    ]
    assert (phantom / "test.list").read_text().split() == ["PHANTOM0004", "PHANTOM0005"]
    with h5py.File(phantom / "2018LA_Seg_Training Set" / "PHANTOM0002" / "mri_norm2.h5") as file:
        assert set(file) == {"image", "label"}
        assert {file[key].compression for key in file} == {"gzip"}
        assert (file["image"].dtype, file["image"].shape) == (np.float32, SMALL)
        assert (file["label"].dtype, file["label"].shape) == (np.uint8, SMALL)
        image, label = make_case(7, 1, SMALL)
        np.testing.assert_array_equal(file["image"], image)
        np.testing.assert_array_equal(file["label"], label)
    assert len(contents(phantom)) == 5 + 2 + 1, "a temporary file was left behind"


def test_the_reader_reads_it(phantom):
    train, test = open_dataset("phantom", phantom), open_dataset("phantom", phantom, "test")
    assert (len(train), len(test), train.num_classes) == (3, 2, 2)
    assert train.spacing == (4.0, 4.0, 4.0)
    np.testing.assert_array_equal(test.load(1)[0], make_case(7, 4, SMALL)[0])
    assert all(
        patch <= extent
        for patch, extent in zip(Phantom.patches[1], make_case(0, 0)[0].shape, strict=True)
    )


@pytest.mark.parametrize("index", [*range(10), 15])
def test_every_atrium_is_whole(index):
    """Normalised image; one connected body of 2 to 13 % of the volume, its border free."""
    image, label = make_case(2018, index)
    assert image.dtype == np.float32
    assert np.isfinite(image).all()
    assert abs(image.mean(dtype=np.float64)) < 1e-4
    assert abs(image.std(dtype=np.float64) - 1) < 1e-4
    assert label.dtype == np.uint8
    assert set(np.unique(label)) == {0, 1}
    assert ndimage.label(label)[1] == 1
    assert 0.02 < label.mean() < 0.13
    assert label.sum() == label[1:-1, 1:-1, 1:-1].sum()


def test_intensity_alone_cannot_segment_it():
    """The best threshold of each case, chosen with its label at hand, stays below a Dice of 0.6 on
    average.
    """
    best = []
    for index in range(6):
        image, label = make_case(2018, index)
        smooth = ndimage.gaussian_filter(image, 1)
        masks = (smooth > level for level in np.percentile(smooth, np.arange(50, 100, 2)))
        best.append(
            max(2 * (mask & (label > 0)).sum() / (mask.sum() + label.sum()) for mask in masks)
        )
    assert np.mean(best) < 0.6


def test_size_scales_the_anatomy():
    """Twice the voxels along each axis: the same atrium, sampled finer."""
    coarse, fine = make_case(1, 0, (32, 32, 20))[1], make_case(1, 0, (64, 64, 40))[1]
    pooled = fine.reshape(32, 2, 32, 2, 20, 2).mean((1, 3, 5)) >= 0.5
    assert 2 * (pooled & (coarse > 0)).sum() / (pooled.sum() + coarse.sum()) > 0.9


def test_a_second_call_does_nothing(phantom):
    before = {path: path.stat().st_mtime_ns for path in phantom.rglob("*")}
    assert write_dataset(phantom, seed=7, size=SMALL, train=3, test=2) == 0
    assert {path: path.stat().st_mtime_ns for path in phantom.rglob("*")} == before


def test_another_phantom_is_kept_unless_overwrite(tmp_path):
    write_dataset(tmp_path, seed=1, size=SMALL, train=2, test=1, workers=1)
    before = contents(tmp_path)
    with pytest.raises(UserError, match=r"holds another phantom \(seed 1, train 2\).*--overwrite"):
        write_dataset(tmp_path, seed=2, size=SMALL, train=1, test=1, workers=1)
    assert contents(tmp_path) == before
    assert (
        write_dataset(tmp_path, seed=2, size=SMALL, train=1, test=1, workers=1, overwrite=True) == 2
    )
    assert sorted(path.name for path in (tmp_path / FOLDER).iterdir()) == [
        "PHANTOM0001",
        "PHANTOM0002",
    ]
    np.testing.assert_array_equal(Phantom(tmp_path).load(0)[0], make_case(2, 0, SMALL)[0])


@pytest.mark.parametrize("overwrite", [False, True])
def test_other_data_is_never_touched(tmp_path, overwrite):
    (tmp_path / "train.list").write_text("a real case\n")
    with pytest.raises(UserError, match="no phantom's"):
        write_dataset(tmp_path, size=SMALL, train=1, test=1, workers=1, overwrite=overwrite)
    assert contents(tmp_path) == {"train.list": b"a real case\n"}


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"size": (31, 64, 40)}, "--size 31 64 40"),
        ({"size": (64, 64)}, "--size 64 64"),
        ({"seed": -1}, "--seed -1"),
        ({"train": 0}, "--train 0"),
        ({"test": 0}, "--test 0"),
        ({"workers": 0}, "--workers 0"),
    ],
)
def test_wrong_options_are_one_line(tmp_path, option, message):
    with pytest.raises(UserError, match=message) as caught:
        write_dataset(tmp_path / "new", **option)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "new").exists()


def test_missing_and_damaged_phantoms(tmp_path):
    with pytest.raises(UserError, match=r"prepare_phantom\.py --root"):
        Phantom(tmp_path)
    for damaged in ("{", "[]", '{"seed": 1}'):
        (tmp_path / "phantom.json").write_text(damaged)
        with pytest.raises(UserError, match=r"phantom\.json: damaged"):
            write_dataset(tmp_path, size=SMALL, train=1, test=1)
    for root in (tmp_path / "phantom.json", tmp_path / "phantom.json" / "below"):
        with pytest.raises(UserError, match="below, a file, not a folder"):
            write_dataset(root, size=SMALL, train=1, test=1)
    (tmp_path / "phantom.json").unlink()
    (tmp_path / "phantom.json").mkdir()
    with pytest.raises(UserError, match=r"phantom\.json: cannot be read"):
        write_dataset(tmp_path, size=SMALL, train=1, test=1)


def test_a_root_that_cannot_be_written_is_told(tmp_path, monkeypatch):
    (tmp_path / "dangling").symlink_to(tmp_path / "unmounted")
    with pytest.raises(UserError, match=r"dangling: cannot be written .*--root"):
        write_dataset(tmp_path / "dangling", size=SMALL, train=1, test=1, workers=1)

    write_dataset(tmp_path / "made", size=SMALL, train=1, test=1, workers=1)
    case = tmp_path / "made" / FOLDER / "PHANTOM0001"
    (case / "mri_norm2.h5").unlink()
    case.rmdir()
    case.write_text("a file in the folder's place")
    with pytest.raises(UserError, match="PHANTOM0001: cannot be written"):
        write_dataset(tmp_path / "made", size=SMALL, train=1, test=1, workers=1)

    def refuse(path, **options):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(UserError, match=r"train\.list: cannot be written \(Permission denied\)"):
        write_dataset(tmp_path / "made", size=SMALL, train=1, test=1, workers=1, overwrite=True)


def test_the_script(tmp_path):
    def script(*options):
        command = [
            sys.executable,
            ROOT / "code" / "prepare_phantom.py",
            "--root",
            "data",
            "--train",
            "2",
            "--test",
            "1",
        ]
        command += ["--size", "32", "32", "20", "--workers", "1", *options]
        return subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, env=os.environ, check=False
        )

    made = script("--preview", "sheets/phantom.png")
    assert made.returncode == 0, made.stderr
    assert "data: 2 + 1 cases of 32×32×20 voxels, 3 written in" in made.stdout
    assert (tmp_path / "sheets" / "phantom.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((tmp_path / "data" / "phantom.json").read_text())["seed"] == 2018
    other = script("--seed", "3")
    assert (other.returncode, other.stdout) == (2, "")
    assert len(other.stderr.splitlines()) == 1
    assert "--overwrite" in other.stderr
