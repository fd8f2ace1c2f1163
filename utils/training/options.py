"""The command line of every script: options with advice, defaults that know where they come from,
errors of one line.

    DEFAULTS = [
        rule("section 3", max_iterations=6000, temperature=1.93),
        rule("Fig. 3b", lambda args: args.labelnum <= 8, temperature=2.0),        later rows win
    ]
    parser = options.parser(__doc__, __file__)           options that all training scripts share, then the method's own
    args = options.parse(parser, DEFAULTS)               given > rules > data set > the parser's defaults

`args.sources` says of each option where its value came from; a run's log begins with it.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass

from dataloaders import DATASETS, dataset_class, default_root
from dataloaders.cache import MODES
from dataloaders.transforms import AUGMENTS
from networks import NETWORKS, network_class
from utils import command
from utils.errors import UserError

# what a data set's protocol sets, where neither the command line nor the method does
PROTOCOL = ("labelnum", "labeled_bs", "unlabeled_bs", "augment", "net")


@dataclass(frozen=True)
class Rule:
    """Defaults of some options, where they come from, and when they hold."""

    source: str
    when: Callable
    values: dict


def rule(source, when=lambda args: True, /, **values):
    """Where `when(args)` holds, options not on the command line take these `values`, for the reason
    `source`.
    """
    return Rule(source, when, values)


def parser(doc, script, presets=(), unlabeled=True, **defaults):
    """The options that all training scripts share.

    Args:
        doc: the script's docstring.
        script: the script's `__file__`.
        presets: names for `--preset`, the default first.
        unlabeled: False leaves the unlabelled stream out.
        defaults: the script's own.
    """
    parser = command.Parser(doc, script)
    data = parser.add_argument_group("data")
    data.add_argument(
        "--dataset", choices=sorted(DATASETS), default="LA", help="data set and its protocol"
    )
    data.add_argument("--root", help="its folder (default: data/<dataset>)")
    data.add_argument(
        "--labelnum",
        type=command.positive_int,
        help="the first so many training cases, or patients, are labelled",
    )
    data.add_argument(
        "--labeled_bs", type=command.positive_int, help="labelled crops or slices a step"
    )
    if unlabeled:
        data.add_argument(
            "--unlabeled_bs", type=command.positive_int, help="unlabelled crops or slices a step"
        )
    data.add_argument(
        "--patch",
        type=command.positive_int,
        nargs="+",
        metavar="X",
        help="crop X Y Z, or size of a slice X Y",
    )
    data.add_argument(
        "--downsample",
        type=command.positive_int,
        default=1,
        help="2: half resolution, for machines without a GPU",
    )
    data.add_argument(
        "--augment",
        choices=tuple(AUGMENTS),
        help="3-D: rot_flip turns and flips each crop; 2-D: rotate by ±20° or flip, affine by ±30° and to 0.5-2 times",
    )
    data.add_argument(
        "--cache",
        choices=MODES,
        default="auto",
        help="where decoded data stays: on the GPU (auto: where a quarter of its free memory is enough), in RAM, or "
        "off: read for each step, which a --cache_dir makes fast",
    )
    data.add_argument(
        "--cache_dir", help="folder for the decoded data, so that the next start need not decode"
    )
    held = parser.add_argument_group("validation")
    held.add_argument(
        "--val_fraction",
        type=command.fraction,
        default=0,
        help="of the training cases, kept aside to choose best.pth; 0: none",
    )
    held.add_argument(
        "--val_from",
        choices=("unlabeled", "labeled", "list"),
        help="which: unlabelled cases, whose labels are then read (default, but of own data), labelled ones, or the "
        "published list",
    )
    held.add_argument(
        "--val_every", type=command.positive_int, default=200, help="steps between validations"
    )
    network = parser.add_argument_group("network")
    network.add_argument("--net", choices=NETWORKS, help="3-D: vnet, unet3d, resnet18; 2-D: unet")
    network.add_argument(
        "--n_filters", type=command.positive_int, help="channels of the first stage"
    )
    network.add_argument(
        "--normalization",
        choices=("batchnorm", "instancenorm", "groupnorm", "none"),
        default="batchnorm",
    )
    job = parser.add_argument_group("run")
    if presets:
        job.add_argument(
            "--preset",
            choices=presets,
            default=presets[0],
            help="as the paper, or as its released code",
        )
    job.add_argument(
        "--base_lr", type=command.positive, default=0.01, help="learning rate at the start"
    )
    job.add_argument(
        "--seed",
        type=command.non_negative_int,
        default=1337,
        help="of weights, orders, crops and dropout",
    )
    job.add_argument(
        "--gpu",
        default="0",
        help="0, or 0,1 to share each batch between GPUs (faster: torchrun), or -1 for the CPU",
    )
    job.add_argument(
        "--precision",
        choices=("auto", "fp32", "tf32", "bf16"),
        default="auto",
        help="of convolutions; auto: bf16 where it is fast; fp32 is strict; tf32: of GPUs",
    )
    job.add_argument(
        "--compile",
        choices=("0", "1", "graphs"),
        default="0",
        help="1: networks through torch.compile, minutes at the start for a faster step; graphs: as CUDA graphs too",
    )
    job.add_argument(
        "--deterministic",
        type=int,
        choices=(0, 1),
        default=0,
        help="1: a GPU gives the same bits every time; slower",
    )
    job.add_argument(
        "--accumulate",
        type=command.positive_int,
        default=1,
        help="parts in which a step's batch goes through the network, for small GPUs; batch norm and Dice see a part",
    )
    job.add_argument(
        "--checkpoint_activations",
        type=int,
        choices=(0, 1),
        default=0,
        help="1: compute each stage again for its gradient instead of keeping it: less memory, a third more time",
    )
    job.add_argument(
        "--sync_batchnorm",
        type=int,
        choices=(0, 1),
        default=0,
        help="1: batch norm over all GPUs of torchrun",
    )
    job.add_argument("--runs", default="runs", help="folder of all runs")
    job.add_argument(
        "--name", help="of the run's folder (default: <method>_<labelnum>); name variants with it"
    )
    job.add_argument(
        "--resume", action="store_true", help="go on from the last checkpoint, if there is one"
    )
    job.add_argument(
        "--log_every", type=command.positive_int, default=20, help="steps between records"
    )
    job.add_argument(
        "--save_minutes", type=command.positive, default=5, help="longest time between checkpoints"
    )
    job.add_argument(
        "--keep_every",
        type=command.non_negative_int,
        default=0,
        help="keep step_<n>.pth every n steps, for curves; 0: never",
    )
    job.add_argument(
        "--picture_every",
        type=command.positive_int,
        default=200,
        help="steps between TensorBoard pictures",
    )
    parser.set_defaults(**defaults)
    return parser


def parse(parser, rules=(), argv=None):
    """Parse, and fill in what the command line leaves open.

    Args:
        parser: from `parser`.
        rules: the method's defaults; of those that hold, the last wins.
        argv: the command line; the process's own without it.

    Returns:
        The options, and in `sources` where the value of each came from.

    Raises:
        UserError: a patch that the network cannot take, or none known for this `--downsample`; a
            validation that cannot be.
    """
    given = _given(parser, argv)
    args = parser.parse_args(argv)
    sources = {key: "command line" if key in given else "script" for key in vars(args)}

    def fill(source, **values):
        for key, value in values.items():
            if key in sources and key not in given:
                setattr(args, key, value)
                sources[key] = source

    data = dataset_class(args.dataset, args.root or default_root(args.dataset))
    fill(
        data.source,
        **{key: getattr(data, key) for key in PROTOCOL if getattr(args, key, None) is None},
    )
    if not hasattr(args, "unlabeled_bs") and sources["labeled_bs"] == data.source:
        fill(
            f"{data.source}: both streams' together", labeled_bs=data.labeled_bs + data.unlabeled_bs
        )
    if args.downsample in data.patches:
        fill(
            data.source if args.downsample == 1 else "half resolution",
            patch=list(data.patches[args.downsample]),
        )
    elif args.patch is None:
        what = (
            "is of slices: take a smaller --patch"
            if len(data.patches[1]) == 2
            else "has no crop for it: give --patch"
        )
        raise UserError(f"--downsample {args.downsample}: {args.dataset} {what}")
    for row in rules:
        if row.when(args):
            fill(row.source, **row.values)
    network = network_class(args.net)
    if args.n_filters is None:
        fill(args.net, n_filters=network.defaults.n_filters)
    if args.val_fraction and args.val_from is None:
        fill(data.source, val_from=data.val_from)
    _check(args, data, network)
    args.sources = sources
    return args


def _given(parser, argv):
    """Names of the options that stand on the command line."""
    defaults = [(action, action.default) for action in parser._actions]
    kept, parser._defaults = parser._defaults, {}
    for action, _ in defaults:
        action.default = argparse.SUPPRESS
    try:
        return vars(parser.parse_args(argv)).keys()
    finally:
        parser._defaults = kept
        for action, default in defaults:
            action.default = default


def _check(args, data, network):
    """Raise `UserError` where data set, network and patch do not fit each other."""
    dims = len(data.patches[1])
    shown = " ".join(map(str, args.patch))
    if args.val_from == "list" and "val" not in data.splits:
        raise UserError(
            f"--val_from list: {args.dataset} has no validation list; give --val_fraction"
        )
    if (args.val_from == "list") == bool(args.val_fraction) and args.val_from:
        how = (
            "is taken whole: leave --val_fraction out"
            if args.val_fraction
            else "needs --val_fraction"
        )
        raise UserError(f"--val_from {args.val_from} {how}")
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


def describe(args):
    """Lines for the log: options by where their values came from."""
    groups = {}
    for key, source in args.sources.items():
        if getattr(args, key) is not None:
            groups.setdefault(source, []).append(f"{key}={_short(getattr(args, key))}")
    return [f"{source}: {' '.join(values)}" for source, values in groups.items()]


def _short(value):
    return ",".join(map(str, value)) if isinstance(value, (list, tuple)) else value


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
}


MAY_DIFFER |= {"cache", "cache_dir", "checkpoint_activations"}


def first_difference(before, options, ignored):
    """The first option, by name, that both have with different values, or None."""
    shared = sorted((before.keys() & options.keys()) - ignored)
    return next((key for key in shared if before[key] != options[key]), None)


# options in which two runs of one training may differ besides: its name, and the precision that the
# device made of the one asked for
NOT_COMPARED = MAY_DIFFER | {"name", "precision", "precision_asked"}


def other_option(trained, asked):
    """The first option, by name, that a run was trained with otherwise than a script would be with
    the options `asked`, or None. A precision is the same if the run asked for it or came to it.
    """
    key = first_difference(trained, asked, NOT_COMPARED)
    if key:
        return key
    precisions = trained.get("precision_asked", asked["precision"]), trained.get("precision")
    return None if asked["precision"] in precisions else "precision"
