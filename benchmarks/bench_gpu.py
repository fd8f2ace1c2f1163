"""Times the CUDA kernels, eager and replayed from a graph, beside their peers; `benchmarks/gpu.sh`
runs all of it.

    python benchmarks/bench_gpu.py [SECTION …] [--json FILE]       (--list names the sections)
    python benchmarks/bench_gpu.py drive                           every operator once, small: for compute-sanitizer
    python benchmarks/bench_gpu.py --check                         fails where there is nothing of ours to time

A row holds the median of repeated runs between CUDA events; what it times has been compared first,
with the CPU kernels or, on `--device cpu`, with the references. Before each eager run 256 MB are
written and waited for, so that it finds nothing of its own in the caches, and its launches count; a
replayed graph finds its caches warm. "of copy" is the bytes that the operator must read and write
over its time, as a share of the device's own copy bandwidth in the same process: of the eager run,
and then of the replayed graph, which exceeds what memory gives where the data fit into the caches.
"expected" was estimated for an H200 from bytes and operations before anything was measured.
`--device cpu` tries the script out, small, without a GPU.
"""

import argparse
import functools
import importlib.util
import json
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.files import write_atomically

BROKEN = None
try:
    import harness

    from utils import ops
    from utils.environment import environment
    from utils.inference import sliding_window
    from utils.ops import _library
except (
    ImportError
) as error:  # a library that does not load; how a section ended is recorded all the same
    BROKEN = str(error)

PATCH, STRIDE = (112, 112, 80), (18, 18, 4)
REPEATS = 30
FLUSH = 256 * 10**6  # bytes, several times the largest L2 cache


# ---------------------------------------------------------------------------------------------------------- machinery


class Bench:
    """Times calls on one device and keeps the rows of a section."""

    def __init__(self, device, small):
        self.device, self.small, self.rows = device, small, []
        self.patch = (24, 20, 16) if small else PATCH
        self.scan = (48, 40, 32) if small else (512, 512, 256)
        self.volume = (40, 36, 24) if small else (190, 142, 88)
        self.copied = 2**16 if small else 2**30

    @functools.cached_property
    def copy_bandwidth(self):
        """Bytes a second, read and written, of a device copy far larger than its caches."""
        source = torch.ones(self.copied, dtype=torch.uint8, device=self.device)
        target = torch.empty_like(source)
        return 2 * source.numel() / self.seconds(lambda: target.copy_(source))

    @functools.cached_property
    def flushed(self):
        return torch.empty(FLUSH, dtype=torch.uint8, device=self.device)

    def seconds(self, call, repeats=REPEATS, cold=True):
        """Median of `repeats` runs after three that are not counted."""
        times = []
        for k in range(repeats + 3):
            if self.device.type == "cuda":
                if cold:
                    self.flushed.zero_()
                    torch.cuda.synchronize()
                start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                start.record()
                call()
                end.record()
                end.synchronize()
                elapsed = start.elapsed_time(end) / 1e3
            else:
                begin = time.perf_counter()
                call()
                elapsed = time.perf_counter() - begin
            if k >= 3:
                times.append(elapsed)
        return statistics.median(times)

    def replayed(self, call):
        """Median time of the call replayed from a CUDA graph; None without a GPU."""
        if self.device.type != "cuda":
            return None
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            call()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            call()
        return self.seconds(graph.replay, cold=False)

    def ours(self, name, data, call, moved=None, expected=None, graph=True):
        """A row of an operator; `moved` is the bytes that it cannot avoid to read and write."""
        eager = self.seconds(call)
        row = {
            "what": f"**{name}**",
            "data": data,
            "eager_us": 1e6 * eager,
            "expected_us": expected,
        }
        if moved:
            row["eager_share_of_copy_bandwidth"] = moved / eager / self.copy_bandwidth
        if graph and (replay := self.replayed(call)):
            row["graph_us"] = 1e6 * replay
            if moved:
                row["graph_share_of_copy_bandwidth"] = moved / replay / self.copy_bandwidth
        self.rows.append(row)

    def peer(self, name, data, call, packages=(), repeats=10, check=None):
        """A row of something to beat, after `check`; skipped, and said so, where a package is
        missing.
        """
        row = {"what": name, "data": data}
        if missing := self.missing(packages):
            print(f"skipped {name}: {missing}", file=sys.stderr)
            row["skipped"] = missing
        else:
            if check:
                check()
            row["eager_us"] = 1e6 * self.seconds(call, repeats)
        self.rows.append(row)

    def missing(self, packages):
        """Why a peer cannot run here, or None."""
        if "cupy" in packages and self.device.type != "cuda":
            return "CuPy needs a GPU"
        absent = [package for package in packages if importlib.util.find_spec(package) is None]
        return f"no {', '.join(absent)}" if absent else None

    def trusted(self, operator, reference):
        """The operator to compare with, on the CPU: its kernel there, or where that is what is
        timed its reference.
        """
        return reference if self.small else operator

    def labels(self, shape, dtype=torch.uint8):
        """Real labels, or blobs, cropped or enlarged to `(B, *shape)`."""
        crops, _ = harness.label_crops()
        resized = F.interpolate(crops[: shape[0], None].float(), shape[1:])[:, 0]
        return resized.to(self.device, dtype).contiguous()


