"""Strong views and CutMix boxes: against the references of the methods that they come from."""

import math

import numpy as np
import pytest
import torch
from references import admt, unimatch

from utils.ops import splice
from utils.perturbations import (
    blurred,
    boxes_of_area,
    boxes_of_beta,
    jittered,
    noisier,
    scaled_and_shifted,
    some_boxes,
)

pytestmark = pytest.mark.usefixtures("one_thread")

VIEWS = {
    "scaled_and_shifted": scaled_and_shifted,
    "jittered": jittered,
    "blurred": blurred,
    "noisier": noisier,
}


def images(count=40, channels=2, size=(9, 7), dtype=torch.float64):
    torch.manual_seed(0)
    return 3 * torch.randn(count, channels, *size, dtype=dtype) - 5


@pytest.mark.parametrize("size", [(9, 7), (6, 5, 4)], ids=["slices", "volumes"])
@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
def test_a_view_changes_whole_samples_with_its_probability(view, size):
    image = images(200, size=size)
    before = image.clone()
    assert torch.equal(view(image, 0.0), image)
    always = (view(image, 1.0) != image).flatten(1).any(1)
    assert always.double().mean() > 0.9  # the smallest radius blurs nothing
    changed = (view(image, 0.4) != image).flatten(1).any(1)
    assert 0.25 < changed.double().mean() < 0.55
    assert torch.equal(image, before)
    assert view(image.float(), 1.0).dtype == torch.float32


@pytest.mark.parametrize("view", [scaled_and_shifted, jittered])
def test_intensities_stay_within_their_limits_and_a_constant_image_stays(view):
    image = images()
    image[0, 0] = 4.0
    found = view(image, 1.0)
    low, high = image.amin((2, 3)), image.amax((2, 3))
    assert (found.amin((2, 3)) >= low - 1e-12).all()
    assert (found.amax((2, 3)) <= high + 1e-12).all()
    assert found[0, 0].eq(4.0).all()


@pytest.mark.parametrize("view", [scaled_and_shifted, jittered])
def test_intensities_do_not_depend_on_the_scale(view):
    image = images()
    torch.manual_seed(1)
    found = view(image, 0.8)
    torch.manual_seed(1)
    torch.testing.assert_close(view(10 * image + 3, 0.8), 10 * found + 3)


def test_scaled_and_shifted_is_some_of_the_references():
    """α and β are found again from two voxels that are not cut off."""
    image = images(size=(4, 4, 4))[:, :1]
    for x, y in zip(image[:, 0].numpy(), scaled_and_shifted(image, 1.0)[:, 0].numpy(), strict=True):
        low, extent = x.min(), x.max() - x.min()
        a, b = (x - low) / extent, (y - low) / extent
        inside = (b > 0) & (b < 1)
        alpha, shift = np.polyfit(a[inside], b[inside], 1)
        beta = shift / (alpha * a.mean())
        assert 0.5 <= alpha <= 1.5
        assert -0.5 - 1e-9 <= beta <= 0.5 + 1e-9
        np.testing.assert_allclose(y, admt.intensity(x, alpha, beta), atol=1e-9)


def test_jittered_is_brightness_and_contrast_in_either_order():
    """The factors are drawn first, and the order after them."""
    image = images(30, 1)
    torch.manual_seed(1)
    found = jittered(image, 1.0)
    torch.manual_seed(1)
    factors = [torch.empty(30, 1, 1, 1, dtype=torch.float64).uniform_(0.5, 1.5) for _ in range(2)]
    orders = set()
    for k, x in enumerate(image[:, 0].numpy()):
        f, g = (factor[k].item() for factor in factors)
        low, extent = x.min(), x.max() - x.min()

        def brightness(v, f=f):
            return np.clip(f * v, 0, 1)

        def contrast(v, g=g):
            return np.clip(v.mean() + g * (v - v.mean()), 0, 1)

        unit = (x - low) / extent
        both = [contrast(brightness(unit)), brightness(contrast(unit))]
        own = (found[k, 0].numpy() - low) / extent
        near = [np.allclose(own, one, atol=1e-9) for one in both]
        assert any(near)
        orders.add(near.index(True))
    assert orders == {0, 1}


def test_blurred_against_the_reference():
    image = images(6, 1)
    torch.manual_seed(1)
    found = blurred(image, 1.0)
    torch.manual_seed(1)
    radii = torch.empty(6, 1, 1, 1, dtype=torch.float64).uniform_(0.1, 2.0).flatten().tolist()
    for x, y, radius in zip(image[:, 0].numpy(), found[:, 0].numpy(), radii, strict=True):
        # the reference's kernel ends at four radii, ours at four times the largest: 1e-4 beyond
        np.testing.assert_allclose(y, unimatch.blur(x, radius), atol=2e-3)


