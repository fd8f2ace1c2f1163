"""DMD, deep mutual distillation (Xie et al., MICCAI 2023).

Two networks learn from the labels, and their softened predictions are pulled together.

    L = L_sup + λ L_distill
    L_sup     = Dice(p₁, Y) + Dice(p₂, Y)       on the labelled crops
    L_distill = Dice(q₁, q₂)                    on all crops; its gradient goes to both networks

    pᵢ       softmax(zᵢ) of network i, whose logits are zᵢ
    qᵢ       softmax(zᵢ / T), with the temperature T
    Y        label
    Dice     loss 1 - 2 Σ a b / (Σ a² + Σ b²), mean over the foreground classes
    λ        weight of the distillation; there is no ramp-up

    python code/train_dmd.py --labelnum 16 --gpu 0
    python code/test_LA.py --method dmd --labelnum 16 --nms 0
    python code/train_dmd.py --dataset ACDC --labelnum 3 --gpu 0
    python code/train_dmd.py --dataset ACDC --labelnum 3 --max_iterations 30000 --lr_step 0 --gpu 0

Setting of the paper, on LA: two V-Nets with different random weights; SGD for both with learning
rate 0.01, ×0.1 every 2500 of 6000 iterations; λ = 4; T = 2 with 8 labels and 1.93 with 16. One of
the networks is tested; here it is the first. For the rest the paper follows MC-Net, and so the
field: momentum 0.9, weight decay 1e-4, 2 labelled and 2 unlabelled crops a step.

The paper's table of ACDC is "under the settings of" SS-Net, whose code trains 30 000 iterations at
a constant rate. The default on ACDC is LA's schedule, which is ours; the last command has SS-Net's.

`--distill kl` distils by KL divergence in both directions, with λ = 1. At `--temperature 1` that is
deep mutual learning (DML; Zhang et al., CVPR 2018), the paper's baseline. Fig. 3b varies λ, with
T = 2 and Dice; Fig. 4 varies T, for Dice with λ = 4 and for KL with λ = 1. Both have 8 labels.
"""

import torch

import _root  # noqa: F401
from dataloaders.two_stream import two_stream_loader
from networks import network_class
from utils import command
from utils.losses import dice_loss, foreground_dice_loss
from utils.schedules import set_lr, step_decay
from utils.training import options, run
from utils.training.options import rule


def on_la(args):
    return args.dataset == "LA"


def dice_on_la(args):
    return on_la(args) and args.distill == "dice"


def kl_on_la(args):
    return on_la(args) and args.distill == "kl"


SCHEDULE = {"base_lr": 0.01, "lr_step": 2500, "max_iterations": 6000}
DEFAULTS = [  # where several rules hold, the last one wins
    rule("paper, 2.3", distill="dice"),
    rule("ours", **SCHEDULE),
    rule("ours", lambda args: args.distill == "dice", lambda_distill=4.0),
    rule("ours", lambda args: args.distill == "kl", lambda_distill=1.0),
    rule("paper, 3.1", on_la, labelnum=16, net="vnet", **SCHEDULE),
    rule("ours", lambda args: args.labelnum <= 8, temperature=2.0),
    rule("ours", lambda args: args.labelnum > 8, temperature=1.93),
    rule("paper, 3.1", dice_on_la, lambda_distill=4.0),
    rule(
        "paper, 3.1",
        lambda args: dice_on_la(args) and args.labelnum == 8,
        temperature=2.0,
    ),
    rule(
        "paper, 3.1",
        lambda args: dice_on_la(args) and args.labelnum == 16,
        temperature=1.93,
    ),
    rule(
        "paper, Fig. 4",
        lambda args: kl_on_la(args) and args.labelnum == 8,
        lambda_distill=1.0,
    ),
]
TEST_FLAGS = {"*": "--nms 0"}  # neither the paper nor its code filters components

# ------------------------------------------------------------------------------------- the losses
# To fork: distil by another divergence in `distillation_loss`.


def supervised_loss(z_1, z_2, label):
    """The two terms of L_sup: logits `(B_l, C, *S)` of the labelled crops, label `(B_l, *S)`."""
    loss_1 = foreground_dice_loss(z_1.softmax(1), label)
    loss_2 = foreground_dice_loss(z_2.softmax(1), label)
    return loss_1, loss_2


