"""Weights of a mean of models: the most likely ones, and members that help."""

from __future__ import annotations

import pytest
import torch

from recbole_adarec.evaluation import mean_weights
from recbole_adarec.evaluation.mean_weights import HeldOut, calibrate, choose_members, mean_of
from recbole_adarec.model.seen_items import SeenItems

ROWS, ITEMS, SIZE = 300, 40, 8


def model(quality: float, labels: torch.Tensor, scale: float = 1.0) -> HeldOut:
    """A model whose states point at the label by some quality, and whose logits are too large by a scale."""
    table = torch.randn(ITEMS, SIZE)
    states = quality * table[labels] + torch.randn(ROWS, SIZE)
    seen = SeenItems((7 * labels % (ITEMS - 1) + 1)[:, None], -1.0)
    table = torch.cat([scale * table, torch.randn(ITEMS, 1)], 1)
    return HeldOut(torch.cat([states, torch.ones(ROWS, 1)], 1), table, seen, labels)


@pytest.fixture
def labels() -> torch.Tensor:
    return torch.randint(1, ITEMS, (ROWS,))


def logits(member: HeldOut) -> torch.Tensor:
    """By their definition, with the bias on the one seen item; without padding."""
    own = member.states @ member.table.T
    own[torch.arange(ROWS), member.seen.items[:, 0]] += member.seen.bias
    return own[:, 1:]


def log_likelihood(z: torch.Tensor, labels: torch.Tensor) -> float:
    return float(z.double().log_softmax(1)[torch.arange(ROWS), labels - 1].mean())


@pytest.mark.parametrize("scale", [0.1, 1.0, 20.0])
def test_the_temperature_has_the_highest_likelihood(labels, scale):
    one = model(0.4, labels, scale)
    found, z = calibrate(one), logits(one)
    best = log_likelihood(found.scale * z, labels)
    assert float(found.log_likelihood.mean()) == pytest.approx(best, abs=1e-4)
    for factor in (0.9, 1.1):
        assert log_likelihood(factor * found.scale * z, labels) < best
    rank = (z > z.gather(1, labels[:, None] - 1)).sum(1)
    torch.testing.assert_close(found.ndcg, torch.where(rank < 10, 1 / torch.log2(rank + 2.0), 0).double())


def test_a_mean_has_the_weighted_sum_of_the_logits(labels):
    members, weights = [model(0.3, labels), model(0.2, labels, scale=5.0)], [0.7, 0.2]
    expected = sum(weight * logits(member) for member, weight in zip(members, weights, strict=True))
    torch.testing.assert_close(logits(mean_of(members, weights)), expected, rtol=1e-4, atol=1e-4)


def test_members_that_help_are_chosen_and_others_are_not(labels):
    candidates = {"weak": model(0.1, labels), "good": model(0.4, labels), "noise": model(0.0, labels)}
    candidates |= {"copy": candidates["good"], "other": model(0.35, labels)}
    choice = choose_members(candidates, most=5)
    assert next(iter(choice.weights)) == "good" and "other" in choice.weights and "noise" not in choice.weights
    assert all(weight > 0 for weight in choice.weights.values())
    mean = mean_of([candidates[name] for name in choice.weights], list(choice.weights.values()))
    assert calibrate(mean).scale == pytest.approx(1, rel=0.01)  # the weights hold the mean's own temperature
    alone = choice.alone["good"]
    assert float(choice.mean.log_likelihood.mean()) > float(alone.log_likelihood.mean())
    assert choose_members(candidates, most=1).weights == {"good": alone.scale}
    assert len(choose_members(candidates, most=4, least=4).weights) == 4
    assert len(choose_members(candidates, most=9, least=9).weights) == 5, "there are no more"


def test_what_is_likelier_and_ranks_worse_is_not_added(labels, monkeypatch):
    """Only the ranking of a candidate is changed: it would be chosen otherwise."""
    candidates = {"good": model(0.4, labels), "other": model(0.35, labels)}
    assert set(choose_members(candidates, most=2).weights) == {"good", "other"}
    original = mean_weights.calibrate

    def ranks_worse(of, scale=0.5):
        found = original(of, scale)
        mean = of.table.shape[1] > SIZE + 1
        return found._replace(ndcg=torch.zeros(ROWS).double()) if mean else found

    monkeypatch.setattr(mean_weights, "calibrate", ranks_worse)
    assert set(choose_members(candidates, most=2).weights) == {"good"}


def test_a_model_alone_is_chosen_alone(labels):
    choice = choose_members({"only": model(0.2, labels)}, most=3)
    assert list(choice.weights) == ["only"] and len(choice.steps) == 1
