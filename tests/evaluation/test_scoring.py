"""The evaluation room and code/test_LA.py: files, numbers and messages, on a tiny run and tiny data
in LA's layout.
"""

import csv
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import SimpleITK
import small
import test_LA
import torch
from conftest import ROOT
from medpy.metric import binary
from scipy import ndimage

from dataloaders import dataset_class
from networks.vnet import VNet
from utils.errors import UserError
from utils.evaluation.evaluate import Protocol, evaluate
from utils.evaluation.scoring import EMPTY, slice_metrics, summarise
from utils.evaluation.writing import write_nifti
from utils.inference import mean_probability, sliding_window
from utils.metrics import METRICS
from utils.ops import largest_component

pytestmark = pytest.mark.usefixtures("one_thread")
SHAPE, PATCH, STRIDE = (36, 33, 20), (32, 32, 16), (18, 18, 4)
QUICK = ("--cases", "1", "--figures", "0", "--nifti", "0")


@pytest.fixture(autouse=True)
def coarse_figures(monkeypatch):
    """Figures are looked at in tests/figures; here they only have to be there."""
    monkeypatch.setattr("utils.figures.style.DPI", 50)


def ball(centre=(18, 16, 10), radius=7):
    return small.ball(SHAPE, centre, radius).astype(np.uint8)


# ------------------------------------------------------------------ evaluate


def run_evaluate(folder, predictions, labels, **options):
    """`evaluate` of given predictions; figures and label maps are off by default."""
    image = np.zeros(SHAPE, np.float32)
    queue = iter(predictions)
    cases = [(f"CASE{i}", image, label) for i, label in enumerate(labels)]
    protocol = Protocol(**{"class_names": ("ball",), "nifti": False, "formats": ()} | options)
    return evaluate(cases, lambda _: next(queue), folder, protocol, {"run": "here"})


def test_evaluate_scores_every_case_as_medpy_does(tmp_path, capsys):
    label = ball()
    predictions = [label, np.roll(label, 3, 0), ball(radius=5)]
    summary = run_evaluate(
        tmp_path, predictions, [label] * 3, formats=["png"], nifti=True, spacing=(0.5, 1, 2)
    )
    with open(tmp_path / "per_case.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["case"] for row in rows] == ["CASE0", "CASE1", "CASE2"]
    for metric, function in {
        "dice": binary.dc,
        "jaccard": binary.jc,
        "hd95": binary.hd95,
        "asd": binary.asd,
    }.items():
        expected = [function(pred, label) for pred in predictions]
        assert [float(row[metric]) for row in rows] == pytest.approx(expected, abs=1e-9)
        assert summary["mean"][metric]["mean"] == pytest.approx(np.mean(expected))
        assert summary["mean"][metric]["sd"] == pytest.approx(np.std(expected, ddof=1))
    assert [int(row["prediction_voxels"]) for row in rows] == [int(p.sum()) for p in predictions]
    saved = json.loads((tmp_path / "summary.json").read_text())
    assert saved == summary
    assert saved["run"] == "here"
    assert saved["cases"] == 3
    names = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()}
    per_case = {
        f"figures/CASE{i}{kind}.png" for i in range(3) for kind in ("", "_errors", "_surface")
    }
    per_case |= {f"nifti/CASE{i}_{kind}.nii.gz" for i in range(3) for kind in ("pred", "label")}
    assert names == {"per_case.csv", "summary.json", "summary.png"} | per_case

    printed = capsys.readouterr().out.splitlines()
    assert printed[0].split() == ["case", "Dice", "%", "Jaccard", "%", "95HD", "ASD", "seconds"]
    assert printed[1].split()[:5] == ["CASE0", "100.00", "100.00", "0.00", "0.00"]
    dice = [100 * binary.dc(pred, label) for pred in predictions]
    assert f"{np.mean(dice):.2f} ± {np.std(dice, ddof=1):.2f}" in printed[4]
    # the columns stand under one another
    assert len({line.index(".") for line in printed[1:5]}) == 1
    assert str(tmp_path / "per_case.csv") in printed


def test_nothing_is_written_that_was_not_asked_for(tmp_path):
    run_evaluate(tmp_path, [ball()], [ball()])
    assert {p.name for p in tmp_path.iterdir()} == {"per_case.csv", "summary.json"}


