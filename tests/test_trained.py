"""utils/trained.py: hand-made checkpoints, opened as tests and prediction open them."""

import pytest
import torch

from dataloaders.la import LA
from networks.unet import UNet
from networks.vnet import VNet
from utils.errors import UserError
from utils.trained import find_checkpoint, find_run, load_networks, load_trained

pytestmark = pytest.mark.usefixtures("one_thread")


def test_find_run_and_checkpoint(tmp_path):
    runs = tmp_path / "runs"
    with pytest.raises(UserError, match="holds none"):
        find_run(None, runs, "LA", "coranet_16", 1)
    folder = runs / "LA" / "dtml_8" / "seed3"
    folder.mkdir(parents=True)
    (folder / "args.json").write_text("{}")
    assert find_run(None, runs, "LA", "dtml_8", 3) == folder
    assert find_run(str(folder), runs, "LA", "coranet_16", 1) == folder
    with pytest.raises(UserError, match="no checkpoint yet"):
        find_checkpoint(folder, "last")
    (folder / "last.pth").touch()
    with pytest.raises(UserError, match=r"seed1: no such run.*dtml_8/seed3"):
        find_run(None, runs, "LA", "coranet_16", 1)
    with pytest.raises(UserError, match=r"folder of seeds.*dtml_8/seed3"):
        find_checkpoint(folder.parent, "last")
    assert find_checkpoint(folder, "last") == folder / "last.pth"
    with pytest.raises(UserError, match="kept steps: none, train with --keep_every"):
        find_checkpoint(folder, "500")
    (folder / "step_500.pth").touch()
    assert find_checkpoint(folder, "500") == folder / "step_500.pth"
    with pytest.raises(UserError, match="kept steps: 500"):
        find_checkpoint(folder, "400")


@pytest.fixture
def checkpoint():
    torch.manual_seed(0)
    net, other = VNet(n_filters=4), VNet(n_filters=4, normalization="instancenorm")
    return {
        "step": 7,
        "last": 9,
        "args": {"dataset": "LA"},
        "dataset": LA.description(),
        "test_networks": ["net", "other"],
        "networks": {
            n: {"class": "networks.vnet.VNet", "kwargs": m.config}
            for n, m in (("net", net), ("other", other))
        },
        "net": net.state_dict(),
        "other": other.state_dict(),
    }


def test_load_networks_restores_every_tested_network(tmp_path, checkpoint):
    torch.save(checkpoint, tmp_path / "last.pth")
    networks, loaded = load_networks(tmp_path / "last.pth", "cpu")
    assert loaded["step"] == 7
    assert [n.config["normalization"] for n in networks] == ["batchnorm", "instancenorm"]
    assert not any(module.training for n in networks for module in n.modules())
    for network, name in zip(networks, ("net", "other"), strict=True):
        state = network.state_dict()
        assert state.keys() == checkpoint[name].keys()
        assert all(torch.equal(state[k], v) for k, v in checkpoint[name].items())


def test_load_networks_takes_one_by_its_name(tmp_path, checkpoint):
    torch.save(checkpoint, tmp_path / "last.pth")
    (network,), _ = load_networks(tmp_path / "last.pth", "cpu", "other")
    assert network.config["normalization"] == "instancenorm"
    with pytest.raises(UserError, match="holds no network 'third'; choose from net, other"):
        load_networks(tmp_path / "last.pth", "cpu", "third")


def test_load_networks_lays_slices_out_as_2d_convolutions_like_them(tmp_path, checkpoint):
    net = UNet(n_filters=4)
    spec = {"class": "networks.unet.UNet", "kwargs": net.config}
    checkpoint |= {"networks": {"net": spec}, "test_networks": ["net"], "net": net.state_dict()}
    torch.save(checkpoint, tmp_path / "last.pth")
    (network,), _ = load_networks(tmp_path / "last.pth", "cpu")
    weight = network.encoder[1][0].weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert not weight.is_contiguous()


