"""CML, cross-view mutual learning (Wu et al., ACM Multimedia 2024).

    pre-training      L = L_l + λ₂ D_l                                        on L
    self-training     L = L_l + λ₁ L_u + λ₂ (D_l + D_u)                       on L and U

    L = Σᵢ (CE(pᵢ, Yᵢ) + Dice(pᵢ, Yᵢ)) / 2               of both networks on mixed crops X = X_a M + X_b (1 - M)
    D = Σᵢ 1 + mean cos(fᵢ, stopgrad f₁₋ᵢ)               f: the encoder's deepest features, compared over channels
    Yᵢ = Ŷ_a,₁₋ᵢ M + Ŷ_b,ᵢ (1 - M)  on U                 outside of the box what the other network says, inside its own

    python code/train_cml.py --labelnum 8 --gpu 0
    python code/test_LA.py --method cml --labelnum 8

Two V-Nets (for slices U-Nets), the second with linear upsampling, one SGD 0.01 over both with
momentum 0.9 and weight decay 1e-4, on LA ×0.1 every 2500 iterations of either phase; 2000 + 15000
iterations; 4 + 4 crops a step, which CutMix makes 2 + 2; λ₁ = 1, λ₂ = 0.2; the box (M = 0) is β =
2/3 of each axis, one for L and one for U a step. BraTS2019 and ACDC train for 10000 + 30000
iterations at a constant rate; ACDC with λ₁ = 0.5, λ₂ = 0.1, β = 1/2 and 12 + 12 slices. The
pseudo-labels Ŷ are the argmax of each network on the unmixed crops, in train mode without gradient,
the largest component of each class kept. Tested: the mean of both networks, on LA its largest
component.

`--preset released` is the released code where it differs: labelled and unlabelled crops go through
a network one after another, so that batch norm sees either kind alone, and on slices both networks
are one, with linear upsampling, which dropout alone makes two. Not its Dice, whose file it lacks,
V-Net's upsampling with aligned corners, the mean of logits in tests, nor the best checkpoint, on LA
of the test list, that self-training starts from and that is reported.

`--framework cfl` (conflict-based feature learning) leaves CutMix out: each network learns from the
other's pseudo-labels alone; `cps` (Chen et al., CVPR 2021) leaves D out too. Both keep the largest
component of the pseudo-labels, and find them as CML does, in a pass of their own.
"""

import torch
import torch.nn.functional as F

import _root  # noqa: F401
from dataloaders.two_stream import two_stream_loader
from networks import network_class
from utils import command
from utils.errors import UserError
from utils.losses import supervised_loss
from utils.ops import largest_component, random_box, splice
from utils.schedules import set_lr, step_decay
from utils.training import options, run
from utils.training.options import rule

LA = {"pretrain_iterations": 2000, "max_iterations": 15000, "lr_step": 2500}
LA |= {"lambda_u": 1.0, "lambda_dis": 0.2, "beta": 2 / 3}
BRATS = {"pretrain_iterations": 10000, "max_iterations": 30000, "lr_step": 0}
ACDC = BRATS | {"lambda_u": 0.5, "lambda_dis": 0.1, "beta": 1 / 2}
DEFAULTS = [
    rule("paper, LA", **LA),
    rule("paper, LA and BraTS2019", lambda args: args.net != "unet", labeled_bs=4, unlabeled_bs=4),
    rule("paper, BraTS2019", lambda args: args.dataset == "BraTS2019", **BRATS),
    rule("paper, ACDC; all slices alike", lambda args: args.net == "unet", **ACDC),
]


def mix(values, box):
    """CutMix `(B, ...)` to `(B/2, ...)`, the first half outside of the box and the second inside;
    as it is without.
    """
    return values if box is None else splice(*values.chunk(2), box)


def targets(pseudo_1, pseudo_2, box):
    """What each network learns from on U: pseudo-labels int64 `(B, *S)` of both to a target for
    each.
    """
    if box is None:
        return pseudo_2, pseudo_1
    (a_1, b_1), (a_2, b_2) = pseudo_1.chunk(2), pseudo_2.chunk(2)
    return splice(a_2, b_1, box), splice(a_1, b_2, box)


def discrepancy(features_1, features_2):
    """D of the deepest features `(B, F, *S)` of both networks, from 0 (opposite) to 4 (alike)."""
    features_1, features_2 = features_1.float(), features_2.float()
    return 2 + sum(
        F.cosine_similarity(own, other.detach(), dim=1).mean()
        for own, other in ((features_1, features_2), (features_2, features_1))
    )


def see(student, image, sizes):
    """A network's logits and deepest features of a batch, of which parts of `sizes` go through it
    one after another.
    """
    outputs = [student(part) for part in image.split(sizes)]
    return (
        outputs[0]
        if len(outputs) == 1
        else [torch.cat(parts) for parts in zip(*outputs, strict=True)]
    )


