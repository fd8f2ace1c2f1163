"""Several runs on one case: what is drawn, what is predicted, and which runs are refused."""

import math

import matplotlib
import numpy as np
import pytest
import torch
from conftest import ROOT
from matplotlib.colors import to_rgb
from matplotlib.image import imread

from dataloaders import dataset_class, open_dataset
from networks.unet import UNet
from networks.vnet import VNet
from utils.errors import UserError
from utils.figures import (
    PREDICTION,
    REFERENCE,
    Compared,
    contours_figure,
    surfaces_figure,
    together_figure,
)
from utils.figures.side_by_side import RUNS
from utils.metrics import binary_metrics
from utils.ops import largest_component
from utils.reporting.run_figures import side_by_side
from utils.reporting.scripts import load_script

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = ("--gpu", "-1", "--precision", "fp32")


def block(shape=(40, 30, 20), start=(10, 8, 5), stop=(25, 20, 12), c=1):
    labels = np.zeros(shape, np.uint8)
    labels[tuple(slice(*ends) for ends in zip(start, stop, strict=True))] = c
    return labels


@pytest.fixture
def case():
    """A block, and the predictions of two runs: moved by 3 voxels, and none."""
    target = block()
    target[8:27, 6:22, 6] = 1  # the largest axial cut
    image = np.random.default_rng(0).normal(size=target.shape).astype(np.float32)
    return Compared("A", image, target, [np.roll(target, 3, 0), 0 * target], [0.8125, 0.0])


def has_colour(path, color):
    return bool((np.abs(imread(path)[..., :3] - to_rgb(color)).max(-1) < 0.02).any())


def text_of(tmp_path, figure, *given, **look):
    """The text of a figure, which an SVG holds; words with an edge are outlines, hence without."""
    with matplotlib.rc_context({"svg.fonttype": "none"}), pytest.MonkeyPatch.context() as patch:
        patch.setattr("utils.figures.style.EDGE", [])
        patch.setattr("utils.figures.style.DPI", 50)
        figure(tmp_path / "figure.svg", *given, **look)
    return (tmp_path / "figure.svg").read_text()


# ------------------------------------------------------------------------------------- drawing


def test_each_run_has_a_column_with_its_dice(case, tmp_path):
    text = text_of(tmp_path, contours_figure, [case], ["CPS", "DMD"], "title", spacing=(1, 1, 1))
    for words in (
        "title",
        "reference",
        "CPS",
        "Dice 81.2 %",
        "DMD",
        "Dice 0.0 %",
        "axial 7",
        " mm",
    ):
        assert words in text
    assert text.count("<image") == 3
    contours_figure(tmp_path / "figure.png", [case], ["CPS", "DMD"], "title")
    assert has_colour(tmp_path / "figure.png", REFERENCE)
    assert has_colour(tmp_path / "figure.png", PREDICTION)


def test_several_cases_are_rows_and_the_columns_say_the_mean(case, tmp_path):
    other = case._replace(name="B", scores=[0.7125, math.nan], index=8)
    for figure in (contours_figure, together_figure):
        text = text_of(tmp_path, figure, [case, other], ["CPS", "DMD"], "title")
        for words in ("A", "B", "mean Dice 76.2 %", "mean Dice 0.0 %", "axial 7", "axial 9"):
            assert words in text
    text = text_of(tmp_path, contours_figure, [case, other], ["CPS", "DMD"], "title")
    for words in (">Dice 71.2 %", ">Dice 81.2 %", ">Dice –"):
        assert words in text


def test_all_runs_in_one_picture_have_a_colour_each(case, tmp_path):
    preds = [np.roll(case.target, 2 * n - 5, 0) for n in range(len(RUNS))]
    many = case._replace(preds=preds, scores=[0.5] * len(preds))
    names = [f"run {n}" for n in range(len(preds))]
    together_figure(tmp_path / "figure.png", [many], names, "title", near=True)
    for color in (REFERENCE, *RUNS):
        assert has_colour(tmp_path / "figure.png", color)
    assert "run 5: Dice 50.0 %" in text_of(tmp_path, together_figure, [many], names, "title")
    more = many._replace(preds=[*preds, preds[0]], scores=[0.5] * 7)
    with pytest.raises(ValueError, match="at most 6 runs"):
        together_figure(tmp_path / "none.png", [more], [*names, "more"], "title")


def test_the_plane_is_the_references_largest_or_the_one_that_is_asked_for(case):
    assert case.plane("axial", near=False).index == 6
    assert case._replace(index=3).plane("axial", near=False).index == 3
    empty = case._replace(target=0 * case.target)
    assert empty.plane("axial", near=False).index == 6  # a run's
    whole = case.plane("coronal", near=False)
    assert [part.stop - part.start for part in whole.box] == [40, 30, 20]
    near = case.plane("coronal", near=True)
    assert (near.box[0].start, near.box[0].stop) == (4, 34)  # of both: 8 to 30, and 4 voxels more


