"""MC-Net, mutual consistency network (Wu et al., MICCAI 2021), and MC-Net+ (Wu et al., Medical
Image Analysis, 2022).

One encoder has several decoders that upsample in different ways. All learn from the labels, and
each decoder's probabilities are pulled towards the others' sharpened ones.

    L = w Σ_i Dice(p_i, Y) + λ(t) Σ_{i≠j} L_ij
    L_ij = mean (p_i - s(p_j))²           on all crops, over voxels and classes
    s(p) = p^(1/T) / (p^(1/T) + (1 - p)^(1/T))

    p_i    softmax of decoder i; Dice is on the labelled crops
    Y      label
    s(p)   sharpened probability of a class by itself, so that of three or more classes the sum is
           not 1; its gradient goes to decoder j too
    T      temperature, 0.1
    Dice   loss 1 - 2 Σ p y / (Σ p + Σ y), mean over the foreground classes; on slices
           1 - 2 Σ p y / (Σ p² + Σ y²), mean over all classes
    w      weight of the supervised loss, 0.5; on slices 1
    λ(t)   weight λ exp(-5 (1 - t/t_r)²) of the consistency up to step t_r, then λ

    python code/train_mcnet.py --labelnum 16 --gpu 0
    python code/test_LA.py --method mcnet --labelnum 16 --nms 0
    python code/train_mcnet.py --decoders 3 --labelnum 8 --gpu 0 --name mcnetplus_8       (MC-Net+)
    python code/train_mcnet.py --dataset ACDC --labelnum 7 --gpu 0

Setting of MC-Net's paper, on LA, as others tell it, for we could not read it: V-Net with two
decoders; SGD with learning rate 0.01, ×0.1 every 2500 of 6000 iterations; 2 labelled and 2
unlabelled crops a step; the mean of both decoders is tested, without a filter of components.
`--decoders 3` is MC-Net+, whose author says that the first decoder is tested.

From the released code: the losses, T, w, λ = 1 (0.1 on slices), and the decoders. On volumes their
layers are, in this order, a transposed convolution, trilinear interpolation with a convolution
3×3×3, and nearest neighbours with one; on slices the order is bilinear, transposed, nearest. Also
the settings that the paper's account leaves open: MC-Net+ trains 15000 iterations at a constant
rate, ACDC 30000. t_r is then 6000 on volumes. Customs of the field (UA-MT): momentum 0.9 and weight
decay 1e-4. Ours: trilinear interpolation does not align the corners.

`--preset released` trains MC-Net as the released code does: 15000 iterations at a constant rate,
the first decoder is tested, and λ(t) is a staircase, λ exp(-5 (1 - s/S)²), where s counts blocks of
150 iterations; S = 40, on slices 200.
"""

import torch

import _root  # noqa: F401
from dataloaders.two_stream import two_stream_loader
from networks.several_decoders import TESTED, SeveralDecoders
from utils import command
from utils.errors import UserError
from utils.losses import class_dice_loss
from utils.schedules import consistency_weight, rampup_in_blocks, set_lr, step_decay
from utils.training import options, run
from utils.training.options import rule


def in_2d(args):
    return len(args.patch) == 2


def in_3d(args):
    return len(args.patch) == 3


def released(args):
    return args.preset == "released"


def in_first_paper(args):
    """Whether MC-Net's paper, of which others tell, has this setting."""
    return args.dataset == "LA" and args.decoders == 2 and not released(args)


VOLUMES = {"max_iterations": 15000, "lr_step": 0, "rampup_share": 0.4}
VOLUMES |= {"consistency": 1.0, "lambda_seg": 0.5}
SLICES = {"max_iterations": 30000, "lr_step": 0, "rampup_share": 1.0}
SLICES |= {"consistency": 0.1, "lambda_seg": 1.0}
DEFAULTS = [  # where several rules hold, the last one wins
    rule("ours", decoders=2, base_lr=0.01),
    rule("released code: MC-Net", temperature=0.1),
    rule("released code: MC-Net", released, test_decoder="first"),
    rule("ours", in_3d, **VOLUMES),
    rule("ours", in_2d, **SLICES),
    rule(
        "released code: MC-Net",
        lambda args: args.dataset in ("LA", "Pancreas"),
        base_lr=0.01,
        **VOLUMES,
    ),
    rule("released code: MC-Net", lambda args: args.dataset == "ACDC", base_lr=0.01, **SLICES),
    rule(
        "second hand: MC-Net's author, issue 14 of the code",
        lambda args: args.decoders == 3 and not released(args),
        test_decoder="first",
    ),
    rule(
        "second hand: summaries of the paper",
        lambda args: args.decoders == 2 and not released(args),
        test_decoder="mean",
    ),
    rule("second hand: summaries of the paper", in_first_paper, max_iterations=6000, lr_step=2500),
    rule("ours", in_first_paper, rampup_share=1.0),
]
TEST_FLAGS = {"*": "--nms 0"}  # the released code filters no components
UPSAMPLINGS = {  # of the decoders, by the axes of the patch
    3: ("transposed", "linear", "nearest"),
    2: ("linear", "transposed", "nearest"),
}

