import itertools

import numpy as np
import pytest
import torch
from operator_inputs import INTEGERS, UNSIGNED, same_bits_on_any_threads
from scipy import ndimage

from utils.ops import largest_component, largest_component_reference

EVERY_INTEGER = [*INTEGERS, *UNSIGNED]
CONNECTIVITY = {2: (4, 8), 3: (6, 18, 26)}
RANK = {4: 1, 8: 2, 6: 1, 18: 2, 26: 3}


def generator(seed):
    return torch.Generator().manual_seed(seed)


def noise(shape, density, classes=2, seed=0):
    values = torch.randint(1, classes, shape, generator=generator(seed), dtype=torch.uint8)
    return values * (torch.rand(shape, generator=generator(seed + 1)) < density)


def spiral(size):
    """A one-voxel-wide square spiral with a gap of one: one long component."""
    grid = torch.zeros(size, size, dtype=torch.uint8)
    x, y, dx, dy = 0, 0, 0, 1
    lengths = [size - 1] + [n for n in range(size - 1, 0, -2) for _ in range(2)]
    for length in lengths:
        for _ in range(length):
            grid[x, y] = 1
            x, y = x + dx, y + dy
        grid[x, y] = 1
        dx, dy = dy, -dx
    return grid


def combs(shape, axis, teeth_at):
    """Plates that are joined only at one end of `axis` (-1: the last, 0: the first), or at both."""
    grid = torch.zeros(shape, dtype=torch.uint8).movedim(axis, 0)
    grid[:, ::2] = 1
    for end in teeth_at:
        grid[end] = 1
    return grid.movedim(0, axis)


def parity(shape):
    return torch.from_numpy((np.indices(shape).sum(0) % 2).astype(np.uint8))


def corners_only(shape):
    """Voxels that touch only at corners."""
    odd = np.indices(shape) % 2
    return torch.from_numpy((odd == odd[0]).all(0).astype(np.uint8))


def boxes(shape, step, side):
    """Many separate cubes of one size."""
    return torch.from_numpy((np.indices(shape) % step < side).all(0).astype(np.uint8))


