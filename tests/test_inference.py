"""utils/inference.py against the field's loop written out, scipy, and hand-made checkpoints."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import ndimage
from small import slices_by_scipy
from torch import nn

from networks.vnet import VNet
from utils.errors import UserError
from utils.inference import (
    gaussian_weights,
    mean_probability,
    slice_by_slice,
    sliding_window,
    whole_image,
    window_starts,
)

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("size", [8, 9, 11, 12, 13, 30])
@pytest.mark.parametrize("stride", [1, 3, 4, 8])
def test_windows_cover_the_axis_and_stay_inside(size, stride):
    ((*starts,),) = window_starts((size,), (8,), (stride,))
    assert len(starts) == math.ceil((size - 8) / stride) + 1
    assert starts[0] == 0
    assert starts[-1] == size - 8
    assert sorted(set(starts)) == starts
    assert all(b - a <= stride for a, b in itertools.pairwise(starts))


def test_window_starts_of_a_left_atrium():
    assert window_starts((190, 142, 88), (112, 112, 80), (18, 18, 4)) == [
        [0, 18, 36, 54, 72, 78],
        [0, 18, 30],
        [0, 4, 8],
    ]


@pytest.mark.parametrize(
    ("patch", "stride"), [((9,), (4,)), ((4,), (0,)), ((0,), (1,)), ((4, 4), (1,))]
)
def test_window_starts_refuses(patch, stride):
    with pytest.raises(ValueError, match=r"axis 0|differ in length"):
        window_starts((8,), patch, stride)


def test_window_starts_refuses_holes():
    with pytest.raises(
        ValueError, match=r"axis 1: stride 5 leaves holes between windows of patch 4"
    ):
        window_starts((8, 8, 4), (4, 4, 4), (4, 5, 1))


def research_loop(network, image, patch, stride, num_classes):
    """The protocol one window at a time in NumPy float64."""
    padding = [
        (max(p - s, 0) // 2, max(p - s, 0) - max(p - s, 0) // 2)
        for s, p in zip(image.shape, patch, strict=True)
    ]
    padded = np.pad(image, padding)
    score, count = np.zeros((num_classes, *padded.shape)), np.zeros(padded.shape)
    n = [math.ceil((s - p) / t) + 1 for s, p, t in zip(padded.shape, patch, stride, strict=True)]
    for i in range(n[0]):
        xs = min(stride[0] * i, padded.shape[0] - patch[0])
        for j in range(n[1]):
            ys = min(stride[1] * j, padded.shape[1] - patch[1])
            for k in range(n[2]):
                zs = min(stride[2] * k, padded.shape[2] - patch[2])
                window = (
                    slice(xs, xs + patch[0]),
                    slice(ys, ys + patch[1]),
                    slice(zs, zs + patch[2]),
                )
                with torch.no_grad():
                    logits = network(torch.from_numpy(padded[window].copy())[None, None].float())
                score[(slice(None), *window)] += torch.softmax(logits, 1)[0].double().numpy()
                count[window] += 1
    crop = tuple(slice(a, a + s) for (a, _), s in zip(padding, image.shape, strict=True))
    return (score / count)[(slice(None), *crop)]


@pytest.mark.parametrize(
    "shape",
    [(20, 17, 13), (12, 10, 8), (13, 11, 9), (7, 25, 8), (5, 4, 3), (11, 30, 7)],
    ids=["odd", "one window", "one voxel more", "small x", "small everywhere", "small x and z"],
)
@pytest.mark.parametrize("batch", [1, 3, 64])
def test_sliding_window_equals_the_research_loop(shape, batch):
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv3d(1, 6, 3, padding=1), nn.ReLU(), nn.Conv3d(6, 3, 3, padding=1)
    ).eval()
    image = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    patch, stride = (12, 10, 8), (5, 4, 3)
    steps = []
    prob = sliding_window(
        network,
        image,
        patch,
        stride,
        3,
        batch=batch,
        progress=lambda done, total: steps.append((done, total)),
    )
    assert prob.dtype == torch.float32
    np.testing.assert_allclose(
        prob.numpy(), research_loop(network, image, patch, stride, 3), atol=1e-5
    )
    windows = math.prod(len(s) for s in window_starts(np.maximum(shape, patch), patch, stride))
    assert steps[-1] == (windows, windows)
    assert len(steps) == math.ceil(windows / batch)


def test_sliding_window_equals_the_research_loop_with_a_vnet():
    torch.manual_seed(0)
    network = VNet(n_filters=4).eval()
    image = np.random.default_rng(2).normal(size=(37, 30, 21)).astype(np.float32)
    predict = mean_probability([network])
    prob = sliding_window(predict, image[None], (32, 32, 16), (9, 8, 4), 2, activation=None)
    np.testing.assert_allclose(
        prob.numpy(), research_loop(network, image, (32, 32, 16), (9, 8, 4), 2), atol=1e-5
    )


def test_activations():
    image = torch.randn(9, 8, 7)

    def predict(x):
        return torch.cat((x, 2 * x), 1)

    def run(activation):
        return sliding_window(predict, image, (8, 8, 4), (3, 3, 3), 2, activation=activation)

    logits = torch.stack((image, 2 * image))
    torch.testing.assert_close(run("softmax"), logits.softmax(0))
    torch.testing.assert_close(run("sigmoid"), logits.sigmoid())
    torch.testing.assert_close(run(None), logits)


def test_predictor_sees_channels_last_without_gradient_and_under_autocast():
    seen = []

    def predict(x):
        seen.append((x.stride(), torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")))
        return torch.cat((x, x), 1)

    sliding_window(predict, torch.zeros(8, 8, 8), (8, 8, 8), (4, 4, 4), 2, precision="bf16")
    sliding_window(predict, torch.zeros(8, 8, 8), (8, 8, 8), (4, 4, 4), 2, precision="fp32")
    channels_last = torch.empty(1, 1, 8, 8, 8).to(memory_format=torch.channels_last_3d).stride()
    assert seen == [(channels_last, False, True), (channels_last, False, False)]


@pytest.mark.parametrize(
    "shape", [(29, 37), (20, 40), (11, 37), (5, 6)], ids=["odd", "even", "small x", "small"]
)
@pytest.mark.parametrize("leading", [False, True])
def test_an_image_is_a_volume_of_one_slice(shape, leading):
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 3, 3, padding=1)
    ).eval()
    image = torch.randn(shape)
    prob = sliding_window(network, image[None] if leading else image, (16, 18), (5, 6), 3)
    assert prob.shape == (3, *shape)
    volume = sliding_window(
        lambda x: network(x[:, :, 0])[:, :, None], image[None], (1, 16, 18), (1, 5, 6), 3, batch=7
    )
    torch.testing.assert_close(prob, volume[:, 0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("patch", [(16, 12, 20), (15, 13, 7), (31, 18)])
@pytest.mark.parametrize("sigma_scale", [1 / 8, 0.3])
def test_gaussian_weights_are_monais(patch, sigma_scale):
    utils = pytest.importorskip("monai.data.utils")
    weights = gaussian_weights(patch, sigma_scale)
    torch.testing.assert_close(
        weights, utils.compute_importance_map(patch, "gaussian", sigma_scale)
    )
    assert weights.min() >= 1e-3
    with pytest.raises(ValueError, match="sigma_scale"):
        gaussian_weights(patch, 0)


@pytest.mark.parametrize("axes", [2, 3])
@pytest.mark.parametrize("batch", [1, 5])
def test_sliding_window_with_gaussian_weights_is_monais(axes, batch):
    inferers = pytest.importorskip("monai.inferers")
    torch.manual_seed(0)
    network = (nn.Conv2d if axes == 2 else nn.Conv3d)(1, 3, 3, padding=1)
    patch, stride, image = (16, 12, 20)[:axes], (8, 6, 10)[:axes], torch.randn((40, 25, 33)[:axes])
    prob = sliding_window(
        network, image, patch, stride, 3, batch=batch, weights=gaussian_weights(patch)
    )
    with torch.no_grad():
        want = inferers.sliding_window_inference(
            image[None, None],
            patch,
            1,
            lambda x: network(x).softmax(1),
            overlap=0.5,
            mode="gaussian",
        )
    torch.testing.assert_close(prob, want[0], rtol=0, atol=1e-5)


def test_gaussian_weights_refuses():
    with pytest.raises(TypeError, match=r"each of patch, got 4\.5"):
        gaussian_weights((4.5, 4))
    for patch in ((), (4, 0), (-4,)):
        with pytest.raises(ValueError, match="extents of at least 1"):
            gaussian_weights(patch)
    with pytest.raises(ValueError, match="sigma_scale must be positive"):
        gaussian_weights((4, 4), 0)


def test_default_batch_on_the_cpu_is_one_window():
    seen = []

    def predict(x):
        seen.append(len(x))
        return torch.cat((x, x), 1)

    sliding_window(predict, torch.zeros(8, 8), (4, 4), (4, 4), 2)
    assert seen == [1] * 4


def test_the_predictor_may_give_bfloat16():
    image = torch.randn(9, 8, 7)
    prob = sliding_window(
        lambda x: torch.cat((x, -x), 1).bfloat16(), image, (8, 8, 4), (3, 3, 3), 2
    )
    assert prob.dtype == torch.float32
    torch.testing.assert_close(prob, torch.stack((image, -image)).bfloat16().float().softmax(0))


@pytest.mark.filterwarnings("error")  # torch warns of arrays that it could write to and must not
def test_any_array():
    image = np.random.default_rng(0).normal(size=(9, 8, 7)).astype(np.float32)
    frozen = image.copy()
    frozen.flags.writeable = False
    arrays = [
        image[::-1, ::-1].copy()[::-1, ::-1],
        image.astype(">f4"),
        np.asfortranarray(image),
        frozen,
    ]
    arrays += [
        image[None][::-1],
        image.astype(np.float64),
        image.astype(np.longdouble),
        image.tolist(),
    ]
    for array in [*arrays, torch.from_numpy(image).double()]:
        prob = sliding_window(lambda x: x, array, (8, 8, 4), (3, 3, 3), 1, activation=None)
        np.testing.assert_allclose(prob[0], image, rtol=1e-6)


def test_large_values_are_finite():
    image = torch.full((8, 8, 8), 3e38)
    assert (
        sliding_window(lambda x: x, image, (8, 8, 8), (8, 8, 8), 1, activation=None).amax() == 3e38
    )


def test_sliding_window_refuses():
    image = torch.zeros(8, 8, 8)

    def window(**options):
        arguments = {
            "predictor": lambda x: x,
            "image": image,
            "patch": (4, 4, 4),
            "stride": (4, 4, 4),
            "num_classes": 2,
        }
        return sliding_window(**{**arguments, **options})

    with pytest.raises(ValueError, match=r"gave \(4, 1, 4, 4, 4\), expected \(4, 2, 4, 4, 4\)"):
        window(batch=4)
    with pytest.raises(ValueError, match=r"image must be"):
        window(image=torch.zeros(2, 8, 8, 8))
    with pytest.raises(ValueError, match=r"image must be \(X, Y\) or \(1, X, Y\), got \(8, 8, 8\)"):
        window(patch=(4, 4), stride=(4, 4))
    with pytest.raises(ValueError, match=r"patch must have 2 or 3 axes"):
        window(patch=(4,), stride=(4,))
    with pytest.raises(ValueError, match=r"activation 'relu'"):
        window(activation="relu")
    with pytest.raises(
        ValueError, match=r"weights of the window's shape \(4, 4, 4\), got \(4, 4\)"
    ):
        window(weights=torch.ones(4, 4))
    for value in (float("nan"), float("inf")):  # an infinite logit is no certainty
        with pytest.raises(UserError, match=r"not finite"):
            window(predictor=lambda x, value=value: torch.cat((x, x + value), 1))
    with pytest.raises(
        TypeError, match="the predictor gave a tuple, expected one tensor of logits"
    ):
        window(predictor=lambda x: (x, x))
    with pytest.raises(TypeError, match="an image of bools, integers or floats, got <U1"):
        window(image=np.full((8, 8, 8), "a"))
    with pytest.raises(
        TypeError, match=r"an image of bools, integers or floats, got torch\.complex64"
    ):
        window(image=image.to(torch.complex64))
    with pytest.raises(TypeError, match="a sequence of patch, got 4"):
        window(patch=4)
    with pytest.raises(TypeError, match=r"an integer as batch, got 2\.5"):
        window(batch=2.5)
    with pytest.raises(ValueError, match=r"batch"):
        window(batch=0)
    with pytest.raises(ValueError, match=r"precision 'fp16' is none of fp32, tf32 and bf16"):
        window(precision="fp16")
    with pytest.raises(ValueError, match=r"weights from 1e-30 to 1e\+30, got 0\.0 to 0\.0"):
        window(weights=torch.zeros(4, 4, 4))
    with pytest.raises(ValueError, match=r"at most 768 starts .*take a larger stride"):
        window(image=torch.zeros(4, 4, 800), stride=(4, 4, 1))
    for value in (math.nan, math.inf, -math.inf):
        with pytest.raises(UserError, match=r"not finite"):
            window(num_classes=1, activation=None, predictor=lambda x, value=value: x + value)


def test_mean_probability_averages_probabilities_not_logits():
    torch.manual_seed(0)
    a, b = VNet(n_filters=4).eval(), VNet(n_filters=4).eval()
    x = torch.randn(1, 1, 16, 16, 16)
    with torch.no_grad():
        expected = (a(x).softmax(1) + b(x).softmax(1)) / 2
        torch.testing.assert_close(mean_probability([a, b])(x), expected)
    with pytest.raises(ValueError, match="at least one"):
        mean_probability([])


# ------------------------------------------------------------------ slices


@pytest.mark.parametrize(
    "shape", [(37, 21, 5), (16, 12, 1), (9, 50, 4)], ids=["larger", "of the patch", "mixed"]
)
@pytest.mark.parametrize("batch", [None, 1, 3])
def test_slice_by_slice_equals_the_research_loop(shape, batch):
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 3, 3, padding=1)
    ).eval()
    volume = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    steps = []
    prob = slice_by_slice(
        lambda x: network(x).softmax(1),
        volume,
        (16, 12),
        3,
        batch=batch,
        progress=lambda *s: steps.append(s),
    )
    assert prob.shape == (3, *shape)
    torch.testing.assert_close(prob.sum(0), torch.ones(shape))
    expected = slices_by_scipy(network, volume, (16, 12))
    np.testing.assert_array_equal(prob.argmax(0).numpy(), expected)
    assert np.unique(expected).size == 3
    assert len(steps) == -(-shape[2] // (batch or 4))
    assert steps[-1] == (shape[2], shape[2])


def test_slices_are_resized_as_scipy_does():
    def resized(values, new):
        column = torch.from_numpy(values)[:, None, None]
        small = slice_by_slice(lambda x: x, column, (new, 1), 1)  # there and back
        return small[0, :, 0, 0].numpy()

    differ = 0
    for old in range(2, 260, 3):
        for new in (16, 55, 192, 240, 256):
            values = np.arange(1, old + 1, dtype=np.float32)
            there = ndimage.zoom(values, new / old, order=0)
            back = ndimage.zoom(there, old / new, order=0)
            if 0 in there or 0 in back:  # scipy rounds the last place to beyond the edge
                differ += 1
                continue
            np.testing.assert_array_equal(resized(values, new), back)
    assert differ < 100  # of 435


def test_slice_by_slice_refuses():
    volume = torch.zeros(8, 8, 2)
    for options, message in (
        ({"patch": (8, 8, 8)}, "patch must have 2 axes"),
        ({"volume": volume[..., 0]}, r"volume must be \(X, Y, slices\), got \(8, 8\)"),
        ({"volume": volume[..., :0]}, r"got \(8, 8, 0\)"),
        ({"batch": 0}, "batch must be at least 1"),
        ({"num_classes": 2}, r"gave \(2, 1, 8, 8\), expected \(2, 2, 8, 8\)"),
        ({"precision": "fp16"}, "none of fp32, tf32 and bf16"),
    ):
        arguments = {
            "predictor": lambda x: x,
            "volume": volume,
            "patch": (8, 8),
            "num_classes": 1,
        } | options
        with pytest.raises(ValueError, match=message):
            slice_by_slice(**arguments)
    with pytest.raises(UserError, match="not finite"):
        slice_by_slice(lambda x: x / 0, volume, (8, 8), 1)


def test_a_whole_image_is_read_as_the_patch_says():
    image = torch.rand(9, 7, 5)

    def predict(x):
        return torch.cat((x, 1 - x), 1)

    windows = sliding_window(predict, image, (4, 4, 4), (2, 2, 2), 2, activation=None)
    slices = slice_by_slice(predict, image, (8, 6), 2)
    torch.testing.assert_close(whole_image(predict, image, (4, 4, 4), (2, 2, 2), 2), windows)
    torch.testing.assert_close(whole_image(predict, image, (8, 6), None, 2), slices)
    torch.testing.assert_close(whole_image(predict, image[..., 3], (8, 6), None, 2), slices[..., 3])
