"""CoraNet, the conservative-radical network (Shi et al., IEEE TMI 41(3), 2022).

One network has three branches at its end: D, D_con, which pays more for false object voxels, and
D_rad, which pays more for missed ones. Where D_con and D_rad predict the same class, D is certain
and learns from its own pseudo-label; elsewhere D follows its mean teacher.

    pre-training     all learn from L_crm
    self-training    in each step (Algorithm 1)
                         the trunk and D learn from L_csn
                         the trunk and D learn from L_cnt
                         all learn from L_crm

    L_crm = CE(D, Y) + CE_con(D_con, Y) + CE_rad(D_rad, Y)    on labelled crops
    L_csn = Σ CE(D, pseudo) / N                  on certain voxels of unlabelled crops
    L_cnt = Σ |softmax(D) - softmax(D')|² / N    on their uncertain voxels

    crm, csn, cnt   conservative-radical module, certain segmentation network, consistency
    Y        label
    CE       cross-entropy, summed over the voxels and divided by their number
    CE_con   cross-entropy in which a voxel of the background counts α times, and one of an object
             once; it is divided by the number of voxels too, not by the sum of the weights
    CE_rad   cross-entropy in which a voxel of an object counts α times, and one of the background
             once
    pseudo   argmax of D on whole images, found anew every 5 epochs
    certain  where D_con and D_rad predict the same class; found on the crops in every step
    D'       D of the mean teacher, which sees the same crops; its EMA decay is 0.99
    N        voxels of the unlabelled crops, certain or not
    epoch    a pass over the labelled cases

    python code/train_coranet.py --labelnum 16 --gpu 0
    python code/test_LA.py --method coranet --labelnum 16

Setting of the paper: Adam 1e-3, betas (0.5, 0.999); α = 5. In 3-D a V-Net, 30 epochs of
pre-training and 200 of self-training; for slices the original U-Net from 64 to 1024 channels, 30 +
100 epochs, a batch of 4. D of the student is tested, without post-processing. Instance norm in 3-D
is the released code's. Ours are what the paper leaves open: 4 labelled and 4 unlabelled crops a
step, of slices 2 + 2 (pre-training sees the labelled ones only), and an epoch of one pass.

`--updates joint` is one step on L_crm + L_csn + L_cnt, and `--masks relabelling` finds the certain
voxels on whole images together with the pseudo-labels. Both are cheaper.

With several classes this script has one network for all of them; `train_coranet_ovr.py` has one
binary network per class, which is the paper's form for ACDC. `train_coranet_uncertainty.py` has
other measures of uncertainty in place of D_con and D_rad (Table VI).
`--preset released` is the released code where it differs: its losses (`objective_released`), its
batch sizes and epochs (DEFAULTS, `epoch_lengths`).
"""

import copy
import math

import torch

import _root  # noqa: F401
from dataloaders.two_stream import LABELED, UNLABELED, two_stream_loader
from networks import network_class
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
# To fork: change a loss here, or how they add up in `objective`. Logits are float32 `(B, C, *S)`,
# labels int64 `(B, *S)`, masks of voxels bool `(B, *S)`.


def class_weights(D, alpha):
    """Weights `(C,)` of CE_con and of CE_rad, equation 1: background first."""
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
    """The loss of a joint step.

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
        student: gives D, D_con and D_rad of crops, or only D, which moves the trunk and D.
        batch: its labelled crops come first.
        args: `alpha` and `region_means`.
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
    D, D_con, D_rad = [branch.float() for branch in student(batch.image[:n])]
    terms["loss_crm"] = labelled_loss(D, D_con, D_rad, batch.label, args.alpha)
    job.optimize(terms["loss_crm"], optimizer)
    return sum(terms.values()), terms


# ------------------------------------------------------------- the pseudo-labels and their masks
# To fork: another way to find them, or to call them certain, goes into `relabel` and
# `certain_voxels`.


def relabel(net, data, steps, job, stride):
    """Pseudo-labels and certain voxels of the whole unlabelled images that `steps` will show.

    Returns:
        Case to its classes uint8 `(*S)` and its certain voxels bool `(*S)`.
    """

    def branches(image):
        """Softmax of D, D_con and D_rad behind one another, `(B, 3 C, *S)`."""
        return torch.cat([logits.float().softmax(1) for logits in net(image)], 1)

    def find(image):
        prob = whole_image(
            branches,
            image,
            data.patch,
            stride,
            3 * data.num_classes,
            device=job.device,
            precision=job.precision,
        )
        D, D_con, D_rad = (branch.argmax(0) for branch in prob.split(data.num_classes))
        return D.to(torch.uint8).cpu(), (D_con == D_rad).cpu()

    return find_in_unlabelled(find, net, data, steps, job)


@torch.no_grad()
def certain_voxels(student, net, image):
    """Where D_con and D_rad predict the same class on crops, equations 5 and 6: bool `(B, *S)`."""
    net.eval()
    _, D_con, D_rad = student(image)
    net.train()
    return D_con.argmax(1) == D_rad.argmax(1)


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
    """The network with D, D_con and D_rad."""
    network = network_class(args.net)
    return network(
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

    loss_of_step = objective_released if released(args) else objective
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
                pseudo_labels.replace(relabel(net, data, coming, job, args.relabel_stride))
                job.logger.info(summary_of(pseudo_labels, data, masked))

            region = {"everywhere": torch.ones_like(unlabelled[:, 0], dtype=torch.bool)}
            if masked:
                if masks_of_step:
                    region["certain"] = certain_voxels(student, net, unlabelled)
                else:  # beyond the image's edge they are certain background
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
                    learn["teacher"] = [branch.float() for branch in teacher(unlabelled)]
                learn["teacher_region"] = region[teacher_where]

        if selftraining and args.updates == "three":
            loss, terms = three_updates(student, batch, args, job, optimizer, **learn)
        else:
            image = batch.image if selftraining else batch.image[:n]
            outputs = [branch.float() for branch in student(image)]
            epoch = max(t, 0) // selftrain_epoch
            loss, terms = loss_of_step(outputs, batch.label, args, epoch, **learn)
            job.optimize(loss, optimizer)

        job.log(step, loss=loss, **terms, **info, lr=args.base_lr)
        job.checkpoint(step)


if __name__ == "__main__":
    command.run(main)
