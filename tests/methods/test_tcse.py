"""TCSE's loss and transformations against its facts in NumPy float64, who gets gradients, its
schedule and presets.
"""

from argparse import Namespace

import numpy as np
import pytest
import torch
import train_tcse as tcse
from listening import listen, noise
from references import shared
from references import tcse as reference
from small import BOTH, LA

from utils.errors import UserError

pytestmark = pytest.mark.usefixtures("one_thread")

LABELLED, WEIGHT = 2, 0.07
ALL = [(turns, flip) for turns in range(4) for flip in (False, True)]


@pytest.fixture(params=[(2, (4, 4, 3)), (4, (4, 4))], ids=["binary, 3-D", "four classes, 2-D"])
def case(request):
    """Logits of the student for two labelled and two unlabelled crops, of the teacher for all, in
    the frame of π.
    """
    rng = np.random.default_rng(0)
    classes, shape = request.param
    z, z_teacher = (2 * rng.standard_normal((4, classes, *shape)) for _ in range(2))
    label = rng.integers(0, classes, (LABELLED, *shape))
    return Namespace(z=z, z_teacher=z_teacher, label=label)


def ours(case, on, turns, flip, objective=tcse.objective):
    z = torch.from_numpy(case.z.copy()).requires_grad_()
    args = Namespace(consistency_on=on)
    z_teacher = tcse.compared(torch.from_numpy(case.z_teacher), LABELLED, args)
    z_teacher = tcse.restored(z_teacher, [(turns, flip)] * len(z_teacher))
    loss, terms = objective(z, z_teacher, torch.from_numpy(case.label), WEIGHT, args)
    return loss, terms, z


@pytest.mark.parametrize(("turns", "flip"), ALL)
@pytest.mark.parametrize("on", ["all", "unlabeled"])
def test_objective_against_numpy(case, on, turns, flip):
    shown = slice(None) if on == "all" else slice(LABELLED, None)
    expected = reference.loss(
        case.z[:LABELLED],
        case.label,
        case.z[LABELLED:],
        case.z_teacher[shown],
        WEIGHT,
        turns,
        0 if flip else None,
        on="lu" if on == "all" else "u",
    )
    for objective in (tcse.objective, tcse.objective_released):
        loss, _, _ = ours(case, on, turns, flip, objective)
        assert loss.item() == pytest.approx(expected, abs=1e-9)


def test_transformations_against_numpy(case):
    """One of its own for each crop, and the way back."""
    values = torch.from_numpy(case.z)
    drawn = [(0, True), (1, False), (2, True), (3, True)]
    found = tcse.transformed(values, drawn)
    for k, (turns, flip) in enumerate(drawn):
        one = slice(k, k + 1)
        expected = reference.transform(case.z[one], turns, 0 if flip else None)
        np.testing.assert_array_equal(found[one].numpy(), expected)
    assert torch.equal(tcse.restored(found, drawn), values)


def test_what_is_drawn_fits_the_crop():
    torch.manual_seed(0)
    assert set(tcse.draw_transformations(200, (16, 16, 8))) == set(ALL)
    halves = {(turns, flip) for turns, flip in ALL if turns % 2 == 0}
    assert set(tcse.draw_transformations(200, (32, 16))) == halves


def test_gradients(case):
    _, terms, z = ours(case, "unlabeled", 1, True)
    terms["loss_con"].backward()
    assert z.grad.flatten(1).any(1).tolist() == [False, False, True, True]
    loss, terms, z = ours(case, "all", 1, True, tcse.objective_released)
    assert not terms["loss_con"].requires_grad
    loss.backward()
    plain = torch.from_numpy(case.z.copy()).requires_grad_()
    torch.nn.functional.cross_entropy(plain[:LABELLED], torch.from_numpy(case.label)).backward()
    torch.testing.assert_close(z.grad, plain.grad, rtol=0, atol=1e-12)


