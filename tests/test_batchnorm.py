"""Batch norm's statistics taken again: the numbers by hand, and the option of tests and predict."""

import json

import numpy as np
import predict
import pytest
import small
import test_LA
import torch
import train_cml
import train_dmd
from small import BOTH, LA, blob, write_case

import utils.batchnorm
from utils.batchnorm import BATCHES, retake, training_data
from utils.errors import UserError
from utils.reporting.comparability import reservations
from utils.reporting.entries import open_entries
from utils.trained import load_networks

pytestmark = pytest.mark.usefixtures("one_thread")

SHORT = [*LA, *BOTH, "--max_iterations", "1"]
QUICK = "--gpu -1 --nms 1 --figures 0 --nifti 0 --stride 32 16 16 --precision fp32".split()


@pytest.fixture
def run(tiny_la, tmp_path):
    """A run of one step: its folder."""
    train_dmd.main([*SHORT, "--root", str(tiny_la), "--runs", str(tmp_path)])
    return tmp_path / "LA" / "dmd_3" / "seed1337"


def test_the_statistics_are_means_over_batches(run):
    networks, checkpoint = load_networks(run / "last.pth", "cpu")
    before = {name: p.clone() for name, p in networks[0].named_parameters()}
    line = retake(networks, checkpoint, None, "cpu", "fp32")
    assert f"{BATCHES} batches" in line
    data = training_data(checkpoint, None, "cpu")
    convolution, norm = networks[0].encoder[0][:2]
    with torch.no_grad():
        seen = [convolution(data.images(1 + k)).transpose(0, 1).flatten(1) for k in range(1, 41)]
    mean = np.mean([x.mean(1).numpy() for x in seen], 0)
    variance = np.mean([x.var(1).numpy() for x in seen], 0)
    np.testing.assert_allclose(norm.running_mean.numpy(), mean, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(norm.running_var.numpy(), variance, rtol=1e-4)
    assert norm.momentum == 0.1
    assert not any(module.training for module in networks[0].modules())
    assert all(torch.equal(p, before[name]) for name, p in networks[0].named_parameters())


def test_deep_norms_of_each_network_are_taken_again(tiny_la, tmp_path, monkeypatch):
    """Two networks are tested; what their deepest norm is given is measured in networks loaded
    anew, in training mode without dropout.
    """
    monkeypatch.setattr(utils.batchnorm, "BATCHES", 3)
    flags = [*LA, *BOTH, *small.SHORT["train_cml"]]
    train_cml.main([*flags, "--root", str(tiny_la), "--runs", str(tmp_path)])
    path = tmp_path / "LA" / "cml_3" / "seed1337" / "last.pth"
    networks, checkpoint = load_networks(path, "cpu")
    retake(networks, checkpoint, None, "cpu", "fp32")
    data = training_data(checkpoint, None, "cpu")
    images = [data.images(checkpoint["last"] + 1 + k) for k in range(3)]
    assert len(networks) == 2
    for network, fresh in zip(networks, load_networks(path, "cpu")[0], strict=True):
        fresh.train()
        for module in fresh.modules():
            if "Dropout" in type(module).__name__:
                module.eval()
        norms = [name for name, module in fresh.named_modules() if hasattr(module, "running_mean")]
        for name in (norms[1], norms[len(norms) // 2], norms[-1]):
            given = []
            hook = fresh.get_submodule(name).register_forward_pre_hook(
                lambda _, own, given=given: given.append(own[0].transpose(0, 1).flatten(1))
            )
            with torch.no_grad():
                for image in images:
                    fresh.segment(image)
            hook.remove()
            norm = network.get_submodule(name)
            mean, variance = (
                np.mean([numbers(x).numpy() for x in given], 0)
                for numbers in (lambda x: x.mean(1), lambda x: x.var(1))
            )
            np.testing.assert_allclose(norm.running_mean.numpy(), mean, rtol=1e-3, atol=1e-5)
            np.testing.assert_allclose(norm.running_var.numpy(), variance, rtol=1e-3)


def test_dropout_is_off_and_the_numbers_repeat(run):
    found = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        networks, checkpoint = load_networks(run / "last.pth", "cpu")
        retake(networks, checkpoint, None, "cpu", "fp32")
        found.append(networks[0].state_dict())
    assert all(torch.equal(a, b) for a, b in zip(*(s.values() for s in found), strict=True))


def test_no_label_of_an_unlabelled_case_is_read(run, tiny_la):
    networks, checkpoint = load_networks(run / "last.pth", "cpu")
    image, _ = blob(np.random.default_rng(1), (40, 36, 20))
    for case in range(3, 6):
        write_case(tiny_la, f"CASE{case:02d}", image, None)
    with pytest.raises(UserError, match="holds other cases"):  # their shapes are others
        retake(networks, checkpoint, None, "cpu", "fp32")
    del checkpoint["data"]  # as in an exported model
    retake(networks, checkpoint, None, "cpu", "fp32")


def test_the_test_script_names_and_marks_it(run):
    where = ["--run", str(run), *QUICK]
    test_LA.main(where)
    test_LA.main([*where, "--batchnorm", "retaken"])
    plain, again = (
        json.loads((run / "test" / tag / "summary.json").read_text())
        for tag in ("last_stride32-16-16_fp32", "last_retaken_stride32-16-16_fp32")
    )
    assert plain["test"]["batchnorm"] == "trained"
    assert again["test"]["batchnorm"] == "retaken"
    tables = [
        (run / "test" / tag / "per_case.csv").read_text()
        for tag in ("last_stride32-16-16_fp32", "last_retaken_stride32-16-16_fp32")
    ]
    voxels = [[line.split(",")[3:6] for line in table.splitlines()[1:]] for table in tables]
    assert voxels[0] != voxels[1]
    entries = open_entries(
        [f"{run}:last_stride32-16-16_fp32", f"{run}:last_retaken_stride32-16-16_fp32"], "last"
    )
    text = " ".join(reservations(entries[1], entries[0]))
    assert "batch norm's statistics were taken again from training images" in text
    assert "not comparable" in text


def test_predict_takes_them_again(run, tiny_la, tmp_path):
    image = next(tiny_la.glob("*/CASE06/*.h5"))
    common = [str(run), str(image), "--gpu", "-1", "--precision", "fp32", "--probabilities"]
    predict.main([*common, "--out", str(tmp_path / "plain")])
    predict.main([*common, "--out", str(tmp_path / "again"), "--batchnorm", "retaken"])
    plain, again = (
        json.loads((tmp_path / name / "predict.json").read_text()) for name in ("plain", "again")
    )
    assert (plain["batchnorm"], again["batchnorm"]) == ("trained", "retaken")
    contents = [
        next(path.read_bytes() for path in (tmp_path / name).rglob("*.h5"))
        for name in ("plain", "again")
    ]
    assert contents[0] != contents[1]
    with pytest.raises(SystemExit):
        predict.main([*common, "--out", str(tmp_path / "x"), "--training_root", str(tiny_la)])


def test_where_it_cannot_be_it_says_so(tiny_la, tmp_path, run):
    networks, checkpoint = load_networks(run / "last.pth", "cpu")
    with pytest.raises(UserError, match="needs the training images"):
        retake(networks, checkpoint, str(tmp_path / "nowhere"), "cpu", "fp32")
    options = ["--normalization", "instancenorm", "--name", "in"]
    train_dmd.main([*SHORT, *options, "--root", str(tiny_la), "--runs", str(tmp_path)])
    with pytest.raises(UserError, match="no batch norm, but instancenorm"):
        test_LA.main(
            ["--run", str(tmp_path / "LA" / "in" / "seed1337"), *QUICK, "--batchnorm", "retaken"]
        )
