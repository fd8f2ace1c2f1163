"""Supervised training with either optimizer."""

import pytest
import torch
import train_supervised
from small import ACDC, LA

pytestmark = pytest.mark.usefixtures("one_thread")

SHORT = "--max_iterations 2 --lr_step 1 --labeled_bs 2".split()


def end_of(root, runs, *argv):
    train_supervised.main([*argv, "--root", str(root), "--runs", str(runs)])
    (path,) = runs.glob("*/*/*/last.pth")
    return torch.load(path, weights_only=True)


def test_adam_is_coranets_with_its_network(tiny_acdc, tmp_path):
    short = "--max_iterations 2 --labeled_bs 2 --optimizer adam".split()
    ended = end_of(tiny_acdc, tmp_path, *ACDC, *short)
    (group,) = ended["optimizer"]["param_groups"]
    assert group["betas"] == (0.5, 0.999)
    assert (group["lr"], group["weight_decay"]) == (1e-3, 0)
    assert ended["networks"]["net"]["class"] == "networks.unet_ronneberger.RonnebergerUNet"


def test_sgd_is_the_fields(tiny_la, tmp_path):
    (group,) = end_of(tiny_la, tmp_path, *LA, *SHORT)["optimizer"]["param_groups"]
    assert (group["momentum"], group["weight_decay"]) == (0.9, 1e-4)
    assert group["lr"] == pytest.approx(0.001)  # ×0.1 after the first step
