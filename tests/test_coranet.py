"""CoraNet's terms against the paper's equations in NumPy float64, its gradients, and what must not send any."""

import numpy as np
import pytest
import torch
import train_coranet as coranet

from networks.vnet import VNet


def softmax(z):
    e = np.exp(z - z.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def cross_entropy(z, y, weight):
    """Σ_v w(y_v) (-log p_v(y_v)) / Σ_v w(y_v), as class-weighted cross-entropy is defined."""
    nll = -np.log(np.take_along_axis(softmax(z), y[:, None], 1))[:, 0]
    return (weight[y] * nll).sum() / weight[y].sum()


@pytest.fixture
def case():
    rng = np.random.default_rng(0)
    logits = [rng.standard_normal((2, 2, 4, 3, 2)) for _ in range(3)]
    return logits, rng.integers(0, 2, (2, 4, 3, 2)), rng.random((2, 4, 3, 2)) < 0.6


def test_crm_against_numpy(case):
    logits, y, _ = case
    con, rad = np.array([5.0, 1.0]), np.array([1.0, 5.0])
    weights = (None, torch.from_numpy(con), torch.from_numpy(rad))
    ours = coranet.branch_losses([torch.from_numpy(z) for z in logits], torch.from_numpy(y), weights)
    theirs = [cross_entropy(z, y, w) for z, w in zip(logits, (np.ones(2), con, rad), strict=True)]
    assert [loss.item() for loss in ours] == pytest.approx(theirs, rel=1e-12)


def test_a_false_object_costs_alpha_in_the_conservative_branch():
    """Two voxels, one of each class, both predicted as object with p = e/(1+e): by hand."""
    z = torch.tensor([0.0, 1.0], dtype=torch.float64).view(1, 2, 1, 1, 1).expand(1, 2, 2, 1, 1)
    y = torch.tensor([0, 1]).view(1, 2, 1, 1)
    false, true = np.log(1 + np.e), np.log(1 + np.exp(-1))
    weight = torch.tensor([5.0, 1.0], dtype=torch.float64)
    (conservative,) = coranet.branch_losses([z], y, (weight,))
    (radical,) = coranet.branch_losses([z], y, (weight.flip(0),))
    assert conservative.item() == pytest.approx((5 * false + true) / 6)
    assert radical.item() == pytest.approx((false + 5 * true) / 6)


def test_masked_losses_see_the_mask_alone(case):
    logits, y, mask = case
    z, label, where = torch.from_numpy(logits[0]).requires_grad_(), torch.from_numpy(y), torch.from_numpy(mask)
    ce, dice = coranet.branch_losses([z], label, (None,), where, dice=True)
    nll = -np.log(np.take_along_axis(softmax(logits[0]), y[:, None], 1))[:, 0]
    assert ce.item() == pytest.approx(nll[mask].mean(), rel=1e-12)
    p, t = softmax(logits[0])[:, 1] * mask, (y == 1) & mask
    expected = 1 - (2 * (p * t).sum() + 1e-5) / ((p**2).sum() + t.sum() + 1e-5)
    assert dice.item() == pytest.approx(expected, rel=1e-6)
    (ce + dice).backward()
    assert z.grad.movedim(1, -1)[~where].eq(0).all()
    assert z.grad.movedim(1, -1)[where].ne(0).all()


def test_consistency_against_numpy(case):
    (s, t, _), _, mask = case
    ours = coranet.consistency([torch.from_numpy(s)], [torch.from_numpy(t)], torch.from_numpy(mask))
    difference = ((softmax(s) - softmax(t)) ** 2).mean(1)
    assert ours.item() == pytest.approx(difference[mask].mean(), rel=1e-12)
    nothing = coranet.consistency(
        [torch.from_numpy(s)], [torch.from_numpy(t)], torch.zeros_like(torch.from_numpy(mask))
    )
    assert nothing.item() == 0


def test_gradcheck(case):
    logits, y, mask = (np.asarray(part)[..., :1, :1] for part in case)
    z = torch.from_numpy(logits[0].copy()).requires_grad_()
    label, where = torch.from_numpy(y.copy()), torch.from_numpy(mask.copy())
    target = torch.from_numpy(logits[1].copy())
    weight = torch.tensor([5.0, 1.0], dtype=torch.float64)

    def losses(z):
        return coranet.branch_losses([z], label, (weight,), where)[0] + coranet.consistency([z], [target], where)

    assert torch.autograd.gradcheck(losses, z)


class FakeData:
    """Volumes of one window each, the first labelled, as `relabel` sees them."""

    labeled_bs, patch = 1, (32, 16, 16)

    def __init__(self):
        generator = torch.Generator().manual_seed(0)
        images = {case: torch.randn(32, 16, 16, generator=generator) for case in range(4)}
        self.volumes = type("Volumes", (), {"images": images})()

    def samples(self, step):
        return [0, 1 + step % 2]


class FakeJob:
    device, precision = torch.device("cpu"), "fp32"

    def breathe(self, step):
        self.breathed = step


@pytest.fixture
def net():
    """A network whose branches each call about half of the voxels object."""
    torch.manual_seed(0)
    net = VNet(1, 2, 2, "instancenorm", branches=3).eval()
    with torch.no_grad():
        for head, logits in zip(net.heads, net(torch.randn(1, 1, 32, 16, 16)), strict=True):
            head[1].bias[1] -= (logits[:, 1] - logits[:, 0]).median()
    return net


def relabel(net, job=None):
    return coranet.relabel(net, FakeData(), range(4, 6), (8, 8, 8), job or FakeJob())


def test_relabel_labels_the_cases_that_will_be_seen(net):
    job = FakeJob()
    labels = relabel(net, job)
    assert set(labels) == {1, 2}
    assert job.breathed == 4
    assert net.training
    assert {labels[1].dtype, labels[2].dtype} == {torch.uint8}
    for case, packed in labels.items():
        normal, con, rad = (z[0].argmax(0) for z in net.eval()(FakeData().volumes.images[case][None, None]))
        pseudo, certain = packed % coranet.CERTAIN, packed >= coranet.CERTAIN
        assert torch.equal(pseudo.long(), normal)
        assert torch.equal(certain, con == rad)
        assert 0.1 < pseudo.float().mean() < 0.9
        assert 0.1 < certain.float().mean() < 0.9


def test_tied_branches_leave_nothing_uncertain(net):
    """α = 1 makes the branches' losses equal; with equal weights they agree everywhere."""
    for branch in (1, 2):
        net.heads[branch].load_state_dict(net.heads[0].state_dict())
    assert all((volume >= coranet.CERTAIN).all() for volume in relabel(net).values())


def test_pseudo_labels_survive_a_checkpoint(net, tmp_path):
    store = coranet.PseudoLabels(relabel(net))
    torch.save(store.state_dict(), tmp_path / "x.pth")
    again = coranet.PseudoLabels()
    again.load_state_dict(torch.load(tmp_path / "x.pth", weights_only=True))
    assert store.keys() == again.keys()
    assert all(torch.equal(store[case], again[case]) for case in store)
    assert (tmp_path / "x.pth").stat().st_size < sum(volume.numel() for volume in store.values())
