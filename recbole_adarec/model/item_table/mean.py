"""The item table of a mean of models: their rows side by side."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from recbole_adarec.model.item_table.base import TeacherTable
from recbole_adarec.model.item_table.full import LinearItemTable
from recbole_adarec.model.seen_items import SeenItems


class MeanItemTable(LinearItemTable):
    """Rows of several tables side by side, each scaled by the root of its weight; their priors are weighted and summed.

    The tables stay those of their models: they are no parameters of this one.

    Parameters
    ----------
    tables : sequence of TeacherTable
        With n channels each, C in all.
    weights : Tensor
        Their weights, ``[M]``.
    """

    def __init__(self, tables: Sequence[TeacherTable], weights: Tensor) -> None:
        rows = [table.items for table in tables]
        widths = [part.shape[1] for part in rows]
        super().__init__(len(rows[0]), sum(widths))
        self._widths = widths
        self._tables = tuple(tables)  # a tuple, which torch does not search for parameters
        self.weights = weights
        self.weigh()

    @torch.no_grad()
    def weigh(self) -> None:
        """Sum the tables' priors by the weights anew, after either has changed."""
        priors = torch.stack([table.matrix[:, -1] for table in self._tables])
        self.prior.copy_(self.weights.to(priors.device) @ priors)

    @property
    def items(self) -> Tensor:
        """Scaled rows of all tables, ``[I, C]``."""
        scaled = [table.items * scale for table, scale in zip(self._tables, self.weights.sqrt(), strict=True)]
        return torch.cat(scaled, 1)

    def forward(self, items: Tensor) -> Tensor:
        scales = self.weights.sqrt()
        return torch.cat([table.items[items] * scale for table, scale in zip(self._tables, scales, strict=True)], -1)

    def scores(self, states: Tensor, seen: SeenItems | None = None) -> Tensor:
        """Logits ``[N, I]``, one table after the other: to put the rows side by side would copy all of them."""
        scores = self.served * self.prior
        parts = states.split(self._widths, 1)
        for table, part, scale in zip(self._tables, parts, self.weights.sqrt(), strict=True):
            scores = torch.addmm(scores, part * scale, table.items.T)
        return scores if seen is None else seen.add_to(scores)

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        """The parameters of all tables."""
        return (parameter for table in self._tables for parameter in table.parameters())

    def parameter_count(self) -> int:
        """Trainable parameters of all tables."""
        return sum(table.parameter_count() for table in self._tables)
