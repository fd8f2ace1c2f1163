"""Volumes or slices decoded once and kept in memory: the slowest part of other loaders, gone after the first second."""

import torch
from tqdm import tqdm


class Resident:
    """The samples of a data set in RAM.

    Args:
        dataset: has `names`, `num_classes`, `description()` and `load(index, label)`.
        labeled: indices whose label is read; every other label stays unread.
        cases: indices to decode, of volumes or, in 2-D, of slices.

    Attributes:
        names, num_classes, description: of the data set.
        images: index to float32 tensor `(X, Y, Z)` or `(H, W)`.
        labels: index to uint8 tensor of the image's shape, for the labelled cases alone.
    """

    def __init__(self, dataset, labeled, cases):
        labeled = set(labeled)
        self.names, self.num_classes = dataset.names, dataset.num_classes
        self.description = dataset.description()
        self.images, self.labels = {}, {}
        for case in tqdm(cases, desc="decoding", unit="case", disable=None, leave=False):
            image, label = dataset.load(case, label=case in labeled)
            self.images[case] = torch.from_numpy(image)
            if case in labeled:
                self.labels[case] = torch.from_numpy(label)
