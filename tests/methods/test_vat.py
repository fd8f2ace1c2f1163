"""VAT's objective and perturbation against the equations in NumPy float64: who learns from what,
and which statistics stay.
"""

import copy
from argparse import Namespace

import numpy as np
import pytest
import torch
import train_vat as vat
from references import shared
from references import vat as reference
from small import BOTH, LA

from networks.base import statistics_kept
from networks.unet import UNet
from utils.errors import UserError
from utils.perturbations import adversarial_direction, unit_norm

pytestmark = pytest.mark.usefixtures("one_thread")

LABELED, WEIGHT = 2, 0.3
DISTANCES = {"kl": reference.kl, "dice": reference.dice_distance}
BY_DISTANCE = pytest.mark.parametrize("distance", DISTANCES)


@pytest.fixture(params=[2, 4], ids=["binary", "four classes"])
def case(request):
    """Logits of two labelled and two unlabelled crops, without and with r, and the label."""
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((2, 4, request.param, 4, 3, 2))
    return logits, rng.integers(0, request.param, (LABELED, 4, 3, 2))


def ours(case, distance, weight=WEIGHT):
    z, perturbed = (torch.from_numpy(values.copy()).requires_grad_() for values in case[0])
    label = torch.from_numpy(case[1])
    loss, terms = vat.objective(z, perturbed, label, weight, Namespace(distance=distance))
    return loss, terms, z, perturbed


@BY_DISTANCE
def test_objective_against_numpy(case, distance):
    (z, perturbed), label = case
    parts = [z[:LABELED], label, z[LABELED:], perturbed[:LABELED], perturbed[LABELED:]]
    expected = reference.loss(*parts, WEIGHT, distance=DISTANCES[distance])
    loss, terms, _, _ = ours(case, distance)
    assert loss.item() == pytest.approx(expected, rel=1e-9)
    between = DISTANCES[distance](z, perturbed)
    assert terms["loss_vat"].item() == pytest.approx(between, rel=1e-9)


def test_a_voxel_by_hand():
    """p = 3/4 and q = 1/4 of the object."""
    z = torch.tensor([0.0, np.log(3)], dtype=torch.float64).view(1, 2, 1, 1, 1)
    assert vat.kl_distance(z, z.flip(1)).item() == pytest.approx(np.log(3) / 2)
    assert vat.kl_distance(z, z).item() == pytest.approx(0, abs=1e-12)
    assert vat.dice_distance(z, z.flip(1)).item() == pytest.approx(1 - 6 / 16)


@BY_DISTANCE
def test_all_crops_learn_from_the_perturbed_pass_only(case, distance):
    _, terms, z, perturbed = ours(case, distance)
    terms["loss_vat"].backward()
    assert z.grad is None
    assert perturbed.grad.ne(0).all()
    loss, _, z, _ = ours(case, distance)
    loss.backward()
    assert z.grad[LABELED:].eq(0).all()
    assert z.grad[:LABELED].ne(0).all()


class Linear(torch.nn.Module):
    """A 1×1 convolution, in the numbers of the reference."""

    def __init__(self, W, b):
        super().__init__()
        self.W, self.b = (torch.nn.Parameter(torch.from_numpy(values)) for values in (W, b))

    def forward(self, x):
        of_class = (-1, *[1] * (x.ndim - 2))
        return torch.einsum("ck,ik...->ic...", self.W, x) + self.b.view(of_class)


@pytest.fixture
def linear(monkeypatch):
    """A linear model, images, and the noise that each of its perturbations begins with."""
    rng = np.random.default_rng(0)
    W, b = rng.standard_normal((3, 2)), rng.standard_normal(3)
    image, noise = rng.standard_normal((2, 4, 2, 4, 3, 2))
    monkeypatch.setattr(torch, "randn_like", lambda image: torch.from_numpy(noise.copy()))
    return (W, b), image, noise


def perturbation_of(model, image, distance="kl", xi=1.0, epsilon=10.0):
    args = Namespace(distance=distance, xi=xi, epsilon=epsilon)
    x = torch.from_numpy(image)
    return vat.perturbation(model, x, model(x), args).numpy()


@pytest.mark.parametrize("xi", [0.01, 1.0, 10.0])
def test_direction_against_the_linear_models(linear, xi):
    (W, b), image, noise = linear
    gradient = reference.linear_gradient(W, b)
    expected = reference.perturbation(image, noise, gradient, xi, 6.0)
    found = perturbation_of(Linear(W, b), image, xi=xi, epsilon=6.0)
    np.testing.assert_allclose(found, expected, atol=1e-9)
    norms = np.sqrt((found.reshape(4, -1) ** 2).sum(1))
    np.testing.assert_allclose(norms, 6.0)


