"""The Π-model's loss against its facts in NumPy float64, who gets gradients, its schedule and
options.
"""

import numpy as np
import pytest
import torch
import train_pi as pi
from listening import listen, noise
from references import pi as reference
from references import shared
from small import BOTH, LA

from utils.errors import UserError

pytestmark = pytest.mark.usefixtures("one_thread")

LABELLED, WEIGHT = 2, 0.07


@pytest.fixture(params=[2, 4], ids=["binary", "four classes"])
def case(request):
    """Logits of both passes for two labelled and two unlabelled crops, and a label."""
    rng = np.random.default_rng(0)
    shape = (4, 3, 2)
    z_1, z_2 = (2 * rng.standard_normal((4, request.param, *shape)) for _ in range(2))
    return z_1, z_2, rng.integers(0, request.param, (LABELLED, *shape))


def ours(case):
    z_1, z_2 = (torch.from_numpy(z.copy()).requires_grad_() for z in case[:2])
    loss, terms = pi.objective(z_1, z_2, torch.from_numpy(case[2]), WEIGHT)
    return loss, terms, z_1, z_2


def test_objective_against_numpy(case):
    z_1, z_2, label = case
    expected = reference.loss(
        z_1[:LABELLED], label, z_1[LABELLED:], z_2[:LABELLED], z_2[LABELLED:], WEIGHT
    )
    loss, terms, _, _ = ours(case)
    assert loss.item() == pytest.approx(expected, abs=1e-9)
    assert terms["loss_con"].item() == pytest.approx(reference.consistency(z_1, z_2), abs=1e-9)


def test_gradient_goes_through_both_passes(case):
    _, terms, z_1, z_2 = ours(case)
    terms["loss_con"].backward()
    for z in (z_1, z_2):
        assert z.grad.flatten(1).any(1).all()
    _, terms, z_1, z_2 = ours(case)
    terms["loss_sup"].backward()
    assert z_1.grad.flatten(1).any(1).tolist() == [True, True, False, False]
    assert z_2.grad is None


def test_one_voxel_by_hand():
    """(1/2, 1/2) against (3/4, 1/4): 1/16 in each class."""
    z_2 = torch.tensor([3.0, 1.0]).log().view(1, 2, 1, 1)
    assert pi.consistency_loss(torch.zeros(1, 2, 1, 1), z_2).item() == pytest.approx(1 / 16)


def test_schedules():
    args = pi.parse([])
    for step in (1, 3000, 6000):
        expected = reference.consistency_weight(step, 6000)
        assert pi.consistency_weight(step, args) == pytest.approx(expected, rel=1e-12)
        expected = shared.learning_rate(step - 1, "A")
        assert pi.learning_rate(step, args) == pytest.approx(expected, rel=1e-12)
    args = pi.parse(["--dataset", "ACDC"])
    expected = shared.learning_rate(14999, "D", 30000)
    assert pi.learning_rate(15000, args) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--decay", "poly", "--lr_step", "1"], "--lr_step has no effect with --decay poly"),
        (["--consistency", "0", "--rampup_share", "1"], "--rampup_share has no effect"),
    ],
)
def test_options_without_effect_are_refused(flags, message):
    with pytest.raises(UserError, match=message):
        pi.parse(flags)


def test_either_pass_has_a_noise_of_its_own(tiny_la, tmp_path):
    parts = listen(pi, tiny_la, tmp_path, *LA, *BOTH, "--max_iterations", "2")
    assert len(parts) == 2
    for part in parts:
        one, two = part.passes
        drawn = [noise(heard.given[0], part.batch.image) for heard in (one, two)]
        assert not torch.equal(*drawn)
        for heard in (one, two):
            assert (heard.name, heard.training, heard.gradient) == ("net", True, True)
        assert torch.equal(part.objective["z_1"], one.answer)
        assert torch.equal(part.objective["z_2"], two.answer)
        assert part.objective["z_2"].requires_grad
