"""UG-MCL's objective against the equations in NumPy float64, its uncertainty, its gradients and its
limits.
"""

import math
from argparse import Namespace

import numpy as np
import pytest
import torch
import train_ugmcl as ugmcl
from numpy_reference import dice, softmax
from small import BOTH, LA

from utils.errors import UserError
from utils.ops import normalized_sdm_reference

pytestmark = pytest.mark.usefixtures("one_thread")

LABELED, WEIGHT, BETA = 2, 0.07, 0.75


@pytest.fixture(params=[2, 3], ids=["binary", "three classes"])
def case(request):
    """Outputs of student and teacher (among them distances where σ(-1500 d) is soft), label,
    certain voxels.
    """
    rng = np.random.default_rng(0)
    shape, classes = (4, 3, 2), request.param

    def outputs():
        sdm = np.tanh(
            rng.standard_normal((4, classes - 1, *shape)) * 10 ** rng.uniform(-5, 0, shape)
        )
        return [rng.standard_normal((4, classes, *shape)), sdm]

    return Namespace(
        student=outputs(),
        teacher=outputs(),
        label=rng.integers(0, classes, (LABELED, *shape)),
        certain=rng.random((4, *shape)) < 0.6,
    )


def ours(case, terms=ugmcl.TERMS, preset="paper", beta=BETA):
    student = [torch.from_numpy(z.copy()).requires_grad_() for z in case.student]
    teacher = [torch.from_numpy(z) for z in case.teacher]
    args = Namespace(terms=terms, preset=preset, beta=1.0 if preset == "released" else beta)
    label, certain = torch.from_numpy(case.label), torch.from_numpy(case.certain)
    objective = ugmcl.objective_released if preset == "released" else ugmcl.objective
    loss, found = objective(*student, label, WEIGHT, args, teacher, certain)
    return loss, found, student


@pytest.mark.parametrize(
    "terms", [(), ("dis",), ("dis", "itc"), ("dis", "ctc"), ("dis", "itc", "ctc"), ("itc",)]
)
@pytest.mark.parametrize("preset", ["paper", "released"])
def test_objective_against_numpy(case, preset, terms):
    (logits, sdm), (logits_t, sdm_t), label = case.student, case.teacher, case.label
    classes, released = range(1, logits.shape[1]), preset == "released"
    prob, prob_d = softmax(logits), 1 / (1 + np.exp(np.clip(1500 * sdm, -700, 700)))
    expected = -np.log(np.take_along_axis(prob[:LABELED], label[:, None], 1)).mean()
    expected += np.mean([dice(prob[:LABELED, c], (label == c).astype(float)) for c in classes])
    if "dis" in terms:
        if released:
            expected += np.mean(
                [dice(prob_d[:LABELED, c - 1], (label == c).astype(float)) for c in classes]
            )
        else:
            maps = [normalized_sdm_reference(torch.from_numpy(label == c)).numpy() for c in classes]
            expected += ((sdm[:LABELED] - np.stack(maps, 1)) ** 2).mean()
    expected *= 0.5 if released else 1
    if "itc" in terms:
        beta = 1 if released else BETA
        for share, ours_, theirs in ((beta, prob, softmax(logits_t)), (1 - beta, sdm, sdm_t)):
            itc = share * ((ours_ - theirs) ** 2).mean(1)[case.certain].mean()
            expected += WEIGHT * (itc / 2 if released else itc)
    if "ctc" in terms:
        expected += WEIGHT * ((prob[:, 1:] - prob_d) ** 2).mean()
    loss, found, _ = ours(case, terms, preset)
    assert loss.item() == pytest.approx(expected, rel=1e-6)
    assert {name for name in ugmcl.TERMS if f"loss_{name}" in found} == set(terms)


