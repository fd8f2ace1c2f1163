import itertools
import math

import h5py
import numpy as np
import pytest
import torch
from operator_inputs import same_bits_on_any_threads

from utils.ops import (
    WindowStitcher,
    _library,
    stitch_windows,
    stitch_windows_reference,
    window_starts,
)

ACTIVATIONS = ["softmax", "sigmoid", None]
FLOATS = [torch.float32, torch.float16, torch.bfloat16, torch.float64]

# name -> shape, patch, starts
GRIDS = {
    "odd": ((20, 17, 33), (12, 10, 18), window_starts((20, 17, 33), (12, 10, 18), (5, 4, 7))),
    "one window": ((7, 5, 9), (7, 5, 9), [[0], [0], [0]]),
    "clamped last windows": ((13, 11, 9), (12, 10, 8), [[0, 1], [0, 1], [0, 1]]),
    "side by side": ((8, 6, 32), (4, 3, 16), [[0, 4], [0, 3], [0, 16]]),
    "uneven starts": ((9, 10, 40), (5, 4, 17), [[0, 1, 4], [0, 3, 4, 6], [0, 2, 3, 20, 23]]),
    "one voxel": ((3, 2, 4), (1, 1, 1), window_starts((3, 2, 4), (1, 1, 1), (1, 1, 1))),
    "1x1xN": ((1, 1, 70), (1, 1, 33), window_starts((1, 1, 70), (1, 1, 33), (1, 1, 5))),
    "Nx1x1": ((70, 1, 1), (33, 1, 1), window_starts((70, 1, 1), (33, 1, 1), (5, 1, 1))),
    "2-D": ((29, 37), (16, 18), window_starts((29, 37), (16, 18), (5, 6))),
    "2-D, one row": ((1, 37), (1, 18), window_starts((1, 37), (1, 18), (1, 6))),
    "2-D, one column": ((37, 1), (18, 1), window_starts((37, 1), (18, 1), (6, 1))),
}
ODD = GRIDS["odd"]


def number(starts):
    return math.prod(map(len, starts))