def test_blur_keeps_a_constant_image_and_each_channel_for_itself():
    image = torch.ones(3, 2, 8, 8)
    image[:, 1] = 0
    torch.testing.assert_close(blurred(image, 1.0), image)


def test_noise_is_the_references():
    image = images(50, size=(4, 4, 4))
    torch.manual_seed(1)
    found = noisier(image, 1.0)
    torch.manual_seed(1)
    sds = torch.empty(50, dtype=torch.float64).uniform_(0.1, 1.0)
    draws = torch.randn_like(image).numpy()
    for x, y, draw, sd in zip(image.numpy(), found.numpy(), draws, sds.tolist(), strict=True):
        np.testing.assert_allclose(y - x, admt.noise(draw, sd), atol=1e-12)


# ----------------------------------------------------------------------------------------- boxes


def sides(boxes):
    return boxes[:, 1] - boxes[:, 0]


@pytest.mark.parametrize("shape", [(64, 64), (192, 48), (16, 256)])
def test_boxes_of_area_fit_and_have_their_share(shape):
    torch.manual_seed(0)
    boxes = boxes_of_area(300, shape, (0.02, 0.4))
    assert boxes.dtype == torch.int64
    assert (boxes[:, 0] >= 0).all()
    assert (boxes[:, 1] <= torch.tensor(shape)).all()
    share = sides(boxes).prod(1) / math.prod(shape)
    assert share.max() <= 0.4
    if shape == (64, 64):  # elsewhere rounding takes more away
        assert 0.015 < share.min() < 0.05
        assert share.mean() == pytest.approx(0.2, abs=0.02)
        ratio = sides(boxes)[:, 0] / sides(boxes)[:, 1]
        assert 0.25 < ratio.min() < 0.5
        assert 2 < ratio.max() < 4.5
    fixed = sides(boxes_of_area(50, (64, 64), (0.1, 0.1))).prod(1) / 64**2
    assert (fixed - 0.1).abs().max() < 0.02


def test_boxes_of_area_are_distributed_as_the_reference_draws_them():
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    found = boxes_of_area(600, (32, 32), (0.02, 0.4)).double()
    drawn = [unimatch.draw_box(32, rng, probability=1.0) for _ in range(600)]
    expected = torch.tensor(drawn, dtype=torch.float64)
    torch.testing.assert_close(found[:, 0].mean(0), expected[:, :2].mean(0), atol=1.5, rtol=0)
    torch.testing.assert_close(sides(found).mean(0), expected[:, 2:].mean(0), atol=1.0, rtol=0)


@pytest.mark.parametrize(("shape", "share"), [((32, 24), 0.36), ((32, 24, 16), 0.22)])
def test_boxes_of_beta_have_one_size_and_the_published_share(shape, share):
    torch.manual_seed(0)
    shares = []
    for _ in range(300):
        boxes = boxes_of_beta(4, shape, 4.0)
        assert (boxes[:, 0] >= 0).all()
        assert (boxes[:, 1] <= torch.tensor(shape)).all()
        assert boxes.dtype == torch.int64
        shares += (sides(boxes).clamp(min=0).prod(1) / math.prod(shape)).tolist()
    assert np.mean(shares) == pytest.approx(share, abs=0.03)


def test_a_larger_beta_makes_sizes_more_equal():
    torch.manual_seed(0)
    spread = []
    for beta in (1.0, 4.0, 100.0):
        largest = [sides(boxes_of_beta(20, (64,), beta)).max().item() for _ in range(200)]
        spread.append(np.std(largest))
    assert spread[0] > spread[1] > spread[2]


def test_some_boxes_are_left_and_the_others_paste_nothing():
    torch.manual_seed(0)
    boxes = boxes_of_beta(400, (16, 16), 4.0)
    some = some_boxes(boxes, 0.5)
    left = some.flatten(1).any(1)
    assert 0.4 < left.double().mean() < 0.6
    assert torch.equal(some[left], boxes[left])
    a, b = torch.zeros(400, 16, 16), torch.ones(400, 16, 16)
    assert torch.equal(splice(a, b, some).flatten(1).any(1), left)
    assert torch.equal(some_boxes(boxes, 1.0), boxes)
    assert not some_boxes(boxes, 0.0).any()
