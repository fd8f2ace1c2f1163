"""Temporal ensembling (Laine & Aila, ICLR 2017), for segmentation.

The network is pulled to the mean of its own past predictions, which is kept for each voxel of each
training image.

    L = L_sup + λ(t) L_con
    L_sup = (CE(p, Y) + Dice(p, Y)) / 2    on the labelled crops
    L_con = mean (p - z)²                  on all crops, over visited voxels and classes
    z     = Z / (1 - b^n)                  target, without gradient
    Z     ← b Z + (1 - b) p                after the step, for the voxels that it has shown; at
                                           first 0

    p      softmax of the network for x + ε
    ε      noise clamp(N(0, 0.1²), ±0.2) of each voxel
    Y      label
    Z, n   sum over the past predictions of a voxel and their number; it is visited where n > 0
    b      decay of the past, 0.6
    Dice   loss 1 - 2 Σ p y / (Σ p² + Σ y²), mean over all classes with the background
    λ(t)   weight w exp(-5 (1 - t/t_max)²) of the consistency, w = 0.1

    python code/train_tempens.py --labelnum 16 --gpu 0
    python code/test_LA.py --method tempens --labelnum 16 --nms 0
    python code/train_tempens.py --dataset Pancreas2d --labelnum 32 --gpu 0

The paper is about the classification of images; CoraNet compares with it on slices, and gives no
setting. From the original: L_con, Z, b. There an image is seen whole once an epoch, so n counts
epochs; w is 30 M/N or 100 M/N with M of N images labelled, reached after 80 of 300 epochs, after a
first epoch of 0; the noise has a standard deviation of 0.15; the optimizer is Adam 3e-3. Customs of
the field, from UA-MT: ε; SGD 0.01, momentum 0.9, weight decay 1e-4, ×0.1 every 2500 of 6000
iterations; from SSL4MIS: L_sup, and on BraTS2019 and ACDC 30 000 iterations with the rate
0.01 (1 - t/t_max)^0.9.

Ours, since crops are random: Z and n stand in the space of the images. A crop is read and written
through the voxels that it shows; where several of its pixels show one, as in enlarged slices, their
mean is written. Z is in float16 and leaves out the background, which is the rest to 1; n is a byte.
Each process keeps both in RAM, and the checkpoint holds them: with C classes 2 (C - 1) + 1 bytes
for each voxel of the training cases; on LA 3 bytes, 0.6 GB in all. The log says the size.
"""

import math

import torch

import _root  # noqa: F401
from dataloaders.two_stream import two_stream_loader
from networks import network_class
from utils import command
from utils.distributed import collect
from utils.errors import UserError
from utils.losses import masked_mean, supervised_loss
from utils.perturbations import noisy
from utils.schedules import consistency_weight, learning_rate, set_lr
from utils.training import options, run
from utils.training.options import rule

MOST_VISITS = 255  # that a byte can count


def in_ssl4mis(args):
    return args.dataset in ("BraTS2019", "ACDC")


DEFAULTS = [  # where several rules hold, the last one wins
    rule("ours", consistency=0.1, rampup_share=1.0),
    rule("released code: Laine & Aila", ensemble_decay=0.6),
    rule(
        "custom of the field: UA-MT",
        base_lr=0.01,
        decay="step",
        lr_step=2500,
        max_iterations=6000,
    ),
    rule("custom of the field: SSL4MIS", in_ssl4mis, decay="poly", max_iterations=30000),
]
TEST_FLAGS = {"*": "--nms 0"}  # as for the field's mean teachers

# ------------------------------------------------------------------------------------- the losses
# To fork: compare by another divergence in `consistency_loss`.


def consistency_loss(z, target, visited):
    """L_con: logits and targets `(B, C, *S)`, visited voxels bool `(B, *S)`; 0 where none is."""
    return masked_mean((z.softmax(1) - target).square().mean(1), visited)


