"""Every method with the weight of its unlabelled terms at 0 follows its supervised loss, step for
step.

Dropout, noise and norm are off, so that what else is in the batch cannot matter; what is left is
the order of the crops, the optimizer, the schedule, and terms that ought to be 0.
"""

import pytest
import torch
import torch.nn.functional as F
import train_admt
import train_cml
import train_coranet
import train_cps
import train_dan
import train_dmd
import train_dtc
import train_dtml
import train_entropy
import train_ict
import train_mcf
import train_mt
import train_pi
import train_pseudo
import train_sassnet
import train_ssnet
import train_supervised
import train_tcse
import train_tempens
import train_uamt
import train_ugmcl
import train_unimatch
import train_vat
from small import LA

from dataloaders.two_stream import two_stream_loader
from networks.vnet import VNet
from utils.losses import class_dice_loss, foreground_dice_loss, sdm_targets, supervised_loss
from utils.schedules import poly_decay, set_lr, step_decay
from utils.training import options, run

pytestmark = pytest.mark.usefixtures("one_thread")

STEPS = 4
SMALL = [*LA, "--normalization", "none"]
SGD = ["--max_iterations", str(STEPS), "--lr_step", "2", "--labeled_bs", "2"]


def dice_alone(net, image, label):
    return foreground_dice_loss(net(image).softmax(1), label)


def cross_entropy_and_dice(net, image, label):
    return supervised_loss(net(image), label)


def cross_entropy_alone(net, image, label):
    return F.cross_entropy(net(image), label)


def cross_entropy_and_all_dice(net, image, label):
    logits = net(image)
    return (F.cross_entropy(logits, label) + class_dice_loss(logits.softmax(1), label)) / 2


def sum_of_cross_entropy_and_dice(net, image, label):
    return 2 * supervised_loss(net(image), label)


def dice_without_squares(net, image, label):
    prob = net(image)[0].softmax(1)
    return class_dice_loss(prob, label, background=False, eps=1e-8, squares=False)


def of_logits_and_features(net, image, label):
    return supervised_loss(net(image)[0], label)


def dual_task(net, image, label):
    logits, sdm = net(image)
    loss = F.cross_entropy(logits, label) + foreground_dice_loss(logits.softmax(1), label)
    return loss + (sdm - sdm_targets((label == 1)[:, None])).square().mean()


def dice_and_distances(share):
    def loss_of(net, image, label):
        logits, sdm = net(image)
        distances = (sdm - sdm_targets((label == 1)[:, None])).square().mean()
        return foreground_dice_loss(logits.softmax(1), label) + share * distances

    return loss_of


