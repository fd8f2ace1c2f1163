"""Trained networks as a folder that anyone can read: weights without pickle, their configuration, a
model card.

    model.safetensors   tensors of the tested networks that inference needs: <network>.<key>
    config.json         networks (class, arguments), data set (classes, spacing, preprocessing),
                        options of the training
    README.md           method, data, labels, seed, commit, metrics; how to use it
    model.pt2           on request: images to probabilities, by torch.export
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor, nn

from utils.files import write_atomically
from utils.inference import mean_probability
from utils.trained import CONFIG, FORMAT, KEYS, WEIGHTS

CARD, PROGRAM = "README.md", "model.pt2"
# CoraNet's further branches, and the distance maps' head of dual-task networks
_ONLY_FOR_TRAINING = re.compile(r"(networks\.\d+\.)?(heads\.[1-9]\d*|sdm)\.")
_FURTHER_DECODERS = re.compile(r"networks\.[1-9]\d*\.")  # of MC-Net, where the first is tested


class MeanProbability(nn.Module):
    """The tested networks as one module: `(B, C_in, *patch)` to probabilities `(B, C, *patch)`."""

    def __init__(self, networks: Sequence[nn.Module]):
        super().__init__()
        self.networks = nn.ModuleList(networks).eval()

    def forward(self, x: Tensor) -> Tensor:
        return mean_probability(self.networks)(x)


def inference_checkpoint(checkpoint: dict, names: Sequence[str]) -> dict:
    """A checkpoint of only these networks, each without the parts that only its training needs.

    Branches, heads and decoders that are not tested are left out, of the weights and of the network
    that takes them. The rest stays as it is, and so do the probabilities.
    """
    kept = {key: checkpoint[key] for key in (*KEYS, "validation", "best") if key in checkpoint}
    kept["test_networks"] = list(names)
    kept["networks"] = {}
    for name in names:
        spec = checkpoint["networks"][name]
        arguments = {**spec["kwargs"], "inference": True}
        kept["networks"][name] = {"class": spec["class"], "kwargs": arguments}
        kept[name] = dict(checkpoint[name])
        if spec["kwargs"].get("segmentation_head") is False:
            continue  # its distance maps are tested
        first_decoder = spec["kwargs"].get("test_decoder") == "first"
        for key in checkpoint[name]:
            further = first_decoder and _FURTHER_DECODERS.match(key)
            if further or _ONLY_FOR_TRAINING.match(key):
                del kept[name][key]
    return kept


def write_export(folder: Path, checkpoint: dict, card: str) -> None:
    """Write weights, configuration and card of a checkpoint from `inference_checkpoint`.

    Raises:
        UserError: a file cannot be written.
    """
    tensors = {}
    for name in checkpoint["test_networks"]:
        for key, value in checkpoint[name].items():
            # safetensors holds tensors as they lie in memory, so none may be in channels-last order
            tensors[f"{name}.{key}"] = value.contiguous()
    weights = save(tensors, {"format": "pt"})
    config: dict = {"format": FORMAT}
    for key, value in checkpoint.items():
        if key not in checkpoint["test_networks"]:
            config[key] = value
    text = json.dumps(config, indent=1, ensure_ascii=False) + "\n"
    write_atomically(folder / WEIGHTS, lambda path: path.write_bytes(weights))
    write_atomically(folder / CONFIG, lambda path: path.write_text(text, encoding="utf-8"))
    write_atomically(folder / CARD, lambda path: path.write_text(card, encoding="utf-8"))


def export_program(model: nn.Module, shape: Sequence[int], path: Path) -> float:
    """Write `model(x)`, on the CPU and in eval mode, as a program of `torch.export` for any batch
    of inputs.

    Args:
        shape: of one input, `(C_in, *patch)`.

    Returns:
        The largest difference between the program, read back, and the model on noise.

    Raises:
        UserError: the file cannot be written.
    """
    example = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    any_batch = {"x": {0: torch.export.Dim("batch", min=1)}}
    with torch.no_grad():
        program = torch.export.export(model, (example,), dynamic_shapes=any_batch)
        write_atomically(path, lambda part: _save_program(program, part))
        other = torch.cat((example, example.flip(2)))[:3]
        read_back = torch.export.load(path).module()
        return float((read_back(other) - model(other)).abs().max())


def _save_program(program, path: Path) -> None:
    with open(path, "wb") as file:  # given a path, torch insists on its ending
        torch.export.save(program, file)
