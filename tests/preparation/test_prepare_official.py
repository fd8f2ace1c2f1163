"""From the files that the data sets' own sites hand out to what the readers read: voxels, lists,
damaged cases.
"""

import json
import shutil
import warnings

import h5py
import numpy as np
import official_files as official
import prepare_acdc
import prepare_brats
import prepare_endocardium
import prepare_la
import prepare_pancreas
import pytest
import test_LA
import train_supervised

from dataloaders import open_dataset
from dataloaders.preprocessing import Preprocessing
from utils.errors import UserError


@pytest.fixture
def main(tmp_path, capsys):
    """`main(script, download, *options)` into `tmp_path / "root"`, in this process: exit status and
    output.
    """

    def call(script, download, *options):
        root = str(tmp_path / "root")
        arguments = [str(download), "--root", root, "--workers", "1", *map(str, options)]
        status = 0
        try:
            script.main(arguments)
        except SystemExit as left:
            status = left.code
        return status, capsys.readouterr().out

    return call


def listed(path):
    return path.read_text().split()


def write_lists(folder, **lists):
    """List files by the name of each without its ending `.list`, or with `_txt` for `.txt`."""
    folder.mkdir()
    for name, lines in lists.items():
        file = f"{name.removesuffix('_txt')}.txt" if name.endswith("_txt") else f"{name}.list"
        (folder / file).write_text("\n".join(lines) + "\n")
    return folder


def find_in(whole, part):
    """The slices of an array that a crop of it was."""
    for place in np.argwhere(whole == part[0, 0, 0]):
        box = tuple(slice(p, p + extent) for p, extent in zip(place, part.shape, strict=True))
        if np.array_equal(whole[box], part):
            return box
    raise AssertionError("no part of the volume")


def box_of(mask):
    """The slices around a mask."""
    ends = [np.flatnonzero(mask.any(axis=axes))[[0, -1]] for axes in ((1, 2), (0, 2), (0, 1))]
    return tuple(slice(low, high + 1) for low, high in ends)


# ----------------------------------------------------------------------------------------------- LA


@pytest.fixture
def la(tmp_path):
    """Five cases wider than the crop of a small label, one with a large one, and a case that is not
    for training.
    """
    rng = np.random.default_rng(0)
    cases = {f"CASE{i}": official.solid(rng, (170 + i, 160, 12), radius=0.1) for i in range(4)}
    cases["CASE4"] = official.solid(rng, (220, 160, 12), radius=0.25)
    for case, arrays in cases.items():
        official.write_la(tmp_path / "download", case, *arrays)
    testing = tmp_path / "download" / "Testing Set" / "CASE9"
    shutil.copytree(tmp_path / "download" / "Training Set" / "CASE0", testing)
    return tmp_path / "download", cases


def test_la_is_the_published_crop_of_the_whole_volumes_z_scores(la, main, tmp_path):
    download, cases = la
    assert main(prepare_la, download)[0] == 0
    train, test = (open_dataset("LA", tmp_path / "root", split) for split in ("train", "test"))
    assert (len(train), len(test)) == (4, 1)
    assert sorted(train.names + test.names) == sorted(cases)
    for data in (train, test):
        for index, case in enumerate(data.names):
            image, label = data.load(index)
            whole, mask = cases[case]
            x, y = (max(part.stop - part.start + 28, 141) for part in box_of(mask)[:2])
            assert image.shape == label.shape == (x, y, 12)
            grey = image * whole.std() + whole.mean()
            np.testing.assert_allclose(grey, grey.round(), atol=1e-3)
            box = find_in(whole, grey.round())
            np.testing.assert_array_equal(label, mask[box])
            assert label.sum() == mask.sum()


def test_la_takes_published_lists_and_tells_what_it_lacks(la, main, tmp_path):
    lists = write_lists(tmp_path / "lists", train=["CASE4", "CASE1"], test=["CASE0", "CASE9"])
    status, said = main(prepare_la, la[0], "--lists", lists)
    assert status == 1
    assert "CASE9: listed, but not in the download" in said
    assert listed(tmp_path / "root" / "train.list") == ["CASE4", "CASE1"]
    assert listed(tmp_path / "root" / "test.list") == ["CASE0"]


