"""CoraNet with another measure of uncertainty (Shi et al., IEEE TMI 41(3), 2022, Table VI, Fig. 4).

The separate self-training of `train_coranet.py`. Here the certain region does not come from D_con
and D_rad, but from another measure of how certain D is.

    pre-training     all learn from L_seg
    self-training    in each step (Algorithm 1)
                         the trunk and D learn from L_csn
                         the trunk and D learn from L_cnt
                         all learn from L_seg

    L_seg = CE(D, Y)                             on labelled crops; aleatoric: -ln of p at Y
    L_csn = Σ CE(D, pseudo) / N                  on certain voxels of unlabelled crops
    L_cnt = Σ |softmax(D) - softmax(D')|² / N    on their uncertain voxels

    D, D'    logits of the student and of its mean teacher, whose EMA decay is 0.99
    Y        label
    pseudo   argmax of D on whole images, found anew every 5 epochs
    N        voxels of the unlabelled crops, certain or not
    epoch    a pass over the labelled cases

    --uncertainty   a voxel is certain where
        tta         the largest p is above 0.8; p is the mean softmax of D over 20 random views: in
                    3-D crops, of slices flips from left to right and scales from 0.8 to 1.1
        mcdropout   the largest p is above 0.8; p is the mean softmax of D over 50 passes with
                    dropout of rate 0.5 at the deepest and at the final feature
        aleatoric   the standard deviation of softmax(D + σ ε) over draws of ε is below 0.001; σ is
                    a second branch, ε is standard normal, p is the mean of softmax(D + σ ε); 20
                    draws for slices, 10 in 3-D (Kendall & Gal, NeurIPS 2017, equation 12)
        softmax     the largest softmax(D) is above 0.7

    python code/train_coranet_uncertainty.py --uncertainty tta --labelnum 16 --gpu 0
    python code/test_LA.py --method coranet_uncertainty --labelnum 16
    # a curve of Fig. 4; the others have 0.5 and 0.9
    python code/train_coranet_uncertainty.py --uncertainty softmax --certain_confidence 0.7 \\
        --train seg+st_mask --keep_every 100 --name softmax_0.7
    python code/assess_coranet.py --run runs/LA/softmax_0.7/seed1337 --split train --checkpoint kept

Setting: that of `train_coranet.py`, except for the masks. Algorithm 1 finds them in each step; here
this would take 20 to 50 passes a step. So they are found on whole images, together with the
pseudo-labels. `train_coranet.py --masks relabelling` does the same; compare with it, as the row
CRM. `--updates joint` is one step on L_seg + L_csn + L_cnt, which is cheaper. `--preset released`
has the losses, epochs and batches of the released code.
"""

import copy
import math
from argparse import Namespace

import torch

import _root  # noqa: F401
from dataloaders.two_stream import LABELED, UNLABELED, two_stream_loader
from networks import network_class
from utils import command
from utils.errors import UserError
from utils.losses import cross_entropy, foreground_dice_loss, masked_mean
from utils.pseudo_labels import PseudoLabels, relabelling_summary
from utils.schedules import gaussian_rampup, update_teacher
from utils.training import options, run
from utils.training.options import rule
from utils.training.unlabelled import find_in_unlabelled, window_stride
from utils.uncertainty import MEASURES, certain_region, noisy_logits


def in_3d(args):
    return len(args.patch) == 3


def in_2d(args):
    return len(args.patch) == 2


def released(args):
    return args.preset == "released"


# where D learns from pseudo-labels, and where it follows D', in the rows of Table IV
ROWS = {
    "seg": (None, None),
    "seg+st": ("everywhere", None),
    "seg+st_mask": ("certain", None),
    "seg+mt": (None, "everywhere"),
    "seg+mt_mask": (None, "certain"),  # as the paper's sentence says
    "seg+mt_uncertain": (None, "uncertain"),  # as in the full method
    "full": ("certain", "uncertain"),
}

# options that change nothing in a row
WITHOUT_EFFECT = {
    "seg": ("updates", "region_means", "relabel_epochs", "relabel_stride", "ema_decay"),
    "seg+st": ("ema_decay",),
    "seg+st_mask": ("ema_decay",),
    "seg+mt": ("relabel_epochs", "relabel_stride"),
}

