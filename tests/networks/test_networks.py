"""Every network: published sizes, each head, each option's effect, and that every level keeps its
place.
"""

import copy
import math

import pytest
import torch

from networks import NETWORKS, base, network_class
from networks.base import enlarge, enlarge_by_slices, without_half_of_channels
from networks.one_vs_rest import OneVsRest
from networks.resnet18_3d import Block
from networks.unet import UNet

pytestmark = pytest.mark.usefixtures("one_thread")

HEADS = {
    "plain": {},
    "branches": {"branches": 3},
    "dual": {"sdm_head": True},
    "distances": {"sdm_head": True, "segmentation_head": False},
    "deepest": {"deepest": True},
    "last": {"last": True},
}


def image(name, *size):
    """Noise of the network's dimension for a batch of two."""
    size = size or (32, 16, 16)[: network_class(name).dims]
    return torch.randn(2, 1, *size, generator=torch.Generator().manual_seed(0))


def small(name, **options):
    torch.manual_seed(0)
    return network_class(name)(1, 3, 4, **options)


def linear(name):
    """The network without norms and activations: nothing hides behind a ReLU's 0."""
    net = small(name, normalization="none", dropout=0.0).eval()
    for parent in [*net.modules()]:
        for key, module in parent.named_children():
            if "ReLU" in type(module).__name__:
                setattr(parent, key, torch.nn.Identity())
    return net


def outputs(given):
    return given if isinstance(given, tuple) else (given,)


@pytest.mark.parametrize(
    ("name", "options", "count"),
    [
        ("unet", {"num_classes": 4}, 1_813_764),  # ACDC: "1.81 M"
        ("unet3d", {"normalization": "instancenorm"}, 5_884_050),  # BraTS2019: "5.88 M"
        ("unet_ronneberger", {}, 31_042_434),  # CoraNet, III-D.2: "29.6M"
    ],
)
def test_parameter_counts(name, options, count):
    assert sum(p.numel() for p in network_class(name)(**options).parameters()) == count


@pytest.mark.parametrize("upsampling", ["transposed", "linear", "nearest"])
@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("name", NETWORKS)
def test_every_head_has_its_shape_and_trains(name, heads, upsampling):
    net, x = small(name, upsampling=upsampling, dropout=0.0, **HEADS[heads]), image(name)
    given, size = outputs(net(x)), x.shape[2:]
    logits, sdm, features = (2, 3, *size), (2, 2, *size), net.eval()._encode(x)[-1].shape
    last = net.decode(net._encode(x)).shape
    expected = {
        "plain": [logits],
        "branches": [logits] * 3,
        "dual": [logits, sdm],
        "distances": [sdm],
        "deepest": [logits, features],
        "last": [logits, last],
    }[heads]
    assert [tuple(one.shape) for one in given] == [tuple(shape) for shape in expected]
    assert all(extent < 5 for extent in features[2:])
    sum(one.square().mean() for one in given).backward()
    for key, p in net.named_parameters():
        assert p.grad is not None, key
        assert p.grad.isfinite().all(), key
        if p.ndim > 1:  # the gradient of a bias before batch norm is 0
            assert p.grad.any(), key


@pytest.mark.parametrize("name", NETWORKS)
def test_a_voxel_comes_from_its_own_place_at_every_level(name):
    """Skips that were swapped, turned or shifted would show: each level's gradient stands around
    the voxel.
    """
    net = linear(name)
    extents, voxel = ((112, 64, 48), (90, 24, 18)) if net.dims == 3 else ((128, 64), (100, 24))
    features = [f.detach().requires_grad_() for f in net.encode(torch.randn(1, 1, *extents))]
    place = (slice(None), slice(None), *voxel)
    net.decode(features)[place].sum().backward()
    for level, feature in enumerate(features):
        found = feature.grad.abs().sum((0, 1))
        assert found.any(), level
        centre = (found.nonzero() * found[found > 0][:, None]).sum(0) / found.sum()
        scale = 2 ** round(math.log2(extents[0] / found.shape[0]))
        assert (centre - (torch.tensor(voxel) + 0.5) / scale + 0.5).abs().max() < 1, (level, centre)


