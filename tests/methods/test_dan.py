"""DAN's two losses and its discriminator against the equations in NumPy float64: who learns from
what, and when, also in SASSNet's loop.
"""

from argparse import Namespace

import numpy as np
import pytest
import torch
import train_dan as dan
import train_sassnet as sassnet
from listening import listen
from references import dan as reference
from references import shared
from small import BOTH, LA

from networks.discriminator import MapImageDiscriminator, judge
from utils.errors import UserError
from utils.training import run

pytestmark = pytest.mark.usefixtures("one_thread")

LABELED, WEIGHT = 2, 0.3


@pytest.fixture(params=[2, 4], ids=["binary", "four classes"])
def case(request):
    """Logits of two labelled and two unlabelled crops, the label, the discriminator's logits."""
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((4, request.param, 4, 3, 2))
    label = rng.integers(0, request.param, (LABELED, 4, 3, 2))
    return logits, label, rng.standard_normal((4, 2))


def ours(case, weight=WEIGHT):
    z = torch.from_numpy(case[0].copy()).requires_grad_()
    verdict = torch.from_numpy(case[2][LABELED:].copy()).requires_grad_()
    loss, terms = dan.objective(z, torch.from_numpy(case[1]), verdict, weight)
    return loss, terms, z, verdict


def test_objective_against_numpy(case):
    z, label, verdict = case
    expected = reference.segmenter_loss(z[:LABELED], label, verdict[LABELED:], WEIGHT)
    loss, terms, _, _ = ours(case)
    assert loss.item() == pytest.approx(expected, rel=1e-9)
    adversarial = reference.image_cross_entropy(verdict[LABELED:], reference.LABELLED)
    assert terms["loss_adv"].item() == pytest.approx(adversarial, rel=1e-9)


@pytest.mark.parametrize("labelled", [1, 2, 3])
def test_discriminator_loss_against_numpy(case, labelled):
    verdict = case[2]
    expected = reference.discriminator_loss(verdict[:labelled], verdict[labelled:])
    found = dan.discriminator_loss(torch.from_numpy(verdict), labelled)
    assert found.item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("dims", [2, 3])
def test_discriminator_against_its_equation(dims):
    torch.manual_seed(0)
    extents = (48, 32, 16)[:dims]
    maps = torch.rand(2, 3, *extents, dtype=torch.float64)
    image = torch.randn(2, 2, *extents, dtype=torch.float64)
    parameters = reference.discriminator_parameters(3, 2, dims, np.random.default_rng(0), width=4)
    network = MapImageDiscriminator(3, 2, dims, n_filters=4).double().eval()
    named = {"map": network.of_map, "image": network.of_image, "linear": network.linear}
    named |= {
        name: stage[0]
        for name, stage in zip(("second", "third", "fourth"), network.stages, strict=True)
    }
    for name, (weight, bias) in parameters.items():
        named[name].weight.data, named[name].bias.data = weight, bias
    expected = reference.discriminator(maps, image, parameters)
    torch.testing.assert_close(network(maps, image), expected, rtol=1e-9, atol=1e-12)


def test_verdicts_by_hand():
    """An undecided discriminator costs ln 2 on either side; one that is sure costs one of them."""
    undecided = torch.zeros(2, 2)
    assert dan.adversarial_loss(undecided).item() == pytest.approx(np.log(2))
    assert dan.discriminator_loss(undecided, 1).item() == pytest.approx(np.log(2))
    right = torch.tensor([[-20.0, 20.0], [20.0, -20.0]])  # the first is labelled, the second is not
    assert dan.discriminator_loss(right, 1).item() == pytest.approx(0, abs=1e-6)
    assert dan.adversarial_loss(right[1:]).item() == pytest.approx(40)


def test_the_segmenter_learns_from_unlabelled_crops_through_the_discriminator_only(case):
    loss, _, z, verdict = ours(case)
    loss.backward()
    assert z.grad[LABELED:].eq(0).all()  # `verdict` stands for what is between them
    assert verdict.grad.ne(0).all()
    alone = z.detach()[:LABELED].requires_grad_()
    dan.supervised_loss(alone, torch.from_numpy(case[1]), background=True).backward()
    torch.testing.assert_close(z.grad[:LABELED], alone.grad)


