"""The student: the architecture that the search found, and nothing of the supernet around it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from recbole_adarec.model.base import Encoding
from recbole_adarec.model.cell_stack import CellStack
from recbole_adarec.model.search_space.architecture import as_architecture, edges
from recbole_adarec.model.search_space.cell import Cell, live_edges


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