# options that a measure of uncertainty has
OPTIONS_OF = {
    "tta": ("views", "looks", "certain_confidence"),
    "mcdropout": ("looks", "certain_confidence"),
    "aleatoric": ("looks", "certain_sd"),
    "softmax": ("certain_confidence",),
}


def has(kind):
    """The condition of a rule for one measure of uncertainty."""
    return lambda args: args.uncertainty == kind


TEST_FLAGS = {"*": "--nms 0"}  # paper, IV-D: no post-processing

# the data of the paper; elsewhere its values are our choice
IN_PAPER = ("Pancreas", "Pancreas2d", "endocardium", "ACDC")


def in_paper(args):
    return args.dataset in IN_PAPER


VOLUMES = {"pretrain_epochs": 30, "selftrain_epochs": 200}
SLICES = {
    "net": "unet_ronneberger",
    "normalization": "batchnorm",
    "pretrain_epochs": 30,
    "selftrain_epochs": 100,
}

DEFAULTS = [  # where several rules hold, the last one wins
    rule("ours", base_lr=1e-3, relabel_epochs=5, ema_decay=0.99),
    rule("paper, IV-A", in_paper, base_lr=1e-3, relabel_epochs=5, ema_decay=0.99),
    rule("paper, IV-D", train="full"),
    rule("paper, Algorithm 1", updates="three"),
    rule("ours: an epoch is one pass", passes=1),
    rule("ours", in_3d, labeled_bs=4, unlabeled_bs=4, **VOLUMES),
    rule("ours", in_2d, labeled_bs=2, unlabeled_bs=2, **SLICES),
    rule("released code", in_3d, normalization="instancenorm"),
    rule("paper, IV-A", lambda args: in_2d(args) and in_paper(args), **SLICES),
    rule(
        "paper, IV-A",
        lambda args: in_paper(args) and args.net == "unet_ronneberger",
        n_filters=64,
    ),
    rule(
        "paper, IV-D",
        lambda args: args.dataset == "Pancreas",
        labelnum=12,
        net="vnet",
        augment="crop",
        **VOLUMES,
    ),
    rule("ours: half of 64, as in IV-D", lambda args: args.dataset == "Pancreas2d", labelnum=32),
    rule(
        "paper, IV-B",
        lambda args: args.dataset == "Pancreas2d",
        patch=[192, 240],
        augment="affine",
    ),
    rule("paper, IV-B", lambda args: args.dataset in ("ACDC", "endocardium"), patch=[256, 256]),
    rule("paper, IV-E", lambda args: args.dataset == "endocardium", labelnum=5),
    rule("paper, IV-F", lambda args: args.dataset == "ACDC", augment="rotate_crop"),
    rule("paper, IV-D", has("tta"), views="random", certain_confidence=0.8),
    rule("paper, IV-D", lambda args: args.views == "random", looks=20),
    rule("paper, IV-D", has("mcdropout"), looks=50, certain_confidence=0.8),
    rule("paper, IV-D", has("aleatoric"), looks=10, certain_sd=0.001),
    rule("paper, IV-D", lambda args: args.uncertainty == "aleatoric" and in_2d(args), looks=20),
    rule("ours: of the paper's 0.5, 0.7, 0.9", has("softmax"), certain_confidence=0.7),
    rule("released code", released, updates="joint"),
    rule(
        "released code",
        lambda args: released(args) and in_3d(args),
        pretrain_epochs=60,
        passes=5,
        labeled_bs=8,
        unlabeled_bs=8,
    ),
]

# ------------------------------------------------------------------------------------- the losses
# To fork: change a loss here, or how they add up in `objective`. Logits are float32 `(B, C, *S)`,
# labels int64 `(B, *S)`, masks of voxels bool `(B, *S)`.


def labelled_loss(student, label, args):
    """L_seg: cross-entropy of D; for aleatoric -ln p of the label, where p is the mean softmax over
    noisy logits.

    Args:
        student: D, and for aleatoric ln σ² too, on the labelled crops.
        label: of these crops.
        args: `uncertainty` and `looks`.
    """
    if args.uncertainty != "aleatoric":
        return cross_entropy(student[0], label)
    D, log_variance = student
    draws = [
        -cross_entropy(noisy, label, reduction="none")
        for noisy in noisy_logits(D, log_variance, args.looks)
    ]
    return (math.log(args.looks) - torch.stack(draws).logsumexp(0)).mean()


