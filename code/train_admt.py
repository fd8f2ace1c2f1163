"""AD-MT, alternate diverse teaching (Zhao et al., ECCV 2024).

A student learns from two mean teachers, which follow it in turns of random length, each on its own
kind of strong view. Where the teachers contradict each other, the student has a vote.

    L = L_sup + λ(t) L_u
    L_sup = (CE(p, Y) + Dice(p, Y)) / 2             on the labelled crops
    L_u   = CE(p_s, Ŷ), mean over the voxels where c ≥ τ; on slices Dice(p_s, Ŷ) over them;
            without any it is 0                     on the strong views of the unlabelled crops

    p, p_s    softmax of the student, and its softmax on the strong view
    p̄         Σ_k e^(-H_k) p_k / Σ_k e^(-H_k) of the teachers' p₁, p₂ on the weak view
    H_k       entropy -Σ p_k log₂ p_k of a voxel
    Ŷ, c      the class of the largest p̄, and that p̄; but where the classes of p₁ and p₂ differ
              and the student is more confident of another class than Ŷ, its class and confidence
    λ(t)      2 r(t) with r(t) = exp(-5 (1 - t/t_r)²) up to t_r = 6000 iterations, on slices 7500
    Dice      loss 1 - 2 Σ a b / (Σ a² + Σ b²), mean over all classes, the background among them
    weak      the crop as the loader gives it (augmented)
    strong    in the first teacher's turns the weak view with other intensities; in the second's
              CutMix of the weak views: inside a box another of the unlabelled crops. Ŷ and c are
              mixed with the same box

    A turn takes 1 to `--longest_turn` steps. In it only its teacher is updated, weights and running
    statistics: θ' = a θ' + (1 - a) θ with a = 0 at first, then min(1 - 1/n, 0.99). It predicts in
    training mode, the other teacher in evaluation mode. The three networks start apart.

    python code/train_admt.py --labelnum 8 --gpu 0
    python code/test_LA.py --method admt --labelnum 8
    python code/train_admt.py --dataset ACDC --labelnum 7 --gpu 0

A step has one forward pass of each teacher over the weak views, and one of the student over
labelled crops, weak views (for its vote only) and strong views together. A partner of CutMix is
drawn from the unlabelled crops of the step, or of the part of it that goes through at once; of two
crops each is its own half of the time, as in the released code.

Setting of the released code: V-Net, on slices U-Net; SGD with learning rate 0.01, momentum 0.9,
weight decay 1e-4, and (1 - t/t_max)^0.9; on LA and Pancreas-CT 15 000 iterations, 2 labelled and 2
unlabelled crops, τ = 0.8; on ACDC 30 000, 12 and 12 slices, τ = 0.95. Turns of at most 19 (LA), 14
(Pancreas-CT) and 50 steps (ACDC). Intensities change with probability 0.8; then comes noise, on
slices blur, with 0.2. The student is tested.

Of the paper we could read the abstract and the overview figure only; its module for conflicts has
no student, which is `--vote none`. The released code mixes Ŷ, c and the conflicts, but not the
student's vote, which then stands beside another crop's conflicts (`--vote unmixed`). Ours: the vote
is mixed too (`--vote mixed`, the default); λ(t) grows smoothly with the share of the training, the
code's in steps of 150 iterations; CE without a confident voxel is 0, the code's NaN.
`--ensemble mean` weighs both teachers alike, as the code did until January 2024 by mistake; its
published logs are older.
"""

import math

import torch

import _root  # noqa: F401
from dataloaders.two_stream import two_stream_loader
from networks import network_class
from utils import command
from utils.errors import UserError
from utils.losses import class_dice_loss, cross_entropy, masked_mean, supervised_loss
from utils.ops import splice
from utils.perturbations import blurred, boxes_of_beta, jittered, noisier, scaled_and_shifted
from utils.schedules import consistency_weight, ema_decay, poly_decay, set_lr, update_teacher
from utils.training import options, run
from utils.training.options import rule
from utils.uncertainty import entropy


