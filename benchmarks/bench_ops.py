"""Times the compiled operators against the tools the field uses: equality first, then medians from
one process.

    python benchmarks/bench_ops.py [OP …] [--large] [--threads 2] [--json benchmarks/results/<machine>-<date>.json]

Prints a Markdown table an operator; a ratio says how many times the time of ours a peer takes. The
peers take turns with us in every round, so that a busy machine slows all alike; as many rounds
before are not counted. Freed memory is kept for the next tensor, as in every script. Data are real
left atria where $DATA_ROOT (default: data/) holds LA, and synthetic blobs, said so in the table,
where it does not. The peers: `pip install .[bench]`.
"""

import importlib

import harness
import torch

from utils.device import keep_large_blocks

OPS = [path.stem for path in sorted((harness.ROOT / "benchmarks" / "ops").glob("*.py"))]


def main():
    parser = harness.parser(__doc__)
    parser.add_argument("ops", nargs="*", metavar="OP", help=f"default: all of {', '.join(OPS)}")
    parser.add_argument(
        "--large",
        action="store_true",
        help="also 512×512×256 (needs 3 GB of memory, about a minute)",
    )
    args = parser.parse_args()
    if unknown := set(args.ops) - set(OPS):
        parser.error(f"unknown {', '.join(sorted(unknown))}: choose from {', '.join(OPS)}")
    torch.set_num_threads(args.threads)
    keep_large_blocks()
    facts = harness.conditions(args.threads)
    print(", ".join(f"{name} {value}" for name, value in facts.items()))
    rows = []
    for op in args.ops or OPS:
        found = list(importlib.import_module(f"ops.{op}").run(args))
        print(f"\n{harness.table(found)}", flush=True)
        rows += found
    harness.report(rows, facts, args.json)


if __name__ == "__main__":
    main()
