"""utils/slabs.py: a few planes at a time equal the whole volume at once."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from utils.errors import UserError
from utils.inference import sliding_window
from utils.ops import window_starts
from utils.slabs import interpolate_slabs, window_slabs

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("batch", [1, 3, 64])
@pytest.mark.parametrize("shape", [(41, 17, 13), (13, 10, 9), (12, 10, 8), (5, 25, 3)])
@pytest.mark.parametrize("most", [5, 1000])
def test_slabs_are_the_sliding_window_to_the_bit(shape, batch, most, monkeypatch):
    monkeypatch.setattr("utils.slabs._planes_at_once", lambda *_: most)
    torch.manual_seed(0)
    convolution = nn.Conv3d(1, 3, 3, padding=1)
    predict, image = (lambda x: convolution(x).softmax(1)), torch.randn(shape)
    arguments = predict, image, (12, 10, 8), (5, 4, 3), 3
    slabs = list(window_slabs(*arguments, batch=batch))
    assert torch.equal(
        torch.cat(slabs, 1), sliding_window(*arguments, batch=batch, activation=None)
    )
    assert all(1 <= slab.shape[1] <= min(12, most) for slab in slabs)
    assert len(slabs) >= len(window_starts((max(shape[0], 12),), (12,), (5,))[0])


def test_slabs_take_any_number_of_windows_along_the_first_axis():
    image = torch.randn(900, 4, 4)
    slabs = window_slabs(lambda x: x, image, (4, 4, 4), (1, 4, 4), 1, batch=300)
    torch.testing.assert_close(torch.cat(list(slabs), 1)[0], image)


def test_slabs_end_at_the_first_that_is_not_finite():
    image = torch.zeros(12, 4, 4)
    image[9] = math.nan
    slabs = window_slabs(lambda x: x, image, (4, 4, 4), (4, 4, 4), 1)
    assert next(slabs).shape == (1, 4, 4, 4)
    next(slabs)
    with pytest.raises(UserError, match="not finite"):
        next(slabs)


@pytest.mark.parametrize("split", [(11,), (1,) * 11, (4, 1, 6)])
def test_interpolation_of_slabs_is_numpys_and_does_not_depend_on_the_split(split):
    volume = torch.from_numpy(np.random.default_rng(0).random((2, 11, 7, 6), dtype=np.float32))
    places = [np.linspace(0, 10, 26), np.array([0, 0, 2.25, 6]), np.linspace(0.5, 4.5, 9)]
    out = list(interpolate_slabs(iter(volume.split(split, 1)), places))
    expected = volume.double().numpy()
    for axis, along in enumerate(places, 1):
        indices = np.arange(expected.shape[axis])
        expected = np.apply_along_axis(
            lambda row, p=along, i=indices: np.interp(p, i, row), axis, expected
        )
    np.testing.assert_allclose(torch.cat(out, 1).numpy(), expected, atol=1e-6)
    assert torch.equal(torch.cat(out, 1), torch.cat(list(interpolate_slabs([volume], places)), 1))


def test_interpolation_leaves_a_grid_of_voxels_as_it_is_and_skips_planes():
    volume = torch.randn(2, 9, 4, 3)
    whole = [np.arange(extent, dtype=float) for extent in (9, 4, 3)]
    assert torch.equal(torch.cat(list(interpolate_slabs(volume.split(2, 1), whole)), 1), volume)
    some = torch.cat(
        list(interpolate_slabs(volume.split(2, 1), [np.array([0.0, 6.0, 7.0]), *whole[1:]])), 1
    )
    assert torch.equal(some, volume[:, [0, 6, 7]])
