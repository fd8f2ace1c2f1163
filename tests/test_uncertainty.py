"""Entropy, the means over views and passes with dropout, noisy logits, and what is certain."""

import math
from argparse import Namespace
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.special import softmax

from networks import network_class
from networks.vnet import VNet
from utils.uncertainty import (
    certain_region,
    entropy,
    largest_sd_over_noise,
    mean_over_crops,
    mean_over_dropout,
    mean_over_flips,
    mean_over_slice_views,
    noisy_logits,
    random_starts,
)


def test_entropy_by_hand():
    prob = torch.tensor([[1.0, 0.0], [0.5, 0.5], [0.25, 0.75]]).T[None]
    by_hand = [0.0, math.log(2), 0.25 * math.log(4) + 0.75 * math.log(4 / 3)]
    torch.testing.assert_close(entropy(prob), torch.tensor([by_hand]))


# ------------------------------------------------------------------------------------------- views


@pytest.mark.parametrize("shape", [(4, 6), (4, 6, 3)])
def test_flips_are_all_seen_and_turned_back(shape):
    """An answer that is the input is unmoved by any flip; an answer that is always the same ramp is
    averaged to its middle.
    """
    x = torch.randn(1, 1, *shape)
    torch.testing.assert_close(mean_over_flips(lambda view: view, x), x)
    seen = []
    ramp = torch.arange(x.numel(), dtype=torch.float32).view(1, 1, *shape)

    def answer(view):
        seen.append(view.numpy().tobytes())
        return ramp

    mean = mean_over_flips(answer, x)
    assert len(set(seen)) == 2 ** len(shape)
    torch.testing.assert_close(mean, torch.full_like(ramp, ramp.mean()))


def test_views_of_slices_are_flipped_and_scaled_and_brought_back():
    torch.manual_seed(0)
    rows, columns = torch.meshgrid(torch.arange(1.0, 49), torch.arange(1.0, 65), indexing="ij")
    x = torch.stack([rows, columns])[:, None]
    extents, flipped = [], []

    def answer(view):
        """The view itself."""
        filled = view != 0
        extents.append([int(filled[0, 0, :, 0].sum()), int(filled[0, 0, 0].sum())])
        assert filled[:, :, : extents[-1][0], : extents[-1][1]].all()
        assert filled.sum() == 2 * math.prod(extents[-1])  # zeros stand behind the image
        assert all(extent % 16 == 0 for extent in view.shape[2:])
        flipped.append(bool(view[1, 0, 0, 0] > view[1, 0, 0, extents[-1][1] - 1]))
        return view

    mean = mean_over_slice_views(answer, x, 40, (16, 16))
    scales = np.array(extents) / (48, 64)
    assert np.abs(scales[:, 0] - scales[:, 1]).max() < 0.03  # one scale for both axes, rounded
    assert 0.78 < scales.min() < 0.83
    assert 1.07 < scales.max() < 1.12
    assert 10 < sum(flipped) < 30
    torch.testing.assert_close(mean[..., 2:-2, 2:-2], x[..., 2:-2, 2:-2], atol=0.02, rtol=0)


@pytest.mark.parametrize(("extent", "size"), [(16, 16), (20, 16), (40, 16), (100, 32)])
def test_random_starts_cover_an_axis_from_anywhere(extent, size):
    torch.manual_seed(0)
    inner = set()
    for _ in range(50 * size):
        starts = random_starts(extent, size)
        assert starts[0] == 0
        assert starts[-1] == extent - size
        assert all(0 < b - a <= size for a, b in pairwise(starts))
        inner.update(starts)
    assert inner == set(range(extent - size + 1))


@pytest.mark.parametrize("shape", [(20, 40, 17), (10, 16, 16)])
def test_random_crops_see_each_voxel_in_each_look(shape):
    torch.manual_seed(0)
    image = torch.rand(shape)
    patch = (16, 16, 16)
    seen = mean_over_crops(lambda x: torch.cat([1 - x, x], 1), image, patch, 2, 3)
    torch.testing.assert_close(seen, torch.stack([1 - image, image]))


def test_random_crops_lie_elsewhere_in_each_look():
    """The answer is the row within a crop: a voxel in the middle of 64 is in any row of 16."""
    torch.manual_seed(0)
    image = torch.zeros(64, 16, 16)
    rows = torch.arange(16.0).view(1, 1, 16, 1, 1).expand(1, 1, 16, 16, 16)
    looks = [mean_over_crops(lambda x: rows, image, (16, 16, 16), 1, 1) for _ in range(200)]
    in_the_middle = {look[0, 32, 0, 0].item() for look in looks}
    assert in_the_middle == set(range(16))
    many = mean_over_crops(lambda x: rows, image, (16, 16, 16), 1, 200)
    assert many[0, 32, 0, 0].item() == pytest.approx(7.5, abs=1)


# --------------------------------------------------------------------------------- dropout, noise


@pytest.mark.parametrize("name", ["vnet", "resnet18", "unet3d", "unet_ronneberger"])
def test_passes_with_dropout_are_those_of_the_whole_network(name):
    """The encoder runs once; each pass has the bits of the whole network with this dropout."""
    torch.manual_seed(0)
    network = network_class(name)
    net = network(1, 2, 4, dropout=0.5).eval()
    x = torch.randn(2, 1, *[32] * network.dims)
    with torch.no_grad():
        plain = net.segment(x).softmax(1)
        torch.manual_seed(1)
        found = mean_over_dropout(net, x, 3)
        assert not any(layer.training for layer in net.modules())
        torch.manual_seed(1)
        net.dropout.train()
        passes = [net.segment(x).softmax(1) for _ in range(3)]
    torch.testing.assert_close(found, sum(passes) / 3)
    assert not torch.allclose(passes[0], passes[1])
    assert not torch.allclose(found, plain)


