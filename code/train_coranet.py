"""CoraNet, the conservative-radical network (Shi et al., IEEE TMI 41(3), 2022).

    pre-training      L = L_crm                                on L
    self-training     L = L_crm + L_csn + L_cnt                on L, U and U

    L_crm = CE(D) + CE_con(D_con) + CE_rad(D_rad)     a false object costs α in CE_con, a missed one costs α in CE_rad
    L_csn = CE(D, pseudo-label)                       on the certain voxels: D_con and D_rad predict the same class
    L_cnt = MSE(softmax(D), softmax(D'))              on all others; D' is the mean teacher's

    python code/train_coranet.py --labelnum 16 --gpu 0
    python code/test_LA.py --method coranet --labelnum 16

One V-Net with instance norm and three branches; Adam 1e-3, betas (0.5, 0.999), 4 + 4 crops a step. Pseudo-labels
(from D) and certain voxels of the whole unlabelled volumes are found anew every 5 epochs. Tested: D of the student.

`--preset released` is the released code where it differs from the paper: 8 + 8 crops; an epoch is five passes over the
labelled cases, 60 of them pre-training; L_crm and L_csn are means of CE, Dice, CE_con and CE_rad, the class weights of
L_csn swapped and its sums divided by the number of voxels; L_cnt sums over classes, is averaged over the branches and
weighs 0.1 r(epoch, 40); L_csn + L_cnt weighs 0.5; the teacher's decay is constant. Kept from the paper even then: the
V-Net of the other methods (theirs has no dropout, one 3×3×3 convolution a branch, no ninth stage), Dice of the
foreground with squares, and crops and pseudo-labels of whole unlabelled volumes instead of their centre.

The paper has no LA: crops are turned as the LA protocol does (`--augment crop` for the paper's plain crops), and the
windows that relabel a volume step by half a patch. Only cases that are seen before the next relabelling are relabelled.
"""

import copy

import torch
import torch.nn.functional as F

import _root  # noqa: F401
from dataloaders.two_stream import two_stream_loader
from networks.vnet import VNet
from utils import run
from utils.checkpoint import CompressedVolumes
from utils.errors import UserError
from utils.inference import sliding_window
from utils.losses import dice_loss, masked_mean
from utils.schedules import ema_decay, gaussian_rampup, update_teacher

PRESETS = {
    "paper": {"pretrain_epochs": 30, "passes": 1, "labeled_bs": 4, "unlabeled_bs": 4},
    "released": {"pretrain_epochs": 60, "passes": 5, "labeled_bs": 8, "unlabeled_bs": 8},
}
MODES = {  # Table IV: L_csn?, L_cnt?, on the certain and uncertain voxels (else on all)?
    "seg": (False, False, False),
    "seg+st": (True, False, False),
    "seg+st_mask": (True, False, True),
    "seg+mt": (False, True, False),
    "seg+mt_mask": (False, True, True),
    "full": (True, True, True),
}
CERTAIN = 0x80  # this bit of a pseudo-label's byte; the other seven are its class


@torch.no_grad()
def relabel(net, data, steps, stride, job):
    """Pseudo-labels and certain voxels, uint8 `(X, Y, Z)`, of the unlabelled cases that `steps` (a range) will show."""
    classes, labels = net.config["num_classes"], {}

    def branches(x):
        return torch.cat([logits.float().softmax(1) for logits in net(x)], dim=1)

    options = {"activation": None, "device": job.device, "precision": job.precision}
    net.eval()
    for case in sorted({case for step in steps for case in data.samples(step)[data.labeled_bs :]}):
        job.leave_if_asked(steps.start - 1)
        prob = sliding_window(branches, data.volumes.images[case], data.patch, stride, 3 * classes, **options)
        pseudo, con, rad = (p.argmax(0) for p in prob.split(classes))
        labels[case] = (pseudo + CERTAIN * (con == rad)).to(torch.uint8).cpu()
    net.train()
    return labels


def masked_dice_loss(prob, label, mask):
    """Mean Dice loss of the foreground classes over the voxels of `mask`: prob `(B, C, *S)`, the others `(B, *S)`."""
    classes = range(1, prob.shape[1])
    return sum(dice_loss(prob[:, c] * mask, mask & (label == c)) for c in classes) / len(classes)


