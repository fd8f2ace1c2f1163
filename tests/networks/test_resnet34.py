"""V-Net with a ResNet-34 encoder: its size, its levels, and its blocks by definition."""

import pytest
import torch
import torch.nn.functional as F

from networks import network_class
from networks.resnet34 import BLOCKS, Block

pytestmark = pytest.mark.usefixtures("one_thread")


def test_there_are_34_layers_but_for_the_classifier():
    """The stem, two convolutions a block; the shortcuts of width and extent are not counted."""
    net = network_class("resnet34")(n_filters=2)
    assert sum(p.numel() for p in network_class("resnet34")().parameters()) == 17_934_626
    assert 1 + 2 * sum(BLOCKS) == 33
    assert [len(group) for group in net.encoder[1:]] == list(BLOCKS)
    shortcuts = [
        not isinstance(block.shortcut, torch.nn.Identity)
        for group in net.encoder[1:]
        for block in group
    ]
    assert shortcuts == [k == 0 for n in BLOCKS for k in range(n)]


@pytest.mark.parametrize("name", ["resnet34", "resnet34_2d"])
def test_each_group_halves_the_extents_and_doubles_the_channels(name):
    net = network_class(name)(1, 3, 2)
    extents = (32, 16, 16)[: net.dims]
    features = net.encode(torch.randn(1, 1, *extents))
    for level, feature in enumerate(features):
        assert feature.shape == (1, 2 * 2**level, *(extent // 2**level for extent in extents))


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize(("before", "stride"), [(3, 2), (4, 1), (4, 2), (3, 1)])
def test_a_block_by_its_definition(dims, before, stride):
    """The shortcut is a strided convolution of size 1, unless extents and channels stay."""
    torch.manual_seed(0)
    convolve = F.conv2d if dims == 2 else F.conv3d
    block = Block(dims, before, 4, stride, "none").double()
    x = torch.randn(2, before, *[8] * dims).double()
    first, second = block.first[0], block.second[0]
    y = convolve(x, first.weight, first.bias, stride, 1).relu()
    y = convolve(y, second.weight, second.bias, 1, 1)
    if isinstance(block.shortcut, torch.nn.Identity):
        assert stride == 1
        assert before == 4
        shortcut = x
    else:
        own = block.shortcut[0]
        shortcut = convolve(x, own.weight, own.bias, stride)
    torch.testing.assert_close(block(x), (y + shortcut).relu())


def test_few_channels_last_train():
    """Narrow blocks in the layout of training; a strided convolution of size 1 ended the process
    here.
    """
    torch.manual_seed(0)
    block = Block(2, 4, 8, 2, "batchnorm").to(memory_format=torch.channels_last)
    for _ in range(4):
        x = torch.randn(4, 4, 64, 64).to(memory_format=torch.channels_last)
        block(x).square().mean().backward()
    assert all(p.grad.isfinite().all() for p in block.parameters())
