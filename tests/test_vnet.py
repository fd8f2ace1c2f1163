"""V-Net: the published size, every option's effect, and what each head gives."""

import pytest
import torch

from networks.vnet import VNet

X = torch.randn(2, 1, 32, 16, 16, generator=torch.Generator().manual_seed(0))


def test_parameter_count_is_the_published_one():
    assert sum(p.numel() for p in VNet(1, 2).parameters()) == 9_448_866


@pytest.mark.parametrize("normalization", ["batchnorm", "instancenorm", "groupnorm", "none"])
def test_every_normalization_trains(normalization):
    net = VNet(1, 3, 4, normalization)
    logits = net(torch.cat([X, X], 2))  # 64 voxels deep: instance norm wants more than one value a channel
    assert logits.shape == (2, 3, 64, 16, 16)
    logits.square().mean().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in net.parameters())


def test_normalizations_differ():
    shapes = {kind: sum(p.numel() for p in VNet(1, 2, 16, kind).parameters()) for kind in ("batchnorm", "none")}
    assert shapes["batchnorm"] > shapes["none"]
    with pytest.raises(ValueError, match="normalization is batchnorm"):
        VNet(normalization="layernorm")


def test_batch_of_one_does_not_leak_between_instances():
    net = VNet(1, 2, 4, "instancenorm").eval()
    big = torch.cat([X, X], 2)
    assert torch.allclose(net(big)[:1], net(big[:1]), atol=1e-3)


def test_dropout_works_in_training_alone():
    net = VNet(1, 2, 4)
    assert not torch.equal(net(X), net(X))
    net.eval()
    assert torch.equal(net(X), net(X))
    quiet = VNet(1, 2, 4, dropout=0.0, normalization="none")
    assert torch.equal(quiet(X), quiet(X))


def test_sdm_head_is_bounded_and_one_a_foreground_class():
    logits, sdm = VNet(1, 4, 4, sdm_head=True).eval()(100 * X)
    assert logits.shape == (2, 4, 32, 16, 16)
    assert sdm.shape == (2, 3, 32, 16, 16)
    assert sdm.abs().max() <= 1


def test_trilinear_upsampling_keeps_the_size_and_has_its_own_weights():
    net = VNet(1, 2, 4, upsampling="trilinear").eval()
    assert net(X).shape == (2, 2, 32, 16, 16)
    assert not any(isinstance(module, torch.nn.ConvTranspose3d) for module in net.modules())
    with pytest.raises(ValueError, match="upsampling is transposed or trilinear, got 'nearest'"):
        VNet(upsampling="nearest")


def test_deepest_features_beside_the_logits():
    net = VNet(1, 2, 4, deepest=True).eval()
    logits, features = net(X)
    assert torch.equal(features, net.encode(X)[-1])
    assert torch.equal(logits, net.segment(X))
    with pytest.raises(ValueError, match="beside logits alone"):
        VNet(deepest=True, sdm_head=True)


def test_a_network_of_distances_alone_segments_by_their_sign():
    net = VNet(1, 3, 4, sdm_head=True, segmentation_head=False).eval()
    sdm = net(X)
    assert sdm.shape == (2, 2, 32, 16, 16)
    prob = net.segment(X).softmax(1)
    inside = (sdm < -0.01).any(1)
    assert torch.equal(prob.argmax(1)[inside], sdm.argmin(1)[inside] + 1)
    assert prob.argmax(1)[(sdm > 0.01).all(1)].eq(0).all()
    binary = VNet(1, 2, 4, sdm_head=True, segmentation_head=False).eval()
    torch.testing.assert_close(binary.segment(X).softmax(1)[:, 1:], torch.sigmoid(-1500 * binary(X)))
    for options in ({}, {"sdm_head": True, "branches": 3}):
        with pytest.raises(ValueError, match="without a segmentation head"):
            VNet(1, 2, 4, segmentation_head=False, **options)


def test_branches_are_independent_and_the_first_is_tested():
    net = VNet(1, 2, 4, branches=3).eval()
    first, second, third = net(X)
    assert not torch.allclose(first, second)
    assert not torch.allclose(second, third)
    assert torch.equal(net.segment(X), first)


def test_deepest_features():
    features = VNet(1, 2, 4).eval().encode(X)
    assert [tuple(f.shape[1:]) for f in features] == [
        (4, 32, 16, 16),
        (8, 16, 8, 8),
        (16, 8, 4, 4),
        (32, 4, 2, 2),
        (64, 2, 1, 1),
    ]


def test_config_builds_the_same_network():
    net = VNet(1, 3, 4, "groupnorm", branches=3)
    twin = VNet(**net.config)
    twin.load_state_dict(net.state_dict())
    assert torch.equal(twin.eval().segment(X), net.eval().segment(X))


def test_extents_must_be_multiples_of_16():
    with pytest.raises(ValueError, match="multiple of 16"):
        VNet(1, 2, 4)(torch.zeros(1, 1, 24, 16, 16))
