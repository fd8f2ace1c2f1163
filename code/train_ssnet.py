"""SS-Net, smoothness and class separation (Wu et al., MICCAI 2022).

A network is made smooth along its adversarial perturbation, and the features of each class are
drawn to prototypes of the class.

    L = Dice(p, Y) + λ(t) (L_lds + w (L_cl^l + L_cl^u))
    L_lds = Dice'(p(x + r), p(x))                         on all crops; no gradient to p(x)
    r     = ε g / ‖g‖,   g = ∇_d Dice'(p(x + ξ d / ‖d‖), p(x)),   d random
    L_cl  = 1/C Σ_c Σ_n σ(s_n) (1 - mean_m cos(f_n, m)) / Σ_n σ(s_n)

    p, Y  softmax of the network, and the label
    l, u  labelled and unlabelled crops (superscripts)
    n     voxels of class c: by the label in labelled crops, by the argmax in unlabelled ones
    f     features of a voxel: the decoder's last ones through the projection and the prediction,
          two perceptrons of two layers, 32 wide
    m     prototypes of the class, at most 32; the background has none, so its term is 0
    s     score of a voxel by the class's selector, a perceptron of two layers on f without gradient
          to f
    C     number of classes, background included
    λ(t)  λ exp(-5 (1 - t/t_r)²), constant after t_r iterations
    Dice  volumes: 1 - 2 Σ p q / (Σ p + Σ q), mean over the foreground classes.
          Slices: 1 - 2 Σ p q / (Σ p² + Σ q²), mean over all classes
    Dice' slices: Dice. Volumes: 1 - 2 Σ p q / (Σ p + Σ q), each sum over all classes at once

The prototypes of a class are projected features of this step's labelled foreground voxels that the
network predicts right: those with the highest scores by the selector, in eval mode and without
gradient. A class without such a voxel keeps its last ones.

    python code/train_ssnet.py --labelnum 8 --gpu 0
    python code/test_LA.py --method ssnet --labelnum 8
    python code/train_ssnet.py --dataset ACDC --labelnum 7 --gpu 0

Setting of the released code, on LA: V-Net; SGD with learning rate 0.01, momentum 0.9, weight decay
1e-4, ×0.1 every 2500 of 15000 iterations; 2 labelled and 2 unlabelled crops a step; ξ = ε = 10,
w = 0.1, λ = 1 with t_r = 6000; the component filter of LA's test. ACDC: U-Net, 30000 iterations at
a constant rate, 12 + 12 slices, ε = 6, λ = 0.1 with t_r = 30000.

We could not read the paper. `paper` is what the code's comments say, `--preset released` what the
code does: it keeps the 32 lowest scores, and λ(t) rises in blocks of 150 iterations up to iteration
6000, on slices 30000. On a GPU bf16 rounds r, about 0.01 a voxel, together with the image;
`--precision fp32` does not. With `--accumulate` each part of a step replaces the prototypes.
Ours: p(x) is the step's own prediction, not that of one more pass; d is normal, not uniform; the
selector ranks in eval mode. The code's second selector, of prototypes, is left out: its weights
cancel to 1.
"""

import torch
import torch.nn.functional as F
from torch import nn

import _root  # noqa: F401
from dataloaders.two_stream import two_stream_loader
from networks import network_class
from networks.base import statistics_kept
from utils import command, distributed
from utils.errors import UserError
from utils.losses import dice_loss, masked_mean
from utils.perturbations import adversarial_direction
from utils.schedules import consistency_weight, rampup_in_blocks, set_lr, step_decay
from utils.training import options, run
from utils.training.options import rule


def in_2d(args):
    return len(args.patch) == 2


def in_3d(args):
    return len(args.patch) == 3


def on(dataset):
    """The condition of a rule for one data set."""
    return lambda args: args.dataset == dataset


def released(args):
    return args.preset == "released"


