"""utils/figures: what is drawn, where it is cut, and that no input breaks it."""

import subprocess
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.image import imread

from utils.figures import (
    CLASSES,
    DPI,
    FORMATS,
    PREDICTION,
    REFERENCE,
    UNCERTAIN,
    Case,
    DistanceRow,
    Heat,
    HeatRow,
    MaskRow,
    case_figure,
    curves_figure,
    error_figure,
    heat_figure,
    masks_figure,
    sdm_figure,
    summary_figure,
    surface_figure,
    surfaces,
)
from utils.figures.style import bar_length
from utils.figures.summaries import _strip
from utils.metrics import NAMES

ROOT = Path(__file__).resolve().parents[2]
SCORE = {"dice": 0.9123, "jaccard": 0.8387, "hd95": 5.25, "asd": 1.5}


@pytest.fixture
def case():
    image = np.random.default_rng(0).normal(size=(40, 30, 20)).astype(np.float32)
    target = np.zeros(image.shape, np.uint8)
    target[10:25, 8:20, 5:12] = 1
    target[12:20, 10:15, 9] = 0
    target[9:26, 7:21, 6] = 1  # the largest axial cut
    return image, np.roll(target, 3, axis=0), target


def has_colour(path, colour):
    return bool((np.abs(imread(path)[..., :3] - to_rgb(colour)).max(-1) < 0.02).any())


def text_of(folder, draw):
    """The figure as SVG, whose text can be read (text with an edge is drawn as outlines, hence
    without the edge).
    """
    with matplotlib.rc_context({"svg.fonttype": "none"}), pytest.MonkeyPatch.context() as patch:
        patch.setattr("utils.figures.style.EDGE", [])
        patch.setattr("utils.figures.style.DPI", 50)  # pictures are not what is looked at
        draw(folder / "figure.svg")
    return (folder / "figure.svg").read_text()


def test_case_figure_shows_both_contours(tmp_path, case):
    image, pred, target = case
    path = tmp_path / "case.png"
    case_figure(path, image, pred, target, "A case", SCORE, (0.6, 0.6, 1.2))
    assert imread(path).shape[1] == 7 * DPI
    assert has_colour(path, REFERENCE)
    assert has_colour(path, PREDICTION)
    assert [p.name for p in tmp_path.iterdir()] == ["case.png"]


def test_case_figure_cuts_where_the_reference_is_largest_and_names_all(tmp_path, case):
    image, pred, target = case
    text = text_of(
        tmp_path,
        lambda path: case_figure(path, image, pred, target, "A case", SCORE, (0.6, 0.6, 1.2), "mm"),
    )
    for words in (
        "A case",
        "Dice 91.23 %",
        "Jaccard 83.87 %",
        "95HD 5.25 mm",
        "ASD 1.50 mm",
        "axial 7",
        "5 mm",
    ):
        assert words in text, words
    assert text.count(">5 mm<") == 3
    assert "reference" in text
    assert "prediction" in text
    assert "(empty)" not in text


def test_scale_bar_needs_a_spacing_and_metrics_may_be_left_out(tmp_path, case):
    text = text_of(tmp_path, lambda path: case_figure(path, *case, "A case"))
    assert " mm" not in text
    assert "Dice" not in text


@pytest.mark.parametrize("empty", ["prediction", "reference", "both"])
def test_case_figure_of_empty_masks(tmp_path, case, empty):
    image, pred, target = case
    pred = pred * (empty == "reference")
    target = target * (empty == "prediction")
    case_figure(tmp_path / "case.png", image, pred, target, "empty")
    text = text_of(tmp_path, lambda path: case_figure(path, image, pred, target, "empty"))
    assert ("prediction (empty)" in text) == (empty != "reference")
    # The legend shows both colours: only its own pixels may be left of a colour without a contour.
    legend_only = imread(tmp_path / "case.png")[: -int(0.25 * DPI), :, :3]
    for colour, drawn in ((PREDICTION, empty == "reference"), (REFERENCE, empty == "prediction")):
        assert bool((np.abs(legend_only - to_rgb(colour)).max(-1) < 0.02).any()) == drawn


