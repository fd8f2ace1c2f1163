"""Pseudo-label (Lee, ICML Workshop 2013), for segmentation.

A network learns from its own hard predictions on unlabelled crops as if they were labels.

    L = L_sup + α(t) L_pseudo
    L_sup    = (CE(p, Y) + Dice(p, Y)) / 2       on the labelled crops
    L_pseudo = mean over M of -ln p[Ŷ]           on the unlabelled crops

    p      softmax of the network
    Ŷ      pseudo-label, argmax p of the same pass, which has no gradient
    M      voxels whose max p is at least the threshold; at 0 all of them
    Y      label
    Dice   loss 1 - 2 Σ p y / (Σ p² + Σ y²), mean over all classes with the background
    α(t)   weight of the pseudo-labels: 0 up to T₁, then linear up to w at T₂

    python code/train_pseudo.py --labelnum 16 --gpu 0
    python code/test_LA.py --method pseudo --labelnum 16 --nms 0
    python code/train_pseudo.py --dataset ACDC --labelnum 7 --threshold 0.9 --gpu 0

The paper is about digits, and we could not read it. As we remember it, α rises to 3 between epochs
100 and 600. Ours: T₁ is a sixth of the training and T₂ its end, w = 1, and no threshold.
`--threshold` 0.5, 0.7 and 0.9 are the baselines of CoraNet's Fig. 3.

Customs of the field, from SSL4MIS: L_sup, and on BraTS2019 and ACDC 30 000 iterations with the
learning rate 0.01 (1 - t/t_max)^0.9. From UA-MT, on all other data sets: SGD 0.01, ×0.1 every 2500
of 6000 iterations. Momentum 0.9 and weight decay 1e-4 are those of both.
"""

import torch

import _root  # noqa: F401
from dataloaders.two_stream import two_stream_loader
from networks import network_class
from utils import command
from utils.errors import UserError
from utils.losses import cross_entropy, masked_mean, supervised_loss
from utils.schedules import learning_rate, set_lr
from utils.training import options, run
from utils.training.options import rule


def in_ssl4mis(args):
    return args.dataset in ("BraTS2019", "ACDC")


DEFAULTS = [  # where several rules hold, the last one wins
    rule("ours", consistency=1.0, rampup_from=1 / 6, rampup_share=1.0, threshold=0.0),
    rule(
        "custom of the field: UA-MT",
        base_lr=0.01,
        decay="step",
        lr_step=2500,
        max_iterations=6000,
    ),
    rule(
        "custom of the field: SSL4MIS",
        in_ssl4mis,
        base_lr=0.01,
        decay="poly",
        max_iterations=30000,
    ),
]
TEST_FLAGS = {"*": "--nms 0"}  # SSL4MIS filters no components

# ------------------------------------------------------------------------------------- the losses
# To fork: choose the voxels that are learnt by something else than max p in `pseudo_loss`.


def pseudo_loss(z, threshold):
    """L_pseudo, and the share of the voxels that are in M.

    Args:
        z: logits of the unlabelled crops, `(B_u, C, *S)`.
        threshold: of max p.
    """
    confidence, pseudo = z.detach().softmax(1).max(1)
    certain = confidence >= threshold
    loss = masked_mean(cross_entropy(z, pseudo, reduction="none"), certain)
    return loss, certain.float().mean()


def consistency_weight(step, args):
    """α(t): `args` holds `consistency`, `rampup_from`, `rampup_share` and `max_iterations`."""
    share = step / args.max_iterations  # of the training
    if share >= args.rampup_share:
        return args.consistency
    if share < args.rampup_from:
        return 0.0
    return args.consistency * (share - args.rampup_from) / (args.rampup_share - args.rampup_from)


def objective(z, label, weight, threshold):
    """The loss of a step.

    Args:
        z: logits, float32 `(B, C, *S)`, labelled crops first.
        label: int64 `(B_l, *S)`.
        weight: α(t).
        threshold: of max p.

    Returns:
        The loss, and its terms by name.
    """
    loss_sup = supervised_loss(z[: len(label)], label, background=True)
    loss_pseudo, certain = pseudo_loss(z[len(label) :], threshold)
    loss = loss_sup + weight * loss_pseudo
    return loss, {"loss_sup": loss_sup, "loss_pseudo": loss_pseudo, "certain": certain}


# ------------------------------------------------------------------------------------ the options


def parse(argv=None):
    parser = options.parser(__doc__, __file__)
    method = parser.add_argument_group("method")
    options.add_iterations(method, decay="either")
    method.add_argument(
        "--consistency", type=command.non_negative, help="w, largest weight of the pseudo-labels"
    )
    method.add_argument(
        "--rampup_from",
        type=command.fraction,
        help="T₁ as a share of the training; before it α is 0",
    )
    method.add_argument(
        "--rampup_share",
        type=command.fraction,
        help="T₂ as a share of the training; from it on α is w",
    )
    method.add_argument(
        "--threshold",
        type=command.fraction,
        help="smallest max p of a voxel that is learnt from; raise it for fewer and surer ones",
    )
    args = options.parse(parser, DEFAULTS, argv)
    if args.rampup_from > args.rampup_share:
        raise UserError(
            f"--rampup_from {args.rampup_from} lies behind --rampup_share {args.rampup_share}: "
            "lower it"
        )
    if not args.consistency:
        of_pseudo = ("rampup_from", "rampup_share", "threshold")
        options.refuse_without_effect(args, of_pseudo, "--consistency 0")
    return args


# -------------------------------------------------------------------------------- the training loop
# To fork: take the pseudo-labels from another network or from a clean pass here.


def main(argv=None):
    args = parse(argv)
    job = run.Run(args, __file__)
    data = two_stream_loader(args, job.device)

    network = network_class(args.net)
    shape = (data.in_channels, data.num_classes, args.n_filters, args.normalization)
    net = job.to_device(network(*shape))
    model = job.parallel(net)
    optimizer = torch.optim.SGD(net.parameters(), lr=args.base_lr, momentum=0.9, weight_decay=1e-4)
    job.resume(net=net, optimizer=optimizer)

    for step, batch in job.steps(data, args.max_iterations):
        lr = learning_rate(step, args)
        set_lr(optimizer, lr)
        weight = consistency_weight(step, args)

        z = model(batch.image).float()
        loss, terms = objective(z, batch.label, weight, args.threshold)

        job.optimize(loss, optimizer)
        job.log(step, loss=loss, **terms, consistency_weight=weight, lr=lr)
        job.checkpoint(step)


if __name__ == "__main__":
    command.run(main)