def make_logits(grid, classes, device="cpu", seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (4 * torch.randn(number(grid[2]), classes, *grid[1], generator=generator)).to(device)


def make_weights(patch, device="cpu"):
    return (0.05 + torch.rand(patch, generator=torch.Generator().manual_seed(5))).to(device)


def research_loop(logits, starts, shape):
    """The field's test code: softmax, then score and count maps in NumPy."""
    score, count = np.zeros((logits.shape[1], *shape), np.float32), np.zeros(shape, np.float32)
    for window, corner in zip(logits, itertools.product(*starts), strict=True):
        place = tuple(slice(a, a + p) for a, p in zip(corner, window.shape[1:], strict=True))
        score[(slice(None), *place)] += torch.softmax(window, 0).numpy()
        count[place] += 1
    return score / count


def assert_reference(logits, grid, activation="softmax", weights=None, atol=1e-6):
    shape, _, starts = grid
    got = stitch_windows(logits, starts, shape, activation, weights)
    want = stitch_windows_reference(logits, starts, shape, activation, weights)
    assert got.dtype == torch.float32
    assert got.shape == (logits.shape[1], *shape)
    assert got.device == logits.device
    torch.testing.assert_close(got.cpu(), want.float(), rtol=1e-6, atol=atol, equal_nan=True)
    return got


@pytest.mark.parametrize("name", list(GRIDS))
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("weighted", [False, True], ids=["equal", "weighted"])
def test_is_the_reference(device, name, activation, weighted):
    grid = GRIDS[name]
    weights = make_weights(grid[1], device) if weighted else None
    for classes in (1, 2, 3, 4, 5, 9):
        assert_reference(make_logits(grid, classes, device), grid, activation, weights)


@pytest.mark.parametrize("name", list(GRIDS))
def test_reference_is_the_research_loop(name):
    shape, _, starts = GRIDS[name]
    logits = make_logits(GRIDS[name], 3)
    want = research_loop(logits, starts, shape)
    np.testing.assert_allclose(stitch_windows_reference(logits, starts, shape), want, atol=1e-6)


@pytest.mark.parametrize("axes", [2, 3])
def test_is_monai_with_gaussian_weights(device, axes):
    from monai import inferers
    from monai.data.utils import compute_importance_map

    shape, patch, stride = (40, 24, 33)[:axes], (16, 12, 20)[:axes], (8, 6, 10)[:axes]
    starts = window_starts(shape, patch, stride)
    kernel = torch.randn(3, 1, *([3] * axes), generator=torch.Generator().manual_seed(1)).to(device)
    image = torch.randn(1, 1, *shape, generator=torch.Generator().manual_seed(2)).to(device)
    convolution = torch.nn.functional.conv2d if axes == 2 else torch.nn.functional.conv3d

    def network(x):
        return convolution(x, kernel, padding=1)

    weights = compute_importance_map(patch, "gaussian", device=device)
    want = inferers.sliding_window_inference(
        image, patch, 4, lambda x: network(x).softmax(1), overlap=0.5, mode="gaussian"
    )[0]
    corners = itertools.product(*starts)
    windows = [
        image[(0, slice(None), *(slice(a, a + p) for a, p in zip(c, patch, strict=True)))]
        for c in corners
    ]
    got = stitch_windows(network(torch.stack(windows)), starts, shape, weights=weights)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", list(GRIDS))
def test_few_at_a_time_is_all_at_once_to_the_bit(device, name):
    shape, patch, starts = GRIDS[name]
    for classes, activation in ((2, "softmax"), (5, "softmax"), (1, "sigmoid"), (3, None)):
        logits = make_logits(GRIDS[name], classes, device)
        for weights in (None, make_weights(patch, device)):
            want = stitch_windows(logits, starts, shape, activation, weights)
            for batch in {1, 2, 3, 7, len(logits)}:
                options = {"activation": activation, "weights": weights, "device": device}
                stitcher = WindowStitcher(shape, patch, starts, classes, **options)
                assert stitcher.windows == len(logits)
                for chunk in logits.split(batch):
                    stitcher.add(chunk)
                assert torch.equal(stitcher.result(), want)


def test_uneven_batches_and_empty_ones(device):
    shape, patch, starts = ODD
    logits = make_logits(ODD, 2, device)
    stitcher = WindowStitcher(shape, patch, starts, 2, device=device)
    for begin, end in itertools.pairwise([0, 0, 1, 12, 12, 17, len(logits), len(logits)]):
        stitcher.add(logits[begin:end])
        assert stitcher.done == end
    assert torch.equal(stitcher.result(), stitch_windows(logits, starts, shape))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("classes", [1, 2, 3, 4, 6])
def test_types_and_strides(device, dtype, classes):
    for name in ("odd", "2-D"):
        grid = GRIDS[name]
        logits = make_logits(grid, classes, device).to(dtype)
        channels_last = torch.channels_last if logits.ndim == 4 else torch.channels_last_3d
        sparse = torch.full(
            [2 * extent for extent in logits.shape], torch.nan, dtype=dtype, device=device
        )
        sparse[tuple(slice(None, None, 2) for _ in logits.shape)] = logits
        views = [
            logits.contiguous(memory_format=channels_last),
            logits.transpose(2, -1).contiguous().transpose(2, -1),
            sparse[tuple(slice(None, None, 2) for _ in logits.shape)],
        ]
        for activation in ACTIVATIONS:
            want = assert_reference(logits, grid, activation)
            for view in views:
                assert torch.equal(view, logits)
                assert torch.equal(stitch_windows(view, grid[2], grid[0], activation), want)
        expanded = logits[:1, :, :1].expand(len(logits), -1, grid[1][0], *[-1] * (len(grid[0]) - 1))
        assert_reference(expanded, grid)


def test_every_16_bit_float_is_read_exactly(device):
    bits = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16)
    for dtype in (torch.float16, torch.bfloat16):
        values = bits.view(dtype).view(1, 1, 256, 256).to(device)
        got = stitch_windows(values, [[0], [0]], (256, 256), None)[0]
        assert torch.equal(got.isnan(), values[0, 0].isnan())
        assert torch.equal(got.nan_to_num(0), values[0, 0].float().nan_to_num(0))


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_probabilities_are_torchs_over_the_whole_range(device, activation):
    logits = torch.linspace(-110, 110, 40_001, dtype=torch.float64)
    logits = (
        torch.stack((logits, torch.zeros_like(logits))).view(1, 2, 1, -1).to(device, torch.float32)
    )
    got = stitch_windows(logits, [[0], [0]], (1, 40_001), activation)[:, 0].cpu().double()
    double = logits[0, :, 0].cpu().double()
    want = double.softmax(0) if activation == "softmax" else double.sigmoid()
    certain = want > 1e-37  # float32 has fewer digits below this
    assert ((got - want).abs() / want)[certain].max() < 4e-7
    assert got[~certain].max() < 2e-37