def test_a_damaged_case_is_told_and_the_rest_prepared(la, main, tmp_path):
    download, _ = la
    label = download / "Training Set" / "CASE2" / "laendo.nrrd"
    label.write_bytes(label.read_bytes()[:-40])
    status, said = main(prepare_la, download, "--seed", 3)
    assert status == 1
    assert "4 of 5 cases prepared" in said
    assert said.splitlines()[-1].startswith(f"  CASE2: {label}")
    root = tmp_path / "root"
    names = listed(root / "train.list") + listed(root / "test.list")
    assert sorted(names) == ["CASE0", "CASE1", "CASE3", "CASE4"]
    assert not list(root.glob("**/CASE2/*"))
    again = main(prepare_la, download, "--seed", 3)
    assert again[0] == 1
    assert "CASE2" in again[1]


def test_a_second_run_does_nothing_until_something_changes(la, main, tmp_path):
    download, _ = la
    root = tmp_path / "root"
    main(prepare_la, download)
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    status, said = main(prepare_la, download)
    assert (status, said) == (0, f"{root}: prepared already, nothing to do\n")
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before
    with pytest.raises(
        UserError,
        match=r"another preparation \(it differs in lists, unlike_published\).*--overwrite",
    ):
        main(prepare_la, download, "--seed", 4)
    assert main(prepare_la, download, "--seed", 4, "--overwrite")[0] == 0
    assert json.loads((root / "preparation.json").read_text())["complete"]


def test_one_scan_in_two_lists_is_left_in_the_test_list_alone(la, main, tmp_path):
    download, _ = la
    shutil.rmtree(download / "Training Set" / "CASE1")
    shutil.copytree(download / "Training Set" / "CASE0", download / "Training Set" / "CASE1")
    lists = write_lists(tmp_path / "lists", train=["CASE0", "CASE2"], test=["CASE1"])
    status, said = main(prepare_la, download, "--lists", lists)
    assert status == 1
    assert "CASE0: the same voxels as CASE1, which is in the test list" in said
    assert listed(tmp_path / "root" / "train.list") == ["CASE2"]
    assert not list((tmp_path / "root").glob("**/CASE0/*"))


def test_files_and_report_do_not_depend_on_the_number_of_workers(la, main, tmp_path):
    root, names = tmp_path / "root", ("report.csv", "overlays.png", "train.list", "test.list")
    main(prepare_la, la[0])
    before = {
        path: path.read_bytes() for path in (*root.rglob("*.h5"), *(root / name for name in names))
    }
    main(prepare_la, la[0], "--workers", 2, "--overwrite")
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.parametrize(
    "script",
    [prepare_la, prepare_acdc, prepare_brats, prepare_endocardium, prepare_pancreas],
    ids=lambda s: s.__name__,
)
def test_a_folder_without_the_download_is_told_in_one_line(script, main, tmp_path):
    with pytest.raises(UserError, match="below this folder; name") as caught:
        main(script, tmp_path / "nowhere")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "root").exists()


def test_la_from_download_to_result(tmp_path, main, one_thread):
    """Prepared files are trained on and tested as published ones are."""
    rng = np.random.default_rng(0)
    for i in range(5):
        official.write_la(tmp_path / "download", f"CASE{i}", *official.solid(rng, (40, 36, 18)))
    assert main(prepare_la, tmp_path / "download")[0] == 0
    runs, root = str(tmp_path / "runs"), str(tmp_path / "root")
    common = ["--gpu", "-1", "--root", root, "--runs", runs]
    tiny = ["--patch", "32", "16", "16", "--n_filters", "2", "--labelnum", "2", "--labeled_bs", "1"]
    train_supervised.main([*common, *tiny, "--max_iterations", "2"])
    test_LA.main([*common, "--method", "supervised", "--labelnum", "2"])
    (summary,) = (tmp_path / "runs").rglob("summary.json")
    assert json.loads(summary.read_text())["cases"] == 1