@pytest.mark.parametrize(
    ("empty", "hd95"), [("zero", 0.0), ("nan", None), ("diagonal", float(np.linalg.norm(SHAPE)))]
)
def test_empty_predictions_are_counted_and_scored_as_said(tmp_path, capsys, empty, hd95):
    nothing, label = np.zeros(SHAPE, np.uint8), ball()
    shifted = np.roll(label, 2, 0)
    summary = run_evaluate(
        tmp_path, [nothing, shifted], [label, label], empty=empty, formats=["png"], nifti=True
    )
    saved = json.loads((tmp_path / "summary.json").read_text())
    assert saved["empty_predictions"] == 1
    assert saved["empty_references"] == 0
    other = binary.hd95(shifted, label)
    assert summary["mean"]["hd95"]["n"] == (1 if hd95 is None else 2)
    assert summary["mean"]["hd95"]["mean"] == pytest.approx(
        other if hd95 is None else (hd95 + other) / 2
    )
    assert summary["mean"]["dice"]["mean"] == pytest.approx(binary.dc(shifted, label) / 2)
    printed = capsys.readouterr().out
    assert f"1 empty predictions, 0 empty references: {saved['empty']}" in printed


def test_a_run_that_predicts_nothing_still_reports(tmp_path, capsys):
    nothing = np.zeros(SHAPE, np.uint8)
    summary = run_evaluate(tmp_path, [nothing], [ball()], empty="nan", formats=["png"])
    saved = json.loads((tmp_path / "summary.json").read_text())  # NaN would be no JSON
    assert saved["mean"]["hd95"] == {"mean": None, "sd": None, "n": 0}
    assert np.isnan(summary["mean"]["hd95"]["mean"])
    assert saved["mean"]["dice"] == {"mean": 0, "sd": None, "n": 1}
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[1][:5] == ["CASE0", "0.00", "0.00", "-", "-"]


def test_classes_are_averaged_within_a_case_first(tmp_path, capsys):
    labels = [ball(centre=(10, 16, 10)) + 2 * ball(centre=(26, 16, 10))] * 2
    predictions = [labels[0], np.where(labels[0] == 2, 0, labels[0])]
    summary = run_evaluate(
        tmp_path, predictions, labels, class_names=("atrium", "scar"), formats=["png"]
    )
    assert summary["classes"]["atrium"]["dice"] == {"mean": 1, "sd": 0, "n": 2}
    assert summary["classes"]["scar"]["dice"] == {
        "mean": 0.5,
        "sd": pytest.approx(0.5**0.5),
        "n": 2,
    }
    assert summary["mean"]["dice"] == {"mean": 0.75, "sd": pytest.approx(0.5**0.5 / 2), "n": 2}
    assert summary["empty_predictions"] == 1
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["CASE1", "scar", "0.00"] in [line[:3] for line in lines]
    means = {line[3]: line[4] for line in lines if line[:3] == ["mean", "±", "sd"]}
    assert means == {"atrium": "100.00", "scar": "50.00", "mean": "75.00"}


def test_the_metrics_asked_for_are_shown(tmp_path, capsys):
    label = ball()
    pred = np.roll(label, 3, 0)
    run_evaluate(tmp_path, [pred], [label], metrics=("recall", "hd", "assd"))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["case", "Recall", "%", "HD", "ASSD", "seconds"]
    shown = [binary.recall(pred, label) * 100, binary.hd(pred, label), binary.assd(pred, label)]
    assert lines[1].split()[1:4] == [f"{value:.2f}" for value in shown]
    assert "1 cases; HD and ASSD in voxels; sd" in lines[3]
    with open(tmp_path / "per_case.csv", newline="") as file:
        assert set(METRICS) < next(csv.DictReader(file)).keys()


@pytest.mark.parametrize("slices", [False, True])
def test_figures_are_those_that_apply_in_the_formats_asked_for(tmp_path, capsys, slices):
    run_evaluate(tmp_path, [ball()], [ball()], formats=("pdf", "svg"), slices=slices)
    kinds = ("", "_errors") if slices else ("", "_errors", "_surface")
    drawn = {path.name for path in (tmp_path / "figures").iterdir()}
    assert drawn == {f"CASE0{kind}.{ending}" for kind in kinds for ending in ("pdf", "svg")}
    printed = capsys.readouterr().out.splitlines()
    assert all(str(tmp_path / f"summary.{ending}") in printed for ending in ("pdf", "svg"))


