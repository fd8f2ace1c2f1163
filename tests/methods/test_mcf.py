"""MCF's losses against the equations in NumPy float64, who learns from whom, its limits and its
networks.
"""

import math
from argparse import Namespace

import numpy as np
import pytest
import torch
import train_mcf as mcf
from references import mcf as reference
from small import ACDC, BOTH, LA

from networks import network_class
from utils.errors import UserError
from utils.inference import mean_probability
from utils.trained import load_networks

pytestmark = pytest.mark.usefixtures("one_thread")

LABELED = 2
ARGS = Namespace(rectification=0.5, temperature=0.1)
T = 3000


@pytest.fixture(params=[(2, 3), (4, 3), (4, 2)], ids=["binary", "four classes", "slices"])
def case(request):
    """Logits of both networks for two labelled and three unlabelled crops, and labels."""
    classes, dims = request.param
    rng = np.random.default_rng(0)
    extents = (4, 3, 2)[:dims]
    logits = rng.standard_normal((2, 5, classes, *extents))
    return logits, rng.integers(0, classes, (LABELED, *extents))


def ours(case, weight, args=ARGS):
    z = [torch.from_numpy(one.copy()).requires_grad_() for one in case[0]]
    loss, terms = mcf.objective(*z, torch.from_numpy(case[1]), weight, args)
    return loss, terms, z


def swapped(case):
    return case[0][::-1], case[1]


@pytest.mark.parametrize("change", [lambda case: case, swapped], ids=["as it is", "swapped"])
def test_objective_against_numpy(case, change):
    logits, y = case = change(case)
    loss, terms, _ = ours(case, reference.consistency_weight(T))
    assert loss.item() == pytest.approx(reference.loss(*logits, y, T), rel=1e-9)
    first = reference.teacher(logits[0][:LABELED], logits[1][:LABELED], y) == "A"
    assert terms["first_teaches"] == first


def test_parts_against_numpy(case):
    logits, y = case
    z_1, z_2 = map(torch.from_numpy, logits)
    label = torch.from_numpy(y)
    p_1, p_2 = z_1.softmax(1), z_2.softmax(1)
    differ = z_1[:LABELED].argmax(1) != z_2[:LABELED].argmax(1)
    assert 0 < differ.sum() < differ.numel()
    found = mcf.rectification_loss(p_1[:LABELED], label, differ).item()
    own = reference.disagreement(logits[0][:LABELED], logits[1][:LABELED])
    assert found == pytest.approx(reference.rectification(logits[0][:LABELED], y, own), rel=1e-9)
    s = mcf.sharpened(p_2, 0.1)
    np.testing.assert_allclose(s, reference.sharpen(p_2.numpy()), rtol=1e-9)
    expected = reference.consistency(logits[0], logits[1])
    assert mcf.consistency_loss(p_1, s).item() == pytest.approx(expected, rel=1e-9)


def test_only_the_worse_network_learns_from_unlabelled_crops(case):
    for given in (case, swapped(case)):
        loss, terms, z = ours(given, weight=0.3)
        loss.backward()
        learner = 1 if terms["first_teaches"] else 0
        assert (z[learner].grad[LABELED:].abs().sum(1) > 0).all()
        assert not z[1 - learner].grad[LABELED:].any()
        assert all((one.grad[:LABELED].abs().sum(1) > 0).all() for one in z)


def test_equal_networks_do_not_disagree(case):
    """No voxel differs, so the rectification is 0; of equal networks the second one teaches."""
    _, terms, _ = ours((case[0][[0, 0]], case[1]), 0.3)
    assert terms["loss_rectification"] == 0
    assert terms["first_teaches"] == 0


def test_sharpened_predictions_at_their_ends():
    p = torch.tensor([[1.0, 0.75, 0.5], [0.0, 0.25, 0.5]]).double()[None]
    hard = mcf.sharpened(p, 0.1)
    expected = torch.tensor([1.0, 3**10 / (3**10 + 1), 0.5]).double()
    torch.testing.assert_close(hard[0, 0], expected)
    torch.testing.assert_close(mcf.sharpened(p, 1.0), p)
    assert mcf.sharpened(p.float().requires_grad_(), 0.01).isfinite().all()
    assert not mcf.sharpened(p.clone().requires_grad_(), 1.0).requires_grad


def test_a_voxel_by_hand():
    """p = 3/4 and 1/4 of a foreground voxel: each term is known."""
    z = torch.tensor([[1.0, 3.0], [3.0, 1.0]]).double().log().view(2, 1, 2, 1, 1, 1)
    z = z.repeat(1, 2, 1, 1, 1, 1)  # the labelled voxel, and an unlabelled one
    _, terms, _ = ours((z.numpy(), np.ones((1, 1, 1, 1), int)), 0.3)
    s = 3**10 / (3**10 + 1)
    dice = 1 - (2 * 0.75 + 1e-5) / (0.75**2 + 1 + 1e-5)
    assert terms["loss_1"].item() == pytest.approx(math.log(4 / 3) + dice, rel=1e-9)
    assert terms["loss_rectification"].item() == pytest.approx(0.25**2 + 0.75**2, rel=1e-9)
    assert terms["loss_consistency"].item() == pytest.approx((s - 0.25) ** 2, rel=1e-9)
    assert terms["first_teaches"] == 1


def test_consistency_weight_follows_the_released_one():
    args = mcf.parse([])
    assert mcf.consistency_weight(6000, args) == args.consistency == 0.1
    for step in (150, 3000, 5850):
        assert mcf.consistency_weight(step, args) == pytest.approx(
            reference.consistency_weight(step), rel=1e-9
        )
    short = mcf.parse(["--max_iterations", "600"])
    assert mcf.consistency_weight(300, short) == pytest.approx(mcf.consistency_weight(3000, args))
    for step in (1, 2500, 2501, 5000, 5001, 6000):
        rate = mcf.step_decay(args.base_lr, step, args.lr_step)
        assert rate == pytest.approx(reference.learning_rate(step - 1), rel=1e-9)


@pytest.mark.parametrize("dims", [3, 2])
def test_both_networks_are_tested(dims, tmp_path, request):
    root = request.getfixturevalue("tiny_la" if dims == 3 else "tiny_acdc")
    argv = [*(LA if dims == 3 else ACDC), *BOTH, "--max_iterations", "1"]
    mcf.main([*argv, "--root", str(root), "--runs", str(tmp_path / "runs")])
    (path,) = tmp_path.glob("runs/*/*/*/last.pth")
    networks, checkpoint = load_networks(path, torch.device("cpu"))
    assert checkpoint["test_networks"] == ["net", "net_2"]
    names = ("vnet", "resnet34") if dims == 3 else ("unet", "resnet34_2d")
    assert [type(net) for net in networks] == [network_class(name) for name in names]
    x = torch.randn(1, 1, *(32, 16, 16)[:dims])
    with torch.no_grad():
        logits = [net.eval()(x).numpy() for net in networks]
        found = mean_probability(networks)(x)
    np.testing.assert_allclose(found, reference.predict(*logits), rtol=1e-4, atol=1e-6)


def test_options_without_effect_are_refused():
    with pytest.raises(UserError, match="--temperature has no effect with --consistency 0"):
        mcf.parse(["--consistency", "0", "--temperature", "1"])
