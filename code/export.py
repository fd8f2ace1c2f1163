"""Write a trained run as a folder to share: weights without pickle, configuration, model card, and
on request an exported program.

    python code/export.py runs/LA/coranet_16/seed1337
    python code/export.py runs/LA/cml_8/seed1337 --checkpoint best --program 1 --out models/cml_8

The networks that the paper tests are kept, without the parts that only training needs: CoraNet's
two further branches, the distance maps' head of DTML and UG-MCL, teachers, optimizers. The files
are read back and compared with the run: their probabilities must be bit-identical, those of the
program within 1e-4. `predict.py` takes the folder like a run. Test first: the card shows the
results that it finds in the run's test/ folder.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

import _root  # noqa: F401
from utils import command
from utils.errors import UserError
from utils.inference import mean_probability
from utils.reporting.export import (
    PROGRAM,
    MeanProbability,
    export_program,
    inference_checkpoint,
    write_export,
)
from utils.reporting.model_card import model_card
from utils.trained import (
    checkpoint_name,
    find_checkpoint,
    load_networks,
    read_export,
    selection,
)


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = command.Parser(__doc__, __file__)
    parser.add_argument("run", type=Path, help="folder of a run")
    parser.add_argument(
        "--out", type=Path, help="folder to write (default: export/<checkpoint> in the run's)"
    )
    parser.add_argument(
        "--checkpoint",
        type=checkpoint_name,
        default="last",
        help="last, best, or the number of a kept step",
    )
    parser.add_argument(
        "--network", help="one of the checkpoint's networks (default: those that the paper tests)"
    )
    parser.add_argument(
        "--program",
        type=int,
        choices=(0, 1),
        default=0,
        help="1: also write model.pt2 by torch.export",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace an export that is in the folder"
    )
    args = parser.parse_args(argv)
    if not args.run.is_dir():
        raise UserError(f"{args.run}: no such run")
    return args


def make_folder(out: Path, overwrite: bool) -> None:
    """Make the folder of the export; only an earlier export in it may be replaced."""
    if out.exists():
        if not out.is_dir():
            raise UserError(f"{out}: a file; --out names a folder")
        if any(out.iterdir()):
            if not overwrite:
                raise UserError(
                    f"{out}: holds files; --overwrite replaces an export, --out names another "
                    "folder"
                )
            read_export(out)  # refuses any other folder
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{out}: cannot be made ({error.strerror})") from None
    (out / PROGRAM).unlink(missing_ok=True)  # of an earlier export


def results(run: Path, checkpoint: str, network: str | None) -> dict[str, dict]:
    """The summaries of the run's tests of a checkpoint, or of one network of it, by the name of
    their folder.
    """
    found = {}
    for path in sorted((run / "test").glob("*/summary.json")):
        try:
            summary = json.loads(path.read_text(encoding="utf-8"))
            if (summary["checkpoint"], summary["test"].get("network")) == (checkpoint, network):
                found[path.parent.name] = summary
        except (OSError, ValueError, LookupError, TypeError):
            raise UserError(f"{path}: damaged; delete it and test again") from None
    return found


def environment(run: Path) -> Mapping:
    """Where the run was trained; of a resumed run its last part."""
    try:
        return json.loads((run / "environment.json").read_text())[-1]
    except (OSError, ValueError, LookupError):
        return {}


def check_export(
    out: Path, networks: Sequence[torch.nn.Module], shape: Sequence[int]
) -> list[torch.nn.Module]:
    """Insist that the written networks predict as the run's do, and return them."""
    written, _ = load_networks(out, "cpu")
    x = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        if not torch.equal(mean_probability(written)(x), mean_probability(networks)(x)):
            raise UserError(
                f"{out}: the export does not predict as the run does; please report this"
            )
    return written


def write_program(out: Path, networks: Sequence[torch.nn.Module], shape: Sequence[int]) -> None:
    """Write the exported program, and keep it only where it predicts as the networks do."""
    path = out / PROGRAM
    difference = export_program(MeanProbability(networks), shape, path)
    if not difference < 1e-4:
        path.unlink()
        raise UserError(
            f"{PROGRAM}: differs by {difference:.2g} from the networks, so it was not kept"
        )
    print(f"{path}: batches of ({', '.join(map(str, shape))}), within {difference:.1g}")


def count(networks: Sequence[torch.nn.Module]) -> int:
    """How many numbers the networks hold."""
    return sum(value.numel() for net in networks for value in net.state_dict().values())


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    path = find_checkpoint(args.run, args.checkpoint)
    networks, checkpoint = load_networks(path, "cpu", args.network)
    name = path.stem + (f"_{args.network}" if args.network else "")
    out = args.out or args.run / "export" / name
    make_folder(out, args.overwrite)
    chosen = selection(checkpoint, args.checkpoint, args.run)
    print(f"{path}, step {checkpoint['step']} of {checkpoint['last']}: {chosen}")

    names = [args.network] if args.network else checkpoint["test_networks"]
    kept = inference_checkpoint(checkpoint, names)
    tested = results(args.run, path.name, args.network)
    card = model_card(kept, chosen, environment(args.run), tested, bool(args.program))
    write_export(out, kept, card)
    shape = (kept["dataset"]["in_channels"], *kept["args"]["patch"])
    written = check_export(out, networks, shape)
    print(
        f"{path}: step {kept['step']}, {count(networks):,} numbers; inference needs "
        f"{count(written):,}, for the same probabilities"
    )
    if args.program:
        write_program(out, written, shape)
    for file in sorted(out.iterdir()):
        print(f"{file}  {file.stat().st_size / 2**20:.1f} MB")


if __name__ == "__main__":
    command.run(main)
