"""Π-model (Laine & Aila, ICLR 2017), for segmentation.

One network sees each crop twice, under noise and dropout, and its two predictions are pulled
together.

    L = L_sup + λ(t) L_con
    L_sup = (CE(p₁, Y) + Dice(p₁, Y)) / 2    on the labelled crops
    L_con = mean (p₁ - p₂)²                  on all crops, over voxels and classes; its gradient
                                             goes through both passes

    p₁, p₂  softmax of the network for x + ε₁ and for x + ε₂, in two passes
    ε       noise clamp(N(0, 0.1²), ±0.2) of each voxel
    Y       label
    Dice    loss 1 - 2 Σ p y / (Σ p² + Σ y²), mean over all classes with the background
    λ(t)    weight w exp(-5 (1 - t/t_max)²) of the consistency, w = 0.1

    python code/train_pi.py --labelnum 16 --gpu 0
    python code/test_LA.py --method pi --labelnum 16 --nms 0
    python code/train_pi.py --dataset Pancreas2d --labelnum 32 --gpu 0

The paper is about the classification of images; CoraNet compares with its Π-model on slices, and
gives no setting. From the original: L_con. There w is 100 M/N with M of N images labelled, reached
after 80 of 300 epochs (`--consistency 20 --rampup_share 0.27` on LA with 16), after a first epoch
of 0; the noise has a standard deviation of 0.15, beside shifts by up to 2 pixels; the optimizer is
Adam 3e-3. Customs of the field, from UA-MT: ε; SGD 0.01, momentum 0.9, weight decay 1e-4, ×0.1
every 2500 of 6000 iterations; from SSL4MIS: L_sup, and on BraTS2019 and ACDC 30 000 iterations with
the rate 0.01 (1 - t/t_max)^0.9. Ours: w as small as in the field's mean teachers; the first pass
learns from the labels; two passes and not one of both, so that each has its own statistics of batch
norm.
"""

import torch

import _root  # noqa: F401
from dataloaders.two_stream import two_stream_loader
from networks import network_class
from utils import command
from utils.losses import supervised_loss
from utils.perturbations import noisy
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
    rule("custom of the field: SSL4MIS", in_ssl4mis, decay="poly", max_iterations=30000),
]
TEST_FLAGS = {"*": "--nms 0"}  # as for the field's mean teachers

# ------------------------------------------------------------------------------------- the losses
# To fork: compare by another divergence in `consistency_loss`.


def consistency_loss(z_1, z_2):
    """L_con: logits `(B, C, *S)` of the two passes."""
    return (z_1.softmax(1) - z_2.softmax(1)).square().mean()


def objective(z_1, z_2, label, weight):
    """The loss of a step.

    Args:
        z_1, z_2: logits of the two passes, float32 `(B, C, *S)`, labelled crops first.
        label: int64 `(B_l, *S)`.
        weight: λ(t).

    Returns:
        The loss, and its terms by name.
    """
    loss_sup = supervised_loss(z_1[: len(label)], label, background=True)
    loss_con = consistency_loss(z_1, z_2)
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
# To fork: perturb the images of the two passes in another way than by `noisy`.


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

        z_1 = model(noisy(batch.image)).float()
        z_2 = model(noisy(batch.image)).float()
        loss, terms = objective(z_1, z_2, batch.label, weight)

        job.optimize(loss, optimizer)
        job.log(step, loss=loss, **terms, consistency_weight=weight, lr=lr)
        job.checkpoint(step)


if __name__ == "__main__":
    command.run(main)
