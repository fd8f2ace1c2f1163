"""No operator takes more memory than three times its inputs and outputs together."""

import json
import os
import subprocess
import sys

import pytest
from conftest import ROOT

from utils.ops import _library

CODE = """
import json, sys
sys.path[:0] = [sys.argv[1], sys.argv[1] + "/benchmarks"]
import torch
from harness import peak_bytes
from torch.utils._pytree import tree_leaves
from utils.ops import *

def tensors(tree):
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]

torch.set_num_threads(2)
generator = torch.Generator().manual_seed(0)
volume = torch.rand(2, 160, 160, 120, generator=generator)
lines = [torch.linspace(-1, 1, extent) for extent in volume.shape[1:]]
axes = torch.meshgrid(*lines, indexing="ij")
label = (sum(a**2 for a in axes) + 0.3 * volume < 0.8).byte()
box = random_box(volume.shape[1:], 2 / 3, generator)
wide = torch.cat((label, label, label))
mask = torch.nn.functional.pad(label[0], (60, 60, 80, 80, 80, 80))
shape, patch = (160, 160, 120), (96, 96, 80)
starts = window_starts(shape, patch, (64, 64, 40))
logits = torch.randn(8, 2, *patch, generator=generator)
corners, size = [(4, 8, 2), (-9, 3, 1)], (144, 140, 112)
volumes, labels = list(volume), list(label)
runs = {
    "signed_distance": (signed_distance, wide),
    "signed_distance, spacing": (signed_distance, wide, (1.0, 1.0, 2.5)),
    "normalized_sdm": (normalized_sdm, wide),
    "splice": (splice, volume, volume.flip(0), box),
    "cutmix": (cutmix, volume[:, None], volume[:, None].flip(0), label, label.flip(0), box),
    "largest_component": (largest_component, wide.repeat(2, 1, 1, 1), 2),
    "largest_component, noise": (largest_component, (torch.cat((volume, volume)) * 3).int(), 3),
    "surface_distances": (surface_distances, mask, mask.roll(3, 0)),
    "surface_distances, spacing": (surface_distances, mask, mask.roll(3, 0), (1.0, 1.0, 2.5)),
    "stitch_windows": (stitch_windows, logits, starts, shape, "softmax"),
    "crop_rot_flip": (crop_rot_flip, volumes, labels, corners, size, (1, 2), (0, None)),
}
found = {}
for name, (op, *arguments) in runs.items():
    inputs = {leaf.data_ptr(): leaf.nbytes for leaf in tensors(arguments)}
    outputs = [leaf.nbytes for leaf in tensors(op(*arguments))]
    found[name] = (peak_bytes(lambda: op(*arguments)), sum(inputs.values()) + sum(outputs))
print(json.dumps(found))
"""


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="needs Linux's /proc")
@pytest.mark.skipif(not _library.BUILT, reason="the references have no limit")
def test_peak_memory_is_at_most_three_times_inputs_and_outputs():
    command = [sys.executable, "-c", CODE, str(ROOT)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found) == 11
    for name, (peak, touched) in found.items():
        assert touched > 20e6, name
        assert 0 < peak <= 3 * touched, (
            f"{name} takes {peak / touched:.2f} times its inputs and outputs"
        )
