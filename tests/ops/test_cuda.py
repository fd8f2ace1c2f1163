"""Tests that need a GPU: captured graphs, other streams, tensors of more than 2^31 elements."""

import itertools
import math

import pytest
import torch
from torch.utils._pytree import tree_leaves

from utils.ops import (
    _library,
    crop_rot_flip,
    cutmix,
    largest_component,
    normalized_sdm,
    random_box,
    signed_distance,
    splice,
    stitch_windows,
    window_starts,
)

pytestmark = pytest.mark.skipif(
    not (torch.cuda.is_available() and _library.BUILT and _library.CUDA),
    reason="no GPU, or no CUDA kernels built",
)

SHAPE = (40, 33, 47)
PATCH = (24, 20, 16)
LARGE = (2, 1088, 1024, 1024)  # the second item begins below 2^31 elements and ends above


def give_operators():
    """Name -> operator, and the inputs on the GPU that it reads."""
    generator = torch.Generator("cuda").manual_seed(0)
    image = torch.rand((3, *SHAPE), device="cuda", generator=generator)
    label = (image > 0.4).byte()
    box = random_box(SHAPE, 0.5, generator, count=3, device="cuda")
    starts = window_starts(SHAPE, PATCH, (8, 10, 12))
    logits = torch.randn(
        (math.prod(map(len, starts)), 2, *PATCH), device="cuda", generator=generator
    )
    corners = [(3, -4, 5), (0, 8, 9), (30, 1, 1)]
    return {
        "signed_distance": (signed_distance, label),
        "signed_distance, spacing": (lambda x: signed_distance(x, (1, 1, 2.5)), label),
        "normalized_sdm": (normalized_sdm, label),
        "splice": (splice, image, image.flip(0), box),
        "cutmix": (cutmix, image[:, None], image[:, None].flip(0), label, label.flip(0), box),
        "largest_component": (lambda x: largest_component(x, 2, 6), label),
        "stitch_windows": (lambda x: stitch_windows(x, starts, SHAPE), logits),
        "crop_rot_flip": (
            lambda x, y: crop_rot_flip(
                list(x), list(y), corners, (20, 24, 16), (0, 1, 3), (None, 0, 2)
            ),
            image,
            label,
        ),
    }


NAMES = [
    "signed_distance",
    "signed_distance, spacing",
    "normalized_sdm",
    "splice",
    "cutmix",
    "largest_component",
    "stitch_windows",
    "crop_rot_flip",
]


def equal(ours, theirs):
    return all(
        torch.equal(a, b) for a, b in zip(tree_leaves(ours), tree_leaves(theirs), strict=True)
    )


@pytest.mark.parametrize("name", NAMES)
def test_a_captured_graph_replays_on_new_values(name):
    op, *inputs = give_operators()[name]
    new = [given.flip(0).contiguous() for given in inputs]
    expected = op(*new)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        op(*inputs)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = op(*inputs)
    for given, values in zip(inputs, new, strict=True):
        given.copy_(values)
    graph.replay()
    assert equal(result, expected)


@pytest.mark.parametrize("name", NAMES)
def test_the_current_stream_is_used(name):
    op, *inputs = give_operators()[name]
    expected = op(*inputs)
    given = [torch.zeros_like(value) for value in inputs]
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        # tens of milliseconds, in which an operator on another stream would read the zeros
        torch.cuda._sleep(50_000_000)
        for value, source in zip(given, inputs, strict=True):
            value.copy_(source)
        result = op(*given)
    side.synchronize()
    assert equal(result, expected)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_waits_for_the_device(name):
    op, *inputs = give_operators()[name]
    op(*inputs)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        op(*inputs)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_box_drawn_on_the_gpu_is_there_when_the_host_reads_it():
    torch.cuda._sleep(50_000_000)
    first = random_box(SHAPE, 0.5, torch.Generator("cuda").manual_seed(3))
    read = first.clone()
    torch.cuda.synchronize()
    assert torch.equal(
        read, random_box(SHAPE, 0.5, torch.Generator("cuda").manual_seed(3), device="cuda").cpu()
    )


@pytest.fixture
def large():
    """A mask of more than 2^31 elements, whose two items differ; skips without memory for it."""
    if torch.cuda.mem_get_info()[0] < 60 * 2**30:
        pytest.skip("needs 60 GiB of free memory on the device")
    mask = torch.zeros(LARGE, dtype=torch.uint8, device="cuda")
    for item, edge in itertools.product((0, 1), (5, 700)):
        mask[item, edge + 9 * item : edge + 80, 100:-90, 33 + item : -7] = 1
    yield mask
    del mask
    torch.cuda.empty_cache()


@pytest.mark.parametrize("op", [signed_distance, normalized_sdm, lambda x: largest_component(x, 2)])
def test_items_past_2_31_elements(large, op):
    batch = op(large)
    for item in (0, 1):
        assert torch.equal(batch[item], op(large[item : item + 1])[0])


def test_splice_past_2_31_elements(large):
    box = torch.tensor([[2, 3, 4], [1080, 1000, 1010]], device="cuda")
    inside = (slice(None), slice(2, 1080), slice(3, 1000), slice(4, 1010))
    other = large.bitwise_not()
    expected = large.clone()
    expected[inside] = other[inside]
    assert torch.equal(splice(large, other, box), expected)


def test_crops_past_2_31_elements(large):
    taken, _ = crop_rot_flip(
        list(large), None, [(1, 0, -2), (0, 3, 0)], LARGE[1:], (0, 0), (None, 2)
    )
    for item, (corner, flip) in enumerate([((1, 0, -2), None), ((0, 3, 0), 2)]):
        alone, _ = crop_rot_flip([large[item]], None, [corner], LARGE[1:], (0,), (flip,))
        assert torch.equal(taken[item], alone[0])


def test_stitching_past_2_31_elements(large):
    logits = torch.stack((large[0], large[1], large[0] ^ large[1])).half()[None]
    prob = stitch_windows(logits, [[0], [0], [0]], LARGE[1:])
    for place in range(0, LARGE[1], 64):
        expected = logits[0, :, place].float().softmax(0)
        torch.testing.assert_close(prob[:, place], expected, rtol=0, atol=1e-6)
