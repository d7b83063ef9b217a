"""The cell: a small graph whose edges hold the candidate operations."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recbole_adarec.model.search_space.architecture import edges
from recbole_adarec.model.search_space.operations import OPERATIONS, share_maps

Edge = Callable[[int, Tensor], "Tensor | None"]
NodeSeen = Callable[[int, Tensor], Tensor]


class Cell(nn.Module):
    """Node 0 is the input, node j the sum of its edges from all earlier nodes; the output is the input plus
    ``ReLU(LayerNorm(sum_j softmax(a)_j node_j))``.

    Supernet and student share this class, so that the student computes exactly what the supernet computes on its path
    and its parameters have the same names.

    Parameters
    ----------
    size : int
        Channels C.
    candidates : sequence of sequence of str
        Operations kept at each edge: one in a student, all in a supernet.
    nodes : int
        Computed nodes N.
    """

    def __init__(self, size: int, candidates: Sequence[Sequence[str]], nodes: int) -> None:
        super().__init__()
        self.nodes = nodes
        of_edges = [nn.ModuleDict({name: OPERATIONS[name].build(size) for name in names}) for names in candidates]
        for of_edge in of_edges:
            share_maps(of_edge.values())
        self.edges = nn.ModuleList(of_edges)
        self.node_weights = nn.Parameter(torch.zeros(nodes))  # a
        self.norm = nn.LayerNorm(size)
        # Nearly the identity at first, as the teacher's blocks are: at 1 four cells drown the item embeddings, which
        # start from the teacher's. Measured on ml-100k, validation log-likelihood: -5.774 with 0.1, -5.815 with 1.
        nn.init.constant_(self.norm.weight, 0.1)

    def forward(self, x: Tensor, edge: Edge, node_seen: NodeSeen | None = None) -> Tensor:
        """Run the graph.

        Parameters
        ----------
        x : Tensor
            ``[B, L, C]``.
        edge : callable
            Gives the value of an edge from its number and its source after ReLU, or None for no edge. Nodes
            that receive nothing send nothing; a cell in which nothing arrives is the identity.
        node_seen : callable, optional
            Is given the number and value of each node, and gives the tensor to go on with.
        """
        sources: list[Tensor | None] = [x.relu()]
        mixed: Tensor | None = None
        weights = self.node_weights.softmax(0).unbind()
        number = 0
        for j in range(1, self.nodes + 1):
            node: Tensor | None = None
            for i in range(j):
                source = sources[i]
                value = None if source is None else edge(number, source)
                if value is not None:
                    node = value if node is None else node + value
                number += 1
            if node is not None and node_seen is not None:
                node = node_seen(j, node)
            if node is not None:
                mixed = weights[j - 1] * node if mixed is None else torch.addcmul(mixed, node, weights[j - 1])
            if j < self.nodes:  # nothing reads the last node
                sources.append(None if node is None else node.relu())
        return x if mixed is None else x + F.relu(self.norm(mixed))


def live_edges(operations: Sequence[str], nodes: int) -> list[bool]:
    """Which edges of a cell carry anything from its input (an edge behind a node that receives nothing does not)."""
    alive = [True] + [False] * nodes
    result = []
    for (i, j), name in zip(edges(nodes), operations, strict=True):
        result.append(alive[i] and name != "none")
        alive[j] = alive[j] or result[-1]
    return result
