"""UA-MT, uncertainty-aware mean teacher (Yu et al., MICCAI 2019).

The student is pulled to the prediction of its mean teacher only where the teacher is certain.

    L = L_sup + λ(t) L_con
    L_sup = (CE(p, Y) + Dice(p, Y)) / 2    on the labelled crops
    L_con = mean_M (p - p')²               on all crops, over certain voxels and classes

    p, p'  softmax of the student, and of the teacher for x + ε; p' has no gradient
    ε      noise clamp(N(0, 0.1²), ±0.2) of each voxel, drawn anew in each pass of the teacher
    Y      label
    Dice   loss 1 - 2 Σ p y / (Σ p² + Σ y²), mean over the foreground classes
    M      certain voxels, where u < H(t); u is the entropy of the mean of T teacher passes
    H(t)   threshold (3/4 + 1/4 r(t)) ln C, which rises to the largest possible entropy
    λ(t)   weight w r(t) of the consistency, w = 0.1, with r(t) = exp(-5 (1 - t/t_max)²)

    The teacher's weights are θ' = a θ' + (1 - a) θ after each step, with a = min(1 - 1/t, 0.99).
    Its dropout stays on.

    python code/train_uamt.py --labelnum 16 --gpu 0
    python code/test_LA.py --method uamt --labelnum 16 --nms 0
    python code/train_uamt.py --dataset ACDC --labelnum 7 --gpu 0

Setting of the released code, on LA: V-Net; SGD with learning rate 0.01, momentum 0.9 and weight
decay 1e-4, ×0.1 every 2500 of 6000 iterations; 2 labelled and 2 unlabelled crops of 112×112×80 a
step; T = 8. The student is tested, without a filter of components. SSL4MIS's copy has 30 000
iterations with the rate 0.01 (1 - t/t_max)^0.9, the default here on BraTS2019 and ACDC.

We could not read the paper. One of the two released scripts compares the networks on all crops,
which we know as the paper's form; the script that the code's page recommends does so on the
unlabelled crops only. Ours: C classes in H(t) and in the mean, where SSL4MIS keeps the numbers of
two classes; each of the T passes is one of its own, where the code sends two through at once, which
then share the statistics of batch norm.

`--preset released` is the recommended script: unlabelled crops only, and λ(t) as a staircase,
w exp(-5 (1 - s/40)²), where s counts blocks of 150 iterations; on BraTS2019 and ACDC, as in
SSL4MIS, with 200 in place of 40.
"""

import copy
import math

import torch

import _root  # noqa: F401
from dataloaders.two_stream import two_stream_loader
from networks import network_class
from utils import command
from utils.losses import masked_mean, supervised_loss
from utils.perturbations import noisy
from utils.schedules import (
    consistency_weight,
    ema_decay,
    gaussian_rampup,
    learning_rate,
    rampup_in_blocks,
    set_lr,
    update_teacher,
)
from utils.training import options, run
from utils.training.options import rule
from utils.uncertainty import entropy


def on_la(args):
    return args.dataset == "LA"


def in_ssl4mis(args):
    return args.dataset in ("BraTS2019", "ACDC")


def released(args):
    return args.preset == "released"


WEIGHTS = {"consistency": 0.1, "ema_decay": 0.99, "threshold_start": 0.75, "passes": 8}
SCHEDULE = {"base_lr": 0.01, "decay": "step", "lr_step": 2500, "max_iterations": 6000}
DEFAULTS = [  # where several rules hold, the last one wins
    rule("ours", rampup_share=1.0, consistency_on="all", **WEIGHTS, **SCHEDULE),
    rule("released code: UA-MT", on_la, consistency_on="all", **WEIGHTS, **SCHEDULE),
    rule(
        "released code: SSL4MIS",
        in_ssl4mis,
        base_lr=0.01,
        decay="poly",
        max_iterations=30000,
        **WEIGHTS,
    ),
    rule("released code: UA-MT", released, consistency_on="unlabeled"),
]
TEST_FLAGS = {"*": "--nms 0"}  # the released code filters no components

# ------------------------------------------------------------------------------------- the losses
# To fork: weigh the voxels in `consistency_loss` in another way.


def consistency_loss(z, z_teacher, certain):
    """L_con: logits `(B, C, *S)` of the student and the teacher, certain voxels bool `(B, *S)`."""
    squares = (z.softmax(1) - z_teacher.softmax(1)).square()
    return masked_mean(squares.mean(1), certain)


