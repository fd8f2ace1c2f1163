"""From a folder of images to a data set that loads: what matches what, which list, which values,
what is refused.
"""

import csv
import gzip
import json
from pathlib import Path

import h5py
import numpy as np
import prepare_nifti
import pytest
import SimpleITK
from numpy.testing import assert_allclose, assert_array_equal
from official_files import write_dicom

from dataloaders import open_dataset
from utils.errors import UserError
from utils.preparation import cases, folder, lists, report
from utils.preparation.grid import Grid
from utils.preparation.images import read_image, to_array, write_image

COS, SIN = np.cos(0.3), np.sin(0.3)
UPRIGHT = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
# the first two axes point against the patient's, and are turned
OBLIQUE = (-COS, SIN, 0.0, -SIN, -COS, 0.0, 0.0, 0.0, 1.0)
SIZE, SPACING = (20, 18, 16), (1.0, 1.0, 2.5)


def write(path, array, spacing=SPACING, direction=OBLIQUE, origin=(5.0, -7.0, 30.0)):
    path.parent.mkdir(parents=True, exist_ok=True)
    write_image(path, Grid(array.shape, spacing, origin, direction).image(array))


def volume(seed, size=SIZE):
    """An image with an edge of zeros, and a label of classes 1, 2 and 3."""
    rng = np.random.default_rng(seed)
    image = rng.integers(50, 1000, size).astype(np.int16)
    image[:3] = 0
    label = np.zeros(size, np.uint8)
    label[5:15, 4:12, 3:13], label[7:12, 5:9, 5:10], label[16:18, 13:15, 4:9] = 1, 2, 3
    return image, label


@pytest.fixture
def files(tmp_path):
    """Folders of ten images, four of them with a label."""
    for i in range(10):
        image, label = volume(i)
        write(tmp_path / "images" / f"case_{i}.nii.gz", image)
        if i < 4:
            write(tmp_path / "labels" / f"case_{i}.nii.gz", label)
    return tmp_path


def prepare(folder, *more, images=("images", "labels"), status=0):
    """Run the script into `<folder>/own`."""
    folders = [str(folder / name) for name in images]
    arguments = [*folders, "--root", str(folder / "own"), *map(str, more)]
    if status:
        with pytest.raises(SystemExit) as ended:
            prepare_nifti.main(arguments)
        assert ended.value.code == status
    else:
        prepare_nifti.main(arguments)
    return folder / "own"


def table(root):
    return json.loads((root / "dataset.json").read_text())


def listed(root, split):
    return (root / f"{split}.list").read_text().split()


def test_from_files_to_a_network_and_back(files, capsys):
    root = prepare(files, "--classes", "RV", "Myo", "LV", "--seed", 3)
    shown = capsys.readouterr().out
    assert "10 of 10 cases prepared, 0 of them to look at" in shown
    assert f"train_coranet.py --dataset own --root {root}" in shown
    assert "predict.py runs/own/coranet_3/seed1337 NEW_IMAGES" in shown
    train, test = (open_dataset("own", root, split) for split in ("train", "test"))
    assert (len(train), len(test), train.num_classes) == (9, 1, 4)
    assert train.class_names == ("RV", "Myo", "LV")
    assert train.labelnum == 3
    assert [train.names[index] for index in train.labeled(3)] == train.names[:3]
    assert set(train.names[:3]) | set(test.names) == {f"case_{i}" for i in range(4)}
    for data, index in ((train, 0), (test, 0)):
        image, label = volume(int(data.names[index][-1]))
        found, target = data.load(index)
        # two axes turned to the left and the back, zeros cut off, mean 0 and deviation 1
        turned = image[3:][::-1, ::-1].astype(np.float64)
        assert_allclose(found, (turned - turned.mean()) / turned.std(), atol=1e-4)
        assert_array_equal(target, label[3:][::-1, ::-1])
    assert train.load(8, label=False)[1] is None
    with h5py.File(root / "data" / f"{test.names[0]}.h5") as file:
        geometry = [file.attrs[key].tolist() for key in ("spacing", "origin", "direction")]
        where = Grid((17, 18, 16), *map(tuple, geometry))
        source = read_image(file.attrs["source"])
    # the file's first voxel is the image's last in x and y
    first = source.TransformIndexToPhysicalPoint((19, 17, 0))
    assert_allclose(where.point((0, 0, 0)), first, atol=1e-5)
    with open(root / "report.csv", encoding="utf-8") as file:
        rows = {row["case"]: row for row in csv.DictReader(file)}
    assert float(rows["case_0"]["Myo ml"]) == pytest.approx((5 * 4 * 5) * 2.5 / 1000, abs=0.005)
    assert (rows["case_0"]["axes"], rows["case_0"]["oblique"]) == ("RAS", "17°")
    assert rows["case_9"]["Myo ml"] == ""
    assert (root / "overlays.png").stat().st_size > 1000


