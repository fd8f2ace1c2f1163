"""EM's and ADVENT's losses and ADVENT's discriminator against the equations in NumPy float64, their
gradients and limits.
"""

from argparse import Namespace

import numpy as np
import pytest
import torch
import train_entropy as entropy
from references import entropy as reference
from references import shared
from small import BOTH, LA

from networks.discriminator import PatchDiscriminator, judge
from utils.errors import UserError

pytestmark = pytest.mark.usefixtures("one_thread")

LABELED, WEIGHT = 2, 0.3


@pytest.fixture(params=[2, 4], ids=["binary", "four classes"])
def case(request):
    """Logits of two labelled and two unlabelled crops, the label, the discriminator's logits."""
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((4, request.param, 4, 3, 2))
    label = rng.integers(0, request.param, (LABELED, 4, 3, 2))
    return logits, label, rng.standard_normal((4, 1, 2, 3, 1))


def ours(case, weight=WEIGHT, on="all"):
    z = torch.from_numpy(case[0].copy()).requires_grad_()
    label = torch.from_numpy(case[1])
    loss, terms = entropy.objective(z, label, weight, Namespace(entropy_on=on))
    return loss, terms, z


@pytest.mark.parametrize(("on", "name"), [("all", "lu"), ("unlabeled", "u")])
def test_objective_against_numpy(case, on, name):
    z, label, _ = case
    expected = reference.loss(z[:LABELED], label, z[LABELED:], WEIGHT, on=name)
    loss, _, _ = ours(case, on=on)
    assert loss.item() == pytest.approx(expected, rel=1e-9)


def test_minent_is_a_row_of_options(case):
    z, label, _ = case
    args = entropy.parse("--consistency 0.001 --rampup_share 0 --entropy_on unlabeled".split())
    weight = entropy.consistency_weight(1, args)
    loss, _ = entropy.objective(torch.from_numpy(z), torch.from_numpy(label), weight, args)
    expected = reference.loss_minent(z[:LABELED], label, z[LABELED:])
    assert loss.item() == pytest.approx(expected, rel=1e-9)


def test_adversarial_objective_against_numpy(case):
    z, label, d = case
    verdict = torch.from_numpy(d[LABELED:])
    loss, terms = entropy.objective_adversarial(
        torch.from_numpy(z), torch.from_numpy(label), 0.001, verdict
    )
    expected = reference.segmenter_loss(z[:LABELED], label, d[LABELED:])
    assert loss.item() == pytest.approx(expected, rel=1e-9)
    adversarial = reference.binary_cross_entropy(d[LABELED:], 1)
    assert terms["loss_adv"].item() == pytest.approx(adversarial, rel=1e-9)


@pytest.mark.parametrize("labelled", [1, 2, 3])
def test_discriminator_loss_against_numpy(case, labelled):
    d = case[2]
    expected = reference.discriminator_loss(d[:labelled], d[labelled:])
    found = entropy.discriminator_loss(torch.from_numpy(d), labelled)
    assert found.item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("dims", [2, 3])
