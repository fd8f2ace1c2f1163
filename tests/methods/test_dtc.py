"""DTC's objective against the equations in NumPy float64, its gradients, limits and schedules."""

from argparse import Namespace

import numpy as np
import pytest
import torch
import train_dtc as dtc
from references import dtc as reference

from utils.errors import UserError

pytestmark = pytest.mark.usefixtures("one_thread")

LABELED, WEIGHT = 2, 0.07
PAPER, RELEASED = Namespace(lambda_dis=1.0), Namespace(lambda_dis=0.3)


@pytest.fixture(params=[2, 4], ids=["binary", "four classes"])
def case(request):
    """Logits, distances (some so near 0 that σ(-1500 d) is soft), and labels with each class in
    each crop.
    """
    rng = np.random.default_rng(0)
    classes, shape = request.param, (4, 3, 2)
    z = rng.standard_normal((4, classes, *shape))
    d = np.tanh(rng.standard_normal((4, classes - 1, *shape)) * 10 ** rng.uniform(-5, 0, shape))
    y = rng.integers(0, classes, (LABELED, *shape))
    y[:, :, 0, 0] = np.arange(4) % classes
    return z, d, y


def ours(case, args=PAPER, weight=WEIGHT):
    z, d = (torch.from_numpy(values.copy()).requires_grad_() for values in case[:2])
    loss, terms = dtc.objective(z, d, torch.from_numpy(case[2]), weight, args)
    return loss, terms, z, d


@pytest.mark.parametrize("args", [PAPER, RELEASED], ids=["paper", "released"])
def test_objective_against_numpy(case, args):
    z, d, y = case
    sdm = reference.signed_distances(y, d.shape[1])
    loss, terms, *_ = ours(case, args)
    p = reference.objects(z)
    seg = reference.dice(p[:LABELED], reference.object_masks(y, d.shape[1]))
    supervised = reference.supervised_loss(z[:LABELED], d[:LABELED], y, sdm, args.lambda_dis)
    con = reference.consistency(z, d)
    assert terms["loss_seg"].item() == pytest.approx(seg, rel=1e-9)
    assert terms["loss_dis"].item() == pytest.approx(((d[:LABELED] - sdm) ** 2).mean(), rel=1e-6)
    assert terms["loss_con"].item() == pytest.approx(con, rel=1e-9)
    assert loss.item() == pytest.approx(supervised + WEIGHT * con, rel=1e-6)


def test_a_voxel_by_hand():
    """p = 3/4 of the class, σ(-1500 d) = 1/2: a quarter apart."""
    z = torch.tensor([0.0, np.log(3)]).view(1, 2, 1, 1, 1)
    loss = dtc.consistency_loss(z.softmax(1), torch.zeros(1, 1, 1, 1, 1))
    assert loss.item() == pytest.approx(1 / 16)


def test_both_heads_learn_from_each_term_that_they_are_in(case):
    loss, terms, z, d = ours(case)
    for name, heads in (("loss_seg", (z,)), ("loss_dis", (d,)), ("loss_con", (z, d))):
        gradients = torch.autograd.grad(terms[name], (z, d), retain_graph=True, allow_unused=True)
        for head, gradient in zip((z, d), gradients, strict=True):
            reached = gradient is not None and bool(gradient.abs().sum() > 0)
            assert reached == any(head is one for one in heads), name
    loss.backward()
    assert z.grad[LABELED:].abs().sum() > 0
    assert d.grad[LABELED:].abs().sum() > 0


def test_without_weight_unlabelled_crops_teach_nothing(case):
    loss, _, z, d = ours(case, weight=0.0)
    loss.backward()
    assert not z.grad[LABELED:].any()
    assert not d.grad[LABELED:].any()


def test_the_weight_grows_over_the_share_of_the_training():
    args = Namespace(consistency=0.5, rampup_share=0.5, max_iterations=100)
    assert dtc.consistency_weight(25, args) == pytest.approx(0.5 * np.exp(-5 * 0.25))
    assert dtc.consistency_weight(50, args) == dtc.consistency_weight(100, args) == 0.5


@pytest.mark.parametrize("step", [1, 150, 151, 3000, 6000])
def test_released_weight_is_a_staircase(step):
    found = dtc.consistency_weight_released(step, Namespace(consistency=1.0))
    assert found == pytest.approx(reference.consistency_weight(step - 1))


def test_presets_differ_in_the_weight_of_the_distances():
    assert dtc.parse([]).lambda_dis == 1.0
    assert dtc.parse(["--preset", "released"]).lambda_dis == 0.3


@pytest.mark.parametrize("flags", [["--preset", "released"], ["--consistency", "0"]])
def test_a_rampup_without_effect_is_refused(flags):
    with pytest.raises(UserError, match="--rampup_share has no effect"):
        dtc.parse([*flags, "--rampup_share", "0.5"])
