"""An image's way to the network and its labels' way back: exact where nothing is resampled, however
it was stored.
"""

import itertools
import json

import numpy as np
import pytest
import torch
from image_files import as_image
from numpy.testing import assert_allclose, assert_array_equal

from dataloaders.preprocessing import Preprocessing
from utils.errors import UserError
from utils.preparation.grid import Grid
from utils.preparation.images import to_array
from utils.preparation.prediction import around
from utils.preparation.preprocess import bounding_box, label_values, preprocess
from utils.slabs import interpolate_slabs

SIZE, SPACING, ORIGIN = (18, 16, 21), (0.7, 1.3, 2.1), (-31.5, 12.25, 400.0)


def rotation(*degrees):
    """Rotations about x, y and z, one after the other."""
    total = np.eye(3)
    for axis, angle in enumerate(np.radians(degrees)):
        a, b = (other for other in range(3) if other != axis)
        turn = np.eye(3)
        turn[[a, a, b, b], [a, b, a, b]] = (
            np.cos(angle),
            -np.sin(angle),
            np.sin(angle),
            np.cos(angle),
        )
        total = turn @ total
    return total


def make(array, direction=None, spacing=SPACING):
    """An image of an array `(X, Y, Z)`."""
    axes = np.eye(3) if direction is None else direction
    return as_image(array, spacing, ORIGIN, np.ravel(axes).tolist())


def noise(seed=0, size=SIZE):
    return np.random.default_rng(seed).normal(100, 20, size).astype(np.float32)


def some_labels(size=SIZE):
    return np.random.default_rng(1).integers(0, 4, size, dtype=np.uint8)


def way_back(place, prob):
    """The likeliest classes on the file's own grid, as prediction brings probabilities back."""
    target = around(place)
    edges = [extent - 1 for extent in place.grid.size]
    places = [at.clip(0, edge) for at, edge in zip(target.places, edges, strict=True)]
    slabs = list(interpolate_slabs([torch.as_tensor(prob, dtype=torch.float32)], places))
    labels = np.zeros(target.size, np.uint8)
    labels[tuple(target.inside)] = torch.cat(slabs, 1).argmax(0).numpy()
    return place.turn_back(labels)


def shares(labels, classes):
    """Probabilities `(C, X, Y, Z)` that are certain of these labels."""
    return (labels == np.arange(classes)[:, None, None, None]).astype(np.float32)


AXES = [
    np.eye(3)[list(order)] * signs
    for order in itertools.permutations(range(3))
    for signs in itertools.product((1, -1), repeat=3)
]
TURNS = [np.eye(3), rotation(12, -25, 31), rotation(44, 3, -40)]


@pytest.mark.parametrize("turn", TURNS, ids=["upright", "oblique", "very oblique"])
@pytest.mark.parametrize("orientation", [None, "LPS", "RAS", "SAL"])
def test_labels_come_back_bit_for_bit(orientation, turn):
    """From each of the 48 ways to store a volume, upright and oblique, with and without a crop."""
    label = some_labels()
    label[:3], label[:, :, -4:] = 0, 0
    for crop, axes in itertools.product(("none", "label"), AXES):
        image = make(noise(), turn @ axes)
        how = Preprocessing(orientation, crop=crop)
        prepared = preprocess(how, image, make(label, turn @ axes))
        assert (prepared.image.dtype, prepared.label.dtype) == (np.float32, np.uint8)
        assert_array_equal(way_back(prepared.place, shares(prepared.label, 4)), label)


@pytest.mark.parametrize("turn", TURNS[:2], ids=["upright", "oblique"])
def test_axes_and_crop_move_no_voxel_in_space(turn):
    """Each voxel of the prepared array lies where it lay in the patient, and its grid says so."""
    axes = turn @ AXES[29]
    label = np.zeros(SIZE, np.uint8)
    label[4:9, 5:8, 10:17] = 1
    image = make(noise(), axes)
    how = Preprocessing("RAS", crop="label", margin=(1, 0, 2), intensity="none")
    prepared = preprocess(how, image, make(label, axes))
    grid = prepared.place.grid
    assert grid.orientation == "RAS" != Grid.of(image).orientation
    assert grid.size == prepared.image.shape
    for index in ((0, 0, 0), (2, 1, 5), tuple(extent - 1 for extent in grid.size)):
        there = image.TransformPhysicalPointToIndex(grid.point(index))
        assert prepared.image[index] == to_array(image)[there]
        assert_allclose(image.TransformIndexToPhysicalPoint(there), grid.point(index), atol=1e-6)


