"""Times the CUDA kernels, eager and replayed from a graph, beside their peers.

    python benchmarks/bench_gpu.py [SECTION …] [--json FILE]   --list names the sections
    python benchmarks/bench_gpu.py drive                       for compute-sanitizer: see below
    python benchmarks/bench_gpu.py --check                     fails if nothing can be timed here

`benchmarks/gpu.sh` runs all of it. A row holds the median of repeated runs between CUDA events.
Before anything is timed, the results are compared with the CPU kernels, or on `--device cpu` with
the references. Before each eager run 256 MB are written and waited for, so that the caches hold
none of its data. The time of an eager run includes its launches. A replayed graph finds its caches
warm. "of copy" is a share of the device's own copy bandwidth, measured in the same process: the
bytes that the operator must read and write, divided by its time. For a replayed graph it exceeds
the memory's speed if the data fit into the caches. "expected" was estimated for an H200 from bytes
and operations before anything was measured.

`drive` runs every operator once on small inputs, for compute-sanitizer. `--device cpu` tries the
script out on tiny data without a GPU.
"""

import itertools
import math
import sys
from functools import partial

import harness
import numpy as np
import torch
from gpu_timing import Bench, same, table

from utils import command, ops
from utils.inference import sliding_window
from utils.ops import _library

STRIDE = (18, 18, 4)


# --------------------------------------------------------------------------------------- sections


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
        mask = bench.labels(shape)
        data = harness.times(shape)
        anisotropic = (1, 1, 2.5)
        check_distances(bench, mask, anisotropic)
        plain = partial(ops.signed_distance, mask)
        normalized = partial(ops.normalized_sdm, mask)
        spaced = partial(ops.signed_distance, mask, anisotropic)
        moved = 5 * mask.numel()
        bench.ours("signed_distance", data, plain, moved, expected)
        bench.ours("normalized_sdm", data, normalized, moved, expected)
        bench.ours("signed_distance, spacing", data, spaced, moved)
        cupy = partial(cupy_signed_distance, mask)
        bench.peer(
            "CuPy distance_transform_edt, both sides",
            data,
            cupy,
            ["cupy"],
            repeats=3,
            check=lambda ours=plain, theirs=cupy: same(
                ours(), torch.from_dlpack(theirs()), atol=1e-3
            ),
        )
    mask = bench.labels((4, *bench.patch))
    research = partial(research_sdm, mask)
    bench.peer(
        "research compute_sdf, with the copies",
        harness.times(mask.shape),
        research,
        ["skimage"],
        repeats=1,
        check=lambda: same(ops.normalized_sdm(mask), research(), atol=1e-5),
    )


def check_distances(bench, mask, anisotropic):
    for ours, reference, options, atol in (
        (ops.signed_distance, ops.signed_distance_reference, (), 1e-4),
        (ops.signed_distance, ops.signed_distance_reference, (anisotropic,), 1e-3),
        (ops.normalized_sdm, ops.normalized_sdm_reference, (), 1e-5),
    ):
        trusted = bench.trusted(ours, reference)
        same(ours(mask, *options), trusted(mask.cpu(), *options), atol)


def cupy_signed_distance(mask):
    import cupy
    from cupyx.scipy.ndimage import distance_transform_edt

    maps = []
    for item in cupy.from_dlpack(mask):
        outside = distance_transform_edt(item == 0, float64_distances=False)
        inside = distance_transform_edt(item != 0, float64_distances=False)
        maps.append(outside - inside)
    return cupy.stack(maps)


def research_sdm(mask):
    from ops.signed_distance import research_normalized

    maps = np.stack([research_normalized(item) for item in mask.cpu().numpy()])
    return torch.from_numpy(maps).to(mask.device, torch.float32)


