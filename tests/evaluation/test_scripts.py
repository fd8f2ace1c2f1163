"""The test scripts beside test_LA.py, and assess_coranet.py: hand-made loops and numbers on tiny
data.
"""

import csv
import importlib
import json
from pathlib import Path
from types import SimpleNamespace

import assess_coranet
import h5py
import numpy as np
import pytest
import SimpleITK
import torch
from medpy.metric import binary
from small import slices_by_scipy

from dataloaders import dataset_class
from networks.unet import UNet
from networks.vnet import VNet
from utils.errors import UserError
from utils.inference import mean_probability, sliding_window, whole_image
from utils.ops import largest_component_reference

pytestmark = pytest.mark.usefixtures("one_thread")
PATCH = {2: [32, 16], 3: [16, 32, 16]}


# of each data set: list files and their cases, where a case stands, the file's axes that X, Y and Z
# are, dimensions
LAYOUT = {
    "ACDC": (
        {
            "train_slices.list": ["patient1_frame01_slice_1", "patient2_frame01_slice_1"],
            "val.list": ["patient3_frame01"],
            "test.list": ["patient4_frame01", "patient5_frame01"],
        },
        (1, 2, 0),
        2,
    ),
    "BraTS2019": (
        {"train.txt": ["A", "B"], "val.txt": ["C"], "test.txt": ["D", "E"]},
        (0, 1, 2),
        3,
    ),
    "Pancreas": (
        {"train_lab.txt": ["A"], "train_unlab.txt": ["B"], "test.txt": ["D", "E"]},
        (0, 1, 2),
        3,
    ),
    "Pancreas2d": (
        {"train_lab.txt": ["A"], "train_unlab.txt": ["B"], "test.txt": ["D", "E"]},
        (1, 0, 2),
        2,
    ),
    "endocardium": ({"train.list": ["A", "B"], "test.list": ["D", "E"]}, (1, 2, 0), 2),
}
QUICK = ("--figures", "0", "--nifti", "0", "--precision", "fp32")


