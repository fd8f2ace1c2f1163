"""UG-MCL, uncertainty-guided mutual consistency learning (Zhang et al., Artificial Intelligence in
Medicine, 2022).

    L = L_sup + λ(t) (L_itc + L_ctc)                       λ(t) = 0.1 exp(-5 (1 - t/t_max)²)

    L_sup = CE(p, Y) + Dice(p, Y) + L_dis                  on L;  L_dis = mean (d - SDM(Y))²
    L_itc = β mean_M (p - p')² + (1 - β) mean_M (d - d')²  on L and U; p', d' are the mean teacher's
    L_ctc = mean (p - σ(-k d))²                            on L and U; k = 1500

    M = where u < H(t), u the entropy of the mean of T = 8 passes of the teacher with noise and
    dropout, H(t) = (3/4 + 1/4 exp(-5 (1 - t/t_max)²)) ln C

    python code/train_ugmcl.py --labelnum 16 --gpu 0
    python code/test_LA.py --method ugmcl --labelnum 16

One V-Net (for slices a U-Net) with two heads: probabilities p, and through tanh signed distance
maps d, negative inside, normalised over the crop, one a foreground class, 1 everywhere of a class
that a crop lacks (our choice: the published map is 0 there). SGD 0.01, momentum 0.9, weight decay
1e-4, ×0.1 every 2500 of 6000 iterations, 2 + 2 crops a step, β = 0.75, teacher's decay 0.99.
Squares are means over classes. The teacher's input has noise clamp(N(0, 0.1²), ±0.2), and it stays
in train mode. Tested: the student's p, on LA its largest component (our choice).

`--preset released` is the released code (for BraTS) where it differs: L_sup = (CE + Dice +
Dice(σ(-k d), Y)) / 2, half of L_itc, of the probabilities alone, λ = 0.1 r(t//150, 200), a 3-D
U-Net with instance norm, on BraTS2019 crops of 96×96×96, 30 000 iterations without decay of the
learning rate. Not its network's single head, whose tanh is the map.
"""

import copy
import math

import torch

import _root  # noqa: F401
from dataloaders.two_stream import two_stream_loader
from networks import network_class
from utils import command
from utils.losses import (
    cross_entropy,
    distance_to_mask,
    foreground_dice_loss,
    masked_mean,
    mean_dice_loss,
    sdm_targets,
)
from utils.schedules import ema_decay, gaussian_rampup, set_lr, step_decay, update_teacher
from utils.training import options, run
from utils.training.options import rule
from utils.uncertainty import entropy

DEFAULTS = [
    rule("paper", max_iterations=6000, lr_step=2500),
    rule(
        "paper: as on LA",
        lambda args: args.dataset == "BraTS2019" and args.preset == "paper",
        patch=[112, 112, 80],
    ),
    rule(
        "released code",
        lambda args: args.preset == "released",
        max_iterations=30000,
        lr_step=0,
        beta=1.0,
    ),
    rule("released code", lambda args: args.preset == "released", normalization="instancenorm"),
    rule(
        "released code", lambda args: args.preset == "released" and args.net == "vnet", net="unet3d"
    ),
]
TERMS = ("dis", "itc", "ctc")


def noisy(image):
    """The teacher's input: noise clamp(N(0, 0.1²), ±0.2), whatever the scale of the image's grey
    values.
    """
    return image + (0.1 * torch.randn_like(image)).clamp(-0.2, 0.2)


@torch.no_grad()
def uncertainty(teacher, image, passes):
    """Entropy `(B, *S)`, from 0 to ln C, of the mean softmax of some noisy passes of `teacher`."""
    prob = sum(teacher(noisy(image))[0].float().softmax(1) for _ in range(passes)) / passes
    return entropy(prob)


