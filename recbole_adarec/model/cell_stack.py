"""The stack of cells that supernet and student have in common."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, nn

from recbole_adarec.model.base import Encoding, SequenceRecommender
from recbole_adarec.model.item_table.build import build_item_table
from recbole_adarec.model.search_space.cell import Cell


class CellStack(SequenceRecommender):
    """``embedding -> S cells -> softmax``: what supernet and student have in common.

    Parameters
    ----------
    config, dataset
        As RecBole gives them; ``dropout_prob`` and the keys of `build_item_table` are read here.
    size : int
        Channels C.
    cells : list of Cell
        The S cells.
    parameters : int, optional
        Those that it may have in all, with an adaptive item table.
    """

    def __init__(self, config: Any, dataset: Any, size: int, cells: list[Cell], parameters: int | None = None) -> None:
        super().__init__(config, dataset)
        self.hidden_size = size
        self.cells: Any = nn.ModuleList(cells)
        limit = None if parameters is None else parameters - sum(p.numel() for p in self.cells.parameters())
        self.item_table = build_item_table(config, dataset, self.n_items, size, limit)
        self.dropout = nn.Dropout(config["dropout_prob"])

    def encode_edges(
        self,
        item_seq: Tensor,
        edge: Callable[[int, int, Tensor], Tensor | None],
        node_seen: Callable[[int, int, Tensor], Tensor] | None = None,
    ) -> Encoding:
        """Encode ids ``[B, L]``; `edge` gives the value of an edge from cell, edge number and source, or None.

        `node_seen` is given cell, number and value of each node, see `Cell`.
        """
        x = embedding = self.dropout(self.item_table(item_seq))
        layers = []
        for number, cell in enumerate(self.cells):
            x = cell(x, partial(edge, number), None if node_seen is None else partial(node_seen, number))
            layers.append(x)
        return Encoding(embedding, tuple(layers), self.dropout(x))