def test_extremes_are_torchs(device):
    values = [0.0, -0.0, 1.0, 1e4, -1e4, 3e38, -3e38, math.inf, -math.inf, math.nan]
    for classes in (1, 2, 3, 5):
        rows = list(itertools.product(values, repeat=min(classes, 3)))
        logits = torch.tensor(rows).T[None, :, None].to(device)  # (1, C, 1, n)
        logits = torch.cat(
            (logits, torch.zeros(1, classes - logits.shape[1], 1, len(rows), device=device)), 1
        )
        expected = {"softmax": logits.softmax(1), "sigmoid": logits.sigmoid(), None: logits}
        for activation in ACTIVATIONS:
            got = stitch_windows(logits, [[0], [0]], (1, len(rows)), activation)
            want = expected[activation][0]
            torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-37, equal_nan=True)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("classes", [1, 2, 3, 5])
def test_one_nan_reaches_only_its_own_voxel(device, activation, classes):
    shape, _, starts = ODD
    logits = make_logits(ODD, classes, device)
    logits[0, 0, 3, 4, 5] = torch.nan
    got = stitch_windows(logits, starts, shape, activation)
    assert got[0, 3, 4, 5].isnan()
    assert got.isnan().any(0).sum() == 1


def test_hundreds_of_starts_along_one_axis(device):
    shape, patch = (3, 400), (2, 9)
    grid = (shape, patch, window_starts(shape, patch, (1, 1)))
    logits = make_logits(grid, 2, device)
    want = assert_reference(logits, grid)
    stitcher = WindowStitcher(shape, patch, grid[2], 2, device=device)
    for chunk in logits.split(50):
        stitcher.add(chunk)
    assert torch.equal(stitcher.result(), want)


def test_the_most_starts_there_may_be(device):
    for shape, patch in (((1, 768 + 2), (1, 4)), ((1, 1, 768 + 1), (1, 1, 4))):
        stride = (1,) * len(shape)
        starts = window_starts(shape, patch, stride)
        assert sum(map(len, starts)) == 768
        grid = (shape, patch, starts)
        assert_reference(make_logits(grid, 1, device), grid, None)


def test_any_integers_will_do(device):
    shape, patch, starts = ODD
    logits = make_logits(ODD, 2, device)
    want = stitch_windows(logits, starts, shape)
    assert window_starts(torch.Size(shape), np.array(patch), torch.tensor((5, 4, 7))) == starts
    for kind in (np.array, torch.tensor, tuple):
        given = [kind(along) for along in starts]
        assert torch.equal(stitch_windows(logits, given, kind(shape)), want)
        stitcher = WindowStitcher(kind(shape), kind(patch), given, np.int64(2), device=device)
        assert stitcher.patch == patch
        stitcher.add(logits)
        assert torch.equal(stitcher.result(), want)
    with pytest.raises(TypeError, match=r"shape.* 8\.0"):
        window_starts((8.0, 8), (4, 4), (2, 2))


