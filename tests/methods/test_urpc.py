"""URPC's objective against the equations in NumPy float64, its gradients, limits and schedules."""

from argparse import Namespace

import numpy as np
import pytest
import torch
import train_urpc as urpc
from references import urpc as reference

from utils.errors import UserError

pytestmark = pytest.mark.usefixtures("one_thread")

LABELED, WEIGHT = 2, 0.3


@pytest.fixture(params=[2, 4], ids=["binary", "four classes"])
def case(request):
    """Logits of four heads, and labels."""
    rng = np.random.default_rng(0)
    logits = [2 * rng.standard_normal((4, request.param, 4, 3, 2)) for _ in range(4)]
    return logits, rng.integers(0, request.param, (LABELED, 4, 3, 2))


def ours(case, weight=WEIGHT):
    logits = [torch.from_numpy(z.copy()).requires_grad_() for z in case[0]]
    loss, terms = urpc.objective(logits, torch.from_numpy(case[1]), weight)
    return loss, terms, logits


def test_objective_against_numpy(case):
    logits, y = case
    sup = reference.supervised_loss([z[:LABELED] for z in logits], y)
    con = reference.consistency([z[LABELED:] for z in logits])
    loss, terms, _ = ours(case)
    assert loss.item() == pytest.approx(sup + WEIGHT * con, rel=1e-9)
    assert terms["loss_sup"].item() == pytest.approx(sup, rel=1e-9)
    assert terms["loss_con"].item() == pytest.approx(con, rel=1e-9)


def test_uncertainty_against_numpy(case):
    logits, _ = case
    mean = sum(reference.softmax(z) for z in logits) / 4
    expected = reference.discrepancy(logits[0], mean)
    log_p = torch.from_numpy(logits[0]).log_softmax(1)
    found = urpc.divergence(log_p, torch.from_numpy(mean).log())
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-9)


def test_a_voxel_by_hand():
    """Two heads, 1/2 and 3/4, of mean 5/8: where there is one voxel, e^{-D} cancels."""
    q = np.array([3 / 8, 5 / 8])
    of_heads = [np.array([1 / 2, 1 / 2]), np.array([1 / 4, 3 / 4])]
    expected = np.mean([1 / 64 + (q * np.log(q / p)).sum() for p in of_heads])
    logits = [torch.from_numpy(np.log(p)).view(1, 2, 1, 1, 1) for p in of_heads]
    assert urpc.consistency_loss(logits).item() == pytest.approx(expected)


def test_heads_that_agree_have_no_consistency_loss(case):
    z = torch.from_numpy(case[0][0])
    assert urpc.consistency_loss([z] * 4).item() == pytest.approx(0, abs=1e-12)


def test_no_part_of_the_consistency_is_detached(case):
    """The gradient against differences of the loss itself."""
    _, terms, logits = ours(case)
    (gradient,) = torch.autograd.grad(terms["loss_con"], logits[:1])
    place, step = (LABELED, 1, 2, 1, 0), 1e-6
    values = []
    for sign in (1, -1):
        moved = [z.copy() for z in case[0]]
        moved[0][place] += sign * step
        values.append(reference.consistency([z[LABELED:] for z in moved]))
    slope = (values[0] - values[1]) / (2 * step)
    assert gradient[place].item() == pytest.approx(slope, rel=1e-5)


def test_only_unlabelled_crops_are_made_to_agree(case):
    _, terms, logits = ours(case)
    for gradient in torch.autograd.grad(terms["loss_con"], logits):
        assert not gradient[:LABELED].any()
        assert gradient[LABELED:].any()


def test_without_weight_unlabelled_crops_teach_nothing(case):
    loss, _, logits = ours(case, weight=0.0)
    loss.backward()
    for z in logits:
        assert z.grad[:LABELED].any()
        assert not z.grad[LABELED:].any()


def test_the_weight_grows_over_the_share_of_the_training():
    args = Namespace(consistency=0.1, rampup_share=0.5, max_iterations=100)
    assert urpc.consistency_weight(25, args) == pytest.approx(0.1 * np.exp(-5 * 0.25))
    assert urpc.consistency_weight(50, args) == urpc.consistency_weight(100, args) == 0.1


@pytest.mark.parametrize("step", [1, 1000, 30000])
def test_learning_rate_against_numpy(step):
    args = Namespace(base_lr=0.01, decay="poly", max_iterations=30000)
    assert urpc.learning_rate(step, args) == pytest.approx(reference.learning_rate(step - 1, 30000))


def test_options_without_effect_are_refused():
    with pytest.raises(UserError, match="--rampup_share has no effect"):
        urpc.parse(["--consistency", "0", "--rampup_share", "0.5"])
    with pytest.raises(UserError, match="--lr_step has no effect"):
        urpc.parse(["--decay", "poly", "--lr_step", "5"])
