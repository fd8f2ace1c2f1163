"""CML's objective and targets against the equations in NumPy, its gradients and its limits."""

from argparse import Namespace

import numpy as np
import pytest
import torch
import train_cml as cml
from numpy_reference import dice, softmax
from small import BOTH, LA

from utils.errors import UserError
from utils.losses import supervised_loss

pytestmark = pytest.mark.usefixtures("one_thread")

LABELED = 2
BOX = torch.tensor([[1, 0, 1], [3, 2, 2]])
INSIDE = (slice(None), slice(1, 3), slice(0, 2), slice(1, 2))


def supervised(z, y):
    ce = -np.log(np.take_along_axis(softmax(z), y[:, None], 1)).mean()
    return (
        ce + np.mean([dice(softmax(z)[:, c], (y == c).astype(float)) for c in range(1, z.shape[1])])
    ) / 2


def cosine(f, g):
    return ((f * g).sum(1) / np.sqrt((f**2).sum(1) * (g**2).sum(1))).mean()


@pytest.fixture(params=[2, 3], ids=["binary", "three classes"])
def case(request):
    """Logits, deepest features and targets of both networks for two labelled and three unlabelled
    crops.
    """
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((2, 5, request.param, 4, 3, 2))
    return (
        logits,
        rng.standard_normal((2, 5, 6, 2, 1, 1)),
        rng.integers(0, request.param, (2, 5, 4, 3, 2)),
    )


def ours(case, framework="cml", lambda_u=0.7, lambda_dis=0.2, crops=5):
    z, f = (
        [torch.from_numpy(v[:crops].copy()).requires_grad_() for v in both] for both in case[:2]
    )
    labels = [torch.from_numpy(y[:crops]) for y in case[2]]
    args = Namespace(framework=framework, lambda_u=lambda_u, lambda_dis=lambda_dis)
    loss, terms = cml.objective((z[0], f[0]), (z[1], f[1]), *labels, LABELED, args)
    return loss, terms, z, f


@pytest.mark.parametrize("framework", ["cml", "cfl", "cps"])
def test_objective_against_numpy(case, framework):
    logits, features, labels = case
    expected = 0
    for weight, part in ((1, slice(LABELED)), (0.7, slice(LABELED, None))):
        expected += weight * sum(supervised(logits[i, part], labels[i, part]) for i in range(2))
        if framework != "cps":
            expected += 0.2 * 2 * (1 + cosine(features[0, part], features[1, part]))
    loss, *_ = ours(case, framework)
    assert loss.item() == pytest.approx(expected, rel=1e-6)


def test_pretraining_is_the_labelled_terms_alone(case):
    logits, features, labels = case
    part = slice(LABELED)
    expected = sum(supervised(logits[i, part], labels[i, part]) for i in range(2))
    expected += 0.4 * (1 + cosine(features[0, part], features[1, part]))
    loss, terms, *_ = ours(case, crops=LABELED)
    assert loss.item() == pytest.approx(expected, rel=1e-6)
    assert set(terms) == {"loss_l", "loss_dis_l"}


def test_without_lambda_dis_it_is_cps(case):
    loss, *_ = ours(case, "cml", lambda_dis=0.0)
    twin, *_ = ours(case, "cps")
    assert loss.item() == twin.item()


def test_without_the_unlabelled_terms_each_network_follows_the_supervised_loss(case):
    loss, _, z, _ = ours(case, lambda_u=0.0, lambda_dis=0.0)
    loss.backward()
    for mine, values, labels in zip(z, case[0], case[2], strict=True):
        alone = torch.from_numpy(values[:LABELED].copy()).requires_grad_()
        supervised_loss(alone, torch.from_numpy(labels[:LABELED])).backward()
        torch.testing.assert_close(mine.grad[:LABELED], alone.grad)
        assert mine.grad[LABELED:].eq(0).all()


def test_discrepancy_by_hand():
    f = torch.tensor([1.0, 0.0]).view(1, 2, 1, 1, 1)
    for other, value in ((f, 4), (f.flip(1), 2), (-f, 0), (7 * f, 4)):
        assert cml.discrepancy(f, other).item() == pytest.approx(value)


def test_each_side_of_the_discrepancy_moves_its_own_features_alone():
    """d/df of 1 + cos(f, stopgrad g), taken once for each network: half of what 2 (1 + cos(f, g))
    would send.
    """
    f, g = (torch.randn(2, 3, 2, 1, 1, dtype=torch.float64).requires_grad_() for _ in range(2))
    cml.discrepancy(f, g).backward()
    h = f.detach().requires_grad_()
    torch.nn.functional.cosine_similarity(h, g.detach(), dim=1).mean().backward()
    torch.testing.assert_close(f.grad, h.grad, rtol=1e-5, atol=1e-7)


