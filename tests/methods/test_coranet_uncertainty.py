"""CoraNet with other measures of uncertainty: its losses in NumPy float64, and what it calls
certain.
"""

import math
from argparse import Namespace

import numpy as np
import pytest
import torch
import train_coranet_uncertainty as coranet
from numpy_reference import dice, softmax
from test_coranet import EPOCH, LABELED, FakeData, FakeJob, nll

from networks.vnet import VNet

pytestmark = pytest.mark.usefixtures("one_thread")


def options(uncertainty="tta", **others):
    usual = {"looks": 4, "certain_below": 0.5, "relabel_stride": (8, 8, 8)}
    return Namespace(uncertainty=uncertainty, **usual | others)


@pytest.mark.parametrize("preset", ["paper", "released"])
def test_objective_against_numpy(preset):
    rng = np.random.default_rng(0)
    D = rng.standard_normal((4, 2, 4, 3, 2))
    D_teacher = rng.standard_normal((2, 2, 4, 3, 2))
    label = rng.integers(0, 2, (LABELED, 4, 3, 2))
    pseudo = rng.integers(0, 2, (2, 4, 3, 2))
    certain = rng.random((2, 4, 3, 2)) < 0.7
    square = (softmax(D[LABELED:]) - softmax(D_teacher)) ** 2
    expected = nll(D[:LABELED], label).mean()
    csn = nll(D[LABELED:], pseudo)[certain].mean()
    if preset == "paper":
        expected += csn + square.mean(1)[~certain].mean()
    else:
        p, q = softmax(D[:LABELED])[:, 1], softmax(D[LABELED:])[:, 1]
        expected = (expected + dice(p, (label == 1).astype(float))) / 2
        csn = (csn + dice(q * certain, ((pseudo == 1) & certain).astype(float))) / 2
        weight = 0.1 * math.exp(-5 * (1 - EPOCH / 40) ** 2)
        expected += 0.5 * (csn + weight * square.sum(1)[~certain].mean())

    certain = torch.from_numpy(certain)
    objective = coranet.objective_released if preset == "released" else coranet.objective
    loss, terms = objective(
        [torch.from_numpy(D)],
        torch.from_numpy(label),
        options(),
        EPOCH,
        pseudo=torch.from_numpy(pseudo),
        pseudo_region=certain,
        teacher=[torch.from_numpy(D_teacher)],
        teacher_region=~certain,
    )
    assert loss.item() == pytest.approx(expected, rel=1e-6)
    assert {"loss_crm", "loss_csn", "loss_cnt"} < terms.keys()


def test_aleatoric_is_the_likelihood_of_a_mean_softmax():
    """With next to no noise it is the cross-entropy of D; noise takes away what a sure and wrong
    prediction costs.
    """
    D = torch.tensor([0.0, 4.0], dtype=torch.float64).view(1, 2, 1, 1).expand(1, 2, 50, 50)
    label = torch.zeros(1, 50, 50, dtype=torch.int64)  # all wrong
    args = options("aleatoric", looks=50)
    torch.manual_seed(0)
    quiet, loud = (
        coranet.objective([D, torch.full_like(D, s)], label, args)[0] for s in (-10.0, 3.0)
    )
    assert quiet.item() == pytest.approx(np.log(1 + np.exp(4)), rel=0.01)
    assert loud < quiet / 2
    log_variance = torch.full_like(D, -1.0).requires_grad_()
    coranet.objective([D, log_variance], label, args)[0].backward()
    assert log_variance.grad.sum() < 0  # it learns to be unsure


@pytest.mark.parametrize(("kind", "branches"), [("tta", 1), ("mcdropout", 1), ("aleatoric", 2)])
def test_certain_is_where_the_entropy_is_low(kind, branches):
    torch.manual_seed(0)
    net = VNet(1, 2, 2, "instancenorm", branches=branches).eval()
    share = []
    for limit in (0.0, 0.6, 0.9, 1.0):
        args = options(kind, certain_below=limit)
        found = coranet.relabel(net, FakeData(), range(4, 6), FakeJob(), args)
        assert set(found) == {1, 2}
        for case, (pseudo, _) in found.items():
            image = FakeData().volumes.images[case][None, None]
            D = coranet.branches_of(net.eval()(image))[0]
            assert torch.equal(pseudo.long(), D[0].argmax(0))
        certain = torch.stack([certain for _, certain in found.values()])
        share.append(certain.float().mean().item())
    assert share[0] == 0
    assert share == sorted(share)
    assert share[-1] > share[0]
