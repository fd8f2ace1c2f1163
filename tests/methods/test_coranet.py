"""CoraNet's objective against the equations in NumPy float64, its gradients, its relabelling and
its teacher.
"""

import math
import re
from argparse import Namespace

import numpy as np
import pytest
import torch
import train_coranet as coranet
from numpy_reference import softmax

from dataloaders.transforms import Warp, warp_matrix, warp_slices
from networks.one_vs_rest import OneVsRest, problems
from networks.vnet import VNet
from utils.pseudo_labels import CompressedVolumes, found, pack, unpack

ALPHA, EPOCH, LABELED = 5.0, 10, 2
MODES = ("seg", "seg+st", "seg+st_mask", "seg+mt", "seg+mt_mask", "full")


def options(train="full", preset="paper", **others):
    usual = {"uncertainty": "crm", "multiclass": "direct", "looks": 4, "certain_below": 0.5}
    return Namespace(
        alpha=ALPHA, train=train, preset=preset, relabel_stride=(8, 8, 8), **usual | others
    )


def nll(z, y):
    return -np.log(np.take_along_axis(softmax(z), y[:, None], 1))[:, 0]


def dice(z, y, mask):
    p, t = softmax(z)[:, 1] * mask, ((y == 1) & mask).astype(float)
    return 1 - (2 * (p * t).sum() + 1e-5) / ((p**2).sum() + (t**2).sum() + 1e-5)


@pytest.fixture
def case():
    """Logits of the three branches for two labelled and two unlabelled crops, and everything that
    they meet.
    """
    rng = np.random.default_rng(0)
    return Namespace(
        outputs=[rng.standard_normal((4, 2, 4, 3, 2)) for _ in range(3)],
        targets=[rng.standard_normal((2, 2, 4, 3, 2)) for _ in range(3)],
        label=rng.integers(0, 2, (2, 4, 3, 2)),
        pseudo=rng.integers(0, 2, (2, 4, 3, 2)),
        certain=rng.random((2, 4, 3, 2)) < 0.7,
    )


def ours(case, mode, preset, pretraining=False):
    tensors = {
        k: [torch.from_numpy(z) for z in v] if isinstance(v, list) else torch.from_numpy(v)
        for k, v in vars(case).items()
    }
    outputs = [z.clone().requires_grad_() for z in tensors["outputs"]]
    args = options(mode, preset)
    if pretraining:
        loss, terms = coranet.objective([z[:LABELED] for z in outputs], tensors["label"], args)
    else:
        rest = (tensors["pseudo"], tensors["certain"], tensors["targets"], EPOCH)
        loss, terms = coranet.objective(outputs, tensors["label"], args, *rest)
    return loss, terms, outputs


def crm(case, released):
    """CE(D) + CE_con(D_con) + CE_rad(D_rad): a voxel of background costs α in CE_con, one of the
    object in CE_rad.
    """
    d, con, rad = (z[:LABELED] for z in case.outputs)
    y = case.label
    w_con, w_rad = np.where(y == 0, ALPHA, 1.0), np.where(y == 1, ALPHA, 1.0)
    total = (
        nll(d, y).mean()
        + (w_con * nll(con, y)).sum() / w_con.sum()
        + (w_rad * nll(rad, y)).sum() / w_rad.sum()
    )
    return (total + dice(d, y, np.ones_like(y, bool))) / 4 if released else total


def csn(case, where, released):
    d, con, rad = (z[LABELED:] for z in case.outputs)
    y = case.pseudo
    if not released:
        return nll(d, y)[where].mean()
    w_con, w_rad = np.where(y == 1, ALPHA, 1.0), np.where(y == 0, ALPHA, 1.0)  # swapped
    terms = (
        nll(d, y)[where].mean(),
        (w_con * nll(con, y))[where].mean(),
        (w_rad * nll(rad, y))[where].mean(),
    )
    return (sum(terms) + dice(d, y, where)) / 4


def cnt(case, where, released):
    squares = [
        (softmax(z[LABELED:]) - softmax(t)) ** 2
        for z, t in zip(case.outputs, case.targets, strict=True)
    ]
    if not released:
        return squares[0].mean(1)[where].mean()
    return np.mean([s.sum(1)[where].mean() for s in squares])


