"""DTML's objective against the equations in NumPy float64, its gradients and its limits."""

import math
from argparse import Namespace

import numpy as np
import pytest
import torch
import train_dtml as dtml
from numpy_reference import dice, softmax
from small import BOTH, LA

from utils.errors import UserError
from utils.losses import supervised_loss
from utils.ops import normalized_sdm_reference

pytestmark = pytest.mark.usefixtures("one_thread")

LABELED, WEIGHT = 2, 0.07


def dtml_l2_mean(d, sdm):
    """L_dis from section 3.2's words, "L2 loss between the output signed distance maps and
    transformed distance maps": the mean of squares, without a root or a factor 1/2.
    """
    return ((d.astype(float) - sdm) ** 2).sum() / d.size


def dtml_rampup_printed(t, tmax):
    """λ(t) as section 3.2 prints it."""
    return 0.1 * np.exp(-5.0 * (1.0 - t / tmax))


@pytest.fixture(params=[2, 3], ids=["binary", "three classes"])
def case(request):
    """Logits of M_s, distances of M_d (some so near 0 that σ(-1500 d) is soft), and labels."""
    rng = np.random.default_rng(0)
    shape = (4, 3, 2)
    logits = rng.standard_normal((4, request.param, *shape))
    sdm = np.tanh(
        rng.standard_normal((4, request.param - 1, *shape)) * 10 ** rng.uniform(-5, 0, shape)
    )
    return logits, sdm, rng.integers(0, request.param, (LABELED, *shape))


def ours(case, dis_loss="mask", weight=WEIGHT):
    logits, sdm = (torch.from_numpy(z.copy()).requires_grad_() for z in case[:2])
    loss, terms = dtml.objective(logits, sdm, torch.from_numpy(case[2]), weight, dis_loss)
    return loss, terms, logits, sdm


@pytest.mark.parametrize("dis_loss", ["mask", "l2", "both", "l1"])
def test_objective_against_numpy(case, dis_loss):
    logits, sdm, label = case
    classes = range(1, logits.shape[1])
    prob, prob_d = softmax(logits), 1 / (1 + np.exp(np.clip(1500 * sdm, -700, 700)))
    ce = -np.log(np.take_along_axis(prob[:LABELED], label[:, None], 1)).mean()
    seg = (ce + np.mean([dice(prob[:LABELED, c], (label == c).astype(float)) for c in classes])) / 2
    mask = np.mean([dice(prob_d[:LABELED, c - 1], (label == c).astype(float)) for c in classes])
    truth = np.stack(
        [normalized_sdm_reference(torch.from_numpy(label == c)).numpy() for c in classes], 1
    )
    l1 = np.abs(sdm[:LABELED] - truth).mean()
    l2 = dtml_l2_mean(sdm[:LABELED], truth)
    dis = {"mask": mask, "l2": l2, "both": mask + l2, "l1": l1}[dis_loss]
    con = ((prob[:, 1:] - prob_d) ** 2).mean()
    loss, terms, *_ = ours(case, dis_loss)
    assert loss.item() == pytest.approx(seg + dis + WEIGHT * con, rel=1e-6)
    assert [terms[f"loss_{name}"].item() for name in ("seg", "dis", "con")] == pytest.approx(
        [seg, dis, con], rel=1e-6
    )


def test_inside_is_where_the_distance_is_negative():
    """A perfect M_d by hand: distances of the label give its mask, and no loss."""
    label = torch.zeros(1, 1, 1, 8, dtype=torch.int64)
    label[..., 2:6] = 1
    sdm = torch.tensor([1.0, 0.5, -0.5, -1, -1, -0.5, 0.5, 1]).view(1, 1, 1, 1, 8)
    _, terms = dtml.objective(torch.zeros(1, 2, 1, 1, 8), sdm, label, 0.0, "mask")
    assert terms["loss_dis"].item() == pytest.approx(0, abs=1e-5)
    _, terms = dtml.objective(torch.zeros(1, 2, 1, 1, 8), -sdm, label, 0.0, "mask")
    assert terms["loss_dis"].item() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("dis_loss", ["l2", "both", "l1"])
def test_a_class_that_a_crop_lacks_is_far(case, dis_loss):
    """One crop of background alone: a distance of 1 everywhere is right."""
    logits, sdm, label = (torch.from_numpy(z[:1].copy()) for z in case)
    _, terms = dtml.objective(logits, torch.ones_like(sdm), torch.zeros_like(label), 0.0, dis_loss)
    assert terms["loss_dis"].item() == pytest.approx(0, abs=1e-6)


def test_each_network_learns_from_its_own_labels_and_both_from_the_consistency(case):
    loss, _, logits, sdm = ours(case, weight=0.0)
    loss.backward()
    alone = torch.from_numpy(case[0][:LABELED]).requires_grad_()
    supervised_loss(alone, torch.from_numpy(case[2])).backward()
    torch.testing.assert_close(logits.grad[:LABELED], alone.grad)
    assert logits.grad[LABELED:].eq(0).all()
    assert sdm.grad[LABELED:].eq(0).all()
    loss, terms, logits, sdm = ours(case)
    terms["loss_con"].backward()
    soft = sdm.abs() < 0.005  # elsewhere σ(-1500 d) is 0 or 1 and has no slope
    assert logits.grad[LABELED:].ne(0).all()
    assert sdm.grad[LABELED:][soft[LABELED:]].ne(0).all()
    assert soft[LABELED:].any()


