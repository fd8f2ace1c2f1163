"""EM, entropy minimisation (Grandvalet & Bengio, NeurIPS 2004), for segmentation; with
`--adversarial` ADVENT (Vu et al., CVPR 2019).

The network is made sure of its predictions on unlabelled crops.

    L = L_sup + λ(t) L_ent
    L_sup = (CE(p, Y) + Dice(p, Y)) / 2               on the labelled crops
    L_ent = mean Σ I, where I_c = -p_c ln p_c / ln C  on all crops, sum over the C classes

    p      softmax of the network
    Y      label
    Dice   loss 1 - 2 Σ p y / (Σ p² + Σ y²), mean over all classes with the background
    λ(t)   weight w exp(-5 (1 - t/t_max)²) of the entropy, w = 0.1

ADVENT does so indirectly: a discriminator learns to tell the entropy maps I of unlabelled crops
from those of labelled crops, and the network to make them alike.

    L   = L_sup + w BCE(D(I), labelled)               D(I) on the unlabelled crops; w = 0.001
    L_D = (BCE(D(I), labelled) + BCE(D(I), unlabelled)) / 2     on the labelled, on the unlabelled

    I      here the C maps; they have no gradient in L_D
    D      discriminator: a logit for each part of a crop

    python code/train_entropy.py --labelnum 16 --gpu 0
    python code/test_LA.py --method entropy --labelnum 16 --nms 0
    python code/train_entropy.py --adversarial --labelnum 16 --gpu 0 --name advent_16
    python code/train_entropy.py --consistency 0.001 --rampup_share 0 --entropy_on unlabeled

The field compares with SSL4MIS's code, for BraTS2019. From it: the losses and their weight, and on
BraTS2019 and ACDC 30 000 iterations with the learning rate 0.01 (1 - t/t_max)^0.9. There λ(t) is a
staircase of steps of 150 iterations; here it rises smoothly. Customs of the field (UA-MT), on all
other data sets: SGD 0.01, ×0.1 every 2500 of 6000 iterations. Momentum 0.9 and weight decay 1e-4
are both codes'. The last command is MinEnt, the direct form of ADVENT's code.

ADVENT adapts from one domain to another, with labelled images of the one and unlabelled images of
the other. From its released code: w, without a ramp-up; the discriminator and its Adam with betas
(0.9, 0.99) and learning rate 1e-4 (1 - t/t_max)^0.9. Its discriminator of the network's middle has
no counterpart here. There labelled and unlabelled images go through the network one after another;
here they go together. CoraNet's name for ADVENT is ADVNET.
"""

import math

import torch
import torch.nn.functional as F

import _root  # noqa: F401
from dataloaders.two_stream import two_stream_loader
from networks import network_class
from networks.discriminator import PatchDiscriminator, judge
from utils import command
from utils.errors import UserError
from utils.losses import supervised_loss
from utils.schedules import consistency_weight, learning_rate, poly_decay, set_lr
from utils.training import options, run
from utils.training.options import rule


def in_ssl4mis(args):
    return args.dataset in ("BraTS2019", "ACDC")


def adversarial(args):
    return bool(args.adversarial)


def direct_in_ssl4mis(args):
    return in_ssl4mis(args) and not adversarial(args)


WEIGHTS = {"consistency": 0.1, "rampup_share": 1.0, "entropy_on": "all"}
DEFAULTS = [  # where several rules hold, the last one wins
    rule("ours", adversarial=0, **WEIGHTS),
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
    rule("released code: SSL4MIS", direct_in_ssl4mis, **WEIGHTS),
    rule("released code: ADVENT", discriminator_lr=1e-4, discriminator_filters=64),
    rule(
        "released code: ADVENT",
        adversarial,
        consistency=0.001,
        rampup_share=0.0,
        entropy_on="unlabeled",
    ),
]
TEST_FLAGS = {"*": "--nms 0"}  # SSL4MIS filters no components

LABELLED = 1.0
UNLABELLED = 0.0

# ------------------------------------------------------------------------------------- the losses
# To fork: measure the uncertainty by something else than `entropy_maps`.


def entropy_maps(z):
    """I: of logits `(B, C, *S)` as many maps; their sum over the classes is from 0 to 1."""
    return -z.softmax(1) * z.log_softmax(1) / math.log(z.shape[1])


def entropy_loss(z):
    """L_ent: logits `(B, C, *S)`."""
    return entropy_maps(z).sum(1).mean()


def adversarial_loss(verdict):
    """BCE(D(I), labelled): the unlabelled crops ought to pass for labelled ones.

    Args:
        verdict: the discriminator's logits of them, float32 `(B_u, 1, *S/32)`.
    """
    return binary_cross_entropy(verdict, LABELLED)


def discriminator_loss(verdict, labelled):
    """L_D: which crops are labelled.

    Args:
        verdict: the discriminator's logits, float32 `(B, 1, *S/32)`.
        labelled: how many of the crops are labelled, the first ones.
    """
    of_labelled = binary_cross_entropy(verdict[:labelled], LABELLED)
    of_unlabelled = binary_cross_entropy(verdict[labelled:], UNLABELLED)
    return (of_labelled + of_unlabelled) / 2