def test_a_voxel_by_hand():
    """Two voxels that π exchanges: the teacher is right about each in the place of the other."""
    z = torch.tensor([[[[0.0], [0.0]], [[9.0], [-9.0]]]])
    z_teacher = z.flip(2)
    restored = tcse.restored(z_teacher, [(2, False)])
    assert tcse.consistency_loss(z, restored).item() == 0
    assert tcse.consistency_loss(z, z_teacher).item() > 0.9


def test_schedules():
    args = tcse.parse(["--max_iterations", "8000"])
    for step in (1, 3000, 6000, 8000):  # 800 epochs of 10 steps
        expected = reference.consistency_weight(step / 10)
        assert tcse.consistency_weight(step, args) == pytest.approx(expected, rel=1e-12)
    args = tcse.parse(["--dataset", "ACDC"])
    expected = shared.learning_rate(14999, "D", 30000)
    assert tcse.learning_rate(15000, args) == pytest.approx(expected, rel=1e-12)
    args = tcse.parse([])
    assert tcse.learning_rate(2501, args) == pytest.approx(1e-3)


def test_presets():
    assert tcse.parse([]).consistency_on == "all"
    released = tcse.parse(["--preset", "released"])
    assert released.consistency_on == "unlabeled"
    assert released.sources["consistency_on"] == "released code: TCSM"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--decay", "poly", "--lr_step", "1"], "--lr_step has no effect with --decay poly"),
        (["--consistency", "0", "--consistency_on", "all"], "--consistency_on has no effect"),
        (["--preset", "released", "--consistency", "1"], "--consistency has no effect"),
        (["--preset", "released", "--ema_decay", "0.9"], "--ema_decay has no effect"),
    ],
)
def test_options_without_effect_are_refused(flags, message):
    with pytest.raises(UserError, match=message):
        tcse.parse(flags)


# ---------------------------------------------------------------------------------- whole steps


@pytest.mark.parametrize("on", ["unlabeled", "all"])
def test_the_teachers_map_is_turned_back(on, tiny_la, tmp_path, monkeypatch):
    """A teacher that shows its input: turned back, it is the noisy image. The crops are square, so
    that they are turned by quarters too.
    """
    drawn, draw = [], tcse.draw_transformations
    monkeypatch.setattr(
        tcse, "draw_transformations", lambda *own: drawn.append(draw(*own)) or drawn[-1]
    )
    shown = {"teacher": lambda image: torch.cat((image, -image), 1)}
    flags = ["--max_iterations", "2", "--consistency_on", on, *"--patch 32 32 16".split()]
    parts = listen(tcse, tiny_la, tmp_path, *LA, *BOTH, *flags, answers=shown)
    assert len(parts) == len(drawn) == 2
    assert {turns for transformations in drawn for turns, _ in transformations} & {1, 3}
    for part, transformations in zip(parts, drawn, strict=True):
        (teacher,), (student,) = part.of("teacher"), part.of("net")
        image = part.batch.image
        assert torch.equal(student.given[0], image)
        assert (teacher.training, teacher.gradient) == (True, False)
        compared = image if on == "all" else image[LABELLED:]
        pairs = zip(compared.numpy(), transformations, strict=True)
        turned = [reference.transform(x[None], k, 0 if flip else None) for x, (k, flip) in pairs]
        noise(teacher.given[0], torch.from_numpy(np.concatenate(turned)))
        back = part.objective["z_teacher"]
        noise(back[:, :1], compared)
        assert torch.equal(back[:, 1:], -back[:, :1])
        assert torch.equal(part.objective["z"], student.answer)


def test_without_weight_the_teacher_is_not_asked(tiny_la, tmp_path):
    flags = ["--max_iterations", "1", "--consistency", "0"]
    (part,) = listen(tcse, tiny_la, tmp_path, *LA, *BOTH, *flags)
    assert [heard.name for heard in part.passes] == ["net"]
