"""utils/figures.py: what is drawn, where it is cut, and that nothing makes it fall over."""

import subprocess
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.image import imread

from utils.figures import CLASSES, DPI, NAMES, PREDICTION, REFERENCE, case_figure, summary_figure
from utils.figures.summaries import _strip

ROOT = Path(__file__).resolve().parent.parent
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
    """The figure as SVG, whose text can be read (text with an edge is drawn as outlines, hence without the edge)."""
    with matplotlib.rc_context({"svg.fonttype": "none"}), pytest.MonkeyPatch.context() as patch:
        patch.setattr("utils.figures.style.EDGE", [])
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
        tmp_path, lambda path: case_figure(path, image, pred, target, "A case", SCORE, (0.6, 0.6, 1.2), "mm")
    )
    for words in ("A case", "Dice 91.23 %", "Jaccard 83.87 %", "95HD 5.25 mm", "ASD 1.50 mm", "axial 7", "5 mm"):
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
        case_figure(tmp_path / "case.png", rng.normal(size=shape), labels, labels[::-1], "odd", SCORE, (1, 1, 8))
        assert max(imread(tmp_path / "case.png").shape) <= 7.1 * DPI
    constant = np.zeros((8, 8, 8))
    case_figure(tmp_path / "case.png", constant, constant.astype(int), constant.astype(int), "constant image")


def test_case_figure_of_classes_gives_each_its_colour(tmp_path, case):
    image, pred, target = case
    names = ("atrium", "scar", "vein")
    target = np.where(target * (np.arange(20) > 8), 2, target)
    path = tmp_path / "case.png"
    case_figure(path, image, np.where(target == 2, 0, target), target, "A case", SCORE, class_names=names)
    planes = imread(path)[: -int(0.25 * DPI), :, :3]  # without the legend, which shows all colours
    # the prediction's line is pure colour; a filled reference, through which the image shows, is not
    drawn = [bool((np.abs(planes - to_rgb(colour)).max(-1) < 0.02).any()) for colour in CLASSES[:3]]
    assert drawn == [True, False, False]
    text = text_of(tmp_path, lambda path: case_figure(path, image, pred, target, "", SCORE, class_names=names))
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
    # Dice is best high, distances are best low: the same case is best, and the same worst, in all four panels.
    assert text.count("best CASE2") == 4
    assert text.count("worst CASE1") == 4


@pytest.mark.parametrize("title", ["A case", "A case of a name that is as long as a page is wide, or nearly so"])
def test_the_line_of_a_case_figure_stays_on_the_page(tmp_path, case, title):
    drawn = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("utils.figures.cases.save", lambda figure, path: drawn.append(figure))
        case_figure(tmp_path / "case.png", *case, title, dict.fromkeys(NAMES, 0.5), class_names=("a", "b"))
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
    text = text_of(tmp_path, lambda path: summary_figure(path, rows, "", metrics=("dice", "precision", "hd")))
    assert [name for name in ("Dice", "Jaccard", "Precision", "HD", "95HD") if f">{name} (" in text] == [
        "Dice",
        "Precision",
        "HD",
    ]
    assert "50.00 ± 0.00" in text
    assert "7.00 ± 0.00" in text


def test_summary_figure_of_classes_and_of_one_case(tmp_path):
    rows = rows_of([0.9, 0.8]) + rows_of([0.5, 0.6], 2)
    text = text_of(tmp_path, lambda path: summary_figure(path, rows, "", class_names=("atrium", "scar")))
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
