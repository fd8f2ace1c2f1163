"""URPC, uncertainty rectified pyramid consistency (Luo et al., MICCAI 2021; Medical Image Analysis,
2022).

Heads at four scales of the decoder segment the image. All learn from the labels, and on unlabelled
crops each is pulled towards their mean, the less the more it differs from it.

    L = L_sup + λ(t) L_con
    L_sup = mean_s (CE(p_s, Y) + Dice(p_s, Y)) / 2          on the labelled crops
    L_con = mean_s (L_s + mean D_s)                         on the unlabelled crops
    L_s   = mean ((q - p_s)² e^{-D_s}) / mean e^{-D_s}
    D_s   = Σ_c q ln(q / p_s)                               in each voxel

    s      scale, from the image's extents to 1/8 of them
    p_s    softmax of the head at scale s, enlarged to the image's extents
    q      mean of p_s over the scales; its gradient goes to all heads, and so does that of e^{-D_s}
    D_s    uncertainty: KL divergence of p_s from the mean, the sum over the classes c
    Y      label
    Dice   loss 1 - 2 Σ p y / (Σ p² + Σ y²), mean over all classes with the background
    λ(t)   weight λ exp(-5 (1 - t/t_max)²) of the consistency

    python code/train_urpc.py --labelnum 16 --gpu 0
    python code/test_LA.py --method urpc --labelnum 16 --nms 0
    python code/train_urpc.py --dataset BraTS2019 --net unet3d --labelnum 25 --gpu 0
    python code/train_urpc.py --dataset ACDC --labelnum 7 --gpu 0

Setting of the released code (SSL4MIS), on ACDC: SGD with learning rate 0.01 (1 - t/t_max)^0.9 over
30000 iterations; λ = 0.1. BraTS2019 has the same here; the code for volumes is another data set's,
with 0.1 and 60000 iterations. Volumes: a U-Net with instance norm, whose decoder drops channels
with probability 0.5, 0.3, 0.2 and 0.1 from the coarsest level on; coarse logits are enlarged by
trilinear interpolation. Slices: a U-Net, whose three coarse heads see features without half of the
channels, without the peaks, and with noise of ±30 %; coarse logits are repeated. The finest head is
tested. The code has no V-Net.

We could not read the papers. Customs of the field (UA-MT): momentum 0.9 and weight decay 1e-4; on
all other data sets the learning rate 0.01, ×0.1 every 2500 of 6000 iterations. Ours: on V-Net the
heads stand on stages six to nine, and the decoder's dropout replaces the network's own, as in the
released 3-D U-Net; λ(t) grows with each step, where the released code grows it in blocks of 150
iterations.
"""

import math

import torch

import _root  # noqa: F401
from dataloaders.two_stream import two_stream_loader
from networks.multi_scale import MultiScale
from utils import command
from utils.losses import masked_mean, supervised_loss
from utils.schedules import consistency_weight, learning_rate, set_lr
from utils.training import options, run
from utils.training.options import rule


def in_ssl4mis(args):
    return args.dataset in ("BraTS2019", "ACDC")


DEFAULTS = [  # where several rules hold, the last one wins
    rule("ours", consistency=0.1, rampup_share=1.0),
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
    rule("released code: SSL4MIS", in_ssl4mis, consistency=0.1),
    rule(
        "released code: SSL4MIS",
        lambda args: args.dataset == "ACDC",
        base_lr=0.01,
        decay="poly",
        max_iterations=30000,
    ),
    rule(
        "released code: SSL4MIS",
        lambda args: args.net == "unet3d",
        normalization="instancenorm",
    ),
]
TEST_FLAGS = {"*": "--nms 0"}  # the released code filters no components

# ------------------------------------------------------------------------------------- the losses
# To fork: measure the uncertainty otherwise in `divergence`, or weigh by it otherwise in
# `consistency_loss`.


def divergence(log_p, log_q):
    """D_s `(B, *S)` of one head: ln p_s and ln q `(B, C, *S)`."""
    return (log_q.exp() * (log_q - log_p)).sum(1)


def consistency_loss(logits):
    """L_con: logits `(B_u, C, *S)` of each head on the unlabelled crops."""
    log_probabilities = [z.log_softmax(1) for z in logits]
    log_q = torch.stack(log_probabilities).logsumexp(0) - math.log(len(logits))
    losses = []
    for log_p in log_probabilities:
        uncertainty = divergence(log_p, log_q)
        difference = (log_q.exp() - log_p.exp()).square().mean(1)
        rectified = masked_mean(difference, (-uncertainty).exp())
        losses.append(rectified + uncertainty.mean())
    return sum(losses) / len(losses)


def objective(logits, label, weight):
    """The loss of a step.

    Args:
        logits: of each head, float32 `(B, C, *S)`, labelled crops first.
        label: int64 `(B_l, *S)`.
        weight: λ(t).

    Returns:
        The loss, and its terms by name.
    """
    labelled = len(label)
    losses = [supervised_loss(z[:labelled], label, background=True) for z in logits]
    loss_sup = sum(losses) / len(losses)
    loss_con = consistency_loss([z[labelled:] for z in logits])
    return loss_sup + weight * loss_con, {"loss_sup": loss_sup, "loss_con": loss_con}


# ------------------------------------------------------------------------------------ the options


def parse(argv=None):
    parser = options.parser(__doc__, __file__)
    method = parser.add_argument_group("method")
    options.add_iterations(method, decay="either")
    options.add_consistency(method)
    args = options.parse(parser, DEFAULTS, argv)
    if not args.consistency:
        options.refuse_without_effect(args, ("rampup_share",), "--consistency 0")
    return args


# -------------------------------------------------------------------------------- the training loop
# To fork: other scales and perturbations are in networks/multi_scale.py.


def main(argv=None):
    args = parse(argv)
    job = run.Run(args, __file__)
    data = two_stream_loader(args, job.device)

    shape = {"n_filters": args.n_filters, "normalization": args.normalization}
    net = job.to_device(MultiScale(args.net, data.in_channels, data.num_classes, **shape))
    model = job.parallel(net)
    optimizer = torch.optim.SGD(net.parameters(), lr=args.base_lr, momentum=0.9, weight_decay=1e-4)
    job.resume(net=net, optimizer=optimizer)

    for step, batch in job.steps(data, args.max_iterations):
        lr = learning_rate(step, args)
        set_lr(optimizer, lr)

        logits = [z.float() for z in model(batch.image)]
        weight = consistency_weight(step, args)
        loss, terms = objective(logits, batch.label, weight)

        job.optimize(loss, optimizer)
        job.log(step, loss=loss, **terms, consistency_weight=weight, lr=lr)
        job.checkpoint(step)


if __name__ == "__main__":
    command.run(main)
