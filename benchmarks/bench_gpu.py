"""Times the CUDA kernels, eager and replayed from a graph, beside their peers; `benchmarks/gpu.sh` runs all of it.

    python benchmarks/bench_gpu.py [SECTION …] [--json FILE]       (--list names the sections)
    python benchmarks/bench_gpu.py drive                           every operator once, small: for compute-sanitizer

A row holds the median of repeated runs between CUDA events. "of copy" is the bytes that the operator must read and
write over its time, as a share of the device's own copy bandwidth in the same process. "expected" was estimated for an
H200 from bytes and operations before anything was measured. `--device cpu` tries the script out, small, without a GPU.
"""

import argparse
import functools
import importlib.util
import json
import statistics
import sys
import time
from pathlib import Path

import harness
import numpy as np
import torch
import torch.nn.functional as F

from utils import ops
from utils.checkpoint import write_atomically
from utils.inference import sliding_window
from utils.run import environment

PATCH, STRIDE = (112, 112, 80), (18, 18, 4)
REPEATS = 30


# ---------------------------------------------------------------------------------------------------------- machinery


class Bench:
    """Times calls on one device and keeps the rows of a section."""

    def __init__(self, device, small):
        self.device, self.small, self.rows = device, small, []
        self.patch = (24, 20, 16) if small else PATCH
        self.scan = (48, 40, 32) if small else (512, 512, 256)
        self.volume = (40, 36, 24) if small else (190, 142, 88)

    @functools.cached_property
    def copy_bandwidth(self):
        """Bytes a second, read and written, of a device copy far larger than its caches."""
        source = torch.ones(2**16 if self.small else 2**30, dtype=torch.uint8, device=self.device)
        target = torch.empty_like(source)
        return 2 * source.numel() / self.seconds(lambda: target.copy_(source))

    def seconds(self, call, repeats=REPEATS):
        """Median of `repeats` runs after three that are not counted."""
        times = []
        for k in range(repeats + 3):
            if self.device.type == "cuda":
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
        return self.seconds(graph.replay)

    def ours(self, name, data, call, moved=None, expected=None, graph=True):
        """A row of an operator; `moved` is the bytes that it cannot avoid to read and write."""
        eager = self.seconds(call)
        row = {"what": f"**{name}**", "data": data, "eager_us": 1e6 * eager, "expected_us": expected}
        if graph and (replay := self.replayed(call)):
            row["graph_us"] = 1e6 * replay
        if moved:
            row["share_of_copy_bandwidth"] = moved / min(eager, row.get("graph_us", 1e12) / 1e6) / self.copy_bandwidth
        self.rows.append(row)

    def peer(self, name, data, call, packages=(), repeats=10):
        """A row of something to beat; left out, and said so, where a package is missing."""
        missing = [package for package in packages if importlib.util.find_spec(package) is None]
        if missing:
            print(f"skipped {name}: no {', '.join(missing)}", file=sys.stderr)
        else:
            self.rows.append({"what": name, "data": data, "eager_us": 1e6 * self.seconds(call, repeats)})

    def labels(self, shape, dtype=torch.uint8):
        """Real labels, or blobs, cropped or enlarged to `(B, *shape)`."""
        crops, _ = harness.label_crops()
        resized = F.interpolate(crops[: shape[0], None].float(), shape[1:])[:, 0]
        return resized.to(self.device, dtype).contiguous()


def same(ours, theirs, atol=0.0):
    torch.testing.assert_close(ours.cpu().double(), torch.as_tensor(theirs).cpu().double(), rtol=0, atol=atol)


def table(rows):
    lines = ["| data | what | eager µs | graph µs | of copy | expected µs |", "|---|---|---|---|---|---|"]
    for row in rows:
        graph = f"{row['graph_us']:.1f}" if "graph_us" in row else ""
        share = f"{row['share_of_copy_bandwidth']:.0%}" if "share_of_copy_bandwidth" in row else ""
        expected = row.get("expected_us") or ""
        lines.append(f"| {row['data']} | {row['what']} | {row['eager_us']:.1f} | {graph} | {share} | {expected} |")
    return "\n".join(lines)