SHARED = {"base_lr": 0.01, "xi": 10.0, "separation": 0.1, "prototypes": 32}
VOLUMES = {"max_iterations": 15000, "lr_step": 2500, "consistency": 1.0, "epsilon": 10.0}
SLICES = {"max_iterations": 30000, "lr_step": 0, "consistency": 0.1, "epsilon": 6.0}
DEFAULTS = [  # where several rules hold, the last one wins
    rule("ours", **SHARED),
    rule("ours", in_3d, rampup_share=0.4, **VOLUMES),
    rule("ours", in_2d, rampup_share=1.0, **SLICES),
    rule(
        "released code: SS-Net",
        on("LA"),
        net="vnet",
        labeled_bs=2,
        unlabeled_bs=2,
        rampup_share=0.4,
        **VOLUMES,
        **SHARED,
    ),
    rule(
        "released code: SS-Net",
        on("ACDC"),
        net="unet",
        labeled_bs=12,
        unlabeled_bs=12,
        rampup_share=1.0,
        **SLICES,
        **SHARED,
    ),
]
TEST_FLAGS = {"LA": "--nms 1"}  # the released code keeps the largest component
WIDTH = 32  # of the perceptrons

# ----------------------------------------------------------------------------- heads and prototypes
# To fork: change what a class's features are compared with in `Prototypes`.


def perceptron(channels, outputs, activation):
    """Two layers on rows `(N, channels)`, with batch norm between them."""
    layers = (
        nn.Linear(channels, WIDTH),
        nn.BatchNorm1d(WIDTH),
        activation,
        nn.Linear(WIDTH, outputs),
    )
    return nn.Sequential(*layers)


class Heads(nn.Module):
    """Projection, prediction and one selector a foreground class.

    Args:
        channels: of the decoder's last features.
        num_classes: background included.
    """

    def __init__(self, channels, num_classes):
        super().__init__()
        self.projection = perceptron(channels, WIDTH, nn.ReLU())
        self.prediction = perceptron(WIDTH, WIDTH, nn.ReLU())
        self.selectors = nn.ModuleList(
            perceptron(WIDTH, 1, nn.LeakyReLU(0.2)) for _ in range(1, num_classes)
        )

    def forward(self, features_l, label, features_u, pseudo):
        """`of_classes` of the labelled and of the unlabelled voxels, each with their own batch
        norm.
        """
        return self.of_classes(features_l, label), self.of_classes(features_u, pseudo)

    def of_classes(self, features, label):
        """For each foreground class f `(N_c, 32)` and s `(N_c,)` of its voxels; nothing of a class
        of one voxel, on which batch norm is not defined.

        Args:
            features: `(B, F, *S)`.
            label: int64 `(B, *S)`.
        """
        predicted = self.prediction(self.projection(rows(features)))
        found = []
        for c, selector in enumerate(self.selectors, 1):
            own = predicted[label.flatten() == c]
            if len(own) < 2:
                found.append((own[:0], own.new_zeros(0)))
            else:
                found.append((own, selector(own.detach()).squeeze(1)))
        return found


def rows(features):
    """`(B, F, *S)` as one row a voxel, `(N, F)`."""
    return features.movedim(1, -1).flatten(0, -2)


def in_float32(of_classes):
    """The result of `Heads.of_classes`, which may be bfloat16, as losses need it."""
    return [(f.float(), s.float()) for f, s in of_classes]


