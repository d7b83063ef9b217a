"""The loss over items of an adaptive table: L_CE and L_out of a softmax of two levels.

The first level is a softmax over the items of the head and one entry for each of J tail blocks, the second one within
a tail block: ``log p(y) = log p(b) + log p(y | b)`` for an item y of block b. Tail blocks without targets are not
computed, and the others only at the positions whose targets they hold.
"""

from __future__ import annotations

from logging import getLogger
from typing import Any, NamedTuple

import torch
from torch import Tensor

from recbole_adarec.errors import AdaRecError
from recbole_adarec.losses.full_softmax import rows_at_a_time
from recbole_adarec.losses.item_loss import CROSS_ENTROPY, ItemLosses, LossWeights, OutputTargets
from recbole_adarec.losses.softmax import Logits, TeacherSoftmax, softmax_losses
from recbole_adarec.model.item_table.adaptive import AdaptiveItemTable
from recbole_adarec.model.item_table.base import ItemTable, append_ones
from recbole_adarec.model.seen_items import SeenItems


class TeacherBlocks(NamedTuple):
    """The teacher's logits of the tail blocks of a student's table, cached.

    Attributes
    ----------
    scores : Tensor
        ``log sum exp`` of the teacher's logits over the items of each tail block, ``[N, J]``.
    """

    scores: Tensor


class AdaptiveSoftmaxLoss:
    """L_CE and L_out of an `AdaptiveItemTable`.

    Parameters
    ----------
    config : recbole.config.Config
        ``item_loss``, ``train_batch_size``, ``MAX_ITEM_LIST_LENGTH``.
    table : AdaptiveItemTable
        The model's item table.
    device : torch.device
        Where scores are computed.

    Attributes
    ----------
    mode : str
        ``adaptive``.
    rows : int
        Positions whose scores are held in memory at a time.

    Raises
    ------
    AdaRecError
        If ``item_loss`` is ``sampled``.
    """

    def __init__(self, config: Any, table: AdaptiveItemTable, device: torch.device) -> None:
        if config["item_loss"] == "sampled":
            raise AdaRecError(
                "item_loss sampled: for full tables alone; with item_table: adaptive the softmax over all items is "
                "exact and no more expensive, give --item_loss=auto"
            )
        self.mode: str = "adaptive"
        batch = config["train_batch_size"] + config["MAX_ITEM_LIST_LENGTH"]
        self.rows: int = batch if config["item_loss"] == "full" else rows_at_a_time(max(table.cut.sizes), batch, device)
        blocks = ", ".join(f"{n} x {d}" for n, d in zip(table.cut.sizes, table.cut.widths, strict=True))
        getLogger().info(f"item_loss adaptive: blocks of items x channels {blocks}, {self.rows} positions at a time")

    def prepare(self, counts: Tensor) -> None:
        """Nothing to prepare: the order of the items by popularity is part of the table."""

    def __call__(
        self,
        states: Tensor,
        table: AdaptiveItemTable,
        labels: Tensor,
        weights: LossWeights = CROSS_ENTROPY,
        teacher: OutputTargets[TeacherBlocks] | None = None,
        seen: SeenItems | None = None,
    ) -> ItemLosses:
        """`adaptive_softmax_losses` with the rows of this loss; parameters as `ItemLoss`."""
        return adaptive_softmax_losses(states, table, labels, weights, teacher, seen, self.rows)