def cutmix(bench):
    for shape, expected in (((2, 1, *bench.patch), "12-15"), ((1, 1, *bench.scan), None)):
        images = [torch.rand(shape, device=bench.device) for _ in range(2)]
        label = bench.labels((shape[0], *shape[2:]), torch.int64)
        labels = [label, 3 - label]
        box = ops.random_box(shape[2:], 0.5).to(bench.device)
        inside = torch.zeros(shape[2:], dtype=torch.bool, device=bench.device)
        inside[tuple(slice(*pair) for pair in box.T.tolist())] = True

        ours = partial(ops.cutmix, *images, *labels, box)
        where = partial(by_where, images, labels, inside)
        same(ours(), where())
        data = f"{harness.times(shape)}, float32 and int64"
        moved = 2 * (images[0].numel() * 4 + labels[0].numel() * 8)
        bench.ours("cutmix", data, ours, moved, expected)
        bench.peer("torch.where", data, where)


def by_where(images, labels, inside):
    return [torch.where(inside, b, a) for a, b in (images, labels)]


def largest_component(bench):
    for shape, dtype, expected in (
        ((4, *bench.patch), torch.int64, "25-50"),
        ((1, *bench.scan), torch.uint8, None),
    ):
        labels = bench.labels(shape, dtype)
        noise = torch.rand(shape, device=bench.device) < 0.01
        trusted = bench.trusted(ops.largest_component, ops.largest_component_reference)
        for name, given in (("clean", labels), ("1 % noise", labels ^ noise.to(dtype))):
            data = f"{harness.times(shape)}, {str(dtype)[6:]}, {name}"
            ours = partial(ops.largest_component, given, 2)
            same(ours(), trusted(given.cpu(), 2))
            bench.ours(
                "largest_component", data, ours, 2 * given.numel() * given.element_size(), expected
            )
            cupy = partial(cupy_largest, given)
            bench.peer(
                "CuPy label and bincount",
                data,
                cupy,
                ["cupy"],
                repeats=3,
                check=lambda ours=ours, theirs=cupy: same(
                    ours(), torch.from_dlpack(theirs().astype("u1"))
                ),
            )


def cupy_largest(given):
    import cupy
    from cupyx.scipy.ndimage import label

    kept = []
    for item in cupy.from_dlpack(given):
        found, _ = label(item, structure=cupy.ones((3, 3, 3)))
        sizes = cupy.bincount(found.ravel())
        sizes[0] = 0
        kept.append(found == sizes.argmax())
    return cupy.stack(kept)


def stitch_windows(bench):
    near = (6, 6, 4) if bench.small else STRIDE
    far = 12 if bench.small else 48
    for shape, patch, stride, dtype, expected in (
        (bench.volume, bench.patch, near, torch.bfloat16, "50-100"),
        (bench.volume, bench.patch, near, torch.float32, None),
        (bench.scan, (2 * far,) * 3, (far,) * 3, torch.bfloat16, None),
    ):
        starts = ops.window_starts(shape, patch, stride)
        count = number(starts)
        logits = torch.randn((count, 2, *patch), device=bench.device, dtype=dtype)
        ours = partial(ops.stitch_windows, logits, starts, shape, "softmax")
        trusted = bench.trusted(ops.stitch_windows, ops.stitch_windows_reference)
        same(ours(), trusted(logits.cpu(), starts, shape, "softmax"), atol=1e-5)
        windows = f"{count} windows of {harness.times(patch)}"
        data = f"{windows} in {harness.times(shape)}, {str(dtype)[6:]}"
        moved = logits.numel() * logits.element_size() + 8 * math.prod(shape)
        bench.ours("stitch_windows", data, ours, moved, expected)


def number(starts):
    """The number of windows of a grid."""
    return math.prod(len(along) for along in starts)


