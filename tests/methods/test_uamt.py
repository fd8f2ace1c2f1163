"""UA-MT's loss and uncertainty against its facts in NumPy float64, who gets gradients, its schedule
and presets.
"""

import itertools
import math
from argparse import Namespace

import numpy as np
import pytest
import torch
import train_uamt as uamt
from listening import listen, noise
from references import shared
from references import uamt as reference
from small import BOTH, LA

from utils.errors import UserError

pytestmark = pytest.mark.usefixtures("one_thread")

LABELLED, WEIGHT = 2, 0.07


@pytest.fixture(params=[2, 4], ids=["binary", "four classes"])
def case(request):
    """Logits of the student, of the teacher's target and of its passes for two labelled and two
    unlabelled crops.
    """
    rng = np.random.default_rng(0)
    shape = (4, 3, 2)
    z, z_teacher, *passes = (2 * rng.standard_normal((4, request.param, *shape)) for _ in range(5))
    return Namespace(
        z=z,
        z_teacher=z_teacher,
        passes=np.stack(passes),
        label=rng.integers(0, request.param, (LABELLED, *shape)),
    )


def in_order(outputs):
    """A teacher that answers with these logits, one after another."""
    answers = iter(torch.from_numpy(z) for z in outputs)
    return lambda image: next(answers)


def ours(case, on="all"):
    z = torch.from_numpy(case.z.copy()).requires_grad_()
    args = Namespace(consistency_on=on, max_iterations=100, threshold_start=0.75)
    shown = slice(None) if on == "all" else slice(LABELLED, None)
    u = uamt.uncertainty(in_order(case.passes[:, shown].astype(np.float32)), torch.zeros(1), 3)
    certain = u < uamt.threshold_of(40, args) * math.log(z.shape[1])
    z_teacher = torch.from_numpy(case.z_teacher[shown])
    label = torch.from_numpy(case.label)
    loss, terms = uamt.objective(z, z_teacher, certain, label, WEIGHT, args)
    return loss, terms, z, certain


@pytest.mark.parametrize("on", ["all", "unlabeled"])
def test_objective_against_numpy(case, on):
    shown = slice(None) if on == "all" else slice(LABELLED, None)
    expected = reference.loss(
        case.z[:LABELLED],
        case.label,
        case.z[LABELLED:],
        case.z_teacher[shown],
        case.passes[:, shown],
        40,
        100,
        on="lu" if on == "all" else "u",
        weight=WEIGHT,
    )
    loss, terms, _, certain = ours(case, on)
    mask = reference.certain(case.passes[:, shown], 40, 100)
    assert 0 < mask.mean() < 1
    np.testing.assert_array_equal(certain.numpy(), mask)
    assert loss.item() == pytest.approx(expected, abs=1e-9)
    assert terms["certain"].item() == pytest.approx(mask.mean())


def test_uncertainty_against_numpy(case):
    """But for the 1e-6 inside the released logarithm."""
    outputs = in_order(case.passes.astype(np.float32))
    found = uamt.uncertainty(outputs, torch.zeros(1), len(case.passes))
    np.testing.assert_allclose(found.numpy(), reference.uncertainty(case.passes), atol=1e-5)
    classes = case.z.shape[1]
    args = Namespace(threshold_start=0.75, max_iterations=100)
    for step in (1, 50, 100):
        threshold = uamt.threshold_of(step, args) * math.log(classes)
        assert threshold == pytest.approx(reference.threshold(step, 100, classes), rel=1e-12)


def test_nothing_certain_costs_nothing(case):
    z, z_teacher = torch.from_numpy(case.z), torch.from_numpy(case.z_teacher)
    nowhere = torch.zeros(4, *z.shape[2:], dtype=torch.bool)
    assert uamt.consistency_loss(z, z_teacher, nowhere).item() == 0
    assert reference.consistency(case.z, case.z_teacher, nowhere.numpy()) == 0


def test_only_certain_voxels_of_the_student_get_a_gradient(case):
    _, terms, z, certain = ours(case)
    terms["loss_con"].backward()
    assert torch.equal(z.grad.abs().sum(1) > 0, certain)


