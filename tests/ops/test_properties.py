"""Properties that hold for every input: hypothesis searches for one that breaks them.

It tries the same inputs in every run.
"""

import hypothesis
import numpy as np
import torch
from hypothesis import strategies as st

from utils.ops import (
    crop_rot_flip,
    cutmix,
    largest_component,
    normalized_sdm,
    normalized_sdm_reference,
    signed_distance,
    signed_distance_reference,
    splice,
    stitch_windows,
    surface_distances,
    window_starts,
)

hypothesis.settings.register_profile(
    "operators",
    derandomize=True,
    deadline=None,
    max_examples=40,
    # `device` is the same in every example
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)


hypothesis.settings.load_profile("operators")


@st.composite
def masks(draw, axes=3, longest=12, items=3):
    """`(B, *S)` bool: noise of any density, smoothed or not, and constant along some axes."""
    shape = draw(st.lists(st.integers(1, longest), min_size=axes, max_size=axes))
    count = draw(st.integers(1, items))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    noise = rng.random((count, *shape))
    if draw(st.booleans()):
        for axis in range(1, axes + 1):
            noise = noise + np.roll(noise, 1, axis) + np.roll(noise, -1, axis)
    for axis in draw(st.sets(st.integers(1, axes))):
        noise = np.repeat(noise.take([0], axis), shape[axis - 1], axis)
    return torch.from_numpy(noise < np.quantile(noise, draw(st.floats(0, 1))))


spacings = st.sampled_from([None, (1.0, 2.0, 0.5), (0.7, 1.9, 3.1)])
orders = st.permutations([0, 1, 2])


def permuted(values, order):
    return None if values is None else [values[axis] for axis in order]


def turned_mask(mask, order):
    return mask.permute(0, *(axis + 1 for axis in order))


@hypothesis.settings(max_examples=300)
@hypothesis.given(
    st.one_of(masks(), masks(axes=2, longest=40), masks(longest=3), masks(longest=30, items=1)),
    st.data(),
)
def test_distances_are_those_of_the_reference(device, mask, data):
    spacing = data.draw(spacings)
    spacing = spacing and spacing[: mask.ndim - 1]
    for op, reference in (
        (signed_distance, signed_distance_reference),
        (normalized_sdm, normalized_sdm_reference),
    ):
        expected = reference(mask, spacing).float()
        torch.testing.assert_close(
            op(mask.to(device), spacing).cpu(), expected, rtol=1e-6, atol=1e-6
        )


@hypothesis.given(masks(), st.sampled_from([(1,), (2,), (3,), (1, 3), (1, 2, 3)]), spacings)
def test_a_flipped_mask_has_the_flipped_distances(device, mask, axes, spacing):
    mask = mask.to(device)
    for op in (signed_distance, normalized_sdm):
        assert torch.equal(op(mask.flip(axes), spacing), op(mask, spacing).flip(axes))


@hypothesis.given(masks(), orders, spacings)
def test_axes_in_another_order_have_the_distances_in_that_order(device, mask, order, spacing):
    mask = mask.to(device)
    got = signed_distance(turned_mask(mask, order), permuted(spacing, order))
    want = turned_mask(signed_distance(mask, spacing), order)
    torch.testing.assert_close(got, want, rtol=0 if spacing is None else 3e-7, atol=0)


@hypothesis.given(masks(), spacings)
def test_the_other_side_has_the_other_sign(device, mask, spacing):
    mask = mask.to(device)
    assert torch.equal(signed_distance(~mask, spacing), -signed_distance(mask, spacing))


@hypothesis.given(masks(), spacings)
def test_distances_change_by_no_more_than_a_step(device, mask, spacing):
    distance = signed_distance(mask.to(device), spacing)
    for axis, step in enumerate(spacing or (1, 1, 1)):
        # Across the boundary the sign changes, and with it the voxel that is measured to.
        change = distance.diff(dim=axis + 1).abs().nan_to_num(0)
        assert change.numel() == 0 or change.max() <= 2 * step * (1 + 1e-6)


@hypothesis.given(masks())
def test_a_batch_is_its_items_one_by_one(device, mask):
    mask = mask.to(device)
    for op in (signed_distance, normalized_sdm, lambda m: largest_component(m, 2)):
        assert torch.equal(op(mask), torch.cat([op(item[None]) for item in mask]))


@st.composite
def boxes(draw, shape):
    corners = [
        sorted(draw(st.lists(st.integers(-2, n + 2), min_size=2, max_size=2))) for n in shape
    ]
    return torch.tensor(corners).T.contiguous()


