import itertools

import numpy as np
import pytest
import torch
from operator_inputs import MOVED, same_bits_on_any_threads

from utils.ops import crop_rot_flip, crop_rot_flip_reference

TURNS = list(itertools.product(range(4), [None, 0, 1, 2]))


def numbers(shape, dtype=torch.float32, device="cpu", seed=0):
    """Values without zeros, because zeros come only from padding."""
    values = torch.randint(1, 100, shape, generator=torch.Generator().manual_seed(seed))
    return values.to(device, dtype)


def by_numpy(volume, start, size, rot, flip):
    """Pads by the crop's extents, crops, turns and flips."""
    extents = (size[1], size[0], *size[2:]) if rot % 2 else size
    padded = np.pad(volume.cpu().numpy(), [(n, n) for n in extents])
    corners = [n + max(-n, min(c, m)) for c, n, m in zip(start, extents, volume.shape, strict=True)]
    crop = padded[tuple(slice(c, c + n) for c, n in zip(corners, extents, strict=True))]
    turned = np.rot90(crop, rot, (0, 1))
    return torch.from_numpy((turned if flip is None else np.flip(turned, flip)).copy())


def assert_crops(volumes, labels, starts, size, rot, flip):
    """Bit-equal to the reference and, where NumPy has the dtype, to NumPy."""
    crops, targets = crop_rot_flip(volumes, labels, starts, size, rot, flip)
    want, want_targets = crop_rot_flip_reference(volumes, labels, starts, size, rot, flip)
    assert (crops.dtype, crops.device, crops.is_contiguous()) == (
        volumes[0].dtype,
        volumes[0].device,
        True,
    )
    assert torch.equal(crops, want)
    if volumes[0].dtype != torch.bfloat16:
        by_hand = [
            by_numpy(*sample)
            for sample in zip(volumes, starts, [size] * len(rot), rot, flip, strict=True)
        ]
        assert torch.equal(crops.cpu(), torch.stack(by_hand))
    if not labels:
        assert targets is None
        assert want_targets is None
    else:
        assert (targets.dtype, targets.device, targets.is_contiguous()) == (
            labels[0].dtype,
            labels[0].device,
            True,
        )
        assert torch.equal(targets, want_targets)
    return crops, targets


