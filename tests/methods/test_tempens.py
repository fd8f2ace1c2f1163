"""Temporal ensembling's loss and ensemble against its facts in NumPy float64: what is read and
written through crops of every kind, who gets gradients, its schedule and options.
"""

import math

import numpy as np
import pytest
import torch
import train_tempens as te
from listening import listen, noise
from numpy_reference import softmax
from references import shared
from references import tempens as reference
from small import ACDC, BOTH, LA

from dataloaders.transforms import AUGMENTS, Crop
from dataloaders.two_stream import two_stream_loader
from utils import distributed
from utils.checkpoint import load_checkpoint
from utils.errors import UserError

pytestmark = pytest.mark.usefixtures("one_thread")

LABELLED, WEIGHT = 2, 0.07


def loader(root, flags=LA):
    return two_stream_loader(te.parse([*flags, "--root", str(root)]), "cpu")


def exact(data, decay=0.6):
    """An ensemble in float64."""
    return te.Ensemble(data, decay, torch.float64)


# ------------------------------------------------------------------------------------- the losses


@pytest.fixture(params=[2, 4], ids=["binary", "four classes"])
def case(request):
    """Logits for two labelled and two unlabelled crops, their label, targets and visited voxels."""
    rng = np.random.default_rng(0)
    shape = (4, 3, 2)
    z, target = (2 * rng.standard_normal((4, request.param, *shape)) for _ in range(2))
    label = rng.integers(0, request.param, (LABELLED, *shape))
    return z, label, softmax(target), rng.random((4, *shape)) < 0.6


def ours(case):
    z = torch.from_numpy(case[0].copy()).requires_grad_()
    label, target, visited = map(torch.from_numpy, case[1:])
    loss, terms = te.objective(z, target, visited, label, WEIGHT)
    return loss, terms, z


def test_objective_against_numpy(case):
    z, label, target, visited = case
    expected = reference.loss(z[:LABELLED], label, z[LABELLED:], target, WEIGHT, visited)
    loss, terms, _ = ours(case)
    assert loss.item() == pytest.approx(expected, abs=1e-9)
    assert terms["visited"].item() == pytest.approx(visited.mean())


def test_without_visits_there_is_no_loss(case):
    z, label, target, _ = case
    nowhere = np.zeros((4, *z.shape[2:]), bool)
    _, terms, _ = ours((z, label, target, nowhere))
    assert terms["loss_con"].item() == 0


def test_only_visited_voxels_get_a_gradient(case):
    _, terms, z = ours(case)
    terms["loss_con"].backward()
    np.testing.assert_array_equal(z.grad.abs().sum(1).numpy() > 0, case[3])


# ----------------------------------------------------------------------------------- the ensemble


def as_reference(ensemble, case, shape):
    """A case's Z and n in image space."""
    sums, visits = ensemble._of(case)
    return sums[:, 1:].view(-1, *shape).numpy(), visits[1:].view(*shape).long().numpy()


@pytest.mark.parametrize("start", [(3, 2, 1), (-4, 25, -2)], ids=["inside", "over the edge"])
@pytest.mark.parametrize("flip", [0, 1])
@pytest.mark.parametrize("rot", range(4))
def test_crops_of_volumes_against_numpy(rot, flip, start, tiny_la):
    data = loader(tiny_la)
    ensemble = exact(data)
    shape = tuple(data.volumes.shapes[0])
    size = (16, 32, 16) if rot % 2 else (32, 16, 16)  # before the turn
    rng = np.random.default_rng(1)
    Z, n = np.zeros((1, *shape)), np.zeros(shape, int)
    for k in range(2):
        corner = tuple(s + k for s in start)
        crop = Crop(0, corner, rot, flip)
        place = reference.places(shape, corner, size, rot, flip)
        expected, visited = reference.read(Z, n, place)
        places = ensemble.places([crop])
        np.testing.assert_array_equal(places[0].numpy(), place + 1)
        target, seen = ensemble.read([crop], places)
        np.testing.assert_array_equal(seen[0].numpy(), visited)
        np.testing.assert_allclose(target[0].numpy()[:, visited], expected[:, visited], atol=1e-9)
        p = softmax(rng.standard_normal((1, 2, *place.shape)))[0]
        Z, n = reference.write(Z, n, p[1:], place)
        ensemble.write(0, *places, torch.from_numpy(p[1:]))
        found = as_reference(ensemble, 0, shape)
        np.testing.assert_allclose(found[0], Z, atol=1e-9)
        np.testing.assert_array_equal(found[1], n)
    assert visited.any()
    assert not ensemble.visits[0][0]


