"""Times the compiled operators against the tools the field uses: equality first, then medians from one process.

    python benchmarks/bench_ops.py [--large] [--threads 2] [--json benchmarks/results/<machine>-<date>.json]

Prints Markdown tables; a ratio says how many times the peer's time ours is shorter. The peers take turns with us in
every round, so that a busy machine slows all alike. Labels are real left atria where DATA_ROOT (default: data/) holds
LA, and synthetic blobs, said so in the table, where it does not.
"""

import argparse
import functools
import importlib.util
import json
import os
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from utils.ops import _library, normalized_sdm, signed_distance  # noqa: E402
from utils.run import environment  # noqa: E402

CROP = (112, 112, 80)
LARGE = (512, 512, 256)


# ---------------------------------------------------------------------------------------------------------- machinery


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--large", action="store_true", help="also 512x512x256 (needs 3 GB of memory, about a minute)")
    parser.add_argument(
        "--threads", type=int, default=os.cpu_count(), help="threads of every tool (default: all cores)"
    )
    parser.add_argument("--rounds", type=int, default=9, help="repetitions; the median is reported (default: 9)")
    parser.add_argument("--json", type=Path, help="also write environment and rows to this file")
    return parser.parse_args()


def conditions(threads):
    """The run record's facts, and what else a timing depends on."""
    facts = environment([torch.device("cpu")])
    facts |= {"cpu_capability": torch.backends.cpu.get_cpu_capability(), "threads": threads}
    return facts | {"compiled": _library.BUILT, "command": " ".join(["python", *sys.argv])}


def compare(operation, data, ours, peers, rounds, atol=0.0):
    """Rows for our operator and for each peer that is installed, after checking that all give the same.

    Args:
        operation, data: what the table says.
        ours: calls the operator, returns a tensor.
        peers: name -> (packages it needs, callable that returns an array).
        rounds: how often each is timed.
        atol: how far a peer may lie from ours, for peers that compute in another precision.
    """
    runs = {f"**{operation}**": ours}
    result = ours().numpy()
    for name, (packages, run) in peers.items():
        missing = [package for package in packages if importlib.util.find_spec(package) is None]
        if missing:
            print(f"skipped {name}: no {', '.join(missing)}; pip install .[bench]", file=sys.stderr)
            continue
        np.testing.assert_allclose(result, run(), rtol=0, atol=atol, err_msg=f"{operation} against {name}")
        runs[name] = run
    times = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            times[name].append(1e3 * (time.perf_counter() - start))
    medians = {name: statistics.median(values) for name, values in times.items()}
    reference = next(iter(medians.values()))
    return [
        {
            "operation": operation,
            "data": data,
            "implementation": name,
            "median_ms": round(median, 3),
            "fastest_ms": round(min(times[name]), 3),
            "ratio": round(median / reference, 2),
        }
        for name, median in medians.items()
    ]


def table(rows):
    lines = ["| data | implementation | median ms | fastest ms | ratio |", "|---|---|---|---|---|"]
    for row in rows:
        lines.append("| {data} | {implementation} | {median_ms:.1f} | {fastest_ms:.1f} | {ratio:.1f} |".format(**row))
    return "\n".join(lines)


