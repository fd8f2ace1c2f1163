"""CoraNet, the conservative-radical network (Shi et al., IEEE TMI 41(3), 2022).

One network has three branches at its end: D, D_con, which pays more for false object voxels, and
D_rad, which pays more for missed ones. Where D_con and D_rad predict the same class, D is certain
and learns from its own pseudo-label; elsewhere D follows its mean teacher.

    pre-training     L = L_crm
    self-training    L = L_crm + L_csn + L_cnt

    L_crm = CE(D, Y) + CE_con(D_con, Y) + CE_rad(D_rad, Y)    on labelled crops
    L_csn = Σ CE(D, pseudo) / N                  on certain voxels of unlabelled crops
    L_cnt = Σ |softmax(D) - softmax(D')|² / N    on their uncertain voxels

    crm, csn, cnt   conservative-radical module, certain segmentation network, consistency
    Y        label
    CE_con   cross-entropy in which a voxel of the background weighs α, and one of an object 1
    CE_rad   cross-entropy in which a voxel of an object weighs α, and one of the background 1
    pseudo   argmax of D on whole images; it and the certain voxels are found anew every 5 epochs
    D'       D of the mean teacher, which sees the same crops; its EMA decay is 0.99
    N        voxels of the unlabelled crops, certain or not
    epoch    a pass over the labelled cases

    python code/train_coranet.py --labelnum 16 --gpu 0
    python code/test_LA.py --method coranet --labelnum 16

Setting in 3-D: V-Net with instance norm; Adam 1e-3, betas (0.5, 0.999); 4 labelled and 4 unlabelled
crops a step; 30 epochs of pre-training and 200 of self-training; α = 5. For slices: U-Net of four
levels from 64 channels, 2 + 2 slices a step, 30 + 100 epochs. D of the student is tested.

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
from utils.inference import whole_image
from utils.losses import cross_entropy, foreground_dice_loss, masked_mean
from utils.pseudo_labels import PseudoLabels, relabelling_summary
from utils.schedules import gaussian_rampup, update_teacher
from utils.training import options, run
from utils.training.options import rule
from utils.training.unlabelled import find_in_unlabelled, window_stride

DEFAULTS = [  # where several rules hold, the last one wins
    rule(
        "paper",
        pretrain_epochs=30,
        selftrain_epochs=200,
        passes=1,
        labeled_bs=4,
        unlabeled_bs=4,
    ),
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
        normalization="batchnorm",
        pretrain_epochs=30,
        selftrain_epochs=100,
        labeled_bs=2,
        unlabeled_bs=2,
    ),
    rule("paper, ACDC", lambda args: args.dataset == "ACDC", augment="affine"),
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


def certain_loss(D, pseudo, certain):
    """L_csn, equation 7: sum over the certain voxels, divided by all voxels."""
    return (cross_entropy(D, pseudo, reduction="none") * certain).mean()


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


def consistency_loss(D, D_teacher, uncertain):
    """L_cnt, equation 8: sum over the uncertain voxels and the classes, divided by all voxels."""
    square = (D.softmax(1) - D_teacher.softmax(1)).square().sum(1)
    return (square * uncertain).mean()


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
    """The loss of a step.

    Args:
        student: D, D_con and D_rad, labelled crops first.
        label: of the labelled crops.
        args: `alpha`.
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
        terms["loss_csn"] = certain_loss(D, pseudo, pseudo_region)
        loss = loss + terms["loss_csn"]
    if teacher is not None:
        terms["loss_cnt"] = consistency_loss(D, teacher[0], teacher_region)
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


# ------------------------------------------------------------------------------ the pseudo-labels
# To fork: another way to find them, or to call them certain, goes into `relabel`.


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


def summary_of(pseudo_labels, data, certain_only):
    """A line for the log: in how many relabelled images each class has pseudo-labels."""
    counts = [pseudo_labels.images_with(c, certain_only) for c in range(1, data.num_classes)]
    names = data.description["class_names"]
    return relabelling_summary(len(pseudo_labels.labels), counts, names, certain_only)


# ------------------------------------------------------------------------------------ the options


def parse(argv=None):
    parser = options.parser(
        __doc__,
        __file__,
        ("paper", "released"),
        base_lr=1e-3,
        normalization="instancenorm",
    )
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
        default=5.0,
        help="α, ratio of the misclassification costs; raise it to call more voxels uncertain",
    )
    method.add_argument(
        "--train",
        choices=("seg", "seg+st", "seg+st_mask", "seg+mt", "seg+mt_mask", "full"),
        default="full",
        help="row of Table IV: seg only L_crm, st adds L_csn, mt adds L_cnt, full adds both; "
        "with mask and in full, L_csn sees only certain and L_cnt only uncertain voxels",
    )
    method.add_argument(
        "--relabel_epochs",
        type=command.positive_int,
        default=5,
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
        default=0.99,
        help="β, EMA decay of the teacher; lower it for short runs",
    )
    args = options.parse(parser, DEFAULTS, argv)
    args.relabel_stride = window_stride(args.relabel_stride, args.patch, "--relabel_stride")
    return args


