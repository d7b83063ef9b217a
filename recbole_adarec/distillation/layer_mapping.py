"""Many-to-many layer matching by Earth Mover's Distance (AdaRec, section 3.3; BERT-EMD, arXiv 2010.06133, section 3).

In symbols: u and v are the weights of the S student and T teacher layers, D their distances, F the
flow, ``L_hid = sum(F * D)``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import ot
import torch
from torch import Tensor
from torch.nn import functional as F

from recbole_adarec.errors import AdaRecError


class LayerDistance(NamedTuple):
    """A distance of layers in two parts, so that what depends on the teacher alone is computed once.

    Attributes
    ----------
    prepare : callable
        From teacher layers ``[T, N, C]`` what `between` wants of them: values ``[T, N, C]`` and terms ``[T, N]``.
    between : callable
        From projected student layers ``[S, N, C]``, values and terms the mean distances of all pairs, ``[S, T]``, in
        one matrix product.
    """

    prepare: Callable[[Tensor], tuple[Tensor, Tensor]]
    between: Callable[[Tensor, Tensor, Tensor], Tensor]

    def __call__(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Both parts at once."""
        return self.between(student, *self.prepare(teacher))


def _prepare_kl(teacher: Tensor) -> tuple[Tensor, Tensor]:
    log_p = teacher.log_softmax(-1)
    p = log_p.exp()
    return p, (p * log_p).sum(-1)


def _between_kl(student: Tensor, p: Tensor, negative_entropy: Tensor) -> Tensor:
    log_q = student.log_softmax(-1)
    return (negative_entropy.sum(1) - log_q.flatten(1) @ p.flatten(1).T) / p.shape[1]


def _prepare_mse(teacher: Tensor) -> tuple[Tensor, Tensor]:
    return teacher, teacher.square().sum(-1)


def _between_mse(student: Tensor, teacher: Tensor, squares: Tensor) -> Tensor:
    s, t = student.flatten(1), teacher.flatten(1)
    return ((s * s).sum(1)[:, None] + squares.sum(1) - 2 * s @ t.T) / t.shape[1]


DISTANCES = {
    # D[i, j] = KL(softmax_C(teacher_j) || softmax_C(student_i)), mean over positions
    "kl": LayerDistance(_prepare_kl, _between_kl),
    # D[i, j] = mean squared difference
    "mse": LayerDistance(_prepare_mse, _between_mse),
}


def optimal_flow(u: Tensor, v: Tensor, distances: Tensor) -> Tensor:
    """The flow ``[S, T]`` with row sums u and column sums v of least cost, solved exactly; a constant for gradients."""
    rows, columns = distances.shape
    values = torch.cat([u, v, distances.detach().flatten()]).double().cpu().numpy()  # one wait for a GPU, not three
    flow = ot.emd(values[:rows], values[rows : rows + columns], values[rows + columns :].reshape(rows, columns))
    return torch.as_tensor(flow, dtype=distances.dtype, device=distances.device)


def attend_to_cost(cost: Tensor, floor: float) -> Tensor:
    """Layer weights from what each layer costs to move (cost attention, BERT-EMD, equations 10 to 12).

    ``softmax((sum(c) / c_i) / 10)``: layers that are cheap to learn gain weight. One layer that costs next to nothing
    would take all of it, so that the others stop teaching; `floor` is the share of the uniform weight that every
    layer keeps.

    Parameters
    ----------
    cost : Tensor
        ``c_i``, mean cost of a unit of flow through each layer, ``[n]``.
    floor : float
        0 (as published) to 1 (uniform weights).
    """
    cost = cost.clamp_min(1e-8)
    attention = F.softmax(cost.sum() / cost / 10, 0)
    return (1 - floor) * attention + floor / len(cost)


class EMDMapping(torch.nn.Module):
    """Layer weights as part of the training state, and the loss that they give.

    Parameters
    ----------
    student_layers, teacher_layers : int
        S and T.
    floor : float
        Share of the uniform weight that every layer keeps, see `attend_to_cost`.
    momentum : float
        Share of the old weights that an update keeps; one batch is a noisy witness of a layer's cost.
    """

    student_weights: Tensor
    teacher_weights: Tensor
    flow: Tensor

    def __init__(self, student_layers: int, teacher_layers: int, floor: float, momentum: float) -> None:
        super().__init__()
        self.floor, self.momentum = floor, momentum
        self.register_buffer("student_weights", torch.full((student_layers,), 1 / student_layers))
        self.register_buffer("teacher_weights", torch.full((teacher_layers,), 1 / teacher_layers))
        self.register_buffer("flow", torch.zeros(student_layers, teacher_layers))

    def forward(self, distances: Tensor, global_distances: Tensor | None = None) -> Tensor:
        """L_hid of distances ``[S, T]``; the flow is kept for `update` and for the report.

        With several processes the flow is that of `global_distances`, the distances over the whole batch.
        """
        whole = distances if global_distances is None else global_distances
        self.flow = optimal_flow(self.student_weights, self.teacher_weights, whole)
        return (self.flow * distances).sum()

    @torch.no_grad()
    def update(self, distances: Tensor) -> None:
        """Move u and v towards the layers that were cheap in the last flow."""
        moved = self.flow * distances.detach()
        for weights, cost in ((self.student_weights, moved.sum(1)), (self.teacher_weights, moved.sum(0))):
            attended = attend_to_cost(cost / weights, self.floor)
            weights.mul_(self.momentum).add_(attended, alpha=1 - self.momentum)
            weights.div_(weights.sum())


