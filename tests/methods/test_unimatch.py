"""UniMatch's objective against the equations in NumPy, its gradients, views and limits."""

from argparse import Namespace

import numpy as np
import pytest
import torch
import train_unimatch as unimatch
from references import unimatch as reference
from small import LA

from utils.errors import UserError
from utils.training import run

pytestmark = pytest.mark.usefixtures("one_thread")

L, U = 2, 3  # labelled and unlabelled crops
SIZE = (4, 5, 3)
BOXES = [
    torch.tensor([[[0, 1, 0], [3, 4, 2]], [[0, 0, 0], [0, 0, 0]], [[2, 2, 1], [4, 5, 3]]]),
    torch.tensor([[[1, 0, 0], [2, 5, 3]], [[0, 0, 0], [4, 5, 3]], [[0, 0, 0], [0, 0, 0]]]),
]


def args(**values):
    return Namespace(**{"threshold": 0.6, "lambda_s": 0.25, "lambda_f": 0.5} | values)


def masks(boxes):
    """Bool `(U, *SIZE)`: True inside the boxes."""
    found = np.zeros((U, *SIZE), bool)
    for mask, (first, last) in zip(found, boxes.tolist(), strict=True):
        mask[tuple(slice(a, b) for a, b in zip(first, last, strict=True))] = True
    return found


@pytest.fixture(params=[2, 4], ids=["binary", "four classes"])
def case(request):
    """Logits of L, of both strong views, of f, of w and of the partner, and the label."""
    rng = np.random.default_rng(0)
    shapes = {"l": L, "s1": U, "s2": U, "f": U, "w": U, "v": U}
    logits = {
        name: 2 * rng.standard_normal((count, request.param, *SIZE))
        for name, count in shapes.items()
    }
    return logits, rng.integers(0, request.param, (L, *SIZE))


def ours(case, **values):
    logits, label = case
    z = {name: torch.from_numpy(z.copy()).requires_grad_() for name, z in logits.items()}
    loss, terms = unimatch.objective(
        z["l"],
        torch.from_numpy(label),
        (z["s1"], z["s2"]),
        z["f"],
        unimatch.pseudo_labels(z["w"]),
        unimatch.pseudo_labels(z["v"]),
        BOXES,
        args(**values),
    )
    return loss, terms, z


def theirs(case, threshold=0.6):
    z, label = case
    boxes = [masks(box) for box in BOXES]
    return reference.loss(
        z["l"], label, (z["s1"], z["s2"]), z["f"], z["w"], z["v"], boxes, threshold
    )


@pytest.mark.parametrize("threshold", [0.0, 0.6, 0.9])
def test_objective_against_numpy(case, threshold):
    loss, *_ = ours(case, threshold=threshold)
    assert loss.item() == pytest.approx(theirs(case, threshold), abs=1e-9)


def test_parts_against_numpy(case):
    z, label = case
    found = unimatch.supervised_loss(torch.from_numpy(z["l"]), torch.from_numpy(label), True)
    assert found.item() == pytest.approx(reference.supervised_loss(z["l"], label), abs=1e-9)
    pseudo, confidence = unimatch.pseudo_labels(torch.from_numpy(z["w"]))
    expected = reference.pseudo_labels(z["w"])
    assert np.array_equal(pseudo, expected[0])
    np.testing.assert_allclose(confidence, expected[1], atol=1e-12)
    found = unimatch.view_loss(torch.from_numpy(z["f"]), pseudo, confidence, 0.7)
    expected = reference.unlabelled_term(z["f"], *expected, 0.7)
    assert found.item() == pytest.approx(expected, abs=1e-9)


def test_the_terms_are_weighed_as_they_say(case):
    loss, terms, _ = ours(case, lambda_s=0.3, lambda_f=0.7)
    parts = (terms["loss_sup"] + 0.3 * terms["loss_s"] + 0.7 * terms["loss_f"]) / 2
    assert loss.item() == pytest.approx(parts.item(), abs=1e-12)
    assert 0 < terms["confident"] < 1


def test_gradient_reaches_the_learning_views_only(case):
    loss, _, z = ours(case)
    loss.backward()
    for name in ("l", "s1", "s2", "f"):
        assert z[name].grad.abs().sum() > 0, name
    assert z["w"].grad is None
    assert z["v"].grad is None


def test_only_confident_voxels_are_learnt_from(case):
    """A voxel's gradient is 0 where c of what stands there, of the crop or its partner, is below
    τ.
    """
    loss, _, z = ours(case)
    loss.backward()
    own, partner = (reference.pseudo_labels(case[0][name])[1] for name in ("w", "v"))
    for name, box in zip(("s1", "s2"), BOXES, strict=True):
        kept = reference.mix(own, partner, masks(box)) >= 0.6
        assert torch.equal(z[name].grad.abs().sum(1) > 0, torch.from_numpy(kept))
    assert torch.equal(z["f"].grad.abs().sum(1) > 0, torch.from_numpy(own >= 0.6))


def test_without_a_confident_voxel_the_unlabelled_loss_is_0(case):
    loss, terms, z = ours(case, threshold=1.0)
    assert terms["loss_s"] == terms["loss_f"] == 0
    loss.backward()
    assert loss.item() == pytest.approx(terms["loss_sup"].item() / 2)
    for name in ("s1", "s2", "f"):
        assert z[name].grad.eq(0).all()


