"""The choice of operations within a budget, against trying every choice."""

from __future__ import annotations

import itertools

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_adarec.model.search_space.architecture import edges
from recbole_adarec.model.search_space.budget import within_budget

OPERATIONS, NONE = 3, 0


def choices_of_a_cell(log_p, costs, nodes):
    """Log-probability, cost and operations of every choice; an edge behind a node without input is none, and free."""
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
            yield score, cost, list(choice)


def best_of_all(log_p, costs, budget, nodes):
    """The most probable choice of all cells together within the budget; None if none costs so little."""
    cells = [list(choices_of_a_cell(cell, costs, nodes)) for cell in log_p]
    affordable = [cells for cells in itertools.product(*cells) if sum(cost for _, cost, _ in cells) <= budget]
    best = max(affordable, key=lambda cells: sum(score for score, _, _ in cells), default=None)
    return None if best is None else [choice for _, _, choice in best]


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    nodes=st.integers(1, 2),
    costs=st.tuples(st.integers(0, 2), st.integers(0, 9), st.integers(0, 9)),
    budget=st.integers(0, 40),
    seed=st.integers(0, 1000),
)
def test_the_most_probable_choice_within_a_budget_is_found(nodes, costs, budget, seed):
    generator = torch.Generator().manual_seed(seed)
    log_p = torch.randn(2, len(edges(nodes)), OPERATIONS, generator=generator, dtype=torch.double).log_softmax(-1)
    shares = torch.tensor(costs, dtype=torch.double)[:, None] / max(budget, 1e-12)
    assert within_budget(log_p, shares, nodes, NONE) == best_of_all(log_p.tolist(), costs, budget, nodes)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=3, max_size=3), st.integers(0, 1000))
def test_every_one_of_several_budgets_holds(costs, seed):
    log_p = torch.randn(2, 3, OPERATIONS, generator=torch.Generator().manual_seed(seed)).log_softmax(-1)
    shares = torch.tensor(costs, dtype=torch.double) / torch.tensor([20.0, 12.0])
    best = within_budget(log_p, shares, 2)
    cheapest = shares[(shares.max(1).values).argmin()]
    if best is None:
        assert (6 * cheapest > 1).any()
    else:
        assert (shares[torch.tensor(best).flatten()].sum(0) <= 1 + 1e-6).all()
        freely = log_p.argmax(-1)
        if (shares[freely.flatten()].sum(0) <= 1).all():
            assert best == freely.tolist()
