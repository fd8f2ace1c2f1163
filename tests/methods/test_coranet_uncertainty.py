"""CoraNet with other measures of uncertainty: its losses against NumPy in float64, its options, and
its relabelling. The measures themselves are in `tests/test_uncertainty.py`.
"""

import ast
import copy
import inspect
import math
from argparse import Namespace

import coranet_reference as paper
import numpy as np
import pytest
import torch
import train_coranet
import train_coranet_uncertainty as coranet
from numpy_reference import dice, softmax
from test_coranet import EPOCH, LABELED, FakeData, FakeJob, Steps, nll

from networks.vnet import VNet
from utils.errors import UserError

pytestmark = pytest.mark.usefixtures("one_thread")


def options(uncertainty="tta", **others):
    usual = {"looks": 4, "views": "random", "certain_confidence": 0.8, "certain_sd": 0.001}
    usual |= {"region_means": 0, "relabel_stride": (8, 8, 8)}
    return Namespace(uncertainty=uncertainty, **usual | others)


# ------------------------------------------------------------------------------------- the losses


@pytest.fixture
def case():
    rng = np.random.default_rng(0)
    return Namespace(
        D=rng.standard_normal((4, 2, 4, 3, 2)),
        D_teacher=rng.standard_normal((2, 2, 4, 3, 2)),
        label=rng.integers(0, 2, (LABELED, 4, 3, 2)),
        pseudo=rng.integers(0, 2, (2, 4, 3, 2)),
        certain=rng.random((2, 4, 3, 2)) < 0.7,
    )


def ours(case, preset="paper", region_means=0):
    """Loss and terms of a joint step with all losses."""
    certain = torch.from_numpy(case.certain)
    objective = coranet.objective_released if preset == "released" else coranet.objective
    loss, terms = objective(
        [torch.from_numpy(case.D)],
        torch.from_numpy(case.label),
        options(region_means=region_means),
        EPOCH,
        pseudo=torch.from_numpy(case.pseudo),
        pseudo_region=certain,
        teacher=[torch.from_numpy(case.D_teacher)],
        teacher_region=~certain,
    )
    return loss.item(), {name: float(value) for name, value in terms.items()}


def test_objective_is_cross_entropy_and_equations_7_and_8(case):
    loss, terms = ours(case)
    expected = {
        "loss_crm": nll(case.D[:LABELED], case.label).mean(),
        "loss_csn": paper.csn_per_voxel(case.D[LABELED:], case.pseudo, case.certain),
        "loss_cnt": paper.cnt_per_voxel(case.D[LABELED:], case.D_teacher, ~case.certain),
    }
    assert terms == pytest.approx(expected | {"consistency_weight": 1}, rel=1e-9)
    assert loss == pytest.approx(sum(expected.values()), rel=1e-9)


def test_region_means_divide_by_the_regions_own_voxels(case):
    _, whole = ours(case)
    _, own = ours(case, region_means=1)
    share = case.certain.mean()
    assert own["loss_csn"] == pytest.approx(whole["loss_csn"] / share)
    assert own["loss_cnt"] == pytest.approx(whole["loss_cnt"] / (1 - share))


def test_objective_of_the_released_code(case):
    p, q = softmax(case.D[:LABELED])[:, 1], softmax(case.D[LABELED:])[:, 1]
    is_object = (case.pseudo == 1) & case.certain
    crm = (nll(case.D[:LABELED], case.label).mean() + dice(p, case.label.astype(float))) / 2
    csn = nll(case.D[LABELED:], case.pseudo)[case.certain].mean()
    csn = (csn + dice(q * case.certain, is_object.astype(float))) / 2
    square = (softmax(case.D[LABELED:]) - softmax(case.D_teacher)) ** 2
    weight = 0.1 * math.exp(-5 * (1 - EPOCH / 40) ** 2)
    cnt = weight * square.sum(1)[~case.certain].mean()
    loss, _ = ours(case, "released")
    assert loss == pytest.approx(crm + 0.5 * (csn + cnt), rel=1e-6)


