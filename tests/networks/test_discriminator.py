"""The discriminators' sizes, modes and checkpoints, and `judge`, which lets them judge only. They
are compared with their equations in tests/methods/test_dan.py and test_entropy.py.
"""

import copy

import pytest
import torch

from networks.discriminator import MapImageDiscriminator, PatchDiscriminator, judge
from utils.device import Forward

pytestmark = pytest.mark.usefixtures("one_thread")

CLASSES, FILTERS = 3, 4
EXTENTS = (64, 32, 32)
DIMS = pytest.mark.parametrize("dims", [2, 3])
KINDS = pytest.mark.parametrize("kind", ["map and image", "patch"])


def maps_and_image(dims):
    generator = torch.Generator().manual_seed(0)
    extents = EXTENTS[:dims]
    maps = torch.rand(2, CLASSES, *extents, generator=generator, dtype=torch.float64)
    image = torch.randn(2, 1, *extents, generator=generator, dtype=torch.float64)
    return maps, image


def build(kind, dims):
    """A discriminator in float64, and its inputs."""
    torch.manual_seed(0)
    maps, image = maps_and_image(dims)
    if kind == "patch":
        return PatchDiscriminator(CLASSES, dims, FILTERS).double(), (maps,)
    return MapImageDiscriminator(CLASSES, 1, dims, FILTERS).double(), (maps, image)


@DIMS
def test_dropout_drops_channels_of_the_first_three_levels(dims):
    network, inputs = build("map and image", dims)
    drops = [network.first[1].p, *(stage[2].p for stage in network.stages)]
    assert drops == [0.5, 0.5, 0.5, 0]
    dropped = network.first[1](torch.ones(2, 64, *[3] * dims)).flatten(2)
    assert set(dropped.unique().tolist()) == {0.0, 2.0}
    assert (dropped == dropped[..., :1]).all()
    assert not torch.equal(network(*inputs), network(*inputs))


def test_sizes_are_the_published_ones():
    """Weights and biases of 4³ convolutions, and of the linear layer."""
    sizes = [(64, 2), (64, 1), (128, 64), (256, 128), (512, 256)]
    expected = sum(after * (before * 64 + 1) for after, before in sizes) + 2 * 513
    assert sum(p.numel() for p in MapImageDiscriminator(2, 1).parameters()) == expected
    sizes = [(64, 2), (128, 64), (256, 128), (512, 256), (1, 512)]
    expected = sum(after * (before * 16 + 1) for after, before in sizes)
    assert sum(p.numel() for p in PatchDiscriminator(2, 2).parameters()) == expected


@KINDS
@DIMS
def test_a_copy_is_built_from_config(kind, dims):
    network, _ = build(kind, dims)
    again = type(network)(**network.config)
    again.load_state_dict(network.state_dict())
    assert again.config == network.config
    assert again.dims == dims


@KINDS
@DIMS
@pytest.mark.parametrize("wrapped", [False, True])
def test_a_judge_does_not_learn(kind, dims, wrapped):
    """Its weights get no gradient, those that are there stay, and its mode comes back."""
    network, (maps, *rest) = build(kind, dims)
    network(maps, *rest).sum().backward()
    before = [parameter.grad.clone() for parameter in network.parameters()]
    forward = Forward(network, torch.device("cpu"), "fp32") if wrapped else network
    maps.requires_grad_()
    verdict = judge(forward, maps, *rest)
    assert network.training
    assert all(parameter.requires_grad for parameter in network.parameters())
    verdict.square().sum().backward()
    assert maps.grad.ne(0).any()
    for parameter, gradient in zip(network.parameters(), before, strict=True):
        assert torch.equal(parameter.grad, gradient)
    torch.testing.assert_close(verdict, network.eval()(maps, *rest))
    judge(forward, maps, *rest)
    assert not network.training


@KINDS
def test_what_was_frozen_stays_frozen_and_an_error_thaws_the_rest(kind):
    network, (maps, *rest) = build(kind, 2)
    first = next(network.parameters()).requires_grad_(False)
    judge(network, maps, *rest)
    with pytest.raises(ValueError, match="extents S of at least"):
        judge(network, maps[..., :8], *rest)
    learning = [parameter for parameter in network.parameters() if parameter.requires_grad]
    assert network.training
    assert not first.requires_grad
    assert len(learning) == sum(1 for _ in network.parameters()) - 1


def test_a_judge_is_no_matter_of_several_processes(monkeypatch):
    """Within `DistributedDataParallel` the pass must not wait for gradients that do not come."""
    network, inputs = build("map and image", 2)

    class Reducing(torch.nn.Module):
        def __init__(self, module):
            super().__init__()
            self.module = module

        def forward(self, *inputs):
            raise AssertionError("the pass is prepared for an average of gradients")

    monkeypatch.setattr("networks.discriminator.DistributedDataParallel", Reducing)
    assert judge(Reducing(network), *inputs).shape == (2, 2)


@KINDS
@DIMS
def test_checkpoints_change_no_bit(kind, dims):
    network, inputs = build(kind, dims)
    again = copy.deepcopy(network)
    again.checkpoint_activations()
    found = []
    for one in (network, again):
        torch.manual_seed(2)
        output = one(*inputs)
        output.square().sum().backward()
        found.append([output.detach(), *(parameter.grad for parameter in one.parameters())])
        judge(one, *inputs)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@KINDS
def test_inputs_that_do_not_fit_are_refused(kind):
    network, (maps, *rest) = build(kind, 2)
    least = 32 if kind == "patch" else 16
    fitting = [tensor[..., :least, :least] for tensor in (maps, *rest)]
    network(*fitting)
    with pytest.raises(ValueError, match=f"2 extents S of at least {least}"):
        network(maps[..., : least - 1], *(tensor[..., : least - 1] for tensor in rest))
    with pytest.raises(ValueError, match="2 extents S"):
        network(maps[..., None], *(tensor[..., None] for tensor in rest))