def test_results_of_an_earlier_call_are_removed(tmp_path):
    run_evaluate(tmp_path, [ball()] * 2, [ball()] * 2, formats=("png", "pdf"), nifti=True)
    own = [
        tmp_path / "certain.csv",
        tmp_path / "figures" / "notes.txt",
        tmp_path / "nifti" / "mine.nrrd",
    ]
    for path in own:
        path.touch()

    def segment(image):
        assert {path for path in tmp_path.rglob("*") if path.is_file()} == set(own)
        return ball()

    protocol = Protocol(("ball",), formats=())
    evaluate([("CASE9", np.zeros(SHAPE), ball())], segment, tmp_path, protocol, {})
    left = {path for path in tmp_path.rglob("*") if path.is_file()} - set(own)
    assert {str(path.relative_to(tmp_path)) for path in left} == {
        "per_case.csv",
        "summary.json",
        "nifti/CASE9_pred.nii.gz",
        "nifti/CASE9_label.nii.gz",
    }


def test_slice_metrics_average_the_slices_that_show_the_class():
    pred, label = np.zeros((8, 8, 4), np.uint8), np.zeros((8, 8, 4), np.uint8)
    label[2:4, 2:4, 0] = pred[2:4, 2:4, 0] = 1  # right: Dice 1, HD 0
    label[2:4, 2:4, 1] = pred[2:4, 5:7, 1] = 1  # beside it: Dice 0, HD 3
    pred[2:4, 2:4, 2] = 1  # nothing there; in slice 3 neither has anything, in none class 2
    scores = slice_metrics(pred, label, 3, empty="nan")
    assert scores[1]["dice"] == pytest.approx(1 / 3)
    assert scores[1]["hd"] == pytest.approx(1.5)
    assert np.isnan(scores[2]["dice"])


def test_evaluate_needs_a_case(tmp_path):
    with pytest.raises(UserError, match="no case"):
        run_evaluate(tmp_path, [], [])


def test_summarise_one_case_has_no_sd():
    row = dict.fromkeys(METRICS, 0.5) | {
        "case": "A",
        "class_name": "x",
        "prediction_voxels": 1,
        "reference_voxels": 1,
    }
    found = summarise([row | {"seconds": 1.0}])["mean"]["dice"]
    assert (found["mean"], found["n"]) == (0.5, 1)
    assert np.isnan(found["sd"])


def test_nifti_keeps_axes_and_spacing(tmp_path):
    labels = np.random.default_rng(0).integers(0, 4, (5, 6, 7))
    write_nifti(tmp_path / "a.nii.gz", labels, (0.5, 1.0, 2.5))
    image = SimpleITK.ReadImage(str(tmp_path / "a.nii.gz"))
    assert image.GetSize() == (5, 6, 7)
    assert image.GetSpacing() == (0.5, 1.0, 2.5)
    assert image.GetPixelID() == SimpleITK.sitkUInt8
    assert all(
        image.GetPixel(*map(int, index)) == labels[tuple(index)]
        for index in np.ndindex(labels.shape)
    )
    write_nifti(tmp_path / "a.nii.gz", labels)  # written over, whole
    assert SimpleITK.ReadImage(str(tmp_path / "a.nii.gz")).GetSpacing() == (1, 1, 1)
    assert [p.name for p in tmp_path.iterdir()] == ["a.nii.gz"]


@pytest.mark.parametrize("axes", [(0, 1, 2), (1, 0, 2)])
def test_nifti_is_x_y_z_of_volumes_and_of_stacks_of_slices(tmp_path, axes):
    label = ball(centre=(10, 16, 10))
    run_evaluate(
        tmp_path, [np.roll(label, 3, 0)], [label], nifti=True, axes=axes, spacing=(0.5, 1, 2)
    )
    for kind, labels in (("label", label), ("pred", np.roll(label, 3, 0))):
        image = SimpleITK.ReadImage(str(tmp_path / "nifti" / f"CASE0_{kind}.nii.gz"))
        assert image.GetSpacing() == tuple((0.5, 1, 2)[axis] for axis in axes)
        np.testing.assert_array_equal(
            SimpleITK.GetArrayFromImage(image).transpose(2, 1, 0), labels.transpose(axes)
        )


# ------------------------------------------------------------------ test_LA


