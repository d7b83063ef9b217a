"""The most probable choice of operations within a cost budget."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from recbole_adarec.errors import AdaRecError
from recbole_adarec.model.search_space.architecture import edges

_State = tuple[float, float, tuple[int, ...]]  # log-probability, cost and operations of the edges decided so far


def within_budget(
    log_p: Tensor,
    costs: Tensor,
    budget: float,
    nodes: int,
    none: int | None = None,
    least: float = 0.0,
    resolution: int = 1000,
) -> list[list[int]]:
    """Operation indices by cell and edge: the most probable choice whose total cost is at most `budget`.

    A knapsack problem, solved by dynamic programming. Of the partial choices whose costs agree up to
    ``budget / resolution``, only the most probable is kept. Costs are summed exactly, so the budget always holds. An
    edge that starts at a node without input costs nothing, and its operation is `none`.

    Parameters
    ----------
    log_p : Tensor
        Log-probabilities of the operations, ``[G, E, O]``, for G groups of cells that share α.
    costs : Tensor
        Cost of each operation, ``[O]``.
    budget : float
        Largest total cost, in the unit of `costs`.
    nodes : int
        Number of computed nodes of a cell; it has E edges.
    none : int, optional
        Index of the operation "none". Without it every edge is taken to have an input.
    least : float
        Lower bound of the total cost, as a share of `budget`, or of the most expensive choice where that costs less.
    resolution : int
        Number of steps into which the budget is divided.

    Raises
    ------
    AdaRecError
        If the cheapest choice costs more than the budget.
    """
    limit = budget * (1 + 1e-6)
    unit = max(limit, 1e-12) / resolution
    prices = costs.tolist()
    # Keys: rounded cost, and the nodes of the cell with an input as bits. Values: log-probability, cost, choice.
    best: dict[tuple[int, int], _State] = {(0, 1): (0.0, 0.0, ())}
    for cell in log_p.tolist():
        best = _most_probable((steps, 1, state) for (steps, _), state in best.items())  # node 0 is the cell's input
        for (i, j), edge in zip(edges(nodes), cell, strict=True):
            extended = []
            for (_, alive), (score, used, choice) in best.items():
                if none is not None and not alive >> i & 1:
                    extended.append((round(used / unit), alive, (score, used, (*choice, none))))
                    continue
                for operation, price in enumerate(prices):
                    if (total := used + price) <= limit:
                        alive_after = alive if operation == none else alive | 1 << j
                        state = (score + edge[operation], total, (*choice, operation))
                        extended.append((round(total / unit), alive_after, state))
            best = _most_probable(extended)
        if not best:
            raise AdaRecError(f"cost_budget: no choice of operations costs at most {budget:.4g}")
    floor = least * min(budget, max(used for _, used, _ in best.values()))
    flat = max(state for state in best.values() if state[1] >= floor)[2]
    width = len(edges(nodes))
    return [list(flat[start : start + width]) for start in range(0, len(flat), width)]


def _most_probable(states: Iterable[tuple[int, int, _State]]) -> dict[tuple[int, int], _State]:
    """The most probable state for each rounded cost and set of nodes with an input."""
    best: dict[tuple[int, int], _State] = {}
    for steps, alive, state in states:
        if (steps, alive) not in best or state[0] > best[steps, alive][0]:
            best[steps, alive] = state
    return best
