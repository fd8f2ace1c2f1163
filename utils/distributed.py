"""Several processes that train one network, as `torchrun` starts them: who is who, and what they
tell each other.

Without torchrun there is one process, every function here is free, and no script needs to ask which
it is.

    torchrun --nproc_per_node=2 code/train_cml.py --labelnum 8 --gpu 0,1

A step's crops are shared out (`dataloaders.two_stream`), and the losses that are no mean over
crops, such as Dice, sum over all processes (:func:`total`), so that a step's loss and gradient are
those of one process with all the crops.
"""

import contextlib
import os
from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from utils.errors import UserError

PATIENCE = timedelta(
    hours=2
)  # how long processes wait for each other, as at the end of a relabelling

_hosts = None  # the group in which the processes themselves talk, without their GPUs


def started() -> int:
    """How many processes torchrun has started, before they meet; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", 1))


def launched() -> bool:
    """Whether torchrun started this process beside others."""
    return started() > 1


def start(device: torch.device) -> None:
    """Meet the other processes; nothing without torchrun.

    Raises:
        UserError: they cannot be reached.
    """
    global _hosts
    if not launched() or dist.is_initialized():
        return
    try:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
        _hosts = dist.new_group(backend="gloo", timeout=PATIENCE)
    except (RuntimeError, ValueError, OSError) as error:
        raise UserError(
            f"the processes of torchrun cannot meet: {str(error).splitlines()[0]}"
        ) from None


def stop() -> None:
    """Leave the other processes, after all have come as far."""
    global _hosts
    if dist.is_initialized():
        dist.barrier(group=_hosts)
        dist.destroy_process_group()
        _hosts = None


def rank() -> int:
    """This process's number, from 0."""
    if dist.is_initialized():
        return dist.get_rank()
    return int(os.environ.get("RANK", 0)) if launched() else 0


def world_size() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_first() -> bool:
    """Whether this is the process that writes."""
    return rank() == 0


def share_out(items: Iterable) -> list:
    """This process's share: every n-th of the items, from its own number on."""
    return list(items)[rank() :: world_size()]


def collect(share: list) -> list:
    """Of all processes' shares, as :func:`share_out` gave them, the whole list again."""
    shares = gather(share)
    return [shares[k % len(shares)][k // len(shares)] for k in range(sum(map(len, shares)))]


def alone() -> None:
    """Raise `UserError` under torchrun: for a script that is one process's work."""
    if launched():
        raise UserError("one process does this: start the script without torchrun")


def gather(value: Any) -> list:
    """What each process calls this with, in their order; each must call it."""
    values = [value] * world_size()
    if len(values) > 1:
        dist.all_gather_object(values, value, group=_hosts)
    return values


def largest(*numbers: int) -> list[int]:
    """The largest of what the processes call this with, number by number."""
    if world_size() == 1:
        return list(numbers)
    found = torch.tensor(numbers)
    dist.all_reduce(found, dist.ReduceOp.MAX, group=_hosts)
    return found.tolist()


def total(values: Tensor) -> Tensor:
    """The sum over the processes, with a gradient to each one's own values.

    Each process's gradient counts all processes' losses, of which DDP then takes the mean: where
    all make the same loss from this sum, that is the loss's own gradient.
    """
    return values if world_size() == 1 else _Total.apply(values)


class _Total(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values):
        values = values.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(values)
        return values

    @staticmethod
    def backward(ctx, gradient):
        return _Total.forward(ctx, gradient)


def mean(values: Tensor) -> Tensor:
    """The mean over the processes, without a gradient."""
    if world_size() == 1:
        return values
    values = values.detach().clone()
    dist.all_reduce(values)
    return values / world_size()


@torch.no_grad()
def average_buffers(networks: Iterable[torch.nn.Module]) -> None:
    """Make the networks' running statistics the mean of all processes', which each saw other
    crops.
    """
    if world_size() == 1:
        return
    buffers = [b for network in networks for b in network.buffers() if b.is_floating_point()]
    if buffers:
        flat = mean(torch.cat([buffer.flatten() for buffer in buffers]))
        parts = flat.split([buffer.numel() for buffer in buffers])
        torch._foreach_copy_(
            buffers, [part.view_as(b) for part, b in zip(parts, buffers, strict=True)]
        )


@contextlib.contextmanager
def without_reduction(modules: Sequence[torch.nn.Module], without: bool):
    """Where `without`, backward passes only add to each process's own gradients: more parts of the
    step follow.
    """
    with contextlib.ExitStack() as stack:
        for module in modules if without else ():
            stack.enter_context(module.no_sync())
        yield