def objective(outputs, label, args, pseudo=None, certain=None, targets=None, epoch=0):
    """The whole loss of a step.

    Args:
        outputs: float32 logits `(B, C, X, Y, Z)` of D, D_con and D_rad, labelled crops first.
        label: int64 `(B_l, X, Y, Z)`.
        args: `alpha`, `train` and `preset`.
        pseudo, certain: pseudo-labels int64 and certain voxels bool `(B_u, X, Y, Z)`; None in pre-training.
        targets: logits of the teacher's branches for the unlabelled crops; None without L_cnt.
        epoch: of self-training, from 0.

    Returns:
        The loss, and its terms by name.
    """
    n, classes = label.shape[0], outputs[0].shape[1]
    released = args.preset == "released"
    self_training, mean_teaching, masked = MODES[args.train]
    con_weight = outputs[0].new_tensor([args.alpha] + [1.0] * (classes - 1))
    rad_weight = outputs[0].new_tensor([1.0] + [args.alpha] * (classes - 1))

    normal, con, rad = (logits[:n] for logits in outputs)
    losses = [
        F.cross_entropy(normal, label),
        F.cross_entropy(con, label, con_weight),
        F.cross_entropy(rad, label, rad_weight),
    ]
    if released:
        losses.append(masked_dice_loss(normal.softmax(1), label, torch.ones_like(label, dtype=torch.bool)))
    loss = sum(losses) / (4 if released else 1)
    terms = {"loss_crm": loss}
    if outputs[0].shape[0] == n:
        return loss, terms

    normal, con, rad = outputs = [logits[n:] for logits in outputs]
    everywhere = torch.ones_like(normal[:, 0], dtype=torch.bool)
    if self_training:
        where = certain if masked else everywhere
        loss_csn = masked_mean(F.cross_entropy(normal, pseudo, reduction="none"), where)
        if released:
            for logits, swapped in ((con, rad_weight), (rad, con_weight)):
                loss_csn = loss_csn + masked_mean(F.cross_entropy(logits, pseudo, swapped, reduction="none"), where)
            loss_csn = (loss_csn + masked_dice_loss(normal.softmax(1), pseudo, where)) / 4
        loss = loss + (0.5 if released else 1.0) * loss_csn
        terms["loss_csn"] = loss_csn
    if mean_teaching:
        where = ~certain if masked else everywhere
        squares = [(s.softmax(1) - t.softmax(1)).square() for s, t in zip(outputs, targets, strict=True)]
        if released:
            loss_cnt = sum(masked_mean(square.sum(1), where) for square in squares) / 3
            weight = 0.5 * 0.1 * gaussian_rampup(epoch, 40)
        else:
            loss_cnt, weight = masked_mean(squares[0].mean(1), where), 1.0
        loss = loss + weight * loss_cnt
        terms |= {"loss_cnt": loss_cnt, "consistency_weight": weight}
    return loss, terms


def main():
    parser = run.parser(__doc__, base_lr=1e-3, normalization="instancenorm")
    method = parser.add_argument_group("method")
    method.add_argument("--pretrain_epochs", type=run.non_negative_int, help="epochs of L_crm alone")
    method.add_argument("--selftrain_epochs", type=run.non_negative_int, default=200, help="with unlabelled data")
    method.add_argument("--passes", type=run.positive_int, help="passes over the labelled cases that make an epoch")
    method.add_argument("--alpha", type=run.positive, default=5.0, help="cost ratio; higher: more is uncertain")
    method.add_argument("--train", choices=list(MODES), default="full", help="rows of Table IV: st is L_csn, mt L_cnt")
    method.add_argument("--relabel_epochs", type=run.positive_int, default=5, help="epochs between relabellings")
    method.add_argument("--relabel_stride", type=run.positive_int, nargs=3, help="its windows' (default: half a patch)")
    method.add_argument("--ema_decay", type=run.fraction, default=0.99, help="of the teacher, at most")
    args = run.parse(parser, PRESETS)
    args.relabel_stride = args.relabel_stride or [extent // 2 for extent in args.patch]
    if any(stride > extent for stride, extent in zip(args.relabel_stride, args.patch, strict=True)):
        raise UserError(f"--relabel_stride {args.relabel_stride} leaves gaps between windows of {args.patch}")
    self_training, mean_teaching, masked = MODES[args.train]
    job = run.Run(args, __file__)

    data = two_stream_loader(args, job.device)
    epoch_steps = args.passes * data.steps_per_epoch
    pretraining, between = args.pretrain_epochs * epoch_steps, args.relabel_epochs * epoch_steps
    last = pretraining + args.selftrain_epochs * epoch_steps

    net = job.to_device(VNet(1, data.num_classes, args.n_filters, args.normalization, branches=3))
    teacher = copy.deepcopy(net).requires_grad_(False)
    student, mean_teacher = job.parallel(net), job.parallel(teacher)
    optimizer = torch.optim.Adam(net.parameters(), lr=args.base_lr, betas=(0.5, 0.999))
    pseudo_labels = CompressedVolumes()
    job.resume(net=net, teacher=teacher, optimizer=optimizer, pseudo_labels=pseudo_labels)

    for step, batch in job.steps(data, last):
        t, n = step - 1 - pretraining, batch.labeled_bs  # t: iteration of self-training, from 0
        pseudo = certain = targets = None
        if t < 0 or args.train == "seg":
            outputs = student(batch.image[:n])
        else:
            if (self_training or masked) and t % between == 0:
                until = min(step + between, last + 1)
                pseudo_labels.replace(relabel(net, data, range(step, until), args.relabel_stride, job))
            if self_training or masked:
                code = data.gather(pseudo_labels, batch.crops[n:])
                pseudo, certain = (code % CERTAIN).long(), code >= CERTAIN
            if mean_teaching:  # a copy of the pre-trained student at t = 0
                constant = args.preset == "released" and t > 0
                update_teacher(teacher, net, args.ema_decay if constant else ema_decay(t, args.ema_decay))
                with torch.no_grad():
                    targets = [logits.float() for logits in mean_teacher(batch.image[n:])]
            outputs = student(batch.image)

        outputs = [logits.float() for logits in outputs]
        loss, terms = objective(outputs, batch.label, args, pseudo, certain, targets, max(t, 0) // epoch_steps)
        if certain is not None:
            terms["certain"] = certain.float().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        job.log(step, loss=loss, **terms, lr=args.base_lr)
        job.checkpoint(step)


if __name__ == "__main__":
    run.main(main)
