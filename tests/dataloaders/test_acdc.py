"""The real ACDC data: counts as published, volumes of four classes, and a training batch."""

from argparse import Namespace

import numpy as np
import pytest
import torch

from dataloaders.acdc import ACDC
from dataloaders.two_stream import two_stream_loader


@pytest.fixture
def root(acdc_root):
    return acdc_root


def test_the_published_counts(root):
    train, val, test = (ACDC(root, split) for split in ("train", "val", "test"))
    assert (len(train), train.total) == (1312, 70)
    assert train.labeled(3) == list(range(68))
    assert train.labeled(7) == list(range(136))
    assert [(len(data), data.total) for data in (val, test)] == [(20, 10), (40, 20)]


def test_a_test_sample_is_a_volume_of_four_classes(root):
    image, label = ACDC(root, "test").load(0)
    assert image.shape == label.shape
    assert min(image.shape[:2]) > 100 > image.shape[2]
    assert set(np.unique(label)) == {0, 1, 2, 3}
    assert 0 <= image.min() < image.max() <= 1


def test_a_training_batch(root):
    options = {
        "dataset": "ACDC",
        "root": root,
        "downsample": 1,
        "labelnum": 7,
        "patch": [256, 256],
        "seed": 1,
    }
    options |= {
        "labeled_bs": 12,
        "unlabeled_bs": 12,
        "augment": "rotate",
        "cache": "auto",
        "cache_dir": None,
    }
    data = two_stream_loader(Namespace(**options), torch.device("cpu"))
    assert (len(data.volumes.images), len(data.volumes.labels)) == (1312, 136)
    batch = data.batch(11)
    assert batch.image.shape == (24, 1, 256, 256)
    assert batch.label.shape == (12, 256, 256)
    assert {name.partition("_")[0] for name in batch.names[:12]} <= {
        name.partition("_")[0] for name in data.volumes.names[:136]
    }
