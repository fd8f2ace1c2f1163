"""code/predict.py: labels where the image is, whatever its file, axes and spacing, and what it says
of bad input.
"""

import json
import re
import resource

import h5py
import numpy as np
import predict
import pytest
import SimpleITK
import torch
import torch.nn.functional as F
from image_files import assert_same_geometry, oblique, write_dicom

from dataloaders import dataset_class
from dataloaders.preprocessing import Preprocessing
from dataloaders.transforms import downsample_image
from networks.unet import UNet
from networks.vnet import VNet
from utils.errors import UserError
from utils.inference import mean_probability, slice_by_slice, sliding_window
from utils.ops import largest_component
from utils.preparation.grid import resample
from utils.preparation.images import SUFFIXES, read_image, to_array, write_image
from utils.preparation.prediction import around, likeliest
from utils.preparation.preprocess import preprocess
from utils.trained import load_networks

pytestmark = pytest.mark.usefixtures("one_thread")
PATCH, STRIDE = (32, 16, 16), (16, 8, 8)


def write_run(folder, preprocessing, dataset="own", dims=3, num_classes=3, **args):
    """A run of a network that nobody has trained, whose classes are about equally frequent."""
    torch.manual_seed(0)
    net = (VNet if dims == 3 else UNet)(
        n_filters=2, num_classes=num_classes, normalization="instancenorm"
    )
    with torch.no_grad():
        logits = net.eval()(torch.randn(1, 1, *PATCH[:dims])).flatten(2)[0]
        net.heads[0].weight /= logits.std(1).reshape(-1, *[1] * (net.heads[0].weight.ndim - 1))
        net.heads[0].bias.copy_(-(logits.mean(1) - net.heads[0].bias) / logits.std(1))
    checkpoint = {
        "step": 7,
        "last": 9,
        "args": {"dataset": dataset, "patch": list(PATCH[:dims]), "downsample": 1, **args},
        "dataset": {
            "name": dataset,
            "num_classes": num_classes,
            "class_names": ["spleen", "liver", "aorta"][: num_classes - 1],
            "spacing": None,
            "stride": list(STRIDE) if dims == 3 else None,
            "keep_largest": dataset_class(dataset).keep_largest,
            "file_axes": dataset_class(dataset).file_axes if dims == 2 else None,
            "image_axes": [1, 0, 2] if dims == 2 else None,
            "preprocessing": preprocessing and preprocessing.as_dict(),
        },
        "test_networks": ["net"],
        "networks": {
            "net": {"class": f"{type(net).__module__}.{type(net).__name__}", "kwargs": net.config}
        },
        "net": net.state_dict(),
    }
    folder.mkdir(parents=True)
    torch.save(checkpoint, folder / "last.pth")
    return folder


@pytest.fixture
def run_folder(tmp_path):
    return write_run(tmp_path / "run", Preprocessing(orientation="LPS", intensity="zscore"))


def call(*arguments):
    predict.main(["--gpu", "-1", "--precision", "fp32", *map(str, arguments)])


