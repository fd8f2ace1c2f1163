"""ICT, interpolation consistency training (Verma et al., IJCAI 2019), for segmentation.

The student's prediction for a mixture of two unlabelled crops is pulled to the same mixture of the
mean teacher's predictions for the two.

    L = L_sup + λ(t) L_con
    L_sup = (CE(p, Y) + Dice(p, Y)) / 2                        on the labelled crops
    L_con = mean (p(x_m) - (1 - κ) p'(u₀) - κ p'(u₁))²         over pairs, voxels and classes
    x_m   = (1 - κ) u₀ + κ u₁

    u₀, u₁  a pair of unlabelled crops: one of the first half of a batch, one of the second
    κ       share of the second, drawn from Beta(α, α) for each pair; α = 0.2
    p, p'   softmax of the student, and of the teacher for the clean crops; p' has no gradient
    Y       label
    Dice    loss 1 - 2 Σ p y / (Σ p² + Σ y²), mean over all classes with the background
    λ(t)    weight w exp(-5 (1 - t/t_max)²) of the consistency, w = 0.1

    The teacher's weights are θ' = a θ' + (1 - a) θ after each step. Its dropout stays on.

    python code/train_ict.py --labelnum 16 --gpu 0
    python code/test_LA.py --method ict --labelnum 16 --nms 0
    python code/train_ict.py --dataset ACDC --labelnum 7 --gpu 0

The paper is about the classification of images. For segmentation the field compares with SSL4MIS's
code, for BraTS2019 and ACDC. From it: all of the above; a = min(1 - 1/t, 0.99); on these two data
sets 30 000 iterations with the learning rate 0.01 (1 - t/t_max)^0.9. There λ(t) is a staircase of
steps of 150 iterations; here it rises smoothly. Customs of the field (UA-MT), on all other data
sets: SGD 0.01, ×0.1 every 2500 of 6000 iterations. Momentum 0.9 and weight decay 1e-4 are both
codes'. The student is tested. Ours: the teacher sees both halves in one pass.

The original mixes the teacher's logits (`--mix logits`), and the labelled images too, which is left
out here. It has α = 1 or 0.1, a = 0.999 and w = 100, reached after a quarter of the training
(`--consistency 100 --rampup_share 0.25`).
"""

import copy

import torch

import _root  # noqa: F401
from dataloaders.two_stream import two_stream_loader
from networks import network_class
from utils import command
from utils.errors import UserError
from utils.losses import supervised_loss
from utils.schedules import consistency_weight, ema_decay, learning_rate, set_lr, update_teacher
from utils.training import options, run
from utils.training.options import rule


def in_ssl4mis(args):
    return args.dataset in ("BraTS2019", "ACDC")


WEIGHTS = {"consistency": 0.1, "rampup_share": 1.0, "ema_decay": 0.99, "alpha": 0.2}
DEFAULTS = [  # where several rules hold, the last one wins
    rule("ours", mix="probabilities", **WEIGHTS),
    rule(
        "custom of the field: UA-MT",
        base_lr=0.01,
        decay="step",
        lr_step=2500,
        max_iterations=6000,
    ),
    rule(
        "released code: SSL4MIS",
        in_ssl4mis,
        base_lr=0.01,
        decay="poly",
        max_iterations=30000,
        mix="probabilities",
        **WEIGHTS,
    ),
]
TEST_FLAGS = {"*": "--nms 0"}  # the released code filters no components

# ------------------------------------------------------------------------------------- the losses
# To fork: draw κ from another distribution, or mix in another way, such as by a box.


def mixing_shares(pairs, alpha):
    """κ of so many pairs, `(pairs,)`, from Beta(α, α)."""
    return torch.distributions.Beta(alpha, alpha).sample((pairs,))


def mix(values, kappa):
    """`(B, ...)` to `(B/2, ...)`: 1 - κ of the first half and κ of the second."""
    first, second = values.chunk(2)
    kappa = kappa.view(-1, *[1] * (values.ndim - 1))
    return (1 - kappa) * first + kappa * second


def target(z_teacher, kappa, kind):
    """What the student should predict for the mixtures, `(B_u/2, C, *S)`.

    Args:
        z_teacher: the teacher's logits `(B_u, C, *S)` of the unlabelled crops.
        kappa: κ, `(B_u/2,)`.
        kind: what is mixed, `probabilities` or `logits`.
    """
    if kind == "logits":
        return mix(z_teacher, kappa).softmax(1)
    return mix(z_teacher.softmax(1), kappa)