def test_inputs_stay_and_outputs_need_no_gradient(device):
    shape, patch, starts = ODD
    logits, weights = make_logits(ODD, 2, device).requires_grad_(), make_weights(patch, device)
    before = logits.detach().clone(), weights.clone()
    assert not stitch_windows(logits, starts, shape, weights=weights).requires_grad
    assert torch.equal(logits, before[0])
    assert torch.equal(weights, before[1])


def test_weights_of_any_float_type_and_strides(device):
    shape, patch, starts = ODD
    logits, weights = make_logits(ODD, 2, device), make_weights(patch, device).bfloat16()
    want = stitch_windows(logits, starts, shape, weights=weights.float())
    turned = weights.double().transpose(0, 2).contiguous().transpose(0, 2)
    for same in (weights, turned, turned.requires_grad_()):
        assert torch.equal(stitch_windows(logits, starts, shape, weights=same), want)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"logits": torch.zeros(4, 2, 4, 4, dtype=torch.int64)}, TypeError, "torch.int64"),
        ({"logits": np.zeros((4, 2, 4, 4))}, TypeError, "ndarray"),
        (
            {"logits": torch.zeros(2, 4, 4)},
            ValueError,
            r"\(2, 4, 4\)",
        ),
        ({"logits": torch.zeros(3, 2, 4, 4)}, ValueError, "3 windows .* 4"),
        ({"logits": torch.zeros(5, 2, 4, 4)}, ValueError, "5 windows .* 4"),
        ({"logits": torch.zeros(4, 2, 4, 4, 4)}, ValueError, "2, 3 and 2 axes"),
        ({"logits": torch.zeros(4, 0, 4, 4)}, ValueError, "class.* 0"),
        ({"shape": (6.0, 6)}, TypeError, r"shape.* 6\.0"),
        ({"shape": 6}, TypeError, "shape.* 6"),
        ({"starts": [[0, 2.5], [0, 2]]}, TypeError, r"starts.* 2\.5"),
        ({"starts": [0, 2]}, TypeError, "starts.* 0"),
        ({"shape": (6, 6, 6)}, ValueError, "3, 2 and 2 axes"),
        (
            {"shape": (6, 7)},
            ValueError,
            r"axis 1: .*\[0, 2\].* 7",
        ),
        (
            {"starts": [[0, 2], [1, 2]]},
            ValueError,
            r"axis 1: .*\[1, 2\].* 6",
        ),
        (
            {"starts": [[0, 3], [0, 2]]},
            ValueError,
            r"axis 0: .*\[0, 3\].* 6",
        ),
        ({"starts": [[], [0, 2]]}, ValueError, "axis 0"),
        (
            {"starts": [[0, 0, 2], [0, 2]]},
            ValueError,
            r"axis 0: .*\[0, 0, 2\] .*ascend",
        ),
        (
            {"starts": [[0, 5], [0, 2]], "shape": (9, 6)},
            ValueError,
            r"axis 0: .*\[0, 5\] .*holes",
        ),
        (
            {"starts": [list(range(767)), [0, 2]], "shape": (770, 6)},
            ValueError,
            "768 .* 769: .*stride",
        ),
        ({"shape": (1 << 16, 1 << 15)}, ValueError, r"2\^31"),
        (
            {"activation": "none"},
            ValueError,
            "activation 'none'",
        ),
        (
            {"weights": torch.ones(4, 5)},
            ValueError,
            r"weights .*\(4, 4\).*\(4, 5\)",
        ),
        (
            {"weights": torch.ones(4, 4, dtype=torch.int64)},
            TypeError,
            "weights.* torch.int64",
        ),
        ({"weights": np.ones((4, 4))}, TypeError, "weights.* ndarray"),
        ({"weights": torch.eye(4)}, ValueError, r"1e-30 to 1e\+30.* 0\.0 to 1\.0"),
        (
            {"weights": torch.full((4, 4), 1e-60).double()},
            ValueError,
            r"1e-30 to 1e\+30.* 0\.0 to 0\.0",
        ),
        (
            {"weights": torch.ones(4, 4).index_fill(0, torch.tensor(1), math.nan)},
            ValueError,
            "nan to nan",
        ),
        ({"weights": torch.full((4, 4), math.inf)}, ValueError, "inf to inf"),
        ({"weights": torch.full((4, 4), 3e38)}, ValueError, "1e-30"),
    ],
)
def test_wrong_input(change, error, message):
    arguments = {"logits": torch.zeros(4, 2, 4, 4), "starts": [[0, 2], [0, 2]], "shape": (6, 6)}
    stitch_windows(**arguments)
    with pytest.raises(error, match=message):
        stitch_windows(**arguments | change)


