"""Two processes with one batch between them are one process with all of it, in every method, and
stop and resume so.
"""

import csv
import json
import os
import signal
import subprocess
import sys
import time

import predict
import pytest
import torch
import train_dmd
from conftest import ROOT
from small import LA, make_tiny_la

from dataloaders.two_stream import two_stream_loader
from utils import device, distributed
from utils.errors import UserError
from utils.training import options

SMALL = [*LA, *"--log_every 1 --normalization none --labeled_bs 4".split()]
EPOCHS = "--pretrain_epochs 1 --selftrain_epochs 2 --relabel_epochs 1".split()
BOTH = [*SMALL, "--unlabeled_bs", 4]
METHODS = {
    "train_supervised": [*SMALL, "--max_iterations", 3],
    "train_dmd": [*BOTH, "--max_iterations", 3],
    "train_dtml": [*BOTH, "--max_iterations", 3, "--dis_loss", "both"],
    "train_ugmcl": [*BOTH, "--max_iterations", 3, "--passes", 2],
    "train_cml": [*BOTH, "--pretrain_iterations", 1, "--max_iterations", 2],
    "train_mt": [*BOTH, "--max_iterations", 3],
    "train_uamt": [*BOTH, "--max_iterations", 3, "--passes", 1],
    "train_ict": [*BOTH, "--max_iterations", 3],
    "train_tcse": [*BOTH, "--max_iterations", 3],
    "train_pi": [*BOTH, "--max_iterations", 3],
    "train_tempens": [*BOTH, "--max_iterations", 3],
    "train_bcp": [*BOTH, "--pretrain_iterations", 1, "--max_iterations", 2],
    "train_ssnet": [*BOTH, "--max_iterations", 3],
    "train_mcf": [*BOTH, "--max_iterations", 3],
    "train_dtc": [*BOTH, "--max_iterations", 3],
    "train_mcnet": [*BOTH, "--max_iterations", 3],
    "train_urpc": [*BOTH, "--max_iterations", 3],
    "train_sassnet": [*BOTH, "--max_iterations", 3, "--discriminator_filters", 4],
    "train_cps": [*BOTH, "--max_iterations", 3],
    "train_dan": [*BOTH, "--max_iterations", 3, "--discriminator_filters", 4],
    "train_entropy": [
        *[*BOTH, "--max_iterations", 3, "--patch", 32, 32, 32],
        *["--adversarial", 1, "--discriminator_filters", 4],
    ],
    "train_vat": [*BOTH, "--max_iterations", 3],
    "train_pseudo": [*BOTH, "--max_iterations", 3, "--threshold", 0.55],
    "train_unimatch": [*BOTH, "--max_iterations", 3, "--threshold", 0.55],
    "train_admt": [*BOTH, "--max_iterations", 3, "--threshold", 0.55, "--longest_turn", 1],
    "train_coranet": [*BOTH, *EPOCHS],
    "train_coranet_ovr": [*BOTH, *EPOCHS],
}
SEVERAL = ROOT / "tests" / "training" / "several_scripts.py"


def one_thread():
    """The environment of a process whose tiny convolutions should not wait for each other."""
    return os.environ | {"OMP_NUM_THREADS": "1"}


def torchrun(*arguments, processes=2):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command.append(f"--nproc_per_node={processes}")
    command += ["--", *map(str, arguments)]  # or torchrun takes --run for its own
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, env=one_thread(), **pipes)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The folder with all methods' runs, of `one` process and of `two`."""
    folder = tmp_path_factory.mktemp("ranks")
    make_tiny_la(folder / "LA")
    for name in ("one", "two"):
        where = ["--root", str(folder / "LA"), "--runs", str(folder / name)]
        commands = [[method, *options, *where] for method, options in METHODS.items()]
        for method, variant, *own in (
            ("train_dmd", "parts", "--accumulate", 2),
            ("train_cml", "released", "--preset", "released"),
            ("train_supervised", "validated", "--val_fraction", 0.5, "--val_every", 2),
        ):
            commands.append([method, *METHODS[method], *where, *own, "--name", variant])
        arguments = [SEVERAL, json.dumps(commands)]
        if name == "two":
            done = torchrun(*arguments)
        else:
            command = [sys.executable, *map(str, arguments)]
            done = subprocess.Popen(command, env=one_thread(), stderr=subprocess.PIPE)
        _, err = done.communicate(timeout=300)
        assert done.returncode == 0, err.decode()
    return folder


