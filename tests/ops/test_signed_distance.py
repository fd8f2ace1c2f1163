import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT
from operator_inputs import INTEGERS, ball, same_bits_on_any_threads, spiral
from scipy import ndimage

from utils.ops import (
    normalized_sdm,
    normalized_sdm_reference,
    signed_distance,
    signed_distance_reference,
)

EQUAL = (1.3, 1.3, 1.3)
UNEQUAL = (0.7, 1.9, 3.1)


def point(shape, at):
    mask = torch.zeros(shape, dtype=torch.bool)
    mask[at] = True
    return mask


def adversarial():
    """Name -> one mask without its batch axis."""
    random = torch.Generator().manual_seed(1)
    checkerboard = torch.from_numpy(np.indices((9, 8, 7)).sum(0) % 2 == 0)
    slab = torch.zeros(5, 6, 21, dtype=torch.bool)
    slab[:, :, 4:9] = True
    shells = torch.from_numpy((np.abs(np.indices((23, 21, 25)) - 11).max(0) // 2) % 2 == 0)
    masks = {
        "checkerboard": checkerboard,
        "spiral": spiral(33),
        "spiral, extruded": spiral(20)[:, None].expand(20, 5, 20),
        "slab": slab,
        "slab along x": slab.permute(2, 0, 1),
        "shells": shells,
        "corner voxel": point((13, 17, 40), (0, 0, 0)),
        "last voxel": point((40, 13, 17), (39, 12, 16)),
        "hole": ~point((30, 40, 35), (15, 3, 30)),
        "1x1xN": torch.rand(1, 1, 70, generator=random) < 0.1,
        "1xNx1": torch.rand(1, 70, 1, generator=random) < 0.1,
        "Nx1x1": torch.rand(70, 1, 1, generator=random) < 0.1,
        "1xN": torch.rand(1, 70, generator=random) < 0.1,
        "Nx1": torch.rand(70, 1, generator=random) < 0.1,
        "far apart in 2-D": point((300, 400), (0, 0)) | point((300, 400), (299, 399)),
        "odd ball": ball((37, 41, 53), (20, 10, 30), 9),
        "larger than a 16-bit squared distance": ball((200, 40, 190), (5, 5, 5), 4),
        "long": point((2048, 2, 2), (1, 0, 1)),
        "long, last axis": ~point((2, 2, 2048), (1, 0, 1)),
    }
    for density in (0.001, 0.05, 0.5, 0.95):
        masks[f"noise {density}"] = torch.rand(31, 18, 45, generator=random) < density
    return masks


ADVERSARIAL = adversarial()


@pytest.fixture(params=list(ADVERSARIAL))
def mask(request, device):
    return ADVERSARIAL[request.param][None].to(device)


def research_sdm(mask, spacing=None):
    """`compute_sdf` as the research repositories define it, for one mask with both labels."""
    inside = ndimage.distance_transform_edt(mask, sampling=spacing)
    outside = ndimage.distance_transform_edt(~mask, sampling=spacing)
    sdm = (outside - outside.min()) / (outside.max() - outside.min())
    sdm -= (inside - inside.min()) / (inside.max() - inside.min())
    cross = ndimage.generate_binary_structure(mask.ndim, 1)
    changes = ndimage.grey_dilation(
        mask.astype(np.uint8), footprint=cross, mode="nearest"
    ) != ndimage.grey_erosion(mask.astype(np.uint8), footprint=cross, mode="nearest")
    sdm[changes & mask] = 0
    return sdm


def assert_exact(got, mask, spacing=None):
    """Bit-equal to the rounded float64 reference at unit spacing, else within one rounding."""
    want = signed_distance_reference(mask, spacing)
    assert got.dtype == torch.float32
    assert got.shape == mask.shape
    assert got.device == mask.device
    rtol = 0 if spacing is None else 3e-7
    torch.testing.assert_close(got.cpu(), want.float(), rtol=rtol, atol=0)


def test_is_exact(mask):
    assert_exact(signed_distance(mask), mask)


@pytest.mark.parametrize("spacing", [EQUAL, UNEQUAL], ids=["equal", "unequal"])
def test_is_exact_with_spacing(mask, spacing):
    spacing = spacing[: mask.ndim - 1]
    assert_exact(signed_distance(mask, spacing), mask, spacing)


@pytest.mark.parametrize("spacing", [None, EQUAL, UNEQUAL], ids=["unit", "equal", "unequal"])
def test_normalized_is_the_reference(mask, spacing):
    spacing = spacing and spacing[: mask.ndim - 1]
    got, want = normalized_sdm(mask, spacing), normalized_sdm_reference(mask, spacing)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.cpu(), want.float(), rtol=5e-7, atol=0)
    assert got.amin() >= -1
    assert got.amax() == 1


@pytest.mark.parametrize("spacing", [None, UNEQUAL], ids=["unit", "unequal"])
def test_references_are_scipy_and_the_research_formula(spacing):
    mask = ADVERSARIAL["odd ball"] | ADVERSARIAL["odd ball"].flip(2)
    inside = ndimage.distance_transform_edt(mask, sampling=spacing)
    outside = ndimage.distance_transform_edt(~mask, sampling=spacing)
    np.testing.assert_array_equal(
        signed_distance_reference(mask[None], spacing)[0], outside - inside
    )
    np.testing.assert_allclose(
        normalized_sdm_reference(mask[None], spacing)[0],
        research_sdm(mask.numpy(), spacing),
        rtol=1e-15,
    )


def test_inner_boundary_is_that_of_skimage_and_where_the_inside_distance_is_one(device):
    from skimage import segmentation

    for name, mask in ADVERSARIAL.items():
        boundary = segmentation.find_boundaries(mask.numpy().astype(np.uint8), mode="inner").astype(
            bool
        )
        for spacing in (None, UNEQUAL[: mask.ndim]):
            zero = normalized_sdm(mask[None].to(device), spacing)[0].cpu().numpy() == 0
            np.testing.assert_array_equal(zero, boundary, err_msg=name)
        one = signed_distance(mask[None].to(device))[0].cpu().numpy() == -1
        np.testing.assert_array_equal(one, boundary, err_msg=name)


@pytest.mark.parametrize(
    "shape", [(1, 384, 2, 2), (1, 1, 384, 3), (1, 512, 32), (1, 1, 1024, 2), (1, 2, 1, 2048)]
)
def test_axes_that_fill_shared_memory(device, shape):
    places = torch.arange(max(shape), device=device) % 300 < 117
    mask = places.view([n if n == max(shape) else 1 for n in shape]).expand(shape)
    assert torch.equal(signed_distance(mask), signed_distance_reference(mask).float())


@pytest.mark.parametrize("extent", [12256, 12257, 12272, 12273])
def test_axes_that_do_not_fit_in_shared_memory(device, extent):
    mask = (torch.arange(extent, device=device) % 40 < 17)[None, :, None]
    for given in (mask, mask.transpose(1, 2)):
        assert torch.equal(signed_distance(given), signed_distance_reference(given).float())


def test_a_mask_that_is_all_alike_along_x(device):
    y, z = torch.arange(112.0)[None, :, None], torch.arange(80.0)[None, None]
    wave = (z < 40 + 25 * torch.sin(y / 3)).expand(112, 112, 80)[None].to(device)
    steps = torch.tensor([[[[0, 1], [1, 0]], [[1, 1], [0, 0]]]], device=device)
    for mask in (wave, steps):
        assert torch.equal(signed_distance(mask), signed_distance_reference(mask).float())


def test_a_row(device):
    row = torch.tensor([1, 1, 1, 0, 0, 0, 0], device=device)
    want = torch.tensor([-1, -2 / 3, 0, 0.25, 0.5, 0.75, 1], device=device)
    for shape in [(1, 1, 7), (1, 7, 1), (1, 1, 1, 7), (1, 1, 7, 1), (1, 7, 1, 1)]:
        torch.testing.assert_close(normalized_sdm(row.view(shape)), want.view(shape))
        torch.testing.assert_close(
            normalized_sdm(row.view(shape), [2.0] * (len(shape) - 1)), want.view(shape)
        )


@pytest.mark.parametrize("spacing", [None, EQUAL, UNEQUAL], ids=["unit", "equal", "unequal"])
@pytest.mark.parametrize("shape", [(5, 6, 7), (1, 1, 1), (200, 3, 190)])
def test_one_label_only(device, shape, spacing):
    mask = torch.stack([torch.zeros(shape), ball(shape, (0, 0, 0), 0.5), torch.ones(shape)]).to(
        device, torch.uint8
    )
    distance, sdm = signed_distance(mask, spacing), normalized_sdm(mask, spacing)
    assert (distance[0] == torch.inf).all()
    assert (distance[2] == -torch.inf).all()
    assert (sdm[0] == 0).all()
    assert (sdm[2] == -1).all()
    if mask[1].numel() > 1:  # items do not see each other
        assert_exact(distance[1:2], mask[1:2], spacing)


@pytest.mark.parametrize("dtype", INTEGERS)
def test_every_integer_type_counts_nonzero_as_foreground(device, dtype):
    mask = torch.stack([ADVERSARIAL["noise 0.05"], ADVERSARIAL["noise 0.95"]]).to(device)
    values = mask * (1 + torch.arange(mask.numel(), device=device).view(mask.shape) % 127)
    assert torch.equal(signed_distance(values.to(dtype)), signed_distance(mask))
    assert torch.equal(normalized_sdm(values.to(dtype)), normalized_sdm(mask))
    if dtype != torch.uint8:
        assert torch.equal(signed_distance(-values.to(dtype)), signed_distance(mask))


def test_values_beyond_a_byte_are_foreground(device):
    mask = torch.zeros(1, 4, 5, dtype=torch.int64, device=device)
    mask[0, 1, 2] = 256
    assert_exact(signed_distance(mask), mask)


def test_strides_do_not_matter(device):
    mask = ADVERSARIAL["noise 0.05"].to(device)[None].repeat(2, 1, 1, 1)
    for view in (
        mask.transpose(1, 3),
        mask[:, ::2, 1:, ::3],
        mask.flip(2),
        mask[:1].expand(3, -1, -1, -1),
    ):
        assert_exact(signed_distance(view), view)
    channels_last = mask[:, None].contiguous(memory_format=torch.channels_last_3d)[:, 0]
    assert torch.equal(signed_distance(channels_last), signed_distance(mask))


@pytest.mark.parametrize("shape", [(0, 4, 5), (0, 4, 5, 6), (2, 0, 5), (2, 4, 0, 6), (2, 4, 5, 0)])
def test_nothing_in_nothing_out(device, shape):
    mask = torch.zeros(shape, dtype=torch.bool, device=device)
    for op in (signed_distance, normalized_sdm):
        assert op(mask).shape == shape
        assert op(mask).dtype == torch.float32


def test_inputs_stay_and_outputs_need_no_gradient(device):
    mask = ADVERSARIAL["shells"].to(device)[None].repeat(2, 1, 1, 1)
    before = mask.clone()
    assert not signed_distance(mask).requires_grad
    assert not normalized_sdm(mask).requires_grad
    assert torch.equal(mask, before)


@pytest.mark.parametrize(
    ("mask", "spacing", "error", "message"),
    [
        (torch.zeros(2, 3, 4), None, TypeError, "torch.float32"),
        (torch.zeros(2, 3, 4, dtype=torch.complex64), None, TypeError, "torch.complex64"),
        (np.zeros((2, 3, 4), dtype=bool), None, TypeError, "ndarray"),
        (
            torch.zeros(3, 4, dtype=torch.bool),
            None,
            ValueError,
            r"\(3, 4\)",
        ),
        (torch.zeros(1, 2, 3, 4, 5, dtype=torch.bool), None, ValueError, r"\(1, 2, 3, 4, 5\)"),
        (
            torch.zeros(1, 2, 3, dtype=torch.bool),
            (1.0, 1.0, 1.0),
            ValueError,
            r"2 axes.*\(1.0, 1.0, 1.0\)",
        ),
        (
            torch.zeros(1, 2, 3, 4, dtype=torch.bool),
            (1.0, 0.0, 1.0),
            ValueError,
            r"3 axes.*\(1.0, 0.0, 1.0\)",
        ),
        (
            torch.zeros(1, 2, 3, dtype=torch.bool),
            (1.0, float("nan")),
            ValueError,
            "positive",
        ),
        (
            torch.zeros(1, 2, 3, dtype=torch.bool),
            (float("inf"), 1.0),
            ValueError,
            "positive",
        ),
        (
            torch.zeros(1, 2, 3, dtype=torch.bool),
            (1, 1e20),
            ValueError,
            r"1e-12 to 1e\+12.*unit",
        ),
        (torch.zeros(1, 2, 3, dtype=torch.bool), (1, 1e-25), ValueError, "1e-12"),
        (
            torch.zeros(1, 2, 3, dtype=torch.bool),
            2.0,
            TypeError,
            r"spacing .* 2\.0",
        ),
        (
            torch.zeros(0, 1 << 15, 1, dtype=torch.bool),
            None,
            ValueError,
            r"2\^15 .*\(0, 32768, 1\)",
        ),
    ],
)
def test_wrong_input(mask, spacing, error, message):
    for op in (
        signed_distance,
        normalized_sdm,
        signed_distance_reference,
        normalized_sdm_reference,
    ):
        with pytest.raises(error, match=message):
            op(mask, spacing)


def test_the_bare_operator_checks_what_memory_safety_needs(device):
    operator = torch.ops.semiseg.signed_distance
    with pytest.raises(TypeError, match="Float"):
        operator(torch.zeros(2, 3, 4, device=device), [1.0, 1.0], False)
    with pytest.raises(ValueError, match=r"\[3, 4\]"):
        operator(torch.zeros(3, 4, dtype=torch.bool, device=device), [1.0], False)
    with pytest.raises(ValueError, match="spacing"):
        operator(torch.zeros(2, 3, 4, dtype=torch.bool, device=device), [1.0, 1.0, 1.0], False)
    with pytest.raises(ValueError, match=r"2\^15 voxels"):
        operator(torch.zeros(1, 1 << 15, 1, dtype=torch.bool, device=device), [1.0, 1.0], False)


def test_threads_do_not_change_a_bit():
    mask = torch.stack([ADVERSARIAL[f"noise {density}"] for density in (0.001, 0.05, 0.5, 0.95)])

    def run():
        both = (signed_distance, normalized_sdm)
        return [op(mask, spacing) for op in both for spacing in (None, UNEQUAL)]

    assert same_bits_on_any_threads(run)


@pytest.mark.parametrize("capability", ["DEFAULT", "AVX2"])
def test_instruction_sets_do_not_change_a_bit(tmp_path, capability):
    if torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"):
        pytest.skip("this processor has one instruction set only")
    masks = [mask[None] for mask in ADVERSARIAL.values()]
    torch.save(masks, tmp_path / "masks.pt")
    code = """
import sys, torch
from utils.ops import normalized_sdm, signed_distance
masks = torch.load(sys.argv[1] + "/masks.pt")
results = [[signed_distance(mask), normalized_sdm(mask)] for mask in masks]
torch.save([torch.backends.cpu.get_cpu_capability(), results], sys.argv[1] + "/results.pt")
"""
    environment = os.environ | {"ATEN_CPU_CAPABILITY": capability.lower()}
    subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, env=environment, check=True
    )
    used, results = torch.load(tmp_path / "results.pt")
    assert used == capability
    for mask, (distance, sdm) in zip(masks, results, strict=True):
        assert torch.equal(distance, signed_distance(mask))
        assert torch.equal(sdm, normalized_sdm(mask))


