"""CML, cross-view mutual learning (Wu et al., ACM Multimedia 2024).

Two networks, 1 and 2, learn from crops mixed by CutMix. On unlabelled crops each learns from the
other's pseudo-labels outside the box, and from its own inside. Their features are pushed apart, so
that the networks stay two views of an image.

    pre-training     L = L_sup^l + λ₂ L_dis^l
    self-training    L = L_sup^l + λ₁ L_sup^u + λ₂ (L_dis^l + L_dis^u)

    L_sup = Σ (CE(p, Y) + Dice(p, Y)) / 2           over both networks
    L_dis = Σ (1 + mean cos(f, stopgrad(f_other)))  over both networks
    image = image_a outside the box, image_b inside
    Y     = Y_a outside, Y_b inside                 of a labelled crop
    Y     = Ŷ_other,a outside, Ŷ_own,b inside       of an unlabelled crop

    l, u  labelled and unlabelled crops (superscripts)
    a, b  the two crops that CutMix mixes: the first and the second half of a batch
    box   β times each extent of the crop, at a random place; one for l and one for u each step
    p, f  softmax of a network, and the deepest features of its encoder (cosine over channels)
    Ŷ     pseudo-labels: a network's argmax on the unmixed crops without gradient, after "NMS"; of
          each class only the largest connected component is left

    python code/train_cml.py --labelnum 8 --gpu 0
    python code/test_LA.py --method cml --labelnum 8

Setting of the paper: two V-Nets, for ACDC two U-Nets; SGD with learning rate 0.01. LA: 2000
iterations of pre-training and 15000 of self-training; 4 labelled and 4 unlabelled crops a step,
mixed to 2 + 2; λ₁ = 1, λ₂ = 0.2, β = 2/3. BraTS2019: the same with 10000 + 30000 iterations. ACDC:
10000 + 30000 iterations, 24 slices a step, λ₁ = 0.5, λ₂ = 0.1, β = 1/2. The mean of both networks
is tested.

NMS is the paper's word; its reference for it is Canny's edge detector. From the released code: the
largest component in its place and pseudo-labels in train mode; the decay on LA, ×0.1 every 2500
iterations of each phase, and the constant rate on ACDC; one SGD for both networks, whose state
self-training takes over; the linear upsampling of the second network; the component filter of LA's
test. Customs of the field (UA-MT): momentum 0.9 and weight decay 1e-4.

`--framework cfl` leaves CutMix out, `cps` (Chen et al., CVPR 2021) leaves L_dis out too. In both,
each network learns from the other's plain argmax in the same pass, without NMS (equation 3).
`--preset released` is the released code where it differs: labelled and unlabelled crops go through
the network one after another, so batch norm sees one kind at a time; on slices a single network
takes both parts, and only dropout makes its two passes differ.
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


def in_2d(args):
    return len(args.patch) == 2


def in_3d(args):
    return len(args.patch) == 3


VOLUMES = {  # section 4.2, LA
    "pretrain_iterations": 2000,
    "max_iterations": 15000,
    "labeled_bs": 4,
    "unlabeled_bs": 4,
    "lambda_u": 1.0,
    "lambda_dis": 0.2,
    "beta": 2 / 3,
}
SLICES = {  # section 4.2, ACDC
    "pretrain_iterations": 10000,
    "max_iterations": 30000,
    "lambda_u": 0.5,
    "lambda_dis": 0.1,
    "beta": 1 / 2,
}
IN_PAPER = ("LA", "BraTS2019", "ACDC")
DEFAULTS = [  # where several rules hold, the last one wins
    rule("ours", base_lr=0.01),
    rule("paper, 4.2", lambda args: args.dataset in IN_PAPER, base_lr=0.01),
    rule("paper, 3.2", framework="cml"),
    rule("ours", in_3d, lr_step=2500, **VOLUMES),
    rule("ours", in_2d, lr_step=0, **SLICES),
    rule("paper, 4.2", lambda args: args.dataset in ("LA", "BraTS2019"), net="vnet", **VOLUMES),
    rule(
        "paper, 4.2",
        lambda args: args.dataset == "LA" and args.downsample == 1,
        patch=[112, 112, 80],
    ),
    rule("released code", lambda args: args.dataset == "LA", lr_step=2500),
    rule(
        "paper, 4.2",
        lambda args: args.dataset == "BraTS2019",
        patch=[96, 96, 96],
        pretrain_iterations=10000,
        max_iterations=30000,
    ),
    rule("paper, Table 3", lambda args: args.dataset == "BraTS2019", labelnum=25),
    rule("ours", lambda args: args.dataset == "BraTS2019", lr_step=0),
    rule(
        "paper, 4.2",
        lambda args: args.dataset == "ACDC",
        net="unet",
        patch=[256, 256],
        labeled_bs=12,
        unlabeled_bs=12,
        **SLICES,
    ),
    rule("paper, Table 2", lambda args: args.dataset == "ACDC", labelnum=7),
    rule("released code", lambda args: args.dataset == "ACDC", lr_step=0),
]
TEST_FLAGS = {"LA": "--nms 1"}  # the released code keeps the largest component

# ------------------------------------------------------------------------------------- the losses
# To fork: change what a network learns from in `mix` and `targets`, and the terms in `objective`.


def mix(values, box):
    """CutMix, equation 5: `(B, ...)` to `(B/2, ...)`, the second half inside the box.

    Without a box the values stay as they are.
    """
    if box is None:
        return values
    outside, inside = values.chunk(2)
    return splice(outside, inside, box)


def targets(pseudo_1, pseudo_2, box):
    """What each network learns from on unlabelled crops, equation 9.

    Args:
        pseudo_1, pseudo_2: pseudo-labels of both networks, int64 `(B, *S)`.
        box: of CutMix.

    Returns:
        A target for each network, int64 `(B/2, *S)`.
    """
    outside_1, inside_1 = pseudo_1.chunk(2)
    outside_2, inside_2 = pseudo_2.chunk(2)
    return splice(outside_2, inside_1, box), splice(outside_1, inside_2, box)


def cross_targets(logits_1, logits_2):
    """What each network learns from in CPS and CFL, equation 3: the other's argmax.

    Args:
        logits_1, logits_2: of the unlabelled crops in the pass that is learnt from, `(B, C, *S)`.

    Returns:
        A target for each network, int64 `(B, *S)`.
    """
    return logits_2.argmax(1), logits_1.argmax(1)


def discrepancy(features_1, features_2):
    """L_dis, equation 1, of both networks: the loss is 4 for equal features, 0 for opposite ones.

    Args:
        features_1, features_2: deepest features `(B, F, *S)`.
    """
    features_1 = features_1.float()
    features_2 = features_2.float()
    cosine_1 = F.cosine_similarity(features_1, features_2.detach(), dim=1).mean()
    cosine_2 = F.cosine_similarity(features_2, features_1.detach(), dim=1).mean()
    return 2 + (cosine_1 + cosine_2)


def objective(outputs_1, outputs_2, labels_1, labels_2, labelled, args):
    """The loss of a step.

    Args:
        outputs_1, outputs_2: of each network, logits `(B, C, *S)` and deepest features, labelled
            crops first.
        labels_1, labels_2: what each learns from, int64 `(B, *S)`.
        labelled: number of labelled crops; the others, if any, are unlabelled.
        args: `lambda_u`, `lambda_dis` and `framework`.

    Returns:
        The loss, and its terms by name.
    """
    parts = [("l", slice(labelled), 1.0)]
    if len(labels_1) > labelled:
        parts.append(("u", slice(labelled, None), args.lambda_u))

    logits_1, features_1 = outputs_1
    logits_2, features_2 = outputs_2
    terms = {}
    loss = 0.0
    for name, part, weight in parts:
        loss_1 = supervised_loss(logits_1[part], labels_1[part])
        loss_2 = supervised_loss(logits_2[part], labels_2[part])
        terms[f"loss_{name}"] = loss_1 + loss_2
        loss = loss + weight * terms[f"loss_{name}"]
        if args.framework != "cps":
            terms[f"loss_dis_{name}"] = discrepancy(features_1[part], features_2[part])
            loss = loss + args.lambda_dis * terms[f"loss_dis_{name}"]
    return loss, terms


# ------------------------------------------------------------------------------------ the options


def parse(argv=None):
    parser = options.parser(__doc__, __file__, ("paper", "released"))
    method = parser.add_argument_group("method")
    method.add_argument(
        "--pretrain_iterations",
        type=command.non_negative_int,
        help="number of steps on labelled crops only",
    )
    method.add_argument(
        "--max_iterations", type=command.non_negative_int, help="number of self-training steps"
    )
    method.add_argument(
        "--lr_step",
        type=command.non_negative_int,
        help="multiply the learning rate by 0.1 every so many steps of a phase; 0: never",
    )
    method.add_argument(
        "--lambda_u", type=command.non_negative, help="λ₁, weight of the pseudo-labels"
    )
    method.add_argument(
        "--lambda_dis", type=command.non_negative, help="λ₂, weight of the feature discrepancy"
    )
    method.add_argument(
        "--beta", type=command.fraction, help="β, extent of the CutMix box over that of the crop"
    )
    method.add_argument(
        "--framework",
        choices=("cml", "cfl", "cps"),
        help="cfl leaves out CutMix and NMS; cps leaves out the feature discrepancy too",
    )
    args = options.parse(parser, DEFAULTS, argv)
    framework = f"--framework {args.framework}"
    if args.framework != "cml":
        options.refuse_without_effect(args, ("beta",), framework)
    if args.framework == "cps":
        options.refuse_without_effect(args, ("lambda_dis",), framework)
    if args.framework == "cml" and not args.beta:
        raise UserError("--beta 0 leaves no box: --framework cfl trains without CutMix")
    if args.framework != "cml" and one_network(args):
        raise UserError(
            f"{framework} needs two networks, and the released code has one on "
            "slices: leave out --preset released"
        )
    return args


def one_network(args):
    """Whether a single network takes both parts, as in the released code for slices."""
    return args.preset == "released" and in_2d(args)


def check_pairs(args, shares):
    """Insist on whole pairs for CutMix, also where a step is shared out.

    Args:
        args: `labeled_bs` and `unlabeled_bs`.
        shares: parts of a step, over all processes and all parts of `--accumulate`.

    Raises:
        UserError: a share has an odd number of labelled or unlabelled crops.
    """
    labelled = args.labeled_bs // shares
    unlabelled = args.unlabeled_bs // shares
    if labelled % 2 or unlabelled % 2:
        wanted = f"multiples of {2 * shares}" if shares > 1 else "even"
        raise UserError(
            f"CutMix mixes pairs: --labeled_bs and --unlabeled_bs must be {wanted} (or --framework "
            "cfl, cps)"
        )


# -------------------------------------------------------------------------------- the training loop
# To fork: other networks are built here; `deepest=True` makes them return their deepest features.


def forward(model, image, sizes):
    """Logits and deepest features of a batch; `sizes` are the parts that go through one by one."""
    outputs = [model(part) for part in image.split(sizes)]
    if len(outputs) == 1:
        return outputs[0]
    logits, features = zip(*outputs, strict=True)
    return torch.cat(logits), torch.cat(features)


@torch.no_grad()
def pseudo_labels(model, image, num_classes):
    """Ŷ, int64 `(B, *S)`: the largest component of each class of the model's argmax."""
    logits, _ = model(image)
    return largest_component(logits.argmax(1), num_classes)