def binary_cross_entropy(logits, target):
    """The mean BCE of logits with one number as the target of all."""
    return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, target))


def objective(z, label, weight, args):
    """The loss of a step.

    Args:
        z: logits, float32 `(B, C, *S)`, labelled crops first.
        label: int64 `(B_l, *S)`.
        weight: λ(t).
        args: `entropy_on`.

    Returns:
        The loss, and its terms by name.
    """
    n = len(label)
    loss_sup = supervised_loss(z[:n], label, background=True)
    loss_ent = entropy_loss(z if args.entropy_on == "all" else z[n:])
    return loss_sup + weight * loss_ent, {"loss_sup": loss_sup, "loss_ent": loss_ent}


def objective_adversarial(z, label, weight, verdict):
    """The network's loss of a step of ADVENT.

    Args:
        z: logits, float32 `(B, C, *S)`, labelled crops first.
        label: int64 `(B_l, *S)`.
        weight: λ(t).
        verdict: the discriminator's logits of the unlabelled crops, float32 `(B_u, 1, *S/32)`.

    Returns:
        The loss, and its terms by name.
    """
    loss_sup = supervised_loss(z[: len(label)], label, background=True)
    loss_adv = adversarial_loss(verdict)
    return loss_sup + weight * loss_adv, {"loss_sup": loss_sup, "loss_adv": loss_adv}


# ------------------------------------------------------------------------------------ the options


def parse(argv=None):
    parser = options.parser(__doc__, __file__)
    method = parser.add_argument_group("method")
    options.add_iterations(method, decay="either")
    options.add_consistency(method)
    method.add_argument(
        "--entropy_on",
        choices=("all", "unlabeled"),
        help="crops whose entropy is minimised; ADVENT takes the unlabelled ones",
    )
    method.add_argument(
        "--adversarial",
        type=int,
        choices=(0, 1),
        nargs="?",
        const=1,
        help="ADVENT: a discriminator judges the entropy maps; 0 leaves it out",
    )
    method.add_argument(
        "--discriminator_lr",
        type=command.positive,
        help="learning rate of the discriminator's Adam at the start; it falls as "
        "(1 - t/t_max)^0.9",
    )
    method.add_argument(
        "--discriminator_filters",
        type=command.positive_int,
        help="channels of the discriminator's first stage; fewer are faster",
    )
    args = options.parse(parser, DEFAULTS, argv)
    if not args.consistency:
        of_entropy = ("rampup_share", "entropy_on", "discriminator_lr", "discriminator_filters")
        options.refuse_without_effect(args, of_entropy, "--consistency 0")
    if args.adversarial:
        options.refuse_without_effect(args, ("entropy_on",), "--adversarial")
        check_patch(args)
    else:
        of_discriminator = ("discriminator_lr", "discriminator_filters")
        options.refuse_without_effect(args, of_discriminator, "--adversarial 0")
    return args


def check_patch(args):
    """Insist on crops that the discriminator can halve as often as it does."""
    least = 2**PatchDiscriminator.halvings
    if min(args.patch) < least:
        shown = " ".join(map(str, args.patch))
        raise UserError(
            f"--patch {shown}: --adversarial needs extents of at least {least} for its "
            "discriminator"
        )


# -------------------------------------------------------------------------------- the training loop
# To fork: train the discriminator on other maps, or less often than the network.


def main(argv=None):
    args = parse(argv)
    job = run.Run(args, __file__)
    data = two_stream_loader(args, job.device)

    network = network_class(args.net)
    shape = (data.in_channels, data.num_classes, args.n_filters, args.normalization)
    net = job.to_device(network(*shape))
    model = job.parallel(net)
    optimizer = torch.optim.SGD(net.parameters(), lr=args.base_lr, momentum=0.9, weight_decay=1e-4)
    kept = {"net": net, "optimizer": optimizer}
    if args.adversarial:
        net_D = job.to_device(
            PatchDiscriminator(data.num_classes, network.dims, args.discriminator_filters)
        )
        D = job.parallel(net_D)
        optimizer_D = torch.optim.Adam(
            net_D.parameters(), lr=args.discriminator_lr, betas=(0.9, 0.99)
        )
        kept |= {"discriminator": net_D, "optimizer_D": optimizer_D}
    job.resume(**kept)

    for step, batch in job.steps(data, args.max_iterations):
        lr = learning_rate(step, args)
        set_lr(optimizer, lr)
        weight = consistency_weight(step, args)
        n = batch.labeled_bs

        z = model(batch.image).float()
        if not args.adversarial:
            loss, terms = objective(z, batch.label, weight, args)
            job.optimize(loss, optimizer)
        else:
            maps = entropy_maps(z)
            verdict = judge(D, maps[n:]).float()
            loss, terms = objective_adversarial(z, batch.label, weight, verdict)
            job.optimize(loss, optimizer)

            set_lr(optimizer_D, poly_decay(args.discriminator_lr, step, args.max_iterations))
            loss_D = discriminator_loss(D(maps.detach()).float(), n)
            job.optimize(loss_D, optimizer_D)
            terms["loss_D"] = loss_D

        job.log(step, loss=loss, **terms, consistency_weight=weight, lr=lr)
        job.checkpoint(step)


if __name__ == "__main__":
    command.run(main)
