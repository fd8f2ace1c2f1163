"""The facts of an entry, its commands and its options, as blocks of HTML."""

import shlex
from collections.abc import Sequence

from utils.reporting import html
from utils.reporting.comparability import COMPONENTS
from utils.reporting.entries import Entry
from utils.reporting.results import Result, command_of_test


def facts(entry: Entry) -> list[tuple[str, str]]:
    """The facts of an entry's training, machine and test by name, in the order of the page; unknown
    ones are empty.
    """
    return [*_training(entry), *_machine(entry), *_test(entry)]


def _training(entry: Entry) -> list[tuple[str, str]]:
    trained = entry.first.trained
    data = f"{trained['dataset']}, {trained['labelnum']} labelled"
    if trained.get("downsample", 1) != 1:
        data += f", at 1/{trained['downsample']} of the resolution"
    network = " ".join(str(trained.get(key, "")) for key in ("net", "normalization")).strip()
    if "n_filters" in trained:
        network += f", {trained['n_filters']} filters"
    crops = []
    for key, kind in (("labeled_bs", "labelled"), ("unlabeled_bs", "unlabelled")):
        if trained.get(key):
            crops.append(f"{trained[key]} {kind}")
    steps = f"{entry.first.summary['step']} steps"
    if crops:
        sliced = len(trained.get("patch", ())) == 2
        steps += f" of {' and '.join(crops)} {'slices' if sliced else 'crops'}"
    return [
        ("method", trained["method"]),
        ("data", data),
        ("network", network),
        ("training", steps),
        ("seeds" if len(entry.seeds) > 1 else "seed", ", ".join(map(str, entry.seeds))),
    ]


def _machine(entry: Entry) -> list[tuple[str, str]]:
    parts = [part for result in entry.results for part in result.environments()]
    devices = []
    versions = []
    commits = []
    for part in parts:
        devices.append("; ".join(part.get("devices", ())))
        known = [name for name in ("python", "torch", "numpy", "cuda") if part.get(name)]
        versions.append(", ".join(f"{name} {part[name]}" for name in known))
        commit = (part.get("commit") or "unknown")[:10]
        commits.append(f"{commit}, modified" if part.get("dirty") else commit)
    started = [part.get("started", "")[:10] for part in parts]
    minutes = [result.training_minutes() for result in entry.results]
    time = ", ".join(f"{each:.0f} min" for each in minutes) + " of training"
    return [
        ("time", time if all(minutes) else ""),
        ("hardware", _once(devices, "; ")),
        ("software", _once(versions, "; ")),
        ("commit", _once(commits, "; ")),
        ("started", _once(started, ", ")),
    ]


def _test(entry: Entry) -> list[tuple[str, str]]:
    summary = entry.first.summary
    test = summary["test"]
    cases = str(summary["cases"])
    if summary["cases"] < summary.get("listed_cases", 0):
        cases += f" of {summary['listed_cases']}"
    stride = test.get("stride")
    prediction = "slice by slice"
    if stride:
        prediction = f"windows with stride {', '.join(map(str, stride))}"
    folders = ", ".join(str(result.folder) for result in entry.results)
    return [
        ("checkpoint", f"{summary['checkpoint']}: {summary['selection']}"),
        ("tested on", f"{cases} cases of {summary.get('list', 'the test list')}"),
        ("prediction", prediction),
        ("components", f"{COMPONENTS.get(test['nms'], 'all')} kept"),
        ("batch norm's statistics", test.get("batchnorm", "trained")),
        ("scored", f"{summary.get('scored', 'whole volumes')}; {summary['empty']}"),
        ("folder", folders),
    ]


def _once(words: Sequence[str], between: str) -> str:
    """Each of the words once, in their order."""
    return between.join(dict.fromkeys(words))


def commands(entry: Entry) -> str:
    """The commands as they were typed, as far as the runs recorded them."""
    lines = []
    for result in entry.results:
        trained = result.trained
        given = result.sources().get("command line", [])
        if given:
            words = [f"python code/train_{trained['method']}.py"]
            for name in given:
                if trained[name] not in (None, False):
                    words.append(f"--{name}{_typed(trained[name])}")
            lines.append(_folded(words))
        test = result.summary["test"]
        lines.append(command_of_test(result.folder, result.tag, trained["dataset"], test))
    return html.text("\n".join(lines), "pre")


def _folded(parts: Sequence[str], width: int = 100) -> str:
    """A command on several lines, as a shell takes it."""
    lines = [""]
    for part in parts:
        if lines[-1] and len(lines[-1]) + len(part) > width:
            lines.append("   ")
        lines[-1] += f" {part}" if lines[-1] else part
    return " \\\n".join(lines)


def _typed(value) -> str:
    """The value of an option as one types it behind its name."""
    if value is True:
        return ""
    words = value if isinstance(value, list) else [value]
    return " " + " ".join(shlex.quote(str(word)) for word in words)


def option_table(result: Result) -> str:
    """Every option of the training, and where its value came from."""
    source = {name: where for where, names in result.sources().items() for name in names}
    rows = []
    for name, value in result.trained.items():
        if value is not None:
            text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
            rows.append([name, text, source.get(name, "")])
    rows.sort(key=lambda row: (row[2], row[0]))
    return html.table([["option", "value", "from"], *rows], ())
