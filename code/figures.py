"""Figures of what a run's networks compute besides labels, and of how they came to it.

    python code/figures.py sdm runs/LA/dtml_16/seed1337                       # DTML's Fig. 2; runs of UG-MCL too
    python code/figures.py uncertainty runs/LA/coranet_16/seed1337            # CoraNet's Fig. 5
    python code/figures.py curves runs/LA/cml_8/seed1337                      # CML's Fig. 2
    python code/figures.py curves runs/LA/cml_8/seed1337 --split train --cases 4

sdm           image, reference, predicted signed distance map with its zero level, and the mask where it is negative
uncertainty   the voxels where D_con and D_rad predict different classes, at several of the steps that training kept
              (--keep_every)
curves        Dice, or other metrics, of each network that is tested and of their mean, at the steps that training kept

`sdm` and `uncertainty` show one case, or those of --case: of the run's unlabelled training cases,
or of --split test. The distance map of a volume is the mean over its windows. `curves` reads what
test_*.py --checkpoint <step> wrote into <run>/test/, and of one network with --network net_2; with
--split train it predicts and scores the run's unlabelled training cases instead, whose labels are
read for this alone, and leaves empty predictions out of distances. It writes its numbers as CSV
too. Files go to <run>/figures/. Contours, errors and surfaces of the cases of a test are drawn by
test_*.py itself.
"""

import json
import math
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

import _root  # noqa: F401
from dataloaders import open_dataset
from utils import command
from utils.device import resolve_precision, select_device
from utils.errors import UserError
from utils.figures import FORMATS, curves_figure, sdm_figure, uncertainty_figure
from utils.files import write_csv
from utils.inference import usual_stride, whole_image
from utils.metrics import METRICS, multiclass_metrics
from utils.ops import largest_component
from utils.trained import find_checkpoint, load_networks, unseen

PLANES = ("axial", "coronal", "sagittal")
HELPS = {
    "sdm": "signed distance maps and their masks (DTML, UG-MCL)",
    "uncertainty": "uncertain voxels over training (CoraNet)",
    "curves": "metrics of the networks and of their mean over training (CML)",
}


def sdm(args):
    path = find_checkpoint(args.run, args.checkpoint)
    device = select_device(args.gpu)
    _, checkpoint = load_networks(path, device)
    specs = checkpoint["networks"]
    names = [
        n for n in (*checkpoint["test_networks"], *specs) if specs[n]["kwargs"].get("sdm_head")
    ]
    if not names:
        hint = (
            "; of a step, DTML keeps M_s alone: take --checkpoint last"
            if args.checkpoint.isdecimal()
            else ""
        )
        raise UserError(
            f"{path}: none of its networks gives distance maps, as those of DTML and UG-MCL "
            f"do{hint}"
        )
    (network,), _ = load_networks(path, device, names[0])

    def distances(x):
        output = network(x)
        return (output[1] if isinstance(output, tuple) else output).float()

    data = open_data(args, checkpoint, device)
    for case, image, label in chosen(args, data):
        maps = predict(distances, image, data, data.num_classes - 1).numpy()
        file = f"sdm_{path.stem}_{case}"
        title = f"{case}, {args.run.parent.name}, step {checkpoint['step']}"
        look = {"spacing": data.spacing, "class_names": data.class_names, "plane": data.plane}
        draw(args, file, sdm_figure, image, label, maps, title, **look)


