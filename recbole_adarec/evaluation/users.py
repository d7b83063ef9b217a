"""What a model does for each user: the finest that can be measured, and what paired comparisons are made of."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from recbole_adarec.model.item_table import ItemTable


class UserScores(NamedTuple):
    """Results for the held-out items of U users, in order of the users.

    Attributes
    ----------
    user : Tensor
        Ids of the users, int64 ``[U]``.
    ndcg : Tensor
        NDCG@k, ``[U]``; its mean is RecBole's NDCG@k.
    log_likelihood : Tensor
        Log-probability of the held-out item among all items, natural logarithm, ``[U]``. A finer
        measure than NDCG@k, which most users leave at 0.
    recall, mrr : Tensor
        Recall@k (of one item: Hit@k) and MRR@k, ``[U]``.
    ndcg_new : Tensor
        NDCG@k where the other items of the user's own history are left out of the ranking, ``[U]``. RecBole ranks
        them too, and a model that has no way to tell them apart loses by that, whatever it knows of the new ones.
    """

    user: Tensor
    ndcg: Tensor
    log_likelihood: Tensor
    recall: Tensor
    mrr: Tensor
    ndcg_new: Tensor


@torch.no_grad()
def user_scores(model: Any, loader: Any, k: int = 10) -> UserScores:
    """Rank the held-out items of RecBole's full-ranking loader among all items.

    Parameters
    ----------
    model : SequenceRecommender
        In evaluation mode.
    loader : recbole.data.dataloader.FullSortEvalDataLoader
        Of a sequential dataset: one item to find for each row. A user with several rows gets their mean.
    k : int
        Length of the ranking.
    """
    device = next(model.parameters()).device
    withheld = withheld_by(model)
    users, ranks, new_ranks, likelihoods = [], [], [], []
    for interaction, _, _, item in loader:
        scores = model.full_sort_predict(interaction.to(device)).float()
        scores[:, 0] = -math.inf  # the padding item is none
        of_item = scores.gather(1, item.to(device)[:, None])
        above = scores > of_item
        ranks.append(above.sum(1).cpu())
        new_ranks.append(above.scatter(1, interaction[model.ITEM_SEQ].to(device), False).sum(1).cpu())
        logits = scores + withheld
        likelihoods.append((logits.gather(1, item.to(device)[:, None])[:, 0] - logits.logsumexp(1)).cpu())
        users.append(interaction[loader.dataset.uid_field].cpu())
    user, row = torch.cat(users).unique(return_inverse=True)
    count = torch.bincount(row)
    rank, new_rank = torch.cat(ranks), torch.cat(new_ranks)
    inside = (rank < k).double()
    ndcg, ndcg_new = ((of < k).double() / torch.log2(of + 2.0) for of in (rank, new_rank))
    values = (ndcg, torch.cat(likelihoods), inside, inside / (rank + 1), ndcg_new)
    return UserScores(user, *(torch.bincount(row, weights=of_row) / count for of_row in values))


def withheld_by(model: Any) -> Tensor | float:
    """What a model knows of popularity and does not rank by, ``[I]``: it counts in the likelihood of an item."""
    table = getattr(model, "item_table", None)
    return table.withheld if isinstance(table, ItemTable) else 0.0


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