def test_without_distances_beta_1_is_the_probabilities_alone(case):
    """Table 1's row 3: the network has no distance head."""
    logits, label = torch.from_numpy(case.student[0]), torch.from_numpy(case.label)
    teacher, certain = torch.from_numpy(case.teacher[0]), torch.from_numpy(case.certain)
    args = Namespace(terms=("itc",), beta=1.0)
    for objective, preset in (
        (ugmcl.objective, "paper"),
        (ugmcl.objective_released, "released"),
    ):
        headless, _ = objective(logits, None, label, WEIGHT, args, (teacher, None), certain)
        with_head, *_ = ours(case, ("itc",), preset, beta=1.0)
        assert headless.item() == with_head.item()


@pytest.mark.parametrize(
    ("terms", "beta", "needed"),
    [
        ((), 0.75, False),
        (("itc",), 1.0, False),
        (("itc",), 0.75, True),
        (("dis",), 1.0, True),
        (("ctc",), 1.0, True),
        (("dis", "itc"), 1.0, True),
    ],
)
def test_a_distance_head_is_there_where_a_term_needs_it(terms, beta, needed):
    assert ugmcl.needs_distances(Namespace(terms=terms, beta=beta)) is needed


def test_row_3_trains_and_tests_without_a_distance_head(tiny_la, tmp_path):
    root = ["--root", str(tiny_la), "--runs", str(tmp_path)]
    short = [*LA, *BOTH, *"--max_iterations 2 --passes 2".split()]
    ugmcl.main([*short, *root, "--terms", "itc", "--beta", "1"])
    (path,) = tmp_path.glob("*/*/*/last.pth")
    state = torch.load(path, weights_only=True)
    assert not [name for name in state["net"] if name.startswith("sdm")]
    assert state["networks"]["net"]["kwargs"]["sdm_head"] is False


def test_row_2_sees_the_labelled_crops_of_the_method():
    args = ugmcl.parse(["--terms", "dis", "--unlabeled", "0"])
    assert (args.labeled_bs, args.unlabeled_bs) == (2, 0)
    assert (args.sources["labeled_bs"], args.sources["unlabeled_bs"]) == ("ours", "ours")


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ("--unlabeled 0 --unlabeled_bs 4", "--unlabeled_bs has no effect with --unlabeled 0"),
        ("--terms dis ctc --passes 2", "--passes has no effect with --terms dis ctc"),
        ("--terms dis ctc --beta 1", "--beta has no effect with --terms dis ctc"),
        ("--terms dis --threshold_start 1", "--threshold_start has no effect with --terms dis"),
        ("--ema_decay 0.9 --terms", "--ema_decay has no effect with --terms"),
        ("--terms dis --consistency 1", "--consistency has no effect with --terms dis"),
        ("--terms dis --rampup printed", "--rampup has no effect with --terms dis"),
        ("--consistency 0 --rampup printed", "--rampup has no effect with --consistency 0"),
    ],
)
def test_options_without_effect_are_refused(flags, named):
    with pytest.raises(UserError, match=named):
        ugmcl.parse(flags.split())


def test_options_of_a_term_go_with_it():
    args = ugmcl.parse("--terms dis ctc --consistency 1 --rampup printed".split())
    assert (args.consistency, args.rampup) == (1.0, "printed")
    args = ugmcl.parse("--terms itc --beta 1 --passes 2 --ema_decay 0.9 --consistency 1".split())
    assert (args.beta, args.passes, args.ema_decay) == (1.0, 2, 0.9)


def test_printed_rampup_moves_lambda_and_not_the_threshold():
    args = Namespace(consistency=0.1, max_iterations=6000, threshold_start=0.75, rampup="printed")
    for t in (0, 1500, 3000, 6000):
        printed = 0.1 * np.exp(-5.0 * (1.0 - t / 6000))
        assert ugmcl.consistency_weight(t, args) == pytest.approx(printed)
        square = np.exp(-5.0 * (1.0 - t / 6000) ** 2)
        assert ugmcl.threshold_of(t, args) == pytest.approx(0.75 + 0.25 * square)
    args.rampup = "gaussian"
    assert ugmcl.consistency_weight(3000, args) == pytest.approx(0.1 * math.exp(-5 / 4))
    with pytest.raises(UserError, match="--rampup printed"):
        ugmcl.parse(["--preset", "released", "--rampup", "printed"])