def adaptive_softmax_losses(
    states: Tensor,
    table: AdaptiveItemTable,
    labels: Tensor,
    weights: LossWeights = CROSS_ENTROPY,
    teacher: OutputTargets[TeacherBlocks] | None = None,
    seen: SeenItems | None = None,
    rows: int = 256,
) -> ItemLosses:
    """L_CE and L_out of a softmax of two levels.

    Cross entropy is exact: ``-log p(y) = -log p(b) - log p(y | b)`` with b the block of the target y; the second
    term is 0 for targets in the head.

    For L_out the teacher's softmax over all items, with logits z, is cut in the same way. Its first level has the
    logits ``z_x`` of the head's items and ``z_b = log sum_{x in b} exp(z_x)`` of the tail blocks; within a block the
    logits are ``z_x``. With P and Q the first levels of teacher and student, p_b and q_b their softmaxes within b,
    the chain rule of relative entropy gives

        KL(teacher || student) = KL(P || Q) + sum_b P(b) KL(p_b || q_b).

    If y is drawn from the teacher, it lies in b with probability P(b): ``KL(p_b || q_b)`` of the target's block alone,
    with weight 1, has the sum over blocks as its mean. So the block of the target is computed and no other, and L_out
    is the mean over positions of ``KL(P || Q) + [y in a tail block b] KL(p_b || q_b)``, times t². Targets are drawn
    from the data and not from the teacher, so the weights of the blocks are those of the data.

    At a temperature t the logits of both levels are divided by t, the teacher's after the sum over a block: to soften
    the items of a block before would give a block of n items up to ``n^(t-1)`` times its weight. The loss is 0 exactly
    where the student's softmax at temperature 1 is the teacher's, whatever t is.

    Parameters
    ----------
    states : Tensor
        The encoder's outputs, ``[N, C]``.
    table : AdaptiveItemTable
        The student's item table.
    labels : Tensor
        Ids of the items to predict, int64 ``[N]``.
    weights : LossWeights
        Weights of both losses and the temperature t.
    teacher : OutputTargets, optional
        The teacher's side of L_out; without it L_out is 0.
    seen : SeenItems, optional
        The items seen up to each position, with the student's `repeat_bias`.
    rows : int
        Positions whose scores are held in memory at a time.
    """
    with torch.autocast(states.device.type, enabled=False):  # as in `softmax_losses`
        states = states.to(table.entries.weight.dtype)
        head = table.cut.sizes[0]
        first_labels = labels.new_zeros(len(labels))
        blocks = list(table.locate(labels))
        for j, (where, row) in enumerate(blocks):
            first_labels[where] = row if j == 0 else head + j - 1
        entries = torch.cat([table.entries.weight, table.entries.bias[:, None]], 1)
        matrix = torch.cat([_head(table), entries])
        softmax = None if teacher is None else _first_level(teacher, table, weights.temperature, seen, rows)
        seen_in_head = None if seen is None else table.seen_in_block(seen, 0)
        student = Logits(append_ones(states), matrix, first_labels, seen_in_head)
        total, ce, kl = softmax_losses(student, weights, softmax, rows)
        for j, (where, row) in enumerate(blocks[1:], 1):
            if not len(where):
                continue
            block, share = table.scored_blocks[j], len(where) / len(labels)
            within = None if seen is None else table.seen_in_block(seen.select(where), j)
            student = Logits(append_ones(block.narrow(states[where])), block.matrix, row, within)
            targets = None
            if teacher is not None:
                teacher_rows = teacher.table[table.ids(j)]
                targets = Logits(append_ones(teacher.states[where]), teacher_rows, row, teacher.seen(within))
            part = softmax_losses(student, weights, targets, rows)
            total, ce, kl = total + share * part.total, ce + share * part.ce, kl + share * part.kl
        return ItemLosses(total, ce, kl)


def _head(table: AdaptiveItemTable) -> Tensor:
    """The head's rows in C channels, each followed by its prior, ``[n_0, C + 1]``."""
    head = table.scored_blocks[0]
    rows = head.embedding.weight
    return torch.cat([rows if head.projection is None else head.projection(rows), head.prior[:, None]], 1)


@torch.no_grad()
def block_scores(
    states: Tensor, matrix: Tensor, table: ItemTable, seen: SeenItems | None = None, rows: int = 256
) -> TeacherBlocks:
    """The teacher's logits of the tail blocks of a student's table.

    Parameters
    ----------
    states : Tensor
        The teacher's outputs, ``[N, C_t]``.
    matrix : Tensor
        The rows that score them, each followed by its prior, ``[I, C_t + 1]``.
    table : ItemTable
        The student's item table, with J tail blocks.
    seen : SeenItems, optional
        The items seen up to each position, with the teacher's `repeat_bias`.
    rows : int
        Positions whose scores are held in memory at a time.
    """
    scores = states.new_zeros(len(states), table.tail_blocks)
    for j in range(1, table.tail_blocks + 1):
        block = matrix[table.ids(j)].T
        within = None if seen is None else table.seen_in_block(seen, j)
        for start in range(0, len(states), rows):
            part = slice(start, start + rows)
            logits = append_ones(states[part]) @ block
            scores[part, j - 1] = (logits if within is None else within.select(part).add_to(logits)).logsumexp(1)
    return TeacherBlocks(scores)


@torch.no_grad()
def _first_level(
    teacher: OutputTargets[TeacherBlocks],
    table: AdaptiveItemTable,
    temperature: float,
    seen: SeenItems | None,
    rows: int,
) -> TeacherSoftmax:
    """The teacher's softmax over the head's items and the tail blocks of a student's table."""
    seen = teacher.seen(seen)
    blocks = teacher.softmax or block_scores(teacher.states, teacher.table, table, seen, rows)
    head = append_ones(teacher.states) @ teacher.table[table.ids(0)].T
    if seen is not None:
        table.seen_in_block(seen, 0).add_to(head)
    log_p = (torch.cat([head, blocks.scores], 1) / temperature).log_softmax(1)
    p = log_p.exp()
    return TeacherSoftmax(p, torch.arange(len(p), device=p.device), (p * log_p).sum(1))
