"""Endocardium: cine MR of the left ventricle of 33 subjects (Andreopoulos & Tsotsos, Medical Image
Analysis 12, 2008).

    <root>/train.list, <root>/test.list     subjects; the first 5 of train.list are labelled
    <root>/data/<subject>.h5                image float32 (slices, H, W), label uint8 {0, 1}

A subject's file holds its images of all levels and times one after the other, in any order. York
University publishes them as MATLAB files of 8 to 15 levels and 20 times, 7980 images in all, and no
list. A subject whose label is never read needs none.
"""

from types import MappingProxyType

from dataloaders.preprocessing import Preprocessing
from dataloaders.slices import Slices


class Endocardium(Slices):
    """One split of the data set; see `dataloaders.slices.Slices`."""

    name = "endocardium"
    num_classes = 2
    class_names = ("endocardium",)
    patches = MappingProxyType({1: (256, 256)})
    stride = None
    spacing = None
    net = "unet"
    augment = "affine"
    labelnum = 5
    labeled_bs, unlabeled_bs = 2, 2
    unit = "subjects"
    training_units = 25
    source = "custom of the field: CoraNet"
    sources = MappingProxyType({"net": "custom of the field: SSL4MIS", "augment": "ours"})
    preprocessing = Preprocessing(intensity="minmax")
    as_published = False  # none are
    file_axes = (1, 2, 0)
    per_slice = True
    shown = reported = ("dice", "precision", "recall", "hd")
