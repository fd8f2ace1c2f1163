"""CoraNet's losses against the equations in NumPy float64, their gradients, the relabelling, the
teacher.
"""

import ast
import copy
import inspect
import math
import re
from argparse import Namespace

import coranet_reference as paper
import numpy as np
import pytest
import torch
import train_coranet as coranet
import train_coranet_ovr as ovr
from conftest import run_script
from numpy_reference import softmax

from networks.one_vs_rest import OneVsRest
from networks.vnet import VNet
from utils.errors import UserError

pytestmark = pytest.mark.usefixtures("one_thread")

ALPHA, EPOCH, LABELED = 5.0, 10, 2
MODES = tuple(coranet.ROWS)
WITH_CSN = ("seg+st", "seg+st_mask", "full")
WITH_CNT = ("seg+mt", "seg+mt_mask", "seg+mt_uncertain", "full")
STRIDE = (8, 8, 8)


@pytest.fixture(params=[coranet, ovr], ids=["direct", "one vs rest"])
def script(request):
    """Both scripts have the losses of one network with branches."""
    return request.param


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


def regions(case, mode):
    """Where a row of Table IV learns from pseudo-labels, and where from the teacher."""
    everywhere = np.ones_like(case.certain)
    pseudo = everywhere if mode == "seg+st" else case.certain
    teacher = {"seg+mt": everywhere, "seg+mt_mask": case.certain}.get(mode, ~case.certain)
    return pseudo, teacher


def ours(case, mode, preset, pretraining=False, script=coranet, region_means=0):
    """Loss, terms and the outputs that carry its gradient, as the loop calls for them."""
    outputs = [torch.from_numpy(z).clone().requires_grad_() for z in case.outputs]
    label = torch.from_numpy(case.label)
    objective = script.objective_released if preset == "released" else script.objective
    args = Namespace(alpha=ALPHA, region_means=region_means)
    if pretraining:
        loss, terms = objective([z[:LABELED] for z in outputs], label, args)
        return loss, terms, outputs
    pseudo_region, teacher_region = map(torch.from_numpy, regions(case, mode))
    learn = {}
    if mode in WITH_CSN:
        learn["pseudo"] = torch.from_numpy(case.pseudo)
        learn["pseudo_region"] = pseudo_region
    if mode in WITH_CNT:
        learn["teacher"] = [torch.from_numpy(z) for z in case.targets]
        learn["teacher_region"] = teacher_region
    loss, terms = objective(outputs, label, args, EPOCH, **learn)
    return loss, terms, outputs


def crm_released(case):
    """The mean of CE, CE_con, CE_rad and Dice; CE_con and CE_rad are divided by Σw."""
    D, D_con, D_rad = (z[:LABELED] for z in case.outputs)
    y = case.label
    w_con = np.where(y == 0, ALPHA, 1.0)
    w_rad = np.where(y == 1, ALPHA, 1.0)
    ce_con = (w_con * nll(D_con, y)).sum() / w_con.sum()
    ce_rad = (w_rad * nll(D_rad, y)).sum() / w_rad.sum()
    return (nll(D, y).mean() + ce_con + ce_rad + dice(D, y, np.ones_like(y, bool))) / 4


def csn_released(case, where):
    D, D_con, D_rad = (z[LABELED:] for z in case.outputs)
    y = case.pseudo
    w_con, w_rad = np.where(y == 1, ALPHA, 1.0), np.where(y == 0, ALPHA, 1.0)  # swapped
    terms = (
        nll(D, y)[where].mean(),
        (w_con * nll(D_con, y))[where].mean(),
        (w_rad * nll(D_rad, y))[where].mean(),
    )
    return (sum(terms) + dice(D, y, where)) / 4


def cnt_released(case, where):
    squares = [
        (softmax(z[LABELED:]) - softmax(t)) ** 2
        for z, t in zip(case.outputs, case.targets, strict=True)
    ]
    return np.mean([s.sum(1)[where].mean() for s in squares])


@pytest.mark.parametrize("mode", MODES)
def test_objective_is_equations_1_7_and_8(case, mode, script):
    pseudo_region, teacher_region = regions(case, mode)
    labelled = [z[:LABELED] for z in case.outputs]
    D = case.outputs[0][LABELED:]
    expected = {"loss_crm": paper.crm_per_voxel(*labelled, case.label, ALPHA)}
    if mode in WITH_CSN:
        expected["loss_csn"] = paper.csn_per_voxel(D, case.pseudo, pseudo_region)
    if mode in WITH_CNT:
        expected["loss_cnt"] = paper.cnt_per_voxel(D, case.targets[0], teacher_region)
    loss, terms, _ = ours(case, mode, "paper", script=script)
    assert {name: terms[name].item() for name in expected} == pytest.approx(expected, rel=1e-9)
    assert loss.item() == pytest.approx(sum(expected.values()), rel=1e-9)
    assert set(terms) - {"consistency_weight"} == set(expected)