@pytest.fixture
def place(tmp_path, tiny_la, monkeypatch):
    """The folder to be in: data in LA's layout below data/, and a run of two tested networks below
    runs/.
    """
    (tmp_path / "data").mkdir()
    tiny_la.rename(tmp_path / "data" / "LA")
    torch.manual_seed(0)
    nets = {name: VNet(n_filters=2).eval() for name in ("net", "twin")}
    with torch.no_grad():  # untrained, but half of the voxels in each class
        for net in nets.values():
            logits = net(torch.rand(1, 1, *PATCH))[0]
            net.heads[0].bias[1] -= (logits[1] - logits[0]).median()
    options = {"dataset": "LA", "root": None, "downsample": 1, "patch": list(PATCH), "labelnum": 1}
    checkpoint = {
        "step": 3,
        "last": 5,
        "args": options,
        "dataset": dataset_class("LA").description(),
        "test_networks": list(nets),
        "networks": {
            name: {"class": "networks.vnet.VNet", "kwargs": net.config}
            for name, net in nets.items()
        },
    }
    folder = tmp_path / "runs" / "LA" / "coranet_16" / "seed1337"
    folder.mkdir(parents=True)
    (folder / "args.json").write_text(json.dumps(options))
    torch.save(
        checkpoint | {name: net.state_dict() for name, net in nets.items()}, folder / "last.pth"
    )
    monkeypatch.chdir(tmp_path)
    return folder, list(nets.values())


def call(*argv):
    """Test on the CPU."""
    test_LA.main(["--gpu", "-1", *argv])


def test_script_alone_does_the_whole_job(place, script):
    folder, networks = place
    done = script("test_LA.py", "--gpu", "-1", "--precision", "fp32")
    assert done.returncode == 0, done.stderr
    out = folder / "test" / "last_fp32"
    assert "step 3 of 5" in done.stdout
    for name in ("per_case.csv", "summary.json", "summary.png"):
        assert str((out / name).relative_to(Path.cwd())) in done.stdout
        assert (out / name).is_file()
    with open(out / "per_case.csv", newline="") as file:
        assert [row["case"] for row in csv.DictReader(file)] == ["CASE06", "CASE07"]
    assert (out / "figures" / "CASE06.png").is_file()

    # The prediction is that of the pieces put together by hand.
    with h5py.File("data/LA/2018LA_Seg_Training Set/CASE06/mri_norm2.h5") as file:
        image, label = file["image"][:], file["label"][:]
    prob = sliding_window(mean_probability(networks), image, PATCH, STRIDE, 2, activation=None)
    expected = largest_component(prob.argmax(0)[None], 2)[0].numpy()
    for kind, array in (("pred", expected), ("label", label)):
        stored = SimpleITK.GetArrayFromImage(
            SimpleITK.ReadImage(str(out / "nifti" / f"CASE06_{kind}.nii.gz"))
        )
        assert (stored.transpose(2, 1, 0) == array).mean() > 0.999


def test_script_records_how_the_numbers_came_about(place):
    folder, _ = place
    call(
        "--cases",
        "1",
        "--nms",
        "0",
        "--stride",
        "4",
        "8",
        "4",
        "--precision",
        "fp32",
        "--figures",
        "0",
        "--nifti",
        "0",
    )
    out = folder / "test" / "last_nms0_stride4-8-4_fp32_cases1"
    assert {p.name for p in out.iterdir()} == {"per_case.csv", "summary.json"}
    assert not (folder / "test" / "last").exists()
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["cases"], summary["listed_cases"], summary["step"], summary["last_step"]) == (
        1,
        2,
        3,
        5,
    )
    assert summary["selection"] == "the run is unfinished"
    assert summary["test"]["stride"] == [4, 8, 4]
    assert summary["test"]["precision"] == "fp32"
    assert summary["trained"]["patch"] == list(PATCH)
    assert {
        key: summary["test"][key] for key in ("method", "labelnum", "seed", "dataset", "runs")
    } == {
        "method": "coranet",
        "labelnum": 16,
        "seed": 1337,
        "dataset": "LA",
        "runs": "runs",
    }
    assert {"commit", "torch", "devices"} <= summary["environment"].keys()
    assert summary["mean"]["dice"]["sd"] is None


def test_nms_keeps_one_component(place):
    folder, _ = place
    for nms in "10":
        call("--nms", nms, "--cases", "1", "--precision", "fp32", "--figures", "0")
    kept, whole = (
        SimpleITK.GetArrayFromImage(
            SimpleITK.ReadImage(str(folder / "test" / tag / "nifti" / "CASE06_pred.nii.gz"))
        )
        for tag in ("last_fp32_cases1", "last_nms0_fp32_cases1")
    )
    structure = np.ones((3, 3, 3))
    assert ndimage.label(whole, structure)[1] > 1
    assert ndimage.label(kept, structure)[1] == 1


