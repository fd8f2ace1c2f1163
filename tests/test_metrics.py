"""utils/metrics.py against medpy on whole volumes, and values worked out by hand."""

import math

import h5py
import numpy as np
import pytest
import torch
from medpy.metric import binary
from scipy import ndimage

from dataloaders.volumes import Volumes
from utils.metrics import (
    METRICS,
    NAMES,
    SHOWN,
    Spread,
    binary_metrics,
    mean,
    multiclass_metrics,
    spread,
    spread_text,
)

MEDPY = {
    "dice": binary.dc,
    "jaccard": binary.jc,
    "precision": binary.precision,
    "recall": binary.recall,
    "hd": binary.hd,
    "hd95": binary.hd95,
    "asd": binary.asd,
    "assd": binary.assd,
}


def blob(shape, seed, threshold=0.02):
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), 2)
    return noise > threshold


def single(shape, *voxels):
    mask = np.zeros(shape, bool)
    mask[tuple(np.transpose(voxels))] = True
    return mask


PAIRS = {
    "blobs": (blob((24, 21, 18), 0), blob((24, 21, 18), 1)),
    "sparse": (blob((24, 21, 18), 2, 0.1), blob((24, 21, 18), 3, 0.12)),
    "shifted": (blob((24, 21, 18), 4), np.roll(blob((24, 21, 18), 4), 3, axis=1)),
    "equal": (blob((15, 16, 17), 5), blob((15, 16, 17), 5)),
    "full and one voxel": (np.ones((9, 8, 7), bool), single((9, 8, 7), (8, 0, 6))),
    "far corners": (single((30, 20, 10), (0, 0, 0)), single((30, 20, 10), (29, 19, 9))),
    "checkerboard": (np.indices((8, 9, 10)).sum(0) % 2 == 0, np.ones((8, 9, 10), bool)),
    "noise": (
        np.random.default_rng(6).random((16, 15, 14)) < 0.05,
        np.random.default_rng(7).random((16, 15, 14)) < 0.3,
    ),
    "one voxel thin": (single((1, 1, 9), (0, 0, 2)), single((1, 1, 9), (0, 0, 2), (0, 0, 7))),
    "2-D": (blob((40, 30), 8, 0.05), blob((40, 30), 9, 0.05)),
}


def assert_medpy(pred, target, spacing):
    got = binary_metrics(pred, target, spacing)
    assert tuple(got) == METRICS
    for metric, function in MEDPY.items():
        options = {"voxelspacing": spacing} if metric in ("hd", "hd95", "asd", "assd") else {}
        assert got[metric] == pytest.approx(function(pred, target, **options), rel=0, abs=1e-9), (
            metric
        )


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("spacing", [None, (0.625, 1.25, 2.0)])
def test_equal_to_medpy_on_the_whole_volume(name, spacing):
    pred, target = PAIRS[name]
    assert pred.any()
    assert target.any()
    assert_medpy(pred, target, spacing and spacing[: pred.ndim])


def test_the_crop_is_exact():
    pred, target = PAIRS["blobs"]
    # As much room as one likes around the masks, or none (they touch the edge), changes nothing.
    far = [np.pad(mask, ((20, 3), (0, 30), (11, 12))) for mask in (pred, target)]
    assert pred[0].any()
    assert binary_metrics(*far) == binary_metrics(pred, target)


TYPES = [
    np.uint8,
    np.int8,
    np.uint16,
    np.int32,
    np.uint32,
    np.int64,
    np.uint64,
    np.float32,
    np.float64,
]


@pytest.mark.parametrize("dtype", TYPES)
def test_any_type_counts_nonzero_as_foreground(dtype):
    pred, target = PAIRS["blobs"]
    value = 0.25 if np.issubdtype(dtype, np.floating) else np.iinfo(dtype).max
    want = binary_metrics(pred, target)
    assert binary_metrics(pred.astype(dtype) * dtype(value), target) == want
    assert binary_metrics(torch.from_numpy(pred.astype(dtype) * dtype(value)), target) == want


@pytest.mark.filterwarnings("error")  # torch warns of arrays that it could write to and must not
def test_any_layout_and_kind_of_array(device):
    pred, target = PAIRS["blobs"]
    want = binary_metrics(pred, target)
    frozen = pred.copy()
    frozen.flags.writeable = False
    tensors = [torch.from_numpy(mask).to(device) for mask in (pred, target)]
    assert binary_metrics(frozen, target) == want
    assert binary_metrics(np.asfortranarray(pred), target.tolist()) == want
    assert binary_metrics(pred.astype(">i4"), target.astype(">f8")) == want
    assert binary_metrics(pred.astype(np.longdouble), target) == want
    assert binary_metrics(pred[:1][::-1], target[:1]) == binary_metrics(pred[:1], target[:1])
    assert binary_metrics(*tensors) == want
    assert binary_metrics(tensors[0].float(), tensors[1].to(torch.int16)) == want
    flipped = binary_metrics(pred[::-1], target[::-1])  # sums run in another order
    assert flipped == pytest.approx(want, rel=0, abs=1e-12)