# ----------------------------------------------------------------------------------------------------------- sections


def copy_bandwidth(bench):
    bench.rows.append(
        {
            "what": f"copy, {bench.copy_bandwidth / 1e12:.2f} TB/s read and written",
            "data": "1 GiB",
            "eager_us": 2 * 2**30 / bench.copy_bandwidth * 1e6,
        }
    )


def signed_distance(bench):
    for shape, expected in (((4, *bench.patch), "60-90"), ((1, *bench.scan), None)):
        mask, data = bench.labels(shape), harness.times(shape)
        moved = 5 * mask.numel()
        bench.ours("signed_distance", data, lambda mask=mask: ops.signed_distance(mask), moved, expected)
        bench.ours("normalized_sdm", data, lambda mask=mask: ops.normalized_sdm(mask), moved, expected)
        bench.ours("signed_distance, spacing", data, lambda mask=mask: ops.signed_distance(mask, (1, 1, 2.5)), moved)

        def cupy_both_sides(mask=mask):
            import cupy
            from cupyx.scipy.ndimage import distance_transform_edt

            sides = [
                [distance_transform_edt(side, float64_distances=False) for side in (item == 0, item != 0)]
                for item in cupy.from_dlpack(mask)
            ]
            return cupy.stack([outside - inside for outside, inside in sides])

        if importlib.util.find_spec("cupy") and bench.device.type == "cuda":
            same(ops.signed_distance(mask), torch.from_dlpack(cupy_both_sides()), atol=1e-3)
        bench.peer("CuPy distance_transform_edt, both sides", data, cupy_both_sides, ["cupy"], repeats=3)
    mask = bench.labels((4, *bench.patch)).cpu().numpy()
    from ops.signed_distance import research_normalized

    bench.peer(
        "research compute_sdf, and the copy to the device",
        harness.times(mask.shape),
        lambda: torch.from_numpy(np.stack([research_normalized(item) for item in mask])).to(bench.device).float(),
        ["skimage"],
        repeats=1,
    )


def cutmix(bench):
    for shape, expected in (((2, 1, *bench.patch), "12-15"), ((1, 1, *bench.scan), None)):
        images = [torch.rand(shape, device=bench.device) for _ in range(2)]
        labels = [bench.labels((shape[0], *shape[2:]), torch.int64) for _ in range(2)]
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

            if importlib.util.find_spec("cupy") and bench.device.type == "cuda":
                same(ops.largest_component(given, 2), torch.from_dlpack(cupy_label().astype("u1")))
            bench.peer("CuPy label and bincount", f"{data}, {name}", cupy_label, ["cupy"], repeats=3)


def stitch_windows(bench):
    stride = (6, 6, 4) if bench.small else STRIDE
    starts = ops.window_starts(bench.volume, bench.patch, stride)
    count = int(np.prod([len(axis) for axis in starts]))
    for dtype in (torch.bfloat16, torch.float32):
        logits = torch.randn((count, 2, *bench.patch), device=bench.device).to(dtype)
        moved = logits.numel() * logits.element_size() + 8 * int(np.prod(bench.volume))
        bench.ours(
            "stitch_windows",
            f"{count} windows of {harness.times(bench.patch)}, {str(dtype)[6:]}",
            lambda logits=logits: ops.stitch_windows(logits, starts, bench.volume, "softmax"),
            moved,
            "50-100" if dtype == torch.bfloat16 else None,
        )


def inference(bench):
    """A whole volume through a network that costs nothing: what is left is the sliding window itself."""
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
                    window = tuple(slice(s, s + p) for s, p in zip((x, y, z), bench.patch, strict=True))
                    logits = network(image[window][None, None].to(bench.device))
                    total[(slice(None), *window)] += torch.softmax(logits, 1)[0].cpu().numpy()
                    cover[window] += 1
        return torch.from_numpy(total / cover)

    def monai():
        from monai.inferers import sliding_window_inference

        with torch.no_grad():
            return sliding_window_inference(
                image[None, None].to(bench.device), bench.patch, 4, lambda x: network(x).softmax(1), overlap=0.84
            )

    same(ours(), research(), atol=1e-5)
    bench.ours("sliding_window", data, ours, graph=False)
    bench.peer("research loop", data, research, repeats=3)
    bench.peer("MONAI sliding_window_inference, overlap 0.84", data, monai, ["monai"], repeats=3)


