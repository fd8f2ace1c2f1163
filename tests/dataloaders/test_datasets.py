"""All data sets through one interface: what a sample is, what is labelled, and one line for what is
wrong with a list.

Each is written small by hand here, in the layout that its file's docstring promises.
"""

import json
import warnings

import h5py
import numpy as np
import pytest
from conftest import ROOT
from small import FOLDER

from dataloaders import dataset_class, evaluation_script, open_dataset
from dataloaders.transforms import AUGMENTS
from utils.errors import UserError

TRAIN, VAL, TEST = ["0001", "0002", "0003", "0004"], ["0005"], ["0006", "0007"]
SLICES = [f"_frame0{frame}_slice_{k}" for frame in (1, 2) for k in (3, 1, 2)]
LISTS = {
    "LA": {"train.list": TRAIN, "test.list": TEST},
    "ACDC": {
        "train_slices.list": [f"patient{name}{end}" for name in TRAIN for end in SLICES],
        "val.list": ["patient0005_frame01", "patient0005_frame02"],
        "test.list": ["patient0006_frame01", "patient0007_frame01"],
    },
    "BraTS2019": {"train.txt": TRAIN, "val.txt": VAL, "test.txt": TEST},
    "Pancreas": {"train_lab.txt": TRAIN[:1], "train_unlab.txt": TRAIN[1:], "test.txt": TEST},
    "endocardium": {"train.list": TRAIN, "test.list": TEST},
}
LISTS |= {"Pancreas2d": LISTS["Pancreas"], "phantom": LISTS["LA"], "phantom2d": LISTS["LA"]}
FILES = {"LA": f"{FOLDER}/{{}}/mri_norm2.h5", "Pancreas": "{}.h5"}
FILES |= {"Pancreas2d": FILES["Pancreas"], "phantom": FILES["LA"], "phantom2d": FILES["LA"]}
# samples of the train split; the shape of one in it and in the test split; how a test sample comes
# out of its file
SAMPLES = {
    "LA": (4, (6, 5, 4), (6, 5, 4), (0, 1, 2)),
    "ACDC": (24, (5, 4), (5, 4, 6), (1, 2, 0)),
    "BraTS2019": (4, (6, 5, 4), (6, 5, 4), (0, 1, 2)),
    "Pancreas": (4, (6, 5, 4), (6, 5, 4), (0, 1, 2)),
    "Pancreas2d": (16, (5, 6), (5, 6, 4), (1, 0, 2)),
    "endocardium": (24, (5, 4), (5, 4, 6), (1, 2, 0)),
    "phantom": (4, (6, 5, 4), (6, 5, 4), (0, 1, 2)),
    "phantom2d": (16, (5, 6), (5, 6, 4), (1, 0, 2)),
}
every = pytest.mark.parametrize("name", list(LISTS))
of_slices = pytest.mark.parametrize("name", ["Pancreas2d", "endocardium", "phantom2d"])


def path_of(name, root, case):
    default = "data/slices/{}.h5" if "_slice_" in case else "data/{}.h5"
    return root / FILES.get(name, default).format(case)


def rewrite(path, label):
    """Another label in a case's file, or none."""
    with h5py.File(path, "r+") as file:
        del file["label"]
        if label is not None:
            file["label"] = label


def stored(path):
    with h5py.File(path) as file:
        return file["image"][()], file["label"][()]


@pytest.fixture
def root(name, tmp_path):
    """A small data set `name`."""
    rng = np.random.default_rng(0)
    for file, cases in LISTS[name].items():
        (tmp_path / file).write_text("\n".join(cases) + "\n")
        for case in cases:
            path = path_of(name, tmp_path, case)
            path.parent.mkdir(parents=True, exist_ok=True)
            shape = (5, 4) if "_slice_" in case else (6, 5, 4)
            with h5py.File(path, "w") as h5:
                h5["image"] = rng.standard_normal(shape).astype(np.float32)
                h5["label"] = rng.integers(
                    0, dataset_class(name).num_classes, shape, dtype=np.uint8
                )
    if name.startswith("phantom"):
        settings = {"generator": 1, "seed": 0, "size": [6, 5, 4], "train": 4, "test": 2}
        (tmp_path / "phantom.json").write_text(json.dumps(settings))
    return tmp_path


