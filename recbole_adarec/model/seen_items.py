"""Seen items: the items of a history, whose logits get `repeat_bias`."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class SeenItems(NamedTuple):
    """The items of N histories, and what their logits gain by that (`SequenceRecommender.repeat_bias`).

    Attributes
    ----------
    items : Tensor
        Ids, each once in its row, 0 elsewhere, int64 ``[N, L]``. For a part of the catalog: columns of its logits,
        counted from 1.
    bias : float
        Below 0 where people do not take things again.
    """

    items: Tensor
    bias: float

    def select(self, rows: Tensor | slice) -> SeenItems:
        """Those of some histories."""
        return SeenItems(self.items[rows], self.bias)

    def add_to(self, logits: Tensor, first: int = 0, temperature: float = 1.0) -> Tensor:
        """Add the bias in place, to ``[N, I]`` with the columns of ids, or with `first` = 1 to those of a part."""
        columns = (self.items - first).clamp_min_(0) if first else self.items
        return logits.scatter_add_(1, columns, (self.items != 0).to(logits.dtype) * (self.bias / temperature))

    def among(self, items: Tensor) -> Tensor:
        """The bias where ids ``[N, K]`` are among the taken ones, else 0."""
        return self.bias * (items[:, :, None] == self.items[:, None]).any(2)


def deduplicated(item_seq: Tensor) -> Tensor:
    """Ids ``[B, L]`` with 0 in place of those that came before in their row."""
    before = (item_seq[:, :, None] == item_seq[:, None]).tril_(-1).any(2)
    return item_seq.masked_fill(before, 0)


def seen_up_to(item_seq: Tensor, rows: Tensor) -> Tensor:
    """What was taken up to some of the B L positions of windows ``[B, L]``, as `SeenItems` has it, ``[N, L]``."""
    width = item_seq.shape[1]
    position = torch.arange(width, device=item_seq.device)
    return deduplicated(item_seq)[rows // width] * (position <= (rows % width)[:, None])


def seen_items(item_seq: Tensor, rows: Tensor, *biases: float) -> SeenItems | None:
    """What was taken up to some positions of windows, with the first of some biases; None where all are 0."""
    return SeenItems(seen_up_to(item_seq, rows), biases[0]) if any(biases) else None
