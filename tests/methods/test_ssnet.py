"""SS-Net's losses and prototypes against the equations in NumPy float64, its gradients, its limits
and its presets.
"""

import copy

import numpy as np
import pytest
import torch
import train_ssnet as ssnet
from references import ssnet as reference
from small import BOTH, LA
from torch import nn

from networks.base import statistics_kept
from networks.vnet import VNet
from utils.errors import UserError
from utils.perturbations import adversarial_direction

pytestmark = pytest.mark.usefixtures("one_thread")

LABELED = 2
EXTENTS = {3: (4, 3, 2), 2: (5, 4)}
FORM = {3: "3d", 2: "acdc"}


@pytest.fixture(params=[(2, 3), (4, 3), (4, 2)], ids=["binary", "four classes", "slices"])
def case(request):
    """Axes, logits of two labelled and two unlabelled crops with and without perturbation,
    and labels.
    """
    classes, dims = request.param
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((2, 4, classes, *EXTENTS[dims]))
    return dims, logits, rng.integers(0, classes, (LABELED, *EXTENTS[dims]))


def tensor(values, requires_grad=False):
    return torch.from_numpy(np.array(values)).requires_grad_(requires_grad)


def of_classes(rng, classes, counts):
    """Features and scores of each foreground class, and the labels of their rows."""
    parts = [(rng.standard_normal((n, 32)), rng.standard_normal(n)) for n in counts[1:classes]]
    labels = np.concatenate([np.full(len(f), c) for c, (f, _) in enumerate(parts, 1)])
    return parts, labels


# ------------------------------------------------------------------------------------- the losses


def test_dice_and_objective_against_numpy(case):
    dims, (z, moved), y = case
    p, q = tensor(moved).softmax(1), tensor(z).softmax(1)
    lds = reference.smoothness(z, moved, FORM[dims])
    assert ssnet.prediction_dice(p, q).item() == pytest.approx(lds, rel=1e-9)
    t = 3000
    weight = reference.consistency_weight(t, FORM[dims])
    parts = [tensor(value) for value in (lds, 0.7, 0.6)]
    loss, _ = ssnet.objective(tensor(z), tensor(y), *parts, weight, 0.1)
    expected = reference.loss(z, moved, y, 0.7, 0.6, t, FORM[dims])
    assert loss.item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("classes", [2, 4])
def test_separation_against_numpy(classes):
    rng = np.random.default_rng(0)
    parts, labels = of_classes(rng, classes, (0, 7, 4, 2))
    stored = [None, *(rng.standard_normal((m, 32)) for m in (32, 5, 3))][:classes]
    given = [(tensor(f, True), tensor(s, True)) for f, s in parts]
    prototypes = {c: tensor(stored[c]) for c in range(1, classes)}
    loss = ssnet.separation_loss(given, prototypes)
    features = np.concatenate([f for f, _ in parts])
    scores = [np.zeros(0), *(s for _, s in parts)]
    expected = reference.class_separation(features, labels, stored, scores)
    assert loss.item() == pytest.approx(expected, rel=1e-9)
    loss.backward()
    for f, s in given:
        assert f.grad.any(1).all()
        assert s.grad.all()


def test_a_class_of_too_few_prototypes_adds_nothing():
    rng = np.random.default_rng(0)
    parts, _ = of_classes(rng, 4, (0, 7, 4, 5))
    given = [(tensor(f, True), tensor(s, True)) for f, s in parts]
    prototypes = {1: tensor(rng.standard_normal((1, 32))), 3: tensor(rng.standard_normal((2, 32)))}
    loss = ssnet.separation_loss(given, prototypes)
    only_third = ssnet.separation_loss([given[2]], {1: prototypes[3]}) * 2 / 4
    torch.testing.assert_close(loss, only_third)
    loss.backward()
    assert not any(f.grad.any() for f, _ in given[:2])
    assert ssnet.separation_loss(given, {}) == 0