@every
def test_the_protocol_is_whole(name):
    data = dataset_class(name)
    axes = len(data.patches[1])
    assert data.name == name
    assert len(data.class_names) == data.num_classes - 1
    assert AUGMENTS[data.augment] == axes
    assert data.net == {3: "vnet", 2: "unet"}[axes]
    assert (data.stride is None) if axes == 2 else (len(data.stride) == 3)
    assert axes == 3 or set(data.patches) == {1}
    assert all(count > 0 for count in (data.labelnum, data.labeled_bs, data.unlabeled_bs))
    assert data.source
    assert (data.file_axes is None) if axes == 3 else (sorted(data.file_axes) == [0, 1, 2])
    assert (ROOT / "code" / evaluation_script(name)).is_file()


@every
def test_samples(name, root):
    train, test = open_dataset(name, root), open_dataset(name, root, "test")
    count, train_shape, test_shape, axes = SAMPLES[name]
    assert len(train) == len(train.names) == len(set(train.names)) == count
    assert (len(test), test.names) == (2, list(LISTS[name].values())[-1])
    for data, shape in ((train, train_shape), (test, test_shape)):
        image, label = data.load(1)
        assert image.shape == label.shape == shape
        assert (image.dtype, label.dtype) == (np.float32, np.uint8)
        assert label.max() < data.num_classes
        again, nothing = data.load(1, label=False)
        np.testing.assert_array_equal(again, image)
        assert nothing is None
    for seen, there in zip(test.load(1), stored(path_of(name, root, test.names[1])), strict=True):
        np.testing.assert_array_equal(seen, there.transpose(axes))


@of_slices
def test_slices_are_those_of_the_volume(name, root):
    data = open_dataset(name, root)
    for index in np.random.default_rng(1).permutation(len(data)):
        case, _, k = data.names[index].rpartition("_slice_")
        for seen, there in zip(data.load(index), stored(path_of(name, root, case)), strict=True):
            np.testing.assert_array_equal(seen, there.transpose(SAMPLES[name][3])[..., int(k) - 1])


