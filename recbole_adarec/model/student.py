"""The student: the architecture that the search found, and nothing of the supernet around it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, nn

from recbole_adarec.model.architecture import Architecture, edges
from recbole_adarec.model.base import Encoding, SequenceRecommender
from recbole_adarec.model.cell import Cell, live_edges
from recbole_adarec.model.item_table import item_table
from recbole_adarec.settings import find_file


class CellStack(SequenceRecommender):
    """``embedding -> S cells -> softmax``: what supernet and student have in common.

    Parameters
    ----------
    config, dataset
        As RecBole gives them; ``dropout_prob`` and the keys of `item_table` are read here.
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
        self.item_table = item_table(config, dataset, self.n_items, size, limit)
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


class AdaRecStudent(CellStack):
    """A student of a given architecture (AdaRec, arXiv 2107.07173, section 3).

    Parameters
    ----------
    config : recbole.config.Config
        ``architecture`` is an `Architecture`, its dictionary, or the path of its file; ``total_parameters`` is what
        a student with an adaptive item table may have in all.
    dataset : recbole.data.dataset.Dataset
        Gives the number of items.
    """

    def __init__(self, config: Any, dataset: Any) -> None:
        architecture = as_architecture(config["architecture"])
        cells: list[Any] = []
        for operations in architecture.cells:
            live = live_edges(operations, architecture.nodes)
            kept = [[name] if alive else [] for name, alive in zip(operations, live, strict=True)]
            cells.append(Cell(architecture.hidden_size, kept, architecture.nodes))
        super().__init__(config, dataset, architecture.hidden_size, cells, config["total_parameters"])
        self.architecture = architecture
        # At one request a time a look-up, or the bookkeeping of a module's call, costs as much as the arithmetic.
        self._plan = [
            [_plan(i, edge) for (i, _), edge in zip(edges(architecture.nodes), cell.edges, strict=True)]
            for cell in cells
        ]

    def encode(self, item_seq: Tensor) -> Encoding:
        shared: list[dict[tuple[int, str], Tensor]] = [{} for _ in self._plan]

        def edge(cell: int, number: int, source: Tensor) -> Tensor | None:
            operation, key = self._plan[cell][number]
            if operation is None:
                return None
            if key is None:
                return operation(source)
            results = shared[cell]
            if key not in results:
                results[key] = operation(source)
            return results[key]

        return self.encode_edges(item_seq, edge)


def _plan(source: int, edge: nn.ModuleDict) -> tuple[Callable[[Tensor], Tensor] | None, tuple[int, str] | None]:
    """What an edge runs, and the key under which equal ones share their result: those without weights do."""
    for name, operation in edge.items():
        weighted = any(True for _ in operation.parameters())
        return operation.forward, None if weighted or isinstance(operation, nn.Identity) else (source, name)
    return None, None


def as_architecture(value: Any) -> Architecture:
    """An `Architecture` from itself, its dictionary, or a file (looked for like a config file)."""
    if isinstance(value, Architecture):
        return value
    if isinstance(value, dict):
        return Architecture.from_dict(value)
    return Architecture.load(find_file(value, "architecture"))
