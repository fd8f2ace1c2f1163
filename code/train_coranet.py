"""CoraNet, the conservative-radical network (Shi et al., IEEE TMI 41(3), 2022).

    pre-training      L = L_crm                                on L
    self-training     L = L_crm + L_csn + L_cnt                on L, U and U

    L_crm = CE(D) + CE_con(D_con) + CE_rad(D_rad)     a false object costs α in CE_con, a missed one costs α in CE_rad
    L_csn = CE(D, pseudo-label)                       on the certain voxels: D_con and D_rad predict the same class
    L_cnt = MSE(softmax(D), softmax(D'))              on all others; D' is the mean teacher's

    python code/train_coranet.py --labelnum 16 --gpu 0
    python code/test_LA.py --method coranet --labelnum 16

One V-Net with instance norm and three branches, 4 + 4 crops a step; for slices a U-Net of four
levels from 64 channels, 2 + 2. Adam 1e-3, betas (0.5, 0.999). An epoch is a pass over the labelled
cases; every 5 pseudo-labels (from D) and certain voxels of whole unlabelled images are found anew.
Tested: D of the student. ACDC has a binary CoraNet a class, and they vote; `--multiclass direct`
    has one, α on the background in CE_con, on all others in CE_rad.

`--preset released`: in 3-D 8 + 8 crops, epochs of five passes over the labelled cases, then at most
one over the unlabelled, 60 of pre-training; L_crm and L_csn are means of CE, Dice, CE_con and
CE_rad, L_csn with swapped weights; L_cnt sums over classes, is averaged over the branches and
weighs 0.1 r(epoch, 40); L_csn + L_cnt weighs 0.5; constant decay of the teacher. Not its V-Net
without dropout, Dice of both classes without squares, central unlabelled crops.

`--uncertainty` other than crm calls certain, with D alone, where the entropy of a mean softmax is
below half of ln C: over flips (`tta`), passes with dropout (`mcdropout`), or logits D + σ ε
(`aleatoric`), σ learned by their likelihood (Kendall & Gal, NeurIPS 2017, equation 12).
"""

import copy
import math
from functools import partial

import torch
import torch.nn.functional as F

import _root  # noqa: F401
from dataloaders.two_stream import LABELED, UNLABELED, two_stream_loader
from networks import network_class
from networks.one_vs_rest import OneVsRest, problems
from utils import command
from utils.distributed import gather, share_out
from utils.errors import UserError
from utils.inference import whole_image
from utils.losses import cross_entropy, foreground_dice_loss, masked_mean
from utils.pseudo_labels import CompressedVolumes, found, pack, unpack
from utils.schedules import ema_decay, gaussian_rampup, update_teacher
from utils.training import options, run
from utils.training.options import rule
from utils.uncertainty import entropy, noisy_softmax, views

DEFAULTS = [
    rule("paper", pretrain_epochs=30, selftrain_epochs=200, passes=1, labeled_bs=4, unlabeled_bs=4),
    rule(
        "released code",
        lambda args: args.preset == "released",
        pretrain_epochs=60,
        labeled_bs=8,
        unlabeled_bs=8,
    ),
    rule("released code", lambda args: args.preset == "released" and args.net != "unet", passes=5),
    rule(
        "paper, 2-D",
        lambda args: args.net == "unet",
        n_filters=64,
        pretrain_epochs=30,
        selftrain_epochs=100,
    ),
    rule(
        "paper, 2-D",
        lambda args: args.net == "unet",
        normalization="batchnorm",
        labeled_bs=2,
        unlabeled_bs=2,
    ),
    rule(
        "paper, ACDC",
        lambda args: args.dataset == "ACDC",
        multiclass="one_vs_rest",
        augment="affine",
    ),
]
MODES = (
    "seg",
    "seg+st",
    "seg+st_mask",
    "seg+mt",
    "seg+mt_mask",
    "full",
)  # Table IV: L_csn? L_cnt? on their masks?
MODES = {
    mode: [mode == "full" or part in mode for part in ("+st", "+mt", "_mask")] for mode in MODES
}
BRANCHES = {
    "crm": 3,
    "tta": 1,
    "mcdropout": 1,
    "aleatoric": 2,
}  # D, D_con, D_rad; D; D; D and log σ²


