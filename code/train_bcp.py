"""BCP, bidirectional copy-paste (Bai et al., CVPR 2023).

A network is pre-trained on labelled crops that CutMix mixes. Then it learns from mixtures of
labelled and unlabelled crops, pasted in both directions; a mean teacher labels the unlabelled part.

    pre-training     L = seg(p, Y, everywhere)          with  X = X_a M + X_b (1 - M), Y likewise
    self-training    L = L_in + L_out
        L_in  = seg(p_in,  Y_in,  M)     + α seg(p_in,  Y_in,  1 - M)
        L_out = seg(p_out, Y_out, 1 - M) + α seg(p_out, Y_out, M)
        X_in  = X_a M + U_a (1 - M)      Y_in  = Y_a M + Ŷ_a (1 - M)
        X_out = U_b M + X_b (1 - M)      Y_out = Ŷ_b M + Y_b (1 - M)

    X, Y       labelled crops and their labels
    U, Ŷ       unlabelled crops, and their pseudo-labels: the teacher's argmax on the unmixed crops,
               of which the largest connected component of each class is left
    a, b       the first and the second half of a batch
    M          mask of a step: 0 in a box, 1 around it; the box has β times each extent of the crop
    seg(·, R)  (Dice + CE) / 2 over the region R: CE is the mean over its voxels
    Dice       with the background. Volumes: 1 - 2 Σ p y / (Σ p + Σ y), mean over crops and classes.
               Slices: 1 - 2 Σ p y / (Σ p² + Σ y²), sums over the batch, mean over classes
    α          weight of the pseudo-labelled regions

The teacher starts as a copy of the pre-trained network; then θ' = a θ' + (1 - a) θ after each step.

    python code/train_bcp.py --labelnum 8 --gpu 0
    python code/test_LA.py --method bcp --labelnum 8
    python code/train_bcp.py --dataset ACDC --labelnum 7 --gpu 0

Setting of the released code, on LA: V-Net; SGD with learning rate 0.01, momentum 0.9 and weight
decay 1e-4; 2000 iterations of pre-training at a constant rate, 15000 of self-training, ×0.1 every
2500; 4 labelled and 4 unlabelled crops a step, mixed to 2 + 2; α = 0.5, β = 2/3, a = 0.99. ACDC:
U-Net, 10000 + 30000 iterations at a constant rate, 24 slices a step. The student is tested, on LA
with the component filter.

Volumes follow the code of LA, slices that of ACDC: on volumes self-training begins with a fresh
optimizer and the teacher keeps its own batch-norm statistics; on slices the optimizer's state goes
on and the statistics are averaged like the weights. Ours: both mixtures go through the network in
one pass, and the last iteration is kept, of either phase. The released code passes them one after
another and keeps the best on its test list.
"""

import copy

import torch

import _root  # noqa: F401
from dataloaders.two_stream import two_stream_loader
from networks import network_class
from utils import command
from utils.errors import UserError
from utils.losses import class_dice_loss, cross_entropy, masked_mean
from utils.ops import largest_component, random_box, splice
from utils.schedules import set_lr, step_decay, update_teacher
from utils.training import options, run
from utils.training.options import rule


def in_2d(args):
    return len(args.patch) == 2


def in_3d(args):
    return len(args.patch) == 3


def on(dataset):
    """The condition of a rule for one data set."""
    return lambda args: args.dataset == dataset


MIX = {"base_lr": 0.01, "alpha": 0.5, "beta": 2 / 3, "ema_decay": 0.99}
VOLUMES = {
    "pretrain_iterations": 2000,
    "max_iterations": 15000,
    "lr_step": 2500,
    "labeled_bs": 4,
    "unlabeled_bs": 4,
}
SLICES = {"pretrain_iterations": 10000, "max_iterations": 30000, "lr_step": 0}
DEFAULTS = [  # where several rules hold, the last one wins
    rule("ours", **MIX),
    rule("ours", in_3d, **VOLUMES),
    rule("ours", in_2d, **SLICES),
    rule("released code: BCP", on("LA"), net="vnet", **VOLUMES, **MIX),
    rule(
        "released code: BCP",
        on("ACDC"),
        net="unet",
        labeled_bs=12,
        unlabeled_bs=12,
        **SLICES,
        **MIX,
    ),
]
TEST_FLAGS = {"LA": "--nms 1"}  # the released code keeps the largest component

