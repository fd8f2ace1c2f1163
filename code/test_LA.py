"""Test a run on the left atria (or on the phantom, which has their layout), as the papers' tables report it.

    python code/test_LA.py                                        # runs/LA/coranet_16/seed1337, its last iteration
    python code/test_LA.py --method supervised --labelnum 8 --seed 1
    python code/test_LA.py --run runs/phantom/coranet_8/seed1337 --gpu -1

Sliding window with stride 18, 18, 4 (9, 9, 2 at half resolution), softmax averaged over windows and networks, largest
26-connected component; Dice and Jaccard in percent, 95HD and ASD in voxels with medpy's definitions, mean ± sample sd.
Writes per-case CSV, summary JSON, figures and NIfTI into <run>/test/<checkpoint>/; the options that move a number are
part of the folder's name (last_nms0, last_cases3, …), so that a quick look never overwrites the result for the paper.
"""

from pathlib import Path

import torch

import _root  # noqa: F401
from dataloaders import default_root, open_dataset
from utils import run
from utils.device import resolve_precision, select_device
from utils.errors import UserError
from utils.evaluation import EMPTY, SELECTION, evaluate, find_checkpoint, find_run, window_bar
from utils.inference import load_networks, mean_probability, sliding_window
from utils.ops import largest_component

DATASETS = ("LA", "phantom")


def options():
    parser = run.ArgumentParser(__doc__)
    which = parser.add_argument_group("run")
    which.add_argument("--run", help="its folder; without it the next five name it")
    which.add_argument("--method", default="coranet", help="train_<method>.py")
    which.add_argument("--labelnum", type=run.positive_int, default=16, help="labelled cases that it was trained with")
    which.add_argument("--seed", type=run.non_negative_int, default=1337, help="its seed")
    which.add_argument("--dataset", choices=DATASETS, default="LA", help="data set that it was trained on")
    which.add_argument("--runs", default="runs", help="folder of all runs")
    which.add_argument("--checkpoint", choices=tuple(SELECTION), default="last", help="best: needs a validation list")
    test = parser.add_argument_group("test")
    test.add_argument("--root", help="folder of the data (default: the one that the run was trained on)")
    test.add_argument("--cases", type=run.positive_int, help="the first so many of the test list alone")
    test.add_argument("--stride", type=run.positive_int, nargs=3, metavar=("X", "Y", "Z"), help="default: data set's")
    test.add_argument("--network", help="one of the checkpoint's networks (default: those that the paper tests)")
    test.add_argument("--nms", type=int, choices=(0, 1), default=1, help="1: keep the largest component alone")
    test.add_argument("--empty", choices=tuple(EMPTY), default="zero", help="how empty masks score; zero: as papers")
    test.add_argument("--batch", type=run.positive_int, help="windows at once (default: 4, CPU 1): memory, not numbers")
    test.add_argument("--gpu", default="0", help="number of the GPU, or -1 for the CPU")
    test.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto", help="auto: bf16 where fast")
    test.add_argument("--figures", type=int, choices=(0, 1), default=1, help="1: draw figures")
    test.add_argument("--nifti", type=int, choices=(0, 1), default=1, help="1: write labels and predictions")
    return parser.parse_args()


def main():
    args = options()
    if "," in args.gpu:
        raise UserError(f"--gpu {args.gpu}: testing uses one device; give one number")
    folder = find_run(args.run, args.runs, args.dataset, f"{args.method}_{args.labelnum}", args.seed)
    path = find_checkpoint(folder, args.checkpoint)
    device = select_device(args.gpu)
    precision = resolve_precision(args.precision, device)
    networks, checkpoint = load_networks(path, device, args.network)
    trained, step = checkpoint["args"], checkpoint["step"]
    if trained["dataset"] not in DATASETS:
        raise UserError(f"{folder}: trained on {trained['dataset']}; test it with code/test_{trained['dataset']}.py")

    # ---- data: no other script reads the test list
    data = open_dataset(trained["dataset"], args.root or trained["root"], "test", trained["downsample"])
    usual = [min(max(1, s // trained["downsample"]), p) for s, p in zip(data.stride, trained["patch"], strict=True)]
    stride = args.stride or usual
    if any(s > p for s, p in zip(stride, trained["patch"], strict=True)):
        wide, patch = (" ".join(map(str, extents)) for extents in (stride, trained["patch"]))
        raise UserError(f"--stride {wide} leaves gaps between windows of {patch}")
    names = data.names[: args.cases]
    cases = ((name, *data.load(i)) for i, name in enumerate(names))

    # ---- one volume
    predictor = mean_probability(networks)
    windows = {"patch": trained["patch"], "stride": stride, "num_classes": data.num_classes, "batch": args.batch}

    def segment(image):
        with window_bar() as progress:
            prob = sliding_window(
                predictor, image, **windows, activation=None, device=device, precision=precision, progress=progress
            )
        labels = prob.argmax(0).to(torch.uint8)
        if args.nms:
            labels = largest_component(labels[None], data.num_classes)[0]
        return labels.cpu().numpy()

    # ---- all of them
    tag = args.checkpoint + (f"_{args.network}" if args.network else "") + ("" if args.nms else "_nms0")
    tag += f"_{args.empty}" if args.empty != "zero" else ""
    tag += f"_stride{'-'.join(map(str, stride))}" if args.stride else ""
    recorded = Path(trained["root"] or default_root(trained["dataset"]))
    root = Path(args.root or recorded).resolve()
    tag += f"_root-{root.name}" if root != recorded.resolve() else ""
    tag += f"_{args.precision}" if args.precision != "auto" else ""
    tag += f"_cases{len(names)}" if len(names) < len(data.names) else ""
    unfinished = args.checkpoint == "last" and step < checkpoint["last"]
    selection = "the run is unfinished" if unfinished else SELECTION[args.checkpoint]
    print(f"{path}, step {step} of {checkpoint['last']}: {selection}")
    record = {
        "run": str(folder),
        "checkpoint": path.name,
        "step": step,
        "last_step": checkpoint["last"],
        "selection": selection,
        "listed_cases": len(data.names),
        "trained": trained,
        "test": vars(args) | {"stride": list(stride), "precision": precision, "patch": list(trained["patch"])},
        "environment": run.environment([device]),
    }
    output = {
        "title": f"{trained['dataset']}, {folder.parent.name}, {folder.name}: {len(names)} cases, {args.checkpoint}",
        "spacing": [s * trained["downsample"] for s in data.spacing],
        "nifti": args.nifti,
        "figures": args.figures,
    }
    evaluate(cases, segment, folder / "test" / tag, data.num_classes, record=record, empty=args.empty, **output)


if __name__ == "__main__":
    run.main(main)