def test_la_repeats_a_published_file(la_root, main, tmp_path):
    """Real left atria, put back into a wider volume as integers: where both crops overlap, label
    and z-scores agree.
    """
    files = sorted(la_root.glob("**/mri_norm2.h5"))[:2]
    before = {}
    for file in files:
        with h5py.File(file) as case:
            image, label = case["image"][()], case["label"][()]
        grey = np.round(1000 * (image - image.min())).astype(np.int16)
        whole, mask = np.zeros((300, 280, 88), np.int16), np.zeros((300, 280, 88), np.uint8)
        box = tuple(slice(30, 30 + extent) for extent in image.shape[:2])
        whole[box], mask[box] = grey, label
        official.write_la(tmp_path / "download", file.parent.name, whole, mask)
        before[file.parent.name] = image, label
    assert main(prepare_la, tmp_path / "download")[0] == 0
    for case, (image, label) in before.items():
        with h5py.File(next((tmp_path / "root").glob(f"**/{case}/*.h5"))) as file:
            made, target = file["image"][()], file["label"][()]
        assert target.sum() == label.sum()
        inside, same = box_of(label), box_of(target)
        np.testing.assert_array_equal(target[same], label[inside])
        # the padding moves mean and deviation alone: the two are one straight line apart
        assert np.corrcoef(made[same].ravel(), image[inside].ravel())[0, 1] > 0.999999
        assert all(abs(a - b) <= 10 for a, b in zip(made.shape, label.shape, strict=True))


# --------------------------------------------------------------------------------------------- ACDC


@pytest.fixture
def acdc(tmp_path):
    """Ten patients; end diastole is the later frame of the second."""
    rng = np.random.default_rng(1)
    patients = {}
    for i in range(1, 11):
        (early, mask), (late, _) = (official.solid(rng, (14, 12, 2 + i % 2)) for _ in range(2))
        label = mask * (1 + np.arange(14)[:, None, None] % 3).astype(np.uint8)
        name = f"patient{i:03d}"
        official.write_acdc(
            tmp_path / "download", name, (early, late), label, *((11, 4) if i == 2 else (1, 12))
        )
        patients[name] = early, late, label
    return tmp_path / "download", patients


def check_acdc(root, name, volume, label):
    """A volume and its slices hold what was written, as (slice, y, x)."""
    scaled = (volume - volume.min()) / (volume.max() - volume.min())
    with h5py.File(root / "data" / f"{name}.h5") as file:
        np.testing.assert_allclose(file["image"], scaled.transpose(2, 1, 0), atol=1e-6)
        np.testing.assert_array_equal(file["label"], label.transpose(2, 1, 0))


def test_acdc_holds_the_two_phases_of_each_patient(acdc, main, tmp_path):
    download, patients = acdc
    root = tmp_path / "root"
    assert main(prepare_acdc, download)[0] == 0
    train, val, test = (open_dataset("ACDC", root, split) for split in ("train", "val", "test"))
    assert (train.total, val.total, test.total) == (7, 1, 2)
    for name, (diastole, systole, label) in patients.items():
        check_acdc(root, f"{name}_frame01", diastole, label)
        check_acdc(root, f"{name}_frame02", systole, label)
    for index, name in enumerate(train.names):
        volume, _, k = name.partition("_slice_")
        image, label = train.load(index)
        with h5py.File(root / "data" / f"{volume}.h5") as file:
            np.testing.assert_array_equal(image, file["image"][int(k) - 1])
            np.testing.assert_array_equal(label, file["label"][int(k) - 1])
    assert len(train) == sum(2 * patients[unit][2].shape[2] for unit in dict.fromkeys(train.units))


