"""What teacher, supernet and student have in common: an encoder of item sequences under a softmax over items."""

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

_ROWS = 64  # sequences encoded together when many are ranked


class Encoding(NamedTuple):
    """What an encoder makes of a batch of sequences; the one type that passes between the rooms.

    Attributes
    ----------
    embedding : Tensor
        What enters the first layer, ``[B, L, C]``.
    layers : tuple of Tensor
        The layers that distillation maps, each ``[B, L, C]``.
    output : Tensor
        What the item table scores, ``[B, L, C]``.
    """

    embedding: Tensor
    layers: tuple[Tensor, ...]
    output: Tensor

    def at(self, positions: Tensor) -> Encoding:
        """The same encoding at chosen positions, a bool mask ``[B, L]``: every tensor becomes ``[N, C]``."""
        return self.select(nonzero_positions(positions))

    def select(self, rows: Tensor) -> Encoding:
        """The same encoding at positions that `nonzero_positions` gave."""
        return Encoding(
            select_positions(self.embedding, rows),
            tuple(select_positions(hidden, rows) for hidden in self.layers),
            select_positions(self.output, rows),
        )


class SequenceRecommender(SequentialRecommender):
    """A recommender whose subclass writes `encode`; what RecBole asks of a model is written here, once.

    The methods below hold for causal encoders: every position is trained, read and taught at. An encoder that sees
    the future overrides `last_state`, `training_states` and `distillation_targets`.

    Attributes
    ----------
    repeat_bias : Tensor
        What is added to the logit of every item that is in the sequence itself, in training and in the scores, see
        `recbole_adarec.trainer.calibration`.
    """

    input_type = InputType.POINTWISE  # one row, one positive; targets of a window come in one field

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
        """Encode right-padded item ids, int64 ``[B, L]``."""
        raise NotImplementedError

    def last_state(self, item_seq: Tensor, lengths: Tensor) -> Tensor:
        """The state that predicts the item after each sequence, ``[B, C]``."""
        return self.gather_indexes(self.encode(item_seq).output, lengths - 1)

    def training_states(self, item_seq: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """States ``[N, C]`` at every real position, the items ``[N]`` that they are trained to predict, and those that
        were taken before, as `SeenItems` has them, ``[N, L]``."""
        rows = nonzero_positions(targets != 0)
        return select_positions(self.encode(item_seq).output, rows), targets.flatten()[rows], seen_up_to(item_seq, rows)

    def distillation_targets(self, item_seq: Tensor) -> tuple[Encoding, Tensor]:
        """Encoding ``[N, C]`` at the positions where this model may teach, and those positions as a mask ``[B, L]``."""
        real = item_seq != 0
        return self.encode(item_seq).at(real), real

    def distillation_targets_in(self, interaction: Any) -> tuple[Encoding, Tensor]:
        """`distillation_targets` for a batch of windows; for a teacher that looks at more than its items."""
        return self.distillation_targets(interaction[self.ITEM_SEQ])

    def forward(self, item_seq: Tensor, lengths: Tensor) -> Tensor:
        """As RecBole's models: the state of each sequence, ``[B, C]``.

        Sequences of similar length are encoded together and no wider than the longest of them: padding changes no
        state, and where histories are short it is most of a batch.
        """
        if len(lengths) <= _ROWS:
            return self.last_state(item_seq[:, : int(lengths.max())], lengths)
        order = lengths.argsort()
        states = [
            self.last_state(item_seq[rows, : int(lengths[rows[-1]])], lengths[rows]) for rows in order.split(_ROWS)
        ]
        return torch.cat(states)[order.argsort()]

    def scores(self, item_seq: Tensor, lengths: Tensor) -> Tensor:
        """Scores of all items after each sequence, ``[B, I]``."""
        return self.item_table.scores(self(item_seq, lengths), self.seen_items(item_seq))

    def seen_items(self, item_seq: Tensor) -> SeenItems | None:
        """What `repeat_bias` is added to after sequences of ids ``[B, L]``; None where it is 0."""
        bias = float(self.repeat_bias)
        return SeenItems(deduplicated(item_seq), bias) if bias else None

    def top_k(self, item_seq: Tensor, lengths: Tensor, k: int) -> TopK:
        """The k items with the highest `scores` after each sequence, exactly, ``[B, k]``."""
        return self.item_table.top_k(self(item_seq, lengths), k, self.seen_items(item_seq))

    def calculate_loss(self, interaction: Any) -> Tensor:
        """Cross entropy of the next item, mean over every real position of the windows."""
        states, labels, before = self.training_states(interaction[self.ITEM_SEQ], interaction[self.TARGETS])
        bias = float(self.repeat_bias)
        return -self.item_table.log_probability(states, labels, SeenItems(before, bias) if bias else None).mean()

    def full_sort_predict(self, interaction: Any) -> Tensor:
        """Scores of all items, ``[B, I]``."""
        return self.scores(interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN])

    def predict(self, interaction: Any) -> Tensor:
        """Scores of the given items, ``[B]``."""
        item_seq, items = interaction[self.ITEM_SEQ], interaction[self.ITEM_ID][:, None]
        states = self(item_seq, interaction[self.ITEM_SEQ_LEN])
        return self.item_table.scores_of(states, items, self.seen_items(item_seq)).squeeze(1)