@pytest.mark.parametrize("turn", TURNS[:2], ids=["upright", "oblique"])
@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.5, 2.5, 2.1), (1.9, 4.0, 7.0)])
def test_resampling_keeps_places(turn, spacing):
    """A linear ramp over the patient stays that ramp, and a ball comes back nearly whole on the
    original grid.
    """
    axes = turn @ AXES[13]
    at = np.stack(np.meshgrid(*map(np.arange, SIZE), indexing="ij"), -1).reshape(-1, 3)
    points = np.array(ORIGIN) + (at * SPACING) @ axes.T
    slope = np.array([0.7, -1.1, 0.4])
    ramp = (points @ slope).reshape(SIZE).astype(np.float32)
    centre = points.mean(0)
    ball = (np.linalg.norm(points - centre, axis=1) < 7).reshape(SIZE).astype(np.uint8)
    how = Preprocessing("LPS", spacing, intensity="none")
    prepared = preprocess(how, make(ramp, axes), make(ball, axes))
    found = prepared.place.grid
    assert_allclose(found.spacing, spacing)
    assert_allclose(found.point([(extent - 1) / 2 for extent in found.size]), centre, atol=1e-5)
    inner = tuple(slice(extent // 4, -(extent // 4) or None) for extent in found.size)
    indices = np.stack(np.meshgrid(*map(np.arange, found.size), indexing="ij"), -1)[inner].reshape(
        -1, 3
    )
    expected = np.array([found.point(index) for index in indices.tolist()]) @ slope
    assert_allclose(prepared.image[inner].ravel(), expected, atol=1e-3)

    back = way_back(prepared.place, shares(prepared.label, 2))
    dice = 2 * np.count_nonzero(back & ball) / (np.count_nonzero(back) + np.count_nonzero(ball))
    assert dice > (0.93 if max(spacing) < 3 else 0.6)


def test_a_box_beyond_the_coarser_grid_is_filled_to_its_edge():
    """Ten voxels of 0.5 mm are one of 4 mm: the first and the last lie outside it and take its
    values all the same.
    """
    image = make(noise(size=(10, 4, 4)), spacing=(0.5, 1, 1))
    prepared = preprocess(Preprocessing(spacing=(4, 1, 1)), image)
    assert prepared.image.shape == (1, 4, 4)
    assert (way_back(prepared.place, shares(np.ones((1, 4, 4)), 2)) == 1).all()


def test_a_spacing_that_differs_by_rounding_is_left_alone():
    image = make(noise())
    nearly = tuple(s * 1.0004 for s in SPACING)
    prepared = preprocess(Preprocessing(spacing=nearly, intensity="none"), image)
    assert_array_equal(prepared.image, to_array(image))
    assert prepared.place.grid == Grid.of(image)


def test_labels_are_resampled_class_by_class():
    """A class between two others is not where these two meet, and values between classes do not
    arise.
    """
    label = np.zeros((16, 8, 8), np.uint8)
    label[8:] = 2
    image = make(noise(size=label.shape), spacing=(1, 1, 1))
    prepared = preprocess(Preprocessing(spacing=(0.3, 1, 1)), image, make(label))
    assert set(np.unique(prepared.label)) == {0, 2}
    assert abs(prepared.label.mean() - 1) < 0.05
    halves = np.zeros((4, 4, 4), np.uint8)
    halves[1::2], halves[2:] = 3, halves[2:] + 1
    image = make(noise(size=(4, 4, 4)), spacing=(1, 1, 1))
    halved = preprocess(Preprocessing(spacing=(2, 1, 1)), image, make(halves))
    assert_array_equal(halved.label[:, 0, 0], [0, 1])  # of 0 and 3, and of 1 and 4, the lower


def test_outside_the_crop_is_background():
    label = np.zeros(SIZE, np.uint8)
    label[6:9, 6:9, 6:9] = 1
    how = Preprocessing(crop="label", margin=(2, 2, 2))
    prepared = preprocess(how, make(noise()), make(label))
    assert prepared.image.shape == (7, 7, 7)
    everything = np.ones((2, 7, 7, 7)) * np.array([0.1, 0.9])[:, None, None, None]
    back = way_back(prepared.place, everything)
    assert back.sum() == 343
    assert back[4:11, 4:11, 4:11].all()


def test_outside_the_crop_is_background_between_its_voxels_too():
    """What is likely at the crop's edge does not spread over the coarse voxel beside it."""
    label = np.zeros((30, 30, 30), np.uint8)
    label[9:21, 9:21, 9:21] = 1
    image = make(noise(size=label.shape), spacing=(1, 1, 1))
    how = Preprocessing(spacing=(3, 3, 3), crop="label")
    prepared = preprocess(how, image, make(label))
    prob = np.ones((2, 4, 4, 4)) * np.array([0.05, 0.95])[:, None, None, None]
    assert_array_equal(way_back(prepared.place, prob).nonzero()[0][[0, -1]], [9, 20])


def test_without_a_label_the_crop_to_it_is_the_whole_image():
    how = Preprocessing(crop="label", margin=(2, 2, 2))
    assert preprocess(how, make(noise())).image.shape == SIZE
    empty = make(np.zeros(SIZE, np.uint8))
    assert preprocess(how, make(noise()), empty).image.shape == SIZE


def test_boxes():
    mask = np.zeros((20, 20, 20), np.uint8)
    mask[3:5, 0, 18] = 7
    assert bounding_box(mask) == (slice(3, 5), slice(0, 1), slice(18, 19))
    assert bounding_box(mask, (1, 2, 3)) == (slice(2, 6), slice(0, 3), slice(15, 20))
    assert bounding_box(mask, at_least=(8, 5, 40)) == (slice(0, 8), slice(0, 5), slice(0, 20))
    assert bounding_box(mask, (2, 0, 0), (9, 1, 4)) == (slice(0, 9), slice(0, 1), slice(16, 20))
    assert bounding_box(np.zeros((4, 4, 4))) is None


@pytest.mark.parametrize("statistics", ["whole", "crop"])
def test_grey_values(statistics):
    array = noise()
    array[:5], label = 0, np.zeros(SIZE, np.uint8)
    label[2:15, 4:12, 5:16] = 1
    box = (slice(2, 15), slice(4, 12), slice(5, 16))

    def prepare(intensity, **more):
        how = Preprocessing(crop="label", intensity=intensity, statistics=statistics, **more)
        return preprocess(how, make(array), make(label)).image

    crop = array[box].astype(np.float64)
    within = crop if statistics == "crop" else array.astype(np.float64)
    known = within[within != 0]
    low, high = np.percentile(within, (0.5, 99.5))
    clipped = within.clip(low, high)
    expected = {
        "none": crop,
        "zscore": (crop - within.mean()) / within.std(),
        "zscore_nonzero": np.where(crop != 0, (crop - known.mean()) / known.std(), 0),
        "minmax": (crop - within.min()) / (within.max() - within.min()),
        "percentile": (crop.clip(low, high) - clipped.mean()) / clipped.std(),
    }
    for intensity, values in expected.items():
        found = prepare(intensity)
        assert found.dtype == np.float32
        assert_allclose(found, values, atol=1e-4, err_msg=intensity)
    assert_allclose(prepare("window", low=60, high=110), (crop.clip(60, 110) - 60) / 50, atol=1e-5)


@pytest.mark.parametrize("intensity", ["zscore", "zscore_nonzero", "minmax", "percentile"])
@pytest.mark.parametrize("value", [0, 7])
def test_an_image_of_one_value_stays_finite(intensity, value):
    image = make(np.full((4, 5, 6), value, np.float32))
    assert (preprocess(Preprocessing(intensity=intensity), image).image == 0).all()


@pytest.mark.parametrize(
    ("low", "high", "width", "expected"),
    [
        ((3, 4, 5), (7, 10, 9), (4, 2, None), (slice(3, 7), slice(6, 8), slice(5, 9))),
        ((0, 14, 5), (2, 16, 9), (8, 8, None), (slice(0, 8), slice(8, 16), slice(5, 9))),
        ((3, 4, 5), (7, 10, 9), (40, 5, 1), (slice(0, 18), slice(4, 9), slice(6, 7))),
    ],
)
def test_a_crop_of_exact_extents_lies_about_the_labels_middle(low, high, width, expected):
    """Within the image, and cutting the label where that is larger."""
    label = np.zeros(SIZE, np.uint8)
    label[tuple(slice(*ends) for ends in zip(low, high, strict=True))] = 1
    array = noise()
    how = Preprocessing(crop="label", intensity="none", exactly=width)
    prepared = preprocess(how, make(array), make(label))
    assert prepared.place.box == expected
    assert_array_equal(prepared.image, array[expected].astype(np.float32))
    assert_array_equal(prepared.label, label[expected])


def test_a_crop_of_exact_extents_is_the_middle_where_there_is_no_label():
    how = Preprocessing(crop="label", intensity="none", exactly=(8, 6, None))
    assert preprocess(how, make(noise())).place.box == (slice(5, 13), slice(5, 11), slice(0, 21))


def test_json_and_back():
    how = Preprocessing(
        "RAS",
        (1.0, 1.5, 2),
        "nonzero",
        (1, 2, 3),
        (16, 16, 16),
        "window",
        -125.0,
        275.0,
        "crop",
        (8, None, 9),
    )
    assert Preprocessing.from_dict(json.loads(json.dumps(how.as_dict()))) == how
    assert (
        Preprocessing.from_dict(json.loads(json.dumps(Preprocessing().as_dict())))
        == Preprocessing()
    )


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"orientation": "LRS"}, "orientation LRS"),
        ({"orientation": "lps"}, "orientation lps"),
        ({"spacing": [1, 1]}, r"spacing \(1, 1\)"),
        ({"spacing": [1, 1, 0]}, "spacing"),
        ({"crop": "box"}, "crop box is none of none, nonzero, label"),
        ({"margin": [1, -1, 1]}, "margin"),
        ({"at_least": [1.5, 1, 1]}, "at_least"),
        ({"exactly": [8, None, 0]}, "exactly"),
        ({"exactly": [8, None]}, "exactly"),
        ({"intensity": "window", "low": 5.0}, "window from 5.0 to None"),
        ({"low": 5.0}, "low and high belong to intensity window"),
        ({"sharpen": 1}, "a table of"),
        ([], "a table of"),
    ],
)
def test_a_bad_setting_is_named(values, words):
    with pytest.raises(UserError, match=words):
        Preprocessing.from_dict(values)


def test_bad_voxels_are_named():
    array = noise()
    array[1, 2, 3] = np.nan
    with pytest.raises(UserError, match="image has 1 voxels that are NaN"):
        preprocess(Preprocessing(), make(array))
    with pytest.raises(
        UserError, match=r"label has shape \(18, 16, 20\), but the image has \(18, 16, 21\)"
    ):
        preprocess(Preprocessing(), make(noise()), make(some_labels()[..., 1:]))
    for value, words in (
        (0.5, "value 0.5, whole"),
        (-1, "value -1, classes"),
        (300, "value 300"),
        (np.nan, "nan"),
    ):
        array = np.zeros(SIZE, np.float32)
        array[3, 4, 5] = value
        with pytest.raises(UserError, match=words):
            label_values(make(array))
    assert_array_equal(label_values(make(some_labels().astype(np.float64))), some_labels())
