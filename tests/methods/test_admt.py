"""AD-MT's objective, pseudo-labels and turns against the equations in NumPy, and their limits."""

from argparse import Namespace

import numpy as np
import pytest
import torch
import train_admt as admt
from references import admt as reference
from small import LA

from utils.errors import UserError
from utils.ops import splice
from utils.perturbations import boxes_of_beta
from utils.schedules import update_teacher
from utils.training import run

pytestmark = pytest.mark.usefixtures("one_thread")

L, U = 2, 3  # labelled and unlabelled crops
SIZE = (4, 5, 3)
BOXES = torch.tensor([[[0, 1, 0], [3, 4, 2]], [[0, 0, 0], [4, 5, 3]], [[2, 2, 1], [4, 5, 3]]])
ORDER = torch.tensor([2, 0, 1])


def args(**values):
    of_la = {"threshold": 0.5, "loss_u": "ce", "ensemble": "entropy", "vote": "mixed"}
    return Namespace(**of_la | values)


def mix(values):
    return splice(values, values[ORDER], BOXES)


def masks():
    """Bool `(U, *SIZE)`: True inside the boxes."""
    found = np.zeros((U, *SIZE), bool)
    for mask, (first, last) in zip(found, BOXES.tolist(), strict=True):
        mask[tuple(slice(a, b) for a, b in zip(first, last, strict=True))] = True
    return found


@pytest.fixture(params=[2, 4], ids=["binary", "four classes"])
def case(request):
    """Logits of both teachers and the student on weak U, of the student on L and on strong U, and
    the label.
    """
    rng = np.random.default_rng(0)
    shapes = {"1": U, "2": U, "weak": U, "l": L, "strong": U}
    logits = {
        name: 1.5 * rng.standard_normal((count, request.param, *SIZE))
        for name, count in shapes.items()
    }
    return logits, rng.integers(0, request.param, (L, *SIZE))


def tensors(case):
    z = {name: torch.from_numpy(z.copy()).requires_grad_() for name, z in case[0].items()}
    return z, torch.from_numpy(case[1])


@pytest.mark.parametrize("turn", ["intensity", "cutmix"])
@pytest.mark.parametrize("vote", ["mixed", "unmixed", "none"])
@pytest.mark.parametrize(("ensemble", "form"), [("entropy", "released"), ("mean", "plain")])
def test_targets_against_numpy(case, turn, vote, ensemble, form):
    z, _ = tensors(case)
    mixing = mix if turn == "cutmix" else admt.unmixed
    pseudo, confidence = admt.targets(
        z["1"], z["2"], z["weak"], mixing, args(vote=vote, ensemble=ensemble)
    )
    box = masks() if turn == "cutmix" else None
    numbers = case[0]
    if vote == "none":
        expected = reference.pseudo_labels(numbers["1"], numbers["2"], form)[:2]
        if box is not None:
            expected = [reference.mix(values, values[ORDER.numpy()], box) for values in expected]
    else:
        expected = reference.targets(
            numbers["1"],
            numbers["2"],
            numbers["weak"],
            box,
            ORDER.numpy(),
            form,
            mix_vote=vote == "mixed",
        )
    assert np.array_equal(pseudo, expected[0])
    np.testing.assert_allclose(confidence, expected[1], atol=1e-12)
    assert not confidence.requires_grad


def test_the_vote_matters_where_it_should(case):
    """The student settles conflicts only; unmixed, its vote moves others than mixed."""
    z, _ = tensors(case)
    found = {
        vote: admt.targets(z["1"], z["2"], z["weak"], mix, args(vote=vote))[0]
        for vote in ("mixed", "unmixed", "none")
    }
    conflict = mix(z["1"].argmax(1) != z["2"].argmax(1))
    for vote in ("mixed", "unmixed"):
        moved = found[vote] != found["none"]
        assert moved.any()
        assert not (moved & ~conflict).any()
    assert not torch.equal(found["mixed"], found["unmixed"])


