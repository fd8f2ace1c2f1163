"""VAT, virtual adversarial training (Miyato et al., TPAMI 2019), for segmentation.

The network is made to predict the same where its input is changed in the direction in which its
prediction changes most.

    L = L_sup + λ(t) L_vat
    L_sup = (CE(p, Y) + Dice(p, Y)) / 2           on the labelled crops
    L_vat = KL(p(x) ‖ p(x + r)), mean over voxels     on all crops; its gradient goes to p(x + r)
    r     = ε g / |g|, where g = ∇_d KL(p(x) ‖ p(x + d)) at d = ξ n / |n|

    x, p   a crop, and the network's softmax for it
    r      adversarial perturbation of a crop, of Euclidean norm ε; it has no gradient
    n      noise from N(0, 1), drawn anew for each crop: g is one step of power iteration from it
    Y      label
    Dice   loss 1 - 2 Σ p y / (Σ p² + Σ y²), mean over all classes with the background
    λ(t)   weight w exp(-5 (1 - t/t_max)²) of the adversarial loss, w = 0.1

    The passes for x + d and x + r normalise by their own batch, and leave the running statistics of
    batch norm as they are. Each pass has its own dropout.

    python code/train_vat.py --labelnum 16 --gpu 0
    python code/test_LA.py --method vat --labelnum 16 --nms 0
    python code/train_vat.py --dataset ACDC --labelnum 7 --gpu 0

The paper is about the classification of images, and no work that the field compares with has a
setting for volumes. Ours: w, its growth, and KL on all crops. From SS-Net (Wu et al., MICCAI 2022),
which has a term of this kind: ξ = 10, ε = 10 on LA and 6 on ACDC. As SS-Net does, `--distance
dice` compares by Dice in place of KL; here it is the mean over the foreground classes. The norm of
a crop of LA is about 1000, so r is 1 % of it; smaller crops have smaller norms, and may need a
smaller ε.

Customs of the field, from SSL4MIS: L_sup, and on BraTS2019 and ACDC 30 000 iterations with the
learning rate 0.01 (1 - t/t_max)^0.9. From UA-MT, on all other data sets: SGD 0.01, ×0.1 every 2500
of 6000 iterations. Momentum 0.9 and weight decay 1e-4 are those of both.
"""

import torch

import _root  # noqa: F401
from dataloaders.two_stream import two_stream_loader
from networks import network_class
from networks.base import statistics_kept
from utils import command
from utils.losses import dice_loss, supervised_loss
from utils.perturbations import adversarial_direction
from utils.schedules import consistency_weight, learning_rate, set_lr
from utils.training import options, run
from utils.training.options import rule


def in_2d(args):
    return len(args.patch) == 2


def in_3d(args):
    return len(args.patch) == 3


def in_ssl4mis(args):
    return args.dataset in ("BraTS2019", "ACDC")


DEFAULTS = [  # where several rules hold, the last one wins
    rule("ours", consistency=0.1, rampup_share=1.0, distance="kl", xi=10.0),
    rule("ours", in_3d, epsilon=10.0),
    rule("ours", in_2d, epsilon=6.0),
    rule("custom of the field: SS-Net", lambda args: args.dataset == "LA", xi=10.0, epsilon=10.0),
    rule("custom of the field: SS-Net", lambda args: args.dataset == "ACDC", xi=10.0, epsilon=6.0),
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
# To fork: compare two predictions by something else than KL or Dice, and name it in DISTANCES.


def kl_distance(z, z_perturbed):
    """KL(p ‖ q), mean over voxels, with a gradient to q only.

    Args:
        z, z_perturbed: logits of p and q, `(B, C, *S)`.
    """
    log_p = z.detach().log_softmax(1)
    log_q = z_perturbed.log_softmax(1)
    return (log_p.exp() * (log_p - log_q)).sum(1).mean()


def dice_distance(z, z_perturbed):
    """1 - 2 Σ p q / (Σ p + Σ q), mean over the foreground classes, with a gradient to q only.

    Args:
        z, z_perturbed: logits of p and q, `(B, C, *S)`.
    """
    p = z.detach().softmax(1)
    q = z_perturbed.softmax(1)
    foreground = range(1, p.shape[1])
    losses = [dice_loss(q[:, c], p[:, c], eps=1e-8, squares=False) for c in foreground]
    return sum(losses) / len(losses)


DISTANCES = {"kl": kl_distance, "dice": dice_distance}


def objective(z, z_perturbed, label, weight, args):
    """The loss of a step.

    Args:
        z, z_perturbed: logits for x and x + r, float32 `(B, C, *S)`, labelled crops first.
        label: int64 `(B_l, *S)`.
        weight: λ(t).
        args: `distance`.

    Returns:
        The loss, and its terms by name.
    """
    loss_sup = supervised_loss(z[: len(label)], label, background=True)
    loss_vat = DISTANCES[args.distance](z, z_perturbed)
    return loss_sup + weight * loss_vat, {"loss_sup": loss_sup, "loss_vat": loss_vat}


# ------------------------------------------------------------------------------ the perturbation
# To fork: take more steps of power iteration, or another bound than the Euclidean norm.


def perturbation(logits_of, image, z, args):
    """r, `(B, C_in, *S)`; no gradient is left in the network.

    Args:
        logits_of: the network's forward pass, from an image to logits like `z`.
        image: x.
        z: logits for x, float32 `(B, C, *S)`.
        args: `distance`, `xi` and `epsilon`.
    """

    def distance_of(d):
        return DISTANCES[args.distance](z, logits_of(image + d))

    return args.epsilon * adversarial_direction(distance_of, image, args.xi)


# ------------------------------------------------------------------------------------ the options


def parse(argv=None):
    parser = options.parser(__doc__, __file__)
    method = parser.add_argument_group("method")
    options.add_iterations(method, decay="either")
    options.add_consistency(method)
    method.add_argument(
        "--distance", choices=tuple(DISTANCES), help="what compares the two predictions"
    )
    method.add_argument(
        "--xi",
        type=command.positive,
        help="ξ, norm of the step by which the direction is found; below 1 rounding may hide it",
    )
    method.add_argument(
        "--epsilon",
        type=command.positive,
        help="ε, norm of the perturbation of a crop; lower it for small crops (default: 10, for "
        "slices 6)",
    )
    args = options.parse(parser, DEFAULTS, argv)
    if not args.consistency:
        of_perturbation = ("rampup_share", "distance", "xi", "epsilon")
        options.refuse_without_effect(args, of_perturbation, "--consistency 0")
    return args


# -------------------------------------------------------------------------------- the training loop


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

    def logits_of(image):
        return model(image).float()

    for step, batch in job.steps(data, args.max_iterations):
        lr = learning_rate(step, args)
        set_lr(optimizer, lr)
        weight = consistency_weight(step, args)

        z = logits_of(batch.image)
        with statistics_kept([net]):
            r = perturbation(logits_of, batch.image, z, args)
            z_perturbed = logits_of(batch.image + r)
        loss, terms = objective(z, z_perturbed, batch.label, weight, args)

        job.optimize(loss, optimizer)
        job.log(step, loss=loss, **terms, consistency_weight=weight, lr=lr)
        job.checkpoint(step)


if __name__ == "__main__":
    command.run(main)