@pytest.mark.parametrize("normalization", ["batchnorm", "instancenorm", "groupnorm", "none"])
@pytest.mark.parametrize("name", NETWORKS)
def test_normalizations_treat_samples_as_they_say(name, normalization):
    net = small(name, normalization=normalization, dropout=0.0)
    x = image(
        name, *(64, 16, 16)[: net.dims]
    )  # instance norm wants more than one value a channel at the bottom
    parts = sum("Norm" in type(module).__name__ for module in net.modules())
    assert (parts == 0) == (normalization == "none")
    alone = torch.cat([net(x[:1]), net(x[1:])])
    assert torch.allclose(net(x), alone, atol=1e-4) == (normalization != "batchnorm")


@pytest.mark.parametrize(("n_filters", "groups"), [(12, {4, 8, 16}), (24, {8, 16})])
def test_groupnorm_takes_any_number_of_channels(n_filters, groups):
    net = UNet(n_filters=n_filters, normalization="groupnorm")
    found = {
        module.num_groups for module in net.modules() if isinstance(module, torch.nn.GroupNorm)
    }
    assert found == groups


@pytest.mark.parametrize("name", NETWORKS)
def test_the_bottom_is_where_it_is_said_to_be(name):
    net = small(name).eval()
    for extents in ((64, 32, 96)[: net.dims], (48, 80, 32)[: net.dims]):
        bottom = net.encode(torch.zeros(1, 1, *extents))[-1].shape[2:]
        assert tuple(bottom) == tuple(
            math.ceil(e / b) for e, b in zip(extents, net.bottom, strict=True)
        )


@pytest.mark.parametrize("name", NETWORKS)
def test_dropout_works_in_training_alone(name):
    x = image(name)
    net = small(name, normalization="none", dropout=0.5)
    assert not torch.equal(net(x), net(x))
    net.eval()
    assert torch.equal(net(x), net(x))
    quiet = small(name, normalization="none", dropout=0.0)
    assert torch.equal(quiet(x), quiet(x))
    quiet.eval()
    assert torch.equal(quiet(x), net(x))  # nothing but dropout differs


@pytest.mark.parametrize(
    ("name", "whole_channels"), [("vnet", True), ("unet3d", False), ("resnet18", True)]
)
def test_dropout_stands_after_the_bottom_and_the_last_stage(name, whole_channels):
    net, calls = small(name, dropout=0.5), []
    net.dropout.register_forward_hook(lambda _, inputs, after: calls.append((*inputs, after)))
    x = image(name, 64, 32, 32)
    features = net.encode(x)
    last = net.decode(features)
    assert calls[0][1] is features[-1]
    assert calls[1][1] is last
    for before, after in calls:
        kept, dropped = after != 0, (before != 0) & (after == 0)
        assert torch.equal(after[kept], 2 * before[kept])
        assert dropped.any()
        mixed = kept.flatten(2).any(2) & dropped.flatten(2).any(2)
        assert mixed.any() != whole_channels


@pytest.mark.parametrize("name", NETWORKS)
def test_runs_in_bfloat16(name):
    net, x = small(name), image(name)
    with torch.autocast("cpu", torch.bfloat16):
        logits = net(x)
    assert logits.dtype == torch.bfloat16
    assert logits.isfinite().all()


@pytest.mark.parametrize("name", NETWORKS)
def test_wrong_inputs_and_options_are_refused(name):
    cls, x = network_class(name), image(name)
    net = cls(1, 2, 2)
    with pytest.raises(ValueError, match=f"input of {cls.__name__} .* multiple of 16"):
        net(x[:, :, :24])
    with pytest.raises(ValueError, match="multiple of 16"):
        net.segment(x[..., 0])
    for options, message in (
        (
            {"upsampling": "trilinear"},
            "upsampling is one of transposed, linear, nearest, got 'trilinear'",
        ),
        ({"normalization": "layernorm"}, "normalization is batchnorm"),
        ({"segmentation_head": False}, "without a segmentation head"),
        (
            {"segmentation_head": False, "sdm_head": True, "branches": 3},
            "without a segmentation head",
        ),
        ({"deepest": True, "sdm_head": True}, "deepest features"),
        ({"deepest": True, "branches": 3}, "deepest features"),
        ({"deepest": True, "last": True}, "deepest features"),
        ({"last": True, "sdm_head": True}, "last ones"),
        ({"branches": 0}, "branches must be at least 1"),
        ({"num_classes": 1}, "num_classes must be at least 2"),
        ({"dropout": 1.5}, "dropout probability"),
    ):
        with pytest.raises(ValueError, match=message):
            cls(**options)
    with pytest.raises(TypeError, match="depth"):
        cls(depth=3)


