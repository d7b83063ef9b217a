"""Paired comparisons over users: bootstrap intervals and p-values."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from scipy import stats
from torch import Tensor


class Difference(NamedTuple):
    """Mean difference between two models on the same users.

    Attributes
    ----------
    mean : float
        In the unit of the measure.
    low, high : float
        The 95 % interval of the bootstrap.
    """

    mean: float
    low: float
    high: float


def paired_difference(values: Tensor, reference: Tensor, resamples: int = 10_000, seed: int = 0) -> Difference:
    """Mean of ``values - reference`` over users, with the interval of the percentile bootstrap over users.

    Parameters
    ----------
    values, reference : Tensor
        Values of two models: one for each user, ``[U]``, or for each seed and user, ``[S, U]``. Differences are
        averaged over the seeds first, as users are resampled.
    resamples : int
        Number of resamples, each of U users with replacement.
    seed : int
        Seed of the resampling.
    """
    difference = (values - reference).double()
    if difference.dim() == 2:
        difference = difference.mean(0)
    differences = difference.numpy()
    rng = np.random.default_rng(seed)
    means = np.empty(resamples)
    step = max(1, 2_000_000 // len(differences))
    for start in range(0, resamples, step):
        users = rng.integers(len(differences), size=(min(step, resamples - start), len(differences)))
        means[start : start + step] = differences[users].mean(1)
    low, high = np.percentile(means, (2.5, 97.5))
    return Difference(float(differences.mean()), float(low), float(high))


def worse_p_value(values: Tensor, reference: Tensor) -> float:
    """P-value of the one-sided paired t-test that the mean of `values` is below that of `reference`, by scipy.

    Parameters
    ----------
    values, reference : Tensor
        Values of two models for each user, ``[U]``. Where all are equal the p-value is 1.
    """
    difference = (values - reference).double().numpy()
    if not np.any(difference):
        return 1.0
    p_value = float(stats.ttest_1samp(difference, 0.0, alternative="less").pvalue)
    return p_value if math.isfinite(p_value) else float(difference.mean() >= 0)  # all differ by the same


class Significance(NamedTuple):
    """Two-sided p-values of paired tests over users; None where fewer than two users differ.

    Attributes
    ----------
    t_test : float or None
        Of the mean difference.
    wilcoxon : float or None
        Of the ranks of the differences, users without a difference left out.
    """

    t_test: float | None
    wilcoxon: float | None


def paired_tests(values: Tensor, reference: Tensor) -> Significance:
    """P-values of the paired t-test and of Wilcoxon's signed-rank test, by scipy.

    Parameters
    ----------
    values, reference : Tensor
        Values of two models for each user, ``[U]``.
    """
    difference = (values - reference).double().numpy()
    if np.count_nonzero(difference) < 2:
        return Significance(None, None)
    p_values = (stats.ttest_1samp(difference, 0.0).pvalue, stats.wilcoxon(difference).pvalue)
    return Significance(*(float(p) if math.isfinite(p) else None for p in p_values))