def test_masks_stay_as_they_are():
    pred, target = (mask.copy() for mask in PAIRS["sparse"])
    binary_metrics(pred, target)
    np.testing.assert_array_equal(pred, PAIRS["sparse"][0])
    np.testing.assert_array_equal(target, PAIRS["sparse"][1])


@pytest.mark.parametrize("seed", range(20))
def test_equal_to_medpy_on_random_pairs(seed):
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(1, [30, 25, 90]))[seed % 2 :]
    fields = [ndimage.gaussian_filter(rng.normal(size=shape), rng.uniform(0, 3)) for _ in range(2)]
    pred, target = (field >= np.quantile(field, rng.uniform(0.1, 1)) for field in fields)
    spacing = None if seed % 3 == 0 else tuple(rng.uniform(0.3, 3, len(shape)))
    assert_medpy(pred, target, spacing)


@pytest.mark.parametrize("count", [1, 2, 3, 10, 11, 20, 21, 57])
def test_percentiles_are_numpys_to_the_bit(count):
    # A row of voxels at distances 0, 1, 2, … from one voxel, whose own distance is 0 too.
    pred, target = np.ones((count, 1), bool), single((count, 1), (0, 0))
    rows = np.arange(count, dtype=float)
    assert binary_metrics(pred, target)["hd95"] == np.percentile([0, *rows], 95)
    assert binary_metrics(pred, target, hd95="max")["hd95"] == np.percentile(rows, 95)
    rows = np.sqrt(np.square(rows * 0.7))
    got = binary_metrics(pred, target, spacing=(0.7, 1.0))["hd95"]
    assert got == pytest.approx(np.percentile([0, *rows], 95), rel=0, abs=1e-12)


def test_directions_and_percentiles_by_hand():
    # Prediction: one voxel at 0. Target: the same voxel, and one ten voxels away.
    pred, target = single((11, 1, 1), (0, 0, 0)), single((11, 1, 1), (0, 0, 0), (10, 0, 0))
    got = binary_metrics(pred, target)
    assert got["asd"] == 0
    assert got["assd"] == pytest.approx(10 / 3)
    assert got["hd"] == 10
    assert got["hd95"] == pytest.approx(9)  # of 0, 0, 10: 1.9 steps along
    assert binary_metrics(pred, target, hd95="max")["hd95"] == pytest.approx(
        9.5
    )  # of 0, 10: 0.95 steps along
    assert binary_metrics(target, pred)["asd"] == 5
    assert (got["precision"], got["recall"]) == (1, 0.5)
    assert binary_metrics(pred, target, spacing=(3, 1, 1))["hd"] == 30


@pytest.mark.parametrize(
    ("mode", "one", "both"),
    [
        ("zero", (0, 0), (0, 0)),
        ("nan", (0, math.nan), (math.nan, math.nan)),
        ("diagonal", (0, math.hypot(6, 3, 8)), (1, 0)),
    ],
)
def test_empty_masks(mode, one, both):
    empty, mask = np.zeros((3, 3, 4), bool), single((3, 3, 4), (1, 1, 1))

    def score(pred, target):
        got = binary_metrics(pred, target, spacing=(2, 1, 2), empty=mode)
        return [got[m] for m in METRICS]

    expected = [one[0]] * 4 + [one[1]] * 4
    np.testing.assert_allclose(score(empty, mask), expected)
    np.testing.assert_allclose(score(mask, empty), expected)
    np.testing.assert_allclose(score(empty, empty), [both[0]] * 4 + [both[1]] * 4)


