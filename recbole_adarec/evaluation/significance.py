"""Paired comparisons over users: bootstrap intervals and p-values."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from scipy import stats
from torch import Tensor


class Difference(NamedTuple):
    """A mean difference between two models on the same users, with its 95 % interval."""

    mean: float
    low: float
    high: float


def paired_difference(ours: Tensor, theirs: Tensor, resamples: int = 10_000, seed: int = 0) -> Difference:
    """Mean of ``ours - theirs`` over users, with the percentile bootstrap over users.

    Parameters
    ----------
    ours, theirs : Tensor
        A value for each user, ``[U]``, or one for each seed and user, ``[S, U]``: then the differences of a user are
        averaged over the seeds first, for users are what is drawn.
    resamples : int
        Draws of U users with replacement.
    seed : int
        Of the draws.
    """
    difference = (ours - theirs).double()
    if difference.dim() == 2:
        difference = difference.mean(0)
    values = difference.numpy()
    rng = np.random.default_rng(seed)
    means = np.empty(resamples)
    step = max(1, 2_000_000 // len(values))
    for start in range(0, resamples, step):
        drawn = rng.integers(len(values), size=(min(step, resamples - start), len(values)))
        means[start : start + step] = values[drawn].mean(1)
    low, high = np.percentile(means, (2.5, 97.5))
    return Difference(float(values.mean()), float(low), float(high))


class Significance(NamedTuple):
    """Two-sided p-values of paired tests over users; None where no user differs, or too few do."""

    t_test: float | None
    wilcoxon: float | None


def paired_tests(ours: Tensor, theirs: Tensor) -> Significance:
    """Paired t-test and Wilcoxon's signed-rank test of a value for each user, ``[U]``, by scipy.

    The t-test is of the mean, Wilcoxon's of the ranks of the differences, users without one left out.
    """
    difference = (ours - theirs).double().numpy()
    if np.count_nonzero(difference) < 2:
        return Significance(None, None)
    found = (stats.ttest_1samp(difference, 0.0).pvalue, stats.wilcoxon(difference).pvalue)
    return Significance(*(float(p) if math.isfinite(p) else None for p in found))