@pytest.mark.parametrize("mode", MODES)
def test_objective_of_the_released_code(case, mode, script):
    pseudo_region, teacher_region = regions(case, mode)
    expected = crm_released(case)
    if mode in WITH_CSN:
        expected += 0.5 * csn_released(case, pseudo_region)
    if mode in WITH_CNT:
        rampup = 0.1 * math.exp(-5 * (1 - EPOCH / 40) ** 2)
        expected += 0.5 * rampup * cnt_released(case, teacher_region)
    loss, terms, _ = ours(case, mode, "released", script=script)
    assert loss.item() == pytest.approx(expected, rel=1e-6)
    assert ("loss_csn" in terms) == (mode in WITH_CSN)
    assert ("loss_cnt" in terms) == (mode in WITH_CNT)


def test_a_voxel_weighs_the_same_whatever_its_region(case, script):
    """Both terms have one denominator, all voxels; with region means each has its own."""
    few = np.zeros_like(case.certain)
    few[0, 0, 0, 0] = True
    case.certain = ~few
    D, target = case.outputs[0][LABELED:], case.targets[0]
    square = ((softmax(D) - softmax(target)) ** 2).sum(1)[few].item()
    _, terms, _ = ours(case, "full", "paper", script=script)
    assert terms["loss_cnt"].item() == pytest.approx(square / few.size)
    _, terms, _ = ours(case, "full", "paper", script=script, region_means=1)
    assert terms["loss_cnt"].item() == pytest.approx(square)
    assert terms["loss_csn"].item() == pytest.approx(nll(D, case.pseudo)[~few].mean())


@pytest.mark.parametrize("released", [False, True], ids=["paper", "released"])
def test_pretraining_is_the_labelled_term_alone(case, released):
    loss, terms, _ = ours(case, "full", "released" if released else "paper", pretraining=True)
    labelled = [z[:LABELED] for z in case.outputs]
    by_hand = paper.crm_per_voxel(*labelled, case.label, ALPHA)
    expected = crm_released(case) if released else by_hand
    assert loss.item() == pytest.approx(expected, rel=1e-6)
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
    loss, _, (d, _, _) = ours(case, "seg+mt_uncertain", "paper")
    loss.backward()
    unlabelled = d.grad[LABELED:].movedim(1, -1)
    assert unlabelled[certain].eq(0).all()
    assert unlabelled[~certain].ne(0).all()


@pytest.mark.parametrize("preset", ["paper", "released"])
def test_gradcheck(case, preset, script):
    small = {
        name: [z[..., :2, :1, :1].copy() for z in value]
        if isinstance(value, list)
        else value[..., :2, :1, :1].copy()
        for name, value in vars(case).items()
    }
    certain = torch.from_numpy(small["certain"])
    learn = {
        "pseudo": torch.from_numpy(small["pseudo"]),
        "pseudo_region": certain,
        "teacher": [torch.from_numpy(z) for z in small["targets"]],
        "teacher_region": ~certain,
    }
    label = torch.from_numpy(small["label"])
    objective = script.objective_released if preset == "released" else script.objective

    def loss(*outputs):
        args = Namespace(alpha=ALPHA, region_means=0)
        return objective(list(outputs), label, args, EPOCH, **learn)[0]

    outputs = [torch.from_numpy(z).requires_grad_() for z in small["outputs"]]
    assert torch.autograd.gradcheck(loss, outputs)


def test_a_false_object_costs_alpha_in_the_conservative_branch(script):
    """Two voxels, one of each class, all predicted as object with p = e/(1+e): by hand."""
    z = torch.tensor([0.0, 1.0], dtype=torch.float64).view(1, 2, 1, 1, 1).expand(1, 2, 2, 1, 1)
    y = torch.tensor([0, 1]).view(1, 2, 1, 1)
    false, true = np.log(1 + np.e), np.log(1 + np.exp(-1))
    loss = script.labelled_loss(z, z, z, y, ALPHA)
    by_hand = (false + true) / 2 + (5 * false + true) / 2 + (false + 5 * true) / 2
    assert loss.item() == pytest.approx(by_hand)
    background = torch.tensor([3.0, 0.0], dtype=torch.float64).view(1, 2, 1, 1, 1)
    conservative = script.labelled_loss(z, z + background, z, y, ALPHA)
    radical = script.labelled_loss(z, z, z + background, y, ALPHA)
    assert conservative < loss < radical


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
        branches = net(torch.randn(1, 1, 32, 16, 16))
        for head, logits in zip(net.heads, branches, strict=True):
            last = head if isinstance(head, torch.nn.Conv3d) else head[1]
            last.bias[1] -= (logits[:, 1] - logits[:, 0]).median()
    return net