def test_gradcheck(case):
    logits, sdm = (torch.from_numpy(z[1:3, :, :2, :1].copy()).requires_grad_() for z in case[:2])
    label = torch.from_numpy(case[2][1:, :2, :1].copy())
    sdm = (1e-3 * sdm.detach()).requires_grad_()  # where the steep sigmoid is soft
    for dis_loss in ("mask", "l2", "both"):
        assert torch.autograd.gradcheck(
            lambda z, d, kind=dis_loss: dtml.objective(z, d, label, WEIGHT, kind)[0],
            (logits, sdm),
            eps=1e-9,
            atol=1e-4,
        )


def test_distances_are_squared_by_hand():
    """The boundary's voxel and two outside have the distances 0, 1/2 and 1; M_d is off by 1/2, 0
    and 1.
    """
    label = torch.tensor([1, 0, 0]).view(1, 1, 1, 3)
    sdm = torch.tensor([0.5, 0.5, 0.0]).view(1, 1, 1, 1, 3)
    found = {
        kind: dtml.distance_loss(sdm, torch.zeros_like(sdm), label, kind).item()
        for kind in ("mask", "l2", "both", "l1")
    }
    assert found["l2"] == pytest.approx((1 / 4 + 1) / 3)
    assert found["l1"] == pytest.approx((1 / 2 + 1) / 3)
    assert found["both"] == pytest.approx(found["mask"] + found["l2"])


def test_consistency_weight():
    args = Namespace(consistency=0.1, max_iterations=6000, rampup="gaussian")
    assert dtml.consistency_weight(6000, args) == pytest.approx(0.1)
    assert dtml.consistency_weight(3000, args) == pytest.approx(0.1 * math.exp(-5 / 4))
    args.rampup = "printed"
    for t in (0, 1, 1500, 3000, 5999, 6000):
        assert dtml.consistency_weight(t, args) == pytest.approx(dtml_rampup_printed(t, 6000))
    assert dtml.consistency_weight(3000, args) == pytest.approx(0.1 * math.exp(-5 / 2))
    args = Namespace(consistency=1.0, max_iterations=6000)
    first, second = (dtml.consistency_weight_released(step, args) for step in (1, 151))
    assert first == dtml.consistency_weight_released(150, args) == 2 * math.exp(-5)
    assert second == 2 * math.exp(-5 * (39 / 40) ** 2)
    assert dtml.consistency_weight_released(6001, args) == 2


def test_released_is_both_losses_back_propagated_into_both_networks(case):
    """Two backward passes, of L_s and of L_d, each with the consistency, against the one sum with
    it twice.
    """
    total, _, *mine = ours(case, weight=2 * WEIGHT)
    total.backward()
    _, terms, *theirs = ours(case)
    (terms["loss_seg"] + WEIGHT * terms["loss_con"]).backward(retain_graph=True)
    (terms["loss_dis"] + WEIGHT * terms["loss_con"]).backward()
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one.grad, other.grad)


def test_the_released_code_has_its_own_rampup():
    with pytest.raises(UserError, match="--rampup printed"):
        dtml.parse(["--preset", "released", "--rampup", "printed"])


def test_labelled_only_sees_the_labelled_crops_of_the_method():
    args = dtml.parse(["--unlabeled", "0"])
    assert (args.labeled_bs, args.unlabeled_bs) == (2, 0)
    assert (args.sources["labeled_bs"], args.sources["unlabeled_bs"]) == ("ours", "ours")
    args = dtml.parse(["--unlabeled", "0", "--labeled_bs", "4"])
    assert (args.labeled_bs, args.unlabeled_bs) == (4, 0)


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ("--unlabeled 0 --unlabeled_bs 4", "--unlabeled_bs has no effect with --unlabeled 0"),
        ("--consistency 0 --rampup printed", "--rampup has no effect with --consistency 0"),
    ],
)
def test_options_without_effect_are_refused(flags, named):
    with pytest.raises(UserError, match=named):
        dtml.parse(flags.split())


def test_two_networks_with_a_head_and_an_optimizer_each(tiny_la, tmp_path):
    where = ["--root", str(tiny_la), "--runs", str(tmp_path)]
    dtml.main([*LA, *BOTH, *where, "--max_iterations", "1"])
    (path,) = tmp_path.glob("*/*/*/last.pth")
    ended = torch.load(path, weights_only=True)
    assert ended["test_networks"] == ["seg"]
    heads = {
        name: (spec["kwargs"]["segmentation_head"], spec["kwargs"]["sdm_head"])
        for name, spec in ended["networks"].items()
    }
    assert heads == {"seg": (True, False), "dis": (False, True)}
    for name in ("optimizer_seg", "optimizer_dis"):
        assert len(ended[name]["param_groups"]) == 1