def surface_distances(bench):
    pred, target = (bench.labels((1, *bench.volume))[0] for _ in range(2))
    pred = pred.roll((3, -2, 1), (0, 1, 2))
    data = harness.times(bench.volume)
    there, back = ops.surface_distances(pred, target)
    for mine, theirs in zip((there, back), ops.surface_distances(pred.cpu(), target.cpu()), strict=True):
        same(mine, theirs, atol=1e-12)
    bench.ours("surface_distances", data, lambda: ops.surface_distances(pred, target), graph=False)


def crop_rot_flip(bench):
    cases, _ = harness.volumes()
    images = [torch.from_numpy(image).to(bench.device) for image, _ in cases]
    labels = [torch.from_numpy(label).to(bench.device) for _, label in cases]
    starts, rot, flip = [(9, -4, 3)] * 4, [0, 1, 2, 3], [0, 1, None, 1]
    data = f"4 crops of {harness.times(bench.patch)}, float32 and uint8"

    def ours():
        return ops.crop_rot_flip(images, labels, starts, bench.patch, rot, flip)

    bench.ours("crop_rot_flip", data, ours, 4 * int(np.prod(bench.patch)) * 2 * 5)


def drive(bench):
    """Every operator once on small inputs, with odd extents and empty items: what compute-sanitizer looks at."""
    device = bench.device
    mask = torch.rand((3, 21, 17, 37), device=device) < 0.3
    mask[1] = False
    for spacing in (None, (1, 2, 0.5)):
        ops.signed_distance(mask, spacing)
        ops.normalized_sdm(mask, spacing)
    image, box = torch.rand((3, 2, 21, 17, 37), device=device), ops.random_box((21, 17, 37), 0.5).to(device)
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
    ops.crop_rot_flip(volumes, [mask[0]], [(-2, 3, 30), (4, -9, 0)], (12, 10, 11), [1, 2], [0, None])
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


def write(path, name, found):
    """Adds a section to the file; the others stay."""
    record = json.loads(path.read_text()) if path.is_file() else {}
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    record["environment"] = environment([device])
    record.setdefault("sections", {}).setdefault(name, {}).update(found)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(record, indent=1) + "\n"
    write_atomically(path, lambda part: part.write_text(text))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sections = {section.__name__: section for section in SECTIONS}
    parser.add_argument("sections", nargs="*", metavar="SECTION", choices=[*sections, "drive", []])
    parser.add_argument("--list", action="store_true", help="print the names of the sections")
    parser.add_argument("--json", type=Path, help="add what is found to this file")
    parser.add_argument("--device", default="cuda", help="cpu tries the script out (default: cuda)")
    parser.add_argument("--record", metavar="NAME", help="only record how a section ended, with the next three")
    parser.add_argument("--status", type=int)
    parser.add_argument("--seconds", type=int)
    parser.add_argument("--log", type=Path)
    args = parser.parse_args()
    if args.list:
        print(*sections, sep="\n")
        return
    if args.record:
        tail = args.log.read_text(errors="replace").splitlines()[-8:]
        write(args.json, args.record, {"status": args.status, "seconds": args.seconds, "tail": tail})
        return
    device = torch.device(args.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        sys.exit("bench_gpu.py: torch sees no GPU; --device cpu tries the script out")
    for name in args.sections or sections:
        bench = Bench(device, small=device.type == "cpu")
        if name == "drive":
            drive(bench)
            continue
        sections[name](bench)
        print(f"\n{table(bench.rows)}", flush=True)
        if args.json:
            write(args.json, name, {"rows": bench.rows})


if __name__ == "__main__":
    main()
