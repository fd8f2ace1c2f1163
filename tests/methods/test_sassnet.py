"""SASSNet's objective against the equations in NumPy float64: who learns from what, and when."""

from argparse import Namespace

import numpy as np
import pytest
import torch
import train_sassnet as sassnet
from references import sassnet as reference
from references.dtc import signed_distances

from networks.discriminator import MapImageDiscriminator, judge
from utils.errors import UserError

pytestmark = pytest.mark.usefixtures("one_thread")

LABELED, WEIGHT = 2, 0.3
ARGS = Namespace(lambda_dis=0.3)


@pytest.fixture(params=[2, 4], ids=["binary", "four classes"])
def case(request):
    """Logits, distances, labels with each class in each crop, and the discriminator's logits."""
    rng = np.random.default_rng(0)
    classes, shape = request.param, (4, 3, 2)
    z = rng.standard_normal((4, classes, *shape))
    d = np.tanh(rng.standard_normal((4, classes - 1, *shape)))
    y = rng.integers(0, classes, (LABELED, *shape))
    y[:, :, 0, 0] = np.arange(4) % classes
    return z, d, y, rng.standard_normal((4, 2))


def ours(case, weight=WEIGHT):
    z, d, y, verdict = (torch.from_numpy(values.copy()) for values in case)
    heads = z.requires_grad_(), d.requires_grad_(), verdict[LABELED:].requires_grad_()
    loss, terms = sassnet.objective(*heads[:2], y, heads[2], weight, ARGS)
    return loss, terms, heads


def test_objective_against_numpy(case):
    z, d, y, verdict = case
    sdm = signed_distances(y, d.shape[1])
    supervised = reference.supervised_loss(z[:LABELED], d[:LABELED], y, sdm)
    adversarial = reference.adversarial_loss(verdict[LABELED:])
    loss, terms, _ = ours(case)
    assert terms["loss_adv"].item() == pytest.approx(adversarial, rel=1e-9)
    assert loss.item() == pytest.approx(supervised + WEIGHT * adversarial, rel=1e-6)


def test_discriminator_loss_against_numpy(case):
    verdict = case[3]
    expected = reference.discriminator_loss(verdict, 1)
    found = sassnet.discriminator_loss(torch.from_numpy(verdict), 1)
    assert found.item() == pytest.approx(expected, rel=1e-9)


def test_verdicts_by_hand():
    """An undecided discriminator costs ln 2 on either side; a certain one costs one of them."""
    undecided = torch.zeros(2, 2)
    assert sassnet.adversarial_loss(undecided).item() == pytest.approx(np.log(2))
    assert sassnet.discriminator_loss(undecided, 1).item() == pytest.approx(np.log(2))
    right = torch.tensor([[0.0, 50.0], [50.0, 0.0]])  # the first crop is labelled
    assert sassnet.discriminator_loss(right, 1).item() == pytest.approx(0, abs=1e-6)
    assert sassnet.adversarial_loss(right[1:]).item() == pytest.approx(50)


def test_the_adversary_teaches_the_distances_of_unlabelled_crops_only(case):
    z, d, y, _ = (torch.from_numpy(values.copy()).float() for values in case)
    d.requires_grad_()
    image = torch.randn(4, 1, 16, 16, 16)
    maps = d.mean((2, 3, 4), keepdim=True).expand(-1, -1, 16, 16, 16)
    D = MapImageDiscriminator(d.shape[1], n_filters=2)
    verdict = judge(D, maps[LABELED:], image[LABELED:])
    loss_adv = sassnet.objective(z, d, y.long(), verdict, WEIGHT, ARGS)[1]["loss_adv"]
    loss_adv.backward()
    assert not d.grad[:LABELED].any()
    assert d.grad[LABELED:].any()
    assert all(parameter.grad is None for parameter in D.parameters())


def test_without_weight_unlabelled_crops_teach_nothing(case):
    loss, _, (z, d, _) = ours(case, weight=0.0)
    loss.backward()
    assert not z.grad[LABELED:].any()
    assert not d.grad[LABELED:].any()


def test_the_weight_is_the_readmes():
    for labels, weight in ((16, 0.01), (8, 0.015), (4, 0.015), (80, 0.01)):
        assert sassnet.parse(["--labelnum", str(labels)]).consistency == weight
    args = Namespace(consistency=0.01, rampup_share=1.0, max_iterations=6000)
    assert sassnet.consistency_weight(6000, args) == reference.adversarial_weight(6000)
    assert sassnet.consistency_weight(3000, args) == pytest.approx(
        reference.adversarial_weight(3000)
    )


def test_options_without_an_adversary_are_refused():
    for option in ("--rampup_share", "--discriminator_lr", "--discriminator_filters"):
        with pytest.raises(UserError, match=f"{option} has no effect"):
            sassnet.parse(["--consistency", "0", option, "1"])
