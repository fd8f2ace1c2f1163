"""CoraNet, the conservative-radical network (Shi et al., IEEE TMI 41(3), 2022).

    pre-training      L = L_crm                                on L
    self-training     L = L_crm + L_csn + L_cnt                on L, U and U

    L_crm = CE(D) + CE_con(D_con) + CE_rad(D_rad)     a false object costs α in CE_con, a missed one costs α in CE_rad
    L_csn = CE(D, pseudo-label)                       on the certain voxels: D_con and D_rad predict the same class
    L_cnt = |softmax(D) - softmax(D')|²               on all others; D' is the mean teacher's

    python code/train_coranet.py --labelnum 16 --gpu 0
    python code/test_LA.py --method coranet --labelnum 16

One V-Net with instance norm and three branches; Adam 1e-3, betas (0.5, 0.999), 4 + 4 crops a step. Pseudo-labels
(from D) and certain voxels of the whole unlabelled volumes are found anew every 5 epochs. Tested: D of the student.

`--preset released` is the released code where it differs from the paper: L_crm and L_csn are means of CE, Dice,
CE_con and CE_rad over D and the branches, the class weights of L_csn swapped; L_cnt is averaged over the branches and
weighs 0.1 r(epoch, 40); L_csn + L_cnt weighs 0.5; pre-training lasts 60 epochs, not 30.

The paper has no LA: crops are turned as the LA protocol does (`--augment crop` for the paper's plain crops), and the
windows that relabel a volume step by half a patch. Only cases whose crops come before the next relabelling are
relabelled, which saves time and changes no number.
"""

import copy
import zlib

import torch
import torch.nn.functional as F

import _root  # noqa: F401
from dataloaders.two_stream import two_stream_loader
from networks.vnet import VNet
from utils import run
from utils.inference import sliding_window
from utils.losses import dice_loss, masked_mean
from utils.schedules import ema_decay, gaussian_rampup, update_teacher

PRESETS = {"paper": {"pretrain_epochs": 30}, "released": {"pretrain_epochs": 60}}
CERTAIN = 0x80  # this bit of a pseudo-label's byte; the other seven are its class


class PseudoLabels(dict):
    """Case to uint8 `(X, Y, Z)`, class and `CERTAIN` bit of every voxel; a checkpoint holds them compressed."""

    def state_dict(self):
        packed = {case: bytearray(zlib.compress(volume.numpy(), 1)) for case, volume in self.items()}
        return {case: (torch.frombuffer(p, dtype=torch.uint8), self[case].shape) for case, p in packed.items()}

    def load_state_dict(self, state):
        raw = {case: bytearray(zlib.decompress(packed.numpy())) for case, (packed, _) in state.items()}
        self.update({case: torch.frombuffer(r, dtype=torch.uint8).view(state[case][1]) for case, r in raw.items()})


@torch.no_grad()
def relabel(net, data, steps, stride, job):
    """Pseudo-labels and certain voxels of the unlabelled cases that `steps` (a range) will show."""
    classes, labels = net.config["num_classes"], {}

    def branches(x):
        return torch.cat([logits.float().softmax(1) for logits in net(x)], dim=1)

    options = {"activation": "none", "device": job.device, "precision": job.precision}
    net.eval()
    for case in sorted({case for step in steps for case in data.samples(step)[data.labeled_bs :]}):
        job.breathe(steps.start)
        prob = sliding_window(branches, data.volumes.images[case], data.patch, stride, 3 * classes, **options)
        pseudo, con, rad = (p.argmax(0) for p in prob.split(classes))
        labels[case] = (pseudo + CERTAIN * (con == rad)).to(torch.uint8).cpu()
    net.train()
    return labels


def branch_losses(outputs, label, weights, mask=None, dice=False):
    """CE(D), CE_con(D_con), CE_rad(D_rad), and Dice(D) on request, over the voxels of `mask` (all by default).

    Args:
        outputs: logits `(B, C, X, Y, Z)` of as many branches as there are `weights`, D first.
        label: `(B, X, Y, Z)` int64.
        weights: class weights `(C,)` of each branch, None for equal ones; cross-entropy is their weighted mean.
    """
    mask = torch.ones_like(label, dtype=torch.bool) if mask is None else mask
    losses = []
    for logits, weight in zip(outputs, weights, strict=True):
        voxels = mask if weight is None else mask * weight[label]
        losses.append(masked_mean(F.cross_entropy(logits, label, reduction="none"), voxels))
    if dice:
        prob = outputs[0].softmax(1) * mask.unsqueeze(1)
        classes = range(1, prob.shape[1])
        losses.append(sum(dice_loss(prob[:, c], mask & (label == c)) for c in classes) / len(classes))
    return losses


def consistency(outputs, targets, mask):
    """Mean squared difference of softmax, student `outputs` against teacher `targets`, over `mask` `(B, X, Y, Z)`."""
    differences = [(s.softmax(1) - t.softmax(1)).square().mean(1) for s, t in zip(outputs, targets, strict=True)]
    return sum(masked_mean(difference, mask) for difference in differences) / len(differences)