def main(argv=None):
    args = parse(argv)
    job = run.Run(args, __file__)
    cutmix = args.framework == "cml"
    if cutmix:
        check_pairs(args, job.shares)
    data = two_stream_loader(args, job.device)

    def build(upsampling):
        network = network_class(args.net)
        shape = (data.in_channels, data.num_classes, args.n_filters, args.normalization)
        return job.to_device(network(*shape, upsampling=upsampling, deepest=True))

    if one_network(args):
        nets = {"net": build("linear")}
        model_1 = model_2 = job.parallel(nets["net"])
    else:
        nets = {"net": build("transposed"), "net_2": build("linear")}
        model_1 = job.parallel(nets["net"])
        model_2 = job.parallel(nets["net_2"])
    parameters = [parameter for net in nets.values() for parameter in net.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=args.base_lr, momentum=0.9, weight_decay=1e-4)
    job.resume(list(nets), **nets, optimizer=optimizer)  # all networks are tested

    one_by_one = args.preset == "released"

    def draw_box():
        if not cutmix:
            return None
        return random_box(args.patch, args.beta, job.generator, device=job.device)

    for step, batch in job.steps(data, args.pretrain_iterations + args.max_iterations):
        n = batch.labeled_bs
        pretraining = step <= args.pretrain_iterations
        step_of_phase = step if pretraining else step - args.pretrain_iterations
        lr = step_decay(args.base_lr, step_of_phase, args.lr_step)
        set_lr(optimizer, lr)

        box = draw_box()
        image = mix(batch.image[:n], box)
        labels_1 = labels_2 = mix(batch.label, box)
        labelled = len(image)
        sizes = [labelled]
        if not pretraining:
            unlabelled = batch.image[n:]
            if cutmix:
                pseudo_1 = pseudo_labels(model_1, unlabelled, data.num_classes)
                pseudo_2 = pseudo_labels(model_2, unlabelled, data.num_classes)
                box = draw_box()
                target_1, target_2 = targets(pseudo_1, pseudo_2, box)
                unlabelled = mix(unlabelled, box)
            image = torch.cat((image, unlabelled))
            sizes = [labelled, len(unlabelled)] if one_by_one else [len(image)]

        outputs_1 = forward(model_1, image, sizes)
        outputs_2 = forward(model_2, image, sizes)
        if not pretraining:
            if not cutmix:
                logits_1, _ = outputs_1
                logits_2, _ = outputs_2
                target_1, target_2 = cross_targets(logits_1[labelled:], logits_2[labelled:])
            labels_1 = torch.cat((labels_1, target_1))
            labels_2 = torch.cat((labels_2, target_2))
        loss, terms = objective(outputs_1, outputs_2, labels_1, labels_2, labelled, args)

        job.optimize(loss, optimizer)
        job.log(step, loss=loss, **terms, lr=lr)
        job.checkpoint(step)


if __name__ == "__main__":
    command.run(main)
