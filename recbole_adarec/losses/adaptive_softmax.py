"""Cross entropy and output distillation on the two levels of a block-wise softmax.

Only the blocks that hold targets are computed, and each only for the positions whose targets it holds.
"""

from __future__ import annotations

from logging import getLogger
from typing import Any, NamedTuple

import torch
from torch import Tensor

from recbole_adarec.errors import AdaRecError
from recbole_adarec.losses.full_softmax import SoftmaxLoss, TeacherSoftmax, rows_at_a_time, softmax_losses
from recbole_adarec.model.item_table.adaptive import AdaptiveItemTable
from recbole_adarec.model.item_table.base import ItemTable, append_ones
from recbole_adarec.model.seen_items import SeenItems


class TeacherBlocks(NamedTuple):
    """What the teacher's softmax over all items says of the student's tail blocks, where there is memory to keep it.

    Attributes
    ----------
    scores : Tensor
        Logarithm of the summed exponentials of the teacher's logits in each tail block, ``[N, J]``.
    """

    scores: Tensor


class AdaptiveSoftmaxLoss:
    """The losses over items of a stage whose item table is adaptive.

    Parameters
    ----------
    config : recbole.config.Config
        ``item_loss``, ``train_batch_size``, ``MAX_ITEM_LIST_LENGTH``.
    table : AdaptiveItemTable
        The model's.
    device : torch.device
        Where scores are computed.
    """

    mode = "adaptive"

    def __init__(self, config: Any, table: AdaptiveItemTable, device: torch.device) -> None:
        if config["item_loss"] == "sampled":
            raise AdaRecError(
                "item_loss sampled: for full tables alone; with item_table: adaptive the softmax over all items is "
                "exact and no more expensive, give --item_loss=auto"
            )
        batch = config["train_batch_size"] + config["MAX_ITEM_LIST_LENGTH"]
        self.rows = batch if config["item_loss"] == "full" else rows_at_a_time(max(table.cut.sizes), batch, device)
        of_blocks = ", ".join(f"{n} x {d}" for n, d in zip(table.cut.sizes, table.cut.widths, strict=True))
        getLogger().info(f"item_loss adaptive: blocks of items x channels {of_blocks}, {self.rows} positions at a time")

    def prepare(self, counts: Tensor) -> None:
        """Nothing: the order of the items is part of the table."""

    def __call__(
        self,
        states: Tensor,
        table: AdaptiveItemTable,
        labels: Tensor,
        *,
        teacher_softmax: TeacherBlocks | None = None,
        **others: Any,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As `adaptive_softmax_losses`, which takes the `others`; parameters as of `SoftmaxLoss`."""
        return adaptive_softmax_losses(states, table, labels, rows=self.rows, teacher_blocks=teacher_softmax, **others)


def build_item_loss(config: Any, table: ItemTable, device: torch.device) -> SoftmaxLoss | AdaptiveSoftmaxLoss:
    """The losses over items that belong to an item table."""
    if isinstance(table, AdaptiveItemTable):
        return AdaptiveSoftmaxLoss(config, table, device)
    return SoftmaxLoss(config, table.n_items, device)


def adaptive_softmax_losses(
    states: Tensor,
    table: AdaptiveItemTable,
    labels: Tensor,
    *,
    rows: int = 256,
    ce_weight: float = 1.0,
    kl_weight: float = 0.0,
    temperature: float = 1.0,
    teacher_states: Tensor | None = None,
    teacher_table: Tensor | None = None,
    teacher_blocks: TeacherBlocks | None = None,
    seen: SeenItems | None = None,
    teacher_bias: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """L_CE and L_out of a two-level softmax: the weighted sum, which carries the gradient, and both for the record.

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
    from the data and not from the teacher, so blocks weigh as the data has them.

    At a temperature t the logits of both levels are divided by t, the teacher's after the sum over a block: to soften
    its items before would give a block of n items up to ``n^(t-1)`` times the weight that it has. The loss is 0 exactly
    where the student's softmax at temperature 1 is the teacher's, whatever t is.

    Parameters
    ----------
    states : Tensor
        ``[N, C]``.
    table : AdaptiveItemTable
        The student's.
    labels : Tensor
        Item ids, int64 ``[N]``.
    rows : int
        Positions whose scores are held at a time.
    ce_weight, kl_weight : float
        Weights in the sum.
    temperature : float
        t.
    teacher_states, teacher_table : Tensor, optional
        The teacher's ``[N, C_t]`` and, priors last, ``[I, C_t + 1]``; without them L_out is 0.
    teacher_blocks : TeacherBlocks, optional
        What `block_scores` gives of these two, if it is there already.
    seen, teacher_bias
        As of `SoftmaxLoss`.
    """
    with torch.autocast(states.device.type, enabled=False):  # as in `softmax_losses`
        states = states.to(table.entries.weight.dtype)
        count, head = len(labels), table.cut.sizes[0]
        first_label = labels.new_zeros(count)
        of_blocks = list(table.places(labels))
        for j, (where, row) in enumerate(of_blocks):
            first_label[where] = row if j == 0 else head + j - 1
        weights: dict[str, Any] = {"ce_weight": ce_weight, "kl_weight": kl_weight, "temperature": temperature}
        weights["rows"] = rows
        softmax = None
        if teacher_states is not None and teacher_table is not None:
            of_teacher = None if seen is None else seen._replace(bias=teacher_bias)
            teacher_blocks = teacher_blocks or block_scores(teacher_states, teacher_table, table, rows, of_teacher)
            softmax = _first_level(teacher_states, teacher_table, teacher_blocks, table, temperature, of_teacher)
        entries = torch.cat([table.entries.weight, table.entries.bias[:, None]], 1)
        matrix = torch.cat([_head(table), entries])
        of_head = None if seen is None else table.seen_in_block(seen, 0)
        total, ce, kl = softmax_losses(
            append_ones(states), matrix, first_label, teacher_softmax=softmax, seen=of_head, first=1, **weights
        )
        for j, (where, row) in enumerate(of_blocks[1:], 1):
            if len(where):
                others: dict[str, Any] = {"first": 1, "teacher_bias": teacher_bias}
                if seen is not None:
                    others["seen"] = table.seen_in_block(seen.select(where), j)
                if teacher_states is not None and teacher_table is not None:
                    others["teacher_states"] = append_ones(teacher_states[where])
                    others["teacher_table"] = teacher_table[table.ids(j)]
                block, share = table.scored_blocks[j], len(where) / count
                narrow = append_ones(block.narrow(states[where]))
                part = softmax_losses(narrow, block.matrix, row, **others, **weights)
                total, ce, kl = total + share * part[0], ce + share * part[1], kl + share * part[2]
        return total, ce, kl


def _head(table: AdaptiveItemTable) -> Tensor:
    """The head's rows in C channels and, last, its priors, ``[n_0, C + 1]``."""
    head = table.scored_blocks[0]
    rows = head.embedding.weight
    return torch.cat([rows if head.projection is None else head.projection(rows), head.prior[:, None]], 1)


@torch.no_grad()
def block_scores(
    teacher_states: Tensor,
    teacher_table: Tensor,
    table: AdaptiveItemTable,
    rows: int = 256,
    seen: SeenItems | None = None,
) -> TeacherBlocks:
    """The teacher's logits of the tail blocks of a student's table, from ``[N, C_t]`` and ``[I, C_t + 1]``."""
    found = teacher_states.new_zeros(len(teacher_states), len(table.blocks) - 1)
    for j in range(1, len(table.blocks)):
        part = teacher_table[table.ids(j)].T
        own = None if seen is None else table.seen_in_block(seen, j)
        for start in range(0, len(teacher_states), rows):
            here = slice(start, start + rows)
            logits = append_ones(teacher_states[here]) @ part
            found[here, j - 1] = (logits if own is None else own.select(here).add_to(logits, first=1)).logsumexp(1)
    return TeacherBlocks(found)


@torch.no_grad()
def _first_level(
    teacher_states: Tensor,
    teacher_table: Tensor,
    blocks: TeacherBlocks,
    table: AdaptiveItemTable,
    temperature: float,
    seen: SeenItems | None,
) -> TeacherSoftmax:
    """The teacher's softmax over the head's items and the tail blocks."""
    head = append_ones(teacher_states) @ teacher_table[table.ids(0)].T
    if seen is not None:
        table.seen_in_block(seen, 0).add_to(head, first=1)
    log_p = (torch.cat([head, blocks.scores], 1) / temperature).log_softmax(1)
    p = log_p.exp()
    return TeacherSoftmax(p, torch.arange(len(p), device=p.device), (p * log_p).sum(1))
