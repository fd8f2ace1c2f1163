"""SASSNet, shape-aware semi-supervised segmentation (Li et al., MICCAI 2020).

One network has two heads, for segmentation and for signed distances. Both learn from the labels. A
discriminator learns to tell the distances of unlabelled crops from those of labelled crops, and the
network to make them alike.

    L   = L_seg + α L_dis + λ(t) L_adv         of the network
    L_D = CE(D(d, x), s)                       of the discriminator, on all crops
    L_seg = Dice(p, Y)                         on the labelled crops
    L_dis = mean (d - SDM(Y))²                 on the labelled crops
    L_adv = CE(D(d, x), labelled)              on the unlabelled crops; no gradient to D

    x      a crop
    p      softmax of the segmentation head
    d      signed distance map (SDM) after tanh: negative inside, in [-1, 1], one for each
           foreground class
    D      discriminator: two logits for the SDM and its image, unlabelled and labelled
    s      what a crop is: labelled or unlabelled
    Y      label
    Dice   loss 1 - 2 Σ p y / (Σ p² + Σ y²), mean over the foreground classes
    α      weight of the distances, 0.3
    λ(t)   weight w exp(-5 (1 - t/t_max)²) of the adversarial loss, w = 0.01 with 16 labelled cases
           and 0.015 with 8

    A step is one of the network, in which D is in eval mode, and then one of D. For D's step the
    network, in eval mode and with its new weights, segments all crops again.

    python code/train_sassnet.py --labelnum 16 --gpu 0
    python code/test_LA.py --method sassnet --labelnum 16 --nms 0
    python code/train_sassnet.py --dataset ACDC --labelnum 7 --gpu 0

Setting of the released code, on LA: V-Net; SGD with learning rate 0.01, ×0.1 every 2500 of 6000
iterations; 2 labelled and 2 unlabelled crops of 112×112×80 a step; α, and w by the README; Adam
with learning rate 1e-4 and betas (0.9, 0.99) for D. The segmentation head of the last iteration is
tested, and components are not filtered by default.

We could not read the paper; its w may be 0.001. Customs of the field (UA-MT): momentum 0.9 and
weight decay 1e-4. Ours: two softmax logits for the one sigmoid of the released code; several
classes, each with an SDM of its own; SDM(Y) = 1 everywhere in a crop that lacks the class, where
the released code has 0, the value of a boundary; w = 0.015 with up to 8 labels and 0.01 with more;
λ(t) rises smoothly, where the released code has a staircase of steps of 150 iterations; D ends in a
mean over all that is left, so that it takes crops of any size. On ACDC the schedule is MC-Net's.

With `--accumulate` the parts of a step before its last one show the discriminator distances that
the network made before its own step.
"""

import torch

import _root  # noqa: F401
from dataloaders.two_stream import two_stream_loader
from networks import network_class
from networks.discriminator import MapImageDiscriminator, judge
from utils import command
from utils.losses import (
    adversarial_loss,
    discriminator_loss,
    distance_loss,
    foreground_dice_loss,
)
from utils.schedules import consistency_weight, set_lr, step_decay
from utils.training import options, run
from utils.training.options import rule


def on_la(args):
    return args.dataset == "LA"


def on_acdc(args):
    return args.dataset == "ACDC"


SCHEDULE = {"base_lr": 0.01, "lr_step": 2500, "max_iterations": 6000}
DEFAULTS = [  # where several rules hold, the last one wins
    rule("ours", rampup_share=1.0, **SCHEDULE),
    rule("ours", lambda args: args.labelnum <= 8, consistency=0.015),
    rule("ours", lambda args: args.labelnum > 8, consistency=0.01),
    rule("released code: SASSNet", lambda_dis=0.3, discriminator_lr=1e-4, discriminator_filters=64),
    rule("released code: SASSNet", on_la, **SCHEDULE),
    rule(
        "released code: SASSNet",
        lambda args: on_la(args) and args.labelnum == 16,
        consistency=0.01,
    ),
    rule(
        "released code: SASSNet",
        lambda args: on_la(args) and args.labelnum == 8,
        consistency=0.015,
    ),
    rule("custom of the field: MC-Net", on_acdc, max_iterations=30000, lr_step=0),
]
TEST_FLAGS = {"*": "--nms 0"}  # the released code filters no components by default

