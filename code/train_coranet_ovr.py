"""CoraNet for several classes: one binary network per class (Shi et al., IEEE TMI 41(3), 2022).

Each foreground class has a CoraNet of its own, which tells the class from everything else. The
networks train side by side on the same crops, and vote at the end. This is the paper's form for
ACDC (section IV-F); `train_coranet.py` explains CoraNet and has one network for all classes.

    Each loss is the mean over the networks; for the network of class c

    pre-training     all of it learns from L_crm
    self-training    in each step (Algorithm 1)
                         its trunk and D learn from L_csn
                         its trunk and D learn from L_cnt
                         all of it learns from L_crm

    L_crm = CE(D, Y_c) + CE_con(D_con, Y_c) + CE_rad(D_rad, Y_c)    on labelled crops
    L_csn = Σ CE(D, pseudo) / N                  on certain voxels of unlabelled crops
    L_cnt = Σ |softmax(D) - softmax(D')|² / N    on its uncertain voxels

    Y_c      1 where the label is c, else 0; the other symbols are those of `train_coranet.py`

    python code/train_coranet_ovr.py --dataset ACDC --labelnum 14 --gpu 0
    python code/test_ACDC.py --method coranet_ovr --labelnum 14

Setting: that of `train_coranet.py`. The vote is weighted by confidence: `networks/one_vs_rest.py`.
"""

import copy
import math

import torch

import _root  # noqa: F401
from dataloaders.two_stream import LABELED, UNLABELED, two_stream_loader
from networks.one_vs_rest import OneVsRest
from utils import command
from utils.errors import UserError
from utils.inference import whole_image
from utils.losses import cross_entropy, foreground_dice_loss, masked_mean
from utils.pseudo_labels import PseudoLabels, relabelling_summary
from utils.schedules import gaussian_rampup, update_teacher
from utils.training import options, run
from utils.training.options import rule
from utils.training.unlabelled import find_in_unlabelled, window_stride


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
    "seg": ("updates", "masks", "region_means", "relabel_epochs", "relabel_stride", "ema_decay"),
    "seg+st": ("masks", "ema_decay"),
    "seg+st_mask": ("ema_decay",),
    "seg+mt": ("masks", "relabel_epochs", "relabel_stride"),
}

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
    rule("ours", alpha=5.0, base_lr=1e-3, relabel_epochs=5, ema_decay=0.99),
    rule("paper, III-B", in_paper, alpha=5.0),
    rule("paper, IV-A", in_paper, base_lr=1e-3, relabel_epochs=5, ema_decay=0.99),
    rule("paper, IV-D", train="full"),
    rule("paper, Algorithm 1", masks="step", updates="three"),
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
    rule("released code", released, masks="relabelling", updates="joint"),
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
# They are those of `train_coranet.py`, of one binary network. To fork: change a loss here, or how
# they add up in `objective`. Logits are float32 `(B, 2, *S)`, labels int64 `(B, *S)` of 0 and 1,
# masks of voxels bool `(B, *S)`.


def class_weights(D, alpha):
    """Weights `(2,)` of CE_con and of CE_rad, equation 1: background first."""
    conservative = D.new_ones(D.shape[1])
    conservative[0] = alpha
    radical = D.new_ones(D.shape[1])
    radical[1:] = alpha
    return conservative, radical


def labelled_loss(D, D_con, D_rad, label, alpha):
    """L_crm, equation 1."""
    conservative, radical = class_weights(D, alpha)
    ce_con = cross_entropy(D_con, label, conservative, reduction="none").mean()
    ce_rad = cross_entropy(D_rad, label, radical, reduction="none").mean()
    return cross_entropy(D, label) + ce_con + ce_rad


def labelled_loss_released(D, D_con, D_rad, label, alpha):
    """L_crm of the released code: the mean of CE, CE_con, CE_rad and Dice.

    Its CE_con and CE_rad are torch's weighted means, which divide by the sum of the weights.
    """
    conservative, radical = class_weights(D, alpha)
    ce = cross_entropy(D, label)
    ce_con = cross_entropy(D_con, label, conservative)
    ce_rad = cross_entropy(D_rad, label, radical)
    dice = foreground_dice_loss(D.softmax(1), label)
    return (ce + ce_con + ce_rad + dice) / 4


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


