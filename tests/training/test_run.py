"""The plumbing: options, devices, folders, records, checkpoints, and the line that each mistake
gets.
"""

import json
import os
import signal
import subprocess
import warnings

import pytest
import torch

from networks.one_vs_rest import OneVsRest
from networks.vnet import VNet
from utils import command, environment
from utils.checkpoint import load_checkpoint, load_state
from utils.device import autocast, keep_large_blocks, resolve_precision, select_device
from utils.errors import UserError
from utils.files import write_atomically
from utils.training import machine, options, run, tensorboard
from utils.training.checkpoints import Checkpoints


class Data:
    """The least a loader has to be."""

    steps_per_epoch, in_channels, num_classes = 2, 1, 2
    description, validation = {"class_names": ["object"]}, None
    summary = "two volumes"

    def fingerprint(self):
        return "these cases"

    def epoch(self, step):
        return (step - 1) // 2 + 1

    def batch(self, step, part=0, parts=1):
        generator = torch.Generator().manual_seed(step)
        return type(
            "Batch",
            (),
            {"image": torch.randn(2, 1, 16, 16, 16, generator=generator), "names": ["A", "B"]},
        )()


def parse(tmp_path, *argv):
    parser = options.parser("doc", "train_x.py")
    return options.parse(
        parser, argv=["--gpu", "-1", "--runs", str(tmp_path / "runs"), *map(str, argv)]
    )


def train(tmp_path, *argv, last=6, spoil=None):
    """A small run; `spoil(step, job)` may interfere before a step is logged."""
    job = run.Run(parse(tmp_path, "--log_every", 2, *argv), "train_tiny.py")
    net = job.to_device(VNet(1, 2, 2))
    optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
    job.resume(net=net, optimizer=optimizer)
    for step, batch in job.steps(Data(), last):
        loss = net(batch.image).square().mean()
        job.optimize(loss, optimizer)
        if spoil:
            loss = spoil(step, loss)
        job.log(step, loss=loss, lr=0.1, certain=0.5)
        job.checkpoint(step)
    return job, net


@pytest.fixture(autouse=True)
def script_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train_tiny.py").write_text("# a script\n")


def test_main_turns_a_user_error_into_a_line(capsys):
    def function():
        raise UserError("no such thing")

    with pytest.raises(SystemExit) as stop:
        command.run(function)
    assert stop.value.code == 2
    assert capsys.readouterr().err.endswith(": no such thing\n")


# ---------------------------------------------------------------------------------------- devices


