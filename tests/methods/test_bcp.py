"""BCP's mixtures and losses against the equations in NumPy float64, its gradients, its limits and
its phases.
"""

import numpy as np
import pytest
import torch
import train_bcp as bcp
from references import bcp as reference
from small import ACDC, BOTH, LA

from networks.unet import UNet
from networks.vnet import VNet
from utils.errors import UserError
from utils.losses import supervised_loss
from utils.training import run

pytestmark = pytest.mark.usefixtures("one_thread")

EXTENTS = {3: (6, 5, 4), 2: (6, 5)}
CORNER = {3: (1, 1, 2), 2: (1, 1)}
FORM = {3: "la", 2: "acdc"}


class Case:
    """Images, labels, pseudo-labels of four labelled and four unlabelled crops, logits of their
    mixtures, two of either kind, and a box.
    """

    def __init__(self, dims, classes):
        rng = np.random.default_rng(0)
        extents, corner = EXTENTS[dims], CORNER[dims]
        self.x, self.u = rng.standard_normal((2, 4, 1, *extents))
        self.y, self.pseudo = rng.integers(0, classes, (2, 4, *extents))
        self.z_in, self.z_out = rng.standard_normal((2, 2, classes, *extents))
        self.M = reference.box_mask(extents, corner)
        sides = reference.box_sides(extents)
        self.box = torch.tensor([corner, [k + n for k, n in zip(corner, sides, strict=True)]])
        self.form = FORM[dims]

    def loss(self, alpha=0.5):
        z_in, z_out = (torch.tensor(z, requires_grad=True) for z in (self.z_in, self.z_out))
        labels = bcp.mixtures(torch.from_numpy(self.y), torch.from_numpy(self.pseudo), self.box)
        inside = torch.from_numpy(~self.M).expand(2, *self.M.shape)
        loss, terms = bcp.objective(z_in, z_out, *labels, inside, alpha)
        return loss, terms, z_in, z_out


@pytest.fixture(params=[(3, 2), (3, 4), (2, 4)], ids=["volumes", "four classes", "slices"])
def case(request):
    return Case(*request.param)


@pytest.mark.parametrize("alpha", [0.5, 0.3, 0.0])
def test_objective_against_numpy(case, alpha):
    loss, *_ = case.loss(alpha)
    expected = reference.loss(
        case.z_in, case.z_out, case.y, case.pseudo, case.M, alpha, form=case.form
    )
    assert loss.item() == pytest.approx(expected, rel=1e-9)


def test_pretraining_against_numpy(case):
    z, y = torch.from_numpy(case.z_in), torch.from_numpy(case.y[:2])
    expected = reference.pretraining_loss(case.z_in, case.y[:2], case.form)
    assert bcp.pretraining_loss(z, y).item() == pytest.approx(expected, rel=1e-9)


def test_mixtures_against_numpy(case):
    x, u = torch.from_numpy(case.x), torch.from_numpy(case.u)
    for ours, expected in zip(
        bcp.mixtures(x, u, case.box), reference.mixed_images(case.x, case.u, case.M), strict=True
    ):
        assert np.array_equal(ours, expected)
    labels = bcp.mixtures(torch.from_numpy(case.y), torch.from_numpy(case.pseudo), case.box)
    for ours, expected in zip(
        labels, reference.mixed_targets(case.y, case.pseudo, case.M), strict=True
    ):
        assert np.array_equal(ours, expected)


def test_pseudo_labels_against_numpy():
    rng = np.random.default_rng(0)
    for extents, connectivity in ((EXTENTS[3], 26), (EXTENTS[2], 8)):
        z = rng.standard_normal((2, 4, *extents))
        found = bcp.pseudo_labels(lambda image, z=z: torch.from_numpy(z), None, 4)
        assert np.array_equal(found, reference.pseudo_labels(z, connectivity))


def test_gradients_reach_both_mixtures_everywhere(case):
    loss, _, z_in, z_out = case.loss()
    loss.backward()
    for z in (z_in, z_out):
        assert (z.grad.abs().sum(1) > 0).all()


def test_without_pseudo_labels_only_labelled_regions_are_learnt(case):
    loss, terms, z_in, z_out = case.loss(alpha=0)
    loss.backward()
    assert torch.equal(loss, terms["loss_labelled"])
    inside = torch.from_numpy(~case.M)
    assert not z_in.grad[..., inside].any()
    assert not z_out.grad[..., ~inside].any()