def test_refuses():
    a = np.ones((3, 4, 5), bool)
    with pytest.raises(ValueError, match=r"\(3, 4, 5\) and \(3, 4, 4\)"):
        binary_metrics(a, a[..., :4])
    with pytest.raises(ValueError, match=r"got \(1, 3, 4, 5\)"):
        binary_metrics(a[None], a[None])
    with pytest.raises(ValueError, match="positive finite spacing for each of 3 axes"):
        binary_metrics(a, a, spacing=(1, 1))
    with pytest.raises(ValueError, match="positive finite spacing for each of 3 axes"):
        binary_metrics(a, a, spacing=(1, 0, 1))
    for spacing in ("111", ["1", "1", "1"], [1, 1, 10**400]):
        with pytest.raises(TypeError, match="positive finite spacing"):
            binary_metrics(a, a, spacing)
    with pytest.raises(TypeError, match=r"positive finite spacing .* got 2\.0"):
        binary_metrics(a, a, spacing=2.0)
    for refused in (
        a.astype(complex),
        torch.from_numpy(a.astype(complex)),
        a.astype(object),
        a.astype(str),
    ):
        for metrics in (
            lambda pred: binary_metrics(pred, a),
            lambda pred: multiclass_metrics(pred, a, 2),
        ):
            with pytest.raises(
                TypeError,
                match=r"bools, integers or floats, got (torch\.complex128|complex128|object|<U5)",
            ):
                metrics(refused)
    with pytest.raises(ValueError, match=r"hd95 'mean'"):
        binary_metrics(a, a, hd95="mean")
    with pytest.raises(ValueError, match=r"empty 'skip'"):
        binary_metrics(a, a, empty="skip")
    with pytest.raises(ValueError, match=r"labels 0 to 3, expected 0 to 2"):
        multiclass_metrics(np.array([[0, 3]]), np.array([[0, 1]]), 3)
    with pytest.raises(ValueError, match=r"target holds labels -1 to 1, expected 0 to 2"):
        multiclass_metrics(np.array([[0, 2]]), np.array([[-1, 1]]), 3)
    with pytest.raises(ValueError, match=r"prediction holds labels nan to nan"):
        multiclass_metrics(np.array([[0, np.nan]]), np.array([[0, 1]]), 3)
    with pytest.raises(ValueError, match=r"prediction holds labels that are no integers"):
        multiclass_metrics(np.array([[0, 0.5]]), np.array([[0, 1]]), 3)
    for num_classes in (1, 0, -1):
        with pytest.raises(
            ValueError, match=f"at least 2 classes with the background, got {num_classes}"
        ):
            multiclass_metrics(a, a, num_classes)
    with pytest.raises(TypeError, match=r"integer as the number of classes, got 2\.0"):
        multiclass_metrics(a, a, 2.0)


def test_multiclass_scores_each_class_against_all_else():
    rng = np.random.default_rng(10)
    pred, target = rng.integers(0, 3, (8, 9, 10)), rng.integers(0, 3, (8, 9, 10))
    got = multiclass_metrics(pred, target, 4, hd95="max", empty="nan")
    assert list(got) == [1, 2, 3]
    for c in (1, 2):
        assert got[c] == binary_metrics(pred == c, target == c, hd95="max")
    assert all(math.isnan(v) for v in got[3].values())


def test_multiclass_takes_any_labels(device):
    rng = np.random.default_rng(11)
    pred, target = rng.integers(0, 3, (8, 9, 10)), rng.integers(0, 3, (8, 9, 10))
    want = multiclass_metrics(pred, target, 3)
    for dtype in TYPES:
        assert multiclass_metrics(pred.astype(dtype), target, 3) == want
        tensor = torch.from_numpy(pred.astype(dtype)).to(device)
        assert multiclass_metrics(tensor, torch.from_numpy(target).to(device), 3) == want
    assert (
        multiclass_metrics(
            torch.from_numpy(pred).to(device), torch.from_numpy(target).to(device), 3
        )
        == want
    )
    assert multiclass_metrics(pred > 0, target > 0, 2)[1] == binary_metrics(pred > 0, target > 0)
    with pytest.raises(ValueError, match="prediction holds labels 0 to 2, expected 0 to 1"):
        multiclass_metrics(
            torch.from_numpy(pred).to(device), torch.from_numpy(target).to(device), 2
        )


def test_a_spread_leaves_nan_out():
    found = spread([1.0, math.nan, 2.0, 6.0])
    assert found == Spread(3.0, math.sqrt(7), 3)
    assert mean(iter([math.nan, 4.0])) == 4
    one, none = spread([5.0]), spread([math.nan])
    assert (one.mean, one.n, none.n) == (5, 1, 0)
    assert all(map(math.isnan, (one.sd, none.mean, none.sd, mean([]))))


def test_a_spread_is_written_with_two_digits():
    found = spread([0.5, 0.75])
    assert spread_text(found) == "0.62 ± 0.18"
    assert spread_text(found, 100, width=7) == "  62.50 ± 17.68"
    assert spread_text(spread([0.5]), 100) == "50.00"
    assert spread_text(spread([math.nan]), width=7) == "      -"
    assert spread_text(spread([])) == "-"


def test_every_metric_has_a_name_and_tests_show_the_usual_ones():
    assert tuple(NAMES) == METRICS
    assert Volumes.shown == SHOWN


def test_real_left_atria_equal_medpy(la_root):
    labels = []
    for path in sorted(la_root.glob("**/mri_norm2.h5"))[:2]:
        with h5py.File(path) as file:
            labels.append(file["label"][30:130, 20:120, 10:80])
    shape = np.min([label.shape for label in labels], axis=0)
    first, second = (label[tuple(map(slice, shape))] for label in labels)
    assert_medpy(first, second, None)
    assert_medpy(first, np.roll(first, (2, -1, 1), (0, 1, 2)), (0.625, 0.625, 1.25))