@pytest.mark.parametrize("name", NETWORKS)
def test_config_builds_the_same_network(name):
    net = small(name, normalization="groupnorm", branches=3)
    twin = network_class(name)(**net.config)
    twin.load_state_dict(net.state_dict())
    assert torch.equal(twin.eval()(image(name))[2], net.eval()(image(name))[2])
    for key, value in network_class(name).defaults._asdict().items():
        assert network_class(name)().config[key] == value


@pytest.mark.parametrize("name", NETWORKS)
def test_the_first_head_is_tested(name):
    x = image(name)
    for heads in ("plain", "branches", "dual", "deepest"):
        net = small(name, **HEADS[heads]).eval()
        assert torch.equal(outputs(net(x))[0], net.segment(x))
    first, second, third = small(name, branches=3).eval()(x)
    assert not torch.allclose(first, second)
    assert not torch.allclose(second, third)


@pytest.mark.parametrize("name", NETWORKS)
def test_distances_are_bounded_and_segment_by_their_sign(name):
    net, x = small(name, sdm_head=True, segmentation_head=False).eval(), 100 * image(name)
    sdm, prob = net(x), net.segment(x).softmax(1)
    assert sdm.abs().max() <= 1
    inside = (sdm < -0.01).any(1)
    assert inside.any()
    chosen = sdm.gather(1, (prob.argmax(1, keepdim=True) - 1).clamp(min=0))[:, 0]
    assert (prob.argmax(1) > 0)[inside].all()
    assert (chosen - sdm.amin(1))[inside].max() < 1e-6  # where tanh ends, two may be -1
    assert prob.argmax(1)[(sdm > 0.01).all(1)].eq(0).all()
    binary = network_class(name)(1, 2, 4, sdm_head=True, segmentation_head=False).eval()
    torch.testing.assert_close(
        binary.segment(x).softmax(1)[:, 1:], torch.sigmoid(-1500 * binary(x))
    )


def test_upsampling_has_its_own_weights():
    for name in NETWORKS:
        kinds = {
            kind: any(
                "ConvTranspose" in type(module).__name__
                for module in small(name, upsampling=kind).modules()
            )
            for kind in ("transposed", "linear")
        }
        assert kinds == {"transposed": True, "linear": False}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [0.05, 0.1, 0.2, 0.3, 0.5]),
        ({"levels": 4}, [0.05, 0.1, 0.2, 0.5]),
        ({"levels": 7, "dropout": 0.1}, [0.01, 0.02, 0.04, 0.06, 0.1, 0.1, 0.1]),
        ({"dropout": 0}, [0] * 5),
    ],
)
def test_dropout_of_the_unet_grows_with_depth(options, expected):
    net = UNet(n_filters=2, **options)
    rates = [module.p for module in net.encoder.modules() if isinstance(module, torch.nn.Dropout)]
    assert rates == pytest.approx(expected)
    assert all(
        module.p == 0 for module in net.decoder.modules() if isinstance(module, torch.nn.Dropout)
    )


def test_levels_set_the_extents_that_fit():
    net = UNet(levels=4, n_filters=2, dropout=0)
    assert net.multiples == net.bottom == (8, 8)
    assert net(torch.zeros(2, 1, 8, 24)).shape == (2, 2, 8, 24)
    assert UNet(**net.config).multiples == (8, 8)
    assert UNet.multiples == (16, 16)
    with pytest.raises(ValueError, match="levels must be at least 2"):
        UNet(levels=1)