def labelled_loss_released(student, label, args):
    """L_seg as the released code would have it: the mean with Dice."""
    loss = labelled_loss(student, label, args)
    return (loss + foreground_dice_loss(student[0].softmax(1), label)) / 2


def over_region(values, region, region_means):
    """The sum of `values` over a region, divided by the number of all voxels.

    With `region_means` it is divided by the number of the region's own.
    """
    if region_means:
        return masked_mean(values, region)
    return (values * region).mean()


def certain_loss(D, pseudo, certain, region_means=False):
    """L_csn, equation 7: the sum over the certain voxels."""
    return over_region(cross_entropy(D, pseudo, reduction="none"), certain, region_means)


def certain_loss_released(D, pseudo, certain):
    """L_csn as the released code has it: the mean of cross-entropy and Dice."""
    ce = masked_mean(cross_entropy(D, pseudo, reduction="none"), certain)
    dice = foreground_dice_loss(D.softmax(1), pseudo, certain)
    return (ce + dice) / 2


def consistency_loss(D, D_teacher, uncertain, region_means=False):
    """L_cnt, equation 8: the sum over the uncertain voxels, and over the classes."""
    square = (D.softmax(1) - D_teacher.softmax(1)).square().sum(1)
    return over_region(square, uncertain, region_means)


def consistency_loss_released(D, D_teacher, uncertain):
    """L_cnt as the released code has it: the sum over the classes."""
    square = (D.softmax(1) - D_teacher.softmax(1)).square()
    return masked_mean(square.sum(1), uncertain)


def objective(
    student,
    label,
    args,
    epoch=0,
    pseudo=None,
    pseudo_region=None,
    teacher=None,
    teacher_region=None,
):
    """The loss of a joint step.

    Args:
        student: D, and for aleatoric ln σ² too, labelled crops first.
        label: of the labelled crops.
        args: `uncertainty`, `looks` and `region_means`.
        epoch: of self-training, from 0; the paper's losses do not depend on it.
        pseudo, pseudo_region: pseudo-labels of the unlabelled crops, and the voxels where D learns
            from them; None without L_csn.
        teacher, teacher_region: D' on the unlabelled crops, and the voxels where D follows D'; None
            without L_cnt.

    Returns:
        The loss, and its terms by name; L_seg is called `loss_crm`, as in the runs of CoraNet.
    """
    n = len(label)
    loss = labelled_loss([branch[:n] for branch in student], label, args)
    terms = {"loss_crm": loss}
    D = student[0][n:]
    if pseudo is not None:
        terms["loss_csn"] = certain_loss(D, pseudo, pseudo_region, args.region_means)
        loss = loss + terms["loss_csn"]
    if teacher is not None:
        terms["loss_cnt"] = consistency_loss(D, teacher[0], teacher_region, args.region_means)
        terms["consistency_weight"] = 1.0
        loss = loss + terms["loss_cnt"]
    return loss, terms


def objective_released(
    student,
    label,
    args,
    epoch=0,
    pseudo=None,
    pseudo_region=None,
    teacher=None,
    teacher_region=None,
):
    """The loss of the released code: L_seg + 0.5 (L_csn + 0.1 r(epoch, 40) L_cnt).

    Each term has the form that its function `…_released` gives. Arguments and result are those of
    `objective`.
    """
    n = len(label)
    loss = labelled_loss_released([branch[:n] for branch in student], label, args)
    terms = {"loss_crm": loss}
    D = student[0][n:]
    if pseudo is not None:
        terms["loss_csn"] = certain_loss_released(D, pseudo, pseudo_region)
        loss = loss + 0.5 * terms["loss_csn"]
    if teacher is not None:
        weight = 0.5 * 0.1 * gaussian_rampup(epoch, 40)
        terms["loss_cnt"] = consistency_loss_released(D, teacher[0], teacher_region)
        terms["consistency_weight"] = weight
        loss = loss + weight * terms["loss_cnt"]
    return loss, terms


