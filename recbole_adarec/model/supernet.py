"""The supernet: every cell with every candidate operation, and the architecture logits α over them."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recbole_adarec.errors import AdaRecError
from recbole_adarec.model.architecture import Architecture, edges
from recbole_adarec.model.base import CausalConv, Encoding, with_past
from recbole_adarec.model.cell import Cell
from recbole_adarec.model.operations import OPERATIONS, check_operations
from recbole_adarec.model.student import CellStack

COSTS = ("params", "macs")


class Sample(NamedTuple):
    """One draw of the architecture.

    Attributes
    ----------
    gates : Tensor
        Hard one-hot weights with the gradient of the soft ones, ``[G, E, O]``; G is 1 if cells share α, else S.
    choice : list of list of int
        Index of the drawn operation for each cell and edge.
    """

    gates: Tensor
    choice: list[list[int]]


class AdaRecSupernet(CellStack):
    """S cells of N nodes with all candidate operations on every edge (AdaRec, arXiv 2107.07173, section 3.2).

    Parameters
    ----------
    config : recbole.config.Config
        ``hidden_size``, ``cells``, ``nodes``, ``operations``, ``share_cells``, ``cost``, ``cost_budget``,
        ``alpha_init_std``.
    dataset : recbole.data.dataset.Dataset
        Gives the number of items.

    Attributes
    ----------
    alpha : Parameter
        Architecture logits ``[G, E, O]``; `weights` are all other parameters.
    """

    alpha_initial: Tensor
    operation_costs: Tensor

    def __init__(self, config: Any, dataset: Any) -> None:
        operations = tuple(config["operations"])
        check_operations(operations)
        if config["cost"] not in COSTS:
            raise AdaRecError(f"cost: unknown cost {config['cost']!r}; known are {', '.join(COSTS)}")
        size, nodes, cells = config["hidden_size"], config["nodes"], config["cells"]
        edge_count = len(edges(nodes))
        super().__init__(config, dataset, size, [Cell(size, [operations] * edge_count, nodes) for _ in range(cells)])
        self.operations = operations
        self.nodes = nodes
        self.cost_budget: float | None = config["cost_budget"]
        groups = 1 if config["share_cells"] else cells
        self.alpha = nn.Parameter(config["alpha_init_std"] * torch.randn(groups, edge_count, len(operations)))
        self.register_buffer("alpha_initial", self.alpha.detach().clone())
        self.register_buffer("operation_costs", relative_costs(operations, size, config["cost"], edge_count * cells))

    # ------------------------------------------------------------------ parameters

    def weights(self) -> list[nn.Parameter]:
        """All parameters but α."""
        return [parameter for name, parameter in self.named_parameters() if name != "alpha"]

    # ------------------------------------------------------------------ encoding

    def sample(self, temperature: float, generator: torch.Generator | None = None) -> Sample:
        """Draw one operation for each edge: hard Gumbel softmax (Jang et al., arXiv 1611.01144).

        torch's own takes no generator; with one on the CPU every process and device draws the same.
        """
        noise = -torch.empty(self.alpha.shape).exponential_(generator=generator).log()
        soft = ((self.alpha + noise.to(self.alpha.device)) / temperature).softmax(-1)
        chosen = soft.argmax(-1)
        hard = F.one_hot(chosen, soft.shape[-1]).to(soft.dtype)
        return Sample(hard - soft.detach() + soft, self._per_cell(chosen))

    def _per_cell(self, choice: Tensor) -> list[list[int]]:
        return choice.expand(len(self.cells), -1).tolist()

    def encode_path(self, item_seq: Tensor, choice: list[list[int]]) -> Encoding:
        """Encode on one path; the other operations are not run (the w-step)."""

        def edge(cell: int, number: int, source: Tensor) -> Tensor | None:
            name = self.operations[choice[cell][number]]
            return None if name == "none" else self.cells[cell].edges[number][name](source)

        return self.encode_edges(item_seq, edge)

    def encode_gated(self, item_seq: Tensor, sample: Sample) -> Encoding:
        """Encode on the drawn path with the exact gradient of all gates (the α-step).

        With hard gates the value of an edge is that of its drawn operation, and the gradient of gate o is the inner
        product of the edge's gradient with operation o's output. Nothing is propagated back through the operations
        that were not drawn, and no convolution of them is run: see `_GateProducts`.
        """
        shifted: dict[int, Tensor] = {}  # edges with the same source share its shifted copies
        sources: list[Tensor] = []  # kept, so that no two of them have the same id

        def edge(cell: int, number: int, source: Tensor) -> Tensor:
            gates = sample.gates[min(cell, len(sample.gates) - 1), number]
            modules = self.cells[cell].edges[number]
            products = _GateProducts([modules[name] for name in self.operations])
            if id(source) not in shifted:
                sources.append(source)
                shifted[id(source)] = products.shift(source.detach())
            value = modules[self.operations[sample.choice[cell][number]]](source)
            return _Gated.apply(value, gates, source.detach(), shifted[id(source)], products)

        return self.encode_edges(item_seq, edge)

    def encode(self, item_seq: Tensor) -> Encoding:
        """Encode on the derived path."""
        return self.encode_path(item_seq, self.derived_choice())

    # ------------------------------------------------------------------ cost and derivation

    def cost(self, gates: Tensor) -> Tensor:
        """Cost of an architecture drawn as `gates`, as a share of the most expensive one."""
        repeats = len(self.cells) // len(gates)
        return repeats * (gates * self.operation_costs).sum()

    def cost_loss(self, gates: Tensor) -> Tensor:
        """L_cost: the cost, or with ``cost_budget`` only what lies above it."""
        cost = self.cost(gates)
        return cost if self.cost_budget is None else F.relu(cost - self.cost_budget)

    @torch.no_grad()
    def derived_choice(self) -> list[list[int]]:
        """The most probable operations, for each edge by itself, or together under ``cost_budget``.

        Raises
        ------
        AdaRecError
            If no architecture is within the budget.
        """
        log_p = self.alpha.log_softmax(-1)
        if self.cost_budget is None:
            return self._per_cell(log_p.argmax(-1))
        repeats = len(self.cells) // len(log_p)
        best = within_budget(log_p.flatten(0, 1), repeats * self.operation_costs, self.cost_budget)
        return self._per_cell(torch.tensor(best).view(log_p.shape[:2]))

    def derive(self) -> Architecture:
        """The architecture that the search has found."""
        cells = tuple(tuple(self.operations[o] for o in cell) for cell in self.derived_choice())
        return Architecture(self.hidden_size, cells)

    @torch.no_grad()
    def derived_cost(self) -> float:
        """Cost of the derived architecture, as a share of the most expensive one."""
        return float(self.operation_costs[torch.tensor(self.derived_choice())].sum())

    @torch.no_grad()
    def movement(self) -> dict[str, float]:
        """How far the search moved α from its random start.

        Returns
        -------
        dict
            ``alpha_moved``: mean total variation distance between the operations' probabilities then and now (0 to
            1); ``alpha_max_probability``: largest probability, mean over edges; ``changed_edges``: share of edges
            whose most probable operation is another than at the start.
        """
        start, now = self.alpha_initial.softmax(-1), self.alpha.softmax(-1)
        return {
            "alpha_moved": float((now - start).abs().sum(-1).mean() / 2),
            "alpha_max_probability": float(now.max(-1).values.mean()),
            "changed_edges": float((now.argmax(-1) != start.argmax(-1)).float().mean()),
        }


class _GateProducts:
    """Inner products of a gradient with what each operation makes of a source.

    For a convolution ``<G, W * x> = <W, x correlated with G>``: one correlation over all delays serves every
    convolution of an edge, with less work than a single one of them, and the smaller matrix is what they differ in.

    Parameters
    ----------
    operations : list of Module
        Of one edge.
    """

    def __init__(self, operations: list[Any]) -> None:
        self.operations = operations
        convolutions = [operation for operation in operations if _is_product(operation)]
        self.delays = sorted({delay for convolution in convolutions for delay in _delays(convolution)})

    def shift(self, source: Tensor) -> Tensor:
        """Copies of a source ``[B, L, C]`` that are late by each of the D delays, ``[B L, D C]``."""
        if not self.delays:
            return source.new_empty(source.shape[0] * source.shape[1], 0)
        length, longest = source.shape[1], max(self.delays)
        padded = with_past(source, longest)
        late = [padded[:, longest - delay : longest - delay + length] for delay in self.delays]
        return torch.cat(late, -1).flatten(0, 1)

    def __call__(self, gradient: Tensor, source: Tensor, shifted: Tensor) -> Tensor:
        """The products, ``[O]``, of a gradient ``[B, L, C]``."""
        flat, size = gradient.flatten(0, 1), gradient.shape[-1]
        correlation = (flat.T @ shifted).view(size, len(self.delays), size)
        products = []
        for operation in self.operations:
            if _is_product(operation):
                taps = [self.delays.index(delay) for delay in _delays(operation)]
                of_weight = correlation[:, taps].flatten()
                products.append(torch.dot(of_weight, operation.linear.weight.flatten()))
            else:
                products.append(torch.dot(flat.flatten(), operation(source).flatten()))
        return torch.stack(products)


def _is_product(operation: Any) -> bool:
    return isinstance(operation, CausalConv) and operation.linear.bias is None


def _delays(convolution: Any) -> list[int]:
    """How late the input of each tap is, in the order of the weights."""
    return [convolution.reach - k * convolution.dilation for k in range(convolution.kernel)]


class _Gated(torch.autograd.Function):
    """The drawn operation's output; the gradient of gate o is <gradient of the edge, output of operation o>."""

    @staticmethod
    def forward(
        ctx: Any, value: Tensor, gates: Tensor, source: Tensor, shifted: Tensor, products: _GateProducts
    ) -> Tensor:  # [B, L, C]
        ctx.save_for_backward(source, shifted)
        ctx.products = products
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return gradient, ctx.products(gradient.float(), *(saved.float() for saved in ctx.saved_tensors)), *[None] * 3