def test_separation_by_hand():
    """Cosines 1 and 0 to the mean of two prototypes, weighted σ(ln 3) = 3/4 and σ(-ln 3) = 1/4."""
    axis = torch.eye(32).double()
    f, s = torch.stack((5 * axis[0], axis[1])), tensor([3.0, 1 / 3]).log()
    found = ssnet.separation_loss([(f, s)], {1: torch.stack((axis[0], 2 * axis[0]))})
    assert found.item() == pytest.approx(0.25 / 2, rel=1e-9)


# ------------------------------------------------------------------------ the adversarial direction


class Linear(nn.Module):
    """Logits z_c = Σ_k W_ck x_k of each voxel."""

    def __init__(self, weights):
        super().__init__()
        self.weights = nn.Parameter(tensor(weights))

    def forward(self, x):
        return torch.einsum("ck,bk...->bc...", self.weights, x)


def test_the_direction_against_the_chain_rule(monkeypatch):
    rng = np.random.default_rng(0)
    W, x, d = rng.standard_normal((2, 3)), *rng.standard_normal((2, 2, 3, 4, 3, 2))
    model = Linear(W)
    monkeypatch.setattr(torch, "randn_like", lambda image: tensor(d))
    seen = []

    def spied(divergence, image, xi):
        seen.append(adversarial_direction(divergence, image, xi))
        return seen[-1]

    monkeypatch.setattr(ssnet, "adversarial_direction", spied)
    z = model(tensor(x))
    loss = ssnet.smoothness_loss(model, tensor(x), z, xi=2.0, epsilon=6.0)
    gradient = reference.direction_of_linear_model(W, x, d, xi=2.0)
    r = reference.perturbation(gradient, epsilon=6.0)
    np.testing.assert_allclose(6 * seen[0], r, rtol=1e-9)
    moved = model(tensor(x + r)).detach().numpy()
    expected = reference.smoothness(z.detach().numpy(), moved)
    assert loss.item() == pytest.approx(expected, rel=1e-9)


def test_smoothness_teaches_only_by_the_perturbed_prediction():
    """No gradient reaches p(x), and none stays in the network from the search of the direction."""
    rng = np.random.default_rng(0)
    model = Linear(rng.standard_normal((2, 3)))
    x = tensor(rng.standard_normal((2, 3, 4, 3, 2)))
    z = model(x).detach().requires_grad_()
    loss = ssnet.smoothness_loss(model, x, z, xi=2.0, epsilon=1.0)
    assert model.weights.grad is None
    assert model.weights.requires_grad
    loss.backward()
    assert z.grad is None
    assert model.weights.grad.any()
    assert not x.requires_grad


def test_statistics_do_not_see_perturbed_crops():
    torch.manual_seed(0)
    net = VNet(n_filters=1, last=True)
    x = torch.randn(2, 1, 32, 16, 16)
    z, _ = net(x)
    before = copy.deepcopy(net.state_dict())
    with statistics_kept([net]):
        ssnet.smoothness_loss(lambda image: net(image)[0], x, z, 10.0, 10.0)
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())


# ---------------------------------------------------------------------------- heads and prototypes


@pytest.fixture
def heads():
    torch.manual_seed(0)
    return ssnet.Heads(5, 4).double()


def test_prototypes_against_numpy(heads):
    rng = np.random.default_rng(0)
    features = rng.standard_normal((LABELED, 5, 6, 5, 4))
    z, y = rng.standard_normal((LABELED, 4, 6, 5, 4)), rng.integers(0, 4, (LABELED, 6, 5, 4))
    y[y == 3] = 0
    y[0, 0, 0, 0] = 3  # a class of one voxel, predicted right
    z[0, 3, 0, 0, 0] = 10
    right = reference.prototype_voxels(z, y)
    rows = reference.voxel_features(features)[right.reshape(-1)]
    with torch.no_grad():
        projected = heads.eval().projection(tensor(rows))
        scores = [np.zeros(0)]
        for c, selector in enumerate(heads.selectors, 1):
            own = projected[tensor(y[right]) == c]
            scores.append(selector(own)[:, 0].numpy())
    for highest in (False, True):
        found = ssnet.Prototypes(8, highest)
        found.replace(heads, tensor(features), tensor(z), tensor(y))
        sign = -1 if highest else 1
        expected = reference.prototypes(
            projected.numpy(), y[right], [sign * s for s in scores], 4, number=8
        )
        assert len(expected[1]) == 8
        assert len(expected[3]) == 1
        for c in range(1, 4):
            np.testing.assert_allclose(found.of[c], expected[c], rtol=1e-9)
            assert not found.of[c].requires_grad
        assert heads.training