@pytest.mark.parametrize(
    "size", [(4, 6, 3), (12, 4, 8), (9, 10, 5), (1, 1, 1), (1, 20, 2), (20, 1, 13), (19, 18, 17)]
)
def test_every_turn_and_flip_of_a_volume(device, size):
    """Centred crops of a volume that is smaller than some crops."""
    volume, label = numbers((9, 10, 5), device=device), numbers((9, 10, 5), torch.uint8, device, 1)
    rot, flip = zip(*TURNS, strict=True)
    starts = []
    for turns in rot:
        extents = (size[1], size[0], size[2]) if turns % 2 else size
        starts.append([(n - p) // 2 for n, p in zip(volume.shape, extents, strict=True)])
    assert_crops([volume] * len(rot), [label] * len(rot), starts, size, rot, flip)


@pytest.mark.parametrize("dtype", MOVED)
@pytest.mark.parametrize("size", [(4, 6), (12, 5), (1, 9), (40, 37)])
def test_every_turn_and_flip_of_an_image(device, size, dtype):
    image = numbers((36, 33), dtype, device)
    turns = [(r, f) for r, f in TURNS if f != 2]
    for start in [(3, 5), (-2, -3), (30, 30), (-36, 2)]:
        rot, flip = zip(*turns, strict=True)
        assert_crops([image] * len(rot), None, [start] * len(rot), size, rot, flip)


@pytest.mark.parametrize("x", [-9, -5, -2, 0, 3, 9])
def test_crops_that_leave_the_volume(device, x):
    volume = numbers((5, 6, 7), device=device)
    rot, flip = zip(*TURNS, strict=True)
    for y, z in itertools.product((-9, -5, -2, 0, 3, 9), repeat=2):
        assert_crops(
            [volume] * len(rot), [volume.byte()] * 3, [(x, y, z)] * len(rot), (4, 5, 3), rot, flip
        )


def test_crops_far_out_are_zero(device):
    volume, far = numbers((5, 6, 7), device=device), 2**62
    for start in itertools.product((-far, 0, far), repeat=3):
        if any(start):
            for rot, flip in TURNS:
                assert not crop_rot_flip([volume], None, [start], (4, 5, 3), [rot], [flip])[0].any()


@pytest.mark.parametrize(
    ("dtype", "label_dtype"), list(zip(MOVED, MOVED[3:] + MOVED[:3], strict=True))
)
def test_every_dtype(device, dtype, label_dtype):
    shapes = [(20, 17, 9), (8, 30, 12), (15, 15, 15)]
    volumes = [numbers(shape, dtype, device, k) for k, shape in enumerate(shapes)]
    labels = [numbers(shape, label_dtype, device, 5 + k) for k, shape in enumerate(shapes)]
    starts = [(3, -2, 1), (-1, 9, 4), (2, 2, -3)]
    for rot, flip in TURNS:
        assert_crops(volumes, labels, starts, (13, 11, 10), [rot, 1, 2], [flip, None, 2])


@pytest.mark.parametrize("labelled", range(4))
def test_only_the_first_samples_need_a_label(device, labelled):
    volumes = [numbers((6, 7, 8), device=device, seed=k) for k in range(3)]
    labels = [volume.long() for volume in volumes[:labelled]]
    starts, rot, flip = [(1, 2, 3), (-1, 0, 0), (2, 2, 4)], [1, 2, 3], [0, None, 1]
    crops, targets = assert_crops(volumes, labels, starts, (4, 4, 4), rot, flip)
    if labelled:
        assert targets.shape == (labelled, 4, 4, 4)
        assert torch.equal(targets, crops[:labelled].long())
    assert torch.equal(crop_rot_flip(volumes, None, starts, (4, 4, 4), rot, flip)[0], crops)


def test_a_batch_larger_than_a_launch_takes(device):
    random = np.random.default_rng(0)
    count = 75
    shapes = random.integers(1, 9, (count, 3)).tolist()
    volumes = [numbers(shape, device=device, seed=k) for k, shape in enumerate(shapes)]
    starts = random.integers(-5, 8, (count, 3)).tolist()
    rot = random.integers(0, 4, count).tolist()
    flip = random.choice([None, 0, 1, 2], count).tolist()
    assert_crops(volumes, [volume.byte() for volume in volumes[:40]], starts, (4, 5, 6), rot, flip)


def test_strides_do_not_matter(device):
    volume = numbers((9, 10, 11), device=device)
    views = [
        volume.transpose(0, 2),
        volume[::2, 1:, ::3],
        volume.flip(1),
        volume[:, :1].expand(9, 4, 11),
        volume[1:],
    ]
    for view in views:
        for rot, flip in TURNS:
            assert_crops([view], [view.int()], [(1, -1, 2)], (5, 4, 6), [rot], [flip])


def test_nothing_in_nothing_out(device):
    volume = numbers((3, 4, 5), device=device)
    for size in [(0, 3, 4), (3, 0, 4), (3, 4, 0)]:
        crops, labels = crop_rot_flip(
            [volume] * 2, [volume.byte()], [(0, 0, 0)] * 2, size, [0, 1], [None, 1]
        )
        assert crops.shape == (2, *size)
        assert labels.shape == (1, *size)
    for shape in [(0, 4, 5), (3, 0, 5), (3, 4, 0)]:  # every crop lies outside of an empty volume
        empty = torch.ones(shape, device=device)
        for rot in range(4):
            crops, labels = crop_rot_flip(
                [empty], [empty.byte()], [(-1, 0, 1)], (2, 3, 4), [rot], [0]
            )
            assert torch.equal(crops, torch.zeros_like(crops))
            assert torch.equal(labels, torch.zeros_like(labels))


def test_inputs_stay_and_outputs_are_new(device):
    volume, label = numbers((3, 4, 5), device=device), numbers((3, 4, 5), torch.uint8, device)
    before = volume.clone(), label.clone()
    crops, labels = crop_rot_flip([volume], [label], [(0, 0, 0)], (3, 4, 5), [0], [None])
    crops.zero_()
    labels.zero_()
    assert torch.equal(volume, before[0])
    assert torch.equal(label, before[1])
    for op in (crop_rot_flip, crop_rot_flip_reference):
        crops, _ = op([volume.requires_grad_()], None, [(0, 0, 0)], (3, 4, 5), [0], [None])
        assert not crops.requires_grad


def test_any_sequence_will_do(device):
    volumes = numbers((2, 5, 6, 7), device=device)
    got = crop_rot_flip(
        volumes,
        volumes,
        np.array([[0, 1, 2], [1, 2, 3]]),
        np.array([4, 4, 4]),
        np.array([1, 3]),
        (0, 1),
    )
    want = crop_rot_flip(
        list(volumes), list(volumes), [[0, 1, 2], [1, 2, 3]], [4, 4, 4], [1, 3], [0, 1]
    )
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


VOLUME = torch.zeros(3, 4, 5)
GOOD = {
    "images": [VOLUME, VOLUME],
    "labels": [VOLUME.byte()],
    "corners": [(0, 0, 0)] * 2,
    "size": (2, 2, 2),
    "rot": [0, 1],
    "flip": [None, 1],
}


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"images": []}, ValueError, "image"),
        ({"images": [VOLUME, None]}, TypeError, "NoneType"),
        ({"images": [VOLUME, VOLUME.double()]}, TypeError, "torch.float32, torch.float64"),
        (
            {"images": [VOLUME[0], VOLUME]},
            ValueError,
            r"3 axes.*\[\(4, 5\), \(3, 4, 5\)\]",
        ),
        ({"images": [VOLUME, VOLUME.to("meta")]}, ValueError, "device.*cpu, meta, cpu"),
        ({"labels": [VOLUME.byte(), VOLUME.long()]}, TypeError, "torch.uint8, torch.int64"),
        (
            {"labels": [VOLUME[1:]]},
            ValueError,
            r"label 0 .*\(2, 4, 5\).*\(3, 4, 5\)",
        ),
        ({"labels": [VOLUME] * 3}, ValueError, "2 labels.* 3"),
        ({"images": None}, TypeError, "images.*None"),
        ({"labels": 3}, TypeError, "labels.* 3"),
        ({"corners": [(0, 0, 0)]}, ValueError, "2 images.* 1 corners, 2 rot and 2 flip"),
        ({"corners": [(0, 0, 0), (0, 0)]}, ValueError, "corners"),
        ({"corners": [(0, 0, 0), (0, 0, 2**70)]}, ValueError, "64 bits"),
        ({"corners": [(0, 0, 0), (-(2**63) - 1, 0, 0)]}, ValueError, "64 bits"),
        (
            {"corners": [(0, 0, 0), (0, 0.5, 0)]},
            TypeError,
            r"corner.* 0\.5",
        ),
        ({"corners": (0, 0, 0)}, TypeError, "corner.* 0"),
        ({"corners": 0}, TypeError, "corners.* 0"),
        ({"size": (2, 2.0, 2)}, TypeError, r"size.* 2\.0"),
        ({"size": 2}, TypeError, "size.* 2"),
        ({"size": (0, 2**70, 2)}, ValueError, r"2\^31"),
        ({"size": (2, -1, 2)}, ValueError, r"\(2, -1, 2\)"),
        ({"size": (2, 2, 2, 2)}, ValueError, r"2 or 3 axes"),
        ({"size": (1 << 11, 1 << 10, 1 << 10)}, ValueError, r"2\^31"),
        ({"rot": [0, 4]}, ValueError, r"turns.*\[0, 4\]"),
        ({"rot": [0]}, ValueError, "1 rot"),
        ({"rot": [0, 1.9]}, TypeError, r"rot.* 1\.9"),
        ({"rot": [0, True]}, TypeError, "rot.* True"),
        ({"rot": 1}, TypeError, "rot.* 1"),
        ({"flip": [3, 0]}, ValueError, r"flip.*\[3, 0\]"),
        ({"flip": [None, -1]}, ValueError, r"flip.*\[None, -1\]"),
        ({"flip": [0.0, 0]}, TypeError, r"flip.* 0\.0"),
        ({"flip": [True, 0]}, TypeError, "flip.* True"),
        ({"flip": None}, TypeError, "flip.* None"),
    ],
)
def test_wrong_input(changes, error, message):
    for op in (crop_rot_flip, crop_rot_flip_reference):
        op(**GOOD)
        with pytest.raises(error, match=message):
            op(**(GOOD | changes))


