"""A trained run, opened: its folder, its checkpoints, the networks that are tested, and the data
that they were trained on.
"""

import argparse
import importlib
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from dataloaders.volumes import Volumes
from utils.checkpoint import load_checkpoint, load_state
from utils.device import channels_last
from utils.errors import UserError
from utils.inference import usual_stride

SELECTION = {"last": "last iteration; nothing was selected", "best": "best on validation cases"}
UNFINISHED = "the run is unfinished"
KEYS = ("step", "last", "args", "dataset", "networks", "test_networks")  # of every checkpoint
FACTS = (  # of a data set that prediction needs
    "num_classes",
    "class_names",
    "spacing",
    "stride",
    "keep_largest",
    "file_axes",
    "image_axes",
    "preprocessing",
)

# an exported model: its files, and the version of their layout
WEIGHTS, CONFIG = "model.safetensors", "config.json"
FORMAT = 2

# ------------------------------------------------------------------ the folder of a run


def find_run(folder: str | None, runs: str, dataset: str, name: str, seed: int) -> Path:
    """The folder of a run: `folder`, or `<runs>/<dataset>/<name>/seed<seed>`.

    Raises:
        UserError: no such run; names those that there are.
    """
    found = Path(folder) if folder else Path(runs) / dataset / name / f"seed{seed}"
    if found.is_dir():
        return found
    others = sorted(str(path.parent) for path in Path(runs).glob("*/*/seed*/last.pth"))
    if not others:
        raise UserError(
            f"{found}: no such run, and {runs}/ holds none; train it, or name another folder with "
            "--runs"
        )
    listed = ", ".join(others[:8]) + (", …" if len(others) > 8 else "")
    raise UserError(f"{found}: no such run; train it, or name one with --run: {listed}")


def find_checkpoint(run: str | Path, which: str) -> Path:
    """`last.pth`, `best.pth` or, for a number, `step_<number>.pth` of a run.

    Raises:
        UserError: the run has none yet, was not validated, or did not keep this step.
    """
    run = Path(run)
    path = run / (f"step_{which}.pth" if which.isdecimal() else f"{which}.pth")
    if path.is_file():
        return path
    if which.isdecimal():
        steps = sorted(int(other.stem.removeprefix("step_")) for other in run.glob("step_*.pth"))
        kept = ", ".join(map(str, steps)) or "none, train with --keep_every"
        raise UserError(f"{path}: not there; kept steps: {kept}")
    if which == "best" and (run / "last.pth").is_file():
        raise UserError(
            f"{path}: not there; training writes it with --val_fraction or --val_from list"
        )
    seeds = sorted(path.parent.name for path in run.glob("seed*/last.pth"))
    if seeds:
        raise UserError(f"{run}: a folder of seeds; name one of its runs: {run / seeds[0]}")
    raise UserError(
        f"{run}: no checkpoint yet; train it, or go on with its training script and --resume"
    )


def checkpoint_name(text: str) -> str:
    """The argparse type of `--checkpoint`."""
    if text not in SELECTION and not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text} is not {', '.join(SELECTION)} or a step's number")
    return text


def selection(checkpoint: dict, name: str, folder: Path) -> str:
    """The rule that chose a checkpoint, in words.

    Args:
        checkpoint: as it was loaded.
        name: by which `--checkpoint` called it.
        folder: of its run.
    """
    if name == "last" and checkpoint["step"] < checkpoint["last"]:
        return UNFINISHED
    if name != "best":
        return SELECTION.get(name, "a step on the way")
    held, dice = checkpoint["validation"], checkpoint["best"]["dice"]
    rule = SELECTION["best"]
    words = f"{rule}: {len(held['cases'])} {held['from']}, Dice {100 * dice:.2f}"
    last = folder / "last.pth"
    unfinished = last.is_file() and load_checkpoint(last)["step"] < checkpoint["last"]
    return f"{words}; {UNFINISHED}" if unfinished else words


# ------------------------------------------------------------------ its networks and its data


