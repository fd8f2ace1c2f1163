"""The options that all training scripts share, group by group of their `--help`."""

from collections.abc import Sequence
from typing import Any

from dataloaders import DATASETS
from dataloaders.cache import MODES
from dataloaders.transforms import AUGMENTS
from networks import NETWORKS, network_class
from utils import command


def parser(
    doc: str,
    script: str,
    presets: Sequence[str] = (),
    unlabeled: bool = True,
    **defaults: Any,
) -> command.Parser:
    """A parser of the shared options, to which a script adds its method's own.

    Args:
        doc: the script's docstring.
        script: the script's `__file__`.
        presets: names for `--preset`, the default first; none leave the option out.
        unlabeled: False leaves the unlabelled stream out.
        defaults: the script's own defaults.
    """
    parser = command.Parser(doc, script)
    _add_data(parser, unlabeled)
    _add_validation(parser)
    _add_network(parser)
    run = parser.add_argument_group("run")
    _add_training(run, presets)
    _add_machine(run)
    _add_folder(run)
    parser.set_defaults(**defaults)
    return parser


def _add_data(parser, unlabeled):
    group = parser.add_argument_group("data")
    group.add_argument(
        "--dataset", choices=sorted(DATASETS), default="LA", help="data set and its protocol"
    )
    group.add_argument("--root", help="folder of the data (default: data/<dataset>)")
    group.add_argument(
        "--labelnum",
        type=command.positive_int,
        help="number of labelled training cases or patients, the first of the list",
    )
    group.add_argument(
        "--labeled_bs", type=command.positive_int, help="labelled crops or slices a step"
    )
    if unlabeled:
        group.add_argument(
            "--unlabeled_bs", type=command.positive_int, help="unlabelled crops or slices a step"
        )
    group.add_argument(
        "--patch",
        type=command.positive_int,
        nargs="+",
        metavar="X",
        help="extents of a crop, X Y Z, or of a slice, X Y",
    )
    group.add_argument(
        "--downsample",
        type=command.positive_int,
        default=1,
        help="2 trains at half resolution, for machines without a GPU",
    )
    group.add_argument(
        "--augment",
        choices=tuple(AUGMENTS),
        help="3-D: rot_flip turns and flips each crop, crop does neither; 2-D: rotate turns by "
        "quarters and flips, or turns by up to 20°, affine turns by up to 30°, scales by 0.5 to 2 "
        "and flips, rotate_crop turns by up to 45°, flips and crops 85 to 95 %% of the area, "
        "resize does none of it",
    )
    group.add_argument(
        "--cache",
        choices=MODES,
        default="auto",
        help="where decoded data is kept: gpu; ram; auto, which is gpu where a quarter of its free "
        "memory is enough; off reads it for each step, which --cache_dir makes fast",
    )
    group.add_argument(
        "--cache_dir", help="folder to store decoded data in; later starts read it from there"
    )


def _add_validation(parser):
    group = parser.add_argument_group("validation")
    group.add_argument(
        "--val_fraction",
        type=command.fraction,
        default=0,
        help="fraction of the training cases to keep aside for choosing best.pth; 0: none",
    )
    group.add_argument(
        "--val_from",
        choices=("unlabeled", "labeled", "list"),
        help="which cases to keep aside: unlabelled ones, whose labels are then read (default, "
        "except for own data), labelled ones, or the published list",
    )
    group.add_argument(
        "--val_every", type=command.positive_int, default=200, help="steps between validations"
    )


def _choice_of_net():
    """Help of --net: the networks of each dimension."""
    by_dimension = {}
    for name in NETWORKS:
        by_dimension.setdefault(network_class(name).dims, []).append(name)
    parts = [f"{dims}-D: {', '.join(names)}" for dims, names in by_dimension.items()]
    return "; ".join(parts)


def _add_network(parser):
    group = parser.add_argument_group("network")
    group.add_argument("--net", choices=NETWORKS, help=_choice_of_net())
    group.add_argument("--n_filters", type=command.positive_int, help="channels of the first stage")
    group.add_argument(
        "--normalization",
        choices=("batchnorm", "instancenorm", "groupnorm", "none"),
        help="layer after each convolution (default: batchnorm)",
    )


