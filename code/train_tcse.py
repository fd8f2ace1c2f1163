"""TCSE, transformation-consistent self-ensembling, also TCSM (Li et al., TNNLS 2021).

The mean teacher sees each crop turned and flipped. Its prediction, turned back, is what the student
is pulled to.

    L = L_sup + λ(t) L_con
    L_sup = CE(p, Y)                          on the labelled crops
    L_con = mean (p(x) - π⁻¹ p'(π(x + ε)))²   on all crops, over voxels and classes

    p, p'  softmax of the student and of the teacher; p' has no gradient
    π      turn by a quarter turns of the plane of the first two axes, then a flip of the first axis
           one time in two; drawn for each crop
    ε      noise clamp(N(0, 0.1²), ±0.2) of each voxel
    Y      label
    λ(t)   weight w exp(-5 (1 - t/T)²) of the consistency, w = 1, T = 3/4 t_max

    The teacher's weights are θ' = a θ' + (1 - a) θ after each step. Its dropout stays on.

    python code/train_tcse.py --labelnum 16 --gpu 0
    python code/test_LA.py --method tcse --labelnum 16 --nms 0
    python code/train_tcse.py --dataset ACDC --labelnum 7 --gpu 0

The paper is about skin lesions, optic discs and the liver, all in 2-D; the row of LA that others
print is from UA-MT's comparison, whose setting we do not know. Of the paper we could read only the
abstract: it has the consistency on labelled and unlabelled images. From the released code, for skin
lesions: MSE, w and T. Customs of the field (UA-MT): SGD 0.01, momentum 0.9, weight decay 1e-4, ×0.1
every 2500 of 6000 iterations; a = min(1 - 1/t, 0.99); ε. On BraTS2019 and ACDC it is SSL4MIS's
schedule, 30 000 iterations with the rate 0.01 (1 - t/t_max)^0.9. Ours: CE without weights of the
classes; no scaling in π; half turns only where the first two extents of a crop differ.

`--preset released` is the released code's: it compares the unlabelled crops only, and makes both
predictions of L_con without a gradient, so that only the statistics of batch norm learn from them.
L_con is a number in the log then.
"""

import copy

import torch

import _root  # noqa: F401
from dataloaders.two_stream import two_stream_loader
from networks import network_class
from utils import command
from utils.losses import cross_entropy
from utils.perturbations import noisy
from utils.schedules import consistency_weight, ema_decay, learning_rate, set_lr, update_teacher
from utils.training import options, run
from utils.training.options import rule


def in_ssl4mis(args):
    return args.dataset in ("BraTS2019", "ACDC")


def released(args):
    return args.preset == "released"


DEFAULTS = [  # where several rules hold, the last one wins
    rule("paper, abstract", consistency_on="all"),
    rule("released code: TCSM", consistency=1.0, rampup_share=0.75),
    rule("released code: TCSM", released, consistency_on="unlabeled"),
    rule("custom of the field: UA-MT", ema_decay=0.99),
    rule(
        "custom of the field: UA-MT",
        base_lr=0.01,
        decay="step",
        lr_step=2500,
        max_iterations=6000,
    ),
    rule("custom of the field: SSL4MIS", in_ssl4mis, decay="poly", max_iterations=30000),
]
TEST_FLAGS = {"*": "--nms 0"}  # the released code filters no components

# ------------------------------------------------------------------------------------- the losses
# To fork: add another transformation π to `transformed`, and its inverse to `restored`.


