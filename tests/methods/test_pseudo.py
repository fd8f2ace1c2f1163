"""Pseudo-label's objective against the equations in NumPy float64, its gradients and its limits."""

from argparse import Namespace

import numpy as np
import pytest
import torch
import train_pseudo as pseudo
from references import pseudo as reference
from references import shared

from utils.errors import UserError

pytestmark = pytest.mark.usefixtures("one_thread")

LABELED = 2


@pytest.fixture(params=[2, 4], ids=["binary", "four classes"])
def case(request):
    """Logits of two labelled and two unlabelled crops, and the label."""
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((4, request.param, 4, 3, 2))
    return logits, rng.integers(0, request.param, (LABELED, 4, 3, 2))


def ours(case, weight=0.7, threshold=0.0):
    z = torch.from_numpy(case[0].copy()).requires_grad_()
    loss, terms = pseudo.objective(z, torch.from_numpy(case[1]), weight, threshold)
    return loss, terms, z


@pytest.mark.parametrize("threshold", [0.0, 0.6, 0.9, 1.0])
def test_objective_against_numpy(case, threshold):
    z, label = case
    expected = reference.loss(z[:LABELED], label, z[LABELED:], 0.7, threshold)
    kept = reference.kept_voxels(z[LABELED:], threshold)
    loss, terms, _ = ours(case, threshold=threshold)
    assert loss.item() == pytest.approx(expected, rel=1e-9)
    assert terms["certain"].item() == pytest.approx(kept.mean(), rel=1e-6)


def test_a_voxel_by_hand():
    """p = 3/4 of the object: it is learnt as one at a threshold of up to 3/4, else nothing is."""
    z = torch.tensor([0.0, np.log(3)], dtype=torch.float64).view(1, 2, 1, 1, 1)
    for threshold, expected in ((0.0, -np.log(3 / 4)), (0.74, -np.log(3 / 4)), (0.76, 0.0)):
        assert pseudo.pseudo_loss(z, threshold)[0].item() == pytest.approx(expected)


def test_only_certain_voxels_learn_and_their_labels_pass_no_gradient_on(case):
    loss, _, z = ours(case, threshold=0.6)
    loss.backward()
    own = case[0][LABELED:]
    kept = reference.kept_voxels(own, 0.6)
    truth = shared.one_hot(own.argmax(1), own.shape[1])
    expected = 0.7 * (np.exp(shared.log_softmax(own)) - truth) * kept[:, None] / kept.sum()
    np.testing.assert_allclose(z.grad[LABELED:].numpy(), expected, atol=1e-12)


@pytest.mark.parametrize(("weight", "threshold"), [(0.0, 0.0), (1.0, 1.0)])
def test_without_pseudo_labels_it_is_supervised(case, weight, threshold):
    loss, _, z = ours(case, weight, threshold)
    loss.backward()
    assert z.grad[LABELED:].eq(0).all()
    alone = z.detach()[:LABELED].requires_grad_()
    pseudo.supervised_loss(alone, torch.from_numpy(case[1]), background=True).backward()
    torch.testing.assert_close(z.grad[:LABELED], alone.grad)


def test_the_weight_grows_linearly_after_a_sixth_of_the_training():
    args = pseudo.parse([])
    steps = (1, 999, 1000, 3500, 6000)
    expected = [reference.consistency_weight_here(step, 6000) for step in steps]
    assert expected[:3] == [0, 0, 0]
    assert expected[3:] == [0.5, 1]
    assert [pseudo.consistency_weight(step, args) for step in steps] == pytest.approx(expected)
    lee = Namespace(consistency=3.0, rampup_from=0.1, rampup_share=0.6, max_iterations=1000)
    steps = (1, 99, 100, 350, 600, 1000)
    expected = [reference.consistency_weight(step, 100, 600) for step in steps]
    assert [pseudo.consistency_weight(step, lee) for step in steps] == pytest.approx(expected)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_the_weight_may_start_at_once(share):
    args = Namespace(consistency=2.0, rampup_from=share, rampup_share=share, max_iterations=10)
    weights = [pseudo.consistency_weight(step, args) for step in range(1, 11)]
    assert weights == [2.0 * (step >= 10 * share) for step in range(1, 11)]


def test_options_that_do_not_fit_are_refused():
    for flags in ("--rampup_from 0.3", "--rampup_share 0.5", "--threshold 0.5"):
        with pytest.raises(UserError, match=r"--\w+ has no effect with --consistency 0"):
            pseudo.parse(["--consistency", "0", *flags.split()])
    with pytest.raises(UserError, match=r"--rampup_from 0.5 lies behind --rampup_share 0.25"):
        pseudo.parse("--rampup_from 0.5 --rampup_share 0.25".split())
    with pytest.raises(UserError, match="--lr_step has no effect with --decay poly"):
        pseudo.parse(["--decay", "poly", "--lr_step", "3"])
