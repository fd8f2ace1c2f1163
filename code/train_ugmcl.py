"""UG-MCL, uncertainty-guided mutual consistency learning (Zhang et al., Artificial Intelligence in
Medicine, 2022).

One network has two heads, for segmentation and for signed distances. Its heads are made to agree
with each other and, where its mean teacher is certain, with the teacher's heads.

    L = L_sup + λ(t) (L_itc + L_ctc)
    L_sup = CE(p, Y) + Dice(p, Y) + L_dis                  on the labelled crops
    L_dis = mean (d - SDM(Y))²                             squared as in DTML
    L_itc = β mean_M (p - p')² + (1 - β) mean_M (d - d')²  on all crops
    L_ctc = mean (p - σ(-k d))²                            on all crops

    p, p'  softmax of the student, and of its mean teacher in one pass; in L_ctc the foreground's
    d, d'  signed distance maps (SDM) of both after tanh: negative inside, in [-1, 1], one for each
           foreground class
    M      certain voxels, where u < H(t); u is the entropy of the mean of T teacher passes
    H(t)   threshold (3/4 + 1/4 r(t)) ln C, which rises to the largest possible entropy
    λ(t)   weight 0.1 r(t) of the consistency, with r(t) = exp(-5 (1 - t/t_max)²)
    k      σ(-k d) is nearly a mask: it has a slope only close to the surface

    The teacher's weights are the EMA θ' = a θ' + (1 - a) θ. Its dropout stays on.

    python code/train_ugmcl.py --labelnum 16 --gpu 0
    python code/test_LA.py --method ugmcl --labelnum 16

Setting of the paper, on LA: V-Net; SGD with learning rate 0.01, ×0.1 every 2500 of 6000 iterations;
2 labelled and 2 unlabelled crops of 112×112×80 a step, on BraTS2019 too; β = 0.75.

The paper leaves some numbers open. They are customs of the field, not the paper's. From UA-MT:
T = 8; a = min(1 - 1/t, 0.99); noise clamp(N(0, 0.1²), ±0.2) on the teacher's input, drawn anew in
each pass; momentum 0.9 and weight decay 1e-4. From DTC: k = 1500. Ours: L_dis is squared as in
DTML, and the student's p is tested.
The paper prints r(t) in λ(t) without the square, and follows Mean Teacher (Tarvainen & Valpola,
NeurIPS 2017) there, which has the square. `--rampup printed` is λ(t) as printed. H(t) keeps the
square: it follows UA-MT, which has it too.

The rows of Table 1 are `--terms` without a term (1), `dis` (2), `itc` with `--beta 1` (3),
`dis itc` (4), `dis ctc` (5) and all three (6). The network has a distance head only where a term
needs d, so it has none in rows 1 and 3. Rows 1 and 2 see labelled crops only, `--unlabeled 0`. The
paper does not say how many a step; the default is 2, as in the other rows, and `--labeled_bs 4`
has as many crops as the only batch that the paper states, which `code/ablate.py` takes.

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
from utils.errors import UserError
from utils.losses import (
    class_masks,
    cross_entropy,
    distance_loss,
    distance_to_mask,
    foreground_dice_loss,
    masked_mean,
    mean_dice_loss,
)
from utils.perturbations import noisy
from utils.schedules import (
    RAMPUPS,
    ema_decay,
    gaussian_rampup,
    set_lr,
    step_decay,
    update_teacher,
)
from utils.training import options, run
from utils.training.options import rule
from utils.uncertainty import entropy

TERMS = ("dis", "itc", "ctc")


def in_paper(args):
    return args.dataset in ("LA", "BraTS2019")


def released(args):
    return args.preset == "released"


SCHEDULE = {"base_lr": 0.01, "lr_step": 2500, "max_iterations": 6000, "consistency": 0.1}
SHARES = {"beta": 0.75, "threshold_start": 0.75}
DEFAULTS = [  # where several rules hold, the last one wins
    rule("paper, 3.4", terms=list(TERMS), unlabeled=1),
    rule("custom of the field: UA-MT", passes=8, ema_decay=0.99),
    rule("custom of the field: Mean Teacher", rampup="gaussian"),
    rule("ours", **SCHEDULE, **SHARES),
    rule("paper, 4.1", lambda args: args.dataset == "LA", labelnum=16),
    rule("paper, 4.1", lambda args: args.dataset == "BraTS2019", labelnum=25),
    rule("paper, 4.2", in_paper, net="vnet", augment="rot_flip", **SCHEDULE),
    rule("paper, 4.2", in_paper, labeled_bs=2, unlabeled_bs=2),
    rule(
        "paper, 4.2",
        lambda args: in_paper(args) and args.downsample == 1,
        patch=[112, 112, 80],
    ),
    rule("paper, 4.3", in_paper, **SHARES),
    rule("ours", lambda args: in_paper(args) and not args.unlabeled, labeled_bs=2),
    rule("ours", lambda args: not args.unlabeled, unlabeled_bs=0),
    rule(
        "released code",
        released,
        max_iterations=30000,
        lr_step=0,
        consistency=0.1,
        rampup="gaussian",
        beta=1.0,
        normalization="instancenorm",
    ),
    rule(
        "released code",
        lambda args: released(args) and args.dataset == "BraTS2019",
        patch=[96, 96, 96],
    ),
    rule("released code", lambda args: released(args) and args.net == "vnet", net="unet3d"),
]

# ------------------------------------------------------------------------------------- the losses
# To fork: add a term here, and its name to TERMS and `objective`.


def segmentation_loss(z, p, label):
    """CE(p, Y) + Dice(p, Y) of the labelled crops; z are the logits of p."""
    return cross_entropy(z, label) + foreground_dice_loss(p, label)


def distance_loss_released(mask, label):
    """Dice(σ(-k d), Y), which the released code has in place of L_dis; `mask` is σ(-k d)."""
    return mean_dice_loss(mask, class_masks(label, mask.shape[1]))


def intra_task_loss(p, d, p_teacher, d_teacher, certain, beta):
    """L_itc, equation 4: student and teacher agree on the certain voxels, in either task.

    Without a distance head `d` and `d_teacher` are None, and β is 1.
    """
    of_p = masked_mean((p - p_teacher).square().mean(1), certain)
    if d is None:
        return of_p
    of_d = masked_mean((d - d_teacher).square().mean(1), certain)
    return beta * of_p + (1 - beta) * of_d


def cross_task_loss(p, mask):
    """L_ctc, equation 6: the two heads agree; `mask` is σ(-k d)."""
    return (p[:, 1:] - mask).square().mean()


def consistency_weight(step, args):
    """λ(t): `args` holds `consistency`, `rampup` and `max_iterations`."""
    ramp_up = RAMPUPS[args.rampup]
    return args.consistency * ramp_up(step, args.max_iterations)


def consistency_weight_released(step, args):
    """λ of the released code, which grows in blocks of 150 iterations."""
    return args.consistency * gaussian_rampup((step - 1) // 150, 200)


def objective(z, d, label, weight, args, teacher=None, certain=None):
    """The loss of a step.

    Args:
        z, d: logits and SDM of the student, float32 `(B, C, *S)` and `(B, C - 1, *S)`, labelled
            crops first; d is None where no term needs it.
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
    mask = None if d is None else distance_to_mask(d)
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
    mask = None if d is None else distance_to_mask(d)
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