# ------------------------------------------------------------------------------------- the losses
# To fork: change what is mixed in `mixtures`, and how a region is learnt in `region_loss`.


def mixtures(labelled, unlabelled, box):
    """X_in and X_out of images, or Y_in and Y_out of labels.

    Args:
        labelled, unlabelled: `(B, ...)` of one shape, the halves a and b one after another.
        box: where 1 - M is set.

    Returns:
        Two tensors `(B/2, ...)`.
    """
    labelled_a, labelled_b = labelled.chunk(2)
    unlabelled_a, unlabelled_b = unlabelled.chunk(2)
    return splice(labelled_a, unlabelled_a, box), splice(unlabelled_b, labelled_b, box)


def sample_dice_loss(p, label, region):
    """Dice of each crop and class without squares, the background included, as on LA.

    Args:
        p: probabilities `(B, C, *S)`.
        label: int64 `(B, *S)`.
        region: R, bool `(B, *S)`.
    """
    p = p * region.unsqueeze(1)
    y = torch.stack([(label == c) & region for c in range(p.shape[1])], 1)
    overlap = (p * y).flatten(2).sum(2)
    sizes = p.flatten(2).sum(2) + y.flatten(2).sum(2)
    return 1 - ((2 * overlap + 1e-5) / (sizes + 1e-5)).mean()


def region_loss(z, label, region):
    """seg over a region: logits `(B, C, *S)`, label int64 `(B, *S)`, region bool `(B, *S)`."""
    p = z.softmax(1)
    if label.ndim == 4:
        dice = sample_dice_loss(p, label, region)
    else:
        dice = class_dice_loss(p, label, region, eps=1e-10)
    ce = masked_mean(cross_entropy(z, label, reduction="none"), region)
    return (dice + ce) / 2


def pretraining_loss(z, label):
    """L of the pre-training: the whole crop is one region."""
    return region_loss(z, label, torch.ones_like(label, dtype=torch.bool))


def objective(z_in, z_out, label_in, label_out, inside, alpha):
    """The loss of a step of self-training.

    Args:
        z_in, z_out: logits of both mixtures, float32 `(B/2, C, *S)`.
        label_in, label_out: what they are learnt from, int64 `(B/2, *S)`.
        inside: 1 - M, bool `(B/2, *S)`.
        alpha: α.

    Returns:
        The loss, and its terms by name.
    """
    labelled = region_loss(z_in, label_in, ~inside) + region_loss(z_out, label_out, inside)
    pseudo = region_loss(z_in, label_in, inside) + region_loss(z_out, label_out, ~inside)
    return labelled + alpha * pseudo, {"loss_labelled": labelled, "loss_pseudo": pseudo}


# ------------------------------------------------------------------------------------ the options


def parse(argv=None):
    parser = options.parser(__doc__, __file__)
    method = parser.add_argument_group("method")
    method.add_argument(
        "--pretrain_iterations",
        type=command.non_negative_int,
        help="number of steps on labelled crops only",
    )
    method.add_argument(
        "--max_iterations", type=command.non_negative_int, help="number of self-training steps"
    )
    method.add_argument(
        "--lr_step",
        type=command.non_negative_int,
        help="multiply the learning rate by 0.1 every so many steps of self-training; 0: never",
    )
    method.add_argument(
        "--alpha", type=command.non_negative, help="α, weight of the pseudo-labelled regions"
    )
    method.add_argument(
        "--beta", type=command.fraction, help="β, extent of the box over that of the crop"
    )
    method.add_argument(
        "--ema_decay",
        type=command.fraction,
        help="a, EMA decay of the teacher from the first step on; lower it for short runs",
    )
    args = options.parse(parser, DEFAULTS, argv)
    if not args.beta:
        raise UserError("--beta 0 leaves no box: give a share of the crop's extents, as 0.67")
    if not args.max_iterations:
        options.refuse_without_effect(args, ("alpha", "ema_decay", "lr_step"), "--max_iterations 0")
    return args