def _add_training(group, presets):
    if presets:
        group.add_argument(
            "--preset",
            choices=presets,
            default=presets[0],
            help="train as the paper says, or as its released code does",
        )
    group.add_argument(
        "--base_lr", type=command.positive, default=0.01, help="learning rate at the start"
    )
    group.add_argument(
        "--seed",
        type=command.non_negative_int,
        default=1337,
        help="seed of weights, orders, crops and dropout",
    )


def _add_machine(group):
    group.add_argument(
        "--gpu",
        type=command.gpu,
        default=0,
        help="number of the GPU, or -1 for the CPU; start with torchrun to use several GPUs",
    )
    group.add_argument(
        "--precision",
        choices=("auto", "fp32", "tf32", "bf16"),
        default="auto",
        help="precision of convolutions; auto: bf16 where it is fast; fp32 is strict; tf32 needs a "
        "GPU",
    )
    group.add_argument(
        "--compile",
        type=int,
        choices=(0, 1),
        default=0,
        help="1 runs networks through torch.compile: minutes at the start for a faster step",
    )
    group.add_argument(
        "--deterministic",
        type=int,
        choices=(0, 1),
        default=0,
        help="1 makes a GPU give the same bits every time; slower",
    )
    group.add_argument(
        "--accumulate",
        type=command.positive_int,
        default=1,
        help="number of parts in which a step's batch goes through the network, for small GPUs; "
        "batch norm and Dice see one part at a time",
    )
    group.add_argument(
        "--checkpoint_activations",
        type=int,
        choices=(0, 1),
        default=0,
        help="1 stores only each stage's input and recomputes the rest in the backward pass: less "
        "memory, a third more time",
    )
    group.add_argument(
        "--sync_batchnorm",
        type=int,
        choices=(0, 1),
        default=0,
        help="1 computes batch norm over all GPUs of torchrun",
    )


def _add_folder(group):
    group.add_argument("--runs", default="runs", help="folder of all runs")
    group.add_argument(
        "--name",
        help="name of the run's folder (default: <method>_<labelnum>); give variants their own",
    )
    group.add_argument(
        "--resume", action="store_true", help="go on from the last checkpoint, if there is one"
    )
    group.add_argument(
        "--log_every", type=command.positive_int, default=20, help="steps between records"
    )
    group.add_argument(
        "--save_minutes",
        type=command.positive,
        default=5,
        help="longest time between checkpoints",
    )
    group.add_argument(
        "--keep_every",
        type=command.non_negative_int,
        default=0,
        help="keep step_<n>.pth every n steps, for curves; 0: never",
    )
    group.add_argument(
        "--picture_every",
        type=command.positive_int,
        default=200,
        help="steps between TensorBoard pictures",
    )


# -------------------------------------------------- options that many methods have in their group


def add_iterations(group, decay: str = "step") -> None:
    """`--max_iterations`, and how the learning rate falls: with `decay="step"` `--lr_step`, with
    `either` `--decay` besides.
    """
    group.add_argument("--max_iterations", type=command.positive_int, help="number of steps")
    if decay == "either":
        group.add_argument(
            "--decay",
            choices=("step", "poly"),
            help="how the learning rate falls: in steps (--lr_step), or as (1 - t/t_max)^0.9",
        )
    if decay in ("step", "either"):
        group.add_argument(
            "--lr_step",
            type=command.non_negative_int,
            help="multiply the learning rate by 0.1 every so many steps; 0 keeps it constant",
        )


def add_consistency(group) -> None:
    """`--consistency` and `--rampup_share`, the weight of the unlabelled loss and its growth."""
    group.add_argument(
        "--consistency",
        type=command.non_negative,
        help="largest weight λ of the loss on unlabelled crops",
    )
    group.add_argument(
        "--rampup_share",
        type=command.fraction,
        help="share of the training in which λ grows to its largest value; 0: at once",
    )


def add_teacher(group) -> None:
    """`--ema_decay`, of a mean teacher."""
    group.add_argument(
        "--ema_decay",
        type=command.fraction,
        help="maximum EMA decay of the teacher; lower it for short runs",
    )