CPS = ["--framework", "cps", "--pretrain_iterations", "0", "--unlabeled_bs", "2"]
CASES = {  # script, its flags, the supervised loss of its first network
    "supervised": (train_supervised, [], cross_entropy_and_dice),
    "dmd": (train_dmd, ["--lambda_distill", "0"], dice_alone),
    "dtml": (train_dtml, ["--consistency", "0"], cross_entropy_and_dice),
    "ugmcl": (train_ugmcl, ["--consistency", "0", "--passes", "1"], dual_task),
    "dtc": (train_dtc, ["--consistency", "0"], dice_and_distances(1)),
    "dtc, released": (
        train_dtc,
        ["--consistency", "0", "--preset", "released"],
        dice_and_distances(0.3),
    ),
    "sassnet": (train_sassnet, ["--consistency", "0"], dice_and_distances(0.3)),
    "mt": (train_mt, ["--consistency", "0"], cross_entropy_and_all_dice),
    "uamt": (train_uamt, ["--consistency", "0"], cross_entropy_and_dice),
    "ict": (train_ict, ["--consistency", "0"], cross_entropy_and_all_dice),
    "tcse": (train_tcse, ["--consistency", "0"], cross_entropy_alone),
    "tcse, released": (train_tcse, ["--preset", "released"], cross_entropy_alone),
    "pi": (train_pi, ["--consistency", "0"], cross_entropy_and_all_dice),
    "tempens": (train_tempens, ["--consistency", "0"], cross_entropy_and_all_dice),
    "cps": (train_cps, ["--consistency", "0"], cross_entropy_and_all_dice),
    "dan": (train_dan, ["--consistency", "0"], cross_entropy_and_all_dice),
    "entropy": (train_entropy, ["--consistency", "0"], cross_entropy_and_all_dice),
    "vat": (train_vat, ["--consistency", "0"], cross_entropy_and_all_dice),
    "pseudo": (train_pseudo, ["--threshold", "1"], cross_entropy_and_all_dice),
    "ssnet": (train_ssnet, ["--consistency", "0"], dice_without_squares),
    "mcf": (
        train_mcf,
        ["--consistency", "0", "--rectification", "0", "--augment", "rot_flip"],
        sum_of_cross_entropy_and_dice,
    ),
    "cml": (train_cml, ["--lambda_u", "0", *CPS], of_logits_and_features),
}
POLY_CASES = {  # the same of scripts whose learning rate falls as (1 - t/t_max)^0.9
    "unimatch": (
        train_unimatch,
        ["--lambda_s", "0", "--lambda_f", "0"],
        lambda *case: cross_entropy_and_all_dice(*case) / 2,
    ),
    "admt": (train_admt, ["--consistency", "0"], cross_entropy_and_all_dice),
}


def far_less(ended, other, began):
    """Whether two trainings' ends are much nearer to each other than to where both began."""
    apart, moved = (
        torch.cat([(ended[k] - state[k]).flatten() for k in ended]).norm()
        for state in (other, began)
    )
    return apart < 1e-3 * moved


def weights(state):
    return {key: value.clone() for key, value in state.items()}


def run_main(script, flags, root, runs, monkeypatch):
    """The first network of a script's run, as it began and as it ended, and the arguments that it
    is built with.
    """
    began, resume = {}, run.Run.resume

    def remember(job, *names, **objects):
        began.update(
            {
                name: weights(net.state_dict())
                for name, net in objects.items()
                if hasattr(net, "config")
            }
        )
        return resume(job, *names, **objects)

    monkeypatch.setattr(run.Run, "resume", remember)
    monkeypatch.setattr(VNet, "defaults", VNet.defaults._replace(dropout=0.0))
    monkeypatch.setattr(script, "noisy", lambda image: image, raising=False)
    script.main([*SMALL, *flags, "--root", str(root), "--runs", str(runs)])
    (path,) = runs.glob("*/*/*/last.pth")
    state = torch.load(path, weights_only=True)
    first = next(iter(began))
    return began[first], state[first], state["networks"][first]["kwargs"]


@pytest.mark.parametrize("method", CASES)
def test_without_its_unlabelled_terms_a_method_is_supervised(
    method, tiny_la, tmp_path, monkeypatch
):
    script, flags, loss_of = CASES[method]
    flags = [*SGD, *flags]
    began, ended, shape = run_main(script, flags, tiny_la, tmp_path / "runs", monkeypatch)
    rates = [step_decay(0.01, step, 2) for step in range(1, STEPS + 1)]
    assert far_less(ended, supervised_twin(began, shape, tiny_la, loss_of, rates), began)


@pytest.mark.parametrize("method", POLY_CASES)
def test_also_where_the_learning_rate_falls_at_each_step(method, tiny_la, tmp_path, monkeypatch):
    script, flags, loss_of = POLY_CASES[method]
    flags = ["--max_iterations", str(STEPS), "--labeled_bs", "2", *flags]
    began, ended, shape = run_main(script, flags, tiny_la, tmp_path / "runs", monkeypatch)
    rates = [poly_decay(0.01, step, STEPS) for step in range(1, STEPS + 1)]
    assert far_less(ended, supervised_twin(began, shape, tiny_la, loss_of, rates), began)