def certain_loss_released(D, D_con, D_rad, pseudo, certain, alpha):
    """L_csn of the released code: the mean of CE, CE_con, CE_rad and Dice.

    The code swaps the weights here: on pseudo-labels D_con learns with those of CE_rad, and D_rad
    with those of CE_con. The paper does not speak of it.
    """
    conservative, radical = class_weights(D, alpha)
    ce = masked_mean(cross_entropy(D, pseudo, reduction="none"), certain)
    ce_con = masked_mean(cross_entropy(D_con, pseudo, radical, reduction="none"), certain)
    ce_rad = masked_mean(cross_entropy(D_rad, pseudo, conservative, reduction="none"), certain)
    dice = foreground_dice_loss(D.softmax(1), pseudo, certain)
    return (ce + ce_con + ce_rad + dice) / 4


def consistency_loss(D, D_teacher, uncertain, region_means=False):
    """L_cnt, equation 8: the sum over the uncertain voxels, and over the classes."""
    square = (D.softmax(1) - D_teacher.softmax(1)).square().sum(1)
    return over_region(square, uncertain, region_means)


def consistency_loss_released(student, teacher, uncertain):
    """L_cnt of the released code: the sum over the classes, the mean over the three branches."""
    squares = [
        (ours.softmax(1) - theirs.softmax(1)).square()
        for ours, theirs in zip(student, teacher, strict=True)
    ]
    return sum(masked_mean(square.sum(1), uncertain) for square in squares) / len(squares)


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
    """The loss of one network in a step.

    Args:
        student: D, D_con and D_rad, labelled crops first.
        label: of the labelled crops.
        args: `alpha` and `region_means`.
        epoch: of self-training, from 0; the paper's losses do not depend on it.
        pseudo, pseudo_region: pseudo-labels of the unlabelled crops, and the voxels where D learns
            from them; None without L_csn.
        teacher, teacher_region: D', D'_con and D'_rad on the unlabelled crops, and the voxels where
            D follows D'; None without L_cnt.

    Returns:
        The loss, and its terms by name.
    """
    n = len(label)
    labelled = [branch[:n] for branch in student]
    loss = labelled_loss(*labelled, label, args.alpha)
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
    """The loss of the released code: L_crm + 0.5 (L_csn + 0.1 r(epoch, 40) L_cnt).

    Each term has the form that its function `…_released` gives, and reaches all three branches.
    Arguments and result are those of `objective`.
    """
    n = len(label)
    labelled = [branch[:n] for branch in student]
    loss = labelled_loss_released(*labelled, label, args.alpha)
    terms = {"loss_crm": loss}
    unlabelled = [branch[n:] for branch in student]
    if pseudo is not None:
        terms["loss_csn"] = certain_loss_released(*unlabelled, pseudo, pseudo_region, args.alpha)
        loss = loss + 0.5 * terms["loss_csn"]
    if teacher is not None:
        weight = 0.5 * 0.1 * gaussian_rampup(epoch, 40)
        terms["loss_cnt"] = consistency_loss_released(unlabelled, teacher, teacher_region)
        terms["consistency_weight"] = weight
        loss = loss + weight * terms["loss_cnt"]
    return loss, terms


def mean_loss(outputs, label, args, epoch, learn):
    """The mean of the networks' losses, which for Adam is the same as each network's own loss.

    Args:
        outputs: D, D_con and D_rad of each network.
        label: of the labelled crops, int64 `(B_l, *S)` with all classes.
        args: `alpha`, `region_means` and `preset`.
        epoch: of self-training, from 0.
        learn: for each network its further arguments of `objective`.

    Returns:
        The loss, and the means of its terms by name.
    """
    loss_of_network = objective_released if released(args) else objective
    losses = []
    sums = {}
    for c, (branches, own) in enumerate(zip(outputs, learn, strict=True), 1):
        student = [branch.float() for branch in branches]
        loss, terms = loss_of_network(student, (label == c).long(), args, epoch, **own)
        losses.append(loss)
        for name, value in terms.items():
            sums[name] = sums.get(name, 0) + value
    means = {name: total / len(losses) for name, total in sums.items()}
    return sum(losses) / len(losses), means


