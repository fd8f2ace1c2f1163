"""Training and testing in the style of the field's public research code, to compare with.

For each sample DataLoader workers read the whole volume from the h5 file, turn and flip it, and
then crop it. Networks and inputs are contiguous float32, eager, in torch's own allocator. Distance
maps, components and test metrics are computed on the host with SciPy, skimage and medpy. A teacher
is updated parameter by parameter, and every loss is read at every step. The objectives are those of
`code/`, written again from the papers; `bench_step.py` compares the two before it times them.
"""

import copy
import math

import h5py
import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from skimage.measure import label as connected_components
from skimage.segmentation import find_boundaries

from networks.vnet import VNet

STEEPNESS = 1500


# --------------------------------------------------------------------------------------------- data


class Volumes(torch.utils.data.Dataset):
    """Random crops of h5 files; every sample decodes its file again."""

    def __init__(self, paths, patch):
        self.paths, self.patch = paths, patch

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, index):
        with h5py.File(self.paths[index]) as file:
            image, label = file["image"][:], file["label"][:]
        random = np.random.default_rng()
        turns = random.integers(4)
        axis = random.integers(2)
        image, label = (np.flip(np.rot90(volume, turns), axis) for volume in (image, label))
        sides = missing_sides(image.shape, self.patch)
        if any(after for _, after in sides):
            image, label = np.pad(image, sides), np.pad(label, sides)
        corner = [
            random.integers(extent - size + 1)
            for size, extent in zip(self.patch, image.shape, strict=True)
        ]
        crop = tuple(slice(c, c + size) for c, size in zip(corner, self.patch, strict=True))
        image = image[crop].astype(np.float32)[None]
        return torch.from_numpy(image), torch.from_numpy(label[crop].astype(np.int64))


