"""Peak memory of a training step, by method, precision and the options that save memory.

    python benchmarks/bench_memory.py                                  the table of docs/training.md
    python benchmarks/bench_memory.py --methods cml --patch 64 64 48   one method, smaller crops
    python benchmarks/bench_memory.py --check                          computed beside measured, on this CPU

Each row runs the training script itself, from its networks to its optimizer, for two steps on
noise. Computed: with tensors that have shapes and no values, so in seconds and without the memory;
every storage counts from the operation that makes it until its last reference goes. What that
leaves out are an operation's own workspace, the allocator's slack and, on a GPU, the context.
Measured, where there is a GPU: the most that torch's allocator had handed out at a time. CPU's
autocast rules, of which a GPU's differ in few operations, hold for what is computed.
"""

import argparse
import gc
import itertools
import runpy
import sys
import weakref
from pathlib import Path
from unittest import mock

import harness
import torch
from harness import ROOT
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dataloaders.two_stream import LABELED, UNLABELED, Batch
from utils import command
from utils.device import channels_last, resolve_precision, select_device
from utils.training import run

sys.path.insert(0, str(ROOT / "code"))  # where the scripts find `_root`

METHODS = ("supervised", "dmd", "dtml", "ugmcl", "cml", "coranet")
SAVING = {
    "as it is": (),
    "--checkpoint_activations 1": ("--checkpoint_activations", 1),
    "--accumulate 2": ("--accumulate", 2),
    "both": ("--checkpoint_activations", 1, "--accumulate", 2),
}
LIMIT = 8e9  # bytes


class Storages(TorchDispatchMode):
    """Bytes of all storages that live, and the most that lived at a time."""

    def __init__(self):
        super().__init__()
        self.live = self.peak = 0
        self._known = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, torch.Tensor):
                self._count(value.untyped_storage())
        return result

    def _count(self, storage):
        key, size = storage._cdata, storage.nbytes()
        if key not in self._known:
            self._known.add(key)
            weakref.finalize(storage, self._forget, key, size)
            self.live += size
            self.peak = max(self.peak, self.live)

    def _forget(self, key, size):
        self._known.discard(key)
        self.live -= size


class Noise:
    """Stands in for the loader: crops of noise, of two classes, and as many cases as a step
    takes.
    """

    in_channels, num_classes, steps_per_epoch = 1, 2, 1

    def __init__(self, args, device):
        self.patch, self.device = args.patch, device
        self.labeled_bs, self.unlabeled_bs = args.labeled_bs, getattr(args, "unlabeled_bs", 0)
        self.cases = {LABELED: range(self.labeled_bs), UNLABELED: range(self.unlabeled_bs)}

    def batch(self, part, parts):
        labeled, unlabeled = self.labeled_bs // parts, self.unlabeled_bs // parts
        image = torch.randn(labeled + unlabeled, 1, *self.patch, device=self.device)
        label = (image[:labeled, 0] > 0).long()
        return Batch(image, label, [None] * len(image), [], labeled, part, parts)

    def samples(self, step):
        return []

    def gather(self, store, crops):
        """Pseudo-labels and certain voxels as CoraNet packs them."""
        return torch.randint(0, 4, (len(crops), *self.patch), device=self.device).byte()


class Job(run.Run):
    """A run of the last two steps, without its folder."""

    def __init__(self, args, script):
        self.args = args
        self.device = select_device(args.gpu)
        self.parts = self.shares = args.accumulate
        self.precision = resolve_precision(args.precision, self.device)
        self.generator = torch.Generator()
        self._forwards, self._reducing = {}, []

    def to_device(self, network):
        if self.device.type == "cuda":
            return super().to_device(network)
        network.checkpoint_activations(bool(self.args.checkpoint_activations))
        for module in network.modules():  # whose own `to` cannot lay out tensors without values
            for key, p in module.named_parameters(recurse=False):
                if p.ndim == network.dims + 2:
                    p = torch.nn.Parameter(
                        p.detach().contiguous(memory_format=channels_last(network.dims))
                    )
                    setattr(module, key, p)
        return network

    def resume(self, *names, **objects):
        return 0

    def steps(self, data, last):
        for step in (last - 1, last):
            for part in range(self.parts):
                self._part = part
                yield step, data.batch(part, self.parts)

    def log(self, step, **values):
        pass

    def checkpoint(self, step):
        pass