def test_one_voxel_by_hand():
    """p = (1/2, 1/2) against p' = (3/4, 1/4), and an uncertain voxel that does not count."""
    z = torch.zeros(1, 2, 1, 2)
    z_teacher = torch.tensor([[3.0, 1.0], [1.0, 9.0]]).log().T.reshape(1, 2, 1, 2)
    certain = torch.tensor([[[True, False]]])
    assert uamt.consistency_loss(z, z_teacher, certain).item() == pytest.approx(1 / 16)


def test_schedules():
    args = uamt.parse([])
    for step in (1, 3000, 6000):
        expected = 0.1 * shared.ramp(step, 6000)
        assert uamt.consistency_weight(step, args) == pytest.approx(expected, rel=1e-12)
        expected = reference.consistency_weight(step - 1)
        assert uamt.consistency_weight_released(step, args) == pytest.approx(expected, rel=1e-12)
        expected = shared.learning_rate(step - 1, "A")
        assert uamt.learning_rate(step, args) == pytest.approx(expected, rel=1e-12)
    args = uamt.parse(["--dataset", "ACDC"])
    for step in (1, 3000, 30000):
        expected = shared.consistency_weight(step - 1, "D", 0.1)
        assert uamt.consistency_weight_released(step, args) == pytest.approx(expected, rel=1e-12)
        expected = shared.learning_rate(step - 1, "D", 30000)
        assert uamt.learning_rate(step, args) == pytest.approx(expected, rel=1e-12)


def test_presets():
    assert uamt.parse([]).consistency_on == "all"
    released = uamt.parse(["--preset", "released"])
    assert released.consistency_on == "unlabeled"
    assert released.sources["consistency_on"] == "released code: UA-MT"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--decay", "poly", "--lr_step", "1"], "--lr_step has no effect with --decay poly"),
        (["--preset", "released", "--rampup_share", "0.5"], "--rampup_share has no effect"),
        (["--consistency", "0", "--threshold_start", "1"], "--threshold_start has no effect"),
        (["--consistency", "0", "--passes", "1"], "--passes has no effect"),
    ],
)
def test_options_without_effect_are_refused(flags, message):
    with pytest.raises(UserError, match=message):
        uamt.parse(flags)


# ---------------------------------------------------------------------------------- whole steps


@pytest.mark.parametrize("on", ["unlabeled", "all"])
def test_each_pass_of_the_teacher_has_its_noise_and_certain_voxels_count(on, tiny_la, tmp_path):
    """The teacher is surer the brighter a voxel is, so that there are voxels of either kind."""
    sure = {"teacher": lambda image: torch.cat((image, -image), 1)}
    flags = ["--max_iterations", "2", "--passes", "3", "--consistency_on", on]
    parts = listen(uamt, tiny_la, tmp_path, *LA, *BOTH, *flags, answers=sure)
    assert len(parts) == 2
    for step, part in enumerate(parts, 1):
        image, objective = part.batch.image, part.objective
        (student,) = part.of("net")
        assert torch.equal(student.given[0], image)
        drawn = []
        for teacher in part.of("teacher"):
            drawn.append(noise(teacher.given[0], image if on == "all" else image[LABELLED:]))
            assert (teacher.training, teacher.gradient) == (True, False)
        assert len(drawn) == 1 + 3  # of the target, and of the uncertainty
        assert not any(torch.equal(a, b) for a, b in itertools.combinations(drawn, 2))
        answers = [teacher.answer for teacher in part.of("teacher")]
        passes = [z.double().numpy() for z in answers if not torch.equal(z, objective["z_teacher"])]
        assert len(passes) == 3
        u, threshold = reference.uncertainty(passes), reference.threshold(step, 2)
        expected, clear = u < threshold, abs(u - threshold) > 1e-4
        assert (0.1 < expected.mean() < 0.9) == (step == 1)  # H ends at the largest entropy
        np.testing.assert_array_equal(objective["certain"].numpy()[clear], expected[clear])


def test_without_weight_the_teacher_is_not_asked(tiny_la, tmp_path):
    flags = ["--max_iterations", "1", "--consistency", "0"]
    (part,) = listen(uamt, tiny_la, tmp_path, *LA, *BOTH, *flags)
    assert [heard.name for heard in part.passes] == ["net"]