def test_case_figure_of_many_classes_and_odd_shapes(tmp_path):
    rng = np.random.default_rng(1)
    for shape in ((4, 50, 9), (60, 3, 3), (2, 2, 40)):
        labels = rng.integers(0, 4, shape)
        case_figure(
            tmp_path / "case.png",
            rng.normal(size=shape),
            labels,
            labels[::-1],
            "odd",
            SCORE,
            (1, 1, 8),
        )
        assert max(imread(tmp_path / "case.png").shape) <= 7.1 * DPI
    constant = np.zeros((8, 8, 8))
    case_figure(
        tmp_path / "case.png",
        constant,
        constant.astype(int),
        constant.astype(int),
        "constant image",
    )


def test_case_figure_of_classes_gives_each_its_colour(tmp_path, case):
    image, pred, target = case
    names = ("atrium", "scar", "vein")
    target = np.where(target * (np.arange(20) > 8), 2, target)
    path = tmp_path / "case.png"
    case_figure(
        path, image, np.where(target == 2, 0, target), target, "A case", SCORE, class_names=names
    )
    planes = imread(path)[: -int(0.25 * DPI), :, :3]  # without the legend, which shows all colours
    # the prediction's line is pure colour; a filled reference, through which the image shows, is
    # not
    drawn = [bool((np.abs(planes - to_rgb(colour)).max(-1) < 0.02).any()) for colour in CLASSES[:3]]
    assert drawn == [True, False, False]
    text = text_of(
        tmp_path, lambda path: case_figure(path, image, pred, target, "", SCORE, class_names=names)
    )
    assert all(f">{word}<" in text for word in (*names, "reference", "prediction"))
    assert "mean over classes" in text


def test_case_figure_of_slices_shows_three_of_those_with_a_reference(tmp_path, case):
    image, pred, target = case  # the reference stands in slices 5 to 11
    text = text_of(tmp_path, lambda path: case_figure(path, image, pred, target, "", slices=True))
    assert all(f">slice {index}<" in text for index in (7, 9, 11))  # counted from 1
    assert "axial" not in text
    one = target * (np.arange(20) == 7)
    text = text_of(tmp_path, lambda path: case_figure(path, image, pred, one, "", slices=True))
    assert text.count(">slice ") == text.count(">slice 8<") == 1
    image = np.zeros(image.shape)
    image[:10] = 1  # the upper rows: a stack of slices is shown as it lies in memory
    case_figure(tmp_path / "case.png", image, 0 * pred, one, "", slices=True)
    plane = imread(tmp_path / "case.png")[int(0.3 * DPI) : -int(0.3 * DPI), :, 0]
    middle = plane.shape[1] // 2
    assert plane[20, middle] > 0.9
    assert plane[-20, middle] < 0.1


def test_case_figure_refuses_other_shapes(tmp_path, case):
    image, pred, target = case
    with pytest.raises(ValueError, match=r"\(40, 30, 20\), \(40, 30, 19\) and \(40, 30, 20\)"):
        case_figure(tmp_path / "case.png", image, pred[..., 1:], target, "")
    with pytest.raises(ValueError, match="three volumes"):
        case_figure(tmp_path / "case.png", image[0], pred[0], target[0], "")
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------------------------------- errors


def drawn_over_black(path, colour):
    """Whether a mask of this colour lies on black, which shows through it, in the planes."""
    planes = imread(path)[int(0.3 * DPI) : -int(0.25 * DPI), :, :3]
    return bool((np.abs(planes - 0.85 * np.array(to_rgb(colour))).max(-1) < 0.02).any())


