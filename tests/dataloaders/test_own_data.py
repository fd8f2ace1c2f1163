"""One's own data: the protocol in their folder, which cases are labelled, and one line for what is
wrong with it.
"""

import json

import h5py
import numpy as np
import pytest
import test_own
import train_coranet
import train_supervised
from numpy.testing import assert_array_equal
from small import EPOCHS

from dataloaders import dataset_class, open_dataset
from dataloaders.own import LARGEST, protocol
from dataloaders.preprocessing import Preprocessing
from utils.errors import UserError

SHAPE = (24, 20, 32)  # the thickest slices lie across y


def write_own(root, labels=("a", "b", "e", "f"), **more):
    """Cases a to d to train on, e to validate, f to test, each its own patient; `labels` are those
    with one.
    """
    rng, cases = np.random.default_rng(0), {}
    (root / "data").mkdir(parents=True)
    for split, names in {"train": "abcd", "val": "e", "test": "f"}.items():
        (root / f"{split}.list").write_text("\n".join(names) + "\n")
        for name in names:
            with h5py.File(root / "data" / f"{name}.h5", "w") as file:
                file["image"] = rng.standard_normal(SHAPE).astype(np.float32)
                if name in labels:
                    file["label"] = rng.integers(0, 3, SHAPE, dtype=np.uint8)
            cases[name] = {
                "labeled": name in labels,
                "patient": name,
                "list": split,
                "source": "",
                "hash": "",
            }
    table = {
        "name": "hearts",
        "class_names": ["wall", "pool"],
        "spacing": [1.0, 2.5, 1.0],
        "labelnum": 2,
        **protocol([SHAPE], (1.0, 2.5, 1.0)),
        "preprocessing": Preprocessing("LPS", (1.0, 2.5, 1.0)).as_dict(),
        "cases": cases,
    }
    save(root, table | more)
    return root


def save(root, table):
    (root / "dataset.json").write_text(json.dumps(table))


def load(root):
    return json.loads((root / "dataset.json").read_text())


@pytest.fixture
def root(tmp_path):
    return write_own(tmp_path / "own")


def test_the_protocol_is_the_folders(root):
    data = dataset_class("own", root)
    assert (data.num_classes, data.class_names, data.labelnum) == (3, ("wall", "pool"), 2)
    assert data.patches == {1: (32, 16, 32), 2: (32, 16, 16)}
    assert (data.stride, data.augment, data.net) == (None, "crop", "vnet")
    assert (data.splits, data.unit, data.spacing) == (
        ("train", "val", "test"),
        "cases",
        (1.0, 2.5, 1.0),
    )
    assert data.description() == {
        "name": "own",
        "in_channels": 1,
        "num_classes": 3,
        "class_names": ["wall", "pool"],
        "spacing": [1.0, 2.5, 1.0],
        "stride": None,
        "keep_largest": False,
        "file_axes": None,
        "image_axes": None,
        "preprocessing": Preprocessing("LPS", (1.0, 2.5, 1.0)).as_dict(),
        "unlike_published": [],
    }
    assert "hearts" in data.source
    slices = dataset_class("own2d", root)
    assert (slices.patches[1], slices.stride, slices.net, slices.augment) == (
        (32, 32),
        None,
        "unet",
        "rotate",
    )
    assert slices.description()["image_axes"] == [2, 0, 1]
    (root / "val.list").unlink()
    assert dataset_class("own", root).splits == ("train", "test")


def test_volumes(root):
    train = open_dataset("own", root)
    assert (train.labeled(1), train.labeled(2), train.total) == ([0], [0, 1], 4)
    with h5py.File(root / "data" / "b.h5") as file:
        for found, key in zip(train.load(1), ("image", "label"), strict=True):
            assert_array_equal(found, file[key][()])
    assert train.load(2, label=False)[1] is None
    for data, index in ((train, 2), (open_dataset("own2d", root), 45)):
        with pytest.raises(
            UserError, match=r"c\.h5: an image without a label, .* --val_from labeled"
        ):
            data.load(index)
    assert open_dataset("own", root, "test").load(0)[1].shape == SHAPE
    assert open_dataset("own", root, "val").names == ["e"]
    assert open_dataset("own", root, downsample=2).load(0)[0].shape == (12, 10, 16)


def test_slices_lie_across_the_longest_voxels(root):
    train, test = open_dataset("own2d", root), open_dataset("own2d", root, "test")
    assert len(train) == 4 * 20
    assert train.labeled(2) == list(range(40))
    with h5py.File(root / "data" / "b.h5") as file:
        image, label = train.load(20 + 7)
        assert_array_equal(image, file["image"][:, 7].T)
        assert_array_equal(label, file["label"][:, 7].T)
    assert test.load(0)[0].shape == (32, 24, 20)
    assert test.spacing == (1.0, 1.0, 2.5)


def test_labelled_cases_may_stand_anywhere_and_are_counted_by_patient(root):
    table = load(root)
    for name, patient in (("a", "p"), ("c", "p"), ("b", "q"), ("d", "r")):
        table["cases"][name]["patient"] = patient
    save(root, table)
    (root / "train.list").write_text("d\nc\na\nb\n")
    for name, width in (("own", 1), ("own2d", 20)):
        train = open_dataset(name, root)
        assert (train.unit, train.total) == ("patients", 3)
        # c is the labelled patient's too, but has no label
        assert [train.names[index][0] for index in train.labeled(1)] == ["a"] * width
        assert [train.names[index][0] for index in train.labeled(2)] == ["a"] * width + [
            "b"
        ] * width
        with pytest.raises(
            UserError, match=r"--labelnum 3: 2 of the 3 training patients in .*own have a label"
        ):
            train.labeled(3)