def missing_sides(shape, patch):
    """How much a volume lacks of a patch, before and after, along each axis."""
    missing = [max(size - extent, 0) for size, extent in zip(patch, shape, strict=True)]
    return [(m // 2, m - m // 2) for m in missing]


def loader(paths, labelnum, batch, patch, workers, device):
    """1000 batches `(image, label)` of `batch` labelled and unlabelled crops."""
    random = np.random.default_rng(0)
    labeled, unlabeled = batch
    batches = []
    for _ in range(1000):
        cases = random.choice(range(labelnum), labeled).tolist()
        cases += random.choice(range(labelnum, len(paths)), unlabeled).tolist()
        batches.append(cases)
    pinned = device.type == "cuda"
    return torch.utils.data.DataLoader(
        Volumes(paths, patch), batch_sampler=batches, num_workers=workers, pin_memory=pinned
    )


# ------------------------------------------------------------------------------------------- losses


def dice_loss(prob, target, eps=1e-5):
    target = target.float()
    overlap = torch.sum(prob * target)
    return 1 - (2 * overlap + eps) / (torch.sum(prob * prob) + torch.sum(target * target) + eps)


def supervised(logits, label):
    prob = torch.softmax(logits, dim=1)
    return 0.5 * (F.cross_entropy(logits, label) + dice_loss(prob[:, 1], label == 1))


def masked_mean(values, mask):
    return torch.sum(values * mask) / (torch.sum(mask) + 1e-16)


def compute_sdf(label):
    """Normalized signed distance maps of a batch of masks, computed on the host."""
    maps = np.zeros(label.shape, np.float32)
    for k, mask in enumerate(label.cpu().numpy() > 0):
        if mask.any():
            inside = ndimage.distance_transform_edt(mask)
            outside = ndimage.distance_transform_edt(~mask)
            sdf = (outside - outside.min()) / (outside.max() - outside.min())
            sdf -= (inside - inside.min()) / (inside.max() - inside.min())
            sdf[find_boundaries(mask, mode="inner")] = 0
            maps[k] = sdf
    return torch.from_numpy(maps).to(label.device)


def largest_components(pseudo):
    """The largest component of each mask of a batch, computed on the host."""
    kept = np.zeros(pseudo.shape, np.int64)
    for k, mask in enumerate(pseudo.cpu().numpy()):
        components = connected_components(mask)
        if components.any():
            kept[k] = components == np.argmax(np.bincount(components.flat)[1:]) + 1
    return torch.from_numpy(kept).to(pseudo.device)


def rampup(step, length):
    return math.exp(-5 * (1 - min(step, length) / length) ** 2)


# ------------------------------------------------------------------------------------------ methods


class Supervised:
    """A step of one method with V-Nets of the options `nets`; a subclass defines its loss."""

    nets = ({},)
    teacher = None
    iterations = 6000

    def __init__(self, n_filters, device, dropout=0.5, pretraining=False):
        self.pretraining, self.iteration, self.device = pretraining, 0, device
        self.networks = [
            VNet(1, 2, n_filters, dropout=dropout, **options).to(device) for options in self.nets
        ]
        self.optimizers = self.make_optimizers()

    def make_optimizers(self):
        parameters = [parameter for network in self.networks for parameter in network.parameters()]
        return [torch.optim.SGD(parameters, lr=0.01, momentum=0.9, weight_decay=1e-4)]

    def losses(self, image, label, n):
        """The terms by name; `loss` is their sum. The first `n` crops are labelled."""
        return {"loss": supervised(self.networks[0](image), label)}

    def step(self, image, label, n):
        self.iteration += 1
        image, label = image.to(self.device), label.to(self.device)
        terms = self.losses(image, label[:n], n)
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        terms["loss"].backward()
        for optimizer in self.optimizers:
            optimizer.step()
        if self.teacher is not None:
            self.update_teacher()
        return {name: term.item() for name, term in terms.items()}

    def make_teacher(self):
        """Copy the network the first time."""
        if self.teacher is None:
            self.teacher = copy.deepcopy(self.networks[0])
            for parameter in self.teacher.parameters():
                parameter.requires_grad_(False)

    def update_teacher(self):
        decay = min(1 - 1 / self.iteration, 0.99)
        with torch.no_grad():
            for mean, parameter in zip(
                self.teacher.parameters(), self.networks[0].parameters(), strict=True
            ):
                mean.mul_(decay).add_(parameter, alpha=1 - decay)


class DMD(Supervised):
    nets = ({}, {})

    def losses(self, image, label, n):
        logits = [network(image) for network in self.networks]
        loss_1, loss_2 = (dice_loss(torch.softmax(z[:n], dim=1)[:, 1], label == 1) for z in logits)
        first, second = (torch.softmax(z / 1.93, dim=1)[:, 1] for z in logits)
        distill = dice_loss(first, second)
        terms = {"loss_1": loss_1, "loss_2": loss_2, "loss_distill": distill}
        return {"loss": loss_1 + loss_2 + 4 * distill, **terms}


class DTML(Supervised):
    """With `--dis_loss both`: the distance maps are part of the loss."""

    nets = ({}, {"sdm_head": True, "segmentation_head": False})

    def make_optimizers(self):
        settings = {"lr": 0.01, "momentum": 0.9, "weight_decay": 1e-4}
        return [torch.optim.SGD(network.parameters(), **settings) for network in self.networks]

    def losses(self, image, label, n):
        logits, distance = self.networks[0](image), self.networks[1](image)
        mask = torch.sigmoid(-STEEPNESS * distance)
        target = compute_sdf(label)
        loss_seg = supervised(logits[:n], label)
        loss_dis = dice_loss(mask[:n, 0], label == 1) + torch.mean((distance[:n, 0] - target) ** 2)
        loss_con = torch.mean((torch.softmax(logits, dim=1)[:, 1] - mask[:, 0]) ** 2)
        loss = loss_seg + loss_dis + 0.1 * rampup(self.iteration, self.iterations) * loss_con
        return {"loss": loss, "loss_seg": loss_seg, "loss_dis": loss_dis, "loss_con": loss_con}


class UGMCL(Supervised):
    nets = ({"sdm_head": True},)
    passes = 8

    def losses(self, image, label, n):
        self.make_teacher()
        weight = rampup(self.iteration, self.iterations)
        with torch.no_grad():
            ema_logits, ema_distance = self.teacher(self.noisy(image))
            mean = torch.zeros_like(ema_logits)
            for _ in range(self.passes):
                mean += torch.softmax(self.teacher(self.noisy(image))[0], dim=1)
            mean /= self.passes
            uncertainty = -torch.sum(mean * torch.log(mean + 1e-6), dim=1)
        certain = (uncertainty < (0.75 + 0.25 * weight) * math.log(2)).float()
        logits, distance = self.networks[0](image)
        prob = torch.softmax(logits, dim=1)
        loss_seg = F.cross_entropy(logits[:n], label) + dice_loss(prob[:n, 1], label == 1)
        loss_dis = torch.mean((distance[:n, 0] - compute_sdf(label)) ** 2)
        squares = torch.mean((prob - torch.softmax(ema_logits, dim=1)) ** 2, dim=1)
        loss_itc = 0.75 * masked_mean(squares, certain)
        loss_itc = loss_itc + 0.25 * masked_mean(
            (distance[:, 0] - ema_distance[:, 0]) ** 2, certain
        )
        loss_ctc = torch.mean((prob[:, 1] - torch.sigmoid(-STEEPNESS * distance[:, 0])) ** 2)
        loss = loss_seg + loss_dis + 0.1 * weight * (loss_itc + loss_ctc)
        terms = {
            "loss_seg": loss_seg,
            "loss_dis": loss_dis,
            "loss_itc": loss_itc,
            "loss_ctc": loss_ctc,
        }
        return {"loss": loss, **terms}

    def noisy(self, image):
        return image + torch.clamp(torch.randn_like(image) * 0.1, -0.2, 0.2)


class CML(Supervised):
    nets = (
        {"upsampling": "transposed", "deepest": True},
        {"upsampling": "linear", "deepest": True},
    )

    def losses(self, image, label, n):
        mask = self.box(image)
        mixed = [self.mix(image[:n], mask)]
        targets = [[self.mix(label, mask)] for _ in range(2)]
        if not self.pretraining:
            with torch.no_grad():
                pseudo = [
                    largest_components(torch.argmax(network(image[n:])[0], dim=1)).chunk(2)
                    for network in self.networks
                ]
            mask = self.box(image)
            mixed.append(self.mix(image[n:], mask))
            whole = mask.long()
            for own in range(2):
                targets[own].append(pseudo[1 - own][0] * whole + pseudo[own][1] * (1 - whole))
        outputs = [network(torch.cat(mixed)) for network in self.networks]
        terms, loss = {}, 0
        for part, name in enumerate(("l", "u")[: len(mixed)]):
            which = slice(0, n // 2) if part == 0 else slice(n // 2, None)
            pairs = zip(outputs, targets, strict=True)
            terms[f"loss_{name}"] = sum(
                supervised(output[0][which], target[part]) for output, target in pairs
            )
            features = [output[1][which] for output in outputs]
            alike = [
                F.cosine_similarity(features[i], features[1 - i].detach(), dim=1).mean()
                for i in range(2)
            ]
            terms[f"loss_dis_{name}"] = sum(1 + a for a in alike)
            loss = loss + terms[f"loss_{name}"] + 0.2 * terms[f"loss_dis_{name}"]
        return {"loss": loss, **terms}

    def box(self, image):
        """1 outside of a box of two thirds of each axis, 0 inside."""
        mask = torch.ones(image.shape[2:], device=image.device)
        sizes = [int(extent * 2 / 3) for extent in mask.shape]
        corner = [
            int(torch.randint(extent - size + 1, (1,)))
            for extent, size in zip(mask.shape, sizes, strict=True)
        ]
        mask[tuple(slice(c, c + size) for c, size in zip(corner, sizes, strict=True))] = 0
        return mask

    def mix(self, values, mask):
        first, second = values.chunk(2)
        mask = mask.to(values.dtype)
        return first * mask + second * (1 - mask)


class CoraNet(Supervised):
    nets = ({"branches": 3, "normalization": "instancenorm"},)
    alpha = 5.0

    def make_optimizers(self):
        return [torch.optim.Adam(self.networks[0].parameters(), lr=1e-3, betas=(0.5, 0.999))]

    def losses(self, image, label, n):
        if not self.pretraining:
            self.make_teacher()
            with torch.no_grad():
                ema_logits = self.teacher(image[n:])[0]
        outputs = self.networks[0](image[:n] if self.pretraining else image)
        conservative, radical = (
            torch.tensor(w, device=self.device) for w in ((self.alpha, 1.0), (1.0, self.alpha))
        )
        loss_crm = F.cross_entropy(outputs[0][:n], label)
        for logits, weight in ((outputs[1], conservative), (outputs[2], radical)):
            weighted = F.cross_entropy(logits[:n], label, weight=weight, reduction="none")
            loss_crm = loss_crm + torch.mean(weighted)
        if self.pretraining:
            return {"loss": loss_crm, "loss_crm": loss_crm}
        pseudo, certain = stand_in(image[n:, 0])
        certain = certain.float()
        ce = F.cross_entropy(outputs[0][n:], pseudo, reduction="none")
        loss_csn = torch.mean(ce * certain)
        squares = (torch.softmax(outputs[0][n:], dim=1) - torch.softmax(ema_logits, dim=1)) ** 2
        loss_cnt = torch.mean(torch.sum(squares, dim=1) * (1 - certain))
        terms = {"loss_crm": loss_crm, "loss_csn": loss_csn, "loss_cnt": loss_cnt}
        return {"loss": loss_crm + loss_csn + loss_cnt, **terms}


METHODS = {
    "supervised": Supervised,
    "dmd": DMD,
    "dtml": DTML,
    "ugmcl": UGMCL,
    "cml": CML,
    "coranet": CoraNet,
}


def stand_in(image):
    """Replaces CoraNet's pseudo-labels and certain voxels, which are made outside of a step.

    The bright voxels are the pseudo-label.
    """
    return (image > 1).long(), (image > 1) | (image <= 0)


# ------------------------------------------------------------------------------------------ testing


@torch.no_grad()
def predict(network, image, patch, stride, device):
    """Labels of a volume by sliding window: one window a forward pass, summed in NumPy.

    Args:
        network: `(1, 1, *patch)` to logits `(1, C, *patch)`, in eval mode on the device.
        image: `(X, Y, Z)` float32.
    """
    shape = image.shape
    sides = missing_sides(shape, patch)
    image = np.pad(image, sides)
    steps = [
        math.ceil((extent - size) / s) + 1
        for extent, size, s in zip(image.shape, patch, stride, strict=True)
    ]
    score = np.zeros((2, *image.shape), np.float32)
    cover = np.zeros(image.shape, np.float32)
    for index in np.ndindex(*steps):
        corner = [
            min(s * i, extent - size)
            for s, i, extent, size in zip(stride, index, image.shape, patch, strict=True)
        ]
        window = tuple(slice(c, c + size) for c, size in zip(corner, patch, strict=True))
        given = torch.from_numpy(image[window][None, None].astype(np.float32)).to(device)
        prob = torch.softmax(network(given), dim=1).cpu().numpy()[0]
        score[(slice(None), *window)] += prob
        cover[window] += 1
    label = np.argmax(score / cover[None], axis=0)
    inside = [slice(before, before + n) for (before, _), n in zip(sides, shape, strict=True)]
    return label[tuple(inside)]


def keep_largest(label):
    components = connected_components(label)
    if not components.any():
        return label
    return components == np.argmax(np.bincount(components.flat)[1:]) + 1


def metrics(prediction, label):
    """Dice, Jaccard, 95HD and ASD by medpy; zeros for an empty prediction."""
    from medpy.metric import binary

    if not prediction.any():
        return dict.fromkeys(("dice", "jaccard", "hd95", "asd"), 0.0)
    measures = {"dice": binary.dc, "jaccard": binary.jc, "hd95": binary.hd95, "asd": binary.asd}
    return {name: float(measure(prediction, label)) for name, measure in measures.items()}
