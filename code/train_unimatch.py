"""UniMatch, unified dual-stream perturbations (Yang et al., CVPR 2023), as its authors' code for
medical images has it.

One network, without a teacher. On unlabelled crops its own confident labels of the weak view teach
two strong views of the crop, and the weak view whose features are perturbed.

    L = (L_sup + λ_s (D(s₁) + D(s₂)) + λ_f D(f)) / 2
    L_sup = (CE(p, Y) + Dice(p, Y)) / 2             on the labelled crops
    D(v)  = Dice(p of view v, Ŷ), over the voxels where c ≥ τ; without any it is 0

    p      softmax of the network
    Ŷ, c   the class of the weak view's largest p, and that p; no gradient
    s₁, s₂ strong views: other intensities, and inside a box the partner, another unlabelled crop,
           with other intensities (CutMix). Inside the box Ŷ and c are the partner's, too
    f      the weak view, when each channel of all features of the encoder is dropped with
           probability 1/2; the decoder takes the plain and the dropped features as one batch
    w      the weak view, the crop as the loader gives it (augmented)
    Dice   loss 1 - 2 Σ a b / (Σ a² + Σ b²), mean over all classes, the background among them

    python code/train_unimatch.py --labelnum 16 --gpu 0
    python code/test_LA.py --method unimatch --labelnum 16 --nms 0
    python code/train_unimatch.py --dataset ACDC --labelnum 7 --gpu 0

A step reads `--labeled_bs` labelled crops, and two times `--unlabeled_bs` unlabelled ones: the
second half are the partners of the first. It has three forward passes: of the partners, in
evaluation mode and without gradient, for their Ŷ and c; of the labelled crops and w, with the
decoder twice as wide, for the other p, Ŷ and c; and of s₁ and s₂ together. So with L labelled and U
unlabelled crops the encoder sees L + 4 U crops and the decoder 2 L + 5 U, of which U have no
gradient.

Setting of the released code, on ACDC: the U-Net of SSL4MIS; SGD with learning rate 0.01, momentum
0.9, weight decay 1e-4, and (1 - t/t_max)^0.9; 12 labelled and 12 unlabelled slices a step, 300
passes over the unlabelled slices (29 400 to 31 800 iterations; here 30 000); λ_s = 1/4, λ_f = 1/2,
τ = 0.95. Strong views of slices: with probability 0.8 other brightness and contrast, with 0.5 blur.
The box is there with probability 1/2 and covers 2 to 40 % of the area. No component filter.

The authors have no code for volumes. Here volumes have AD-MT's strong views (other intensities with
probability 0.8, noise with 0.2), its boxes, and 15 000 iterations; all else is as on slices.

Ours: a partner is a further crop of the same order of cases, where the code has a second shuffle.
Slices are scaled by their own limits for the change of intensities, where the code makes 8-bit
images of [0, 1].
"""

from argparse import Namespace

import torch

import _root  # noqa: F401
from dataloaders.two_stream import two_stream_loader
from networks import network_class
from utils import command
from utils.errors import UserError
from utils.losses import class_dice_loss, supervised_loss
from utils.ops import splice
from utils.perturbations import (
    blurred,
    boxes_of_area,
    boxes_of_beta,
    jittered,
    noisier,
    scaled_and_shifted,
    some_boxes,
)
from utils.schedules import poly_decay, set_lr
from utils.training import options, run
from utils.training.options import rule


def in_2d(args):
    return len(args.patch) == 2


def in_3d(args):
    return len(args.patch) == 3


def on_acdc(args):
    return args.dataset == "ACDC"