def objective(outputs_1, outputs_2, labels_1, labels_2, labelled, args):
    """The whole loss of a step.

    Args:
        outputs_1, outputs_2: of each network, logits `(B, C, *S)` and deepest features, labelled
            crops first.
        labels_1, labels_2: what each learns from, int64 `(B, *S)`.
        labelled: how many crops are labelled.
        args: `lambda_u`, `lambda_dis` and `framework`.

    Returns:
        The loss, and its terms by name.
    """
    terms, loss = {}, 0.0
    for name, part in (("l", slice(labelled)), ("u", slice(labelled, None))):
        if not len(labels_1[part]):
            continue
        weight = 1.0 if name == "l" else args.lambda_u
        both = ((outputs_1, labels_1), (outputs_2, labels_2))
        terms[f"loss_{name}"] = sum(
            supervised_loss(outputs[0][part], label[part]) for outputs, label in both
        )
        loss = loss + weight * terms[f"loss_{name}"]
        if args.framework != "cps":
            terms[f"loss_dis_{name}"] = discrepancy(outputs_1[1][part], outputs_2[1][part])
            loss = loss + args.lambda_dis * terms[f"loss_dis_{name}"]
    return loss, terms


def main():
    parser = options.parser(__doc__, __file__, ("paper", "released"))
    method = parser.add_argument_group("method")
    method.add_argument(
        "--pretrain_iterations", type=command.non_negative_int, help="steps on L alone"
    )
    method.add_argument(
        "--max_iterations", type=command.non_negative_int, help="steps of self-training"
    )
    method.add_argument(
        "--lr_step",
        type=command.non_negative_int,
        help="lr ×0.1 every so many steps of a phase; 0: never",
    )
    method.add_argument("--lambda_u", type=command.non_negative, help="λ₁, of the pseudo-labels")
    method.add_argument(
        "--lambda_dis", type=command.non_negative, help="λ₂, of the feature discrepancy"
    )
    method.add_argument("--beta", type=command.fraction, help="box of CutMix over each axis")
    method.add_argument(
        "--framework",
        choices=("cml", "cfl", "cps"),
        default="cml",
        help="cfl: without CutMix; cps: without D too",
    )
    args = options.parse(parser, DEFAULTS)
    cutmix = args.framework == "cml"
    if cutmix and not args.beta:
        raise UserError("--beta 0 leaves no box: --framework cfl trains without CutMix")
    released = args.preset == "released"
    alone = released and args.net == "unet"
    if alone and not cutmix:
        raise UserError(
            f"--framework {args.framework} is of two networks: the released code has one on slices"
        )
    job = run.Run(args, __file__)
    if cutmix and (args.labeled_bs // job.shares % 2 or args.unlabeled_bs // job.shares % 2):
        pairs = f"multiples of {2 * job.shares}" if job.shares > 1 else "even"
        sizes = f"--labeled_bs and --unlabeled_bs must be {pairs}"
        raise UserError(f"CutMix mixes pairs: {sizes} (or --framework cfl, cps)")

    data = two_stream_loader(args, job.device)
    network, shape = (
        network_class(args.net),
        (1, data.num_classes, args.n_filters, args.normalization),
    )
    kinds = {"net": "linear"} if alone else {"net": "transposed", "net_2": "linear"}
    nets = {
        name: job.to_device(network(*shape, upsampling=kind, deepest=True))
        for name, kind in kinds.items()
    }
    student_1, student_2 = ([job.parallel(net) for net in nets.values()] * 2)[
        :2
    ]  # or one that is both
    parameters = [parameter for net in nets.values() for parameter in net.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=args.base_lr, momentum=0.9, weight_decay=1e-4)
    job.resume(list(nets), **nets, optimizer=optimizer)

    for step, batch in job.steps(data, args.pretrain_iterations + args.max_iterations):
        n, pretraining = batch.labeled_bs, step <= args.pretrain_iterations
        phase_step = step if pretraining else step - args.pretrain_iterations
        set_lr(optimizer, lr := step_decay(args.base_lr, phase_step, args.lr_step))

        box = (
            random_box(args.patch, args.beta, job.generator, device=job.device) if cutmix else None
        )
        image = mix(batch.image[:n], box)
        labels_1 = labels_2 = mix(batch.label, box)
        labelled = len(image)
        if not pretraining:
            with torch.no_grad():
                pseudo = [
                    largest_component(student(batch.image[n:])[0].argmax(1), data.num_classes)
                    for student in (student_1, student_2)
                ]
            box = (
                random_box(args.patch, args.beta, job.generator, device=job.device)
                if cutmix
                else None
            )
            image = torch.cat((image, mix(batch.image[n:], box)))
            labels_1, labels_2 = (torch.cat((labels_1, target)) for target in targets(*pseudo, box))
        sizes = [labelled, len(image) - labelled] if released and not pretraining else [len(image)]
        outputs_1, outputs_2 = (see(student, image, sizes) for student in (student_1, student_2))
        loss, terms = objective(outputs_1, outputs_2, labels_1, labels_2, labelled, args)
        job.optimize(loss, optimizer)
        job.log(step, loss=loss, **terms, lr=lr)
        job.checkpoint(step)


if __name__ == "__main__":
    command.run(main)