def test_classes_have_their_colours_and_names(tmp_path):
    target = block() + block(start=(26, 8, 5), stop=(33, 20, 12), c=2)
    two = Compared("A", target.astype(np.float32), target, [np.roll(target, 1, 1)], [0.9])
    text = text_of(tmp_path, contours_figure, [two], ["DMD"], "title", class_names=("RV", "LV"))
    assert "RV" in text
    assert "LV" in text
    text = text_of(tmp_path, surfaces_figure, [two], ["DMD"], "title", class_names=("RV", "LV"))
    assert "RV" in text
    assert "LV" in text


def test_surfaces_are_coloured_by_their_distance_to_the_reference(case, tmp_path):
    look = {"spacing": (0.5, 0.5, 1.0)}
    text = text_of(tmp_path, surfaces_figure, [case], ["CPS", "DMD"], "title", **look)
    for words in ("reference", "Dice 81.2 %", "beyond it (mm)", "empty", " mm<"):
        assert words in text
    surfaces_figure(tmp_path / "far.png", [case], ["CPS", "DMD"], "title", **look)
    same = case._replace(preds=[case.target, case.target])
    surfaces_figure(tmp_path / "same.png", [same], ["CPS", "DMD"], "title", **look)
    panels = {name: imread(tmp_path / f"{name}.png")[:-150, ..., :3] for name in ("far", "same")}
    spread = {name: np.ptp(panel, axis=-1).max() for name, panel in panels.items()}
    assert spread["far"] > 0.3 > 0.1 > spread["same"]  # grey: no distance
    none = case._replace(preds=[0 * case.target] * 2)
    assert "beyond" not in text_of(tmp_path, surfaces_figure, [none], ["CPS", "DMD"], "title")


@pytest.mark.parametrize("figure", [contours_figure, together_figure, surfaces_figure])
def test_what_does_not_fit_is_refused(figure, case, tmp_path):
    for cases, words in (
        ([], "at least one case"),
        ([case._replace(preds=case.preds[:1])], "each of 2 runs"),
        ([case._replace(preds=[block(), block(shape=(40, 30, 21))])], "one shape"),
    ):
        with pytest.raises(ValueError, match=words):
            figure(tmp_path / "none.png", cases, ["CPS", "DMD"], "title")
    assert not (tmp_path / "none.png").exists()


# ------------------------------------------------------------------------------------- the script


def save(folder, dataset, root, network, downsample=1, patch=(32, 32, 16)):
    """A run of one network, untrained, whose classes have about equal shares."""
    with torch.no_grad():
        output = network(torch.rand(1, 1, *patch))[0]
        head = network.heads[0]
        head.bias -= output.flatten(1).median(1).values
    path = folder / "seed1" / "last.pth"
    path.parent.mkdir(parents=True)
    options = {"dataset": dataset, "root": str(root), "patch": list(patch), "labelnum": 2}
    state = {
        "step": 40,
        "last": 40,
        "args": options | {"downsample": downsample},
        "dataset": dataset_class(dataset).description(),
        "test_networks": ["seg"],
        "networks": {
            "seg": {
                "class": f"{type(network).__module__}.{type(network).__name__}",
                "kwargs": network.config,
            }
        },
        "seg": network.state_dict(),
    }
    torch.save(state, path)
    return path.parent


@pytest.fixture
def runs(tmp_path, tiny_la):
    """Two runs on the tiny LA, and one at half resolution."""
    folders = []
    for seed, (name, downsample) in enumerate({"dmd_2": 1, "cml_2": 1, "half_2": 2}.items()):
        torch.manual_seed(seed)
        network = VNet(n_filters=2).eval()
        folders.append(save(tmp_path / "runs" / name, "LA", tiny_la, network, downsample))
    return folders


@pytest.fixture
def drawn(monkeypatch):
    """What the script gave to the figures that it drew."""
    given = []
    for name in ("contours_figure", "together_figure", "surfaces_figure"):
        figure = getattr(side_by_side, name)

        def record(path, *args, figure=figure, **look):
            given.append((figure.__name__, path.name, args, look))
            figure(path, *args, **look)

        monkeypatch.setattr(side_by_side, name, record)
    return given


def call(*argv):
    load_script(ROOT / "code" / "figures.py").main(["side_by_side", *map(str, argv), *CPU])