WEIGHTS = {"threshold": 0.95, "lambda_s": 0.25, "lambda_f": 0.5}
VIEWS = {"jitter": 0.8, "box_probability": 0.5}
SLICES = {"blur": 0.5, "box_share": [0.02, 0.4]}
DEFAULTS = [  # where several rules hold, the last one wins
    rule("ours", **WEIGHTS, **VIEWS),
    rule("ours", in_2d, **SLICES),
    rule("custom of the field: SSL4MIS", in_2d, max_iterations=30000),
    rule("custom of the field: AD-MT", in_3d, jitter=0.8, noise=0.2, beta=4.0),
    rule("custom of the field: AD-MT", in_3d, max_iterations=15000),
    rule("released code", on_acdc, **WEIGHTS, **VIEWS, **SLICES),
    rule("released code", on_acdc, base_lr=0.01, labeled_bs=12, unlabeled_bs=12, net="unet"),
]
TEST_FLAGS = {"*": "--nms 0"}  # the released code filters no components

# ------------------------------------------------------------------------------------- the losses
# To fork: another measure of what is confident belongs in `pseudo_labels`.


def pseudo_labels(z):
    """Ŷ int64 and c float32, both `(B, *S)`, of logits `(B, C, *S)`; without gradient."""
    confidence, pseudo = z.detach().softmax(1).max(1)
    return pseudo, confidence


def view_loss(z, pseudo, confidence, threshold):
    """D of one view: logits `(B, C, *S)` against Ŷ, over the voxels where c ≥ τ."""
    return class_dice_loss(z.softmax(1), pseudo, confidence >= threshold)


def objective(z, label, z_strong, z_dropped, weak, partner, boxes, args):
    """The loss of a step.

    Args:
        z: logits of the labelled crops, `(B_l, C, *S)`.
        label: int64 `(B_l, *S)`.
        z_strong: logits of s₁ and of s₂, each `(B_u, C, *S)`.
        z_dropped: logits of f, `(B_u, C, *S)`.
        weak, partner: Ŷ and c, each `(B_u, *S)`, of the crops and of their partners, unmixed.
        boxes: of s₁ and of s₂, each int64 `(B_u, 2, D)`.
        args: `threshold`, `lambda_s` and `lambda_f`.

    Returns:
        The loss, and its terms by name.
    """
    pseudo, confidence = weak
    pseudo_partner, confidence_partner = partner
    loss_sup = supervised_loss(z, label, background=True)
    loss_f = view_loss(z_dropped, pseudo, confidence, args.threshold)
    loss_s = 0.0
    for z_view, box in zip(z_strong, boxes, strict=True):
        pseudo_view = splice(pseudo, pseudo_partner, box)
        confidence_view = splice(confidence, confidence_partner, box)
        loss_s = loss_s + view_loss(z_view, pseudo_view, confidence_view, args.threshold)
    loss = (loss_sup + args.lambda_s * loss_s + args.lambda_f * loss_f) / 2
    confident = (confidence >= args.threshold).float().mean()
    terms = {"loss_sup": loss_sup, "loss_s": loss_s, "loss_f": loss_f, "confident": confident}
    return loss, terms


# ------------------------------------------------------------------------------- the strong views
# To fork: other perturbations belong in `strong_view`, other boxes in `draw_boxes`.


def strong_view(image, args):
    """s before CutMix, of images `(B, C, *S)`; drawn anew at each call."""
    if in_2d(args):
        return blurred(jittered(image, args.jitter), args.blur)
    return noisier(scaled_and_shifted(image, args.jitter), args.noise)


def draw_boxes(count, device, args):
    """A box for each of `count` crops, int64 `(count, 2, D)`; some are empty."""
    if in_2d(args):
        boxes = boxes_of_area(count, args.patch, args.box_share)
    else:
        boxes = boxes_of_beta(count, args.patch, args.beta)
    return some_boxes(boxes, args.box_probability).to(device)


# ------------------------------------------------------------------------------------ the options