@pytest.mark.parametrize("released", [False, True], ids=["paper", "released"])
@pytest.mark.parametrize("mode", MODES)
def test_objective_against_numpy(case, mode, released):
    everywhere = np.ones_like(case.certain)
    expected = crm(case, released)
    half = 0.5 if released else 1.0
    weight = 0.1 * math.exp(-5 * (1 - EPOCH / 40) ** 2) if released else 1.0
    if mode in ("seg+st", "seg+st_mask", "full"):
        expected += half * csn(case, everywhere if mode == "seg+st" else case.certain, released)
    if mode in ("seg+mt", "seg+mt_mask", "full"):
        expected += (
            half * weight * cnt(case, everywhere if mode == "seg+mt" else ~case.certain, released)
        )
    loss, terms, _ = ours(case, mode, "released" if released else "paper")
    assert loss.item() == pytest.approx(expected, rel=1e-6)
    assert ("loss_csn" in terms, "loss_cnt" in terms) == (
        mode in MODES[1:3] + MODES[5:],
        mode in MODES[3:],
    )


@pytest.mark.parametrize("released", [False, True], ids=["paper", "released"])
def test_pretraining_is_the_labelled_term_alone(case, released):
    loss, terms, _ = ours(case, "full", "released" if released else "paper", pretraining=True)
    assert loss.item() == pytest.approx(crm(case, released), rel=1e-6)
    assert set(terms) == {"loss_crm"}


def test_each_term_sends_its_gradient_where_it_should(case):
    """Paper: unlabelled voxels reach D alone; L_csn the certain ones. The targets and pseudo-labels
    are constants.
    """
    loss, _, (d, con, rad) = ours(case, "seg+st_mask", "paper")
    loss.backward()
    assert con.grad[LABELED:].eq(0).all()
    assert rad.grad[LABELED:].eq(0).all()
    certain = torch.from_numpy(case.certain)
    unlabelled = d.grad[LABELED:].movedim(1, -1)
    assert unlabelled[certain].ne(0).all()
    assert unlabelled[~certain].eq(0).all()
    loss, _, (d, _, _) = ours(case, "seg+mt_mask", "paper")
    loss.backward()
    unlabelled = d.grad[LABELED:].movedim(1, -1)
    assert unlabelled[certain].eq(0).all()
    assert unlabelled[~certain].ne(0).all()


def test_gradcheck(case):
    small = Namespace(
        **{
            k: [z[..., :2, :1, :1] for z in v] if isinstance(v, list) else v[..., :2, :1, :1]
            for k, v in vars(case).items()
        }
    )
    label, pseudo, certain = (
        torch.from_numpy(v.copy()) for v in (small.label, small.pseudo, small.certain)
    )
    targets = [torch.from_numpy(t.copy()) for t in small.targets]
    outputs = [torch.from_numpy(z.copy()).requires_grad_() for z in small.outputs]
    for preset in ("paper", "released"):
        args = options(preset=preset)
        assert torch.autograd.gradcheck(
            lambda *z, args=args: coranet.objective(
                list(z), label, args, pseudo, certain, targets, EPOCH
            )[0],
            outputs,
        )


def test_a_false_object_costs_alpha_in_the_conservative_branch():
    """Two voxels, one of each class, all predicted as object with p = e/(1+e): by hand."""
    z = torch.tensor([0.0, 1.0], dtype=torch.float64).view(1, 2, 1, 1, 1).expand(1, 2, 2, 1, 1)
    y = torch.tensor([0, 1]).view(1, 2, 1, 1)
    false, true = np.log(1 + np.e), np.log(1 + np.exp(-1))
    loss, _ = coranet.objective([z, z, z], y, options())
    by_hand = (false + true) / 2 + (5 * false + true) / 6 + (false + 5 * true) / 6
    assert loss.item() == pytest.approx(by_hand)
    shifted = z + torch.tensor([3.0, 0.0], dtype=torch.float64).view(
        1, 2, 1, 1, 1
    )  # bolder background
    args = options()
    conservative, _ = coranet.objective([z, shifted, z], y, args)
    radical, _ = coranet.objective([z, z, shifted], y, args)
    assert conservative < loss < radical


def test_aleatoric_is_the_likelihood_of_a_mean_softmax():
    """With next to no noise it is the cross-entropy of D; noise takes a sure and wrong prediction's
    cost away.
    """
    z = torch.tensor([0.0, 4.0], dtype=torch.float64).view(1, 2, 1, 1).expand(1, 2, 50, 50)
    y = torch.zeros(1, 50, 50, dtype=torch.int64)  # all wrong
    args = options(uncertainty="aleatoric", looks=50)
    torch.manual_seed(0)
    quiet, loud = (coranet.objective([z, torch.full_like(z, s)], y, args)[0] for s in (-10.0, 3.0))
    assert quiet.item() == pytest.approx(np.log(1 + np.exp(4)), rel=0.01)
    assert loud < quiet / 2
    s = torch.full_like(z, -1.0).requires_grad_()
    coranet.objective([z, s], y, args)[0].backward()
    assert s.grad.sum() < 0  # learns to be unsure


