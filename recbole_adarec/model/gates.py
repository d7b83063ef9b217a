"""Gradient of the loss with respect to the gates of all operations, from a pass that runs only the drawn ones.

A node is ``sum_i sum_o g[i, o] o(x_i)`` with hard gates g, so its value is that of the drawn operations. The gradient
of gate ``g[i, o]`` is ``<D, o(x_i)>``, where D is the gradient of the loss with respect to the node. For a convolution
``<D, W * x> = <W, x correlated with D>``. One correlation over all delays therefore gives the gradient of every
convolution of an edge, with less work than two convolutions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from recbole_adarec.model.layers import CausalConv, delayed
from recbole_adarec.model.search_space.architecture import edges
from recbole_adarec.model.search_space.modules import SepConv, Zero


class Trace:
    """Tensors of a pass on a drawn path that `gate_gradients` needs.

    Attributes
    ----------
    sources : dict
        Inputs of the edges that start at node i of a cell, by ``(cell, i)``, each ``[B, L, C]``, detached.
    nodes : dict
        Values of the computed nodes by ``(cell, j)``, each ``[B, L, C]``, part of autograd's graph.
    """

    def __init__(self) -> None:
        self.sources: dict[tuple[int, int], Tensor] = {}
        self.nodes: dict[tuple[int, int], Tensor] = {}

    def record_node(self, cell: int, j: int, value: Tensor) -> Tensor:
        """Store the value of node j of a cell, and return it as a new tensor.

        It must be a new tensor: a skip returns its source, which other edges read too.
        """
        value = value.view_as(value)
        if not value.requires_grad:  # with frozen weights the first nodes depend on no trained parameter
            value.requires_grad_()
        self.nodes[cell, j] = value
        return value


@torch.no_grad()
def gate_gradients(cells: Sequence[Any], operations: Sequence[str], trace: Trace, loss: Tensor) -> Tensor:
    """Gradient of a loss with respect to every gate, ``[S, E, O]``.

    Parameters
    ----------
    cells : sequence of Cell
        The S cells of the supernet, with all operations on each of their E edges.
    operations : sequence of str
        Names of the O operations.
    trace : Trace
        Trace of the pass that computed the loss.
    loss : Tensor
        A scalar.
    """
    node_gradients = torch.autograd.grad(loss, list(trace.nodes.values()), materialize_grads=True)
    gradients = {node: gradient.float() for node, gradient in zip(trace.nodes, node_gradients, strict=True)}
    # All edges have the same operations, so those of the first edge tell what kind each one is.
    modules, order = cells[0].edges[0], edges(cells[0].nodes)
    zero = [name for name in operations if isinstance(modules[name], Zero)]
    convolutions = {name: modules[name].delays for name in operations if _is_convolution(modules[name])}
    delays = sorted({delay for tap_delays in convolutions.values() for delay in tap_delays})
    taps = {
        name: torch.tensor([delays.index(delay) for delay in tap_delays], device=loss.device)
        for name, tap_delays in convolutions.items()
    }
    others = [name for name in operations if name not in convolutions and name not in zero]
    unweighted = [name for name in others if not any(True for _ in modules[name].parameters())]
    zero_gradient = loss.new_zeros((), dtype=torch.float32)
    edge_gradients: dict[tuple[int, int], list[Tensor]] = {}
    for s, cell in enumerate(cells):
        # [B L, nodes C]
        cell_gradient = torch.cat([gradients[s, j] for j in range(1, cell.nodes + 1)], -1).flatten(0, 1)
        for i in range(cell.nodes):  # edges with the same source share the pools and one matrix product
            source = trace.sources[s, i].float()
            size = source.shape[-1]
            outputs = {name: modules[name](source).flatten() for name in unweighted}
            if convolutions:
                shifted = torch.cat(delayed(source, delays), -1).flatten(0, 1)
                correlations = (cell_gradient[:, i * size :].T @ shifted).view(-1, size, len(delays), size)
            for e in (e for e, edge in enumerate(order) if edge[0] == i):
                j, edge_modules = order[e][1], cell.edges[e]
                gradient = gradients[s, j].flatten()
                edge_gradients[s, e] = row = []
                for name in operations:
                    if name in zero:
                        row.append(zero_gradient)
                    elif name in taps:
                        correlation = correlations[j - i - 1].index_select(1, taps[name]).flatten()
                        row.append(torch.dot(correlation, edge_modules[name].matrix.flatten()))
                    else:
                        output = outputs[name] if name in outputs else edge_modules[name](source).flatten()
                        row.append(torch.dot(gradient, output))
    values = [value for key in sorted(edge_gradients) for value in edge_gradients[key]]
    return torch.stack(values).view(len(cells), len(order), len(operations))


def _is_convolution(operation: nn.Module) -> bool:
    """Whether an operation is one matrix product over shifted copies of its input, without a bias."""
    return isinstance(operation, SepConv) or (isinstance(operation, CausalConv) and operation.linear.bias is None)
