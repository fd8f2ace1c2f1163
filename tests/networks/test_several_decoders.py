"""One encoder, several decoders: what they share, what each gives and what is tested."""

import pytest
import torch

from networks import NETWORKS, network_class
from networks.several_decoders import SeveralDecoders
from utils.reporting.export import inference_checkpoint
from utils.trained import KEYS

pytestmark = pytest.mark.usefixtures("one_thread")

THREE = ("transposed", "linear", "nearest")


def image(net):
    return torch.randn(2, 1, *(32, 16, 16)[: net.dims], generator=torch.Generator().manual_seed(0))


def small(name="vnet", **options):
    torch.manual_seed(0)
    return SeveralDecoders(name, 1, 3, THREE, n_filters=4, **options).eval()


@pytest.mark.parametrize("name", NETWORKS)
def test_each_decoder_is_the_network_of_its_upsampling(name):
    """With the encoder's weights put back, decoder k is an ordinary network."""
    net = small(name)
    x = image(net)
    logits = net(x)
    assert len(logits) == 3
    state = net.state_dict()
    encoder = {
        key.removeprefix("networks.0."): value
        for key, value in state.items()
        if key.split(".")[2] in network_class(name).of_encoder
    }
    assert encoder
    for k, kind in enumerate(THREE):
        prefix = f"networks.{k}."
        own = {key.removeprefix(prefix): v for key, v in state.items() if key.startswith(prefix)}
        alone = network_class(name)(1, 3, 4, upsampling=kind).eval()
        alone.load_state_dict(encoder | own)
        torch.testing.assert_close(alone(x), logits[k])


def test_there_is_one_encoder():
    """MC-Net's and V-Net's weights: a further decoder adds only a decoder."""
    counts = []
    for n in (1, 2, 3):
        net = SeveralDecoders("vnet", upsamplings=("transposed",) * n)
        counts.append(sum(p.numel() for p in net.parameters()))
    assert counts[0] == 9_448_866
    assert counts[1] - counts[0] == counts[2] - counts[1] < counts[0] / 2


def test_the_encoder_learns_from_each_decoder():
    net = small().train()
    x = image(net)
    for k in range(3):
        net.zero_grad()
        net(x)[k].square().mean().backward()
        assert net.networks[0].encoder[0][0].weight.grad.any()
        for other in range(3):
            learns = net.networks[other].heads[0].weight.grad is not None
            assert learns == (other == k)


def test_segment_is_the_mean_or_the_first():
    net = small(test_decoder="mean")
    first = SeveralDecoders(**net.config | {"test_decoder": "first"}).eval()
    first.load_state_dict(net.state_dict())
    x = image(net)
    p = torch.stack([logits.softmax(1) for logits in net(x)])
    torch.testing.assert_close(net.segment(x).exp(), p.mean(0))
    torch.testing.assert_close(first.segment(x).softmax(1), p[0])


@pytest.mark.parametrize(("tested", "decoders"), [("mean", 3), ("first", 1)])
def test_an_export_has_the_decoders_that_are_tested(tested, decoders):
    net = small(test_decoder=tested)
    checkpoint = dict.fromkeys(KEYS) | {"net": net.state_dict()}
    checkpoint["networks"] = {"net": {"class": "SeveralDecoders", "kwargs": net.config}}
    kept = inference_checkpoint(checkpoint, ["net"])
    lean = SeveralDecoders(**kept["networks"]["net"]["kwargs"]).eval()
    lean.load_state_dict(kept["net"])
    assert len(lean.networks) == decoders
    x = image(net)
    torch.testing.assert_close(lean(x), net.segment(x))


def test_config_builds_the_network_again():
    net = small("unet")
    again = SeveralDecoders(**net.config).eval()
    again.load_state_dict(net.state_dict())
    x = image(net)
    torch.testing.assert_close(again.segment(x), net.segment(x))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"network": "resnet"}, "network is one of"),
        ({"network": "vnet", "upsamplings": ()}, "upsamplings are some of"),
        ({"network": "vnet", "upsamplings": ("cubic",)}, "upsamplings are some of"),
        ({"network": "vnet", "test_decoder": "last"}, "test_decoder is one of"),
    ],
)
def test_what_cannot_be_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        SeveralDecoders(**options)
