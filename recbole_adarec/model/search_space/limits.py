"""The most that a student may cost: its layers as a share of the teacher's, or all that a user pays for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import torch

from recbole_adarec.errors import AdaRecError, nearest_hint
from recbole_adarec.model.item_table.full import FullItemTable
from recbole_adarec.model.search_space.cost import REQUEST_LENGTH, layers_cost, microseconds, model_cost
from recbole_adarec.storage.weights import packed, stored_bytes

BUDGETS = {"bytes": "bytes", "parameters": "params", "macs": "macs", "latency": "latency"}
"""Kinds of ``budget``, and what `operation_cost` calls them."""


class Limit(NamedTuple):
    """The most that a student may cost of one kind.

    Attributes
    ----------
    key : str
        What the user gave, for messages: ``cost_budget: 0.05 of the teacher's layers (params)``.
    cost : str
        The kind, see `operation_cost`.
    amount : float
        In the unit of the kind.
    items : int
        Items I of the table that is paid too; 0 where layers alone are.
    positions : int
        Of a request.
    stored : str
        Form of the weights in the file, ``stored_weights``.
    """

    key: str
    cost: str
    amount: float
    items: int = 0
    positions: int = REQUEST_LENGTH
    stored: str = "float32"

    def table(self, size: int) -> float:
        """What an item table of C channels costs, and reading it."""
        return _table_cost(self.items, size, self.cost, self.stored, self.positions) if self.items else 0.0


def student_limits(config: Any, teacher: Any, times: float = 1.0) -> list[Limit]:
    """The limits of a configuration.

    Parameters
    ----------
    config : recbole.config.Config
        Of the search: ``budget`` and ``stored_weights``; without a ``budget`` ``cost`` and ``cost_budget``.
    teacher : AdaRecTeacher
        Of whose cost the budgets are shares.
    times : float
        How many times the teacher's cost the shares are of.

    Returns
    -------
    list of Limit
        Empty without budgets.

    Raises
    ------
    AdaRecError
        If ``budget`` is of an unknown kind or no positive number, or is given with an adaptive item table.
    """
    if config["budget"] is not None and config["item_table"] == "adaptive":
        raise AdaRecError(
            "budget: it counts a full item table, and item_table is adaptive; give total_budget and cost_budget, or "
            "--item_table=full"
        )
    limits = []
    if config["budget"] is None and (share := config["cost_budget"]) is not None:
        key = f"cost_budget: {share} of the teacher's layers ({config['cost']})"
        limits.append(Limit(key, config["cost"], share * times * layers_cost(teacher, config["cost"])))
    stored, positions = config["stored_weights"] or "float32", min(REQUEST_LENGTH, teacher.max_seq_length)
    for kind, value in budgets(config["budget"]).items():
        cost = BUDGETS[kind]
        if value <= 1:
            key, amount = f"budget: {value:g} of the teacher's {kind}", value * times * model_cost(teacher, cost)
        else:
            key, amount = f"budget: {kind} {value:g}", value / (positions if cost == "macs" else 1)
        limits.append(Limit(key, cost, amount, teacher.n_items, positions, stored))
    return limits


def budgets(value: Any) -> dict[str, float]:
    """The key ``budget`` as a number for each kind; a number alone is of bytes.

    Raises
    ------
    AdaRecError
        For an unknown kind, or what is no positive number.
    """
    if value is None:
        return {}
    given = value if isinstance(value, Mapping) else {"bytes": value}
    for kind, amount in given.items():
        if kind not in BUDGETS:
            hint = nearest_hint(str(kind), BUDGETS)
            raise AdaRecError(f"budget: unknown kind {kind!r}{hint}; known are {', '.join(BUDGETS)}")
        if not isinstance(amount, (int, float)) or isinstance(amount, bool) or not 0 < amount < math.inf:
            raise AdaRecError(
                f"budget: {kind} is {amount!r}, expected a share of the teacher's up to 1, or an amount above 1"
            )
    return {str(kind): float(amount) for kind, amount in given.items()}


@lru_cache(None)
@torch.no_grad()
@torch.random.fork_rng(devices=[])
def _table_cost(items: int, size: int, cost: str, stored: str, positions: int) -> float:
    """What an item table of C channels costs, and scoring all its items once; in the unit of `operation_cost`."""
    if cost == "params":
        return items * size
    if cost == "macs":
        return items * size / positions
    table = FullItemTable(items, size, prior=torch.arange(items) / items)
    if cost == "bytes":
        return stored_bytes(packed(table.state_dict(), stored))
    sequence = torch.randint(1, items, (1, positions))
    return microseconds(lambda: table.scores(table(sequence)[:, -1]))