@pytest.mark.parametrize("shape", [(2, 6, 7), (2, 5, 6, 7)])
@pytest.mark.parametrize("dtype", [torch.bool, torch.int64])
def test_opcheck(device, shape, dtype):
    mask = (torch.rand(shape, generator=torch.Generator().manual_seed(2)) < 0.3).to(device, dtype)
    for spacing in (EQUAL, UNEQUAL):
        for normalized in (False, True):
            torch.library.opcheck(
                torch.ops.semiseg.signed_distance.default,
                (mask, list(spacing[: len(shape) - 1]), normalized),
            )


def test_compiles_without_a_graph_break(device):
    @torch.compile(fullgraph=True, backend="aot_eager")
    def loss(mask, prediction):
        return ((prediction - normalized_sdm(mask)) ** 2).mean() + (
            prediction * signed_distance(mask, UNEQUAL)
        ).mean()

    mask = torch.stack([ADVERSARIAL["noise 0.05"], ADVERSARIAL["noise 0.5"]]).to(device)
    prediction = torch.zeros(mask.shape, device=device, requires_grad=True)
    loss(mask, prediction).backward()
    want = -2 * normalized_sdm(mask) / mask.numel() + signed_distance(mask, UNEQUAL) / mask.numel()
    torch.testing.assert_close(prediction.grad, want)


def test_real_left_atria(left_atria, device):
    mask = left_atria.to(device)
    assert_exact(signed_distance(mask), mask)
    torch.testing.assert_close(
        normalized_sdm(mask).cpu(), normalized_sdm_reference(mask).float(), rtol=5e-7, atol=0
    )
    assert_exact(signed_distance(mask[:1], UNEQUAL), mask[:1], UNEQUAL)
