"""Trained networks as a folder that anyone can read: weights without pickle, what they need to be
used, a model card.

model.safetensors   the tensors of the networks that are tested, and of these what inference needs: <network>.<key>
config.json         networks (class, arguments), data set (classes, spacing, preprocessing), options of the training
README.md           method, data, labels, seed, commit, metrics; how to use it
model.pt2           on request: images (B, 1, *patch) to probabilities (B, C, *patch), by torch.export
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save
from torch import nn

from dataloaders.hold_out import SOURCES
from utils.files import write_atomically
from utils.metrics import NAMES, OVERLAPS
from utils.trained import CONFIG, FORMAT, KEYS, WEIGHTS

CARD, PROGRAM = "README.md", "model.pt2"
_TRAINING_ALONE = re.compile(
    r"(networks\.\d+\.)?(heads\.[1-9]\d*|sdm)\."
)  # CoraNet's branches, dual-task heads


def inference_checkpoint(checkpoint: dict, names: Sequence[str]) -> dict:
    """A checkpoint of these networks alone, each without what only its training needs.

    A branch or head that is not tested is left out, of the weights and of the network that takes
    them; all else stays, so that the probabilities do.
    """
    kept = {key: checkpoint[key] for key in (*KEYS, "validation", "best") if key in checkpoint}
    kept["test_networks"], kept["networks"] = list(names), {}
    for name in names:
        spec = checkpoint["networks"][name]
        kept["networks"][name] = {
            "class": spec["class"],
            "kwargs": {**spec["kwargs"], "inference": True},
        }
        headless = (
            spec["kwargs"].get("segmentation_head") is False
        )  # its distance maps are what is tested
        kept[name] = {
            key: value
            for key, value in checkpoint[name].items()
            if headless or not _TRAINING_ALONE.match(key)
        }
    return kept


def write_export(folder: Path, checkpoint: dict, card: str) -> None:
    """Weights, configuration and card of what :func:`inference_checkpoint` gave.

    Raises:
        UserError: a file cannot be written.
    """
    names = checkpoint["test_networks"]
    # safetensors holds tensors as they lie in memory, so none may be in channels-last order
    tensors = {
        f"{name}.{key}": value.contiguous()
        for name in names
        for key, value in checkpoint[name].items()
    }
    config = {"format": FORMAT} | {
        key: value for key, value in checkpoint.items() if key not in names
    }
    text = json.dumps(config, indent=1, ensure_ascii=False) + "\n"
    weights = save(tensors, {"format": "pt"})
    write_atomically(folder / WEIGHTS, lambda path: path.write_bytes(weights))
    write_atomically(folder / CONFIG, lambda path: path.write_text(text, encoding="utf-8"))
    write_atomically(folder / CARD, lambda path: path.write_text(card, encoding="utf-8"))


def export_program(model: nn.Module, patch: Sequence[int], path: Path) -> float:
    """Write ``model(x)``, on the CPU and in eval mode, as a program of ``torch.export`` for any
    batch of patches.

    Returns:
        The largest difference between the program, read back, and the model on noise.

    Raises:
        UserError: the file cannot be written.
    """
    example = torch.randn(2, 1, *patch, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        program = torch.export.export(
            model, (example,), dynamic_shapes={"x": {0: torch.export.Dim("batch", min=1)}}
        )
        write_atomically(path, lambda part: _save_program(program, part))
        other = torch.cat((example, example.flip(2)))[:3]
        return float((torch.export.load(path).module()(other) - model(other)).abs().max())


def _save_program(program, path: Path) -> None:
    with open(path, "wb") as file:  # given a path, torch insists on its ending
        torch.export.save(program, file)


def model_card(
    checkpoint: dict, selection: str, environment: dict, summaries: dict[str, dict], program: bool
) -> str:
    """The card, in Markdown.

    Args:
        checkpoint: from :func:`inference_checkpoint`.
        selection: the rule that chose it.
        environment: where it was trained (``environment.json`` of the run, its last part).
        summaries: ``summary.json`` by the folder of test results it lies in.
        program: whether ``model.pt2`` is beside it.
    """
    trained, data = checkpoint["args"], checkpoint["dataset"]
    networks = ", ".join(
        f"{name}: {spec['class'].rpartition('.')[2]}"
        for name, spec in checkpoint["networks"].items()
    )
    parameters = sum(
        value.numel() for name in checkpoint["test_networks"] for value in checkpoint[name].values()
    )
    spacing = data["spacing"]
    commit = (environment.get("commit") or "unknown") + (
        ", with changes" if environment.get("dirty") else ""
    )
    lines = [
        f"# {trained['method']}, {data['name']}, {trained['labelnum']} labelled",
        "",
        "A segmentation network trained with few labels. For research; not a medical device.",
        "",
        "| | |",
        "|---|---|",
        f"| method | `train_{trained['method']}.py` |",
        f"| data | {data['name']}" + (f", spacing {_numbers(spacing)} mm |" if spacing else " |"),
        "| classes | 0 background, "
        f"{', '.join(f'{c} {name}' for c, name in enumerate(data['class_names'], 1))} |",
        f"| labelled | the first {trained['labelnum']} of the training "
        f"list{_kept_aside(checkpoint)} |",
        f"| resolution | {_resolution(trained['downsample'])} |",
        f"| patch | {_numbers(trained['patch'])} |",
        f"| seed | {trained['seed']} |",
        f"| step | {checkpoint['step']} of {checkpoint['last']}; {selection} |",
        f"| networks | {networks}; {parameters / 1e6:.2f} million numbers |",
        f"| commit | {commit} |",
        f"| torch | {environment.get('torch', 'unknown')}, {trained['precision']} |",
        "",
        "## Results",
        "",
        *_results(summaries),
        "",
        "## Use",
        "",
        "```bash",
        "python code/predict.py THIS_FOLDER images/ --out segmentations/",
        "```",
        "",
        "```python",
        "from utils.inference import mean_probability",
        "from utils.trained import load_networks",
        "",
        'networks, config = load_networks("THIS_FOLDER", "cpu")',
        "prob = mean_probability(networks)(patches)  # (B, 1, *patch), prepared as config.json "
        "says",
        "```",
        "",
    ]
    if program:
        lines += [
            "Without this repository, but preprocessing and windows are yours to repeat:",
            "",
            "```python",
            'program = torch.export.load("model.pt2").module()',
            f"prob = program(torch.zeros(1, 1, {', '.join(map(str, trained['patch']))}))",
            "```",
            "",
        ]
    return "\n".join(lines)


def _results(summaries: dict[str, dict]) -> list[str]:
    if not summaries:
        return ["Not tested yet."]
    metrics = ("dice", "jaccard", "hd95", "asd")
    lines = [
        "| tested | cases | " + " | ".join(NAMES[m] for m in metrics) + " | empty |",
        "|---|" + "---:|" * 6,
    ]
    for tag, summary in summaries.items():
        cells = [_spread(summary["mean"][m], 100 if m in OVERLAPS else 1) for m in metrics]
        kind = f"{tag}: {summary['list']}"
        lines.append(
            f"| {kind} | {summary['cases']} | {' | '.join(cells)} | {summary['empty_predictions']} "
            "|"
        )
    one = next(iter(summaries.values()))
    meaning = (
        f" Empty: {one['empty']}."
        if any(s["empty_predictions"] for s in summaries.values())
        else ""
    )
    told = f"Mean ± sample sd over cases; overlaps in percent, distances in {one['units']['hd']}.{meaning}"
    return [*lines, "", told]


def _kept_aside(checkpoint: dict) -> str:
    held = checkpoint.get("validation")
    if not held or held["from"] != SOURCES["labeled"]:
        return ""
    return f", without {', '.join(held['cases'])}, kept aside for validation"


def _spread(value: dict, factor: float) -> str:
    if value["mean"] is None:
        return "-"
    return f"{factor * value['mean']:.2f}" + (
        "" if value["sd"] is None else f" ± {factor * value['sd']:.2f}"
    )


def _numbers(values: Sequence[float]) -> str:
    return "×".join(f"{value:g}" for value in values)


def _resolution(downsample: int) -> str:
    return "as the data's" if downsample == 1 else f"the data's divided by {downsample}"
