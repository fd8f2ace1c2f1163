"""What each loop hands to its objective, step by step: who labels whom, and which schedule runs on
which clock.
"""

import math
import re

import pytest
import small
import torch
import train_cml
import train_coranet
import train_coranet_ovr
import train_coranet_uncertainty
import train_dtml
import train_ugmcl

from utils.errors import UserError
from utils.training import run

pytestmark = pytest.mark.usefixtures("one_thread")

LA = [*small.LA, *small.BOTH]
ACDC = [*small.ACDC, *small.BOTH]


@pytest.fixture
def calls(monkeypatch):
    """`calls(module, name)`: the list of what a module's function will be given and answer."""

    def record(module, name):
        listed, function = [], getattr(module, name)

        def recorded(*args, **kwargs):
            answer = function(*args, **kwargs)
            listed.append((args, answer))
            return answer

        monkeypatch.setattr(module, name, recorded)
        return listed

    return record


@pytest.fixture
def main(tmp_path):
    """`main(script, root, *options)`: the checkpoint that its run ends in."""

    def call(script, root, *options):
        runs = tmp_path / "runs"
        script.main([*map(str, options), "--root", str(root), "--runs", str(runs)])
        (path,) = runs.glob("*/*/*/last.pth")
        return torch.load(path, weights_only=True)

    return call


def ramp(t, length):
    return math.exp(-5 * (1 - min(t, length) / length) ** 2)


def test_cml_learns_from_the_other_outside_of_the_box(tiny_la, main, calls, monkeypatch):
    said, resume = [], run.Run.resume

    def listen(job, *names, net, net_2, **objects):
        for own in (net, net_2):
            own.register_forward_hook(
                lambda own, _, output: (
                    None if torch.is_grad_enabled() else said.append((own, output[0].argmax(1)))
                )
            )
        nets[:] = net, net_2
        return resume(job, *names, net=net, net_2=net_2, **objects)

    nets = []
    monkeypatch.setattr(run.Run, "resume", listen)
    boxes, components = calls(train_cml, "random_box"), calls(train_cml, "largest_component")
    objectives, rates = calls(train_cml, "objective"), calls(train_cml, "set_lr")
    main(train_cml, tiny_la, *LA, "--pretrain_iterations", 3, "--max_iterations", 3, "--lr_step", 2)
    assert [net.config["upsampling"] for net in nets] == ["transposed", "linear"]
    assert [args[1] for args, _ in rates] == pytest.approx([0.01, 0.01, 0.001] * 2)
    assert (
        len(boxes) == 3 + 2 * 3
    )  # of the labelled crops in either phase, of the unlabelled ones in the second
    for step, (args, _) in enumerate(objectives[3:]):
        (one, pseudo_1), (two, pseudo_2) = said[2 * step : 2 * step + 2]
        assert (one, two) == tuple(nets)
        kept = [answer for _, answer in components[2 * step : 2 * step + 2]]
        assert torch.equal(components[2 * step][0][0], pseudo_1)
        assert torch.equal(components[2 * step + 1][0][0], pseudo_2)
        _, box = boxes[3 + 2 * step + 1]
        inside = (0, *(slice(first, last) for first, last in zip(*box.tolist(), strict=True)))
        labels_1, labels_2, labelled = args[2:5]
        for labels, own, other in ((labels_1, kept[0], kept[1]), (labels_2, kept[1], kept[0])):
            expected = other[:1].clone()
            expected[inside] = own[1:][inside]
            assert torch.equal(labels[labelled:], expected)