def check_halves(args, shares):
    """Insist on as many labelled as unlabelled crops, an even number in each share of a step.

    Args:
        args: `labeled_bs` and `unlabeled_bs`.
        shares: parts of a step, over all processes and all parts of `--accumulate`.

    Raises:
        UserError: the crops cannot be paired.
    """
    if args.labeled_bs != args.unlabeled_bs:
        raise UserError("BCP mixes pairs: --labeled_bs and --unlabeled_bs must be equal")
    if args.labeled_bs // shares % 2:
        wanted = f"a multiple of {2 * shares}" if shares > 1 else "even"
        raise UserError(f"BCP mixes halves of a batch: --labeled_bs must be {wanted}")


# ------------------------------------------------------------------------------------ the teacher


@torch.no_grad()
def pseudo_labels(teacher, image, num_classes):
    """Ŷ, int64 `(B, *S)`: the largest component of each class of the teacher's argmax."""
    return largest_component(teacher(image).argmax(1), num_classes)


def begin_self_training(net_teacher, net, optimizer, args):
    """The teacher becomes a copy of the pre-trained network; on volumes the momentum is dropped."""
    net_teacher.load_state_dict(net.state_dict())
    if in_3d(args):
        optimizer.state.clear()


def update(net_teacher, net, args):
    """θ' = a θ' + (1 - a) θ; on slices the batch-norm statistics are averaged too."""
    update_teacher(net_teacher, net, args.ema_decay, buffers=in_2d(args))


# -------------------------------------------------------------------------------- the training loop


def main(argv=None):
    args = parse(argv)
    job = run.Run(args, __file__)
    check_halves(args, job.shares)
    data = two_stream_loader(args, job.device)

    network = network_class(args.net)
    shape = (data.in_channels, data.num_classes, args.n_filters, args.normalization)
    net = job.to_device(network(*shape))
    net_teacher = copy.deepcopy(net).requires_grad_(False)
    student = job.parallel(net)
    teacher = job.parallel(net_teacher)
    optimizer = torch.optim.SGD(net.parameters(), lr=args.base_lr, momentum=0.9, weight_decay=1e-4)
    job.resume(net=net, teacher=net_teacher, optimizer=optimizer)

    for step, batch in job.steps(data, args.pretrain_iterations + args.max_iterations):
        n = batch.labeled_bs
        pretraining = step <= args.pretrain_iterations
        box = random_box(args.patch, args.beta, job.generator, device=job.device)

        if pretraining:
            lr = args.base_lr
            set_lr(optimizer, lr)
            image_a, image_b = batch.image[:n].chunk(2)
            label_a, label_b = batch.label.chunk(2)
            label = splice(label_a, label_b, box)
            z = student(splice(image_a, image_b, box)).float()
            loss = pretraining_loss(z, label)
            terms = {}
        else:
            lr = step_decay(args.base_lr, step - args.pretrain_iterations, args.lr_step)
            set_lr(optimizer, lr)
            if step == args.pretrain_iterations + 1 and batch.first_part:
                begin_self_training(net_teacher, net, optimizer, args)
            unlabelled = batch.image[n:]
            pseudo = pseudo_labels(teacher, unlabelled, data.num_classes)
            image_in, image_out = mixtures(batch.image[:n], unlabelled, box)
            label_in, label_out = mixtures(batch.label, pseudo, box)
            outside = torch.zeros_like(label_in, dtype=torch.bool)
            inside = splice(outside, ~outside, box)
            z_in, z_out = student(torch.cat((image_in, image_out))).float().chunk(2)
            loss, terms = objective(z_in, z_out, label_in, label_out, inside, args.alpha)

        job.optimize(loss, optimizer)
        if not pretraining and batch.last_part:
            update(net_teacher, net, args)
        job.log(step, loss=loss, **terms, lr=lr)
        job.checkpoint(step)


if __name__ == "__main__":
    command.run(main)
