"""The choice of operations within a budget, against trying every choice."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_adarec.errors import AdaRecError
from recbole_adarec.model.search_space.architecture import edges
from recbole_adarec.model.search_space.budget import within_budget

OPERATIONS, NONE = 3, 0


def best_of_all(log_p, costs, budget, nodes):
    """Log-probability and choice of the most probable one; an edge behind a node without input is none, and free."""
    best = None
    order = edges(nodes)
    for choice in itertools.product(range(OPERATIONS), repeat=len(order)):
        alive, cost, score = {0}, 0.0, 0.0
        for number, ((i, j), operation) in enumerate(zip(order, choice, strict=True)):
            if i not in alive:
                if operation != NONE:
                    break
                continue
            cost += costs[operation]
            score += log_p[number][operation]
            if operation != NONE:
                alive.add(j)
        else:
            if cost <= budget and (best is None or score > best[0]):
                best = score, choice
    return best


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    nodes=st.integers(1, 2),
    costs=st.tuples(st.integers(0, 2), st.integers(0, 9), st.integers(0, 9)),
    budget=st.integers(0, 25),
    seed=st.integers(0, 1000),
)
def test_the_most_probable_choice_within_a_budget_is_found(nodes, costs, budget, seed):
    generator = torch.Generator().manual_seed(seed)
    log_p = torch.randn(1, len(edges(nodes)), OPERATIONS, generator=generator, dtype=torch.double).log_softmax(-1)
    arguments = log_p, torch.tensor(costs, dtype=torch.double), float(budget), nodes, NONE
    best = best_of_all(log_p[0].tolist(), costs, budget, nodes)
    if best is None:
        with pytest.raises(AdaRecError, match="no choice of operations costs at most"):
            within_budget(*arguments)
        return
    (choice,) = within_budget(*arguments)
    assert tuple(choice) == best[1]