def objective(z, target, visited, label, weight):
    """The loss of a step.

    Args:
        z: logits, float32 `(B, C, *S)`, labelled crops first.
        target: of the ensemble, float32 `(B, C, *S)`; None where λ(t) is 0.
        visited: where there is a target, bool `(B, *S)`; None where λ(t) is 0.
        label: int64 `(B_l, *S)`.
        weight: λ(t).

    Returns:
        The loss, and its terms by name.
    """
    loss_sup = supervised_loss(z[: len(label)], label, background=True)
    if not weight:
        return loss_sup, {"loss_sup": loss_sup}
    loss_con = consistency_loss(z, target, visited)
    terms = {"loss_sup": loss_sup, "loss_con": loss_con, "visited": visited.float().mean()}
    return loss_sup + weight * loss_con, terms


# ------------------------------------------------------------------------------------ the ensemble
# To fork: keep another mean of the past in `write`.


class Ensemble:
    """The past predictions for each voxel of the cases that have been seen, on the CPU.

    A case has one place for each of its voxels; place 0 stands for all that is outside of it, and
    is never visited.

    Attributes:
        sums: case to Z of the foreground classes, `(C - 1, places)`.
        visits: case to n, uint8 `(places,)`.

    Args:
        data: the loader whose crops are read and written.
        decay: b.
        dtype: of Z.
    """

    def __init__(self, data, decay, dtype=torch.float16):
        self.data = data
        self.decay = decay
        self.dtype = dtype
        self.wide = torch.promote_types(dtype, torch.float32)
        self.sums = {}
        self.visits = {}
        self._numbers = torch.empty(0)

    def places(self, crops):
        """The place in its case that each voxel of the crops shows, a list of int32 `(*S)`."""
        shapes = {crop.case: self.data.volumes.shapes[crop.case] for crop in crops}
        most = max(map(math.prod, shapes.values()))
        if len(self._numbers) < most:
            self._numbers = torch.arange(1, 1 + most, dtype=torch.int32)
        numbers = {
            case: self._numbers[: math.prod(shape)].view(*shape) for case, shape in shapes.items()
        }
        return [own.clone() for own in self.data.cut(numbers, crops)]

    def read(self, crops, places):
        """The targets `(B, C, *S)` of crops, and which of their voxels are visited, `(B, *S)`."""
        n = torch.arange(1 + MOST_VISITS, dtype=self.wide)
        corrections = (1 - self.decay**n).where(n > 0, 1)
        targets = []
        counts = []
        for crop, shown in zip(crops, places, strict=True):
            sums, visits = self._of(crop.case)
            n = visits.take(shown.long())
            z = sums.index_select(1, shown.flatten()).view(-1, *shown.shape)
            z = z / corrections.take(n.long())
            targets.append(torch.cat((1 - z.sum(0, keepdim=True), z)))
            counts.append(n)
        device = self.data.device
        return torch.stack(targets).to(device), torch.stack(counts).to(device) > 0

    def write(self, case, places, p):
        """Add the foreground's probabilities `(C - 1, *S)` at these places `S` of a case."""
        sums, visits = self._of(case)
        places, p = places.flatten().long(), p.flatten(1).to(self.wide)
        if len(self.data.patch) == 2:  # a crop of a volume shows each voxel once
            places, p = once_each(places, p, len(visits))
        z, n = sums.index_select(1, places), visits.index_select(0, places)
        sums.index_copy_(1, places, (self.decay * z + (1 - self.decay) * p).to(self.dtype))
        visits.index_copy_(0, places, n + (n < MOST_VISITS))
        sums[:, 0] = visits[0] = 0

    def size(self):
        """Bytes when all cases have been seen."""
        cases = [case for stream in self.data.cases.values() for case in stream]
        voxels = sum(math.prod(self.data.volumes.shapes[case]) for case in cases)
        return voxels * ((self.data.num_classes - 1) * self.dtype.itemsize + 1)

    def _of(self, case):
        if case not in self.sums:
            places = 1 + math.prod(self.data.volumes.shapes[case])
            self.sums[case] = torch.zeros((self.data.num_classes - 1, places), dtype=self.dtype)
            self.visits[case] = torch.zeros(places, dtype=torch.uint8)
        return self.sums[case], self.visits[case]

    def state_dict(self):
        return {"sums": self.sums, "visits": self.visits}

    def load_state_dict(self, state):
        self.sums = state["sums"]
        self.visits = state["visits"]


