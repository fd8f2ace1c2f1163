"""DTML, dual-task mutual learning (Zhang & Zhang, PRCV 2021).

One network segments, the other regresses signed distances; both learn from the labels, and from the
difference between their masks.

    L_s = L_seg + λ(t) L_con                     of the network M_s
    L_d = L_mask + λ(t) L_con                    of the network M_d
    L_seg  = (CE(p, Y) + Dice(p, Y)) / 2         on the labelled crops
    L_mask = Dice(σ(-k d), Y)                    on the labelled crops
    L_con  = mean (p - σ(-k d))²                 on all crops, gradient to both networks

    p      softmax of M_s
    d      signed distance map (SDM) of M_d after tanh: negative inside, in [-1, 1], one for each
           foreground class
    k      1500, so that σ(-k d) is nearly a mask
    λ(t)   0.1 exp(-5 (1 - t/t_max)²), weight of the consistency at iteration t

    python code/train_dtml.py --labelnum 16 --gpu 0
    python code/test_LA.py --method dtml --labelnum 16                     (--network dis tests M_d)

Setting of the paper, on LA: two V-Nets; SGD with learning rate 0.01, ×0.1 every 2500 of 6000
iterations; 2 labelled and 2 unlabelled crops a step. From the released code: k, the SDM's range and
an SGD for each network. Customs of the field (UA-MT): momentum 0.9 and weight decay 1e-4. The paper
does not say which network is tested; it is M_s here.

With `--dis_loss l2` M_d learns the distances, L_dis = mean (d - SDM(Y))², and with `both` it learns
L_mask + L_dis: these are the rows of Table 1. `l1` takes absolute differences, which is ours.
The paper prints λ(t) without the square; the work that it follows has the square in its code.
`--rampup printed` is λ(t) as printed.
`--unlabeled 0` trains on the labelled crops only (Table 2). The paper does not say how many a step
sees. By default it is 2, as with unlabelled crops, so that only those make the difference. With
`--labeled_bs 4` a step has as many crops as the only batch that the paper states; the rows of
`code/ablate.py dtml-table2` take that, since V-Net's row, M_s only, has four crops too.
`--preset released` weights the consistency as the released code does, by 2 · exp(-5 (1 - s/40)²),
where s counts blocks of 150 iterations. The factor 2 is there because the code back-propagates it
from both losses into both networks.
"""

import torch

import _root  # noqa: F401
from dataloaders.two_stream import two_stream_loader
from networks import network_class
from utils import command
from utils.errors import UserError
from utils.losses import (
    class_masks,
    distance_to_mask,
    mean_dice_loss,
    sdm_targets,
    supervised_loss,
)
from utils.schedules import RAMPUPS, gaussian_rampup, set_lr, step_decay
from utils.training import options, run
from utils.training.options import rule


def on_la(args):
    return args.dataset == "LA"


SCHEDULE = {"base_lr": 0.01, "lr_step": 2500, "max_iterations": 6000}
DEFAULTS = [  # where several rules hold, the last one wins
    rule("paper, 3.2", unlabeled=1),
    rule("paper, 4.2", dis_loss="mask"),
    rule("custom of the field: UA-MT", rampup="gaussian"),
    rule("ours", consistency=0.1, **SCHEDULE),
    rule("paper, 3.2", on_la, consistency=0.1),
    rule("paper, 4.1", on_la, labelnum=16, net="vnet", augment="rot_flip", **SCHEDULE),
    rule("paper, 4.1", on_la, labeled_bs=2, unlabeled_bs=2),
    rule(
        "paper, 4.1",
        lambda args: on_la(args) and args.downsample == 1,
        patch=[112, 112, 80],
    ),
    rule("ours", lambda args: on_la(args) and not args.unlabeled, labeled_bs=2),
    rule("ours", lambda args: not args.unlabeled, unlabeled_bs=0),
    rule(
        "released code",
        lambda args: args.preset == "released",
        consistency=1.0,
        rampup="gaussian",
    ),
]
TEST_FLAGS = {"LA": "--nms 1"}  # the released code keeps the largest component

# ------------------------------------------------------------------------------------- the losses
# To fork: for another second task (edges, centre lines), replace `distance_loss`, and
# `distance_to_mask` by what turns its output into probabilities.


def distance_loss(d, mask, label, kind):
    """What M_d learns on the labelled crops.

    Args:
        d: SDM, float32 `(B_l, C - 1, *S)` in [-1, 1].
        mask: σ(-k d), of the same shape.
        label: int64 `(B_l, *S)`.
        kind: `mask` (L_mask), `l2` (L_dis), `both` (L_mask + L_dis) or `l1`.
    """
    truth = class_masks(label, d.shape[1])
    if kind == "mask":
        return mean_dice_loss(mask, truth)
    difference = d - sdm_targets(truth)
    if kind == "l1":
        return difference.abs().mean()
    loss_dis = difference.square().mean()
    if kind == "l2":
        return loss_dis
    return mean_dice_loss(mask, truth) + loss_dis