@pytest.mark.parametrize(
    ("too_much", "too_little"), [(True, True), (True, False), (False, True), (False, False)]
)
def test_error_figure_tells_what_is_too_much_from_what_lacks(tmp_path, case, too_much, too_little):
    _, _, target = case
    pred = target.copy()
    if too_much:
        pred[2:6, 2:6, 6] = 1
    if too_little:
        pred[15:20, 8:20, 6] = 0
    black = np.zeros(target.shape)
    error_figure(tmp_path / "errors.png", black, pred, target, "A case")
    assert drawn_over_black(tmp_path / "errors.png", PREDICTION) == too_much
    assert drawn_over_black(tmp_path / "errors.png", REFERENCE) == too_little
    text = text_of(tmp_path, lambda path: error_figure(path, black, pred, target, "A case"))
    lacking = np.count_nonzero(target[15:20, 8:20, 6]) if too_little else 0
    assert f"FP {16 * too_much}   FN {lacking} voxels" in text
    assert "axial 7" in text  # as in the figure of contours


def test_error_figure_has_a_row_a_class_cut_where_it_is(tmp_path, case):
    image, _, target = case
    target = np.where(target * (np.arange(20) > 8), 2, target)  # the second class is above slice 8
    names = ("atrium", "scar", "vein")
    pred = np.where(target == 1, 3, target)
    text = text_of(
        tmp_path, lambda path: error_figure(path, image, pred, target, "A case", (1, 1, 1), names)
    )
    one = np.count_nonzero(target == 1)
    for words in (*names, f"FP 0   FN {one:,}", "FP 0   FN 0", f"FP {one:,}   FN 0"):
        assert f">{words}<" in text, words
    assert text.count(">axial 7<") == 2
    assert text.count(">axial 11<") == 1
    assert text.count(" mm<") == 3  # in the last row alone
    text = text_of(
        tmp_path, lambda path: error_figure(path, image, pred, target, "", None, names, slices=True)
    )
    assert all(text.count(f">slice {index}<") == 3 for index in (7, 9, 11))


def test_error_figure_shows_what_is_around_reference_and_prediction(tmp_path):
    image = np.zeros((100, 100, 100))
    pred, target = np.zeros((2, 100, 100, 100), np.uint8)
    target[50:60, 50:60, 50:60] = pred[50:60, 50:60, 52:60] = 1
    boxes = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "utils.figures.cases.Plane.draw_image", lambda plane, *_: boxes.append(plane.box)
        )
        error_figure(tmp_path / "errors.png", image, pred, target, "")
        assert boxes == [(slice(46, 64),) * 3] * 3
        boxes.clear()
        error_figure(tmp_path / "errors.png", image, 0 * pred, 0 * target, "")
        assert boxes == [(slice(0, 100),) * 3] * 3


@pytest.mark.parametrize("third", [0.004, 0.2, 1, 3, 9, 49, 333])
def test_a_scale_bar_is_a_round_length_of_at_most_a_third(third):
    length = bar_length([5 * third, 3 * third])
    assert third / 2.6 < length <= third
    assert f"{length:.0e}"[0] in "125"


# ----------------------------------------------------------------------------------------- surfaces


def ball(radius, shape=(40, 40, 40), centre=(19, 19, 19)):
    return sum((g - c) ** 2 for g, c in zip(np.indices(shape), centre, strict=True)) <= radius**2


def volume(mesh, vertices=None):
    corners = (mesh.vertices if vertices is None else vertices)[mesh.faces]
    return np.einsum("ij,ij->i", corners[:, 0], np.cross(corners[:, 1], corners[:, 2])).sum() / 6


def test_a_mesh_is_closed_faces_outwards_and_stands_where_the_mask_is():
    mask = np.zeros((8, 9, 10), bool)
    mask[0:3, 2:9, 4:5] = True  # up to the volume's edges
    size = np.array([0.5, 1, 2])
    mesh = surfaces._mesh(mask, size)
    assert (
        0.5 < volume(mesh) / (mask.sum() * size.prod()) < 1
    )  # corners are cut off; negative if it faced inwards
    np.testing.assert_allclose(
        (mesh.vertices.min(0) + mesh.vertices.max(0)) / 2, size * (1.5, 5.5, 4.5)
    )
    assert surfaces._count_vertices(np.pad(mask, 1)) == len(mesh.vertices)
    assert surfaces._mesh(np.zeros((4, 4, 4), bool), size) is None


