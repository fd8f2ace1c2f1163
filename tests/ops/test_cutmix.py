from functools import partial

import numpy as np
import pytest
import torch
from operator_inputs import MOVED

from utils.ops import cutmix, cutmix_reference, random_box, splice, splice_reference

SPACES = {
    "volume": (11, 10, 9),
    "whole words": (6, 5, 16),
    "image": (13, 17),
    "row": (40,),
    "1x1xN": (1, 1, 21),
    "Nx1x1": (21, 1, 1),
}

# torch.func warns of its own use of torch.jit
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")


def numbers(shape, dtype, device, seed=0):
    values = torch.randint(-100, 100, shape, generator=torch.Generator().manual_seed(seed))
    return (values % 2 if dtype == torch.bool else values).to(device, dtype)


def boxes(space):
    """Name -> corners `(2, D)` that test every edge of the volume."""
    start, stop = torch.zeros(len(space), dtype=torch.int64), torch.tensor(space)
    huge = 2**62
    return {
        "inner": torch.stack([stop // 3, 2 * stop // 3 + 1]),
        "all": torch.stack([start, stop]),
        "first voxel": torch.stack([start, start + 1]),
        "last voxel": torch.stack([stop - 1, stop]),
        "over both edges": torch.stack([start - 3, stop + 5]),
        "over the first edge": torch.stack([start - 3, stop // 2]),
        "over the last edge": torch.stack([stop // 2, stop + huge]),
        "empty": torch.stack([stop // 2, stop // 2]),
        "inverted": torch.stack([stop - 1, start]),
        "below": torch.stack([start - huge, start - 2]),
        "above": torch.stack([stop + 2, stop + huge]),
        "empty on the last axis only": torch.stack([start, torch.cat([stop[:-1], stop[-1:] * 0])]),
    }


def by_where(a, b, box):
    """The field's other way: compares coordinates, then chooses voxel by voxel."""
    axes = box.shape[-1]
    box = box.to(a.device).expand(len(a), 2, axes)
    inside = torch.ones((len(a), *a.shape[-axes:]), dtype=torch.bool, device=a.device)
    for axis, extent in enumerate(a.shape[-axes:]):
        at = torch.arange(extent, device=a.device)
        holds = (box[:, :1, axis] <= at) & (at < box[:, 1:, axis])
        inside &= holds.view(len(a), *(extent if k == axis else 1 for k in range(axes)))
    return torch.where(inside.view(len(a), *[1] * (a.ndim - 1 - axes), *a.shape[-axes:]), b, a)


@pytest.fixture(params=list(SPACES))
def space(request):
    return SPACES[request.param]


@pytest.mark.parametrize("dtype", MOVED)
def test_splice_is_the_reference(device, space, dtype):
    a, b = (numbers((3, 2, *space), dtype, device, seed) for seed in (1, 2))
    for name, box in boxes(space).items():
        want = splice_reference(a, b, box)
        got = splice(a, b, box.to(device))
        assert (got.dtype, got.device, got.is_contiguous()) == (dtype, a.device, True)
        assert torch.equal(got, want), name
        assert torch.equal(splice(a, b, box), want), name  # a box on the CPU, whatever the device
        assert torch.equal(by_where(a, b, box), want), name


@pytest.mark.parametrize("middle", [(), (3,), (2, 3)])
def test_a_box_for_each_sample(device, space, middle):
    every = torch.stack(list(boxes(space).values())).to(device)
    a, b = (numbers((len(every), *middle, *space), torch.float32, device, seed) for seed in (1, 2))
    got = splice(a, b, every)
    assert torch.equal(got, splice_reference(a, b, every))
    for k, box in enumerate(every):
        assert torch.equal(got[k : k + 1], splice(a[k : k + 1], b[k : k + 1], box))


@pytest.mark.parametrize(
    ("image_type", "label_type"), list(zip(MOVED, MOVED[3:] + MOVED[:3], strict=True))
)
def test_cutmix_splices_both_pairs(device, image_type, label_type):
    for space in SPACES.values():
        images = [numbers((2, 3, *space), image_type, device, seed) for seed in (1, 2)]
        labels = [numbers((2, *space), label_type, device, seed) for seed in (3, 4)]
        box = boxes(space)["inner"].to(device)
        image, label = cutmix(*images, *labels, box)
        assert torch.equal(image, splice_reference(*images, box))
        assert torch.equal(label, splice_reference(*labels, box))
        for got, want in zip((image, label), cutmix_reference(*images, *labels, box), strict=True):
            assert torch.equal(got, want)


def test_one_hot_labels_and_a_box_a_sample(device):
    images = [numbers((4, 1, 6, 7, 8), torch.float32, device, seed) for seed in (1, 2)]
    labels = [numbers((4, 3, 2, 6, 7, 8), torch.float16, device, seed) for seed in (3, 4)]
    box = random_box((6, 7, 8), 0.6, torch.Generator().manual_seed(0), count=4).to(device)
    assert len(box.unique(dim=0)) > 1
    image, label = cutmix(*images, *labels, box)
    assert torch.equal(image, by_where(*images, box))
    assert torch.equal(label, by_where(*labels, box))


def test_axes_between_need_not_be_space(device):
    """A box of two axes is the same in every slice of a volume."""
    a, b = (numbers((2, 5, 6, 7), torch.int32, device, seed) for seed in (1, 2))
    box = torch.tensor([[1, 2], [4, 6]], device=device)
    want = a.clone()
    want[:, :, 1:4, 2:6] = b[:, :, 1:4, 2:6]
    assert torch.equal(splice(a, b, box), want)


def test_many_tasks_and_threads_do_not_change_a_bit():
    a, b = (numbers((3, 2, 50, 60, 70), torch.float32, "cpu", seed) for seed in (1, 2))
    labels = [numbers((3, 50, 60, 70), torch.int64, "cpu", seed) for seed in (3, 4)]
    box = random_box((50, 60, 70), 2 / 3, torch.Generator().manual_seed(0), count=3)
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            image, label = cutmix(a, b, *labels, box)
            assert torch.equal(image, splice_reference(a, b, box))
            assert torch.equal(label, splice_reference(*labels, box))
    finally:
        torch.set_num_threads(threads)


def test_not_a_number_is_copied_to_the_bit(device):
    bits = torch.tensor([0x7FC01234, -0x3FEDCC, 0x7F800001, -0x80000000]).to(torch.int32)
    a = bits.view(torch.float32).view(1, 4).to(device)
    b = bits.flip(0).view(torch.float32).view(1, 4).to(device)
    got = splice(a, b, torch.tensor([[1], [3]], device=device)).cpu().view(torch.int32)[0]
    assert got.tolist() == [bits[k].item() for k in (0, 2, 1, 3)]


def test_strides_and_offsets_do_not_matter(device):
    box = torch.tensor([[1, 0, 2], [4, 3, 6]], device=device)
    whole = numbers((5, 9, 7, 8, 9), torch.float32, device)
    unaligned = whole.flatten()[1 : 1 + 2 * 3 * 6 * 6 * 8]  # begins at no multiple of 16 bytes
    views = [
        whole[:2, :3].transpose(2, 4),
        whole[1:3, :3, ::2],
        whole[1:2, 1:3].expand(2, -1, -1, -1, -1),
        whole[:2, :4].contiguous(memory_format=torch.channels_last_3d),
        unaligned.view(2, 3, 6, 6, 8),
    ]
    for a in views:
        b = numbers(a.shape, torch.float32, device, 7)
        for pair in ((a, b), (b, a)):
            got = splice(*pair, box.t().contiguous().t())
            assert got.is_contiguous()
            assert torch.equal(got, splice_reference(*pair, box))


def test_lazy_conjugates_and_negatives_are_resolved(device):
    a = torch.complex(torch.rand(2, 5), torch.rand(2, 5)).to(device)
    box = torch.tensor([[1], [4]], device=device)
    got = splice(a.conj(), a.conj().imag.to(a.dtype), box)
    assert torch.equal(
        got, splice_reference(a.conj().resolve_conj(), a.conj().imag.to(a.dtype).resolve_neg(), box)
    )


@pytest.mark.parametrize(
    "shape", [(0, 4, 5, 6), (2, 0, 5, 6), (2, 4, 0, 6), (2, 3, 4, 5, 0), (0, 2, 4, 5, 6)]
)
def test_nothing_in_nothing_out(device, shape):
    a, box = torch.zeros(shape, device=device), torch.tensor([[1, 1, 1], [3, 3, 3]], device=device)
    assert splice(a, a, box).shape == shape
    assert splice(a, a, box.expand(shape[0], 2, 3)).shape == shape
    label = torch.ones((shape[0], *shape[-3:]), dtype=torch.int64, device=device)
    image, got = cutmix(a, a, label, label, box)
    assert image.shape == shape
    assert torch.equal(got, label)  # an image without channels keeps its label


def test_inputs_stay_and_outputs_are_new(device):
    a, b = (numbers((2, 3, 4, 5), torch.float32, device, seed) for seed in (1, 2))
    box = torch.tensor([[0, 0], [9, 9]], device=device)
    before = a.clone(), b.clone(), box.clone()
    splice(a, b, box).zero_()
    cutmix(a, b, a, b, box)[1].zero_()
    assert all(torch.equal(now, then) for now, then in zip((a, b, box), before, strict=True))


def test_gradients_follow_the_voxels(device):
    box = torch.tensor([[[1, 0], [3, 1]], [[0, 1], [9, 2]]], device=device)
    a, b = (
        torch.rand((2, 2, 3, 2), dtype=torch.float64, device=device, requires_grad=True)
        for _ in range(2)
    )
    c, d = (
        torch.rand((2, 3, 2), dtype=torch.float64, device=device, requires_grad=True)
        for _ in range(2)
    )
    assert torch.autograd.gradcheck(splice, (a, b, box))
    assert torch.autograd.gradgradcheck(lambda c, d: splice(c, d, box) ** 3, (c, d))
    assert torch.autograd.gradcheck(lambda *pairs: cutmix(*pairs, box), (a, b, c, d))
    weight = torch.rand_like(a)
    (splice(a, b, box) * weight).sum().backward()
    assert torch.equal(a.grad, splice_reference(weight, torch.zeros_like(weight), box))
    assert torch.equal(b.grad, splice_reference(torch.zeros_like(weight), weight, box))


def test_functional_gradients(device):
    box = torch.tensor([[1, 0], [3, 1]], device=device)
    a, b = (torch.rand((2, 2, 3, 2), device=device) for _ in range(2))
    weight = torch.rand_like(a)
    found = torch.func.grad(lambda a, b: (splice(a, b, box) * weight).sum(), argnums=(0, 1))(a, b)
    zeros = torch.zeros_like(weight)
    for got, want in zip(
        found, (splice(weight, zeros, box), splice(zeros, weight, box)), strict=True
    ):
        assert torch.equal(got, want)
    label = torch.zeros((2, 3, 2), dtype=torch.int64, device=device)
    found = torch.func.grad(lambda a: (cutmix(a, b, label, label, box)[0] * weight).sum())(a)
    assert torch.equal(found, splice(weight, zeros, box))


def test_tangents_follow_the_voxels(device):
    box = torch.tensor([[1, 0], [3, 2]], device=device)
    a, b = numbers((2, 4, 3), torch.float64, device), numbers((2, 4, 3), torch.float64, device, 5)
    label = torch.zeros((2, 4, 3), dtype=torch.int64, device=device)
    tangents = torch.randn(2, 2, 4, 3, device=device, dtype=torch.float64)
    _, got = torch.func.jvp(lambda *pair: splice(*pair, box), (a, b), tuple(tangents))
    assert torch.equal(got, splice(*tangents, box))
    _, got = torch.func.jvp(lambda b: cutmix(a, b, label, label, box)[0], (b,), (tangents[1],))
    assert torch.equal(got, splice(torch.zeros_like(a), tangents[1], box))
    pair = [a.requires_grad_(), b.requires_grad_()]
    assert torch.autograd.gradcheck(lambda *pair: splice(*pair, box), pair, check_forward_ad=True)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_gradients_of_each_sample(device):
    box = torch.tensor([[1, 0], [3, 2]], device=device)
    a, b = (
        numbers((5, 2, 4, 3), torch.float32, device),
        numbers((5, 2, 4, 3), torch.float32, device, 5),
    )
    got = torch.func.vmap(torch.func.grad(lambda a, b: splice(a, b, box).square().sum()))(a, b)
    assert torch.equal(
        got, splice(2 * a.flatten(0, 1), torch.zeros_like(b).flatten(0, 1), box).view_as(a)
    )


def test_integer_labels_have_no_gradient_and_one_side_may_need_none(device):
    box = torch.tensor([[1, 0], [3, 2]], device=device)
    a, b = (torch.rand((2, 1, 4, 3), device=device) for _ in range(2))
    label = torch.zeros((2, 4, 3), dtype=torch.int64, device=device)
    image, mixed = cutmix(a, b.requires_grad_(), label, label + 1, box)
    assert image.requires_grad
    assert not mixed.requires_grad
    image.sum().backward()
    assert a.grad is None
    assert b.grad.sum() == 2 * 4
    soft = torch.rand((2, 4, 3), device=device, requires_grad=True)
    # only the labels' result is used
    cutmix(a, b, soft, soft.detach(), box)[1].sum().backward()
    assert soft.grad.sum() == 2 * 12 - 2 * 4
    assert not cutmix(a, a, label, label, box)[0].requires_grad


def pair(*shape, dtype=torch.float32):
    return torch.zeros(shape, dtype=dtype), torch.zeros(shape, dtype=dtype)


BOX = torch.tensor([[0, 0], [1, 1]])


@pytest.mark.parametrize(
    ("a", "b", "box", "error", "message"),
    [
        (*pair(2, 4, 5), BOX.int(), TypeError, "int64 .*(torch.int32|Int)"),
        (torch.zeros(2, 4, 5), torch.zeros(2, 4, 5).double(), BOX, TypeError, "dtype"),
        (
            torch.zeros(2, 4, 5),
            torch.zeros(2, 5, 4),
            BOX,
            ValueError,
            r"shape.*2, 4, 5. and .2, 5, 4",
        ),
        (*pair(2, 4), BOX, ValueError, r"2 axes.* .2, 4"),
        (*pair(2, 4, 5), BOX[0], ValueError, r"box .*2, D.* .2"),
        (*pair(2, 4, 5), BOX[0, 0], ValueError, "box"),
        (
            *pair(2, 4, 5),
            torch.zeros(3, 2, dtype=torch.int64),
            ValueError,
            r"box.* .3, 2",
        ),
        (
            *pair(2, 2, 2, 2, 2),
            torch.zeros(2, 4, dtype=torch.int64),
            ValueError,
            r"box.* .2, 4",
        ),
        (
            *pair(2, 4, 5),
            torch.zeros(2, 0, dtype=torch.int64),
            ValueError,
            r"box.* .2, 0",
        ),
        (
            *pair(2, 4, 5),
            torch.zeros(1, 2, 2, 2, dtype=torch.int64),
            ValueError,
            r"box.* .1, 2, 2, 2",
        ),
        (*pair(2, 4, 5), BOX.expand(3, 2, 2), ValueError, "box .*2.* 3"),
        (
            *pair(0, 1 << 16, 1 << 15),
            BOX,
            ValueError,
            r"2\^31 .*65536, 32768",
        ),
    ],
)
def test_wrong_input(device, a, b, box, error, message):
    a, b, box = a.to(device), b.to(device), box.to(device)
    for op in (splice, splice_reference):
        with pytest.raises(error, match=message):
            op(a, b, box)
    with pytest.raises(error, match=message):  # while torch.compile traces
        torch.ops.semiseg.splice(*(tensor.to("meta") for tensor in (a, b, box)))


def test_pairs_that_do_not_fit_each_other(device):
    images = [torch.zeros((2, 1, 4, 5), device=device)] * 2
    for op in (cutmix, cutmix_reference):
        for shape in [(3, 4, 5), (2, 5, 4), (2, 4, 6), (2, 5)]:
            labels = [torch.zeros(shape, device=device)] * 2
            shapes = rf".2, 1, 4, 5. and .{str(shape)[1:-1]}"
            with pytest.raises(ValueError, match=shapes):
                op(*images, *labels, BOX.to(device))
        with pytest.raises(TypeError, match="dtype"):
            op(*images, images[0].long(), images[0].byte(), BOX.to(device))


def test_what_is_no_tensor_or_elsewhere():
    a, b = pair(2, 4, 5)
    with pytest.raises(TypeError, match="list"):
        splice(a, b, BOX.tolist())
    with pytest.raises(TypeError, match="ndarray"):
        cutmix(a, b, np.zeros((2, 4, 5)), a, BOX)
    with pytest.raises(ValueError, match=r"cpu, meta and .*cpu"):
        splice(a, b.to("meta"), BOX)
    with pytest.raises(ValueError, match="box on meta"):
        splice(a, b, BOX.to("meta"))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_opcheck(device, dtype):
    space = (4, 5, 6)
    box = random_box(space, 0.5, torch.Generator().manual_seed(0)).to(device)
    images = [numbers((2, 2, *space), dtype, device, seed) for seed in (1, 2)]
    labels = [numbers((2, *space), torch.int64, device, seed) for seed in (3, 4)]
    torch.library.opcheck(torch.ops.semiseg.splice.default, (*images, box))
    torch.library.opcheck(
        torch.ops.semiseg.splice.default,
        (images[0].transpose(1, 2), images[1].transpose(1, 2), box),
    )
    torch.library.opcheck(torch.ops.semiseg.cutmix.default, (*images, *labels, box))
    torch.library.opcheck(torch.ops.semiseg.cutmix.default, (*images, *labels, box.expand(2, 2, 3)))


def test_compiles_without_a_graph_break(device):
    def loss(a, b, labels, box):
        image, label = cutmix(a, b, labels, labels.flip(0), box)
        return ((image - label[:, None]) ** 2).sum() + splice(a, b, box).pow(3).sum()

    a, b = (torch.rand((2, 3, 6, 7), device=device, requires_grad=True) for _ in range(2))
    labels = numbers((2, 6, 7), torch.int64, device)
    box = torch.tensor([[2, 1], [5, 4]], device=device)
    want = torch.autograd.grad(loss(a, b, labels, box), (a, b))
    got = torch.autograd.grad(
        torch.compile(loss, fullgraph=True, backend="aot_eager")(a, b, labels, box), (a, b)
    )
    torch.testing.assert_close(got, want)


def test_real_left_atria(left_atria, device):
    """CML's setting on LA: two pairs, and one box of two thirds of each axis."""
    labels = left_atria.to(device, torch.int64)
    images = labels[:, None].float() + 0.1 * torch.rand(labels[:, None].shape, device=device)
    box = random_box(labels.shape[1:], 2 / 3, torch.Generator().manual_seed(3))
    assert (box[1] - box[0]).tolist() == [74, 74, 53]
    image, label = cutmix(images[:2], images[2:], labels[:2], labels[2:], box)
    inside = (..., *(slice(*corners) for corners in box.t().tolist()))
    for mixed, given in ((image[:, 0], images[:, 0]), (label, labels)):
        want = given[:2].clone()
        want[inside] = given[2:][inside]
        assert torch.equal(mixed, want)
        assert not torch.equal(want, given[:2])


# -------------------------------------------------------------------------------------- random_box


def test_random_box_fits_and_reaches_every_place_equally_often():
    box = random_box((5, 4, 3), (0.6, 1.0, 0.34), torch.Generator().manual_seed(0), count=6000)
    assert box.shape == (6000, 2, 3)
    assert box.dtype == torch.int64
    assert ((box[:, 1] - box[:, 0]) == torch.tensor([3, 4, 1])).all()
    places, counts = box[:, 0].unique(dim=0, return_counts=True)
    assert places.tolist() == [[x, 0, z] for x in range(3) for z in range(3)]
    assert ((counts - 6000 / 9).abs() < 5 * (6000 / 9) ** 0.5).all()


def test_random_box_depends_on_its_generator_alone():
    def draw():
        return random_box((112, 112, 80), 2 / 3, torch.Generator().manual_seed(5), count=3)

    first = draw()
    torch.manual_seed(1)
    assert torch.equal(draw(), first)
    one = random_box((112, 112, 80), 2 / 3, torch.Generator().manual_seed(6))
    assert one.shape == (2, 3)
    torch.manual_seed(2)
    a = random_box((50,), 0.5)
    torch.manual_seed(2)
    assert torch.equal(random_box((50,), 0.5), a)


def test_random_box_extents_are_rounded_down_as_numbers_are_written():
    for shape, ratio, want in [
        ((100,), 0.29, 29),
        ((112,), 2 / 3, 74),
        ((96,), 2 / 3, 64),
        ((3,), 0.1, 0),
        ((7,), 1, 7),
    ]:
        start, stop = random_box(shape, ratio).squeeze(1).tolist()
        assert stop - start == want


def test_random_box_goes_to_its_device(device):
    box = random_box((8, 9), 0.5, torch.Generator(device).manual_seed(0), count=2, device=device)
    assert box.device == torch.zeros(0, device=device).device
    assert (box[:, 0] >= 0).all()
    assert (box[:, 1] <= torch.tensor([8, 9], device=device)).all()


def test_random_box_takes_any_numbers():
    def draw(shape, ratio, count=2):
        return random_box(shape, ratio, torch.Generator().manual_seed(0), count)

    want = draw((8, 9), 0.5)
    for ratio in (
        np.float32(0.5),
        np.float64(0.5),
        (0.5, np.float32(0.5)),
        np.array([0.5, 0.5]),
        torch.full((2,), 0.5),
    ):
        assert torch.equal(draw((8, 9), ratio), want)
    assert torch.equal(draw(torch.Size((8, 9)), 0.5, np.int64(2)), want)
    assert torch.equal(draw(np.array((8, 9)), 0.5), want)


def test_random_box_compiles_without_a_graph_break():
    for count in (None, 4):
        draw = partial(random_box, (9, 8, 7), 0.5, count=count)
        box = torch.compile(draw, fullgraph=True, backend="aot_eager")()
        assert box.shape == ((2, 3) if count is None else (4, 2, 3))


def test_an_empty_box_leaves_the_first():
    a, b = pair(2, 3, 4)
    assert torch.equal(splice(a, b + 1, random_box((3, 4), 0.1)), a)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"shape": ()}, ValueError, r"extents .*\(\)"),
        ({"shape": (2, 3, 4, 5)}, ValueError, r"\(2, 3, 4, 5\)"),
        ({"shape": (2, -3)}, ValueError, r"\(2, -3\)"),
        ({"shape": (2, 3.0)}, TypeError, r"shape.* 3\.0"),
        ({"shape": 8}, TypeError, "shape.* 8"),
        ({"count": 0}, ValueError, "count.* 0"),
        ({"count": -1}, ValueError, "count.* -1"),
        ({"count": 1.5}, TypeError, r"count.* 1\.5"),
        ({"ratio": None}, TypeError, "ratio.*None"),
        ({"ratio": "0.5"}, TypeError, "ratio"),
    ],
)
def test_random_box_wrong_input(options, error, message):
    with pytest.raises(error, match=message):
        random_box(**{"shape": (8, 9), "ratio": 0.5, **options})


@pytest.mark.parametrize("ratio", [0, -0.1, 1.1, float("nan"), (0.5,), (0.5, 0.5, 0.5), (0.5, 0.0)])
def test_random_box_wrong_ratio(ratio):
    with pytest.raises(ValueError, match=r"ratio .*\(8, 9\)"):
        random_box((8, 9), ratio)
