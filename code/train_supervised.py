"""Supervised training: the lower bound of every paper's table with 8 or 16 labels, the upper bound
with all 80.

    L = (CE(p, Y) + Dice(p, Y)) / 2                                        on the labelled cases alone

    python code/train_supervised.py --labelnum 16 --gpu 0
    python code/train_supervised.py --labelnum 80 --gpu 0
    python code/train_supervised.py --dataset ACDC --labelnum 7 --gpu 0

V-Net, or U-Net for slices, SGD 0.01 with momentum 0.9 and weight decay 1e-4, ×0.1 every 2500 of
6000 iterations, on LA four crops of 112×112×80 a step, last iteration (the protocol of Yu et al.,
MICCAI 2019). The semi-supervised methods see two labelled crops a step: `--labeled_bs 2` is the
twin with the same labelled crops, the default the one with the same crops in all.
"""

import torch

import _root  # noqa: F401
from dataloaders.two_stream import two_stream_loader
from networks import network_class
from utils import command
from utils.losses import supervised_loss
from utils.schedules import set_lr, step_decay
from utils.training import options, run


def main():
    parser = options.parser(__doc__, __file__, unlabeled=False)
    method = parser.add_argument_group("method")
    method.add_argument(
        "--max_iterations", type=command.positive_int, default=6000, help="steps in all"
    )
    method.add_argument(
        "--lr_step",
        type=command.non_negative_int,
        default=2500,
        help="lr ×0.1 every so many steps; 0: never",
    )
    args = options.parse(parser)
    job = run.Run(args, __file__)

    data = two_stream_loader(args, job.device)  # the labelled stream alone
    network = network_class(args.net)
    net = job.to_device(network(1, data.num_classes, args.n_filters, args.normalization))
    student = job.parallel(net)
    optimizer = torch.optim.SGD(net.parameters(), lr=args.base_lr, momentum=0.9, weight_decay=1e-4)
    job.resume(net=net, optimizer=optimizer)

    for step, batch in job.steps(data, args.max_iterations):
        set_lr(optimizer, lr := step_decay(args.base_lr, step, args.lr_step))
        logits = student(batch.image)
        loss = supervised_loss(logits, batch.label)
        job.optimize(loss, optimizer)
        job.log(step, loss=loss, lr=lr)
        job.checkpoint(step)


if __name__ == "__main__":
    command.run(main)
