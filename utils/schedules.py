"""Numbers that change with the step: learning rate, ramp-up, the teacher's decay and its update."""

import math
from argparse import Namespace

import torch
from torch import nn


def gaussian_rampup(t: float, length: float) -> float:
    """exp(-5 (1 - min(t, T)/T)²), from 0.0067 at t = 0 to 1 at t = T (Laine & Aila, ICLR 2017);
    always 1 if T is 0.
    """
    if length == 0:
        return 1.0
    return math.exp(-5 * (1 - min(max(t, 0), length) / length) ** 2)


def printed_rampup(t: float, length: float) -> float:
    """exp(-5 (1 - min(t, T)/T)), without the square: as DTML and UG-MCL print their ramp-up; always
    1 if T is 0.
    """
    if length == 0:
        return 1.0
    return math.exp(-5 * (1 - min(max(t, 0), length) / length))


def rampup_in_blocks(step: int, blocks: int, length: int = 150) -> float:
    """The ramp-up of iteration `step` (from 1) as a staircase: it rises after every `length`
    iterations, and reaches 1 after so many `blocks` (UA-MT's code: 40; SSL4MIS: 200).
    """
    return gaussian_rampup((step - 1) // length, blocks)


RAMPUPS = {"gaussian": gaussian_rampup, "printed": printed_rampup}  # by the value of --rampup


def step_decay(base_lr: float, step: int, every: int, factor: float = 0.1) -> float:
    """The learning rate of iteration `step` (from 1): ×`factor` after every `every` iterations; 0
    for never.
    """
    return base_lr * factor ** ((step - 1) // every) if every else base_lr


def poly_decay(base_lr: float, step: int, last: int, power: float = 0.9) -> float:
    """The learning rate of iteration `step` (from 1) of `last`: it falls as (1 - t/t_max)^power
    (SSL4MIS).
    """
    return base_lr * (1 - (step - 1) / last) ** power


def learning_rate(step: int, args: Namespace) -> float:
    """The learning rate of iteration `step` (from 1): with `decay` `step` it falls in steps, with
    `poly` as `poly_decay`. `args` holds `base_lr`, `decay`, `lr_step` and `max_iterations`.
    """
    if args.decay == "poly":
        return poly_decay(args.base_lr, step, args.max_iterations)
    return step_decay(args.base_lr, step, args.lr_step)


def consistency_weight(step: int, args: Namespace) -> float:
    """λ(t) = λ exp(-5 (1 - t/T)²) of iteration `step` up to T, then λ; T is a share of the
    training. `args` holds `consistency`, `rampup_share` and `max_iterations`.
    """
    return args.consistency * gaussian_rampup(step, args.rampup_share * args.max_iterations)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of every parameter group."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def ema_decay(t: int, limit: float = 0.99) -> float:
    """The teacher's decay min(1 - 1/(t+1), limit): at t = 0 the teacher becomes a copy, then a true
    mean, then the EMA (Tarvainen & Valpola, NeurIPS 2017)."""
    return min(1 - 1 / (t + 1), limit)


@torch.no_grad()
def update_teacher(
    teacher: nn.Module, student: nn.Module, decay: float, buffers: bool = False
) -> None:
    """θ' = a θ' + (1-a) θ over the parameters; buffers stay the teacher's own, as in most released
    codes. With `buffers` the running statistics of batch norm move too (AD-MT).
    """
    pairs = list(zip(teacher.parameters(), student.parameters(), strict=True))
    if buffers:
        both = zip(teacher.buffers(), student.buffers(), strict=True)
        pairs += [(own, other) for own, other in both if own.is_floating_point()]
    own, others = zip(*pairs, strict=True)
    torch._foreach_lerp_(own, others, 1 - decay)