# ------------------------------------------------------------------------------------- the losses
# To fork: change `sharpen`, or which decoders learn from which in `consistency_loss`.


def segmentation_loss(p, label):
    """Dice of a decoder: probabilities `(B_l, C, *S)` and labels `(B_l, *S)` of labelled crops."""
    if label.ndim == 3:  # slices
        return class_dice_loss(p, label, eps=1e-10)
    return class_dice_loss(p, label, background=False, eps=1e-8, squares=False)


def sharpen(p, temperature):
    """s(p), of each class by itself."""
    power = 1 / temperature
    own = p**power
    others = (1 - p) ** power
    return own / (own + others)


def consistency_loss(probabilities, temperature):
    """Σ L_ij over all ordered pairs of decoders; each of the list is `(B, C, *S)`."""
    sharpened = [sharpen(p, temperature) for p in probabilities]
    losses = []
    for i, p in enumerate(probabilities):
        for j, s in enumerate(sharpened):
            if i != j:
                losses.append((p - s).square().mean())
    return sum(losses)


def consistency_weight_released(step, args):
    """λ of the released code, which grows in blocks of 150 iterations."""
    return args.consistency * rampup_in_blocks(step, 200 if in_2d(args) else 40)


def objective(logits, label, weight, args):
    """The loss of a step.

    Args:
        logits: of each decoder, float32 `(B, C, *S)`, labelled crops first.
        label: int64 `(B_l, *S)`.
        weight: λ(t).
        args: `lambda_seg` and `temperature`.

    Returns:
        The loss, and its terms by name.
    """
    labelled = slice(len(label))
    probabilities = [z.softmax(1) for z in logits]
    loss_seg = sum(segmentation_loss(p[labelled], label) for p in probabilities)
    loss_con = consistency_loss(probabilities, args.temperature)
    loss = args.lambda_seg * loss_seg + weight * loss_con
    return loss, {"loss_seg": loss_seg, "loss_con": loss_con}


# ------------------------------------------------------------------------------------ the options


def parse(argv=None):
    parser = options.parser(__doc__, __file__, ("paper", "released"))
    method = parser.add_argument_group("method")
    options.add_iterations(method)
    options.add_consistency(method)
    method.add_argument(
        "--decoders", type=int, choices=(2, 3), help="number of decoders: 3 is MC-Net+"
    )
    method.add_argument(
        "--test_decoder", choices=TESTED, help="test the mean of all decoders, or only the first"
    )
    method.add_argument(
        "--temperature",
        type=command.positive,
        help="T of the sharpening, 0.01 to 1; 1 leaves the probabilities as they are",
    )
    method.add_argument(
        "--lambda_seg", type=command.non_negative, help="w, weight of the supervised loss"
    )
    args = options.parse(parser, DEFAULTS, argv)
    if not 0.01 <= args.temperature <= 1:
        raise UserError(
            f"--temperature {args.temperature:g}: give 0.01 to 1; below, p^(1/T) of both sides "
            "would be 0, and above its slope has no limit"
        )
    if released(args):
        options.refuse_without_effect(args, ("rampup_share",), "--preset released")
    if not args.consistency:
        of_consistency = ("rampup_share", "temperature")
        options.refuse_without_effect(args, of_consistency, "--consistency 0")
    return args


# -------------------------------------------------------------------------------- the training loop


def main(argv=None):
    args = parse(argv)
    job = run.Run(args, __file__)
    data = two_stream_loader(args, job.device)

    network = SeveralDecoders(
        args.net,
        data.in_channels,
        data.num_classes,
        UPSAMPLINGS[len(args.patch)][: args.decoders],
        args.test_decoder,
        n_filters=args.n_filters,
        normalization=args.normalization,
    )
    net = job.to_device(network)
    model = job.parallel(net)
    optimizer = torch.optim.SGD(net.parameters(), lr=args.base_lr, momentum=0.9, weight_decay=1e-4)
    job.resume(net=net, optimizer=optimizer)
    weight_of = consistency_weight_released if released(args) else consistency_weight

    for step, batch in job.steps(data, args.max_iterations):
        lr = step_decay(args.base_lr, step, args.lr_step)
        set_lr(optimizer, lr)

        logits = [z.float() for z in model(batch.image)]
        weight = weight_of(step, args)
        loss, terms = objective(logits, batch.label, weight, args)

        job.optimize(loss, optimizer)
        job.log(step, loss=loss, **terms, consistency_weight=weight, lr=lr)
        job.checkpoint(step)


if __name__ == "__main__":
    command.run(main)
