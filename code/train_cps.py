"""CPS, cross pseudo supervision (Chen et al., CVPR 2021).

Two networks learn from the labels, and each from the other's pseudo-labels.

    L = L_sup + λ(t) L_cps
    L_sup = Σ (CE(p, Y) + Dice(p, Y)) / 2        on the labelled crops, over both networks
    L_cps = CE(p₁, Ŷ₂) + CE(p₂, Ŷ₁)              on all crops

    pᵢ     softmax of network i
    Ŷᵢ     its pseudo-label, argmax pᵢ of the same pass, which has no gradient
    Y      label
    Dice   loss 1 - 2 Σ p y / (Σ p² + Σ y²), mean over all classes with the background
    λ(t)   weight of the pseudo-labels: λ = 1.5 from the first step on

    python code/train_cps.py --labelnum 16 --gpu 0
    python code/test_LA.py --method cps --labelnum 16 --nms 0
    python code/train_cps.py --dataset ACDC --labelnum 7 --gpu 0
    python code/train_cps.py --consistency 0.1 --rampup_share 1 --consistency_on unlabeled --name u

The paper is about photographs. From its released code: L_cps on all crops; λ = 1.5 for Pascal VOC,
without a ramp-up (6 for Cityscapes); the first network is tested; two networks of one architecture,
which differ in their random weights. That code sends labelled and unlabelled images through the
networks one after another; here they go together. Its L_sup is cross entropy only.

The last command is the form of SSL4MIS, a collection of methods for medical images: λ grows over
the training to 0.1, and L_cps is on unlabelled crops only. Customs of the field, from SSL4MIS:
L_sup, and on BraTS2019 and ACDC 30 000 iterations with the learning rate 0.01 (1 - t/t_max)^0.9.
From UA-MT, on all other data sets: SGD 0.01, ×0.1 every 2500 of 6000 iterations. Momentum 0.9 and
weight decay 1e-4 are those of both.

CML's script has a CPS of its own, `--framework cps`: pre-training on labelled crops, λ = 1, L_cps
with Dice and on unlabelled crops only, and a second network of another upsampling.
"""

import torch

import _root  # noqa: F401
from dataloaders.two_stream import two_stream_loader
from networks import network_class
from utils import command
from utils.losses import cross_entropy, supervised_loss
from utils.schedules import consistency_weight, learning_rate, set_lr
from utils.training import options, run
from utils.training.options import rule


def in_ssl4mis(args):
    return args.dataset in ("BraTS2019", "ACDC")


DEFAULTS = [  # where several rules hold, the last one wins
    rule("released code: TorchSemiSeg", consistency_on="all", rampup_share=0.0),
    rule("ours", consistency=1.5),
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
TEST_FLAGS = {"*": "--nms 0"}  # neither the released code nor SSL4MIS filters components

# ------------------------------------------------------------------------------------- the losses
# To fork: change what a network learns from in `cross_supervision_loss`.


def cross_supervision_loss(z_1, z_2):
    """L_cps: logits `(B, C, *S)` of both networks; the argmax passes no gradient on."""
    pseudo_1 = z_1.argmax(1)
    pseudo_2 = z_2.argmax(1)
    return cross_entropy(z_1, pseudo_2) + cross_entropy(z_2, pseudo_1)


def objective(z_1, z_2, label, weight, args):
    """The loss of a step.

    Args:
        z_1, z_2: logits of the two networks, float32 `(B, C, *S)`, labelled crops first.
        label: int64 `(B_l, *S)`.
        weight: λ(t).
        args: `consistency_on`.

    Returns:
        The loss, and its terms by name.
    """
    n = len(label)
    loss_1 = supervised_loss(z_1[:n], label, background=True)
    loss_2 = supervised_loss(z_2[:n], label, background=True)
    first = 0 if args.consistency_on == "all" else n
    loss_cps = cross_supervision_loss(z_1[first:], z_2[first:])
    loss = loss_1 + loss_2 + weight * loss_cps
    return loss, {"loss_1": loss_1, "loss_2": loss_2, "loss_cps": loss_cps}


# ------------------------------------------------------------------------------------ the options


def parse(argv=None):
    parser = options.parser(__doc__, __file__)
    method = parser.add_argument_group("method")
    options.add_iterations(method, decay="either")
    options.add_consistency(method)
    method.add_argument(
        "--consistency_on",
        choices=("all", "unlabeled"),
        help="crops whose pseudo-labels are learnt: all is the released code's, unlabeled is "
        "SSL4MIS's",
    )
    args = options.parse(parser, DEFAULTS, argv)
    if not args.consistency:
        of_consistency = ("rampup_share", "consistency_on")
        options.refuse_without_effect(args, of_consistency, "--consistency 0")
    return args


# -------------------------------------------------------------------------------- the training loop
# To fork: give the second network another architecture or another optimizer here.


def main(argv=None):
    args = parse(argv)
    job = run.Run(args, __file__)
    data = two_stream_loader(args, job.device)

    network = network_class(args.net)
    shape = (data.in_channels, data.num_classes, args.n_filters, args.normalization)
    net_1 = job.to_device(network(*shape))
    net_2 = job.to_device(network(*shape))
    model_1 = job.parallel(net_1)
    model_2 = job.parallel(net_2)
    parameters = [*net_1.parameters(), *net_2.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=args.base_lr, momentum=0.9, weight_decay=1e-4)
    job.resume(net=net_1, net_2=net_2, optimizer=optimizer)  # `net` is the one that is tested

    for step, batch in job.steps(data, args.max_iterations):
        lr = learning_rate(step, args)
        set_lr(optimizer, lr)
        weight = consistency_weight(step, args)

        z_1 = model_1(batch.image).float()
        z_2 = model_2(batch.image).float()
        loss, terms = objective(z_1, z_2, batch.label, weight, args)

        job.optimize(loss, optimizer)
        job.log(step, loss=loss, **terms, consistency_weight=weight, lr=lr)
        job.checkpoint(step)


if __name__ == "__main__":
    command.run(main)
