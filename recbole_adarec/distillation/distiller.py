"""The losses: ``L = (1 - gamma) L_CE + gamma (L_emb + L_hid + L_out)``; the search adds ``beta L_cost``.

AdaRec, arXiv 2107.07173, sections 3.3 and 3.4.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recbole_adarec import distributed
from recbole_adarec.distillation.layer_mapping import DISTANCES, MAPPINGS
from recbole_adarec.distillation.teacher_outputs import TeacherTargets
from recbole_adarec.errors import AdaRecError
from recbole_adarec.model.base import Encoding
from recbole_adarec.model.item_table.base import ItemTable
from recbole_adarec.model.positions import nonzero_positions
from recbole_adarec.model.seen_items import seen_items


class Losses(NamedTuple):
    """The total, which carries the gradient, its parts for the record, and the distances that move the layers."""

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
        C_t and T; without layers, T = 0, there is no L_hid.
    teacher_table : Tensor
        What scores the teacher's outputs, its priors last, ``[I, C_t + 1]``.
    teacher_bias : float
        The teacher's `repeat_bias`.
    teacher_items : Tensor, optional
        The teacher's item embeddings, where they are not in its table (as in stock models of RecBole), ``[I, C_e]``.
    """

    def __init__(
        self,
        config: Any,
        student_size: int,
        student_layers: int,
        teacher_size: int,
        teacher_layers: int,
        teacher_table: Tensor,
        teacher_bias: float = 0.0,
        teacher_items: Tensor | None = None,
    ) -> None:
        super().__init__()
        teacher_items = teacher_table[:, :-1] if teacher_items is None else teacher_items
        check_distillation(config)
        self.gamma: float = config["gamma"]
        self.temperature: float = config["kd_temperature"]
        self.teacher_bias = teacher_bias
        self.use_ce: bool = config["loss_ce"]
        self.use_embedding: bool = config["loss_embedding"]
        self.use_output: bool = config["loss_output"]
        self.use_hidden: bool = config["loss_hidden"] and config["layer_mapping"] != "none" and teacher_layers > 0
        self.distance = DISTANCES[config["hidden_distance"]]
        self.project_embedding = nn.Linear(student_size, teacher_items.shape[1])
        self.project_layers = nn.ModuleList(nn.Linear(student_size, teacher_size) for _ in range(student_layers))
        teacher_layers = max(teacher_layers, 1)  # without any nothing is mapped
        self.mapping = MAPPINGS[config["layer_mapping"]](student_layers, teacher_layers, config)
        self.register_buffer("teacher_table", teacher_table.detach(), persistent=False)
        self.teacher_table: Tensor
        self.register_buffer("teacher_items", teacher_items.detach(), persistent=False)
        self.teacher_items: Tensor

    @torch.no_grad()
    def start_from_teacher(self, item_table: ItemTable) -> None:
        """Start the student's item table as the best rank-C_s approximation of the teacher's.

        ``E_t ~ U S V^T``: the table becomes ``U S``, and all projections start at ``V``, so that they map it back. An
        adaptive table takes the best approximation of ``U S`` in each block.
        """
        # V is found from the [C_t, C_t] matrix E_t^T E_t: a catalog of a million items takes a second.
        double = self.teacher_items.double()
        v = torch.linalg.eigh(double.T @ double).eigenvectors.flip(1).to(self.teacher_items.dtype)
        rank = min(item_table.size, v.shape[1])
        item_table.start_from(F.pad(self.teacher_items @ v[:, :rank], (0, item_table.size - rank)))
        for projection in (self.project_embedding, *self.project_layers):
            if projection.out_features != len(v):  # layers of another size than the embedding have another basis
                continue
            projection.weight.zero_()
            projection.weight[:, :rank] = v[:, :rank]
            projection.bias.zero_()

    def forward(
        self,
        encoding: Encoding,
        item_seq: Tensor,
        targets: Tensor,
        table: ItemTable,
        teacher_targets: TeacherTargets,
        item_loss: Callable[..., tuple[Tensor, Tensor, Tensor]],
        share: float = 1.0,
        repeat_bias: float = 0.0,
    ) -> Losses:
        """All losses of a batch.

        Parameters
        ----------
        encoding : Encoding
            The student's, ``[B, L, C_s]``.
        item_seq, targets : Tensor
            Item ids, and those to predict, int64 ``[B, L]``, 0 where padded.
        table : ItemTable
            The student's.
        lesson : TeacherTargets
            The teacher's outputs.
        item_loss : SoftmaxLoss or AdaptiveSoftmaxLoss
            That of the table: computes L_CE and L_out.
        share : float
            Part of the batch that this process has: the layers of all processes are matched by one flow.
        repeat_bias : float
            The student's.
        """
        taught, labels = encoding.select(teacher_targets.rows), targets.flatten()[teacher_targets.rows]
        parts: dict[str, Tensor] = {}
        ce_weight = (1 - self.gamma) * self.use_ce
        teacher: dict[str, Any] = {}
        seen = seen_items(item_seq, teacher_targets.rows, repeat_bias, self.teacher_bias)
        if self.use_output:
            teacher = {"teacher_states": teacher_targets.output, "teacher_table": self.teacher_table}
            teacher["teacher_bias"] = self.teacher_bias
            teacher["teacher_softmax"] = teacher_targets.softmax
        if teacher_targets.every_position:
            total, parts["ce"], parts["output"] = item_loss(
                taught.output, table, labels, ce_weight=ce_weight, kl_weight=self.gamma,
                temperature=self.temperature, seen=seen, **teacher,
            )  # fmt: skip
        else:
            real = nonzero_positions(targets != 0)
            before = seen_items(item_seq, real, repeat_bias)
            total, parts["ce"], _ = item_loss(
                encoding.select(real).output, table, targets.flatten()[real], ce_weight=ce_weight, seen=before
            )
            part, _, parts["output"] = item_loss(
                taught.output, table, labels, ce_weight=0.0, kl_weight=self.gamma,
                temperature=self.temperature, seen=seen, **teacher,
            )  # fmt: skip
            total = total + part
        if self.use_embedding:
            loss = F.mse_loss(self.project_embedding(taught.embedding), teacher_targets.embedding)
            parts["embedding"] = loss.detach()
            total = total + self.gamma * loss
        distances = None
        if self.use_hidden:
            projected = torch.stack(
                [project(hidden) for project, hidden in zip(self.project_layers, taught.layers, strict=True)]
            )
            own = self.distance.between(projected.float(), teacher_targets.layers, teacher_targets.terms)
            distances = distributed.total(own.detach() * share)
            loss = self.mapping(own, distances)
            parts["hidden"] = loss.detach()
            total = total + self.gamma * loss
        return Losses(total, parts, distances)


def check_distillation(config: Any) -> None:
    """Refuse values that no loss can be built from, by one line."""
    for key, known in (("layer_mapping", MAPPINGS), ("hidden_distance", tuple(DISTANCES))):
        if config[key] not in known:
            raise AdaRecError(f"{key}: unknown value {config[key]!r}; known are {', '.join(known)}")
