"""Write a trained run as a folder to share: weights without pickle, configuration, model card, an
exported program.

    python code/export.py runs/LA/coranet_16/seed1337
    python code/export.py runs/LA/cml_8/seed1337 --checkpoint best --program 1 --out models/cml_8

The networks that the paper tests are kept, without what training alone needs (CoraNet's two further
branches, the distance maps' head of DTML and UG-MCL, teachers, optimizers). What is written is read
back and held against the run: the probabilities must be the same to the bit, those of the program
to 1e-4. `predict.py` takes the folder as it takes a run. Test first: the card prints the results
that it finds in the run's test/ folder.
"""

import json
from pathlib import Path

import torch

import _root  # noqa: F401
from utils import command
from utils.errors import UserError
from utils.inference import mean_probability
from utils.reporting.export import (
    PROGRAM,
    export_program,
    inference_checkpoint,
    model_card,
    write_export,
)
from utils.trained import (
    checkpoint_name,
    find_checkpoint,
    load_networks,
    read_export,
    selection,
)


class MeanProbability(torch.nn.Module):
    """What is tested, as one module: `(B, 1, *patch)` to `(B, C, *patch)`."""

    def __init__(self, networks):
        super().__init__()
        self.networks = torch.nn.ModuleList(networks).eval()

    def forward(self, x):
        return mean_probability(self.networks)(x)


def parse(arguments=None):
    parser = command.Parser(__doc__, __file__)
    parser.add_argument("run", type=Path, help="folder of a run")
    parser.add_argument(
        "--out", type=Path, help="folder to write (default: export/<checkpoint> in the run's)"
    )
    parser.add_argument(
        "--checkpoint",
        type=checkpoint_name,
        default="last",
        help="last, best, or a kept step's number",
    )
    parser.add_argument(
        "--network", help="one of the checkpoint's networks (default: those that the paper tests)"
    )
    parser.add_argument(
        "--program",
        type=int,
        choices=(0, 1),
        default=0,
        help="1: write model.pt2 by torch.export too",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace an export that is in the folder"
    )
    return parser.parse_args(arguments)


def results(folder, checkpoint, network):
    """The summaries of the run's tests of a checkpoint, or of one network of it, by the name of
    their folder.
    """
    found = {}
    for path in sorted((folder / "test").glob("*/summary.json")):
        try:
            summary = json.loads(path.read_text(encoding="utf-8"))
            if (summary["checkpoint"], summary["test"].get("network")) == (checkpoint, network):
                found[path.parent.name] = summary
        except (OSError, ValueError, LookupError, TypeError):
            raise UserError(f"{path}: damaged; delete it and test again") from None
    return found


def environment(folder):
    """Where the run was trained, of a resumed one its last part."""
    try:
        return json.loads((folder / "environment.json").read_text())[-1]
    except (OSError, ValueError, LookupError):
        return {}


def main(arguments=None):
    args = parse(arguments)
    if not args.run.is_dir():
        raise UserError(f"{args.run}: no such run")
    path = find_checkpoint(args.run, args.checkpoint)
    networks, checkpoint = load_networks(path, "cpu", args.network)
    out = args.out or args.run / "export" / (
        path.stem + (f"_{args.network}" if args.network else "")
    )
    if out.exists():
        if not out.is_dir():
            raise UserError(f"{out}: a file; --out names a folder")
        if any(out.iterdir()) and not args.overwrite:
            raise UserError(
                f"{out}: holds files; --overwrite replaces an export, --out names another folder"
            )
        if any(out.iterdir()):
            read_export(out)  # an export alone is replaced
    chosen = selection(checkpoint, args.checkpoint, args.run)
    print(f"{path}, step {checkpoint['step']} of {checkpoint['last']}: {chosen}")
    trained = checkpoint["args"]

    kept = inference_checkpoint(
        checkpoint, [args.network] if args.network else checkpoint["test_networks"]
    )
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{out}: cannot be made ({error.strerror})") from None
    (out / PROGRAM).unlink(missing_ok=True)  # of an earlier export
    tested = results(args.run, path.name, args.network)
    write_export(out, kept, model_card(kept, chosen, environment(args.run), tested, args.program))

    written, _ = load_networks(out, "cpu")
    x = torch.randn(1, 1, *trained["patch"], generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        if not torch.equal(mean_probability(written)(x), mean_probability(networks)(x)):
            raise UserError(
                f"{out}: what was written does not predict as the run does; please report this"
            )
    before, after = (
        sum(v.numel() for n in nets for v in n.state_dict().values())
        for nets in (networks, written)
    )
    print(
        f"{path}: step {kept['step']}, {before:,} numbers; inference needs {after:,}, for the same "
        "probabilities"
    )
    if args.program:
        difference = export_program(MeanProbability(written), trained["patch"], out / PROGRAM)
        if not difference < 1e-4:
            (out / PROGRAM).unlink()
            raise UserError(
                f"{PROGRAM}: differs by {difference:.2g} from the networks, so it was not kept"
            )
        print(
            f"{out / PROGRAM}: batches of (1, {', '.join(map(str, trained['patch']))}), within "
            f"{difference:.1g}"
        )
    for file in sorted(out.iterdir()):
        print(f"{file}  {file.stat().st_size / 2**20:.1f} MB")


if __name__ == "__main__":
    command.run(main)
