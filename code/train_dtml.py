"""DTML, dual-task mutual learning (Zhang & Zhang, PRCV 2021).

    L_s = (CE(p, Y) + Dice(p, Y)) / 2  on L  +  λ L_con       network M_s, probabilities p
    L_d = Dice(σ(-k d), Y)             on L  +  λ L_con       network M_d, signed distance maps d = tanh(z), k = 1500
    L_con = mean (p - σ(-k d))²        on L and U, gradient to both networks
    λ(t) = 0.1 exp(-5 (1 - t/t_max)²)

    python code/train_dtml.py --labelnum 16 --gpu 0
    python code/test_LA.py --method dtml --labelnum 16                     (--network dis tests M_d)

Two networks (V-Nets; for slices U-Nets) of different random weights, each with an SGD 0.01 of its
own, momentum 0.9 and weight decay 1e-4, ×0.1 every 2500 of 6000 iterations, 2 + 2 crops a step.
Distance maps are negative inside and normalised to [-1, 1] over the crop. Tested: M_s, its largest
component.

`--preset released` is the released code where it differs: λ is 1.0 r(t//150, 40), and the
consistency term is part of both losses, each of which is back-propagated into both networks, so
that it counts twice.

Equation 2 prints σ(+k d), which with the paper's own sign would invert the mask: neither preset
does. Of a class that a crop lacks, the map to be learned is 1 everywhere (`--dis_loss` other than
mask; our choice, the published map is 0 there). With more classes there is one map a foreground
class, and Dice losses and distances are means over them.
"""

import torch

import _root  # noqa: F401
from dataloaders.two_stream import two_stream_loader
from networks import network_class
from utils import command
from utils.losses import distance_to_mask, mean_dice_loss, sdm_targets, supervised_loss
from utils.schedules import gaussian_rampup, set_lr, step_decay
from utils.training import options, run
from utils.training.options import rule

DEFAULTS = [
    rule("paper", consistency=0.1),
    rule("released code", lambda args: args.preset == "released", consistency=1.0),
]


def consistency_weight(step, args):
    """λ of an iteration, as often as it counts: `args` holds `preset`, `consistency` and
    `max_iterations`.
    """
    if args.preset == "released":
        return 2 * args.consistency * gaussian_rampup((step - 1) // 150, 40)
    return args.consistency * gaussian_rampup(step, args.max_iterations)


def objective(logits, sdm, label, weight, dis_loss):
    """L_s and L_d with the consistency once: the sum whose gradients are those of both networks.

    Args:
        logits: of M_s, float32 `(B, C, *S)`, labelled crops first.
        sdm: of M_d, float32 `(B, C - 1, *S)` in [-1, 1].
        label: int64 `(B_l, *S)`.
        weight: of the consistency.
        dis_loss: `mask`, `sdm`, `sdm2` or `both` (rows of Table 1).

    Returns:
        The loss, and its terms by name.
    """
    n, prob_d = len(label), distance_to_mask(sdm)
    masks = torch.stack([label == c for c in range(1, logits.shape[1])], 1)
    terms = {"loss_seg": supervised_loss(logits[:n], label)}
    loss_dis = 0.0
    if dis_loss in ("mask", "both"):
        loss_dis = mean_dice_loss(prob_d[:n], masks)
    if dis_loss != "mask":
        difference = sdm[:n] - sdm_targets(masks)
        loss_dis = (
            loss_dis + (difference.square() if dis_loss == "sdm2" else difference.abs()).mean()
        )
    terms["loss_dis"] = loss_dis
    terms["loss_con"] = (logits.softmax(1)[:, 1:] - prob_d).square().mean()
    return terms["loss_seg"] + terms["loss_dis"] + weight * terms["loss_con"], terms


def main():
    parser = options.parser(__doc__, __file__, ("paper", "released"))
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
        "--dis_loss",
        choices=("mask", "sdm", "sdm2", "both"),
        default="mask",
        help="M_d learns the mask, the distances (absolute or squared differences), or mask and distances (Table 1)",
    )
    method.add_argument(
        "--consistency", type=command.non_negative, help="λ at the end; 0: the networks never meet"
    )
    method.add_argument(
        "--unlabeled", type=int, choices=(0, 1), default=1, help="0: labelled crops alone (Table 2)"
    )
    args = options.parse(parser, DEFAULTS)
    if not args.unlabeled:
        args.unlabeled_bs = 0
    job = run.Run(args, __file__)

    data = two_stream_loader(args, job.device)
    network, shape = (
        network_class(args.net),
        (1, data.num_classes, args.n_filters, args.normalization),
    )
    seg = job.to_device(network(*shape))
    dis = job.to_device(network(*shape, sdm_head=True, segmentation_head=False))
    segment, measure = job.parallel(seg), job.parallel(dis)
    optimizers = [
        torch.optim.SGD(net.parameters(), lr=args.base_lr, momentum=0.9, weight_decay=1e-4)
        for net in (seg, dis)
    ]
    job.resume(["seg"], seg=seg, dis=dis, optimizer_seg=optimizers[0], optimizer_dis=optimizers[1])

    for step, batch in job.steps(data, args.max_iterations):
        lr, weight = step_decay(args.base_lr, step, args.lr_step), consistency_weight(step, args)
        logits, sdm = segment(batch.image).float(), measure(batch.image).float()
        loss, terms = objective(logits, sdm, batch.label, weight, args.dis_loss)
        for optimizer in optimizers:
            set_lr(optimizer, lr)
        job.optimize(loss, *optimizers)
        job.log(step, loss=loss, **terms, consistency_weight=weight, lr=lr)
        job.checkpoint(step)


if __name__ == "__main__":
    command.run(main)
