"""Times the compiled operators against the field's tools, after checking that all results agree.

    python benchmarks/bench_ops.py [OP …] [--large] [--threads 2] [--json FILE]

It prints a Markdown table for each operator. "ratio" is a peer's time over ours. All take turns in
every round, in one process, so that a busy machine slows all equally; as many rounds before them
are not counted. Freed memory is kept for the next tensor, as in every script. Data are real left
atria if $DATA_ROOT (default: data/) holds LA, and otherwise synthetic blobs; the table says which.
`pip install .[bench]` installs the peers.
"""

import importlib

import harness
import torch

from utils import command
from utils.device import keep_large_blocks

OPS = [path.stem for path in sorted((harness.ROOT / "benchmarks" / "ops").glob("*.py"))]


def parse(argv=None):
    parser = harness.parser(__doc__, __file__)
    parser.add_argument("ops", nargs="*", metavar="OP", help=f"any of {', '.join(OPS)}; or all")
    parser.add_argument(
        "--large",
        action="store_true",
        help="also time 512×512×256 voxels (needs 3 GB of memory and about a minute)",
    )
    args = parser.parse_args(argv)
    unknown = set(args.ops) - set(OPS)
    if unknown:
        parser.error(f"unknown {', '.join(sorted(unknown))}: choose from {', '.join(OPS)}")
    return args


def main(argv=None):
    args = parse(argv)
    torch.set_num_threads(args.threads)
    keep_large_blocks()
    facts = harness.conditions(args.threads)
    harness.show(facts)
    rows = []
    for op in args.ops or OPS:
        found = list(importlib.import_module(f"ops.{op}").run(args))
        print(f"\n{harness.table(found)}", flush=True)
        rows += found
    harness.report(rows, facts, args.json)


if __name__ == "__main__":
    command.run(main)