def relative_costs(operations: tuple[str, ...], size: int, cost: str, edge_count: int) -> Tensor:
    """Cost of each operation on one of `edge_count` edges, as a share of the most expensive architecture, ``[O]``."""
    if cost == "params":
        absolute = [OPERATIONS[name].parameters(size) for name in operations]
    else:
        absolute = [OPERATIONS[name].macs(size) for name in operations]
    return torch.tensor(absolute, dtype=torch.float32) / (max(absolute) * edge_count or 1)


def within_budget(log_p: Tensor, costs: Tensor, budget: float, resolution: int = 2000) -> list[int]:
    """The most probable choice of one operation per edge whose summed cost is at most `budget`.

    A knapsack solved by dynamic programming over costs rounded up to 1 / `resolution`, so the budget always holds.

    Parameters
    ----------
    log_p : Tensor
        Log-probabilities, ``[E, O]``.
    costs : Tensor
        Cost of each operation, ``[O]``.
    budget : float
        Largest sum, in the unit of `costs`.

    Raises
    ------
    AdaRecError
        If even the cheapest choice is above the budget.
    """
    steps = torch.ceil(costs.double() * resolution - 1e-3).long().tolist()
    limit = int(budget * resolution + 1e-3)
    best: dict[int, tuple[float, tuple[int, ...]]] = {0: (0.0, ())}
    for edge in log_p.tolist():
        reached: dict[int, tuple[float, tuple[int, ...]]] = {}
        for used, (score, chosen) in best.items():
            for operation, step in enumerate(steps):
                total, value = used + step, score + edge[operation]
                if total <= limit and (total not in reached or value > reached[total][0]):
                    reached[total] = (value, (*chosen, operation))
        best = reached
        if not best:
            cheapest = float(costs.min()) * len(log_p)
            raise AdaRecError(
                f"cost_budget: no architecture costs at most {budget}; the cheapest of these operations costs "
                f"{cheapest:.4f} of the most expensive architecture"
            )
    return list(max(best.values())[1])