def expected(folder, image, preprocessing, downsample=1):
    """Prepared image, and the probabilities of the whole of it at once."""
    predictor = mean_probability(load_networks(folder / "last.pth", "cpu")[0])
    prepared = preprocess(preprocessing, image)
    array = downsample_image(prepared.image, downsample) if downsample > 1 else prepared.image
    stride = [extent // downsample for extent in STRIDE]
    return prepared, sliding_window(predictor, array, PATCH, stride, 3, activation=None)


def labels_of(path):
    labels = read_image(path)
    assert labels.GetPixelID() == SimpleITK.sitkUInt8
    return to_array(labels)


def test_every_type_comes_back_with_its_geometry_and_the_same_labels(run_folder, tmp_path, capsys):
    image = oblique((22, 18, 9))
    for k, kind in enumerate(SUFFIXES):
        (tmp_path / f"in/{k}").mkdir(parents=True)
        write_image(tmp_path / f"in/{k}/case.x{kind}", image)
    write_dicom(tmp_path / "in" / "series", image)
    call(run_folder, tmp_path / "in", "--out", tmp_path / "out", "--probabilities", "--uncertainty")
    outputs = [tmp_path / f"out/{k}/case.x{kind}" for k, kind in enumerate(SUFFIXES)]
    outputs.append(tmp_path / "out" / "series.nii.gz")

    prepared, prob = expected(
        run_folder, image, Preprocessing(orientation="LPS", intensity="zscore")
    )
    turn_back = prepared.place.turn_back
    labels = turn_back(prob.argmax(0).numpy())
    assert set(np.unique(labels)) == {0, 1, 2}
    entropy = turn_back(-(prob * prob.log()).sum(0).numpy())
    for path in outputs:
        assert_same_geometry(read_image(path), image)
        assert np.array_equal(labels_of(path), labels), path
        kind = re.search(r"\.(nii\.gz|\w+)$", path.name).group()
        maps = {
            what: path.with_name(path.name.removesuffix(kind) + f"_{what}{kind}")
            for what in ("uncertainty",)
        }
        maps |= {
            c: path.with_name(path.name.removesuffix(kind) + f"_probability_{c}{kind}")
            for c in (1, 2)
        }
        for what, other in maps.items():
            found = read_image(other)
            assert_same_geometry(found, image)
            values = entropy if what == "uncertainty" else turn_back(prob[what].numpy())
            np.testing.assert_allclose(to_array(found), values, atol=1e-6)
    record = json.loads((tmp_path / "out" / "predict.json").read_text())
    assert record["labels"] == {"0": "background", "1": "spleen", "2": "liver"}
    assert Preprocessing.from_dict(record["preprocessing"]).orientation == "LPS"
    assert "step 7 of 9: 1 spleen, 2 liver" in capsys.readouterr().out


@pytest.mark.parametrize("spacing", [None, (0.7, 1.3, 3.0)])
def test_voxels_that_stay_are_no_places_between_voxels(spacing):
    how = Preprocessing(orientation="RAS", spacing=spacing)
    place = preprocess(how, oblique((40, 30, 20))).place
    target = around(place)
    for axis, at in enumerate(target.places):
        assert target.inside[axis] == slice(0, place.oriented.size[axis])
        stays = spacing is None or place.oriented.spacing[axis] == spacing[axis]
        assert np.array_equal(at, np.arange(len(at))) == stays


@pytest.mark.parametrize("downsample", [1, 2])
def test_the_way_an_image_is_stored_makes_no_difference(tmp_path, downsample):
    run_folder = write_run(
        tmp_path / "run", Preprocessing(orientation="LPS"), downsample=downsample
    )
    image = oblique((22, 19, 18))
    for axes in ("LPS", "RAS", "PSL"):
        write_image(tmp_path / f"in_{axes}.nii.gz", SimpleITK.DICOMOrient(image, axes))
    call(run_folder, *tmp_path.glob("in_*"), "--out", tmp_path / "out")
    first, *others = [
        SimpleITK.DICOMOrient(read_image(tmp_path / "out" / f"in_{axes}.nii.gz"), "LPS")
        for axes in ("LPS", "RAS", "PSL")
    ]
    assert len(np.unique(to_array(first))) == 3
    for other in others:
        assert_same_geometry(first, other)
        assert np.array_equal(to_array(first), to_array(other))


def test_half_resolution_comes_back_to_the_full_grid(tmp_path):
    how = Preprocessing(intensity="zscore")
    run_folder = write_run(tmp_path / "run", how, downsample=2)
    image = oblique((45, 38, 33))
    write_image(tmp_path / "a.mha", image)
    call(run_folder, tmp_path / "a.mha", "--out", tmp_path / "out", "--probabilities")
    _, prob = expected(run_folder, image, how, downsample=2)
    full = F.interpolate(prob[None], scale_factor=2, mode="trilinear")[
        0
    ]  # centres of blocks, as the means are
    full = F.pad(full[None], (0, 1, 0, 0, 0, 1), mode="replicate")[
        0
    ]  # of an odd extent the last plane is in no block
    found = to_array(read_image(tmp_path / "out" / "a_probability_2.mha"))
    np.testing.assert_allclose(found, full[2].numpy(), atol=1e-6)
    assert (labels_of(tmp_path / "out" / "a.mha") == full.argmax(0).numpy()).mean() > 0.9999


def test_another_spacing_comes_back_to_the_image_s(tmp_path):
    how = Preprocessing(orientation="RAS", spacing=(1.1, 1.0, 1.5), intensity="minmax")
    run_folder = write_run(tmp_path / "run", how)
    image = oblique((30, 25, 12))
    write_image(tmp_path / "a.nrrd", image)
    call(run_folder, tmp_path / "a.nrrd", "--out", tmp_path / "out")
    prepared, prob = expected(run_folder, image, how)
    assert prepared.image.shape != image.GetSize()
    place = prepared.place
    spread = [
        resample(channel, place.grid, place.oriented, SimpleITK.sitkLinear)
        for channel in prob.numpy()
    ]
    reference = place.turn_back(np.argmax(spread, axis=0))
    found = labels_of(tmp_path / "out" / "a.nrrd")
    assert_same_geometry(read_image(tmp_path / "out" / "a.nrrd"), image)
    assert (found == reference).mean() > 0.9999


def test_outside_of_a_crop_is_certain_background(tmp_path):
    how = Preprocessing(crop="nonzero", intensity="zscore")
    run_folder = write_run(tmp_path / "run", how)
    array = np.zeros((24, 23, 20), np.float32)
    box = np.s_[3:21, 2:19, 1:18]
    array[box] = np.random.default_rng(0).uniform(1, 2, (18, 17, 17))
    image = SimpleITK.GetImageFromArray(array.transpose(2, 1, 0))
    write_image(tmp_path / "a.nii", image)
    call(
        run_folder,
        tmp_path / "a.nii",
        "--out",
        tmp_path / "out",
        "--uncertainty",
        "--probabilities",
    )
    prepared, prob = expected(run_folder, image, how)
    assert prepared.image.shape == (18, 17, 17)
    inside = np.zeros(array.shape, bool)
    inside[box] = True
    labels = labels_of(tmp_path / "out" / "a.nii")
    assert np.array_equal(labels[box], prob.argmax(0).numpy())
    assert not labels[~inside].any()
    for name in ("uncertainty", "probability_1", "probability_2"):
        values = to_array(read_image(tmp_path / "out" / f"a_{name}.nii"))
        assert not values[~inside].any()
        assert values[box].all()


def test_an_h5_file_is_taken_as_prepared_and_keeps_its_attributes(run_folder, tmp_path):
    image = np.random.default_rng(0).normal(3, 2, (20, 17, 9)).astype(np.float32)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["image"], file["label"] = image, np.zeros(image.shape, np.uint8)
        file.attrs["spacing"], file["image"].attrs["source"] = (1.0, 2.0, 3.0), "scan 7"
    call(
        run_folder, tmp_path / "a.h5", "--out", tmp_path / "out", "--uncertainty", "--probabilities"
    )
    predictor = mean_probability(load_networks(run_folder / "last.pth", "cpu")[0])
    prob = sliding_window(predictor, image, PATCH, STRIDE, 3, activation=None)
    with h5py.File(tmp_path / "out" / "a.h5") as file:
        assert set(file) == {"prediction", "probability", "uncertainty"}
        assert file.attrs["spacing"].tolist() == [1, 2, 3]
        assert file.attrs["source"] == "scan 7"
        assert file["prediction"].dtype == np.uint8
        assert np.array_equal(file["prediction"][()], prob.argmax(0).numpy())
        assert np.array_equal(file["probability"][()], prob.numpy())
        np.testing.assert_allclose(
            file["uncertainty"][()], -(prob * prob.log()).sum(0).numpy(), atol=1e-6
        )
    assert [path.name for path in (tmp_path / "out").glob("a*")] == ["a.h5"]


def test_slices_are_taken_along_the_data_set_s_axes(tmp_path):
    how = Preprocessing(intensity="none")
    run_folder = write_run(tmp_path / "run", how, dataset="ACDC", dims=2, num_classes=4)
    image = (
        np.random.default_rng(0).normal(size=(5, 30, 26)).astype(np.float32)
    )  # ACDC's slice, y, x
    for name, array in (("volume", image), ("slice", image[2])):
        with h5py.File(tmp_path / f"{name}.h5", "w") as file:
            file["image"] = array
    write_image(tmp_path / "volume.nii.gz", SimpleITK.GetImageFromArray(image))
    call(run_folder, *tmp_path.glob("*.*"), "--out", tmp_path / "out", "--batch", 2)
    predictor = mean_probability(load_networks(run_folder / "last.pth", "cpu")[0])
    labels = slice_by_slice(predictor, image.transpose(1, 2, 0), PATCH[:2], 4).argmax(0).numpy()
    assert len(np.unique(labels)) == 4
    with h5py.File(tmp_path / "out" / "volume.h5") as file:
        assert np.array_equal(file["prediction"][()], labels.transpose(2, 0, 1))
    with h5py.File(tmp_path / "out" / "slice.h5") as file:
        assert np.array_equal(file["prediction"][()], labels[..., 2])
    assert np.array_equal(labels_of(tmp_path / "out" / "volume.nii.gz"), labels.transpose(1, 0, 2))
    with pytest.raises(UserError, match="predicts slice by slice, without windows"):
        call(run_folder, tmp_path / "slice.h5", "--out", tmp_path / "other", "--stride", 1, 1, 1)


def test_the_largest_component_is_kept_where_tests_do(tmp_path):
    run_folder = write_run(tmp_path / "run", Preprocessing(), dataset="LA", num_classes=3)
    image = oblique((20, 18, 17))
    write_image(tmp_path / "a.nii", image)
    call(run_folder, tmp_path / "a.nii", "--out", tmp_path / "plain", "--nms", 0)
    call(run_folder, tmp_path / "a.nii", "--out", tmp_path / "usual")
    plain, usual = (labels_of(tmp_path / name / "a.nii") for name in ("plain", "usual"))
    assert not np.array_equal(plain, usual)
    assert np.array_equal(usual, largest_component(torch.from_numpy(plain)[None], 3)[0].numpy())


def test_resume_fills_in_what_is_missing_and_nothing_is_overwritten_unasked(
    run_folder, tmp_path, capsys
):
    (tmp_path / "in").mkdir()
    for name in ("a.nii", "b.nii"):
        write_image(tmp_path / "in" / name, oblique())
    out = tmp_path / "in" / "out"  # below the input: what is there is not taken for images
    call(run_folder, tmp_path / "in", "--out", out)
    with pytest.raises(UserError, match=r"a\.nii and 1 more: there already; --resume"):
        call(run_folder, tmp_path / "in", "--out", out)
    (out / "a.nii").write_bytes(b"mine")
    (out / "b.nii").unlink()
    capsys.readouterr()
    call(run_folder, tmp_path / "in", "--out", out, "--resume")
    assert (out / "a.nii").read_bytes() == b"mine"
    labels_of(out / "b.nii")
    assert "1 of 2 are in" in capsys.readouterr().out
    call(
        run_folder, tmp_path / "in", "--out", out, "--resume", "--uncertainty"
    )  # maps are missing: all is made again
    labels_of(out / "a.nii")
    call(run_folder, tmp_path / "in", "--out", out, "--overwrite")
    with pytest.raises(UserError, match=r"was filled with other settings \(largest_component\)"):
        call(run_folder, tmp_path / "in", "--out", out, "--resume", "--nms", 1)
    with pytest.raises(SystemExit):
        call(run_folder, tmp_path / "in", "--out", out, "--overwrite", "--resume")
    assert "--overwrite" in capsys.readouterr().err


def test_a_bad_file_is_told_in_one_line_and_the_rest_goes_on(run_folder, tmp_path, capsys):
    folder = tmp_path / "in"
    folder.mkdir()
    image = oblique()
    write_image(folder / "z_good.nii.gz", image)
    data = (folder / "z_good.nii.gz").read_bytes()
    (folder / "cut.nii.gz").write_bytes(data[: len(data) // 2])
    (folder / "film.nii.gz").touch()
    SimpleITK.WriteImage(SimpleITK.JoinSeries([image, image]), str(folder / "film.nii.gz"))
    (folder / "text.h5").write_text("no h5")
    with h5py.File(folder / "flat.h5", "w") as file:
        file["image"] = np.zeros((4, 4), np.float32)
    with pytest.raises(SystemExit) as left:
        call(run_folder, folder, "--out", tmp_path / "out")
    assert left.value.code == 1
    error = capsys.readouterr().err.splitlines()
    for name, reason in (
        ("cut.nii.gz", "damaged"),
        ("film.nii.gz", "has 2 frames; choose one with --frame"),
        ("text.h5", "damaged or not an h5 file"),
        ("flat.h5", r"shape \(4, 4\), 3 axes are expected"),
    ):
        told = [
            line
            for line in error
            if re.search(f"{re.escape(str(folder / name))}: .*{reason}", line)
        ]
        assert len(told) == 2, name  # when it happens, and in the list at the end
    assert "4 failed of 5:" in error
    assert len(error) == 9
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "predict.json",
        "z_good.nii.gz",
    ]

    call(run_folder, folder / "film.nii.gz", "--out", tmp_path / "out", "--frame", 1)
    assert np.array_equal(
        labels_of(tmp_path / "out" / "film.nii.gz"), labels_of(tmp_path / "out" / "z_good.nii.gz")
    )


def test_what_cannot_be_written_leaves_nothing(run_folder, tmp_path, capsys):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["image"] = np.random.default_rng(0).normal(size=(20, 20, 20)).astype(np.float32)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**14, before[1]))  # as on a full disk, for any user
    try:
        with pytest.raises(SystemExit):
            call(run_folder, tmp_path / "a.h5", "--out", tmp_path / "out", "--uncertainty")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list((tmp_path / "out").iterdir())
    assert re.search(r"a\.h5: cannot be written \(", capsys.readouterr().err)


