"""The two-stream loader: which case comes when, what a crop shows, and that unlabelled labels stay unread."""

from argparse import Namespace
from collections import Counter

import h5py
import numpy as np
import pytest
import torch
from conftest import FOLDER

from dataloaders.transforms import Crop, draw_crop
from dataloaders.two_stream import two_stream_loader
from utils.errors import UserError
from utils.ops import crop_rot_flip_reference


def loader(root, **changes):
    options = {
        "dataset": "LA",
        "root": root,
        "downsample": 1,
        "labelnum": 3,
        "labeled_bs": 2,
        "unlabeled_bs": 2,
        "patch": [16, 16, 16],
        "seed": 1,
        "augment": "rot_flip",
    }
    return two_stream_loader(Namespace(**{**options, **changes}), torch.device("cpu"))


def test_an_epoch_is_one_pass_over_the_labelled_cases(tiny_la):
    data = loader(tiny_la, labelnum=4)
    assert data.steps_per_epoch == 2
    for epoch in range(3):
        seen = [case for step in (1, 2) for case in data.samples(2 * epoch + step)[:2]]
        assert sorted(seen) == [0, 1, 2, 3]
    assert [data.epoch(step) for step in (1, 2, 3, 4, 5)] == [1, 1, 2, 2, 3]


def test_an_odd_number_of_labelled_cases_fills_the_last_batch(tiny_la):
    data = loader(tiny_la, labelnum=3)
    assert data.steps_per_epoch == 2
    seen = data.samples(1)[:2] + data.samples(2)[:2]
    assert set(seen) == {0, 1, 2}
    assert seen[3] == seen[0]


def test_more_labelled_crops_than_cases(tiny_la):
    data = loader(tiny_la, labelnum=1, labeled_bs=4)
    assert data.steps_per_epoch == 1
    assert data.samples(7)[:4] == [0] * 4


def test_the_unlabelled_stream_shows_each_case_equally_often(tiny_la):
    data = loader(tiny_la, labelnum=3)
    counts = Counter(case for step in range(1, 31) for case in data.samples(step)[2:])
    assert counts == {3: 20, 4: 20, 5: 20}


def test_orders_change_from_pass_to_pass_and_with_the_seed(tiny_la):
    data = loader(tiny_la, labelnum=5, labeled_bs=5, unlabeled_bs=1)
    orders = {tuple(data.samples(step)[:5]) for step in range(1, 11)}
    assert len(orders) > 5
    other = loader(tiny_la, labelnum=5, labeled_bs=5, unlabeled_bs=1, seed=2)
    assert [data.samples(s) for s in range(1, 6)] != [other.samples(s) for s in range(1, 6)]


def test_a_batch_depends_on_its_step_alone(tiny_la):
    one, two = loader(tiny_la), loader(tiny_la)
    one.batch(1), one.batch(2)
    a, b = one.batch(9), two.batch(9)
    assert torch.equal(a.image, b.image)
    assert torch.equal(a.label, b.label)
    assert a.names == b.names
    assert not torch.equal(a.image, two.batch(10).image)


def test_shapes_and_types(tiny_la):
    batch = loader(tiny_la).batch(1)
    assert batch.image.shape == (4, 1, 16, 16, 16)
    assert batch.image.dtype == torch.float32
    assert batch.label.shape == (2, 16, 16, 16)
    assert batch.label.dtype == torch.int64
    assert len(batch.crops) == len(batch.names) == 4


def test_image_and_label_are_seen_through_one_view(tiny_la):
    """The ball is brighter than its surroundings, so a label that was moved otherwise would not lie on it."""
    data = loader(tiny_la)
    for step in range(1, 8):
        batch = data.batch(step)
        inside = batch.image[:2, 0][batch.label == 1]
        outside = batch.image[:2, 0][batch.label == 0]
        assert inside.min() > 0.2 > outside.mean()


