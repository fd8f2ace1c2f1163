"""The options of a training script: each default knows where it comes from.

    DEFAULTS = [
        rule("paper, 3.1", max_iterations=6000, temperature=1.93),
        rule("ours", lambda args: args.labelnum <= 4, temperature=2.0),
    ]
    parser = options.parser(__doc__, __file__)      the options that all training scripts share
    parser.add_argument("--temperature", ...)       and the method's own
    args = options.parse(parser, DEFAULTS, argv)

The command line wins over the rules, a later rule over an earlier one, rules over the data set's
protocol, and the protocol over the parser's defaults. `--help` shows the values of the rules that
always hold.

`args.sources` says of each option where its value came from; a run's log begins with it. Beside the
command line, and the file that describes one's own data, there are five kinds of source:

    paper, <section>                what the method's paper says there, about the data set at hand
    paper, <whose> <section>        the same of another paper
    released code                   what the authors' code does
    released code: <whose>          the same, by name; or code of others that the field follows
    second hand: <whose account>    the method's paper, which we could not read, as another tells it
    custom of the field: <whose>    what the work does that the field follows
    ours                            our choice
"""

import argparse
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dataloaders import dataset_class, default_root
from networks import NETWORKS, network_class
from utils.errors import UserError
from utils.training.arguments import add_consistency, add_iterations, add_teacher, parser

if TYPE_CHECKING:
    from dataloaders.volumes import Volumes
    from networks.base import SegmentationNetwork

__all__ = [
    "MAY_DIFFER",
    "NOT_COMPARED",
    "add_consistency",
    "add_iterations",
    "add_teacher",
    "describe",
    "other_option",
    "parse",
    "parser",
    "refuse_without_effect",
    "rule",
]

# options that a data set's protocol sets where neither the command line nor the method does
PROTOCOL = ("labelnum", "labeled_bs", "unlabeled_bs", "augment", "net")

OURS = "ours"  # the source of whatever no one else decides
COMMAND_LINE = "command line"

# options that may differ between the parts of a resumed run: they move no number
MAY_DIFFER = {
    "gpu",
    "root",
    "runs",
    "resume",
    "log_every",
    "save_minutes",
    "keep_every",
    "picture_every",
    "cache",
    "cache_dir",
    "checkpoint_activations",
}

# options in which two runs of one training may differ besides: its name, and the precision that the
# device made of the one asked for
NOT_COMPARED = MAY_DIFFER | {"name", "precision", "precision_asked"}


# ------------------------------------------------------------------------------------------- rules


@dataclass(frozen=True)
class Rule:
    """Defaults of some options, where they come from, and when they hold."""

    source: str
    when: Callable[[argparse.Namespace], bool]
    values: dict[str, Any]


def always(args: argparse.Namespace) -> bool:
    """The condition of a rule that holds whatever the other options are."""
    return True


def rule(
    source: str,
    when: Callable[[argparse.Namespace], bool] = always,
    /,
    **values: Any,
) -> Rule:
    """Defaults for options that are not on the command line.

    Args:
        source: where they come from, one of the five sources.
        when: given the options, whether the rule holds.
        values: the default of each option.
    """
    return Rule(source, when, values)


class _Filler:
    """Sets options that are not on the command line, and notes where their values come from."""

    def __init__(self, args: argparse.Namespace, given: Collection[str]):
        self.args = args
        self.sources = {key: COMMAND_LINE if key in given else OURS for key in vars(args)}
        self._given = given

    def fill(self, source: str, **values: Any) -> None:
        for key, value in values.items():
            if key in self.sources and key not in self._given:
                setattr(self.args, key, value)
                self.sources[key] = source

    def fill_open(self, source: str, **values: Any) -> None:
        """`fill`, but only those of the options that have no value yet."""
        for key, value in values.items():
            if getattr(self.args, key, None) is None:
                self.fill(source, **{key: value})


# --------------------------------------------------------------------------------------- parsing


def parse(
    parser: argparse.ArgumentParser,
    rules: Sequence[Rule] = (),
    argv: Sequence[str] | None = None,
) -> argparse.Namespace:
    """Parse, fill in the options that the command line leaves open, and check them.

    Args:
        parser: from `parser`.
        rules: the method's defaults; of those that hold, the last wins.
        argv: the command line; None: the process's own.

    Returns:
        The options, and in `sources` where the value of each came from.

    Raises:
        UserError: the network cannot take the patch, no patch is known for this `--downsample`, or
            the validation, or another option, does not fit the rest.
    """
    for row in rules:
        if row.when is always:
            parser.set_defaults(**row.values)
    args = parser.parse_args(argv)
    filler = _Filler(args, _given(parser, argv))
    data = dataset_class(args.dataset, args.root or default_root(args.dataset))
    _fill_protocol(filler, data)
    _fill_patch(filler, data)
    for row in rules:
        if row.when(args):
            filler.fill(row.source, **row.values)
    network = network_class(args.net)
    filler.fill_open(
        network.source, n_filters=network.defaults.n_filters, normalization="batchnorm"
    )
    if args.val_fraction and args.val_from is None:
        args.val_from = data.val_from
    _check_validation(args, data)
    _check_network(args, data, network)
    if args.compile and args.sync_batchnorm:
        raise UserError("--sync_batchnorm 1: torch.compile does not take it, leave out --compile")
    args.sources = filler.sources
    if getattr(args, "decay", None) == "poly":
        refuse_without_effect(args, ("lr_step",), "--decay poly")
    return args


