"""Validation: which cases are kept aside, that nothing is learnt from them, what is selected, who
opens which list.
"""

import importlib
import json
import sys

import assess_coranet
import pytest
import small
import test_LA
import torch
import train_cml
import train_dmd
import train_supervised
from small import FOLDER, write_case

from dataloaders.hold_out import SOURCES
from utils.checkpoint import load_checkpoint
from utils.errors import UserError
from utils.evaluation.test_script import Test
from utils.trained import find_checkpoint, load_networks
from utils.training import options, run
from utils.training.validation import validation_dice

LABELED = "--labeled_bs 2".split()
LA = [*small.LA, *LABELED]
ACDC = [*small.ACDC, *LABELED]
SCRIPTS = {name: importlib.import_module(name) for name in small.SHORT}
SHORT = {
    script: small.SHORT[name] + ["--unlabeled_bs", 2] * (name != "train_supervised")
    for name, script in SCRIPTS.items()
}


@pytest.fixture
def train(tmp_path, one_thread):
    """`train(script, root, *options)`: the folder of its run."""

    def call(script, root, *arguments):
        runs = tmp_path / "runs"
        argv = [*arguments, "--root", root, "--runs", runs]
        script.main([str(word) for word in argv])
        return max(
            runs.glob("*/*/seed*"), key=lambda folder: (folder / "last.pth").stat().st_mtime_ns
        )

    return call


opened = []  # paths, while it is listened to
listening = False


def _listen(event, arguments):
    if listening and event == "open":
        opened.append(str(arguments[0]))


sys.addaudithook(_listen)  # cannot be removed again, hence the switch


@pytest.mark.parametrize("script", SHORT, ids=lambda script: script.__name__)
@pytest.mark.parametrize("validated", [False, True], ids=["", "validated"])
def test_no_training_script_opens_the_test_list(script, validated, train, tiny_la):
    """Nor a test case, which are not even there; and no label but those it may, for there are
    none.
    """
    global listening
    for case in ("CASE06", "CASE07"):
        (tiny_la / FOLDER / case / "mri_norm2.h5").unlink()
    if not validated:
        for case in ("CASE03", "CASE04", "CASE05"):
            write_case(tiny_la, case, torch.rand(40, 36, 20).numpy(), None)
    opened.clear()
    listening = True
    try:
        more = ["--val_fraction", 0.4, "--val_every", 1] if validated else []
        train(script, tiny_la, *LA, *SHORT[script], *more)
    finally:
        listening = False
    assert any(path.endswith("train.list") for path in opened)
    assert not any("test.list" in path for path in opened)


def loader(root, *arguments, script=train_supervised):
    from dataloaders.two_stream import two_stream_loader

    defaults = {"unlabeled": script is not train_supervised}
    args = options.parse(
        options.parser("doc", "train_x.py", **defaults),
        argv=[*LA, "--root", str(root), *map(str, arguments)],
    )
    return two_stream_loader(args, torch.device("cpu"))


@pytest.mark.parametrize("source", ["unlabeled", "labeled"])
def test_cases_are_kept_aside_by_seed(source, tiny_la):
    options = ["--labelnum", 3, "--val_fraction", 0.4, "--val_from", source, "--unlabeled_bs", 1]
    drawn = set()
    for seed in range(8):
        data, again = (loader(tiny_la, *options, "--seed", seed, script=None) for _ in range(2))
        (held,) = data.validation.names()
        assert again.validation.names() == [held]
        assert again.fingerprint() == data.fingerprint()
        streams = [{data.volumes.names[case] for case in cases} for cases in data.cases.values()]
        assert [len(names) for names in streams] == ([3, 2] if source == "unlabeled" else [2, 3])
        assert held not in set.union(*streams)
        drawn.add(held)
    pool = {"CASE00", "CASE01", "CASE02"} if source == "labeled" else {"CASE03", "CASE04", "CASE05"}
    assert drawn == pool
    assert data.fingerprint() != loader(tiny_la, "--unlabeled_bs", 1, script=None).fingerprint()


def test_validation_takes_whole_patients(train, tiny_acdc):
    folder = train(train_supervised, tiny_acdc, *ACDC, "--max_iterations", 1, "--val_fraction", 0.5)
    held = load_checkpoint(folder / "best.pth")["validation"]
    assert held["from"] == SOURCES["unlabeled"]
    assert held["cases"] in (["patient003"], ["patient004"])


def test_the_published_list_can_be_taken(train, tiny_acdc, tiny_la):
    folder = train(train_supervised, tiny_acdc, *ACDC, "--max_iterations", 1, "--val_from", "list")
    assert load_checkpoint(folder / "best.pth")["validation"]["cases"] == ["patient005_frame01"]
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert {"val/dice", "val/dice_RV", "val/dice_Myo", "val/dice_LV"} <= set().union(*lines)
    with pytest.raises(UserError, match="LA has no validation list; give --val_fraction"):
        loader(tiny_la, "--val_from", "list")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--val_from", "labeled"], "--val_from labeled needs --val_fraction"),
        (
            ["--dataset", "ACDC", "--patch", 32, 32, "--val_from", "list", "--val_fraction", 0.1],
            "is taken whole",
        ),
        (["--val_fraction", 1], "--val_fraction 1 of 3 unlabelled cases leaves none"),
        (
            ["--val_fraction", 0.9, "--val_from", "labeled", "--labelnum", 1],
            "of 1 labelled cases leaves none",
        ),
    ],
)
def test_what_cannot_be_validated(arguments, message, tiny_la):
    with pytest.raises(UserError, match=message):
        loader(tiny_la, *arguments)