def adversarial():
    """Name -> one item's labels, of at most 4 classes. Threads share the large items."""
    w = combs((40, 60, 44), 0, [-1])
    w[:, 30:34] = 0  # two combs
    w[0, ::4] = 0
    ends = torch.zeros(4, 5, 6, dtype=torch.uint8)
    ends[0, 0, 0] = ends[-1, -1, -1] = 1
    nested = torch.zeros(24, 25, 26, dtype=torch.uint8)
    for value, margin in ((1, 1), (2, 4), (3, 7), (1, 9)):
        nested[margin:-margin, margin:-margin, margin:-margin] = value
    stripes = torch.arange(1, 4, dtype=torch.uint8).repeat(60)[:161].expand(7, 9, 161).clone()
    labels = {
        "empty": torch.zeros(4, 5, 6, dtype=torch.uint8),
        "full": torch.ones(40, 41, 42, dtype=torch.uint8),
        "one voxel": noise((1, 1, 1), 1),
        "first and last voxel": ends,
        "spiral": spiral(61),
        "spiral, many slabs": spiral(401),
        "spiral in depth": spiral(61)[:, None].expand(61, 3, 61).clone(),
        "spiral across": spiral(61)[..., None] * torch.tensor([1, 0, 0, 1], dtype=torch.uint8),
        "checkerboard": parity((9, 8, 7)),
        "checkerboard, many slabs": parity((41, 60, 70)),
        "checkerboard of classes": 1 + parity((40, 31, 70)),
        "checkerboard in 2-D": parity((33, 34)),
        "corners": corners_only((21, 22, 23)),
        "U": combs((40, 60, 44), 0, [-1]),
        "U upside down": combs((40, 60, 44), 0, [0]),
        "U along y": combs((40, 60, 44), 1, [-1]),
        "U along z": combs((40, 60, 44), 2, [-1]),
        "O": combs((40, 60, 44), 0, [0, -1]),
        "W": w,
        "equal sizes": boxes((42, 45, 48), 3, 2),
        "equal sizes of three classes": boxes((30, 31, 32), 4, 2)
        * (1 + torch.arange(30).byte()[:, None, None] // 4 % 3),
        "nested classes": nested,
        "stripes of classes": stripes,
        "stripes of classes, one plane off": torch.stack(
            [s.roll(i, -1) for i, s in enumerate(stripes)]
        ),
        "1x1xN": noise((1, 1, 300), 0.6),
        "1xNx1": noise((1, 300, 1), 0.6),
        "Nx1x1": noise((300, 1, 1), 0.6),
        "huge and flat": noise((1, 1, 70000), 0.9),
        "huge and flat, last axis 1": noise((300, 250, 1), 0.4, 3),
        "huge and flat, last axis 2": noise((300, 150, 2), 0.15, 3),
        "fewer planes than threads": noise((3, 200, 130), 0.3),
        "two planes": noise((2, 250, 200), 0.3, 3),
        "1xN": noise((1, 500), 0.7),
        "Nx1": noise((500, 1), 0.7),
        "2-D noise": noise((257, 300), 0.5, 3),
    }
    for classes, density in itertools.product((2, 4), (0.03, 0.12, 0.3, 0.6, 0.97)):
        labels[f"noise {density}, {classes} classes"] = noise((13, 14, 15), density, classes, 5)
    for density in (0.02, 0.1, 0.25, 0.5):
        labels[f"noise {density}, many slabs"] = noise((37, 60, 71), density, 3, 9)
    return labels


ADVERSARIAL = adversarial()


@pytest.fixture(params=list(ADVERSARIAL))
def labels(request, device):
    return ADVERSARIAL[request.param][None].to(device)


def by_definition(labels, num_classes, connectivity):
    """The argmax over bincount of SciPy's labels, as in research code, without the reference."""
    out = np.zeros_like(labels)
    structure = ndimage.generate_binary_structure(labels.ndim, RANK[connectivity])
    for value in range(1, num_classes):
        components, count = ndimage.label(labels == value, structure)
        if count:
            out[components == np.bincount(components.flat)[1:].argmax() + 1] = value
    return out


def assert_is_reference(got, labels, num_classes, connectivity=None):
    want = largest_component_reference(labels, num_classes, connectivity)
    assert got.dtype == labels.dtype
    assert got.device == labels.device
    assert got.is_contiguous()
    np.testing.assert_array_equal(got.cpu().numpy(), want.cpu().numpy())


def test_is_the_reference(labels):
    for connectivity in CONNECTIVITY[labels.ndim - 1]:
        for num_classes in (2, 4):
            assert_is_reference(
                largest_component(labels, num_classes, connectivity),
                labels,
                num_classes,
                connectivity,
            )


def test_the_reference_is_the_definition():
    for name, item in ADVERSARIAL.items():
        for connectivity in CONNECTIVITY[item.ndim]:
            want = by_definition(item.numpy(), 4, connectivity)
            got = largest_component_reference(item[None], 4, connectivity)[0]
            np.testing.assert_array_equal(got, want, err_msg=f"{name}, {connectivity}")


def noises(connectivity, device):
    """Pairs of noise and its largest component, as arrays."""
    shape = (61, 53) if connectivity in CONNECTIVITY[2] else (61, 53, 47)
    for density in (0.1, 0.3, 0.6):
        item = noise(shape, density)
        yield (
            item.numpy(),
            largest_component(item[None].to(device), 2, connectivity)[0].cpu().numpy(),
        )


@pytest.mark.parametrize("connectivity", [4, 8, 6, 18, 26])
def test_is_skimage(device, connectivity):
    from skimage import measure

    for item, got in noises(connectivity, device):
        components = measure.label(item, connectivity=RANK[connectivity])
        np.testing.assert_array_equal(
            got, components == 1 + np.bincount(components.flat)[1:].argmax()
        )


@pytest.mark.parametrize("connectivity", [4, 8, 6, 18, 26])
def test_is_cc3d(device, connectivity):
    import cc3d

    for item, got in noises(connectivity, device):
        components = cc3d.connected_components(item, connectivity=connectivity)
        sizes = np.bincount(components.flat)[1:]
        assert got.sum() == sizes.max()
        if (sizes == sizes.max()).sum() == 1:  # of equal sizes cc3d may keep another one
            np.testing.assert_array_equal(got, components == 1 + sizes.argmax())
            np.testing.assert_array_equal(
                got, cc3d.largest_k(item, k=1, connectivity=connectivity) > 0
            )


def test_default_is_full_connectivity(device):
    item = torch.eye(3, dtype=torch.uint8, device=device)
    assert largest_component(item[None], 2).sum() == 3
    assert largest_component(item[None], 2, 4).sum() == 1
    volume = torch.zeros(1, 3, 3, 3, dtype=torch.uint8, device=device)
    for i in range(3):
        volume[0, i, i, i] = 1
    assert largest_component(volume, 2).sum() == 3
    assert largest_component(volume, 2, 18).sum() == 1


@pytest.mark.parametrize(
    ("step", "connectivity"),
    [((0, 0, 1), 6), ((0, 1, 1), 18), ((0, 1, -1), 18), ((1, 1, 1), 26), ((1, -1, 1), 26)],
)
def test_two_voxels_meet_from_a_connectivity_on(device, step, connectivity):
    for order in itertools.permutations(range(3)):
        volume = torch.zeros(3, 3, 3, dtype=torch.uint8, device=device)
        volume[1, 1, 1] = 1
        volume[tuple(1 + step[axis] for axis in order)] = 1
        for given in CONNECTIVITY[3]:
            assert largest_component(volume[None], 2, given).sum() == (
                2 if given >= connectivity else 1
            )


def test_rows_do_not_meet_around_the_edge(device):
    """Rows and planes that follow each other in memory are no neighbours at that place."""
    for shape in [(4, 5, 6), (4, 5, 2), (4, 2, 6), (4, 1, 6)]:
        flat = torch.zeros(shape, dtype=torch.uint8, device=device).flatten()
        for gap in range(1, shape[1] * shape[2] + 2):
            pair = flat.clone()
            pair[shape[2] - 1] = pair[shape[2] - 1 + gap] = 1
            for connectivity in CONNECTIVITY[3]:
                item = pair.view(1, *shape)
                assert_is_reference(largest_component(item, 2, connectivity), item, 2, connectivity)


def test_of_equals_the_first_in_scan_order_stays(device):
    item = boxes((42, 45, 48), 3, 2).to(device)
    kept = largest_component(item[None], 2)[0]
    assert kept.sum() == 8
    assert kept[:2, :2, :2].all()
    item[0, 0, 0] = 0  # now the second is the first of the largest
    kept = largest_component(item[None], 2)[0]
    assert kept.sum() == 8
    assert kept[:2, :2, 3:5].all()


def test_classes_do_not_join_and_empty_ones_stay_empty(device):
    row = torch.tensor([[[1, 1, 3, 1, 1, 1, 3, 3, 0, 1]]], device=device)
    assert largest_component(row, 5).tolist() == [[[0, 0, 0, 1, 1, 1, 3, 3, 0, 0]]]
    assert largest_component(row, 3).tolist() == [[[0, 0, 0, 1, 1, 1, 0, 0, 0, 0]]]


@pytest.mark.parametrize("dtype", EVERY_INTEGER)
def test_every_integer_type(device, dtype):
    for name in ("noise 0.12, 4 classes", "noise 0.25, many slabs", "stripes of classes"):
        item = ADVERSARIAL[name][None].to(device)
        want = largest_component(item, 4)
        got = largest_component(item.to(dtype), 4)
        assert got.dtype == dtype
        assert torch.equal(got.long(), want.long())


def test_bool(device):
    item = ADVERSARIAL["noise 0.12, 2 classes"][None].to(device)
    got = largest_component(item.bool(), 2)
    assert got.dtype == torch.bool
    assert torch.equal(got, largest_component(item, 2).bool())
    assert torch.equal(largest_component(item.bool(), 300), got)


@pytest.mark.parametrize("dtype", EVERY_INTEGER)
def test_labels_out_of_range_are_background(device, dtype):
    limits = torch.iinfo(dtype)
    strange = (-1, -128, limits.min, 4, 127, 255, 256, 257, limits.max)
    strange = [
        value for value in strange if limits.min <= value <= limits.max and not 0 <= value < 4
    ]
    item = ADVERSARIAL["noise 0.3, 4 classes"].numpy().astype(str(dtype).removeprefix("torch."))
    spoilt = item.copy()
    holes = np.random.default_rng(0).random(item.shape) < 0.2
    item[holes] = 0
    spoilt[holes] = np.resize(np.array(strange, dtype=item.dtype), holes.sum())
    got = largest_component(torch.from_numpy(spoilt)[None].to(device), 4)
    np.testing.assert_array_equal(got[0].cpu().numpy(), by_definition(item, 4, 26))


def test_many_classes(device):
    random = generator(3)
    for dtype, classes in (
        (torch.uint8, 256),
        (torch.int8, 128),
        (torch.int16, 1 << 15),
        (torch.int64, 1 << 15),
    ):
        item = torch.randint(0, classes, (2, 3, 30, 20), generator=random).to(device, dtype)
        item[:, :, 10:20, 5:15] = classes - 1
        assert_is_reference(largest_component(item, 1 << 15), item, 1 << 15)


def test_a_batch_is_its_items_one_by_one(device):
    for shape in [(5, 9, 10, 11), (7, 33, 34), (3, 40, 40, 44)]:
        batch = noise(shape, 0.2, 4, 7).to(device)
        batch[1] = 0
        batch[2] = 2
        whole = largest_component(batch, 4)
        assert torch.equal(whole, torch.cat([largest_component(item[None], 4) for item in batch]))
        assert_is_reference(whole, batch, 4)


def test_strides_do_not_matter(device):
    batch = noise((2, 9, 10, 11), 0.3, 3).to(device)
    for view in (
        batch.transpose(1, 3),
        batch[:, ::2, 1:, ::3],
        batch.flip(2),
        batch[:1].expand(3, -1, -1, -1),
    ):
        assert_is_reference(largest_component(view, 3), view, 3)


@pytest.mark.parametrize("shape", [(0, 4, 5), (0, 4, 5, 6), (2, 0, 5), (2, 4, 0, 6), (2, 4, 5, 0)])
def test_nothing_in_nothing_out(device, shape):
    for dtype in (torch.bool, torch.int64):
        got = largest_component(torch.zeros(shape, dtype=dtype, device=device), 2)
        assert got.shape == shape
        assert got.dtype == dtype


def test_inputs_stay(device):
    for name in ("noise 0.12, 4 classes", "checkerboard of classes"):
        item = ADVERSARIAL[name][None].to(device)
        before = item.clone()
        kept = largest_component(item, 4)
        assert torch.equal(item, before)
        assert kept.data_ptr() != item.data_ptr()
        kept = largest_component(item.clone(), 4)
        assert torch.equal(largest_component(kept, 4), kept)


@pytest.mark.parametrize(
    ("labels", "num_classes", "connectivity", "error", "message"),
    [
        (torch.zeros(2, 3, 4), 2, None, TypeError, "torch.float32"),
        (torch.zeros(2, 3, 4, dtype=torch.complex64), 2, None, TypeError, "torch.complex64"),
        (np.zeros((2, 3, 4), dtype=bool), 2, None, TypeError, "ndarray"),
        (
            torch.zeros(3, 4, dtype=torch.bool),
            2,
            None,
            ValueError,
            r"\(3, 4\)",
        ),
        (
            torch.zeros(1, 2, 3, 4, 5, dtype=torch.bool),
            2,
            None,
            ValueError,
            r"\(1, 2, 3, 4, 5\)",
        ),
        (
            torch.zeros(1, 2, 3, dtype=torch.bool),
            2,
            26,
            ValueError,
            r"4 or 8 .*\(1, 2, 3\).* 26",
        ),
        (torch.zeros(1, 2, 3, 4, dtype=torch.bool), 2, 8, ValueError, r"6 or 18 or 26 .*got 8"),
        (torch.zeros(1, 2, 3, dtype=torch.bool), 2, 0, ValueError, "got 0"),
        (
            torch.zeros(1, 2, 3, dtype=torch.bool),
            1,
            None,
            ValueError,
            "2 to 32768 .* 1",
        ),
        (torch.zeros(1, 2, 3, dtype=torch.int64), 32769, None, ValueError, "got 32769"),
        (
            torch.zeros(1, 2, 3, dtype=torch.bool),
            2.5,
            None,
            TypeError,
            r"classes.* 2\.5",
        ),
        (
            torch.zeros(1, 2, 3, dtype=torch.bool),
            "3",
            None,
            TypeError,
            "classes.* '3'",
        ),
        (
            torch.zeros(1, 2, 3, dtype=torch.bool),
            True,
            None,
            TypeError,
            "classes.* True",
        ),
        (
            torch.zeros(1, 2, 3, 4, dtype=torch.bool),
            2,
            6.0,
            TypeError,
            r"connectivity.* 6\.0",
        ),
        (
            torch.zeros((), dtype=torch.bool).expand(1, 1 << 16, 1 << 15),
            2,
            None,
            ValueError,
            r"2\^31 voxels",
        ),
    ],
)
def test_wrong_input(labels, num_classes, connectivity, error, message):
    for op in (largest_component, largest_component_reference):
        with pytest.raises(error, match=message):
            op(labels, num_classes, connectivity)


def test_numbers_of_any_integer_type():
    item = ADVERSARIAL["noise 0.3, 4 classes"][None]
    for kind in (np.int64, np.uint8, torch.tensor):
        assert torch.equal(largest_component(item, kind(4), kind(6)), largest_component(item, 4, 6))


def test_the_bare_operator_checks_what_memory_safety_needs(device):
    operator = torch.ops.semiseg.largest_component
    image = torch.zeros((2, 3, 4), dtype=torch.uint8, device=device)
    volume = torch.zeros((2, 3, 4, 5), dtype=torch.uint8, device=device)
    with pytest.raises(TypeError, match="Float"):
        operator(image.float(), 2, 8)
    with pytest.raises(ValueError, match=r"\[3, 4\]"):
        operator(image[0], 2, 8)
    for given, connectivity in ((image, 26), (image, 0), (volume, 8), (volume, 7)):
        with pytest.raises(ValueError, match=f"no connectivity {connectivity}"):
            operator(given, 2, connectivity)
    for classes in (-1, 0, 1, 32769, 1 << 40):
        with pytest.raises(ValueError, match=f"got {classes}"):
            operator(image, classes, 8)
    with pytest.raises(ValueError, match=r"2\^31 voxels"):
        operator(image[:1, :1, :1].expand(1, 1 << 16, 1 << 15), 2, 8)


def test_threads_do_not_change_a_bit():
    shared = ("many slabs", "flat", "planes", "U", "W", "equal sizes", "checkerboard of classes")
    cases = []
    for name, item in ADVERSARIAL.items():
        if any(part in name for part in shared):
            cases.append(item[None])
    noises = [ADVERSARIAL[f"noise {density}, many slabs"] for density in (0.02, 0.1, 0.25, 0.5)]
    cases.append(torch.stack(noises))
    assert same_bits_on_any_threads(lambda: [largest_component(c, 4) for c in cases], (1, 2, 7))


def test_the_same_every_time(device):
    """The result does not depend on the order of the threads."""
    item = noise((37, 60, 71), 0.12, 3, 9)[None].to(device)
    first = largest_component(item, 3, 18)
    for _ in range(20 if device.type == "cuda" else 5):
        assert torch.equal(largest_component(item, 3, 18), first)


@pytest.mark.parametrize("shape", [(2, 6, 7), (2, 5, 6, 7)])
@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64])
def test_opcheck(device, shape, dtype):
    labels = noise(shape, 0.4).to(device, dtype)
    for connectivity in CONNECTIVITY[len(shape) - 1]:
        torch.library.opcheck(
            torch.ops.semiseg.largest_component.default, (labels, 2, connectivity)
        )


def test_compiles_without_a_graph_break(device):
    @torch.compile(fullgraph=True, backend="aot_eager")
    def loss(logits):
        pseudo = largest_component(logits.argmax(1), 3)
        return torch.nn.functional.cross_entropy(logits, pseudo)

    logits = torch.randn(2, 3, 6, 7, 8, generator=generator(0)).to(device).requires_grad_()
    loss(logits).backward()
    got = logits.grad.clone()
    logits.grad = None
    want = largest_component_reference(logits.argmax(1), 3)
    torch.nn.functional.cross_entropy(logits, want).backward()
    torch.testing.assert_close(got, logits.grad)


def test_real_left_atria(left_atria, device):
    salt = torch.rand(left_atria.shape, generator=generator(0)) < 0.01
    for labels in (left_atria, left_atria ^ salt.byte(), left_atria.long()):
        for connectivity in CONNECTIVITY[3]:
            labels = labels.to(device)
            assert_is_reference(largest_component(labels, 2, connectivity), labels, 2, connectivity)
