"""The stack of cells under an item table, base class of supernet and student."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, nn

from recbole_adarec.model.base import Encoding, SequenceRecommender
from recbole_adarec.model.item_table.build import build_item_table
from recbole_adarec.model.layers import Dropout
from recbole_adarec.model.search_space.cell import Cell


class CellStack(SequenceRecommender):
    """Item embeddings, S cells, and a softmax over items: base class of supernet and student.

    Parameters
    ----------
    config : recbole.config.Config
        The keys ``dropout_prob`` and those of `build_item_table`.
    dataset : recbole.data.dataset.Dataset
        Provides the number of items and, for the item table, their counts.
    size : int
        Channels C.
    cells : list of Cell
        The S cells, with the repetitions.
    parameters : int, optional
        Largest number of parameters of the whole model, where the item table is adaptive.
    """

    def __init__(self, config: Any, dataset: Any, size: int, cells: list[Cell], parameters: int | None = None) -> None:
        super().__init__(config, dataset)
        self.hidden_size = size
        self.cells: Any = nn.ModuleList(cells)
        limit = None if parameters is None else parameters - sum(p.numel() for p in self.cells.parameters())
        self.item_table = build_item_table(config, dataset, self.n_items, size, limit)
        self.dropout = Dropout(config["dropout_prob"])

    def encode_edges(
        self,
        item_seq: Tensor,
        edge: Callable[[int, int, Tensor], Tensor | None],
        node_hook: Callable[[int, int, Tensor], Tensor] | None = None,
    ) -> Encoding:
        """Hidden states of sequences, with the operations that `edge` chooses.

        Parameters
        ----------
        item_seq : Tensor
            Right-padded item ids, int64 ``[B, L]``.
        edge : callable
            Is called with the index of the cell, the index of the edge and its source ``[B, L, C]``. Returns the output
            of the edge, ``[B, L, C]``, or None for no edge.
        node_hook : callable, optional
            Is called with the index of the cell, the number of the node from 1 and its value ``[B, L, C]``. Returns the
            tensor to use in place of that value.
        """
        x = embedding = self.dropout(self.item_table(item_seq))
        layers = []
        for index, cell in enumerate(self.cells):
            x = cell(x, partial(edge, index), None if node_hook is None else partial(node_hook, index))
            layers.append(x)
        return Encoding(embedding, tuple(layers), self.dropout(x))