# ------------------------------------------------------------------------------------- the losses
# To fork: show the discriminator something else than (d, x) in `main`, and judge it otherwise here.


def segmentation_loss(p, label):
    """L_seg: probabilities `(B_l, C, *S)` and labels `(B_l, *S)` of the labelled crops."""
    return foreground_dice_loss(p, label)


def objective(z, d, label, verdict, weight, args):
    """The network's loss of a step.

    Args:
        z, d: logits and SDM, float32 `(B, C, *S)` and `(B, C - 1, *S)`, labelled crops first.
        label: int64 `(B_l, *S)`.
        verdict: the discriminator's logits of the unlabelled crops, float32 `(B_u, 2)`.
        weight: λ(t).
        args: `lambda_dis`.

    Returns:
        The loss, and its terms by name.
    """
    labelled = slice(len(label))
    loss_seg = segmentation_loss(z[labelled].softmax(1), label)
    loss_dis = distance_loss(d[labelled], label)
    loss_adv = adversarial_loss(verdict)
    loss = loss_seg + args.lambda_dis * loss_dis + weight * loss_adv
    return loss, {"loss_seg": loss_seg, "loss_dis": loss_dis, "loss_adv": loss_adv}


# ------------------------------------------------------------------------------------ the options


def parse(argv=None):
    parser = options.parser(__doc__, __file__)
    method = parser.add_argument_group("method")
    options.add_iterations(method)
    options.add_consistency(method)
    method.add_argument(
        "--lambda_dis", type=command.non_negative, help="α, weight of the distance loss"
    )
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
# To fork: give the discriminator more or fewer steps than the network at the end of the loop.


@torch.no_grad()
def distances(net, model, image):
    """SDM `(B, C - 1, *S)` of the network in eval mode, for the discriminator to learn from."""
    net.eval()
    _, d = model(image)
    net.train()
    return d.float()


def main(argv=None):
    args = parse(argv)
    job = run.Run(args, __file__)
    data = two_stream_loader(args, job.device)

    network = network_class(args.net)
    shape = (data.in_channels, data.num_classes, args.n_filters, args.normalization)
    net = job.to_device(network(*shape, sdm_head=True))
    net_D = job.to_device(
        MapImageDiscriminator(
            data.num_classes - 1, data.in_channels, network.dims, args.discriminator_filters
        )
    )
    model = job.parallel(net)
    D = job.parallel(net_D)
    optimizer = torch.optim.SGD(net.parameters(), lr=args.base_lr, momentum=0.9, weight_decay=1e-4)
    optimizer_D = torch.optim.Adam(net_D.parameters(), lr=args.discriminator_lr, betas=(0.9, 0.99))
    job.resume(net=net, discriminator=net_D, optimizer=optimizer, optimizer_D=optimizer_D)

    for step, batch in job.steps(data, args.max_iterations):
        lr = step_decay(args.base_lr, step, args.lr_step)
        set_lr(optimizer, lr)
        weight = consistency_weight(step, args)
        n = batch.labeled_bs

        z, d = model(batch.image)
        d = d.float()
        verdict = judge(D, d[n:], batch.image[n:]).float()
        loss, terms = objective(z.float(), d, batch.label, verdict, weight, args)
        job.optimize(loss, optimizer)

        d_again = distances(net, model, batch.image)
        loss_D = discriminator_loss(D(d_again, batch.image).float(), n)
        job.optimize(loss_D, optimizer_D)

        job.log(step, loss=loss, **terms, loss_D=loss_D, consistency_weight=weight, lr=lr)
        job.checkpoint(step)


if __name__ == "__main__":
    command.run(main)
