"""Base class of all models of this package: an encoder of item sequences under a softmax over items."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from recbole.model.abstract_recommender import SequentialRecommender
from recbole.utils import InputType
from torch import Tensor

from recbole_adarec.data.dataset import TARGETS_PREFIX
from recbole_adarec.model.flops import count_by_rule
from recbole_adarec.model.item_table.base import ItemTable, TopK
from recbole_adarec.model.positions import nonzero_positions, select_positions
from recbole_adarec.model.seen_items import SeenItems, deduplicated, seen_up_to

_ROWS = 64  # sequences that are encoded together when many are scored


class Encoding(NamedTuple):
    """Hidden states of a batch of B sequences of L positions, or of N selected positions.

    Encoders, losses and distillation exchange this type.

    Attributes
    ----------
    embedding : Tensor
        Input of the first layer, ``[B, L, C]`` or ``[N, C]``.
    layers : tuple of Tensor
        Outputs of the layers that distillation compares, S of a student or T of a teacher, each ``[B, L, C]`` or
        ``[N, C]``.
    output : Tensor
        States that the item table scores, ``[B, L, C]`` or ``[N, C]``.
    """

    embedding: Tensor
    layers: tuple[Tensor, ...]
    output: Tensor

    def at(self, positions: Tensor) -> Encoding:
        """The encoding at the positions of a bool mask ``[B, L]``; every tensor becomes ``[N, C]``."""
        return self.select(nonzero_positions(positions))

    def select(self, rows: Tensor) -> Encoding:
        """The encoding at positions given as indices int64 ``[N]``, see `nonzero_positions`."""
        return Encoding(
            select_positions(self.embedding, rows),
            tuple(select_positions(hidden, rows) for hidden in self.layers),
            select_positions(self.output, rows),
        )


class SequenceRecommender(SequentialRecommender):
    """A sequential recommender of RecBole; a subclass sets `item_table` and implements `encode`.

    The base class derives everything that RecBole calls from these two: ``calculate_loss``, ``predict`` and
    ``full_sort_predict``. The methods assume a causal encoder, which is trained, read and distilled at every position.
    An encoder whose states depend on later items overrides `last_state`, `training_states` and `distillation_targets`;
    `recbole_adarec.model.teachers.bert4rec.BERT4RecTeacher` is an example.

    Parameters
    ----------
    config : recbole.config.Config
        The keys ``repeat_bias`` and those that RecBole's ``SequentialRecommender`` reads.
    dataset : recbole.data.dataset.Dataset
        Provides the number of items.

    Attributes
    ----------
    item_table : ItemTable
        Embeds the items, and scores the states of `encode`. Set by the subclass.
    repeat_bias : Tensor
        A scalar, added to the logit of every item of the sequence, in training and in the scores; see
        `recbole_adarec.trainer.calibration`.
    """

    input_type = InputType.POINTWISE  # one positive item per row; the targets of a window are in one field

    item_table: ItemTable
    repeat_bias: Tensor

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if cls.predict is SequenceRecommender.predict:  # others run modules that RecBole counts
            count_by_rule(cls)

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        self.TARGETS = TARGETS_PREFIX + self.ITEM_SEQ
        self.register_buffer("repeat_bias", torch.tensor(float(config["repeat_bias"] or 0.0)))

    def encode(self, item_seq: Tensor) -> Encoding:
        """Hidden states of sequences of right-padded item ids, int64 ``[B, L]``."""
        raise NotImplementedError

    def last_state(self, item_seq: Tensor, lengths: Tensor) -> Tensor:
        """States that predict the item after each sequence, ``[B, C]``.

        Parameters
        ----------
        item_seq : Tensor
            Right-padded item ids, int64 ``[B, L]``.
        lengths : Tensor
            Number of items of each sequence, int64 ``[B]``.
        """
        return self.gather_indexes(self.encode(item_seq).output, lengths - 1)

    def training_states(self, item_seq: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """States, labels and seen items of the positions that are trained.

        Parameters
        ----------
        item_seq : Tensor
            Right-padded inputs, int64 ``[B, L]``.
        targets : Tensor
            The item that follows each input, 0 where padded, int64 ``[B, L]``.

        Returns
        -------
        tuple of Tensor
            States ``[N, C]``; the items that they are trained to predict, int64 ``[N]``; the items seen up to each
            position, in the form of `SeenItems`, int64 ``[N, L]``.
        """
        rows = nonzero_positions(targets != 0)
        return select_positions(self.encode(item_seq).output, rows), targets.flatten()[rows], seen_up_to(item_seq, rows)

    def distillation_targets(self, item_seq: Tensor) -> tuple[Encoding, Tensor]:
        """States that a student learns from, where this model is the teacher.

        Parameters
        ----------
        item_seq : Tensor
            Right-padded item ids, int64 ``[B, L]``.

        Returns
        -------
        tuple of Encoding and Tensor
            The encoding at N positions, each tensor ``[N, C]``; those positions as a bool mask ``[B, L]``. A causal
            model returns every position that is not padding. No state may depend on items after its position.
        """
        mask = item_seq != 0
        return self.encode(item_seq).at(mask), mask

    def distillation_targets_in(self, interaction: Any) -> tuple[Encoding, Tensor]:
        """`distillation_targets` of a batch of windows.

        A teacher that reads more fields than the items overrides it.

        Parameters
        ----------
        interaction : recbole.data.interaction.Interaction
            A batch of a `WindowDataset`.
        """
        return self.distillation_targets(interaction[self.ITEM_SEQ])

    def forward(self, item_seq: Tensor, lengths: Tensor) -> Tensor:
        """`last_state` of any number of sequences, ``[B, C]``; RecBole's models have a method of this name.

        Sequences of similar length are encoded together, cut to the longest of them. Padding changes no state, but
        where histories are short it would be most of a batch.
        """
        if len(lengths) <= _ROWS:
            return self.last_state(item_seq[:, : int(lengths.max())], lengths)
        order = lengths.argsort()
        states = [
            self.last_state(item_seq[rows, : int(lengths[rows[-1]])], lengths[rows]) for rows in order.split(_ROWS)
        ]
        return torch.cat(states)[order.argsort()]

    def scores(self, item_seq: Tensor, lengths: Tensor) -> Tensor:
        """Scores of all items as the next one of each sequence, ``[B, I]``."""
        return self.item_table.scores(self(item_seq, lengths), self.seen_items(item_seq))

    def seen_items(self, item_seq: Tensor) -> SeenItems | None:
        """Items whose logits get `repeat_bias` after sequences of ids ``[B, L]``; None where the bias is 0."""
        bias = float(self.repeat_bias)
        return SeenItems(deduplicated(item_seq), bias) if bias else None

    def top_k(self, item_seq: Tensor, lengths: Tensor, k: int) -> TopK:
        """The k items with the highest `scores` after each sequence, and their scores, ``[B, k]`` each.

        The result is exact, even where the item table does not score every item.
        """
        return self.item_table.top_k(self(item_seq, lengths), k, self.seen_items(item_seq))

    def calculate_loss(self, interaction: Any) -> Tensor:
        """Cross entropy of the next item, a scalar: the mean over the positions of `training_states`."""
        states, labels, seen = self.training_states(interaction[self.ITEM_SEQ], interaction[self.TARGETS])
        bias = float(self.repeat_bias)
        return -self.item_table.log_probability(states, labels, SeenItems(seen, bias) if bias else None).mean()

    def states_of(self, interaction: Any) -> Tensor:
        """States that score the items after the sequences of a batch, ``[B, C]``; some models of RecBole read users."""
        return self(interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN])

    def full_sort_predict(self, interaction: Any) -> Tensor:
        """Scores of all items after the sequences of a batch, ``[B, I]``."""
        return self.item_table.scores(self.states_of(interaction), self.seen_items(interaction[self.ITEM_SEQ]))

    def predict(self, interaction: Any) -> Tensor:
        """Score of the item ``item_id`` of each row, ``[B]``."""
        items, seen = interaction[self.ITEM_ID][:, None], self.seen_items(interaction[self.ITEM_SEQ])
        return self.item_table.scores_of(self.states_of(interaction), items, seen).squeeze(1)