def parse(argv=None):
    parser = options.parser(__doc__, __file__)
    method = parser.add_argument_group("method")
    options.add_iterations(method, decay="poly")
    method.add_argument(
        "--threshold",
        type=command.fraction,
        help="τ, smallest confidence of a voxel that is learnt from",
    )
    method.add_argument(
        "--lambda_s", type=command.non_negative, help="λ_s, weight of each strong view"
    )
    method.add_argument(
        "--lambda_f", type=command.non_negative, help="λ_f, weight of the dropped features"
    )
    method.add_argument(
        "--jitter", type=command.fraction, help="probability of other intensities in a strong view"
    )
    method.add_argument(
        "--blur", type=command.fraction, help="probability of blur in a strong view of a slice"
    )
    method.add_argument(
        "--noise", type=command.fraction, help="probability of noise in a strong view of a volume"
    )
    method.add_argument(
        "--box_probability",
        type=command.fraction,
        help="probability that a strong view has a CutMix box; 0 leaves CutMix out",
    )
    method.add_argument(
        "--box_share",
        type=command.fraction,
        nargs=2,
        metavar=("FROM", "TO"),
        help="limits of a box's share of the area of a slice",
    )
    method.add_argument(
        "--beta",
        type=command.positive,
        help="β of the distribution of a box's size in a volume; raise it for more equal sizes",
    )
    args = options.parse(parser, DEFAULTS, argv)
    refuse(args)
    return args


def refuse(args):
    """Refuse options that have no effect, and boxes that do not fit."""
    of_slices = ("blur", "box_share")
    of_volumes = ("noise", "beta")
    if in_2d(args):
        options.refuse_without_effect(args, of_volumes, "slices")
        low, high = args.box_share
        if not low <= high <= 0.8:
            raise UserError(
                f"--box_share {low:g} {high:g}: give the smaller number first, and at most 0.8, or "
                "the boxes hardly ever fit"
            )
    else:
        options.refuse_without_effect(args, of_slices, "volumes")
    if not args.box_probability:
        options.refuse_without_effect(args, ("box_share", "beta"), "--box_probability 0")
    if not args.lambda_s:
        of_views = ("jitter", "box_probability", *of_slices, *of_volumes)
        options.refuse_without_effect(args, of_views, "--lambda_s 0")
    if not args.lambda_s and not args.lambda_f:
        options.refuse_without_effect(args, ("threshold",), "--lambda_s 0 --lambda_f 0")


def with_partners(args):
    """The options of a loader that reads a partner for each unlabelled crop."""
    return Namespace(**{**vars(args), "unlabeled_bs": 2 * args.unlabeled_bs})


# -------------------------------------------------------------------------------- the training loop
# To fork: for a third strong view draw three boxes, and weigh D anew in `objective`.


def main(argv=None):
    args = parse(argv)
    job = run.Run(args, __file__)
    data = two_stream_loader(with_partners(args), job.device)

    network = network_class(args.net)
    shape = (data.in_channels, data.num_classes, args.n_filters, args.normalization)
    net = job.to_device(network(*shape))
    model = job.parallel(net)
    optimizer = torch.optim.SGD(net.parameters(), lr=args.base_lr, momentum=0.9, weight_decay=1e-4)
    job.resume(net=net, optimizer=optimizer)

    for step, batch in job.steps(data, args.max_iterations):
        n = batch.labeled_bs
        lr = poly_decay(args.base_lr, step, args.max_iterations)
        set_lr(optimizer, lr)

        image, image_partner = batch.image[n:].chunk(2)
        net.eval()
        with torch.no_grad():
            z_partner = model(image_partner).float()
        net.train()
        z, z_dropped = model(batch.image[: n + len(image)], with_dropped=True)
        z = z.float()
        z_dropped = z_dropped[n:].float()

        boxes = [draw_boxes(len(image), job.device, args) for _ in range(2)]
        views = [
            splice(strong_view(image, args), strong_view(image_partner, args), box) for box in boxes
        ]
        z_strong = model(torch.cat(views)).float().chunk(2)

        weak = pseudo_labels(z[n:])
        partner = pseudo_labels(z_partner)
        loss, terms = objective(z[:n], batch.label, z_strong, z_dropped, weak, partner, boxes, args)

        job.optimize(loss, optimizer)
        job.log(step, loss=loss, **terms, lr=lr)
        job.checkpoint(step)


if __name__ == "__main__":
    command.run(main)
