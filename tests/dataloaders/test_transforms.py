"""Warps of slices against NumPy and SciPy: resized, turned, flipped and scaled by one lookup."""

import math

import numpy as np
import pytest
import torch
from scipy import ndimage

from dataloaders.transforms import Warp, draw_warp, warp_matrix, warp_slices


def warped(image, patch, smooth=False, **how):
    return warp_slices(
        [torch.from_numpy(image)], [Warp(0, warp_matrix(image.shape, patch, **how))], patch, smooth
    )[0].numpy()


def labels(shape):
    return np.random.default_rng(sum(shape)).integers(1, 200, shape).astype(np.uint8)


@pytest.mark.parametrize("shape", [(256, 216), (37, 64), (20, 20), (5, 9), (1, 7)])
@pytest.mark.parametrize("patch", [(64, 48), (20, 20), (96, 31)])
def test_resize_is_scipys_zoom(shape, patch):
    image = labels(shape)
    zoomed = ndimage.zoom(image, [p / n for p, n in zip(patch, shape, strict=True)], order=0)
    ties = [
        2 * np.arange(p) * (n - 1) % (2 * (p - 1)) == p - 1
        for p, n in zip(patch, shape, strict=True)
    ]
    kept = np.ix_(*(~tie for tie in ties))
    assert zoomed[kept].size > 0.8 * zoomed.size
    np.testing.assert_array_equal(warped(image, patch)[kept], zoomed[kept])


@pytest.mark.parametrize("smooth", [False, True])
@pytest.mark.parametrize("rot", range(4))
@pytest.mark.parametrize("axis", [None, 0, 1])
def test_quarter_turns_and_flips_are_exact(rot, axis, smooth):
    image = labels((9, 14)).astype(np.float32)
    expected = np.rot90(image, rot)
    expected = expected if axis is None else np.flip(expected, axis)
    flips = (axis == 0, axis == 1)
    np.testing.assert_array_equal(
        warped(image, expected.shape, smooth, rot=rot, flips=flips), expected
    )


@pytest.mark.parametrize("angle", [-20, -7.3, 1, 13.6, 30])
@pytest.mark.parametrize("shape", [(120, 97), (64, 64)])
def test_a_rotation_is_scipys(angle, shape):
    """But for places halfway between pixels, and for those at the edge of which the nearest pixel
    alone is inside.
    """
    image = labels(shape)
    expected, seen = (
        ndimage.rotate(image, angle, order=0, reshape=False),
        warped(image, shape, angle=angle),
    )
    inside = expected > 0
    assert (seen != expected)[inside].mean() < 0.001
    assert np.count_nonzero(seen[~inside]) < sum(shape)


def test_a_rotation_is_of_the_slice_and_not_of_the_resized_sample():
    """The protocol's order; the other gives another picture of a slice that is not square."""
    image = np.kron(np.arange(1, 25).reshape(4, 6), np.ones((30, 10))).astype(np.uint8)
    rotated, resize = ndimage.rotate(image, 17, order=0, reshape=False), (256 / 120, 256 / 60)
    seen = warped(image, (256, 256), angle=17)
    assert (seen != ndimage.zoom(rotated, resize, order=0)).mean() < 0.04
    other = ndimage.rotate(ndimage.zoom(image, resize, order=0), 17, order=0, reshape=False)
    assert (seen != other).mean() > 0.2


@pytest.mark.parametrize(("scale", "area"), [(2.0, 4.0), (0.5, 0.25)])
def test_scale_is_of_lengths(scale, area):
    x, y = np.ogrid[:128, :128]
    disc = ((x - 63.5) ** 2 + (y - 63.5) ** 2 < 25**2).astype(np.uint8)
    for angle in (0, 25):
        assert warped(disc, (128, 128), scale=scale, angle=angle).sum() == pytest.approx(
            area * disc.sum(), rel=0.02
        )


def test_zeros_outside():
    small = warped(np.ones((40, 40), np.uint8), (40, 40), scale=0.5)
    np.testing.assert_array_equal(small, np.pad(np.ones((20, 20), np.uint8), 10))


def test_bilinear_is_scipys_order_1():
    image = np.random.default_rng(0).random((50, 40)).astype(np.float32)
    expected = ndimage.rotate(image, 21, order=1, reshape=False)
    seen = warped(image, (50, 40), smooth=True, angle=21)
    inside = ndimage.rotate(np.pad(np.ones((46, 36)), 2), 21, order=1, reshape=False) > 0.999
    assert inside.mean() > 0.6
    np.testing.assert_allclose(seen[inside], expected[inside], atol=2e-6)
    assert seen[0, 0] == 0  # a corner that turned out of the slice


def angle_and_scale(warp, shape, patch):
    """Turn in degrees, enlargement and whether it is a mirror image, of a warp of a square slice to
    a square patch.
    """
    matrix = np.array(warp.matrix) * (patch[0] - 1) / (shape[0] - 1)
    determinant = np.linalg.det(matrix)
    turn = matrix @ np.diag([1, np.sign(determinant)])
    return (
        math.degrees(math.atan2(turn[0, 1], turn[0, 0])),
        abs(determinant) ** -0.5,
        determinant < 0,
    )


