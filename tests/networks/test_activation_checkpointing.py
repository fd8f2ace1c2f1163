"""`checkpoint_activations` changes memory alone: outputs, gradients and batch norm's statistics
stay, bit for bit.
"""

import copy
from functools import partial

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from networks import NETWORKS, network_class
from networks.multi_scale import MultiScale
from networks.one_vs_rest import OneVsRest
from networks.several_decoders import SeveralDecoders
from utils.device import autocast

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
BUILD = {name: partial(network_class(name), 1, 3, 4, dropout=0.5) for name in NETWORKS}
BUILD |= {"one_vs_rest": partial(OneVsRest, "vnet", 1, 3, n_filters=4, branches=3)}
BUILD |= {"several_decoders": partial(SeveralDecoders, "vnet", 1, 3, n_filters=4)}
BUILD |= {"multi_scale": partial(MultiScale, "vnet", 1, 3, n_filters=4)}
BUILD |= {"branches": partial(network_class("vnet"), 1, 3, 4, branches=3)}
BUILD |= {"cml": partial(network_class("vnet"), 1, 3, 4, upsampling="linear", deepest=True)}
BUILD |= {"maps": partial(network_class("vnet"), 1, 3, 4, sdm_head=True, segmentation_head=False)}
BUILD |= {
    "transposed": partial(
        network_class("unet3d"), 1, 3, 4, upsampling="transposed", normalization="groupnorm"
    )
}


def image(net, seed=0):
    """No level has a first extent of 2: there oneDNN 3.12 is not sure of its own bfloat16
    gradients.
    """
    return torch.randn(
        2, 1, *(80, 16, 16)[: net.dims], generator=torch.Generator().manual_seed(seed)
    )


def flat(outputs):
    return (
        [part for one in outputs for part in flat(one)]
        if isinstance(outputs, (list, tuple))
        else [outputs]
    )


def pair(name, seed=0):
    """A network, and its copy that checkpoints."""
    torch.manual_seed(seed)
    net = BUILD[name]()
    again = copy.deepcopy(net)
    again.checkpoint_activations()
    return net, again


def state(net):
    """Gradients, parameters and statistics."""
    found = {f"{key} gradient": p.grad for key, p in net.named_parameters()}
    return found | {key: value.clone() for key, value in net.state_dict().items()}


def assert_same(a, b):
    assert a.keys() == b.keys()
    for key, value in a.items():
        assert value is not None, key
        assert torch.equal(value, b[key]), key


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", BUILD)
def test_every_bit_stays(name, precision):
    """A forward pass without gradient, as where pseudo-labels are made, then two with it before one
    backward.
    """
    found = []
    for net in pair(name):
        torch.manual_seed(1)
        with autocast(CPU, precision):
            with torch.no_grad():
                net(image(net, 1))
            given = flat([net(image(net, seed)) for seed in (2, 3)])
        loss = sum((i + 1) * one.float().square().mean() for i, one in enumerate(given))
        loss.backward()
        found.append(state(net) | {"loss": loss.detach(), "the generator": torch.rand(3)})
    assert_same(*found)


def test_two_networks_in_one_loss():
    found = []
    for first, second in zip(pair("vnet", 0), pair("cml", 1), strict=True):
        torch.manual_seed(1)
        a, (b, deepest) = first(image(first)), second(image(first))
        ((a.softmax(1) - b.softmax(1)).square().mean() + deepest.square().mean()).backward()
        found.append(
            state(first) | {f"second {key}": value for key, value in state(second).items()}
        )
    assert_same(*found)


def kept_bytes(net, x):
    """What autograd holds of a forward pass for backward, weights aside."""
    weights = {p.data_ptr() for p in net.parameters()}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        outputs = net(x)
    assert flat(outputs)
    return sum(kept.values())


@pytest.mark.parametrize("name", BUILD)
def test_less_is_kept(name):
    net, again = pair(name)
    assert kept_bytes(again, image(net)) < 0.6 * kept_bytes(net, image(net))


@pytest.mark.parametrize("name", ["unet", "one_vs_rest"])
def test_it_is_no_part_of_the_network(name):
    net, again = pair(name)
    assert again.config == net.config
    assert again.state_dict().keys() == net.state_dict().keys()
    x = image(net)
    assert all(map(torch.equal, flat(again.eval()(x)), flat(net.eval()(x))))
    before = kept_bytes(net.train(), x)
    again.train().checkpoint_activations(False)
    assert kept_bytes(again, x) == before


def test_nothing_is_computed_again_without_gradients(monkeypatch):
    monkeypatch.setattr("networks.base.checkpoint", lambda *_, **__: pytest.fail("checkpointed"))
    _, net = pair("vnet")
    with torch.no_grad():
        net(image(net))
    net.eval()(image(net))


def test_a_failed_backward_leaves_the_statistics():
    """The statistics' copies go whatever happens in between."""
    _, net = pair("vnet")
    loss = net(image(net)).mean()
    before = {key: value.clone() for key, value in net.named_buffers()}
    buffers = {key: value.data_ptr() for key, value in net.named_buffers()}

    def fail(*_):
        raise RuntimeError("stop")

    net.decoder[-1][0].register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="stop"):
        loss.backward()
    assert {key: value.data_ptr() for key, value in net.named_buffers()} == buffers
    assert all(torch.equal(value, before[key]) for key, value in net.named_buffers())


@pytest.mark.slow
def test_a_compiled_network_counts_each_batch_once():
    """Its backward computes the graph again, not batch norm's update."""
    found = []
    for net in pair("vnet"):
        net.dropout.p = 0.0
        torch.compile(net, backend="aot_eager")(image(net)).square().mean().backward()
        found.append(state(net))
    plain, again = found
    for key, value in plain.items():
        assert torch.allclose(
            value, again[key], atol=0 if "running" in key or "num" in key else 1e-6
        ), key