def inference(bench):
    """A whole volume through a network that costs almost nothing: the sliding window's time."""
    stride = (6, 6, 4) if bench.small else STRIDE
    image = torch.rand(bench.volume)
    network = torch.nn.Conv3d(1, 2, 1).to(bench.device)
    data = f"{harness.times(bench.volume)}, 1×1×1 network"
    ours = partial(sliding_window, network, image, bench.patch, stride, 2, device=bench.device)
    bench.ours("sliding_window", data, ours, graph=False)
    for name, packages, peer in (
        ("research loop", [], research_window),
        ("MONAI sliding_window_inference", ["monai"], monai_window),
    ):
        theirs = partial(peer, network, image, bench.patch, stride, bench.device)
        bench.peer(
            name,
            data,
            theirs,
            packages,
            repeats=3,
            check=lambda theirs=theirs: same(ours(), theirs(), atol=1e-5),
        )


@torch.no_grad()
def research_window(network, image, patch, stride, device):
    total = np.zeros((2, *image.shape), np.float32)
    cover = np.zeros(image.shape, np.float32)
    for corner in itertools.product(*ops.window_starts(image.shape, patch, stride)):
        window = tuple(slice(start, start + p) for start, p in zip(corner, patch, strict=True))
        logits = network(image[window][None, None].to(device))
        total[(slice(None), *window)] += torch.softmax(logits, 1)[0].cpu().numpy()
        cover[window] += 1
    return torch.from_numpy(total / cover)


@torch.no_grad()
def monai_window(network, image, patch, stride, device):
    from monai.inferers import sliding_window_inference

    # MONAI rounds the stride down
    overlap = [1 - (step + 0.5) / extent for step, extent in zip(stride, patch, strict=True)]
    prob = sliding_window_inference(
        image[None, None].to(device), patch, 4, lambda x: network(x).softmax(1), overlap
    )
    return prob[0]


def surface_distances(bench):
    for shape in (bench.volume, bench.scan):
        target = bench.labels((1, *shape))[0]
        pred = target.roll((3, -2, 1), (0, 1, 2))
        ours = partial(ops.surface_distances, pred, target)
        trusted = bench.trusted(ops.surface_distances, ops.surface_distances_reference)
        same(ours(), trusted(pred.cpu(), target.cpu()), atol=1e-12)
        bench.ours("surface_distances", harness.times(shape), ours, graph=False)


