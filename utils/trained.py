"""A trained run, opened: its folder, its checkpoints, the networks that are tested, and what they were trained on."""

import argparse
import importlib
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from dataloaders import DATASETS, dataset_class, default_root
from utils.checkpoint import load_checkpoint, load_state
from utils.device import channels_last
from utils.errors import UserError
from utils.inference import usual_stride


def load_networks(
    path: str | Path, device: torch.device | str, only: str | None = None
) -> tuple[list[nn.Module], dict]:
    """The networks of a checkpoint that are tested, in eval mode on ``device``, and the checkpoint
    itself (on the CPU).

    ``path`` is a checkpoint's file, or a folder that ``code/export.py`` wrote.

    ``only`` names one of its networks to take in their place.

    The checkpoint names the class and the constructor's arguments of each network (``networks``),
    and which of them are tested (``test_networks``). It is read with ``weights_only=True`` and
    classes come from the package ``networks`` alone, so a checkpoint of unknown origin cannot run
    code.

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
    keys = ("step", "last", "args", "networks", "test_networks")
    if not isinstance(checkpoint, dict) or not checkpoint.keys() >= set(keys):
        raise UserError(f"{path}: not a checkpoint of these scripts, which hold {', '.join(keys)}")
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
        module, _, cls = spec["class"].rpartition(".")
        kwargs = dict(spec["kwargs"])
    except (KeyError, TypeError, ValueError):
        raise UserError(
            f"{path}: incomplete, it lists the network {name!r} but does not hold it"
        ) from None
    if kwargs.get("upsampling") == "trilinear":  # as it was called before there were 2-D networks
        kwargs["upsampling"] = "linear"
    try:
        if module.split(".")[0] != "networks":
            raise ImportError("classes come from the package networks alone")
        cls = getattr(importlib.import_module(module), cls)
        if not (isinstance(cls, type) and issubclass(cls, nn.Module)):
            raise TypeError("it is no network")
        network = cls(**kwargs)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise UserError(
            f"{path}: its network {spec['class']} cannot be built here: {error}"
        ) from None
    load_state(path, name, network, state)
    return network.to(memory_format=channels_last(network.dims))


@dataclass(frozen=True)
class Trained:
    """The networks of a checkpoint with what it says of their use.

    Attributes:
        networks: those that are tested, in eval mode on their device.
        dataset: name of ``--dataset`` in training.
        data: the data set's description (:meth:`dataloaders.volumes.Volumes.description`).
        patch: extents of a window, or of a slice.
        downsample: as ``--downsample`` in training.
        step, last: steps done, and of a complete run.
    """

    networks: list[nn.Module]
    dataset: str
    data: dict
    patch: list[int]
    downsample: int
    step: int
    last: int

    @property
    def num_classes(self) -> int:
        return self.data["num_classes"]

    @property
    def stride(self) -> list[int] | None:
        return usual_stride(self.data["stride"], self.patch, self.downsample)


def described(checkpoint: dict, path: str | Path) -> dict:
    """What a checkpoint says of its data; of an old one that says nothing, what the data set in its
    folder says.

    Raises:
        UserError: there is no data set of its name.
    """
    if checkpoint.get("dataset"):
        return checkpoint["dataset"]
    name, root = checkpoint["args"]["dataset"], checkpoint["args"].get("root")
    if name not in DATASETS:
        raise UserError(f"{path}: trained on {name}, of which nothing is known here")
    return dataset_class(name, root or default_root(name)).description()


def load_trained(path: str | Path, device: torch.device | str, only: str | None = None) -> Trained:
    """:func:`load_networks`, and what the checkpoint says of its data (:func:`described`).

    Raises:
        UserError: as :func:`load_networks`, or a checkpoint that says too little.
    """
    networks, checkpoint = load_networks(path, device, only)
    try:
        args, data = checkpoint["args"], described(checkpoint, path)
        said = {"dataset": args["dataset"], "data": data, "patch": list(args["patch"])}
        trained = Trained(
            networks,
            **said,
            downsample=args["downsample"],
            step=checkpoint["step"],
            last=checkpoint["last"],
        )
        if len(trained.patch) != networks[0].dims or len(trained.stride or ()) != (
            3 if networks[0].dims == 3 else 0
        ):
            raise ValueError
    except (KeyError, TypeError, ValueError):
        raise UserError(
            f"{path}: does not say what it was trained on: its args and dataset are incomplete"
        ) from None
    return trained


SELECTION = {"last": "last iteration; nothing was selected", "best": "best on validation cases"}


UNFINISHED = "the run is unfinished"


def find_run(folder: str | None, runs: str, dataset: str, name: str, seed: int) -> Path:
    """The folder of a run: ``folder``, or ``<runs>/<dataset>/<name>/seed<seed>``.

    Raises:
        UserError: no such run; names those that there are.
    """
    found = Path(folder) if folder else Path(runs) / dataset / name / f"seed{seed}"
    if found.is_dir():
        return found
    others = sorted(str(path.parent) for path in Path(runs).glob("*/*/seed*/args.json"))
    if not others:
        raise UserError(
            f"{found}: no such run, and {runs}/ holds none; train it, or name another folder with "
            "--runs"
        )
    listed = ", ".join(others[:8]) + (", …" if len(others) > 8 else "")
    raise UserError(f"{found}: no such run; train it, or name one with --run: {listed}")


def find_checkpoint(run: Path, which: str) -> Path:
    """``last.pth``, ``best.pth`` or, of a number, ``step_<number>.pth`` of a run.

    Raises:
        UserError: the run has none yet, was not validated, or did not keep this step.
    """
    if which.isdecimal():
        path = Path(run) / f"step_{which}.pth"
        if path.is_file():
            return path
        kept = sorted(int(other.stem[5:]) for other in Path(run).glob("step_*.pth"))
        raise UserError(
            f"{path}: not there; kept steps: "
            f"{', '.join(map(str, kept)) or 'none, train with --keep_every'}"
        )
    path = Path(run) / f"{which}.pth"
    if path.is_file():
        return path
    if which == "best" and (Path(run) / "last.pth").is_file():
        raise UserError(
            f"{path}: not there; it takes training with --val_fraction or --val_from list"
        )
    raise UserError(
        f"{run}: no checkpoint yet; train it, or go on with its training script and --resume"
    )


def unseen(data, checkpoint):
    """Indices of a train split's samples whose label neither training nor the choice of a
    checkpoint has seen: from the others nothing is learnt of a network."""
    seen = set(data.labeled(checkpoint["args"]["labelnum"]))
    held = checkpoint.get("validation", {}).get("cases", ())
    return [
        index
        for index in range(len(data.names))
        if index not in seen and data.units[index] not in held
    ]


def selection(checkpoint, name, folder):
    """The rule that chose a checkpoint of a run's folder, which `--checkpoint` called by this name,
    in words.
    """
    if name == "last" and checkpoint["step"] < checkpoint["last"]:
        return UNFINISHED
    if name != "best":
        return SELECTION.get(name, "a step on the way")
    held, best = checkpoint["validation"], checkpoint["best"]
    words = (
        f"{SELECTION['best']}: {len(held['cases'])} {held['from']}, Dice {100 * best['dice']:.2f}"
    )
    last = folder / "last.pth"
    unfinished = last.is_file() and load_checkpoint(last)["step"] < checkpoint["last"]
    return f"{words}; {UNFINISHED}" if unfinished else words


def checkpoint_name(text):
    """The argparse type of `--checkpoint`."""
    if text not in SELECTION and not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text} is not {', '.join(SELECTION)} or a step's number")
    return text


FORMAT = 1
WEIGHTS, CONFIG = "model.safetensors", "config.json"


_KEYS = ("step", "last", "args", "networks", "test_networks", "dataset")


def read_export(folder: str | Path) -> dict:
    """An exported folder in the form of a checkpoint, so that whatever takes one takes the other.

    Raises:
        UserError: not such a folder, damaged, or of a later format.
    """
    folder = Path(folder)
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        tensors = load_file(folder / WEIGHTS)
    except FileNotFoundError as error:
        raise UserError(
            f"{error.filename or folder / WEIGHTS}: not there, so {folder} is no exported model"
        ) from None
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(
            f"{folder}: damaged or not an exported model ({str(error).splitlines()[0][:120]})"
        ) from None
    kinds = {"format": int, "args": dict, "networks": dict, "test_networks": list, "dataset": dict}
    if not isinstance(config, dict) or not all(
        isinstance(config.get(key), kind) for key, kind in kinds.items()
    ):
        raise UserError(f"{folder / CONFIG}: not a configuration that code/export.py wrote")
    if config["format"] > FORMAT:
        raise UserError(
            f"{folder}: of format {config['format']}, made by a later version; update this one"
        )
    states = {name: {} for name in config["test_networks"]}
    for key, value in tensors.items():
        name, _, rest = key.partition(".")
        if name not in states:
            raise UserError(f"{folder / WEIGHTS}: holds {key}, of no network in {CONFIG}")
        states[name][rest] = value
    return config | states