@every
def test_labelnum_counts_units(name, root):
    data = open_dataset(name, root)
    assert data.total == 4
    first = data.labeled(2)
    assert first == list(range(len(data) // 2))  # of equally many samples each
    assert all("0001" in data.names[k] or "0002" in data.names[k] for k in first)
    assert len(data.labeled(4)) == len(data)
    with pytest.raises(UserError, match=rf"--labelnum 5: {name} has 4 training {data.unit}"):
        data.labeled(5)


@every
def test_the_train_split_opens_its_own_list_alone(name, root):
    lists = list(LISTS[name])
    for file in lists:
        if "train" not in file:
            (root / file).write_bytes(b"\xff\xfe")  # no text: whoever reads it says so
    open_dataset(name, root)
    with pytest.raises(UserError, match=r"(val|test)\.(list|txt): not a list"):
        open_dataset(name, root, "test")


@pytest.mark.parametrize("name", ["ACDC", "BraTS2019"])
def test_the_validation_split_leaves_the_test_list_alone(name, root):
    (root / list(LISTS[name])[-1]).write_bytes(b"\xff\xfe")
    assert open_dataset(name, root, "val").names == LISTS[name][list(LISTS[name])[1]]


@every
def test_a_unit_in_two_lists(name, root):
    lists, unit = list(LISTS[name]), dataset_class(name).unit.removesuffix("s")
    if name == "ACDC":  # another frame of the same patient
        (root / "data" / "patient0002_frame09.h5").touch()
        (root / "data" / "patient0005_frame09.h5").touch()
    pairs = [(own, before) for k, own in enumerate(lists) for before in lists[:k]]
    for own, before in pairs:
        text = (root / own).read_text()
        repeated = LISTS[name][before][-1]
        if name == "ACDC":
            repeated = repeated.replace("0004", "0002").partition("_")[0] + "_frame09"
        (root / own).write_text(f"{text}{repeated}\n")
        split = "train" if "train" in own else own.partition(".")[0]
        shown = repeated.partition("_")[0]
        with pytest.raises(
            UserError, match=rf"^{unit} {shown} is in both .*{own} and .*{before}; a {unit} belongs"
        ):
            open_dataset(name, root, split)
        (root / own).write_text(text)
        open_dataset(name, root, split)


@every
def test_a_case_listed_twice(name, root):
    for file, cases in LISTS[name].items():
        text = (root / file).read_text()
        (root / file).write_text(f"{text}{cases[0]}\n")
        with pytest.raises(UserError, match=rf"{file}: case {cases[0]} is listed twice"):
            open_dataset(name, root, "train" if "train" in file else file.partition(".")[0])
        (root / file).write_text(text)


@every
def test_missing_files(name, root):
    (root / list(LISTS[name])[-1]).unlink()
    with pytest.raises(UserError, match=r"test\.(list|txt): list not found"):
        open_dataset(name, root, "test")
    file, cases = next(iter(LISTS[name].items()))
    path_of(name, root, cases[-1]).unlink()
    with pytest.raises(
        UserError, match=rf"{cases[-1]}.*: file not found, though .*{file} lists its case"
    ):
        open_dataset(name, root)


@every
def test_labels_that_are_wrong_or_missing(name, root):
    first = path_of(name, root, next(iter(LISTS[name].values()))[0])
    image, label = stored(first)
    label.flat[0] = 9
    rewrite(first, label)
    with pytest.raises(
        UserError, match=rf"{first.name}: label has values \[9\] outside the classes 0 … "
    ):
        open_dataset(name, root).load(0)
    rewrite(first, label[..., 1:])
    with pytest.raises(UserError, match=rf"{first.name}: label has shape .*, but the image has"):
        open_dataset(name, root).load(0)
    rewrite(first, None)
    data = open_dataset(name, root)
    with pytest.raises(UserError, match=rf"{first.name}: no key 'label'"):
        data.load(0)
    assert data.load(0, label=False)[0].size in (image.size, image[0].size, image[..., 0].size)


@pytest.mark.parametrize("name", [name for name in LISTS if name not in ("ACDC", "BraTS2019")])
def test_a_split_that_is_not_published(name, root):
    with pytest.raises(UserError, match=f"{name} has no val list; it has train, test"):
        open_dataset(name, root, "val")


@every
def test_half_resolution_is_for_volumes(name, root):
    if len(dataset_class(name).patches[1]) == 3:
        assert open_dataset(name, root, "train", 2).load(0)[1].shape == (3, 2, 2)
    else:
        with pytest.raises(UserError, match=f"--downsample 2: {name} is made of slices, .*--patch"):
            open_dataset(name, root, "train", 2)


@of_slices
def test_counting_slices_reads_no_voxel(name, root, monkeypatch):
    def refuse(self, *arguments, **named):
        raise AssertionError(f"{self.name} of {self.file.filename} was read")

    monkeypatch.setattr(h5py.Dataset, "__getitem__", refuse)
    assert len(open_dataset(name, root)) == SAMPLES[name][0]


@of_slices
def test_a_volume_that_is_none_is_named_before_training(name, root):
    path = path_of(name, root, "0003")
    with h5py.File(path, "r+") as file:
        del file["image"]
        file["image"] = np.zeros((6, 5), np.float32)
    with pytest.raises(
        UserError, match=rf"{path.name}: image has shape \(6, 5\), 3 axes are expected"
    ):
        open_dataset(name, root)


@pytest.mark.parametrize("name", ["BraTS2019"])
def test_brats_joins_the_tumour(root):
    path = path_of("BraTS2019", root, "0001")
    label = np.random.default_rng(0).choice([0, 1, 2, 4], (6, 5, 4)).astype(np.int16)
    rewrite(path, label)
    seen = open_dataset("BraTS2019", root).load(0)[1]
    assert seen.dtype == np.uint8
    np.testing.assert_array_equal(seen, label > 0)


@pytest.mark.parametrize("name", ["BraTS2019"])
def test_brats_has_no_class_3(root):
    path = path_of("BraTS2019", root, "0001")
    label = np.zeros((6, 5, 4), np.int16)
    label[0, 0] = 4, 3, 2, 1
    rewrite(path, label)
    with pytest.raises(
        UserError, match=r"0001\.h5: label has value 3, .* 0, 1, 2 and 4 are expected"
    ):
        open_dataset("BraTS2019", root).load(0)


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize(("name", "axes"), [("phantom", (0, 1, 2)), ("phantom2d", (1, 0, 2))])
def test_spacing_follows_the_axes(name, axes, split, root):
    data = open_dataset(name, root, split)
    assert data.spacing == tuple((128 / 6, 128 / 5, 80 / 4)[axis] for axis in axes)


@pytest.mark.parametrize("name", ["Pancreas", "Pancreas2d"])
def test_pancreas_in_the_other_published_layout(name, root):
    """DTC's and MC-Net's: one list, a folder for the files, `_norm` in their names, or `.h5` in the
    list's.
    """
    before = [open_dataset(name, root, split).load(0) for split in ("train", "test")]
    (root / "Pancreas_h5").mkdir()
    for case in (*TRAIN, *TEST):
        path_of(name, root, case).rename(root / "Pancreas_h5" / f"{case}_norm.h5")
    (root / "train.list").write_text("\n".join(TRAIN) + "\n")
    (root / "test.list").write_text("".join(f"{case}_norm.h5\n" for case in TEST))
    for file in ("train_lab.txt", "train_unlab.txt", "test.txt"):
        (root / file).unlink()
    after = [open_dataset(name, root, split) for split in ("train", "test")]
    assert after[0].total == 4
    for old, new in zip(before, after, strict=True):
        np.testing.assert_array_equal(old, new.load(0))
    with open(root / "test.list", "a") as file:
        file.write("0002\n")
    with pytest.raises(UserError, match=r"^case 0002 is in both"):
        open_dataset(name, root, "test")


@pytest.mark.parametrize("name", ["Pancreas"])
@pytest.mark.parametrize("case", ["0025", "image0070", "PANCREAS_0025_norm", "70"])
@pytest.mark.parametrize("file", ["train_unlab.txt", "test.txt"])
def test_pancreas_warns_of_its_repeated_cases(root, case, file):
    path_of("Pancreas", root, "0004").rename(root / f"{case}.h5")
    (root / "train_unlab.txt").write_text("0002\n0003\n")
    open_dataset("Pancreas", root, "test")
    with open(root / file, "a") as f:
        f.write(f"{case}\n")
    split = file.split("_")[0].split(".")[0]
    with pytest.warns(
        UserWarning, match=f"the {split} list holds .*70|the {split} list holds .*25"
    ) as warned:
        data = open_dataset("Pancreas", root, split)
    assert len(warned) == 1
    assert "\n" not in str(warned[0].message)
    assert data.names[-1] == case
    assert "CoraNet" not in str(warned[0].message)  # its paper has all 82 cases


@pytest.mark.parametrize("name", ["Pancreas"])
@pytest.mark.parametrize("case", ["0125", "0250", "0170", "0071"])
def test_other_pancreas_numbers_are_no_repeats(root, case):
    path_of("Pancreas", root, "0004").rename(root / f"{case}.h5")
    (root / "train_unlab.txt").write_text(f"0002\n0003\n{case}\n")
    with warnings.catch_warnings(action="error"):
        assert open_dataset("Pancreas", root).total == 4


def test_files_say_how_they_were_made_where_their_preparation_noted_it(tmp_path):
    """Published files of BraTS were made in a way that is not ours, those of LA in ours."""
    assert dataset_class("LA", tmp_path).description()["preprocessing"]["crop"] == "label"
    assert dataset_class("BraTS2019", tmp_path).description()["preprocessing"] is None
    assert dataset_class("Pancreas", tmp_path).unlike_published == ()
    assert "2d" in dataset_class("Pancreas2d", tmp_path).unlike_published[0]
    noted = dataset_class("Pancreas2d").preprocessing.as_dict() | {"low": -90.0}
    (tmp_path / "preparation.json").write_text(json.dumps({"recipe": {"preprocessing": noted}}))
    found = dataset_class("Pancreas2d", tmp_path)
    assert found.description()["preprocessing"] == noted
    assert found.unlike_published == ("window -90 to 240 HU, not -100 to 240",)
    (tmp_path / "preparation.json").write_text("{}")
    with pytest.raises(UserError, match=r"preparation\.json: damaged"):
        dataset_class("Pancreas", tmp_path)