def test_a_voxel_by_hand():
    """Two voxels, of which the first is the region: p = 3/4 of its class. But for ε, Dice is 1/7
    for the class that is there and 1 for the other; CE is ln 4/3.
    """
    z = torch.tensor([[3.0, 1.0], [1.0, 1.0]]).double().log().view(1, 2, 1, 2, 1)
    label = torch.zeros(1, 1, 2, 1, dtype=torch.int64)
    region = torch.tensor([True, False]).view(1, 1, 2, 1)
    e = 1e-5
    dice = 1 - ((1.5 + e) / (1.75 + e) + e / (0.25 + e)) / 2
    expected = (dice + np.log(4 / 3)) / 2
    assert bcp.region_loss(z, label, region).item() == pytest.approx(expected, rel=1e-9)


def test_one_crop_of_slices_in_one_region_is_near_the_fields_loss():
    """All that differs from (CE + Dice) / 2 is the background's Dice and ε."""
    rng = np.random.default_rng(0)
    z, y = torch.from_numpy(rng.standard_normal((2, 3, 8, 8))), torch.ones(2, 8, 8).long()
    both = bcp.pretraining_loss(z, y)
    p = z.softmax(1)[:, 0]
    background = 1 - 1e-10 / (p.square().sum() + 1e-10)
    foreground = 2 * supervised_loss(z, y) - bcp.cross_entropy(z, y)
    expected = (bcp.cross_entropy(z, y) + (background + 2 * foreground) / 3) / 2
    assert both.item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_teacher_by_numpy():
    torch.manual_seed(0)
    for dataset, network, patch in (("LA", VNet, [32, 16, 16]), ("ACDC", UNet, [32, 16])):
        student, teacher = network(n_filters=1), network(n_filters=1)
        for net in (student, teacher):
            net(torch.randn(2, 1, *patch))
        before = {key: value.clone() for key, value in teacher.state_dict().items()}
        bcp.update(teacher, student, bcp.parse(["--dataset", dataset]))
        for key, value in teacher.state_dict().items():
            expected = before[key].double()
            statistics = "running" in key or "num_batches" in key
            if not statistics or (dataset == "ACDC" and value.is_floating_point()):
                expected = reference.teacher_update(expected, student.state_dict()[key].double())
            torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-6)


def phases(root, runs, argv, monkeypatch):
    """Student, teacher and momentum at the start of each step."""
    seen = []
    objects = {}
    resume, optimize = run.Run.resume, run.Run.optimize

    def remember(job, *names, **given):
        objects.update(given)
        return resume(job, *names, **given)

    def look(job, loss, optimizer):
        copies = [
            {key: value.clone() for key, value in objects[name].state_dict().items()}
            for name in ("net", "teacher")
        ]
        seen.append((*copies, len(optimizer.state), optimizer.param_groups[0]["lr"]))
        return optimize(job, loss, optimizer)

    monkeypatch.setattr(run.Run, "resume", remember)
    monkeypatch.setattr(run.Run, "optimize", look)
    bcp.main([*argv, "--root", str(root), "--runs", str(runs)])
    return seen


@pytest.mark.parametrize("dims", [3, 2])
def test_self_training_begins_with_a_copy(dims, tmp_path, request, monkeypatch):
    """The teacher has the pre-trained weights. On volumes the optimizer starts afresh, on slices
    its momentum goes on. The rate falls in self-training only.
    """
    root = request.getfixturevalue("tiny_la" if dims == 3 else "tiny_acdc")
    argv = [*(LA if dims == 3 else ACDC), *BOTH, "--lr_step", "1"]
    argv += ["--pretrain_iterations", "2", "--max_iterations", "2"]
    seen = phases(root, tmp_path / "runs", argv, monkeypatch)
    net, teacher, momenta, _ = seen[2]
    parameters = [key for key in net if "running" not in key and "num_batches" not in key]
    assert all(torch.equal(net[key], teacher[key]) for key in parameters)
    assert (momenta == 0) == (dims == 3)
    first_net, first_teacher, *_ = seen[0]
    assert not torch.equal(net[parameters[0]], first_net[parameters[0]])
    assert torch.equal(first_teacher[parameters[0]], seen[1][1][parameters[0]])
    assert not torch.equal(seen[3][1][parameters[0]], teacher[parameters[0]])
    assert [lr for *_, lr in seen] == pytest.approx([0.01, 0.01, 0.01, 0.001])


def test_halves_and_options(tiny_la, tmp_path):
    def fails(*argv):
        where = ["--root", str(tiny_la), "--runs", str(tmp_path), "--name", "".join(argv)[2:]]
        with pytest.raises(UserError) as error:
            bcp.main([*LA, *argv, *where])
        return str(error.value)

    assert "must be equal" in fails("--labeled_bs", "4", "--unlabeled_bs", "2")
    assert "must be even" in fails("--labeled_bs", "3", "--unlabeled_bs", "3")
    assert "multiple of 4" in fails(*BOTH, "--accumulate", "2")
    assert "--beta 0 leaves no box" in fails("--beta", "0")
    assert "--alpha has no effect" in fails("--max_iterations", "0", "--alpha", "1")