def test_acdc_takes_slices_in_the_order_of_the_published_list(acdc, main, tmp_path):
    slices = [
        "patient003_frame02_slice_2",
        "patient001_frame01_slice_1",
        "patient003_frame02_slice_1",
    ]
    volumes = {"val": ["patient002_frame01"], "test": ["patient004_frame01", "patient005_frame02"]}
    lists = write_lists(tmp_path / "lists", train_slices=slices, **volumes)
    assert main(prepare_acdc, acdc[0], "--lists", lists)[0] == 0
    assert open_dataset("ACDC", tmp_path / "root").names == slices
    assert open_dataset("ACDC", tmp_path / "root", "test").names == volumes["test"]
    lists = write_lists(
        tmp_path / "more", train_slices=["patient003_frame02_slice_9", *slices], **volumes
    )
    status, said = main(prepare_acdc, acdc[0], "--lists", lists, "--overwrite")
    assert (status, listed(tmp_path / "root" / "train_slices.list")) == (1, slices[1:2])
    assert "patient003_frame02: slice 9 is listed, but it has 3" in said


def test_acdc_without_its_phases_is_told(acdc, main, tmp_path):
    info = acdc[0] / "training" / "patient006" / "Info.cfg"
    info.write_text("ED: 1\n")
    gone = acdc[0] / "training" / "patient007" / "patient007_frame12.nii.gz"
    gone.unlink()
    status, said = main(prepare_acdc, acdc[0])
    assert status == 1
    assert f"patient006_frame02: {info}: has no line ES: <number of a frame>" in said
    assert f"patient007_frame02: {gone}: no such file" in said
    assert (tmp_path / "root" / "data" / "patient006_frame01.h5").is_file()


# ---------------------------------------------------------------------------------------- BraTS2019


@pytest.fixture
def brats(tmp_path):
    """Six subjects of two modalities, a brain in an empty volume, tumour of values 1, 2 and 4."""
    rng = np.random.default_rng(2)
    subjects = {}
    for i in range(6):
        name = f"BraTS19_T_{i}_1"
        image, mask = official.solid(rng, (14, 12, 10))
        flair, label = np.zeros((24, 22, 20), np.int16), np.zeros((24, 22, 20), np.uint8)
        flair[5:19, 4:16, 6:16] = image
        label[5:19, 4:16, 6:16] = mask * rng.choice([1, 2, 4], mask.shape)
        official.write_brats(
            tmp_path / "download",
            name,
            {"flair": flair, "t2": 3 * flair},
            label,
            "HLG"[i % 2] + "GG",
        )
        subjects[name] = flair, label
    return tmp_path / "download", subjects


def test_brats_is_the_brain_and_the_whole_tumour(brats, main, tmp_path):
    download, subjects = brats
    assert main(prepare_brats, download)[0] == 0
    splits = [
        open_dataset("BraTS2019", tmp_path / "root", split) for split in ("train", "val", "test")
    ]
    assert [len(data) for data in splits] == [4, 1, 1]
    for data in splits:
        for index, name in enumerate(data.names):
            image, label = data.load(index)
            flair, tumour = (array[5:19, 4:16, 6:16] for array in subjects[name])
            np.testing.assert_array_equal(label, tumour > 0)
            np.testing.assert_allclose(image, (flair - flair.mean()) / flair.std(), atol=1e-5)


def test_brats_takes_lists_and_another_modality(brats, main, tmp_path):
    names = list(brats[1])
    given = {"train_txt": names[4:1:-1], "val_txt": names[:1], "test_txt": names[1:2]}
    lists = write_lists(tmp_path / "lists", **given)
    assert main(prepare_brats, brats[0], "--lists", lists, "--modality", "t2")[0] == 0
    data = open_dataset("BraTS2019", tmp_path / "root")
    assert data.names == names[4:1:-1]
    with h5py.File(data.paths[0]) as file:
        assert file.attrs["source"].endswith(f"{names[4]}_t2.nii.gz")


# ----------------------------------------------------------------------------------------- Pancreas


