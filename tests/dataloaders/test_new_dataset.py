"""A new data set is its class, its line in the table of names and its test script: the scripts
train, test and predict on it as they stand.
"""

import importlib.util
import json
import sys

import h5py
import numpy as np
import predict
import pytest
import SimpleITK
import train_supervised

import dataloaders
from dataloaders import DATASETS, evaluation_script
from utils.evaluation import options

pytestmark = pytest.mark.usefixtures("one_thread")

CLASS = """
from types import MappingProxyType

from dataloaders.preprocessing import Preprocessing
from dataloaders.slices import Slices
from dataloaders.volumes import Volumes


class Toy(Volumes):
    name = "toy"
    num_classes = 3
    class_names = ("ball", "core")
    patches = MappingProxyType({1: (32, 16, 16)})
    stride = (8, 8, 8)
    spacing = (1.0, 1.5, 2.0)
    net = "vnet"
    augment = "rot_flip"
    labelnum = 2
    labeled_bs, unlabeled_bs = 2, 2
    training_units = 3
    source = "a test"
    preprocessing = Preprocessing(intensity="zscore")
    keep_largest = True
    shown = reported = ("dice", "assd")


class Toy2d(Slices, Toy):
    name = "toy2d"
    patches = MappingProxyType({1: (16, 32)})
    stride = None
    net = "unet"
    augment = "rotate"
    tested_by = "toy"
    file_axes = image_axes = (2, 0, 1)
"""
SCRIPT = '''
"""Test a run on the toy."""

from utils import command
from utils.evaluation import options
from utils.evaluation.test_script import Test
from utils.inference import mean_probability


def parse(argv=None):
    return options.parse(__doc__, __file__, argv)


def main(argv=None):
    test = Test(parse(argv))
    test.evaluate(mean_probability(test.networks))


if __name__ == "__main__":
    command.run(main)
'''
SHAPE = (34, 24, 18)


def write_data(root):
    rng = np.random.default_rng(0)
    lists = {"train": ["A", "B", "C"], "test": ["D", "E"]}
    distance = np.sqrt(sum((axis - 10) ** 2 for axis in np.indices(SHAPE)))
    (root / "data").mkdir(parents=True)
    for split, cases in lists.items():
        (root / f"{split}.list").write_text("\n".join(cases) + "\n")
        for case in cases:
            radius = rng.uniform(6, 8)
            label = (distance < radius).astype(np.uint8) + (distance < radius / 2)
            with h5py.File(root / "data" / f"{case}.h5", "w") as file:
                file["image"] = (label + rng.normal(0, 0.3, SHAPE)).astype(np.float32)
                file["label"] = label.astype(np.uint8)


def as_the_file_has_it(path):
    """A written label map as `(x, y, z)`, the axes of the data set's files."""
    labels = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path)))  # (z, y, x)
    return labels.transpose(2, 1, 0)


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """The toy's class and lines beside the others, its data and its test script; the script."""
    write_data(tmp_path / "data" / "toy")
    (tmp_path / "toy.py").write_text(CLASS)
    monkeypatch.setattr(dataloaders, "__path__", [*dataloaders.__path__, str(tmp_path)])
    monkeypatch.setitem(DATASETS, "toy", ("toy", "Toy", "toy"))
    monkeypatch.setitem(DATASETS, "toy2d", ("toy", "Toy2d", "toy"))
    monkeypatch.chdir(tmp_path)
    path = tmp_path / evaluation_script("toy")
    path.write_text(SCRIPT)
    spec = importlib.util.spec_from_file_location("test_toy", path)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    yield script
    sys.modules.pop("dataloaders.toy", None)


@pytest.mark.parametrize("name", ["toy", "toy2d"])
def test_it_is_trained_tested_and_predicted(name, toy, tmp_path, monkeypatch, capsys):
    common = ["--dataset", name, "--gpu", "-1", "--precision", "fp32"]
    train_supervised.main(
        [*common, "--max_iterations", "40", "--n_filters", "4", "--base_lr", "0.05"]
    )
    run = tmp_path / "runs" / name / "supervised_2" / "seed1337"

    # labels, stride, filter of components and metrics are those of the class
    capsys.readouterr()
    toy.main([*common, "--method", "supervised", "--figures", "0"])
    tested = run / "test" / "last_fp32"
    summary = json.loads((tested / "summary.json").read_text())
    assert (summary["cases"], list(summary["classes"])) == (2, ["ball", "core"])
    assert (summary["test"]["nms"], summary["test"]["metrics"]) == (1, ["dice", "assd"])
    assert summary["test"]["stride"] == ([8, 8, 8] if name == "toy" else None)
    header = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("case"))
    assert header.split() == ["case", "class", "Dice", "%", "ASSD", "seconds"]

    # prediction takes them from the checkpoint: it does not need the class
    monkeypatch.delitem(DATASETS, name)
    case = tmp_path / "data" / "toy" / "data" / "D.h5"
    out = tmp_path / "out"
    predict.main([str(run), str(case), "--out", str(out), "--gpu", "-1", "--precision", "fp32"])
    said = json.loads((out / "predict.json").read_text())
    assert (said["trained_on"], said["largest_component"]) == (name, True)
    assert said["labels"] == {"0": "background", "1": "ball", "2": "core"}
    with h5py.File(out / "D.h5") as file:
        predicted = file["prediction"][()]
    assert len(np.unique(predicted)) > 1
    np.testing.assert_array_equal(predicted, as_the_file_has_it(tested / "nifti" / "D_pred.nii.gz"))


def test_its_script_tests_the_data_sets_that_name_it(toy):
    assert evaluation_script("toy2d") == "test_toy.py"
    assert options.datasets_of(toy.__file__) == ("toy", "toy2d")