def test_mix_by_hand():
    x = torch.arange(4 * 4 * 3 * 2).view(4, 4, 3, 2)
    expected = x[:2].clone()
    expected[INSIDE] = x[2:][INSIDE]
    assert torch.equal(cml.mix(x, BOX), expected)
    assert cml.mix(x, None) is x


def test_targets_come_from_the_other_outside_and_from_oneself_inside():
    one, two = torch.full((4, 4, 3, 2), 1), torch.full((4, 4, 3, 2), 2)
    one[2:] += 10  # of the crops that go inside
    two[2:] += 10
    for target, outside, inside in zip(cml.targets(one, two, BOX), (2, 1), (11, 12), strict=True):
        assert (target[INSIDE] == inside).all()
        target[INSIDE] = outside
        assert (target == outside).all()


@pytest.mark.parametrize("framework", ["cps", "cfl"])
def test_cps_and_cfl_learn_from_the_others_argmax_in_the_same_pass(
    framework, tiny_la, tmp_path, monkeypatch
):
    """Equation 3: no component filter, no further pass, no CutMix."""
    objective, passes, seen = cml.objective, [], []

    def listen(outputs_1, outputs_2, labels_1, labels_2, labelled, args):
        seen.append((outputs_1[0], outputs_2[0], labels_1, labels_2, labelled))
        return objective(outputs_1, outputs_2, labels_1, labels_2, labelled, args)

    def forward(model, image, sizes):
        passes.append(len(image))
        return model(image)

    def refuse(*_):
        raise AssertionError("the component filter and CutMix belong to CML only")

    monkeypatch.setattr(cml, "objective", listen)
    monkeypatch.setattr(cml, "forward", forward)
    for name in ("largest_component", "pseudo_labels", "random_box"):
        monkeypatch.setattr(cml, name, refuse)
    short = "--pretrain_iterations 1 --max_iterations 2".split()
    where = ["--root", str(tiny_la), "--runs", str(tmp_path)]
    cml.main([*LA, *BOTH, *short, *where, "--framework", framework])
    (path,) = tmp_path.glob("*/*/*/last.pth")
    assert torch.load(path, weights_only=True)["test_networks"] == ["net", "net_2"]
    assert passes == [2, 2, 4, 4, 4, 4]  # both networks, once a step
    for logits_1, logits_2, labels_1, labels_2, labelled in seen[1:]:
        assert labelled == 2
        assert torch.equal(labels_1[:2], labels_2[:2])
        assert torch.equal(labels_1[2:], logits_2[2:].argmax(1))
        assert torch.equal(labels_2[2:], logits_1[2:].argmax(1))


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ("--framework cps --lambda_dis 0.3", "--lambda_dis has no effect with --framework cps"),
        ("--framework cps --beta 0.5", "--beta has no effect with --framework cps"),
        ("--framework cfl --beta 0.5", "--beta has no effect with --framework cfl"),
    ],
)
def test_options_without_effect_are_refused(flags, named):
    with pytest.raises(UserError, match=named):
        cml.parse(flags.split())
    assert cml.parse("--framework cfl --lambda_dis 0.3".split()).lambda_dis == 0.3


def test_nms_keeps_the_largest_component_of_each_class():
    """A network that answers with two islands of a class: the larger one is left."""
    said = torch.zeros(1, 1, 1, 8, dtype=torch.int64)
    said[..., 0:3] = 1
    said[..., 5:6] = 1
    logits = torch.nn.functional.one_hot(said, 2).movedim(-1, 1).float()
    found = cml.pseudo_labels(lambda _: (logits, None), said, 2)
    assert found.flatten().tolist() == [1, 1, 1, 0, 0, 0, 0, 0]


def test_gradcheck(case):
    z = [torch.from_numpy(v[1:4, :, :2, :1, :1].copy()).requires_grad_() for v in case[0]]
    labels = [torch.from_numpy(y[1:4, :2, :1, :1].copy()) for y in case[2]]
    features = [torch.from_numpy(f[1:4].copy()) for f in case[1]]
    args = Namespace(framework="cml", lambda_u=0.7, lambda_dis=0.2)
    assert torch.autograd.gradcheck(
        lambda a, b: cml.objective((a, features[0]), (b, features[1]), *labels, 1, args)[0], z
    )