def test_discriminator_against_its_equation(dims):
    torch.manual_seed(0)
    maps = torch.rand(2, 3, *(64, 32, 32)[:dims], dtype=torch.float64)
    parameters = reference.discriminator_parameters(3, dims, np.random.default_rng(0))
    network = PatchDiscriminator(3, dims).double()
    layers = [stage[0] for stage in network.stages[:-1]] + [network.stages[-1]]
    for layer, (weight, bias) in zip(layers, parameters, strict=True):
        layer.weight.data, layer.bias.data = weight, bias
    expected = reference.discriminator(maps, parameters)
    assert expected.shape == (2, 1, *(2, 1, 1)[:dims])
    torch.testing.assert_close(network(maps), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("classes", [2, 4])
def test_voxels_by_hand(classes):
    """Entropy 1 where nothing is known, 0 where all is, also where p rounds to 0."""
    unknown = torch.zeros(1, classes, 1, 1)
    assert entropy.entropy_loss(unknown).item() == pytest.approx(1)
    assert entropy.entropy_maps(unknown).flatten().tolist() == pytest.approx(
        [1 / classes] * classes
    )
    known = torch.zeros(1, classes, 1, 1).index_fill(1, torch.tensor(1), 1000.0).requires_grad_()
    loss = entropy.entropy_loss(known)
    loss.backward()
    assert loss.item() == 0
    assert known.grad.eq(0).all()
    half = torch.tensor([0.0, np.log(3)], dtype=torch.float64).view(1, 2, 1, 1)
    bits = -(3 / 4 * np.log2(3 / 4) + 1 / 4 * np.log2(1 / 4))
    assert entropy.entropy_loss(half).item() == pytest.approx(bits)


def test_maps_against_numpy(case):
    found = entropy.entropy_maps(torch.from_numpy(case[0]))
    np.testing.assert_allclose(found.numpy(), reference.entropy_maps(case[0]), atol=1e-12)


def test_its_gradient_makes_the_likeliest_class_likelier():
    z = torch.tensor([0.0, 0.5], dtype=torch.float64).view(1, 2, 1, 1).requires_grad_()
    entropy.entropy_loss(z).backward()
    assert z.grad[0, 1] < 0 < z.grad[0, 0]


@pytest.mark.parametrize("on", ["all", "unlabeled"])
def test_who_learns_from_the_entropy(case, on):
    _, terms, z = ours(case, on=on)
    terms["loss_ent"].backward()
    assert z.grad[LABELED:].ne(0).all()
    assert z.grad[:LABELED].ne(0).all() == (on == "all")


def test_the_networks_step_moves_unlabelled_maps_and_no_weight_of_the_discriminator():
    torch.manual_seed(0)
    D = PatchDiscriminator(2, 2, n_filters=2)
    z = torch.randn(4, 2, 32, 32, requires_grad=True)
    maps = entropy.entropy_maps(z)
    entropy.adversarial_loss(judge(D, maps[LABELED:])).backward()
    assert z.grad[:LABELED].eq(0).all()
    assert z.grad[LABELED:].ne(0).any()
    assert all(parameter.grad is None for parameter in D.parameters())


def test_weights_rise_in_the_direct_form_and_not_in_the_adversarial_one():
    args = entropy.parse([])
    expected = [0.1 * shared.ramp(step, 6000) for step in (1, 3000, 6000)]
    assert [entropy.consistency_weight(step, args) for step in (1, 3000, 6000)] == expected
    args = entropy.parse(["--adversarial"])
    weights = [entropy.consistency_weight(step, args) for step in (1, 3000, 6000)]
    assert weights == [reference.ADVERSARIAL_WEIGHT] * 3


def test_advent_trains_both_and_keeps_the_discriminator(tiny_la, tmp_path):
    where = ["--root", str(tiny_la), "--runs", str(tmp_path), "--patch", "32", "32", "32"]
    flags = "--adversarial 1 --max_iterations 2 --discriminator_filters 2".split()
    entropy.main([*LA, *BOTH, *where, *flags])
    (path,) = tmp_path.glob("*/*/*/last.pth")
    ended = torch.load(path, weights_only=True)
    assert ended["test_networks"] == ["net"]
    again = PatchDiscriminator(**ended["networks"]["discriminator"]["kwargs"])
    again.load_state_dict(ended["discriminator"])
    (group,) = ended["optimizer_D"]["param_groups"]
    assert group["betas"] == (0.9, 0.99)
    assert group["lr"] == reference.discriminator_learning_rate(1, 2)


def test_options_that_do_not_fit_are_refused():
    for flags in ("--rampup_share 1", "--entropy_on all"):
        with pytest.raises(UserError, match=r"--\w+ has no effect with --consistency 0"):
            entropy.parse(["--consistency", "0", *flags.split()])
    for flags in ("--discriminator_lr 1", "--discriminator_filters 2"):
        with pytest.raises(UserError, match=r"--\w+ has no effect with --adversarial 0"):
            entropy.parse(flags.split())
    with pytest.raises(UserError, match="--entropy_on has no effect with --adversarial"):
        entropy.parse("--adversarial 1 --entropy_on all".split())
    with pytest.raises(UserError, match="--patch 32 16 16: --adversarial needs extents of at"):
        entropy.parse("--adversarial 1 --patch 32 16 16".split())