def three_updates(student, batch, args, job, optimizer, learn):
    """Lines 7, 9 and 11 of Algorithm 1: the mean of each loss over the networks is a step.

    Args:
        student: gives D, D_con and D_rad of each network, or only D, which moves its trunk and D.
        batch: its labelled crops come first.
        args: `alpha` and `region_means`.
        job, optimizer: make a step on a loss.
        learn: for each network its further arguments of `objective`.

    Returns:
        The sum of the losses, and each by name.
    """
    n = batch.labeled_bs
    unlabelled = batch.image[n:]
    terms = {}
    if "pseudo" in learn[0]:
        losses = [
            certain_loss(D.float(), own["pseudo"], own["pseudo_region"], args.region_means)
            for D, own in zip(student(unlabelled, first_only=True), learn, strict=True)
        ]
        terms["loss_csn"] = sum(losses) / len(losses)
        job.optimize(terms["loss_csn"], optimizer)
    if "teacher" in learn[0]:
        losses = [
            consistency_loss(D.float(), own["teacher"][0], own["teacher_region"], args.region_means)
            for D, own in zip(student(unlabelled, first_only=True), learn, strict=True)
        ]
        terms["loss_cnt"] = sum(losses) / len(losses)
        job.optimize(terms["loss_cnt"], optimizer)
    losses = []
    for c, branches in enumerate(student(batch.image[:n]), 1):
        D, D_con, D_rad = [branch.float() for branch in branches]
        losses.append(labelled_loss(D, D_con, D_rad, (batch.label == c).long(), args.alpha))
    terms["loss_crm"] = sum(losses) / len(losses)
    job.optimize(terms["loss_crm"], optimizer)
    return sum(terms.values()), terms


# ------------------------------------------------------------- the pseudo-labels and their masks
# To fork: another way to find them, or to call them certain, goes into `relabel` and
# `certain_voxels`.


def relabel(net, data, steps, job, stride):
    """Pseudo-labels and certain voxels of the whole unlabelled images that `steps` will show.

    Returns:
        For each foreground class: case to its labels 0 and 1, uint8 `(*S)`, and its certain voxels,
        bool `(*S)`.
    """
    classes = data.num_classes - 1

    def branches(image):
        """Softmax of D, D_con and D_rad of each network behind one another, `(B, K 3 2, *S)`."""
        logits = [branch for outputs in net(image) for branch in outputs]
        return torch.cat([z.float().softmax(1) for z in logits], 1)

    def find(image):
        prob = whole_image(
            branches,
            image,
            data.patch,
            stride,
            classes * 3 * 2,
            device=job.device,
            precision=job.precision,
        )
        D, D_con, D_rad = prob.unflatten(0, (classes, 3, 2)).argmax(2).unbind(1)
        return D.to(torch.uint8).cpu(), (D_con == D_rad).cpu()

    of_classes = [{} for _ in range(classes)]
    found = find_in_unlabelled(find, net, data, steps, job)
    for case, (labels, certain) in found.items():
        for k, of_class in enumerate(of_classes):
            of_class[case] = labels[k], certain[k]
    return of_classes


@torch.no_grad()
def certain_voxels(student, net, image):
    """Where D_con and D_rad predict the same class on crops, equations 5 and 6: for each network
    bool `(B, *S)`.
    """
    net.eval()
    outputs = student(image)
    net.train()
    return [D_con.argmax(1) == D_rad.argmax(1) for _, D_con, D_rad in outputs]