@BY_DISTANCE
def test_direction_against_autograd(linear, distance):
    (W, b), image, noise = linear
    model = Linear(W, b)
    gradient = reference.model_gradient(model, distance)
    expected = reference.perturbation(image, noise, gradient, 1.0, 10.0)
    np.testing.assert_allclose(perturbation_of(model, image, distance), expected, atol=1e-8)


def test_the_direction_leaves_no_gradient(linear):
    (W, b), image, _ = linear
    model = Linear(W, b)
    x = torch.from_numpy(image)
    args = Namespace(distance="kl", xi=1.0, epsilon=10.0)
    for found in (
        vat.perturbation(model, x, model(x), args),
        adversarial_direction(lambda d: model(x + d).square().mean(), x, 1.0),
    ):
        assert not found.requires_grad
    with torch.no_grad():  # it takes its own gradient there too
        again = vat.perturbation(model, x, model(x), args)
    assert not again.requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not x.requires_grad


def test_one_step_turns_noise_towards_the_worst_direction():
    """The KL that r causes is larger than that of noise of the same norm."""
    torch.manual_seed(0)
    net = UNet(1, 2, 4, dropout=0.0).eval()
    image = torch.randn(4, 1, 32, 32)
    args = Namespace(distance="kl", xi=1.0, epsilon=1.0)
    with torch.no_grad():
        z = net(image)
    r = vat.perturbation(net, image, z, args)
    with torch.no_grad():
        adversarial = vat.kl_distance(z, net(image + r))
        random = vat.kl_distance(z, net(image + unit_norm(torch.randn_like(image))))
    assert adversarial > 2 * random


def test_unit_norm_is_of_each_sample_and_keeps_zeros():
    values = torch.tensor([[3.0, 4.0], [0.0, 0.0], [0.0, -2.0]])[:, None]
    assert unit_norm(values)[:, 0].tolist() == pytest.approx(
        torch.tensor([[0.6, 0.8], [0.0, 0.0], [0.0, -1.0]])
    )
    np.testing.assert_allclose(
        unit_norm(values.double()).numpy(), reference.normalise(values.double().numpy())
    )


def test_perturbed_passes_leave_running_statistics_alone_and_use_those_of_the_batch():
    torch.manual_seed(0)
    net = UNet(1, 2, 4, dropout=0.0).train()
    image = torch.randn(2, 1, 32, 32)
    expected = copy.deepcopy(net)(image)
    before = {name: buffer.clone() for name, buffer in net.named_buffers()}
    with statistics_kept([net]):
        torch.testing.assert_close(net(image), expected)
        net(image).sum().backward()
    assert before
    assert all(torch.equal(buffer, before[name]) for name, buffer in net.named_buffers())
    net(image)
    assert not any(torch.equal(buffer, before[name]) for name, buffer in net.named_buffers())


def test_a_run_keeps_the_statistics_of_the_clean_passes(tiny_la, tmp_path, monkeypatch):
    """At a weight of 0 its batch norms are, to the bit, those of a run without perturbed passes."""
    ended = []
    for name in ("with", "without"):
        where = ["--root", str(tiny_la), "--runs", str(tmp_path / name)]
        vat.main([*LA, *BOTH, *where, *"--max_iterations 2 --consistency 0".split()])
        (path,) = (tmp_path / name).glob("*/*/*/last.pth")
        ended.append(torch.load(path, weights_only=True)["net"])
        monkeypatch.setattr(vat, "perturbation", lambda logits_of, image, z, args: 0.0 * image)
    assert any("running_mean" in key for key in ended[0])
    assert all(torch.equal(ended[0][key], ended[1][key]) for key in ended[0])


def test_the_weight_rises_over_the_training():
    args = vat.parse([])
    for step in (1, 3000, 6000):
        expected = reference.consistency_weight(step, 6000)
        assert vat.consistency_weight(step, args) == pytest.approx(expected)
    assert shared.ramp(6000, 6000) == 1


def test_settings_are_those_of_ssnet():
    for dataset in ("LA", "ACDC"):
        args = vat.parse(["--dataset", dataset])
        assert (args.xi, args.epsilon) == reference.SETTINGS[dataset]


def test_options_without_effect_are_refused():
    for flags in ("--rampup_share 1", "--distance dice", "--xi 1", "--epsilon 1"):
        with pytest.raises(UserError, match=r"--\w+ has no effect with --consistency 0"):
            vat.parse(["--consistency", "0", *flags.split()])
    with pytest.raises(UserError, match="--lr_step has no effect with --decay poly"):
        vat.parse("--decay poly --lr_step 3".split())