class FixedMapping(torch.nn.Module):
    """Student layer i learns from one teacher layer, all with the same weight (the ablations of AdaRec, section 5).

    Parameters
    ----------
    pairs : list of int
        The teacher layer of each student layer.
    teacher_layers : int
        T.
    """

    student_weights: Tensor
    teacher_weights: Tensor
    flow: Tensor

    def __init__(self, pairs: list[int], teacher_layers: int) -> None:
        super().__init__()
        flow = torch.zeros(len(pairs), teacher_layers)
        flow[torch.arange(len(pairs)), torch.tensor(pairs)] = 1 / len(pairs)
        self.register_buffer("flow", flow)
        self.register_buffer("student_weights", flow.sum(1))
        self.register_buffer("teacher_weights", flow.sum(0))

    def forward(self, distances: Tensor, global_distances: Tensor | None = None) -> Tensor:
        return (self.flow * distances).sum()

    def update(self, distances: Tensor) -> None:
        """Fixed: nothing to update."""


def fixed_pairs(name: str, student_layers: int, teacher_layers: int, seed: int) -> list[int]:
    """Teacher layer of each student layer in the one-to-one mappings.

    ``left``: the first S teacher layers; ``right``: the last S; ``left_jump``: every (T // S)-th from the first;
    ``right_jump``: every (T // S)-th up to the last; ``random``: S different ones, in order. With more student than
    teacher layers the last (``left``) or first (``right``) teacher layer is used again.
    """
    s, t = student_layers, teacher_layers
    jump = max(t // s, 1)
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randperm(max(s, t), generator=generator)[:s].sort().values.tolist()
    pairs = {
        "left": list(range(s)),
        "right": list(range(t - s, t)),
        "left_jump": [i * jump for i in range(s)],
        "right_jump": [t - 1 - (s - 1 - i) * jump for i in range(s)],
        "random": drawn,
    }[name]
    return [min(max(j, 0), t - 1) for j in pairs]


# How a mapping is built for S student and T teacher layers, and the configuration.
Mapping = Callable[[int, int, Any], "EMDMapping | FixedMapping"]


def _emd(student_layers: int, teacher_layers: int, config: Any) -> EMDMapping:
    return EMDMapping(student_layers, teacher_layers, config["layer_weight_floor"], config["layer_weight_momentum"])


def _one_to_one(name: str) -> Mapping:
    return lambda s, t, config: FixedMapping(fixed_pairs(name, s, t, config["seed"]), t)


MAPPINGS: dict[str, Mapping] = {
    "emd": _emd,
    **{name: _one_to_one(name) for name in ("left", "right", "left_jump", "right_jump", "random")},
    "none": _emd,  # there, and not used
}
_OURS = frozenset(MAPPINGS)
M = TypeVar("M", bound=Callable[..., Any])


def layer_mapping(name: str) -> Callable[[M], M]:
    """Decorator: a layer mapping of your own, for ``layer_mapping:``.

    It is called with the numbers of student and teacher layers, S and T. A function gives the teacher layer, from 0, of
    each student layer; a class is a module with the methods and buffers of `EMDMapping`.
    """

    def register(mapping: M) -> M:
        if name in _OURS:
            raise AdaRecError(f"layer_mapping {name!r} is one of ours; give yours another name")

        def build(student_layers: int, teacher_layers: int, config: Any) -> Any:
            made = mapping(student_layers, teacher_layers)
            if isinstance(made, torch.nn.Module):
                return made
            pairs = [int(layer) for layer in made]
            if len(pairs) != student_layers or not all(0 <= layer < teacher_layers for layer in pairs):
                raise AdaRecError(
                    f"layer_mapping {name!r} gives {pairs} for {student_layers} student and {teacher_layers} teacher "
                    f"layers, expected {student_layers} numbers from 0 to {teacher_layers - 1}"
                )
            return FixedMapping(pairs, teacher_layers)

        MAPPINGS[name] = build
        return mapping

    return register
