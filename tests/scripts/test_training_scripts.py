"""Every training script in a process of its own, a few steps on the CPU: each flag once, signals,
resume, errors.
"""

import functools
import json
import os
import signal
import subprocess
import sys
import time

import h5py
import numpy as np
import pytest
import torch
from conftest import ROOT, Script, real_data
from small import BOTH, FOLDER, make_tiny_la

SMALL = "--gpu -1 --patch 32 16 16 --n_filters 2 --log_every 1 --labelnum 3".split()
EPOCHS = [*BOTH, "--pretrain_epochs", 1, "--selftrain_epochs", 2]
# what makes each script finish in a few steps
SHORT = {
    "train_supervised.py": ["--max_iterations", 3, "--labeled_bs", 2],
    "train_coranet.py": EPOCHS,
    "train_coranet_ovr.py": EPOCHS,
    "train_coranet_uncertainty.py": [*EPOCHS, "--looks", 2],
    "train_dmd.py": ["--max_iterations", 3],
    "train_dtml.py": ["--max_iterations", 3],
    "train_ugmcl.py": ["--max_iterations", 3],
    "train_cml.py": [*BOTH, "--pretrain_iterations", 1, "--max_iterations", 2],
    "train_bcp.py": [*BOTH, "--pretrain_iterations", 1, "--max_iterations", 2],
    "train_ssnet.py": [*BOTH, "--max_iterations", 3],
    "train_mcf.py": [*BOTH, "--max_iterations", 3],
    "train_unimatch.py": ["--max_iterations", 3, "--threshold", 0.5],
    "train_admt.py": [
        *["--max_iterations", 4, "--unlabeled_bs", 3, "--threshold", 0.5],
        *["--longest_turn", 1, "--consistency", 0.1],
    ],
}
SHORT |= {
    "train_dtc.py": ["--max_iterations", 3, "--consistency", 0.1],
    "train_mcnet.py": ["--max_iterations", 3, "--consistency", 0.1, "--lambda_seg", 3],
    "train_urpc.py": ["--max_iterations", 3],
    "train_sassnet.py": ["--max_iterations", 3, "--discriminator_filters", 4],
}
SHORT |= {
    "train_mt.py": ["--max_iterations", 3],
    "train_uamt.py": ["--max_iterations", 3],
    "train_ict.py": ["--max_iterations", 3],
    "train_tcse.py": ["--max_iterations", 3],
    "train_pi.py": ["--max_iterations", 3],
    "train_tempens.py": ["--max_iterations", 3],
}
SHORT |= {
    "train_cps.py": ["--max_iterations", 3],
    "train_dan.py": ["--max_iterations", 3, "--discriminator_filters", 4],
    "train_entropy.py": ["--max_iterations", 3],
    "train_vat.py": ["--max_iterations", 3],
    "train_pseudo.py": ["--max_iterations", 3],
}
ALEATORIC = ["--uncertainty", "aleatoric"]
CORANET = [
    ["--preset", "released"],
    ["--pretrain_epochs", 2],
    ["--selftrain_epochs", 1],
    ["--passes", 2],
    ["--unlabeled_bs", 1],
    ["--relabel_epochs", 1],
    ["--relabel_stride", 32, 16, 16],
    ["--ema_decay", 0.4],
]
OF_CONSISTENCY = [
    ["--max_iterations", 2],
    ["--lr_step", 1],
    ["--decay", "poly"],
    ["--consistency", 0],
    ["--rampup_share", 0],
]
# every flag by itself, or with those that it needs, against the same command without it
FLAGS = {
    "train_supervised.py": [
        ["--max_iterations", 2],
        ["--lr_step", 1],
        ["--base_lr", 0.1],
        ["--optimizer", "adam"],
        ["--normalization", "groupnorm"],
        ["--net", "unet3d"],
        ["--net", "resnet18", "--patch", 48, 16, 16],
        ["--augment", "crop"],
        ["--downsample", 2],
        ["--n_filters", 4],
        ["--labeled_bs", 1],
        ["--labelnum", 2],
        ["--precision", "bf16", "--patch", 64, 16, 16],
        ["--seed", 1],
        ["--accumulate", 2],
    ],
    "train_coranet.py": [
        *CORANET,
        ["--alpha", 1],
        ["--updates", "joint"],
        ["--masks", "relabelling"],
        ["--region_means", 1],
        *(["--train", row] for row in ("seg", "seg+st", "seg+st_mask")),
        *(["--train", row] for row in ("seg+mt", "seg+mt_mask", "seg+mt_uncertain")),
    ],
    "train_coranet_ovr.py": [
        *CORANET,
        ["--alpha", 1],
        ["--updates", "joint"],
        ["--masks", "relabelling"],
        ["--region_means", 1],
        ["--train", "seg+st"],
    ],
    "train_coranet_uncertainty.py": [
        ["--preset", "released"],
        ["--train", "seg+st_mask"],
        ["--updates", "joint"],
        ["--region_means", 1],
        ["--uncertainty", "mcdropout"],
        ALEATORIC,
        ["--looks", 3],
        ["--certain_confidence", 0.5],
        ["--certain_sd", 1, *ALEATORIC],
    ],
    "train_dmd.py": [
        ["--max_iterations", 2],
        ["--lr_step", 1],
        ["--unlabeled_bs", 1],
        ["--distill", "kl"],
        ["--temperature", 4],
        ["--lambda_distill", 0],
    ],
    "train_dtml.py": [
        ["--preset", "released"],
        ["--max_iterations", 2],
        ["--lr_step", 1],
        ["--unlabeled_bs", 1],
        ["--unlabeled", 0],
        ["--consistency", 0],
        ["--rampup", "printed"],
        *(["--dis_loss", loss] for loss in ("l2", "both", "l1")),
    ],
    "train_ugmcl.py": [
        ["--preset", "released"],
        ["--lr_step", 1],
        ["--terms", "dis"],
        ["--terms", "itc", "ctc"],
        ["--beta", 0],
        ["--consistency", 10],
        ["--rampup", "printed"],
        ["--unlabeled", 0],
        ["--threshold_start", 0.5],
        ["--passes", 1],
        ["--ema_decay", 0.4],
    ],
    "train_bcp.py": [
        ["--pretrain_iterations", 2],
        ["--max_iterations", 1],
        ["--lr_step", 1],
        ["--alpha", 0],
        ["--beta", 0.4],
        ["--ema_decay", 0],
    ],
    "train_ssnet.py": [
        ["--preset", "released"],
        ["--max_iterations", 2],
        ["--lr_step", 1],
        ["--consistency", 0.1],
        ["--rampup_share", 1],
        ["--xi", 0.1],
        ["--epsilon", 1],
        ["--separation", 0],
        ["--prototypes", 8],
    ],
    "train_mcf.py": [
        ["--max_iterations", 2],
        ["--lr_step", 1],
        ["--consistency", 1],
        ["--rampup_share", 0],
        ["--rectification", 0],
        ["--temperature", 1],
    ],
    "train_cml.py": [
        ["--preset", "released"],
        ["--pretrain_iterations", 2],
        ["--max_iterations", 1],
        ["--lr_step", 1],
        ["--lambda_u", 0],
        ["--lambda_dis", 0],
        ["--beta", 0.4],
        ["--framework", "cfl"],
        ["--framework", "cps"],
    ],
    "train_unimatch.py": [
        ["--max_iterations", 2],
        ["--unlabeled_bs", 1],
        ["--threshold", 0.6],
        ["--lambda_s", 0],
        ["--lambda_f", 0],
        ["--jitter", 0],
        ["--noise", 1],
        ["--box_probability", 0],
        ["--beta", 1],
    ],
    "train_admt.py": [
        ["--max_iterations", 2],
        ["--consistency", 10],
        ["--rampup_share", 0],
        ["--ema_decay", 0.4, "--copy_steps", 0],
        ["--copy_steps", 0],
        ["--longest_turn", 19],
        ["--threshold", 0.6],
        ["--loss_u", "dice"],
        ["--ensemble", "mean"],
        ["--vote", "unmixed"],
        ["--vote", "none"],
        ["--jitter", 0],
        ["--noise", 1],
        ["--beta", 1],
    ],
    "train_dtc.py": [
        ["--preset", "released"],
        ["--max_iterations", 2],
        ["--lr_step", 1],
        ["--unlabeled_bs", 1],
        ["--consistency", 0],
        ["--rampup_share", 0],
        ["--lambda_dis", 0],
    ],
    "train_mcnet.py": [
        ["--preset", "released"],
        ["--max_iterations", 2],
        ["--lr_step", 1],
        ["--unlabeled_bs", 1],
        ["--decoders", 3],
        ["--consistency", 0],
        ["--rampup_share", 0],
        ["--temperature", 1],
        ["--lambda_seg", 0],
    ],
    "train_urpc.py": [
        ["--max_iterations", 2],
        ["--lr_step", 1],
        ["--decay", "poly"],
        ["--unlabeled_bs", 1],
        ["--consistency", 0],
        ["--rampup_share", 0],
    ],
    "train_sassnet.py": [
        ["--max_iterations", 2],
        ["--lr_step", 1],
        ["--unlabeled_bs", 1],
        ["--consistency", 1],
        ["--rampup_share", 0],
        ["--lambda_dis", 0],
        ["--discriminator_lr", 0.1],
        ["--discriminator_filters", 8],
    ],
}