def test_a_class_predicted_nowhere_right_keeps_its_prototypes(heads):
    rng = np.random.default_rng(0)
    features, y = tensor(rng.standard_normal((1, 5, 4, 4, 4))), torch.zeros(1, 4, 4, 4).long()
    y[:, :2] = 1
    z = 5 * torch.nn.functional.one_hot(y, 4).movedim(-1, 1).double()
    prototypes = ssnet.Prototypes(4)
    prototypes.replace(heads, features, z, y)
    first = prototypes.of[1]
    assert set(prototypes.of) == {1}
    prototypes.replace(heads, features, -z, y)
    assert prototypes.of[1] is first
    again = ssnet.Prototypes(4)
    again.load_state_dict(prototypes.state_dict())
    assert torch.equal(again.of[1], first)


def test_heads_give_each_class_its_voxels(heads):
    """Rows of features and labels go together; the selector's score sends no gradient to f."""
    rng = np.random.default_rng(0)
    features = tensor(rng.standard_normal((LABELED, 5, 4, 3, 2)), True)
    label = tensor(rng.integers(0, 3, (LABELED, 4, 3, 2)))
    label[0, 0, 0, 0] = 3
    found, again = heads(features, label, features, label)
    rows = tensor(reference.voxel_features(features.detach().numpy()))
    predicted = heads.prediction(heads.projection(rows))
    for c, (f, s) in enumerate(found, 1):
        own = predicted[label.flatten() == c]
        if c == 3:  # one voxel
            assert f.shape == (0, 32)
            assert s.shape == (0,)
            continue
        torch.testing.assert_close(f, own)
        torch.testing.assert_close(s, heads.selectors[c - 1](own)[:, 0])
        torch.testing.assert_close(again[c - 1][0], f)
    sum(s.square().sum() for _, s in found).backward()
    assert features.grad is None
    assert heads.selectors[0][0].weight.grad.any()
    assert heads.prediction[0].weight.grad is None


# ------------------------------------------------------------------------- schedules and options


def test_schedules_follow_the_released_ones():
    for dataset, form, end in (("LA", "3d", 6000), ("ACDC", "acdc", 30000)):
        args = ssnet.parse(["--dataset", dataset])
        coded = ssnet.parse(["--dataset", dataset, "--preset", "released"])
        assert ssnet.consistency_weight(end, args) == args.consistency
        for step in (1, 150, 151, 4000, end + 1):
            expected = reference.consistency_weight(step - 1, form)
            assert ssnet.consistency_weight_released(step, coded) == pytest.approx(expected)
        for step in (1, 2500, 2501, 10001):
            rate = ssnet.step_decay(args.base_lr, step, args.lr_step)
            assert rate == pytest.approx(reference.learning_rate(step - 1, form))
        assert ssnet.consistency_weight(3000, args) == pytest.approx(
            reference.consistency_weight(3000, form), rel=1e-9
        )


def test_a_checkpoint_holds_the_prototypes(tiny_la, tmp_path):
    argv = [*LA, *BOTH, "--max_iterations", "2", "--root", str(tiny_la), "--runs", str(tmp_path)]
    ssnet.main(argv)
    (path,) = tmp_path.glob("*/*/*/last.pth")
    state = torch.load(path, weights_only=True)
    assert state["prototypes"]["of"][1].shape == (32, 32)
    assert state["test_networks"] == ["net"]


def test_options_without_effect_are_refused():
    for argv, option in (
        (["--consistency", "0", "--xi", "1"], "xi"),
        (["--separation", "0", "--prototypes", "3"], "prototypes"),
        (["--preset", "released", "--rampup_share", "1"], "rampup_share"),
    ):
        with pytest.raises(UserError, match=f"--{option} has no effect with --{argv[0][2:]}"):
            ssnet.parse(argv)
