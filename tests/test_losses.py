"""Shared losses against hand-computed cases and a float64 twin; schedules against the formulas as
printed.
"""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from utils import losses
from utils.losses import (
    dice_loss,
    distance_to_mask,
    foreground_dice_loss,
    masked_mean,
    sdm_targets,
    supervised_loss,
)
from utils.schedules import ema_decay, gaussian_rampup, set_lr, step_decay, update_teacher


def test_dice_by_hand():
    prob, target = torch.tensor([1.0, 0.5, 0.0]), torch.tensor([1.0, 1.0, 0.0])
    assert dice_loss(prob, target, eps=0.0).item() == pytest.approx(1 - 2 * 1.5 / (1.25 + 2))
    assert dice_loss(target, target).item() == pytest.approx(0, abs=1e-6)
    assert dice_loss(torch.zeros(4), torch.zeros(4)).item() == pytest.approx(
        0
    )  # both empty: agreement
    assert dice_loss(torch.ones(4), torch.zeros(4)).item() == pytest.approx(1, abs=1e-5)


def test_dice_refuses_to_broadcast():
    with pytest.raises(ValueError, match=r"\(2, 1, 4\) and target \(2, 4\)"):
        dice_loss(torch.zeros(2, 1, 4), torch.zeros(2, 4))


def test_supervised_loss_against_numpy():
    rng = np.random.default_rng(0)
    logits, label = rng.standard_normal((2, 3, 5, 4, 3)), rng.integers(0, 3, (2, 5, 4, 3))
    e = np.exp(logits - logits.max(1, keepdims=True))
    prob = e / e.sum(1, keepdims=True)
    ce = -np.log(np.take_along_axis(prob, label[:, None], 1)).mean()
    dice = 0
    for c in (1, 2):
        p, y = prob[:, c], (label == c).astype(float)
        dice += (1 - (2 * (p * y).sum() + 1e-5) / ((p**2).sum() + (y**2).sum() + 1e-5)) / 2
    ours = supervised_loss(torch.from_numpy(logits), torch.from_numpy(label))
    assert ours.item() == pytest.approx((ce + dice) / 2, rel=1e-6)


def test_losses_are_float32_whatever_comes_in():
    logits, label = torch.randn(1, 2, 4, 4, 4), torch.randint(0, 2, (1, 4, 4, 4))
    half = supervised_loss(logits.bfloat16(), label)
    assert half.dtype == torch.float32
    assert half.item() == pytest.approx(
        supervised_loss(logits.bfloat16().float(), label).item(), abs=1e-7
    )


def test_gradients():
    logits = torch.randn(1, 3, 2, 2, 2, dtype=torch.float64, requires_grad=True)
    label = torch.randint(0, 3, (1, 2, 2, 2))
    loss = F.cross_entropy(logits, label) + foreground_dice_loss(logits.softmax(1), label)
    loss.backward()
    assert logits.grad.abs().min() > 0
    values = torch.randn(6, dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([1, 0, 1, 1, 0, 0])
    assert torch.autograd.gradcheck(lambda v: masked_mean(v.square(), mask), values)
    assert torch.autograd.gradcheck(lambda z: foreground_dice_loss(z.softmax(1), label), logits)


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("weighted", [False, True])
def test_cross_entropy_in_a_fixed_order(weighted, reduction):
    """What a deterministic run takes on a GPU, and several processes take for a mean with class
    weights.
    """
    logits = torch.randn(2, 3, 4, 5, 2, dtype=torch.float64, requires_grad=True)
    label = torch.randint(3, (2, 4, 5, 2))
    weight = torch.tensor([0.5, 2.0, 1.0], dtype=torch.float64) if weighted else None
    ours = losses._summed_cross_entropy(logits, label, weight, reduction)
    theirs = F.cross_entropy(logits, label, weight, reduction=reduction)
    torch.testing.assert_close(ours, theirs)
    gradients = [torch.autograd.grad(loss.square().sum(), logits)[0] for loss in (ours, theirs)]
    torch.testing.assert_close(*gradients)


def test_masked_mean():
    values = torch.tensor([1.0, 2.0, 30.0])
    assert masked_mean(values, torch.tensor([True, True, False])).item() == 1.5
    assert masked_mean(values, torch.tensor([False] * 3)).item() == 0
    assert masked_mean(values, torch.tensor([3.0, 1.0, 0.0])).item() == 1.25


def test_a_class_that_a_crop_lacks_is_far_everywhere():
    """Two crops of two classes, the row 1110000 by hand; the second crop has no first class, the
    first no second.
    """
    present, nowhere = torch.tensor([1, 1, 1, 0, 0, 0, 0]).bool(), torch.zeros(7).bool()
    masks = torch.stack([present, nowhere, nowhere, present]).view(2, 2, 1, 7)
    row = torch.tensor([-1, -2 / 3, 0, 0.25, 0.5, 0.75, 1])
    far = torch.ones(7)
    torch.testing.assert_close(
        sdm_targets(masks), torch.stack([row, far, far, row]).view(2, 2, 1, 7)
    )
    assert distance_to_mask(far).eq(0).all()


def test_rampup():
    assert gaussian_rampup(0, 40) == pytest.approx(math.exp(-5))
    assert gaussian_rampup(20, 40) == pytest.approx(math.exp(-5 / 4))
    assert gaussian_rampup(40, 40) == gaussian_rampup(99, 40) == gaussian_rampup(0, 0) == 1


def test_step_decay_as_the_papers_count_it():
    rates = [step_decay(0.01, step, 2500) for step in (1, 2500, 2501, 5000, 5001, 6000)]
    assert rates == pytest.approx([1e-2, 1e-2, 1e-3, 1e-3, 1e-4, 1e-4])
    assert step_decay(0.01, 10**6, 0) == 0.01
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1)
    set_lr(optimizer, 0.5)
    assert optimizer.param_groups[0]["lr"] == 0.5


def test_teacher():
    assert [ema_decay(t) for t in (0, 1, 3)] == [0, 0.5, 0.75]
    assert ema_decay(1000) == 0.99
    torch.manual_seed(0)
    student, teacher = torch.nn.BatchNorm1d(3), torch.nn.BatchNorm1d(3)
    student.weight.data.uniform_()
    student(torch.randn(8, 3))  # moves the student's running mean
    before = teacher.weight.clone()
    update_teacher(teacher, student, 0.9)
    torch.testing.assert_close(teacher.weight.data, 0.9 * before.data + 0.1 * student.weight.data)
    assert teacher.running_mean.eq(0).all()  # buffers are the teacher's own
    update_teacher(teacher, student, 0.0)
    torch.testing.assert_close(teacher.weight, student.weight)