def outputs(model, image):
    """Logits and SDM of a network, float32; the SDM is None if it has no distance head."""
    found = model(image)
    if isinstance(found, tuple):
        z, d = found
        return z.float(), d.float()
    return found.float(), None


def threshold_of(step, args):
    """H(t) over ln C: `args` holds `threshold_start` and `max_iterations`."""
    start = args.threshold_start
    return start + (1 - start) * gaussian_rampup(step, args.max_iterations)


@torch.no_grad()
def uncertainty(teacher, image, passes):
    """u, equation 3: entropy `(B, *S)`, from 0 to ln C, of the mean of noisy teacher passes."""
    p_hat = sum(outputs(teacher, noisy(image))[0].softmax(1) for _ in range(passes)) / passes
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
        help="terms of the loss beside CE + Dice (Table 1)",
    )
    method.add_argument(
        "--beta",
        type=command.fraction,
        help="β, share of the probabilities in L_itc (Table 2)",
    )
    method.add_argument("--consistency", type=command.non_negative, help="λ at the end of training")
    method.add_argument(
        "--rampup",
        choices=tuple(RAMPUPS),
        help="growth of λ: gaussian, with a square in the exponent, or as the paper prints it, "
        "without",
    )
    method.add_argument(
        "--threshold_start",
        type=command.fraction,
        help="threshold H at the start of training as a share of ln C, Fig. 3; 1 keeps it constant",
    )
    method.add_argument(
        "--passes",
        type=command.positive_int,
        help="T, teacher passes that measure the uncertainty; fewer are faster",
    )
    method.add_argument(
        "--ema_decay",
        type=command.fraction,
        help="maximum EMA decay of the teacher; lower it for short runs",
    )
    method.add_argument(
        "--unlabeled",
        type=int,
        choices=(0, 1),
        help="0 trains on the labelled crops only (Table 1); give --labeled_bs 4 for as many crops "
        "as the paper's batch",
    )
    args = options.parse(parser, DEFAULTS, argv)
    if args.preset == "released" and args.rampup != "gaussian":
        raise UserError(
            f"--rampup {args.rampup}: the released code has the gaussian one; leave out --preset "
            "released"
        )
    check_effects(args)
    return args


