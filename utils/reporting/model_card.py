"""The card of an exported model, in Markdown."""

from collections.abc import Mapping, Sequence

from dataloaders.hold_out import SOURCES
from utils.metrics import NAMES, SHOWN, Spread, factor, spread_text

USE = """\
## Use

```bash
python code/predict.py THIS_FOLDER images/ --out segmentations/
```

```python
from utils.inference import mean_probability
from utils.trained import load_networks

networks, config = load_networks("THIS_FOLDER", "cpu")
prob = mean_probability(networks)(patches)  # {input}, prepared as config.json says
```
"""
PROGRAM_USE = """\
Without this repository, but you have to repeat preprocessing and windows yourself:

```python
program = torch.export.load("model.pt2").module()
prob = program(torch.zeros(1, {shape}))
```
"""


def model_card(
    checkpoint: dict,
    selection: str,
    environment: Mapping,
    summaries: Mapping[str, dict],
    program: bool,
) -> str:
    """The card of an exported checkpoint.

    Args:
        checkpoint: from `utils.reporting.export.inference_checkpoint`.
        selection: the rule that chose it.
        environment: where it was trained: the last part of the run's `environment.json`.
        summaries: `summary.json` of its tests, by the name of the tests' folders.
        program: whether `model.pt2` is beside it.
    """
    trained = checkpoint["args"]
    data = checkpoint["dataset"]
    parts = [
        f"# {trained['method']}, {data['name']}, {trained['labelnum']} labelled\n",
        "A segmentation network trained with few labels. For research; not a medical device.\n",
        _facts(checkpoint, selection, environment),
        "## Results\n",
        "\n".join(_results(summaries)) + "\n",
        USE.format(input=f"(B, {data['in_channels']}, *patch)"),
    ]
    if program:
        shape = ", ".join(map(str, (data["in_channels"], *trained["patch"])))
        parts.append(PROGRAM_USE.format(shape=shape))
    return "\n".join(parts)


def _facts(checkpoint: dict, selection: str, environment: Mapping) -> str:
    """The table of the training."""
    trained = checkpoint["args"]
    data = checkpoint["dataset"]
    spacing = f", spacing {_numbers(data['spacing'])} mm" if data["spacing"] else ""
    classes = [f"{c} {name}" for c, name in enumerate(data["class_names"], 1)]
    commit = environment.get("commit") or "unknown"
    changes = ", with changes" if environment.get("dirty") else ""
    rows = {
        "method": f"`train_{trained['method']}.py`",
        "data": data["name"] + spacing,
        "classes": ", ".join(["0 background", *classes]),
        "labelled": f"the first {trained['labelnum']} of the training list"
        + _kept_aside(checkpoint),
        "resolution": _resolution(trained["downsample"]),
        "patch": _numbers(trained["patch"]),
        "seed": trained["seed"],
        "step": f"{checkpoint['step']} of {checkpoint['last']}; {selection}",
        "networks": _networks(checkpoint),
        "commit": commit + changes,
        "torch": f"{environment.get('torch', 'unknown')}, {trained['precision']}",
    }
    lines = ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())]
    return "\n".join(lines) + "\n"


def _networks(checkpoint: dict) -> str:
    names = []
    numbers = 0
    for name, spec in checkpoint["networks"].items():
        names.append(f"{name}: {spec['class'].rpartition('.')[2]}")
        numbers += sum(value.numel() for value in checkpoint[name].values())
    return f"{', '.join(names)}; {numbers / 1e6:.2f} million numbers"


def _results(summaries: Mapping[str, dict]) -> list[str]:
    """The table of the tests, and its legend."""
    if not summaries:
        return ["Not tested yet."]
    heads = " | ".join(NAMES[m] for m in SHOWN)
    lines = [f"| tested | cases | {heads} | empty |", "|---|" + "---:|" * (len(SHOWN) + 2)]
    for tag, summary in summaries.items():
        cells = " | ".join(_cell(summary["mean"][m], m) for m in SHOWN)
        lines.append(
            f"| {tag}: {summary['list']} | {summary['cases']} | {cells} | "
            f"{summary['empty_predictions']} |"
        )
    one = next(iter(summaries.values()))
    legend = f"Mean ± sample sd over cases; overlaps in percent, distances in {one['units']['hd']}."
    if any(summary["empty_predictions"] for summary in summaries.values()):
        legend += f" Empty: {one['empty']}."
    return [*lines, "", legend]


def _cell(value: Mapping, metric: str) -> str:
    """Mean ± sd of `summary.json`, where null stands for NaN."""
    nan = float("nan")
    mean = nan if value["mean"] is None else value["mean"]
    sd = nan if value["sd"] is None else value["sd"]
    return spread_text(Spread(mean, sd, value["n"]), factor(metric))


def _kept_aside(checkpoint: dict) -> str:
    held = checkpoint.get("validation")
    if not held or held["from"] != SOURCES["labeled"]:
        return ""
    return f", without {', '.join(held['cases'])}, kept aside for validation"


def _numbers(values: Sequence[float]) -> str:
    return "×".join(f"{value:g}" for value in values)


def _resolution(downsample: int) -> str:
    return "as the data's" if downsample == 1 else f"the data's divided by {downsample}"
