"""CoraNet with another measure of uncertainty (Shi et al., IEEE TMI 41(3), 2022, Table VI).

The separate self-training of `train_coranet.py`. Here the certain region does not come from D_con
and D_rad: it is where the entropy of one network's mean prediction is low.

    pre-training     L = L_seg
    self-training    L = L_seg + L_csn + L_cnt

    L_seg = CE(D, Y)                            on labelled crops; aleatoric: -ln of p at Y
    L_csn = Σ CE(D, pseudo) / N                  on certain voxels of unlabelled crops
    L_cnt = Σ |softmax(D) - softmax(D')|² / N    on uncertain voxels of unlabelled crops

    D, D'    logits of the student and of its mean teacher
    pseudo   argmax of D on whole images
    certain  where the entropy of p is below half of ln C; p is the mean softmax of D
               tta          over all flips of the image (test-time augmentation)
               mcdropout    over `--looks` passes with dropout
               aleatoric    over `--looks` draws of D + σ ε, where a second branch predicts ln σ²
                            and ε is standard normal (Kendall & Gal, NeurIPS 2017, equation 12)

    python code/train_coranet_uncertainty.py --uncertainty tta --labelnum 16 --gpu 0
    python code/test_LA.py --method coranet_uncertainty --labelnum 16

Setting: that of `train_coranet.py`, which is the row CRM of the table.
"""

import copy
import math

import torch
import torch.nn.functional as F

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
from utils.uncertainty import entropy, mean_over_dropout, mean_over_flips, noisy_softmax

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


def labelled_loss(student, label, args):
    """L_seg: cross-entropy of D; for aleatoric -ln of the label's mean softmax over noisy logits.

    Args:
        student: D, and for aleatoric ln σ² too, on the labelled crops.
        label: of these crops.
        args: `uncertainty` and `looks`.
    """
    if args.uncertainty != "aleatoric":
        return cross_entropy(student[0], label)
    D, log_variance = student
    prob = noisy_softmax(D, log_variance, args.looks)
    return F.nll_loss(prob.clamp(min=1e-7).log(), label)


def labelled_loss_released(student, label, args):
    """L_seg as the released code would have it: the mean with Dice."""
    loss = labelled_loss(student, label, args)
    return (loss + foreground_dice_loss(student[0].softmax(1), label)) / 2


def certain_loss(D, pseudo, certain):
    """L_csn, equation 7: sum over the certain voxels, divided by all voxels."""
    return (cross_entropy(D, pseudo, reduction="none") * certain).mean()


def certain_loss_released(D, pseudo, certain):
    """L_csn as the released code has it: the mean of cross-entropy and Dice."""
    ce = masked_mean(cross_entropy(D, pseudo, reduction="none"), certain)
    dice = foreground_dice_loss(D.softmax(1), pseudo, certain)
    return (ce + dice) / 2


def consistency_loss(D, D_teacher, uncertain):
    """L_cnt, equation 8: sum over the uncertain voxels and the classes, divided by all voxels."""
    square = (D.softmax(1) - D_teacher.softmax(1)).square().sum(1)
    return (square * uncertain).mean()


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
    """The loss of a step.

    Args:
        student: D, and for aleatoric ln σ² too, labelled crops first.
        label: of the labelled crops.
        args: `uncertainty` and `looks`.
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


# ------------------------------------------------------------------------------ the pseudo-labels
# To fork: another way to find them, or to call them certain, goes into `relabel`.


def mean_prediction(net, image, D, args):
    """p: the mean softmax `(B, C, *S)` whose entropy tells what is certain.

    Args:
        net: the network, in eval mode.
        image: `(B, C_in, *S)`.
        D: what the network gives for it: logits, for aleatoric logits and ln σ².
        args: `uncertainty` and `looks`.
    """

    def look(image):
        return net(image).float().softmax(1)

    if args.uncertainty == "tta":
        return mean_over_flips(look, image)
    if args.uncertainty == "mcdropout":
        return mean_over_dropout(look, image, net, args.looks)
    logits, log_variance = D
    return noisy_softmax(logits, log_variance, args.looks)


def relabel(net, data, steps, job, args):
    """Pseudo-labels and certain voxels of the whole unlabelled images that `steps` will show.

    Returns:
        Case to its classes uint8 `(*S)` and its certain voxels bool `(*S)`.
    """

    def predictions(image):
        """Softmax of D and the mean prediction behind one another, `(B, 2 C, *S)`."""
        outputs = branches_of(net(image))
        mean = mean_prediction(net, image, outputs, args)
        return torch.cat([outputs[0].softmax(1), mean], 1)

    limit = args.certain_below * math.log(data.num_classes)

    def find(image):
        prob = whole_image(
            predictions,
            image,
            data.patch,
            args.relabel_stride,
            2 * data.num_classes,
            device=job.device,
            precision=job.precision,
        )
        D, mean = prob.split(data.num_classes)
        certain = entropy(mean[None])[0] < limit
        return D.argmax(0).to(torch.uint8).cpu(), certain.cpu()

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
        "--uncertainty",
        choices=("tta", "mcdropout", "aleatoric"),
        default="tta",
        help="measure of uncertainty: row of Table VI",
    )
    method.add_argument(
        "--looks",
        type=command.positive_int,
        default=8,
        help="passes of mcdropout, draws of aleatoric; fewer are faster",
    )
    method.add_argument(
        "--certain_below",
        type=command.fraction,
        default=0.5,
        help="entropy over ln C below which a voxel is certain",
    )
    method.add_argument(
        "--train",
        choices=("seg", "seg+st", "seg+st_mask", "seg+mt", "seg+mt_mask", "full"),
        default="full",
        help="row of Table IV: seg only L_seg, st adds L_csn, mt adds L_cnt, full adds both; "
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
    """The network with D, and for aleatoric ln σ²; for slices it has four levels."""
    shape = {
        "n_filters": args.n_filters,
        "normalization": args.normalization,
        "branches": 2 if args.uncertainty == "aleatoric" else 1,
    }
    if args.uncertainty == "mcdropout":
        shape["dropout"] = 0.5
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
                pseudo_labels.replace(relabel(net, data, coming, job, args))
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
                learn["teacher"] = branches_of(teacher(batch.image[n:]))
            everywhere = torch.ones_like(learn["teacher"][0][:, 0], dtype=torch.bool)
            learn["teacher_region"] = ~certain if masked else everywhere

        labelled_only = t < 0 or args.train == "seg"
        image = batch.image[:n] if labelled_only else batch.image
        outputs = branches_of(student(image))
        epoch = max(t, 0) // selftrain_epoch
        loss, terms = loss_of_step(outputs, batch.label, args, epoch, **learn)

        job.optimize(loss, optimizer)
        job.log(step, loss=loss, **terms, **info, lr=args.base_lr)
        job.checkpoint(step)


if __name__ == "__main__":
    command.run(main)