def three_updates(
    student,
    batch,
    args,
    job,
    optimizer,
    pseudo=None,
    pseudo_region=None,
    teacher=None,
    teacher_region=None,
):
    """Lines 7, 9 and 11 of Algorithm 1: each loss is a step of its own.

    Args:
        student: gives D, and for aleatoric ln σ² too, of crops.
        batch: its labelled crops come first.
        args: `uncertainty`, `looks` and `region_means`.
        job, optimizer: make a step on a loss.
        pseudo, pseudo_region, teacher, teacher_region: as in `objective`.

    Returns:
        The sum of the losses, and each by name.
    """
    n = batch.labeled_bs
    unlabelled = batch.image[n:]
    terms = {}
    if pseudo is not None:
        D = student(unlabelled, first_only=True).float()
        terms["loss_csn"] = certain_loss(D, pseudo, pseudo_region, args.region_means)
        job.optimize(terms["loss_csn"], optimizer)
    if teacher is not None:
        D = student(unlabelled, first_only=True).float()
        terms["loss_cnt"] = consistency_loss(D, teacher[0], teacher_region, args.region_means)
        job.optimize(terms["loss_cnt"], optimizer)
    outputs = branches_of(student(batch.image[:n]))
    terms["loss_crm"] = labelled_loss(outputs, batch.label, args)
    job.optimize(terms["loss_crm"], optimizer)
    return sum(terms.values()), terms


# ------------------------------------------------------------- the pseudo-labels and their masks
# To fork: another way to find pseudo-labels goes into `relabel`, another measure of what is certain
# into `certain_region` in `utils/uncertainty.py`.


def relabel(net, data, steps, job, args, measure):
    """Pseudo-labels and certain voxels of the whole unlabelled images that `steps` will show.

    Args:
        measure: of uncertainty, as `certain_region` takes it.

    Returns:
        Case to its classes uint8 `(*S)` and its certain voxels bool `(*S)`.
    """

    def find(image):
        prob, certain = certain_region(
            net,
            image,
            measure,
            data.patch,
            args.relabel_stride,
            data.num_classes,
            device=job.device,
            precision=job.precision,
        )
        return prob.argmax(0).to(torch.uint8).cpu(), certain.cpu()

    return find_in_unlabelled(find, net, data, steps, job)


def branches_of(outputs):
    """What a network gives as a list of float32 branches: D, and for aleatoric ln σ²."""
    branches = outputs if isinstance(outputs, tuple) else (outputs,)
    return [branch.float() for branch in branches]


def summary_of(pseudo_labels, data, certain_only):
    """A line for the log: in how many relabelled images each class has pseudo-labels."""
    counts = [pseudo_labels.images_with(c, certain_only) for c in range(1, data.num_classes)]
    names = data.description["class_names"]
    return relabelling_summary(len(pseudo_labels.labels), counts, names, certain_only)


# ------------------------------------------------------------------------------------ the options


