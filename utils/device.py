"""Where the tensors live and in which precision: GPUs, CPU, allocator, autocast, compiled and
repeatable kernels.
"""

import ctypes
import os
import platform
import warnings
from functools import cache

import torch

from utils import distributed
from utils.errors import UserError

# glibc's mallopt parameters (malloc.h)
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4


@cache
def keep_large_blocks():
    """Make glibc keep freed blocks for the next tensor, instead of giving the pages back and
    faulting them in again.

    A training step frees and allocates the same gigabytes over and over; page faults are more than
    half of its time on a CPU otherwise. To be called before the first large tensor.

    Returns:
        True where the allocator took all three settings, False on another C library.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return all(
        (
            mallopt(M_MMAP_MAX, 0),
            mallopt(M_TRIM_THRESHOLD, 2**31 - 1),
            mallopt(M_TOP_PAD, 256 << 20),
        )
    )


@cache
def warn_once(message):
    """Show a warning's text once a process."""
    warnings.warn(message, stacklevel=3)


def select_devices(gpu):
    """The devices of `--gpu`: "0" one GPU, "0,1" several, "-1" the CPU.

    On a machine without a GPU any choice is the CPU, with one warning. Each process of torchrun
    takes one of the list, or of "0", which is the default, the one of its own number on its
    machine.

    Raises:
        UserError: not a list of numbers, a number twice, a GPU that the machine does not have, or
            other than one a process.
    """
    try:
        indices = [int(index) for index in str(gpu).split(",")]
    except ValueError:
        raise UserError(
            f"--gpu {gpu}: give a number, numbers with commas between (0,1), or -1 for the CPU"
        ) from None
    if indices != [-1]:
        if min(indices) < 0 or len(set(indices)) < len(indices):
            raise UserError(f"--gpu {gpu}: each GPU once, counted from 0; -1 alone is the CPU")
        if torch.cuda.is_available():
            count = torch.cuda.device_count()
            if distributed.launched():
                indices = [_own_gpu(gpu, indices)]
            if max(indices) >= count:
                raise UserError(f"--gpu {gpu}: this machine has {count} GPU(s), numbered from 0")
            torch.cuda.set_device(indices[0])
            return [torch.device("cuda", index) for index in indices]
        warn_once(
            f"no GPU here: --gpu {gpu} runs on the CPU (--gpu -1 says so without this warning)"
        )
    keep_large_blocks()
    return [torch.device("cpu")]


def _own_gpu(gpu, indices):
    """Of the GPUs that are named, the one of this process among those of its machine."""
    place, here = (int(os.environ.get(name, 0)) for name in ("LOCAL_RANK", "LOCAL_WORLD_SIZE"))
    if indices == [0]:
        return place
    if len(indices) != here:
        raise UserError(
            f"--gpu {gpu}: torchrun starts {here} processes a machine; name as many GPUs, or none"
        )
    return indices[place]


def select_device(gpu):
    """The first device of `--gpu` (see `select_devices`)."""
    return select_devices(gpu)[0]


def has_fast_bf16(device):
    """Whether the hardware multiplies bfloat16 itself; emulation is slower than float32."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    # private in every release so far, hence the care; older torch without them means float32
    checks = (
        getattr(torch.cpu, name, None)
        for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    )
    return any(check() for check in checks if check is not None)


def resolve_precision(precision, device):
    """`auto` as `bf16` where the hardware multiplies it, else `fp32`; `fp32` on a GPU is strict,
    `tf32` is what only a GPU has: float32 whose products are rounded to 10 bits."""
    if precision == "auto":
        precision = "bf16" if has_fast_bf16(device) else "fp32"
    if precision == "tf32" and device.type != "cuda":
        warn_once("no TF32 on this device: --precision tf32 is fp32 here")
        precision = "fp32"
    if device.type == "cuda":
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = (
            precision != "fp32"
        )
    return precision


def be_deterministic():
    """Kernels that give the same bits every time; one that has no such form raises when it is
    called. To be called before anything has run on a GPU."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what cuBLAS needs for it
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = (
        False  # nothing here reads what it has not written
    )
    torch.backends.cudnn.benchmark = False


@cache
def bf16_agrees(device, extents):
    """Whether a bfloat16 convolution, 3 wide, over `extents` (two or three) has float32's output
    and gradients.

    oneDNN 3.12 (torch 2.13, CPU) sums uninitialised memory into the weight's where the first extent
    is 2, and cuDNN 9.8 to 9.10 had a like fault: trusting it would train on garbage without a word.
    """
    generator, dims = torch.Generator().manual_seed(0), len(extents)
    convolve = torch.nn.functional.conv2d if dims == 2 else torch.nn.functional.conv3d
    layout = channels_last(dims)
    x = torch.randn(2, 16, *extents, generator=generator).to(device, memory_format=layout)
    weight = torch.randn(16, 16, *[3] * dims, generator=generator).to(device, memory_format=layout)

    def results(precision):
        inputs = [
            t.clone(memory_format=torch.preserve_format).requires_grad_() for t in (x, weight)
        ]
        with autocast(device, precision):
            y = convolve(*inputs, padding=1)
        y.float().square().mean().backward()
        return [y.detach().float(), *(t.grad for t in inputs)]

    exact = results("fp32")
    for _ in range(3):
        dirt = [
            torch.full((2**k,), torch.nan, device=device) for k in range(4, 22)
        ]  # what lies about in memory
        del dirt
        for found, right in zip(results("bf16"), exact, strict=True):
            if not (found - right).norm() < 0.05 * right.norm():  # NaN is no agreement either
                return False
    return True


class Forward(torch.nn.Module):
    """A network's forward pass in the run's precision: autocast's settings do not reach
    DataParallel's threads.

    Args:
        network: stays as it is, what is compiled included.
        device, precision: of `autocast`.
        compiled: `0`; `1` for torch.compile's kernels; `graphs` for these replayed as CUDA graphs.
    """

    def __init__(self, network, device, precision, compiled="0"):
        super().__init__()
        self.network, self.device, self.precision = network, device, precision
        self._compiled = None
        if compiled != "0":
            # one for training and evaluation, with and without gradient, and of each batch size:
            # more than the usual 8
            torch._dynamo.config.cache_size_limit = 64
            torch._dynamo.config.optimize_ddp = (
                False  # cuts graphs up, which some versions refuse with checkpoints
            )
            mode = "reduce-overhead" if compiled == "graphs" else None
            self._compiled = torch.compile(
                network.forward, fullgraph=True, dynamic=False, mode=mode
            )

    def forward(self, *inputs):
        with autocast(self.device, self.precision):
            return (self._compiled or self.network)(*inputs)


def channels_last(dims):
    """The memory format that makes convolutions over `dims` axes (2 or 3) fast."""
    return torch.channels_last if dims == 2 else torch.channels_last_3d


def autocast(device, precision):
    """Context in which convolutions run in `precision` (`fp32`, `tf32` or `bf16`, not `auto`).

    Raises:
        ValueError: another precision.
    """
    if precision not in ("fp32", "tf32", "bf16"):
        raise ValueError(f"precision {precision!r} is none of fp32, tf32 and bf16")
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def describe(device):
    """The hardware's name, for the log and the environment record."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        with open("/proc/cpuinfo") as file:
            name = next(
                line.split(":", 1)[1].strip() for line in file if line.startswith("model name")
            )
    except (OSError, StopIteration):
        name = platform.processor() or platform.machine()
    return f"{name}, {torch.get_num_threads()} threads"