def test_mixing_the_vote_is_settling_before_the_mixture(case):
    z, _ = tensors(case)
    mixed = admt.targets(z["1"], z["2"], z["weak"], mix, args())
    settled = admt.targets(z["1"], z["2"], z["weak"], admt.unmixed, args())
    for found, expected in zip(mixed, settled, strict=True):
        assert torch.equal(found, mix(expected))


@pytest.mark.parametrize("data", ["la", "acdc"])
@pytest.mark.parametrize("threshold", [0.0, 0.5, 0.8])
def test_objective_against_numpy(case, data, threshold):
    z, label = tensors(case)
    values = args(threshold=threshold, loss_u="dice" if data == "acdc" else "ce")
    target = admt.targets(z["1"], z["2"], z["weak"], mix, values)
    loss, terms = admt.objective(z["l"], label, z["strong"], *target, 0.7, values)
    pseudo, confidence = (part.numpy() for part in target)
    unlabelled = reference.unlabelled_loss(case[0]["strong"], pseudo, confidence, data, threshold)
    expected = reference.supervised_loss(case[0]["l"], case[1]) + 0.7 * unlabelled
    assert loss.item() == pytest.approx(expected, abs=1e-9)
    assert terms["loss_u"].item() == pytest.approx(unlabelled, abs=1e-9)


@pytest.mark.parametrize("loss_u", ["ce", "dice"])
def test_gradient_reaches_the_student_on_confident_voxels_only(case, loss_u):
    z, label = tensors(case)
    values = args(loss_u=loss_u)
    target = admt.targets(z["1"], z["2"], z["weak"], mix, values)
    loss, _ = admt.objective(z["l"], label, z["strong"], *target, 1.0, values)
    loss.backward()
    for name in ("1", "2", "weak"):
        assert z[name].grad is None, name
    assert z["l"].grad.abs().sum() > 0
    confident = target[1] >= 0.5
    assert not confident.all() or case[0]["l"].shape[1] == 2
    assert torch.equal(z["strong"].grad.abs().sum(1) > 0, confident)


@pytest.mark.parametrize("loss_u", ["ce", "dice"])
def test_without_a_confident_voxel_the_unlabelled_loss_is_0(case, loss_u):
    z, label = tensors(case)
    values = args(threshold=1.0, loss_u=loss_u)
    target = admt.targets(z["1"], z["2"], z["weak"], mix, values)
    loss, terms = admt.objective(z["l"], label, z["strong"], *target, 1.0, values)
    loss.backward()
    assert terms["loss_u"] == 0
    assert z["strong"].grad.eq(0).all()
    assert loss.item() == terms["loss_sup"].item()


def test_the_ensemble_by_hand():
    """A sure teacher (H = 0, weight 1) and one that has no idea (H = 1 bit, weight 1/e)."""
    sure = torch.tensor([1.0, 0.0], dtype=torch.float64).view(1, 2, 1, 1)
    unsure = torch.tensor([0.5, 0.5], dtype=torch.float64).view(1, 2, 1, 1)
    expected = (1 + 0.5 / np.e) / (1 + 1 / np.e)
    assert admt.ensemble(sure, unsure)[0, 0].item() == pytest.approx(expected, abs=1e-12)
    assert admt.ensemble(sure, unsure, "mean")[0, 0].item() == 0.75


def test_settling_by_hand():
    """Five voxels: no conflict, the student agrees, is less sure, as sure, and surer."""
    pseudo, vote = torch.tensor([0, 1, 0, 0, 0]), torch.tensor([1, 1, 1, 1, 1])
    conflict = torch.tensor([False, True, True, True, True])
    confidence, vote_confidence = torch.full((5,), 0.75), torch.tensor([0.875, 0.875, 0.5, 0.75, 1])
    label, sure = admt.settle(pseudo, confidence, conflict, vote, vote_confidence)
    assert label.tolist() == [0, 1, 0, 0, 1]
    assert sure.tolist() == [0.75, 0.75, 0.75, 0.75, 1]


def test_gradcheck(case):
    z, label = tensors(case)
    small = [z[name][:1, :, :2, :2, :1].detach().requires_grad_() for name in ("l", "strong")]
    pseudo, confidence = (
        part[:1, :2, :2, :1]
        for part in admt.targets(z["1"], z["2"], z["weak"], admt.unmixed, args())
    )
    for loss_u in ("ce", "dice"):
        assert torch.autograd.gradcheck(
            lambda a, b, loss_u=loss_u: admt.objective(
                a, label[:1, :2, :2, :1], b, pseudo, confidence, 0.7, args(loss_u=loss_u)
            )[0],
            small,
        )


