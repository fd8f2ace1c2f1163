"""Several processes that train one network, as `torchrun` starts them: which process this is, and
what they exchange.

    torchrun --nproc_per_node=2 code/train_cml.py --labelnum 8

Each process has the GPU of its own number. Without torchrun there is one process, and every
function here costs nothing, so that no script needs to ask.

A step's crops are shared out (`dataloaders.two_stream`). Losses that are no mean over crops, such
as Dice, sum over all processes (`total`). So a step's loss and gradient are those of one process
with all crops.
"""

import contextlib
import inspect
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from utils.errors import UserError

PATIENCE = timedelta(hours=2)  # that processes wait for each other, as after a relabelling

_hosts = None  # the group of the processes on their CPUs


def started() -> int:
    """How many processes torchrun has started, whether they have met or not; 1 without it."""
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
    """The whole list again, from all processes' shares as `share_out` made them."""
    shares = gather(share)
    count = sum(len(own) for own in shares)
    return [shares[k % len(shares)][k // len(shares)] for k in range(count)]


def alone() -> None:
    """Raise `UserError` under torchrun: for scripts that work in one process."""
    if launched():
        raise UserError("one process does this: start the script without torchrun")


def gather(value: Any) -> list:
    """Every process's value, in the processes' order; each process must call this."""
    values = [value] * world_size()
    if len(values) > 1:
        dist.all_gather_object(values, value, group=_hosts)
    return values


def largest(*numbers: int) -> list[int]:
    """Number by number the largest over the processes; each process must call this."""
    if world_size() == 1:
        return list(numbers)
    found = torch.tensor(numbers)
    dist.all_reduce(found, dist.ReduceOp.MAX, group=_hosts)
    return found.tolist()


def total(values: Tensor) -> Tensor:
    """The sum over the processes, with a gradient to this process's own values.

    The gradient counts the losses of all processes, and DDP then takes the mean over processes. As
    all processes make the same loss from the sum, the result is the gradient of that loss.
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
def average_buffers(networks: Iterable[nn.Module]) -> None:
    """Make the networks' running statistics the mean over the processes, each of which has seen
    other crops.
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


def average_gradients(
    module: nn.Module, device: torch.device, in_parts: bool = False
) -> DistributedDataParallel:
    """The module, whose backward passes average the gradients over the processes.

    Args:
        module: the network's forward pass.
        device: the process's.
        in_parts: whether some forward passes use only a part of the weights.
    """
    # it concerns weights that are 1 wide, whose layout is contiguous and channels last at once:
    # nothing is lost
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
    place = [device] if device.type == "cuda" else None
    # buffers are left to `average_buffers`; torch has renamed the option
    known = inspect.signature(DistributedDataParallel).parameters
    option = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    return DistributedDataParallel(
        module, place, find_unused_parameters=in_parts, **{option: False}
    )


@contextlib.contextmanager
def without_reduction(modules: Sequence[DistributedDataParallel], without: bool) -> Iterator[None]:
    """Where `without`, backward passes only add to each process's own gradients, because more parts
    of the step follow.
    """
    with contextlib.ExitStack() as stack:
        if without:
            for module in modules:
                stack.enter_context(module.no_sync())
        yield
