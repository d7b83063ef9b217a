"""Chooses the members of a mean of models, and their weights, on held-out items.

Models are compared by their calibrated log-likelihood: that at the temperature at which it is highest. A mean adds the
members' calibrated logits.

Notes
-----
Weights that maximise the likelihood of the mean rank worse than equal ones: measured on Beauty with five models, test
NDCG@10 of 0.0592 and 0.0604 to 0.0618.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from recbole_adarec.model.item_table.base import append_ones
from recbole_adarec.model.seen_items import SeenItems, deduplicated

_MOST_ROWS, _FEWEST_ROWS = 8192, 512  # of the validation data
_MOST_LOGITS = 25_000_000  # of one model; larger catalogs have fewer rows
_TOP = 10  # length of the ranking that a further member may not spoil
_LOGITS_AT_A_TIME = 2**22
_STEPS = 20  # of Newton's method, which needs 3 to 5
_ENOUGH = 1e-3  # relative change of the scale at which it stops


class HeldOut(NamedTuple):
    """What a model's logits on V held-out rows are computed from.

    Attributes
    ----------
    states : Tensor
        ``[V, C + 1]``, the last channel is 1.
    table : Tensor
        Rows of the items, each followed by its whole prior, ``[I, C + 1]``.
    seen : SeenItems
        The items of the histories, with the model's bias.
    labels : Tensor
        The held-out items, int64 ``[V]``.
    """

    states: Tensor
    table: Tensor
    seen: SeenItems
    labels: Tensor

    def logits(self, part: slice) -> Tensor:
        """Logits of all items but padding on n of the rows, ``[n, I - 1]``."""
        logits = self.seen.select(part).add_to(self.states[part] @ self.table.T)
        return logits[:, 1:]


@torch.no_grad()
def held_out(model: Any, loader: Any) -> HeldOut:
    """States of a model on rows of the validation data, evenly spread over it, 8,192 at most.

    Parameters
    ----------
    model : AdaRecTeacher
        In evaluation mode.
    loader : recbole.data.dataloader.FullSortEvalDataLoader
        Of the validation part.
    """
    dataset, device = loader._dataset, model.repeat_bias.device
    most = min(_MOST_ROWS, max(_FEWEST_ROWS, _MOST_LOGITS // model.n_items), len(dataset))
    rows = torch.arange(most) * len(dataset) // most
    states, items, labels = [], [], []
    for part in rows.split(loader.config["eval_batch_size"]):
        interaction = dataset[part].to(device)
        states.append(append_ones(model.states_of(interaction)))
        items.append(deduplicated(interaction[model.ITEM_SEQ]))
        labels.append(interaction[model.ITEM_ID])
    seen = SeenItems(torch.cat(items), float(model.repeat_bias))
    return HeldOut(torch.cat(states), model.item_table.matrix, seen, torch.cat(labels))


def mean_of(members: Sequence[HeldOut], weights: Sequence[float]) -> HeldOut:
    """The weighted sum of the logits of several models, which is again of this form."""
    states = [member.states[:, :-1] * weight for member, weight in zip(members, weights, strict=True)]
    prior = torch.stack([member.table[:, -1] * weight for member, weight in zip(members, weights, strict=True)]).sum(0)
    bias = sum(weight * member.seen.bias for member, weight in zip(members, weights, strict=True))
    return HeldOut(
        torch.cat([*states, members[0].states[:, -1:]], 1),
        torch.cat([*(member.table[:, :-1] for member in members), prior[:, None]], 1),
        members[0].seen._replace(bias=bias),
        members[0].labels,
    )


class Calibrated(NamedTuple):
    """A model at the temperature at which the held-out items are most likely.

    Attributes
    ----------
    scale : float
        The inverse of that temperature: the factor of its logits.
    log_likelihood : Tensor
        Of each held-out item, with that factor, ``[V]``.
    ndcg : Tensor
        NDCG@10 of each held-out item, ``[V]``.
    """

    scale: float
    log_likelihood: Tensor
    ndcg: Tensor


@torch.no_grad()
def calibrate(model: HeldOut, scale: float = 0.5) -> Calibrated:
    """Fit the temperature of a model, by Newton's method.

    With z the logits and p the softmax of ``a z``, the derivative of a row's log-likelihood with respect to a is
    ``z[label] - E_p z``, and its second derivative ``-Var_p z``.

    Parameters
    ----------
    model : HeldOut
        The model.
    scale : float
        Where the search begins.
    """
    likelihood, slope, curvature, ndcg = _moments(model, scale)
    for _ in range(_STEPS):
        step = slope / max(curvature, 1e-12)
        step = max(min(step, scale), -scale / 2)  # the logits keep their signs
        new = _moments(model, scale + step)
        while float(new[0].mean()) < float(likelihood.mean()) and abs(step) > _ENOUGH * scale:
            step /= 2
            new = _moments(model, scale + step)
        scale, (likelihood, slope, curvature, ndcg) = scale + step, new
        if abs(step) <= _ENOUGH * scale:
            break
    return Calibrated(scale, likelihood, ndcg)


def _moments(model: HeldOut, scale: float) -> tuple[Tensor, float, float, Tensor]:
    """Log-likelihood of each row, slope and curvature of their sum, and NDCG@10 of each row."""
    likelihoods, ndcgs, slope, curvature = [], [], 0.0, 0.0
    rows = max(_LOGITS_AT_A_TIME // len(model.table), 1)
    for start in range(0, len(model.labels), rows):
        part = slice(start, start + rows)
        z, label = model.logits(part), model.labels[part, None] - 1
        of_label = z.gather(1, label)
        log_p = (scale * z).log_softmax(1)
        p = log_p.exp()
        mean = (p * z).sum(1)
        rank = (z > of_label).sum(1)
        slope += float((of_label[:, 0] - mean).double().sum())
        curvature += float(((p * z * z).sum(1) - mean.square()).double().sum())
        likelihoods.append(log_p.gather(1, label)[:, 0].double())
        ndcgs.append((rank < _TOP).double() / torch.log2(rank + 2.0))
    return torch.cat(likelihoods), slope, curvature, torch.cat(ndcgs)


class Choice(NamedTuple):
    """The members of a mean.

    Attributes
    ----------
    weights : dict of str to float
        Factor of the logits of each member, in the order in which they were chosen.
    mean : Calibrated
        Their mean; its scale is in the weights.
    alone : dict of str to Calibrated
        Every candidate.
    steps : list of str
        What each choice changed, in words.
    left_out : dict of str to str
        Why each other candidate is no member, in words.
    """

    weights: dict[str, float]
    mean: Calibrated
    alone: dict[str, Calibrated]
    steps: list[str]
    left_out: dict[str, str]


def choose_members(
    candidates: Mapping[str, HeldOut], most: int, least: int = 1, alone: Mapping[str, Calibrated] | None = None
) -> Choice:
    """Choose the members of a mean greedily, with repetition (Caruana et al., ICML 2004): the most likely model first.

    A mean is that of the calibrated logits of its members, each counted as often as it was chosen, and is calibrated
    itself. A model is added while that raises the log-likelihood by more than a standard error, and lowers NDCG@10 by
    no more than one: the likelihood alone prefers models that are right about what nobody can rank.

    Parameters
    ----------
    candidates : mapping of str to HeldOut
        One or more, on the same rows.
    most : int
        Largest number of members.
    least : int
        So many members are chosen in any case, the one that helps most each time.
    alone : mapping of str to Calibrated, optional
        What `calibrate` returned for each; computed where it is missing.
    """
    alone = dict(alone or {name: calibrate(model) for name, model in candidates.items()})
    best = max(alone, key=lambda name: float(alone[name].log_likelihood.mean()))
    chosen, mean, steps = [best], alone[best], [f"{best} is the most likely"]

    def weights_of(names: Sequence[str]) -> dict[str, float]:
        counts = {name: names.count(name) for name in names}
        return {name: count * alone[name].scale / len(names) for name, count in counts.items()}

    tried: dict[str, Calibrated] = {}
    while len(chosen) < 2 * most:
        tried, needed = {}, len(set(chosen)) < least
        for name in candidates:
            if (name in chosen and not needed) or (name not in chosen and len(set(chosen)) < most):
                weights = weights_of([*chosen, name])
                members = [candidates[member] for member in weights]
                tried[name] = calibrate(mean_of(members, list(weights.values())), scale=1.0)
        accepted = {name: new for name, new in tried.items() if needed or _better(new, mean)}
        if not accepted:
            break
        name = max(accepted, key=lambda name: float(accepted[name].log_likelihood.mean()))
        new = accepted[name]
        steps.append(f"with {name} {_changes(new, mean)}")
        chosen.append(name)
        mean, tried = new, {}
    weights = {name: weight * (mean.scale if len(chosen) > 1 else 1.0) for name, weight in weights_of(chosen).items()}
    left_out = {
        name: f"with it {_changes(tried[name], mean)}" if name in tried else f"{most} others make a likelier mean"
        for name in candidates
        if name not in chosen
    }
    return Choice(weights, mean, alone, steps, left_out)


def _changes(new: Calibrated, old: Calibrated) -> str:
    """What a further member changes, in words."""
    gain, error = _gain(new.log_likelihood, old.log_likelihood)
    ranking, ranking_error = _gain(new.ndcg, old.ndcg)
    return f"log-likelihood {gain:+.4f} (standard error {error:.4f}), NDCG@{_TOP} {ranking:+.4f} ({ranking_error:.4f})"


def _better(new: Calibrated, old: Calibrated) -> bool:
    """Whether a mean is likelier by more than a standard error, and ranks no worse by more than one."""
    gain, error = _gain(new.log_likelihood, old.log_likelihood)
    ranking, ranking_error = _gain(new.ndcg, old.ndcg)
    return gain > error and ranking >= -ranking_error


def _gain(new: Tensor, old: Tensor) -> tuple[float, float]:
    """Mean difference of two measures of the same rows, and its standard error."""
    difference = new - old
    return float(difference.mean()), float(difference.std()) / len(difference) ** 0.5