def consistency_loss(z_mixed, p_target):
    """L_con: logits of the mixtures and their targets, both `(B_u/2, C, *S)`."""
    return (z_mixed.softmax(1) - p_target).square().mean()


def objective(z, z_teacher, kappa, label, weight, args):
    """The loss of a step.

    Args:
        z: the student's logits, float32 `(B_l + B_u/2, C, *S)`, of the labelled crops and of the
            mixtures.
        z_teacher: the teacher's logits `(B_u, C, *S)` of the unlabelled crops; None where λ(t) is
            0.
        kappa: κ, `(B_u/2,)`.
        label: int64 `(B_l, *S)`.
        weight: λ(t).
        args: `mix`.

    Returns:
        The loss, and its terms by name.
    """
    labelled = len(label)
    loss_sup = supervised_loss(z[:labelled], label, background=True)
    if not weight:
        return loss_sup, {"loss_sup": loss_sup, "loss_con": 0.0}
    loss_con = consistency_loss(z[labelled:], target(z_teacher, kappa, args.mix))
    return loss_sup + weight * loss_con, {"loss_sup": loss_sup, "loss_con": loss_con}


# ------------------------------------------------------------------------------------ the options


def parse(argv=None):
    parser = options.parser(__doc__, __file__)
    method = parser.add_argument_group("method")
    options.add_iterations(method, decay="either")
    options.add_consistency(method)
    options.add_teacher(method)
    method.add_argument(
        "--alpha",
        type=command.positive,
        help="α of Beta(α, α), from which the shares κ are drawn; 1 draws them evenly from 0 to 1",
    )
    method.add_argument(
        "--mix",
        choices=("probabilities", "logits"),
        help="which of the teacher's outputs are mixed",
    )
    args = options.parse(parser, DEFAULTS, argv)
    if not args.consistency:
        of_consistency = ("rampup_share", "ema_decay", "mix")
        options.refuse_without_effect(args, of_consistency, "--consistency 0")
    return args


def check_pairs(args, shares):
    """Insist on whole pairs of unlabelled crops, also where a step is shared out.

    Args:
        args: `unlabeled_bs`.
        shares: parts of a step, over all processes and all parts of `--accumulate`.

    Raises:
        UserError: a share has an odd number of unlabelled crops.
    """
    if args.unlabeled_bs // shares % 2:
        wanted = f"a multiple of {2 * shares}" if shares > 1 else "even"
        raise UserError(f"ICT mixes pairs: --unlabeled_bs must be {wanted}")


# -------------------------------------------------------------------------------- the training loop


def main(argv=None):
    args = parse(argv)
    job = run.Run(args, __file__)
    check_pairs(args, job.shares)
    data = two_stream_loader(args, job.device)

    network = network_class(args.net)
    shape = (data.in_channels, data.num_classes, args.n_filters, args.normalization)
    net = job.to_device(network(*shape))
    net_teacher = copy.deepcopy(net).requires_grad_(False)
    student = job.parallel(net)
    teacher = job.parallel(net_teacher)
    optimizer = torch.optim.SGD(net.parameters(), lr=args.base_lr, momentum=0.9, weight_decay=1e-4)
    job.resume(net=net, teacher=net_teacher, optimizer=optimizer)

    for step, batch in job.steps(data, args.max_iterations):
        lr = learning_rate(step, args)
        set_lr(optimizer, lr)
        weight = consistency_weight(step, args)

        labelled = batch.image[: batch.labeled_bs]
        unlabelled = batch.image[batch.labeled_bs :]
        kappa = mixing_shares(len(unlabelled) // 2, args.alpha).to(job.device)
        z_teacher = None
        if weight:
            with torch.no_grad():
                z_teacher = teacher(unlabelled).float()
        z = student(torch.cat((labelled, mix(unlabelled, kappa)))).float()
        loss, terms = objective(z, z_teacher, kappa, batch.label, weight, args)

        job.optimize(loss, optimizer)
        if batch.last_part:  # with --accumulate: once a step, after the optimizer's
            update_teacher(net_teacher, net, ema_decay(step - 1, args.ema_decay))
        job.log(step, loss=loss, **terms, consistency_weight=weight, lr=lr)
        job.checkpoint(step)


if __name__ == "__main__":
    command.run(main)
