"""The student: a model of one architecture, without the other operations of the supernet."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, nn

from recbole_adarec.model.base import Encoding
from recbole_adarec.model.cell_stack import CellStack
from recbole_adarec.model.search_space.architecture import as_architecture, edges
from recbole_adarec.model.search_space.cell import Cell, live_edges, repeated
from recbole_adarec.model.search_space.last_positions import last_outputs, operations_of, wanted_positions


class AdaRecStudent(CellStack):
    """The model of a given architecture (AdaRec, arXiv 2107.07173, section 3).

    Parameters
    ----------
    config : recbole.config.Config
        ``architecture`` is an `Architecture`, its dict, or the path of its file. ``total_parameters`` is the largest
        number of parameters of the whole student, where its item table is adaptive. Further keys: see `CellStack`.
    dataset : recbole.data.dataset.Dataset
        Provides the number of items and, for the item table, their counts.

    Attributes
    ----------
    architecture : Architecture
        The architecture.

    Raises
    ------
    AdaRecError
        If the architecture is missing or wrong, or the blocks of the item table do not fit the catalog.
    """

    def __init__(self, config: Any, dataset: Any) -> None:
        architecture = as_architecture(config["architecture"])
        size, nodes, form = architecture.hidden_size, architecture.nodes, architecture.cell_form
        cells: list[Cell] = []
        for operations in architecture.cells:
            live = live_edges(operations, nodes)
            candidates = [[name] if alive else [] for name, alive in zip(operations, live, strict=True)]
            cells.append(Cell(size, candidates, nodes, form, config["dropout_prob"]))
        stack: list[Any] = repeated(cells, architecture.repeats)
        super().__init__(config, dataset, size, stack, config["total_parameters"])
        self.architecture = architecture
        # For one sequence a dict look-up, or the overhead of Module.__call__, takes as long as the arithmetic.
        self._calls = [
            [_edge_call(i, edge) for (i, _), edge in zip(edges(nodes), cell.edges, strict=True)] for cell in stack
        ]
        self._operations = [operations_of(cell) for cell in stack]
        self._wanted = wanted_positions(stack)

    def encode(self, item_seq: Tensor) -> Encoding:
        """Hidden states of sequences of item ids ``[B, L]``, with the outputs of all cells as layers."""
        shared: list[dict[tuple[int, str], Tensor]] = [{} for _ in self._calls]

        def edge(cell: int, index: int, source: Tensor) -> Tensor | None:
            operation, key = self._calls[cell][index]
            if operation is None:
                return None
            if key is None:
                return operation(source)
            results = shared[cell]
            if key not in results:
                results[key] = operation(source)
            return results[key]

        return self.encode_edges(item_seq, edge)

    def last_state(self, item_seq: Tensor, lengths: Tensor) -> Tensor:
        """The state after each sequence, ``[B, C]``; of one sequence no position is computed that it does not need."""
        if self.training or len(item_seq) > 1:
            return super().last_state(item_seq, lengths)
        x = self.item_table(item_seq[:, : int(lengths[0])])
        for number, cell in enumerate(self.cells):
            x = cell(x, partial(self._last_outputs, number), last=self._wanted[number].of_output)
        return x[:, -1]

    def _last_outputs(self, cell: int, index: int, source: Tensor) -> Tensor | None:
        operation = self._operations[cell][index]
        return None if operation is None else last_outputs(operation, source, self._wanted[cell].of_edges[index])


def _edge_call(source: int, edge: nn.ModuleDict) -> tuple[Callable[[Tensor], Tensor] | None, tuple[int, str] | None]:
    """Operation of an edge, and the key under which edges share its output.

    An operation without weights gives the same output on every edge with the same source. The operation is None for no
    edge, the key is None where nothing is shared.
    """
    for name, operation in edge.items():
        weighted = any(True for _ in operation.parameters())
        return operation.forward, None if weighted or isinstance(operation, nn.Identity) else (source, name)
    return None, None