def test_smoothing_takes_no_volume():
    for mask, loss in ((ball(12), 0.01), (ball(4), 0.05)):
        mesh = surfaces._mesh(mask, np.ones(3))
        smooth = surfaces.smoothed(mesh).vertices
        assert volume(mesh, smooth) == pytest.approx(volume(mesh), rel=loss)
        radii = [
            np.linalg.norm(vertices - 19.5, axis=1).std() for vertices in (mesh.vertices, smooth)
        ]
        assert radii[1] < 0.6 * radii[0]


@pytest.mark.parametrize(("pred", "target", "expected"), [(12, 9, 3), (9, 12, -3), (9, 9, 0)])
def test_distances_are_signed_by_what_the_prediction_does(pred, target, expected):
    size = np.array([0.5, 0.5, 0.5])
    meshes, masks, step = surfaces.meshes_of([ball(target), ball(pred)], size)
    for distances in surfaces._distances(meshes, masks, step):
        assert distances.mean() == pytest.approx(0.5 * expected, abs=0.2)
        assert (np.abs(distances - 0.5 * expected) < 0.5).all()


def test_large_masks_are_meshed_coarser_and_stay_in_place(monkeypatch):
    masks, size = [ball(15), ball(12)], np.array([1.0, 1.0, 2.0])
    fine, *_ = surfaces.meshes_of(masks, size)
    monkeypatch.setattr(surfaces, "VERTICES", len(fine[0].vertices) // 3)
    coarse, _, step = surfaces.meshes_of(masks, size)
    assert (step == 2 * size).all()
    for one, other in zip(fine, coarse, strict=True):
        assert len(other.vertices) < len(one.vertices) / 3
        np.testing.assert_allclose(other.vertices.mean(0), one.vertices.mean(0), atol=0.3)
        assert volume(other) == pytest.approx(volume(one), rel=0.05)


def test_the_viewer_sees_the_patients_front_upright_with_the_left_at_the_right():
    right, up, near = surfaces._axes(surfaces.VIEWS["from the front"])
    assert right[0] > 0.8  # x grows to the patient's left, y to the back, z to the head
    assert up[2] > 0.8
    assert near[1] < -0.8
    right, up, near = surfaces._axes(surfaces.VIEWS["from the back"])
    assert right[0] < -0.8
    assert up[2] > 0.8
    assert near[1] > 0.8
    assert np.dot(np.cross(right, up), near) == pytest.approx(1)


def test_surface_figure_shows_each_class_its_colours_and_its_unit(tmp_path):
    target = ball(8).astype(np.uint8)
    target[30:36, 30:36, 30:36] = 2
    pred = np.roll(target, 3, 2)
    path = tmp_path / "surface.png"
    surface_figure(path, pred, target, "A case", (1, 1, 2), ("atrium", "scar"))
    picture = imread(path)[: -int(0.45 * DPI), :, :3]  # without the colour bar
    warm, cool = (picture[..., a] - picture[..., b] > 0.3 for a, b in ((0, 2), (2, 0)))
    assert warm.mean() > 0.005
    assert cool.mean() > 0.005
    text = text_of(
        tmp_path,
        lambda path: surface_figure(path, pred, target, "A case", (1, 1, 2), ("atrium", "scar")),
    )
    for words in (
        "A case",
        "atrium",
        "scar",
        "beyond it (mm)",
        "reference, from the front",
        "prediction, from the back",
    ):
        assert words in text, words
    assert "beyond it (voxels)" in text_of(
        tmp_path, lambda path: surface_figure(path, pred, target, "")
    )


@pytest.mark.parametrize("empty", ["prediction", "reference", "both"])
def test_surface_figure_of_empty_masks_is_grey_without_a_bar(tmp_path, empty):
    pred, target = (
        ball(6).astype(np.uint8) * (empty not in (name, "both"))
        for name in ("prediction", "reference")
    )
    text = text_of(tmp_path, lambda path: surface_figure(path, pred, target, "", (1, 1, 1)))
    assert text.count(">empty<") == (4 if empty == "both" else 2)
    assert "beyond" not in text
    surface_figure(tmp_path / "surface.png", pred, target, "")
    picture = imread(tmp_path / "surface.png")[..., :3]
    assert np.ptp(picture, axis=-1).max() < 0.01


def test_surface_figure_of_odd_shapes(tmp_path):
    for shape in ((1, 1, 1), (40, 3, 3), (2, 30, 4)):
        full = np.ones(shape, np.uint8)
        surface_figure(tmp_path / "surface.png", full, full, "full", (1, 1, 8))
        one = np.zeros(shape, np.uint8)
        one[0, 0, -1] = 1
        surface_figure(tmp_path / "surface.png", one, full, "one voxel")
    with pytest.raises(ValueError, match="one shape"):
        surface_figure(tmp_path / "surface.png", full[0], full, "")


# ----------------------------------------------------------------------------------------- networks


def test_sdm_figure_shows_the_map_and_the_mask_where_it_is_negative(tmp_path, case):
    _, pred, target = case
    sdm = np.where(pred, -0.9, 1.0)
    black = np.zeros(target.shape)
    row = DistanceRow(Case("A", black, target), sdm, target, ["Dice 80.0 %", "Dice 100.0 %"])
    sdm_figure(tmp_path / "sdm.png", [row], "A case")
    planes = imread(tmp_path / "sdm.png")[: -int(0.45 * DPI), :, :3]
    for colour in (PREDICTION, REFERENCE):
        assert (np.abs(planes - 0.7 * np.array(to_rgb(colour))).max(-1) < 0.02).mean() > 0.01
    inside = (planes[..., 0] - planes[..., 1] > 0.15) & (
        planes[..., 2] - planes[..., 1] > 0.15
    )  # purple
    outside = planes[..., 1] - np.maximum(planes[..., 0], planes[..., 2]) > 0.15  # green
    assert inside.mean() > 0.01
    assert outside.mean() > 0.01
    text = text_of(tmp_path, lambda path: sdm_figure(path, [row], "A case", (1, 1, 1), "sagittal"))
    for words in (
        "image",
        "reference",
        "distance map",
        "mask of the map",
        "segmentation",
        "Dice 80.0 %",
        "Dice 100.0 %",
        "zero level",
        "sagittal",
        "10 mm",
    ):
        assert words in text, words


def test_sdm_figure_of_classes_slices_and_nothing(tmp_path, case):
    image, _, target = case
    sdm = np.ones(image.shape)
    rows = [DistanceRow(Case(n, image, target), sdm, target, ["", ""]) for n in ("a", "b")]
    text = text_of(tmp_path, lambda path: sdm_figure(path, rows, "", None, "slice"))
    assert all(words in text for words in (">a<", ">b<", "slice 7"))
    nothing = DistanceRow(Case("a", image, 0 * target), 0 * sdm, 0 * target, ["", ""])
    sdm_figure(tmp_path / "sdm.png", [nothing], "nothing at all")
    with pytest.raises(ValueError, match="of the image's shape"):
        sdm_figure(tmp_path / "sdm.png", [nothing._replace(sdm=sdm[1:])], "")


def test_masks_figure_has_a_panel_a_mask_and_says_how_much(tmp_path, case):
    _, _, target = case
    black = np.zeros(target.shape)
    masks = [np.zeros(target.shape, np.uint8) for _ in range(2)]
    masks[0][5:15, 5:15, 6] = 1
    rows = [MaskRow(Case(n, black, target), masks, ["5.00 %", "0.00 %"]) for n in ("A", "B")]
    given = (rows, "A run", ["epoch 5", "epoch 9"], [UNCERTAIN], ["uncertain"])
    text = text_of(tmp_path, lambda path: masks_figure(path, *given))
    assert text.count("5.00 %") == text.count("0.00 %") == 2
    words = ("A", "B", "image", "epoch 5", "epoch 9", "A run", "reference", "uncertain")
    assert all(f">{word}<" in text for word in words)
    masks_figure(tmp_path / "masks.png", *given)
    picture = imread(tmp_path / "masks.png")[: -int(0.25 * DPI), :, :3]
    where = np.abs(picture - 0.7 * np.array(to_rgb(UNCERTAIN))).max(-1) < 0.02
    # the second of three panels
    assert set(3 * np.flatnonzero(where.any(0)) // picture.shape[1]) == {1}
    with pytest.raises(ValueError, match="each of 1 columns, got 2"):
        masks_figure(tmp_path / "none.png", rows, "", ["epoch 5"], [UNCERTAIN], ["uncertain"])
    with pytest.raises(ValueError, match="at least one case"):
        masks_figure(tmp_path / "none.png", [], *given[1:])


def test_heat_figure_has_a_scale_for_each_kind_of_map(tmp_path, case):
    image, pred, target = case
    maps = [np.abs(image), 5 * np.abs(image)]
    row = HeatRow(Case("A", image, target, start=(0, 0, 100)), pred, maps, ["60 %", "70 %"])
    heats = [Heat("one", 0.25, "nats"), Heat("other", None, "")]
    text = text_of(tmp_path, lambda path: heat_figure(path, [row], "A run", heats))
    top = f"{5 * np.abs(image[:, :, 6]).max():.2g}"
    for words in ("one", "other", "0.25 nats", top, "60 %", "70 %", "axial 107", "prediction"):
        assert words in text, words
    with pytest.raises(ValueError, match="each of 1 kinds, got 2"):
        heat_figure(tmp_path / "none.png", [row], "", heats[:1])


# ---------------------------------------------------------------------------------------- summaries


def test_curves_figure_draws_a_line_a_network_in_percent(tmp_path):
    curves = {"net": {20: {"dice": 0.8, "hd": 3.0}, 10: {"dice": 0.5, "hd": float("nan")}}}
    curves["mean"] = {10: {"dice": 0.6, "hd": 2.0}, 20: {"dice": 0.9, "hd": 1.0}}
    figures = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("utils.figures.summaries.save", lambda figure, path: figures.append(figure))
        curves_figure(tmp_path / "curves.png", curves, "A run", metrics=("dice", "hd"))
        curves_figure(tmp_path / "curves.png", {"net": curves["net"]})
    both, one = figures
    assert [ax.get_ylabel() for ax in both.axes] == ["Dice (%)", "HD (voxels)"]
    lines = both.axes[0].get_lines()
    assert [line.get_label() for line in lines] == ["net", "mean"]
    np.testing.assert_allclose(lines[0].get_xydata(), [(10, 50), (20, 80)])
    assert len({(line.get_color(), line.get_marker()) for line in lines}) == 2
    assert (both.get_figwidth(), one.get_figwidth()) == (7, 3.5)
    assert [len(figure.legends) for figure in figures] == [1, 0]
    for figure in figures:  # the foot is no wider than what stands there
        low = min(ax.get_tightbbox().y0 for ax in figure.axes)
        assert low >= (figure.legends[0].get_window_extent().y1 if figure.legends else 0)
    with pytest.raises(ValueError, match="at least one step"):
        curves_figure(tmp_path / "curves.png", {"net": {}})


def rows_of(values, label=1):
    return [
        {
            "case": f"CASE{i}",
            "class": label,
            "dice": v,
            "jaccard": v / (2 - v),
            "hd95": 20 * (1 - v),
            "asd": 5 * (1 - v),
        }
        for i, v in enumerate(values)
    ]


def test_summary_figure_names_mean_sd_best_and_worst(tmp_path):
    text = text_of(tmp_path, lambda path: summary_figure(path, rows_of([0.9, 0.8, 0.94]), "A run"))
    assert "A run" in text
    assert "88.00 ± 7.21" in text  # Dice: sample sd of 90, 80, 94
    assert "2.40 ± 1.44" in text  # 95HD
    # Dice is best high, distances are best low: the same case is best, and the same worst, in all
    # four panels.
    assert text.count("best CASE2") == 4
    assert text.count("worst CASE1") == 4


@pytest.mark.parametrize(
    "title", ["A case", "A case of a name that is as long as a page is wide, or nearly so"]
)
def test_the_line_of_a_case_figure_stays_on_the_page(tmp_path, case, title):
    drawn = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("utils.figures.cases.save", lambda figure, path: drawn.append(figure))
        case_figure(
            tmp_path / "case.png", *case, title, dict.fromkeys(NAMES, 0.5), class_names=("a", "b")
        )
    figure = drawn[0]
    name, metrics = (text.get_window_extent() for text in figure.texts)
    room = 0.05 * DPI
    assert room < name.x0 < name.x1 < metrics.x0 - room
    assert metrics.x1 < figure.bbox.x1 - room
    assert max(name.y1, metrics.y1) < figure.bbox.y1 - room
    assert min(name.y0, metrics.y0) > max(ax.get_window_extent().y1 for ax in figure.axes)


def test_no_spread_reaches_below_0():
    ax = Figure().add_subplot()
    _strip(ax, 0, [(value, "") for value in (1.0, 1.0, 40.0)], higher_is_better=False)
    (bar,) = ax.containers[0].lines[2]
    (_, low), (_, high) = bar.get_segments()[0]
    assert (low, high) == (0, pytest.approx(14 + 39 / 3**0.5))


def test_summary_figure_leaves_nan_out(tmp_path):
    rows = rows_of([0.9, 0.8, 0.94])
    rows[1] |= {"hd95": float("nan"), "asd": float("nan")}
    text = text_of(tmp_path, lambda path: summary_figure(path, rows, "A run"))
    assert "1.60 ± 0.57" in text
    assert text.count("worst CASE1") == 2
    assert text.count("worst CASE0") == 2


def test_summary_figure_shows_the_metrics_asked_for(tmp_path):
    rows = [row | {"hd": 7.0, "precision": 0.5} for row in rows_of([0.9, 0.8])]
    text = text_of(
        tmp_path, lambda path: summary_figure(path, rows, "", metrics=("dice", "precision", "hd"))
    )
    assert [
        name for name in ("Dice", "Jaccard", "Precision", "HD", "95HD") if f">{name} (" in text
    ] == [
        "Dice",
        "Precision",
        "HD",
    ]
    assert "50.00 ± 0.00" in text
    assert "7.00 ± 0.00" in text


def test_summary_figure_of_classes_and_of_one_case(tmp_path):
    rows = rows_of([0.9, 0.8]) + rows_of([0.5, 0.6], 2)
    text = text_of(
        tmp_path, lambda path: summary_figure(path, rows, "", class_names=("atrium", "scar"))
    )
    assert text.count("atrium") == text.count("scar") == 4
    text = text_of(tmp_path, lambda path: summary_figure(path, rows_of([0.9]), ""))
    assert "90.00" in text
    assert "90.00 ±" not in text
    assert "best" not in text
    nothing = [dict.fromkeys(SCORE, float("nan")) | {"case": "A", "class": 1}]
    summary_figure(tmp_path / "nothing.png", nothing, "nothing to draw")
    assert (tmp_path / "nothing.png").stat().st_size > 0
    with pytest.raises(ValueError, match="at least one"):
        summary_figure(tmp_path / "none.png", [], "")


def test_no_global_state():
    code = "import sys, utils.figures; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


# ------------------------------------------------------------------------------------------ formats


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_holds_all_and_publishers_fonts(tmp_path, case, kind):
    image, pred, target = case
    path = tmp_path / f"figure.{kind}"
    case_figure(path, image, pred, target, "A case", SCORE, (0.6, 0.6, 1.2))
    begins = {"png": b"\x89PNG", "pdf": b"%PDF", "svg": b"<?xml"}
    assert path.read_bytes().startswith(begins[kind])
    assert b"/Type3" not in path.read_bytes()
    surface_figure(path, pred, target, "A case")  # whose shading none but pixels can hold
    assert path.read_bytes().startswith(begins[kind])
    assert path.stat().st_size < 500_000