def test_noise_makes_a_softmax_less_sure():
    """The difference of two logits 4 apart, each with σ, is normal about 4 with σ√2."""
    torch.manual_seed(0)
    logits = torch.tensor([2.0, -2.0]).view(1, 2, 1).expand(1, 2, 4000)
    steps = np.arange(-500, 501) / 100
    density = np.exp(-0.5 * steps**2)
    for log_variance in (-10.0, 0.0, 3.0):
        draws = noisy_logits(logits, torch.full_like(logits, log_variance), 20)
        mean = sum(z.softmax(1) for z in draws)[0, 0].mean().item() / 20
        sigma = math.sqrt(2 * math.exp(log_variance))
        expected = np.average(1 / (1 + np.exp(-4 - sigma * steps)), weights=density)
        assert mean == pytest.approx(expected, abs=0.005)


@pytest.mark.parametrize("classes", [2, 4])
def test_the_sd_over_noise_is_that_of_the_drawn_softmax(classes):
    rng = np.random.default_rng(0)
    f = rng.standard_normal((2, classes, 5, 3))
    sigma = np.exp(rng.uniform(-7, 0, f.shape))
    logits, log_variance = torch.tensor(f), torch.tensor(2 * np.log(sigma))
    torch.manual_seed(0)
    found = largest_sd_over_noise(logits, log_variance, 10)
    torch.manual_seed(0)
    eps = np.stack([torch.randn_like(logits, dtype=torch.float32).numpy() for _ in range(10)])
    draws = np.stack([softmax(f + sigma * e, axis=1) for e in eps])
    expected = draws.std(axis=0).max(axis=1, keepdims=True)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-6)


# ------------------------------------------------------------------------------- what is certain


class Fixed(torch.nn.Module):
    """A network that gives the same logits wherever it looks."""

    multiples = (16, 16)

    def __init__(self, logits, log_variance=None):
        super().__init__()
        self.logits, self.log_variance = logits, log_variance

    def segment(self, x):
        rows, columns = x.shape[2:]
        return self.logits[None, :, :rows, :columns].expand(len(x), -1, -1, -1)

    def forward(self, x):
        return self.segment(x), self.log_variance[None].expand(len(x), -1, -1, -1)


def measure(uncertainty, **options):
    usual = {"certain_confidence": 0.8, "certain_sd": 0.001, "looks": 20, "views": "random"}
    return Namespace(uncertainty=uncertainty, **usual | options)


@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.9])
def test_softmax_is_certain_above_the_threshold(threshold):
    logits = torch.randn(3, 16, 32, generator=torch.Generator().manual_seed(0))
    chosen = measure("softmax", certain_confidence=threshold)
    prob, certain = certain_region(Fixed(logits), torch.zeros(16, 32), chosen, (16, 32), None, 3)
    torch.testing.assert_close(prob, logits.softmax(0))
    assert torch.equal(certain, logits.softmax(0).amax(0) > threshold)
    assert 0 < certain.float().mean() < 1


@pytest.mark.parametrize("views", ["random", "flips"])
def test_tta_is_uncertain_where_views_differ(views):
    """The left quarter is called object in each view, flipped or not: left and right are then
    uncertain, the middle stays certain background.
    """
    torch.manual_seed(0)
    object_logit = torch.full((64, 128), -10.0)
    object_logit[:, :16] = 10.0
    net = Fixed(torch.stack([torch.zeros_like(object_logit), object_logit]))
    image = torch.zeros(48, 64)
    prob, certain = certain_region(net, image, measure("tta", views=views), (48, 64), None, 2)
    assert torch.equal(prob[1] > 0.5, torch.arange(64).expand(48, 64) < 16)
    assert not certain[:, :10].any()
    assert not certain[:, -10:].any()
    assert certain[:, 24:40].all()


def test_aleatoric_is_certain_where_the_sd_is_small():
    """At p = 1/2 the softmax of two logits has an sd of about σ√2/4."""
    torch.manual_seed(0)
    logits = torch.zeros(2, 16, 32)
    log_variance = torch.full_like(logits, 2 * math.log(0.001))
    log_variance[:, :, 16:] = 2 * math.log(0.01)
    net = Fixed(logits, log_variance)
    image = torch.zeros(16, 32)
    _, certain = certain_region(net, image, measure("aleatoric"), (16, 32), None, 2)
    assert certain[:, :16].all()
    assert not certain[:, 16:].any()
    wide = measure("aleatoric", certain_sd=0.01)
    assert certain_region(net, image, wide, (16, 32), None, 2)[1].all()


@pytest.mark.parametrize("kind", ["tta", "mcdropout"])
def test_a_volume_is_certain_above_the_threshold_of_the_mean(kind):
    """In 3-D, with a network of the house."""
    torch.manual_seed(0)
    net = VNet(1, 2, 4, "instancenorm", dropout=0.5).eval()
    image = torch.randn(40, 24, 16)
    where = (image, (32, 16, 16))
    stride = (16, 16, 16)
    share = []
    for threshold in (0.5, 0.6, 0.99):
        chosen = measure(kind, looks=2, certain_confidence=threshold)
        prob, certain = certain_region(net, where[0], chosen, where[1], stride, 2)
        assert prob.shape == (2, 40, 24, 16)
        share.append(certain.float().mean().item())
    assert share[0] > share[1] > share[2]
    assert share[0] > 0.99
