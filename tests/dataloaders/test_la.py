"""The LA reader: the published layout in its variants, and one clear line for every file that is
damaged.
"""

import shutil

import h5py
import numpy as np
import pytest
from small import FOLDER, write_case

from dataloaders.la import LA
from dataloaders.transforms import downsample_image, downsample_label
from utils.errors import UserError


def path_of(root, name):
    return root / FOLDER / name / "mri_norm2.h5"


def rewrite(path, key, value):
    with h5py.File(path, "r+") as file:
        del file[key]
        if value is not None:
            file[key] = value


def test_reads_a_case_as_it_is(tiny_la):
    data = LA(tiny_la)
    image, label = data.load(2)
    with h5py.File(path_of(tiny_la, "CASE02")) as file:
        np.testing.assert_array_equal(image, file["image"][()])
        np.testing.assert_array_equal(label, file["label"][()])
    assert (image.dtype, label.dtype) == (np.float32, np.uint8)
    assert data.names == [f"CASE{i:02d}" for i in range(6)]


def test_layout_without_the_folder_in_the_middle(tiny_la, tmp_path):
    flat = tmp_path / "flat"
    shutil.copytree(tiny_la / FOLDER, flat)
    shutil.copy(tiny_la / "train.list", flat)
    np.testing.assert_array_equal(LA(flat).load(0)[0], LA(tiny_la).load(0)[0])


def test_root_may_be_the_folder_in_the_middle(tiny_la):
    np.testing.assert_array_equal(LA(tiny_la / FOLDER).load(0)[0], LA(tiny_la).load(0)[0])


def test_missing_root(tmp_path):
    with pytest.raises(UserError, match=r"no such folder.*--root"):
        LA(tmp_path / "nowhere")


def test_empty_list(tiny_la):
    (tiny_la / "train.list").write_text("\n\n")
    with pytest.raises(UserError, match=r"train\.list: the list is empty"):
        LA(tiny_la)


def test_list_that_is_no_text(tiny_la):
    (tiny_la / "train.list").write_text("CASE00\n", encoding="utf-16")
    with pytest.raises(UserError, match=r"train\.list: not a list of case names in UTF-8"):
        LA(tiny_la)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("label", "half", r"label has values \[0.5\] outside"),
        ("image", None, r"no key 'image' \(it has label\)"),
        ("image", "nan", "image has 1 voxels that are NaN or infinite"),
        ("image", np.zeros((4, 5), np.float32), r"image has shape \(4, 5\), 3 axes are expected"),
    ],
)
def test_a_damaged_case_is_named(tiny_la, key, value, message):
    path = path_of(tiny_la, "CASE00")
    with h5py.File(path) as file:
        image, label = file["image"][()], file["label"][()]
    if isinstance(value, str):
        value = {"half": label.astype(float), "nan": image}[value]
        value.flat[7] = {"image": np.nan, "label": 0.5}[key]
    rewrite(path, key, value)
    with pytest.raises(UserError, match=f"CASE00.mri_norm2.h5: {message}"):
        LA(tiny_la).load(0)


def test_truncated_file(tiny_la):
    path = path_of(tiny_la, "CASE00")
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(UserError, match=r"CASE00.mri_norm2\.h5: damaged or not an h5 file"):
        LA(tiny_la).load(0)


@pytest.mark.parametrize("key", ["image", "label"])
@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("words", "has dtype object, numbers are expected"),
        (np.zeros((4, 5, 6), np.complex64), "has dtype complex64, numbers are expected"),
        (np.zeros((4, 5, 6), "S3"), r"has dtype \|S3, numbers are expected"),
        (h5py.Empty("f4"), "is empty, an array is expected"),
        ("group", "is a group, an array is expected"),
        (np.dtype("f4"), "is a datatype, an array is expected"),
    ],
)
def test_what_is_no_array_of_numbers_is_named(tiny_la, key, value, message):
    path = path_of(tiny_la, "CASE00")
    rewrite(path, key, None if isinstance(value, str) and value == "group" else value)
    if isinstance(value, str) and value == "group":
        with h5py.File(path, "r+") as file:
            file.create_group(key)
    with pytest.raises(UserError, match=f"CASE00.mri_norm2.h5: {key} {message}"):
        LA(tiny_la).load(0)


def test_bytes_gone_wrong_load_or_are_told(tiny_la):
    """What is no UserError here would reach the user as a traceback."""
    rng = np.random.default_rng(0)
    data, path = LA(tiny_la), path_of(tiny_la, "CASE00")
    write_case(tiny_la, "CASE00", np.zeros((6, 5, 4), np.float32), np.zeros((6, 5, 4), np.uint8))
    whole = np.frombuffer(path.read_bytes(), np.uint8)
    told = 0
    for _ in range(60):
        # only the parts that are in use: most of a file this small is empty space
        places = rng.choice(np.flatnonzero(whole), 4, replace=False)
        damaged = whole.copy()
        damaged[places] = rng.integers(0, 256, 4)
        path.write_bytes(damaged.tobytes())
        try:
            data.load(0)
        except UserError as error:
            assert "CASE00" in str(error)  # noqa: PT017 - either outcome is right
            told += 1
    assert told > 0


def test_downsampling_means_images_and_lets_labels_vote():
    image = np.arange(5 * 4 * 2, dtype=np.float32).reshape(5, 4, 2)
    small = downsample_image(image, 2)
    assert small.shape == (2, 2, 1)
    assert small[0, 0, 0] == image[:2, :2, :2].mean()
    label = np.zeros((2, 2, 4), np.uint8)
    label[0, :, :2] = 1  # half of the first block: object
    label[0, 0, 2] = 1  # one voxel of eight: background
    assert downsample_label(label, 2, 2).tolist() == [[[1, 0]]]


def test_volume_smaller_than_the_factor(tiny_la):
    write_case(tiny_la, "CASE00", np.zeros((9, 9, 1), np.float32), np.zeros((9, 9, 1), np.uint8))
    with pytest.raises(UserError, match="too small for --downsample 2"):
        LA(tiny_la, downsample=2).load(0)


def test_real_data_has_the_published_counts(la_root):
    train, test = LA(la_root), LA(la_root, "test")
    assert (len(train), len(test)) == (80, 20)
    image, label = test.load(0)
    assert image.shape == label.shape
    assert 0 < label.mean() < 0.2
