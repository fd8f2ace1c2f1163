"""How two methods are compared: paired tests over cases, Holm's correction, bootstrap intervals.

A case is the unit: both methods segment the same cases, and the differences between them are
tested. Seeds of a method are no further cases; average over them first.
"""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from utils.metrics import mean


@dataclass(frozen=True)
class Paired:
    """Differences of pairs, first minus second, with their tests.

    Attributes:
        n: number of pairs.
        mean: of the differences.
        low, high: bootstrap interval of that mean.
        t_test, wilcoxon: two-sided p of the paired t-test and of Wilcoxon's signed-rank test; NaN
            below two pairs.
    """

    n: int
    mean: float
    low: float
    high: float
    t_test: float
    wilcoxon: float


def paired(first: Sequence[float], second: Sequence[float], **bootstrap) -> Paired:
    """Compare two methods on the same cases, in the same order; a pair with a NaN is left out.

    Pairs that agree throughout have p = 1.

    Args:
        first, second: one value a case.
        bootstrap: arguments of `bootstrap_interval`.
    """
    differences = _finite(np.asarray(first, dtype=float) - np.asarray(second, dtype=float))
    differences = differences.round(9)  # so that rounding breaks no tie
    low, high = bootstrap_interval(differences, **bootstrap)
    t_test, wilcoxon = _p_values(differences)
    return Paired(len(differences), mean(differences), low, high, t_test, wilcoxon)


def _p_values(differences: np.ndarray) -> tuple[float, float]:
    """Of the t-test and of Wilcoxon's test."""
    if len(differences) < 2:
        return math.nan, math.nan
    if not differences.any():
        return 1.0, 1.0
    with warnings.catch_warnings():  # on differences that are all the same
        warnings.simplefilter("ignore")
        return float(stats.ttest_1samp(differences, 0).pvalue), signed_rank(differences)


def signed_rank(differences: Sequence[float], exact: int = 200) -> float:
    """Two-sided p of Wilcoxon's signed-rank test; differences of 0 are left out, equal ones share
    their mean rank.

    Up to `exact` differences, p is computed from the distribution over all signs, built rank by
    rank. SciPy's own goes through the signs one by one where ranks are shared, or approximates;
    which of the two depends on its version.
    """
    differences = np.asarray(differences, dtype=float)
    differences = differences[differences != 0]
    if len(differences) > exact:
        return float(stats.wilcoxon(differences).pvalue)
    doubled = 2 * stats.rankdata(np.abs(differences))  # whole numbers: mean ranks end in .5
    ranks = doubled.astype(int)
    chance = np.zeros(ranks.sum() + 1)  # of each sum of the positive ones' ranks
    chance[0] = 1
    for rank in ranks:
        chance[rank:] = (chance[rank:] + chance[:-rank]) / 2
        chance[:rank] /= 2
    positive = ranks[differences > 0].sum()
    tail = min(chance[: positive + 1].sum(), chance[positive:].sum())
    return float(min(1, 2 * tail))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for their number, after Holm (1979): the family-wise error stays below the
    level.

    The smallest of m is multiplied by m, the next by m - 1, …; none becomes smaller than one before
    it, nor larger than 1. NaN stays, and counts for nothing.
    """
    p_values = np.asarray(p_values, dtype=float)
    known = np.count_nonzero(~np.isnan(p_values))
    order = np.argsort(p_values, kind="stable")[:known]  # NaN sorts last
    multiplied = p_values[order] * np.arange(known, 0, -1)
    corrected = np.full(p_values.shape, math.nan)
    corrected[order] = np.minimum(1, np.maximum.accumulate(multiplied))
    return corrected.tolist()


def bootstrap_interval(
    values: Sequence[float], confidence: float = 0.95, resamples: int = 9999, seed: int = 0
) -> tuple[float, float]:
    """Bias-corrected and accelerated (BCa) bootstrap interval of the mean; NaN is left out.

    The same seed draws the same cases again, so intervals of several methods on the same cases
    belong together.

    Returns:
        Low and high end; NaN below two values.
    """
    kept = _finite(values)
    if len(kept) < 2:
        return math.nan, math.nan
    if np.ptp(kept) <= 1e-12 * np.abs(kept).max():  # all the same, but for rounding
        return float(kept[0]), float(kept[0])
    found = stats.bootstrap(
        (kept,),
        np.mean,
        confidence_level=confidence,
        n_resamples=resamples,
        batch=1000,
        method="BCa",
        random_state=np.random.default_rng(seed),  # not `rng`: SciPy takes it before 1.15 too
    )
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def _finite(values: Sequence[float]) -> np.ndarray:
    values = np.asarray(values, dtype=float)
    return values[np.isfinite(values)]