def test_cmls_released_code_shows_batch_norm_either_kind_alone(tiny_la, main, monkeypatch):
    """4 + 2 crops, mixed to 2 + 1: what learns sees the labelled ones, in self-training the
    unlabelled one after.
    """
    seen, forward = [], train_cml.forward

    def listen(model, image, sizes):
        hook = model.register_forward_hook(
            lambda _, given, output: seen.append((given[0], output[0]))
        )
        answer = forward(model, image, sizes)
        hook.remove()
        assert torch.equal(torch.cat([given for given, _ in seen[-len(sizes) :]]), image)
        assert torch.equal(torch.cat([logits for _, logits in seen[-len(sizes) :]]), answer[0])
        return answer

    monkeypatch.setattr(train_cml, "forward", listen)
    options = [
        "--labeled_bs",
        4,
        "--pretrain_iterations",
        1,
        "--max_iterations",
        1,
        "--preset",
        "released",
    ]
    main(train_cml, tiny_la, *LA, *options)
    assert [len(given) for given, _ in seen] == [
        2,
        2,
        2,
        1,
        2,
        1,
    ]  # two networks: once before, then twice each


def test_cmls_released_code_has_one_network_on_slices(tiny_acdc, main, calls):
    objectives = calls(train_cml, "objective")
    options = ["--pretrain_iterations", 2, "--max_iterations", 1, "--preset", "released"]
    ended = main(train_cml, tiny_acdc, *ACDC, *options)
    assert (ended["test_networks"], ended["networks"].keys()) == (["net"], {"net"})
    assert ended["networks"]["net"]["kwargs"]["upsampling"] == "linear"
    for args, _ in objectives:
        assert not torch.equal(args[0][0], args[1][0])  # but for its dropout
    with pytest.raises(UserError, match="--framework cps"):
        main(train_cml, tiny_acdc, *ACDC, *options, "--framework", "cps")


def test_ugmcl_runs_its_schedules_on_the_iteration(tiny_acdc, main, calls, monkeypatch):
    """H(t) is read off a ramp of entropies that `uncertainty` is made to answer with; 4 classes, so
    up to ln 4.
    """
    entropies = torch.linspace(0, math.log(4), 4 * 32 * 32).view(4, 32, 32)
    monkeypatch.setattr(train_ugmcl, "uncertainty", lambda *_: entropies)
    objectives, teachers = calls(train_ugmcl, "objective"), calls(train_ugmcl, "update_teacher")
    main(train_ugmcl, tiny_acdc, *ACDC, "--max_iterations", 5, "--ema_decay", 0.7)
    for t, (args, _) in enumerate(objectives, 1):
        assert args[3] == pytest.approx(0.1 * ramp(t, 5))
        threshold = (0.75 + 0.25 * ramp(t, 5)) * math.log(4)
        assert torch.equal(args[6], entropies < threshold)
    assert [args[2] for args, _ in teachers] == pytest.approx([0, 1 / 2, 2 / 3, 0.7, 0.7])


def test_dtml_ramps_its_consistency(tiny_la, main, calls):
    objectives = calls(train_dtml, "objective")
    main(train_dtml, tiny_la, *LA, "--max_iterations", 4)
    assert [args[3] for args, _ in objectives] == pytest.approx(
        [0.1 * ramp(t, 4) for t in (1, 2, 3, 4)]
    )