def once_each(places, p, count):
    """Each of the places once, in order, with the mean of its probabilities.

    Args:
        places: int64 `(voxels,)`.
        p: `(C - 1, voxels)`.
        count: number of places in the case.
    """
    times = torch.bincount(places, minlength=count)
    total = p.new_zeros(len(p), count).index_add_(1, places, p)
    shown = times.nonzero()[:, 0]
    return shown, total[:, shown] / times[shown]


def of_whole_step(parts):
    """All samples of a step, in the order of one process that sees it in one part.

    Args:
        parts: for each part that this process saw of the step, its labelled samples and its
            unlabelled ones, two lists.
    """
    ordered = []
    for samples in zip(*parts, strict=True):
        for of_process in collect(list(zip(*samples, strict=True))):
            ordered += of_process
    return ordered


# ------------------------------------------------------------------------------------ the options


def parse(argv=None):
    parser = options.parser(__doc__, __file__)
    method = parser.add_argument_group("method")
    options.add_iterations(method, decay="either")
    options.add_consistency(method)
    method.add_argument(
        "--ensemble_decay",
        type=command.fraction,
        help="b, decay of the past predictions, up to 0.95; 0 keeps only the last one",
    )
    args = options.parse(parser, DEFAULTS, argv)
    if args.ensemble_decay > 0.95:
        raise UserError(
            f"--ensemble_decay {args.ensemble_decay}: visits are counted up to {MOST_VISITS}, "
            "which is enough for up to 0.95"
        )
    if not args.consistency:
        of_consistency = ("rampup_share", "ensemble_decay")
        options.refuse_without_effect(args, of_consistency, "--consistency 0")
    return args


# -------------------------------------------------------------------------------- the training loop


def main(argv=None):
    args = parse(argv)
    job = run.Run(args, __file__)
    data = two_stream_loader(args, job.device)

    network = network_class(args.net)
    shape = (data.in_channels, data.num_classes, args.n_filters, args.normalization)
    net = job.to_device(network(*shape))
    model = job.parallel(net)
    optimizer = torch.optim.SGD(net.parameters(), lr=args.base_lr, momentum=0.9, weight_decay=1e-4)
    ensemble = Ensemble(data, args.ensemble_decay)
    job.resume(net=net, optimizer=optimizer, ensemble=ensemble)
    if args.consistency:
        job.logger.info(f"the ensemble takes up to {ensemble.size() / 1e9:.2g} GB of RAM")

    for step, batch in job.steps(data, args.max_iterations):
        lr = learning_rate(step, args)
        set_lr(optimizer, lr)
        weight = consistency_weight(step, args)

        target = visited = None
        if weight:
            places = ensemble.places(batch.crops)
            target, visited = ensemble.read(batch.crops, places)
        z = model(noisy(batch.image)).float()
        loss, terms = objective(z, target, visited, batch.label, weight)

        job.optimize(loss, optimizer)
        if batch.first_part:
            parts = []
        if weight:
            foreground = z.detach().softmax(1)[:, 1:]
            p = [own.clone() for own in foreground.to("cpu", torch.float16)]
            cases = [crop.case for crop in batch.crops]
            samples = list(zip(cases, places, p, strict=True))
            parts.append((samples[: batch.labeled_bs], samples[batch.labeled_bs :]))
        if batch.last_part:  # with --accumulate: once a step, after the optimizer's
            for sample in of_whole_step(parts):
                ensemble.write(*sample)
        job.log(step, loss=loss, **terms, consistency_weight=weight, lr=lr)
        job.checkpoint(step)


if __name__ == "__main__":
    command.run(main)
