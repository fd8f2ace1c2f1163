"""DMD's objective against the equations in NumPy float64, its gradients and its limits."""

from argparse import Namespace

import numpy as np
import pytest
import torch
import train_dmd as dmd
from numpy_reference import dice, softmax
from small import BOTH, LA

from utils.errors import UserError

pytestmark = pytest.mark.usefixtures("one_thread")

LABELED = 2
DISTILL = {"dice": dmd.distillation_loss, "kl": dmd.distillation_loss_kl}


def mean_dice(p, q):
    return np.mean([dice(p[:, c], q[:, c]) for c in range(1, p.shape[1])])


def divergence(p, q):
    return (p * np.log(p / q)).sum(1).mean()


@pytest.fixture(params=[2, 4], ids=["binary", "four classes"])
def case(request):
    """Logits of both networks for two labelled and two unlabelled crops, and the label."""
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((2, 4, request.param, 4, 3, 2))
    return logits, rng.integers(0, request.param, (LABELED, 4, 3, 2))


def ours(case, distill="dice", temperature=2.0, lambda_distill=4.0):
    logits = [torch.from_numpy(z.copy()).requires_grad_() for z in case[0]]
    args = Namespace(distill=distill, temperature=temperature, lambda_distill=lambda_distill)
    loss, terms = dmd.objective(*logits, torch.from_numpy(case[1]), args)
    return loss, terms, logits


@pytest.mark.parametrize("temperature", [1.0, 1.93, 5.0])
@pytest.mark.parametrize(("distill", "weight"), [("dice", 4.0), ("kl", 1.0)])
def test_objective_against_numpy(case, distill, weight, temperature):
    (z_1, z_2), label = case
    truth = np.stack([label == c for c in range(z_1.shape[1])], 1).astype(float)
    expected = mean_dice(softmax(z_1[:LABELED]), truth) + mean_dice(softmax(z_2[:LABELED]), truth)
    p_1, p_2 = softmax(z_1 / temperature), softmax(z_2 / temperature)
    between = (
        mean_dice(p_1, p_2) if distill == "dice" else divergence(p_2, p_1) + divergence(p_1, p_2)
    )
    loss, terms, _ = ours(case, distill, temperature, weight)
    assert loss.item() == pytest.approx(expected + weight * between, rel=1e-12)
    assert terms["loss_distill"].item() == pytest.approx(between, rel=1e-12)


@pytest.mark.parametrize("temperature", [1.0, 1.93, 5.0])
def test_two_channels_are_the_papers_one_channel_and_its_sigmoid(temperature):
    """Equation 5: σ(z/T) of one logit, the difference of ours."""
    z_1, z_2 = np.random.default_rng(0).standard_normal((2, 4, 2, 4, 3, 2))
    q_1, q_2 = (1 / (1 + np.exp(-(z[:, 1] - z[:, 0]) / temperature)) for z in (z_1, z_2))
    found = dmd.distillation_loss(torch.from_numpy(z_1), torch.from_numpy(z_2), temperature)
    assert found.item() == pytest.approx(dice(q_1, q_2), rel=1e-12)


def test_one_optimizer_moves_both_networks_and_the_first_is_tested(tiny_la, tmp_path):
    where = ["--root", str(tiny_la), "--runs", str(tmp_path)]
    dmd.main([*LA, *BOTH, *where, "--max_iterations", "1"])
    (path,) = tmp_path.glob("*/*/*/last.pth")
    ended = torch.load(path, weights_only=True)
    assert ended["test_networks"] == ["net"]
    weights = [ended[name]["heads.0.weight"] for name in ("net", "net_2")]
    assert not torch.equal(*weights)
    count = sum(name.endswith((".weight", ".bias")) for name in ended["net"])
    (group,) = ended["optimizer"]["param_groups"]
    assert len(group["params"]) == 2 * count
    assert (group["momentum"], group["weight_decay"]) == (0.9, 1e-4)


def test_a_voxel_by_hand():
    """One voxel, p₁ = 3/4 and p₂ = 1/4 of the object at T = 1, and at T = 2 √3 to 1."""
    z = torch.tensor([0.0, np.log(3)], dtype=torch.float64).view(1, 2, 1, 1, 1)
    assert DISTILL["kl"](z, z.flip(1), 1.0).item() == pytest.approx(np.log(3))
    assert DISTILL["dice"](z, z.flip(1), 1.0).item() == pytest.approx(1 - 6 / 10, abs=1e-4)
    p = np.sqrt(3) / (1 + np.sqrt(3))
    assert DISTILL["kl"](z, z.flip(1), 2.0).item() == pytest.approx((2 * p - 1) * np.log(3))
    assert DISTILL["dice"](z, z.flip(1), 2.0).item() == pytest.approx(
        1 - 2 * p * (1 - p) / (p**2 + (1 - p) ** 2), abs=1e-4
    )


@pytest.mark.parametrize("distill", ["dice", "kl"])
def test_both_networks_learn_from_both_streams(case, distill):
    loss, _, (z_1, z_2) = ours(case, distill)
    loss.backward()
    for z in (z_1, z_2):
        assert z.grad.ne(0).all()  # no target is detached, and no crop left out


@pytest.mark.parametrize("distill", ["dice", "kl"])
def test_agreement_costs_nothing(case, distill):
    z = torch.from_numpy(case[0][0].copy())
    assert DISTILL[distill](z, z, 2.0).item() == pytest.approx(0, abs=1e-12)


def test_without_distillation_the_networks_do_not_meet(case):
    loss, _, (z_1, z_2) = ours(case, lambda_distill=0.0)
    loss.backward()
    for z in (z_1, z_2):
        alone = z.detach()[:LABELED].requires_grad_()
        dmd.foreground_dice_loss(alone.softmax(1), torch.from_numpy(case[1])).backward()
        torch.testing.assert_close(z.grad[:LABELED], alone.grad)
        assert z.grad[LABELED:].eq(0).all()


def test_without_distillation_its_form_is_refused():
    for flags in ("--distill kl", "--temperature 2"):
        with pytest.raises(UserError, match=r"--\w+ has no effect with --lambda_distill 0"):
            dmd.parse(["--lambda_distill", "0", *flags.split()])


def test_softer_targets_differ_less(case):
    z_1, z_2 = (torch.from_numpy(z) for z in case[0])
    for distill in ("dice", "kl"):
        losses = [DISTILL[distill](z_1, z_2, t).item() for t in (0.5, 1, 2, 5)]
        assert losses == sorted(losses, reverse=True)


@pytest.mark.parametrize("distill", ["dice", "kl"])
def test_gradcheck(case, distill):
    logits = [torch.from_numpy(z[1:3, :, :2, :1, :1].copy()).requires_grad_() for z in case[0]]
    label = torch.from_numpy(case[1][1:, :2, :1, :1].copy())
    args = Namespace(distill=distill, temperature=1.93, lambda_distill=4.0)
    assert torch.autograd.gradcheck(lambda *z: dmd.objective(*z, label, args)[0], logits)
