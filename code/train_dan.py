"""DAN, deep adversarial network (Zhang et al., MICCAI 2017).

A discriminator learns to tell segmentations of unlabelled crops from those of labelled crops, and
the segmenter to make them alike.

    L   = L_sup + λ(t) L_adv                   of the segmenter
    L_D = CE(D(p, x), s)                       of the discriminator, on all crops
    L_sup = (CE(p, Y) + Dice(p, Y)) / 2        on the labelled crops
    L_adv = CE(D(p, x), labelled)              on the unlabelled crops; no gradient to D

    x, p   a crop, and the segmenter's softmax for it
    D      discriminator: two logits for a map and its image, unlabelled and labelled
    s      what a crop is: labelled or unlabelled
    Y      label
    Dice   loss 1 - 2 Σ p y / (Σ p² + Σ y²), mean over all classes with the background
    λ(t)   weight w exp(-5 (1 - t/t_max)²) of the adversarial loss, w = 0.1

    A step is one of the segmenter, in which D is in eval mode, and then one of D. For D's step the
    segmenter, in eval mode and with its new weights, segments all crops again.

    python code/train_dan.py --labelnum 16 --gpu 0
    python code/test_LA.py --method dan --labelnum 16 --nms 0
    python code/train_dan.py --dataset ACDC --labelnum 7 --gpu 0

Of the paper only the abstract could be read. The form is that of SSL4MIS's code, which the field
compares with, for BraTS2019 and ACDC. From it: the losses and their weight, the discriminator, its
Adam with learning rate 1e-4 and betas (0.9, 0.99), and on these two data sets 30 000 iterations
with the segmenter's learning rate 0.01 (1 - t/t_max)^0.9. There λ(t) is a staircase of steps of 150
iterations; here it rises smoothly. Customs of the field (UA-MT), on all other data sets: SGD 0.01,
×0.1 every 2500 of 6000 iterations. Momentum 0.9 and weight decay 1e-4 are both codes'.

With `--accumulate` the parts of a step before its last one show the discriminator segmentations
that the segmenter made before its own step.
"""

import torch

import _root  # noqa: F401
from dataloaders.two_stream import two_stream_loader
from networks import network_class
from networks.discriminator import MapImageDiscriminator, judge
from utils import command
from utils.losses import adversarial_loss, discriminator_loss, supervised_loss
from utils.schedules import consistency_weight, learning_rate, set_lr
from utils.training import options, run
from utils.training.options import rule


def in_ssl4mis(args):
    return args.dataset in ("BraTS2019", "ACDC")


WEIGHTS = {"consistency": 0.1, "rampup_share": 1.0}
DISCRIMINATOR = {"discriminator_lr": 1e-4, "discriminator_filters": 64}
DEFAULTS = [  # where several rules hold, the last one wins
    rule("ours", **WEIGHTS, **DISCRIMINATOR),
    rule(
        "custom of the field: UA-MT",
        base_lr=0.01,
        decay="step",
        lr_step=2500,
        max_iterations=6000,
    ),
    rule(
        "released code: SSL4MIS",
        in_ssl4mis,
        base_lr=0.01,
        decay="poly",
        max_iterations=30000,
        **WEIGHTS,
        **DISCRIMINATOR,
    ),
]
TEST_FLAGS = {"*": "--nms 0"}  # the released code filters no components

# ------------------------------------------------------------------------------------- the losses
# To fork: show the discriminator something else than (p, x) in `main`, and judge it otherwise here.


def objective(z, label, verdict, weight):
    """The segmenter's loss of a step.

    Args:
        z: logits, float32 `(B, C, *S)`, labelled crops first.
        label: int64 `(B_l, *S)`.
        verdict: the discriminator's logits of the unlabelled crops, float32 `(B_u, 2)`.
        weight: λ(t).

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
        "--discriminator_lr",
        type=command.positive,
        help="learning rate of the discriminator's Adam, which stays constant",
    )
    method.add_argument(
        "--discriminator_filters",
        type=command.positive_int,
        help="channels of the discriminator's first stage; fewer are faster",
    )
    args = options.parse(parser, DEFAULTS, argv)
    if not args.consistency:
        of_adversary = ("rampup_share", "discriminator_lr", "discriminator_filters")
        options.refuse_without_effect(args, of_adversary, "--consistency 0")
    return args


# -------------------------------------------------------------------------------- the training loop
# To fork: give the discriminator more or fewer steps than the segmenter at the end of the loop.


@torch.no_grad()
def segmentations(net, model, image):
    """Softmax `(B, C, *S)` of the segmenter in eval mode, for the discriminator to learn from."""
    net.eval()
    p = model(image).float().softmax(1)
    net.train()
    return p


def main(argv=None):
    args = parse(argv)
    job = run.Run(args, __file__)
    data = two_stream_loader(args, job.device)

    network = network_class(args.net)
    shape = (data.in_channels, data.num_classes, args.n_filters, args.normalization)
    net = job.to_device(network(*shape))
    net_D = job.to_device(
        MapImageDiscriminator(
            data.num_classes, data.in_channels, network.dims, args.discriminator_filters
        )
    )
    model = job.parallel(net)
    D = job.parallel(net_D)
    optimizer = torch.optim.SGD(net.parameters(), lr=args.base_lr, momentum=0.9, weight_decay=1e-4)
    optimizer_D = torch.optim.Adam(net_D.parameters(), lr=args.discriminator_lr, betas=(0.9, 0.99))
    job.resume(net=net, discriminator=net_D, optimizer=optimizer, optimizer_D=optimizer_D)

    for step, batch in job.steps(data, args.max_iterations):
        lr = learning_rate(step, args)
        set_lr(optimizer, lr)
        weight = consistency_weight(step, args)
        n = batch.labeled_bs

        z = model(batch.image).float()
        verdict = judge(D, z[n:].softmax(1), batch.image[n:]).float()
        loss, terms = objective(z, batch.label, verdict, weight)
        job.optimize(loss, optimizer)

        p = segmentations(net, model, batch.image)
        loss_D = discriminator_loss(D(p, batch.image).float(), n)
        job.optimize(loss_D, optimizer_D)

        job.log(step, loss=loss, **terms, loss_D=loss_D, consistency_weight=weight, lr=lr)
        job.checkpoint(step)


if __name__ == "__main__":
    command.run(main)
