"""The supernet: every cell with every candidate operation, and the architecture logits α over them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recbole_adarec.errors import AdaRecError
from recbole_adarec.model.base import Encoding
from recbole_adarec.model.cell_stack import CellStack
from recbole_adarec.model.gates import Trace, gate_gradients
from recbole_adarec.model.search_space.architecture import Architecture, edges
from recbole_adarec.model.search_space.budget import within_budget
from recbole_adarec.model.search_space.cell import Cell
from recbole_adarec.model.search_space.cost import COSTS, cell_cost, layers_cost, operation_cost
from recbole_adarec.model.search_space.operations import check_operations


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
        ``hidden_size``, ``candidate_sizes``, ``cells``, ``nodes``, ``operations``, ``share_cells``, ``cost``,
        ``cost_floor``, ``alpha_init_std``.
    dataset : recbole.data.dataset.Dataset
        Gives the number of items.

    Attributes
    ----------
    alpha : Parameter
        Architecture logits ``[G, E, O]``; `weights` are all other parameters.
    """

    alpha_initial: Tensor
    operation_costs: Tensor
    affordable: Tensor

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
        self.cost_kind: str = config["cost"]
        groups = 1 if config["share_cells"] else cells
        self.alpha = nn.Parameter(config["alpha_init_std"] * torch.randn(groups, edge_count, len(operations)))
        self.register_buffer("alpha_initial", self.alpha.detach().clone())
        of_operations = [operation_cost(name, size, self.cost_kind) for name in operations]
        of_cells = cells * cell_cost(size, nodes, self.cost_kind)
        # L_cost is 1 for the most expensive architecture, whatever the unit.
        self.most_expensive = edge_count * cells * max(of_operations) + of_cells or 1.0
        self.register_buffer("operation_costs", torch.tensor(of_operations, dtype=torch.float32) / self.most_expensive)
        self.cell_costs = of_cells / self.most_expensive
        self.sizes: list[int] = config["candidate_sizes"] or [size]
        self.cost_limit: float | None = None
        self.cost_floor: float = config["cost_floor"]
        self.register_buffer("affordable", torch.ones(len(operations), dtype=torch.bool))

    # ------------------------------------------------------------------ parameters

    def weights(self) -> list[nn.Parameter]:
        """All parameters but α."""
        return [parameter for name, parameter in self.named_parameters() if name != "alpha"]

    def logits(self) -> Tensor:
        """α, and minus infinity where an operation by itself is above the limit of cost."""
        return self.alpha.masked_fill(~self.affordable, -torch.inf)

    # ------------------------------------------------------------------ encoding

    def sample(self, temperature: float, generator: torch.Generator | None = None) -> Sample:
        """Draw one operation for each edge: hard Gumbel softmax (Jang et al., arXiv 1611.01144).

        torch's own takes no generator; with one on the CPU every process and device draws the same.
        """
        noise = -torch.empty(self.alpha.shape).exponential_(generator=generator).log()
        soft = ((self.logits() + noise.to(self.alpha.device)) / temperature).softmax(-1)
        chosen = soft.argmax(-1)
        hard = F.one_hot(chosen, soft.shape[-1]).to(soft.dtype)
        return Sample(hard - soft.detach() + soft, self._per_cell(chosen))

    def uniform_path(self, generator: torch.Generator | None = None) -> list[list[int]]:
        """Draw one operation for each edge, all that can be afforded alike: index by cell and edge."""
        of_each = self.affordable.float().expand(self.alpha.shape).flatten(0, 1).cpu()
        chosen = of_each.multinomial(1, generator=generator).view(self.alpha.shape[:2])
        return self._per_cell(chosen)

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

    def limit_cost(self, budget: float | None, teacher: Any) -> None:
        """Let no architecture cost more than a share of the teacher's layers.

        Operations that no architecture can afford are never drawn.

        Parameters
        ----------
        budget : float or None
            ``cost_budget``: the share; None: no limit.
        teacher : AdaRecTeacher
            Trained or not.

        Raises
        ------
        AdaRecError
            If every architecture costs more, or every one of the candidate sizes.
        """
        self.cost_limit = None
        self.affordable.fill_(True)
        if budget is None:
            return
        of_teacher = layers_cost(teacher, self.cost_kind)
        self.cost_limit = budget * of_teacher / self.most_expensive
        edge_count, repeats = len(edges(self.nodes)), len(self.cells) // len(self.alpha)
        cheapest = self.cell_costs + float(self.operation_costs.min()) * edge_count * len(self.cells)
        if cheapest > self.cost_limit:
            raise AdaRecError(
                f"cost_budget: no student costs at most {budget} of the teacher's layers ({self.cost_kind}); the "
                f"cheapest with hidden_size {self.hidden_size} and {len(self.cells)} cells of {self.nodes} nodes costs "
                f"{cheapest * self.most_expensive / of_teacher:.4f}"
            )
        if all(self._cheapest(size) > self.cost_limit for size in self.sizes):
            raise AdaRecError(
                f"cost_budget: no student of the candidate_sizes {self.sizes} costs at most {budget} of the teacher's "
                f"layers ({self.cost_kind})"
            )
        extra = repeats * (self.operation_costs - self.operation_costs.min())
        self.affordable.copy_(cheapest + extra <= self.cost_limit * (1 + 1e-6))

    def beyond_budget(self) -> list[str]:
        """The operations that no architecture can afford."""
        return [name for name, can in zip(self.operations, self.affordable.tolist(), strict=True) if not can]

    def cost(self, gates: Tensor) -> Tensor:
        """Cost of an architecture drawn as `gates`, as a share of the most expensive one."""
        repeats = len(self.cells) // len(gates)
        return repeats * (gates * self.operation_costs).sum() + self.cell_costs

    def cost_loss(self, gates: Tensor) -> Tensor:
        """L_cost: the cost, or under a budget only what lies above it."""
        cost = self.cost(gates)
        return cost if self.cost_limit is None else F.relu(cost - self.cost_limit)

    @torch.no_grad()
    def derived_choice(
        self, size: int | None = None, noise: Tensor | None = None, temperature: float = 1.0
    ) -> list[list[int]]:
        """The most probable operations, for each edge by itself, or together under the limit of cost.

        Parameters
        ----------
        size : int, optional
            Channels of the student, if not those of the supernet: operations then have another cost.
        noise : Tensor, optional
            Gumbel noise of α's shape: the choice is a draw then (perturb and maximise).
        temperature : float
            Of the softmax of α that is drawn from.
        """
        size, log_p = size or self.hidden_size, (self.logits() / temperature).log_softmax(-1)
        if noise is not None:
            log_p = log_p + noise.to(log_p.device)
        if self.cost_limit is None:
            return self._per_cell(log_p.argmax(-1))
        prices, of_cells = self._prices(size)
        repeats = len(self.cells) // len(log_p)
        none = self.operations.index("none") if "none" in self.operations else None
        budget = self.cost_limit - of_cells
        best = within_budget(log_p, repeats * prices, budget, self.nodes, none, self.cost_floor)
        return self._per_cell(torch.tensor(best))

    def derive(self) -> Architecture:
        """The most probable architecture."""
        return self._architecture(self.derived_choice())

    def candidates(
        self, sizes: Sequence[int], number: int, temperature: float, generator: torch.Generator
    ) -> list[Architecture]:
        """For each hidden size the most probable architecture and others drawn from α, within the limit of cost.

        Parameters
        ----------
        sizes : sequence of int
            Channels; sizes of which no student is within the limit are left out.
        number : int
            Architectures of each size; fewer where α is so sure that 20 draws for each give no more.
        temperature : float
            Above 1 the draws leave more to validation than α would.
        generator : torch.Generator
            On the CPU.
        """
        found: list[Architecture] = []
        for size in sizes:
            if self.cost_limit is not None and self._cheapest(size) > self.cost_limit:
                continue
            of_size = [self._architecture(self.derived_choice(size), size)]
            for _ in range(20 * (number - 1)):
                noise = -torch.empty(self.alpha.shape).exponential_(generator=generator).log()
                drawn = self._architecture(self.derived_choice(size, noise, temperature), size)
                if len(of_size) < number and drawn not in of_size:
                    of_size.append(drawn)
            found += of_size
        return found

    def _cheapest(self, size: int) -> float:
        """Cost of the cheapest student of a hidden size, in the unit of `cost`."""
        prices, of_cells = self._prices(size)
        return of_cells + float(prices.min()) * len(self.cells) * len(edges(self.nodes))

    def _prices(self, size: int) -> tuple[Tensor, float]:
        """Costs of the operations ``[O]`` and of all cells without them at a hidden size, in the unit of `cost`."""
        prices = torch.tensor([operation_cost(name, size, self.cost_kind) for name in self.operations])
        of_cells = len(self.cells) * cell_cost(size, self.nodes, self.cost_kind)
        return prices.double() / self.most_expensive, of_cells / self.most_expensive

    def _architecture(self, choice: list[list[int]], size: int | None = None) -> Architecture:
        return Architecture(size or self.hidden_size, tuple(tuple(self.operations[o] for o in cell) for cell in choice))

    @torch.no_grad()
    def alpha_statistics(self) -> dict[str, float]:
        """How far the search moved α from its random start.

        Returns
        -------
        dict
            ``alpha_moved``: mean total variation distance between the operations' probabilities then and now (0 to
            1); ``alpha_max_probability``: largest probability, mean over edges; ``changed_edges``: share of edges
            whose most probable operation is another than at the start.
        """
        start, now = (
            alpha.masked_fill(~self.affordable, -torch.inf).softmax(-1) for alpha in (self.alpha_initial, self.alpha)
        )
        return {
            "alpha_moved": float((now - start).abs().sum(-1).mean() / 2),
            "alpha_max_probability": float(now.max(-1).values.mean()),
            "changed_edges": float((now.argmax(-1) != start.argmax(-1)).float().mean()),
        }
