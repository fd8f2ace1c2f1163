"""The example of docs/operations.md runs as it stands there."""

import re

import torch
from conftest import ROOT


def test_the_operations_run_as_shown():
    page = (ROOT / "docs" / "operations.md").read_text()
    (code,) = re.findall(r"```python\n(from utils\.inference.*?)```", page, re.DOTALL)
    generator = torch.Generator().manual_seed(0)
    volumes = [torch.rand(shape, generator=generator) for shape in ((130, 120, 90), (100, 140, 80))]
    targets = [(volume > 0.5).byte() for volume in volumes]
    pair = torch.rand((2, 1, 112, 112, 80), generator=generator)
    names = {
        "mask": targets[0][None],
        "image_a": pair,
        "image_b": pair.flip(0),
        "label_a": pair[:, 0] > 0.5,
        "label_b": pair[:, 0] > 0.7,
        "pseudo_a": pair[:, 0],
        "pseudo_b": pair[:, 0].flip(0),
        "labels": targets[0][None],
        "shape": (20, 24, 16),
        "patch": (12, 16, 8),
        "stride": (8, 4, 8),
        "logits": torch.randn((12, 2, 12, 16, 8), generator=generator),
        "volume": volumes[0][:20, :24, :16],
        "network": torch.nn.Conv3d(1, 2, 1),
        "pred": targets[0][:40, :40, :30],
        "target": targets[0][20:60, :40, :30],
        "spacing": (1.0, 1.0, 2.5),
        "volumes": volumes,
        "targets": targets,
        "corners": [(0, 0, 0), (-5, 9, 2)],
    }
    exec(code, names)
    assert names["mixed"].shape == pair.shape
    assert names["prob"].shape == (2, 20, 24, 16)
    assert 0 < names["scores"]["dice"] < 1
    assert names["image"].shape == names["label"].shape == (2, 112, 112, 80)