@torch.no_grad()
def relabel(net, data, steps, job, args):
    """Packed pseudo-labels and certain voxels, uint8 `(*S)`, of the unlabelled images that `steps`
    will show.
    """
    count, classes = (
        (data.num_classes - 1, 2) if args.multiclass == "one_vs_rest" else (1, data.num_classes)
    )
    crm, look = args.uncertainty == "crm", partial(views, args.uncertainty, net, draws=args.looks)
    labels, channels = {}, count * classes * (3 if crm else 2)
    where = {"device": job.device, "precision": job.precision}
    net.eval()
    for case in share_out(
        sorted({case for step in steps for case in data.samples(step)[data.labeled_bs :]})
    ):
        job.leave_if_asked(steps.start - 1)
        prob = whole_image(
            look, data.volumes.images[case], data.patch, args.relabel_stride, channels, **where
        )
        normal, *others = (p.unflatten(0, (count, classes)) for p in prob.split(count * classes))
        certain = others[0].argmax(1) == others[-1].argmax(1)
        if not crm:
            certain = entropy(others[0]) < args.certain_below * math.log(classes)
        labels[case] = pack(normal.argmax(1), certain).cpu()
    net.train()
    return {case: code for share in gather(labels) for case, code in share.items()}


def objective(outputs, label, args, pseudo=None, certain=None, targets=None, epoch=0):
    """The whole loss of a step, and its terms by name.

    Args:
        outputs: float32 logits `(B, C, *S)` of the BRANCHES, labelled crops first.
        label: int64 `(B_l, *S)`.
        args: `alpha`, `train`, `preset`, `uncertainty` and `looks`.
        pseudo, certain: pseudo-labels int64 and certain voxels bool `(B_u, *S)`; None in
            pre-training.
        targets: logits of the teacher's branches `(B_u, C, *S)`; None without L_cnt.
        epoch: of self-training, from 0.
    """
    n, crm, released = len(label), args.uncertainty == "crm", args.preset == "released"
    self_training, mean_teaching, masked = MODES[args.train]
    con_weight, rad_weight = outputs[0].new_ones(2, outputs[0].shape[1])
    con_weight[0] = rad_weight[1:] = args.alpha
    normal, *others = (logits[:n] for logits in outputs)
    losses = [cross_entropy(normal, label)]
    if crm:
        losses += [
            cross_entropy(z, label, w)
            for z, w in zip(others, (con_weight, rad_weight), strict=True)
        ]
    elif others:
        losses = [
            F.nll_loss(noisy_softmax(normal, others[0], args.looks).clamp(min=1e-7).log(), label)
        ]
    if released:
        losses.append(foreground_dice_loss(normal.softmax(1), label))
    loss = sum(losses) / (len(losses) if released else 1)
    terms = {"loss_crm": loss}
    if len(outputs[0]) == n:
        return loss, terms
    normal, *others = outputs = [logits[n:] for logits in outputs]
    if self_training:
        where = certain if masked else torch.ones_like(pseudo, dtype=torch.bool)
        losses = [masked_mean(cross_entropy(normal, pseudo, reduction="none"), where)]
        if released and crm:
            swapped = zip(others, (rad_weight, con_weight), strict=True)
            losses += [
                masked_mean(cross_entropy(z, pseudo, w, reduction="none"), where)
                for z, w in swapped
            ]
        if released:
            losses.append(foreground_dice_loss(normal.softmax(1), pseudo, where))
        terms["loss_csn"] = sum(losses) / len(losses)
        loss = loss + (0.5 if released else 1.0) * terms["loss_csn"]
    if mean_teaching:
        where = ~certain if masked else torch.ones_like(normal[:, 0], dtype=torch.bool)
        pairs = list(zip(outputs, targets, strict=True))[: 3 if released and crm else 1]
        squares = [(student.softmax(1) - teacher.softmax(1)).square() for student, teacher in pairs]
        loss_cnt = sum(
            masked_mean(s.sum(1) if released else s.mean(1), where) for s in squares
        ) / len(squares)
        weight = 0.5 * 0.1 * gaussian_rampup(epoch, 40) if released else 1.0
        loss = loss + weight * loss_cnt
        terms |= {"loss_cnt": loss_cnt, "consistency_weight": weight}
    return loss, terms