@pytest.mark.parametrize("classes", [2, 4])
def test_aleatoric_is_the_likelihood_of_a_mean_softmax(classes):
    """-ln of the mean over draws of the softmax of f + σ ε at the label."""
    rng = np.random.default_rng(0)
    f = rng.standard_normal((2, classes, 5, 3))
    sigma = np.exp(rng.uniform(-3, 1, f.shape))
    label = rng.integers(0, classes, (2, 5, 3))
    branches = [torch.tensor(f), torch.tensor(2 * np.log(sigma))]
    torch.manual_seed(0)
    loss, _ = coranet.objective(branches, torch.tensor(label), options("aleatoric", looks=10))
    torch.manual_seed(0)
    eps = [torch.randn_like(branches[0]).numpy() for _ in range(10)]
    mean = np.mean([softmax(f + sigma * e) for e in eps], axis=0)
    expected = -np.log(np.take_along_axis(mean, label[:, None], 1)).mean()
    assert loss.item() == pytest.approx(expected, rel=1e-9)


def test_aleatoric_learns_to_be_unsure_of_what_is_wrong():
    D = torch.tensor([0.0, 4.0]).view(1, 2, 1, 1).expand(1, 2, 50, 50)
    label = torch.zeros(1, 50, 50, dtype=torch.int64)
    log_variance = torch.full_like(D, -1.0).requires_grad_()
    torch.manual_seed(0)
    coranet.objective([D, log_variance], label, options("aleatoric"))[0].backward()
    assert log_variance.grad.sum() < 0


@pytest.mark.parametrize("kind", ["tta", "aleatoric"])
def test_three_updates_are_three_steps(kind):
    """Each begins where the last has ended; L_csn and L_cnt do not move the branch of σ."""
    torch.manual_seed(0)
    branches = 2 if kind == "aleatoric" else 1
    net = VNet(1, 2, 2, "instancenorm", branches=branches, dropout=0.0)
    image = torch.randn(4, 1, 32, 16, 16)
    batch = Namespace(labeled_bs=2, image=image, label=torch.randint(0, 2, (2, 32, 16, 16)))
    pseudo = torch.randint(0, 2, (2, 32, 16, 16))
    certain = torch.rand(2, 32, 16, 16) < 0.8
    target = torch.randn(2, 2, 32, 16, 16)
    learn = {"pseudo": pseudo, "pseudo_region": certain}
    learn |= {"teacher": [target], "teacher_region": ~certain}
    args = options(kind)
    reference = copy.deepcopy(net)
    steps = Steps(net)
    torch.manual_seed(1)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    loss, terms = coranet.three_updates(net, batch, args, steps, optimizer, **learn)

    every = {name for name, _ in net.named_parameters()}
    of_sigma = {name for name in every if name.startswith("heads.1.")}
    assert bool(of_sigma) == (kind == "aleatoric")
    assert steps.moved == [every - of_sigma, every - of_sigma, every]

    torch.manual_seed(1)
    descent = torch.optim.SGD(reference.parameters(), lr=0.1)
    by_hand = {
        "loss_csn": lambda: coranet.certain_loss(
            coranet.branches_of(reference(image[2:]))[0], pseudo, certain
        ),
        "loss_cnt": lambda: coranet.consistency_loss(
            coranet.branches_of(reference(image[2:]))[0], target, ~certain
        ),
        "loss_crm": lambda: coranet.labelled_loss(
            coranet.branches_of(reference(image[:2])), batch.label, args
        ),
    }
    for name, compute in by_hand.items():
        expected = compute()
        assert terms[name].item() == pytest.approx(expected.item(), rel=1e-5)
        descent.zero_grad()
        expected.backward()
        descent.step()
    assert loss.item() == pytest.approx(sum(terms.values()).item())
    for key, value in reference.state_dict().items():
        torch.testing.assert_close(net.state_dict()[key], value)


SHARED = (
    "over_region",
    "certain_loss",
    "consistency_loss",
    "summary_of",
    "check_updates",
    "epoch_lengths",
    "decay_of_teacher",
)


@pytest.mark.parametrize("name", SHARED)
def test_what_it_shares_with_coranet_is_the_same(name):
    """Scripts import no script, so these stand twice: a change must reach both."""

    def code(script):
        return ast.dump(ast.parse(inspect.getsource(getattr(script, name))))

    assert code(coranet) == code(train_coranet)
    assert coranet.ROWS == train_coranet.ROWS


# ------------------------------------------------------------------------------------ the options


