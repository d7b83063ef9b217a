"""The losses: ``L = (1 - gamma) L_CE + gamma (L_emb + L_hid + L_out)``; the search adds ``beta L_cost``.

AdaRec, arXiv 2107.07173, sections 3.3 and 3.4.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recbole_adarec.distillation.cache import Lesson
from recbole_adarec.distillation.transport import DISTANCES, MAPPINGS, EMDMapping, FixedMapping, fixed_pairs
from recbole_adarec.errors import AdaRecError
from recbole_adarec.model.base import Encoding, ItemTable

_CHUNK = 256  # positions whose scores over all items are held at a time; about a megabyte for 1,700 items


class _ItemLosses(torch.autograd.Function):
    """Cross entropy and output distillation over all items, in chunks of positions.

    The gradient of both with respect to the logits is known in closed form, ``ce (q - onehot) + kl t (q_t - p_t)``, so
    it is formed while the chunk is in the cache and the matrix ``[N, I]`` never exists.
    """

    @staticmethod
    def forward(
        ctx: Any,
        states: Tensor,
        table: Tensor,
        labels: Tensor,
        ce_weight: float,
        kl_weight: float,
        temperature: float,
        teacher_states: Tensor | None,
        teacher_table: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        needs_states, needs_table = ctx.needs_input_grad[:2]
        count = len(states)
        ce, kl = states.new_zeros(()), states.new_zeros(())
        states_gradient = torch.empty_like(states) if needs_states else None
        table_gradient = torch.zeros_like(table) if needs_table else None
        for start in range(0, count, _CHUNK):
            rows = slice(start, start + _CHUNK)
            logits = states[rows] @ table.T
            log_q = logits.log_softmax(-1)
            index = torch.arange(len(log_q), device=log_q.device)
            ce -= log_q[index, labels[rows]].sum()
            gradient = None
            if ce_weight:
                gradient = log_q.exp()
                gradient[index, labels[rows]] -= 1
                gradient *= ce_weight
            if teacher_states is not None and teacher_table is not None:
                log_p = (teacher_states[rows] @ teacher_table.T).div_(temperature).log_softmax(-1)
                p = log_p.exp()
                log_q_t = log_q if temperature == 1 else (logits / temperature).log_softmax(-1)
                kl += temperature**2 * torch.dot(p.flatten(), (log_p - log_q_t).flatten())
                q_t = log_q_t.exp().sub_(p).mul_(kl_weight * temperature)
                gradient = q_t if gradient is None else gradient.add_(q_t)
            if gradient is None:
                gradient = torch.zeros_like(logits)
            if states_gradient is not None:
                torch.mm(gradient, table, out=states_gradient[rows])
            if table_gradient is not None:
                table_gradient.addmm_(gradient.T, states[rows])
        ctx.save_for_backward(states_gradient, table_gradient)
        ctx.count = count
        ce, kl = ce / count, kl / count
        ctx.mark_non_differentiable(ce, kl)
        return ce_weight * ce + kl_weight * kl, ce, kl

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        scale = gradient / ctx.count
        return *(None if saved is None else saved * scale for saved in ctx.saved_tensors), *([None] * 6)


def item_losses(
    states: Tensor,
    table: Tensor,
    labels: Tensor,
    *,
    ce_weight: float = 1.0,
    kl_weight: float = 0.0,
    temperature: float = 1.0,
    teacher_states: Tensor | None = None,
    teacher_table: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """L_CE and L_out: mean cross entropy of the labels and mean ``t^2 KL(teacher || student)`` over all items.

    Parameters
    ----------
    states : Tensor
        What the item table scores, ``[N, C]``.
    table : Tensor
        Item embeddings, ``[I, C]``.
    labels : Tensor
        Item ids, int64 ``[N]``.
    ce_weight, kl_weight : float
        Their weights in the sum.
    temperature : float
        t, of both softmaxes of L_out.
    teacher_states, teacher_table : Tensor, optional
        The teacher's ``[N, C_t]`` and ``[I, C_t]``; without them L_out is 0.

    Returns
    -------
    tuple of Tensor
        The weighted sum, which carries the gradient, and both losses for the record.
    """
    return _ItemLosses.apply(states, table, labels, ce_weight, kl_weight, temperature, teacher_states, teacher_table)


class Losses(NamedTuple):
    """The total, which carries the gradient, its parts for the record, and the distances that moved the layers."""

    total: Tensor
    parts: dict[str, Tensor]
    distances: Tensor | None


class Distiller(nn.Module):
    """Projections from student to teacher channels, layer weights, and the sum of the losses.

    Part of the training state, not of the student that is served.

    Parameters
    ----------
    config : recbole.config.Config
        ``gamma``, ``layer_mapping``, ``hidden_distance``, ``kd_temperature``, the ``loss_*`` switches.
    student_size, student_layers : int
        C_s and S.
    teacher_size, teacher_layers : int
        C_t and T.
    teacher_table : Tensor
        The teacher's item embeddings, ``[I, C_t]``.
    """

    def __init__(
        self,
        config: Any,
        student_size: int,
        student_layers: int,
        teacher_size: int,
        teacher_layers: int,
        teacher_table: Tensor,
    ) -> None:
        super().__init__()
        check_distillation(config)
        self.gamma: float = config["gamma"]
        self.temperature: float = config["kd_temperature"]
        self.use_ce: bool = config["loss_ce"]
        self.use_embedding: bool = config["loss_embedding"]
        self.use_output: bool = config["loss_output"]
        self.use_hidden: bool = config["loss_hidden"] and config["layer_mapping"] != "none"
        self.distance = DISTANCES[config["hidden_distance"]]
        self.project_embedding = nn.Linear(student_size, teacher_size)
        self.project_layers = nn.ModuleList(nn.Linear(student_size, teacher_size) for _ in range(student_layers))
        self.mapping: EMDMapping | FixedMapping
        if config["layer_mapping"] in ("emd", "none"):
            self.mapping = EMDMapping(
                student_layers, teacher_layers, config["layer_weight_floor"], config["layer_weight_momentum"]
            )
        else:
            pairs = fixed_pairs(config["layer_mapping"], student_layers, teacher_layers, config["seed"])
            self.mapping = FixedMapping(pairs, teacher_layers)
        self.register_buffer("teacher_table", teacher_table.detach().clone(), persistent=False)
        self.teacher_table: Tensor

    @torch.no_grad()
    def start_from_teacher(self, item_table: ItemTable) -> None:
        """Start the student's item table as the best rank-C_s approximation of the teacher's.

        ``E_t ~ U S V^T``: the table becomes ``U S``, and all projections start at ``V``, so that they map it back.
        """
        u, s, v = torch.linalg.svd(self.teacher_table, full_matrices=False)
        rank = min(item_table.items.shape[1], len(s))
        item_table.items[:, :rank] = u[:, :rank] * s[:rank]
        item_table.items[:, rank:] = 0
        for projection in (self.project_embedding, *self.project_layers):
            projection.weight.zero_()
            projection.weight[:, :rank] = v[:rank].T
            projection.bias.zero_()

    def forward(self, encoding: Encoding, targets: Tensor, table: Tensor, lesson: Lesson) -> Losses:
        """All losses of a batch.

        Parameters
        ----------
        encoding : Encoding
            The student's, ``[B, L, C_s]``.
        targets : Tensor
            Item ids to predict, int64 ``[B, L]``, 0 where padded.
        table : Tensor
            The student's item embeddings, ``[I, C_s]``.
        lesson : Lesson
            The teacher's outputs.
        """
        real = targets != 0
        taught = encoding.at(lesson.positions)
        parts: dict[str, Tensor] = {}
        ce_weight = (1 - self.gamma) * self.use_ce
        teacher = {"teacher_states": lesson.output, "teacher_table": self.teacher_table} if self.use_output else {}
        if torch.equal(real, lesson.positions):
            total, parts["ce"], parts["output"] = item_losses(
                taught.output, table, targets[real], ce_weight=ce_weight, kl_weight=self.gamma,
                temperature=self.temperature, **teacher,
            )  # fmt: skip
        else:  # the teacher may teach at some positions only
            total, parts["ce"], _ = item_losses(encoding.output[real], table, targets[real], ce_weight=ce_weight)
            part, _, parts["output"] = item_losses(
                taught.output, table, targets[lesson.positions], ce_weight=0.0, kl_weight=self.gamma,
                temperature=self.temperature, **teacher,
            )  # fmt: skip
            total = total + part
        if self.use_embedding:
            loss = F.mse_loss(self.project_embedding(taught.embedding), lesson.embedding)
            parts["embedding"] = loss.detach()
            total = total + self.gamma * loss
        distances = None
        if self.use_hidden:
            projected = torch.stack(
                [project(hidden) for project, hidden in zip(self.project_layers, taught.layers, strict=True)]
            )
            distances = self.distance(projected, lesson.layers)
            loss = self.mapping(distances)
            parts["hidden"] = loss.detach()
            total = total + self.gamma * loss
        return Losses(total, parts, distances)


def check_distillation(config: Any) -> None:
    """Refuse values that no loss can be built from, by one line."""
    for key, known in (("layer_mapping", MAPPINGS), ("hidden_distance", tuple(DISTANCES))):
        if config[key] not in known:
            raise AdaRecError(f"{key}: unknown value {config[key]!r}; known are {', '.join(known)}")
