"""Entropy, and the means over flips, passes with dropout and noisy logits that it is taken of."""

import math

import pytest
import torch

from networks.vnet import VNet
from utils.uncertainty import entropy, mean_over_dropout, mean_over_flips, noisy_softmax


def test_entropy_by_hand():
    prob = torch.tensor([[1.0, 0.0], [0.5, 0.5], [0.25, 0.75]]).T[None]
    by_hand = [0.0, math.log(2), 0.25 * math.log(4) + 0.75 * math.log(4 / 3)]
    torch.testing.assert_close(entropy(prob), torch.tensor([by_hand]))


@pytest.mark.parametrize("shape", [(4, 6), (4, 6, 3)])
def test_flips_are_all_seen_and_turned_back(shape):
    """What answers with its input is unmoved by any flip; what answers with a ramp is averaged to
    its middle.
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


def test_dropout_drops_in_eval_mode_and_leaves_it_as_it_was():
    torch.manual_seed(0)
    net = VNet(1, 2, 4, "batchnorm").eval()
    x = torch.randn(1, 1, 16, 16, 32)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    with torch.no_grad():
        three, one = (
            mean_over_dropout(lambda x: net(x).softmax(1), x, net, passes) for passes in (3, 1)
        )
        plain = net(x).softmax(1)
    assert not torch.allclose(one, plain)
    assert not torch.allclose(one, three)
    torch.testing.assert_close(three.sum(1), torch.ones_like(three[:, 0]))
    assert not any(layer.training for layer in net.modules())
    assert all(
        torch.equal(value, before[key]) for key, value in net.state_dict().items()
    )  # batch norm stays put


def test_noise_makes_a_softmax_less_sure():
    """The difference of two logits 4 apart, each with σ, is normal about 4 with σ√2."""
    torch.manual_seed(0)
    logits = torch.tensor([2.0, -2.0]).view(1, 2, 1).expand(1, 2, 4000)
    for log_variance in (-10.0, 0.0, 3.0):
        mean = noisy_softmax(logits, torch.full_like(logits, log_variance), 20)[0, 0].mean().item()
        sigma = math.sqrt(2 * math.exp(log_variance))
        grid = [4 + sigma * (k - 500) / 100 for k in range(1001)]
        density = [math.exp(-0.5 * ((k - 500) / 100) ** 2) for k in range(1001)]
        expected = sum(d / (1 + math.exp(-z)) for z, d in zip(grid, density, strict=True)) / sum(
            density
        )
        assert mean == pytest.approx(expected, abs=0.005)