def consistency_weight_released(step, args):
    """λ of the released code, which grows in blocks of 150 iterations: 40, of SSL4MIS's 200."""
    blocks = 200 if in_ssl4mis(args) else 40
    return args.consistency * rampup_in_blocks(step, blocks)


def compared(values, labelled, args):
    """Those samples of a batch `(B, ...)` whose predictions are compared, of which the first
    `labelled` are labelled.
    """
    return values if args.consistency_on == "all" else values[labelled:]


def objective(z, z_teacher, certain, label, weight, args):
    """The loss of a step.

    Args:
        z: the student's logits, float32 `(B, C, *S)`, labelled crops first.
        z_teacher: the teacher's logits of the crops that are `compared`; None where λ(t) is 0.
        certain: M of these crops, bool `(B', *S)`; None where λ(t) is 0.
        label: int64 `(B_l, *S)`.
        weight: λ(t).
        args: `consistency_on`.

    Returns:
        The loss, and its terms by name.
    """
    loss_sup = supervised_loss(z[: len(label)], label)
    if not weight:
        return loss_sup, {"loss_sup": loss_sup}
    loss_con = consistency_loss(compared(z, len(label), args), z_teacher, certain)
    terms = {"loss_sup": loss_sup, "loss_con": loss_con, "certain": certain.float().mean()}
    return loss_sup + weight * loss_con, terms


# ------------------------------------------------------------------------------- the uncertainty
# To fork: measure the uncertainty in another way.


def threshold_of(step, args):
    """H(t) over ln C: `args` holds `threshold_start` and `max_iterations`."""
    start = args.threshold_start
    return start + (1 - start) * gaussian_rampup(step, args.max_iterations)


@torch.no_grad()
def uncertainty(teacher, image, passes):
    """u: entropy `(B, *S)`, from 0 to ln C, of the mean of noisy teacher passes."""
    p_hat = sum(teacher(noisy(image)).float().softmax(1) for _ in range(passes)) / passes
    return entropy(p_hat)


# ------------------------------------------------------------------------------------ the options


def parse(argv=None):
    parser = options.parser(__doc__, __file__, ("paper", "released"))
    method = parser.add_argument_group("method")
    options.add_iterations(method, decay="either")
    options.add_consistency(method)
    options.add_teacher(method)
    method.add_argument(
        "--consistency_on",
        choices=("unlabeled", "all"),
        help="crops on which student and teacher are compared",
    )
    method.add_argument(
        "--threshold_start",
        type=command.fraction,
        help="threshold H at the start of training as a share of ln C; 1 keeps it constant",
    )
    method.add_argument(
        "--passes",
        type=command.positive_int,
        help="T, teacher passes that measure the uncertainty; fewer are faster",
    )
    args = options.parse(parser, DEFAULTS, argv)
    if released(args):
        options.refuse_without_effect(args, ("rampup_share",), "--preset released")
    if not args.consistency:
        of_consistency = ("ema_decay", "consistency_on", "threshold_start", "passes")
        options.refuse_without_effect(args, ("rampup_share", *of_consistency), "--consistency 0")
    return args


# -------------------------------------------------------------------------------- the training loop


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
    weight_of = consistency_weight_released if released(args) else consistency_weight

    for step, batch in job.steps(data, args.max_iterations):
        lr = learning_rate(step, args)
        set_lr(optimizer, lr)
        weight = weight_of(step, args)

        z_teacher = certain = None
        if weight:
            image = compared(batch.image, batch.labeled_bs, args)
            with torch.no_grad():
                z_teacher = teacher(noisy(image)).float()
            threshold = threshold_of(step, args) * math.log(data.num_classes)
            certain = uncertainty(teacher, image, args.passes) < threshold
        z = student(batch.image).float()
        loss, terms = objective(z, z_teacher, certain, batch.label, weight, args)

        job.optimize(loss, optimizer)
        if batch.last_part:  # with --accumulate: once a step, after the optimizer's
            update_teacher(net_teacher, net, ema_decay(step - 1, args.ema_decay))
        job.log(step, loss=loss, **terms, consistency_weight=weight, lr=lr)
        job.checkpoint(step)


if __name__ == "__main__":
    command.run(main)