@hypothesis.given(st.data())
def test_splicing_both_ways_loses_nothing(device, data):
    mask = data.draw(masks())
    box = data.draw(boxes(mask.shape[1:])).to(device)
    a = torch.arange(mask.numel(), device=device).reshape(mask.shape)
    b = a + mask.numel()
    there, back = splice(a, b, box), splice(b, a, box)
    assert torch.equal(there + back, a + b)
    assert torch.equal(splice(a, a, box), a)
    image, label = cutmix(a.float()[:, None], b.float()[:, None], a, b, box)
    assert torch.equal(image[:, 0].long(), there)
    assert torch.equal(label, there)


@hypothesis.given(masks(), st.sampled_from([6, 18, 26]))
def test_the_largest_component_is_one_part_of_the_mask_and_stays(device, mask, connectivity):
    mask = mask.to(device)
    kept = largest_component(mask, 2, connectivity)
    assert not (kept & ~mask).any()
    assert torch.equal(kept.flatten(1).any(1), mask.flatten(1).any(1))
    assert torch.equal(largest_component(kept, 2, connectivity), kept)


@hypothesis.given(masks(), orders, st.sampled_from([6, 18, 26]))
def test_the_largest_component_has_the_same_size_in_every_order_of_axes(
    device, mask, order, connectivity
):
    mask = mask.to(device)
    sizes = largest_component(mask, 2, connectivity).flatten(1).sum(1)
    for other in (mask.flip((1, 3)), turned_mask(mask, order).contiguous()):
        assert torch.equal(largest_component(other, 2, connectivity).flatten(1).sum(1), sizes)
    assert (largest_component(mask, 2, 26).flatten(1).sum(1) >= sizes).all()


@st.composite
def windows(draw):
    shape = draw(st.lists(st.integers(3, 14), min_size=3, max_size=3))
    patch = [draw(st.integers(1, n)) for n in shape]
    stride = [draw(st.integers(1, p)) for p in patch]
    return (
        shape,
        patch,
        window_starts(shape, patch, stride),
        draw(st.integers(1, 4)),
        draw(st.integers(0, 999)),
    )


@hypothesis.given(windows())
def test_windows_that_agree_are_stitched_to_what_they_show(device, drawn):
    shape, patch, starts, classes, seed = drawn
    volume = torch.randn((classes, *shape), generator=torch.Generator().manual_seed(seed)).to(
        device
    )
    logits = torch.stack(
        [
            volume[:, x : x + patch[0], y : y + patch[1], z : z + patch[2]]
            for x in starts[0]
            for y in starts[1]
            for z in starts[2]
        ]
    )
    for activation, of in (
        ("softmax", lambda v: v.softmax(0)),
        ("sigmoid", torch.sigmoid),
        (None, lambda v: v),
    ):
        got = stitch_windows(logits, starts, shape, activation)
        torch.testing.assert_close(got, of(volume), rtol=1e-5, atol=1e-6)
    order = torch.randperm(classes, generator=torch.Generator().manual_seed(seed)).to(device)
    got = stitch_windows(logits[:, order], starts, shape, "sigmoid")
    assert torch.equal(got, stitch_windows(logits, starts, shape, "sigmoid")[order])


@hypothesis.given(masks(items=1), masks(items=1), orders, spacings)
def test_surface_distances_do_not_depend_on_the_order_of_masks_and_axes(
    device, pred, target, order, spacing
):
    shape = [min(a, b) for a, b in zip(pred.shape[1:], target.shape[1:], strict=True)]
    pred, target = (mask[0][tuple(map(slice, shape))].to(device) for mask in (pred, target))
    there, back = surface_distances(pred, target, spacing)
    swapped = surface_distances(target, pred, spacing)
    assert torch.equal(there, swapped[1])
    assert torch.equal(back, swapped[0])
    for other, size in (
        ([mask.flip((0, 2)) for mask in (pred, target)], spacing),
        ([mask.permute(order) for mask in (pred, target)], permuted(spacing, order)),
    ):
        for got, want in zip(surface_distances(*other, size), (there, back), strict=True):
            torch.testing.assert_close(got.sort().values, want.sort().values, rtol=1e-12, atol=0)


@hypothesis.given(masks(items=1), st.integers(0, 3), st.sampled_from([None, 0, 1, 2]), st.data())
def test_a_turned_crop_turned_back_is_the_crop(device, mask, rot, flip, data):
    volume = mask[0].to(device).float()
    start = [data.draw(st.integers(-4, n + 1)) for n in volume.shape]
    size = [data.draw(st.integers(1, 8)) for _ in volume.shape]
    upright = [size[1], size[0], size[2]] if rot % 2 else size
    plain, _ = crop_rot_flip([volume], None, [start], upright, [0], [None])
    turned, _ = crop_rot_flip([volume], None, [start], size, [rot], [flip])
    back = turned if flip is None else turned.flip(flip + 1)
    assert torch.equal(torch.rot90(back, -rot, (1, 2)), plain)