def test_a_second_call_finds_it_whole_and_other_options_are_refused(files, capsys, monkeypatch):
    root = prepare(files)
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    prepare(files)
    assert "is whole" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before
    with pytest.raises(
        UserError, match=r"holds another preparation \(it differs in spacing\).*--overwrite"
    ):
        prepare(files, "--spacing", "keep")
    (files / "images" / "case_9.nii.gz").unlink()
    (root / "notes.txt").write_text("mine")
    prepare(files, "--overwrite")
    assert not (root / "data" / "case_9.h5").exists()
    assert (root / "notes.txt").exists()

    monkeypatch.setattr(report, "write_case", lambda *_, **__: 1 / 0)  # cut off in the middle
    with pytest.raises(ZeroDivisionError):
        prepare(files, "--overwrite", "--seed", 5)
    monkeypatch.undo()
    with pytest.raises(UserError, match=r"dataset\.json: not there"):
        open_dataset("own", root)
    prepare(files, "--seed", 5)
    assert len(open_dataset("own", root)) == 8
    (root / "data" / "case_5.h5").unlink()
    with pytest.raises(UserError, match=r"case_5\.h5: gone since it was prepared; --overwrite"):
        prepare(files, "--seed", 5)
    prepare(files, "--seed", 5, "--overwrite")
    assert len(open_dataset("own", root)) == 8


def test_a_folder_that_something_else_filled_is_left_alone(files):
    (files / "own").mkdir()
    (files / "own" / "train.list").write_text("mine\n")
    with pytest.raises(UserError, match=r"train\.list was there before"):
        prepare(files, "--overwrite")
    assert (files / "own" / "train.list").read_text() == "mine\n"


def test_patients_stay_together(tmp_path):
    for i in range(12):
        image, label = volume(i)
        write(tmp_path / "images" / f"p{i // 2}_frame{i % 2}.mha", image)
        if i != 5:  # patient 2 has one label alone, so it can only be trained on
            write(tmp_path / "labels" / f"p{i // 2}_frame{i % 2}_gt.nii.gz", label)
    options = ("--patient", r"^(p\d+)_", "--val_fraction", 0.2, "--test_fraction", 0.4)
    root = prepare(tmp_path, *options)
    patients = {
        split: {name[:2] for name in listed(root, split)} for split in ("train", "val", "test")
    }
    assert [len(patients[split]) for split in ("train", "val", "test")] == [3, 1, 2]
    assert set.union(*patients.values()) == {f"p{i}" for i in range(6)}
    assert "p2" in patients["train"]
    data = open_dataset("own", root)
    assert (data.unit, data.labelnum, data.total) == ("patients", 3, 3)
    assert listed(root, "train")[-1] == "p2_frame1"
    labelled = [data.names[index] for index in data.labeled(3)]
    assert labelled == listed(root, "train")[:5]
    with pytest.raises(UserError, match=r"--patient.*nothing in case p0_frame0 fits"):
        prepare(tmp_path, "--patient", r"^(q\d+)", "--overwrite")