def records(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def moving(state):
    """All tensors of a checkpoint's objects, by name."""
    if isinstance(state, dict):
        return {
            f"{key}.{name}": t for key, value in state.items() for name, t in moving(value).items()
        }
    if isinstance(state, list | tuple):
        return moving(dict(enumerate(state)))
    return {"": state} if torch.is_tensor(state) else {}


@pytest.mark.parametrize(
    "name", [*(f"{method[6:]}_3" for method in METHODS), "parts", "released", "validated"]
)
def test_two_processes_are_one(runs, name):
    folders = [runs / which / "LA" / name / "seed1337" for which in ("one", "two")]
    one, two = map(records, folders)
    assert len(one) == len(two) == (5 if name == "validated" else 3)
    for a, b in zip(one, two, strict=True):
        assert a.keys() == b.keys()
        for key in a.keys() - {"time/step", "time/data"}:
            # `certain` counts voxels, of which some are at the threshold
            near = 1e-3 if key == "info/certain" else 1e-6
            assert a[key] == pytest.approx(b[key], rel=1e-5, abs=near), (key, a["step"])
    states = [moving(torch.load(folder / "last.pth", weights_only=True)) for folder in folders]
    assert states[0].keys() == states[1].keys()
    for key, a in states[0].items():
        torch.testing.assert_close(
            states[1][key], a, rtol=1e-3, atol=1e-4, msg=lambda text, key=key: f"{key}: {text}"
        )
    environment = json.loads((folders[1] / "environment.json").read_text())[-1]
    assert environment["processes"] == len(environment["devices"]) == 2


def test_nothing_is_saved_of_a_step_that_went_wrong_in_one_process(runs, monkeypatch):
    monkeypatch.setenv("SPOIL", "3")
    where = ["--root", str(runs / "LA"), "--runs", str(runs / "spoilt")]
    command = ["train_dmd", *METHODS["train_dmd"], *where, "--keep_every", 1]
    process = torchrun(SEVERAL, json.dumps([command]))
    _, err = process.communicate(timeout=120)
    assert process.returncode
    assert "several_scripts.py (process 1): step 3: not finite: loss inf" in err.decode()
    folder = runs / "spoilt" / "LA" / "dmd_3" / "seed1337"
    assert sorted(path.name for path in folder.glob("*.pth")) == ["step_1.pth", "step_2.pth"]
    assert [record["step"] for record in records(folder)] == [1, 2]


def test_test_cases_are_shared_out(runs):
    """Three processes for two cases: one has nothing to do; the table is that of one process."""
    tables = []
    for processes in (1, 3):
        run = runs / "one" / "LA" / "dmd_3" / "seed1337"
        command = [ROOT / "code" / "test_LA.py", "--run", run, "--gpu", -1]
        process = torchrun(*command, "--stride", 16, 16, 16, "--figures", 0, processes=processes)
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err.decode()
        assert out.decode().count("mean ± sd") == 1
        (folder,) = (run / "test").glob("*")
        assert len(list((folder / "nifti").glob("*_pred.nii.gz"))) == 2
        with open(folder / "per_case.csv") as file:
            rows = list(csv.DictReader(file))
        for row in rows:
            del row["seconds"]
        tables.append(rows)
    assert len(tables[0]) == 2
    assert tables[0] == tables[1]


def test_a_share_keeps_the_ratio_and_the_pairs(tiny_la, monkeypatch):
    """Whatever the number of processes, part p is the same crops; a share has half of its pairs'
    first halves.
    """
    given = [*SMALL, "--root", tiny_la, "--labeled_bs", 8, "--unlabeled_bs", 16]
    parser = options.parser("doc", "train_x.py")
    args = options.parse(parser, argv=[str(word) for word in given])
    data = two_stream_loader(args, torch.device("cpu"))
    whole = data.batch(2)
    for processes, parts in ((1, 2), (2, 1), (2, 2), (4, 1), (1, 4)):
        crops = {}
        for number in range(processes):
            monkeypatch.setattr("dataloaders.two_stream.rank", lambda number=number: number)
            monkeypatch.setattr(
                "dataloaders.two_stream.world_size", lambda processes=processes: processes
            )
            for part in range(parts):
                batch = data.batch(2, part, parts)
                assert batch.part == part
                assert batch.first_part == (part == 0)
                assert batch.last_part == (part == parts - 1)
                assert batch.labeled_bs == 8 // (processes * parts)
                assert len(batch.crops) == 24 // (processes * parts)
                assert batch.label.shape[0] == batch.labeled_bs
                crops[part + parts * number] = batch.crops
        shares = processes * parts
        for share, own in crops.items():
            assert own == whole.crops[:8][share::shares] + whole.crops[8:][share::shares]


def test_two_processes_stop_together_and_one_goes_on(tmp_path, script):
    """SIGTERM to torchrun, as a cluster sends it; what is left is resumed by one process."""
    make_tiny_la(tmp_path / "LA")
    where = ["--root", tmp_path / "LA", "--runs", tmp_path / "runs"]
    options = [*BOTH, *where, "--max_iterations", 100000, "--save_minutes", 60]
    process = torchrun(ROOT / "code" / "train_dmd.py", *options)
    folder = tmp_path / "runs" / "LA" / "dmd_3" / "seed1337"
    deadline = time.monotonic() + 120
    metrics = folder / "metrics.jsonl"
    while not metrics.exists() or metrics.read_text().count("\n") <= 3:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    step = torch.load(folder / "last.pth", weights_only=True)["step"]
    assert step > 3
    assert f"SIGTERM: saved step {step}" in (folder / "log.txt").read_text()
    options[options.index(100000)] = step + 2
    text = (folder / "args.json").read_text()
    text = text.replace("100000", str(step + 2))  # so that it ends soon
    (folder / "args.json").write_text(text)
    done = script("train_dmd.py", *options, "--resume")
    assert done.returncode == 0, done.stderr
    steps = [record["step"] for record in records(folder)]
    assert steps == list(range(1, step + 3))
    environments = json.loads((folder / "environment.json").read_text())
    assert [part["processes"] for part in environments] == [2, 1]


def test_a_batch_that_cannot_be_shared_out(tiny_la, tmp_path):
    given = [*BOTH, "--root", tiny_la, "--runs", tmp_path / "runs", "--accumulate", 3]
    with pytest.raises(UserError, match=r"--labeled_bs 4 .* multiple of 3"):
        train_dmd.main([str(word) for word in given])
    assert not (tmp_path / "runs").exists()


def test_what_one_process_does_is_refused_to_several(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="torchrun"):
        predict.main(["nowhere", "image.nii.gz", "--out", "nowhere"])


def test_gpus_of_torchrun(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    started = {"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2", "LOCAL_RANK": "1", "RANK": "3"}
    for name, value in started.items():
        monkeypatch.setenv(name, value)
    assert device.select_device(0) == torch.device("cuda", 1)
    assert distributed.rank() == 3
    assert not distributed.is_first()
    with pytest.raises(UserError, match=r"--gpu 2: .*CUDA_VISIBLE_DEVICES"):
        device.select_device(2)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    assert device.select_device(2) == torch.device("cuda", 2)