def summary_of(pseudo_labels, data, certain_only):
    """A line for the log: in how many relabelled images each class has pseudo-labels."""
    counts = [of_class.images_with(1, certain_only) for of_class in pseudo_labels]
    names = data.description["class_names"]
    return relabelling_summary(len(pseudo_labels[0].labels), counts, names, certain_only)


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
    method.add_argument(
        "--alpha",
        type=command.positive,
        help="α, ratio of the misclassification costs; raise it to call more voxels uncertain",
    )
    method.add_argument(
        "--train",
        choices=ROWS,
        help="row of Table IV: seg has only L_crm, st adds L_csn, mt adds L_cnt, full adds both; "
        "with mask they see only certain voxels; in full and in seg+mt_uncertain L_cnt sees only "
        "uncertain ones",
    )
    method.add_argument(
        "--updates",
        choices=("three", "joint"),
        help="three: a step for each loss; joint: one step on their sum, which is cheaper",
    )
    method.add_argument(
        "--masks",
        choices=("step", "relabelling"),
        help="when certain voxels are found: in every step on its crops, or together with the "
        "pseudo-labels, which is cheaper",
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
        help="epochs between relabellings",
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
    options.refuse_without_effect(args, WITHOUT_EFFECT.get(args.train, ()), f"--train {args.train}")
    check_updates(args)
    return args


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
    """A network with D, D_con and D_rad per class."""
    return OneVsRest(
        args.net,
        data.in_channels,
        data.num_classes,
        n_filters=args.n_filters,
        normalization=args.normalization,
        branches=3,
    )


def decay_of_teacher(t, args):
    """EMA decay at iteration t of self-training: 0 at t = 0, a copy of the pre-trained student."""
    return args.ema_decay if t > 0 else 0.0


def main(argv=None):
    args = parse(argv)
    job = run.Run(args, __file__)
    data = two_stream_loader(args, job.device)

    pseudo_where, teacher_where = ROWS[args.train]
    masked = "certain" in ROWS[args.train] or "uncertain" in ROWS[args.train]
    masks_of_step = masked and args.masks == "step"
    relabels = bool(pseudo_where) or (masked and not masks_of_step)

    pretrain_epoch, selftrain_epoch = epoch_lengths(args, data)
    pretraining = args.pretrain_epochs * pretrain_epoch
    last = pretraining + args.selftrain_epochs * selftrain_epoch
    relabel_every = args.relabel_epochs * selftrain_epoch

    net = job.to_device(build(args, data))
    net_teacher = copy.deepcopy(net).requires_grad_(False)
    student = job.parallel(net, in_parts=args.updates == "three")
    teacher = job.parallel(net_teacher)
    optimizer = torch.optim.Adam(net.parameters(), lr=args.base_lr, betas=(0.5, 0.999))
    classes = range(1, data.num_classes)
    pseudo_labels = [PseudoLabels() for _ in classes]
    stored = {f"pseudo_labels_{c}": pseudo_labels[c - 1] for c in classes}
    job.resume(net=net, teacher=net_teacher, optimizer=optimizer, **stored)

    # With --accumulate the loop sees a step in parts: `first_part` marks what is done once a step.
    for step, batch in job.steps(data, last):
        n = batch.labeled_bs
        t = step - 1 - pretraining  # iteration of self-training, from 0
        learn = [{} for _ in classes]  # what each network learns from beside the labels
        info = {}

        selftraining = t >= 0 and args.train != "seg"
        if selftraining:
            unlabelled = batch.image[n:]
            crops = batch.crops[n:]

            if relabels and t % relabel_every == 0 and batch.first_part:
                coming = range(step, min(step + relabel_every, last + 1))
                found = relabel(net, data, coming, job, args.relabel_stride)
                for of_class, labels in zip(pseudo_labels, found, strict=True):
                    of_class.replace(labels)
                job.logger.info(summary_of(pseudo_labels, data, masked))

            everywhere = torch.ones_like(unlabelled[:, 0], dtype=torch.bool)
            regions = [{"everywhere": everywhere} for _ in classes]
            if masked:
                if masks_of_step:
                    certain = certain_voxels(student, net, unlabelled)
                else:  # beyond the image's edge they are certain background
                    certain = [data.gather(of.uncertain, crops) == 0 for of in pseudo_labels]
                for k, region in enumerate(regions):
                    region["certain"] = certain[k]
                    region["uncertain"] = ~certain[k]
                info["certain"] = torch.stack(certain).float().mean()

            if pseudo_where:
                for k, own in enumerate(learn):
                    own["pseudo"] = data.gather(pseudo_labels[k].labels, crops).long()
                    own["pseudo_region"] = regions[k][pseudo_where]

            if teacher_where:
                if batch.first_part:
                    update_teacher(net_teacher, net, decay_of_teacher(t, args))
                with torch.no_grad():
                    targets = teacher(unlabelled)
                for k, own in enumerate(learn):
                    own["teacher"] = [branch.float() for branch in targets[k]]
                    own["teacher_region"] = regions[k][teacher_where]

        if selftraining and args.updates == "three":
            loss, terms = three_updates(student, batch, args, job, optimizer, learn)
        else:
            outputs = student(batch.image if selftraining else batch.image[:n])
            epoch = max(t, 0) // selftrain_epoch
            loss, terms = mean_loss(outputs, batch.label, args, epoch, learn)
            job.optimize(loss, optimizer)

        job.log(step, loss=loss, **terms, **info, lr=args.base_lr)
        job.checkpoint(step)


if __name__ == "__main__":
    command.run(main)
