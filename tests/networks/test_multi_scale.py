"""Heads at four scales: what each sees, in training and in a test, and how logits are enlarged."""

import pytest
import torch
import torch.nn.functional as F

from networks import NETWORKS, network_class
from networks.multi_scale import (
    MultiScale,
    dropped_channels,
    resize,
    resize_by_axes,
    scaled,
    without_peaks,
)
from utils.reporting.export import inference_checkpoint
from utils.trained import KEYS

pytestmark = pytest.mark.usefixtures("one_thread")


def image(net):
    return torch.randn(2, 1, *(32, 16, 16)[: net.dims], generator=torch.Generator().manual_seed(0))


def small(name="vnet", **options):
    torch.manual_seed(0)
    return MultiScale(name, 1, 3, n_filters=4, **options)


@pytest.mark.parametrize("name", NETWORKS)
def test_each_scale_segments_the_image(name):
    net = small(name).eval()
    x = image(net)
    logits = net(x)
    assert [z.shape for z in logits] == [(2, 3, *x.shape[2:])] * 4
    torch.testing.assert_close(net.segment(x), logits[0])


@pytest.mark.parametrize("name", NETWORKS)
def test_coarse_logits_are_those_of_their_level(name):
    net = small(name).eval()
    x = image(net)
    levels = net.network.decode_levels(net.network._encode(x))
    for k, z in enumerate(net(x)):
        of_level = net.heads[k](levels[-1 - k])
        torch.testing.assert_close(z, resize(of_level, x.shape[2:]))
        factors = [e // own for e, own in zip(x.shape[2:], of_level.shape[2:], strict=True)]
        assert set(factors) == {2**k}


@pytest.mark.parametrize("name", ["vnet", "unet"])
def test_the_finest_head_is_the_network_without_dropout(name):
    net = small(name, dropouts=(0, 0, 0, 0)).eval()
    alone = network_class(name)(1, 3, 4).eval()
    renamed = {}
    for key, value in net.state_dict().items():
        key = key.removeprefix("network.")
        if net.dims == 3 and key.startswith("decoder."):
            _, level, _, rest = key.split(".", 3)  # each level is followed by its dropout
            key = f"decoder.{level}.{rest}"
        if not key.startswith(("heads.1", "heads.2", "heads.3")):
            renamed[key] = value
    alone.load_state_dict(renamed)
    x = image(net)
    torch.testing.assert_close(alone(x), net(x)[0])


def test_levels_of_volumes_drop_as_they_are_told():
    net = small(dropouts=(0.5, 0.3, 0.2, 0.1))
    found = [m.p for m in net.network.modules() if isinstance(m, torch.nn.Dropout3d)]
    assert sorted(p for p in found if p) == [0.1, 0.2, 0.3, 0.5]
    assert [stage[1].p for stage in net.network.decoder] == [0.5, 0.3, 0.2, 0.1]


@pytest.mark.parametrize("name", ["vnet", "unet"])
def test_training_perturbs_and_a_test_does_not(name):
    options = {"dropout": 0.0} if name == "unet" else {}
    net = small(name, normalization="none", **options)
    x = image(net)
    train = [net.train()(x) for _ in range(2)]
    test = [net.eval()(x) for _ in range(2)]
    changed = [not torch.equal(a, b) for a, b in zip(*train, strict=True)]
    assert changed == ([True] * 4 if net.dims == 3 else [False, True, True, True])
    assert all(torch.equal(a, b) for a, b in zip(*test, strict=True))


def test_perturbations_of_slices():
    torch.manual_seed(0)
    features = 1 + torch.rand(3, 8, 6, 6)
    ratio = scaled(features) / features
    assert 0.7 <= ratio.min() < 0.75
    assert 1.25 < ratio.max() <= 1.3 + 1e-6
    torch.testing.assert_close(ratio[0], ratio[1])  # the same in all samples

    kept = without_peaks(features) / features
    mean = features.mean(1)
    for sample in range(3):
        lost = kept[sample, 0] == 0
        assert lost.flatten()[mean[sample].argmax()]
        assert set(kept[sample].unique().tolist()) <= {0.0, 1.0}
        if not lost.all():
            assert mean[sample][lost].min() > mean[sample][~lost].max()

    dropped = dropped_channels(features) / features
    assert set(dropped.amax((2, 3)).flatten().tolist()) == {0.0, 2.0}
    torch.testing.assert_close(dropped.amax((2, 3)), dropped.amin((2, 3)))


@pytest.mark.parametrize("extents", [(16, 8, 12), (5, 9, 7), (2, 3, 4)])
def test_enlarging_axis_by_axis_is_trilinear(extents):
    x = torch.randn(2, 3, 2, 3, 4, dtype=torch.float64)
    expected = F.interpolate(x, extents, mode="trilinear", align_corners=False)
    torch.testing.assert_close(resize_by_axes(x, extents), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["vnet", "unet"])
def test_an_export_has_the_finest_head_only(name):
    net = small(name).eval()
    checkpoint = dict.fromkeys(KEYS) | {"net": net.state_dict()}
    checkpoint["networks"] = {"net": {"class": "MultiScale", "kwargs": net.config}}
    kept = inference_checkpoint(checkpoint, ["net"])
    lean = MultiScale(**kept["networks"]["net"]["kwargs"]).eval()
    lean.load_state_dict(kept["net"])
    assert len(lean.heads) == 1
    x = image(net)
    torch.testing.assert_close(lean(x), net.segment(x))


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="network is one of"):
        MultiScale("resnet")
    with pytest.raises(ValueError, match="dropouts are 4 numbers"):
        MultiScale("vnet", dropouts=(0.5,))