def test_the_bare_operator_checks_what_memory_safety_needs(device):
    volume = VOLUME.to(device)

    def op(
        images=(volume, volume),
        labels=(),
        starts=(0,) * 6,
        size=(2, 2, 2),
        rot=(0, 0),
        flip=(-1, -1),
    ):
        return torch.ops.semiseg.crop_rot_flip(images, labels, starts, size, rot, flip)

    op()
    for changes, error, message in [
        ({"images": [volume, volume.double()]}, TypeError, "one type"),
        ({"images": [volume, volume[0]]}, ValueError, "3 axes"),
        ({"labels": [volume, volume.double()]}, TypeError, "one type"),
        ({"labels": [volume[1:]]}, ValueError, "does not fit"),
        ({"labels": [volume] * 3}, ValueError, "label"),
        ({"starts": (0,) * 5}, ValueError, "6 .*starts.* 5"),
        ({"rot": (0,)}, ValueError, "rot"),
        ({"flip": (0, 0, 0)}, ValueError, "flip"),
        ({"rot": (0, 4)}, ValueError, "turns.* 4"),
        ({"rot": (-1, 0)}, ValueError, "turns.* -1"),
        ({"flip": (0, 3)}, ValueError, "flip.* 3"),
        ({"size": (2, 2, -1)}, ValueError, "2, 2, -1"),
        ({"size": (2,)}, ValueError, "2 or 3 axes"),
        ({"size": (1 << 11, 1 << 10, 1 << 10)}, ValueError, r"2\^31"),
    ]:
        with pytest.raises(error, match=message):
            op(**changes)


