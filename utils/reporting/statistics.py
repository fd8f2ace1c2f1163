"""What two methods are compared with: paired tests over cases, Holm's correction, bootstrap
intervals.

A case is the unit: the two methods segment the same ones, and the differences between them are what
is tested. Seeds of a method are no further cases; average over them first.
"""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats


@dataclass(frozen=True)
class Spread:
    """Mean and sample sd (``ddof`` 1, NaN below two values) of ``n`` values."""

    mean: float
    sd: float
    n: int


@dataclass(frozen=True)
class Paired:
    """Differences of pairs, first minus second, and what they are worth.

    Attributes:
        n: pairs.
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


def spread(values: Sequence[float]) -> Spread:
    """Mean, sample sd and number of the values; NaN is left out."""
    kept = _finite(values)
    mean = float(kept.mean()) if len(kept) else math.nan
    return Spread(mean, float(kept.std(ddof=1)) if len(kept) > 1 else math.nan, len(kept))


def paired(first: Sequence[float], second: Sequence[float], **bootstrap) -> Paired:
    """Compare two methods on the same cases, in the same order; a pair with a NaN is left out.

    Pairs that agree throughout have p = 1.

    Args:
        first, second: one value a case.
        bootstrap: of :func:`bootstrap_interval`.
    """
    differences = _finite(np.asarray(first, dtype=float) - np.asarray(second, dtype=float)).round(
        9
    )  # rounding is no tie
    low, high = bootstrap_interval(differences, **bootstrap)
    mean = float(differences.mean()) if len(differences) else math.nan
    if len(differences) < 2:
        p_values = math.nan, math.nan
    elif not differences.any():
        p_values = 1.0, 1.0
    else:
        with warnings.catch_warnings():  # on differences that are all the same
            warnings.simplefilter("ignore")
            p_values = float(stats.ttest_1samp(differences, 0).pvalue), signed_rank(differences)
    return Paired(len(differences), mean, low, high, *p_values)


def signed_rank(differences: Sequence[float], exact: int = 200) -> float:
    """Two-sided p of Wilcoxon's signed-rank test; differences of 0 are left out, equal ones share
    their mean rank.

    Up to ``exact`` differences from the distribution over all signs, built rank by rank: SciPy's
    own goes through the signs one by one where ranks are shared, or approximates, which of the two
    depends on its version.
    """
    differences = np.asarray(differences, dtype=float)
    differences = differences[differences != 0]
    if len(differences) > exact:
        return float(stats.wilcoxon(differences).pvalue)
    ranks = (2 * stats.rankdata(np.abs(differences))).astype(
        int
    )  # whole numbers: mean ranks end in .5
    chance = np.zeros(ranks.sum() + 1)  # of each sum of the positive ones' ranks
    chance[0] = 1
    for rank in ranks:
        chance[rank:] = (chance[rank:] + chance[:-rank]) / 2
        chance[:rank] /= 2
    positive = ranks[differences > 0].sum()
    return float(min(1, 2 * min(chance[: positive + 1].sum(), chance[positive:].sum())))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for being several, after Holm (1979): the family-wise error stays below
    the level.

    The smallest of m is multiplied by m, the next by m - 1, …; none becomes smaller than one before
    it, nor larger than
    1. NaN stays, and counts for nothing.
    """
    p_values = np.asarray(p_values, dtype=float)
    order = np.argsort(p_values, kind="stable")[
        : np.count_nonzero(~np.isnan(p_values))
    ]  # NaN sorts last
    corrected = np.full(p_values.shape, math.nan)
    corrected[order] = np.minimum(
        1, np.maximum.accumulate(p_values[order] * np.arange(len(order), 0, -1))
    )
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
    settings = {
        "confidence_level": confidence,
        "n_resamples": resamples,
        "batch": 1000,
        "method": "BCa",
    }
    # `random_state`, not `rng`: SciPy takes it before 1.15 too
    found = stats.bootstrap((kept,), np.mean, random_state=np.random.default_rng(seed), **settings)
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def _finite(values: Sequence[float]) -> np.ndarray:
    values = np.asarray(values, dtype=float)
    return values[np.isfinite(values)]
