"""What teacher, supernet and student have in common: an encoder of item sequences under a softmax over items."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from recbole.model.abstract_recommender import SequentialRecommender
from recbole.utils import InputType
from torch import Tensor, nn
from torch.nn import functional as F

from recbole_adarec.data.dataset import TARGETS_PREFIX
from recbole_adarec.model.flops import count_by_rule
from recbole_adarec.model.item_table import ItemTable, Taken, TopK, distinct, taken_up_to

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
        return self.of(rows_where(positions))

    def of(self, rows: Tensor) -> Encoding:
        """The same encoding at positions that `rows_where` gave."""
        return Encoding(
            of(self.embedding, rows), tuple(of(hidden, rows) for hidden in self.layers), of(self.output, rows)
        )


def rows_where(positions: Tensor) -> Tensor:
    """Where a bool mask ``[B, L]`` holds, as indices of the B L positions in a row, int64 ``[N]``.

    On a GPU this waits for all that was queued, so it is asked for once, and not for each of many tensors.
    """
    return positions.flatten().nonzero().squeeze(1)


def of(hidden: Tensor, rows: Tensor) -> Tensor:
    """Positions of ``[B, L, C]`` that `rows_where` gave, ``[N, C]``; faster than indexing by the mask."""
    flat = hidden.flatten(0, 1)
    return flat if len(rows) == len(flat) else flat.index_select(0, rows)


class SequenceRecommender(SequentialRecommender):
    """A recommender whose subclass writes `encode`; what RecBole asks of a model is written here, once.

    The methods below hold for causal encoders: every position is trained, read and taught at. An encoder that sees
    the future overrides `last_state`, `training_states` and `taught`.

    Attributes
    ----------
    repeat_bias : Tensor
        What is added to the logit of every item that is in the sequence itself, in training and in the scores, see
        `recbole_adarec.trainer.repeats`.
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
        were taken before, as `Taken` has them, ``[N, L]``."""
        rows = rows_where(targets != 0)
        return of(self.encode(item_seq).output, rows), targets.flatten()[rows], taken_up_to(item_seq, rows)

    def taught(self, item_seq: Tensor) -> tuple[Encoding, Tensor]:
        """Encoding ``[N, C]`` at the positions where this model may teach, and those positions as a mask ``[B, L]``."""
        real = item_seq != 0
        return self.encode(item_seq).at(real), real

    def taught_in(self, interaction: Any) -> tuple[Encoding, Tensor]:
        """`taught` for a batch of windows; for a teacher that looks at more than its items."""
        return self.taught(interaction[self.ITEM_SEQ])

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
        return self.item_table.scores(self(item_seq, lengths), self.taken(item_seq))

    def taken(self, item_seq: Tensor) -> Taken | None:
        """What `repeat_bias` is added to after sequences of ids ``[B, L]``; None where it is 0."""
        bias = float(self.repeat_bias)
        return Taken(distinct(item_seq), bias) if bias else None

    def top_k(self, item_seq: Tensor, lengths: Tensor, k: int) -> TopK:
        """The k items with the highest `scores` after each sequence, exactly, ``[B, k]``."""
        return self.item_table.top_k(self(item_seq, lengths), k, self.taken(item_seq))

    def calculate_loss(self, interaction: Any) -> Tensor:
        """Cross entropy of the next item, mean over every real position of the windows."""
        states, labels, before = self.training_states(interaction[self.ITEM_SEQ], interaction[self.TARGETS])
        bias = float(self.repeat_bias)
        return -self.item_table.log_probability(states, labels, Taken(before, bias) if bias else None).mean()

    def full_sort_predict(self, interaction: Any) -> Tensor:
        """Scores of all items, ``[B, I]``."""
        return self.scores(interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN])

    def predict(self, interaction: Any) -> Tensor:
        """Scores of the given items, ``[B]``."""
        item_seq, items = interaction[self.ITEM_SEQ], interaction[self.ITEM_ID][:, None]
        states = self(item_seq, interaction[self.ITEM_SEQ_LEN])
        return self.item_table.scores_of(states, items, self.taken(item_seq)).squeeze(1)


def with_past(x: Tensor, positions: int) -> Tensor:
    """Zeros before a sequence ``[B, L, C]``: ``[B, positions + L, C]``; ``F.pad`` takes three times as long."""
    return torch.cat([x.new_zeros(x.shape[0], positions, x.shape[2]), x], 1)


def delayed(x: Tensor, delays: list[int]) -> list[Tensor]:
    """Views of ``[B, L, C]`` that are late by each of some delays, 0 before the sequence."""
    length, longest = x.shape[1], max(delays)
    padded = with_past(x, longest)
    return [padded[:, longest - delay : longest - delay + length] for delay in delays]


class CausalConv(nn.Module):
    """Convolution over time that sees no later position.

    Written as one matrix product over shifted copies: measured twice as fast as ``Conv1d`` on a CPU for 64 channels,
    with no transposition of ``[B, L, C]``.

    Parameters
    ----------
    size : int
        Channels in and out.
    kernel : int
        Number of taps.
    dilation : int
        Distance of the taps in positions.
    bias : bool
        Whether each output channel has an offset.
    """

    def __init__(self, size: int, kernel: int, dilation: int = 1, bias: bool = True) -> None:
        super().__init__()
        self.kernel, self.dilation = kernel, dilation
        self.linear = nn.Linear(kernel * size, size, bias)

    @property
    def delays(self) -> list[int]:
        """How late the input of each tap is, in the order of the weights."""
        return [(self.kernel - 1 - k) * self.dilation for k in range(self.kernel)]

    @property
    def matrix(self) -> Tensor:
        """The weights of all taps side by side, ``[C, K C]``."""
        return self.linear.weight

    def forward(self, x: Tensor) -> Tensor:  # [B, L, C]
        return F.linear(torch.cat(delayed(x, self.delays), -1), self.linear.weight, self.linear.bias)