def test_units_are_drawn_by_the_seed_alone():
    units = [f"p{i % 10}" for i in range(20)]
    drawn = lists.split_units(units, {"val": 0.1, "test": 0.25}, 7)
    assert [len(drawn[split]) for split in ("val", "test")] == [1, 2]
    assert not set(drawn["val"]) & set(drawn["test"])
    again = lists.split_units(units[::-1], {"val": 0.1, "test": 0.25}, 7)
    assert again.keys() == drawn.keys()
    assert all(set(again[split]) == set(drawn[split]) for split in drawn)
    tests = [lists.split_units(units, {"test": 0.25}, seed)["test"] for seed in range(9)]
    assert len(set(map(tuple, tests))) > 3
    assert lists.split_units(["a", "b"], {"test": 0.01, "val": 0}, 0, keep=1)["val"] == []
    with pytest.raises(UserError, match="2 for test of 2 patients"):
        lists.split_units(["a", "b"], {"test": 0.9}, 0)


def test_a_list_of_test_cases(files):
    (files / "test.txt").write_text("case_2.nii.gz\ncase_0\n")
    root = prepare(files, "--test", files / "test.txt")
    assert sorted(listed(root, "test")) == ["case_0", "case_2"]
    for line, words in (("case_7", "case_7 has no label"), ("case_77", "case_77 is none")):
        (files / "test.txt").write_text(line + "\n")
        with pytest.raises(UserError, match=words):
            prepare(files, "--test", files / "test.txt", "--overwrite")


@pytest.mark.parametrize(
    ("image", "label", "case"),
    [
        ("case_{}_0000.nii.gz", "case_{}.nii.gz", "case_{}"),
        ("img{}.nrrd", "label{}.nii", "img{}"),
        ("volume-{}.nii", "segmentation-{}.nii", "volume-{}"),
        ("p{}/image.mha", "p{}/mask.nii.gz", "p{}_image"),
        ("scanner_{}.nii.gz", "scanner_{}_seg.nrrd", "scanner_{}"),
    ],
)
def test_names_that_belong_together(tmp_path, image, label, case):
    for i in range(3):
        grey, target = volume(i)
        write(tmp_path / "images" / image.format(i), grey)
        if i:
            write(tmp_path / "labels" / label.format(i), target)
    root = prepare(tmp_path)
    known = {name: entry["labeled"] for name, entry in table(root)["cases"].items()}
    assert known == {case.format(i): i > 0 for i in range(3)}


def test_images_of_two_axes_and_labels_in_a_folder_below(tmp_path):
    for i in range(3):
        grey, target = (SimpleITK.GetImageFromArray(array[..., 6].T) for array in volume(i))
        for name, image in (("", grey), ("labels/", target)):
            image.SetSpacing((1.5, 1.5))
            (tmp_path / "images" / "labels").mkdir(parents=True, exist_ok=True)
            SimpleITK.WriteImage(image, str(tmp_path / "images" / f"{name}us_{i}.nii.gz"))
    data = open_dataset("own2d", prepare(tmp_path, images=("images", "images/labels")), "train")
    assert (data.names[0][:3], len(data), data.patches[1]) == ("us_", 2, (32, 32))
    assert_array_equal(data.load(0)[1], volume(int(data.names[0][3]))[1][3:, :, 6].T)
    with pytest.raises(UserError, match="put images and labels into a folder each"):
        prepare(tmp_path, images=("images", "images"))


def test_dicom_series(tmp_path):
    """A folder a patient, named alike within it; the labels beside them in another format."""
    image, label = volume(0)
    for i in range(3):
        series = tmp_path / "ct" / f"p{i}" / "series"
        write_dicom(series, image + np.int16(i), SPACING, uid=str(i + 1))
    geometry = Grid.of(read_image(tmp_path / "ct" / "p0" / "series"))
    for i in range(2):
        path = tmp_path / "labels" / f"p{i}_series.nrrd"
        write(path, label, geometry.spacing, geometry.direction, geometry.origin)
    root = prepare(tmp_path, "--intensity", "none", "--crop", "none", images=("ct", "labels"))
    data = open_dataset("own", root, "test")
    i = int(data.names[0][1])
    assert data.names == [f"p{i}_series"]
    assert_array_equal(data.load(0)[0], (image + i).astype(np.float32))
    assert_array_equal(data.load(0)[1], label)