def test_unlabelled_labels_are_never_read(tiny_la, monkeypatch):
    """Poison: labels of unlabelled cases are of no use to anyone, and asking for one is an error."""
    for i in range(3, 6):
        with h5py.File(tiny_la / FOLDER / f"CASE{i:02d}" / "mri_norm2.h5", "r+") as file:
            del file["label"]
            file["label"] = np.full((1, 2), 99.5)
    asked = []
    original = h5py.Dataset.__getitem__

    def spy(self, *arguments, **named):
        asked.append((self.file.filename, self.name))
        return original(self, *arguments, **named)

    monkeypatch.setattr(h5py.Dataset, "__getitem__", spy)
    data = loader(tiny_la)
    assert set(data.volumes.labels) == {0, 1, 2}
    for step in range(1, 10):
        assert data.batch(step).label.max() <= 1
    read = {filename.split("/")[-2] for filename, key in asked if key == "/label"}
    assert read == {"CASE00", "CASE01", "CASE02"}


def test_supervised_training_decodes_the_labelled_cases_alone(tiny_la):
    options = {"dataset": "LA", "root": tiny_la, "downsample": 1, "labelnum": 2, "labeled_bs": 2}
    options |= {"patch": [16, 16, 16], "seed": 1, "augment": "crop"}
    data = two_stream_loader(Namespace(**options), torch.device("cpu"))
    assert set(data.volumes.images) == {0, 1}
    assert data.batch(3).image.shape[0] == 2


def test_too_many_labels(tiny_la):
    with pytest.raises(UserError, match="--labelnum 7: LA has 6 training cases"):
        loader(tiny_la, labelnum=7)
    with pytest.raises(UserError, match="--labelnum 6 leaves no unlabelled case"):
        loader(tiny_la, labelnum=6)


@pytest.mark.parametrize("rot", range(4))
@pytest.mark.parametrize("flip", [None, 0, 1])
@pytest.mark.parametrize("patch", [(4, 6, 3), (12, 4, 8)])
def test_gather_pads_crops_turns_and_flips(tiny_la, rot, flip, patch):
    """The definition, written out with NumPy on a volume that is smaller than some patches."""
    volume = np.random.default_rng(3).integers(1, 100, (9, 10, 5))
    size = (patch[1], patch[0], patch[2]) if rot % 2 else patch
    start = tuple((s - p) // 2 for s, p in zip(volume.shape, size, strict=True))
    padded = np.pad(volume, 20)
    crop = padded[tuple(slice(20 + s, 20 + s + p) for s, p in zip(start, size, strict=True))]
    expected = np.rot90(crop, rot, (0, 1))
    expected = expected if flip is None else np.flip(expected, flip)
    seen = loader(tiny_la, patch=patch).gather({7: torch.from_numpy(volume)}, [Crop(7, start, rot, flip)])
    np.testing.assert_array_equal(seen.numpy(), expected[None])


def test_a_batch_holds_what_its_crops_say(tiny_la):
    data = loader(tiny_la, patch=[18, 44, 20])  # larger than the volumes on an axis
    for step in range(1, 5):
        batch = data.batch(step)
        images, labels = data.volumes.images, data.volumes.labels
        for k, crop in enumerate(batch.crops):
            label = [labels[crop.case]] if k < 2 else None
            want = crop_rot_flip_reference(
                [images[crop.case]], label, [crop.start], data.patch, [crop.rot], [crop.flip]
            )
            assert torch.equal(batch.image[k], want[0])
            assert label is None or torch.equal(batch.label[k], want[1][0].long())


def test_crops_cover_every_corner_and_turn():
    rng = np.random.default_rng(0)
    crops = [draw_crop(rng, 0, (6, 5, 4), (4, 4, 4)) for _ in range(400)]
    assert {v.start for v in crops} == {(x, y, 0) for x in range(3) for y in range(2)}
    assert {(v.rot, v.flip) for v in crops} == {(r, f) for r in range(4) for f in range(2)}
    plain = [draw_crop(rng, 0, (6, 5, 4), (4, 4, 4), "crop") for _ in range(50)]
    assert {(v.rot, v.flip) for v in plain} == {(0, None)}


def test_a_small_volume_is_centred_in_zeros(tiny_la):
    crop = draw_crop(np.random.default_rng(0), 0, (2, 8, 8), (4, 4, 4), "crop")
    seen = loader(tiny_la, patch=[4, 4, 4]).gather([torch.ones(2, 8, 8)], [crop])[0]
    assert seen[1:3].eq(1).all()
    assert seen[[0, 3]].eq(0).all()
