"""An exported folder holds nothing that pickles or that only training needs, gives the same
probabilities, and has an honest card.
"""

import json

import export
import pytest
import torch
from safetensors.torch import load_file

from dataloaders.hold_out import SOURCES
from dataloaders.la import LA
from networks import network_class
from networks.one_vs_rest import OneVsRest
from utils.errors import UserError
from utils.inference import mean_probability
from utils.reporting.export import inference_checkpoint
from utils.trained import load_networks, read_export

DATA = LA.description() | {"num_classes": 3, "class_names": ["a", "b"]}
DATA |= {"spacing": [0.5, 0.5, 2.0], "stride": [8, 8, 8]}
TRAINED = {
    "method": "tiny",
    "dataset": "LA",
    "root": None,
    "labelnum": 3,
    "seed": 7,
    "downsample": 1,
    "precision": "fp32",
}
# what a run's networks may be, and the numbers of each that inference does not need
NETWORKS = {
    "plain": (lambda: network_class("vnet")(1, 3, 2), None),
    "two": (lambda: network_class("vnet")(1, 3, 2, deepest=True), None),
    "coranet": (
        lambda: network_class("vnet")(1, 3, 2, branches=3, normalization="instancenorm"),
        "heads.1",
    ),
    "dual task": (lambda: network_class("unet3d")(1, 3, 2, sdm_head=True), "sdm"),
    "distances alone": (
        lambda: network_class("vnet")(1, 3, 2, sdm_head=True, segmentation_head=False),
        None,
    ),
    "one vs rest": (
        lambda: OneVsRest("unet", 1, 3, n_filters=2, branches=3, levels=4),
        "networks.1.heads.2",
    ),
    "slices": (lambda: network_class("unet")(1, 3, 2), None),
}


@pytest.fixture
def make_run(tmp_path):
    """`make_run(name)`: a run's folder as training leaves it, with random weights and
    statistics.
    """

    def make(name, **changes):
        folder = tmp_path / "runs" / "LA" / "tiny_3" / "seed7"
        folder.mkdir(parents=True)
        torch.manual_seed(0)
        build, _ = NETWORKS[name]
        nets = {key: build() for key in (("net", "net_2") if name == "two" else ("net",))}
        for net in nets.values():
            for key, value in net.state_dict().items():
                if key.endswith("running_var"):
                    value.uniform_(0.5, 2)
                elif value.is_floating_point():
                    value.normal_(0, 0.3)
        patch = [32] * nets["net"].dims
        state = {
            "step": 5,
            "last": 5,
            "args": TRAINED | {"patch": patch},
            "dataset": DATA,
            "data": "x",
        }
        state |= {"test_networks": list(nets), "optimizer": {"state": torch.zeros(3)}}
        state["networks"] = {
            key: {"class": f"{type(net).__module__}.{type(net).__name__}", "kwargs": net.config}
            for key, net in nets.items()
        }
        torch.save(
            state | {key: net.state_dict() for key, net in nets.items()} | changes,
            folder / "last.pth",
        )
        (folder / "environment.json").write_text(
            json.dumps([{"commit": "old"}, {"commit": "abc123", "dirty": True}])
        )
        return folder

    return make


@pytest.mark.parametrize("name", NETWORKS)
def test_an_export_predicts_as_its_run_does(name, make_run, tmp_path):
    folder = make_run(name)
    export.main([str(folder), "--out", str(tmp_path / "out")])
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]
    ours, checkpoint = load_networks(folder / "last.pth", "cpu")
    theirs, config = load_networks(tmp_path / "out", "cpu")
    x = torch.randn(2, 1, *[32] * ours[0].dims)
    with torch.no_grad():
        expected = mean_probability(ours)(x)
        assert torch.equal(mean_probability(theirs)(x), expected)
        assert torch.equal(torch.softmax(theirs[0](x), 1), torch.softmax(ours[0].segment(x), 1))
    assert {key: config[key] for key in ("args", "dataset", "step")} == {
        key: checkpoint[key] for key in ("args", "dataset", "step")
    }
    stored = load_file(tmp_path / "out" / "model.safetensors")
    left_out = NETWORKS[name][1]
    before = {f"net.{key}" for key in checkpoint["net"]}
    dropped = before - stored.keys()
    assert any(left_out in key for key in dropped) if left_out else not dropped
    assert sum(len(list(net.state_dict())) for net in theirs) == len(stored)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["coranet", "slices"])
def test_the_program_runs_without_this_code(name, make_run, tmp_path):
    folder = make_run(name)
    export.main([str(folder), "--out", str(tmp_path / "out"), "--program", "1"])
    networks, _ = load_networks(folder / "last.pth", "cpu")
    x = torch.randn(3, 1, *[32] * networks[0].dims)
    program = torch.export.load(tmp_path / "out" / "model.pt2").module()
    with torch.no_grad():
        torch.testing.assert_close(program(x), mean_probability(networks)(x), rtol=1e-4, atol=1e-5)
    export.main([str(folder), "--out", str(tmp_path / "out"), "--overwrite"])
    assert not (tmp_path / "out" / "model.pt2").exists()


def test_one_network_of_two(make_run, tmp_path):
    folder = make_run("two")
    export.main([str(folder), "--network", "net_2"])
    networks, config = load_networks(folder / "export" / "last_net_2", "cpu")
    assert config["test_networks"] == ["net_2"]
    (both, _), x = load_networks(folder / "last.pth", "cpu"), torch.randn(1, 1, 16, 16, 16)
    with torch.no_grad():
        assert torch.equal(networks[0](x), both[1].segment(x))


