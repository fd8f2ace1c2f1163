"""Runs training scripts one after another in each process that torchrun starts: importing torch
takes seconds.

    torchrun --nproc_per_node=2 tests/several_scripts.py COMMANDS       a JSON list of scripts' names with their options

What the processes draw for themselves, dropout and noise, is left out, so that they can be compared
with one process. After each step the processes compare all their networks, the teacher among them,
to the bit. $SPOIL is a step whose loss is infinite in the last of them.
"""

import importlib
import json
import os
import sys

import torch
from conftest import ROOT  # noqa: F401 - puts the repository on the path

from networks.vnet import VNet
from utils import command, distributed
from utils.training import run

checkpoint, log = run.Run.checkpoint, run.Run.log


def compare(job, step):
    checkpoint(job, step)
    networks = job._checkpoints.networks()
    tensors = [t.flatten().float() for network in networks for t in network.state_dict().values()]
    if job._batch.last_part:
        of_each = distributed.gather(torch.cat(tensors))
        assert all(torch.equal(one, of_each[0]) for one in of_each), (
            "the processes' networks differ"
        )


def spoil(job, step, **values):
    last = distributed.rank() == distributed.world_size() - 1
    log(
        job,
        step,
        **values
        | ({"loss": torch.tensor(torch.inf)} if last and os.environ["SPOIL"] == str(step) else {}),
    )


if __name__ == "__main__":
    import train_ugmcl

    run.Run.checkpoint = compare
    if "SPOIL" in os.environ:
        run.Run.log = spoil
    stop, distributed.stop = distributed.stop, lambda: None  # torchrun's processes meet once
    VNet.defaults = VNet.defaults._replace(dropout=0.0)
    train_ugmcl.noisy = lambda image: image
    for name, *options in json.loads(sys.argv[1]):
        sys.argv[1:] = map(str, options)
        command.run(importlib.import_module(name).main)
    stop()
