"""Where the tensors live and in which precision: GPUs, CPU, allocator, autocast."""

import ctypes
import platform
import warnings
from functools import cache

import torch

from utils.errors import UserError

# glibc's mallopt parameters (malloc.h)
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4


@cache
def keep_large_blocks():
    """Make glibc keep freed blocks for the next tensor, instead of giving the pages back and faulting them in again.

    A training step frees and allocates the same gigabytes over and over; page faults are more than half of its time
    on a CPU otherwise. To be called before the first large tensor.

    Returns:
        True where the allocator took all three settings, False on another C library.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return all((mallopt(M_MMAP_MAX, 0), mallopt(M_TRIM_THRESHOLD, 2**31 - 1), mallopt(M_TOP_PAD, 256 << 20)))


@cache
def warn_once(message):
    """Show a warning's text once a process."""
    warnings.warn(message, stacklevel=3)


def select_devices(gpu):
    """The devices of `--gpu`: "0" one GPU, "0,1" several, "-1" the CPU.

    On a machine without a GPU any choice is the CPU, with one warning.

    Raises:
        UserError: not a list of numbers, a number twice, or a GPU that the machine does not have.
    """
    try:
        indices = [int(index) for index in str(gpu).split(",")]
    except ValueError:
        raise UserError(f"--gpu {gpu}: give a number, numbers with commas between (0,1), or -1 for the CPU") from None
    if indices != [-1]:
        if min(indices) < 0 or len(set(indices)) < len(indices):
            raise UserError(f"--gpu {gpu}: each GPU once, counted from 0; -1 alone is the CPU")
        if torch.cuda.is_available():
            count = torch.cuda.device_count()
            if max(indices) >= count:
                raise UserError(f"--gpu {gpu}: this machine has {count} GPU(s), numbered from 0")
            torch.cuda.set_device(indices[0])
            return [torch.device("cuda", index) for index in indices]
        warn_once(f"no GPU here: --gpu {gpu} runs on the CPU (--gpu -1 says so without this warning)")
    keep_large_blocks()
    return [torch.device("cpu")]


def select_device(gpu):
    """The first device of `--gpu` (see `select_devices`)."""
    return select_devices(gpu)[0]


def has_fast_bf16(device):
    """Whether the hardware multiplies bfloat16 itself; emulation is slower than float32."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    # private in every release so far, hence the care; older torch without them means float32
    checks = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return any(check() for check in checks if check is not None)


def resolve_precision(precision, device):
    """`auto` as `bf16` where the hardware multiplies it, else `fp32`; `fp32` on a GPU is strict, without TF32."""
    if precision == "auto":
        precision = "bf16" if has_fast_bf16(device) else "fp32"
    if device.type == "cuda":
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = precision != "fp32"
    return precision


@cache
def bf16_gradients_agree(device, extents):
    """Whether a bfloat16 convolution, 3 wide, over `extents` (two or three) has float32's weight gradient.

    oneDNN 3.12 (torch 2.13, CPU) sums uninitialised memory into it where the first extent is 2, and cuDNN 9.8 to 9.10
    had a like fault: trusting it would train on garbage without a word.
    """
    generator, dims = torch.Generator().manual_seed(0), len(extents)
    convolve = torch.nn.functional.conv2d if dims == 2 else torch.nn.functional.conv3d
    layout = channels_last(dims)
    x = torch.randn(2, 16, *extents, generator=generator).to(device, memory_format=layout)
    weight = torch.randn(16, 16, *[3] * dims, generator=generator).to(device, memory_format=layout)

    def gradient(precision):
        w = weight.clone().requires_grad_()
        with autocast(device, precision):
            y = convolve(x, w, padding=1)
        y.float().square().mean().backward()
        return w.grad

    exact = gradient("fp32")
    for _ in range(3):
        dirt = [torch.full((2**k,), torch.nan, device=device) for k in range(4, 22)]  # what lies about in memory
        del dirt
        if not (gradient("bf16") - exact).norm() < 0.05 * exact.norm():  # NaN is no agreement either
            return False
    return True


class Forward(torch.nn.Module):
    """A network's forward pass in the run's precision: autocast's settings do not reach DataParallel's threads."""

    def __init__(self, network, device, precision):
        super().__init__()
        self.network, self.device, self.precision = network, device, precision

    def forward(self, *inputs):
        with autocast(self.device, self.precision):
            return self.network(*inputs)


def channels_last(dims):
    """The memory format that makes convolutions over `dims` axes (2 or 3) fast."""
    return torch.channels_last if dims == 2 else torch.channels_last_3d


def autocast(device, precision):
    """Context in which convolutions run in `precision` (`fp32` or `bf16`, not `auto`).

    Raises:
        ValueError: another precision.
    """
    if precision not in ("fp32", "bf16"):
        raise ValueError(f"precision {precision!r} is neither fp32 nor bf16")
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def describe(device):
    """The hardware's name, for the log and the environment record."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        with open("/proc/cpuinfo") as file:
            name = next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor() or platform.machine()
    return f"{name}, {torch.get_num_threads()} threads"