def parse(argv=None):
    parser = options.parser(__doc__, __file__, ("paper", "released"))
    method = parser.add_argument_group("method")
    method.add_argument(
        "--pretrain_epochs",
        type=command.non_negative_int,
        help="epochs on labelled crops only",
    )
    method.add_argument(
        "--selftrain_epochs", type=command.non_negative_int, help="epochs with unlabelled crops"
    )
    method.add_argument(
        "--passes",
        type=command.positive_int,
        help="number of passes over the labelled cases in an epoch",
    )
    add_uncertainty(parser)
    method.add_argument(
        "--train",
        choices=ROWS,
        help="row of Table IV: seg has only L_seg, st adds L_csn, mt adds L_cnt, full adds both; "
        "with mask they see only certain voxels; in full and in seg+mt_uncertain L_cnt sees only "
        "uncertain ones; seg+st_mask is Fig. 4",
    )
    method.add_argument(
        "--updates",
        choices=("three", "joint"),
        help="three: a step for each loss; joint: one step on their sum, which is cheaper",
    )
    method.add_argument(
        "--region_means",
        type=int,
        choices=(0, 1),
        default=0,
        help="1: L_csn and L_cnt are means over their own regions, so that the few uncertain "
        "voxels weigh as much as the many certain ones",
    )
    method.add_argument(
        "--relabel_epochs",
        type=command.positive_int,
        help="epochs between relabellings; a relabelling costs as many passes as --looks says",
    )
    method.add_argument(
        "--relabel_stride",
        type=command.positive_int,
        nargs=3,
        help="stride of the windows in relabelling (default: half a patch)",
    )
    method.add_argument(
        "--ema_decay",
        type=command.fraction,
        help="β, EMA decay of the teacher; lower it for short runs",
    )
    args = options.parse(parser, DEFAULTS, argv)
    args.relabel_stride = window_stride(args.relabel_stride, args.patch, "--relabel_stride")
    why = f"--train {args.train}"
    options.refuse_without_effect(args, WITHOUT_EFFECT.get(args.train, ()), why)
    if not {"certain", "uncertain"} & set(ROWS[args.train]):
        of_masks = ["views", "certain_confidence", "certain_sd"]
        if args.uncertainty != "aleatoric":  # whose loss has draws too
            of_masks.append("looks")
        options.refuse_without_effect(args, of_masks, why)
    check_uncertainty(args)
    check_updates(args)
    return args


def add_uncertainty(parser):
    group = parser.add_argument_group("uncertainty")
    group.add_argument(
        "--uncertainty",
        choices=MEASURES,
        default="tta",
        help="what makes a voxel certain: tta, mcdropout and aleatoric are rows of Table VI, "
        "softmax is in Figs. 3 and 4",
    )
    group.add_argument(
        "--views",
        choices=("random", "flips"),
        help="tta: random crops of volumes, or random flips and scales of slices; or all flips, "
        "which are cheaper",
    )
    group.add_argument(
        "--looks",
        type=command.positive_int,
        help="random views of tta (default: 20), passes of mcdropout (default: 50), draws of "
        "aleatoric (default: 10, for slices 20); fewer are faster",
    )
    group.add_argument(
        "--certain_confidence",
        type=command.fraction,
        help="tta, mcdropout, softmax: confidence above which a voxel is certain (default: 0.8; "
        "softmax: 0.7)",
    )
    group.add_argument(
        "--certain_sd",
        type=command.positive,
        help="aleatoric: standard deviation below which a voxel is certain (default: 0.001)",
    )


def check_uncertainty(args):
    """Refuse options that the measure of uncertainty does not have."""
    kind = args.uncertainty
    for option in ("views", "looks", "certain_confidence", "certain_sd"):
        if option not in OPTIONS_OF[kind] and getattr(args, option) is not None:
            raise UserError(f"--{option}: --uncertainty {kind} has no such option; leave it out")
    if args.views == "flips" and args.looks is not None:
        raise UserError(
            f"--looks {args.looks}: --views flips sees all flips; leave one of them out"
        )
    if kind == "aleatoric" and args.looks < 2:
        raise UserError("--looks 1: one draw has no standard deviation; aleatoric needs at least 2")
    if kind == "mcdropout" and getattr(network_class(args.net), "dropout_in_levels", False):
        raise UserError(
            f"--net {args.net} has dropout in each of its levels; mcdropout has it at the deepest "
            "and at the final feature, so take --net unet_ronneberger"
        )


def check_updates(args):
    """Refuse what three updates, or the losses of the released code, cannot take."""
    if args.preset == "released" and args.updates == "three":
        raise UserError("--updates three: the released code makes one step; take --updates joint")
    if args.preset == "released" and args.region_means:
        raise UserError("--region_means 1: the losses of the released code are region means")
    if args.updates == "three" and args.accumulate > 1:
        raise UserError(
            f"--accumulate {args.accumulate}: gradients of three updates cannot be added up; take "
            "--updates joint"
        )


# -------------------------------------------------------------------------------- the training loop


def epoch_lengths(args, data):
    """Steps of an epoch of pre-training, and of one of self-training."""
    steps = math.ceil(args.passes * len(data.cases[LABELED]) / args.labeled_bs)
    if released(args) and in_3d(args):
        # its epochs of self-training also end when the unlabelled cases give no whole batch more
        whole_batches = len(data.cases[UNLABELED]) // args.unlabeled_bs
        return steps, max(1, min(steps, whole_batches))
    return steps, steps