@pytest.mark.parametrize("script", [train_coranet, train_coranet_ovr, train_coranet_uncertainty])
def test_coranet_relabels_every_so_many_epochs(script, tiny_la, main, calls):
    """3 labelled cases, 2 a step: epochs of 2 steps; 1 epoch of pre-training, 5 of self-training,
    relabelled every 2.
    """
    relabelled, objectives = calls(script, "relabel"), calls(script, "objective")
    teachers = calls(script, "update_teacher")
    options = ["--pretrain_epochs", 1, "--selftrain_epochs", 5, "--relabel_epochs", 2]
    ended = main(script, tiny_la, *LA, *options, "--ema_decay", 0.7, "--updates", "joint")
    assert [args[2] for args, _ in relabelled] == [range(3, 7), range(7, 11), range(11, 13)]
    assert [args[3] for args, _ in objectives] == [0, 0, 0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert [args[2] for args, _ in teachers][:4] == [0, 0.7, 0.7, 0.7]  # a copy, then β
    assert ended["optimizer"]["param_groups"][0]["betas"] == (0.5, 0.999)


@pytest.mark.parametrize("script", [train_coranet, train_coranet_ovr])
@pytest.mark.parametrize("row", ["full", "seg+st_mask", "seg+mt_mask", "seg+mt_uncertain"])
def test_coranet_masks_and_updates_each_step(row, script, tiny_la, main, calls):
    """Algorithm 1, which is the default: in each step of self-training the masks of its crops, and
    updates with those voxels.
    """
    certain = calls(script, "certain_voxels")
    updates = calls(script, "three_updates")
    csn, cnt = calls(script, "certain_loss"), calls(script, "consistency_loss")
    main(script, tiny_la, *LA, "--pretrain_epochs", 1, "--selftrain_epochs", 2, "--train", row)
    assert len(certain) == len(updates) == 4
    masks = [mask[0] if script is train_coranet_ovr else mask for _, mask in certain]
    if row in ("full", "seg+st_mask"):
        assert all(torch.equal(args[2], mask) for (args, _), mask in zip(csn, masks, strict=True))
    if row != "seg+st_mask":
        expected = masks if row == "seg+mt_mask" else [~mask for mask in masks]
        found = [args[2] for args, _ in cnt]
        assert all(map(torch.equal, found, expected))
        assert len(found) == 4
    assert bool(csn) == (row in ("full", "seg+st_mask"))


def test_coranets_released_epochs_end_with_the_shorter_loader(tiny_la, main, calls):
    """3 labelled and 3 unlabelled cases, 2 a step: five passes are 8 steps, whole batches of the
    unlabelled 1.
    """
    relabelled = calls(train_coranet, "relabel")
    objectives = calls(train_coranet, "objective_released")
    options = ["--pretrain_epochs", 1, "--selftrain_epochs", 3, "--relabel_epochs", 2]
    main(train_coranet, tiny_la, *LA, *options, "--preset", "released")
    assert [args[2] for args, _ in relabelled] == [range(9, 11), range(11, 12)]
    assert [args[3] for args, _ in objectives] == [0] * 8 + [0, 1, 2]


@pytest.mark.parametrize(
    ("script", "network"),
    [
        (train_coranet, "unet_ronneberger.RonnebergerUNet"),
        (train_coranet_ovr, "one_vs_rest.OneVsRest"),
    ],
)
def test_coranet_of_slices_has_the_original_unet(tiny_acdc, main, script, network):
    options = ["--pretrain_epochs", 1, "--selftrain_epochs", 0]
    spec = main(script, tiny_acdc, *ACDC, *options)["networks"]["net"]
    assert spec["class"] == f"networks.{network}"
    assert spec["kwargs"]["branches"] == 3
    assert spec["kwargs"].get("network", "unet_ronneberger") == "unet_ronneberger"


@pytest.mark.parametrize(
    ("script", "networks", "classes"), [(train_coranet, 1, 4), (train_coranet_ovr, 3, 2)]
)
def test_coranet_self_trains_each_network_of_slices(
    tiny_acdc, main, monkeypatch, script, networks, classes
):
    taught, objective = [], script.objective

    def listen(student, label, args, epoch, **learn):
        if learn:
            taught.append((student[0].shape[1], learn["pseudo"].max()))
        return objective(student, label, args, epoch, **learn)

    monkeypatch.setattr(script, "objective", listen)
    options = ["--pretrain_epochs", 1, "--selftrain_epochs", 1, "--updates", "joint"]
    ended = main(script, tiny_acdc, *ACDC, *options)
    steps = ended["step"] // 2
    assert len(taught) == networks * steps
    assert all(channels == classes > highest for channels, highest in taught)
    stores = [name for name in ended if name.startswith("pseudo_labels")]
    assert len(stores) == networks


@pytest.mark.parametrize("script", [train_coranet, train_coranet_ovr])
def test_coranet_logs_which_classes_have_pseudo_labels(tiny_acdc, main, tmp_path, script):
    main(script, tiny_acdc, *ACDC, "--pretrain_epochs", 1, "--selftrain_epochs", 1)
    (log,) = tmp_path.glob("runs/*/*/*/log.txt")
    assert re.search(
        r"relabelled images: \d+; certain RV in \d+, Myo in \d+, LV in \d+", log.read_text()
    )