def write_data(name, root):
    """Two training and two test cases, all classes in each."""
    lists, _, _ = LAYOUT[name]
    rng = np.random.default_rng(0)
    for file, cases in lists.items():
        root.mkdir(parents=True, exist_ok=True)
        (root / file).write_text("\n".join(cases) + "\n")
        for case in cases:
            folder = root if name.startswith("Pancreas") else root / "data"
            folder = folder / "slices" if "_slice_" in case else folder
            folder.mkdir(parents=True, exist_ok=True)
            shape = (20, 18) if "_slice_" in case else (20, 18, 17)
            blocks = rng.integers(
                0, 4 if name == "ACDC" else 2, [-(-s // 6) for s in shape], dtype=np.uint8
            )
            label = np.kron(blocks, np.ones([6] * len(shape), np.uint8))[
                tuple(slice(s) for s in shape)
            ]
            with h5py.File(folder / f"{case}.h5", "w") as h5:
                h5["image"] = (label + rng.normal(size=shape)).astype(np.float32)
                h5["label"] = label


def write_run(name, branches=1, labelnum=1):
    """An untrained network with about as many voxels in each class, as a run of that data set;
    returns both.
    """
    dims, classes = LAYOUT[name][2], 4 if name == "ACDC" else 2
    torch.manual_seed(0)
    options = {"num_classes": classes, "n_filters": 2, "branches": branches}
    net = (UNet(**options) if dims == 2 else VNet(**options)).eval()
    with torch.no_grad():
        for head in net.heads:
            last = head if branches == 1 else head[-1]
            last.weight *= 20
            logits = net.decode(net.encode(torch.rand(1, 1, *PATCH[dims])))
            last.bias -= head(logits).transpose(0, 1).flatten(1).median(1).values
    trained = {
        "dataset": name,
        "root": None,
        "downsample": 1,
        "patch": PATCH[dims],
        "labelnum": labelnum,
    }
    folder = Path("runs") / name / "supervised_1" / "seed1337"
    folder.mkdir(parents=True)
    spec = {"class": f"{type(net).__module__}.{type(net).__name__}", "kwargs": net.config}
    checkpoint = {
        "step": 2,
        "last": 2,
        "args": trained,
        "dataset": dataset_class(name).description(),
        "test_networks": ["net"],
        "networks": {"net": spec},
    }
    torch.save(checkpoint | {"net": net.state_dict()}, folder / "last.pth")
    return folder, net


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A function that makes data and a run below the current folder."""
    monkeypatch.chdir(tmp_path)

    def make(name, **options):
        write_data(name, tmp_path / "data" / name)
        return write_run(name, **options)

    return make


def call(script, *argv):
    """Call a script's `main` on the CPU."""
    options = ["--method", "supervised", "--labelnum", "1", "--gpu", "-1", *argv]
    importlib.import_module(script).main(options)


def written(folder):
    return {path.name for path in (folder / "test").iterdir()}


def table(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def nifti(folder, case, kind):
    """As SimpleITK reads it: `(z, y, x)`."""
    return SimpleITK.GetArrayFromImage(
        SimpleITK.ReadImage(str(folder / "nifti" / f"{case}_{kind}.nii.gz"))
    )


def case_of(name, case):
    """Image and label as `(X, Y, Z)`."""
    folder = Path("data") / name / ("" if name.startswith("Pancreas") else "data")
    with h5py.File(folder / f"{case}.h5") as file:
        return tuple(file[key][:].transpose(LAYOUT[name][1]) for key in ("image", "label"))


def test_acdc_is_scored_class_by_class_on_whole_volumes(place, capsys):
    folder, net = place("ACDC")
    call("test_ACDC", "--precision", "fp32")
    out = folder / "test" / "last_fp32"
    summary = json.loads((out / "summary.json").read_text())
    rows = table(out / "per_case.csv")
    assert [(row["case"], row["class_name"]) for row in rows] == [
        (case, name)
        for case in ("patient4_frame01", "patient5_frame01")
        for name in ("RV", "Myo", "LV")
    ]
    dice = []
    for case in ("patient4_frame01", "patient5_frame01"):
        image, label = case_of("ACDC", case)
        pred = slices_by_scipy(net, image, PATCH[2])
        np.testing.assert_array_equal(nifti(out, case, "pred").transpose(1, 2, 0), pred)
        np.testing.assert_array_equal(
            nifti(out, case, "label"), label.transpose(2, 0, 1)
        )  # as the file has it
        dice.append([binary.dc(pred == c, label == c) for c in (1, 2, 3)])
        own = [row for row in rows if row["case"] == case]
        assert [float(row["dice"]) for row in own] == pytest.approx(dice[-1])
        assert [float(row["hd95"]) for row in own] == pytest.approx(
            [binary.hd95(pred == c, label == c) for c in (1, 2, 3)]
        )
    assert min(map(min, dice)) > 0
    dice = np.array(dice)
    assert summary["mean"]["dice"]["mean"] == pytest.approx(dice.mean())
    assert summary["mean"]["dice"]["sd"] == pytest.approx(dice.mean(1).std(ddof=1))
    for c, name in enumerate(("RV", "Myo", "LV")):
        assert summary["classes"][name]["dice"]["mean"] == pytest.approx(dice[:, c].mean())
    assert (summary["scored"], summary["test"]["nms"], summary["list"]) == (
        "whole volumes",
        0,
        "the test list",
    )
    assert (out / "figures" / "patient4_frame01.png").is_file()
    printed = capsys.readouterr().out
    assert [f"mean ± sd{'':13}{name}" in printed for name in ("RV", "Myo", "LV", "mean")] == [
        True
    ] * 4
    assert "0 empty predictions, 0 empty references of 6 masks" in printed


def test_options_of_acdc_have_their_effect(place, capsys):
    folder, _ = place("ACDC")
    quick = (*QUICK, "--cases", "1")
    call("test_ACDC", *quick)
    call("test_ACDC", *quick, "--nms", "1")
    call("test_ACDC", *QUICK, "--split", "val", "--metrics", "precision", "hd")
    assert written(folder) == {"last_fp32_cases1", "last_nms1_fp32_cases1", "last_val_fp32"}
    printed = capsys.readouterr().out
    assert "scored on the validation list" in printed
    assert "Precision %" in printed
    assert "1 cases; HD in voxels" in printed
    whole, kept, val = (
        folder / "test" / tag
        for tag in ("last_fp32_cases1", "last_nms1_fp32_cases1", "last_val_fp32")
    )
    voxels = [
        sum(int(row["prediction_voxels"]) for row in table(path / "per_case.csv"))
        for path in (whole, kept)
    ]
    assert 0 < voxels[1] < voxels[0]
    assert {row["case"] for row in table(val / "per_case.csv")} == {"patient3_frame01"}
    assert json.loads((val / "summary.json").read_text())["list"] == "the validation list"


@pytest.mark.parametrize(
    ("name", "stride", "columns", "unit", "scored"),
    [
        ("BraTS2019", [16, 32, 16], "Dice Jaccard 95HD ASD", "voxels", "whole volumes"),
        ("Pancreas", [16, 16, 4], "Dice Jaccard 95HD ASD", "voxels", "whole volumes"),
        ("Pancreas2d", None, "Dice Precision Recall HD", "voxels", "whole volumes"),
        (
            "endocardium",
            None,
            "Dice Precision Recall HD",
            "pixels",
            "slices, then their mean in each case",
        ),
    ],
)
def test_each_script_has_its_protocol(name, stride, columns, unit, scored, place, capsys):
    folder, net = place(name)
    call(f"test_{name}", *QUICK)
    summary = json.loads((folder / "test" / "last_fp32" / "summary.json").read_text())
    assert (summary["test"]["stride"], summary["test"]["nms"], summary["scored"]) == (
        stride,
        0,
        scored,
    )
    lines = capsys.readouterr().out.splitlines()
    assert f" in {unit}; sd" in next(line for line in lines if line.startswith("2 cases; "))
    assert summary["units"]["hd"] == unit
    header = next(line for line in lines if line.startswith("case"))
    assert header.replace("%", "").split() == ["case", *columns.split(), "seconds"]

    image, label = case_of(name, "D")
    if stride:
        pred = (
            sliding_window(mean_probability([net]), image, PATCH[3], stride, 2, activation=None)
            .argmax(0)
            .numpy()
        )
    else:
        pred = slices_by_scipy(net, image, PATCH[2])
    expected = binary.dc(pred, label)
    if name == "endocardium":
        shown = [k for k in range(label.shape[2]) if pred[..., k].any() or label[..., k].any()]
        both = [(pred[..., k], label[..., k]) for k in shown]
        expected = np.mean([binary.dc(p, t) for p, t in both])
        distance = np.mean([binary.hd(p, t) if p.any() and t.any() else 0 for p, t in both])
        assert float(
            table(folder / "test" / "last_fp32" / "per_case.csv")[0]["hd"]
        ) == pytest.approx(distance)
    assert float(table(folder / "test" / "last_fp32" / "per_case.csv")[0]["dice"]) == pytest.approx(
        expected, abs=1e-3
    )


def test_slices_that_are_no_neighbours_keep_a_component_each(place):
    folder, net = place("endocardium")
    call("test_endocardium", "--figures", "0", "--precision", "fp32", "--cases", "1", "--nms", "1")
    pred = slices_by_scipy(net, case_of("endocardium", "D")[0], PATCH[2]).transpose(2, 0, 1)
    whole, slices = (torch.from_numpy(pred)[index] for index in (None, np.s_[:, None]))
    expected = [largest_component_reference(one, 2)[0].numpy() for one in slices]
    np.testing.assert_array_equal(
        nifti(folder / "test" / "last_nms1_fp32_cases1", "D", "pred"), expected
    )
    assert (expected != largest_component_reference(whole, 2)[0].numpy()).any()


def test_pancreas_at_mc_nets_stride(place):
    folder, _ = place("Pancreas")
    call("test_Pancreas", *QUICK, "--stride", "16", "16", "16")
    assert written(folder) == {"last_stride16-16-16_fp32"}


@pytest.mark.parametrize(
    ("trained", "script", "argv", "message"),
    [
        (
            "ACDC",
            "test_LA",
            ["--dataset", "LA"],
            r"trained on ACDC; test it with code/test_ACDC\.py",
        ),
        (
            "BraTS2019",
            "test_ACDC",
            [],
            r"trained on BraTS2019; test it with code/test_BraTS2019\.py",
        ),
        (
            "phantom2d",
            "test_Pancreas",
            [],
            r"trained on phantom2d; test it with code/test_ACDC\.py",
        ),
        ("phantom", "test_Pancreas", [], r"trained on phantom; test it with code/test_LA\.py"),
        ("Pancreas2d", "assess_coranet", [], "no conservative and radical branch"),
        (
            "Pancreas2d",
            "assess_coranet",
            ["--stride", "4", "4", "4"],
            "--stride: Pancreas2d is predicted slice by slice",
        ),
    ],
)
def test_a_run_of_another_kind_is_told(trained, script, argv, message, place):
    name = "ACDC" if trained.startswith("phantom") else trained
    folder, _ = place(name)
    checkpoint = torch.load(folder / "last.pth", weights_only=True)
    checkpoint["args"]["dataset"] = trained
    torch.save(checkpoint, folder / "last.pth")
    with pytest.raises(UserError, match=message) as raised:
        call(script, "--run", str(folder), *argv)
    assert "\n" not in str(raised.value)
    assert not (folder / "test").exists()


# ------------------------------------------------------------------ assess


def test_measures_by_hand():
    measure = assess_coranet.measure
    pred = torch.tensor([[1, 1, 0, 2, 2, 0, 1]])
    label = torch.tensor([[1, 2, 1, 2, 2, 0, 1]])
    certain = torch.tensor([[True, True, True, True, True, True, False]])
    rows = measure(pred, label, certain, 3)
    region = {"certain": 6 / 7, "certain_voxels": 6, "voxels": 7}
    one = {"PPV": 1 / 2, "TPR": 1 / 3, "CSI": 1 / 4, "TP": 1, "FP": 1, "FN": 2}
    two = {"PPV": 1.0, "TPR": 2 / 3, "CSI": 2 / 3, "TP": 2, "FP": 0, "FN": 1}
    assert rows == {1: one | region, 2: two | region}
    nothing = measure(pred, label, torch.zeros_like(certain), 3)[1]
    assert nothing["certain"] == nothing["TPR"] == nothing["CSI"] == 0
    assert np.isnan(nothing["PPV"])


def ppv_tpr_csi(pred, label, assigned, foreground):
    """IV-C.1, written from the paper: a voxel without a label is neither tp nor fp, and missed
    where it is foreground.
    """
    said, true = pred == foreground, label == foreground
    tp = (assigned & said & true).sum()
    fp = (assigned & said & ~true).sum()
    fn = (true & ~(assigned & said)).sum()
    return {"PPV": tp / (tp + fp), "TPR": tp / (tp + fn), "CSI": tp / (tp + fp + fn)}


@pytest.mark.parametrize("classes", [2, 4])
def test_measures_are_those_of_the_paper(classes):
    rng = np.random.default_rng(0)
    pred, label = rng.integers(0, classes, (2, 6, 5, 4))
    certain = rng.random(label.shape) < 0.7
    rows = assess_coranet.measure(*map(torch.from_numpy, (pred, label, certain)), classes)
    for c, row in rows.items():
        expected = ppv_tpr_csi(pred, label, certain, c)
        assert {name: row[name] for name in expected} == pytest.approx(expected)


def fake_test(prob, **trained):
    """A test whose network gives these probabilities `(2, 4)` of each branch for a slice of 1×4."""

    def network(x):
        return tuple(torch.tensor(p).log().view(1, 2, 1, 4) for p in prob)

    network.segment = lambda x: network(x)[0]
    return SimpleNamespace(
        networks=[network],
        trained=trained,
        num_classes=2,
        patch=(1, 4),
        stride=None,
        options={},
    )


NORMAL = [[0.6, 0.3, 0.1, 0.05], [0.4, 0.7, 0.9, 0.95]]


def lists(regions):
    return {name: region.flatten().int().tolist() for name, region in regions.items()}


def test_regions_are_where_branches_agree_or_softmax_is_large():
    con = [[0.9, 0.9, 0.2, 0.1], [0.1, 0.1, 0.8, 0.9]]
    rad = [[0.8, 0.4, 0.1, 0.1], [0.2, 0.6, 0.9, 0.9]]
    test = fake_test((NORMAL, con, rad))
    pred, certain = assess_coranet.regions(test, np.zeros((1, 4, 1), np.float32))
    assert pred.flatten().tolist() == [0, 1, 1, 1]
    assert lists(certain) == {
        "coranet": [1, 0, 1, 1],
        "softmax 0.5": [1, 1, 1, 1],
        "softmax 0.7": [0, 0, 1, 1],
        "softmax 0.9": [0, 0, 0, 1],
    }


def test_the_region_of_another_measure_is_found_as_in_its_training():
    trained = {"uncertainty": "softmax", "certain_confidence": 0.65, "seed": 0}
    test = fake_test([NORMAL], **trained)
    pred, certain = assess_coranet.regions(test, np.zeros((1, 4, 1), np.float32))
    assert pred.flatten().tolist() == [0, 1, 1, 1]
    found = lists(certain)
    assert list(found) == ["softmax 0.65", "softmax 0.5", "softmax 0.7", "softmax 0.9"]
    assert found["softmax 0.65"] == [0, 1, 1, 1]


@pytest.mark.parametrize("name", ["ACDC", "Pancreas"])
def test_assess_writes_the_table(name, place, capsys):
    folder, net = place(name, branches=3)
    call("assess_coranet", "--run", str(folder), "--precision", "fp32")
    out = folder / "test" / "last_fp32"
    printed = capsys.readouterr().out
    assert str(out / "certain.csv") in printed
    classes = net.config["num_classes"]
    rows, lines = table(out / "certain_per_case.csv"), table(out / "certain.csv")
    assert [line["region"] for line in lines] == [
        "coranet",
        "softmax 0.5",
        "softmax 0.7",
        "softmax 0.9",
    ]
    assert len(rows) == 4 * 2 * (classes - 1)

    case = rows[0]["case"]
    image, label = case_of(name, case)
    with torch.no_grad():
        predict = lambda x: torch.cat([logits.softmax(1) for logits in net(x)], 1)  # noqa: E731
        prob = whole_image(
            predict, image, PATCH[3 if name == "Pancreas" else 2], (16, 16, 4), 3 * classes
        ).numpy()
    pred, con, rad = (part.argmax(0) for part in np.split(prob, 3))
    certain, c = con == rad, classes - 1
    csi = ppv_tpr_csi(pred, label, certain, c)["CSI"]
    (row,) = (
        r
        for r in rows
        if (r["case"], r["region"]) == (case, "coranet") and r["class"] in ("LV", "pancreas")
    )
    assert 0 < csi < 1
    assert float(row["CSI"]) == pytest.approx(csi, abs=1e-3)
    assert float(row["certain"]) == pytest.approx(certain.mean(), abs=1e-3)
    by_case = {}
    for r in rows:
        if r["region"] == "coranet":
            by_case.setdefault(r["case"], []).append(float(r["PPV"]))
    assert float(lines[0]["PPV"]) == pytest.approx(
        np.mean([np.nanmean(values) for values in by_case.values()])
    )
    shares = [float(line["certain"]) for line in lines[1:]]
    assert shares == sorted(shares, reverse=True)
    recalls = [float(line["TPR"]) for line in lines[1:]]
    assert recalls == sorted(recalls, reverse=True)  # what is given no label is missed
    assert [line["of_training"] for line in lines] == ["1", "0", "0", "0"]
    assert f"{100 * float(lines[0]['CSI']):.2f} ±" in printed


def test_assess_on_training_cases_takes_the_unlabelled_and_leaves_the_test_list_alone(place):
    folder, _ = place("ACDC", branches=3)
    (Path("data") / "ACDC" / "test.list").unlink()
    call("assess_coranet", "--run", str(folder), "--split", "train")
    rows = table(folder / "test" / "last_train" / "certain_per_case.csv")
    assert {row["case"] for row in rows} == {"patient2_frame01_slice_1"}
    checkpoint = torch.load(folder / "last.pth", weights_only=True)
    checkpoint["args"]["labelnum"] = 2
    torch.save(checkpoint, folder / "last.pth")
    with pytest.raises(UserError, match="the label of every training case was seen"):
        call("assess_coranet", "--run", str(folder), "--split", "train")


def keep_steps(folder, steps, **trained):
    """Copies of a run's last checkpoint as steps that it kept, with other options of training."""
    checkpoint = torch.load(folder / "last.pth", weights_only=True)
    checkpoint["args"] |= trained
    for step in steps:
        torch.save(checkpoint | {"step": step}, folder / f"step_{step}.pth")


MEASURES = {
    "tta": {"views": "random", "looks": 2, "certain_confidence": 0.8},
    "mcdropout": {"looks": 2, "certain_confidence": 0.8},
    "aleatoric": {"looks": 2, "certain_sd": 0.001},
}


@pytest.mark.parametrize("kind", MEASURES)
def test_assess_all_kept_steps_of_another_measure(kind, place):
    folder, _ = place("Pancreas", branches=2 if kind == "aleatoric" else 1)
    options = dict.fromkeys(("views", "looks", "certain_confidence", "certain_sd"))
    options |= MEASURES[kind] | {"uncertainty": kind, "seed": 1337}
    keep_steps(folder, (1, 2), **options)
    call("assess_coranet", "--run", str(folder), "--checkpoint", "kept", "--cases", "1")
    assert written(folder) == {"step_1_cases1", "step_2_cases1"}
    first, second = (
        table(folder / "test" / f"step_{step}_cases1" / "certain.csv") for step in (1, 2)
    )
    assert [line["step"] for line in first + second] == ["1"] * 4 + ["2"] * 4
    assert first[0]["region"] == kind
    assert all(a | {"step": ""} == b | {"step": ""} for a, b in zip(first, second, strict=True))


def test_assess_names_steps_that_are_not_there(place):
    folder, _ = place("Pancreas", branches=3)
    with pytest.raises(UserError, match="--keep_every"):
        call("assess_coranet", "--run", str(folder), "--checkpoint", "kept")
    keep_steps(folder, (1,), uncertainty="tta", looks=8)
    with pytest.raises(UserError, match=r"step_2\.pth: not there; kept steps: 1"):
        call("assess_coranet", "--run", str(folder), "--checkpoint", "2")
    with pytest.raises(UserError, match="earlier version"):
        call("assess_coranet", "--run", str(folder), "--checkpoint", "1")


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("test_LA", ("1 on LA and phantom", "18 18 4 on LA; 16 16 8 on phantom", "16 on LA")),
        ("test_endocardium", ("(default: 0)", "(default: dice precision recall hd)")),
        ("predict", ("1 for networks of LA and phantom",)),
    ],
)
def test_the_help_names_the_defaults_of_the_data_sets(script, words, capsys):
    with pytest.raises(SystemExit):
        importlib.import_module(script).parse(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    for word in words:
        assert word in text