def draw_transformations(crops, extents):
    """π of each of so many crops: its quarter turns and whether it flips.

    Args:
        crops: how many.
        extents: of a crop; where the first two differ there are only half turns.
    """
    least = 1 if extents[0] == extents[1] else 2
    turns = least * torch.randint(4 // least, (crops,))
    flips = torch.randint(2, (crops,)).bool()
    return list(zip(turns.tolist(), flips.tolist(), strict=True))


def transformed(values, transformations):
    """π of each sample of `(B, C, *S)`."""
    results = []
    for sample, (turns, flip) in zip(values, transformations, strict=True):
        turned = sample.rot90(turns, (1, 2))
        results.append(turned.flip(1) if flip else turned)
    return torch.stack(results)


def restored(values, transformations):
    """π⁻¹ of each sample of `(B, C, *S)`."""
    results = []
    for sample, (turns, flip) in zip(values, transformations, strict=True):
        turned = sample.flip(1) if flip else sample
        results.append(turned.rot90(-turns, (1, 2)))
    return torch.stack(results)


def consistency_loss(z, z_teacher):
    """L_con: logits `(B, C, *S)` of the student and the teacher's, turned back."""
    return (z.softmax(1) - z_teacher.softmax(1)).square().mean()


def compared(values, labelled, args):
    """Those samples of a batch `(B, ...)` whose predictions are compared, of which the first
    `labelled` are labelled.
    """
    return values if args.consistency_on == "all" else values[labelled:]


def objective(z, z_teacher, label, weight, args):
    """The loss of a step.

    Args:
        z: the student's logits, float32 `(B, C, *S)`, labelled crops first.
        z_teacher: the teacher's logits, turned back, of the crops that are `compared`; None where
            λ(t) is 0.
        label: int64 `(B_l, *S)`.
        weight: λ(t).
        args: `consistency_on`.

    Returns:
        The loss, and its terms by name.
    """
    loss_sup = cross_entropy(z[: len(label)], label)
    if not weight:
        return loss_sup, {"loss_sup": loss_sup, "loss_con": 0.0}
    loss_con = consistency_loss(compared(z, len(label), args), z_teacher)
    return loss_sup + weight * loss_con, {"loss_sup": loss_sup, "loss_con": loss_con}


def objective_released(z, z_teacher, label, weight, args):
    """The loss of the released code, whose L_con has no gradient; it is for the log.

    Arguments and result are those of `objective`; λ(t) is never 0.
    """
    loss_sup = cross_entropy(z[: len(label)], label)
    loss_con = consistency_loss(compared(z.detach(), len(label), args), z_teacher)
    return loss_sup + weight * loss_con, {"loss_sup": loss_sup, "loss_con": loss_con}


# ------------------------------------------------------------------------------------ the options


def parse(argv=None):
    parser = options.parser(__doc__, __file__, ("paper", "released"))
    method = parser.add_argument_group("method")
    options.add_iterations(method, decay="either")
    options.add_consistency(method)
    options.add_teacher(method)
    method.add_argument(
        "--consistency_on",
        choices=("unlabeled", "all"),
        help="crops on which student and teacher are compared",
    )
    args = options.parse(parser, DEFAULTS, argv)
    of_consistency = ("rampup_share", "ema_decay", "consistency_on")
    if not args.consistency:
        options.refuse_without_effect(args, of_consistency, "--consistency 0")
    if released(args):
        options.refuse_without_effect(args, ("consistency", *of_consistency), "--preset released")
    return args


# -------------------------------------------------------------------------------- the training loop


def main(argv=None):
    args = parse(argv)
    job = run.Run(args, __file__)
    data = two_stream_loader(args, job.device)

    network = network_class(args.net)
    shape = (data.in_channels, data.num_classes, args.n_filters, args.normalization)
    net = job.to_device(network(*shape))
    net_teacher = copy.deepcopy(net).requires_grad_(False)
    student = job.parallel(net)
    teacher = job.parallel(net_teacher)
    optimizer = torch.optim.SGD(net.parameters(), lr=args.base_lr, momentum=0.9, weight_decay=1e-4)
    job.resume(net=net, teacher=net_teacher, optimizer=optimizer)
    loss_of_step = objective_released if released(args) else objective

    for step, batch in job.steps(data, args.max_iterations):
        lr = learning_rate(step, args)
        set_lr(optimizer, lr)
        weight = consistency_weight(step, args)

        z_teacher = None
        if weight:  # with `--preset released` only for the L_con in the log
            image = compared(batch.image, batch.labeled_bs, args)
            transformations = draw_transformations(len(image), args.patch)
            with torch.no_grad():
                z_teacher = teacher(transformed(noisy(image), transformations)).float()
            z_teacher = restored(z_teacher, transformations)
        z = student(batch.image).float()
        loss, terms = loss_of_step(z, z_teacher, batch.label, weight, args)

        job.optimize(loss, optimizer)
        if batch.last_part:  # with --accumulate: once a step, after the optimizer's
            update_teacher(net_teacher, net, ema_decay(step - 1, args.ema_decay))
        job.log(step, loss=loss, **terms, consistency_weight=weight, lr=lr)
        job.checkpoint(step)


if __name__ == "__main__":
    command.run(main)