# ------------------------------------------------------------------------------------- schedules


def test_the_weight_goes_through_the_codes_steps():
    """The code's weight rises every 150 iterations; ours is the same where it has just risen."""
    for data, flags in (("la", []), ("acdc", ["--dataset", "ACDC"])):
        values = admt.parse(flags)
        for step in (150, 3000, 5850, 6000, 7500, 15000):
            expected = reference.consistency_weight(step, data)
            assert admt.consistency_weight(step, values) == pytest.approx(expected, abs=1e-12)


def test_the_weight_grows_with_the_share_of_the_training():
    long, short = admt.parse([]), admt.parse(["--max_iterations", "1000"])
    for share in (0, 0.1, 0.3, 0.4, 1):
        found = admt.consistency_weight(share * 15000, long)
        assert admt.consistency_weight(share * 1000, short) == pytest.approx(found)
    assert admt.consistency_weight(6000, long) == 2


@pytest.mark.parametrize(("data", "flags"), [("la", []), ("acdc", ["--dataset", "ACDC"])])
def test_the_decay_against_numpy(data, flags):
    values = admt.parse(flags)
    for step in (1, 2, 80, 81, 82, 83, 84, 100, 101, 103, 200, 300, 15000):
        expected = reference.teacher_decay(step - 1, data)
        assert admt.teacher_decay(step, values) == pytest.approx(expected, abs=1e-12)


def test_turns_alternate_and_take_all_lengths():
    generator = torch.Generator().manual_seed(0)
    turns, order = admt.Turns(4), []
    for _ in range(600):
        turns.next(generator)
        order.append(turns.teacher)
    assert order[0] == 0
    ends = [k for k in range(1, 600) if order[k] != order[k - 1]]
    lengths = np.diff([0, *ends])
    assert np.array_equal(1 + np.array(order), reference.turns([*lengths, 4], 600))
    counts = np.bincount(lengths)
    assert len(counts) == 5
    assert counts[1:].min() > 0.6 * counts[1:].mean()


def test_a_turn_goes_on_where_a_checkpoint_left_it():
    turns = admt.Turns(9)
    for step in range(20):
        turns.next(torch.Generator().manual_seed(step))  # as a run seeds it
    twin = admt.Turns(9)
    twin.load_state_dict(turns.state_dict())
    for step in range(20, 60):
        for one in (turns, twin):
            one.next(torch.Generator().manual_seed(step))
        assert twin.state_dict() == turns.state_dict()


def test_a_teacher_takes_over_the_running_statistics():
    torch.manual_seed(0)
    student, teacher, other = (torch.nn.BatchNorm1d(3) for _ in range(3))
    student(torch.randn(8, 3))
    with torch.no_grad():
        student.weight.add_(1)
    before = {key: value.clone() for key, value in teacher.state_dict().items()}
    update_teacher(teacher, student, 0.75, buffers=True)
    update_teacher(other, student, 0.75)
    for key in ("weight", "running_mean", "running_var"):
        expected = reference.teacher_update(before[key], student.state_dict()[key], 0.75)
        torch.testing.assert_close(teacher.state_dict()[key], expected)
    assert torch.equal(other.running_mean, before["running_mean"])
    assert torch.equal(other.weight, teacher.weight)


# ---------------------------------------------------------------------------------- whole steps