def test_gpu_option(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    assert str(select_device(1)) == "cuda:1"
    assert str(select_device(-1)) == "cpu"
    with pytest.raises(UserError, match=r"--gpu 2: .*has 2 GPU"):
        select_device(2)
    parser = options.parser("doc", "train_x.py")
    assert parser.parse_args(["--gpu", "-1"]).gpu == -1
    for wrong, word in {"0,1": "torchrun", "one": "number", "-2": "number"}.items():
        with pytest.raises(SystemExit) as stop:
            parser.parse_args(["--gpu", wrong])
        assert stop.value.code == 2
        error = capsys.readouterr().err
        assert wrong in error
        assert word in error


def test_a_machine_without_gpu_warns_once(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    from utils import device

    device.warn_once.cache_clear()
    with pytest.warns(UserWarning, match="no GPU here: --gpu 0 runs on the CPU"):
        assert str(select_device(0)) == "cpu"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        select_device(0)  # a second time: silent
        select_device(-1)


def test_precision(monkeypatch):
    cpu = torch.device("cpu")
    monkeypatch.setattr("utils.device.has_fast_bf16", lambda device: True)
    assert resolve_precision("auto", cpu) == "bf16"
    monkeypatch.setattr("utils.device.has_fast_bf16", lambda device: False)
    assert resolve_precision("auto", cpu) == "fp32"
    assert resolve_precision("bf16", cpu) == "bf16"
    x = torch.randn(1, 1, 4, 4, 4)
    for precision, dtype in {"bf16": torch.bfloat16, "fp32": torch.float32}.items():
        with autocast(cpu, precision):
            assert torch.nn.functional.conv3d(x, x).dtype == dtype


def test_a_wrong_bf16_gradient_is_noticed(monkeypatch):
    """Whatever this machine's convolutions do, noise or NaN in the bf16 path must be seen, and
    rounding must not.
    """
    from utils import device

    cpu, right = torch.device("cpu"), torch.nn.functional.conv3d

    def wrong_by(error):
        def conv3d(x, weight, padding):
            y = right(x.float(), weight.float(), padding=padding)
            return y + error * weight.sum() if torch.is_autocast_enabled("cpu") else y

        monkeypatch.setattr(torch.nn.functional, "conv3d", conv3d)
        device.bf16_agrees.cache_clear()
        return not device.bf16_agrees(cpu, (3, 3, 2))

    assert not wrong_by(0.0)
    assert not wrong_by(1e-4)
    assert wrong_by(10.0)
    assert wrong_by(float("nan"))
    device.bf16_agrees.cache_clear()


def test_training_avoids_bf16_where_it_is_wrong(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "bf16_agrees", lambda device, extents: extents != (4, 2, 2))
    machine.warn_once.cache_clear()
    with pytest.warns(UserWarning, match=r"bf16 convolutions over \(4, 2, 2\) voxels go wrong"):
        job = run.Run(
            parse(tmp_path, "--precision", "bf16", "--patch", 32, 16, 16, "--name", "a"),
            "train_tiny.py",
        )
    assert job.precision == "fp32"
    assert (
        run.Run(parse(tmp_path, "--precision", "bf16", "--name", "b"), "train_tiny.py").precision
        == "bf16"
    )


def test_allocator_keeps_blocks():
    import platform

    assert keep_large_blocks() == (platform.libc_ver()[0] == "glibc")


# ---------------------------------------------------------------------------------------- folders


def test_the_folder_holds_what_design_says(tmp_path):
    job, _ = train(tmp_path)
    assert job.folder == tmp_path / "runs" / "LA" / "tiny_16" / "seed1337"
    names = {path.name for path in job.folder.iterdir()}
    assert names == {
        ".lock",
        "args.json",
        "environment.json",
        "log.txt",
        "metrics.jsonl",
        "tensorboard",
        "last.pth",
        "train_tiny.py",
    }
    args = json.loads((job.folder / "args.json").read_text())
    assert (args["method"], args["seed"], args["precision"]) == ("tiny", 1337, job.precision)
    (record,) = json.loads((job.folder / "environment.json").read_text())
    assert record["torch"] == torch.__version__
    assert record["devices"]
    lines = [json.loads(line) for line in (job.folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4, 6]
    assert [line["epoch"] for line in lines] == [1, 2, 3]
    assert set(lines[0]) == {
        "step",
        "epoch",
        "loss/loss",
        "lr",
        "info/certain",
        "time/step",
        "time/data",
    }
    assert list((job.folder / "tensorboard").glob("events*"))
    state = load_checkpoint(job.folder / "last.pth")
    assert state["step"] == 6
    assert state["networks"]["net"] == {
        "class": "networks.vnet.VNet",
        "kwargs": VNet(1, 2, 2).config,
    }


def test_a_run_is_not_overwritten(tmp_path):
    job, _ = train(tmp_path)
    before = (job.folder / "last.pth").read_bytes()
    with pytest.raises(
        UserError, match="already holds a run: --resume goes on with it, --name starts another"
    ):
        train(tmp_path)
    assert (job.folder / "last.pth").read_bytes() == before
    assert train(tmp_path, "--name", "variant")[0].folder.parent.name == "variant"


def test_resume_insists_on_the_same_options(tmp_path):
    job, _ = train(tmp_path)
    with pytest.raises(UserError, match=r"was started with base_lr 0\.01, not 0\.5"):
        train(tmp_path, "--resume", "--base_lr", 0.5)
    train(tmp_path, "--resume", "--log_every", 5)  # moves no number
    precision = job.precision
    other = {"fp32": "bf16", "bf16": "fp32"}[precision]
    again, _ = train(tmp_path, "--resume", "--precision", precision)  # what `auto` was here
    assert again.options["precision_asked"] == "auto"
    with pytest.raises(UserError, match=f"was started with precision {precision}, not {other}"):
        train(tmp_path, "--resume", "--precision", other)


@pytest.mark.parametrize("key", ["augment", "precision_asked", "cache"])
def test_a_run_of_another_version_is_refused(tmp_path, key):
    job, _ = train(tmp_path)
    path = job.folder / "args.json"
    args = json.loads(path.read_text())
    path.write_text(json.dumps({k: value for k, value in args.items() if k != key}))
    with pytest.raises(UserError, match=f"another version .*--{key}"):
        train(tmp_path, "--resume")
    path.write_text(json.dumps(args | {"older": 1}))
    with pytest.raises(UserError, match=r"another version .*--older"):
        train(tmp_path, "--resume")


def test_resume_insists_on_the_same_cases(tmp_path, monkeypatch):
    train(tmp_path, last=3)
    monkeypatch.setattr(Data, "fingerprint", lambda self: "other cases")
    with pytest.raises(UserError, match="was trained on other cases than these: check --root"):
        train(tmp_path, "--resume")


@pytest.mark.parametrize("name", ["args.json", "environment.json"])
def test_a_run_without_its_records(tmp_path, name):
    job, _ = train(tmp_path)
    (job.folder / name).write_text("{")
    with pytest.raises(UserError, match=f"{name}: missing or damaged"):
        train(tmp_path, "--resume")


def test_networks_are_kept_on_the_way(tmp_path):
    """`--keep_every 2` of 6 steps: each file is what `last.pth` was then, without what only
    training needs.
    """
    job, _ = train(tmp_path, "--keep_every", 2)
    kept = sorted(path.name for path in job.folder.glob("step_*.pth"))
    assert kept == ["step_2.pth", "step_4.pth", "step_6.pth"]
    last, end = (load_checkpoint(job.folder / name) for name in ("last.pth", "step_6.pth"))
    assert "optimizer" not in end
    assert all(torch.equal(end["net"][key], value) for key, value in last["net"].items())
    middle = load_checkpoint(job.folder / "step_2.pth")
    assert middle["step"] == 2
    assert any(not torch.equal(middle["net"][key], value) for key, value in last["net"].items())


def test_kept_files_hold_all_networks_and_nothing_else(tmp_path):
    net, teacher = VNet(1, 2, 2), VNet(1, 2, 2)
    objects = {"net": net, "teacher": teacher, "optimizer": torch.optim.SGD(net.parameters())}
    checkpoints = Checkpoints(tmp_path, {}, objects, ["net"])
    checkpoints.begin(Data(), 6)
    checkpoints.keep(2, "step_2.pth")
    kept = load_checkpoint(tmp_path / "step_2.pth")
    assert kept["networks"].keys() == {"net", "teacher"}
    assert kept["test_networks"] == ["net"]
    assert "optimizer" not in kept


def test_one_process_a_folder(tmp_path):
    first = run.Run(parse(tmp_path), "train_tiny.py")
    with pytest.raises(UserError, match="another process trains here"):
        run.Run(parse(tmp_path), "train_tiny.py")
    first._held.close()
    run.Run(parse(tmp_path), "train_tiny.py")


def test_what_a_killed_save_left_is_removed(tmp_path):
    job, _ = train(tmp_path)
    (job.folder / ".last.pth.123").write_bytes(b"half")
    train(tmp_path, "--resume")
    assert not (job.folder / ".last.pth.123").exists()


def test_weights_that_are_not_finite_are_not_saved(tmp_path):
    def spoil(step, loss):
        if step == 3:
            nets[0].heads[0].bias.data.fill_(float("nan"))
        return loss

    nets = []
    original = run.Run.to_device
    try:
        run.Run.to_device = lambda self, net: nets.append(net) or original(self, net)
        with pytest.raises(
            UserError, match="step 3: net is not finite any more; last checkpoint: step 2"
        ):
            train(tmp_path, "--save_minutes", 1e-9, spoil=spoil)
    finally:
        run.Run.to_device = original
    assert load_checkpoint(tmp_path / "runs/LA/tiny_16/seed1337/last.pth")["step"] == 2


def test_scalars_keep_their_digits(tmp_path):
    job, _ = train(tmp_path)
    assert json.loads((job.folder / "metrics.jsonl").read_text().splitlines()[0])["lr"] == 0.1


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(UserError, match="cannot be made"):
        train(tmp_path)


def events(job):
    """What TensorBoard would read of the run's last part."""
    from tensorboardX.proto.event_pb2 import Event

    data = next((job.folder / "tensorboard").glob("events*")).read_bytes()
    found, position = [], 0
    while position < len(data):  # records: length uint64, its crc uint32, the event, its crc uint32
        length = int.from_bytes(data[position : position + 8], "little")
        found.append(Event.FromString(data[position + 12 : position + 12 + length]))
        position += 16 + length
    return found


class Labelled(Data):
    """Of two classes besides the background."""

    def batch(self, step, part=0, parts=1):
        batch = super().batch(step, part, parts)
        batch.label = (batch.image[:1, 0] > 0).long() + (batch.image[:1, 0] > 1).long()
        return batch


def test_pictures_reach_tensorboard(tmp_path):
    job = run.Run(parse(tmp_path, "--picture_every", 2), "train_tiny.py")
    net = VNet(1, 2, 2)
    job.resume(net=net)
    for step, batch in job.steps(Labelled(), 3):
        job.log(step, loss=net(batch.image).mean())
        job.checkpoint(step)
    tags = [
        (value.tag, event.step)
        for event in events(job)
        for value in event.summary.value
        if value.HasField("image")
    ]
    assert tags == [
        ("train/Image", 2),
        ("train/Predicted_label", 2),
        ("train/Groundtruth_label", 2),
    ]


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("one_vs_rest", [False, True])
def test_the_label_shown_is_that_of_the_image_shown(tmp_path, monkeypatch, mixed, one_vs_rest):
    """None beside a crop that the script has mixed; of binary networks, one a class, the first
    class.
    """
    shown = []
    monkeypatch.setattr(
        tensorboard.Board, "images", lambda _, step, pictures: shown.append(pictures)
    )
    job = run.Run(parse(tmp_path, "--picture_every", 1), "train_tiny.py")
    net = OneVsRest("vnet", 1, 3, n_filters=2) if one_vs_rest else VNet(1, 3, 2)
    job.resume(net=net)
    for step, batch in job.steps(Labelled(), 1):
        outputs = net(batch.image.flip(0) if mixed else batch.image)
        job.log(step, loss=(outputs[0] if one_vs_rest else outputs).mean())
        job.checkpoint(step)
    (pictures,) = shown
    assert ("train/Groundtruth_label" in pictures) is not mixed
    if not mixed:
        truth = batch.label[0] == 1 if one_vs_rest else batch.label[0] / 2
        assert torch.equal(pictures["train/Groundtruth_label"].float(), truth.float())


def test_numbers_reach_tensorboard_and_a_resumed_run_strikes_out_its_later_ones(tmp_path):
    job, _ = train(tmp_path, last=4)
    shown = [(value.tag, event.step) for event in events(job) for value in event.summary.value]
    assert {("loss/loss", 2), ("lr", 4), ("info/certain", 4), ("time/step", 4)} <= set(shown)
    (job.folder / "tensorboard" / "earlier").mkdir()
    for path in (job.folder / "tensorboard").glob("events*"):
        path.rename(path.parent / "earlier" / path.name)
    job, _ = train(tmp_path, "--resume", last=6)
    assert [event.step for event in events(job) if event.HasField("session_log")] == [5]


@pytest.mark.parametrize("fails", ["__init__", "write_event", "flush", "close"])
def test_a_logger_that_fails_does_not_stop_training(tmp_path, monkeypatch, fails):
    from tensorboardX import event_file_writer

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tensorboard, "FLUSH_SECONDS", -1)
    monkeypatch.setattr(event_file_writer.EventsWriter, fails, full)
    job, _ = train(tmp_path)
    assert (job.folder / "last.pth").exists()
    log = (job.folder / "log.txt").read_text()
    assert log.count("TensorBoard: no more events ([Errno 28] No space left on device)") == 1
    assert len((job.folder / "metrics.jsonl").read_text().splitlines()) == 3


# ------------------------------------------------------------------------------------ checkpoints


def weights(net):
    return [p.detach().clone() for p in net.state_dict().values()]


def test_resume_is_exact(tmp_path):
    _, whole = train(tmp_path, "--name", "whole")

    def stop(step, loss):
        if step == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return loss

    with pytest.raises(SystemExit) as left:
        train(tmp_path, "--name", "parts", spoil=stop)
    assert left.value.code == 143
    job, parts = train(tmp_path, "--name", "parts", "--resume")
    assert job.start == 3
    assert all(torch.equal(a, b) for a, b in zip(weights(whole), weights(parts), strict=True))
    steps = [
        json.loads(line)["step"] for line in (job.folder / "metrics.jsonl").read_text().splitlines()
    ]
    assert steps == [2, 4, 6]
    assert len(json.loads((job.folder / "environment.json").read_text())) == 2


def test_records_after_the_checkpoint_are_made_again(tmp_path):
    """Killed without a chance to save: the records run ahead of the checkpoint, the last line may
    be cut.
    """
    job, _ = train(tmp_path, "--name", "killed", last=2)
    with open(job.folder / "metrics.jsonl", "a") as file:
        file.write('{"step": 4, "loss/loss": 1}\n{"step": 6, "lo')
    train(tmp_path, "--name", "killed", "--resume")
    steps = [
        json.loads(line)["step"] for line in (job.folder / "metrics.jsonl").read_text().splitlines()
    ]
    assert steps == [2, 4, 6]


def test_sigint_leaves_with_130(tmp_path):
    def stop(step, loss):
        os.kill(os.getpid(), signal.SIGINT)
        return loss

    with pytest.raises(SystemExit) as left:
        train(tmp_path, spoil=stop)
    assert left.value.code == 130
    assert load_checkpoint(tmp_path / "runs/LA/tiny_16/seed1337/last.pth")["step"] == 1


@pytest.mark.parametrize(("alone", "saved"), [(True, 2), (False, 3)])
def test_a_signal_is_not_lost_while_processes_tell_each_other_of_signals(
    tmp_path, monkeypatch, alone, saved
):
    """It comes after this process has said that it has none; beside others it waits for the next
    step.
    """
    calls = []

    def interrupted(*numbers):
        calls.append(numbers)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return list(numbers)

    monkeypatch.setattr(run.distributed, "largest", interrupted)
    if not alone:
        monkeypatch.setattr(run.Run, "leave_if_asked", lambda job, step: None)
    with pytest.raises(SystemExit) as left:
        train(tmp_path)
    assert left.value.code == 143
    assert load_checkpoint(tmp_path / "runs/LA/tiny_16/seed1337/last.pth")["step"] == saved


def test_a_signal_inside_a_step_saves_the_step_before(tmp_path):
    job = run.Run(parse(tmp_path), "train_tiny.py")
    net = VNet(1, 2, 2)
    job.resume(net=net)

    def loop():
        for step, _ in job.steps(Data(), 5):
            if step == 3:
                os.kill(os.getpid(), signal.SIGTERM)
                job.leave_if_asked(step - 1)
            job.checkpoint(step)

    with pytest.raises(SystemExit) as left:
        loop()
    assert left.value.code == 143
    assert load_checkpoint(job.folder / "last.pth")["step"] == 2


def test_a_complete_run_resumes_to_nothing(tmp_path):
    job, _ = train(tmp_path)
    before = (job.folder / "last.pth").stat().st_mtime_ns
    train(tmp_path, "--resume")
    assert (job.folder / "last.pth").stat().st_mtime_ns == before


def test_a_non_finite_loss_stops_the_run(tmp_path):
    def spoil(step, loss):
        return loss * float("nan") if step == 5 else loss

    with pytest.raises(
        UserError,
        match=r"step 5: not finite: loss nan, lr 0\.1, certain 0\.5; cases A, B; last checkpoint",
    ):
        train(tmp_path, "--save_minutes", 1e-9, spoil=spoil)
    assert load_checkpoint(tmp_path / "runs/LA/tiny_16/seed1337/last.pth")["step"] == 4


def test_damaged_checkpoints(tmp_path):
    path = tmp_path / "last.pth"
    with pytest.raises(UserError, match="no such checkpoint"):
        load_checkpoint(path)
    torch.save({"net": torch.zeros(1000)}, path)
    whole = path.read_bytes()
    for broken in (whole[:300], b"", b"not a checkpoint", whole[:-100]):
        path.write_bytes(broken)
        with pytest.raises(UserError, match=r"last\.pth: damaged or not a checkpoint"):
            load_checkpoint(path)


def test_another_architecture_is_told_in_one_line(tmp_path):
    small, wide, branched = VNet(1, 2, 2), VNet(1, 2, 4), VNet(1, 2, 2, branches=3)
    with pytest.raises(
        UserError, match=r"another architecture than this net: its encoder\.0\.0\.weight is \(4, 1"
    ):
        load_state("x.pth", "net", small, wide.state_dict())
    with pytest.raises(UserError, match=r"it has no heads\.0\.0"):
        load_state("x.pth", "net", branched, small.state_dict())
    with pytest.raises(UserError, match=r"it has an unexpected sdm\.weight"):
        load_state("x.pth", "net", small, VNet(1, 2, 2, sdm_head=True).state_dict())
    optimizer = torch.optim.SGD([torch.zeros(1)], 1)
    other = torch.optim.SGD([torch.zeros(1), torch.zeros(1)], 1)
    with pytest.raises(UserError, match=r"x\.pth: its optimizer does not fit"):
        load_state("x.pth", "optimizer", optimizer, other.state_dict())


def test_writing_is_all_or_nothing(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")

    def fail(temporary):
        temporary.write_text("half")
        raise OSError("disk full")

    with pytest.raises(UserError, match=r"file: cannot be written \(disk full"):
        write_atomically(path, fail)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.glob("*file*")] == ["file"]


def test_environment_without_a_git_program(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert environment.environment([torch.device("cpu")])["commit"] is None


def test_environment_outside_a_repository(monkeypatch):
    answer = subprocess.CompletedProcess([], 128, "", "not a repository")
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: answer)
    record = environment.environment([torch.device("cpu")])
    assert record["commit"] is None
    assert record["dirty"] is None


@pytest.mark.parametrize(
    ("net", "patch", "bottom"),
    [("vnet", [48, 16, 16], (3, 1, 1)), ("resnet18", [48, 16, 16], (2, 1, 1))],
)
def test_bf16_is_tried_at_every_level_that_the_network_has(
    tmp_path, monkeypatch, net, patch, bottom
):
    tried = []
    monkeypatch.setattr(machine, "bf16_agrees", lambda _, extents: tried.append(extents) or True)
    run.Run(
        parse(tmp_path, "--net", net, "--patch", *patch, "--precision", "bf16"), "train_tiny.py"
    )
    assert tried[0] == bottom
    assert tried[-1] == (24, 8, 8)
