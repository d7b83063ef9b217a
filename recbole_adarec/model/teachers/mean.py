"""The weighted mean of several teachers, which is a teacher."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from recbole_adarec.errors import AdaRecError
from recbole_adarec.model.base import Encoding, SequenceRecommender
from recbole_adarec.model.item_table.mean import MeanItemTable
from recbole_adarec.model.teachers.base import MEAN, AdaRecTeacher, teacher
from recbole_adarec.storage.model_files import StoredConfig


@teacher(MEAN)
class TeacherMean(AdaRecTeacher):
    """The weighted sum of the logits of several teachers (a log-linear pool of their softmaxes).

    A member m has logits ``s_m E_m^T + prior_m + r_m seen``. Their sum with weights w is again of this form, with
    states and rows side by side, each scaled by ``sqrt(w_m)``, and with sums of priors and repeat biases. So nothing
    that trains on a teacher, or ranks with it, treats a mean in another way. A weight holds the member's temperature:
    the weights need not add up to 1.

    Parameters
    ----------
    config : recbole.config.Config
        ``members``: for each its configuration (``config``) and its weight (``weight``).
    dataset : recbole.data.dataset.Dataset
        Provides the numbers of items and users.

    Attributes
    ----------
    members : nn.ModuleList
        The teachers.
    weights : Tensor
        w, ``[M]``.
    """

    def __init__(self, config: Any, dataset: Any) -> None:
        SequenceRecommender.__init__(self, config, dataset)
        device = config["device"]
        members = [
            AdaRecTeacher(StoredConfig({**member["config"], "device": device}), dataset) for member in config["members"]
        ]
        self.members: Any = nn.ModuleList(members)
        weights = torch.tensor([float(member["weight"]) for member in config["members"]])
        if not (weights > 0).all():
            raise AdaRecError(f"members: every weight of a mean is above 0, these are {weights.tolist()}")
        self.register_buffer("weights", weights)
        self.weights: Tensor
        self.item_table: Any = MeanItemTable([member.item_table for member in members], weights)
        self.embedding_size = sum(member.embedding_size for member in members)
        self.distilled_layers = sum(number for number, _ in self.layer_shapes)

    @property
    def layer_shapes(self) -> tuple[tuple[int, int], ...]:
        """The groups of all members; the states of each have a basis of their own."""
        return tuple(shape for member in self.members for shape in member.layer_shapes)

    @property
    def item_embeddings(self) -> Tensor:
        """Item embeddings of all members, scaled by the roots of their weights, ``[I, embedding_size]``."""
        return self._side_by_side([member.item_embeddings for member in self.members])

    def weigh(self) -> None:
        """Sum the members' priors and repeat biases by the weights anew, after their own weights were loaded."""
        self.item_table.weigh()
        biases = torch.stack([member.repeat_bias for member in self.members])
        self.repeat_bias.copy_(self.weights @ biases)

    def _side_by_side(self, parts: list[Tensor]) -> Tensor:
        """Tensors ``[..., C_m]`` of the members, scaled by the roots of their weights, ``[..., C]``."""
        return torch.cat([part * scale for part, scale in zip(parts, self.weights.sqrt(), strict=True)], -1)

    def _joined(self, encodings: list[Encoding]) -> Encoding:
        """Encodings of the members as one."""
        layers = tuple(layer for encoding in encodings for layer in encoding.layers)
        embedding = self._side_by_side([encoding.embedding for encoding in encodings])
        return Encoding(embedding, layers, self._side_by_side([encoding.output for encoding in encodings]))

    def encode(self, item_seq: Tensor) -> Encoding:
        """Hidden states of sequences of item ids ``[B, L]``; used to measure what a pass costs."""
        return self._joined([member.encode(item_seq) for member in self.members])

    def states_of(self, interaction: Any) -> Tensor:
        """States that score the items after the sequences of a batch, ``[B, C]``."""
        return self._side_by_side([member.states_of(interaction) for member in self.members])

    def last_state(self, item_seq: Tensor, lengths: Tensor) -> Tensor:
        """States that predict the item after each sequence, ``[B, C]``."""
        return self._side_by_side([member.last_state(item_seq, lengths) for member in self.members])

    def distillation_targets_in(self, interaction: Any) -> tuple[Encoding, Tensor]:
        """States that a student learns from, at the positions at which every member teaches.

        Returns
        -------
        tuple of Encoding and Tensor
            The encoding at N positions, each tensor ``[N, C_m]``, and those positions as a bool mask ``[B, L]``.
        """
        targets = [member.distillation_targets_in(interaction) for member in self.members]
        common = torch.stack([mask for _, mask in targets]).all(0)
        return self._joined([_rows(encoding, common[mask]) for encoding, mask in targets]), common


def _rows(encoding: Encoding, kept: Tensor) -> Encoding:
    """The encoding at some of its N positions, a bool mask ``[N]``."""
    if kept.all():
        return encoding
    return Encoding(encoding.embedding[kept], tuple(layer[kept] for layer in encoding.layers), encoding.output[kept])