# classes of the networks on slices, where there are others than UNet
KINDS = {
    "train_coranet.py": {"RonnebergerUNet"},
    "train_coranet_ovr.py": {"OneVsRest"},
    "train_coranet_uncertainty.py": {"RonnebergerUNet"},
    "train_mcnet.py": {"SeveralDecoders"},
    "train_mcf.py": {"UNet", "ResNet34Slices"},
    "train_urpc.py": {"MultiScale"},
    "train_dan.py": {"UNet", "MapImageDiscriminator"},
    "train_sassnet.py": {"UNet", "MapImageDiscriminator"},
}
FLAGS |= {
    "train_mt.py": [
        *OF_CONSISTENCY,
        ["--unlabeled_bs", 1],
        ["--warmup_share", 0.5],
        ["--ema_decay", 0.4],
        ["--consistency_on", "all"],
    ],
    "train_uamt.py": [
        *OF_CONSISTENCY,
        ["--preset", "released"],
        ["--ema_decay", 0.4],
        ["--consistency_on", "unlabeled"],
        ["--threshold_start", 0.5],
        ["--passes", 1],
    ],
    "train_ict.py": [
        *OF_CONSISTENCY,
        ["--unlabeled_bs", 4],
        ["--ema_decay", 0.4],
        ["--alpha", 1],
        ["--mix", "logits"],
    ],
    "train_tcse.py": [
        *OF_CONSISTENCY,
        ["--preset", "released"],
        ["--ema_decay", 0.4],
        ["--consistency_on", "unlabeled"],
    ],
    "train_pi.py": OF_CONSISTENCY,
    "train_tempens.py": [*OF_CONSISTENCY, ["--ensemble_decay", 0]],
}
OF_PATCHES = ["--patch", 32, 32, 32, "--adversarial", 1, "--discriminator_filters", 4]
FLAGS |= {
    "train_cps.py": [
        ["--max_iterations", 2],
        ["--lr_step", 1],
        ["--decay", "poly"],
        ["--unlabeled_bs", 1],
        ["--consistency", 0],
        ["--rampup_share", 1],
        ["--consistency_on", "unlabeled"],
    ],
    "train_dan.py": [
        *(flag for flag in OF_CONSISTENCY if flag != ["--consistency", 0]),
        ["--consistency", 1],
        ["--unlabeled_bs", 1],
        ["--discriminator_lr", 0.1],
        ["--discriminator_filters", 8],
    ],
    "train_entropy.py": [
        *OF_CONSISTENCY,
        ["--unlabeled_bs", 1],
        ["--entropy_on", "unlabeled"],
        ["--adversarial", 1, "--discriminator_filters", 4, "--patch", 32, 32, 32],
        ["--discriminator_lr", 0.1, *OF_PATCHES],
        ["--discriminator_filters", 8, *OF_PATCHES[:-2]],
    ],
    "train_vat.py": [
        *OF_CONSISTENCY,
        ["--unlabeled_bs", 1],
        ["--distance", "dice"],
        ["--xi", 1],
        ["--epsilon", 1],
    ],
    "train_pseudo.py": [
        ["--max_iterations", 2],
        ["--lr_step", 1],
        ["--decay", "poly"],
        ["--unlabeled_bs", 1],
        ["--consistency", 0],
        ["--rampup_from", 0.5],
        ["--rampup_share", 0.5],
        ["--threshold", 0.6],
    ],
}

