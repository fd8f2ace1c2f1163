"""Tests and intervals against values computed by hand, and on cases that SciPy stumbles over."""

import math
from itertools import product

import numpy as np
import pytest
from scipy import stats

from utils.reporting.statistics import bootstrap_interval, holm, paired, signed_rank


def test_paired_t_test_by_hand():
    """Differences 1, 2, 3: t = 2 / (1 / √3) with 2 degrees of freedom, whose two-sided p is 1 - t /
    √(2 + t²).
    """
    found = paired([2, 4, 6], [1, 2, 3])
    t = 2 * math.sqrt(3)
    assert found.t_test == pytest.approx(1 - t / math.sqrt(2 + t**2), rel=1e-12)
    assert (found.n, found.mean) == (3, 2)


def test_wilcoxon_by_hand():
    """Of the 2⁵ signs of ranks 1 to 5, the negative ranks sum to 1 or less for two, and as many the
    other way.
    """
    assert paired([-1, 2, 3, 4, 5], np.zeros(5)).wilcoxon == pytest.approx(4 / 32)
    assert paired([1, 2, 3, 4, 5], np.zeros(5)).wilcoxon == pytest.approx(2 / 32)


@pytest.mark.parametrize(
    "differences", [[1, -2, 2, 3, 3, -3], [0, 0, -1, 2, 3, 4], [2, -2], [0.5] * 9]
)
def test_shared_ranks_against_all_signs(differences):
    """The share of all signs whose sum of positive ranks is as far from the middle."""
    kept = np.array([d for d in differences if d])
    ranks = stats.rankdata(np.abs(kept))
    sums = np.array([ranks @ signs for signs in product((0, 1), repeat=len(kept))])
    off = abs(ranks[kept > 0].sum() - ranks.sum() / 2)
    assert signed_rank(differences) == pytest.approx(
        np.mean(np.abs(sums - ranks.sum() / 2) >= off - 1e-9)
    )


@pytest.mark.parametrize("n", [6, 25, 120, 250])
def test_ranks_of_their_own_against_scipy(n):
    differences = np.random.default_rng(n).normal(0.1, 1, n)
    expected = stats.wilcoxon(differences, method="exact").pvalue
    assert signed_rank(differences) == pytest.approx(expected, rel=1e-9 if n <= 200 else 0.01)


def test_pairs_without_a_value_are_left_out():
    nan = math.nan
    first, second = np.array([2, nan, 4, 6, 1]), np.array([1, 5, 2, 3, nan])
    assert paired(first, second) == paired([2, 4, 6], [1, 2, 3])


@pytest.mark.parametrize("values", [[0, 0, 0, 0], [0.25, 0.25, 0.25]])
def test_differences_that_are_all_the_same(values):
    found = paired(values, np.zeros(len(values)))
    assert (found.t_test == 1) == (values[0] == 0)
    assert (found.wilcoxon == 1) == (values[0] == 0)
    assert (found.low, found.high) == (values[0], values[0])
    base = np.array([0.7, 0.72, 0.81])
    assert paired(base + 0.1, base).low == pytest.approx(0.1)  # the same but for rounding


@pytest.mark.parametrize("values", [[], [3.0]])
def test_too_few_for_a_test(values):
    found = paired(values, np.zeros(len(values)))
    assert all(map(math.isnan, (found.t_test, found.wilcoxon, found.low, found.high)))
    assert math.isnan(found.mean) == (not values)


def test_holm_by_hand():
    """Sorted 0.01, 0.02, 0.03, 0.04 times 4, 3, 2, 1: 0.04, 0.06, 0.06, 0.04, and none below the
    one before it.
    """
    assert holm([0.03, 0.01, 0.04, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.6, 0.7]) == [1, 1]
    assert holm([0.04]) == [0.04]
    assert holm([]) == []


def test_holm_does_not_count_what_was_not_tested():
    first, missing, last = holm([0.01, math.nan, 0.02])
    assert (first, last) == (pytest.approx(0.02), pytest.approx(0.02))
    assert math.isnan(missing)


def test_the_interval_is_that_of_the_mean():
    """Near the normal one for many values: mean ± 1.96 sd / √n; and a seed gives the same again."""
    values = np.random.default_rng(0).normal(5, 2, 400)
    low, high = bootstrap_interval(values, seed=3)
    half = 1.96 * values.std(ddof=1) / 20
    assert (low, high) == (
        pytest.approx(values.mean() - half, abs=0.03),
        pytest.approx(values.mean() + half, abs=0.03),
    )
    assert bootstrap_interval(values, seed=3) == (low, high)
    assert bootstrap_interval(values, seed=4) != (low, high)
    narrow = bootstrap_interval(values, confidence=0.5)
    assert low < narrow[0] < values.mean() < narrow[1] < high


def test_the_interval_leans_where_the_values_do():
    """Nineteen small distances and a large one: the mean may be far above, hardly below."""
    low, high = bootstrap_interval([1.0] * 15 + [2.0] * 4 + [40.0])
    mean = (15 + 8 + 40) / 20
    assert 1 < low < mean < high
    assert high - mean > 2 * (mean - low)
