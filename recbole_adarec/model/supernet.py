"""The supernet: cells with all candidate operations on every edge, and the architecture logits α over them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
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
from recbole_adarec.model.search_space.cell import Cell, repeated
from recbole_adarec.model.search_space.cost import COSTS, cell_cost, operation_cost, paid
from recbole_adarec.model.search_space.limits import Limit
from recbole_adarec.model.search_space.operations import check_operations


class Sample(NamedTuple):
    """An architecture drawn from α.

    Attributes
    ----------
    gates : Tensor
        One-hot weights whose gradient is that of the softmax (straight-through), ``[G, E, O]``. G is the number of
        groups of cells that share α: 1 with ``share_cells``, else S.
    choice : list of list of int
        Index of the drawn operation, by cell and edge, for all repetitions of the cells.
    """

    gates: Tensor
    choice: list[list[int]]


class Shape(NamedTuple):
    """What an architecture has besides its operations.

    Attributes
    ----------
    size : int
        Channels C.
    repeats : int
        How many times all cells are applied.
    """

    size: int
    repeats: int


class AdaRecSupernet(CellStack):
    """S cells with all O candidate operations on each of their E edges (AdaRec, arXiv 2107.07173, section 3.2).

    Parameters
    ----------
    config : recbole.config.Config
        The keys ``hidden_size``, ``candidate_sizes``, ``cells``, ``repeats``, ``candidate_repeats``, ``nodes``,
        ``cell_form``, ``operations``, ``share_cells``, ``cost``, ``cost_floor``, ``alpha_init_std``, and those of
        `CellStack`.
    dataset : recbole.data.dataset.Dataset
        Provides the number of items and, for the item table, their counts.

    Attributes
    ----------
    alpha : Parameter
        Architecture logits α, ``[G, E, O]``.
    alpha_initial : Tensor
        α before the search, ``[G, E, O]``.
    operation_costs : Tensor
        Cost of each operation, as a share of `most_expensive`, ``[O]``.
    cell_costs : float
        Cost of all cells without their operations, as a share of `most_expensive`.
    cell_count : int
        S, without repetitions.
    most_expensive : float
        Cost of the most expensive architecture of the supernet's own shape, in the unit of ``cost``.
    shapes : list of Shape
        Those of the candidates.
    cost_kind : str
        The unit of costs: ``params``, ``macs`` or ``latency``; see `operation_cost`.
    limits : list of Limit
        The most that an architecture may cost; set by `limit`.
    affordable : Tensor
        Whether an architecture within the limits can contain the operation, bool ``[O]``.

    Raises
    ------
    AdaRecError
        If an operation or the kind of cost is unknown, or an operation is not causal.
    """

    alpha_initial: Tensor
    operation_costs: Tensor
    affordable: Tensor

    def __init__(self, config: Any, dataset: Any) -> None:
        operations = tuple(config["operations"])
        check_operations(operations)
        if config["cost"] not in COSTS:
            raise AdaRecError(f"cost: unknown cost {config['cost']!r}; known are {', '.join(COSTS)}")
        size, nodes, self.cell_count = config["hidden_size"], config["nodes"], config["cells"]
        edge_count = len(edges(nodes))
        self.cell_form: str = config["cell_form"] or "relu"  # missing in older model files, as repeats are
        self.repeats: int = config["repeats"] or 1
        candidates, dropout = [operations] * edge_count, config["dropout_prob"]
        stack = [Cell(size, candidates, nodes, self.cell_form, dropout) for _ in range(self.cell_count)]
        super().__init__(config, dataset, size, repeated(stack, self.repeats))
        self.operations = operations
        self.nodes = nodes
        self._sources = [i for i, _ in edges(nodes)]
        self.cost_kind: str = config["cost"]
        groups = 1 if config["share_cells"] else self.cell_count
        self.alpha = nn.Parameter(config["alpha_init_std"] * torch.randn(groups, edge_count, len(operations)))
        self.register_buffer("alpha_initial", self.alpha.detach().clone())
        self.shape = Shape(size, self.repeats)
        sizes, repeats = config["candidate_sizes"] or [size], config["candidate_repeats"] or [self.repeats]
        self.shapes = [Shape(*shape) for shape in product(sizes, repeats)]
        prices, cells_price = self._prices(self.shape)
        # L_cost is 1 for the most expensive architecture, whatever the unit.
        self.most_expensive = self._most_expensive(prices, cells_price)
        self.register_buffer("operation_costs", prices.float() / self.most_expensive)
        self.cell_costs = cells_price / self.most_expensive
        self.limits: list[Limit] = []
        self.cost_floor: float = config["cost_floor"]
        self.register_buffer("affordable", torch.ones(len(operations), dtype=torch.bool))

    # ------------------------------------------------------------------ parameters

    def weights(self) -> list[nn.Parameter]:
        """All parameters except α."""
        return [parameter for name, parameter in self.named_parameters() if name != "alpha"]

    def logits(self) -> Tensor:
        """α with minus infinity for the operations that are not `affordable`, ``[G, E, O]``."""
        return self.alpha.masked_fill(~self.affordable, -torch.inf)

    # ------------------------------------------------------------------ encoding

    def sample(self, temperature: float, generator: torch.Generator | None = None) -> Sample:
        """Draw one operation for each edge from α, by the hard Gumbel softmax (Jang et al., arXiv 1611.01144).

        Parameters
        ----------
        temperature : float
            Temperature of the softmax.
        generator : torch.Generator, optional
            A generator on the CPU, so that all processes and devices draw the same (``F.gumbel_softmax`` takes none).
        """
        noise = -torch.empty(self.alpha.shape).exponential_(generator=generator).log()
        soft = ((self.logits() + noise.to(self.alpha.device)) / temperature).softmax(-1)
        drawn = soft.argmax(-1)
        hard = F.one_hot(drawn, soft.shape[-1]).to(soft.dtype)
        return Sample(hard - soft.detach() + soft, self._per_cell(drawn))

    def uniform_path(self, generator: torch.Generator | None = None) -> list[list[int]]:
        """Draw one operation for each edge uniformly from the affordable ones; returns indices by cell and edge."""
        probabilities = self.affordable.float().expand(self.alpha.shape).flatten(0, 1).cpu()
        drawn = probabilities.multinomial(1, generator=generator).view(self.alpha.shape[:2])
        return self._per_cell(drawn)

    def _per_cell(self, choice: Tensor) -> list[list[int]]:
        """Operation indices ``[G, E]`` as a list for each of the S cells, and again for each repetition."""
        return choice.expand(self.cell_count, -1).tolist() * self.repeats

    def encode_path(self, item_seq: Tensor, choice: list[list[int]]) -> Encoding:
        """Hidden states on one path, without running the other operations (used to train the weights).

        Parameters
        ----------
        item_seq : Tensor
            Right-padded item ids, int64 ``[B, L]``.
        choice : list of list of int
            Index of the operation, by cell and edge.
        """

        def edge(cell: int, index: int, source: Tensor) -> Tensor | None:
            name = self.operations[choice[cell][index]]
            return None if name == "none" else self.cells[cell].edges[index][name](source)

        return self.encode_edges(item_seq, edge)

    def encode_traced(self, item_seq: Tensor, sample: Sample) -> tuple[Encoding, Trace]:
        """Hidden states on the drawn path, and the trace that `alpha_gradient` needs (used to train α).

        Parameters
        ----------
        item_seq : Tensor
            Right-padded item ids, int64 ``[B, L]``.
        sample : Sample
            The drawn architecture.
        """
        trace = Trace()

        def edge(cell: int, index: int, source: Tensor) -> Tensor:
            trace.sources[cell, self._sources[index]] = source.detach()
            return self.cells[cell].edges[index][self.operations[sample.choice[cell][index]]](source)

        return self.encode_edges(item_seq, edge, trace.record_node), trace

    def alpha_gradient(self, sample: Sample, trace: Trace, loss: Tensor, cost_weight: float | Tensor) -> Tensor:
        """Gradient of ``loss + cost_weight * L_cost`` with respect to α, ``[G, E, O]``.

        It is exact in the gates of all operations, including those that were not drawn; see `gate_gradients`.

        Parameters
        ----------
        sample : Sample
            The drawn architecture.
        trace : Trace
            Trace of the pass on `sample` that computed the loss.
        loss : Tensor
            A scalar.
        cost_weight : float or Tensor
            Weight of `cost_loss`.
        """
        gradients = gate_gradients(self.cells, self.operations, trace, loss).unflatten(0, (self.repeats, -1)).sum(0)
        if len(sample.gates) < len(gradients):  # all cells share α
            gradients = gradients.sum(0, keepdim=True)
        objective = (sample.gates * gradients).sum() + cost_weight * self.cost_loss(sample.gates)
        (gradient,) = torch.autograd.grad(objective, [self.alpha])
        return gradient

    def encode(self, item_seq: Tensor) -> Encoding:
        """Hidden states of sequences of item ids ``[B, L]`` on the most probable path, see `derived_choice`."""
        return self.encode_path(item_seq, self.derived_choice())

    # ------------------------------------------------------------------ cost and derivation

    def limit(self, limits: Sequence[Limit]) -> None:
        """Limit the cost of architectures.

        Operations that no architecture within the limits can contain are never drawn afterwards.

        Parameters
        ----------
        limits : sequence of Limit
            `student_limits` of the teacher.

        Raises
        ------
        AdaRecError
            If no architecture of the supernet's shape, or of any candidate's shape, is within the limits.
        """
        self.limits = list(limits)
        self.affordable.fill_(True)
        for limit in limits:
            cheapest = self._cheapest(self.shape, limit)
            if cheapest > limit.amount:
                raise AdaRecError(
                    f"{limit.key}: no student costs so little; the cheapest with hidden_size {self.hidden_size} and "
                    f"{self.cell_count} cells of {self.nodes} nodes costs {cheapest:.6g}, allowed is {limit.amount:.6g}"
                )
            prices, _ = self._prices(self.shape, limit)
            extra = (prices - prices.min()) * (self.cell_count / len(self.alpha))
            self.affordable &= (cheapest + extra <= limit.amount * (1 + 1e-6)).to(self.affordable.device)
        if not any(self._fits(shape) for shape in self.shapes):
            raise AdaRecError(
                f"{' and '.join(limit.key for limit in limits)}: no student of the candidate_sizes "
                f"{sorted({shape.size for shape in self.shapes})} costs so little"
            )

    def beyond_budget(self) -> list[str]:
        """Names of the operations that no architecture within the limits can contain."""
        return [name for name, kept in zip(self.operations, self.affordable.tolist(), strict=True) if not kept]

    def cost(self, gates: Tensor) -> Tensor:
        """Cost of the architecture of gates ``[G, E, O]``, a scalar, as a share of `most_expensive`."""
        return self.cell_count / len(gates) * (gates * self.operation_costs).sum() + self.cell_costs

    def cost_loss(self, gates: Tensor) -> Tensor:
        """L_cost of gates ``[G, E, O]``, a scalar: the `cost`, or with limits the sum of what exceeds each of them.

        An excess is a share of the most expensive architecture's cost of its kind.
        """
        if not self.limits:
            return self.cost(gates)
        total = gates.new_zeros(())
        for limit in self.limits:
            prices, rest = self._prices(self.shape, limit)
            most = self._most_expensive(prices, rest)
            cost = self.cell_count / len(gates) * (gates * prices.to(gates)).sum() + rest
            total = total + F.relu(cost - limit.amount) / most
        return total

    @torch.no_grad()
    def derived_choice(
        self, shape: Shape | None = None, noise: Tensor | None = None, temperature: float = 1.0
    ) -> list[list[int]]:
        """Most probable operations under α: indices by cell and edge, for all repetitions of the supernet's cells.

        Without limits each edge is decided alone; with them all edges are decided together, see `within_budget`.

        Parameters
        ----------
        shape : Shape, optional
            That of the student, which decides the costs of operations; default: that of the supernet.
        noise : Tensor, optional
            Gumbel noise ``[G, E, O]``. The result is then a random draw (perturb and maximise).
        temperature : float
            Temperature of the softmax of α.

        Raises
        ------
        AdaRecError
            If no choice is within all limits together.
        """
        log_p = (self.logits() / temperature).log_softmax(-1)
        if noise is not None:
            log_p = log_p + noise.to(log_p.device)
        if not self.limits:
            return self._per_cell(log_p.argmax(-1))
        shares = []
        for limit in self.limits:
            prices, rest = self._prices(shape or self.shape, limit)
            shares.append(prices * (self.cell_count / len(log_p)) / max(limit.amount - rest, 1e-12))
        none = self.operations.index("none") if "none" in self.operations else None
        best = within_budget(log_p, torch.stack(shares, 1), self.nodes, none, self.cost_floor)
        if best is None:
            raise AdaRecError(f"{' and '.join(limit.key for limit in self.limits)}: no student is within all of these")
        return self._per_cell(torch.tensor(best))

    def derive(self) -> Architecture:
        """The most probable architecture under α, within the limits."""
        return self._architecture(self.derived_choice(), self.shape)

    def candidates(
        self, shapes: Sequence[Shape], number: int, temperature: float, generator: torch.Generator
    ) -> list[Architecture]:
        """Different architectures for validation to choose from: of each shape the most probable, and draws from α.

        Parameters
        ----------
        shapes : sequence of Shape
            A shape without an architecture within the limits is skipped.
        number : int
            Largest number of architectures of a shape. There are fewer where ``20 * (number - 1)`` draws give fewer
            different ones.
        temperature : float
            Temperature of the softmax of α; above 1 the draws differ more.
        generator : torch.Generator
            A generator on the CPU.
        """
        architectures: list[Architecture] = []
        for shape in shapes:
            if not self._fits(shape):
                continue
            alike = [self._architecture(self.derived_choice(shape), shape)]
            for _ in range(20 * (number - 1)):
                noise = -torch.empty(self.alpha.shape).exponential_(generator=generator).log()
                drawn = self._architecture(self.derived_choice(shape, noise, temperature), shape)
                if len(alike) < number and drawn not in alike:
                    alike.append(drawn)
            architectures += alike
        return architectures

    def _fits(self, shape: Shape) -> bool:
        """Whether the cheapest architecture of a shape is within each limit."""
        return all(self._cheapest(shape, limit) <= limit.amount for limit in self.limits)

    def _cheapest(self, shape: Shape, limit: Limit) -> float:
        """Cost of the cheapest architecture of a shape, in the unit of a limit."""
        prices, rest = self._prices(shape, limit)
        return rest + float(prices.min()) * self.cell_count * len(edges(self.nodes))

    def _most_expensive(self, prices: Tensor, rest: float) -> float:
        """Cost of the most expensive architecture of some prices; 1 where all are free."""
        return rest + float(prices.max()) * self.cell_count * len(edges(self.nodes)) or 1.0

    def _prices(self, shape: Shape, limit: Limit | None = None) -> tuple[Tensor, float]:
        """Cost of each operation in one cell, float64 ``[O]``, and of all else; of layers alone without a limit."""
        (size, repeats), cost = shape, self.cost_kind if limit is None else limit.cost
        stored = "float32" if limit is None else limit.stored
        prices = torch.tensor([operation_cost(name, size, cost, stored) for name in self.operations])
        rest = repeats * self.cell_count * cell_cost(size, self.nodes, cost, stored)
        return paid(repeats, cost) * prices.double(), rest + (0.0 if limit is None else limit.table(size))

    def _architecture(self, choice: list[list[int]], shape: Shape) -> Architecture:
        """The `Architecture` of operation indices, which are given by cell and edge."""
        cells = tuple(tuple(self.operations[o] for o in cell) for cell in choice[: self.cell_count])
        return Architecture(shape.size, cells, self.cell_form, shape.repeats)

    @torch.no_grad()
    def alpha_statistics(self) -> dict[str, float]:
        """How far the search has moved α from its random initial value.

        Returns
        -------
        dict of str to float
            ``alpha_moved``: total variation distance between the initial and the present probabilities of the
            operations, mean over edges (0 to 1). ``alpha_max_probability``: largest probability, mean over edges.
            ``changed_edges``: share of edges whose most probable operation has changed.
        """
        start, now = (
            alpha.masked_fill(~self.affordable, -torch.inf).softmax(-1) for alpha in (self.alpha_initial, self.alpha)
        )
        return {
            "alpha_moved": float((now - start).abs().sum(-1).mean() / 2),
            "alpha_max_probability": float(now.max(-1).values.mean()),
            "changed_edges": float((now.argmax(-1) != start.argmax(-1)).float().mean()),
        }
