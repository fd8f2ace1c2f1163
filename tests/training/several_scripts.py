"""Runs training scripts one after another in each process that torchrun starts: importing torch
takes seconds.

    torchrun --nproc_per_node=2 tests/training/several_scripts.py COMMANDS

COMMANDS is a JSON list of scripts' names with their options. Dropout and noise, which the processes
draw for themselves, are left out, so that the processes can be compared with one process. After
each step the processes compare all their networks, the teacher among them, to the bit. $SPOIL is a
step whose loss is infinite in the last process.
"""

import functools
import importlib
import json
import os
import sys
from pathlib import Path
from unittest import mock

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "code")]

from networks import base  # noqa: E402
from networks.discriminator import MapImageDiscriminator  # noqa: E402
from networks.multi_scale import MultiScale  # noqa: E402
from networks.resnet34 import ResNet34  # noqa: E402
from networks.vnet import VNet  # noqa: E402
from utils import command, distributed, perturbations  # noqa: E402
from utils.ops import splice  # noqa: E402
from utils.training import run  # noqa: E402


def adversarial_from_the_image(divergence, image, xi):
    """`adversarial_direction`, which begins with the image in place of noise."""
    with mock.patch.object(torch, "randn_like", torch.clone):
        return perturbations.adversarial_direction(divergence, image, xi)


def perceptron_without_norm(channels, outputs, activation):
    """SS-Net's perceptron without the batch norm of the rows that a process sees."""
    hidden = torch.nn.Linear(channels, 32)
    return torch.nn.Sequential(hidden, activation, torch.nn.Linear(32, outputs))


def without_the_first_half_of_channels(features):
    """`without_half_of_channels`, always of the same ones."""
    first, second = features.tensor_split(2, 1)
    return torch.cat((0 * first, 2 * second), 1)


def middle_box(count, device, args):
    """UniMatch's boxes, in the middle of every crop."""
    corners = [[n // 4 for n in args.patch], [n // 2 for n in args.patch]]
    return torch.tensor(corners).expand(count, -1, -1)


def mirror_images(image, args):
    """AD-MT's mixture, in which each crop's partner is its own mirror image."""
    box = middle_box(len(image), "cpu", args)
    return lambda values: splice(values, values.flip(-1), box)


# what the scripts draw by functions of their own: the same for all crops instead
DRAWS = {
    "train_unimatch": {"draw_boxes": middle_box, "strong_view": lambda image, args: image + 0.1},
    "train_admt": {
        "draw_mixture": mirror_images,
        "strong_intensities": lambda image, args: image + 0.1,
    },
    "train_urpc": {"MultiScale": functools.partial(MultiScale, dropouts=(0.0,) * 4)},
    "train_dan": {"MapImageDiscriminator": functools.partial(MapImageDiscriminator, dropout=0.0)},
    "train_vat": {"adversarial_direction": adversarial_from_the_image},
    "train_sassnet": {
        "MapImageDiscriminator": functools.partial(MapImageDiscriminator, dropout=0.0)
    },
    "train_ict": {"mixing_shares": lambda pairs, alpha: torch.full((pairs,), 0.3)},
    "train_tcse": {"draw_transformations": lambda crops, extents: [(2, True)] * crops},
    "train_ssnet": {
        "adversarial_direction": adversarial_from_the_image,
        "perceptron": perceptron_without_norm,
    },
}

checkpoint = run.Run.checkpoint
log = run.Run.log


def compare(job, step):
    checkpoint(job, step)
    if not job._batch.last_part:
        return
    tensors = [t for network in job._checkpoints.networks() for t in network.state_dict().values()]
    of_each = distributed.gather(torch.cat([t.flatten().float() for t in tensors]))
    assert all(torch.equal(one, of_each[0]) for one in of_each), "the processes' networks differ"


def spoil(job, step, **values):
    last = distributed.rank() == distributed.world_size() - 1
    if last and step == int(os.environ["SPOIL"]):
        values["loss"] = torch.tensor(torch.inf)
    log(job, step, **values)


def call(name, *options):
    script = importlib.import_module(name)
    for draw, fixed in DRAWS.get(name, {}).items():
        setattr(script, draw, fixed)
    script.main([str(option) for option in options])


if __name__ == "__main__":
    run.Run.checkpoint = compare
    if "SPOIL" in os.environ:
        run.Run.log = spoil
    stop = distributed.stop
    distributed.stop = lambda: None  # torchrun's processes meet once
    for network in (VNet, ResNet34):
        network.defaults = network.defaults._replace(dropout=0.0)
    base.without_half_of_channels = without_the_first_half_of_channels
    perturbations.noisy = lambda image: image  # before a script imports it
    for arguments in json.loads(sys.argv[1]):
        command.run(lambda arguments=arguments: call(*arguments))
    stop()