def test_axes_that_are_kept_and_differ_are_told(files, recwarn):
    image, label = volume(0)
    write(files / "images" / "case_0.nii.gz", image, direction=UPRIGHT)
    write(files / "labels" / "case_0.nii.gz", label, direction=UPRIGHT)
    root = prepare(files, "--orientation", "keep", "--classes", "a", "b", "c", "d")
    told = [str(warning.message) for warning in recwarn]
    assert any("axes point to LPS, RAS" in line for line in told)
    assert any("no training case has a label with d" in line for line in told)
    data = open_dataset("own", root)
    assert_array_equal(data.load(0)[1], label[3:])


def test_values_that_are_not_consecutive(files):
    values = np.array([0, 500, 205, 820])
    for path in (files / "labels").iterdir():
        write(path, values[to_array(read_image(path))].astype(np.int16))
    with pytest.raises(UserError, match=r"values 205 500 820 and 0 .*--values 205 500 820"):
        prepare(files)
    root = prepare(files, "--values", 500, 205, 820)
    data = open_dataset("own", root, "test")
    assert_array_equal(data.load(0)[1], volume(int(data.names[0][-1]))[1][3:][::-1, ::-1])
    assert table(root)["class_names"] == ["class 1", "class 2", "class 3"]


def bad_labels(folder):
    """Four labels to be left out: another shape, another place, a value too many, a half one."""
    label = volume(0)[1]
    write(folder / "labels" / "case_0.nii.gz", label[:-1])
    write(folder / "labels" / "case_1.nii.gz", label, origin=(5.0, -7.0, 33.0))
    write(folder / "labels" / "case_2.nii.gz", np.where(label == 3, 17, label).astype(np.uint8))
    write(folder / "labels" / "case_3.nii.gz", label * np.float32(0.5))
    for i in (4, 5, 6):
        write(folder / "labels" / f"case_{i}.nii.gz", label)


def test_bad_cases_are_left_out_and_named_and_the_rest_is_ready(files, capsys):
    bad_labels(files)
    damaged = files / "images" / "case_7.nii.gz"
    damaged.write_bytes(damaged.read_bytes()[:-200])
    write(files / "images" / "case_8.nii.gz", volume(9)[0])  # as case_9
    frames = SimpleITK.JoinSeries([read_image(files / "images" / "case_0.nii.gz")] * 2)
    SimpleITK.WriteImage(frames, str(files / "images" / "case_10.nii.gz"))
    root = prepare(files, "--classes", "a", "b", "c", status=1)
    shown = capsys.readouterr().out
    assert "5 of 11 cases prepared" in shown
    lines = shown.split("left out:\n")[1].split(f"{root}: ")[0].splitlines()
    told = dict(line.strip().split(": ", 1) for line in lines)
    for case, words in {
        "case_0": "label has shape (19, 18, 16), but the image has (20, 18, 16)",
        "case_1": "label has origin 5 -7 33, but the image has 5 -7 30; --trust_voxels",
        "case_2": "label has values 17 in",
        "case_3": "label has value 0.5, whole numbers",
        "case_7": "damaged",
        "case_10": "has 2 frames; choose one with --frame",
    }.items():
        assert words in told[case], case
    assert "case_9: the same voxels as case_8" in shown
    assert set(table(root)["cases"]) == {f"case_{i}" for i in (4, 5, 6, 8, 9)}
    prepare(files, "--classes", "a", "b", "c", status=1)
    assert "case_3: " in capsys.readouterr().out.split("left out:")[1]


def test_labels_with_another_header_can_be_trusted(files, capsys):
    for path in (files / "labels").iterdir():
        write(path, to_array(read_image(path)), (1.0, 1.0, 1.0), UPRIGHT, (0.0, 0.0, 0.0))
    with pytest.raises(UserError, match="no case with a label is left"):
        prepare(files)
    root = prepare(files, "--trust_voxels", "--to_nnunet", files / "nnunet")
    data = open_dataset("own", root, "test")
    assert_array_equal(data.load(0)[1], volume(int(data.names[0][-1]))[1][3:][::-1, ::-1])
    pair = f"imagesTs/{data.names[0]}_0000.nii.gz", f"labelsTs/{data.names[0]}.nii.gz"
    assert cases.misfit(*(read_image(files / "nnunet" / name) for name in pair)) is None
    assert "label has spacing 1 1 1, but the image has 1 1 2.5" in capsys.readouterr().out


