"""Pseudo-labels of whole images: what they keep and count, and how a checkpoint holds them."""

import pytest
import torch

from dataloaders.transforms import Warp, warp_matrix, warp_slices
from utils.pseudo_labels import PseudoLabels, relabelling_summary

SHAPE = (7, 50, 40)


@pytest.fixture
def found():
    """Labels and certain voxels of two images, as `relabel` finds them."""
    rng = torch.Generator().manual_seed(0)
    return {
        case: (torch.randint(0, 256, SHAPE, generator=rng), torch.rand(SHAPE, generator=rng) < 0.5)
        for case in (3, 8)
    }


def test_everything_is_kept(found):
    pseudo_labels = PseudoLabels()
    pseudo_labels.replace({1: next(iter(found.values()))})
    pseudo_labels.replace(found)
    assert pseudo_labels.labels.keys() == pseudo_labels.uncertain.keys() == found.keys()
    for case, (labels, certain) in found.items():
        assert torch.equal(pseudo_labels.labels[case].long(), labels)
        assert torch.equal(pseudo_labels.uncertain[case] == 0, certain)


def test_a_checkpoint_holds_them_small(tmp_path):
    label = torch.zeros(64, 64, 40, dtype=torch.int64)
    label[20:40, 20:40, 10:30] = 1
    pseudo_labels = PseudoLabels()
    pseudo_labels.replace({5: (label, label == 0)})
    torch.save(pseudo_labels.state_dict(), tmp_path / "x.pth")
    assert (tmp_path / "x.pth").stat().st_size < label.numel() / 10
    again = PseudoLabels()
    again.replace({9: (label, label == 1)})
    again.load_state_dict(torch.load(tmp_path / "x.pth", weights_only=True))
    for ours, theirs in (
        (pseudo_labels.labels, again.labels),
        (pseudo_labels.uncertain, again.uncertain),
    ):
        assert ours.keys() == theirs.keys() == {5}
        assert torch.equal(ours[5], theirs[5])


def test_what_lies_beyond_the_image_is_certain_background():
    """As it is in labelled crops; else the padding would weigh an uncertain voxel down."""
    shape = 40, 48
    smaller = [Warp(0, warp_matrix(shape, shape, scale=0.5))]
    pseudo_labels = PseudoLabels()
    nowhere = torch.zeros(shape, dtype=torch.bool)
    pseudo_labels.replace({0: (torch.ones(shape, dtype=torch.int64), nowhere)})
    label = warp_slices([pseudo_labels.labels[0]], smaller, shape)
    certain = warp_slices([pseudo_labels.uncertain[0]], smaller, shape) == 0
    assert 0.2 < label.float().mean() < 0.3
    assert torch.equal(certain, label == 0)


def test_images_with_a_class():
    """Class 1 is uncertain in the first image and missing in the second; class 3 is in neither."""
    first, second = torch.tensor([[0, 1, 2]]), torch.tensor([[0, 2, 2]])
    pseudo_labels = PseudoLabels()
    pseudo_labels.replace({4: (first, first != 1), 7: (second, second == 2)})
    assert [pseudo_labels.images_with(c, certain_only=True) for c in (1, 2, 3)] == [0, 2, 0]
    assert [pseudo_labels.images_with(c, certain_only=False) for c in (1, 2, 3)] == [1, 2, 0]


def test_the_summary_names_the_classes_that_no_image_has():
    names = ("RV", "Myo", "LV")
    line = relabelling_summary(2, [0, 2, 0], names, certain_only=True)
    assert line == "relabelled images: 2; certain RV in 0, Myo in 2, LV in 0 - none has RV, LV"
    line = relabelling_summary(3, [1, 2, 1], names, certain_only=False)
    assert line == "relabelled images: 3; pseudo-label RV in 1, Myo in 2, LV in 1"