def test_the_uncertain_learn_nothing_from_the_teacher(case):
    _, found, (logits, sdm) = ours(case)
    found["loss_itc"].backward()
    certain = torch.from_numpy(case.certain)
    for grad in (logits.grad, sdm.grad):
        assert grad.movedim(1, -1)[certain].ne(0).all()
        assert grad.movedim(1, -1)[~certain].eq(0).all()


def test_nothing_certain_is_no_loss(case):
    case.certain[:] = False
    loss, found, (logits, _) = ours(case, ("itc",))
    assert found["loss_itc"].item() == 0
    loss.backward()
    assert logits.grad.isfinite().all()


def test_beta_moves_from_distances_to_probabilities(case):
    for beta, silent, heard in ((0.0, 0, 1), (1.0, 1, 0)):
        _, found, student = ours(case, beta=beta)
        found["loss_itc"].backward()
        assert student[heard].grad.ne(0).any()
        assert student[silent].grad is None or student[silent].grad.eq(0).all()


def test_without_itc_it_is_dtc_up_to_the_supervised_term(case):
    """Luo et al., AAAI 2021: supervised terms of both tasks, and the squared difference of the two
    masks.
    """
    total, found, _ = ours(case, ("dis", "ctc"))
    prob = softmax(case.student[0])[:, 1:]
    dtc = ((prob - 1 / (1 + np.exp(np.clip(1500 * case.student[1], -700, 700)))) ** 2).mean()
    assert total.item() == pytest.approx(
        (found["loss_seg"] + found["loss_dis"]).item() + WEIGHT * dtc, rel=1e-6
    )


def test_gradcheck(case):
    cut = (slice(1, 3), slice(None), slice(2), slice(1))
    logits, sdm = (torch.from_numpy(z[cut].copy()) for z in case.student)
    inputs = (
        logits.requires_grad_(),
        (1e-3 * sdm).requires_grad_(),
    )  # where the steep sigmoid is soft
    teacher = [torch.from_numpy(z[cut].copy()) for z in case.teacher]
    certain = torch.from_numpy(case.certain[1:3, :2, :1].copy())
    label = torch.from_numpy(case.label[1:, :2, :1].copy())
    args = Namespace(terms=ugmcl.TERMS, beta=BETA)
    for objective in (ugmcl.objective, ugmcl.objective_released):
        assert torch.autograd.gradcheck(
            lambda z, d, objective=objective: objective(
                z, d, label, WEIGHT, args, teacher, certain
            )[0],
            inputs,
            eps=1e-9,
            atol=1e-4,
        )


def test_uncertainty_is_the_entropy_of_the_mean():
    """Two passes that say 3/4 and 1/4, by hand: their mean is the most uncertain there is."""
    answers = iter([torch.tensor([0.0, math.log(3)]), torch.tensor([math.log(3), 0.0])] * 2)

    def teacher(image):
        logits = next(answers).view(1, 2, 1, 1, 1).expand(-1, -1, *image.shape[2:])
        return logits, torch.zeros_like(image)

    image = torch.zeros(1, 1, 2, 2, 2)
    torch.testing.assert_close(
        ugmcl.uncertainty(teacher, image, 2), torch.full((1, 2, 2, 2), math.log(2))
    )
    single = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    torch.testing.assert_close(
        ugmcl.uncertainty(teacher, image, 1), torch.full((1, 2, 2, 2), single)
    )
    sure = torch.tensor([0.0, 200.0]).view(1, 2, 1, 1, 1)
    # 0 and not NaN, of a network without a distance head
    assert ugmcl.uncertainty(lambda _: sure, image, 1).item() == 0


def test_noise_is_small_and_cut_off():
    torch.manual_seed(0)
    noise = ugmcl.noisy(torch.zeros(100_000))
    assert noise.abs().max() <= 0.2
    assert noise.std().item() == pytest.approx(
        0.096, abs=0.002
    )  # 0.1 with the tails moved to the edge