@pytest.mark.parametrize(
    ("command", "views", "looks", "confidence", "sd"),
    [
        ("--dataset LA", "random", 20, 0.8, None),
        ("--dataset ACDC", "random", 20, 0.8, None),
        ("--dataset LA --uncertainty mcdropout", None, 50, 0.8, None),
        ("--dataset LA --uncertainty aleatoric", None, 10, None, 0.001),
        ("--dataset ACDC --uncertainty aleatoric", None, 20, None, 0.001),
    ],
)
def test_defaults_are_those_of_section_iv_d(command, views, looks, confidence, sd):
    args = coranet.parse(command.split())
    assert (args.views, args.looks) == (views, looks)
    assert (args.certain_confidence, args.certain_sd) == (confidence, sd)
    for option in coranet.OPTIONS_OF[args.uncertainty]:
        assert args.sources[option] == "paper, IV-D"


def test_the_other_choices_are_ours():
    args = coranet.parse("--dataset LA --uncertainty softmax".split())
    assert (args.certain_confidence, args.looks, args.views) == (0.7, None, None)
    assert args.sources["certain_confidence"].startswith("ours")
    args = coranet.parse("--dataset LA --views flips".split())
    assert (args.views, args.looks, args.certain_confidence) == ("flips", None, 0.8)


@pytest.mark.parametrize(
    ("command", "word"),
    [
        ("--uncertainty softmax --looks 4", "--looks: .* softmax"),
        ("--uncertainty aleatoric --certain_confidence 0.9", "--certain_confidence: .* aleatoric"),
        ("--uncertainty tta --certain_sd 0.1", "--certain_sd: .* tta"),
        ("--uncertainty mcdropout --views flips", "--views: .* mcdropout"),
        ("--views flips --looks 4", "--looks 4: .* flips"),
        ("--uncertainty aleatoric --looks 1", "--looks 1: .* at least 2"),
        ("--dataset ACDC --net unet --uncertainty mcdropout", "--net unet .* unet_ronneberger"),
        ("--accumulate 2", "--accumulate 2: .* --updates joint"),
    ],
)
def test_an_option_without_effect_is_refused(command, word):
    with pytest.raises(UserError, match=word):
        coranet.parse(command.split())


@pytest.mark.parametrize(
    ("command", "branches", "rate"),
    [
        ("--dataset LA --uncertainty mcdropout", 1, 0.5),
        ("--dataset ACDC --uncertainty mcdropout", 1, 0.5),
        ("--dataset ACDC --uncertainty aleatoric", 2, 0.0),
        ("--dataset ACDC --uncertainty softmax", 1, 0.0),
    ],
)
def test_the_network_has_what_its_measure_needs(command, branches, rate):
    args = coranet.parse([*command.split(), "--n_filters", "2"])
    net = coranet.build(args, Namespace(in_channels=1, num_classes=2))
    assert net.config["branches"] == branches
    assert net.dropout.p == rate


# ------------------------------------------------------------------------------ the pseudo-labels


@pytest.mark.parametrize(
    ("kind", "option", "limits"),
    [
        ("tta", "certain_confidence", (0.5, 0.6, 1.0)),
        ("mcdropout", "certain_confidence", (0.5, 0.6, 1.0)),
        ("softmax", "certain_confidence", (0.5, 0.6, 1.0)),
        ("aleatoric", "certain_sd", (1.0, 0.1, 1e-9)),
    ],
)
def test_relabelling_finds_pseudo_labels_and_certain_voxels(kind, option, limits):
    torch.manual_seed(0)
    net = VNet(1, 2, 2, "instancenorm", branches=2 if kind == "aleatoric" else 1, dropout=0.5)
    share = []
    for limit in limits:
        args = options(kind, **{option: limit})
        found = coranet.relabel(net, FakeData(), range(4, 6), FakeJob(), args, args)
        assert net.training
        assert set(found) == {1, 2}
        for case, (pseudo, _) in found.items():
            image = FakeData().volumes.images[case][None, None]
            D = coranet.branches_of(net.eval()(image))[0]
            assert torch.equal(pseudo.long(), D[0].argmax(0))
        net.train()
        certain = torch.stack([certain for _, certain in found.values()])
        share.append(certain.float().mean().item())
    assert share[0] > 0.99
    assert share[0] > share[1] > share[2] == 0
