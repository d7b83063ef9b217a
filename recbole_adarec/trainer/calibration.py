"""Calibration on the validation data: the bias of repeated items, and the prior scale at inference.

`repeat_bias` is added to the logits of items that are in the history already. RecBole ranks them like all others, also
where nobody repeats an item (nobody rates a film twice), and a model that scores by the similarity of items gives them
much of its softmax. The losses have the bias too, so that a model need not learn to tell seen items from similar ones.

Notes
-----
Measured on ml-100k: without the bias the seen items have 0.19 or 0.20 of the softmax, and 0.49 (a teacher) to 0.57 (its
student) of the first places. A teacher that is trained with a bias of -10 has a test NDCG@10 of 0.1134; one that gets
its bias after the training has 0.1034 (seed 2021: 0.1210 and 0.1102).
"""

from __future__ import annotations

import math
from logging import getLogger
from typing import Any

import torch
from recbole.utils import calculate_valid_score

from recbole_adarec import distributed
from recbole_adarec.evaluation.kept_states import KeptStates
from recbole_adarec.evaluation.per_user import unserved_prior

_ROWS = 2048  # of the validation data, enough for the mean probability of seen items
_PRIOR_SCALES = (0.75, 0.5)  # that are tried besides 1


def repeat_share(loader: Any) -> float:
    """Share of a loader's held-out items that are in their own histories; never 0 or 1 (Jeffreys' prior).

    Parameters
    ----------
    loader : recbole.data.dataloader.FullSortEvalDataLoader
        Of the validation part; with several processes the part of it that this process evaluates.
    """
    dataset, counts = loader._dataset, torch.zeros(2, dtype=torch.double)
    list_field = getattr(dataset, f"{dataset.iid_field}_list_field")
    for index in torch.arange(len(dataset)).split(_ROWS):
        rows = dataset[index]
        repeated = (rows[list_field] == rows[dataset.iid_field][:, None]).any(1)
        counts += torch.tensor([float(repeated.sum()), float(len(index))])
    repeats, n_rows = distributed.total(counts.to(loader.config["device"])).tolist()
    return float((repeats + 0.5) / (n_rows + 1))


@torch.no_grad()
def seen_probability(model: Any, loader: Any) -> float:
    """Mean probability that a model gives to the items of the history, 0 to 1, over the first 2,048 rows.

    Parameters
    ----------
    model : SequenceRecommender
        In evaluation mode.
    loader : recbole.data.dataloader.FullSortEvalDataLoader
        Of the validation part.
    """
    device, n_rows = model.repeat_bias.device, 0
    sums = torch.zeros(2, device=device)
    prior = unserved_prior(model)
    for interaction, *_ in loader:
        item_seq = interaction[model.ITEM_SEQ].to(device)
        scores = model.full_sort_predict(interaction.to(device)).float() + prior
        scores[:, 0] = -torch.inf
        probability = scores.softmax(1)
        in_history = torch.zeros_like(probability, dtype=torch.bool).scatter_(1, item_seq, True)
        sums += torch.stack([(probability * in_history).sum(), torch.tensor(float(len(item_seq)), device=device)])
        n_rows += len(item_seq)
        if n_rows >= _ROWS:
            break
    mass, total_rows = distributed.total(sums).tolist()
    return float(mass / total_rows)


def fit_repeat_bias(model: Any, loader: Any, share: float) -> None:
    """Set a model's `repeat_bias` such that it repeats items as often as the data does.

    If the history has a probability of m without a bias, it has ``m e^r / (1 - m + m e^r)`` with a bias of r: the odds
    are multiplied by ``e^r``. The bias makes them those of `share`.

    Parameters
    ----------
    model : SequenceRecommender
        In evaluation mode.
    loader : recbole.data.dataloader.FullSortEvalDataLoader
        Of the validation part.
    share : float
        What `repeat_share` returned for it.
    """
    model.repeat_bias.zero_()
    mass = min(max(seen_probability(model, loader), 1e-6), 1 - 1e-6)
    bias = math.log(share / (1 - share)) - math.log(mass / (1 - mass))
    model.repeat_bias.fill_(round(bias, 3))  # sums over several processes differ in their last digits


def choose_served_prior(trainer: Any, valid_data: Any, valid: dict[str, float]) -> dict[str, float]:
    """Choose the prior scale at inference by the validation metric, unless the key ``served_prior`` gives it.

    The scores hold 1, 0.75 or 0.5 of the item priors; the best scale is written into the item table.

    Parameters
    ----------
    trainer : StageTrainer
        With the trained model.
    valid_data : DataLoader
        RecBole's, of the validation part.
    valid : dict
        The validation result with a scale of 1.

    Returns
    -------
    dict
        The validation result with the scale that was chosen.
    """
    table = trainer.model.item_table
    if trainer.config["served_prior"] is not None or not table.prior.any():
        return valid
    results = {1.0: valid}
    with KeptStates().of({"": trainer.model.eval()}):
        for scale in _PRIOR_SCALES:
            table.served.fill_(scale)
            results[scale] = dict(trainer.evaluate(valid_data, load_best_model=False))
    scores = {scale: calculate_valid_score(result, trainer.valid_metric) for scale, result in results.items()}
    best = (max if trainer.valid_metric_bigger else min)(scores, key=lambda scale: scores[scale])
    table.served.fill_(best)
    compared = ", ".join(f"{scale}: {score}" for scale, score in scores.items())
    getLogger().info(f"served_prior: {best}; validation {trainer.valid_metric} by prior scale: {compared}")
    return results[best]