def test_stitcher_refuses_what_does_not_fit(device):
    stitcher = WindowStitcher((6, 6), (4, 4), [[0, 2], [0, 2]], 2, device=device)
    logits = torch.zeros(3, 2, 4, 4, device=device)
    with pytest.raises(ValueError, match=r"\(n, 2, 4, 4\).*\(3, 2, 4, 5\)"):
        stitcher.add(torch.zeros(3, 2, 4, 5, device=device))
    with pytest.raises(ValueError, match=r"\(n, 2, 4, 4\).*\(3, 3, 4, 4\)"):
        stitcher.add(torch.zeros(3, 3, 4, 4, device=device))
    with pytest.raises(ValueError, match="on meta"):
        stitcher.add(logits.to("meta"))
    stitcher.add(logits)
    with pytest.raises(ValueError, match=r"3 windows .*1 of 4"):
        stitcher.add(logits)
    with pytest.raises(ValueError, match="3 of 4"):
        stitcher.result()
    stitcher.add(logits[:1])
    stitcher.result()
    with pytest.raises(ValueError, match="once"):
        stitcher.result()
    for late in (logits[:1], logits[:0]):
        with pytest.raises(ValueError, match="once"):
            stitcher.add(late)
    with pytest.raises(TypeError, match=r"classes.* 2\.0"):
        WindowStitcher((6, 6), (4, 4), [[0, 2], [0, 2]], 2.0)


def test_the_bare_operators_check_what_memory_safety_needs(device):
    total, logits = torch.zeros(2, 6, 6, device=device), torch.zeros(1, 2, 4, 4, device=device)

    def add(
        total=total,
        logits=logits,
        weights=None,
        starts=(0, 2, 0, 2),
        counts=(2, 2),
        first=0,
        activation="none",
    ):
        torch.ops.semiseg.stitch_add(
            total, logits, weights, list(starts), list(counts), first, activation
        )

    def divide(patch, starts=(0, 2, 0, 2), weights=None):
        torch.ops.semiseg.stitch_divide(total, weights, list(patch), list(starts), [2, 2])

    add()
    divide((4, 4))
    for error, message, options in [
        (TypeError, "float32 total", {"total": total.double()}),
        (TypeError, "floating-point logits", {"logits": logits.long()}),
        (ValueError, "contiguous total", {"total": total.transpose(1, 2)}),
        (ValueError, "expected logits", {"total": total[0], "logits": logits[:, 0]}),
        (ValueError, "expected logits", {"logits": logits[0]}),
        (ValueError, "do not fit a total", {"logits": logits[:, :1]}),
        (ValueError, "leave an axis", {"starts": (0, 3, 0, 2)}),
        (ValueError, "leave an axis", {"starts": (-1, 2, 0, 2)}),
        (ValueError, "not ascending", {"starts": (2, 1, 0, 2)}),
        (ValueError, "leave an axis", {"logits": torch.zeros(1, 2, 7, 4, device=device)}),
        (ValueError, "leave an axis", {"logits": torch.zeros(1, 2, 0, 4, device=device)}),
        (ValueError, "do not fit 4 starts", {"counts": (2, 3)}),
        (ValueError, "do not fit 4 starts", {"counts": (2, 1)}),
        (ValueError, "do not fit 4 starts", {"starts": (0, 0, 2, 2), "counts": (4, 0)}),
        (ValueError, "do not fit a volume", {"counts": (2, 1, 1)}),
        (ValueError, "at most 768 starts", {"starts": (0,) * 769, "counts": (768, 1)}),
        (ValueError, "1 windows from 4 .*4", {"first": 4}),
        (ValueError, "from -1", {"first": -1}),
        (ValueError, "from", {"first": 2**63 - 1}),
        (ValueError, "none of softmax", {"activation": "relu"}),
        (ValueError, "weights", {"weights": torch.ones(4, 5, device=device)}),
        (ValueError, "weights", {"weights": torch.ones(4, 4, device=device).double()}),
        (ValueError, "weights", {"weights": torch.ones(4, 1, device=device).expand(4, 4)}),
    ]:
        with pytest.raises(error, match=message):
            add(**options)
    with pytest.raises(ValueError, match="leave an axis"):
        divide((7, 4))
    with pytest.raises(ValueError, match="do not fit a volume"):
        divide((4, 4, 4))
    with pytest.raises(ValueError, match="weights"):
        divide((4, 4), weights=torch.ones(3, 4, device=device))