def distillation_loss(z_1, z_2, temperature):
    """L_distill, equation 6: Dice between q₁ and q₂; logits `(B, C, *S)` of all crops."""
    q_1 = log_tempered(z_1, temperature).exp()
    q_2 = log_tempered(z_2, temperature).exp()
    foreground = range(1, q_1.shape[1])
    return sum(dice_loss(q_1[:, c], q_2[:, c]) for c in foreground) / len(foreground)


def distillation_loss_kl(z_1, z_2, temperature):
    """L_distill by KL in both directions, mean over voxels.

    KL(q₂ ‖ q₁) + KL(q₁ ‖ q₂) = Σ (q₁ - q₂) (ln q₁ - ln q₂), the sum over the classes.
    """
    log_q_1 = log_tempered(z_1, temperature)
    log_q_2 = log_tempered(z_2, temperature)
    return ((log_q_1.exp() - log_q_2.exp()) * (log_q_1 - log_q_2)).sum(1).mean()


def log_tempered(z, temperature):
    """ln q = ln softmax(z / T), equation 4."""
    return (z / temperature).log_softmax(1)


def objective(z_1, z_2, label, args):
    """The loss of a step, equation 7.

    Args:
        z_1, z_2: logits of the two networks, float32 `(B, C, *S)`, labelled crops first.
        label: int64 `(B_l, *S)`.
        args: `distill`, `temperature` and `lambda_distill`.

    Returns:
        The loss, and its terms by name.
    """
    labelled = slice(len(label))
    loss_1, loss_2 = supervised_loss(z_1[labelled], z_2[labelled], label)
    distil = distillation_loss_kl if args.distill == "kl" else distillation_loss
    loss_distill = distil(z_1, z_2, args.temperature)
    loss = loss_1 + loss_2 + args.lambda_distill * loss_distill
    return loss, {"loss_1": loss_1, "loss_2": loss_2, "loss_distill": loss_distill}


# ------------------------------------------------------------------------------------ the options


def parse(argv=None):
    parser = options.parser(__doc__, __file__)
    method = parser.add_argument_group("method")
    method.add_argument(
        "--max_iterations",
        type=command.positive_int,
        help="number of steps; 30000 with --lr_step 0 is SS-Net's schedule for ACDC",
    )
    method.add_argument(
        "--lr_step",
        type=command.non_negative_int,
        help="multiply the learning rate by 0.1 every so many steps; 0 keeps it constant",
    )
    method.add_argument("--distill", choices=("dice", "kl"), help="loss between the networks")
    method.add_argument(
        "--temperature",
        type=command.positive,
        help="T; raise it for softer targets (default: 2 with up to 8 labels, 1.93 with more)",
    )
    method.add_argument(
        "--lambda_distill",
        type=command.non_negative,
        help="λ, weight of the distillation (default: 4 for dice, 1 for kl)",
    )
    args = options.parse(parser, DEFAULTS, argv)
    if not args.lambda_distill:
        of_distillation = ("distill", "temperature")
        options.refuse_without_effect(args, of_distillation, "--lambda_distill 0")
    return args


# -------------------------------------------------------------------------------- the training loop
# To fork: for a third network, add its supervised loss and distil between every two of them.


def main(argv=None):
    args = parse(argv)
    job = run.Run(args, __file__)
    data = two_stream_loader(args, job.device)

    network = network_class(args.net)
    shape = (data.in_channels, data.num_classes, args.n_filters, args.normalization)
    net_1 = job.to_device(network(*shape))
    net_2 = job.to_device(network(*shape))
    model_1 = job.parallel(net_1)
    model_2 = job.parallel(net_2)
    parameters = [*net_1.parameters(), *net_2.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=args.base_lr, momentum=0.9, weight_decay=1e-4)
    job.resume(net=net_1, net_2=net_2, optimizer=optimizer)  # `net` is the one that is tested

    for step, batch in job.steps(data, args.max_iterations):
        lr = step_decay(args.base_lr, step, args.lr_step)
        set_lr(optimizer, lr)

        z_1 = model_1(batch.image).float()
        z_2 = model_2(batch.image).float()
        loss, terms = objective(z_1, z_2, batch.label, args)

        job.optimize(loss, optimizer)
        job.log(step, loss=loss, **terms, lr=lr)
        job.checkpoint(step)


if __name__ == "__main__":
    command.run(main)
