import numpy as np
import pytest
import torch
from medpy.metric import binary
from operator_inputs import INTEGERS, ball, same_bits_on_any_threads, spiral
from scipy import ndimage
from scipy.spatial import cKDTree

from utils.ops import surface_distances, surface_distances_reference
from utils.ops.surface_distances import surface_distances_and_overlap

EQUAL = (1.3, 1.3, 1.3)
UNEQUAL = (0.7, 1.9, 3.1)
FLAT = (0.01, 30.0, 1.0)


def noise(shape, density, seed=1):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < density


def points(shape, *places):
    mask = torch.zeros(shape, dtype=torch.bool)
    for place in places:
        mask[place] = True
    return mask


def adversarial():
    """Name -> a pair of masks."""
    checkerboard = torch.from_numpy(np.indices((9, 8, 7)).sum(0) % 2 == 0)
    slab = torch.zeros(5, 21, 6, dtype=torch.bool)
    slab[:, 4:9] = True
    shells = torch.from_numpy((np.abs(np.indices((23, 21, 25)) - 11).max(0) // 2) % 2 == 0)
    wide = (20, 19, 200)
    centres = [(5, 5, 5), (84, 70, 6), (40, 75, 64), (80, 6, 60)]
    blobs = sum(ball((90, 80, 70), centre, 4) for centre in centres) > 0
    pairs = {
        "checkerboard and full": (checkerboard, torch.ones_like(checkerboard)),
        "checkerboard and its complement": (checkerboard, ~checkerboard),
        "full and one voxel": (
            torch.ones(17, 16, 15, dtype=torch.bool),
            points((17, 16, 15), (16, 0, 14)),
        ),
        "full and far corners": (
            torch.ones(40, 33, 20) > 0,
            points((40, 33, 20), (0, 0, 0), (39, 32, 19)),
        ),
        "far corners": (points((70, 60, 130), (0, 0, 0)), points((70, 60, 130), (69, 59, 129))),
        "other corners": (points((70, 60, 130), (0, 59, 0)), points((70, 60, 130), (69, 0, 129))),
        "slab and shifted slab": (slab, slab.roll(9, 1)),
        "slabs along x": (slab.transpose(0, 1), slab.transpose(0, 1).roll(9, 0)),
        "slabs along z": (slab.transpose(1, 2), slab.transpose(1, 2).roll(9, 2)),
        "shells and a ball": (shells, ball(shells.shape, (11, 11, 11), 8)),
        "surface and centre of a ball": (
            ball((41, 41, 41), (20, 20, 20), 20),
            points((41, 41, 41), (20, 20, 20)),
        ),
        "blobs far from a ball": (blobs, ball((90, 80, 70), (45, 40, 35), 12)),
        "equal": (ball((30, 30, 30), (14, 15, 13), 9), ball((30, 30, 30), (14, 15, 13), 9)),
        "words of a row": (
            points(wide, *[(9, 9, z) for z in (0, 63, 64, 127, 199)]),
            points(wide, (9, 9, 191)),
        ),
        "words far apart": (
            points(wide, (0, 0, 63), (0, 0, 64)),
            points(wide, (19, 18, 0), (19, 18, 192)),
        ),
        "last words": tuple(noise(wide, d, 3) & (torch.arange(200) > 130) for d in (0.3, 0.001)),
        "one row": (noise((1, 1, 300), 0.1), noise((1, 1, 300), 0.02, 2)),
        "one row of y": (noise((1, 300, 1), 0.1), noise((1, 300, 1), 0.02, 2)),
        "one row of x": (noise((300, 1, 1), 0.1), noise((300, 1, 1), 0.02, 2)),
        "one voxel": (torch.ones(1, 1, 1) > 0, torch.ones(1, 1, 1) > 0),
        "thin volume": (ball((1, 40, 90), (0, 20, 40), 15), ball((1, 40, 90), (0, 18, 44), 15)),
        "image": (ball((40, 90), (20, 40), 15), ball((40, 90), (18, 44), 15)),
        "image of one row": (noise((1, 300), 0.7), noise((1, 300), 0.02, 2)),
        "image of one column": (noise((300, 1), 0.7), noise((300, 1), 0.02, 2)),
        "image, far apart": (points((300, 400), (0, 0)), points((300, 400), (299, 399))),
        "image, spiral": (spiral(33), noise((33, 33), 0.05)),
        "spiral, extruded": (spiral(20)[:, None].expand(20, 5, 20), noise((20, 5, 20), 0.05)),
    }
    for first, second in [(0.001, 0.3), (0.05, 0.05), (0.5, 0.95), (0.0005, 0.0005)]:
        pairs[f"noise {first} and {second}"] = (
            noise((31, 18, 75), first),
            noise((31, 18, 75), second, 2),
        )
    return pairs


ADVERSARIAL = adversarial()


@pytest.fixture(params=list(ADVERSARIAL))
def pair(request, device):
    return tuple(mask.to(device) for mask in ADVERSARIAL[request.param])


def assert_exact(pred, target, spacing=None):
    got = surface_distances(pred, target, spacing)
    want = surface_distances_reference(pred, target, spacing)
    for mine, right in zip(got, want, strict=True):
        assert mine.dtype == torch.float64
        assert mine.device == pred.device
        torch.testing.assert_close(mine.cpu(), right, rtol=0 if spacing is None else 1e-14, atol=0)


def surface(mask):
    return mask ^ ndimage.binary_erosion(mask)


def test_is_exact(pair):
    assert_exact(*pair)


@pytest.mark.parametrize("spacing", [EQUAL, UNEQUAL, FLAT], ids=["equal", "unequal", "flat"])
def test_is_exact_with_spacing(pair, spacing):
    assert_exact(*pair, spacing[: pair[0].ndim])


@pytest.mark.parametrize("spacing", [None, EQUAL, UNEQUAL], ids=["unit", "equal", "unequal"])
@pytest.mark.parametrize(
    "name", ["blobs far from a ball", "thin volume", "image", "noise 0.05 and 0.05"]
)
def test_reference_is_medpy(name, spacing):
    pred, target = ADVERSARIAL[name]
    spacing = spacing and spacing[: pred.ndim]
    there, back = surface_distances_reference(pred, target, spacing)
    options = {"voxelspacing": spacing}
    for first, second, distances in ((pred, target, there), (target, pred, back)):
        assert distances.mean().item() == pytest.approx(
            binary.asd(first.numpy(), second.numpy(), **options), abs=1e-12
        )
    assert torch.cat((there, back)).max().item() == binary.hd(
        pred.numpy(), target.numpy(), **options
    )


def test_is_what_nearest_neighbours_of_the_surface_points_are(pair):
    points = [np.argwhere(surface(mask.cpu().numpy())) for mask in pair]
    there, back = surface_distances(*pair)
    np.testing.assert_array_equal(there.cpu(), cKDTree(points[1]).query(points[0])[0])
    np.testing.assert_array_equal(back.cpu(), cKDTree(points[0]).query(points[1])[0])


def test_counts_are_those_of_the_masks(pair):
    there, back, voxels = surface_distances_and_overlap(*pair)
    pred, target = pair
    assert voxels.dtype == torch.int64
    assert voxels.device == pred.device
    assert voxels.tolist() == [pred.sum().item(), target.sum().item(), (pred & target).sum().item()]
    for mine, right in zip((there, back), surface_distances(*pair), strict=True):
        assert torch.equal(mine, right)


def test_in_scan_order_by_hand(device):
    pred, target = torch.zeros(2, 3, 5, dtype=torch.uint8), torch.zeros(2, 3, 5, dtype=torch.uint8)
    pred[0, 0, 1] = pred[0, 2, 4] = pred[1, 0, 0] = 1
    target[0, 0, 0] = 1
    there, back = surface_distances(pred.to(device), target.to(device))
    assert there.tolist() == [1, 20**0.5, 1]
    assert back.tolist() == [1]
    there, back = surface_distances(pred.to(device), target.to(device), (3, 2, 0.5))
    assert there.tolist() == [0.5, 20**0.5, 3]
    assert back.tolist() == [0.5]


def test_the_inside_is_no_surface_and_the_edge_of_the_volume_is(device):
    full, centre = torch.ones(3, 3, 3, dtype=torch.bool), points((3, 3, 3), (1, 1, 1))
    there, back = surface_distances(full.to(device), centre.to(device))
    assert len(there) == 26
    assert back.tolist() == [1]
    # a pixel of an image has four edges
    there, back = surface_distances(full[0].to(device), centre[1].to(device))
    assert len(there) == 8
    assert back.tolist() == [1]
    # a voxel of a volume has six faces, even if there is only one slice
    there, _ = surface_distances(full[:1].to(device), centre[1:2].to(device))
    assert len(there) == 9


@pytest.mark.parametrize("spacing", [None, UNEQUAL], ids=["unit", "unequal"])
@pytest.mark.parametrize("shape", [(20, 19, 70), (90, 70)])
def test_empty_masks(device, shape, spacing):
    spacing = spacing and spacing[: len(shape)]
    empty = torch.zeros(shape, dtype=torch.bool, device=device)
    mask = ball(shape, (9, 9, 30)[: len(shape)], 5).to(device)
    size = np.count_nonzero(surface(mask.cpu().numpy()))
    there, back, voxels = surface_distances_and_overlap(mask, empty, spacing)
    assert there.tolist() == [np.inf] * size
    assert back.tolist() == []
    assert voxels.tolist() == [mask.sum().item(), 0, 0]
    there, back, voxels = surface_distances_and_overlap(empty, mask, spacing)
    assert there.tolist() == []
    assert back.tolist() == [np.inf] * size
    assert voxels.tolist() == [0, mask.sum().item(), 0]
    there, back, voxels = surface_distances_and_overlap(empty, empty, spacing)
    assert there.tolist() == back.tolist() == []
    assert voxels.tolist() == [0, 0, 0]
    assert_exact(mask, empty, spacing)
    assert_exact(empty, empty, spacing)


@pytest.mark.parametrize("shape", [(0, 5), (4, 0), (0, 5, 6), (4, 0, 6), (4, 5, 0), (0, 0, 0)])
def test_nothing_in_nothing_out(device, shape):
    mask = torch.zeros(shape, dtype=torch.bool, device=device)
    there, back, voxels = surface_distances_and_overlap(mask, mask)
    assert there.shape == back.shape == (0,)
    assert there.dtype == back.dtype == torch.float64
    assert voxels.tolist() == [0, 0, 0]


@pytest.mark.parametrize("margin", [(1, 1), (0, 9), (9, 0), (70, 70)])
def test_room_around_the_masks_changes_nothing(device, margin):
    pair = [mask.to(device) for mask in ADVERSARIAL["noise 0.05 and 0.05"]]
    for spacing in (None, UNEQUAL):
        roomy = [torch.nn.functional.pad(mask, margin * 3) for mask in pair]
        for mine, right in zip(
            surface_distances(*roomy, spacing), surface_distances(*pair, spacing), strict=True
        ):
            assert torch.equal(mine, right)


@pytest.mark.parametrize("seed", range(60))
def test_random_pairs(device, seed):
    random = np.random.default_rng(seed)
    shape = tuple(int(n) for n in random.integers(1, [40, 40, 150]))[seed % 2 :]
    spacing = None if seed % 3 == 0 else random.uniform(0.2, 4, len(shape)).tolist()
    masks = []
    for _ in range(2):
        field = ndimage.gaussian_filter(random.standard_normal(shape), random.uniform(0, 4))
        threshold = np.quantile(field, random.uniform(0.05, 0.999))
        masks.append(torch.from_numpy(field > threshold).to(device))
    assert_exact(*masks, spacing)


@pytest.mark.parametrize("dtype", [*INTEGERS, torch.uint16, torch.uint32])
def test_every_integer_type_counts_nonzero_as_foreground(device, dtype):
    pair = [mask.to(device) for mask in ADVERSARIAL["noise 0.05 and 0.05"]]
    values = 1 + torch.arange(pair[0].numel(), device=device).view(pair[0].shape) % 127
    want = surface_distances_and_overlap(*pair)
    signs = (1,) if dtype in (torch.uint8, torch.uint16, torch.uint32) else (1, -1)
    for sign in signs:
        got = surface_distances_and_overlap((sign * values * pair[0]).to(dtype), pair[1])
        assert all(torch.equal(mine, right) for mine, right in zip(got, want, strict=True))


def test_values_beyond_a_byte_are_foreground(device):
    mask = torch.zeros(4, 5, dtype=torch.int64, device=device)
    mask[1, 2] = 256
    assert surface_distances(mask, mask)[0].tolist() == [0]


def test_strides_do_not_matter(device):
    pred, target = (mask.to(device) for mask in ADVERSARIAL["noise 0.05 and 0.05"])
    assert_exact(pred.transpose(0, 2), target.transpose(0, 2))
    assert_exact(pred[1::2, 1:, ::3], target[:-1:2, :-1, ::3])
    assert_exact(pred.flip(2), target)
    assert_exact(pred[:1].expand(5, -1, -1), target[:5])


def test_inputs_stay_and_outputs_need_no_gradient(device):
    pair = [mask.to(device) for mask in ADVERSARIAL["shells and a ball"]]
    before = [mask.clone() for mask in pair]
    assert not any(distances.requires_grad for distances in surface_distances(*pair))
    assert all(torch.equal(mask, old) for mask, old in zip(pair, before, strict=True))


FALSE = torch.zeros(3, 4, 5, dtype=torch.bool)
HUGE = FALSE[:1, :1, :1].expand(2048, 2048, 512)


@pytest.mark.parametrize(
    ("pred", "target", "spacing", "error", "message"),
    [
        (FALSE.float(), FALSE, None, TypeError, "torch.float32"),
        (FALSE, FALSE.to(torch.complex64), None, TypeError, "torch.complex64"),
        (FALSE, FALSE.numpy(), None, TypeError, "ndarray"),
        (FALSE, FALSE[..., :4], None, ValueError, r"shape.*\(3, 4, 5\) and \(3, 4, 4\)"),
        (FALSE, FALSE.to("meta"), None, ValueError, "device.*cpu and meta"),
        (
            FALSE[None],
            FALSE[None],
            None,
            ValueError,
            r"\(1, 3, 4, 5\)",
        ),
        (FALSE[0, 0], FALSE[0, 0], None, ValueError, r"\(5,\)"),
        (HUGE, HUGE, None, ValueError, r"2\^31"),
        (FALSE, FALSE, (1.0, 1.0), ValueError, r"3 axes.*\(1.0, 1.0\)"),
        (FALSE[0], FALSE[0], (1.0, 0.0), ValueError, r"2 axes.*\(1.0, 0.0\)"),
        (FALSE, FALSE, (1.0, 1.0, float("nan")), ValueError, "positive"),
        (FALSE, FALSE, (1.0, float("inf"), 1.0), ValueError, "positive"),
        (FALSE, FALSE, 2.0, TypeError, r"spacing .* 2\.0"),
        (
            FALSE,
            FALSE,
            (1.0, None, 1.0),
            TypeError,
            r"spacing .*\[1\.0, None, 1\.0\]",
        ),
    ],
)
def test_wrong_input(pred, target, spacing, error, message):
    for op in (surface_distances, surface_distances_and_overlap, surface_distances_reference):
        with pytest.raises(error, match=message):
            op(pred, target, spacing)


def test_the_bare_operator_checks_what_memory_safety_needs(device):
    operator = torch.ops.semiseg.surface_distances
    mask = FALSE.to(device)
    with pytest.raises(TypeError, match="Float"):
        operator(mask.float(), mask, [1.0] * 3)
    with pytest.raises(TypeError, match="Float"):
        operator(mask, mask.float(), [1.0] * 3)
    with pytest.raises(ValueError, match=r"\[3, 4, 5\] .* and \[3, 4\]"):
        operator(mask, mask[..., 0], [1.0] * 3)
    with pytest.raises(ValueError, match=r"\[1, 3, 4, 5\]"):
        operator(mask[None], mask[None], [1.0] * 4)
    with pytest.raises(ValueError, match="spacing"):
        operator(mask, mask, [1.0] * 2)


def test_threads_do_not_change_a_bit():
    pairs = ADVERSARIAL.values()
    assert same_bits_on_any_threads(lambda: [surface_distances_and_overlap(*p) for p in pairs])


@pytest.mark.parametrize("name", ["image", "noise 0.05 and 0.05"])
@pytest.mark.parametrize("dtype", [torch.bool, torch.int64])
def test_opcheck(device, name, dtype):
    pred, target = (mask.to(device, dtype) for mask in ADVERSARIAL[name])
    for spacing in (EQUAL, UNEQUAL):
        torch.library.opcheck(
            torch.ops.semiseg.surface_distances.default, (pred, target, list(spacing[: pred.ndim]))
        )


def test_compiles_without_a_graph_break(device):
    @torch.compile(fullgraph=True, backend="aot_eager")
    def total(pred, target):
        there, back = surface_distances(pred, target, UNEQUAL)
        return there.sum() + 2 * back.sum()

    # the second pair has other sizes of the result in the same graph
    for name in ("noise 0.05 and 0.05", "noise 0.5 and 0.95"):
        pred, target = (mask.to(device) for mask in ADVERSARIAL[name])
        there, back = surface_distances(pred, target, UNEQUAL)
        torch.testing.assert_close(total(pred, target), there.sum() + 2 * back.sum())


def test_not_compiled_means_the_reference(device):
    """The fallback without a library returns the operator's result, including the counts."""
    from utils.ops.surface_distances import _reference

    for name in ("blobs far from a ball", "image"):
        pair = [mask.to(device) for mask in ADVERSARIAL[name]]
        got = _reference(*pair, [1.0] * pair[0].ndim)
        for mine, right in zip(got, surface_distances_and_overlap(*pair), strict=True):
            assert mine.device == right.device
            assert mine.dtype == right.dtype
            torch.testing.assert_close(mine, right, rtol=0, atol=0)


def test_real_left_atria(left_atria, device):
    first, second = left_atria[:2].to(device)
    assert_exact(first, second)
    assert_exact(first, first.roll((2, -1, 1), (0, 1, 2)))
    assert_exact(first, second, UNEQUAL)
