"""UG-MCL, uncertainty-guided mutual consistency learning (Zhang et al., Artificial Intelligence in
Medicine, 2022).

One network has two heads, for segmentation and for signed distances. Its heads are made to agree
with each other and, where its mean teacher is certain, with the teacher's heads.

    L = L_sup + λ(t) (L_itc + L_ctc)
    L_sup = CE(p, Y) + Dice(p, Y) + L_dis                  on the labelled crops
    L_dis = mean (d - SDM(Y))²
    L_itc = β mean_M (p - p')² + (1 - β) mean_M (d - d')²  on all crops
    L_ctc = mean (p - σ(-k d))²                            on all crops

    p, p'  softmax of the student, and of its mean teacher in one pass; in L_ctc the foreground's
    d, d'  signed distance maps (SDM) of both after tanh: negative inside, in [-1, 1], one for each
           foreground class
    M      certain voxels, where u < H(t); u is the entropy of the mean of T = 8 teacher passes
    H(t)   threshold (3/4 + 1/4 r(t)) ln C, which rises to the largest possible entropy
    λ(t)   weight 0.1 r(t) of the consistency, with r(t) = exp(-5 (1 - t/t_max)²)
    k      1500, so that σ(-k d) is nearly a mask: it has a slope only close to the surface

    The teacher's weights are the EMA θ' = a θ' + (1 - a) θ, a = min(1 - 1/t, 0.99). Its input has
    noise clamp(N(0, 0.1²), ±0.2), drawn anew in each pass, and its dropout stays on.

    python code/train_ugmcl.py --labelnum 16 --gpu 0
    python code/test_LA.py --method ugmcl --labelnum 16

Setting of the paper, on LA: V-Net (U-Net for slices); SGD with learning rate 0.01, momentum 0.9 and
weight decay 1e-4, ×0.1 every 2500 of 6000 iterations; 2 labelled and 2 unlabelled crops a step;
β = 0.75. The student's p is tested.

`--preset released` is the released code, which is for BraTS2019. There L_sup is (CE + Dice +
Dice(σ(-k d), Y)) / 2. L_itc is halved and has β = 1, so it leaves out the distances. λ(t) is
0.1 exp(-5 (1 - s/200)²), where s counts blocks of 150 iterations. The network is a 3-D U-Net with
instance norm, trained for 30 000 iterations at a constant learning rate.
"""

import copy
import math

import torch

import _root  # noqa: F401
from dataloaders.two_stream import two_stream_loader
from networks import network_class
from utils import command
from utils.losses import (
    cross_entropy,
    distance_to_mask,
    foreground_dice_loss,
    masked_mean,
    mean_dice_loss,
    sdm_targets,
)
from utils.schedules import ema_decay, gaussian_rampup, set_lr, step_decay, update_teacher
from utils.training import options, run
from utils.training.options import rule
from utils.uncertainty import entropy

DEFAULTS = [  # where several rules hold, the last one wins
    rule("paper", max_iterations=6000, lr_step=2500),
    rule(
        "paper: as on LA",
        lambda args: args.dataset == "BraTS2019" and args.preset == "paper",
        patch=[112, 112, 80],
    ),
    rule(
        "released code",
        lambda args: args.preset == "released",
        max_iterations=30000,
        lr_step=0,
        beta=1.0,
        normalization="instancenorm",
    ),
    rule(
        "released code",
        lambda args: args.preset == "released" and args.net == "vnet",
        net="unet3d",
    ),
]
TERMS = ("dis", "itc", "ctc")

# ------------------------------------------------------------------------------------- the losses
# To fork: add a term here, and its name to TERMS and `objective`.


def segmentation_loss(z, p, label):
    """CE(p, Y) + Dice(p, Y) of the labelled crops; z are the logits of p."""
    return cross_entropy(z, label) + foreground_dice_loss(p, label)


def distance_loss(d, label):
    """L_dis: mean (d - SDM(Y))² of the labelled crops."""
    return (d - sdm_targets(class_masks(d, label))).square().mean()


