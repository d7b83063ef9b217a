"""How much less, or more, an item is worth after it was taken: `SequenceRecommender.repeat_bias`, found by validation.

Nobody rates a film twice, and RecBole ranks the films of a history all the same. A model that scores by the similarity
of items gives them much of its softmax: on ml-100k .19 or .20, and .49 (a teacher) to .57 (its student) of the first
places. What is missing is a number, added to the logits of those items. The losses have it too, so that a model need
not learn to tell what was taken from what is like it: a teacher of ml-100k that is trained with -10 has a test NDCG@10
of .1134 where one that was given its bias afterwards has .1034 (seed 2021: .1210 for .1102).
"""

from __future__ import annotations

import math
from typing import Any

import torch

from recbole_adarec import distributed
from recbole_adarec.evaluation.per_user import unserved_prior_of

_ROWS = 2048  # on which a model is asked for its mass: a mean of so many is known well enough


def repeat_share(loader: Any) -> float:
    """How many of a loader's held-out items stand in their own histories; never 0 or 1 (Jeffreys' prior)."""
    dataset, found = loader._dataset, torch.zeros(2, dtype=torch.double)
    list_field = getattr(dataset, f"{dataset.iid_field}_list_field")
    for index in torch.arange(len(dataset)).split(_ROWS):
        rows = dataset[index]
        repeated = (rows[list_field] == rows[dataset.iid_field][:, None]).any(1)
        found += torch.tensor([float(repeated.sum()), float(len(index))])
    repeats, number = distributed.total(found.to(loader.config["device"])).tolist()
    return float((repeats + 0.5) / (number + 1))


@torch.no_grad()
def seen_probability(model: Any, loader: Any) -> float:
    """The mean probability that a model gives to the items of the history."""
    device, seen = model.repeat_bias.device, 0
    found = torch.zeros(2, device=device)
    unserved_prior = unserved_prior_of(model)
    for interaction, *_ in loader:
        item_seq = interaction[model.ITEM_SEQ].to(device)
        scores = model.full_sort_predict(interaction.to(device)).float() + unserved_prior
        scores[:, 0] = -torch.inf
        probability = scores.softmax(1)
        own = torch.zeros_like(probability, dtype=torch.bool).scatter_(1, item_seq, True)
        found += torch.stack([(probability * own).sum(), torch.tensor(float(len(item_seq)), device=device)])
        seen += len(item_seq)
        if seen >= _ROWS:
            break
    mass, number = distributed.total(found).tolist()
    return float(mass / number)


def fit_repeat_bias(model: Any, loader: Any, share: float) -> None:
    """Set a model's bias so that it repeats as often as the data does.

    With a bias r a history of mass m has ``m e^r / (1 - m + m e^r)``: the odds are multiplied by ``e^r``, and they are
    to be those of the `share` of repeats.

    Parameters
    ----------
    model : SequenceRecommender
        In evaluation mode.
    loader : recbole.data.dataloader.FullSortEvalDataLoader
        Of the validation part.
    share : float
        What `repeat_share` found in it.
    """
    model.repeat_bias.zero_()
    mass = min(max(seen_probability(model, loader), 1e-6), 1 - 1e-6)
    bias = math.log(share / (1 - share)) - math.log(mass / (1 - mass))
    model.repeat_bias.fill_(round(bias, 3))  # sums of several processes are rounded otherwise
