"""MCF, mutual correction framework (Wang et al., CVPR 2023).

Two networks of different architectures learn from the labels, and most where they disagree. On
unlabelled crops the worse of the two at a step learns from the sharpened prediction of the other.

    L = L_1 + L_2,   L_i = CE(p_i, Y) + Dice(p_i, Y) + γ L_rec,i + λ(t) [i learns] L_con,i
    L_rec,i = mean_D (p_i - Y)²          on the labelled crops
    L_con,i = mean (p_i - s_other)²      on the unlabelled crops; no gradient to s_other

    p     softmax of a network: 1 is a V-Net, 2 a V-Net with the encoder of a ResNet-34
    Y     label; Dice is 1 - 2 Σ p y / (Σ p² + Σ y²), mean over the foreground classes
    D     voxels in which the networks' argmax differ; L_rec is a mean over the foreground classes
    s     sharpened prediction p^(1/T) / Σ p^(1/T), the sum over the classes
    i     learns where its Dice loss on the labelled crops of this step is the larger one
    λ(t)  λ exp(-5 (1 - t/t_r)²), constant after t_r iterations

    python code/train_mcf.py --labelnum 16 --gpu 0
    python code/test_LA.py --method mcf --labelnum 16 --nms 0
    python code/train_mcf.py --dataset ACDC --labelnum 7 --gpu 0

Setting of the released code, on LA: SGD for both with learning rate 0.01, momentum 0.9 and weight
decay 1e-4, ×0.1 every 2500 of 6000 iterations; 2 labelled and 2 unlabelled crops of 112×112×80 a
step, neither turned nor flipped; T = 0.1, γ = 0.5, λ = 0.1, t_r = 6000. The mean of both networks
is tested, without a component filter. Its folds of LA are its own; here the split is the field's.

The method is published for volumes. For slices the pair is ours: a U-Net, and the ResNet-34 V-Net
in 2-D; the schedule is the field's for ACDC (MC-Net), 30000 iterations at a constant rate. λ(t)
rises steadily; the released code raises it every 150 iterations. One optimizer holds both networks,
which is the same as one each.
"""

import torch

import _root  # noqa: F401
from dataloaders.two_stream import two_stream_loader
from networks import network_class
from utils import command
from utils.losses import cross_entropy, foreground_dice_loss, masked_mean
from utils.schedules import consistency_weight, set_lr, step_decay
from utils.training import options, run
from utils.training.options import rule


def in_2d(args):
    return len(args.patch) == 2


def in_3d(args):
    return len(args.patch) == 3


def on_la(args):
    return args.dataset == "LA"


WEIGHTS = {
    "base_lr": 0.01,
    "consistency": 0.1,
    "rampup_share": 1.0,
    "rectification": 0.5,
    "temperature": 0.1,
}
VOLUMES = {"max_iterations": 6000, "lr_step": 2500}
DEFAULTS = [  # where several rules hold, the last one wins
    rule("ours", **WEIGHTS),
    rule("ours", in_3d, **VOLUMES),
    rule("custom of the field: MC-Net", in_2d, max_iterations=30000, lr_step=0),
    rule(
        "released code: MCF",
        on_la,
        net="vnet",
        labelnum=16,
        labeled_bs=2,
        unlabeled_bs=2,
        augment="crop",
        **VOLUMES,
        **WEIGHTS,
    ),
]
TEST_FLAGS = {"*": "--nms 0"}  # the released code filters no components
SECOND = {2: "resnet34_2d", 3: "resnet34"}  # by axes of a crop

# ------------------------------------------------------------------------------------- the losses
# To fork: choose who teaches in `objective`, and what is taught in `sharpened`.


def rectification_loss(p, label, differ):
    """L_rec: probabilities `(B_l, C, *S)`, label `(B_l, *S)`, D bool `(B_l, *S)`; 0 where D is
    empty.
    """
    classes = range(1, p.shape[1])
    errors = [(p[:, c] - (label == c).to(p.dtype)).square() for c in classes]
    return masked_mean(sum(errors) / len(errors), differ)