def test_only_the_teacher_whose_turn_it_is_moves_and_trains(tiny_la, tmp_path, monkeypatch):
    """Passes: the teachers' without gradient, one in training mode; the student's over L, weak and
    strong U. In the first steps a teacher becomes a copy of the student.
    """
    passes, ends = [], []
    parallel, checkpoint = run.Run.parallel, run.Run.checkpoint

    def listening(job, network, in_parts=False):
        model = parallel(job, network, in_parts)

        def call(x):
            passes.append((len(x), network.training, torch.is_grad_enabled()))
            return model(x)

        return call

    def remember(job, step):
        ends.append(
            [
                [v.clone() for v in net.state_dict().values() if v.is_floating_point()]
                for net in job._checkpoints.networks()
            ]
        )
        checkpoint(job, step)

    monkeypatch.setattr(run.Run, "parallel", listening)
    monkeypatch.setattr(run.Run, "checkpoint", remember)
    flags = "--max_iterations 3 --longest_turn 1 --labeled_bs 1 --unlabeled_bs 2".split()
    admt.main([*LA, *flags, "--root", str(tiny_la), "--runs", str(tmp_path)])
    student = (5, True, True)
    first = [(2, True, False), (2, False, False), student]
    second = [(2, False, False), (2, True, False), student]
    assert passes == [*first, *second, *first]

    def same(a, b):
        return all(map(torch.equal, a, b))

    (net, one, two), (net_2, one_2, two_2), (net_3, one_3, two_3) = ends
    assert same(one, net)
    assert not same(two, net)
    assert same(one_2, one)
    assert same(two_2, net_2)
    assert same(one_3, net_3)
    assert same(two_3, two_2)


@pytest.mark.parametrize("turn", [1, 2])
def test_the_strong_view_belongs_to_the_turn(turn, tiny_la, tmp_path, monkeypatch):
    used = []
    intensities, mixture = admt.strong_intensities, admt.draw_mixture
    monkeypatch.setattr(
        admt, "strong_intensities", lambda *own: used.append(1) or intensities(*own)
    )
    monkeypatch.setattr(admt, "draw_mixture", lambda *own: used.append(2) or mixture(*own))
    flags = ["--max_iterations", str(turn), "--longest_turn", "1"]
    admt.main([*LA, *flags, "--root", str(tiny_la), "--runs", str(tmp_path)])
    assert used == [1, 2][:turn]


def test_a_mixture_has_one_partner_and_box_for_all_values():
    torch.manual_seed(3)
    number = torch.arange(4).view(4, 1, 1, 1).expand(4, 16, 8, 8).contiguous()
    own = admt.draw_mixture(number, Namespace(patch=[16, 8, 8], beta=4.0))
    found = own(number)
    assert torch.equal(own(number.float()[:, None])[:, 0], found.float())
    assert not torch.equal(found, number)
    for k, crop in enumerate(found):
        assert len(set(crop.unique().tolist()) - {k}) <= 1


def test_boxes_have_the_references_limits(monkeypatch):
    """The same b and centres give the reference's boxes."""
    shape, b = (20, 9, 17), 0.4
    monkeypatch.setattr(
        torch.distributions.Beta, "sample", lambda self: torch.tensor(b, dtype=torch.float64)
    )
    torch.manual_seed(0)
    boxes = boxes_of_beta(6, shape, 4.0)
    torch.manual_seed(0)
    limits = [reference.centre_limits(n) for n in shape]
    centres = torch.stack([torch.randint(*limit, (6,)) for limit in limits], 1)
    for box, centre in zip(boxes, centres.tolist(), strict=True):
        expected = reference.box_slices(shape, reference.box_sides(shape, b), centre)
        assert box.T.tolist() == [[part.start, part.stop] for part in expected]


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ("--blur 0.5", "--blur has no effect with volumes"),
        ("--dataset ACDC --noise 0.5", "--noise has no effect with slices"),
        ("--consistency 0 --rampup_share 0.5", "--rampup_share has no effect with --consistency"),
        ("--consistency 0 --vote none", "--vote has no effect with --consistency 0"),
        ("--consistency 0 --threshold 0.5", "--threshold has no effect with --consistency 0"),
    ],
)
def test_options_without_effect_are_refused(flags, named):
    with pytest.raises(UserError, match=named):
        admt.parse(flags.split())
    assert admt.parse("--vote none".split()).vote == "none"


def test_a_crop_alone_has_no_partner():
    admt.check_partners(Namespace(unlabeled_bs=4), 2)
    with pytest.raises(UserError, match="--unlabeled_bs must be at least 4"):
        admt.check_partners(Namespace(unlabeled_bs=2), 2)
