"""The memory benchmark counts all living storages, and no others, of the scripts as they are."""

import sys

import pytest
import torch
from conftest import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))

import bench_memory

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = ("--patch", 32, 16, 16, "--n_filters", 2)


def test_a_storage_counts_once_and_while_it_lives():
    with bench_memory.Storages() as storages:
        a = torch.zeros(1000)
        view, b = a.view(10, 100)[2:].add_(1), a + 1
        assert storages.live == 8000
        del a, b
        assert storages.live == 4000
        del view
        assert storages.live == 0
    assert storages.peak == 8000


def test_tensors_without_values_take_what_tensors_with_values_take():
    given = (*SMALL, "--precision", "bf16")
    with bench_memory.Storages() as storages:
        bench_memory.step("cml", "--gpu", -1, *given)
    assert storages.peak == pytest.approx(bench_memory.computed("cml", *given), rel=0.01)


@pytest.mark.parametrize("method", ["ugmcl", "coranet"])  # those with a teacher
def test_each_option_saves_memory(method):
    found = {
        name: bench_memory.computed(method, *SMALL, *options)
        for name, options in bench_memory.SAVING.items()
    }
    least, most = found.pop("both"), found.pop("as it is")
    assert all(least < value < most for value in found.values())


def test_the_table_marks_what_fits():
    row = {"method": "cml", "precision": "bf16"}
    row["computed"] = dict.fromkeys(bench_memory.SAVING, 7.96e9) | {"both": 8.1e9}
    row["measured"] = {"as it is": 8.2e9}
    last = bench_memory.table([row]).splitlines()[-1]
    assert last == "| cml | bf16 | 8.0 / 8.2 | **8.0** | **8.0** | 8.1 |"
