"""The most probable choice of operations within a budget."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from recbole_adarec.errors import AdaRecError
from recbole_adarec.model.search_space.architecture import edges


def within_budget(
    log_p: Tensor,
    costs: Tensor,
    budget: float,
    nodes: int,
    none: int | None = None,
    least: float = 0.0,
    resolution: int = 1000,
) -> list[list[int]]:
    """The most probable choice of operations whose summed cost is at most `budget`, and not far below.

    A knapsack solved by dynamic programming; of the partial choices whose costs agree to ``budget / resolution`` the
    most probable is kept. The sums themselves are exact, so the budget always holds. An edge behind a node that
    receives nothing costs nothing, and is none.

    Parameters
    ----------
    log_p : Tensor
        Log-probabilities of G cells, ``[G, E, O]``.
    costs : Tensor
        Cost of each operation, ``[O]``.
    budget : float
        Largest sum, in the unit of `costs`.
    nodes : int
        N, to which the E edges belong.
    none : int, optional
        Place of the operation that sends nothing.
    least : float
        The sum is at least this share of `budget`, or of the most expensive choice where that costs less.

    Raises
    ------
    AdaRecError
        If even the cheapest choice is above the budget.
    """
    limit = budget * (1 + 1e-6)
    unit = max(limit, 1e-12) / resolution
    prices = costs.tolist()
    # By rounded cost and the nodes of the cell that receive something: log-probability, cost, choice.
    best: dict[tuple[int, int], tuple[float, float, tuple[int, ...]]] = {(0, 1): (0.0, 0.0, ())}
    for cell in log_p.tolist():
        best = _better((place, 1, state) for (place, _), state in best.items())  # node 0 receives the cell's input
        for (i, j), edge in zip(edges(nodes), cell, strict=True):
            reached = []
            for (_, alive), (score, used, chosen) in best.items():
                if none is not None and not alive >> i & 1:
                    reached.append((round(used / unit), alive, (score, used, (*chosen, none))))
                    continue
                for operation, price in enumerate(prices):
                    if (total := used + price) <= limit:
                        now = alive if operation == none else alive | 1 << j
                        longer = (score + edge[operation], total, (*chosen, operation))
                        reached.append((round(total / unit), now, longer))
            best = _better(reached)
        if not best:
            raise AdaRecError(f"cost_budget: no choice of operations costs at most {budget:.4g}")
    floor = least * min(budget, max(used for _, used, _ in best.values()))
    flat = max(state for state in best.values() if state[1] >= floor)[2]
    width = len(edges(nodes))
    return [list(flat[start : start + width]) for start in range(0, len(flat), width)]


def _better(
    states: Iterable[tuple[int, int, tuple[float, float, tuple[int, ...]]]],
) -> dict[tuple[int, int], tuple[float, float, tuple[int, ...]]]:
    """The most probable of the states of the same cost and the same nodes."""
    best: dict[tuple[int, int], tuple[float, float, tuple[int, ...]]] = {}
    for place, alive, state in states:
        if (place, alive) not in best or state[0] > best[place, alive][0]:
            best[place, alive] = state
    return best
