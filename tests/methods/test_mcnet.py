"""MC-Net's objective against the equations in NumPy float64, its gradients, limits, schedules and
presets.
"""

from argparse import Namespace

import numpy as np
import pytest
import torch
import train_mcnet as mcnet
from references import mcnet as reference
from small import BOTH, LA

from utils.errors import UserError
from utils.trained import load_networks

pytestmark = pytest.mark.usefixtures("one_thread")

LABELED, WEIGHT = 2, 0.3
VOLUMES = Namespace(lambda_seg=0.5, temperature=0.1)
SLICES = Namespace(lambda_seg=1.0, temperature=0.1)


def make_case(decoders, classes, shape):
    rng = np.random.default_rng(0)
    logits = [2 * rng.standard_normal((4, classes, *shape)) for _ in range(decoders)]
    return logits, rng.integers(0, classes, (LABELED, *shape))


@pytest.fixture(params=[(2, 2), (3, 2), (3, 4)], ids=str)
def case(request):
    """Logits of each decoder, and labels: decoders, classes."""
    return make_case(*request.param, (4, 3, 2))


def ours(case, weight=WEIGHT, args=VOLUMES):
    logits = [torch.from_numpy(z.copy()).requires_grad_() for z in case[0]]
    loss, terms = mcnet.objective(logits, torch.from_numpy(case[1]), weight, args)
    return loss, terms, logits


def test_objective_against_numpy(case):
    logits, y = case
    loss, terms, _ = ours(case)
    seg = reference.supervised_loss([z[:LABELED] for z in logits], y)
    con = reference.consistency(logits)
    assert loss.item() == pytest.approx(seg + WEIGHT * con, rel=1e-9)
    assert terms["loss_seg"].item() == pytest.approx(2 * seg, rel=1e-9)
    assert terms["loss_con"].item() == pytest.approx(con, rel=1e-9)


def test_objective_on_slices_against_numpy():
    logits, y = case = make_case(3, 4, (5, 4))
    loss, *_ = ours(case, args=SLICES)
    seg = reference.supervised_loss([z[:LABELED] for z in logits], y, "acdc")
    assert loss.item() == pytest.approx(seg + WEIGHT * reference.consistency(logits), rel=1e-9)


def test_a_voxel_by_hand():
    """s(2/3) = 1024/1025, s(1/2) = 1/2: over two classes (2/3 - 1/2)² + (1/2 - 1024/1025)²."""
    p_1 = torch.tensor([1 / 3, 2 / 3], dtype=torch.float64).view(1, 2, 1, 1, 1)
    p_2 = torch.full_like(p_1, 0.5)
    loss = mcnet.consistency_loss([p_1, p_2], 0.1)
    assert loss.item() == pytest.approx(1 / 36 + (1024 / 1025 - 0.5) ** 2)


def test_sharpened_probabilities_of_two_classes_sum_to_one_and_of_more_need_not():
    of_two = torch.tensor([[0.3, 0.7]])
    of_four = torch.full((1, 4), 0.25)
    assert mcnet.sharpen(of_two, 0.1).sum().item() == pytest.approx(1)
    assert mcnet.sharpen(of_four, 0.1).sum().item() < 1e-3
    assert torch.allclose(mcnet.sharpen(of_two, 1.0), of_two)


def test_sharpening_has_finite_gradients_at_the_ends():
    p = torch.tensor([0.0, 1e-8, 0.5, 1.0], requires_grad=True)
    mcnet.sharpen(p, 0.01).sum().backward()
    assert p.grad.isfinite().all()


def test_the_sharpened_decoder_learns_too(case):
    """The gradient of L_ij reaches decoder j: it differs from that with s(p_j) fixed."""
    _, terms, logits = ours(case)
    gradients = torch.autograd.grad(terms["loss_con"], logits)
    with torch.no_grad():
        fixed = [mcnet.sharpen(z.softmax(1), 0.1) for z in logits]
    loss = 0
    for i, z in enumerate(logits):
        for j, s in enumerate(fixed):
            if i != j:
                loss = loss + (z.softmax(1) - s).square().mean()
    of_own = torch.autograd.grad(loss, logits)
    for gradient, own in zip(gradients, of_own, strict=True):
        assert not torch.allclose(gradient, own)


def test_without_weight_unlabelled_crops_teach_nothing(case):
    loss, _, logits = ours(case, weight=0.0)
    loss.backward()
    for z in logits:
        assert z.grad[:LABELED].any()
        assert not z.grad[LABELED:].any()


@pytest.mark.parametrize("step", [1, 150, 151, 3000, 6001])
@pytest.mark.parametrize(("patch", "data"), [((1, 1, 1), "3d"), ((1, 1), "acdc")])
def test_released_weight_is_a_staircase(step, patch, data):
    largest = 0.1 if data == "acdc" else 1.0
    found = mcnet.consistency_weight_released(step, Namespace(consistency=largest, patch=patch))
    assert found == pytest.approx(reference.consistency_weight(step - 1, data))


def test_decoders_of_volumes_and_slices_upsample_in_the_released_order():
    assert mcnet.UPSAMPLINGS[3][:2] == ("transposed", "linear")
    assert mcnet.UPSAMPLINGS[2][:2] == ("linear", "transposed")


def test_paper_tests_the_mean_of_two_decoders_and_the_first_of_three():
    tested = {
        flags: mcnet.parse(flags.split()).test_decoder
        for flags in ("", "--decoders 3", "--preset released", "--decoders 3 --preset released")
    }
    assert list(tested.values()) == ["mean", "first", "first", "first"]


@pytest.mark.parametrize("tested", ["mean", "first"])
def test_a_run_is_tested_with_the_decoder_that_it_names(tested, tiny_la, tmp_path):
    where = ["--root", str(tiny_la), "--runs", str(tmp_path)]
    mcnet.main([*LA, *BOTH, *where, "--max_iterations", "1", "--test_decoder", tested])
    (path,) = tmp_path.glob("*/*/*/last.pth")
    (net,), _ = load_networks(path, "cpu")
    image = torch.randn(1, 1, 32, 16, 16)
    with torch.no_grad():
        logits = net(image)
        found = net.segment(image).softmax(1)
    p = torch.stack([z.softmax(1) for z in logits])
    torch.testing.assert_close(found, p.mean(0) if tested == "mean" else p[0])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--preset", "released", "--rampup_share", "1"], "--rampup_share has no effect"),
        (["--consistency", "0", "--temperature", "1"], "--temperature has no effect"),
        (["--temperature", "0.001"], "give 0.01 to 1"),
    ],
)
def test_options_that_cannot_be_are_refused(flags, message):
    with pytest.raises(UserError, match=message):
        mcnet.parse(flags)