def load_networks(
    path: str | Path, device: torch.device | str, only: str | None = None
) -> tuple[list[nn.Module], dict]:
    """The networks of a checkpoint that are tested, in eval mode on `device`, and the checkpoint
    itself (on the CPU).

    The checkpoint names the class and the constructor's arguments of each network (`networks`), and
    which of them are tested (`test_networks`). It is read with `weights_only=True`, and classes
    come only from the package `networks`, so a checkpoint of unknown origin cannot run code.

    Args:
        path: a checkpoint's file, or a folder that `code/export.py` wrote.
        device: where the networks are put.
        only: name of the one network to take, whether it is tested or not.

    Raises:
        UserError: no such file, not a checkpoint, no network of that name, a class that does not
            exist, or weights that do not fit it.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(
            f"{path}: no such checkpoint; train first (python code/train_<method>.py) or name "
            "another run"
        )
    checkpoint = read_export(path) if path.is_dir() else load_checkpoint(path)
    if not isinstance(checkpoint, dict) or not checkpoint.keys() >= set(KEYS):
        raise UserError(f"{path}: not a checkpoint of these scripts, which hold {', '.join(KEYS)}")
    if not checkpoint["test_networks"]:
        raise UserError(f"{path}: lists no network to test")
    if only is not None and only not in checkpoint["networks"]:
        raise UserError(
            f"{path}: holds no network {only!r}; choose from {', '.join(checkpoint['networks'])}"
        )
    names = checkpoint["test_networks"] if only is None else [only]
    return [_build(checkpoint, name, path).to(device).eval() for name in names], checkpoint


def _build(checkpoint: dict, name: str, path: Path) -> nn.Module:
    try:
        state, spec = checkpoint[name], checkpoint["networks"][name]
        module, _, class_name = spec["class"].rpartition(".")
        kwargs = dict(spec["kwargs"])
    except (KeyError, TypeError, ValueError):
        raise UserError(
            f"{path}: incomplete, it lists the network {name!r} but does not hold it"
        ) from None
    try:
        network = _network_class(module, class_name)(**kwargs)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise UserError(
            f"{path}: its network {spec['class']} cannot be built here: {error}"
        ) from None
    load_state(path, name, network, state)
    return network.to(memory_format=channels_last(network.dims))


def _network_class(module: str, name: str) -> type[nn.Module]:
    if module.split(".")[0] != "networks":
        raise ImportError("classes come only from the package networks")
    found = getattr(importlib.import_module(module), name)
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        raise TypeError("it is no network")
    return found


@dataclass(frozen=True)
class Trained:
    """The networks of a checkpoint, and how they are used.

    Attributes:
        networks: those that are tested, in eval mode on their device.
        dataset: name of `--dataset` in training.
        data: the data set's description (`dataloaders.volumes.Volumes.description`).
        patch: extents of a window, or of a slice.
        downsample: as `--downsample` in training.
        step, last: steps done, and of a complete run.
        checkpoint: as it was loaded.
    """

    networks: list[nn.Module]
    dataset: str
    data: dict
    patch: list[int]
    downsample: int
    step: int
    last: int
    checkpoint: dict

    @property
    def num_classes(self) -> int:
        return self.data["num_classes"]

    @property
    def stride(self) -> list[int] | None:
        return usual_stride(self.data["stride"], self.patch, self.downsample)


def load_trained(path: str | Path, device: torch.device | str, only: str | None = None) -> Trained:
    """`load_networks`, and what the checkpoint says of its data.

    Raises:
        UserError: the errors of `load_networks`, or a checkpoint that says too little.
    """
    networks, checkpoint = load_networks(path, device, only)
    args, data = checkpoint["args"], checkpoint["dataset"]
    try:
        trained = Trained(
            networks,
            dataset=args["dataset"],
            data={fact: data[fact] for fact in FACTS},
            patch=list(args["patch"]),
            downsample=args["downsample"],
            step=checkpoint["step"],
            last=checkpoint["last"],
            checkpoint=checkpoint,
        )
        dims = networks[0].dims
        if len(trained.patch) != dims:
            raise ValueError(f"a patch of {len(trained.patch)} axes for a network of {dims}")
        if dims == 3 and len(trained.stride) != 3:
            raise ValueError(f"a stride of {len(trained.stride)} axes")
    except (KeyError, TypeError, ValueError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else error
        raise UserError(
            f"{path}: does not say what it was trained on: its args and dataset are incomplete "
            f"({reason})"
        ) from None
    return trained


def unseen(data: Volumes, checkpoint: dict) -> list[int]:
    """Indices of a train split's samples whose label neither training nor the choice of a
    checkpoint has seen: only these say how good a network is.
    """
    seen = set(data.labeled(checkpoint["args"]["labelnum"]))
    held = checkpoint.get("validation", {}).get("cases", ())
    return [
        index
        for index in range(len(data.names))
        if index not in seen and data.units[index] not in held
    ]


# ------------------------------------------------------------------ an exported model


def read_export(folder: str | Path) -> dict:
    """An exported folder in the form of a checkpoint, so that whatever takes one takes the other.

    Raises:
        UserError: not such a folder, damaged, or of another format.
    """
    folder = Path(folder)
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        tensors = load_file(folder / WEIGHTS)
    except FileNotFoundError as error:
        missing = error.filename or folder / WEIGHTS
        raise UserError(f"{missing}: not there, so {folder} is no exported model") from None
    except (OSError, ValueError, SafetensorError) as error:
        reason = str(error).splitlines()[0][:120]
        raise UserError(f"{folder}: damaged or not an exported model ({reason})") from None
    kinds = {"format": int, "args": dict, "networks": dict, "test_networks": list, "dataset": dict}
    if not isinstance(config, dict) or not all(
        isinstance(config.get(key), kind) for key, kind in kinds.items()
    ):
        raise UserError(f"{folder / CONFIG}: not a configuration that code/export.py wrote")
    found = config["format"]
    if found > FORMAT:
        raise UserError(f"{folder}: of format {found}, made by a later version; update this one")
    if found < FORMAT:
        raise UserError(f"{folder}: of format {found}, made by an earlier version; export it again")
    states = {name: {} for name in config["test_networks"]}
    for key, value in tensors.items():
        name, _, rest = key.partition(".")
        if name not in states:
            raise UserError(f"{folder / WEIGHTS}: holds {key}, of no network in {CONFIG}")
        states[name][rest] = value
    return config | states