def test_an_out_that_is_a_file_is_told_before_anything_is_predicted(
    run_folder, tmp_path, capsys, monkeypatch
):
    write_image(tmp_path / "a.nii", oblique())
    (tmp_path / "out").touch()
    monkeypatch.setattr(predict, "predict_image", None)
    with pytest.raises(SystemExit):
        call(run_folder, tmp_path / "a.nii", "--out", tmp_path / "out")
    assert "out: cannot be written (File exists)" in capsys.readouterr().err


def test_two_inputs_of_one_name_are_refused_or_keep_their_folders(run_folder, tmp_path):
    for name in ("in/1/a.nii.gz", "in/2/a.nii.gz"):
        (tmp_path / name).parent.mkdir(parents=True)
        write_image(tmp_path / name, oblique())
    with pytest.raises(
        UserError,
        match=r"1/a\.nii\.gz and .*2/a\.nii\.gz would both be written to .*name a folder above",
    ):
        call(run_folder, *sorted(tmp_path.glob("in/*/a.nii.gz")), "--out", tmp_path / "out")
    call(
        run_folder, tmp_path / "in", tmp_path / "in" / "1", "--out", tmp_path / "out"
    )  # one file named twice is one
    assert sorted(str(p.relative_to(tmp_path / "out")) for p in tmp_path.glob("out/*/*")) == [
        "1/a.nii.gz",
        "2/a.nii.gz",
    ]
    write_image(tmp_path / "in" / "1" / "a_uncertainty.nii.gz", oblique())
    with pytest.raises(UserError, match=r"would both be written to .*a_uncertainty\.nii\.gz"):
        call(run_folder, tmp_path / "in", "--out", tmp_path / "out2", "--uncertainty")
    with pytest.raises(UserError, match=r"a\.nii\.gz is an input; name another folder"):
        call(run_folder, tmp_path / "in", "--out", tmp_path / "in", "--overwrite")