# those that are resumed in bf16, which is slow on many machines
IN_BF16 = ("train_supervised.py", "train_mt.py")

# runs the script of this name with each of the commands on stdin
ONE_BY_ONE = """
import importlib, json, sys
sys.path.insert(0, sys.argv[1])
main = importlib.import_module(sys.argv[2]).main
for command in json.load(sys.stdin):
    main(command)
"""


def without(flag):
    """The flags of the run that one with `flag` is compared with."""
    if "--patch" in flag:
        return (*flag[flag.index("--patch") :], "--precision", "fp32")
    return tuple(ALEATORIC) if flag[2:] == ALEATORIC else ()


def arguments(name, root, runs, *extra):
    return [*SMALL, *SHORT[name], "--root", root, "--runs", runs, *extra]


def folder(runs, name, labelnum=3):
    return runs / "LA" / f"{name[6:-3]}_{labelnum}" / "seed1337"


def records(path):
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return [
        {key: value for key, value in line.items() if not key.startswith("time/")} for line in lines
    ]


def same(a, b):
    """Whether two checkpoints hold the same bits everywhere."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return torch.equal(a, b) if torch.is_tensor(a) else a == b


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """The networks that a script's short run with some flags ends in; all commands of a script
    share one process.
    """
    root, runs = tmp_path_factory.mktemp("data"), tmp_path_factory.mktemp("runs")
    make_tiny_la(root)

    def label(name, flags):
        return name + ("_".join(map(str, flags)).replace("--", "") or "plain")

    @functools.cache
    def run_all(name):
        variants = {(), *map(tuple, FLAGS[name]), *(without(flag) for flag in FLAGS[name])}
        commands = [
            arguments(name, root, runs, *flags, "--name", label(name, flags)) for flags in variants
        ]
        done = subprocess.run(
            [sys.executable, "-c", ONE_BY_ONE, ROOT / "code", name.removesuffix(".py")],
            input=json.dumps([list(map(str, command)) for command in commands]),
            capture_output=True,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            check=False,
        )
        assert done.returncode == 0, done.stderr

    @functools.cache
    def call(name, *flags):
        run_all(name)
        (path,) = (runs / "LA" / label(name, flags)).glob("*/last.pth")
        losses = [line["loss/loss"] for line in records(path.parent)]
        assert np.isfinite(losses).all()
        state = torch.load(path, weights_only=True)
        return {key: state[key] for key in state["networks"]}

    return call


@pytest.mark.parametrize("name", SHORT)
def test_trains_and_falls(name, tiny_la, tmp_path, script):
    """The loss on a few easy volumes goes down within the run, so gradients reach the weights."""
    longer, term = ["--max_iterations", 30], "loss/loss"
    if "coranet" in name:
        longer, term = ["--pretrain_epochs", 12], "loss/loss_crm"
    elif name == "train_cml.py":
        longer, term = ["--pretrain_iterations", 30], "loss/loss_l"
    elif name == "train_ssnet.py":
        longer += ["--base_lr", 0.1, "--consistency", 0.1]
        term = "loss/loss_dice"
    elif name == "train_bcp.py":
        longer, term = ["--pretrain_iterations", 30, "--max_iterations", 0], "loss/loss"
    done = script(name, *arguments(name, tiny_la, tmp_path / "runs", "--base_lr", 0.02, *longer))
    assert done.returncode == 0, done.stderr
    losses = [line[term] for line in records(folder(tmp_path / "runs", name))]
    assert np.mean(losses[-4:]) < 0.85 * np.mean(losses[:3])


@pytest.fixture(scope="module")
def few_atria(tmp_path_factory):
    """LA with five real training volumes."""
    source = real_data("LA")
    root = tmp_path_factory.mktemp("atria")
    (root / FOLDER).symlink_to(source / FOLDER)
    names = (source / "train.list").read_text().split()
    (root / "train.list").write_text("\n".join(names[:5]) + "\n")
    return root


@pytest.mark.parametrize("name", SHORT)
def test_twenty_steps_on_real_volumes(name, few_atria, tmp_path, script):
    longer = ["--downsample", 2, "--max_iterations", 20]
    if "coranet" in name:
        longer[-2:] = ["--pretrain_epochs", 5, "--selftrain_epochs", 5]
    elif name in ("train_cml.py", "train_bcp.py"):
        longer += ["--max_iterations", 10, "--pretrain_iterations", 10]
    done = script(name, *arguments(name, few_atria, tmp_path / "runs", *longer))
    assert done.returncode == 0, done.stderr
    losses = [line["loss/loss"] for line in records(folder(tmp_path / "runs", name))]
    assert len(losses) == 20
    assert np.isfinite(losses).all()


@pytest.mark.parametrize(
    ("name", "flag"), [(name, flag) for name, flags in FLAGS.items() for flag in flags], ids=str
)
def test_every_flag_has_an_effect(name, flag, weights):
    assert not same(weights(name, *flag), weights(name, *without(flag))), (
        f"{flag[0]} changed nothing"
    )


@pytest.mark.parametrize("name", SHORT)
def test_trains_on_slices_of_several_classes(name, tiny_acdc, tmp_path, script):
    """A U-Net, or one a class, trains on ACDC's layout, and `test_ACDC.py` scores the run."""
    runs = tmp_path / "runs"
    slices = ["--dataset", "ACDC", "--patch", 32, 32]
    done = script(name, *arguments(name, tiny_acdc, runs, *slices))
    assert done.returncode == 0, done.stderr
    (path,) = runs.glob("ACDC/*/*/last.pth")
    state = torch.load(path, weights_only=True)
    kinds = {spec["class"].rpartition(".")[2] for spec in state["networks"].values()}
    assert kinds == KINDS.get(name, {"UNet"})
    assert np.isfinite([line["loss/loss"] for line in records(path.parent)]).all()
    done = script("test_ACDC.py", "--run", path.parent, "--gpu", -1, "--figures", 0, "--nifti", 0)
    assert done.returncode == 0, done.stderr
    summary = json.loads((path.parent / "test" / "last" / "summary.json").read_text())
    assert list(summary["classes"]) == ["RV", "Myo", "LV"]
    assert summary["cases"] == 2


