"""MT, mean teacher (Tarvainen & Valpola, NeurIPS 2017), for segmentation.

A teacher, whose weights are the moving average of the student's, sees each unlabelled crop with
noise, and the student, which sees it without, is pulled to the teacher's prediction.

    L = L_sup + λ(t) L_con
    L_sup = (CE(p, Y) + Dice(p, Y)) / 2    on the labelled crops
    L_con = mean (p - p')²                 on the unlabelled crops, over voxels and classes

    p, p'  softmax of the student, and of the teacher for x + ε; p' has no gradient
    ε      noise clamp(N(0, 0.1²), ±0.2) of each voxel
    Y      label
    Dice   loss 1 - 2 Σ p y / (Σ p² + Σ y²), mean over all classes with the background
    λ(t)   weight w exp(-5 (1 - t/t_max)²) of the consistency, w = 0.1

    The teacher's weights are θ' = a θ' + (1 - a) θ after each step. Its dropout stays on.

    python code/train_mt.py --labelnum 16 --gpu 0
    python code/test_LA.py --method mt --labelnum 16 --nms 0
    python code/train_mt.py --dataset ACDC --labelnum 7 --gpu 0

The paper is about the classification of images. For segmentation the field compares with SSL4MIS's
code, for BraTS2019 and ACDC. From it: the losses and their weights; a = min(1 - 1/t, 0.99); on
these two data sets 30 000 iterations with the learning rate 0.01 (1 - t/t_max)^0.9, and on ACDC
λ = 0 in the first 1000 iterations. There λ(t) is a staircase of steps of 150 iterations; here it
rises smoothly. Customs of the field (UA-MT), on all other data sets: SGD 0.01, ×0.1 every 2500 of
6000 iterations. Momentum 0.9 and weight decay 1e-4 are both codes'. The student is tested.

The original has a = 0.999, and compares the two networks on the labelled images too, which is
`--consistency_on all`.
"""

import copy

import torch

import _root  # noqa: F401
from dataloaders.two_stream import two_stream_loader
from networks import network_class
from utils import command, schedules
from utils.losses import supervised_loss
from utils.perturbations import noisy
from utils.schedules import ema_decay, learning_rate, set_lr, update_teacher
from utils.training import options, run
from utils.training.options import rule


def on_acdc(args):
    return args.dataset == "ACDC"


def in_ssl4mis(args):
    return args.dataset in ("BraTS2019", "ACDC")


WEIGHTS = {"consistency": 0.1, "rampup_share": 1.0, "ema_decay": 0.99}
DEFAULTS = [  # where several rules hold, the last one wins
    rule("ours", consistency_on="unlabeled", warmup_share=0.0, **WEIGHTS),
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
        consistency_on="unlabeled",
        **WEIGHTS,
    ),
    rule("released code: SSL4MIS", on_acdc, warmup_share=1 / 30),
]
TEST_FLAGS = {"*": "--nms 0"}  # the released code filters no components

# ------------------------------------------------------------------------------------- the losses
# To fork: compare by another divergence in `consistency_loss`.


def consistency_loss(z, z_teacher):
    """L_con: logits `(B, C, *S)` of the student and the teacher for the same crops."""
    return (z.softmax(1) - z_teacher.softmax(1)).square().mean()


def consistency_weight(step, args):
    """λ(t): `args` holds `consistency`, `rampup_share`, `warmup_share` and `max_iterations`."""
    if step - 1 < args.warmup_share * args.max_iterations:
        return 0.0
    return schedules.consistency_weight(step, args)


def compared(values, labelled, args):
    """Those samples of a batch `(B, ...)` whose predictions are compared, of which the first
    `labelled` are labelled.
    """
    return values if args.consistency_on == "all" else values[labelled:]


def objective(z, z_teacher, label, weight, args):
    """The loss of a step.

    Args:
        z: the student's logits, float32 `(B, C, *S)`, labelled crops first.
        z_teacher: the teacher's logits of the crops that are `compared`; None where λ(t) is 0.
        label: int64 `(B_l, *S)`.
        weight: λ(t).
        args: `consistency_on`.

    Returns:
        The loss, and its terms by name.
    """
    loss_sup = supervised_loss(z[: len(label)], label, background=True)
    if not weight:
        return loss_sup, {"loss_sup": loss_sup, "loss_con": 0.0}
    loss_con = consistency_loss(compared(z, len(label), args), z_teacher)
    return loss_sup + weight * loss_con, {"loss_sup": loss_sup, "loss_con": loss_con}


# ------------------------------------------------------------------------------------ the options


def parse(argv=None):
    parser = options.parser(__doc__, __file__)
    method = parser.add_argument_group("method")
    options.add_iterations(method, decay="either")
    options.add_consistency(method)
    method.add_argument(
        "--warmup_share",
        type=command.fraction,
        help="share of the training at whose start λ is 0",
    )
    options.add_teacher(method)
    method.add_argument(
        "--consistency_on",
        choices=("unlabeled", "all"),
        help="crops on which student and teacher are compared",
    )
    args = options.parse(parser, DEFAULTS, argv)
    if not args.consistency:
        of_consistency = ("rampup_share", "warmup_share", "ema_decay", "consistency_on")
        options.refuse_without_effect(args, of_consistency, "--consistency 0")
    return args


# -------------------------------------------------------------------------------- the training loop
# To fork: perturb the student's or the teacher's image in another way than by `noisy`.


def main(argv=None):
    args = parse(argv)
    job = run.Run(args, __file__)
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

        z_teacher = None
        if weight:
            image_teacher = noisy(compared(batch.image, batch.labeled_bs, args))
            with torch.no_grad():
                z_teacher = teacher(image_teacher).float()
        z = student(batch.image).float()
        loss, terms = objective(z, z_teacher, batch.label, weight, args)

        job.optimize(loss, optimizer)
        if batch.last_part:  # with --accumulate: once a step, after the optimizer's
            update_teacher(net_teacher, net, ema_decay(step - 1, args.ema_decay))
        job.log(step, loss=loss, **terms, consistency_weight=weight, lr=lr)
        job.checkpoint(step)


if __name__ == "__main__":
    command.run(main)