def check_effects(args):
    """Refuse options that have no effect with the chosen terms."""
    terms = " ".join(("--terms", *args.terms))
    if "itc" not in args.terms:
        of_itc = ("beta", "threshold_start", "passes", "ema_decay")
        options.refuse_without_effect(args, of_itc, terms)
    if "itc" not in args.terms and "ctc" not in args.terms:
        options.refuse_without_effect(args, ("consistency", "rampup"), terms)
    if not args.consistency:
        options.refuse_without_effect(args, ("rampup",), "--consistency 0")
    if not args.unlabeled:
        options.refuse_without_effect(args, ("unlabeled_bs",), "--unlabeled 0")


def needs_distances(args):
    """Whether a term of the loss needs the SDM."""
    within_task = "itc" in args.terms and args.beta < 1
    return within_task or "dis" in args.terms or "ctc" in args.terms


# -------------------------------------------------------------------------------- the training loop


def main(argv=None):
    args = parse(argv)
    job = run.Run(args, __file__)
    data = two_stream_loader(args, job.device)

    network = network_class(args.net)
    shape = (data.in_channels, data.num_classes, args.n_filters, args.normalization)
    net = job.to_device(network(*shape, sdm_head=needs_distances(args)))
    net_teacher = copy.deepcopy(net).requires_grad_(False)
    student = job.parallel(net)
    teacher = job.parallel(net_teacher)
    optimizer = torch.optim.SGD(net.parameters(), lr=args.base_lr, momentum=0.9, weight_decay=1e-4)
    job.resume(net=net, teacher=net_teacher, optimizer=optimizer)
    loss_of_step = objective_released if released(args) else objective
    weight_of = consistency_weight_released if released(args) else consistency_weight

    for step, batch in job.steps(data, args.max_iterations):
        lr = step_decay(args.base_lr, step, args.lr_step)
        set_lr(optimizer, lr)
        weight = weight_of(step, args)

        targets = certain = None
        if "itc" in args.terms:
            with torch.no_grad():
                targets = outputs(teacher, noisy(batch.image))
            threshold = threshold_of(step, args) * math.log(data.num_classes)
            certain = uncertainty(teacher, batch.image, args.passes) < threshold

        z, d = outputs(student, batch.image)
        loss, terms = loss_of_step(z, d, batch.label, weight, args, targets, certain)

        job.optimize(loss, optimizer)
        if batch.last_part:  # with --accumulate: once a step, after the optimizer's
            update_teacher(net_teacher, net, ema_decay(step - 1, args.ema_decay))
        job.log(step, loss=loss, **terms, consistency_weight=weight, lr=lr)
        job.checkpoint(step)


if __name__ == "__main__":
    command.run(main)