@pytest.mark.parametrize("name", SHORT)
def test_stopped_and_resumed_is_bit_identical(name, tiny_la, tmp_path, script):
    """SIGTERM in the middle, status 143, `--resume`: checkpoint and records equal an uninterrupted
    run's.
    """
    longer = ["--selftrain_epochs", 8] if "coranet" in name else ["--max_iterations", 14]
    if name in IN_BF16:
        longer += ["--precision", "bf16", "--patch", 64, 16, 16]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    done = script(name, *arguments(name, tiny_la, whole, *longer))
    assert done.returncode == 0, done.stderr
    process = Script(name, *arguments(name, tiny_la, parts, *longer))
    progress = folder(parts, name) / "metrics.jsonl"
    deadline = time.monotonic() + 60
    while not (progress.exists() and progress.read_text().count("\n") >= 5):
        assert time.monotonic() < deadline, process.wait(1).stderr
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    ended = process.wait()
    assert ended.returncode == 143, ended.stderr
    stopped = torch.load(folder(parts, name) / "last.pth", weights_only=True)["step"]
    last = torch.load(folder(whole, name) / "last.pth", weights_only=True)
    assert 0 < stopped < last["step"]
    resumed = script(name, *arguments(name, tiny_la, parts, *longer, "--resume"))
    assert resumed.returncode == 0, resumed.stderr
    again = torch.load(folder(parts, name) / "last.pth", weights_only=True)
    for state in (last, again):
        state["args"] = {k: v for k, v in state["args"].items() if k not in ("runs", "resume")}
    assert same(last, again)
    assert records(folder(whole, name)) == records(folder(parts, name))


