"""What a model does for each user: the finest that can be measured, and what paired comparisons are made of."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from recbole_adarec.model.base import SequenceRecommender


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
    unserved_prior = unserved_prior_of(model)
    users, ranks, new_ranks, likelihoods = [], [], [], []
    for interaction, _, _, item in loader:
        scores = model.full_sort_predict(interaction.to(device)).float()
        scores[:, 0] = -math.inf  # the padding item is none
        of_item = scores.gather(1, item.to(device)[:, None])
        above = scores > of_item
        ranks.append(above.sum(1).cpu())
        new_ranks.append(above.scatter(1, interaction[model.ITEM_SEQ].to(device), False).sum(1).cpu())
        logits = scores + unserved_prior
        likelihoods.append((logits.gather(1, item.to(device)[:, None])[:, 0] - logits.logsumexp(1)).cpu())
        users.append(interaction[loader.dataset.uid_field].cpu())
    user, row = torch.cat(users).unique(return_inverse=True)
    count = torch.bincount(row)
    rank, new_rank = torch.cat(ranks), torch.cat(new_ranks)
    inside = (rank < k).double()
    ndcg, ndcg_new = ((of < k).double() / torch.log2(of + 2.0) for of in (rank, new_rank))
    values = (ndcg, torch.cat(likelihoods), inside, inside / (rank + 1), ndcg_new)
    return UserScores(user, *(torch.bincount(row, weights=of_row) / count for of_row in values))


def unserved_prior_of(model: Any) -> Tensor | float:
    """The part of the item priors that a model leaves out of its scores, ``[I]``; 0 for a RecBole model.

    It belongs to the likelihood of an item.
    """
    return model.item_table.unserved_prior if isinstance(model, SequenceRecommender) else 0.0