def uncertainty(args):
    device, seen = select_device(args.gpu), {}
    steps = args.steps or spread(kept_steps(args.run), 4)
    epochs = {record["step"]: record["epoch"] for record in records(args.run)}
    for step in steps:
        path = find_checkpoint(args.run, str(step))
        (network, *_), checkpoint = load_networks(path, device)
        if network.config.get("branches") != 3 or "network" in network.config:
            what = "one network" if "network" not in network.config else "not one network a class"
            raise UserError(
                f"{path}: needs {what} with a conservative and a radical branch, as "
                "train_coranet.py's"
            )

        def branches(x, network=network):
            return torch.cat([logits.float().softmax(1) for logits in network(x)], dim=1)

        data = open_data(args, checkpoint, device)
        for case, image, label in chosen(args, data):
            _, con, rad = predict(branches, image, data, 3 * data.num_classes).split(
                data.num_classes
            )
            _, _, masks = seen.setdefault(case, (image, label, []))
            masks.append((con.argmax(0) != rad.argmax(0)).numpy())
    cases = [(case, *rest) for case, rest in seen.items()]
    recorded = all(step in epochs for step in steps)  # --log_every and --keep_every need not agree
    names = [
        f"epoch {epochs[step]} (step {step})" if recorded else f"step {step}" for step in steps
    ]
    file = f"uncertainty_{'_'.join(map(str, steps))}_{cases[0][0] if len(cases) == 1 else f'{len(cases)}cases'}"
    title = f"{cases[0][0]}, {args.run.parent.name}" if len(cases) == 1 else args.run.parent.name
    draw(
        args, file, uncertainty_figure, cases, names, title, spacing=data.spacing, plane=data.plane
    )


def curves(args):
    found, what = (read_results if args.split == "test" else score_steps)(args)
    if max(map(len, found.values())) < 2:
        raise UserError(
            f"{args.run}: one step alone makes no curve; take more, kept with --keep_every"
        )
    if args.names and len(args.names) != len(found):
        raise UserError(
            f"--names: {len(args.names)} names for {len(found)} lines: {', '.join(found)}"
        )
    lines = dict(zip(args.names or found, found.values(), strict=True))
    rows = [
        {"network": name, "step": step, **values}
        for name, curve in lines.items()
        for step, values in curve.items()
    ]
    file = f"curves_{args.split}"
    draw(args, file, curves_figure, lines, f"{args.run.parent.name}: {what}", metrics=args.metrics)
    write_csv(args.run / "figures" / f"{file}.csv", rows)
    print(args.run / "figures" / f"{file}.csv")


def read_results(args):
    """The curves that tests of the kept steps left, the options of which have the same tag, and
    what they are of.
    """
    groups = {}
    for path in sorted(
        args.run.glob("test/*/summary.json")
    ):  # networks in the order of their names
        try:
            summary = json.loads(path.read_text(encoding="utf-8"))
            network, nms, checkpoint = (
                summary["test"]["network"],
                summary["test"]["nms"],
                summary["checkpoint"],
            )
            values = {
                m: math.nan if (v := summary["mean"][m]["mean"]) is None else v for m in METRICS
            }
            step, cases, listed = summary["step"], summary["cases"], summary["list"]
        except (OSError, ValueError, LookupError, TypeError):
            raise UserError(f"{path}: damaged; delete it and test again") from None
        tag = path.parent.name.removeprefix(Path(checkpoint).stem).replace(f"_{network}", "", 1)
        wanted = args.nms in (None, nms) and (not args.steps or step in args.steps)
        if wanted and listed == "the test list" and checkpoint != "best.pth":
            lines, _ = groups.setdefault(tag, ({}, cases))
            lines.setdefault(network or "mean", {})[step] = values
    if not groups:
        raise UserError(
            f"{args.run}: no results of kept steps; test them, python code/test_<dataset>.py --run "
            f"{args.run} "
            "--checkpoint <step>, or take --split train"
        )
    tag = max(groups, key=lambda tag: sum(map(len, groups[tag][0].values())))
    others = sorted(f"step_<n>{other}" for other in groups if other != tag)
    print(f"results of step_<n>{tag}" + (f"; left out: {', '.join(others)}" if others else ""))
    lines, cases = groups[tag]
    if "mean" in lines:
        lines["mean"] = lines.pop("mean")  # as the last
    return lines, f"{cases} cases"


