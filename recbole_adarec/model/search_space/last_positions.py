"""The last positions: what a state after one sequence needs of the operations before it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from recbole_adarec.model.search_space.architecture import edges
from recbole_adarec.model.search_space.cell import Cell


class Wanted(NamedTuple):
    """How many of the last positions are wanted in a cell; None for all.

    Attributes
    ----------
    of_output : int or None
        Of the cell's output.
    of_edges : list of int or None
        Of the output of each edge.
    """

    of_output: int | None
    of_edges: list[int | None]


def wanted_positions(cells: Sequence[Cell]) -> list[Wanted]:
    """What the last position of the last cell's output needs of each cell.

    Parameters
    ----------
    cells : sequence of Cell
        Of a student, one after the other.
    """
    result: list[Wanted] = []
    of_output: int | None = 1
    for cell in reversed(cells):
        nodes = [of_output] * (cell.nodes + 1)  # every node is a part of the output
        order, modules = edges(cell.nodes), operations_of(cell)
        for (i, j), operation in reversed(list(zip(order, modules, strict=True))):
            if operation is not None:
                window, wanted, so_far = _window(operation), nodes[j], nodes[i]
                known = window is not None and wanted is not None and so_far is not None
                nodes[i] = max(so_far, wanted + window - 1) if known else None
        result.append(Wanted(of_output, [nodes[j] for _, j in order]))
        of_output = nodes[0]
    return result[::-1]


def last_outputs(operation: Any, source: Tensor, wanted: int | None) -> Tensor:
    """Outputs of an operation at the last positions, of a source ``[1, L, C]`` whose last positions may be all it has.

    Parameters
    ----------
    operation : Module
        Of an edge.
    source : Tensor
        The last positions of its input, as many as the outputs need.
    wanted : int or None
        How many; None for as many as the source has.
    """
    if wanted is None or wanted >= source.shape[1]:
        return operation.forward(source)
    if (window := _window(operation)) is not None:
        return operation.forward(source[:, 1 - wanted - window :])[:, -wanted:]
    if hasattr(operation, "last"):
        return operation.last(source, wanted)
    return operation.forward(source)[:, -wanted:]


def operations_of(cell: Any) -> list[Any]:
    """The operation of each edge of a student's cell; None where there is none."""
    return [next(iter(edge.values()), None) for edge in cell.edges]


def _window(operation: Any) -> int | None:
    """Positions that an output of an operation depends on; None where these may be all."""
    return 1 if isinstance(operation, nn.Identity) else getattr(operation, "window", None)