def abdomen(rng, shape):
    """Hounsfield units: a pancreas of 100 in fat of -100 with other soft tissue here and there, and
    its mask.
    """
    _, mask = official.solid(rng, shape, radius=0.25)
    organs = official.solid(rng, shape, radius=0.15)[1] & ~mask
    hounsfield = (
        -100 + 200 * mask.astype(int) + 140 * np.roll(organs, shape[0] // 3, 0) * (1 - mask)
    )
    return (hounsfield + rng.normal(0, 15, shape)).round().astype(np.int16), mask


@pytest.fixture
def pancreas(tmp_path):
    """Cases 1 and 2 as stored, 3 with a label that is reversed along y and z, and the repeated case
    25.
    """
    rng = np.random.default_rng(3)
    cases = {number: abdomen(rng, (36, 32, 20)) for number in (1, 2, 3, 25)}
    for number, arrays in cases.items():
        official.write_pancreas(
            tmp_path / "download", number, *arrays, (1.0, 1.0, 1.0), (1, 2) * (number == 3)
        )
    return tmp_path / "download", cases


def test_pancreas_labels_lie_where_the_tissue_is(pancreas, main, tmp_path):
    download, cases = pancreas
    status, said = main(prepare_pancreas, download)
    assert status == 0
    root = tmp_path / "root"
    assert (listed(root / "train.list"), listed(root / "test.list")) == (["0001", "0002"], ["0003"])
    assert "0003: label was turned to fit the image: yz reversed" in said
    assert "3 of 3 cases prepared, 1 of them to look at" in said
    for split in ("train", "test"):
        data = open_dataset("Pancreas", root, split)
        for index, name in enumerate(data.names):
            image, label = data.load(index)
            hounsfield, mask = cases[int(name)]
            np.testing.assert_array_equal(label, mask)
            np.testing.assert_allclose(
                image, (np.clip(hounsfield, -125, 275) + 125) / 400, atol=1e-6
            )
    with pytest.warns(UserWarning, match="prepared for 3d; .*--for 2d"):
        data = open_dataset("Pancreas2d", root)
    assert data.load(3)[0].shape == (32, 36)
    assert data.unlike_published == ("files are prepared for 3d",)
    main(prepare_pancreas, download, "--seed", 1, "--overwrite")
    drawn = listed(root / "train.list"), listed(root / "test.list")
    assert sorted(drawn[0] + drawn[1]) == ["0001", "0002", "0003"]
    assert drawn[1] == ["0001"]


def test_pancreas_slices_are_cut_and_not_resampled(tmp_path, main):
    """Five cases wider than 192×240 pixels of 0.5 mm, the last with a label wider than the crop."""
    rng = np.random.default_rng(6)
    hounsfield = rng.integers(-300, 400, (5, 300, 256, 5)).astype(np.int16)
    mask = np.zeros((5, 300, 256, 5), bool)
    mask[:4, 60:120, 30:71, 1:4] = True
    mask[4, 20:280, 30:70, 2:5] = True
    for number in range(5):
        arrays = hounsfield[number], mask[number].astype(np.uint8)
        official.write_pancreas(tmp_path / "download", number + 1, *arrays, (0.5, 0.5, 2.0))
    options = ("--for", "2d", "--label_flip", "none")
    status, said = main(prepare_pancreas, tmp_path / "download", *options)
    assert status == 0
    assert "0005: the crop leaves out 2400 of the label's 31200 voxels" in said
    root = tmp_path / "root"
    assert listed(root / "test.list") == ["0005"]  # 16 of 80
    with warnings.catch_warnings(action="error"):
        train = open_dataset("Pancreas2d", root)
        test = open_dataset("Pancreas2d", root, "test")
    assert (len(train), train.total, train.unlike_published) == (12, 4, ())
    windowed = (np.clip(hounsfield, -100, 240) + 100) / 340
    image, label = train.load(4)
    place = np.s_[1, 0:240, 0:192, 2]  # the box's middle, moved into the image
    np.testing.assert_allclose(image, windowed[place].T, atol=1e-6)
    np.testing.assert_array_equal(label, mask[place].T)
    image, label = test.load(0)
    place = np.s_[4, 30:270, 0:192, 2:5]
    np.testing.assert_allclose(image, windowed[place].swapaxes(0, 1), atol=1e-6)
    np.testing.assert_array_equal(label, mask[place].swapaxes(0, 1))
    with pytest.warns(UserWarning, match="prepared for 2d; .*--for 3d"):
        open_dataset("Pancreas", root)
    options = (*options, "--window", -125, 275, "--overwrite")
    assert main(prepare_pancreas, tmp_path / "download", *options)[0] == 0
    other = open_dataset("Pancreas2d", root)
    assert other.unlike_published == ("window -125 to 275 HU, not -100 to 240",)


def test_pancreas_forms_have_folders_of_their_own(tmp_path):
    assert str(prepare_pancreas.parse([str(tmp_path)]).root) == "data/Pancreas"
    assert str(prepare_pancreas.parse([str(tmp_path), "--for", "2d"]).root) == "data/Pancreas2d"
    with pytest.raises(UserError, match="--legacy_spacing"):
        prepare_pancreas.parse([str(tmp_path), "--for", "2d", "--legacy_spacing"])


def test_pancreas_alignment_that_is_not_clear_is_told_and_settled_by_hand(tmp_path, main):
    rng = np.random.default_rng(4)
    hounsfield, mask = abdomen(rng, (24, 24, 12))
    for number in (1, 2):
        noise = rng.integers(-90, 180, hounsfield.shape).astype(np.int16)
        official.write_pancreas(
            tmp_path / "download", number, noise, np.flip(mask, 0), (1.0, 1.0, 1.0)
        )
    status, said = main(prepare_pancreas, tmp_path / "download")
    assert status == 0
    assert "0001: unclear how the label lies on the image" in said
    assert main(prepare_pancreas, tmp_path / "download", "--label_flip", "x", "--overwrite")[0] == 0
    np.testing.assert_array_equal(open_dataset("Pancreas", tmp_path / "root").load(0)[1], mask)


def test_pancreas_spacing_is_true_unless_legacy(tmp_path, main):
    rng = np.random.default_rng(5)
    for number in (1, 2):
        official.write_pancreas(
            tmp_path / "download", number, *abdomen(rng, (40, 40, 16)), (0.5, 0.5, 2.0)
        )
    window = ["--window", -100, 240]
    assert main(prepare_pancreas, tmp_path / "download", *window)[0] == 0
    image, label = open_dataset("Pancreas", tmp_path / "root").load(0)
    assert image.shape == (20, 20, 32)
    assert np.median(image[label > 0]) == pytest.approx((100 + 100) / 340, abs=0.01)
    assert (
        main(prepare_pancreas, tmp_path / "download", *window, "--legacy_spacing", "--overwrite")[0]
        == 0
    )
    assert open_dataset("Pancreas", tmp_path / "root").load(0)[0].shape == (20, 20, 8)


def test_pancreas_takes_lists_under_their_own_names(pancreas, main, tmp_path):
    given = {
        "train_lab_txt": ["image0002"],
        "train_unlab_txt": ["image0001"],
        "test_txt": ["image0025"],
    }
    lists = write_lists(tmp_path / "lists", **given)
    assert main(prepare_pancreas, pancreas[0], "--lists", lists)[0] == 0
    assert open_dataset("Pancreas", tmp_path / "root").names == ["image0002", "image0001"]
    lists = write_lists(tmp_path / "twice", train=["0001", "0002"], test=["PANCREAS_0001"])
    with pytest.raises(UserError, match="belongs to one list"):
        main(prepare_pancreas, pancreas[0], "--lists", lists, "--overwrite")


def test_pancreas_cases_that_cannot_be_used_are_told(pancreas, main, tmp_path):
    download, cases = pancreas
    (download / "TCIA_pancreas_labels-02-05-2017" / "label0001.nii.gz").unlink()
    label = download / "TCIA_pancreas_labels-02-05-2017" / "label0002.nii.gz"
    official.write(label, cases[2][1][:-1])
    status, said = main(prepare_pancreas, download)
    assert status == 1
    assert "0001: " in said
    assert "has no label0001.nii.gz" in said
    assert "0002: label has shape (35, 32, 20), but the image has (36, 32, 20)" in said


# -------------------------------------------------------------------------------------- endocardium


def ring(centre, radii):
    angle = np.linspace(0, 2 * np.pi, 33)[:-1]
    return np.column_stack(
        [centre[0] + radii[0] * np.cos(angle), centre[1] + radii[1] * np.sin(angle)]
    )


@pytest.fixture
def york(tmp_path):
    """Five subjects of 3 levels and 2 times; contours at level 1 alone, wider along x than along
    y.
    """
    rng = np.random.default_rng(6)
    for number in (1, 2, 3, 4, 10):
        images = rng.integers(0, 500, (28, 30, 3, 2)).astype(np.float64)
        inner, outer = ring((12, 15), (6, 3.5)), ring((12, 15), (8, 6))
        official.write_york(
            tmp_path / "download",
            number,
            images,
            {(1, 0): (inner, outer), (1, 1): (inner + 1, outer)},
        )
    return tmp_path / "download", images


def test_endocardium_is_the_inside_of_the_first_contour(york, main, tmp_path):
    download, last = york
    assert main(prepare_endocardium, download)[0] == 0
    root = tmp_path / "root"
    train, test = (open_dataset("endocardium", root, split) for split in ("train", "test"))
    assert (train.total, test.total, len(train)) == (4, 1, 4 * 6)
    assert set(train.units) | set(test.units) == {"pat1", "pat2", "pat3", "pat4", "pat10"}
    with h5py.File(root / "data" / "pat10.h5") as file:
        image, label = file["image"][()], file["label"][()]
    assert image.shape == label.shape == (6, 28, 30)
    np.testing.assert_allclose(
        image[3], (last[:, :, 1, 1] - last.min()) / (last.max() - last.min()), atol=1e-6
    )
    y, x = np.mgrid[:28, :30]
    for k, shift in ((2, 0), (3, 1)):
        ellipse = ((x - 11 - shift) / 6) ** 2 + ((y - 14 - shift) / 3.5) ** 2
        assert label[k][ellipse < 0.95].all()
        assert not label[k][ellipse > 1].any()
    assert not label[[0, 1, 4, 5]].any()


def test_endocardium_files_that_cannot_be_right_are_told(york, main, tmp_path):
    download, _ = york
    contours = "manual_seg_32points_pat{}.mat"
    data = (download / "mrimages" / "sol_yxzt_pat1.mat").read_bytes()
    (download / "mrimages" / "sol_yxzt_pat1.mat").write_bytes(data[: len(data) // 2])
    (download / "manual_seg" / "manual_seg_32points_pat2.mat").unlink()
    far = {(0, 0): (ring((40, 15), (6, 3)), ring((12, 15), (8, 6)))}
    official.write_york(download, 3, np.ones((28, 30, 3, 2)), far)
    short = {(0, 1): (ring((12, 15), (6, 3))[:30], ring((12, 15), (8, 6)))}
    official.write_york(download, 4, np.ones((28, 30, 3, 2)), short)
    status, said = main(prepare_endocardium, download, "--seed", 1)
    assert status == 1
    assert "pat1.mat: damaged or no MATLAB file" in said
    assert f"pat2: {download / contours.format(2)}: no such file" in said
    assert f"{contours.format(3)}: the contour of level 1, time 1 lies outside of the image" in said
    assert "the contour of level 1, time 2 is none of 65 points" in said


def test_every_preprocessing_can_be_written_down():
    for name in ("LA", "ACDC", "BraTS2019", "Pancreas", "Pancreas2d", "endocardium"):
        how = open_dataset.__globals__["dataset_class"](name).preprocessing
        assert Preprocessing.from_dict(json.loads(json.dumps(how.as_dict()))) == how