def test_runs_are_predicted_as_their_test_predicts_them(runs, drawn, tiny_la, capsys):
    call(*runs[:2])
    ((figure, file, (cases, names, title), look),) = drawn
    assert (figure, file) == ("contours_figure", "side_by_side_last_CASE06.png")
    assert names == ["dmd_2", "cml_2"]
    assert "CASE06" in title
    assert look["spacing"] == list(dataset_class("LA").spacing)
    assert str(runs[0] / "figures" / file) in capsys.readouterr().out
    (case,) = cases
    image, label = open_dataset("LA", tiny_la, "test").load(0)
    np.testing.assert_array_equal(case.target, label)
    np.testing.assert_array_equal(case.image, image)
    for pred, score in zip(case.preds, case.scores, strict=True):
        assert score == pytest.approx(binary_metrics(pred, label)["dice"])
        # LA's protocol keeps the largest component
        kept = largest_component(torch.from_numpy(pred)[None], 2)[0].numpy()
        np.testing.assert_array_equal(kept, pred)
    assert not np.array_equal(*case.preds)
    call(*runs[:2], "--nms", "0")
    unfiltered = drawn[1][2][0][0].preds[0]
    assert (unfiltered >= case.preds[0]).all()
    assert unfiltered.sum() > case.preds[0].sum()


def test_a_method_that_is_tested_without_a_filter_is_drawn_without_one(runs, drawn):
    path = runs[0] / "last.pth"
    saved = torch.load(path, weights_only=True)
    torch.save({**saved, "args": saved["args"] | {"method": "dmd"}}, path)
    call(*runs[:2])
    torch.save(saved, path)
    call(*runs[:2], "--nms", "0")
    as_tested, unfiltered = (cases[0].preds for _, _, (cases, *_), _ in drawn)
    np.testing.assert_array_equal(as_tested[0], unfiltered[0])
    filtered = largest_component(torch.from_numpy(unfiltered[0])[None], 2)[0].numpy()
    assert filtered.sum() < as_tested[0].sum()


def test_the_forms_of_the_figure(runs, drawn, tmp_path):
    places = ("--case", "CASE07", "CASE06", "--output", tmp_path / "out")
    call(*runs[:2], *places, "--together", "--near", "--slice", 4, 9, "--names", "a", "b")
    call(*runs[:2], *places, "--plane", "coronal", "--slice", 5, "--format", "png", "pdf")
    call(*runs[:2], "--surfaces", "--split", "train", "--output", tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "side_by_side_last_2cases.pdf",
        "side_by_side_last_2cases.png",
        "side_by_side_last_2cases_together.png",
        "side_by_side_last_CASE02_surfaces.png",  # the first that is not labelled
    ]
    cases, names, _ = drawn[0][2]
    assert [(case.name, case.index) for case in cases] == [("CASE07", 3), ("CASE06", 8)]
    assert names == ["a", "b"]
    assert drawn[0][3]["near"]
    assert [case.index for case in drawn[1][2][0]] == [4, 4]
    assert drawn[1][3]["plane"] == "coronal"


def test_slices_are_shown_as_slices(tmp_path, tiny_acdc, drawn):
    torch.manual_seed(0)
    network = UNet(num_classes=4, n_filters=2).eval()
    run = save(tmp_path / "runs" / "cml_2", "ACDC", tiny_acdc, network, patch=(32, 32))
    call(run, "--case", "patient006_frame01")
    assert drawn[0][3]["plane"] == "slice"
    assert drawn[0][2][0][0].image.shape == (36, 32, 3)
    for option in (["--surfaces"], ["--plane", "coronal"]):
        with pytest.raises(UserError, match=option[0]):
            call(run, *option)
    with pytest.raises(UserError, match=r"--slice 4: .* has 3"):
        call(run, "--slice", 4)


def test_runs_that_cannot_be_compared_are_named(runs, tmp_path, tiny_acdc, tiny_la):
    acdc = save(
        tmp_path / "acdc",
        "ACDC",
        tiny_acdc,
        UNet(num_classes=4, n_filters=2).eval(),
        patch=(32, 32),
    )
    with pytest.raises(UserError, match=r"seed1: trained on ACDC, and .*dmd_2.* on LA"):
        call(runs[0], acdc)
    with pytest.raises(UserError, match=r"half_2.*--downsample 2, and .*--downsample 1"):
        call(runs[0], runs[2])
    with pytest.raises(UserError, match="--case NONE: not in the test list; the first is CASE06"):
        call(*runs[:2], "--case", "NONE")
    (runs[1] / "last.pth").unlink()
    with pytest.raises(UserError, match=r"cml_2.*no checkpoint yet"):
        call(*runs[:2])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--surfaces", "--slice", "3"], "--slice"),
        (["--surfaces", "--together"], "--together"),
        (["--surfaces", "--plane", "axial"], "--plane"),
        (["--names", "one"], "1 names for 2 runs"),
        (["--slice", "1", "2"], "2 numbers for 1 cases"),
    ],
)
def test_options_that_do_not_fit_one_another(options, words, runs):
    with pytest.raises(UserError, match=words):
        call(*runs[:2], *options)


def test_more_runs_than_colours_are_refused_in_one_picture(runs):
    with pytest.raises(UserError, match="--together: 7 runs"):
        call(*runs[:1] * 7, "--together")
