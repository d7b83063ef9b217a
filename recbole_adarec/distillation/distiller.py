"""The losses of AdaRec (arXiv 2107.07173, sections 3.3 and 3.4), and their sum.

    L = (1 - gamma) L_CE + gamma (L_emb + L_hid + L_out)        (the search adds beta L_cost)

* L_CE: cross entropy of the next item at every real position (`recbole_adarec.losses`).
* L_emb: mean squared error between the teacher's embedding output and the student's, projected to C_t channels.
* L_hid: distance of the student's S projected layers to the teacher's T layers (`layer_mapping`).
* L_out: ``t^2 KL(teacher || student)`` of the softmax over items at temperature t (`recbole_adarec.losses`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recbole_adarec import distributed
from recbole_adarec.distillation.layer_mapping import DISTANCES, MAPPINGS
from recbole_adarec.distillation.teacher_outputs import TeacherTargets
from recbole_adarec.errors import AdaRecError
from recbole_adarec.losses.item_loss import ItemLoss, LossWeights, OutputTargets
from recbole_adarec.model.base import Encoding
from recbole_adarec.model.item_table.base import ItemTable
from recbole_adarec.model.positions import nonzero_positions
from recbole_adarec.model.seen_items import seen_items


class Losses(NamedTuple):
    """The losses of a batch.

    Attributes
    ----------
    total : Tensor
        L, a scalar, which carries the gradient.
    parts : dict of str to Tensor
        ``ce``, ``output``, ``embedding`` and ``hidden``, unweighted scalars without gradient, for the training log.
    distances : Tensor or None
        D over the whole batch, ``[S, T]``, from which the layer weights are updated; None without L_hid.
    """

    total: Tensor
    parts: dict[str, Tensor]
    distances: Tensor | None


class Distiller(nn.Module):
    """The sum of the losses, with its projections from student to teacher channels and the layer weights.

    Part of the training state, not of the deployed student.

    Parameters
    ----------
    config : recbole.config.Config
        ``gamma``, ``layer_mapping``, ``hidden_distance``, ``kd_temperature``, the ``loss_*`` switches.
    student_size, student_layers : int
        C_s and S.
    teacher_layers : sequence of (int, int)
        Number and channels of the teacher's layers, ``(T_g, C_g)`` for each group of them that has projections of its
        own (`AdaRecTeacher.layer_shapes`); without layers there is no L_hid.
    teacher_table : Tensor
        The rows that score the teacher's outputs, each followed by its prior, ``[I, C_t + 1]``.
    teacher_bias : float
        The teacher's `repeat_bias`.
    teacher_items : Tensor, optional
        The teacher's item embeddings, where they are not in its table (as in RecBole models), ``[I, C_e]``.

    Raises
    ------
    AdaRecError
        If ``layer_mapping`` or ``hidden_distance`` is unknown.
    """

    def __init__(
        self,
        config: Any,
        student_size: int,
        student_layers: int,
        teacher_layers: Sequence[tuple[int, int]],
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
        depth = sum(number for number, _ in teacher_layers)
        self.use_hidden: bool = config["loss_hidden"] and config["layer_mapping"] != "none" and depth > 0
        self.distance = DISTANCES[config["hidden_distance"]]
        self.project_embedding = nn.Linear(student_size, teacher_items.shape[1])
        self.student_layers = student_layers
        self.project_layers: Any = nn.ModuleList(  # of the first group from each student layer, then of the next group
            nn.Linear(student_size, size) for _, size in teacher_layers for _ in range(student_layers)
        )
        # Without layers the mapping is not used.
        self.mapping = MAPPINGS[config["layer_mapping"]](student_layers, max(depth, 1), config)
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
        # V comes from the [C_t, C_t] matrix E_t^T E_t: a catalog of a million items takes a second.
        double = self.teacher_items.double()
        v = torch.linalg.eigh(double.T @ double).eigenvectors.flip(1).to(self.teacher_items.dtype)
        rank = min(item_table.size, v.shape[1])
        item_table.start_from(F.pad(self.teacher_items @ v[:, :rank], (0, item_table.size - rank)))
        number = self.student_layers
        groups = [list(self.project_layers[i : i + number]) for i in range(0, len(self.project_layers), number)]
        sizes = [int(group[0].out_features) for group in groups]
        parts: list[tuple[Tensor, list[Any]]] = [(v, [self.project_embedding])]
        if sum(sizes) == len(v):  # else layers have another size than the embedding, and so another basis
            parts += zip(v.split(sizes), groups, strict=True)
        for basis, group in parts:
            for projection in group:
                projection.weight.zero_()
                projection.weight[:, :rank] = basis[:, :rank]
                projection.bias.zero_()

    def forward(
        self,
        encoding: Encoding,
        item_seq: Tensor,
        targets: Tensor,
        table: ItemTable,
        teacher_targets: TeacherTargets,
        item_loss: ItemLoss,
        share: float = 1.0,
        repeat_bias: float = 0.0,
    ) -> Losses:
        """All losses of a batch.

        L_CE is over all real positions, the other losses over the N positions at which the teacher teaches. Where these
        are the same, L_CE and L_out come from one pass over the scores.

        Parameters
        ----------
        encoding : Encoding
            The student's, ``[B, L, C_s]``.
        item_seq, targets : Tensor
            Item ids and the next items to predict, int64 ``[B, L]``, 0 where padded.
        table : ItemTable
            The student's item table.
        teacher_targets : TeacherTargets
            The teacher's outputs on the batch.
        item_loss : ItemLoss
            The loss over items of the table, which computes L_CE and L_out.
        share : float
            Share of the batch's targets that this process holds: one flow maps the layers of all processes.
        repeat_bias : float
            The student's.
        """
        student = encoding.select(teacher_targets.rows)
        labels = targets.flatten()[teacher_targets.rows]
        parts: dict[str, Tensor] = {}
        weights = LossWeights((1 - self.gamma) * self.use_ce, self.gamma, self.temperature)
        seen = seen_items(item_seq, teacher_targets.rows, repeat_bias, self.teacher_bias)
        teacher: OutputTargets[Any] | None = None
        if self.use_output:
            teacher = OutputTargets(
                teacher_targets.output, self.teacher_table, self.teacher_bias, teacher_targets.softmax
            )
        if teacher_targets.every_position:
            total, parts["ce"], parts["output"] = item_loss(student.output, table, labels, weights, teacher, seen)
        else:
            rows = nonzero_positions(targets != 0)
            states, next_items = encoding.select(rows).output, targets.flatten()[rows]
            total, parts["ce"], _ = item_loss(
                states, table, next_items, LossWeights(weights.ce), seen=seen_items(item_seq, rows, repeat_bias)
            )
            output_only = weights._replace(ce=0.0)
            loss, _, parts["output"] = item_loss(student.output, table, labels, output_only, teacher, seen)
            total = total + loss
        if self.use_embedding:
            loss = F.mse_loss(self.project_embedding(student.embedding), teacher_targets.embedding)
            parts["embedding"] = loss.detach()
            total = total + self.gamma * loss
        global_distances = None
        if self.use_hidden:
            distances = self.layer_distances(student.layers, teacher_targets)
            global_distances = distributed.total(distances.detach() * share)
            loss = self.mapping(distances, global_distances)
            parts["hidden"] = loss.detach()
            total = total + self.gamma * loss
        return Losses(total, parts, global_distances)

    def layer_distances(self, student: Sequence[Tensor], teacher: TeacherTargets) -> Tensor:
        """D of the student's layers, ``[N, C_s]`` each, and all layers of the teacher, ``[S, T]``."""
        columns, projections = [], iter(self.project_layers)
        for layers, terms in zip(teacher.layers, teacher.terms, strict=True):
            projected = torch.stack([next(projections)(hidden) for hidden in student])
            columns.append(self.distance.between(projected.float(), layers, terms))
        return torch.cat(columns, 1)


def check_distillation(config: Any) -> None:
    """Check the configuration of the distillation losses.

    Raises
    ------
    AdaRecError
        If ``layer_mapping`` or ``hidden_distance`` is unknown.
    """
    for key, known in (("layer_mapping", MAPPINGS), ("hidden_distance", tuple(DISTANCES))):
        if config[key] not in known:
            raise AdaRecError(f"{key}: unknown value {config[key]!r}; known are {', '.join(known)}")