def test_what_rotate_draws():
    rng = np.random.default_rng(0)
    drawn = [
        angle_and_scale(draw_warp(rng, 0, (30, 30), (60, 60), "rotate"), (30, 30), (60, 60))
        for _ in range(2000)
    ]
    mirrored = [turn for turn, _, mirror in drawn if mirror]
    turned = [turn for turn, _, mirror in drawn if not mirror and abs(turn) > 1e-9]
    assert all(scale == pytest.approx(1) for _, scale, _ in drawn)
    assert 900 < len(mirrored) < 1100
    assert 430 < len(turned) < 570
    assert {round(turn) % 360 for turn in mirrored} == {0, 90, 180, 270}
    assert all(abs(turn / 90 - round(turn / 90)) < 1e-9 for turn in mirrored)
    assert -20 <= min(turned) < -18
    assert 18 < max(turned) <= 20


def test_what_affine_draws():
    rng = np.random.default_rng(0)
    drawn = [
        angle_and_scale(draw_warp(rng, 0, (30, 30), (60, 60), "affine"), (30, 30), (60, 60))
        for _ in range(2000)
    ]
    turns = [
        turn if abs(turn) < 90 else abs(turn) - 180 for turn, _, _ in drawn
    ]  # two flips are half a turn
    scales = [scale for _, scale, _ in drawn]
    assert -30 <= min(turns) < -28
    assert 28 < max(turns) <= 30
    assert 0.5 <= min(scales) < 0.52
    assert 1.97 < max(scales) <= 2
    assert 900 < sum(mirror for _, _, mirror in drawn) < 1100
    assert 900 < sum(abs(turn) > 90 for turn, _, _ in drawn) < 1100


def test_what_rotate_crop_draws():
    rng = np.random.default_rng(0)
    drawn = [
        angle_and_scale(draw_warp(rng, 0, (30, 30), (60, 60), "rotate_crop"), (30, 30), (60, 60))
        for _ in range(4000)
    ]
    areas = np.array([scale**-2 for _, scale, _ in drawn])  # of the slice, as a share
    assert 0.85 <= areas.min() < 0.851
    assert 0.949 < areas.max() <= 0.95
    np.testing.assert_allclose(
        np.quantile(areas, (0.25, 0.5, 0.75)), (0.875, 0.9, 0.925), atol=3e-3
    )
    turns = np.array([turn if abs(turn) < 90 else abs(turn) - 180 for turn, _, _ in drawn])
    turned = turns[abs(turns) > 1e-9]  # two flips are half a turn
    assert 0.47 < turned.size / turns.size < 0.53
    assert -45 <= turned.min() < -44
    assert 44 < turned.max() <= 45
    assert 0.47 < np.mean([mirror for _, _, mirror in drawn]) < 0.53
    assert 0.22 < np.mean([abs(turn) > 90 and not mirror for turn, _, mirror in drawn]) < 0.28


def test_rotate_crop_cuts_a_part_of_the_slice_anywhere():
    """Ramps along the axes show where each pixel of a sample comes from."""
    last = np.array([100, 60])
    ramps = [torch.from_numpy(ramp) for ramp in np.indices(last + 1).astype(np.float32)]
    rng = np.random.default_rng(1)
    places = []  # of the crop among the possible ones, from 0 to 1 along both axes
    areas = []
    while len(places) < 500:
        warp = draw_warp(rng, 0, tuple(last + 1), (33, 25), "rotate_crop")
        if warp.matrix[0][1]:
            continue  # turned
        sample = warp_slices(ramps, [warp, warp], (33, 25), smooth=True).numpy()
        corners = np.sort([sample[:, 0, 0], sample[:, -1, -1]], axis=0)
        assert corners.min() > -1e-4
        assert (corners <= last + 1e-4).all()
        sides = (corners[1] - corners[0]) / last
        assert sides[0] == pytest.approx(sides[1], rel=1e-4)
        areas.append(sides.prod())
        places.append(corners[0] / (last * (1 - sides)))
    assert np.mean(areas) == pytest.approx(0.9, abs=5e-3)
    quantiles = np.quantile(places, (0.1, 0.5, 0.9), axis=0)
    np.testing.assert_allclose(quantiles, [[0.1, 0.1], [0.5, 0.5], [0.9, 0.9]], atol=0.06)


@pytest.mark.parametrize("flips", [(False, False), (True, False), (True, True)])
@pytest.mark.parametrize("angle", [0, 31])
def test_a_shifted_warp_is_numpys_crop(angle, flips):
    """Turned, cut and flipped by SciPy and NumPy: rows 4 to 93 and columns 9 to 98 of 100."""
    image = labels((100, 100))
    turned = ndimage.rotate(image, angle, order=0, reshape=False)
    expected = np.flip(turned[4:94, 9:99], np.flatnonzero(flips))
    matrix = warp_matrix(image.shape, (90, 90), flips=flips, angle=angle, scale=99 / 89)
    unflipped = np.array(warp_matrix(image.shape, image.shape, angle=angle))
    shift = unflipped @ (4 + 44.5 - 49.5, 9 + 44.5 - 49.5)
    warp = Warp(0, matrix, tuple(shift))
    seen = warp_slices([torch.from_numpy(image)], [warp], (90, 90))[0].numpy()
    inside = expected > 0
    assert inside.mean() > 0.9
    assert (seen != expected)[inside].mean() < 0.002


def test_resize_draws_nothing():
    rng = np.random.default_rng(0)
    assert draw_warp(rng, 3, (20, 30), (40, 40), "resize") == Warp(
        3, warp_matrix((20, 30), (40, 40))
    )
    assert rng.random() == np.random.default_rng(0).random()