def test_one_network_can_be_tested_alone(place):
    folder, _ = place
    dice = {}
    for name in ("net", "twin"):
        call(
            "--network",
            name,
            "--cases",
            "1",
            "--precision",
            "fp32",
            "--figures",
            "0",
            "--nifti",
            "0",
        )
        summary = json.loads(
            (folder / "test" / f"last_{name}_fp32_cases1" / "summary.json").read_text()
        )
        dice[name] = summary["mean"]["dice"]["mean"]
    assert len(set(dice.values())) == 2


def test_batch_moves_no_number(place):
    folder, _ = place
    dice = []
    for batch in ("1", "3"):
        call(
            "--batch",
            batch,
            "--cases",
            "1",
            "--precision",
            "fp32",
            "--figures",
            "0",
            "--nifti",
            "0",
        )
        summary = json.loads((folder / "test" / "last_fp32_cases1" / "summary.json").read_text())
        dice.append(summary["mean"]["dice"]["mean"])
    assert dice[0] == pytest.approx(dice[1], abs=1e-3)


def test_run_and_root_name_other_folders(place, tmp_path):
    folder, _ = place
    folder.rename(tmp_path / "elsewhere")
    (tmp_path / "data").rename(tmp_path / "moved")
    call("--run", "elsewhere", "--root", "moved/LA", *QUICK)
    tag = root_tag("moved/LA")
    assert written(tmp_path / "elsewhere") == {f"last_{tag}_cases1"}
    (out,) = (tmp_path / "elsewhere" / "test").iterdir()
    said = json.loads((out / "summary.json").read_text())["test"]
    assert (said["run"], said["root"]) == ("elsewhere", "moved/LA")
    assert not said.keys() & {
        "method",
        "labelnum",
        "seed",
        "dataset",
        "runs",
    }  # of no run, or of another
    with pytest.raises(UserError, match="data/LA"):
        call("--run", "elsewhere", *QUICK)


def test_only_another_root_than_the_recorded_one_moves_a_number(place):
    folder, _ = place
    call(
        "--root", "../" + Path.cwd().name + "/data/LA", *QUICK
    )  # where no root is recorded: the data set's usual one
    assert written(folder) == {"last_cases1"}
    Path("data").rename("moved")
    remake(folder / "last.pth", lambda c: c["args"].update(root="moved/LA"))
    call("--root", "moved/LA", *QUICK)
    assert written(folder) == {"last_cases1"}
    others = ["cleaned/LA", "cleaned/twice/LA"]
    for other in others:
        shutil.copytree("moved/LA", other)
        call("--root", other, "--precision", "bf16", *QUICK)
    tags = {f"last_{root_tag(other)}_bf16_cases1" for other in others}
    assert len(tags) == 2
    assert written(folder) == {"last_cases1"} | tags


def test_the_recorded_root_is_that_of_the_training_wherever_one_tests(place, tmp_path, monkeypatch):
    folder, _ = place
    Path("far").mkdir()
    Path("runs").rename("far/runs")
    Path("runs").symlink_to("far/runs")  # as where runs are kept on another disk
    shutil.copytree("data", "elsewhere/data")
    monkeypatch.chdir("elsewhere")
    call("--runs", "../runs", "--root", "../data/LA", *QUICK)
    assert written(folder) == {"last_cases1"}
    call("--runs", "../runs", "--root", "data/LA", *QUICK)  # of the recorded name, but other data
    assert written(folder) == {"last_cases1", f"last_{root_tag('data/LA')}_cases1"}


def test_a_usual_stride_beyond_the_patch_is_clamped(place):
    folder, _ = place
    remake(folder / "last.pth", lambda c: c["args"].update(patch=[16, 32, 16]))
    call(*QUICK)
    assert json.loads((folder / "test" / "last_cases1" / "summary.json").read_text())["test"][
        "stride"
    ] == [16, 18, 4]