@pytest.fixture
def net():
    torch.manual_seed(0)
    return undecided(VNet(1, 2, 2, "instancenorm", branches=3).eval())


def relabel(net, job=None):
    return coranet.relabel(net, FakeData(), range(4, 6), job or FakeJob(), STRIDE)


def test_relabel_labels_the_cases_that_will_be_seen(net):
    job = FakeJob()
    found = relabel(net, job)
    assert set(found) == {1, 2}
    assert job.asked == 3
    assert net.training
    for case, (pseudo, certain) in found.items():
        branches = net.eval()(FakeData().volumes.images[case][None, None])
        normal, con, rad = (z[0].argmax(0) for z in branches)
        assert torch.equal(pseudo.long(), normal)
        assert torch.equal(certain, con == rad)
        assert 0.1 < pseudo.float().mean() < 0.9
        assert 0.1 < certain.float().mean() < 0.9


def test_one_vs_rest_labels_each_class_by_its_own_network():
    torch.manual_seed(0)
    net = OneVsRest("vnet", 1, 4, n_filters=2, normalization="instancenorm", branches=3).eval()
    for one in net.networks:
        undecided(one)
    of_classes = ovr.relabel(net, FakeData(4), range(4, 6), FakeJob(), STRIDE)
    assert len(of_classes) == 3
    for one, found in zip(net.networks, of_classes, strict=True):
        assert set(found) == {1, 2}
        for case, (pseudo, certain) in found.items():
            image = FakeData().volumes.images[case][None, None]
            normal, con, rad = (z[0].argmax(0) for z in one.eval()(image))
            assert torch.equal(pseudo.long(), normal)
            assert torch.equal(certain, con == rad)


def test_certain_voxels_of_crops_are_where_both_branches_agree(net):
    crops = torch.stack([image[None] for image in FakeData().volumes.images.values()])
    net.train()
    certain = coranet.certain_voxels(net, net, crops)
    assert net.training
    _, con, rad = net.eval()(crops)
    assert torch.equal(certain, con.argmax(1) == rad.argmax(1))
    assert 0.1 < certain.float().mean() < 0.9


def test_certain_voxels_of_one_vs_rest_are_each_networks_own():
    torch.manual_seed(0)
    net = OneVsRest("vnet", 1, 3, n_filters=2, normalization="instancenorm", branches=3).train()
    crops = torch.randn(2, 1, 32, 16, 16)
    certain = ovr.certain_voxels(net, net, crops)
    assert net.training
    for own, (_, con, rad) in zip(certain, net.eval()(crops), strict=True):
        assert torch.equal(own, con.argmax(1) == rad.argmax(1))


class Steps:
    """In place of a run: a step of plain gradient descent, and notes of what each step moved."""

    def __init__(self, net):
        self.net = net
        self.moved = []

    def optimize(self, loss, optimizer):
        optimizer.zero_grad()
        loss.backward()
        self.moved.append({name for name, p in self.net.named_parameters() if p.grad is not None})
        optimizer.step()


@pytest.mark.parametrize("which", ["direct", "one vs rest"])
def test_three_updates_are_lines_7_9_and_11_of_algorithm_1(which):
    """The first two move the trunk and D, the third all; each begins where the last has ended."""
    torch.manual_seed(0)
    shape = {"n_filters": 2, "normalization": "instancenorm", "branches": 3, "dropout": 0.0}
    direct = which == "direct"
    net = VNet(1, 2, **shape) if direct else OneVsRest("vnet", 1, 3, **shape)
    image = torch.randn(4, 1, 32, 16, 16)
    batch = Namespace(labeled_bs=2, image=image, label=torch.randint(0, 2, (2, 32, 16, 16)))
    own = {
        "pseudo": torch.randint(0, 2, (2, 32, 16, 16)),
        "pseudo_region": torch.rand(2, 32, 16, 16) < 0.8,
        "teacher": [torch.randn(2, 2, 32, 16, 16)],
    }
    own["teacher_region"] = ~own["pseudo_region"]
    args = Namespace(alpha=ALPHA, region_means=0)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    reference = copy.deepcopy(net)
    steps = Steps(net)
    if direct:
        _, terms = coranet.three_updates(net, batch, args, steps, optimizer, **own)
    else:
        _, terms = ovr.three_updates(net, batch, args, steps, optimizer, [own, own])

    every = {name for name, _ in net.named_parameters()}
    of_branches = {name for name in every if re.search(r"heads\.[12]\.", name)}
    assert of_branches
    assert steps.moved == [every - of_branches, every - of_branches, every]

    # by hand, with all branches computed each time
    def loss_of(name, branches, label):
        D, D_con, D_rad = branches
        if name == "loss_csn":
            return coranet.certain_loss(D[2:], own["pseudo"], own["pseudo_region"])
        if name == "loss_cnt":
            return coranet.consistency_loss(D[2:], own["teacher"][0], own["teacher_region"])
        return coranet.labelled_loss(D[:2], D_con[:2], D_rad[:2], label, ALPHA)

    descent = torch.optim.SGD(reference.parameters(), lr=0.1)
    labels = [batch.label] if direct else [(batch.label == c).long() for c in (1, 2)]
    for name in ("loss_csn", "loss_cnt", "loss_crm"):
        outputs = [reference(image)] if direct else reference(image)
        losses = [loss_of(name, *one) for one in zip(outputs, labels, strict=True)]
        loss = sum(losses) / len(losses)
        assert terms[name].item() == pytest.approx(loss.item(), rel=1e-5)
        descent.zero_grad()
        loss.backward()
        descent.step()
    for key, value in reference.state_dict().items():
        torch.testing.assert_close(net.state_dict()[key], value)