def in_2d(args):
    return len(args.patch) == 2


def in_3d(args):
    return len(args.patch) == 3


def on(*datasets):
    """The condition of a rule for these data sets."""
    return lambda args: args.dataset in datasets


ALWAYS = {"consistency": 2.0, "ema_decay": 0.99, "ensemble": "entropy", "jitter": 0.8, "beta": 4.0}
VOLUMES = {
    "max_iterations": 15000,
    "rampup_share": 0.4,
    "loss_u": "ce",
    "threshold": 0.8,
    "longest_turn": 19,
    "copy_steps": 80,
    "noise": 0.2,
}
SLICES = {
    "max_iterations": 30000,
    "rampup_share": 0.25,
    "loss_u": "dice",
    "threshold": 0.95,
    "longest_turn": 50,
    "copy_steps": 100,
    "blur": 0.2,
}
DEFAULTS = [  # where several rules hold, the last one wins
    rule("ours", vote="mixed", **ALWAYS),
    rule("ours", in_3d, **VOLUMES),
    rule("ours", in_2d, **SLICES),
    rule("released code", on("LA", "Pancreas", "ACDC"), base_lr=0.01, **ALWAYS),
    rule("released code", on("LA", "Pancreas"), labeled_bs=2, unlabeled_bs=2, **VOLUMES),
    rule("released code", on("Pancreas"), longest_turn=14),
    rule("released code", on("ACDC"), labeled_bs=12, unlabeled_bs=12, **SLICES),
]
# the released code keeps the largest component in 3-D
TEST_FLAGS = {"LA": "--nms 1", "Pancreas": "--nms 1"}

# ------------------------------------------------------------------------------------- the losses
# To fork: another way to settle conflicts belongs in `settle`, other weights in `ensemble`.


def unlabelled_loss(z_strong, pseudo, confidence, args):
    """L_u of the strong views: logits `(B_u, C, *S)`, Ŷ and c `(B_u, *S)`.

    `args` holds `threshold` and `loss_u`.
    """
    confident = confidence >= args.threshold
    if args.loss_u == "dice":
        return class_dice_loss(z_strong.softmax(1), pseudo, confident)
    return masked_mean(cross_entropy(z_strong, pseudo, reduction="none"), confident)


def objective(z, label, z_strong, pseudo, confidence, weight, args):
    """The loss of a step.

    Args:
        z: the student's logits of the labelled crops, `(B_l, C, *S)`.
        label: int64 `(B_l, *S)`.
        z_strong: its logits of the strong views, `(B_u, C, *S)`.
        pseudo, confidence: Ŷ and c of the strong views, `(B_u, *S)`.
        weight: λ(t).
        args: `threshold` and `loss_u`.

    Returns:
        The loss, and its terms by name.
    """
    loss_sup = supervised_loss(z, label, background=True)
    loss_u = unlabelled_loss(z_strong, pseudo, confidence, args)
    confident = (confidence >= args.threshold).float().mean()
    loss = loss_sup + weight * loss_u
    return loss, {"loss_sup": loss_sup, "loss_u": loss_u, "confident": confident}


# ------------------------------------------------------------------------------ the pseudo-labels


def most_likely(prob):
    """The class of the largest probability, and that probability: both `(B, *S)`."""
    confidence, label = prob.max(1)
    return label, confidence


def ensemble(p_1, p_2, kind="entropy"):
    """p̄ of the teachers' probabilities `(B, C, *S)`; `mean` weighs both alike."""
    if kind == "mean":
        return (p_1 + p_2) / 2
    bits = torch.stack((entropy(p_1), entropy(p_2))) / math.log(2)
    weight_1, weight_2 = (-bits).softmax(0).unsqueeze(2)
    return weight_1 * p_1 + weight_2 * p_2


def settle(pseudo, confidence, conflict, vote, vote_confidence):
    """Ŷ and c after the student's vote: it takes the voxels of a conflict in which it is more
    confident of another class. All `(B, *S)`.
    """
    takes = conflict & (vote != pseudo) & (vote_confidence > confidence)
    return torch.where(takes, vote, pseudo), torch.where(takes, vote_confidence, confidence)