def test_one_image_under_two_names_is_not_trained_and_tested_on(files, capsys):
    """Drawn lists keep them together, and of a given one the test case stays, in whatever format it
    is stored.
    """
    write(files / "images" / "case_8.mha", volume(0)[0].astype(np.float32))
    (files / "images" / "case_8.nii.gz").unlink()
    (files / "test.txt").write_text("case_0\n")
    root = prepare(files, "--test", files / "test.txt", status=1)
    assert "case_8: the same voxels as case_0, which is in the test list" in capsys.readouterr().out
    assert listed(root, "test") == ["case_0"]
    assert "case_8" not in listed(root, "train")
    root = prepare(files, "--overwrite", "--seed", 1)
    assert {"case_0", "case_8"} <= set(listed(root, "train"))


@pytest.mark.parametrize(
    ("spoil", "arguments", "words"),
    [
        (lambda f: [p.unlink() for p in (f / "images").iterdir()], (), "no image in this folder"),
        (
            lambda f: (f / "labels" / "case_0.nii.gz").rename(f / "labels" / "x.nii.gz"),
            (),
            "x.nii.gz: no image of this",
        ),
        (lambda f: write(f / "images" / "case_0.mha", volume(0)[0]), (), "are both case case_0"),
        (lambda f: None, ("--test_fraction", 1), "leave too few to train on"),
        (lambda f: None, ("--orientation", "LPX"), "orientation LPX"),
        (lambda f: None, ("--spacing", 1, 1, -1), "spacing"),
        (
            lambda f: [write(p, 0 * volume(0)[1]) for p in (f / "labels").iterdir()],
            (),
            "all labels are 0",
        ),
    ],
    ids=["empty", "orphan", "twice", "all test", "axes", "spacing", "background"],
)
def test_what_stops_all(files, spoil, arguments, words):
    spoil(files)
    with pytest.raises(UserError, match=words):
        prepare(files, *arguments)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "IMAGES"),
        (["images", "--nnunet", "x"], "IMAGES"),
        (["images", "--intensity", "window"], "--window LOW HIGH"),
        (["images", "--window", "0", "1"], "--window LOW HIGH"),
        (["images", "--spacing", "1", "2"], "three numbers"),
        (["images", "--values", "1", "0"], "--values"),
        (["images", "--classes", "a", "a"], "--classes"),
        (["images", "--classes", "a", "--values", "1", "2"], "--classes names 1"),
        (["images", "--test", "x", "--test_fraction", "0.1"], "--test_fraction"),
        (["images", "--patient", "("], "--patient"),
    ],
)
def test_options_that_contradict_each_other(arguments, words, capsys):
    with pytest.raises(SystemExit) as ended:
        prepare_nifti.parse(arguments)
    assert ended.value.code == 2
    assert words in capsys.readouterr().err