def test_the_rows_of_table_iv(script):
    """Where D learns from pseudo-labels, and where it follows the teacher."""
    assert script.ROWS == {
        "seg": (None, None),
        "seg+st": ("everywhere", None),
        "seg+st_mask": ("certain", None),
        "seg+mt": (None, "everywhere"),
        "seg+mt_mask": (None, "certain"),
        "seg+mt_uncertain": (None, "uncertain"),
        "full": ("certain", "uncertain"),
    }


def test_tests_keep_all_components(script):
    """IV-D: "We do not perform any postprocessing"."""
    assert script.TEST_FLAGS == {"*": "--nms 0"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--train", "seg", "--masks", "step"], "--masks has no effect with --train seg"),
        (["--train", "seg+st", "--ema_decay", "0.5"], "--ema_decay has no effect with --train seg"),
        (["--train", "seg+mt", "--relabel_epochs", "3"], "--relabel_epochs has no effect"),
        (["--accumulate", "2"], "--accumulate 2: .* --updates joint"),
        (["--preset", "released", "--updates", "three"], "--updates three: the released code"),
        (["--preset", "released", "--region_means", "1"], "--region_means 1: .* released code"),
    ],
)
def test_options_that_exclude_each_other(options, message, script):
    with pytest.raises(UserError, match=message):
        script.parse(["--dataset", "LA", *options])


@pytest.mark.parametrize(("alpha", "tied"), [(1.0, True), (5.0, False)])
def test_with_alpha_1_tied_branches_never_part(net, alpha, tied):
    """α = 1 makes both branches' losses equal: equal weights stay equal in training, and nothing is
    uncertain.
    """
    net.heads[2].load_state_dict(net.heads[1].state_dict())
    optimizer = torch.optim.Adam(net.train().parameters(), lr=0.01)
    generator = torch.Generator().manual_seed(0)
    for _ in range(4):
        image = torch.randn(2, 1, 32, 16, 16, generator=generator)
        label = (image[:, 0] > 0.5).long()
        optimizer.zero_grad()
        args = Namespace(alpha=alpha, region_means=0)
        coranet.objective(net(image), label, args)[0].backward()
        optimizer.step()
    assert all(certain.all() == tied for _, certain in relabel(net.eval()).values())


@pytest.mark.slow
def test_the_teacher_follows_the_student(tiny_la, tmp_path):
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
        done = run_script(
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


@pytest.mark.parametrize(
    "name",
    [
        "class_weights",
        "labelled_loss",
        "labelled_loss_released",
        "over_region",
        "certain_loss",
        "certain_loss_released",
        "consistency_loss",
        "consistency_loss_released",
        "objective",
        "objective_released",
        "decay_of_teacher",
        "check_updates",
        "in_2d",
        "in_3d",
        "released",
        "epoch_lengths",
    ],
)
def test_what_stands_in_both_scripts_is_the_same(name):
    """Scripts import no script, so the losses stand twice: a change must reach both."""

    def code(script):
        tree = ast.parse(inspect.getsource(getattr(script, name)))
        function = tree.body[0]
        function.body = function.body[1:]  # without the docstring
        return ast.dump(function)

    assert code(coranet) == code(ovr)


@pytest.mark.parametrize(
    "name", ["ROWS", "WITHOUT_EFFECT", "TEST_FLAGS", "IN_PAPER", "VOLUMES", "SLICES"]
)
def test_settings_of_both_scripts_are_the_same(name):
    assert getattr(coranet, name) == getattr(ovr, name)


def test_rules_of_both_scripts_are_the_same():
    rules = [[(rule.source, rule.values) for rule in script.DEFAULTS] for script in (coranet, ovr)]
    assert rules[0] == rules[1]