@pytest.mark.parametrize("augment", [name for name, axes in AUGMENTS.items() if axes == 2])
def test_slices_show_the_pixels_that_their_labels_come_from(augment, tiny_acdc):
    """What is written through a crop is read through it: a label comes back as the label of the
    crop, whatever turns, scales and flips are between.
    """
    data = loader(tiny_acdc, [*ACDC, "--augment", augment])
    ensemble = exact(data, decay=0.0)
    for step in (1, 2, 3):
        batch = data.batch(step)
        crops = batch.crops[: batch.labeled_bs]
        for crop in crops:
            label = data.volumes.labels[crop.case].long().flatten()
            one_hot = torch.nn.functional.one_hot(label, 4).T.double()
            ensemble.write(crop.case, 1 + torch.arange(len(label)), one_hot[1:])
        target, visited = ensemble.read(crops, ensemble.places(crops))
        shown = target.argmax(1)
        assert torch.equal(shown[visited], batch.label[visited])
        assert not batch.label[~visited].any()


def test_several_pixels_of_one_voxel_are_averaged(tiny_acdc):
    data = loader(tiny_acdc, ACDC)
    ensemble = exact(data, decay=0.5)
    places = torch.tensor([7, 7, 9, 0])
    p = torch.tensor([0.2, 0.6, 1.0, 0.8], dtype=torch.float64).expand(3, 4)
    ensemble.write(0, places, p)
    sums, visits = ensemble._of(0)
    assert sums[2, [0, 7, 9]].tolist() == pytest.approx([0, 0.2, 0.5])
    assert visits[[0, 7, 9, 10]].tolist() == [0, 1, 1, 0]


def test_the_bias_is_corrected_by_hand(tiny_la):
    """0.5 and then 1 with b = 0.6: Z = 0.6 · 0.2 + 0.4 = 0.52, and z = 0.52 / 0.64."""
    data = loader(tiny_la)
    ensemble = exact(data)
    crop = Crop(0, (0, 0, 0))
    for value in (0.5, 1.0):
        p = torch.full((1, *data.patch), value, dtype=torch.float64)
        ensemble.write(0, *ensemble.places([crop]), p)
    target, visited = ensemble.read([crop], ensemble.places([crop]))
    assert visited.all()
    torch.testing.assert_close(target[0, 1], torch.full_like(target[0, 1], 0.52 / 0.64))
    torch.testing.assert_close(target.sum(1), torch.ones_like(target[:, 0]))


def test_visits_are_counted_up_to_a_byte(tiny_la):
    data = loader(tiny_la)
    ensemble = exact(data)
    for _ in range(te.MOST_VISITS + 2):
        ensemble.write(0, torch.tensor([5]), torch.tensor([[1.0]], dtype=torch.float64))
    assert ensemble.visits[0][5].item() == te.MOST_VISITS


def test_half_precision_is_near(tiny_la):
    data = loader(tiny_la)
    crop = Crop(0, (1, 1, 1), 1, 0)
    torch.manual_seed(0)
    ensembles = [te.Ensemble(data, 0.6), exact(data)]
    places = ensembles[0].places([crop])
    for _ in range(20):
        p = torch.rand(1, *data.patch)
        for ensemble in ensembles:
            ensemble.write(0, *places, p)
    half, wide = (ensemble.read([crop], places)[0] for ensemble in ensembles)
    assert half.dtype == torch.float32
    assert (half - wide).abs().max() < 2e-3


def test_a_checkpoint_holds_it(tiny_la, tmp_path):
    data = loader(tiny_la)
    ensemble = te.Ensemble(data, 0.6)
    crops = data.batch(1).crops
    places = ensemble.places(crops)
    for crop, shown in zip(crops, places, strict=True):
        ensemble.write(crop.case, shown, torch.rand(1, *data.patch))
    assert ensemble.size() == 3 * sum(map(math.prod, data.volumes.shapes.values()))
    torch.save(ensemble.state_dict(), tmp_path / "ensemble.pth")
    again = te.Ensemble(data, 0.6)
    again.load_state_dict(load_checkpoint(tmp_path / "ensemble.pth"))
    pairs = zip(again.read(crops, places), ensemble.read(crops, places), strict=True)
    assert all(torch.equal(found, expected) for found, expected in pairs)