def score_steps(args):
    """The curves of predictions that are made here, and what they are of."""
    device, lines = select_device(args.gpu), {}
    for step in args.steps or kept_steps(args.run):
        networks, checkpoint = load_networks(find_checkpoint(args.run, str(step)), device)
        names = checkpoint["test_networks"]
        data = open_data(args, checkpoint, device)
        classes, scores = data.num_classes, {}

        def probabilities(x, networks=networks):
            return torch.cat([network.segment(x).float().softmax(1) for network in networks], 1)

        indices = data.indices[: args.cases]
        for _, image, label in (load(data, index) for index in indices):
            probs = predict(probabilities, image, data, len(names) * classes).split(classes)
            for name, prob in zip([*names, "mean"], [*probs, sum(probs)], strict=True):
                labels = prob.argmax(0).to(torch.uint8)
                labels = largest_component(labels[None], classes)[0] if args.nms else labels
                scored = multiclass_metrics(labels.numpy(), label, classes, empty="nan").values()
                scores.setdefault(name, []).append(
                    {m: mean([score[m] for score in scored]) for m in METRICS}
                )
        for name in scores if len(names) > 1 else names:
            lines.setdefault(name, {})[step] = {
                m: mean([case[m] for case in scores[name]]) for m in METRICS
            }
            print(f"step {step}, {name}: Dice {100 * lines[name][step]['dice']:.2f} %", flush=True)
    kind = "unlabelled training" if args.split == "train" else "validation"
    return lines, f"{len(indices)} {kind} case{'s' * (len(indices) > 1)}"


# ------------------------------------------------------------------------------------------------------ what they share


def open_data(args, checkpoint, device):
    """The data set's split as a checkpoint was trained on it, and how to predict: `predict` says
    what of it.
    """
    trained = checkpoint["args"]
    split, patch, scale = args.split, trained["patch"], trained["downsample"]
    data = open_dataset(trained["dataset"], args.root or trained["root"], split, scale)
    indices = list(range(len(data.names)))
    if split == "train":
        indices = unseen(data, checkpoint)
        if not indices:
            raise UserError(
                f"{args.run}: the label of every training case was seen; take another --split"
            )
    sliced = len(patch) == 2
    return SimpleNamespace(
        data=data,
        indices=indices,
        num_classes=data.num_classes,
        class_names=data.class_names,
        spacing=None if data.spacing is None else [s * scale for s in data.spacing],
        plane="slice" if sliced else getattr(args, "plane", None),
        patch=patch,
        stride=usual_stride(data.stride, patch, scale),
        where={
            "batch": args.batch,
            "device": device,
            "precision": resolve_precision(args.precision, device),
        },
    )


def load(data, index):
    image, label = data.data.load(index)
    return data.data.names[index], np.atleast_3d(image), np.atleast_3d(label)


def chosen(args, data):
    """`(name, image, label)` of the cases that are shown."""
    named = {data.data.names[index]: index for index in data.indices}
    for case in args.case or list(named)[:1]:
        if case not in named:
            listed = (
                "an unlabelled training case"
                if args.split == "train"
                else f"in the {args.split} list"
            )
            raise UserError(f"--case {case}: not {listed}; the first is {next(iter(named))}")
        yield load(data, named[case])


def predict(predictor, image, data, channels):
    """What `predictor` gives, `(channels, *S)` on the CPU, its mean over windows."""
    return whole_image(predictor, image, data.patch, data.stride, channels, **data.where).cpu()


def kept_steps(folder):
    steps = sorted(
        int(match[1])
        for path in folder.glob("step_*.pth")
        if (match := re.match(r"step_(\d+)$", path.stem))
    )
    if not steps:
        raise UserError(f"{folder}: it kept no steps; train with --keep_every")
    return steps


def spread(steps, most):
    """At most so many of them, from the first to the last."""
    return [
        steps[i]
        for i in sorted({round(i) for i in np.linspace(0, len(steps) - 1, min(most, len(steps)))})
    ]