def main():
    parser = options.parser(
        __doc__, __file__, ("paper", "released"), base_lr=1e-3, normalization="instancenorm"
    )
    method = parser.add_argument_group("method")
    method.add_argument(
        "--pretrain_epochs", type=command.non_negative_int, help="epochs of L_crm alone"
    )
    method.add_argument(
        "--selftrain_epochs", type=command.non_negative_int, help="epochs with unlabelled data"
    )
    method.add_argument(
        "--passes", type=command.positive_int, help="over the labelled cases that make an epoch"
    )
    method.add_argument(
        "--alpha", type=command.positive, default=5.0, help="cost ratio; higher: more is uncertain"
    )
    method.add_argument(
        "--train",
        choices=list(MODES),
        default="full",
        help="rows of Table IV: st is L_csn, mt L_cnt",
    )
    method.add_argument(
        "--relabel_epochs", type=command.positive_int, default=5, help="epochs between relabellings"
    )
    method.add_argument(
        "--relabel_stride", type=command.positive_int, nargs=3, help="its windows' (half a patch)"
    )
    method.add_argument(
        "--ema_decay", type=command.fraction, default=0.99, help="of the teacher, at most"
    )
    method.add_argument(
        "--uncertainty", choices=list(BRANCHES), default="crm", help="what is certain (Table VI)"
    )
    method.add_argument(
        "--looks",
        type=command.positive_int,
        default=8,
        help="passes of mcdropout, draws of aleatoric",
    )
    method.add_argument(
        "--certain_below",
        type=command.fraction,
        default=0.5,
        help="entropy over ln C of all but crm",
    )
    method.add_argument(
        "--multiclass",
        choices=("direct", "one_vs_rest"),
        default="direct",
        help="one network or many",
    )
    args = options.parse(parser, DEFAULTS)
    half = (
        [extent // 2 for extent in args.patch] if len(args.patch) == 3 else None
    )  # slices are seen whole
    if (stride := args.relabel_stride) and not (half and all(map(int.__le__, stride, args.patch))):
        raise UserError(
            f"--relabel_stride {stride} is not for windows of {args.patch}: too wide, or 2-D"
        )
    args.relabel_stride = stride or half
    self_training, mean_teaching, masked = MODES[args.train]
    job = run.Run(args, __file__)

    data, one_vs_rest = two_stream_loader(args, job.device), args.multiclass == "one_vs_rest"
    if (
        args.selftrain_epochs
        and (self_training or masked)
        and data.num_classes > (5 if one_vs_rest else 128)
    ):
        raise UserError(
            f"--multiclass: {data.num_classes} classes, but one_vs_rest has room for 5, direct for "
            "128"
        )
    epoch_steps = math.ceil(args.passes * len(data.cases[LABELED]) / args.labeled_bs)
    pretraining = args.pretrain_epochs * epoch_steps
    if (
        args.preset == "released" and args.net != "unet"
    ):  # the shorter of its two loaders, this one of whole batches
        epoch_steps = max(1, min(epoch_steps, len(data.cases[UNLABELED]) // args.unlabeled_bs))
    last, between = (
        pretraining + args.selftrain_epochs * epoch_steps,
        args.relabel_epochs * epoch_steps,
    )
    own = {"branches": BRANCHES[args.uncertainty]} | ({"levels": 4} if args.net == "unet" else {})
    own |= {"dropout": 0.5} if args.uncertainty == "mcdropout" else {}  # which ResNet-18 has not
    network = partial(OneVsRest, args.net) if one_vs_rest else network_class(args.net)
    net = job.to_device(
        network(
            1, data.num_classes, n_filters=args.n_filters, normalization=args.normalization, **own
        )
    )
    teacher = copy.deepcopy(net).requires_grad_(False)
    student, mean_teacher = job.parallel(net), job.parallel(teacher)
    optimizer = torch.optim.Adam(net.parameters(), lr=args.base_lr, betas=(0.5, 0.999))
    job.resume(net=net, teacher=teacher, optimizer=optimizer, codes=(codes := CompressedVolumes()))

    for step, batch in job.steps(data, last):
        t, n = step - 1 - pretraining, batch.labeled_bs  # t: iteration of self-training, from 0
        labels = (
            [(batch.label == c).long() for c in range(1, data.num_classes)]
            if one_vs_rest
            else [batch.label]
        )
        pseudo = certain = targets = [None] * len(labels)
        if t >= 0 and (self_training or masked):
            if t % between == 0 and batch.part == 0:
                codes.replace(
                    relabel(net, data, range(step, min(step + between, last + 1)), job, args)
                )
                job.logger.info(found(codes, len(labels), data.description["class_names"], masked))
            pseudo, certain = unpack(data.gather(codes, batch.crops[n:]), len(labels))
        if t >= 0 and mean_teaching:
            if batch.part == 0:  # a copy of the pre-trained student at t = 0
                constant = args.preset == "released" and t > 0
                update_teacher(
                    teacher, net, args.ema_decay if constant else ema_decay(t, args.ema_decay)
                )
            with torch.no_grad():
                targets = problems(mean_teacher(batch.image[n:]))
        outputs = student(batch.image[:n] if t < 0 or args.train == "seg" else batch.image)

        parts, epoch = (
            zip(problems(outputs), labels, pseudo, certain, targets, strict=True),
            max(t, 0) // epoch_steps,
        )
        losses, terms = zip(
            *(objective(z, y, args, *rest, epoch) for z, y, *rest in parts), strict=True
        )
        loss = sum(losses) / len(losses)  # to Adam the same as each network's own
        terms = {name: sum(term[name] for term in terms) / len(terms) for name in terms[0]}
        if certain[0] is not None:
            terms["certain"] = torch.stack(certain).float().mean()
        job.optimize(loss, optimizer)
        job.log(step, loss=loss, **terms, lr=args.base_lr)
        job.checkpoint(step)


if __name__ == "__main__":
    command.run(main)
