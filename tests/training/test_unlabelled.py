"""Passes over unlabelled images: which images, how the network is left, and the windows' stride."""

from argparse import Namespace

import pytest
import torch

from utils.errors import UserError
from utils.training.unlabelled import find_in_unlabelled, window_stride


def test_the_images_to_come_are_seen_in_eval_mode_without_gradient():
    seen, asked = [], []
    net = torch.nn.Dropout()
    data = Namespace(
        samples=lambda step: [0, 1 + step % 2],
        labeled_bs=1,
        volumes=Namespace(images={case: torch.full((2,), float(case)) for case in range(4)}),
    )
    job = Namespace(leave_if_asked=asked.append)

    def find(image):
        seen.append((net.training, torch.is_grad_enabled()))
        return image[0].item()

    assert find_in_unlabelled(find, net, data, range(4, 6), job) == {1: 1.0, 2: 2.0}
    assert seen == [(False, False)] * 2
    assert asked == [3, 3]
    assert net.training


def test_windows_overlap_by_half_unless_a_stride_is_given():
    assert window_stride(None, [32, 16, 16], "--x") == [16, 8, 8]
    assert window_stride(None, [32, 32], "--x") is None
    assert window_stride([32, 4, 4], [32, 16, 16], "--x") == [32, 4, 4]
    with pytest.raises(UserError, match="--x 33 4 4"):
        window_stride([33, 4, 4], [32, 16, 16], "--x")
    with pytest.raises(UserError, match="--x: slices"):
        window_stride([8, 8, 8], [32, 32], "--x")
