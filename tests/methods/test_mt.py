"""Mean teacher's loss against its facts in NumPy float64, who gets gradients, its schedule and
options.
"""

from argparse import Namespace

import numpy as np
import pytest
import torch
import train_mt as mt
from listening import listen, noise
from references import mt as reference
from references import shared
from small import BOTH, LA

from utils.errors import UserError
from utils.schedules import ema_decay

pytestmark = pytest.mark.usefixtures("one_thread")

LABELLED, WEIGHT = 2, 0.07


@pytest.fixture(params=[2, 4], ids=["binary", "four classes"])
def case(request):
    """Logits of the student for two labelled and two unlabelled crops, of the teacher for all."""
    rng = np.random.default_rng(0)
    shape = (4, 3, 2)
    logits = [2 * rng.standard_normal((4, request.param, *shape)) for _ in range(2)]
    return Namespace(
        z=logits[0],
        z_teacher=logits[1],
        label=rng.integers(0, request.param, (LABELLED, *shape)),
    )


def ours(case, on="unlabeled", weight=WEIGHT):
    """The loss, its terms, and the logits of student and teacher, with gradients."""
    z = torch.from_numpy(case.z.copy()).requires_grad_()
    z_teacher = torch.from_numpy(case.z_teacher.copy())
    args = Namespace(consistency_on=on)
    shown = mt.compared(z_teacher, LABELLED, args)
    loss, terms = mt.objective(z, shown, torch.from_numpy(case.label), weight, args)
    return loss, terms, z


def test_objective_against_numpy(case):
    z_l, z_u = case.z[:LABELLED], case.z[LABELLED:]
    expected = reference.loss(z_l, case.label, z_u, case.z_teacher[LABELLED:], WEIGHT)
    loss, terms, _ = ours(case)
    assert loss.item() == pytest.approx(expected, abs=1e-9)
    assert terms["loss_sup"].item() == pytest.approx(shared.supervised(z_l, case.label), abs=1e-9)
    assert terms["loss_con"].item() == pytest.approx(
        reference.consistency(z_u, case.z_teacher[LABELLED:]), abs=1e-9
    )


def test_on_all_crops_the_labelled_ones_count_too(case):
    _, terms, _ = ours(case, on="all")
    expected = reference.consistency(case.z, case.z_teacher)
    assert terms["loss_con"].item() == pytest.approx(expected, abs=1e-9)


def test_gradients_reach_the_student_on_the_crops_that_are_compared(case):
    loss, _, z = ours(case)
    loss.backward()
    assert z.grad.flatten(1).any(1).all()
    loss, terms, z = ours(case)
    terms["loss_con"].backward()
    assert z.grad.flatten(1).any(1).tolist() == [False, False, True, True]
    loss, terms, z = ours(case, on="all")
    terms["loss_con"].backward()
    assert z.grad.flatten(1).any(1).all()


def test_without_weight_it_is_supervised(case):
    loss, terms, _ = ours(case, weight=0.0)
    assert loss.item() == terms["loss_sup"].item()


def test_one_voxel_by_hand():
    """p = (1/2, 1/2) against p' = (3/4, 1/4): 1/16 in each class."""
    z = torch.zeros(1, 2, 1, 1)
    z_teacher = torch.tensor([3.0, 1.0]).log().view(1, 2, 1, 1)
    assert mt.consistency_loss(z, z_teacher).item() == pytest.approx(1 / 16)


def test_schedule():
    args = mt.parse(["--max_iterations", "100"])
    for step in (1, 50, 100):
        expected = 0.1 * shared.ramp(step, 100)
        assert mt.consistency_weight(step, args) == pytest.approx(expected, rel=1e-12)
        assert mt.learning_rate(step, args) == 0.01
        assert ema_decay(step - 1, args.ema_decay) == shared.teacher_decay(step - 1)
    full = mt.parse([])
    for step in (1, 2500, 2501, 5001):
        expected = shared.step_learning_rate(step - 1)
        assert mt.learning_rate(step, full) == pytest.approx(expected, rel=1e-12)


def test_schedule_on_acdc():
    args = mt.parse(["--dataset", "ACDC"])
    for step in (1, 1000, 1001, 30000):
        expected = shared.polynomial_learning_rate(step - 1, 30000)
        assert mt.learning_rate(step, args) == pytest.approx(expected, rel=1e-12)
    weights = [mt.consistency_weight(step, args) for step in (1, 1000, 1001, 30000)]
    assert weights[:2] == [0.0, 0.0]
    assert weights[2] == pytest.approx(0.1 * shared.ramp(1001, 30000), rel=1e-12)
    assert weights[3] == pytest.approx(0.1)
    short = mt.parse(["--dataset", "ACDC", "--max_iterations", "60"])
    weights = [mt.consistency_weight(step, short) for step in (1, 2, 3)]
    assert [weight > 0 for weight in weights] == [False, False, True]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--decay", "poly", "--lr_step", "1"], "--lr_step has no effect with --decay poly"),
        (["--consistency", "0", "--ema_decay", "0.9"], "--ema_decay has no effect"),
        (["--consistency", "0", "--consistency_on", "all"], "--consistency_on has no effect"),
    ],
)
def test_options_without_effect_are_refused(flags, message):
    with pytest.raises(UserError, match=message):
        mt.parse(flags)


# ---------------------------------------------------------------------------------- whole steps


@pytest.mark.parametrize("on", ["unlabeled", "all"])
def test_the_teacher_sees_noise_and_the_student_none(on, tiny_la, tmp_path):
    flags = ["--max_iterations", "2", "--consistency_on", on]
    parts = listen(mt, tiny_la, tmp_path, *LA, *BOTH, *flags)
    assert len(parts) == 2
    drawn = []
    for part in parts:
        image = part.batch.image
        (teacher,), (student,) = part.of("teacher"), part.of("net")
        drawn.append(noise(teacher.given[0], image if on == "all" else image[LABELLED:]))
        assert torch.equal(student.given[0], image)
        assert (teacher.training, teacher.gradient) == (True, False)
        assert (student.training, student.gradient) == (True, True)
        assert torch.equal(part.objective["z_teacher"], teacher.answer)
        assert torch.equal(part.objective["z"], student.answer)
    assert not torch.equal(*drawn)


def test_the_teacher_follows_the_student(tiny_la, tmp_path):
    """θ' is θ₁ after the first step, and then a θ' + (1 - a) θ."""
    flags = ["--max_iterations", "3", "--ema_decay", "0.25"]
    parts = listen(mt, tiny_la, tmp_path, *LA, *BOTH, *flags)
    students, teachers = (
        [part.of(name)[0].weights for part in parts] for name in ("net", "teacher")
    )
    assert not torch.equal(students[1], students[0])
    assert torch.equal(teachers[0], students[0])
    assert torch.equal(teachers[1], students[1])
    torch.testing.assert_close(teachers[2], 0.25 * teachers[1] + 0.75 * students[2])


def test_where_its_weight_is_0_the_teacher_is_not_asked(tiny_la, tmp_path):
    flags = ["--max_iterations", "2", "--warmup_share", "0.5"]
    parts = listen(mt, tiny_la, tmp_path, *LA, *BOTH, *flags)
    passes = [[heard.name for heard in part.passes] for part in parts]
    assert passes == [["net"], ["teacher", "net"]]