def main():
    parser = run.parser(__doc__, labeled_bs=4, unlabeled_bs=4, base_lr=1e-3, normalization="instancenorm")
    method = parser.add_argument_group("method")
    method.add_argument("--pretrain_epochs", type=run.natural, help="epochs of L_crm alone")
    method.add_argument("--selftrain_epochs", type=run.natural, default=200, help="epochs with unlabelled data")
    method.add_argument("--alpha", type=run.positive, default=5.0, help="cost ratio; higher: more is uncertain")
    method.add_argument(
        "--train",
        choices=("seg", "seg+st", "seg+st_mask", "seg+mt", "seg+mt_mask", "full"),
        default="full",
        help="Table IV: L_csn (st) on all or the certain voxels, L_cnt (mt) on all or the uncertain ones",
    )
    method.add_argument("--relabel_epochs", type=run.positive_int, default=5, help="epochs between relabellings")
    method.add_argument("--relabel_stride", type=run.positive_int, nargs=3, help="its windows' stride (half a patch)")
    method.add_argument("--ema_decay", type=run.fraction, default=0.99, help="of the teacher, at most")
    args = run.parse(parser, PRESETS)
    args.relabel_stride = args.relabel_stride or [extent // 2 for extent in args.patch]
    released = args.preset == "released"
    self_training, mean_teaching = (part in args.train or args.train == "full" for part in ("st", "mt"))
    masked = "mask" in args.train or args.train == "full"
    job = run.Run(args, __file__)

    data = two_stream_loader(args, job.device)
    pretraining = args.pretrain_epochs * data.steps_per_epoch
    last = pretraining + args.selftrain_epochs * data.steps_per_epoch
    between = args.relabel_epochs * data.steps_per_epoch

    # ---- student, teacher, optimizer; class weights of D, D_con, D_rad
    net = job.to_device(VNet(1, data.num_classes, args.n_filters, args.normalization, branches=3))
    teacher = copy.deepcopy(net).requires_grad_(False)
    student, mean_teacher = job.parallel(net), job.parallel(teacher)
    optimizer = torch.optim.Adam(net.parameters(), lr=args.base_lr, betas=(0.5, 0.999))
    objects = data.num_classes - 1
    conservative = torch.tensor([args.alpha] + [1.0] * objects, device=job.device)
    radical = torch.tensor([1.0] + [args.alpha] * objects, device=job.device)
    pseudo_labels = PseudoLabels()
    job.resume(net=net, teacher=teacher, optimizer=optimizer, pseudo_labels=pseudo_labels)

    for step, batch in job.steps(data, last):
        t = step - 1 - pretraining  # iteration of self-training, from 0
        n = batch.labeled_bs
        unlabeled = t >= 0 and args.train != "seg"
        if unlabeled and self_training | masked and t % between == 0:
            fresh = relabel(net, data, range(step, min(step + between, last + 1)), args.relabel_stride, job)
            pseudo_labels.clear()
            pseudo_labels.update(fresh)

        with job.autocast():
            outputs = student(batch.image if unlabeled else batch.image[:n])
        outputs = [logits.float() for logits in outputs]

        # ---- L_crm on the labelled crops
        terms = branch_losses([z[:n] for z in outputs], batch.label, (None, conservative, radical), dice=released)
        loss_crm = sum(terms) / 4 if released else sum(terms)
        loss, logged = loss_crm, {"loss_crm": loss_crm}

        if unlabeled:
            views = batch.views[n:]
            outputs = [z[n:] for z in outputs]
            if self_training or masked:
                code = data.gather(pseudo_labels, views)
                pseudo, certain = (code % CERTAIN).long(), code >= CERTAIN
                logged["certain"] = certain.float().mean()

        # ---- L_csn: pseudo-labels on the certain voxels
        if unlabeled and self_training:
            where = certain if masked else torch.ones_like(certain)
            if released:
                loss_csn = sum(branch_losses(outputs, pseudo, (None, radical, conservative), where, dice=True)) / 4
            else:
                (loss_csn,) = branch_losses(outputs[:1], pseudo, (None,), where)
            loss = loss + (0.5 if released else 1.0) * loss_csn
            logged["loss_csn"] = loss_csn

        # ---- L_cnt: the mean teacher on the uncertain voxels
        if unlabeled and mean_teaching:
            update_teacher(teacher, net, ema_decay(t, args.ema_decay))  # a copy of the pre-trained student at t = 0
            with torch.no_grad(), job.autocast():
                targets = mean_teacher(batch.image[n:])
            targets = [logits.float() for logits in targets]
            where = ~certain if masked else torch.ones(targets[0][:, 0].shape, device=job.device)
            kept = 3 if released else 1
            loss_cnt = consistency(outputs[:kept], targets[:kept], where)
            epoch = t // data.steps_per_epoch
            weight = 0.5 * 0.1 * gaussian_rampup(epoch, 40) if released else 1.0
            loss = loss + weight * loss_cnt
            logged |= {"loss_cnt": loss_cnt, "consistency_weight": weight}

        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        job.log(step, loss=loss, **logged, lr=args.base_lr)
        job.checkpoint(step)


if __name__ == "__main__":
    run.main(main)