def supervised_twin(began, shape, root, loss_of, rates):
    """The weights after as many steps as there are learning rates, on the labelled crops only."""
    own = [*SMALL, "--labeled_bs", "2", "--root", str(root)]
    data = two_stream_loader(
        options.parse(options.parser("", "train_x.py", unlabeled=False), argv=own), "cpu"
    )
    net = VNet(**shape).to(memory_format=torch.channels_last_3d)
    net.load_state_dict(began)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
    for step, lr in enumerate(rates, 1):
        batch = data.batch(step)
        set_lr(optimizer, lr)
        optimizer.zero_grad()
        loss_of(net, batch.image, batch.label).backward()
        optimizer.step()
    return net.state_dict()


def test_coranet_without_its_unlabelled_terms_is_its_labelled_loss(tiny_la, tmp_path, monkeypatch):
    """`--train seg` through both phases, against Adam on CE(D) + CE_con(D_con) + CE_rad(D_rad)."""
    flags = [
        "--labeled_bs",
        "2",
        "--train",
        "seg",
        "--pretrain_epochs",
        "1",
        "--selftrain_epochs",
        "1",
    ]
    began, ended, shape = run_main(train_coranet, flags, tiny_la, tmp_path / "runs", monkeypatch)
    own = [*SMALL, "--labeled_bs", "2", "--root", str(tiny_la)]
    data = two_stream_loader(
        options.parse(options.parser("", "train_x.py", unlabeled=False), argv=own), "cpu"
    )
    net = VNet(**shape).to(memory_format=torch.channels_last_3d)
    net.load_state_dict(began)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3, betas=(0.5, 0.999))
    weights_of = [None, torch.tensor([5.0, 1.0]), torch.tensor([1.0, 5.0])]
    for step in range(1, 2 * data.steps_per_epoch + 1):
        batch = data.batch(step)
        optimizer.zero_grad()
        losses = [
            F.cross_entropy(logits, batch.label, w, reduction="none").mean()
            for logits, w in zip(net(batch.image), weights_of, strict=True)
        ]
        sum(losses).backward()
        optimizer.step()
    assert step == 4
    assert far_less(ended, net.state_dict(), began)


def test_cml_without_cutmix_and_discrepancy_is_cps(tiny_la, tmp_path, monkeypatch):
    ends = []
    short = [
        "--pretrain_iterations",
        "1",
        "--max_iterations",
        "3",
        "--lr_step",
        "2",
        "--labeled_bs",
        "2",
    ]
    for k, framework in enumerate((["cfl", "--lambda_dis", "0"], ["cps"], ["cfl"])):
        flags = [*short, "--unlabeled_bs", "2", "--framework", *framework]
        ends.append(run_main(train_cml, flags, tiny_la, tmp_path / str(k), monkeypatch)[1])
    assert all(torch.equal(ends[0][key], ends[1][key]) for key in ends[0])
    assert not all(torch.equal(ends[0][key], ends[2][key]) for key in ends[0])


def test_coranet_without_its_unlabelled_terms_goes_on_pretraining(tiny_la, tmp_path, monkeypatch):
    """`--train seg`: as many epochs of either phase end in the same weights."""
    flags = ["--labeled_bs", "2", "--unlabeled_bs", "1", "--train", "seg"]
    phases = (
        ["--pretrain_epochs", "1", "--selftrain_epochs", "2"],
        ["--pretrain_epochs", "3", "--selftrain_epochs", "0"],
    )
    ends = []
    for k, epochs in enumerate(phases):
        began, ended, _ = run_main(
            train_coranet, [*flags, *epochs], tiny_la, tmp_path / str(k), monkeypatch
        )
        ends.append(ended)
    assert not torch.equal(began["encoder.0.0.weight"], ended["encoder.0.0.weight"])
    assert all(torch.equal(ends[0][key], ends[1][key]) for key in ended)