def test_unknown_preprocessing_is_asked_for(tmp_path, capsys):
    run_folder = write_run(tmp_path / "run", None)
    write_image(tmp_path / "a.nii", oblique())
    with pytest.raises(
        UserError,
        match=r"how the images of own were prepared is not recorded; give --preprocessing",
    ):
        call(run_folder, tmp_path / "a.nii", "--out", tmp_path / "out")
    (tmp_path / "dataset.json").write_text(
        '{"name": "x", "preprocessing": {"intensity": "minmax"}}'
    )
    call(
        run_folder,
        tmp_path / "a.nii",
        "--out",
        tmp_path / "1",
        "--preprocessing",
        '{"intensity": "minmax"}',
    )
    call(
        run_folder,
        tmp_path / "a.nii",
        "--out",
        tmp_path / "2",
        "--preprocessing",
        tmp_path / "dataset.json",
    )
    call(
        run_folder,
        tmp_path / "a.nii",
        "--out",
        tmp_path / "3",
        "--preprocessing",
        '{"intensity": "none"}',
    )
    one, two, three = (labels_of(tmp_path / str(k) / "a.nii") for k in (1, 2, 3))
    assert np.array_equal(one, two)
    assert not np.array_equal(one, three)
    for wrong, message in (
        ("absent.json", "no file, or no table"),
        ("{", "no file, or no table"),
        ('{"color": 1}', "a table of"),
        ('{"intensity": "bright"}', "none of none, zscore"),
    ):
        with pytest.raises(UserError, match=message):
            call(run_folder, tmp_path / "a.nii", "--out", tmp_path / "4", "--preprocessing", wrong)