def test_the_best_step_is_kept_and_resumes(train, tiny_la, monkeypatch):
    """Dice 0.3, 0.6, 0.6, 0.5 at steps 2, 4, 6 and 7: the first of the best, and the last step is
    scored too.
    """
    scores = {2: 0.3, 4: 0.6, 6: 0.6, 7: 0.5}
    now = []
    monkeypatch.setattr(run, "validation_dice", lambda *_, **__: [scores[now[-1]]])
    validate = run.Run._validate

    def stop(job, step):
        now.append(step)
        validate(job, step)
        if step == 4 and not job.args.resume:  # a signal comes
            job._asked.number = 15

    monkeypatch.setattr(run.Run, "_validate", stop)
    options = [*LA, "--max_iterations", 7, "--val_fraction", 0.4, "--val_every", 2]
    with pytest.raises(SystemExit):
        train(train_supervised, tiny_la, *options)
    folder = train(train_supervised, tiny_la, *options, "--resume")
    assert now == [2, 4, 6, 7]
    best = load_checkpoint(find_checkpoint(folder, "best"))
    assert (best["step"], best["best"]) == (4, {"step": 4, "dice": 0.6})
    assert "optimizer" not in best
    assert load_checkpoint(folder / "last.pth")["best"] == best["best"]


def test_validation_changes_no_bit_of_the_training(train, tiny_la):
    """The same cases are left out in both; once they are scored at every step, once at the end."""
    weights = []
    for name, every in (("often", 1), ("once", 100)):
        options = ["--max_iterations", 3, "--unlabeled_bs", 2, "--name", name]
        options += ["--val_fraction", 0.4, "--val_every", every]
        folder = train(train_dmd, tiny_la, *LA, *options)
        weights.append(load_checkpoint(folder / "last.pth")["net"])
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


def test_the_recorded_dice_is_that_of_the_kept_networks(train, tiny_la):
    folder = train(
        train_cml, tiny_la, *LA, *SHORT[train_cml], "--val_fraction", 0.4, "--val_every", 1
    )
    networks, best = load_networks(folder / "best.pth", "cpu")
    assert len(networks) == 2
    data = loader(tiny_la, "--unlabeled_bs", 2, "--val_fraction", 0.4, script=None)
    assert data.validation.names() == best["validation"]["cases"]
    (dice,) = validation_dice(networks, data.validation.cases, (32, 16, 16), 2)
    assert dice == pytest.approx(best["best"]["dice"], abs=1e-12)
    assert not any(network.training for network in networks)


class Says(torch.nn.Module):
    """A network that finds what is above 0 in the image to be class 1, above 1 class 2."""

    def segment(self, x):
        return torch.cat((0.5 - x, x.clamp(max=1) - 0.25, 2 * x - 1.5), 1)


def test_dice_by_hand():
    """One case of two slices, scored together, and one without class 2 at all."""
    said = torch.tensor([[1.0, 1, 0, 0], [2, 2, 0, 0]])
    true = torch.tensor([[1, 0, 0, 0], [2, 2, 2, 2]], dtype=torch.uint8)
    more = torch.tensor([[1.0, 1, 1, 1], [0, 0, 0, 0]])
    network = Says().train()
    cases = {
        "a": [(said, true), (more, torch.zeros_like(true))],
        "b": [(more, (more > 0).to(torch.uint8))],
    }
    one, two = validation_dice([network], cases, (2, 4), 3)
    assert one == pytest.approx((2 * 1 / (6 + 1) + 1) / 2)
    assert two == pytest.approx(2 * 2 / (2 + 4))
    assert network.training


def test_the_test_script_says_how_the_best_was_chosen(train, tiny_la, capsys):
    options = ["--max_iterations", 1, "--val_fraction", 0.4]
    folder = train(train_supervised, tiny_la, *LA, *options)
    where = ["--run", str(folder), "--gpu", "-1"]
    given = [*where, *"--figures 0 --nifti 0 --checkpoint best".split()]
    test_LA.main(given)
    summary = json.loads((folder / "test" / "best" / "summary.json").read_text())
    assert summary["selection"].startswith("best on validation cases: 1 unlabelled training cases")
    best = load_checkpoint(folder / "best.pth")
    assert summary["validation"]["cases"] == best["validation"]["cases"]
    assert "unfinished" not in capsys.readouterr().out
    state = load_checkpoint(folder / "last.pth")
    torch.save(state | {"step": 0}, folder / "last.pth")
    test_LA.main(given)
    said = capsys.readouterr().out
    assert "labels are read" in said
    assert "unfinished" in said
    asked = assess_coranet.parse([*where, "--split", "train"])
    asked.checkpoint = "last"
    test = Test(asked)
    assert len(test.indices) == 2  # neither the three labelled ones nor the one that chose


def test_a_run_without_validation_has_no_best(train, tiny_la):
    folder = train(train_supervised, tiny_la, *LA, "--max_iterations", 1)
    assert not (folder / "best.pth").exists()
    with pytest.raises(UserError, match=r"best\.pth.*--val_fraction"):
        find_checkpoint(folder, "best")
