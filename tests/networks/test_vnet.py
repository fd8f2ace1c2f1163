"""V-Net: the published size, and the layout that checkpoints rely on; what all networks share is in
test_networks.
"""

import torch

from networks.vnet import VNet


def test_parameter_count_is_the_published_one():
    assert sum(p.numel() for p in VNet(1, 2).parameters()) == 9_448_866


def test_checkpoints_find_their_weights():
    shapes = {name: tuple(p.shape) for name, p in VNet(1, 3, 2, branches=3).named_parameters()}
    assert len(shapes) == 4 * 21 + 4 * 8 + 3 * 10  # convolutions, downs and ups, branches
    assert shapes["encoder.4.6.weight"] == (32, 32, 3, 3, 3)
    assert shapes["downs.3.0.weight"] == (32, 16, 2, 2, 2)
    assert shapes["ups.0.0.weight"] == (32, 16, 2, 2, 2)
    assert shapes["decoder.3.1.bias"] == (2,)
    assert shapes["heads.2.0.3.weight"] == (2, 2, 3, 3, 3)
    assert shapes["heads.2.1.weight"] == (3, 2, 1, 1, 1)
    assert VNet(1, 3, 2, sdm_head=True).state_dict()["sdm.weight"].shape == (2, 2, 1, 1, 1)


def test_stages_halve_and_double():
    features = VNet(1, 2, 4).eval().encode(torch.zeros(1, 1, 32, 16, 16))
    assert [tuple(f.shape[1:]) for f in features] == [
        (4, 32, 16, 16),
        (8, 16, 8, 8),
        (16, 8, 4, 4),
        (32, 4, 2, 2),
        (64, 2, 1, 1),
    ]