def _given(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> Collection[str]:
    """Names of the options that stand on the command line."""
    defaults = [(action, action.default) for action in parser._actions]
    set_defaults = parser._defaults
    parser._defaults = {}
    for action, _ in defaults:
        action.default = argparse.SUPPRESS
    try:
        return vars(parser.parse_args(argv)).keys()
    finally:
        parser._defaults = set_defaults
        for action, default in defaults:
            action.default = default


def _fill_protocol(filler: _Filler, data: "type[Volumes]") -> None:
    """Fill in the data set's protocol. Without an unlabelled stream the labelled one takes the
    crops of both.
    """
    supervised = not hasattr(filler.args, "unlabeled_bs")
    if supervised:
        filler.fill_open(OURS, labeled_bs=data.labeled_bs + data.unlabeled_bs)
    for key in PROTOCOL:
        filler.fill_open(data.source_of(key), **{key: getattr(data, key)})


def _fill_patch(filler: _Filler, data: "type[Volumes]") -> None:
    args = filler.args
    if args.downsample in data.patches:
        source = data.source_of("patch") if args.downsample == 1 else OURS
        filler.fill(source, patch=list(data.patches[args.downsample]))
    elif args.patch is None:
        if len(data.patches[1]) == 2:
            reason = "is of slices: take a smaller --patch"
        else:
            reason = "has no crop for it: give --patch"
        raise UserError(f"--downsample {args.downsample}: {args.dataset} {reason}")


# ---------------------------------------------------------------------------------------- checks


def _check_validation(args: argparse.Namespace, data: "type[Volumes]") -> None:
    if args.val_from == "list":
        if "val" not in data.splits:
            raise UserError(
                f"--val_from list: {args.dataset} has no validation list; give --val_fraction"
            )
        if args.val_fraction:
            raise UserError("--val_from list is taken whole: leave --val_fraction out")
    elif args.val_from and not args.val_fraction:
        raise UserError(f"--val_from {args.val_from} needs --val_fraction")


def _check_network(
    args: argparse.Namespace, data: "type[Volumes]", network: "type[SegmentationNetwork]"
) -> None:
    """Raise `UserError` where data set, network and patch do not fit each other."""
    dims = len(data.patches[1])
    shown = " ".join(map(str, args.patch))
    if network.dims != dims:
        fitting = ", ".join(name for name in NETWORKS if network_class(name).dims == dims)
        raise UserError(
            f"--net {args.net} is {network.dims}-D, {args.dataset} is {dims}-D: choose from "
            f"{fitting}"
        )
    if len(args.patch) != dims:
        raise UserError(f"--patch {shown}: {args.dataset} is {dims}-D, so give {dims} numbers")
    multiples = network.multiples
    if any(extent % multiple for extent, multiple in zip(args.patch, multiples, strict=True)):
        allowed = " ".join(map(str, multiples))
        raise UserError(
            f"--patch {shown}: every extent must be a multiple of {args.net}'s {allowed}"
        )
    if all(extent <= bottom for extent, bottom in zip(args.patch, network.bottom, strict=True)):
        raise UserError(
            f"--patch {shown}: one voxel is left at the network's bottom; one extent must be larger"
        )


def refuse_without_effect(args: argparse.Namespace, names: Collection[str], why: str) -> None:
    """Refuse options on the command line that change nothing.

    Args:
        args: from `parse`.
        names: the options that have no effect.
        why: what takes their effect away, as on the command line: `--framework cps`.

    Raises:
        UserError: one of the options is on the command line.
    """
    for name in names:
        if args.sources.get(name) == COMMAND_LINE:
            raise UserError(f"--{name} has no effect with {why}: leave it out")


# ------------------------------------------------------------------------------- what they are


def describe(args: argparse.Namespace) -> list[str]:
    """Lines for the log: the options, grouped by where their values came from."""
    groups: dict[str, list[str]] = {}
    for key, source in args.sources.items():
        value = getattr(args, key)
        if value is not None:
            groups.setdefault(source, []).append(f"{key}={_short(value)}")
    return [f"{source}: {' '.join(values)}" for source, values in groups.items()]


def _short(value: Any) -> Any:
    return ",".join(map(str, value)) if isinstance(value, (list, tuple)) else value


def other_option(trained: Mapping[str, Any], asked: Mapping[str, Any]) -> str | None:
    """The first option, by name, whose value in a run differs from the one that a script would
    train with, or None. A precision is the same if the run asked for it or came to it.

    Args:
        trained: the options of the run.
        asked: the options of the script.
    """
    for key in sorted((trained.keys() & asked.keys()) - NOT_COMPARED):
        if trained[key] != asked[key]:
            return key
    if asked["precision"] in (trained["precision_asked"], trained["precision"]):
        return None
    return "precision"
