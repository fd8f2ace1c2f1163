"""CPS's objective against the equations in NumPy float64, its gradients and its limits."""

from argparse import Namespace

import numpy as np
import pytest
import torch
import train_cps as cps
from references import cps as reference
from references import shared
from small import BOTH, LA

from utils.errors import UserError

pytestmark = pytest.mark.usefixtures("one_thread")

LABELED = 2


@pytest.fixture(params=[2, 4], ids=["binary", "four classes"])
def case(request):
    """Logits of both networks for two labelled and two unlabelled crops, and the label."""
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((2, 4, request.param, 4, 3, 2))
    return logits, rng.integers(0, request.param, (LABELED, 4, 3, 2))


def ours(case, weight=1.5, on="all"):
    logits = [torch.from_numpy(z.copy()).requires_grad_() for z in case[0]]
    label = torch.from_numpy(case[1])
    loss, terms = cps.objective(*logits, label, weight, Namespace(consistency_on=on))
    return loss, terms, logits


@pytest.mark.parametrize(("on", "name"), [("all", "lu"), ("unlabeled", "u")])
def test_objective_against_numpy(case, on, name):
    (z_1, z_2), label = case
    parts = [z_1[:LABELED], z_2[:LABELED], label, z_1[LABELED:], z_2[LABELED:]]
    expected = reference.loss(*parts, 1.5, on=name)
    loss, terms, _ = ours(case, on=on)
    assert loss.item() == pytest.approx(expected, rel=1e-9)
    supervised = shared.supervised(z_1[:LABELED], label)
    assert terms["loss_1"].item() == pytest.approx(supervised, rel=1e-9)


def test_a_voxel_by_hand():
    """Network 1 has 3/4 of the object and network 2 a third: each learns the other's class."""
    z_1, z_2 = (
        torch.tensor([0.0, np.log(odds)], dtype=torch.float64).view(1, 2, 1, 1, 1)
        for odds in (3.0, 0.5)
    )
    assert cps.cross_supervision_loss(z_1, z_2).item() == pytest.approx(-np.log(1 / 4 * 1 / 3))
    agreed = cps.cross_supervision_loss(z_1, z_1).item()
    assert agreed == pytest.approx(-2 * np.log(3 / 4))


def test_each_network_learns_from_the_other_and_no_pseudo_label_passes_a_gradient_on(case):
    (z_1, z_2), _ = case
    _, _, logits = ours(case)
    cps.cross_supervision_loss(*logits).backward()
    for own, other, z in ((z_1, z_2, logits[0]), (z_2, z_1, logits[1])):
        truth = shared.one_hot(other.argmax(1), own.shape[1])
        voxels = own[:, 0].size
        expected = (np.exp(shared.log_softmax(own)) - truth) / voxels
        np.testing.assert_allclose(z.grad.numpy(), expected, atol=1e-12)


def test_on_unlabelled_crops_only_the_labelled_ones_learn_from_labels_only(case):
    loss, _, logits = ours(case, on="unlabeled")
    loss.backward()
    _, _, apart = ours(case, on="unlabeled")
    for z, alone in zip(logits, apart, strict=True):
        cps.supervised_loss(alone[:LABELED], torch.from_numpy(case[1]), True).backward()
        torch.testing.assert_close(z.grad[:LABELED], alone.grad[:LABELED])
        assert z.grad[LABELED:].ne(0).all()


def test_without_pseudo_labels_the_networks_do_not_meet(case):
    loss, _, logits = ours(case, weight=0.0)
    loss.backward()
    for z in logits:
        assert z.grad[LABELED:].eq(0).all()


def test_the_weight_is_constant_unless_it_is_ramped_up():
    args = Namespace(consistency=1.5, rampup_share=0.0, max_iterations=6000)
    assert [cps.consistency_weight(step, args) for step in (1, 3000, 6000)] == [1.5] * 3
    args = Namespace(consistency=0.1, rampup_share=1.0, max_iterations=30000)
    expected = [0.1 * shared.ramp(step, 30000) for step in (1, 15000, 30000)]
    assert [cps.consistency_weight(step, args) for step in (1, 15000, 30000)] == expected


def test_the_learning_rate_falls_in_steps_or_as_a_polynomial():
    args = cps.parse(["--decay", "step"])
    expected = [shared.learning_rate(t, "A") for t in (0, 2499, 2500, 5000)]
    assert [cps.learning_rate(t + 1, args) for t in (0, 2499, 2500, 5000)] == expected
    args = cps.parse(["--dataset", "BraTS2019"])
    expected = [shared.learning_rate(t, "D") for t in (0, 15000, 29999)]
    assert [cps.learning_rate(t + 1, args) for t in (0, 15000, 29999)] == expected


def test_one_optimizer_moves_both_networks_and_the_first_is_tested(tiny_la, tmp_path):
    where = ["--root", str(tiny_la), "--runs", str(tmp_path)]
    cps.main([*LA, *BOTH, *where, "--max_iterations", "1"])
    (path,) = tmp_path.glob("*/*/*/last.pth")
    ended = torch.load(path, weights_only=True)
    assert ended["test_networks"] == ["net"]
    assert not torch.equal(*(ended[name]["heads.0.weight"] for name in ("net", "net_2")))
    (group,) = ended["optimizer"]["param_groups"]
    assert (group["momentum"], group["weight_decay"]) == (0.9, 1e-4)


def test_options_without_effect_are_refused():
    for flags in ("--rampup_share 1", "--consistency_on unlabeled"):
        with pytest.raises(UserError, match=r"--\w+ has no effect with --consistency 0"):
            cps.parse(["--consistency", "0", *flags.split()])
    with pytest.raises(UserError, match="--lr_step has no effect with --decay poly"):
        cps.parse(["--decay", "poly", "--lr_step", "3"])