@pytest.mark.parametrize(
    "name", ["train_supervised.py", "train_coranet.py"]
)  # the others' plumbing is the same
def test_errors_are_one_line(name, tiny_la, tmp_path, script):
    def fails(*extra, root=tiny_la):
        done = script(name, *arguments(name, root, tmp_path / "runs", *extra))
        assert done.returncode == 2, done.stderr
        assert "Traceback" not in done.stderr
        return done.stderr.strip().splitlines()[-1]

    assert "unrecognized arguments: --lr 1" in fails("--lr", 1)
    assert "nowhere: no such folder" in fails(root=tmp_path / "nowhere")
    assert "has 6 training cases" in fails("--labelnum", 99)
    with h5py.File(tiny_la / FOLDER / "CASE01" / "mri_norm2.h5", "r+") as file:
        file["image"][0, 0, 0] = np.nan
    assert "CASE01/mri_norm2.h5: image has 1 voxels that are NaN" in fails()


def test_cml_mixes_pairs(tiny_la, tmp_path, script):
    for options, message in (
        (["--labeled_bs", 3], "--labeled_bs and --unlabeled_bs must be even"),
        (["--beta", 0], "--beta 0 leaves no box"),
    ):
        done = script(
            "train_cml.py", *arguments("train_cml.py", tiny_la, tmp_path / "runs", *options)
        )
        assert done.returncode == 2
        assert message in done.stderr.splitlines()[-1]
    odd = ["--labeled_bs", 3, "--framework", "cps"]
    done = script("train_cml.py", *arguments("train_cml.py", tiny_la, tmp_path / "runs", *odd))
    assert done.returncode == 0, done.stderr


def test_a_diverging_run_names_step_and_cases(tiny_la, tmp_path, script):
    name = "train_supervised.py"
    done = script(
        name,
        *arguments(name, tiny_la, tmp_path / "runs", "--base_lr", 1e30, "--normalization", "none"),
    )
    assert done.returncode == 2
    assert "not finite: loss nan" in done.stderr.splitlines()[-1]
    assert "cases CASE" in done.stderr.splitlines()[-1]


def test_supervised_ignores_what_a_semi_supervised_run_would_read(tiny_la, tmp_path, script):
    """Files of unlabelled cases may be garbage: the supervised script never opens them."""
    for case in ("CASE03", "CASE04", "CASE05"):
        (tiny_la / FOLDER / case / "mri_norm2.h5").write_bytes(b"garbage")
    done = script(
        "train_supervised.py", *arguments("train_supervised.py", tiny_la, tmp_path / "runs")
    )
    assert done.returncode == 0, done.stderr