@torch.no_grad()
def targets(z_1, z_2, z_student, mix, args):
    """Ŷ and c of the strong views.

    Args:
        z_1, z_2, z_student: logits of the teachers and the student on the weak views,
            `(B_u, C, *S)`.
        mix: the function that mixes values `(B_u, *S)` as the strong views were mixed.
        args: `vote` and `ensemble`.

    Returns:
        Ŷ int64 and c float32, both `(B_u, *S)`.
    """
    p_1, p_2 = z_1.softmax(1), z_2.softmax(1)
    pseudo, confidence = most_likely(ensemble(p_1, p_2, args.ensemble))
    pseudo, confidence = mix(pseudo), mix(confidence)
    if args.vote == "none":
        return pseudo, confidence
    conflict = mix(p_1.argmax(1) != p_2.argmax(1))
    vote, vote_confidence = most_likely(z_student.softmax(1))
    if args.vote == "mixed":
        vote, vote_confidence = mix(vote), mix(vote_confidence)
    return settle(pseudo, confidence, conflict, vote, vote_confidence)


# ---------------------------------------------------------------------- the turns and strong views


class Turns:
    """Which teacher's turn it is, 0 or 1, and how many steps of it are left.

    Args:
        longest: number of steps in the longest turn.
    """

    def __init__(self, longest):
        self.longest = longest
        self.teacher = 1
        self.left = 0

    def next(self, generator):
        """Go on to the next step; a new turn's length is drawn from the generator."""
        if self.left == 0:
            self.teacher = 1 - self.teacher
            self.left = int(torch.randint(1, self.longest + 1, (), generator=generator))
        self.left -= 1

    def state_dict(self):
        return {"teacher": self.teacher, "left": self.left}

    def load_state_dict(self, state):
        self.teacher = state["teacher"]
        self.left = state["left"]