def test_lists_that_cannot_be_right(root):
    (root / "test.list").write_text("c\n")
    (root / "train.list").write_text("a\nb\nd\n")
    with pytest.raises(UserError, match=r"c in test\.list has no label"):
        open_dataset("own", root, "test")
    (root / "train.list").write_text("a\nz\n")
    (root / "data" / "z.h5").write_bytes((root / "data" / "b.h5").read_bytes())
    with pytest.raises(UserError, match=r"dataset\.json knows no case z"):
        open_dataset("own", root)
    table = load(root)
    table["cases"]["f"]["patient"] = "a"
    save(root, table)
    (root / "train.list").write_text("a\nb\n")
    (root / "test.list").write_text("f\n")
    with pytest.raises(UserError, match="is in both"):
        open_dataset("own", root, "test")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda table: table.pop("patch"), "no 'patch'"),
        (lambda table: table["patch"].pop("2"), "no '2'"),
        (lambda table: table.update(class_names=[]), "class_names"),
        (lambda table: table.update(spacing=[1, 1]), r"spacing \[1, 1\] is not 3"),
        (lambda table: table.update(cases=[]), "damaged"),
        (lambda table: table["preprocessing"].update(crop="box"), "crop box is none of"),
        (lambda table: table.clear(), "no 'class_names'"),
    ],
)
def test_a_damaged_protocol_is_named(root, change, words):
    table = load(root)
    change(table)
    save(root, table)
    with pytest.raises(UserError, match=rf"dataset\.json: .*{words}"):
        open_dataset("own", root)


@pytest.mark.parametrize("text", ["", "[1, 2]", "{", "\x00"])
def test_a_file_that_is_no_protocol(root, text):
    (root / "dataset.json").write_text(text)
    with pytest.raises(UserError, match=r"dataset\.json: damaged"):
        open_dataset("own2d", root)


def test_without_a_folder(tmp_path):
    with pytest.raises(
        UserError, match=r"dataset\.json: not there; make it with code/prepare_nifti\.py"
    ):
        open_dataset("own", tmp_path / "none")


@pytest.mark.parametrize(
    ("shape", "spacing", "patch", "half", "augment"),
    [
        ((140, 120, 88), (0.625, 0.625, 0.625), (96, 96, 96), (48, 48, 48), "rot_flip"),
        ((512, 512, 30), (0.8, 0.8, 5.0), (176, 176, 32), (96, 96, 16), "rot_flip"),
        ((30, 400, 400), (4.0, 0.7, 0.7), (32, 176, 176), (16, 96, 96), "crop"),
        ((180, 60, 60), (1.0, 1.0, 1.0), (176, 64, 64), (96, 32, 32), "crop"),
        ((20, 20, 20), (1.0, 1.0, 1.0), (32, 16, 16), (32, 16, 16), "crop"),
        ((60, 58, 30), (1.0, 1.0, 2.0), (64, 64, 32), (32, 32, 16), "rot_flip"),
        ((64, 64, 64), (1.0, 1.3, 1.0), (64, 64, 64), (32, 32, 32), "crop"),
    ],
)
def test_patches_fit_the_images_and_the_memory(shape, spacing, patch, half, augment):
    found = protocol([shape, shape, (1, 1, 1)], spacing)
    every = [*found["patch"]["1"], *found["patch"]["2"]]
    assert all(extent % 16 == 0 for extent in every)
    assert np.prod(found["patch"]["1"]) <= LARGEST
    assert (found["patch"]["1"], found["patch"]["2"]) == (list(patch), list(half))
    assert found["augment"] == augment


@pytest.mark.parametrize(
    ("shape", "spacing", "axes", "patch"),
    [
        ((512, 512, 30), (0.8, 0.8, 5.0), [1, 0, 2], [256, 256]),
        ((320, 240, 100), (1.0, 1.0, 1.0), [1, 0, 2], [192, 256]),
        ((20, 300, 150), (4.0, 1.0, 1.0), [2, 1, 0], [128, 256]),
        ((90, 30, 80), (1.0, 6.0, 1.0), [2, 0, 1], [80, 96]),
        ((200, 160, 1), (1.4, 1.4, 1.0), [1, 0, 2], [160, 208]),
        ((20, 10, 20), (1.0, 1.0, 3.0), [1, 0, 2], [32, 32]),
    ],
)
def test_slices_fit_the_images(shape, spacing, axes, patch):
    assert protocol([shape], spacing)["slices"] == {"axes": axes, "patch": patch}


@pytest.mark.parametrize(
    ("name", "train", "short"),
    [
        ("own", train_coranet, [*EPOCHS, "--labeled_bs", "1", "--unlabeled_bs", "1"]),
        ("own2d", train_supervised, ["--max_iterations", "1"]),
    ],
    ids=["own", "own2d"],
)
def test_from_the_folder_to_a_table(name, train, short, root, tmp_path, one_thread):
    """Trained on two labelled images, CoraNet on two unlabelled ones too, and scored on the
    test's.
    """
    runs = tmp_path / "runs"
    where = ["--dataset", name, "--root", str(root), "--runs", str(runs), "--gpu", "-1"]
    train.main([*where, "--precision", "fp32", "--n_filters", "2", *short])
    (folder,) = runs.glob(f"{name}/*_2/seed1337")
    test_own.main(["--run", str(folder), "--gpu", "-1", "--figures", "0"])
    summary = json.loads((folder / "test" / "last" / "summary.json").read_text())
    assert (summary["cases"], list(summary["classes"])) == (1, ["wall", "pool"])
    assert summary["test"]["stride"] == (None if name == "own2d" else [16, 8, 16])
