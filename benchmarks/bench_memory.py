"""Peak memory of a training step, by method, precision and the options that save memory.

    python benchmarks/bench_memory.py                                  the table of docs/training.md
    python benchmarks/bench_memory.py --methods cml --patch 64 64 48   one method, smaller crops
    python benchmarks/bench_memory.py --check                          also measured on this CPU

Each row runs the training script itself, from its networks to its optimizer, for two steps on
noise. The peak is computed with tensors that have shapes but no values, which takes seconds and
little memory. Every storage counts from the operation that makes it until its last reference goes.
This leaves out the workspace of single operations, the allocator's slack and, on a GPU, the
context. The computation follows the CPU's autocast rules, which differ from a GPU's in few
operations. If there is a GPU, the peak of torch's allocator is measured too.
"""

import gc
import itertools
import logging
import weakref
from unittest import mock

import harness
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dataloaders import two_stream
from dataloaders.two_stream import LABELED, UNLABELED, Batch
from utils import command
from utils.device import channels_last, resolve_precision, select_device
from utils.training import run

METHODS = ("supervised", "dmd", "dtml", "ugmcl", "cml", "coranet")
SAVING = {
    "as it is": (),
    "--checkpoint_activations 1": ("--checkpoint_activations", 1),
    "--accumulate 2": ("--accumulate", 2),
    "both": ("--checkpoint_activations", 1, "--accumulate", 2),
}
# a step of all crops, which --accumulate can part
FLAGS = {"coranet": ("--updates", "joint", "--masks", "relabelling")}
LIMIT = 8e9  # bytes


class Storages(TorchDispatchMode):
    """Counts the bytes of all storages that live, and their peak."""

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
    """Replaces the loader: crops of noise with two classes, and as many cases as a step takes."""

    in_channels = 1
    num_classes = 2
    steps_per_epoch = 1
    description = {"class_names": ["noise"]}  # noqa: RUF012

    def __init__(self, args, device):
        self.patch = args.patch
        self.device = device
        self.labeled_bs = args.labeled_bs
        self.unlabeled_bs = getattr(args, "unlabeled_bs", 0)
        self.cases = {LABELED: range(self.labeled_bs), UNLABELED: range(self.unlabeled_bs)}

    def batch(self, part, parts):
        labeled = self.labeled_bs // parts
        unlabeled = self.unlabeled_bs // parts
        image = torch.randn(labeled + unlabeled, self.in_channels, *self.patch, device=self.device)
        label = (image[:labeled, 0] > 0).long()
        crops = [None] * len(image)
        return Batch(image, label, crops, [], labeled, part, parts)

    def samples(self, step):
        return []

    def gather(self, store, crops):
        """Pseudo-labels of crops, or where they are uncertain."""
        return torch.randint(0, 2, (len(crops), *self.patch), device=self.device).byte()


class Job(run.Run):
    """A run of the last two steps, without a folder."""

    def __init__(self, args, script):
        self.args = args
        self.device = select_device(args.gpu)
        self.parts = self.shares = args.accumulate
        self.precision = resolve_precision(args.precision, self.device)
        self.generator = torch.Generator()
        self.logger = logging.getLogger("bench_memory")
        self._forwards = {}
        self._reducing = []

    def to_device(self, network):
        if self.device.type == "cuda":
            return super().to_device(network)
        network.checkpoint_activations(bool(self.args.checkpoint_activations))
        layout = channels_last(network.dims)
        for module in network.modules():  # `to` cannot change the layout of tensors without values
            for key, p in module.named_parameters(recurse=False):
                if p.ndim == network.dims + 2:
                    p = torch.nn.Parameter(p.detach().contiguous(memory_format=layout))
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
    patches = [(two_stream, "two_stream_loader", Noise), (run, "Run", Job)]
    flags = ["--labelnum", 16, *FLAGS.get(method, ()), *options]
    harness.run_script(f"train_{method}.py", flags, patches)


def copied(tensor, memo):
    """`copy.deepcopy` of a tensor without values, as of a teacher's weights and statistics."""
    copy = tensor.detach().clone()
    if isinstance(tensor, torch.nn.Parameter):
        copy = torch.nn.Parameter(copy)
    memo[id(tensor)] = copy
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
    """How far the process's memory rises in two steps; None if the system does not report it.

    Freed blocks are given back at once.
    """
    with mock.patch("utils.device.keep_large_blocks"):
        step(method, "--gpu", -1, *options)  # the libraries allocate some memory only once
        return harness.peak_bytes(lambda: step(method, "--gpu", -1, *options))


def rows(args):
    """One row for each method and precision: peak bytes by the options that save memory."""
    patch = ["--patch", *args.patch] if args.patch else []
    for method, precision in itertools.product(args.methods, args.precision):
        row = {"method": method, "precision": precision, "computed": {}, "measured": {}}
        for name, options in SAVING.items():
            given = ["--precision", precision, *options, *patch]
            row["computed"][name] = computed(method, *given)
            if torch.cuda.is_available():
                row["measured"][name] = measured(method, *given)
            elif args.check:
                row["measured"][name] = measured_on_cpu(method, *given)
        yield row


def table(found):
    """Markdown: GB, computed / measured; values of at most `LIMIT` are bold."""
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


def parse(argv=None):
    parser = command.Parser(__doc__, __file__)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument(
        "--precision", nargs="+", choices=("fp32", "bf16"), default=("fp32", "bf16")
    )
    parser.add_argument(
        "--patch",
        nargs=3,
        type=int,
        metavar=("X", "Y", "Z"),
        help="extents of a crop, if not the left atria's",
    )
    parser.add_argument(
        "--check", action="store_true", help="also measure on this CPU: slow, use a small --patch"
    )
    harness.add_json(parser)
    return parser.parse_args(argv)


def main(argv=None):
    args = parse(argv)
    if args.check:
        torch.set_num_threads(1)
    found = list(rows(args))
    print(table(found))
    harness.report(found, harness.conditions(torch.get_num_threads()), args.json)


if __name__ == "__main__":
    command.run(main)