def consistency_loss(p, mask):
    """L_con, equation 4: `p` of M_s, `(B, C, *S)`, and σ(-k d) of M_d, `(B, C - 1, *S)`."""
    return (p[:, 1:] - mask).square().mean()


def consistency_weight(step, args):
    """λ(t): `args` holds `consistency`, `rampup` and `max_iterations`."""
    ramp_up = RAMPUPS[args.rampup]
    return args.consistency * ramp_up(step, args.max_iterations)


def consistency_weight_released(step, args):
    """λ(t) of the released code, twice: it back-propagates L_con from both losses."""
    return 2 * args.consistency * gaussian_rampup((step - 1) // 150, 40)


def objective(z, d, label, weight, dis_loss):
    """L_seg + L_mask + λ L_con: each network gets from it the gradient of its own loss.

    Args:
        z: logits of M_s, float32 `(B, C, *S)`, labelled crops first.
        d: SDM of M_d, float32 `(B, C - 1, *S)` in [-1, 1].
        label: int64 `(B_l, *S)`.
        weight: λ(t).
        dis_loss: what M_d learns.

    Returns:
        The loss, and its terms by name.
    """
    labelled = slice(len(label))
    mask = distance_to_mask(d)
    loss_seg = supervised_loss(z[labelled], label)
    loss_dis = distance_loss(d[labelled], mask[labelled], label, dis_loss)
    loss_con = consistency_loss(z.softmax(1), mask)
    loss = loss_seg + loss_dis + weight * loss_con
    return loss, {"loss_seg": loss_seg, "loss_dis": loss_dis, "loss_con": loss_con}


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
        "--dis_loss",
        choices=("mask", "l2", "both", "l1"),
        help="what M_d learns: the mask; the distances by squared differences (l2); both, which "
        "adds up these two; or the distances by absolute differences (l1)",
    )
    method.add_argument(
        "--consistency",
        type=command.non_negative,
        help="λ at the end of training; 0 trains the two networks apart",
    )
    method.add_argument(
        "--rampup",
        choices=tuple(RAMPUPS),
        help="growth of λ: gaussian, with a square in the exponent, or as the paper prints it, "
        "without",
    )
    method.add_argument(
        "--unlabeled",
        type=int,
        choices=(0, 1),
        help="0 trains on the labelled crops only (Table 2); give --labeled_bs 4 for as many crops "
        "as the paper's batch",
    )
    args = options.parse(parser, DEFAULTS, argv)
    if args.preset == "released" and args.rampup != "gaussian":
        raise UserError(
            f"--rampup {args.rampup}: the released code has the gaussian one; leave out --preset "
            "released"
        )
    if not args.unlabeled:
        options.refuse_without_effect(args, ("unlabeled_bs",), "--unlabeled 0")
    if not args.consistency:
        options.refuse_without_effect(args, ("rampup",), "--consistency 0")
    return args


# -------------------------------------------------------------------------------- the training loop


def main(argv=None):
    args = parse(argv)
    job = run.Run(args, __file__)
    data = two_stream_loader(args, job.device)

    network = network_class(args.net)
    shape = (data.in_channels, data.num_classes, args.n_filters, args.normalization)
    net_s = job.to_device(network(*shape))
    net_d = job.to_device(network(*shape, sdm_head=True, segmentation_head=False))
    M_s = job.parallel(net_s)
    M_d = job.parallel(net_d)
    sgd = {"lr": args.base_lr, "momentum": 0.9, "weight_decay": 1e-4}
    optimizer_s = torch.optim.SGD(net_s.parameters(), **sgd)
    optimizer_d = torch.optim.SGD(net_d.parameters(), **sgd)
    job.resume(["seg"], seg=net_s, dis=net_d, optimizer_seg=optimizer_s, optimizer_dis=optimizer_d)
    weight_of = consistency_weight_released if args.preset == "released" else consistency_weight

    for step, batch in job.steps(data, args.max_iterations):
        lr = step_decay(args.base_lr, step, args.lr_step)
        set_lr(optimizer_s, lr)
        set_lr(optimizer_d, lr)

        z = M_s(batch.image).float()
        d = M_d(batch.image).float()
        weight = weight_of(step, args)
        loss, terms = objective(z, d, batch.label, weight, args.dis_loss)

        job.optimize(loss, optimizer_s, optimizer_d)
        job.log(step, loss=loss, **terms, consistency_weight=weight, lr=lr)
        job.checkpoint(step)


if __name__ == "__main__":
    command.run(main)