def test_parts_and_processes_write_in_the_order_of_one(monkeypatch):
    """4 labelled and 8 unlabelled samples in two processes, of two parts each."""
    labelled, unlabelled = list(range(4)), list(range(4, 12))
    parts = [
        [(labelled[part + 2 * rank :: 4], unlabelled[part + 2 * rank :: 4]) for part in range(2)]
        for rank in range(2)
    ]
    of_kind = [[list(zip(*kind, strict=True)) for kind in zip(*own, strict=True)] for own in parts]
    shares = iter(zip(*of_kind, strict=True))
    monkeypatch.setattr(distributed, "gather", lambda own: list(next(shares)))
    assert te.of_whole_step(parts[0]) == labelled + unlabelled


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_step_is_written_once_after_its_last_part(accumulate, tiny_la, tmp_path, monkeypatch):
    happened, of = [], te.Ensemble
    for name in ("read", "write"):
        own = getattr(of, name)
        monkeypatch.setattr(
            of, name, lambda *args, own=own, name=name: happened.append(name) or own(*args)
        )
    flags = ["--max_iterations", "2", *BOTH, "--accumulate", str(accumulate)]
    te.main([*LA, *map(str, flags), "--root", str(tiny_la), "--runs", str(tmp_path)])
    assert happened == 2 * [*["read"] * accumulate, *["write"] * 4]
    (log,) = tmp_path.glob("*/*/*/log.txt")
    assert "GB of RAM" in log.read_text()


def test_without_weight_nothing_is_kept(tiny_la, tmp_path):
    flags = ["--max_iterations", "1", "--consistency", "0"]
    te.main([*LA, *flags, "--root", str(tiny_la), "--runs", str(tmp_path)])
    (path,) = tmp_path.glob("*/*/*/last.pth")
    assert not load_checkpoint(path)["ensemble"]["sums"]


# ---------------------------------------------------------------------------------- whole steps


def test_a_step_learns_from_the_past_and_then_becomes_part_of_it(tiny_la, tmp_path):
    """The first step has no target; that of the second is what was predicted in the first. The
    network sees noise.
    """
    parts = listen(te, tiny_la, tmp_path, *LA, *BOTH, "--max_iterations", "2")
    shapes = loader(tiny_la).volumes.shapes
    past = {case: (np.zeros((1, *shape)), np.zeros(shape, int)) for case, shape in shapes.items()}
    shares = []
    for part in parts:
        (heard,) = part.passes
        noise(heard.given[0], part.batch.image)
        assert (heard.training, heard.gradient) == (True, True)
        assert torch.equal(part.objective["z"], heard.answer)
        assert not part.objective["target"].requires_grad
        p = softmax(heard.answer.detach().double().numpy())
        seen = {}  # no case is seen twice in a step
        for k, crop in enumerate(part.batch.crops):
            size = (16, 32, 16) if crop.rot % 2 else (32, 16, 16)  # before the turn
            shape = shapes[crop.case]
            place = reference.places(shape, crop.start, size, crop.rot, crop.flip)
            target, visited = reference.read(*past[crop.case], place)
            np.testing.assert_array_equal(part.objective["visited"][k].numpy(), visited)
            found = part.objective["target"][k].numpy()
            np.testing.assert_allclose(found[:, visited], target[:, visited], atol=2e-3)
            shares.append(visited.mean())
            seen[crop.case] = reference.write(*past[crop.case], p[k, 1:], place)
        assert len(seen) == 4
        past |= seen
    assert not any(shares[:4])
    assert np.mean(shares[4:]) > 0.1


# ---------------------------------------------------------------------------- schedule and options


def test_schedules():
    args = te.parse([])
    for step in (1, 3000, 6000):
        expected = reference.consistency_weight(step, 6000)
        assert te.consistency_weight(step, args) == pytest.approx(expected, rel=1e-12)
        expected = shared.learning_rate(step - 1, "A")
        assert te.learning_rate(step, args) == pytest.approx(expected, rel=1e-12)
    args = te.parse(["--dataset", "ACDC"])
    expected = shared.learning_rate(14999, "D", 30000)
    assert te.learning_rate(15000, args) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--decay", "poly", "--lr_step", "1"], "--lr_step has no effect with --decay poly"),
        (["--consistency", "0", "--ensemble_decay", "0.5"], "--ensemble_decay has no effect"),
        (["--ensemble_decay", "0.99"], "visits are counted up to 255"),
    ],
)
def test_options_are_refused(flags, message):
    with pytest.raises(UserError, match=message):
        te.parse(flags)
