"""The loss over items of a full table: a softmax of one level, exact or with sampled negatives.

``item_loss`` chooses how scores are computed:

* ``full``: all positions of a batch at once;
* ``chunked``: as exact, in chunks that fit the cache (or, on an accelerator, a part of its memory);
* ``sampled``: exact for the target, estimated for all other items from negatives that the batch shares.
"""

from __future__ import annotations

from logging import getLogger
from typing import Any

import torch
from torch import Tensor

from recbole_adarec.errors import AdaRecError
from recbole_adarec.losses.item_loss import CROSS_ENTROPY, ItemLosses, LossWeights, OutputTargets
from recbole_adarec.losses.sampling import Sampler
from recbole_adarec.losses.softmax import Logits, TeacherSide, TeacherSoftmax, softmax_losses
from recbole_adarec.model.item_table.base import append_ones
from recbole_adarec.model.item_table.full import FullItemTable
from recbole_adarec.model.seen_items import SeenItems

ITEM_LOSSES = ("auto", "full", "chunked", "sampled")
_CACHE_BYTES = 2**20  # scores of a chunk on a CPU: four such matrices are in use at a time
_FEWEST_ROWS = 64  # with fewer, matrix products lose more than the cache gains
_MATRICES = 6  # matrices [positions, items] that a chunk needs at its peak, those of the allocator included


class SoftmaxLoss:
    """L_CE and L_out of a `FullItemTable`.

    Parameters
    ----------
    config : recbole.config.Config
        ``item_loss``, ``sampled_above``, ``sampled_items``, ``train_batch_size``, ``MAX_ITEM_LIST_LENGTH``, ``seed``.
    n_items : int
        I, the padding item included.
    device : torch.device
        Where scores are computed.

    Attributes
    ----------
    mode : str
        ``full``, ``chunked`` or ``sampled``.
    rows : int
        Positions whose scores are held in memory at a time.

    Raises
    ------
    AdaRecError
        If ``item_loss`` is unknown.
    """

    def __init__(self, config: Any, n_items: int, device: torch.device) -> None:
        value = config["item_loss"]
        if value not in ITEM_LOSSES:
            raise AdaRecError(f"item_loss: unknown value {value!r}; known are {', '.join(ITEM_LOSSES)}")
        self.sampler: Sampler | None = None
        self._negatives: int = config["sampled_items"]
        self._seed: int = config["seed"]
        self.mode: str = value
        if value == "auto":
            self.mode = "sampled" if n_items - 1 > config["sampled_above"] else "chunked"
        batch = config["train_batch_size"] + config["MAX_ITEM_LIST_LENGTH"]
        width = n_items if self.mode != "sampled" else self._negatives + 1
        self.rows: int = batch if self.mode == "full" else rows_at_a_time(width, batch, device)
        if value == "auto" and self.mode == "chunked" and self.rows == batch:
            self.mode = "full"
        sampled = self.mode == "sampled"
        detail = f"{self._negatives} shared negatives" if sampled else f"{self.rows} positions at a time"
        getLogger().info(f"item_loss {value}: {self.mode} for {n_items - 1} items, {detail}")

    def prepare(self, counts: Tensor) -> None:
        """Take the occurrences of each item in the training data, ``[I]``, from which negatives are drawn."""
        if self.mode == "sampled":
            self.sampler = Sampler(counts, self._negatives, self._seed)

    def __call__(
        self,
        states: Tensor,
        table: FullItemTable,
        labels: Tensor,
        weights: LossWeights = CROSS_ENTROPY,
        teacher: OutputTargets[TeacherSoftmax] | None = None,
        seen: SeenItems | None = None,
    ) -> ItemLosses:
        """Mean cross entropy of the labels and mean ``t^2 KL(teacher || student)``; parameters as `ItemLoss`.

        Raises
        ------
        AdaRecError
            If negatives are sampled and `prepare` was not called.
        """
        states = append_ones(states)
        if self.mode == "sampled":
            return self._sampled(states, table, labels, weights, teacher, seen)
        student = Logits(states, table.matrix, labels, seen)
        targets: TeacherSide | None = None
        if teacher is not None and teacher.softmax is not None:
            targets = teacher.softmax
        elif teacher is not None:
            targets = Logits(append_ones(teacher.states), teacher.table, labels, teacher.seen(seen))
        return softmax_losses(student, weights, targets, self.rows)

    def _sampled(
        self,
        states: Tensor,
        table: FullItemTable,
        labels: Tensor,
        weights: LossWeights,
        teacher: OutputTargets[TeacherSoftmax] | None,
        seen: SeenItems | None,
    ) -> ItemLosses:
        """Both losses with K negatives in the place of all items.

        A negative c is expected n(c) times among them. ``exp(s_y) + sum_c exp(s_c) / n(c)``, over the c other than the
        target y, estimates the partition function ``sum_i exp(s_i)`` without bias (Bengio and Senecal, AISTATS 2003,
        section 3). L_out compares the two softmaxes over the same items with the same weights.
        """
        if self.sampler is None:
            raise AdaRecError(
                "item_loss sampled: negatives are drawn by popularity, which is unknown; call prepare(counts) with the "
                "occurrences of each item before the first batch"
            )
        negatives = self.sampler.draw(states.device)
        if seen is not None:
            target = (seen.items == labels[:, None]).any(1, keepdim=True)  # the first column, as in `Logits.at`
            columns = negatives.columns(seen.items, table.n_items)
            seen = SeenItems(torch.cat([target.long(), columns + (columns > 0)], 1), seen.bias, offset=1)
        student = Logits(states, table.rows(negatives.items), labels, seen, negatives, table.rows(labels))
        targets = None
        if teacher is not None:
            targets = Logits(
                append_ones(teacher.states), teacher.table[negatives.items], labels, teacher.seen(seen),
                negatives, teacher.table[labels],
            )  # fmt: skip
        return softmax_losses(student, weights, targets, self.rows)


def rows_at_a_time(width: int, batch: int, device: torch.device) -> int:
    """Positions whose scores over `width` items fit the cache or, on an accelerator, a part of its memory.

    At least 64, and at most the positions of a `batch`.
    """
    memory = _CACHE_BYTES if device.type == "cpu" else _free_memory(device) // 4 // _MATRICES
    return min(max(memory // (4 * width), _FEWEST_ROWS), batch)


def _free_memory(device: torch.device) -> int:
    """Bytes that are free on a device."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 2**30
