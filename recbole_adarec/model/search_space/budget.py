"""The most probable choice of operations within budgets."""

from __future__ import annotations

from collections.abc import Iterable
from operator import add

from torch import Tensor

from recbole_adarec.model.search_space.architecture import edges

_State = tuple[float, tuple[float, ...], tuple[int, ...]]  # log-probability, costs and operations of the edges so far
_Key = tuple[tuple[int, ...], int]  # rounded costs, and the nodes of the cell with an input as bits
_STEPS = (1000, 60, 20)  # into which each of one, two, or more budgets is divided


def within_budget(
    log_p: Tensor, costs: Tensor, nodes: int, none: int | None = None, least: float = 0.0
) -> list[list[int]] | None:
    """Operation indices by cell and edge: the most probable choice within all budgets; None if there is none.

    A knapsack problem, solved by dynamic programming. Of the partial choices whose costs agree up to a step of each
    budget, only the most probable is kept. Costs are summed exactly, so the budgets always hold. An edge that starts at
    a node without input costs nothing, and its operation is `none`.

    Parameters
    ----------
    log_p : Tensor
        Log-probabilities of the operations, ``[G, E, O]``, for G groups of cells that share α.
    costs : Tensor
        Costs of each operation as shares of the K budgets, ``[O, K]``.
    nodes : int
        Number of computed nodes of a cell; it has E edges.
    none : int, optional
        Index of the operation "none". Without it every edge is taken to have an input.
    least : float
        Lower bound of the largest share that the choice has of a budget, or that the most expensive choice has where
        that is less.
    """
    prices = [tuple(price) for price in costs.tolist()]
    kinds = costs.shape[1]
    steps = _STEPS[min(kinds, len(_STEPS)) - 1]
    best: dict[_Key, _State] = {((0,) * kinds, 1): (0.0, (0.0,) * kinds, ())}
    for cell in log_p.tolist():
        best = _most_probable(((spent, 1), state) for (spent, _), state in best.items())  # node 0 is the cell's input
        for (i, j), edge in zip(edges(nodes), cell, strict=True):
            extended: list[tuple[_Key, _State]] = []
            for (spent, alive), (score, used, choice) in best.items():
                if none is not None and not alive >> i & 1:
                    extended.append(((spent, alive), (score, used, (*choice, none))))
                    continue
                for operation, price in enumerate(prices):
                    total = tuple(map(add, used, price))
                    if max(total) <= 1 + 1e-6:
                        alive_after = alive if operation == none else alive | 1 << j
                        key = tuple(round(steps * share) for share in total), alive_after
                        extended.append((key, (score + edge[operation], total, (*choice, operation))))
            best = _most_probable(extended)
    if not best:
        return None
    floor = least * min(1.0, max(max(used) for _, used, _ in best.values()))
    flat = max(state for state in best.values() if max(state[1]) >= floor)[2]
    width = len(edges(nodes))
    return [list(flat[start : start + width]) for start in range(0, len(flat), width)]


def _most_probable(states: Iterable[tuple[_Key, _State]]) -> dict[_Key, _State]:
    """The most probable state for each of the rounded costs and sets of nodes with an input."""
    best: dict[_Key, _State] = {}
    for key, state in states:
        if key not in best or state[0] > best[key][0]:
            best[key] = state
    return best
