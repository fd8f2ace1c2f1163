"""Where tensors live and in which precision: GPU or CPU, allocator, autocast, compiled and
repeatable kernels.
"""

import ctypes
import os
import platform
import warnings
from functools import cache
from pathlib import Path

import torch

from utils import distributed
from utils.errors import UserError

# glibc's mallopt parameters (malloc.h)
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4


@cache
def keep_large_blocks() -> bool:
    """Make glibc keep freed blocks for the next tensor instead of giving their pages back.

    A training step frees and allocates the same gigabytes over and over; on a CPU page faults would
    take more than half of its time. Call this before the first large tensor.

    Returns:
        True where the allocator took all three settings, False on another C library.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    taken = [
        mallopt(M_MMAP_MAX, 0),
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1),
        mallopt(M_TOP_PAD, 256 << 20),
    ]
    return all(taken)


@cache
def warn_once(message: str) -> None:
    """Show a warning once in a process."""
    warnings.warn(message, stacklevel=3)


def select_device(gpu: int) -> torch.device:
    """The device of `--gpu`: a GPU's number, or -1 for the CPU.

    On a machine without a GPU any number is the CPU, with one warning. Under torchrun 0, which is
    the default, is the GPU of the process's own number on its machine.

    Raises:
        UserError: a GPU that the machine does not have, or one for several processes.
    """
    gpu = int(gpu)
    if gpu >= 0 and torch.cuda.is_available():
        if distributed.launched():
            gpu = _own_gpu(gpu)
        count = torch.cuda.device_count()
        if gpu >= count:
            raise UserError(f"--gpu {gpu}: this machine has {count} GPU(s), numbered from 0")
        torch.cuda.set_device(gpu)
        return torch.device("cuda", gpu)
    if gpu >= 0:
        warn_once(
            f"no GPU here: --gpu {gpu} runs on the CPU (--gpu -1 says so without this warning)"
        )
    keep_large_blocks()
    return torch.device("cpu")


def _own_gpu(gpu: int) -> int:
    """The GPU of this process of torchrun."""
    if gpu == 0:
        return int(os.environ.get("LOCAL_RANK", 0))
    here = int(os.environ.get("LOCAL_WORLD_SIZE", 0))
    if here > 1:
        raise UserError(
            f"--gpu {gpu}: torchrun starts {here} processes on this machine; leave --gpu out, and "
            "choose GPUs with CUDA_VISIBLE_DEVICES"
        )
    return gpu


def has_fast_bf16(device: torch.device) -> bool:
    """Whether the hardware multiplies bfloat16 itself; emulation is slower than float32."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    # both are private so far; a torch without them means float32
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        check = getattr(torch.cpu, name, None)
        if check is not None and check():
            return True
    return False


def resolve_precision(precision: str, device: torch.device) -> str:
    """The precision of a run that asks for `precision`, `fp32`, `tf32` or `bf16`; on a GPU it is
    set for all convolutions and products of matrices that do not run under `autocast`.

    `auto` is `bf16` where the hardware multiplies it, else `fp32`. `fp32` is strict on a GPU.
    `tf32`, float32 whose products are rounded to 10 bits, is `fp32` with a warning on a CPU.
    """
    if precision == "auto":
        precision = "bf16" if has_fast_bf16(device) else "fp32"
    if precision == "tf32" and device.type != "cuda":
        warn_once("no TF32 on this device: --precision tf32 is fp32 here")
        precision = "fp32"
    if device.type == "cuda":
        torch.backends.cudnn.allow_tf32 = precision != "fp32"
        torch.backends.cuda.matmul.allow_tf32 = precision != "fp32"
    return precision


def be_deterministic() -> None:
    """Use kernels that give the same bits every time; one that has no such form raises when it is
    called. Call this before anything has run on a GPU.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what cuBLAS needs for it
    torch.use_deterministic_algorithms(True)
    # nothing here reads memory that it has not written
    torch.utils.deterministic.fill_uninitialized_memory = False
    torch.backends.cudnn.benchmark = False


@cache
def bf16_agrees(device: torch.device, extents: tuple[int, ...]) -> bool:
    """Whether a bfloat16 convolution, 3 wide, over `extents` (two or three) has float32's output
    and gradients.

    oneDNN 3.12 (torch 2.13, CPU) sums uninitialised memory into the weight's where the first extent
    is 2, and cuDNN 9.8 to 9.10 had a like fault: a run would train on garbage without a word.
    """
    generator = torch.Generator().manual_seed(0)
    dims = len(extents)
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
        # memory that is freed at once: an allocation that is not cleared finds NaN
        dirt = [torch.full((2**k,), torch.nan, device=device) for k in range(4, 22)]
        del dirt
        for found, right in zip(results("bf16"), exact, strict=True):
            if not (found - right).norm() < 0.05 * right.norm():  # NaN is no agreement either
                return False
    return True


class Forward(torch.nn.Module):
    """A network's forward pass in the run's precision.

    Args:
        network: it stays as it is, also where its forward pass is compiled.
        device, precision: of `autocast`.
        compiled: whether the forward pass goes through torch.compile.
    """

    def __init__(
        self,
        network: torch.nn.Module,
        device: torch.device,
        precision: str,
        compiled: bool = False,
    ):
        super().__init__()
        self.network = network
        self.device = device
        self.precision = precision
        self._compiled = None
        if compiled:
            # one graph for training and evaluation, with and without gradient, and for each batch
            # size: more than the usual 8
            torch._dynamo.config.cache_size_limit = 64
            # it would cut graphs up, which some versions refuse with checkpoints
            torch._dynamo.config.optimize_ddp = False
            self._compiled = torch.compile(network.forward, fullgraph=True, dynamic=False)

    def forward(self, *inputs: torch.Tensor, **options: bool):
        call = self.network if self._compiled is None else self._compiled
        with autocast(self.device, self.precision):
            return call(*inputs, **options)


def channels_last(dims: int) -> torch.memory_format:
    """The memory format that makes convolutions over `dims` axes (2 or 3) fast."""
    return torch.channels_last if dims == 2 else torch.channels_last_3d


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """A context in which convolutions run in `precision` (`fp32`, `tf32` or `bf16`, not `auto`).

    Raises:
        ValueError: another precision.
    """
    if precision not in ("fp32", "tf32", "bf16"):
        raise ValueError(f"precision {precision!r} is none of fp32, tf32 and bf16")
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def describe(device: torch.device) -> str:
    """The hardware's name, for the log and the environment record."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{_cpu_name()}, {torch.get_num_threads()} threads"


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