def test_voxels_of_another_size_than_the_training_s_are_warned_of(tmp_path):
    run_folder = write_run(tmp_path / "run", Preprocessing())
    checkpoint = torch.load(run_folder / "last.pth", weights_only=True)
    checkpoint["dataset"]["spacing"] = [0.7, 0.9, 1.5]
    torch.save(checkpoint, run_folder / "last.pth")
    write_image(tmp_path / "a.nii", oblique())
    with pytest.warns(
        UserWarning,
        match=r"voxels of 0\.7×0\.9×3 mm, but the network learnt from 0\.7×0\.9×1\.5 mm",
    ):
        call(run_folder, tmp_path / "a.nii", "--out", tmp_path / "out")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("{run}", "{in}", "--stride", 16, 17, 8),
            "--stride 16 17 8 leaves gaps between windows of 32 16 16",
        ),
        (("{run}/last.pth", "{in}", "--checkpoint", "best"), "--checkpoint best"),
        (("{run}", "{in}", "--checkpoint", "300"), "kept steps: none"),
        (("{run}", "{in}", "--network", "teacher"), "holds no network 'teacher'"),
        (("{in}", "{in}"), "no checkpoint yet"),
        (("{in}/a.nii", "{in}"), "damaged or not a checkpoint"),
        (("{run}", "{run}"), "no image in this folder"),
        (("{run}", "{in}/b.nii"), "no such file or folder"),
    ],
)
def test_a_wrong_command_line_is_told_before_anything_is_done(
    run_folder, tmp_path, arguments, message
):
    (tmp_path / "in").mkdir()
    write_image(tmp_path / "in" / "a.nii", oblique())
    names = {"run": run_folder, "in": tmp_path / "in"}
    with pytest.raises(UserError, match=message):
        call(*(str(argument).format(**names) for argument in arguments), "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_likeliest_class_is_argmax_of_equal_ones_the_first():
    prob = torch.from_numpy(
        np.random.default_rng(0).integers(0, 3, (4, 9, 8, 7)).astype(np.float32)
    )
    assert torch.equal(likeliest(prob).long(), prob.argmax(0))


def test_a_file_of_another_type_fails_by_itself(run_folder, tmp_path, capsys):
    (tmp_path / "a.txt").write_text("no image")
    with pytest.raises(SystemExit):
        call(run_folder, tmp_path / "a.txt", "--out", tmp_path / "out")
    assert re.search(r"a\.txt: not an image that can be read", capsys.readouterr().err)