def records(folder):
    """Those of the training, which tell a step's epoch."""
    try:
        lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    return [json.loads(line) for line in lines if line.endswith("}")]


def mean(values):
    values = [value for value in values if not math.isnan(value)]
    return sum(values) / len(values) if values else math.nan


def draw(args, name, figure, *given, **look):
    """Write a figure in each format that was asked for."""
    folder = args.run / "figures"
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be made ({error.strerror})") from None
    for kind in args.format:
        figure(folder / f"{name}.{kind}", *given, **look)
        print(folder / f"{name}.{kind}")


def parse():
    parser = command.Parser(__doc__, __file__)
    figures = parser.add_subparsers(dest="figure", required=True, metavar="FIGURE")
    unlabelled = "train: those that were unlabelled"
    for name, text in HELPS.items():
        one = figures.add_parser(name, help=text, doc=text)
        one.add_argument("run", type=Path, help="folder of the run")
        if name == "curves":
            lists = f"test: what was tested; {unlabelled}"
            one.add_argument(
                "--split", choices=("test", "val", "train"), default="test", help=lists
            )
            one.add_argument(
                "--cases", type=command.positive_int, help="train, val: the first so many alone"
            )
            one.add_argument(
                "--metrics",
                nargs="+",
                choices=METRICS,
                default=["dice"],
                metavar="METRIC",
                help="panels",
            )
            kept = "1: of largest components; test: results with or without alone"
            one.add_argument("--nms", type=int, choices=(0, 1), help=kept)
            one.add_argument(
                "--names", nargs="+", metavar="NAME", help="of the lines, in their order"
            )
        else:
            one.add_argument(
                "--split", choices=("train", "val", "test"), default="train", help=unlabelled
            )
            one.add_argument(
                "--case",
                nargs="+",
                metavar="NAME",
                help="its name in the list (default: the first)",
            )
            one.add_argument("--plane", choices=PLANES, default="axial", help="of volumes")
        if name == "sdm":
            one.add_argument(
                "--checkpoint", default="last", help="last, best, or a kept step's number"
            )
        else:
            usual = "all" if name == "curves" else "four, from the first to the last"
            steps = {"nargs": "+", "type": command.positive_int, "metavar": "STEP"}
            one.add_argument("--steps", **steps, help=f"of those kept (default: {usual})")
        one.add_argument(
            "--format", nargs="+", choices=FORMATS, default=["png"], help="of the files"
        )
        one.add_argument(
            "--root", help="folder of the data (default: the one that the run was trained on)"
        )
        one.add_argument(
            "--batch",
            type=command.positive_int,
            help="windows or slices at once: memory, not numbers",
        )
        one.add_argument(
            "--gpu", type=command.gpu, default=0, help="number of the GPU, or -1 for the CPU"
        )
        one.add_argument(
            "--precision",
            choices=("auto", "fp32", "bf16"),
            default="auto",
            help="auto: bf16 where fast",
        )
    args, unknown = parser.parse_known_args()
    if unknown:  # the figure's own parser knows which flag is near
        figures.choices[args.figure].error(f"unrecognized arguments: {' '.join(unknown)}")
    if not args.run.is_dir():
        raise UserError(f"{args.run}: no such folder of a run")
    if (
        args.figure == "sdm"
        and args.checkpoint not in ("last", "best")
        and not args.checkpoint.isdecimal()
    ):
        raise UserError(f"--checkpoint {args.checkpoint} is not last, best or a step's number")
    if args.figure == "curves" and args.split == "test" and args.cases:
        raise UserError("--cases: the tests had their own; it is of --split train and val")
    return args


def main():
    args = parse()
    {"sdm": sdm, "uncertainty": uncertainty, "curves": curves}[args.figure](args)


if __name__ == "__main__":
    command.run(main)