def test_threads_do_not_change_a_bit():
    shape, patch, starts = ODD
    options = list(itertools.product((2, 5), ACTIVATIONS, (None, make_weights(patch))))

    def run():
        return [
            stitch_windows(make_logits(ODD, classes), starts, shape, activation, weights)
            for classes, activation, weights in options
        ]

    assert same_bits_on_any_threads(run)


@pytest.mark.parametrize("name", ["odd", "2-D"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opcheck(device, name, dtype):
    shape, patch, starts = GRIDS[name]
    flat = [start for along in starts for start in along]
    counts = [len(along) for along in starts]
    logits = make_logits(GRIDS[name], 2, device).to(dtype)[3:5]
    total = torch.rand(2, *shape, device=device)
    for weights in (None, make_weights(patch, device)):
        for activation in ("softmax", "none"):
            torch.library.opcheck(
                torch.ops.semiseg.stitch_add.default,
                (total, logits, weights, flat, counts, 3, activation),
            )
        torch.library.opcheck(
            torch.ops.semiseg.stitch_divide.default, (total, weights, list(patch), flat, counts)
        )


def test_compiles_without_a_graph_break(device):
    shape, patch, starts = ODD
    weights = make_weights(patch, device)

    @torch.compile(fullgraph=True, backend="aot_eager")
    def mean(logits):
        return stitch_windows(2 * logits, starts, shape, weights=weights) + 1

    logits = make_logits(ODD, 3, device)
    assert torch.equal(mean(logits), stitch_windows(2 * logits, starts, shape, weights=weights) + 1)


def test_a_real_volume(la_root, device):
    with h5py.File(sorted(la_root.glob("**/mri_norm2.h5"))[0]) as case:
        image = torch.from_numpy(case["image"][:])
    patch = (112, 112, 80)
    starts = window_starts(image.shape, patch, (54, 54, 8))
    stitcher = WindowStitcher(image.shape, patch, starts, 2, device=device)
    windows = []
    for corner in itertools.product(*starts):
        window = image[tuple(slice(a, a + p) for a, p in zip(corner, patch, strict=True))]
        windows.append(torch.stack((1 - window, window**2))[None])
        stitcher.add(windows[-1].to(device))
    want = research_loop(torch.cat(windows), starts, image.shape)
    np.testing.assert_allclose(stitcher.result().cpu(), want, atol=1e-6)


def test_through_the_cpu_the_total_is_written_where_it_lives(monkeypatch):
    """A copy replaces the tensor on another device, which this machine may not have."""
    shape, _, starts = ODD
    flat = [start for along in starts for start in along]
    counts = [len(along) for along in starts]
    logits = make_logits(ODD, 2)
    total = torch.ones(2, *shape)
    want = torch.ones(2, *shape)
    operator = torch.ops.semiseg.stitch_add.default
    operator(want, logits, None, flat, counts, 0, "softmax")
    monkeypatch.setattr(torch.Tensor, "cpu", torch.Tensor.clone)
    monkeypatch.setattr(_library, "_warn_once", lambda message: None)
    assert _library.through_cpu(operator)(total, logits, None, flat, counts, 0, "softmax") is None
    assert torch.equal(total, want)
    assert not torch.equal(total, torch.ones_like(total))