def test_the_card_says_what_it_is(make_run, tmp_path):
    chosen = {"validation": {"from": SOURCES["labeled"], "cases": ["A", "B"]}, "last": 9}
    folder = make_run("plain", **chosen, best={"step": 5, "dice": 0.5})
    (folder / "last.pth").rename(folder / "best.pth")
    spread = {"mean": 0.875, "sd": 0.0123, "n": 2}
    mean = {
        "dice": spread,
        "jaccard": spread,
        "hd95": {"mean": None, "sd": None, "n": 0},
        "asd": spread,
    }
    summary = {"step": 5, "mean": mean, "cases": 2, "list": "the test list", "empty_predictions": 1}
    summary |= {"empty": "an empty mask scores 0"}
    summary |= {"units": {"hd": "voxels"}, "test": {"network": None}}
    tests = {
        "best": {},
        "last": {"step": 9, "checkpoint": "last.pth"},
        "best_net": {"test": {"network": "net"}},
    }
    for tag, other in tests.items():
        (folder / "test" / tag).mkdir(parents=True)
        (folder / "test" / tag / "summary.json").write_text(
            json.dumps(summary | {"checkpoint": "best.pth"} | other)
        )
    export.main([str(folder), "--checkpoint", "best", "--out", str(tmp_path / "out")])
    card = (tmp_path / "out" / "README.md").read_text()
    assert (
        "| step | 5 of 9; best on validation cases: 2 labelled training cases, which are not "
        "trained on, Dice 50.00 |" in card
    )
    assert "| best: the test list | 2 | 87.50 ± 1.23 | 87.50 ± 1.23 | - | 0.88 ± 0.01 | 1 |" in card
    assert "Empty: an empty mask scores 0." in card
    assert (
        "| labelled | the first 3 of the training list, without A, B, kept aside for validation |"
        in card
    )
    assert "| last: " not in card
    assert "| best_net: " not in card
    assert "| classes | 0 background, 1 a, 2 b |" in card
    assert "| commit | abc123, with changes |" in card


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda out: (out / "config.json").unlink(), "config.json: not there"),
        (lambda out: (out / "model.safetensors").unlink(), "model.safetensors: not there"),
        (lambda out: (out / "config.json").write_text("{"), "damaged or not an exported model"),
        (lambda out: (out / "config.json").write_text("{}"), "not a configuration"),
        (
            lambda out: (out / "model.safetensors").write_bytes(b"garbage"),
            "damaged or not an exported model",
        ),
        (
            lambda out: (out / "config.json").write_text(
                (out / "config.json").read_text().replace('t": 2', 't": 1')
            ),
            "of format 1, made by an earlier version",
        ),
        (
            lambda out: (out / "config.json").write_text(
                (out / "config.json").read_text().replace('t": 2', 't": 3')
            ),
            "of format 3, made by a later version",
        ),
    ],
    ids=["no config", "no weights", "half a config", "empty config", "garbage", "old", "later"],
)
def test_what_is_no_export_is_told(spoil, message, make_run, tmp_path):
    export.main([str(make_run("plain")), "--out", str(tmp_path / "out")])
    spoil(tmp_path / "out")
    with pytest.raises(UserError, match=message):
        read_export(tmp_path / "out")


def test_the_card_of_a_step_on_the_way_and_of_an_unfinished_run_says_so(make_run, tmp_path):
    folder = make_run("plain", last=9)
    (folder / "step_5.pth").write_bytes((folder / "last.pth").read_bytes())
    for checkpoint, words in (("5", "a step on the way"), ("last", "the run is unfinished")):
        export.main([str(folder), "--checkpoint", checkpoint])
        card = (
            folder / "export" / {"5": "step_5"}.get(checkpoint, checkpoint) / "README.md"
        ).read_text()
        assert f"| step | 5 of 9; {words} |" in card


def test_an_export_is_not_replaced_unasked(make_run, tmp_path):
    folder = make_run("plain")
    export.main([str(folder)])
    with pytest.raises(UserError, match="--overwrite replaces"):
        export.main([str(folder)])
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "README.md").write_text("mine")
    with pytest.raises(UserError, match="is no exported model"):
        export.main([str(folder), "--out", str(tmp_path / "mine"), "--overwrite"])
    assert (tmp_path / "mine" / "README.md").read_text() == "mine"
    with pytest.raises(UserError, match="--out names a folder"):
        export.main([str(folder), "--out", str(tmp_path / "mine" / "README.md")])
    with pytest.raises(UserError, match="no such run"):
        export.main([str(tmp_path / "nowhere")])


def test_only_the_tested_heads_are_dropped(make_run):
    """A key that merely looks like a further head would be missed when the weights are loaded:
    nothing else goes.
    """
    checkpoint = torch.load(make_run("coranet") / "last.pth", weights_only=True)
    kept = inference_checkpoint(checkpoint, ["net"])["net"]
    assert checkpoint["net"].keys() - kept.keys() == {
        key for key in checkpoint["net"] if key.startswith(("heads.1.", "heads.2."))
    }
    assert "optimizer" not in inference_checkpoint(checkpoint, ["net"])