# -------------------------------------------------------------------------------- the training loop


def epoch_lengths(args, data):
    """Steps of an epoch of pre-training, and of one of self-training."""
    steps = math.ceil(args.passes * len(data.cases[LABELED]) / args.labeled_bs)
    if args.preset == "released" and args.net != "unet":
        # its epochs of self-training also end when the unlabelled cases give no whole batch more
        whole_batches = len(data.cases[UNLABELED]) // args.unlabeled_bs
        return steps, max(1, min(steps, whole_batches))
    return steps, steps


def build(args, data):
    """The network with D, D_con and D_rad; for slices it has four levels."""
    shape = {"n_filters": args.n_filters, "normalization": args.normalization, "branches": 3}
    if args.net == "unet":
        shape["levels"] = 4
    network = network_class(args.net)
    return network(data.in_channels, data.num_classes, **shape)


def decay_of_teacher(t, args):
    """EMA decay at iteration t of self-training: 0 at t = 0, a copy of the pre-trained student."""
    return args.ema_decay if t > 0 else 0.0


def main(argv=None):
    args = parse(argv)
    job = run.Run(args, __file__)
    data = two_stream_loader(args, job.device)

    loss_of_step = objective_released if args.preset == "released" else objective
    uses_pseudo_labels = args.train in ("seg+st", "seg+st_mask", "full")
    uses_teacher = args.train in ("seg+mt", "seg+mt_mask", "full")
    masked = args.train in ("seg+st_mask", "seg+mt_mask", "full")

    pretrain_epoch, selftrain_epoch = epoch_lengths(args, data)
    pretraining = args.pretrain_epochs * pretrain_epoch
    last = pretraining + args.selftrain_epochs * selftrain_epoch
    relabel_every = args.relabel_epochs * selftrain_epoch

    net = job.to_device(build(args, data))
    net_teacher = copy.deepcopy(net).requires_grad_(False)
    student = job.parallel(net)
    teacher = job.parallel(net_teacher)
    optimizer = torch.optim.Adam(net.parameters(), lr=args.base_lr, betas=(0.5, 0.999))
    pseudo_labels = PseudoLabels()
    job.resume(net=net, teacher=net_teacher, optimizer=optimizer, pseudo_labels=pseudo_labels)

    # With --accumulate the loop sees a step in parts: `first_part` marks what is done once a step.
    for step, batch in job.steps(data, last):
        n = batch.labeled_bs
        t = step - 1 - pretraining  # iteration of self-training, from 0
        learn = {}
        info = {}

        if t >= 0 and (uses_pseudo_labels or masked):
            if t % relabel_every == 0 and batch.first_part:
                coming = range(step, min(step + relabel_every, last + 1))
                pseudo_labels.replace(relabel(net, data, coming, job, args.relabel_stride))
                job.logger.info(summary_of(pseudo_labels, data, masked))
            crops = batch.crops[n:]  # beyond the image's edge they are certain background
            certain = data.gather(pseudo_labels.uncertain, crops) == 0
            info["certain"] = certain.float().mean()
            if uses_pseudo_labels:
                learn["pseudo"] = data.gather(pseudo_labels.labels, crops).long()
                learn["pseudo_region"] = certain if masked else torch.ones_like(certain)

        if t >= 0 and uses_teacher:
            if batch.first_part:
                update_teacher(net_teacher, net, decay_of_teacher(t, args))
            with torch.no_grad():
                learn["teacher"] = [branch.float() for branch in teacher(batch.image[n:])]
            everywhere = torch.ones_like(learn["teacher"][0][:, 0], dtype=torch.bool)
            learn["teacher_region"] = ~certain if masked else everywhere

        labelled_only = t < 0 or args.train == "seg"
        image = batch.image[:n] if labelled_only else batch.image
        outputs = [branch.float() for branch in student(image)]
        epoch = max(t, 0) // selftrain_epoch
        loss, terms = loss_of_step(outputs, batch.label, args, epoch, **learn)

        job.optimize(loss, optimizer)
        job.log(step, loss=loss, **terms, **info, lr=args.base_lr)
        job.checkpoint(step)


if __name__ == "__main__":
    command.run(main)