def step(method, *options):
    """Run two steps of a method's script."""
    script, noise = (
        str(ROOT / "code" / f"train_{method}.py"),
        "dataloaders.two_stream.two_stream_loader",
    )
    words = [script, "--labelnum", "16", *map(str, options)]
    with (
        mock.patch(noise, Noise),
        mock.patch.object(run, "Run", Job),
        mock.patch.object(sys, "argv", words),
    ):
        runpy.run_path(script, run_name="__main__")


def copied(tensor, memo):
    """What `copy.deepcopy`, which wants values, makes of a tensor without: a teacher's weights and
    statistics.
    """
    copy = tensor.detach().clone()
    memo[id(tensor)] = copy = (
        torch.nn.Parameter(copy) if isinstance(tensor, torch.nn.Parameter) else copy
    )
    return copy


def computed(method, *options):
    """Peak bytes of two steps without values."""
    gc.collect()
    deepcopy = mock.patch.object(FakeTensor, "__deepcopy__", copied, create=True)
    with deepcopy, FakeTensorMode(allow_non_fake_inputs=True), Storages() as storages:
        step(method, "--gpu", -1, *options)
    return storages.peak


def measured(method, *options):
    """Peak bytes of two steps on the GPU."""
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    step(method, "--gpu", 0, *options)
    return torch.cuda.max_memory_allocated()


def measured_on_cpu(method, *options):
    """How far the process's memory rises in two steps, freed blocks given back at once; None where
    it is not told.
    """
    with mock.patch("utils.device.keep_large_blocks"):
        step(method, "--gpu", -1, *options)  # what the libraries make once
        return harness.peak_bytes(lambda: step(method, "--gpu", -1, *options))


def rows(args):
    """A row each method and precision: bytes by what saves memory, computed and, where there is a
    GPU, measured.
    """
    for method, precision in itertools.product(args.methods, args.precision):
        row = {"method": method, "precision": precision, "computed": {}, "measured": {}}
        for name, options in SAVING.items():
            given = [
                "--precision",
                precision,
                *options,
                *(["--patch", *args.patch] if args.patch else []),
            ]
            row["computed"][name] = computed(method, *given)
            if torch.cuda.is_available():
                row["measured"][name] = measured(method, *given)
            elif args.check:
                row["measured"][name] = measured_on_cpu(method, *given)
        yield row


def table(found):
    """Markdown: GB, computed and behind a slash measured; in bold what is at most `LIMIT`."""
    lines = [
        "| method | precision | " + " | ".join(SAVING) + " |",
        "|---|---|" + "---:|" * len(SAVING),
    ]
    for row in found:
        cells = []
        for name in SAVING:
            values = [row["computed"][name], row["measured"].get(name)]
            text = " / ".join(f"{value / 1e9:.1f}" for value in values if value is not None)
            cells.append(f"**{text}**" if max(value or 0 for value in values) <= LIMIT else text)
        lines.append(f"| {row['method']} | {row['precision']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument(
        "--precision", nargs="+", choices=("fp32", "bf16"), default=("fp32", "bf16")
    )
    parser.add_argument(
        "--patch", nargs=3, type=int, metavar="X", help="crop X Y Z (default: the left atria's)"
    )
    parser.add_argument(
        "--check", action="store_true", help="measure on this CPU too: slow, for a small --patch"
    )
    parser.add_argument("--json", type=Path, help="also write environment and rows to this file")
    args = parser.parse_args()
    if args.check:
        torch.set_num_threads(1)
    found = list(rows(args))
    print(table(found))
    harness.report(found, harness.conditions(torch.get_num_threads()), args.json)


if __name__ == "__main__":
    command.run(main)