def set_kwargs(c, **kwargs):
    c["networks"]["net"] = {"class": "networks.vnet.VNet", "kwargs": kwargs}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda c: c.pop("test_networks"), "not a checkpoint of these scripts"),
        (lambda c: c.pop("last"), "not a checkpoint of these scripts, which hold step, last, args"),
        (lambda c: c["test_networks"].clear(), "lists no network"),
        (lambda c: c.pop("net"), "does not hold it"),
        (lambda c: c["networks"]["net"].update({"class": "networks.vnet.WNet"}), "WNet"),
        (lambda c: c["networks"]["net"].update({"class": "networks.absent.VNet"}), "absent"),
        (
            lambda c: c["networks"]["net"].update({"class": "torch.nn.Linear"}),
            "package networks",
        ),
        (lambda c: c["networks"]["net"].update({"class": "networks.vnet.up"}), "no network"),
        (lambda c: set_kwargs(c, colour="red"), "colour"),
        (
            lambda c: set_kwargs(c, n_filters=8),
            r"encoder.0.0.weight is \(4, 1, 3, 3, 3\), not \(8, 1, 3, 3, 3\)",
        ),
        (lambda c: set_kwargs(c, n_filters=4, branches=3), r"has no heads.0.0.0.weight"),
        (lambda c: c["net"].update(extra=torch.zeros(1)), "unexpected extra"),
        (lambda c: c["net"].pop("heads.0.bias"), "has no heads.0.bias"),
    ],
)
def test_load_networks_says_in_one_line_what_is_wrong(tmp_path, checkpoint, damage, message):
    damage(checkpoint)
    torch.save(checkpoint, tmp_path / "last.pth")
    with pytest.raises(UserError, match=message) as raised:
        load_networks(tmp_path / "last.pth", "cpu")
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 400


def test_load_networks_refuses_what_is_no_checkpoint(tmp_path, checkpoint):
    path = tmp_path / "last.pth"
    with pytest.raises(UserError, match="train first"):
        load_networks(path, "cpu")
    torch.save(checkpoint, path)
    whole = path.read_bytes()
    for content in (b"", b"not a checkpoint", whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(UserError, match="damaged or not a checkpoint"):
            load_networks(path, "cpu")
    torch.save([1, 2], path)
    with pytest.raises(UserError, match="not a checkpoint of these scripts"):
        load_networks(path, "cpu")
    torch.save({"run": print}, path)  # a pickled function: weights_only refuses to load it
    with pytest.raises(UserError, match="damaged or not a checkpoint"):
        load_networks(path, "cpu")


def test_load_trained_takes_what_the_checkpoint_says_of_its_data(tmp_path, checkpoint):
    checkpoint["args"] |= {"patch": [16, 16, 16], "downsample": 2}
    torch.save(checkpoint, tmp_path / "last.pth")
    trained = load_trained(tmp_path / "last.pth", "cpu")
    assert (trained.dataset, trained.num_classes) == ("LA", 2)
    assert trained.data["class_names"] == ["left atrium"]
    assert trained.data["keep_largest"] is True
    assert trained.stride == [9, 9, 2]
    assert (trained.step, trained.last, len(trained.networks)) == (7, 9, 2)

    checkpoint["dataset"] |= {"stride": [40, 1, 3], "class_names": ["spleen"]}
    torch.save(checkpoint, tmp_path / "last.pth")
    trained = load_trained(tmp_path / "last.pth", "cpu", "other")
    assert trained.data["class_names"] == ["spleen"]
    assert trained.stride == [16, 1, 1]  # of the patch at most, a voxel at least
    assert len(trained.networks) == 1


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda c: c["args"].pop("patch"), "does not say what it was trained on"),
        (lambda c: c["args"].update(patch=[16, 16]), "does not say what it was trained on"),
        (lambda c: c.update(dataset={"num_classes": 2}), "does not say what it was trained on"),
        (lambda c: c["dataset"].pop("keep_largest"), "no 'keep_largest'"),
        (lambda c: c["dataset"].update(stride=[1, 2]), "does not say what it was trained on"),
    ],
)
def test_load_trained_refuses_a_checkpoint_that_says_too_little(
    tmp_path, checkpoint, damage, message
):
    checkpoint["args"] |= {"patch": [16, 16, 16], "downsample": 1}
    damage(checkpoint)
    torch.save(checkpoint, tmp_path / "last.pth")
    with pytest.raises(UserError, match=message):
        load_trained(tmp_path / "last.pth", "cpu")