def distance_loss_released(mask, label):
    """Dice(σ(-k d), Y), which the released code has in place of L_dis; `mask` is σ(-k d)."""
    return mean_dice_loss(mask, class_masks(mask, label))


def class_masks(d, label):
    """The label as one bool mask a foreground class, of the shape of `d`."""
    return torch.stack([label == c for c in range(1, d.shape[1] + 1)], 1)


def intra_task_loss(p, d, p_teacher, d_teacher, certain, beta):
    """L_itc, equation 4: student and teacher agree on the certain voxels, in either task."""
    of_p = masked_mean((p - p_teacher).square().mean(1), certain)
    of_d = masked_mean((d - d_teacher).square().mean(1), certain)
    return beta * of_p + (1 - beta) * of_d


def cross_task_loss(p, mask):
    """L_ctc, equation 6: the two heads agree; `mask` is σ(-k d)."""
    return (p[:, 1:] - mask).square().mean()


def consistency_weight(step, args):
    """λ(t): `args` holds `consistency` and `max_iterations`."""
    return args.consistency * gaussian_rampup(step, args.max_iterations)


def consistency_weight_released(step, args):
    """λ of the released code, which grows in blocks of 150 iterations."""
    return args.consistency * gaussian_rampup((step - 1) // 150, 200)


def objective(z, d, label, weight, args, teacher=None, certain=None):
    """The loss of a step.

    Args:
        z, d: logits and SDM of the student, float32 `(B, C, *S)` and `(B, C - 1, *S)`, labelled
            crops first.
        label: int64 `(B_l, *S)`.
        weight: λ(t).
        args: `terms` and `beta`.
        teacher: the teacher's logits and SDM; needed for the term `itc`.
        certain: M, bool `(B, *S)`; needed for the term `itc`.

    Returns:
        The loss, and its terms by name.
    """
    labelled = slice(len(label))
    p = z.softmax(1)
    mask = distance_to_mask(d)
    loss = segmentation_loss(z[labelled], p[labelled], label)
    terms = {"loss_seg": loss}
    if "dis" in args.terms:
        terms["loss_dis"] = distance_loss(d[labelled], label)
        loss = loss + terms["loss_dis"]
    if "itc" in args.terms:
        z_teacher, d_teacher = teacher
        p_teacher = z_teacher.softmax(1)
        terms["loss_itc"] = intra_task_loss(p, d, p_teacher, d_teacher, certain, args.beta)
        terms["certain"] = certain.float().mean()
        loss = loss + weight * terms["loss_itc"]
    if "ctc" in args.terms:
        terms["loss_ctc"] = cross_task_loss(p, mask)
        loss = loss + weight * terms["loss_ctc"]
    return loss, terms


def objective_released(z, d, label, weight, args, teacher=None, certain=None):
    """The loss of the released code: L_sup with Dice(σ(-k d), Y) and halved, L_itc halved.

    Arguments and result are those of `objective`.
    """
    labelled = slice(len(label))
    p = z.softmax(1)
    mask = distance_to_mask(d)
    loss = segmentation_loss(z[labelled], p[labelled], label)
    terms = {"loss_seg": loss}
    if "dis" in args.terms:
        terms["loss_dis"] = distance_loss_released(mask[labelled], label)
        loss = loss + terms["loss_dis"]
    loss = loss / 2
    if "itc" in args.terms:
        z_teacher, d_teacher = teacher
        p_teacher = z_teacher.softmax(1)
        terms["loss_itc"] = intra_task_loss(p, d, p_teacher, d_teacher, certain, args.beta) / 2
        terms["certain"] = certain.float().mean()
        loss = loss + weight * terms["loss_itc"]
    if "ctc" in args.terms:
        terms["loss_ctc"] = cross_task_loss(p, mask)
        loss = loss + weight * terms["loss_ctc"]
    return loss, terms


# ------------------------------------------------------------------------------- the uncertainty


def noisy(image):
    """The teacher's input: noise clamp(N(0, 0.1²), ±0.2), whatever the scale of the image."""
    return image + (0.1 * torch.randn_like(image)).clamp(-0.2, 0.2)


def threshold_of(step, args):
    """H(t) over ln C: `args` holds `threshold_start` and `max_iterations`."""
    start = args.threshold_start
    return start + (1 - start) * gaussian_rampup(step, args.max_iterations)


@torch.no_grad()
def uncertainty(teacher, image, passes):
    """u, equation 3: entropy `(B, *S)`, from 0 to ln C, of the mean of noisy teacher passes."""
    p_hat = sum(teacher(noisy(image))[0].float().softmax(1) for _ in range(passes)) / passes
    return entropy(p_hat)


# ------------------------------------------------------------------------------------ the options


def parse(argv=None):
    parser = options.parser(__doc__, __file__, ("paper", "released"))
    method = parser.add_argument_group("method")
    method.add_argument("--max_iterations", type=command.positive_int, help="number of steps")
    method.add_argument(
        "--lr_step",
        type=command.non_negative_int,
        help="multiply the learning rate by 0.1 every so many steps; 0 keeps it constant",
    )
    method.add_argument(
        "--terms",
        choices=TERMS,
        nargs="*",
        default=list(TERMS),
        help="terms of the loss beside CE + Dice",
    )
    method.add_argument(
        "--beta",
        type=command.fraction,
        default=0.75,
        help="β, share of the probabilities in L_itc",
    )
    method.add_argument(
        "--consistency", type=command.non_negative, default=0.1, help="λ at the end of training"
    )
    method.add_argument(
        "--threshold_start",
        type=command.fraction,
        default=0.75,
        help="threshold H at the start of training as a share of ln C; 1 keeps it constant",
    )
    method.add_argument(
        "--passes",
        type=command.positive_int,
        default=8,
        help="T, teacher passes that measure the uncertainty; fewer are faster",
    )
    method.add_argument(
        "--ema_decay",
        type=command.fraction,
        default=0.99,
        help="maximum EMA decay of the teacher; lower it for short runs",
    )
    return options.parse(parser, DEFAULTS, argv)


# -------------------------------------------------------------------------------- the training loop


def main(argv=None):
    args = parse(argv)
    job = run.Run(args, __file__)
    data = two_stream_loader(args, job.device)

    network = network_class(args.net)
    net = job.to_device(
        network(
            data.in_channels, data.num_classes, args.n_filters, args.normalization, sdm_head=True
        )
    )
    net_teacher = copy.deepcopy(net).requires_grad_(False)
    if not args.terms:  # no loss reaches the distance head, and DDP insists on every gradient
        net.sdm.requires_grad_(False)
    student = job.parallel(net)
    teacher = job.parallel(net_teacher)
    optimizer = torch.optim.SGD(net.parameters(), lr=args.base_lr, momentum=0.9, weight_decay=1e-4)
    job.resume(net=net, teacher=net_teacher, optimizer=optimizer)
    released = args.preset == "released"
    loss_of_step = objective_released if released else objective
    weight_of = consistency_weight_released if released else consistency_weight

    for step, batch in job.steps(data, args.max_iterations):
        lr = step_decay(args.base_lr, step, args.lr_step)
        set_lr(optimizer, lr)
        weight = weight_of(step, args)

        targets = certain = None
        if "itc" in args.terms:
            with torch.no_grad():
                targets = [output.float() for output in teacher(noisy(batch.image))]
            threshold = threshold_of(step, args) * math.log(data.num_classes)
            certain = uncertainty(teacher, batch.image, args.passes) < threshold

        z, d = student(batch.image)
        z = z.float()
        d = d.float()
        loss, terms = loss_of_step(z, d, batch.label, weight, args, targets, certain)

        job.optimize(loss, optimizer)
        if batch.last_part:  # with --accumulate: once a step, after the optimizer's
            update_teacher(net_teacher, net, ema_decay(step - 1, args.ema_decay))
        job.log(step, loss=loss, **terms, consistency_weight=weight, lr=lr)
        job.checkpoint(step)


if __name__ == "__main__":
    command.run(main)
