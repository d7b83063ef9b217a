"""The gradient of the architecture's gates, without running the operations that were not drawn.

A node is ``sum_i sum_o g[i, o] o(x_i)`` with hard gates g: its value is that of the drawn operations, and the gradient
of gate ``g[i, o]`` is ``<G, o(x_i)>``, G the gradient of the node. For a convolution ``<G, W * x> = <W, x correlated
with G>``: one correlation over all delays serves every convolution of an edge, with less work than two of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from recbole_adarec.model.layers import CausalConv, delayed
from recbole_adarec.model.search_space.architecture import edges
from recbole_adarec.model.search_space.operations import SepConv, Zero


class Trace:
    """What a pass on a drawn path leaves for the gradient of its gates.

    Attributes
    ----------
    sources : dict
        What goes into the edges from node i of a cell, by ``(cell, i)``, each ``[B, L, C]``.
    nodes : dict
        Nodes by ``(cell, j)``, likewise; they are in the graph of autograd.
    """

    def __init__(self) -> None:
        self.sources: dict[tuple[int, int], Tensor] = {}
        self.nodes: dict[tuple[int, int], Tensor] = {}

    def node(self, cell: int, j: int, value: Tensor) -> Tensor:
        """Keep a node, as a tensor of its own: a skip hands its source on, which other edges read too."""
        value = value.view_as(value)
        if not value.requires_grad:  # no weight is trained: the first nodes depend on nothing that is
            value.requires_grad_()
        self.nodes[cell, j] = value
        return value


@torch.no_grad()
def gate_gradients(cells: Sequence[Any], operations: Sequence[str], trace: Trace, loss: Tensor) -> Tensor:
    """Gradient of a loss with respect to every gate.

    Parameters
    ----------
    cells : sequence of Cell
        All operations of S cells on E edges.
    operations : sequence of str
        Names of the O operations.
    trace : Trace
        Of the pass that gave the loss.
    loss : Tensor
        A scalar.

    Returns
    -------
    Tensor
        ``[S, E, O]``.
    """
    of_nodes = torch.autograd.grad(loss, list(trace.nodes.values()), materialize_grads=True)
    gradients = {place: gradient.float() for place, gradient in zip(trace.nodes, of_nodes, strict=True)}
    # Every edge holds the same operations, so what they are is looked up once.
    modules, order = cells[0].edges[0], edges(cells[0].nodes)
    zero = [name for name in operations if isinstance(modules[name], Zero)]
    convolutions = {name: modules[name].delays for name in operations if _is_product(modules[name])}
    delays = sorted({delay for of_one in convolutions.values() for delay in of_one})
    taps = {
        name: torch.tensor([delays.index(delay) for delay in of_one], device=loss.device)
        for name, of_one in convolutions.items()
    }
    others = [name for name in operations if name not in convolutions and name not in zero]
    unweighted = [name for name in others if not any(True for _ in modules[name].parameters())]
    nothing = loss.new_zeros((), dtype=torch.float32)
    result: dict[tuple[int, int], list[Tensor]] = {}
    for s, cell in enumerate(cells):
        of_cell = torch.cat([gradients[s, j] for j in range(1, cell.nodes + 1)], -1).flatten(0, 1)
        for i in range(cell.nodes):  # edges with the same source share one matrix product,
            source = trace.sources[s, i].float()
            size = source.shape[-1]
            outputs = {name: modules[name](source).flatten() for name in unweighted}  # and the pools
            if convolutions:
                late = torch.cat(delayed(source, delays), -1).flatten(0, 1)
                correlations = (of_cell[:, i * size :].T @ late).view(-1, size, len(delays), size)
            for number in (number for number, edge in enumerate(order) if edge[0] == i):
                j, mine = order[number][1], cell.edges[number]
                gradient = gradients[s, j].flatten()
                result[s, number] = of_gates = []
                for name in operations:
                    if name in zero:
                        of_gates.append(nothing)
                    elif name in taps:
                        correlation = correlations[j - i - 1].index_select(1, taps[name]).flatten()
                        of_gates.append(torch.dot(correlation, mine[name].matrix.flatten()))
                    else:
                        output = outputs[name] if name in outputs else mine[name](source).flatten()
                        of_gates.append(torch.dot(gradient, output))
    values = [value for place in sorted(result) for value in result[place]]
    return torch.stack(values).view(len(cells), len(order), len(operations))


def _is_product(operation: nn.Module) -> bool:
    """Whether it is one matrix product over delayed copies."""
    return isinstance(operation, SepConv) or (isinstance(operation, CausalConv) and operation.linear.bias is None)