def test_resnet_blocks_keep_slices_apart_and_halve_their_number():
    x = torch.randn(1, 4, 6, 6, 8)
    order = torch.randperm(8)
    block = Block(4, 4, 1, "batchnorm").eval()
    torch.testing.assert_close(block(x)[..., order], block(x[..., order]))
    features = small("resnet18").eval().encode(torch.zeros(1, 1, 112, 48, 80))
    assert [tuple(f.shape[1:]) for f in features] == [
        (4, 56, 24, 40),
        (4, 28, 12, 20),
        (8, 14, 6, 10),
        (16, 7, 3, 5),
        (32, 4, 2, 3),
    ]


def test_resnet_crops_behind_what_was_rounded_up():
    """What lies far from the end does not notice that the extent is 112 (3.5 voxels at the bottom)
    and not 128.
    """
    net = linear("resnet18").double()  # float32 would hide how little the bottom counts
    features = net.encode(torch.randn(1, 1, 128, 16, 16, dtype=torch.float64))
    shorter = [f[:, :, : math.ceil(112 / 2**level)] for level, f in enumerate(features, start=1)]
    torch.testing.assert_close(
        net.decode(shorter)[:, :, :32], net.decode(features)[:, :, :32], rtol=0, atol=1e-12
    )


@pytest.mark.parametrize("classes", [2, 3, 4, 6])
def test_one_vs_rest_is_the_confidence_weighted_vote(classes):
    """Brute force: each network votes for its class, or for all others and the background, with its
    confidence.
    """
    net = OneVsRest("unet", num_classes=classes, n_filters=1).eval()
    confidence = torch.rand(
        classes - 1, 1000, generator=torch.Generator().manual_seed(1), dtype=torch.float64
    )
    shift = torch.randn(classes - 1, 1000, dtype=torch.float64)  # logits are free up to a constant
    for network, p, s in zip(net.networks, confidence, shift, strict=True):
        network.segment = lambda x, p=p, s=s: torch.stack((s, s + torch.logit(p)))[None]
    logits = net.segment(None)
    assert logits.shape == (1, classes, 1000)
    assert logits[:, 0].eq(0).all()

    votes = torch.zeros(classes, 1000, dtype=torch.float64)
    for i in range(1000):
        for c, p in enumerate(confidence[:, i].tolist(), start=1):
            if p > 0.5:
                votes[c, i] += p
            else:
                votes[:, i] += 1 - p
                votes[c, i] -= 1 - p
    assert torch.equal(logits[0].argmax(0), votes.argmax(0))
    assert votes.argmax(0).unique().numel() == classes


@pytest.mark.parametrize("name", NETWORKS)
def test_one_vs_rest_holds_a_binary_network_a_class(name):
    net, x = OneVsRest(name, 1, 4, n_filters=2, branches=3).eval(), image(name)
    assert (net.dims, net.multiples) == (network_class(name).dims, network_class(name).multiples)
    given = net(x)
    assert len(given) == 3
    assert all(len(one) == 3 and one[0].shape == (2, 2, *x.shape[2:]) for one in given)
    torch.testing.assert_close(net.segment(x)[:, 2], given[1][0][:, 1] - given[1][0][:, 0])
    twin = OneVsRest(**copy.deepcopy(net.config))
    twin.load_state_dict(net.state_dict())
    assert torch.equal(twin.eval().segment(x), net.segment(x))


def test_one_vs_rest_refuses_what_does_not_exist():
    with pytest.raises(
        ValueError, match=r"network is one of vnet, unet, unet_ronneberger, .* got 'wnet'"
    ):
        OneVsRest("wnet")
    with pytest.raises(ValueError, match="num_classes must be at least 2"):
        OneVsRest("unet", num_classes=1)