@functools.cache
def label_crops(count=4):
    """``(count, 112, 112, 80)`` uint8 labels and what they are."""
    files = sorted((Path(os.environ.get("DATA_ROOT", ROOT / "data")) / "LA").glob("**/mri_norm2.h5"))[:count]
    if len(files) == count and importlib.util.find_spec("h5py"):
        import h5py

        crops = []
        for file in files:
            with h5py.File(file) as case:
                label = case["label"][:]
            corner = [(extent - size) // 2 for extent, size in zip(label.shape, CROP, strict=True)]
            crops.append(label[tuple(slice(c, c + size) for c, size in zip(corner, CROP, strict=True))])
        return torch.from_numpy(np.stack(crops)), "left atria"
    random = np.random.default_rng(0)
    centre = np.stack(np.meshgrid(*(np.linspace(-1, 1, size) for size in CROP), indexing="ij"))
    blobs = []
    for _ in range(count):
        bumps = ndimage.gaussian_filter(random.standard_normal(CROP), 6)
        axes = random.uniform(0.35, 0.6, 3)[:, None, None, None]
        blobs.append(((centre / axes) ** 2).sum(0) + 0.4 * bumps / bumps.std() < 1)
    return torch.from_numpy(np.stack(blobs).astype(np.uint8)), "synthetic blobs"


# ------------------------------------------------------------------------------------------------------------- peers


def scipy_signed(mask):
    return ndimage.distance_transform_edt(mask == 0) - ndimage.distance_transform_edt(mask)


def edt_unsigned(mask, threads):
    """Both sides in one pass: the distance to the nearest voxel of another label, with labels 1 and 2."""
    import edt

    return edt.edt(mask + 1, parallel=threads)


def edt_signed(mask, threads):
    distance = edt_unsigned(mask, threads)
    return np.where(mask, -distance, distance)


def edt_normalized(mask, threads):
    distance = edt_unsigned(mask, threads)
    inside = mask != 0
    sdm = np.where(inside, distance * (-1 / distance[inside].max()), distance * (1 / distance[~inside].max()))
    sdm[inside & (distance == 1)] = 0
    return sdm


def research_normalized(mask):
    """``compute_sdf`` of the research repositories, by its definition."""
    from skimage.segmentation import find_boundaries

    inside, outside = ndimage.distance_transform_edt(mask), ndimage.distance_transform_edt(mask == 0)
    sdm = (outside - outside.min()) / (outside.max() - outside.min())
    sdm -= (inside - inside.min()) / (inside.max() - inside.min())
    sdm[find_boundaries(mask, mode="inner")] = 0
    return sdm


def each(function, masks, *args):
    return np.stack([function(mask, *args) for mask in masks])


# ---------------------------------------------------------------------------------------------------------- sections


def bench_signed_distance(args):
    crops, source = label_crops()
    masks, data = crops.numpy(), f"{source}, {'×'.join(map(str, crops.shape))}"
    edt_name = f"edt(mask + 1), {args.threads} threads"
    yield from compare(
        "signed_distance",
        data,
        lambda: signed_distance(crops),
        {
            edt_name: (["edt"], lambda: each(edt_signed, masks, args.threads)),
            "SciPy, both sides": ([], lambda: each(scipy_signed, masks)),
        },
        args.rounds,
        atol=1e-5,
    )
    yield from compare(
        "normalized_sdm",
        data,
        lambda: normalized_sdm(crops),
        {
            f"{edt_name}, NumPy": (["edt"], lambda: each(edt_normalized, masks, args.threads)),
            "research compute_sdf": (["skimage"], lambda: each(research_normalized, masks)),
        },
        args.rounds,
        atol=1e-6,
    )
    if args.large:
        large = torch.nn.functional.interpolate(crops[:1, None].float(), LARGE).to(torch.uint8)[0]
        masks = large.numpy()
        yield from compare(
            "signed_distance",
            f"{source}, enlarged to {'×'.join(map(str, LARGE))}",
            lambda: signed_distance(large),
            {edt_name: (["edt"], lambda: each(edt_unsigned, masks, args.threads) * np.where(masks, -1, 1))},
            min(args.rounds, 3),
            atol=1e-4,
        )


SECTIONS = [bench_signed_distance]


def main():
    args = parse_args()
    torch.set_num_threads(args.threads)
    facts = conditions(args.threads)
    print(", ".join(f"{name} {value}" for name, value in facts.items()))
    rows = []
    for section in SECTIONS:
        found = list(section(args))
        print(f"\n{table(found)}")
        rows += found
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps({"environment": facts, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
