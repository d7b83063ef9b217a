"""Accuracy for each user, on which paired comparisons are based."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from recbole_adarec.model.base import SequenceRecommender


class UserScores(NamedTuple):
    """Results for the held-out items of U users, in ascending order of user ids.

    Attributes
    ----------
    user : Tensor
        Ids of the users, int64 ``[U]``.
    ndcg : Tensor
        NDCG@k, ``[U]``; its mean is RecBole's NDCG@k.
    log_likelihood : Tensor
        Log-probability of the held-out item among all items, natural logarithm, ``[U]``. A finer
        measure than NDCG@k, which is 0 for most users.
    recall, mrr : Tensor
        Recall@k (of one item: Hit@k) and MRR@k, ``[U]``.
    ndcg_new : Tensor
        NDCG@k among the items that are not in the user's history, and the held-out one, ``[U]``. RecBole ranks the
        items of the history too; a model that cannot tell them from new ones loses NDCG@k by that, however well it
        ranks the new ones.
    """

    user: Tensor
    ndcg: Tensor
    log_likelihood: Tensor
    recall: Tensor
    mrr: Tensor
    ndcg_new: Tensor


@torch.no_grad()
def user_scores(model: Any, loader: Any, k: int = 10) -> UserScores:
    """Results of ranking each user's held-out items among all items.

    Parameters
    ----------
    model : SequenceRecommender
        In evaluation mode; or a model of RecBole.
    loader : recbole.data.dataloader.FullSortEvalDataLoader
        Of a sequential dataset: one held-out item in each row. A user with several rows gets their mean.
    k : int
        Length of the ranking.
    """
    device = next(model.parameters()).device
    prior = unserved_prior(model)
    users, ranks, new_ranks, likelihoods = [], [], [], []
    for interaction, _, _, item in loader:
        scores = model.full_sort_predict(interaction.to(device)).float()
        scores[:, 0] = -math.inf  # the padding item
        target_score = scores.gather(1, item.to(device)[:, None])
        above = scores > target_score
        ranks.append(above.sum(1).cpu())
        new_ranks.append(above.scatter(1, interaction[model.ITEM_SEQ].to(device), False).sum(1).cpu())
        logits = scores + prior
        likelihoods.append((logits.gather(1, item.to(device)[:, None])[:, 0] - logits.logsumexp(1)).cpu())
        users.append(interaction[loader.dataset.uid_field].cpu())
    user, row = torch.cat(users).unique(return_inverse=True)
    count = torch.bincount(row)
    rank, new_rank = torch.cat(ranks), torch.cat(new_ranks)
    hit = (rank < k).double()
    ndcg, ndcg_new = ((r < k).double() / torch.log2(r + 2.0) for r in (rank, new_rank))
    measures = (ndcg, torch.cat(likelihoods), hit, hit / (rank + 1), ndcg_new)
    return UserScores(user, *(torch.bincount(row, weights=values) / count for values in measures))


def unserved_prior(model: Any) -> Tensor | float:
    """The part of a model's item priors that its scores do not hold, ``[I]``; 0 for a RecBole model.

    It is added to the scores where the probability of an item is computed.
    """
    return model.item_table.unserved_prior if isinstance(model, SequenceRecommender) else 0.0