def same(ours, theirs, atol=0.0):
    ours, theirs = (
        [given] if isinstance(given, torch.Tensor) else given for given in (ours, theirs)
    )
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.shape == other.shape, f"{tuple(mine.shape)} beside {tuple(other.shape)}"
        torch.testing.assert_close(mine.cpu().double(), other.cpu().double(), rtol=0, atol=atol)


def table(rows):
    lines = [
        "| data | what | eager µs (cold) | of copy | graph µs (warm) | of copy | expected µs |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = [row["data"], row["what"]]
        if "skipped" in row:
            cells += [f"skipped: {row['skipped']}", "", "", "", ""]
        else:
            for kind in ("eager", "graph"):
                time, share = row.get(f"{kind}_us"), row.get(f"{kind}_share_of_copy_bandwidth")
                cells += [
                    "" if time is None else f"{time:.1f}",
                    "" if share is None else f"{share:.0%}",
                ]
            cells.append(row.get("expected_us") or "")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


# ----------------------------------------------------------------------------------------------------------- sections


def copy_bandwidth(bench):
    bench.rows.append(
        {
            "what": f"copy, {bench.copy_bandwidth / 1e12:.2f} TB/s read and written",
            "data": "64 KiB" if bench.small else "1 GiB",
            "eager_us": 2 * bench.copied / bench.copy_bandwidth * 1e6,
        }
    )


def signed_distance(bench):
    for shape, expected in (((4, *bench.patch), "60-90"), ((1, *bench.scan), None)):
        mask, data = bench.labels(shape), harness.times(shape)
        moved = 5 * mask.numel()
        for ours, reference, options, atol in (
            (ops.signed_distance, ops.signed_distance_reference, (), 1e-4),
            (ops.signed_distance, ops.signed_distance_reference, ((1, 1, 2.5),), 1e-3),
            (ops.normalized_sdm, ops.normalized_sdm_reference, (), 1e-5),
        ):
            same(ours(mask, *options), bench.trusted(ours, reference)(mask.cpu(), *options), atol)
        bench.ours(
            "signed_distance", data, lambda mask=mask: ops.signed_distance(mask), moved, expected
        )
        bench.ours(
            "normalized_sdm", data, lambda mask=mask: ops.normalized_sdm(mask), moved, expected
        )
        bench.ours(
            "signed_distance, spacing",
            data,
            lambda mask=mask: ops.signed_distance(mask, (1, 1, 2.5)),
            moved,
        )

        def cupy_both_sides(mask=mask):
            import cupy
            from cupyx.scipy.ndimage import distance_transform_edt

            sides = [
                [
                    distance_transform_edt(side, float64_distances=False)
                    for side in (item == 0, item != 0)
                ]
                for item in cupy.from_dlpack(mask)
            ]
            return cupy.stack([outside - inside for outside, inside in sides])

        def check(mask=mask, cupy_both_sides=cupy_both_sides):
            same(ops.signed_distance(mask), torch.from_dlpack(cupy_both_sides()), atol=1e-3)

        bench.peer(
            "CuPy distance_transform_edt, both sides",
            data,
            cupy_both_sides,
            ["cupy"],
            repeats=3,
            check=check,
        )
    mask = bench.labels((4, *bench.patch))

    def research():
        from ops.signed_distance import research_normalized

        maps = np.stack([research_normalized(item) for item in mask.cpu().numpy()])
        return torch.from_numpy(maps).to(bench.device, torch.float32)

    bench.peer(
        "research compute_sdf, with the copies",
        harness.times(mask.shape),
        research,
        ["skimage"],
        repeats=1,
        check=lambda: same(ops.normalized_sdm(mask), research(), atol=1e-5),
    )


def cutmix(bench):
    for shape, expected in (((2, 1, *bench.patch), "12-15"), ((1, 1, *bench.scan), None)):
        images = [torch.rand(shape, device=bench.device) for _ in range(2)]
        label = bench.labels((shape[0], *shape[2:]), torch.int64)
        labels = [label, 3 - label]
        box = ops.random_box(shape[2:], 0.5).to(bench.device)
        inside = torch.zeros(shape[2:], dtype=torch.bool, device=bench.device)
        inside[tuple(slice(*pair) for pair in box.T.tolist())] = True
        data = f"{harness.times(shape)}, float32 and int64"

        def ours(images=images, labels=labels, box=box):
            return ops.cutmix(*images, *labels, box)

        def where(images=images, labels=labels, inside=inside):
            return [torch.where(inside, b, a) for a, b in (images, labels)]

        for mine, theirs in zip(ours(), where(), strict=True):
            same(mine, theirs)
        moved = 2 * (images[0].numel() * 4 + labels[0].numel() * 8)
        bench.ours("cutmix", data, ours, moved, expected)
        bench.peer("torch.where", data, where)


def largest_component(bench):
    for shape, dtype, expected in (
        ((4, *bench.patch), torch.int64, "25-50"),
        ((1, *bench.scan), torch.uint8, None),
    ):
        labels, data = bench.labels(shape, dtype), f"{harness.times(shape)}, {str(dtype)[6:]}"
        noise = torch.rand(shape, device=bench.device) < 0.01
        for name, given in (("clean", labels), ("1 % noise", labels ^ noise.to(dtype))):
            moved = 2 * given.numel() * given.element_size()
            trusted = bench.trusted(ops.largest_component, ops.largest_component_reference)
            same(ops.largest_component(given, 2), trusted(given.cpu(), 2))
            bench.ours(
                "largest_component",
                f"{data}, {name}",
                lambda given=given: ops.largest_component(given, 2),
                moved,
                expected,
            )

            def cupy_label(given=given):
                import cupy
                from cupyx.scipy.ndimage import label

                kept = []
                for item in cupy.from_dlpack(given):
                    found, _ = label(item, structure=cupy.ones((3, 3, 3)))
                    sizes = cupy.bincount(found.ravel())
                    sizes[0] = 0
                    kept.append(found == sizes.argmax())
                return cupy.stack(kept)

            def check(given=given, cupy_label=cupy_label):
                same(ops.largest_component(given, 2), torch.from_dlpack(cupy_label().astype("u1")))

            what = f"{data}, {name}"
            bench.peer(
                "CuPy label and bincount", what, cupy_label, ["cupy"], repeats=3, check=check
            )


def stitch_windows(bench):
    near, far = ((6, 6, 4), 12) if bench.small else (STRIDE, 48)
    for shape, patch, stride, dtype, expected in (
        (bench.volume, bench.patch, near, torch.bfloat16, "50-100"),
        (bench.volume, bench.patch, near, torch.float32, None),
        (bench.scan, (2 * far,) * 3, (far,) * 3, torch.bfloat16, None),
    ):
        starts = ops.window_starts(shape, patch, stride)
        count = int(np.prod([len(axis) for axis in starts]))
        logits = torch.randn((count, 2, *patch), device=bench.device, dtype=dtype)

        def ours(logits=logits, starts=starts, shape=shape):
            return ops.stitch_windows(logits, starts, shape, "softmax")

        trusted = bench.trusted(ops.stitch_windows, ops.stitch_windows_reference)
        same(ours(), trusted(logits.cpu(), starts, shape, "softmax"), atol=1e-5)
        data = (
            f"{count} windows of {harness.times(patch)} in {harness.times(shape)}, {str(dtype)[6:]}"
        )
        moved = logits.numel() * logits.element_size() + 8 * int(np.prod(shape))
        bench.ours("stitch_windows", data, ours, moved, expected)


def inference(bench):
    """A whole volume through a network that costs nothing: what is left is the sliding window
    itself.
    """
    stride = (6, 6, 4) if bench.small else STRIDE
    image = torch.rand(bench.volume)
    network = torch.nn.Conv3d(1, 2, 1).to(bench.device)
    data = f"{harness.times(bench.volume)}, 1×1×1 network"
    starts = ops.window_starts(bench.volume, bench.patch, stride)

    def ours():
        return sliding_window(network, image, bench.patch, stride, 2, device=bench.device)

    @torch.no_grad()
    def research():
        total, cover = np.zeros((2, *bench.volume), np.float32), np.zeros(bench.volume, np.float32)
        for x in starts[0]:
            for y in starts[1]:
                for z in starts[2]:
                    window = tuple(
                        slice(s, s + p) for s, p in zip((x, y, z), bench.patch, strict=True)
                    )
                    logits = network(image[window][None, None].to(bench.device))
                    total[(slice(None), *window)] += torch.softmax(logits, 1)[0].cpu().numpy()
                    cover[window] += 1
        return torch.from_numpy(total / cover)

    def monai():
        from monai.inferers import sliding_window_inference

        overlap = [
            1 - (step + 0.5) / extent for step, extent in zip(stride, bench.patch, strict=True)
        ]  # it rounds down
        with torch.no_grad():
            prob = sliding_window_inference(
                image[None, None].to(bench.device),
                bench.patch,
                4,
                lambda x: network(x).softmax(1),
                overlap,
            )
        return prob[0]

    bench.ours("sliding_window", data, ours, graph=False)
    for name, packages, run in (
        ("research loop", [], research),
        ("MONAI sliding_window_inference", ["monai"], monai),
    ):
        bench.peer(
            name,
            data,
            run,
            packages,
            repeats=3,
            check=lambda run=run: same(ours(), run(), atol=1e-5),
        )


def surface_distances(bench):
    for shape in (bench.volume, bench.scan):
        target = bench.labels((1, *shape))[0]
        pred = target.roll((3, -2, 1), (0, 1, 2))

        def ours(pred=pred, target=target):
            return ops.surface_distances(pred, target)

        trusted = bench.trusted(ops.surface_distances, ops.surface_distances_reference)
        same(ours(), trusted(pred.cpu(), target.cpu()), atol=1e-12)
        bench.ours("surface_distances", harness.times(shape), ours, graph=False)


def crop_rot_flip(bench):
    cases, _ = harness.volumes()
    scans = [torch.rand(bench.scan) for _ in range(4)]
    half = tuple(extent // 2 for extent in bench.scan)
    rot, flip = [0, 1, 2, 3], [0, 1, None, 1]
    for size, images, labels in (
        (bench.patch, *([torch.from_numpy(pair[k]) for pair in cases] for k in range(2))),
        (half, scans, bench.labels((4, *bench.scan))),
    ):
        images, labels = (
            [volume.to(bench.device) for volume in volumes] for volumes in (images, labels)
        )
        taken = [(size[1], size[0], size[2]) if turns % 2 else size for turns in rot]
        starts = [
            [(extent - n) // 2 for extent, n in zip(image.shape, extents, strict=True)]
            for image, extents in zip(images, taken, strict=True)
        ]
        inside = [
            tuple(slice(corner, corner + n) for corner, n in zip(start, extents, strict=True))
            for start, extents in zip(starts, taken, strict=True)
        ]

        def ours(images=images, labels=labels, starts=starts, size=size):
            return ops.crop_rot_flip(images, labels, starts, size, rot, flip)

        def composed(images=images, labels=labels, inside=inside):
            batch = []
            for volumes in (images, labels):
                turned = [
                    torch.rot90(v[where], k, (0, 1))
                    for v, where, k in zip(volumes, inside, rot, strict=True)
                ]
                batch.append(
                    torch.stack(
                        [v if a is None else v.flip(a) for v, a in zip(turned, flip, strict=True)]
                    )
                )
            return batch

        for theirs in (
            ops.crop_rot_flip_reference(images, labels, starts, size, rot, flip),
            composed(),
        ):
            same(ours(), theirs)
        data = (
            f"4 crops {harness.times(size)} of {harness.times(images[0].shape)}, float32 and uint8"
        )
        bench.ours("crop_rot_flip", data, ours, 4 * int(np.prod(size)) * 2 * 5)
        bench.peer("torch slice, rot90, flip and stack", data, composed)


def drive(bench):
    """Every operator once on small inputs, with odd extents and empty items: what compute-sanitizer
    looks at.
    """
    device = bench.device
    mask = (bench.labels((3, 21, 17, 37)) != 0) ^ (
        torch.rand((3, 21, 17, 37), device=device) < 0.05
    )
    mask[1] = False
    for spacing in (None, (1, 2, 0.5)):
        ops.signed_distance(mask, spacing)
        ops.normalized_sdm(mask, spacing)
    image, box = (
        torch.rand((3, 2, 21, 17, 37), device=device),
        ops.random_box((21, 17, 37), 0.5).to(device),
    )
    ops.cutmix(image, image.flip(0), mask.long(), mask.flip(0).long(), box)
    ops.splice(image.requires_grad_(), image.detach(), box).sum().backward()
    for connectivity in (6, 18, 26):
        ops.largest_component(mask.long() + mask.roll(1, 3).long(), 3, connectivity)
    starts = ops.window_starts((21, 17, 37), (9, 8, 16), (5, 4, 7))
    logits = torch.randn((int(np.prod([len(axis) for axis in starts])), 3, 9, 8, 16), device=device)
    for activation in ("softmax", "sigmoid", None):
        for weights in (None, torch.rand((9, 8, 16), device=device) + 0.1):
            ops.stitch_windows(logits, starts, (21, 17, 37), activation, weights)
    ops.surface_distances(mask[0], mask[2], (1, 2, 0.5))
    volumes = [image[0, 0].detach().contiguous(), image[1, 1, :15].detach().contiguous()]
    ops.crop_rot_flip(
        volumes, [mask[0]], [(-2, 3, 30), (4, -9, 0)], (12, 10, 11), [1, 2], [0, None]
    )
    if device.type == "cuda":
        torch.cuda.synchronize()
    print("driven: every operator once")


SECTIONS = [
    copy_bandwidth,
    signed_distance,
    cutmix,
    largest_component,
    stitch_windows,
    inference,
    surface_distances,
    crop_rot_flip,
]


def unfit(device):
    """Why nothing of ours can be timed on the device, in one line, or None."""
    if device == "cuda" and not torch.cuda.is_available():
        return "torch sees no GPU; --device cpu tries the script out"
    if BROKEN:
        return BROKEN
    if not _library.BUILT:
        return "the operators are not compiled: pip install --no-build-isolation -e ."
    if device == "cuda" and not _library.CUDA:
        return "the CUDA kernels are not built: FORCE_CUDA=1 pip install --no-build-isolation -e ."
    return None


def write(path, found):
    """Adds sections to the file; the others stay."""
    record = json.loads(path.read_text()) if path.is_file() else {}
    if BROKEN:
        facts = {
            "torch": torch.__version__,
            "compiled": False,
            "cuda_kernels": False,
            "error": BROKEN,
        }
    else:
        facts = environment([torch.device("cuda" if torch.cuda.is_available() else "cpu")])
        facts |= {"compiled": _library.BUILT, "cuda_kernels": _library.CUDA}
    record["environment"] = facts
    for name, entries in found.items():
        record.setdefault("sections", {}).setdefault(name, {}).update(entries)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(record, indent=1) + "\n"
    write_atomically(path, lambda part: part.write_text(text))


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    sections = {section.__name__: section for section in SECTIONS}
    known = ", ".join([*sections, "drive"])
    parser.add_argument(
        "sections", nargs="*", metavar="SECTION", help=f"of {known} (default: all but drive)"
    )
    parser.add_argument("--list", action="store_true", help="print the names of the sections")
    parser.add_argument(
        "--check", action="store_true", help="only say whether our kernels can be timed here"
    )
    parser.add_argument("--json", type=Path, help="add what is found to this file")
    parser.add_argument(
        "--device", default="cuda", choices=["cuda", "cpu"], help="cpu tries the script out"
    )
    parser.add_argument(
        "--record",
        nargs="+",
        metavar="NAME",
        help="only record how sections ended, with the options:",
    )
    parser.add_argument("--status", type=int, help="their exit status")
    parser.add_argument("--seconds", type=int, help="how long they took")
    parser.add_argument("--log", type=Path, help="what they printed; its last lines are kept")
    parser.add_argument(
        "--rows", type=Path, help="what another benchmark wrote as its --json, if it did"
    )
    parser.add_argument(
        "--not-run", metavar="WHY", help="why they did not run, instead of the other three"
    )
    args = parser.parse_args()
    if unknown := set(args.sections) - {*sections, "drive"}:
        parser.error(f"unknown section {', '.join(sorted(unknown))}: choose from {known}")
    if args.list:
        print(*sections, sep="\n")
        return
    if args.record:
        if args.json is None:
            parser.error("--record needs --json")
        if args.not_run:
            found = {"not_run": args.not_run}
        elif args.status is None or args.log is None or not args.log.is_file():
            parser.error("--record needs --not-run, or --status and a file for --log")
        else:
            tail = args.log.read_text(errors="replace").splitlines()[-8:]
            found = {"status": args.status, "seconds": args.seconds, "tail": tail}
            if args.rows and args.rows.is_file():
                found["rows"] = json.loads(args.rows.read_text())["rows"]
        write(args.json, dict.fromkeys(args.record, found))
        return
    if why := unfit(args.device):
        sys.exit(f"bench_gpu.py: {' '.join(why.split())}")
    if args.check:
        return
    device = torch.device(args.device)
    for name in args.sections or sections:
        bench = Bench(device, small=device.type == "cpu")
        if name == "drive":
            drive(bench)
            continue
        sections[name](bench)
        print(f"\n{table(bench.rows)}", flush=True)
        if args.json:
            write(args.json, {name: {"rows": bench.rows}})


if __name__ == "__main__":
    main()
