"""The supernet: every cell with every candidate operation, and the architecture logits α over them."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recbole_adarec.errors import AdaRecError
from recbole_adarec.model.architecture import Architecture, edges
from recbole_adarec.model.base import Encoding
from recbole_adarec.model.cell import Cell
from recbole_adarec.model.gates import Trace, gate_gradients
from recbole_adarec.model.operations import check_operations, operation_cost
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
        self._sources = [i for i, _ in edges(nodes)]
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

    def encode_traced(self, item_seq: Tensor, sample: Sample) -> tuple[Encoding, Trace]:
        """Encode on the drawn path, and keep what `gate_gradients` needs of it (the α-step)."""
        trace = Trace()

        def edge(cell: int, number: int, source: Tensor) -> Tensor:
            trace.sources[cell, self._sources[number]] = source.detach()
            return self.cells[cell].edges[number][self.operations[sample.choice[cell][number]]](source)

        return self.encode_edges(item_seq, edge, trace.node), trace

    def alpha_gradient(self, sample: Sample, trace: Trace, loss: Tensor, weight_of_cost: float | Tensor) -> Tensor:
        """Gradient of ``loss + weight_of_cost * L_cost`` with respect to α, exact in all gates of the draw.

        Parameters
        ----------
        sample : Sample
            The draw.
        trace : Trace
            Of the pass on it that gave the loss.
        loss : Tensor
            A scalar.
        weight_of_cost : float or Tensor
            Weight of `cost_loss`.
        """
        of_gates = gate_gradients(self.cells, self.operations, trace, loss)
        if len(sample.gates) < len(of_gates):  # the cells share theirs
            of_gates = of_gates.sum(0, keepdim=True)
        objective = (sample.gates * of_gates).sum() + weight_of_cost * self.cost_loss(sample.gates)
        (gradient,) = torch.autograd.grad(objective, [self.alpha])
        return gradient

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


def relative_costs(operations: tuple[str, ...], size: int, cost: str, edge_count: int) -> Tensor:
    """Cost of each operation on one of `edge_count` edges, as a share of the most expensive architecture, ``[O]``."""
    absolute = [operation_cost(name, size, cost) for name in operations]
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