class Prototypes:
    """The prototypes of each foreground class, `(M, 32)`; a checkpoint holds them.

    Args:
        number: most prototypes of a class.
        highest: whether those with the highest scores are kept, or with the lowest.
    """

    def __init__(self, number, highest=True):
        self.number = number
        self.highest = highest
        self.of = {}

    @torch.no_grad()
    def replace(self, heads, features, z, label):
        """Take the best voxels of this step, of all processes.

        Args:
            heads: `Heads`.
            features, z: of the labelled crops, `(B, F, *S)` and logits `(B, C, *S)`.
            label: int64 `(B, *S)`.
        """
        right = torch.where(z.argmax(1) == label, label, 0).flatten()
        of_voxels = rows(features)
        heads.eval()
        for c, selector in enumerate(heads.selectors, 1):
            own = heads.projection(of_voxels[right == c])
            self.keep(c, own, selector(own).squeeze(1))
        heads.train()

    def keep(self, c, projected, scores):
        """Choose among the rows `(N, 32)` of class `c` by their scores `(N,)`."""
        if distributed.world_size() > 1:
            mine = self._best(projected, scores)
            gathered = distributed.gather([part.cpu() for part in mine])
            projected = torch.cat([of_rank[0] for of_rank in gathered]).to(projected)
            scores = torch.cat([of_rank[1] for of_rank in gathered]).to(scores)
        if len(projected):
            self.of[c], _ = self._best(projected, scores)

    def _best(self, projected, scores):
        count = min(self.number, len(scores))
        kept = scores.topk(count, largest=self.highest).indices
        return projected[kept], scores[kept]

    def state_dict(self):
        return {"of": dict(self.of)}

    def load_state_dict(self, state):
        self.of = dict(state["of"])


# ------------------------------------------------------------------------------------- the losses


def dice(p, q):
    """Dice loss of probabilities `(B, C, *S)` against others, or against one-hot labels."""
    if p.ndim == 5:
        classes, eps, squares = range(1, p.shape[1]), 1e-8, False
    else:
        classes, eps, squares = range(p.shape[1]), 1e-10, True
    return sum(dice_loss(p[:, c], q[:, c], eps, squares) for c in classes) / len(classes)


def prediction_dice(p, q):
    """Dice' of two predictions `(B, C, *S)`."""
    if p.ndim == 5:
        return dice_loss(p, q, 1e-8, squares=False)
    return dice(p, q)


def segmentation_loss(z, label):
    """Dice(p, Y): logits `(B, C, *S)`, label int64 `(B, *S)`."""
    one_hot = torch.stack([label == c for c in range(z.shape[1])], 1)
    return dice(z.softmax(1), one_hot)


def smoothness_loss(logits_of, image, z, xi, epsilon):
    """L_lds.

    Args:
        logits_of: from images `(B, C, *S)` to logits.
        image: x.
        z: logits of x; no gradient reaches them.
        xi, epsilon: ξ and ε.
    """
    p = z.detach().softmax(1)

    def divergence(direction):
        return prediction_dice(logits_of(image + direction).softmax(1), p)

    r = epsilon * adversarial_direction(divergence, image, xi)
    return divergence(r)


def separation_loss(of_classes, prototypes):
    """L_cl of labelled or of unlabelled crops.

    Args:
        of_classes: f and s of each foreground class, from `Heads`.
        prototypes: class to prototypes `(M, 32)`; a class of fewer than two adds nothing.
    """
    loss = 0.0
    for c, (f, s) in enumerate(of_classes, 1):
        if c not in prototypes or len(prototypes[c]) < 2:
            loss = loss + 0 * f.sum()
            continue
        mean_prototype = F.normalize(prototypes[c].to(f), dim=1).mean(0)
        distance = 1 - F.normalize(f, dim=1) @ mean_prototype
        loss = loss + masked_mean(distance, s.sigmoid())
    return loss / (len(of_classes) + 1)


def objective(z, label, loss_lds, loss_cl_l, loss_cl_u, weight, separation):
    """The loss of a step.

    Args:
        z: logits, float32 `(B, C, *S)`, labelled crops first.
        label: int64 `(B_l, *S)`.
        loss_lds, loss_cl_l, loss_cl_u: from `smoothness_loss` and `separation_loss`.
        weight: λ(t).
        separation: w.

    Returns:
        The loss, and its terms by name.
    """
    loss_dice = segmentation_loss(z[: len(label)], label)
    loss = loss_dice + weight * (loss_lds + separation * (loss_cl_l + loss_cl_u))
    terms = {"loss_dice": loss_dice, "loss_lds": loss_lds}
    return loss, {**terms, "loss_cl_l": loss_cl_l, "loss_cl_u": loss_cl_u}