def test_without_weights_it_is_half_the_supervised_loss(case):
    loss, _, z = ours(case, lambda_s=0.0, lambda_f=0.0)
    loss.backward()
    assert z["s1"].grad.eq(0).all()
    alone = z["l"].detach().requires_grad_()
    label = torch.from_numpy(case[1])
    (unimatch.supervised_loss(alone, label, background=True) / 2).backward()
    torch.testing.assert_close(z["l"].grad, alone.grad)


def test_a_view_by_hand():
    """Two voxels, of which one is confident: p = (0.1, 0.9), Ŷ = 1. So D is the mean of 1 (class 0
    is not in Ŷ) and 1 - 2·0.9 / (0.81 + 1).
    """
    p = torch.tensor([[0.1, 0.5], [0.9, 0.5]], dtype=torch.float64).view(1, 2, 1, 1, 2)
    pseudo = torch.tensor([1, 0]).view(1, 1, 1, 2)
    confidence = torch.tensor([0.95, 0.94]).view(1, 1, 1, 2)
    loss = unimatch.view_loss(p.log(), pseudo, confidence, 0.95)
    assert loss.item() == pytest.approx((1 + 1 - 1.8 / 1.81) / 2, abs=1e-3)


def test_gradcheck(case):
    z, label = case
    weak, partner = (
        unimatch.pseudo_labels(torch.from_numpy(z[name][:1, :, :2, :2, :1])) for name in "wv"
    )
    small = [
        torch.from_numpy(z[name][:1, :, :2, :2, :1].copy()).requires_grad_()
        for name in ("l", "s1", "s2", "f")
    ]
    boxes = [box[:1] for box in BOXES]
    y = torch.from_numpy(label[:1, :2, :2, :1].copy())
    assert torch.autograd.gradcheck(
        lambda a, b, c, d: unimatch.objective(a, y, (b, c), d, weak, partner, boxes, args())[0],
        small,
    )


def test_strong_views_are_drawn_anew_and_switched_off():
    image = torch.rand(3, 1, 8, 8, 8)
    volumes = Namespace(patch=[8, 8, 8], jitter=1.0, noise=1.0)
    assert not torch.equal(
        unimatch.strong_view(image, volumes), unimatch.strong_view(image, volumes)
    )
    slices = Namespace(patch=[8, 8], jitter=1.0, blur=1.0)
    assert not torch.equal(unimatch.strong_view(image[:, 0], slices), image[:, 0])
    for off in (
        Namespace(patch=[8, 8, 8], jitter=0.0, noise=0.0),
        Namespace(patch=[8, 8], jitter=0.0, blur=0.0),
    ):
        x = image if len(off.patch) == 3 else image[:, 0]
        assert torch.equal(unimatch.strong_view(x, off), x)


def test_boxes_are_there_as_often_as_asked():
    for patch, own in (([16, 12], {"box_share": [0.1, 0.3]}), ([16, 12, 8], {"beta": 4.0})):
        for probability in (0, 1):
            values = Namespace(patch=patch, box_probability=probability, **own)
            boxes = unimatch.draw_boxes(50, "cpu", values)
            assert boxes.shape == (50, 2, len(patch))
            assert (boxes[:, 1] > boxes[:, 0]).all() == bool(probability)
            assert boxes.any() == bool(probability)


def test_a_step_reads_and_passes_what_the_docstring_says(tiny_la, tmp_path, monkeypatch):
    """L + 4 U crops in three passes; the partners' in evaluation mode and without gradient."""
    passes = []
    parallel = run.Run.parallel

    def listening(job, network, in_parts=False):
        model = parallel(job, network, in_parts)

        def call(x, **options):
            passes.append((len(x), network.training, torch.is_grad_enabled(), options))
            return model(x, **options)

        return call

    monkeypatch.setattr(run.Run, "parallel", listening)
    flags = "--max_iterations 1 --labeled_bs 1 --unlabeled_bs 2".split()
    unimatch.main([*LA, *flags, "--root", str(tiny_la), "--runs", str(tmp_path)])
    assert passes == [
        (2, False, False, {}),
        (3, True, True, {"with_dropped": True}),
        (4, True, True, {}),
    ]


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ("--blur 0.5", "--blur has no effect with volumes"),
        ("--box_share 0.1 0.2", "--box_share has no effect with volumes"),
        ("--dataset ACDC --noise 0.5", "--noise has no effect with slices"),
        ("--dataset ACDC --beta 2", "--beta has no effect with slices"),
        ("--dataset ACDC --box_share 0.5 0.2", "smaller number first"),
        ("--dataset ACDC --box_share 0.5 0.9", "at most 0.8"),
        ("--box_probability 0 --beta 2", "--beta has no effect with --box_probability 0"),
        ("--lambda_s 0 --jitter 0.3", "--jitter has no effect with --lambda_s 0"),
        ("--lambda_s 0 --lambda_f 0 --threshold 0.5", "--threshold has no effect"),
    ],
)
def test_options_without_effect_are_refused(flags, named):
    with pytest.raises(UserError, match=named):
        unimatch.parse(flags.split())
    assert unimatch.parse("--lambda_s 0 --threshold 0.5".split()).threshold == 0.5
