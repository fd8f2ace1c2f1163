"""Batch norm's statistics taken again, without dropout, from training images.

In training, a norm behind a dropout sees activations of more spread than in a test, and these are
the statistics that it keeps for the test. After few steps the statistics also lag behind the
weights. Taken again they are those of the weights as they are tested. No label is used.
"""

import argparse
from collections.abc import Callable, Sequence

import torch
from torch import nn

from dataloaders.two_stream import TwoStream, two_stream_loader
from networks.base import DROPOUT, batch_norms
from utils.device import autocast
from utils.errors import UserError

BATCHES = 40


def retake(
    networks: Sequence[nn.Module],
    checkpoint: dict,
    root: str | None,
    device: torch.device | str,
    precision: str,
    progress: Callable[[int, int], None] | None = None,
) -> str:
    """Replace the running statistics by the mean over `BATCHES` batches of a run's training images.

    The batches are those that the loader would give after the run's last step: as many crops or
    slices, labelled and unlabelled, cut and turned as in training, all of a step in one pass. A
    method's own noise, mixtures and partners are left out: a test has none of them.

    Args:
        networks: of the checkpoint, in eval mode, in which they are left.
        checkpoint: says which images they were trained on, and how these were cut.
        root: folder of the data; None: that of the training.
        device, precision: of the passes.
        progress: called with (batches done, batches in all) after each.

    Returns:
        A sentence for the records.

    Raises:
        UserError: no batch norm in the networks, or the training images are not there, or others.
    """
    norms = batch_norms(networks)
    if not norms:
        kind = checkpoint["args"].get("normalization", "another norm")
        raise UserError(f"--batchnorm retaken: the network has no batch norm, but {kind}")
    data = training_data(checkpoint, root, device)
    momenta = [module.momentum for module in norms]
    for module in norms:
        module.reset_running_stats()
        module.momentum = None  # the mean over all batches
    for net in networks:
        net.train()
        for module in net.modules():
            if isinstance(module, DROPOUT):
                module.eval()
    first = checkpoint["last"] + 1
    with torch.no_grad(), autocast(torch.device(device), precision):
        for k in range(BATCHES):
            images = data.images(first + k)
            for net in networks:
                net.segment(images)
            if progress is not None:
                progress(k + 1, BATCHES)
    for module, momentum in zip(norms, momenta, strict=True):
        module.momentum = momentum
    for net in networks:
        net.eval()
    line = f"batch norm's statistics: taken again over {BATCHES} batches of training images"
    if "data" not in checkpoint:
        line += "; an exported model does not know whether these are the images of its training"
    return line


def training_data(checkpoint: dict, root: str | None, device: torch.device | str) -> TwoStream:
    """The loader that a checkpoint was trained with.

    Raises:
        UserError: the images are not there, or they are not those of the training.
    """
    trained = checkpoint["args"] | {"cache": "auto", "cache_dir": None}
    if root is not None:
        trained["root"] = root
    try:
        data = two_stream_loader(argparse.Namespace(**trained), device)
    except UserError as error:
        raise UserError(f"--batchnorm retaken needs the training images: {error}") from None
    if checkpoint.get("data") not in (None, data.fingerprint()):
        raise UserError(
            f"--batchnorm retaken needs the training images, but {trained['root'] or 'the folder'} "
            "holds other cases than the training had"
        )
    return data