def objective(logits, sdm, label, weight, args, targets=None, certain=None):
    """The whole loss of a step.

    Args:
        logits, sdm: the student's, float32 `(B, C, *S)` and `(B, C - 1, *S)`, labelled crops first.
        label: int64 `(B_l, *S)`.
        weight: λ(t).
        args: `terms`, `beta` and `preset`.
        targets: logits and sdm of the teacher; needed for the term `itc`.
        certain: M, bool `(B, *S)`; as targets.

    Returns:
        The loss, and its terms by name.
    """
    n, released, classes = len(label), args.preset == "released", range(1, logits.shape[1])
    prob, prob_d = logits.softmax(1), distance_to_mask(sdm)
    masks = torch.stack([label == c for c in classes], 1)
    loss_seg = cross_entropy(logits[:n], label) + foreground_dice_loss(prob[:n], label)
    terms, loss = {"loss_seg": loss_seg}, loss_seg
    if "dis" in args.terms:
        loss_dis = (
            mean_dice_loss(prob_d[:n], masks)
            if released
            else (sdm[:n] - sdm_targets(masks)).square().mean()
        )
        terms["loss_dis"] = loss_dis
        loss = loss + loss_dis
    loss = loss / 2 if released else loss
    if "itc" in args.terms:
        squares = (
            (prob - targets[0].softmax(1)).square().mean(1),
            (sdm - targets[1]).square().mean(1),
        )
        loss_itc = args.beta * masked_mean(squares[0], certain) + (1 - args.beta) * masked_mean(
            squares[1], certain
        )
        loss_itc = loss_itc / 2 if released else loss_itc
        terms |= {"loss_itc": loss_itc, "certain": certain.float().mean()}
        loss = loss + weight * loss_itc
    if "ctc" in args.terms:
        terms["loss_ctc"] = (prob[:, 1:] - prob_d).square().mean()
        loss = loss + weight * terms["loss_ctc"]
    return loss, terms


def main():
    parser = options.parser(__doc__, __file__, ("paper", "released"))
    method = parser.add_argument_group("method")
    method.add_argument("--max_iterations", type=command.positive_int, help="steps in all")
    method.add_argument(
        "--lr_step", type=command.non_negative_int, help="lr ×0.1 every so many steps; 0: never"
    )
    method.add_argument(
        "--terms",
        choices=TERMS,
        nargs="*",
        default=list(TERMS),
        help="of the loss, beside CE + Dice",
    )
    method.add_argument(
        "--beta", type=command.fraction, default=0.75, help="share of the probabilities in L_itc"
    )
    method.add_argument(
        "--consistency", type=command.non_negative, default=0.1, help="λ at the end"
    )
    method.add_argument(
        "--threshold_start",
        type=command.fraction,
        default=0.75,
        help="H at the start over ln C; 1: constant",
    )
    method.add_argument(
        "--passes",
        type=command.positive_int,
        default=8,
        help="T, passes of the teacher that measure u",
    )
    method.add_argument(
        "--ema_decay", type=command.fraction, default=0.99, help="of the teacher, at most"
    )
    args = options.parse(parser, DEFAULTS)
    job = run.Run(args, __file__)

    data = two_stream_loader(args, job.device)
    network = network_class(args.net)
    net = job.to_device(
        network(1, data.num_classes, args.n_filters, args.normalization, sdm_head=True)
    )
    teacher = copy.deepcopy(net).requires_grad_(False)
    if not args.terms:  # nothing would train it
        net.sdm.requires_grad_(False)
    student, mean_teacher = job.parallel(net), job.parallel(teacher)
    optimizer = torch.optim.SGD(net.parameters(), lr=args.base_lr, momentum=0.9, weight_decay=1e-4)
    job.resume(net=net, teacher=teacher, optimizer=optimizer)

    for step, batch in job.steps(data, args.max_iterations):
        ramp = gaussian_rampup(step, args.max_iterations)
        set_lr(optimizer, lr := step_decay(args.base_lr, step, args.lr_step))
        targets = certain = None
        if "itc" in args.terms:
            with torch.no_grad():
                targets = [output.float() for output in mean_teacher(noisy(batch.image))]
            start = args.threshold_start
            threshold = (start + (1 - start) * ramp) * math.log(data.num_classes)
            certain = uncertainty(mean_teacher, batch.image, args.passes) < threshold
        logits, sdm = (output.float() for output in student(batch.image))
        weight = args.consistency * (
            gaussian_rampup((step - 1) // 150, 200) if args.preset == "released" else ramp
        )
        loss, terms = objective(logits, sdm, batch.label, weight, args, targets, certain)
        if job.optimize(loss, optimizer):
            update_teacher(teacher, net, ema_decay(step - 1, args.ema_decay))
        job.log(step, loss=loss, **terms, consistency_weight=weight, lr=lr)
        job.checkpoint(step)


if __name__ == "__main__":
    command.run(main)
