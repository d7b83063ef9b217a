"""Seen items: the items of a history, whose logits get `repeat_bias` added."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class SeenItems(NamedTuple):
    """The items of N histories and the bias that is added to their logits (`SequenceRecommender.repeat_bias`).

    Attributes
    ----------
    items : Tensor
        Item ids, each once in its row, 0 elsewhere, int64 ``[N, L]``. For a part of the catalog: columns of that part's
        logits, counted from 1, so that 0 still means none.
    bias : float
        Below 0 where users rarely repeat.
    offset : int
        ``items`` less this are columns of the logits: 0 for ids, 1 for columns counted from 1.
    """

    items: Tensor
    bias: float
    offset: int = 0

    def select(self, rows: Tensor | slice) -> SeenItems:
        """The seen items of some of the N histories."""
        return self._replace(items=self.items[rows])

    def add_to(self, logits: Tensor, temperature: float = 1.0) -> Tensor:
        """Add the bias over the temperature to the logits ``[N, I]``, in place, and return them."""
        columns = (self.items - self.offset).clamp_min_(0) if self.offset else self.items
        return logits.scatter_add_(1, columns, (self.items != 0).to(logits.dtype) * (self.bias / temperature))

    def among(self, items: Tensor) -> Tensor:
        """The bias where ids ``[N, K]`` of K candidates are seen items, 0 elsewhere, ``[N, K]``."""
        return self.bias * (items[:, :, None] == self.items[:, None]).any(2)


def deduplicated(item_seq: Tensor) -> Tensor:
    """Item ids ``[B, L]`` with 0 in place of repetitions of an earlier id of the row."""
    repeated = (item_seq[:, :, None] == item_seq[:, None]).tril_(-1).any(2)
    return item_seq.masked_fill(repeated, 0)


def seen_up_to(item_seq: Tensor, rows: Tensor) -> Tensor:
    """Ids of the items seen up to some positions, the item at the position included.

    Parameters
    ----------
    item_seq : Tensor
        Item ids of windows, int64 ``[B, L]``.
    rows : Tensor
        Positions, as `nonzero_positions` returns them: indices into the B L positions, int64 ``[N]``.

    Returns
    -------
    Tensor
        As `SeenItems.items`, int64 ``[N, L]``.
    """
    width = item_seq.shape[1]
    position = torch.arange(width, device=item_seq.device)
    return deduplicated(item_seq)[rows // width] * (position <= (rows % width)[:, None])


def seen_items(item_seq: Tensor, rows: Tensor, *biases: float) -> SeenItems | None:
    """Items seen up to some positions, with the first of several biases; None where all of them are 0.

    Parameters
    ----------
    item_seq, rows : Tensor
        As `seen_up_to`.
    biases : float
        Biases of the models that need the result, a student's first and then its teacher's.
    """
    return SeenItems(seen_up_to(item_seq, rows), biases[0]) if any(biases) else None
