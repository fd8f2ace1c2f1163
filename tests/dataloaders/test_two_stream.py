"""The two-stream loader: which case comes when, what a crop shows, and that unlabelled labels stay
unread.
"""

import json
from argparse import Namespace
from collections import Counter

import h5py
import numpy as np
import pytest
import torch
from scipy import ndimage
from small import FOLDER

from dataloaders.transforms import SMOOTH, Crop, draw_crop
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
        "cache": "ram",
        "cache_dir": None,
    }
    return two_stream_loader(Namespace(**{**options, **changes}), torch.device("cpu"))


def slices(root, **changes):
    """The loader of the small volumes' axial slices: 20 of each case."""
    settings = {"generator": 1, "seed": 0, "size": [40, 36, 20], "train": 6, "test": 2}
    (root / "phantom.json").write_text(json.dumps(settings))
    return loader(
        root, **{"dataset": "phantom2d", "patch": [32, 48], "augment": "rotate", **changes}
    )


FORMS = {"volumes": loader, "slices": slices}
both = pytest.mark.parametrize("form", FORMS)


def test_the_loader_says_what_a_network_takes_and_gives(tiny_la):
    data = loader(tiny_la)
    assert (data.in_channels, data.num_classes) == (1, 2)
    assert data.batch(1).image.shape[1] == data.in_channels
    assert data.description["in_channels"] == 1


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


@both
def test_a_batch_depends_on_its_step_alone(tiny_la, form):
    one, two = FORMS[form](tiny_la), FORMS[form](tiny_la)
    one.batch(1), one.batch(2)
    a, b = one.batch(9), two.batch(9)
    assert torch.equal(a.image, b.image)
    assert torch.equal(a.label, b.label)
    assert a.names == b.names
    assert not torch.equal(a.image, two.batch(10).image)


@both
def test_shapes_and_types(tiny_la, form):
    data = FORMS[form](tiny_la)
    batch = data.batch(1)
    assert batch.image.shape == (4, 1, *data.patch)
    assert batch.image.dtype == torch.float32
    assert batch.label.shape == (2, *data.patch)
    assert batch.label.dtype == torch.int64
    assert len(batch.crops) == len(batch.names) == 4


def test_image_and_label_are_seen_through_one_view(tiny_la):
    """The ball is brighter than its surroundings, so a label that was moved otherwise would not lie
    on it.
    """
    data = loader(tiny_la)
    for step in range(1, 8):
        batch = data.batch(step)
        inside = batch.image[:2, 0][batch.label == 1]
        outside = batch.image[:2, 0][batch.label == 0]
        assert inside.min() > 0.2 > outside.mean()


@both
def test_unlabelled_labels_are_never_read(tiny_la, monkeypatch, form):
    """Poison: labels of unlabelled cases are of no use to anyone, and asking for one is an
    error.
    """
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
    data = FORMS[form](tiny_la)
    assert list(data.volumes.labels) == list(range(3 if form == "volumes" else 60))
    for step in range(1, 10):
        assert data.batch(step).label.max() <= 1
    read = {filename.split("/")[-2] for filename, key in asked if key == "/label"}
    assert read == {"CASE00", "CASE01", "CASE02"}


def test_supervised_training_decodes_the_labelled_cases_alone(tiny_la):
    options = {"dataset": "LA", "root": tiny_la, "downsample": 1, "labelnum": 2, "labeled_bs": 2}
    options |= {
        "patch": [16, 16, 16],
        "seed": 1,
        "augment": "crop",
        "cache": "ram",
        "cache_dir": None,
    }
    data = two_stream_loader(Namespace(**options), torch.device("cpu"))
    assert set(data.volumes.images) == {0, 1}
    assert data.batch(3).image.shape[0] == 2


@pytest.mark.parametrize("augment", ["rotate", "affine", "rotate_crop", "resize"])
def test_slices_and_their_labels_are_seen_through_one_warp(tiny_la, augment):
    data = slices(tiny_la, augment=augment, labeled_bs=6)
    seen = 0
    for step in range(1, 8):
        batch = data.batch(step)
        inside, outside = (
            batch.image[:6, 0][ndimage.binary_erosion(mask, np.ones((1, 3, 3)))]
            for mask in ((batch.label == 1).numpy(), (batch.label == 0).numpy())
        )
        assert inside.min() > 0.2 > outside.mean()
        seen += len(inside)
    assert seen > 500


@pytest.mark.parametrize("augment", ["rotate", "affine", "rotate_crop", "resize"])
def test_stores_of_slices_are_gathered_as_the_batch_was(tiny_la, augment):
    """Labels of all samples come out on their images; they and the images are seen by the same
    nearest pixels.
    """
    data = slices(tiny_la, augment=augment)
    for step in range(1, 6):
        batch = data.batch(step)
        gathered = data.gather(data.volumes.labels, batch.crops[:2])
        assert gathered.dtype == torch.uint8
        assert torch.equal(gathered.long(), batch.label)
        images = data.gather(data.volumes.images, batch.crops)
        if augment in SMOOTH:  # interpolated, so close where the slice is flat
            assert not torch.equal(images, batch.image[:, 0])
            assert np.corrcoef(images.flatten(), batch.image.flatten())[0, 1] > 0.85
        else:
            assert torch.equal(images, batch.image[:, 0])


def test_labelled_and_unlabelled_slices_are_of_different_cases(tiny_la):
    data = slices(tiny_la, labelnum=2, labeled_bs=8, unlabeled_bs=8)
    assert data.steps_per_epoch == 5
    names = [data.batch(step).names for step in range(1, 11)]
    assert {name[:6] for batch in names for name in batch[:8]} == {"CASE00", "CASE01"}
    assert {name[:6] for batch in names for name in batch[8:]} == {
        "CASE02",
        "CASE03",
        "CASE04",
        "CASE05",
    }
    assert len({name for batch in names[:5] for name in batch[:8]}) == 40


@pytest.mark.parametrize(
    ("form", "changes", "message"),
    [
        (
            "volumes",
            {"augment": "rotate"},
            "--augment rotate: LA is 3-D, choose one of rot_flip, crop",
        ),
        (
            "slices",
            {"augment": "rot_flip"},
            "--augment rot_flip: phantom2d is 2-D, choose one of rotate, affine, rotate_crop",
        ),
        ("slices", {"augment": "mirror"}, "--augment mirror: phantom2d is 2-D"),
    ],
)
def test_augmentations_of_another_dimension(tiny_la, form, changes, message):
    with pytest.raises(UserError, match=message):
        FORMS[form](tiny_la, **changes)


def test_no_unlabelled_case(tiny_la):
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
    seen = loader(tiny_la, patch=patch).gather(
        {7: torch.from_numpy(volume)}, [Crop(7, start, rot, flip)]
    )
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
