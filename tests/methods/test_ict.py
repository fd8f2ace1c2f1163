"""ICT's loss and mixtures against its facts in NumPy float64, who gets gradients, its schedule and
options.
"""

from argparse import Namespace

import numpy as np
import pytest
import torch
import train_ict as ict
from listening import listen
from references import ict as reference
from references import shared
from small import BOTH, LA

from utils.errors import UserError

pytestmark = pytest.mark.usefixtures("one_thread")

LABELLED, WEIGHT = 2, 0.07


@pytest.fixture(params=[2, 4], ids=["binary", "four classes"])
def case(request):
    """Logits of the student for two labelled crops and two mixtures, of the teacher for four."""
    rng = np.random.default_rng(0)
    shape = (4, 3, 2)
    z, z_teacher = (2 * rng.standard_normal((4, request.param, *shape)) for _ in range(2))
    label = rng.integers(0, request.param, (LABELLED, *shape))
    return Namespace(z=z, z_teacher=z_teacher, label=label, kappa=np.array([0.3, 0.9]))


def ours(case, kind="probabilities"):
    z, z_teacher = (torch.from_numpy(x.copy()).requires_grad_() for x in (case.z, case.z_teacher))
    kappa, label = torch.from_numpy(case.kappa), torch.from_numpy(case.label)
    args = Namespace(mix=kind)
    loss, terms = ict.objective(z, z_teacher.detach(), kappa, label, WEIGHT, args)
    return loss, terms, z


@pytest.mark.parametrize("kind", ["probabilities", "logits"])
def test_objective_against_numpy(case, kind):
    expected = reference.loss(
        case.z[:LABELLED],
        case.label,
        case.z[LABELLED:],
        *reference.halves(case.z_teacher),
        case.kappa,
        WEIGHT,
        of=kind,
    )
    loss, terms, _ = ours(case, kind)
    assert loss.item() == pytest.approx(expected, abs=1e-9)
    expected = reference.consistency(
        case.z[LABELLED:], *reference.halves(case.z_teacher), case.kappa, of=kind
    )
    assert terms["loss_con"].item() == pytest.approx(expected, abs=1e-9)


def test_mixtures_against_numpy():
    images = np.random.default_rng(1).standard_normal((4, 1, 3, 2))
    kappa = np.array([0.25, 1.0])
    found = ict.mix(torch.from_numpy(images), torch.from_numpy(kappa)).numpy()
    expected = reference.mix(*reference.halves(images), kappa)
    np.testing.assert_allclose(found, expected, atol=1e-12)
    np.testing.assert_array_equal(found[1], images[3])


def test_gradients_reach_the_student(case):
    _, terms, z = ours(case)
    terms["loss_con"].backward()
    assert z.grad.flatten(1).any(1).tolist() == [False, False, True, True]


def test_one_voxel_by_hand():
    """The teacher says (3/4, 1/4) and (1/4, 3/4); κ = 1/4 makes (5/8, 3/8) of it."""
    z_teacher = torch.tensor([[3.0, 1.0], [1.0, 3.0]]).log().view(2, 2, 1, 1)
    p_target = ict.target(z_teacher, torch.tensor([0.25]), "probabilities")
    torch.testing.assert_close(p_target.flatten(), torch.tensor([5 / 8, 3 / 8]))
    loss = ict.consistency_loss(torch.zeros(1, 2, 1, 1), p_target)
    assert loss.item() == pytest.approx(1 / 64)


def test_shares_follow_beta():
    """Beta(α, α) has mean 1/2 and variance 1/(8 α + 4)."""
    torch.manual_seed(0)
    for alpha in (0.2, 1.0):
        kappa = ict.mixing_shares(20000, alpha)
        assert 0 <= kappa.min() < kappa.max() <= 1
        assert kappa.mean().item() == pytest.approx(0.5, abs=0.01)
        assert kappa.var().item() == pytest.approx(1 / (8 * alpha + 4), abs=0.005)


def test_schedules():
    args = ict.parse([])
    for step in (1, 3000, 6000):
        expected = 0.1 * shared.ramp(step, 6000)
        assert ict.consistency_weight(step, args) == pytest.approx(expected, rel=1e-12)
        expected = shared.learning_rate(step - 1, "A")
        assert ict.learning_rate(step, args) == pytest.approx(expected, rel=1e-12)
    original = ict.parse(["--consistency", "100", "--rampup_share", "0.25"])
    for step in (1, 800, 2000):
        expected = reference.consistency_weight_original(step, 6000)
        assert ict.consistency_weight(step, original) == pytest.approx(expected, rel=1e-12)
    args = ict.parse(["--dataset", "BraTS2019"])
    expected = shared.learning_rate(14999, "D", 30000)
    assert ict.learning_rate(15000, args) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--decay", "poly", "--lr_step", "1"], "--lr_step has no effect with --decay poly"),
        (["--consistency", "0", "--mix", "logits"], "--mix has no effect"),
    ],
)
def test_options_without_effect_are_refused(flags, message):
    with pytest.raises(UserError, match=message):
        ict.parse(flags)


def test_pairs_must_be_whole():
    ict.check_pairs(Namespace(unlabeled_bs=4), 2)
    with pytest.raises(UserError, match="must be even"):
        ict.check_pairs(Namespace(unlabeled_bs=3), 1)
    with pytest.raises(UserError, match="multiple of 4"):
        ict.check_pairs(Namespace(unlabeled_bs=2), 2)


def test_without_weight_the_teacher_is_not_asked(tiny_la, tmp_path):
    flags = ["--max_iterations", "1", "--consistency", "0"]
    (part,) = listen(ict, tiny_la, tmp_path, *LA, *BOTH, *flags)
    assert [heard.name for heard in part.passes] == ["net"]