def test_the_segmenters_step_moves_unlabelled_maps_and_no_weight_of_the_discriminator():
    torch.manual_seed(0)
    D = MapImageDiscriminator(2, 1, 2, n_filters=2)
    z = torch.randn(4, 2, 16, 16, requires_grad=True)
    image = torch.randn(4, 1, 16, 16)
    verdict = judge(D, z[LABELED:].softmax(1), image[LABELED:])
    dan.adversarial_loss(verdict).backward()
    assert z.grad[:LABELED].eq(0).all()
    assert z.grad[LABELED:].ne(0).any()
    assert all(parameter.grad is None for parameter in D.parameters())


def test_the_weight_rises_over_the_training_to_the_released_one():
    args = dan.parse(["--dataset", "ACDC"])
    for step in (1, 15000, 30000):
        expected = 0.1 * shared.ramp(step, 30000)
        assert dan.consistency_weight(step, args) == pytest.approx(expected)
        # the released staircase of 150 iterations lies below, by one of its steps at most
        steps = [reference.consistency_weight(t) for t in (step - 1, step + 149)]
        assert steps[0] <= expected <= steps[1]
    args = Namespace(consistency=0.1, rampup_share=0.0, max_iterations=10)
    assert dan.consistency_weight(1, args) == 0.1


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("script", [dan, sassnet], ids=["DAN", "SASSNet"])
def test_each_optimizer_gets_the_gradient_of_its_own_loss(
    script, accumulate, tiny_la, tmp_path, monkeypatch
):
    """The discriminator's own step is not changed by the segmenter's, nor the other way round; for
    its step the segmenter has made its own one and is in eval mode.
    """
    seen, optimize = [], run.Run.optimize

    def spy(job, loss, *optimizers):
        (optimizer,) = optimizers
        parameters = optimizer.param_groups[0]["params"]
        before = [None if p.grad is None else p.grad.clone() for p in parameters]
        expected = torch.autograd.grad(loss, parameters, retain_graph=True)
        done = optimize(job, loss, optimizer)
        for parameter, already, own in zip(parameters, before, expected, strict=True):
            total = own / accumulate + (already if job._part else 0)
            torch.testing.assert_close(parameter.grad, total)
        seen.append(type(optimizer).__name__)
        return done

    monkeypatch.setattr(run.Run, "optimize", spy)
    flags = ["--accumulate", str(accumulate), *"--max_iterations 2".split()]
    parts = listen(script, tiny_la, tmp_path, *LA, *BOTH, *flags, "--discriminator_filters", "2")
    assert seen == ["SGD", "Adam"] * 2 * accumulate
    for k, part in enumerate(parts):
        image, n = part.batch.image, part.batch.labeled_bs
        first, judged, again, learnt = part.passes
        assert [heard.name for heard in part.passes] == ["net", "discriminator"] * 2
        assert [heard.training for heard in part.passes] == [True, False, False, True]
        assert [heard.gradient for heard in part.passes] == [True, True, False, True]
        moved = not torch.equal(first.weights, again.weights)
        assert moved == (k % accumulate == accumulate - 1)  # with the last part
        assert torch.equal(judged.weights, learnt.weights)
        assert torch.equal(first.given[0], image)
        assert torch.equal(again.given[0], image)
        for heard, of_net, shown in ((judged, first, image[n:]), (learnt, again, image)):
            maps, image_shown = heard.given
            own = of_net.answer[1] if script is sassnet else of_net.answer.softmax(1)
            assert torch.equal(maps, own[-len(shown) :])
            assert torch.equal(image_shown, shown)
            assert maps.requires_grad == (heard is judged)


def test_the_discriminator_is_kept_and_only_the_segmenter_tested(tiny_la, tmp_path):
    where = ["--root", str(tiny_la), "--runs", str(tmp_path)]
    dan.main([*LA, *BOTH, *where, *"--max_iterations 1 --discriminator_filters 2".split()])
    (path,) = tmp_path.glob("*/*/*/last.pth")
    ended = torch.load(path, weights_only=True)
    assert ended["test_networks"] == ["net"]
    kept = ended["networks"]["discriminator"]
    assert kept["class"] == "networks.discriminator.MapImageDiscriminator"
    again = MapImageDiscriminator(**kept["kwargs"])
    again.load_state_dict(ended["discriminator"])
    (group,) = ended["optimizer_D"]["param_groups"]
    assert (group["lr"], group["betas"]) == (1e-4, (0.9, 0.99))


def test_options_without_effect_are_refused():
    with pytest.raises(UserError, match="--rampup_share has no effect with --consistency 0"):
        dan.parse("--consistency 0 --rampup_share 1".split())
    with pytest.raises(UserError, match="--lr_step has no effect with --decay poly"):
        dan.parse("--decay poly --lr_step 3".split())