def consistency_weight_released(step, args):
    """λ(t) of the released code, which grows in blocks of 150 iterations."""
    return args.consistency * rampup_in_blocks(step, 200 if in_2d(args) else 40)


# ------------------------------------------------------------------------------------ the options


def parse(argv=None):
    parser = options.parser(__doc__, __file__, ("paper", "released"))
    method = parser.add_argument_group("method")
    options.add_iterations(method)
    options.add_consistency(method)
    method.add_argument(
        "--xi", type=command.positive, help="ξ, length of the step that finds the direction"
    )
    method.add_argument(
        "--epsilon", type=command.non_negative, help="ε, length of the perturbation of a crop"
    )
    method.add_argument(
        "--separation", type=command.non_negative, help="w, weight of the class separation"
    )
    method.add_argument(
        "--prototypes", type=command.positive_int, help="most prototypes of a class; at least 2"
    )
    args = options.parse(parser, DEFAULTS, argv)
    if args.prototypes < 2:
        raise UserError(
            f"--prototypes {args.prototypes}: a class needs at least 2; --separation 0 trains "
            "without them"
        )
    if released(args):
        options.refuse_without_effect(args, ("rampup_share",), "--preset released")
    if not args.separation:
        options.refuse_without_effect(args, ("prototypes",), "--separation 0")
    if not args.consistency:
        unlabelled = ("rampup_share", "xi", "epsilon", "separation", "prototypes")
        options.refuse_without_effect(args, unlabelled, "--consistency 0")
    return args


# -------------------------------------------------------------------------------- the training loop
# To fork: `last=True` makes a network return its decoder's last features too.


def main(argv=None):
    args = parse(argv)
    job = run.Run(args, __file__)
    data = two_stream_loader(args, job.device)

    network = network_class(args.net)
    shape = (data.in_channels, data.num_classes, args.n_filters, args.normalization)
    net = job.to_device(network(*shape, last=True))
    net_heads = Heads(net.heads[0].in_channels, data.num_classes).to(job.device)
    model = job.parallel(net)
    heads = job.parallel(net_heads, in_parts=True, fixed_shapes=False)
    prototypes = Prototypes(args.prototypes, highest=not released(args))
    parameters = [*net.parameters(), *net_heads.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=args.base_lr, momentum=0.9, weight_decay=1e-4)
    job.resume(net=net, heads=net_heads, prototypes=prototypes, optimizer=optimizer)
    weight_of = consistency_weight_released if released(args) else consistency_weight

    def logits_of(image):
        z, _ = model(image)
        return z.float()

    for step, batch in job.steps(data, args.max_iterations):
        n = batch.labeled_bs
        lr = step_decay(args.base_lr, step, args.lr_step)
        set_lr(optimizer, lr)
        weight = weight_of(step, args)

        z, features = model(batch.image)
        z = z.float()
        features = features.float()
        loss_cl_l = loss_cl_u = torch.zeros((), device=job.device)
        if args.separation:
            prototypes.replace(net_heads, features[:n], z[:n], batch.label)
            pseudo = z[n:].argmax(1)
            of_labelled, of_unlabelled = heads(features[:n], batch.label, features[n:], pseudo)
            loss_cl_l = separation_loss(in_float32(of_labelled), prototypes.of)
            loss_cl_u = separation_loss(in_float32(of_unlabelled), prototypes.of)
        with statistics_kept([net]):
            loss_lds = smoothness_loss(logits_of, batch.image, z, args.xi, args.epsilon)
        loss, terms = objective(
            z, batch.label, loss_lds, loss_cl_l, loss_cl_u, weight, args.separation
        )

        job.optimize(loss, optimizer)
        job.log(step, loss=loss, **terms, consistency_weight=weight, lr=lr)
        job.checkpoint(step)


if __name__ == "__main__":
    command.run(main)