class FakeData:
    """Volumes of one window each, the first labelled, as `relabel` sees them."""

    labeled_bs, patch = 1, (32, 16, 16)

    def __init__(self, num_classes=2):
        generator = torch.Generator().manual_seed(0)
        images = {case: torch.randn(32, 16, 16, generator=generator) for case in range(4)}
        self.volumes, self.num_classes = Namespace(images=images), num_classes

    def samples(self, step):
        return [0, 1 + step % 2]


class FakeJob:
    device, precision = torch.device("cpu"), "fp32"

    def leave_if_asked(self, step):
        self.asked = step


def undecided(net):
    """Shift a network's branches so that each calls about half of the voxels object."""
    with torch.no_grad():
        for head, logits in zip(
            net.heads, problems(net(torch.randn(1, 1, 32, 16, 16)))[0], strict=True
        ):
            last = head if isinstance(head, torch.nn.Conv3d) else head[1]
            last.bias[1] -= (logits[:, 1] - logits[:, 0]).median()
    return net


@pytest.fixture
def net():
    torch.manual_seed(0)
    return undecided(VNet(1, 2, 2, "instancenorm", branches=3).eval())


def relabel(net, job=None, num_classes=2, **others):
    return coranet.relabel(
        net, FakeData(num_classes), range(4, 6), job or FakeJob(), options(**others)
    )


def test_relabel_labels_the_cases_that_will_be_seen(net):
    job = FakeJob()
    labels = relabel(net, job)
    assert set(labels) == {1, 2}
    assert job.asked == 3
    assert net.training
    for case, packed in labels.items():
        normal, con, rad = (
            z[0].argmax(0) for z in net.eval()(FakeData().volumes.images[case][None, None])
        )
        (pseudo,), (certain,) = unpack(packed, 1)
        assert torch.equal(pseudo, normal)
        assert torch.equal(certain, con == rad)
        assert 0.1 < pseudo.float().mean() < 0.9
        assert 0.1 < certain.float().mean() < 0.9


@pytest.mark.parametrize("kind", ["tta", "mcdropout", "aleatoric"])
def test_other_uncertainties_call_certain_where_the_entropy_is_low(kind):
    torch.manual_seed(0)
    net = undecided(VNet(1, 2, 2, "instancenorm", branches=coranet.BRANCHES[kind]).eval())
    share = []
    for limit in (0.0, 0.6, 0.9, 1.0):
        for case, packed in relabel(net, uncertainty=kind, certain_below=limit).items():
            (pseudo,), (certain,) = unpack(packed, 1)
            own = problems(net.eval()(FakeData().volumes.images[case][None, None]))[0][0]
            assert torch.equal(pseudo, own[0].argmax(0))
        share.append(certain.float().mean().item())
    assert share[0] == 0
    assert share == sorted(share)
    assert share[-1] > share[0]


def test_one_vs_rest_labels_each_class_by_its_own_network():
    torch.manual_seed(0)
    net = OneVsRest("vnet", 1, 4, n_filters=2, normalization="instancenorm", branches=3).eval()
    for one in net.networks:
        undecided(one)
    labels = relabel(net, num_classes=4, multiclass="one_vs_rest")
    for case, packed in labels.items():
        pseudo, certain = unpack(packed, 3)
        image = FakeData().volumes.images[case][None, None]
        for k, one in enumerate(net.networks):
            normal, con, rad = (z[0].argmax(0) for z in one.eval()(image))
            assert torch.equal(pseudo[k], normal)
            assert torch.equal(certain[k], con == rad)


@pytest.mark.parametrize(("count", "classes"), [(1, 128), (2, 8), (3, 2), (4, 2)])
def test_packing_keeps_everything(count, classes):
    rng = torch.Generator().manual_seed(0)
    labels = torch.randint(0, classes, (count, 7, 5), generator=rng)
    certain = torch.rand(count, 7, 5, generator=rng) < 0.5
    again, sure = unpack(pack(labels, certain), count)
    assert torch.equal(torch.stack(again), labels)
    assert torch.equal(torch.stack(sure), certain)
    with pytest.raises(ValueError, match="a byte cannot hold"):
        pack(labels + classes, certain)


@pytest.mark.parametrize("count", [1, 3])
def test_what_lies_beyond_the_image_is_certain_background(count):
    """As it is of labelled crops; else the more of a batch is padding, the less an uncertain voxel
    would count.
    """
    shape = 40, 48
    objects, nowhere = (
        torch.ones(count, *shape, dtype=torch.int64),
        torch.zeros(count, *shape, dtype=torch.bool),
    )
    smaller = Warp(0, warp_matrix(shape, shape, scale=0.5))
    pseudo, certain = unpack(warp_slices([pack(objects, nowhere)], [smaller], shape), count)
    for classes, sure in zip(pseudo, certain, strict=True):
        assert 0.2 < classes.float().mean() < 0.3
        assert torch.equal(sure, classes == 0)