def test_half_resolution_halves_volumes_and_strides_and_doubles_the_spacing(place):
    folder, _ = place
    remake(folder / "last.pth", lambda c: c["args"].update(downsample=2, patch=[16, 32, 16]))
    call("--cases", "1", "--figures", "0")
    out = folder / "test" / "last_cases1"
    assert json.loads((out / "summary.json").read_text())["test"]["stride"] == [9, 9, 2]
    with h5py.File("data/LA/2018LA_Seg_Training Set/CASE06/mri_norm2.h5") as file:
        shape = file["image"].shape
    for kind in ("pred", "label"):
        image = SimpleITK.ReadImage(str(out / "nifti" / f"CASE06_{kind}.nii.gz"))
        assert image.GetSize() == tuple(extent // 2 for extent in shape)
        assert image.GetSpacing() == (1.25, 1.25, 1.25)


def test_how_empty_masks_score_is_an_option(place):
    folder, _ = place
    with h5py.File("data/LA/2018LA_Seg_Training Set/CASE06/mri_norm2.h5", "r+") as file:
        file["label"][...] = 0
    means = {}
    for empty in ("zero", "nan"):
        call("--empty", empty, *QUICK)
        tag = "last_cases1" if empty == "zero" else "last_nan_cases1"
        summary = json.loads((folder / "test" / tag / "summary.json").read_text())
        means[empty] = summary["mean"]["hd95"]
        assert (summary["empty_references"], summary["empty"]) == (1, EMPTY[empty])
    assert means == {
        "zero": {"mean": 0, "sd": None, "n": 1},
        "nan": {"mean": None, "sd": None, "n": 0},
    }


def test_a_metric_named_twice_is_shown_once(place, capsys):
    call("--metrics", "hd", "dice", "hd", *QUICK)
    header = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("case"))
    assert header.split() == ["case", "HD", "Dice", "%", "seconds"]


def test_a_checkpoint_is_the_last_or_a_step(place, capsys):
    with pytest.raises(SystemExit) as stop:
        call("--checkpoint", "first")
    assert stop.value.code == 2
    assert "first is not last, best or a step's number" in capsys.readouterr().err


def root_tag(root):
    root = Path(root).resolve()
    return f"root-{root.name}-{hashlib.sha256(str(root).encode()).hexdigest()[:6]}"


def written(folder):
    return {path.name for path in (folder / "test").iterdir()}


def remake(path, change):
    checkpoint = torch.load(path, weights_only=True)
    change(checkpoint)
    torch.save(checkpoint, path)


def other_architecture(checkpoint):
    checkpoint["networks"]["net"]["kwargs"]["n_filters"] = 4


@pytest.mark.parametrize(
    ("argv", "damage", "message"),
    [
        (["--seed", "1"], None, r"seed1: no such run.*coranet_16/seed1337"),
        (["--method", "dtml", "--labelnum", "8"], None, r"dtml_8/seed1337: no such run"),
        ([], lambda f: (f / "last.pth").unlink(), "no checkpoint yet"),
        ([], lambda f: (f / "last.pth").write_bytes(b""), "damaged"),
        ([], lambda f: remake(f / "last.pth", other_architecture), "another architecture"),
        (
            [],
            lambda f: remake(f / "last.pth", lambda c: c["args"].update(dataset="ACDC")),
            r"code/test_ACDC\.py",
        ),
        ([], lambda f: Path("data/LA/test.list").unlink(), r"test\.list"),
        ([], lambda f: Path("data/LA/test.list").write_text("CASE00\n"), "CASE00"),
        (["--root", "nowhere"], None, "nowhere: no such folder"),
        (
            ["--stride", "18", "18", "20"],
            None,
            "--stride 18 18 20 leaves gaps between windows of 32 32 16",
        ),
    ],
)
def test_wrong_input_is_told_in_one_line(place, argv, damage, message):
    folder, _ = place
    if damage is not None:
        damage(folder)
    with pytest.raises(UserError, match=message) as raised:
        call(*argv)
    assert "\n" not in str(raised.value)
    assert not (folder / "test").exists()


def test_wrong_input_ends_with_status_2_and_no_traceback(place, script):
    done = script("test_LA.py", "--seed", "1")
    assert done.returncode == 2
    assert done.stderr.startswith("test_LA.py: runs/LA/coranet_16/seed1: no such run")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("lines", [1, 10000], ids=["at the end", "on the way"])
def test_a_closed_pipe_ends_quietly(lines):
    code = (
        f"from utils import command; command.run(lambda: print(*['a line'] * {lines}, sep='\\n'))"
    )
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-c", code], stdout=write, stderr=subprocess.PIPE, cwd=ROOT, check=False
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (141, b"")


def test_a_network_that_diverged_is_told(place):
    folder, _ = place
    remake(folder / "last.pth", lambda c: c["net"]["heads.0.bias"].fill_(float("nan")))
    with pytest.raises(UserError, match="not finite"):
        call("--cases", "1")