def test_threads_do_not_change_a_bit():
    volumes = [numbers((60, 50, 40), seed=k) for k in range(3)]
    labels = [volume.byte() for volume in volumes]
    arguments = [(3, -2, 5)] * 3, (44, 47, 41), [0, 1, 3], [None, 0, 2]
    assert same_bits_on_any_threads(lambda: assert_crops(volumes, labels, *arguments))


@pytest.mark.parametrize("labelled", [0, 1])
def test_opcheck(device, labelled):
    volumes = [numbers((5, 6, 7), device=device), numbers((8, 3, 7), device=device)]
    labels = [volume.byte() for volume in volumes[:labelled]]
    torch.library.opcheck(
        torch.ops.semiseg.crop_rot_flip.default,
        (volumes, labels, [1, -2, 0, 3, 0, 4], [4, 5, 3], [1, 2], [-1, 0]),
    )


def test_compiles_without_a_graph_break(device):
    @torch.compile(fullgraph=True, backend="aot_eager")
    def batch(volumes, labels):
        crops, targets = crop_rot_flip(
            volumes, labels, [(1, 2, 3), (0, -1, 2)], (4, 4, 4), (1, 2), (None, 0)
        )
        return crops * 2, targets.long()

    volumes = [numbers((5, 6, 7), device=device), numbers((8, 3, 7), device=device)]
    crops, targets = batch(volumes, [volumes[0].byte()])
    want = crop_rot_flip_reference(
        volumes, [volumes[0].byte()], [(1, 2, 3), (0, -1, 2)], (4, 4, 4), (1, 2), (None, 0)
    )
    assert torch.equal(crops, want[0] * 2)
    assert torch.equal(targets, want[1].long())


def test_real_left_atria(left_atria, device):
    volumes = list(left_atria.to(device))
    starts = [(10, 20, -7), (0, 0, 0), (-30, 5, 9), (40, 41, 42)]
    for rot in range(4):
        assert_crops(
            [v.float() for v in volumes],
            volumes[:2],
            starts,
            (96, 80, 64),
            [rot] * 4,
            [0, 1, 2, None],
        )