def sharpened(p, temperature):
    """s: probabilities `(B, C, *S)`; no gradient."""
    powers = (p.detach() + torch.finfo(p.dtype).tiny).log() / temperature
    return powers.softmax(1)


def consistency_loss(p, s):
    """L_con, mean over voxels and classes; both `(B_u, C, *S)`."""
    return (p - s).square().mean()


def objective(z_1, z_2, label, weight, args):
    """The loss of a step.

    Args:
        z_1, z_2: logits of the two networks, float32 `(B, C, *S)`, labelled crops first.
        label: int64 `(B_l, *S)`.
        weight: λ(t).
        args: `rectification` and `temperature`.

    Returns:
        The loss, and its terms by name.
    """
    n = len(label)
    p_1 = z_1.softmax(1)
    p_2 = z_2.softmax(1)
    dice_1 = foreground_dice_loss(p_1[:n], label)
    dice_2 = foreground_dice_loss(p_2[:n], label)
    differ = z_1[:n].argmax(1) != z_2[:n].argmax(1)
    loss_1 = cross_entropy(z_1[:n], label) + dice_1
    loss_2 = cross_entropy(z_2[:n], label) + dice_2
    rectify_1 = rectification_loss(p_1[:n], label, differ)
    rectify_2 = rectification_loss(p_2[:n], label, differ)

    first_teaches = dice_1.detach() < dice_2.detach()
    learns_1 = consistency_loss(p_1[n:], sharpened(p_2[n:], args.temperature))
    learns_2 = consistency_loss(p_2[n:], sharpened(p_1[n:], args.temperature))
    consistency = torch.where(first_teaches, learns_2, learns_1)

    rectify = rectify_1 + rectify_2
    loss = loss_1 + loss_2 + args.rectification * rectify + weight * consistency
    return loss, {
        "loss_1": loss_1,
        "loss_2": loss_2,
        "loss_rectification": rectify,
        "loss_consistency": consistency,
        "first_teaches": first_teaches.float(),
    }


# ------------------------------------------------------------------------------------ the options


def parse(argv=None):
    parser = options.parser(__doc__, __file__)
    method = parser.add_argument_group("method")
    options.add_iterations(method)
    options.add_consistency(method)
    method.add_argument(
        "--rectification",
        type=command.non_negative,
        help="γ, weight of the voxels on which the networks disagree",
    )
    method.add_argument(
        "--temperature",
        type=command.positive,
        help="T of the sharpened predictions; raise it for softer targets",
    )
    args = options.parse(parser, DEFAULTS, argv)
    if not args.consistency:
        of_consistency = ("rampup_share", "temperature")
        options.refuse_without_effect(args, of_consistency, "--consistency 0")
    return args


# -------------------------------------------------------------------------------- the training loop
# To fork: other pairs of networks are built here; `--net` is the first one.


def main(argv=None):
    args = parse(argv)
    job = run.Run(args, __file__)
    data = two_stream_loader(args, job.device)

    shape = (data.in_channels, data.num_classes, args.n_filters, args.normalization)
    net_1 = job.to_device(network_class(args.net)(*shape))
    net_2 = job.to_device(network_class(SECOND[len(args.patch)])(*shape))
    model_1 = job.parallel(net_1)
    model_2 = job.parallel(net_2)
    parameters = [*net_1.parameters(), *net_2.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=args.base_lr, momentum=0.9, weight_decay=1e-4)
    job.resume(["net", "net_2"], net=net_1, net_2=net_2, optimizer=optimizer)  # both are tested

    for step, batch in job.steps(data, args.max_iterations):
        lr = step_decay(args.base_lr, step, args.lr_step)
        set_lr(optimizer, lr)
        weight = consistency_weight(step, args)

        z_1 = model_1(batch.image).float()
        z_2 = model_2(batch.image).float()
        loss, terms = objective(z_1, z_2, batch.label, weight, args)

        job.optimize(loss, optimizer)
        job.log(step, loss=loss, **terms, consistency_weight=weight, lr=lr)
        job.checkpoint(step)


if __name__ == "__main__":
    command.run(main)
