"""DMD, deep mutual distillation (Xie et al., MICCAI 2023).

    L = Dice(p₁, Y) + Dice(p₂, Y)                              on L
      + λ Dice(p₁ᵀ, p₂ᵀ)                                       on L and U, gradient to both networks
    pᵀ = softmax(z / T)

    python code/train_dmd.py --labelnum 16 --gpu 0
    python code/test_LA.py --method dmd --labelnum 16 --nms 0
    python code/train_dmd.py --dataset ACDC --labelnum 3 --gpu 0

Two networks (V-Nets; for slices U-Nets) of different random weights, one SGD 0.01 with momentum 0.9
and weight decay 1e-4 over both, ×0.1 every 2500 of 6000 iterations, on LA 2 + 2 crops a step, no
ramp-up. T = 2 with up to 8 labels, 1.93 with more; λ = 4. Tested: the first network alone, without
a component filter.

`--distill kl` distils by D(p₂ᵀ ‖ p₁ᵀ) + D(p₁ᵀ ‖ p₂ᵀ), a mean over voxels, with λ = 1; at
`--temperature 1` that is deep mutual learning (Zhang et al., CVPR 2018), the baseline. Section 3.3
swaps the two λ; Fig. 4 and the implementation section agree with these.

Where the paper has one output channel and a sigmoid there are two and a softmax here, the same
function of their difference, and with more classes the Dice losses are means over the foreground.
The released code broadcasts a prediction of five axes against a label of four in its Dice loss;
this one does not, and so there is one preset alone.
"""

import torch

import _root  # noqa: F401
from dataloaders.two_stream import two_stream_loader
from networks import network_class
from utils import command
from utils.losses import dice_loss, foreground_dice_loss
from utils.schedules import set_lr, step_decay
from utils.training import options, run
from utils.training.options import rule

DEFAULTS = [
    rule("Fig. 3b", temperature=1.93),
    rule("Fig. 3b, up to 8 labels", lambda args: args.labelnum <= 8, temperature=2.0),
    rule("Fig. 4", lambda_distill=4.0),
    rule("Fig. 4, KL", lambda args: args.distill == "kl", lambda_distill=1.0),
]


def distillation(logits_1, logits_2, kind, temperature):
    """What the networks' tempered probabilities differ by: float32 logits `(B, C, *S)`."""
    log_1, log_2 = (logits / temperature for logits in (logits_1, logits_2))
    log_1, log_2 = log_1.log_softmax(1), log_2.log_softmax(1)
    prob_1, prob_2 = log_1.exp(), log_2.exp()
    if kind == "kl":  # D(p₂ ‖ p₁) + D(p₁ ‖ p₂) in one sum
        return ((prob_1 - prob_2) * (log_1 - log_2)).sum(1).mean()
    classes = range(1, logits_1.shape[1])
    return sum(dice_loss(prob_1[:, c], prob_2[:, c]) for c in classes) / len(classes)


def objective(logits_1, logits_2, label, args):
    """The whole loss of a step.

    Args:
        logits_1, logits_2: float32 `(B, C, *S)`, labelled crops first.
        label: int64 `(B_l, *S)`.
        args: `distill`, `temperature` and `lambda_distill`.

    Returns:
        The loss, and its terms by name.
    """
    loss_1, loss_2 = (
        foreground_dice_loss(z[: len(label)].softmax(1), label) for z in (logits_1, logits_2)
    )
    loss_distill = distillation(logits_1, logits_2, args.distill, args.temperature)
    loss = loss_1 + loss_2 + args.lambda_distill * loss_distill
    return loss, {"loss_1": loss_1, "loss_2": loss_2, "loss_distill": loss_distill}


def main():
    parser = options.parser(__doc__, __file__)
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
    method.add_argument(
        "--distill", choices=("dice", "kl"), default="dice", help="loss between the networks"
    )
    method.add_argument(
        "--temperature",
        type=command.positive,
        help="T; higher: softer targets (default: 2 up to 8 labels, then 1.93)",
    )
    method.add_argument(
        "--lambda_distill", type=command.non_negative, help="λ (default: 4 for dice, 1 for kl)"
    )
    args = options.parse(parser, DEFAULTS)
    job = run.Run(args, __file__)

    data = two_stream_loader(args, job.device)
    network, shape = (
        network_class(args.net),
        (1, data.num_classes, args.n_filters, args.normalization),
    )
    net_1, net_2 = (job.to_device(network(*shape)) for _ in range(2))
    student_1, student_2 = job.parallel(net_1), job.parallel(net_2)
    parameters = [*net_1.parameters(), *net_2.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=args.base_lr, momentum=0.9, weight_decay=1e-4)
    job.resume(net=net_1, net_2=net_2, optimizer=optimizer)

    for step, batch in job.steps(data, args.max_iterations):
        set_lr(optimizer, lr := step_decay(args.base_lr, step, args.lr_step))
        logits_1, logits_2 = student_1(batch.image).float(), student_2(batch.image).float()
        loss, terms = objective(logits_1, logits_2, batch.label, args)
        job.optimize(loss, optimizer)
        job.log(step, loss=loss, **terms, lr=lr)
        job.checkpoint(step)


if __name__ == "__main__":
    command.run(main)
