"""code/figures.py: what it reads, what it refuses, and that it draws what the networks predict."""

import csv

import numpy as np
import pytest
import torch
from conftest import ROOT
from result_folders import write_summary

from dataloaders import open_dataset
from dataloaders.la import LA
from networks.one_vs_rest import OneVsRest
from networks.vnet import VNet
from utils.errors import UserError
from utils.files import write_csv
from utils.inference import sliding_window
from utils.metrics import METRICS, binary_metrics
from utils.reporting.run_figures import lines, maps, masks
from utils.reporting.scripts import load_script
from utils.uncertainty import entropy

pytestmark = pytest.mark.usefixtures("one_thread")
PATCH = (32, 32, 16)
SHAPE = {"n_filters": 2}


def save(path, step, root, trained=None, **networks):
    """A checkpoint as `utils.run` writes it, of a run with the options `trained`; all networks but
    `dis` and `teacher` are tested.
    """
    options = {
        "dataset": "LA",
        "root": str(root),
        "downsample": 1,
        "patch": list(PATCH),
        "labelnum": 2,
        "seed": 1,
    } | (trained or {})
    state = {
        "step": step,
        "last": 40,
        "args": options,
        "dataset": LA.description(),
        "test_networks": [name for name in networks if name not in ("dis", "teacher")],
    }
    specs = {
        name: {"class": f"{type(net).__module__}.{type(net).__name__}", "kwargs": net.config}
        for name, net in networks.items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(
        state | {"networks": specs} | {name: net.state_dict() for name, net in networks.items()},
        path,
    )


def network(seed, **options):
    torch.manual_seed(seed)
    net = VNet(**SHAPE, **options).eval()
    with torch.no_grad():  # untrained, but of all heads half of the voxels on each side
        outputs = net(torch.rand(1, 1, *PATCH))
        for head, output in zip(
            net.heads, outputs if isinstance(outputs, tuple) else (outputs,), strict=False
        ):
            convolution = head if isinstance(head, torch.nn.Conv3d) else head[-1]
            convolution.bias[1] -= (output[0][1] - output[0][0]).median()
        if net.sdm is not None:
            sdm = outputs[1] if isinstance(outputs, tuple) else outputs
            net.sdm.bias -= torch.atanh(sdm.clamp(-0.99, 0.99)).median()
    return net


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "runs" / "LA" / "method_2" / "seed1"


@pytest.fixture
def call(monkeypatch, folder):
    """Call the script's `main` on the run, and return what it gave to each figure of
    `utils.figures` that it drew.
    """
    module = load_script(ROOT / "code" / "figures.py")
    given = []
    drawers = {
        maps: ("sdm_figure", "heat_figure"),
        masks: ("masks_figure",),
        lines: ("curves_figure", "bars_figure", "lines_figure"),
    }
    for room, names in drawers.items():
        for name in names:
            drawer = getattr(room, name)

            def record(path, *args, drawer=drawer, **options):
                given.append((*args, options))
                drawer(path, *args, **options)

            monkeypatch.setattr(room, name, record)

    def main(figure, *argv, runs=()):
        given.clear()
        module.main([figure, *map(str, runs or [folder]), *map(str, argv)])
        return given

    return main


@pytest.fixture
def dtml(folder, tiny_la):
    nets = {"seg": network(0), "dis": network(1, sdm_head=True, segmentation_head=False)}
    save(folder / "last.pth", 40, tiny_la, **nets)
    save(folder / "step_20.pth", 20, tiny_la, seg=nets["seg"])
    return nets


LAST = ("--gpu", "-1", "--precision", "fp32")


def test_sdm_shows_the_map_of_the_network_that_has_one(folder, dtml, call, capsys, tiny_la):
    (((row,), title, _),) = call("sdm", *LAST)
    data = open_dataset("LA", tiny_la)
    assert "CASE02" in title  # the first that was unlabelled
    np.testing.assert_array_equal(row.case.target, data.load(2)[1])
    image = row.case.image
    expected = sliding_window(dtml["dis"], image, PATCH, (18, 18, 4), 1, activation=None)
    np.testing.assert_allclose(row.sdm, expected[0], atol=1e-5)
    prob = sliding_window(dtml["seg"], image, PATCH, (18, 18, 4), 2)
    assert (row.segmentation == prob.argmax(0).numpy()).mean() > 0.999
    dices = [
        100 * binary_metrics(mask, row.case.target)["dice"]
        for mask in (row.sdm < 0, row.segmentation)
    ]
    assert row.texts == [f"Dice {dice:.1f} %" for dice in dices]
    assert (folder / "figures" / "sdm_last_CASE02.png").is_file()
    assert str(folder / "figures" / "sdm_last_CASE02.png") in capsys.readouterr().out
    call("sdm", *LAST, "--split", "test", "--case", "CASE07", "CASE06", "--format", "pdf", "svg")
    assert {path.name for path in (folder / "figures").iterdir()} == {
        "sdm_last_CASE02.png",
        "sdm_last_2cases.pdf",
        "sdm_last_2cases.svg",
    }


def test_sdm_takes_the_second_head_of_a_network_with_two(folder, tiny_la, call):
    net = network(0, sdm_head=True)
    save(folder / "last.pth", 40, tiny_la, net=net)
    (((row,), *_),) = call("sdm", *LAST)
    image = row.case.image
    expected = sliding_window(lambda x: net(x)[1], image, PATCH, (18, 18, 4), 1, activation=None)
    np.testing.assert_allclose(row.sdm, expected[0], atol=1e-5)


def branches_of(net, image):
    """The classes that D_con and D_rad predict."""
    return [
        sliding_window(lambda x, i=i: net(x)[i], image, PATCH, (18, 18, 4), 2).argmax(0).numpy()
        for i in (1, 2)
    ]


def test_uncertain_is_where_the_branches_disagree_at_each_step(folder, tiny_la, call):
    nets = {step: network(step, branches=3) for step in (10, 20, 30)}
    for step, net in nets.items():
        save(folder / f"step_{step}.pth", step, tiny_la, net=net)
    (folder / "metrics.jsonl").write_text(
        "".join(f'{{"step": {s}, "epoch": {s // 10}}}\n' for s in (10, 20))
    )
    ((rows, _, look),) = call("uncertainty", *LAST, "--steps", 10, 20, "--case", "CASE03", "CASE02")
    assert look["columns"] == ["epoch 1 (step 10)", "epoch 2 (step 20)"]
    assert [row.case.name for row in rows] == ["CASE03", "CASE02"]
    for row in rows:
        for mask, net, text in zip(row.masks, (nets[10], nets[20]), row.texts, strict=True):
            con, rad = branches_of(net, row.case.image)
            assert 0.01 < mask.mean() < 0.99
            assert (mask == (con != rad)).mean() > 0.999
            assert text == f"{100 * mask.mean():.2f} %"
    assert (folder / "figures" / "uncertainty_10_20_2cases.png").is_file()
    ((rows, _, look),) = call("uncertainty", *LAST)
    assert look["columns"] == ["step 10", "step 20", "step 30"]  # of the last no epoch is known
    assert [row.case.name for row in rows] == ["CASE02"]
    (((row,), *_),) = call("regions", *LAST, "--checkpoint", 10)
    con, rad, both = row.masks
    assert {2} == set(both[con != rad])  # the code of uncertain voxels with one class
    np.testing.assert_array_equal(both[con == rad], con[con == rad])
    expected = branches_of(nets[10], row.case.image)
    assert ((con == expected[0]) & (rad == expected[1])).mean() > 0.999


def test_curves_of_training_cases_score_each_network_and_their_mean(folder, tiny_la, call):
    nets = {step: {"net": network(step), "net_2": network(step + 1)} for step in (10, 20)}
    for step, pair in nets.items():
        save(folder / f"step_{step}.pth", step, tiny_la, **pair)
    ((lines, title, *_),) = call("curves", *LAST, "--split", "train", "--cases", 2)
    assert "2 unlabelled training cases" in title
    data = open_dataset("LA", tiny_la)
    expected = {"net": [], "net_2": [], "mean": []}
    for index in (2, 3):
        image, label = data.load(index)
        probs = [
            sliding_window(net.segment, image, PATCH, (18, 18, 4), 2) for net in nets[20].values()
        ]
        for name, prob in zip(expected, [*probs, probs[0] + probs[1]], strict=True):
            expected[name].append(binary_metrics(prob.argmax(0).numpy(), label)["dice"])
    for name, dice in expected.items():
        assert lines[name][20]["dice"] == pytest.approx(np.mean(dice), abs=1e-3)
    with open(folder / "figures" / "curves_train.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["network"], row["step"]) for row in rows] == [
        (n, s) for n in expected for s in ("10", "20")
    ]
    assert float(rows[1]["dice"]) == lines["net"][20]["dice"]
    ((lines, *_),) = call(
        "curves", *LAST, "--split", "train", "--cases", 1, "--nms", 1, "--names", "A", "B", "both"
    )
    assert list(lines) == ["A", "B", "both"]


def test_curves_of_a_student_and_its_teacher(folder, tiny_la, call):
    pair = {"net": network(0), "dis": network(1)}
    for step in (10, 20):
        save(folder / f"step_{step}.pth", step, tiny_la, net=pair["net"], teacher=pair["dis"])
    ((found, *_),) = call("curves", *LAST, "--split", "train", "--cases", 1)
    assert list(found) == ["student", "teacher"]
    image, label = open_dataset("LA", tiny_la).load(2)
    for net, line in zip(pair.values(), found.values(), strict=True):
        pred = sliding_window(net.segment, image, PATCH, (18, 18, 4), 2).argmax(0).numpy()
        assert line[20]["dice"] == pytest.approx(binary_metrics(pred, label)["dice"], abs=1e-3)


def test_pseudo_labels_of_two_runs_on_one_case(folder, tiny_la, call):
    other = folder.parent.parent / "other_2" / "seed1"
    nets = {run: network(seed) for seed, run in enumerate((folder, other))}
    for run, net in nets.items():
        for step in (10, 20):
            save(run / f"step_{step}.pth", step, tiny_la, net=net)
    save(other / "step_30.pth", 30, tiny_la, net=nets[other])  # the first did not keep it
    ((rows, _, look),) = call("pseudo_labels", *LAST, "--case", "CASE03", runs=nets)
    assert look["columns"] == ["step 10", "step 20"]
    assert [row.case.name for row in rows] == ["method_2", "other_2"]
    for row, net in zip(rows, nets.values(), strict=True):
        pred = sliding_window(net.segment, row.case.image, PATCH, (18, 18, 4), 2).argmax(0).numpy()
        assert (row.masks[0] == pred).mean() > 0.999
    save(other / "step_20.pth", 20, tiny_la, {"downsample": 2}, net=nets[other])
    with pytest.raises(UserError, match=r"shape .* take runs on the same data"):
        call("pseudo_labels", *LAST, "--steps", 20, runs=nets)


def test_entropy_is_that_of_the_teachers_mean(folder, tiny_la, call):
    nets = {"net": network(0), "dis": network(1)}
    save(folder / "last.pth", 40, tiny_la, {"seed": 3}, net=nets["net"], teacher=nets["dis"])
    (((row,), _, look),) = call("entropy", *LAST, "--passes", 2)
    ((_, top, _),) = look["heats"]
    assert top == pytest.approx(np.log(2))
    noisy = load_script(ROOT / "code" / "train_ugmcl.py").noisy
    nets["dis"].dropout.train()

    def expected(x):
        passes = [nets["dis"](noisy(x)).softmax(1) for _ in range(2)]
        return entropy((passes[0] + passes[1]) / 2)[:, None]

    torch.manual_seed(3)
    u = sliding_window(expected, row.case.image, PATCH, (18, 18, 4), 1, activation=None)
    np.testing.assert_allclose(row.maps[0], u[0], atol=1e-4)


def test_gradients_are_those_of_the_losses_on_a_crop(folder, tiny_la, call):
    nets = {"net": network(0), "net_2": network(1)}
    save(folder / "last.pth", 40, tiny_la, **nets)
    (((row,), _, look),) = call("gradients", *LAST)
    assert [name for name, *_ in look["heats"]] == ["Dice (λ = 4, T = 2)", "KL (λ = 1, T = 1)"]
    assert row.case.image.shape == PATCH
    x = torch.from_numpy(row.case.image)[None, None]
    dmd = load_script(ROOT / "code" / "train_dmd.py")
    with torch.no_grad():
        z, z_2 = (net(x) for net in nets.values())
    z.requires_grad_()
    losses = (4 * dmd.distillation_loss(z, z_2, 2.0), dmd.distillation_loss_kl(z, z_2, 1.0))
    for loss, shown in zip(losses, row.maps, strict=True):
        (g,) = torch.autograd.grad(loss, z, retain_graph=True)
        expected = g[0].square().sum(0).sqrt().numpy()
        np.testing.assert_allclose(shown, expected, rtol=1e-3, atol=1e-3 * expected.max())


def test_initial_uncertain_voxels_by_alpha(folder, tiny_la, call):
    runs = [folder.parent.parent / f"alpha_{a}" / "seed1" for a in (2, 5)]
    for alpha, run in zip((2.0, 5.0), runs, strict=True):
        net = network(int(alpha), branches=3)
        save(run / "last.pth", 40, tiny_la, {"alpha": alpha, "selftrain_epochs": 0}, net=net)
    (((row,), _, look),) = call("alphas", *LAST, runs=runs)
    assert look["columns"] == ["α = 2", "α = 5"]
    assert row.masks[0].any()
    save(runs[1] / "last.pth", 40, tiny_la, {"alpha": 5.0, "selftrain_epochs": 9}, net=net)
    with pytest.raises(UserError, match=r"self-trained, so .*--selftrain_epochs 0"):
        call("alphas", *LAST, runs=runs)


def assessment(run, tag, own, **shares):
    """What `assess_coranet.py` leaves of a run trained with the region `own`: a region's share is
    its PPV, half of it TPR and CSI.
    """
    (run / "test" / tag).mkdir(parents=True)
    rows = []
    for region, share in shares.items():
        values = {"PPV": share, "TPR": share / 2, "CSI": share / 2, "certain": 0.9}
        spread = {f"{name}_sd": 0.1 for name in values}
        trained = int(region == own)
        rows.append({"region": region, **values, **spread, "cases": 3, "of_training": trained})
    write_csv(run / "test" / tag / "certain.csv", rows)


def test_certain_scores_of_runs_as_bars_and_over_training(folder, call, capsys):
    other = folder.parent.parent / "softmax" / "seed1"
    assessment(folder, "last", "coranet", coranet=0.8, **{"softmax 0.5": 0.7})
    for run, own in ((folder, "coranet"), (other, "softmax 0.5")):
        for step, share in ((10, 0.5), (20, 0.6)):
            shares = {"coranet": share, "softmax 0.5": share - 0.1}
            assessment(run, f"step_{step}_train", own, **shares)
    ((rows, *_),) = call("certain_bars")
    ((title, measures),) = rows.items()
    assert "3 cases" in title
    assert measures["TPR"]["CoraNet"] == pytest.approx((40, 10))
    ((panels, across, *_),) = call("certain_curves", "--split", "train", runs=(folder, other))
    assert across == "iteration"
    assert panels["PPV (%)"]["method_2"] == pytest.approx({10: 50, 20: 60})
    assert panels["PPV (%)"]["softmax"] == pytest.approx({10: 40, 20: 50})
    with pytest.raises(UserError, match="without the region 'tta'; choose from coranet"):
        call("certain_curves", "--split", "train", "--regions", "tta")


def result(folder, tag, step, network, dice, nms=1, listed="the test list"):
    """What a test leaves, as far as curves need it."""
    write_summary(
        folder,
        tag,
        checkpoint=f"{tag.split('_n')[0]}.pth",
        step=step,
        cases=20,
        list=listed,
        mean={m: {"mean": None if m == "hd95" else dice} for m in METRICS},
        test={"network": network, "nms": nms},
    )


def test_curves_of_the_test_list_are_read_from_results_of_one_kind(folder, call, capsys):
    for step, dice in ((10, 0.5), (20, 0.7)):
        result(folder, f"step_{step}", step, None, dice + 0.05)
        result(folder, f"step_{step}_net", step, "net", dice)
        result(folder, f"step_{step}_net_2", step, "net_2", dice - 0.1)
    result(folder, "last", 30, None, 0.9)
    result(folder, "step_10_nms0", 10, None, 0.1, nms=0)
    result(folder, "step_20_nms0", 20, None, 0.2, nms=0)
    result(folder, "best", 20, None, 0.99)
    result(folder, "step_10_train", 10, None, 0.99, listed="the run's unlabelled training cases")
    ((lines, title, *_),) = call("curves", "--metrics", "dice", "hd95")
    dice = {
        name: {step: values["dice"] for step, values in line.items()}
        for name, line in lines.items()
    }
    assert list(dice) == ["net", "net_2", "mean"]
    assert dice["net"] == {10: 0.5, 20: 0.7}
    assert dice["net_2"] == pytest.approx({10: 0.4, 20: 0.6})
    assert dice["mean"] == pytest.approx({10: 0.55, 20: 0.75, 30: 0.9})
    assert np.isnan(lines["net"][10]["hd95"])
    assert "20 cases" in title
    assert "left out: step_<n>_nms0" in capsys.readouterr().out
    ((lines, *_),) = call("curves", "--nms", 0)
    assert [line[10]["dice"] for line in lines.values()] == [0.1]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ["sdm", "--checkpoint", "20"],
            "step_20.pth: none of its networks gives distance maps.*--checkpoint last",
        ),
        (["entropy"], "last.pth: holds no mean teacher; .*train_ugmcl.py"),
        (["gradients"], "last.pth: holds no two networks that learn from each other"),
        (["pseudo_labels", "--steps", "30"], "step_30.pth: not there; kept steps: 20"),
        (["pseudo_labels", "--names", "A", "B"], "--names: 2 names for 1 runs"),
        (["alphas"], "last.pth: trained without α; take runs of train_coranet.py"),
        (
            ["certain_bars", "--split", "train"],
            "last_train/certain.csv: not there; .*--checkpoint last --split train",
        ),
        (
            ["certain_curves", "--steps", "20"],
            "no assessment of step 20; .*--checkpoint kept",
        ),
        (["sdm", "--checkpoint", "30"], "step_30.pth: not there; kept steps: 20"),
        (
            ["sdm", "--case", "CASE00"],
            "--case CASE00: not an unlabelled training case; the first is CASE02",
        ),
        (["sdm", "--split", "val"], "LA has no val list"),
        (["sdm", "--root", "nowhere"], "nowhere: no such folder"),
        (
            ["uncertainty"],
            "step_20.pth: its network has no conservative and radical branch",
        ),
        (["curves"], "no results of kept steps; test them"),
        (["curves", "--cases", "2"], "--cases is for --split train and val"),
        (["curves", "--split", "train", "--cases", "1"], "one step makes no curve"),
    ],
)
def test_wrong_input_is_told_in_one_line(folder, dtml, call, argv, message):
    with pytest.raises(UserError, match=message) as raised:
        call(*argv, *([] if argv[0].startswith("certain") else ["--gpu", "-1"]))
    assert "\n" not in str(raised.value)
    assert not (folder / "figures").exists()


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--checkpont", "last"], "--checkpont last; did you mean --checkpoint?"),
        (["--checkpoint", "first"], "first is not last, best"),
        (["--gpu", "0,1"], "0,1 is more than one GPU"),
    ],
)
def test_a_wrong_option_is_told_by_the_figures_own_parser(argv, words, folder, dtml, call, capsys):
    with pytest.raises(SystemExit) as stop:
        call("sdm", *argv)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("figures.py sdm: ")
    assert words in error


def test_what_has_no_curve_or_no_region_of_its_own_is_told(folder, tiny_la, call, dtml):
    save(folder / "step_30.pth", 30, tiny_la, net=OneVsRest("vnet", 1, 2, **SHAPE, branches=3))
    with pytest.raises(UserError, match="one network a class"):
        call("uncertainty", "--gpu", "-1", "--steps", 30)
    (folder / "step_20.pth").unlink()
    (folder / "step_30.pth").unlink()
    with pytest.raises(UserError, match="kept no steps; train with --keep_every"):
        call("curves", "--gpu", "-1", "--split", "train")
    result(folder, "step_10", 10, None, 0.5)
    result(folder, "step_20", 20, None, 0.5)
    with pytest.raises(UserError, match="2 names for 1 lines: mean"):
        call("curves", "--names", "a", "b")
    (folder / "test" / "step_20" / "summary.json").write_text("{")
    with pytest.raises(UserError, match=r"step_20/summary\.json: damaged"):
        call("curves")