def test_enlarging_in_a_fixed_order_is_trilinear():
    x = torch.randn(2, 3, 4, 1, 5, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(2, 3, 8, 2, 10, dtype=torch.float64)
    gradients = []
    for enlarged in (enlarge(3)(x), enlarge_by_slices(x)):
        gradients.append(torch.autograd.grad((enlarged * weights).sum(), x)[0])
    torch.testing.assert_close(enlarge_by_slices(x), enlarge(3)(x))
    torch.testing.assert_close(gradients[1], gradients[0])


@pytest.mark.parametrize("name", ["vnet", "unet_ronneberger"])
def test_a_branch_is_two_convolutions_and_one_to_the_classes(name):
    net = small(name, branches=3)
    assert len(net.heads) == 3
    for head in net.heads:
        kernels = [
            m.kernel_size[0]
            for m in head.modules()
            if isinstance(m, torch.nn.Conv2d | torch.nn.Conv3d)
        ]
        assert kernels == [3, 3, 1]


# ------------------------------------------------------------------------------ dropped features


@pytest.mark.parametrize("name", NETWORKS)
def test_every_level_of_features_loses_half_of_its_channels(name, monkeypatch):
    """`with_dropped`: the decoder sees the plain features, and behind them in the same batch those
    of which each channel is 0 or doubled; each level, crop and call has its own draw.
    """
    net, seen = small(name, dropout=0.0), []
    decode = net.decode
    monkeypatch.setattr(net, "decode", lambda features: seen.append(features) or decode(features))
    x = image(name)
    plain, dropped = net(x, with_dropped=True)
    assert plain.shape == dropped.shape == (2, 3, *x.shape[2:])
    net(x, with_dropped=True)
    patterns = []
    for features, again, both in zip(net.encode(x), *seen, strict=True):
        assert torch.equal(both[:2], features)
        zero = both[2:].flatten(2).eq(0).all(2)
        expected = features * (2.0 * ~zero).view(*zero.shape, *[1] * (x.ndim - 2))
        torch.testing.assert_close(both[2:], expected)
        patterns.append(zero)
        if zero.shape[1] > 8:
            assert 0.2 < zero.float().mean() < 0.8
            assert not torch.equal(zero, again[2:].flatten(2).eq(0).all(2))
            assert not torch.equal(zero[0], zero[1])


def test_half_of_the_channels_are_zero_and_the_others_doubled():
    """As Dropout2d and Dropout3d with 1/2 in training."""
    torch.manual_seed(0)
    features = torch.rand(50, 80, 2, 2, 2) + 1
    found = without_half_of_channels(features)
    ratio = (found / features).flatten(2)
    assert (ratio == ratio[..., :1]).all()
    assert set(ratio.unique().tolist()) == {0.0, 2.0}
    assert ratio.mean() == pytest.approx(1, abs=0.05)  # 4 standard deviations
    torch.manual_seed(0)
    dropped = torch.nn.functional.dropout3d(features, 0.5)
    assert (dropped / features).flatten(2).mean() == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("name", NETWORKS)
def test_dropped_and_plain_features_share_the_decoders_statistics(name, monkeypatch):
    """Batch norm of the decoder sees both halves at once, that of the encoder the plain one only;
    without any norm the plain half is that of a plain pass.
    """
    x = image(name, *(64, 16, 16)[: network_class(name).dims])
    alone = small(name, normalization="none", dropout=0.0)
    assert torch.allclose(alone(x, with_dropped=True)[0], alone(x), atol=1e-5)
    assert not torch.allclose(alone(x, with_dropped=True)[1], alone(x), atol=1e-3)
    plain, both = (small(name, dropout=0.0) for _ in range(2))
    logits = plain(x)
    assert not torch.allclose(both(x, with_dropped=True)[0], logits, atol=1e-3)
    own, other = plain.state_dict(), both.state_dict()
    for key in own:
        if "running_mean" in key:
            equal = torch.allclose(own[key], other[key], atol=1e-6)
            assert equal == (key.split(".")[0] in plain.of_encoder), key
    monkeypatch.setattr(base, "without_half_of_channels", lambda features: features)
    twin = small(name, dropout=0.0)  # the same values twice have the same mean and variance
    for half in twin(x, with_dropped=True):
        torch.testing.assert_close(half, logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", NETWORKS)
def test_dropped_logits_train_the_whole_network(name):
    net = small(name, dropout=0.0)
    net(image(name), with_dropped=True)[1].square().mean().backward()
    for key, p in net.named_parameters():
        assert p.grad is not None, key
        if p.ndim > 1:
            assert p.grad.any(), key