def crop_rot_flip(bench):
    cases, _ = harness.volumes()
    images = [torch.from_numpy(image).to(bench.device) for image, _ in cases]
    labels = [torch.from_numpy(label).to(bench.device) for _, label in cases]
    scans = [torch.rand(bench.scan).to(bench.device) for _ in range(4)]
    scan_labels = list(bench.labels((4, *bench.scan)))
    half = tuple(extent // 2 for extent in bench.scan)
    time_crops(bench, images, labels, bench.patch)
    time_crops(bench, scans, scan_labels, half)


def time_crops(bench, images, labels, size):
    """Four centred crops, each turned by another number of quarter turns."""
    rot = [0, 1, 2, 3]
    flip = [0, 1, None, 1]
    starts = []
    inside = []
    for image, turns in zip(images, rot, strict=True):
        extents = (size[1], size[0], size[2]) if turns % 2 else size
        start = [(n - extent) // 2 for n, extent in zip(image.shape, extents, strict=True)]
        starts.append(start)
        inside.append(tuple(slice(a, a + n) for a, n in zip(start, extents, strict=True)))

    def composed():
        batch = []
        for volumes in (images, labels):
            crops = []
            for volume, where, turns, axis in zip(volumes, inside, rot, flip, strict=True):
                turned = torch.rot90(volume[where], turns, (0, 1))
                crops.append(turned if axis is None else turned.flip(axis))
            batch.append(torch.stack(crops))
        return batch

    arguments = (images, labels, starts, size, rot, flip)
    ours = partial(ops.crop_rot_flip, *arguments)
    same(ours(), ops.crop_rot_flip_reference(*arguments))
    same(ours(), composed())
    crops = f"4 crops {harness.times(size)} of {harness.times(images[0].shape)}"
    data = f"{crops}, float32 and uint8"
    bench.ours("crop_rot_flip", data, ours, 4 * math.prod(size) * 2 * 5)
    bench.peer("torch slice, rot90, flip and stack", data, composed)


# ------------------------------------------------------------------------ for compute-sanitizer


def drive(device):
    """Run every operator once on small inputs, with odd extents and an empty item."""
    space = (21, 17, 37)
    noise = torch.rand((3, *space), device=device) < 0.05
    mask = (Bench(device).labels((3, *space)) != 0) ^ noise
    mask[1] = False
    for spacing in (None, (1, 2, 0.5)):
        ops.signed_distance(mask, spacing)
        ops.normalized_sdm(mask, spacing)
    ops.surface_distances(mask[0], mask[2], (1, 2, 0.5))
    for connectivity in (6, 18, 26):
        ops.largest_component(mask.long() + mask.roll(1, 3).long(), 3, connectivity)

    image = torch.rand((3, 2, *space), device=device)
    box = ops.random_box(space, 0.5).to(device)
    ops.cutmix(image, image.flip(0), mask.long(), mask.flip(0).long(), box)
    ops.splice(image.requires_grad_(), image.detach(), box).sum().backward()
    image = image.detach()
    volumes = [image[0, 0].contiguous(), image[1, 1, :15].contiguous()]
    corners = [(-2, 3, 30), (4, -9, 0)]
    ops.crop_rot_flip(volumes, [mask[0]], corners, (12, 10, 11), [1, 2], [0, None])

    patch = (9, 8, 16)
    starts = ops.window_starts(space, patch, (5, 4, 7))
    logits = torch.randn((number(starts), 3, *patch), device=device)
    weights = torch.rand(patch, device=device) + 0.1
    for activation, given in itertools.product(("softmax", "sigmoid", None), (None, weights)):
        ops.stitch_windows(logits, starts, space, activation, given)
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
NAMES = [section.__name__ for section in SECTIONS]


def unfit(device: str) -> str | None:
    """Why our kernels cannot be timed on the device, in one line, or None."""
    if device == "cuda" and not torch.cuda.is_available():
        return "torch sees no GPU; --device cpu tries the script out"
    if not _library.BUILT:
        return "the operators are not compiled: pip install --no-build-isolation -e ."
    if device == "cuda" and not _library.CUDA:
        return "the CUDA kernels are not built: FORCE_CUDA=1 pip install --no-build-isolation -e ."
    return None


def parse(argv=None):
    parser = command.Parser(__doc__, __file__)
    known = ", ".join([*NAMES, "drive"])
    parser.add_argument(
        "sections", nargs="*", metavar="SECTION", help=f"any of {known}; all but drive if none"
    )
    parser.add_argument("--list", action="store_true", help="print the names of the sections")
    parser.add_argument(
        "--check", action="store_true", help="only check whether our kernels can be timed here"
    )
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"], help="where to run")
    harness.add_json(parser)
    args = parser.parse_args(argv)
    unknown = set(args.sections) - {*NAMES, "drive"}
    if unknown:
        parser.error(f"unknown section {', '.join(sorted(unknown))}: choose from {known}")
    return args


def main(argv=None):
    args = parse(argv)
    if args.list:
        print(*NAMES, sep="\n")
        return
    why = unfit(args.device)
    if why:
        sys.exit(f"bench_gpu.py: {why}")
    if args.check:
        return
    device = torch.device(args.device)
    facts = harness.conditions(torch.get_num_threads(), args.device)
    facts["cuda_kernels"] = _library.CUDA
    sections = dict(zip(NAMES, SECTIONS, strict=True))
    rows = []
    for name in args.sections or NAMES:
        if name == "drive":
            drive(device)
            continue
        bench = Bench(device)
        sections[name](bench)
        print(f"\n{table(bench.rows)}", flush=True)
        rows += [{"section": name} | row for row in bench.rows]
        harness.report(rows, facts, args.json)


if __name__ == "__main__":
    command.run(main)
