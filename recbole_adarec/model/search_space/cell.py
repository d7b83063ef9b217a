"""The cell: a small directed graph with operations on its edges."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recbole_adarec.model.layers import Dropout
from recbole_adarec.model.search_space.architecture import edges
from recbole_adarec.model.search_space.operations import OPERATIONS, share_pointwise_weights

Edge = Callable[[int, Tensor], "Tensor | None"]
NodeHook = Callable[[int, Tensor], Tensor]


class Cell(nn.Module):
    """A cell (AdaRec, arXiv 2107.07173, section 3.2): maps ``[B, L, C]`` to ``[B, L, C]``.

    Node 0 is the input x. Node j is the sum over all earlier nodes i of the operation of edge (i, j). By `form`, which
    the key ``cell_form`` names, an operation is applied to, and the output is:

    ``relu``: ``ReLU(node_i)``; ``x + ReLU(LayerNorm(sum_j softmax(a)_j node_j))``.

    ``residual``: ``node_i``; ``LayerNorm(x + dropout(sum_j softmax(a)_j node_j))``, as in a transformer with norms
    after the sums.

    Supernet and student use the same class: on one path both compute the same, and their parameters have the same
    names.

    Parameters
    ----------
    size : int
        Channels C.
    candidates : sequence of sequence of str
        Names of the operations on each of the E edges: all O in a supernet, one or none in a student.
    nodes : int
        Number of computed nodes.
    form : str
        ``relu`` or ``residual``.
    dropout : float
        Of the form ``residual``.

    Notes
    -----
    With ``relu`` the weight of the LayerNorm starts at 0.1, so that a new cell is nearly the identity. Started at 1,
    four cells drown the item embeddings, which start from the teacher's. Validation log-likelihood on ml-100k: -5.774
    with 0.1, -5.815 with 1.
    """

    def __init__(
        self, size: int, candidates: Sequence[Sequence[str]], nodes: int, form: str = "relu", dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.nodes, self.residual = nodes, form == "residual"
        modules = [nn.ModuleDict({name: OPERATIONS[name].build(size) for name in names}) for names in candidates]
        for edge_modules in modules:
            share_pointwise_weights(edge_modules.values())
        self.edges = nn.ModuleList(modules)
        self.node_weights = nn.Parameter(torch.zeros(nodes))  # a
        self.norm = nn.LayerNorm(size)
        if self.residual:
            self.dropout = Dropout(dropout)
        else:
            nn.init.constant_(self.norm.weight, 0.1)  # nearly the identity at first, as the teacher's blocks are

    def forward(self, x: Tensor, edge: Edge, node_hook: NodeHook | None = None, last: int | None = None) -> Tensor:
        """Output of the cell, ``[B, L, C]``, or at the last positions alone.

        A node without input has no outgoing edges. A cell in which no node has an input is the identity.

        Parameters
        ----------
        x : Tensor
            Input, ``[B, L, C]``.
        edge : callable
            Is called with the index of an edge and what its operation is applied to, ``[B, L, C]``. Returns the output
            of the edge, ``[B, L, C]``, or None for no edge.
        node_hook : callable, optional
            Is called with the number of each computed node, from 1, and its value. Returns the tensor to use in place
            of that value.
        last : int, optional
            Positions of the output, the last ones of x. Nodes then have as many or more, as `edge` gives them.
        """
        sources: list[Tensor | None] = [self._source(x)]
        mixed: Tensor | None = None
        weights = self.node_weights.softmax(0).unbind()
        index = 0
        for j in range(1, self.nodes + 1):
            node: Tensor | None = None
            for i in range(j):
                source = sources[i]
                value = None if source is None else edge(index, source)
                if value is not None:
                    node = value if node is None else node + value
                index += 1
            if node is not None and node_hook is not None:
                node = node_hook(j, node)
            if node is not None:
                part = node if last is None else node[:, -last:]
                mixed = weights[j - 1] * part if mixed is None else torch.addcmul(mixed, part, weights[j - 1])
            if j < self.nodes:  # the last node has no outgoing edges
                sources.append(None if node is None else self._source(node))
        x = x if last is None else x[:, -last:]
        if mixed is None:
            return x
        return self.norm(x + self.dropout(mixed)) if self.residual else x + F.relu(self.norm(mixed))

    def _source(self, node: Tensor) -> Tensor:
        return node if self.residual else node.relu()


def repeated(cells: Sequence[Cell], repeats: int) -> list[Cell]:
    """Cells that are applied `repeats` times, one after the other, as a list of all repetitions.

    Every repetition has the operations of the first, and a norm and node weights of its own: CpRec's sharing of layers
    (Sun et al., SIGIR 2020, arXiv 2004.13139, section 3.2).
    """
    stack = list(cells)
    for _ in range(repeats - 1):
        for cell in cells:
            size, form = cell.norm.normalized_shape[0], "residual" if cell.residual else "relu"
            again = Cell(size, [()] * len(cell.edges), cell.nodes, form, cell.dropout.p if cell.residual else 0.0)
            again.edges = cell.edges
            stack.append(again)
    return stack


def live_edges(operations: Sequence[str], nodes: int) -> list[bool]:
    """Whether each edge of a cell is live: its operation is not "none", and its source node has an input.

    Parameters
    ----------
    operations : sequence of str
        Operations of the E edges, in the order of `edges`.
    nodes : int
        Number of computed nodes.
    """
    has_input = [True] + [False] * nodes
    live = []
    for (i, j), name in zip(edges(nodes), operations, strict=True):
        live.append(has_input[i] and name != "none")
        has_input[j] = has_input[j] or live[-1]
    return live
