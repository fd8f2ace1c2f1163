"""DTC, dual-task consistency (Luo et al., AAAI 2021).

One network has two heads, for segmentation and for signed distances. Both learn from the labels,
and on all crops the two heads are made to agree.

    L = L_seg + α L_dis + λ(t) L_con
    L_seg = Dice(p, Y)                     on the labelled crops
    L_dis = mean (d - SDM(Y))²             on the labelled crops
    L_con = mean (p - σ(-k d))²            on all crops, gradient to both heads

    p      softmax of the segmentation head; in L_con its foreground
    d      signed distance map (SDM) after tanh: negative inside, in [-1, 1], one for each
           foreground class
    Y      label
    Dice   loss 1 - 2 Σ p y / (Σ p² + Σ y²), mean over the foreground classes
    α      weight of the distances, 1
    k      1500, so that σ(-k d) is nearly a mask
    λ(t)   weight w exp(-5 (1 - t/t_max)²) of the consistency, w = 1

    python code/train_dtc.py --labelnum 16 --gpu 0
    python code/test_LA.py --method dtc --labelnum 16
    python code/train_dtc.py --dataset ACDC --labelnum 7 --gpu 0

Setting of the released code, on LA: V-Net; SGD with learning rate 0.01, ×0.1 every 2500 of 6000
iterations; 2 labelled and 2 unlabelled crops of 112×112×80 a step; k = 1500; w = 1. The
segmentation head of the last iteration is tested, and the largest component is kept.

We could not read the paper. Others who tell of it have no weight α in it, so it is 1 here. DTML and
UG-MCL, which build on DTC, take w = 0.1. Customs of the field (UA-MT): momentum 0.9 and weight
decay 1e-4. Ours: two softmax logits for the one sigmoid of the released code; several classes, each
with an SDM of its own; SDM(Y) = 1 everywhere in a crop that lacks the class, where the released
code has 0, the value of a boundary. On ACDC the schedule is MC-Net's.

`--preset released` has α = 0.3, and λ(t) as a staircase: w exp(-5 (1 - s/40)²), where s counts
blocks of 150 iterations. `--consistency 0` trains both heads on the labels only, and
`--consistency 0 --lambda_dis 0` only the segmentation head: two rows of the paper's ablation.
"""

import torch

import _root  # noqa: F401
from dataloaders.two_stream import two_stream_loader
from networks import network_class
from utils import command
from utils.losses import distance_loss, distance_to_mask, foreground_dice_loss
from utils.schedules import consistency_weight, rampup_in_blocks, set_lr, step_decay
from utils.training import options, run
from utils.training.options import rule


def on_la(args):
    return args.dataset == "LA"


def on_acdc(args):
    return args.dataset == "ACDC"


def released(args):
    return args.preset == "released"


SCHEDULE = {"base_lr": 0.01, "lr_step": 2500, "max_iterations": 6000, "consistency": 1.0}
DEFAULTS = [  # where several rules hold, the last one wins
    rule("ours", rampup_share=1.0, **SCHEDULE),
    rule("second hand: summaries of the paper", lambda_dis=1.0),
    rule("released code: DTC", on_la, **SCHEDULE),
    rule("custom of the field: MC-Net", on_acdc, max_iterations=30000, lr_step=0),
    rule("released code: DTC", released, lambda_dis=0.3),
]
TEST_FLAGS = {"LA": "--nms 1"}  # the released code keeps the largest component

# ------------------------------------------------------------------------------------- the losses
# To fork: for another second task (edges, centre lines), replace `distance_loss`, and
# `distance_to_mask` by what turns its output into probabilities.


def segmentation_loss(p, label):
    """L_seg: probabilities `(B_l, C, *S)` and labels `(B_l, *S)` of the labelled crops."""
    return foreground_dice_loss(p, label)


def consistency_loss(p, d):
    """L_con: probabilities `(B, C, *S)` and SDM `(B, C - 1, *S)` of all crops."""
    return (p[:, 1:] - distance_to_mask(d)).square().mean()


def consistency_weight_released(step, args):
    """λ of the released code, which grows in blocks of 150 iterations."""
    return args.consistency * rampup_in_blocks(step, 40)


def objective(z, d, label, weight, args):
    """The loss of a step.

    Args:
        z, d: logits and SDM, float32 `(B, C, *S)` and `(B, C - 1, *S)`, labelled crops first.
        label: int64 `(B_l, *S)`.
        weight: λ(t).
        args: `lambda_dis`.

    Returns:
        The loss, and its terms by name.
    """
    labelled = slice(len(label))
    p = z.softmax(1)
    loss_seg = segmentation_loss(p[labelled], label)
    loss_dis = distance_loss(d[labelled], label)
    loss_con = consistency_loss(p, d)
    loss = loss_seg + args.lambda_dis * loss_dis + weight * loss_con
    return loss, {"loss_seg": loss_seg, "loss_dis": loss_dis, "loss_con": loss_con}


# ------------------------------------------------------------------------------------ the options


def parse(argv=None):
    parser = options.parser(__doc__, __file__, ("paper", "released"))
    method = parser.add_argument_group("method")
    options.add_iterations(method)
    options.add_consistency(method)
    method.add_argument(
        "--lambda_dis",
        type=command.non_negative,
        help="α, weight of the distance loss (released code: 0.3)",
    )
    args = options.parse(parser, DEFAULTS, argv)
    if released(args):
        options.refuse_without_effect(args, ("rampup_share",), "--preset released")
    if not args.consistency:
        options.refuse_without_effect(args, ("rampup_share",), "--consistency 0")
    return args


# -------------------------------------------------------------------------------- the training loop


def main(argv=None):
    args = parse(argv)
    job = run.Run(args, __file__)
    data = two_stream_loader(args, job.device)

    network = network_class(args.net)
    shape = (data.in_channels, data.num_classes, args.n_filters, args.normalization)
    net = job.to_device(network(*shape, sdm_head=True))
    model = job.parallel(net)
    optimizer = torch.optim.SGD(net.parameters(), lr=args.base_lr, momentum=0.9, weight_decay=1e-4)
    job.resume(net=net, optimizer=optimizer)
    weight_of = consistency_weight_released if released(args) else consistency_weight

    for step, batch in job.steps(data, args.max_iterations):
        lr = step_decay(args.base_lr, step, args.lr_step)
        set_lr(optimizer, lr)

        z, d = model(batch.image)
        weight = weight_of(step, args)
        loss, terms = objective(z.float(), d.float(), batch.label, weight, args)

        job.optimize(loss, optimizer)
        job.log(step, loss=loss, **terms, consistency_weight=weight, lr=lr)
        job.checkpoint(step)


if __name__ == "__main__":
    command.run(main)
