"""Layer mappings: which student layer learns from which teacher layer, and with what weight.

AdaRec (arXiv 2107.07173, section 3.3) maps many to many by Earth Mover's Distance, after BERT-EMD (arXiv 2010.06133,
section 3). With S student layers h_S^i, projected to the teacher's channels, and T teacher layers h_T^j:

    D[i, j] = KL(softmax_C(h_T^j) || softmax_C(W h_S^i)), mean over positions       (`DISTANCES`)
    F       = argmin_F sum_ij F[i, j] D[i, j], row sums u, column sums v            (`optimal_flow`)
    L_hid   = sum_ij F[i, j] D[i, j], F a constant for the gradient                 (`EMDMapping`)
    c_i     = sum_j F[i, j] D[i, j] / u_i,  u_i <- softmax_i((sum_k c_k / c_i) / 10)  (`attend_to_cost`)

and likewise v from the columns. The weights u and v of the layers are uniform at first. One-to-one mappings have a
fixed flow (`FixedMapping`).
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
    """A distance D of layers in two parts, so that what depends on the teacher alone is computed once.

    Attributes
    ----------
    prepare : callable
        The teacher's part. From teacher layers ``[T, N, C]`` to the values and terms of `between`, ``[T, N, C]`` and
        ``[T, N]``.
    between : callable
        From projected student layers ``[S, N, C]``, values and terms to D, the mean over N positions for all pairs of
        layers, ``[S, T]``, in one matrix product.
    """

    prepare: Callable[[Tensor], tuple[Tensor, Tensor]]
    between: Callable[[Tensor, Tensor, Tensor], Tensor]

    def __call__(self, student: Tensor, teacher: Tensor) -> Tensor:
        """D of student layers ``[S, N, C]`` and teacher layers ``[T, N, C]``, ``[S, T]``."""
        return self.between(student, *self.prepare(teacher))


def _prepare_kl(teacher: Tensor) -> tuple[Tensor, Tensor]:
    """p and ``sum_C p log p`` of the softmax over channels."""
    log_p = teacher.log_softmax(-1)
    p = log_p.exp()
    return p, (p * log_p).sum(-1)


def _between_kl(student: Tensor, p: Tensor, negative_entropy: Tensor) -> Tensor:
    """``sum_C p log p - sum_C p log q``."""
    log_q = student.log_softmax(-1)
    return (negative_entropy.sum(1) - log_q.flatten(1) @ p.flatten(1).T) / p.shape[1]


def _prepare_mse(teacher: Tensor) -> tuple[Tensor, Tensor]:
    """The layers and their squared norms."""
    return teacher, teacher.square().sum(-1)


def _between_mse(student: Tensor, teacher: Tensor, squares: Tensor) -> Tensor:
    """``(|s|^2 + |t|^2 - 2 s t) / C``."""
    s, t = student.flatten(1), teacher.flatten(1)
    return ((s * s).sum(1)[:, None] + squares.sum(1) - 2 * s @ t.T) / t.shape[1]


DISTANCES = {"kl": LayerDistance(_prepare_kl, _between_kl), "mse": LayerDistance(_prepare_mse, _between_mse)}
"""Values of ``hidden_distance``: ``KL(softmax_C(teacher) || softmax_C(student))``, or the mean squared difference."""


def optimal_flow(u: Tensor, v: Tensor, distances: Tensor) -> Tensor:
    """The flow of least cost between layers, solved exactly by POT; a constant for gradients.

    Parameters
    ----------
    u, v : Tensor
        Weights of the student and the teacher layers, ``[S]`` and ``[T]``, each with sum 1.
    distances : Tensor
        D, ``[S, T]``.

    Returns
    -------
    Tensor
        F with row sums u and column sums v, ``[S, T]``.
    """
    rows, columns = distances.shape
    values = torch.cat([u, v, distances.detach().flatten()]).double().cpu().numpy()  # one wait for a GPU, not three
    flow = ot.emd(values[:rows], values[rows : rows + columns], values[rows + columns :].reshape(rows, columns))
    return torch.as_tensor(flow, dtype=distances.dtype, device=distances.device)


def attend_to_cost(cost: Tensor, floor: float) -> Tensor:
    """Layer weights from the costs of the layers (cost attention, BERT-EMD, equations 10 to 12).

    ``softmax_i((sum_k c_k / c_i) / 10)``: layers that are cheap to learn gain weight. A layer that costs next to
    nothing would take all of it, so that the others stop teaching: `floor` bounds each weight from below.

    Parameters
    ----------
    cost : Tensor
        c, the mean cost of a unit of flow through each of n layers, ``[n]``.
    floor : float
        Share of the uniform weight that every layer keeps, from 0 (as published) to 1 (uniform weights).

    Returns
    -------
    Tensor
        The weights, ``[n]``, with sum 1.
    """
    cost = cost.clamp_min(1e-8)
    attention = F.softmax(cost.sum() / cost / 10, 0)
    return (1 - floor) * attention + floor / len(cost)


class EMDMapping(torch.nn.Module):
    """Many-to-many mapping by Earth Mover's Distance: L_hid and the layer weights u and v.

    The weights are part of the training state, and so of a checkpoint.

    Parameters
    ----------
    student_layers, teacher_layers : int
        S and T.
    floor : float
        Share of the uniform weight that every layer keeps, see `attend_to_cost`.
    momentum : float
        Share of the old weights that an update keeps; the costs of one batch are noisy.

    Attributes
    ----------
    student_weights, teacher_weights : Tensor
        u ``[S]`` and v ``[T]``.
    flow : Tensor
        F of the last batch, ``[S, T]``.
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
        """L_hid, ``sum_ij F[i, j] D[i, j]``, a scalar.

        Parameters
        ----------
        distances : Tensor
            D of the positions of this process, ``[S, T]``.
        global_distances : Tensor, optional
            D of the whole batch, from which F is computed where there are several processes.
        """
        whole = distances if global_distances is None else global_distances
        self.flow = optimal_flow(self.student_weights, self.teacher_weights, whole)
        return (self.flow * distances).sum()

    @torch.no_grad()
    def update(self, distances: Tensor) -> None:
        """Move u and v towards the layers that were cheap in the last flow, under distances ``[S, T]``."""
        costs = self.flow * distances.detach()
        for weights, cost in ((self.student_weights, costs.sum(1)), (self.teacher_weights, costs.sum(0))):
            attention = attend_to_cost(cost / weights, self.floor)
            weights.mul_(self.momentum).add_(attention, alpha=1 - self.momentum)
            weights.div_(weights.sum())