def build(args, data):
    """The network with D, and for aleatoric ln σ²; for mcdropout with dropout of rate 0.5."""
    network = network_class(args.net)
    return network(
        data.in_channels,
        data.num_classes,
        n_filters=args.n_filters,
        normalization=args.normalization,
        branches=2 if args.uncertainty == "aleatoric" else 1,
        dropout=0.5 if args.uncertainty == "mcdropout" else None,
    )


def decay_of_teacher(t, args):
    """EMA decay at iteration t of self-training: 0 at t = 0, a copy of the pre-trained student."""
    return args.ema_decay if t > 0 else 0.0


def main(argv=None):
    args = parse(argv)
    job = run.Run(args, __file__)
    data = two_stream_loader(args, job.device)

    loss_of_step = objective_released if released(args) else objective
    pseudo_where, teacher_where = ROWS[args.train]
    masked = "certain" in ROWS[args.train] or "uncertain" in ROWS[args.train]
    relabels = masked or pseudo_where is not None
    # where no mask is asked for, the plain prediction does
    measure = args if masked else Namespace(uncertainty="softmax", certain_confidence=0.5)

    pretrain_epoch, selftrain_epoch = epoch_lengths(args, data)
    pretraining = args.pretrain_epochs * pretrain_epoch
    last = pretraining + args.selftrain_epochs * selftrain_epoch
    relabel_every = args.relabel_epochs * selftrain_epoch

    net = job.to_device(build(args, data))
    net_teacher = copy.deepcopy(net).requires_grad_(False)
    student = job.parallel(net, in_parts=args.updates == "three")
    teacher = job.parallel(net_teacher)
    optimizer = torch.optim.Adam(net.parameters(), lr=args.base_lr, betas=(0.5, 0.999))
    pseudo_labels = PseudoLabels()
    job.resume(net=net, teacher=net_teacher, optimizer=optimizer, pseudo_labels=pseudo_labels)

    # With --accumulate the loop sees a step in parts: `first_part` marks what is done once a step.
    for step, batch in job.steps(data, last):
        n = batch.labeled_bs
        t = step - 1 - pretraining  # iteration of self-training, from 0
        learn = {}  # what D learns from beside the labels
        info = {}

        selftraining = t >= 0 and args.train != "seg"
        if selftraining:
            unlabelled = batch.image[n:]
            crops = batch.crops[n:]

            if relabels and t % relabel_every == 0 and batch.first_part:
                coming = range(step, min(step + relabel_every, last + 1))
                pseudo_labels.replace(relabel(net, data, coming, job, args, measure))
                job.logger.info(summary_of(pseudo_labels, data, masked))

            region = {"everywhere": torch.ones_like(unlabelled[:, 0], dtype=torch.bool)}
            if masked:  # beyond the image's edge voxels are certain background
                region["certain"] = data.gather(pseudo_labels.uncertain, crops) == 0
                region["uncertain"] = ~region["certain"]
                info["certain"] = region["certain"].float().mean()

            if pseudo_where:
                learn["pseudo"] = data.gather(pseudo_labels.labels, crops).long()
                learn["pseudo_region"] = region[pseudo_where]

            if teacher_where:
                if batch.first_part:
                    update_teacher(net_teacher, net, decay_of_teacher(t, args))
                with torch.no_grad():
                    learn["teacher"] = branches_of(teacher(unlabelled))
                learn["teacher_region"] = region[teacher_where]

        if selftraining and args.updates == "three":
            loss, terms = three_updates(student, batch, args, job, optimizer, **learn)
        else:
            image = batch.image if selftraining else batch.image[:n]
            outputs = branches_of(student(image))
            epoch = max(t, 0) // selftrain_epoch
            loss, terms = loss_of_step(outputs, batch.label, args, epoch, **learn)
            job.optimize(loss, optimizer)

        job.log(step, loss=loss, **terms, **info, lr=args.base_lr)
        job.checkpoint(step)


if __name__ == "__main__":
    command.run(main)
