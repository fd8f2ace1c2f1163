"""Supervised training on the labelled cases only.

It is the lower bound of every table with 8 or 16 labels, and the upper bound with all 80.

    L = (CE(p, Y) + Dice(p, Y)) / 2

    p   softmax of the network's output
    Y   label; Dice is the mean over the foreground classes

    python code/train_supervised.py --labelnum 16 --gpu 0
    python code/train_supervised.py --labelnum 80 --gpu 0
    python code/train_supervised.py --dataset ACDC --labelnum 7 --gpu 0
    python code/train_supervised.py --dataset Pancreas2d --labelnum 32 --optimizer adam --gpu 0

Setting of the field (UA-MT; Yu et al., MICCAI 2019): V-Net, for slices U-Net; SGD 0.01 with
momentum 0.9 and weight decay 1e-4, ×0.1 every 2500 of 6000 iterations; on LA four crops of
112×112×80 a step; the last iteration is tested.

The semi-supervised methods see two labelled and two unlabelled crops a step. The default here is
the twin with as many crops in all; `--labeled_bs 2` is the twin with as many labelled crops.

`--optimizer adam` is the setting of CoraNet's tables. From its paper: Adam 1e-3 with betas
(0.5, 0.999); slices with a U-Net, 4 a step (IV-A); ACDC with crops of 85 to 95 % (IV-F). From its
released code: instance norm in 3-D. Ours: a constant rate and 6000 iterations, since the paper
speaks of neither for its supervised rows, and the loss, which stays CE + Dice.
"""

import torch

import _root  # noqa: F401
from dataloaders.two_stream import two_stream_loader
from networks import network_class
from utils import command
from utils.losses import supervised_loss
from utils.schedules import set_lr, step_decay
from utils.training import options, run
from utils.training.options import rule


def adam(args):
    return args.optimizer == "adam"


def adam_2d(args):
    return adam(args) and len(args.patch) == 2


def adam_3d(args):
    return adam(args) and len(args.patch) == 3


def adam_on(*datasets):
    """The condition of a rule for CoraNet's setting on these data sets."""
    return lambda args: adam(args) and args.dataset in datasets


SLICES = {"net": "unet_ronneberger", "normalization": "batchnorm", "labeled_bs": 4}
DEFAULTS = [  # where several rules hold, the last one wins
    rule("custom of the field: UA-MT", optimizer="sgd", base_lr=0.01, lr_step=2500),
    rule("custom of the field: UA-MT", lambda args: args.optimizer == "sgd", max_iterations=6000),
    rule("ours", adam, base_lr=1e-3, lr_step=0, max_iterations=6000),
    rule("ours", adam_2d, **SLICES),
    rule("released code: CoraNet", adam_3d, normalization="instancenorm"),
    rule(
        "paper, CoraNet IV-A",
        adam_on("Pancreas", "Pancreas2d", "endocardium", "ACDC"),
        base_lr=1e-3,
    ),
    rule("paper, CoraNet IV-A", adam_on("Pancreas2d", "endocardium", "ACDC"), **SLICES),
    rule(
        "paper, CoraNet IV-D",
        adam_on("Pancreas"),
        labelnum=12,
        net="vnet",
        augment="crop",
    ),
    rule("paper, CoraNet IV-B", adam_on("Pancreas2d"), patch=[192, 240], augment="affine"),
    rule("paper, CoraNet IV-B", adam_on("endocardium", "ACDC"), patch=[256, 256]),
    rule("paper, CoraNet IV-E", adam_on("endocardium"), labelnum=5),
    rule("paper, CoraNet IV-F", adam_on("ACDC"), augment="rotate_crop"),
]

# ------------------------------------------------------------------------------------ the options


def parse(argv=None):
    parser = options.parser(__doc__, __file__, unlabeled=False)
    method = parser.add_argument_group("method")
    method.add_argument(
        "--max_iterations", type=command.positive_int, help="number of steps (default: 6000)"
    )
    method.add_argument(
        "--lr_step",
        type=command.non_negative_int,
        help="multiply the learning rate by 0.1 every so many steps; 0 keeps it constant",
    )
    method.add_argument(
        "--optimizer",
        choices=("sgd", "adam"),
        help="sgd is the field's; adam brings the setting of CoraNet's tables, with its rate, "
        "network and norm",
    )
    return options.parse(parser, DEFAULTS, argv)


# -------------------------------------------------------------------------------- the training loop
# To fork: change the loss, the optimizer or the schedule here.


def main(argv=None):
    args = parse(argv)
    job = run.Run(args, __file__)
    data = two_stream_loader(args, job.device)

    network = network_class(args.net)
    net = job.to_device(
        network(data.in_channels, data.num_classes, args.n_filters, args.normalization)
    )
    model = job.parallel(net)
    if args.optimizer == "adam":
        optimizer = torch.optim.Adam(net.parameters(), lr=args.base_lr, betas=(0.5, 0.999))
    else:
        optimizer = torch.optim.SGD(
            net.parameters(), lr=args.base_lr, momentum=0.9, weight_decay=1e-4
        )
    job.resume(net=net, optimizer=optimizer)

    for step, batch in job.steps(data, args.max_iterations):
        lr = step_decay(args.base_lr, step, args.lr_step)
        set_lr(optimizer, lr)

        logits = model(batch.image)
        loss = supervised_loss(logits, batch.label)

        job.optimize(loss, optimizer)
        job.log(step, loss=loss, lr=lr)
        job.checkpoint(step)


if __name__ == "__main__":
    command.run(main)