def test_a_full_disk_ends_it_in_one_line(files, monkeypatch):
    """And not case by case."""

    def full(path, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(folder.CannotWriteError, match=r"\.h5: cannot be written \(.*No space left"):
        prepare(files)
    assert not list((files / "own" / "data").iterdir())


def test_ct_is_cut_to_a_window(files):
    window = ("--intensity", "window", "--window", 100, 600)
    root = prepare(files, *window, "--crop", "label", "--margin", 1)
    data = open_dataset("own", root, "test")
    image, _ = volume(int(data.names[0][-1]))
    box = image[4:19, 3:16, 2:14][::-1, ::-1]
    assert_allclose(data.load(0)[0], (box.clip(100, 600) - 100) / 500, atol=1e-6)


def test_spacing_is_made_alike_or_kept(files):
    for i in range(3):
        write(files / "images" / f"case_{i}.nii.gz", volume(i)[0], (2.0, 2.0, 2.5))
        write(files / "labels" / f"case_{i}.nii.gz", volume(i)[1], (2.0, 2.0, 2.5))
    data = open_dataset("own", prepare(files))
    shapes = {name: data.load(index, label=False)[0].shape for index, name in enumerate(data.names)}
    assert data.spacing == (1.0, 1.0, 2.5)
    assert shapes["case_9"] == (17, 18, 16)
    assert {shapes.get(f"case_{i}", (34, 36, 16)) for i in range(3)} <= {(34, 36, 16), (35, 36, 16)}
    data = open_dataset("own", prepare(files, "--spacing", "keep", "--overwrite"))
    assert data.spacing is None
    assert {data.load(index, label=False)[0].shape for index in range(len(data))} == {(17, 18, 16)}


def test_nnunet_there_and_back(files):
    """Images and labels are on their own grid, and each case stays in its list."""
    nnunet = files / "Dataset001"
    classes = ("--classes", "RV", "Myo", "LV")
    root = prepare(files, *classes, "--to_nnunet", nnunet, "--val_fraction", 0.3)
    found = {str(path.relative_to(nnunet)) for path in nnunet.rglob("*.nii.gz")}
    assert len(found) == 10 + 4
    for name in listed(root, "test"):
        assert {f"imagesTs/{name}_0000.nii.gz", f"labelsTs/{name}.nii.gz"} <= found
        back = read_image(nnunet / "labelsTs" / f"{name}.nii.gz")
        assert_array_equal(to_array(back), volume(0)[1])
        image = read_image(nnunet / "imagesTs" / f"{name}_0000.nii.gz")
        assert cases.misfit(image, back) is None
        assert_array_equal(to_array(image), volume(int(name[-1]))[0])
    assert {f"imagesUn/case_{i}_0000.nii.gz" for i in range(4, 10)} <= found
    folds = json.loads((nnunet / "splits_final.json").read_text())
    assert folds == [{"train": sorted(listed(root, "train")[:2]), "val": listed(root, "val")}]
    again = prepare(files, "--nnunet", nnunet, "--overwrite", images=())
    assert table(again)["class_names"] == ["RV", "Myo", "LV"]
    assert [table(again)["cases"][name]["list"] for name in listed(root, "test")] == ["test"]
    assert (table(again)["labelnum"], len(listed(again, "train"))) == (3, 9)


def make_nnunet(folder, **more):
    values = {
        "channel_names": {"0": "T1", "1": "FLAIR"},
        "labels": {"background": 0, "core": 1},
        "file_ending": ".mha",
    }
    for i in range(3):
        for channel in range(2):
            write(folder / "imagesTr" / f"b_{i}_000{channel}.mha", volume(10 * channel + i)[0])
        write(folder / "labelsTr" / f"b_{i}.mha", np.minimum(volume(i)[1], 1))
    (folder / "dataset.json").write_text(json.dumps(values | more))


def test_a_channel_of_nnunet(tmp_path):
    make_nnunet(tmp_path)
    root = prepare(tmp_path, "--nnunet", tmp_path, "--channel", "FLAIR", images=())
    data = open_dataset("own", root, "test")
    turned = volume(10 + int(data.names[0][-1]))[0][3:][::-1, ::-1].astype(np.float64)
    assert_allclose(data.load(0)[0], (turned - turned.mean()) / turned.std(), atol=1e-4)
    with pytest.raises(UserError, match=r"--channel T2: .* has 0 \(T1\), 1 \(FLAIR\)"):
        prepare(tmp_path, "--nnunet", tmp_path, "--channel", "T2", images=())


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ({"background": 0, "whole": [1, 2]}, "label whole is a region"),
        ({"background": 0, "a": 1, "ignore": 2}, "label ignore"),
        ({"background": 0}, "no class but"),
        ([], "labels and channel_names"),
    ],
)
def test_nnunet_tables_that_cannot_be_read(tmp_path, labels, words):
    make_nnunet(tmp_path, labels=labels)
    with pytest.raises(UserError, match=words):
        prepare(tmp_path, "--nnunet", tmp_path, images=())


def test_a_corrupt_checksum_is_one_case(files, capsys):
    """Voxels that a byte of the stream has changed are not prepared as if they were right."""
    path = files / "images" / "case_6.nii.gz"
    raw = bytearray(gzip.compress(gzip.decompress(path.read_bytes()), 0))
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)
    prepare(files, status=1)
    assert "case_6.nii.gz: damaged" in capsys.readouterr().out