class FixedMapping(torch.nn.Module):
    """One-to-one mapping: each student layer learns from one teacher layer, all with weight 1/S.

    The ablations of AdaRec, section 5.

    Parameters
    ----------
    teacher_of : list of int
        The teacher layer of each student layer, from 0.
    teacher_layers : int
        T.

    Attributes
    ----------
    student_weights, teacher_weights, flow : Tensor
        u ``[S]``, v ``[T]`` and F ``[S, T]``, which never change.
    """

    student_weights: Tensor
    teacher_weights: Tensor
    flow: Tensor

    def __init__(self, teacher_of: list[int], teacher_layers: int) -> None:
        super().__init__()
        flow = torch.zeros(len(teacher_of), teacher_layers)
        flow[torch.arange(len(teacher_of)), torch.tensor(teacher_of)] = 1 / len(teacher_of)
        self.register_buffer("flow", flow)
        self.register_buffer("student_weights", flow.sum(1))
        self.register_buffer("teacher_weights", flow.sum(0))

    def forward(self, distances: Tensor, global_distances: Tensor | None = None) -> Tensor:
        """L_hid of D ``[S, T]``: the mean distance of the teacher_of, a scalar."""
        return (self.flow * distances).sum()

    def update(self, distances: Tensor) -> None:
        """Nothing to update: the weights are fixed."""


def fixed_pairs(name: str, student_layers: int, teacher_layers: int, seed: int) -> list[int]:
    """The teacher layer of each student layer in a one-to-one mapping, from 0, rising.

    Parameters
    ----------
    name : str
        ``left``: the first S teacher layers; ``right``: the last S; ``left_jump``: every (T // S)-th from the first;
        ``right_jump``: every (T // S)-th up to the last; ``random``: S different ones. With more student than teacher
        layers the last (``left``) or first (``right``) teacher layer is used again.
    student_layers, teacher_layers : int
        S and T.
    seed : int
        Seed of ``random``.
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


MappingBuilder = Callable[[int, int, Any], "EMDMapping | FixedMapping"]
"""Builds a mapping from S, T and the configuration."""


def _emd(student_layers: int, teacher_layers: int, config: Any) -> EMDMapping:
    return EMDMapping(student_layers, teacher_layers, config["layer_weight_floor"], config["layer_weight_momentum"])


def _one_to_one(name: str) -> MappingBuilder:
    return lambda s, t, config: FixedMapping(fixed_pairs(name, s, t, config["seed"]), t)


MAPPINGS: dict[str, MappingBuilder] = {
    "emd": _emd,
    **{name: _one_to_one(name) for name in ("left", "right", "left_jump", "right_jump", "random")},
    "none": _emd,  # built, and not used
}
"""Values of ``layer_mapping``, those of `layer_mapping` included."""
_BUILT_IN = frozenset(MAPPINGS)
M = TypeVar("M", bound=Callable[..., Any])


def layer_mapping(name: str) -> Callable[[M], M]:
    """Decorator that registers a layer mapping of the user, for ``layer_mapping: NAME``.

    The decorated function or class is called with S and T, the numbers of student and teacher layers. A function
    returns the teacher layer, from 0, of each student layer; a class is a module with the methods and buffers of
    `EMDMapping`.

    Parameters
    ----------
    name : str
        The name, which must not be a built-in one.

    Raises
    ------
    AdaRecError
        If the name is a built-in one; when the mapping is built, if it does not return S layers from 0 to T - 1.
    """

    def register(mapping: M) -> M:
        if name in _BUILT_IN:
            raise AdaRecError(f"layer_mapping {name!r} is one of ours; give yours another name")

        def build(student_layers: int, teacher_layers: int, config: Any) -> Any:
            result = mapping(student_layers, teacher_layers)
            if isinstance(result, torch.nn.Module):
                return result
            pairs = [int(layer) for layer in result]
            if len(pairs) != student_layers or not all(0 <= layer < teacher_layers for layer in pairs):
                raise AdaRecError(
                    f"layer_mapping {name!r} gives {pairs} for {student_layers} student and {teacher_layers} teacher "
                    f"layers, expected {student_layers} numbers from 0 to {teacher_layers - 1}"
                )
            return FixedMapping(pairs, teacher_layers)

        MAPPINGS[name] = build
        return mapping

    return register