def teacher_decay(step, args):
    """a of iteration `step`: 0 in the first `copy_steps`, then a true mean over the teacher's share
    of the steps, which is taken for one half, then `ema_decay`.
    """
    return ema_decay(max(step - 1 - args.copy_steps, 0) // 2, args.ema_decay)


def strong_intensities(image, args):
    """The strong view of the first teacher's turns, of images `(B, C, *S)`."""
    if in_2d(args):
        return blurred(jittered(image, args.jitter), args.blur)
    return noisier(scaled_and_shifted(image, args.jitter), args.noise)


def draw_mixture(image, args):
    """The function that mixes images or values of each voxel, for the second teacher's turns."""
    partner = torch.randperm(len(image)).to(image.device)
    boxes = boxes_of_beta(len(image), args.patch, args.beta).to(image.device)

    def mix(values):
        return splice(values, values[partner], boxes)

    return mix


def unmixed(values):
    return values


# ------------------------------------------------------------------------------------ the options


def parse(argv=None):
    parser = options.parser(__doc__, __file__)
    method = parser.add_argument_group("method")
    options.add_iterations(method, decay="poly")
    options.add_consistency(method)
    options.add_teacher(method)
    method.add_argument(
        "--copy_steps",
        type=command.non_negative_int,
        help="number of steps at the start in which a teacher becomes a copy of the student",
    )
    method.add_argument(
        "--longest_turn", type=command.positive_int, help="largest number of steps in a turn"
    )
    method.add_argument(
        "--threshold",
        type=command.fraction,
        help="τ, smallest confidence of a voxel that is learnt from",
    )
    method.add_argument("--loss_u", choices=("ce", "dice"), help="loss on unlabelled crops")
    method.add_argument(
        "--ensemble",
        choices=("entropy", "mean"),
        help="weights of the teachers: the surer one has more, or both have the same",
    )
    method.add_argument(
        "--vote",
        choices=("mixed", "unmixed", "none"),
        help="the student's vote on conflicts: mixed by CutMix as they are; unmixed, as in the "
        "released code; none, as in the paper's figure",
    )
    method.add_argument(
        "--jitter",
        type=command.fraction,
        help="probability of other intensities in a turn of the first teacher",
    )
    method.add_argument(
        "--blur", type=command.fraction, help="probability of blur there, of a slice"
    )
    method.add_argument(
        "--noise", type=command.fraction, help="probability of noise there, of a volume"
    )
    method.add_argument(
        "--beta",
        type=command.positive,
        help="β of the distribution of the box's size; raise it for more equal sizes",
    )
    args = options.parse(parser, DEFAULTS, argv)
    if in_2d(args):
        options.refuse_without_effect(args, ("noise",), "slices")
    else:
        options.refuse_without_effect(args, ("blur",), "volumes")
    if not args.consistency:
        of_teachers = ("ema_decay", "copy_steps", "threshold", "loss_u", "ensemble", "vote")
        options.refuse_without_effect(args, ("rampup_share", *of_teachers), "--consistency 0")
    return args


def check_partners(args, shares):
    """Insist on crops to mix.

    Args:
        args: `unlabeled_bs`.
        shares: parts of a step, over all processes and all parts of `--accumulate`.

    Raises:
        UserError: a share has one unlabelled crop, which would be its own partner.
    """
    if args.unlabeled_bs // shares < 2:
        raise UserError(
            f"CutMix mixes unlabelled crops: --unlabeled_bs must be at least {2 * shares}"
        )


# -------------------------------------------------------------------------------- the training loop
# To fork: for a third teacher add it to `teachers` and to `Turns`, and give it a strong view.


def main(argv=None):
    args = parse(argv)
    job = run.Run(args, __file__)
    check_partners(args, job.shares)
    data = two_stream_loader(args, job.device)

    network = network_class(args.net)
    shape = (data.in_channels, data.num_classes, args.n_filters, args.normalization)
    net = job.to_device(network(*shape))
    net_teachers = [job.to_device(network(*shape)).requires_grad_(False) for _ in range(2)]
    model = job.parallel(net)
    teachers = [job.parallel(net_teacher) for net_teacher in net_teachers]
    optimizer = torch.optim.SGD(net.parameters(), lr=args.base_lr, momentum=0.9, weight_decay=1e-4)
    turns = Turns(args.longest_turn)
    job.resume(
        net=net,
        teacher_1=net_teachers[0],
        teacher_2=net_teachers[1],
        optimizer=optimizer,
        turns=turns,
    )

    for step, batch in job.steps(data, args.max_iterations):
        n = batch.labeled_bs
        lr = poly_decay(args.base_lr, step, args.max_iterations)
        set_lr(optimizer, lr)
        if batch.first_part:
            turns.next(job.generator)
        for k, net_teacher in enumerate(net_teachers):
            net_teacher.train(k == turns.teacher)

        weak = batch.image[n:]
        with torch.no_grad():
            z_1, z_2 = (teacher(weak).float() for teacher in teachers)
        if turns.teacher == 0:
            mix = unmixed
            strong = strong_intensities(weak, args)
        else:
            mix = draw_mixture(weak, args)
            strong = mix(weak)
        z = model(torch.cat((batch.image, strong))).float()
        z_labelled, z_weak, z_strong = z.split((n, len(weak), len(weak)))

        pseudo, confidence = targets(z_1, z_2, z_weak, mix, args)
        weight = consistency_weight(step, args)
        loss, terms = objective(z_labelled, batch.label, z_strong, pseudo, confidence, weight, args)

        job.optimize(loss, optimizer)
        if batch.last_part:
            decay = teacher_decay(step, args)
            update_teacher(net_teachers[turns.teacher], net, decay, buffers=True)
        terms["teacher"] = turns.teacher + 1
        job.log(step, loss=loss, **terms, consistency_weight=weight, lr=lr)
        job.checkpoint(step)


if __name__ == "__main__":
    command.run(main)