@pytest.mark.parametrize(("alpha", "tied"), [(1.0, True), (5.0, False)])
def test_with_alpha_1_tied_branches_never_part(net, alpha, tied):
    """α = 1 makes both branches' losses equal: equal weights stay so in training, and nothing is
    uncertain.
    """
    net.heads[2].load_state_dict(net.heads[1].state_dict())
    optimizer = torch.optim.Adam(net.train().parameters(), lr=0.01)
    args = options()
    args.alpha = alpha
    generator = torch.Generator().manual_seed(0)
    for _ in range(4):
        image = torch.randn(2, 1, 32, 16, 16, generator=generator)
        optimizer.zero_grad()
        coranet.objective(net(image), (image[:, 0] > 0.5).long(), args)[0].backward()
        optimizer.step()
    assert all(unpack(volume, 1)[1][0].all() == tied for volume in relabel(net.eval()).values())


@pytest.mark.parametrize("count", [1, 3])
def test_the_log_says_which_classes_pseudo_labels_have(count):
    """RV in the first image alone, there uncertain, Myo in both, LV in none."""
    first, second = torch.tensor([[0, 1, 2]]), torch.tensor([[0, 2, 2]])

    def packed(label, certain):
        problems = [label] if count == 1 else [label == c for c in (1, 2, 3)]
        return pack([problem.long() for problem in problems], [certain] * count)

    volumes, names = (
        {4: packed(first, first != 1), 7: packed(second, second == 2)},
        ("RV", "Myo", "LV"),
    )
    line = "relabelled images: 2; certain RV in 0, Myo in 2, LV in 0 - none has RV, LV"
    assert found(volumes, count, names, certain=True) == line
    line = "relabelled images: 2; pseudo-label RV in 1, Myo in 2, LV in 0 - none has LV"
    assert found(volumes, count, names, certain=False) == line
    volumes[9] = packed(third := torch.tensor([[3, 1]]), third > 0)
    line = "relabelled images: 3; certain RV in 1, Myo in 2, LV in 1"
    assert found(volumes, count, names, certain=True) == line


def test_pseudo_labels_survive_a_checkpoint(net, tmp_path):
    store = CompressedVolumes(relabel(net))
    torch.save(store.state_dict(), tmp_path / "x.pth")
    again = CompressedVolumes({9: torch.zeros(1)})
    again.load_state_dict(torch.load(tmp_path / "x.pth", weights_only=True))
    assert store.keys() == again.keys()
    assert all(torch.equal(store[case], again[case]) for case in store)
    assert (tmp_path / "x.pth").stat().st_size < sum(volume.numel() for volume in store.values())


def test_the_teacher_follows_the_student(tiny_la, tmp_path, script):
    """One step an epoch: the run one epoch longer has moved its teacher towards the student where
    the shorter ended.
    """
    options = [
        "--root",
        tiny_la,
        "--gpu",
        -1,
        "--patch",
        32,
        16,
        16,
        "--n_filters",
        2,
        "--labelnum",
        2,
    ]
    options += ["--labeled_bs", 2, "--unlabeled_bs", 1, "--pretrain_epochs", 2, "--base_lr", 0.01]

    def checkpoint(epochs, decay):
        runs = tmp_path / f"{epochs}_{decay}"
        done = script(
            "train_coranet.py",
            *options,
            "--runs",
            runs,
            "--selftrain_epochs",
            epochs,
            "--ema_decay",
            decay,
        )
        assert done.returncode == 0, done.stderr
        folder = runs / "LA" / "coranet_2" / "seed1337"
        said = re.findall(
            r"relabelled images: (\d); certain left atrium in [0-2]",
            (folder / "log.txt").read_text(),
        )
        assert said == [str(epochs)] * (
            epochs > 0
        )  # all at the first step of self-training, a new one an epoch
        return torch.load(folder / "last.pth", weights_only=True)

    first, second, third = (checkpoint(epochs, 0.25) for epochs in (0, 1, 2))
    moved = False
    for key, before in first["net"].items():
        torch.testing.assert_close(
            second["teacher"][key], before
        )  # t = 0: a copy of the pre-trained student
        expected = 0.25 * second["teacher"][key] + 0.75 * second["net"][key]
        torch.testing.assert_close(third["teacher"][key], expected)
        moved |= not torch.equal(third["teacher"][key], second["teacher"][key])
    assert moved
