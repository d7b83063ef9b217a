"""The softmax over items: cross entropy and output distillation without the matrix of all scores.

Both losses, and their gradient in closed form, come from one pass over the scores of a chunk of positions. There are
three ways, chosen by ``item_loss``:

* ``full``: all positions of a batch are one chunk;
* ``chunked``: as exact, in chunks that fit the cache (or, on an accelerator, a part of its memory);
* ``sampled``: exact for the target, estimated for all other items from negatives that the batch shares.
"""

from __future__ import annotations

from logging import getLogger
from typing import Any, NamedTuple

import torch
from torch import Tensor

from recbole_adarec.errors import AdaRecError
from recbole_adarec.losses.sampling import Candidates, Sampler
from recbole_adarec.model.item_table.base import append_ones
from recbole_adarec.model.item_table.full import FullItemTable
from recbole_adarec.model.seen_items import SeenItems

ITEM_LOSSES = ("auto", "full", "chunked", "sampled")
_CACHE_BYTES = 2**20  # scores of a chunk on a CPU: four such matrices are in use at a time
_FEWEST_ROWS = 64  # with fewer, matrix products lose more than the cache gains
_MATRICES = 6  # how many matrices [positions, items] a chunk needs at its peak, with those of the allocator
_HIDDEN = -1e9  # logit of a negative that happens to be the target


class TeacherSoftmax(NamedTuple):
    """The teacher's softmax over all items at the temperature of L_out, where there is memory to keep it.

    Attributes
    ----------
    store : Tensor
        Probabilities at all positions of the training data, half precision, ``[M, I]``.
    rows : Tensor
        Those of a batch, int64 ``[N]``.
    negative_entropy : Tensor
        ``sum(p log p)`` of these, ``[N]``.
    """

    store: Tensor
    rows: Tensor
    negative_entropy: Tensor


class SoftmaxLoss:
    """The losses over items of a stage, in the way that its configuration asks for.

    Parameters
    ----------
    config : recbole.config.Config
        ``item_loss``, ``sampled_above``, ``sampled_items``, ``train_batch_size``, ``seed``.
    n_items : int
        Items, the padding item included.
    device : torch.device
        Where scores are computed.

    Attributes
    ----------
    mode : str
        ``full``, ``chunked`` or ``sampled``.
    rows : int
        Positions whose scores are held at a time.
    """

    def __init__(self, config: Any, n_items: int, device: torch.device) -> None:
        asked = config["item_loss"]
        if asked not in ITEM_LOSSES:
            raise AdaRecError(f"item_loss: unknown value {asked!r}; known are {', '.join(ITEM_LOSSES)}")
        self.sampler: Sampler | None = None
        self._number: int = config["sampled_items"]
        self._seed: int = config["seed"]
        self.mode: str = asked
        if asked == "auto":
            self.mode = "sampled" if n_items - 1 > config["sampled_above"] else "chunked"
        batch = config["train_batch_size"] + config["MAX_ITEM_LIST_LENGTH"]
        width = n_items if self.mode != "sampled" else self._number + 1
        self.rows: int = batch if self.mode == "full" else rows_at_a_time(width, batch, device)
        if asked == "auto" and self.mode == "chunked" and self.rows == batch:
            self.mode = "full"
        way = f"{self._number} shared negatives" if self.mode == "sampled" else f"{self.rows} positions at a time"
        getLogger().info(f"item_loss {asked}: {self.mode} for {n_items - 1} items, {way}")

    def prepare(self, counts: Tensor) -> None:
        """Take up the occurrences of each item in the training data, ``[I]``."""
        if self.mode == "sampled":
            self.sampler = Sampler(counts, self._number, self._seed)

    def __call__(
        self,
        states: Tensor,
        table: FullItemTable,
        labels: Tensor,
        *,
        ce_weight: float = 1.0,
        kl_weight: float = 0.0,
        temperature: float = 1.0,
        teacher_states: Tensor | None = None,
        teacher_table: Tensor | None = None,
        teacher_softmax: TeacherSoftmax | None = None,
        seen: SeenItems | None = None,
        teacher_bias: float = 0.0,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """L_CE and L_out: mean cross entropy of the labels and mean ``t^2 KL(teacher || student)`` over the items.

        Sampled, with negatives c that are expected n(c) times: the partition function ``sum_i exp(s_i)`` is estimated
        without bias by ``exp(s_y) + sum_c exp(s_c) / n(c)``, c other than the target y (Bengio and Senecal, AISTATS
        2003, section 3). L_out compares the two softmaxes over the same items with the same weights.

        Parameters
        ----------
        states : Tensor
            What the item table scores, ``[N, C]``.
        table : FullItemTable
            The model's, I items of C channels.
        labels : Tensor
            Item ids, int64 ``[N]``.
        ce_weight, kl_weight : float
            Their weights in the sum.
        temperature : float
            t, of both softmaxes of L_out.
        teacher_states, teacher_table : Tensor, optional
            The teacher's ``[N, C_t]`` and, priors last, ``[I, C_t + 1]``; without them L_out is 0.
        teacher_softmax : TeacherSoftmax, optional
            What follows from these two, if it is there already.
        seen : SeenItems, optional
            What was taken before each position, and the model's own `repeat_bias`.
        teacher_bias : float
            That of the teacher.

        Returns
        -------
        tuple of Tensor
            The weighted sum, which carries the gradient, and both losses for the record.
        """
        states = append_ones(states)
        teacher_states = None if teacher_states is None else append_ones(teacher_states)
        if self.mode != "sampled":
            return softmax_losses(
                states, table.matrix, labels, rows=self.rows, ce_weight=ce_weight, kl_weight=kl_weight,
                temperature=temperature, teacher_states=teacher_states, teacher_table=teacher_table,
                teacher_softmax=teacher_softmax, seen=seen, teacher_bias=teacher_bias,
            )  # fmt: skip
        assert self.sampler is not None, "prepare() comes before the first batch"
        drawn = self.sampler.draw(states.device)
        if seen is not None:
            target = (seen.items == labels[:, None]).any(1, keepdim=True)  # the first column, as `_scores` has it
            columns = drawn.columns(seen.items, table.n_items)
            seen = SeenItems(torch.cat([target.long(), columns + (columns > 0)], 1), seen.bias)
        return softmax_losses(
            states, table.rows(drawn.items), labels, rows=self.rows, ce_weight=ce_weight, kl_weight=kl_weight,
            temperature=temperature, teacher_states=teacher_states,
            teacher_table=None if teacher_table is None else teacher_table[drawn.items],
            candidates=drawn, positives=table.rows(labels),
            teacher_positives=None if teacher_table is None else teacher_table[labels],
            seen=seen, first=1, teacher_bias=teacher_bias,
        )  # fmt: skip


def softmax_losses(
    states: Tensor,
    table: Tensor,
    labels: Tensor,
    *,
    rows: int = 256,
    ce_weight: float = 1.0,
    kl_weight: float = 0.0,
    temperature: float = 1.0,
    teacher_states: Tensor | None = None,
    teacher_table: Tensor | None = None,
    candidates: Candidates | None = None,
    positives: Tensor | None = None,
    teacher_positives: Tensor | None = None,
    teacher_softmax: TeacherSoftmax | None = None,
    seen: SeenItems | None = None,
    first: int = 0,
    teacher_bias: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """The computation behind `SoftmaxLoss`.

    `table` holds all items, ``[I, C]``; with `candidates` it holds theirs alone, ``[K, C]``, and `positives` and
    `teacher_positives` those of the labels, ``[N, C]`` and ``[N, C_t]``. `rows` positions are computed at a time.
    `first` is that of `SeenItems.add_to`.
    """
    # Scores in half precision would lose the differences that the losses are made of.
    with torch.autocast(states.device.type, enabled=False):
        tensors = [
            None if tensor is None else tensor if tensor.dtype == torch.double else tensor.float()
            for tensor in (states, table, positives, teacher_states, teacher_table, teacher_positives)
        ]
        return _SoftmaxLosses.apply(
            *tensors, labels, candidates, teacher_softmax, rows, ce_weight, kl_weight, temperature, seen, first,
            teacher_bias,
        )  # fmt: skip


class _SoftmaxLosses(torch.autograd.Function):
    """Losses of all chunks; the gradient is formed while a chunk's scores are in the cache.

    With respect to the logits it is ``ce (q - onehot) + kl t (q_t - p_t)``.
    """

    @staticmethod
    def forward(
        ctx: Any,
        states: Tensor,
        table: Tensor,
        positives: Tensor | None,
        teacher_states: Tensor | None,
        teacher_table: Tensor | None,
        teacher_positives: Tensor | None,
        labels: Tensor,
        candidates: Candidates | None,
        teacher_softmax: TeacherSoftmax | None,
        rows: int,
        ce_weight: float,
        kl_weight: float,
        temperature: float,
        seen: SeenItems | None,
        first: int,
        teacher_bias: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        t, count = temperature, len(states)
        ce, kl = states.new_zeros(()), states.new_zeros(())
        gradients = [
            None if tensor is None or not needed else torch.zeros_like(tensor)
            for tensor, needed in zip((states, table, positives), ctx.needs_input_grad, strict=False)
        ]
        of_states, of_table, of_positives = gradients

        def chunk(part: slice) -> tuple[Tensor, Tensor | float]:
            """Losses of some positions; what it allocates is free, and in the cache, for the next one."""
            label = labels[part]
            own = None if seen is None else seen.select(part)
            x = _scores(states[part], table, label, candidates, t, positives, part, own, first)
            column = (label if candidates is None else torch.zeros_like(label))[:, None]  # of the target
            gradient, log_sum = _softmax(x)  # at temperature t; it becomes the gradient in place
            at_target = x.gather(1, column).squeeze(1)
            p, of_kl = None, 0.0
            kl: Tensor | float = 0.0
            if teacher_softmax is not None:
                p = teacher_softmax.store.index_select(0, teacher_softmax.rows[part]).to(x.dtype)
                terms = log_sum + teacher_softmax.negative_entropy[part]
                kl = terms.sum() - torch.dot(p.flatten(), x.flatten())
            elif teacher_states is not None and teacher_table is not None:
                own_of_teacher = None if own is None else own._replace(bias=teacher_bias)
                y = _scores(
                    teacher_states[part], teacher_table, label, candidates, t, teacher_positives, part,
                    own_of_teacher, first,
                )  # fmt: skip
                p, log_sum_p = _softmax(y)
                kl = torch.dot(p.flatten(), y.sub_(x).flatten()) + (log_sum - log_sum_p).sum()
            if p is not None:
                of_kl = kl_weight * t
            # Cross entropy wants the softmax at temperature 1; at t = 2 it is the square of this one, no second exp.
            if t == 1:
                log_q = at_target - log_sum
                gradient.mul_(ce_weight + of_kl)
            elif t == 2 and candidates is None:
                squares = torch.linalg.vector_norm(gradient, dim=1, keepdim=True).square_()
                log_q = 2 * (at_target - log_sum) - squares.squeeze(1).log()
                gradient.mul_(torch.mul(gradient, ce_weight / squares, out=x).add_(of_kl))
            else:
                x = _scores(states[part], table, label, candidates, 1.0, positives, part, own, first)
                q, log_sum = _softmax(x)
                log_q = x.gather(1, column).squeeze(1) - log_sum
                gradient.mul_(of_kl).add_(q, alpha=ce_weight)
            if p is not None:
                gradient.sub_(p, alpha=of_kl)
            gradient.scatter_add_(1, column, gradient.new_full((1, 1), -ce_weight).expand_as(column))
            if positives is not None:
                of_target, gradient = gradient[:, :1], gradient[:, 1:]
                if of_states is not None:
                    of_states[part] = of_target * positives[part]
                if of_positives is not None:
                    of_positives[part] = of_target * states[part]
            if of_states is not None:
                of_states[part].addmm_(gradient, table)
            if of_table is not None:
                of_table.addmm_(gradient.T, states[part])
            return -log_q.sum(), kl

        for start in range(0, count, rows):
            of_ce, of_kl = chunk(slice(start, start + rows))
            ce += of_ce
            kl += t * t * of_kl
        ctx.save_for_backward(*gradients)
        ctx.count = count
        ce, kl = ce / count, kl / count
        ctx.mark_non_differentiable(ce, kl)
        return ce_weight * ce + kl_weight * kl, ce, kl

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        scale = gradient / ctx.count
        return *(None if saved is None else saved * scale for saved in ctx.saved_tensors), *([None] * 13)


def _scores(
    states: Tensor,
    table: Tensor,
    labels: Tensor,
    candidates: Candidates | None,
    temperature: float,
    positives: Tensor | None,
    part: slice,
    seen: SeenItems | None,
    first: int,
) -> Tensor:
    """Logits over `temperature`: of all items, or of the target and, with their log-weights, of the candidates."""
    states = states / temperature
    if candidates is None or positives is None:
        logits = states @ table.T
    else:
        negatives = torch.addmm(candidates.log_weight, states, table.T)
        negatives.masked_fill_(labels[:, None] == candidates.items, _HIDDEN)
        logits = torch.cat([(states * positives[part]).sum(1, keepdim=True), negatives], 1)
    return logits if seen is None else seen.add_to(logits, first, temperature)


def _softmax(x: Tensor) -> tuple[Tensor, Tensor]:
    """Softmax of each row, ``[N, I]``, and the logarithm of its normalisation, ``[N]``.

    torch's fused softmax takes less time than its ``exp`` alone; the largest entry, which cannot underflow, gives the
    normalisation back.
    """
    probability = x.softmax(1)
    return probability, x.amax(1) - probability.amax(1).log()


def rows_at_a_time(width: int, batch: int, device: torch.device) -> int:
    """Positions whose scores over `width` items fit the cache or, on an accelerator, a part of its memory."""
    memory = _CACHE_BYTES if device.type == "cpu" else _free_memory(device) // 4 // _MATRICES
    return min(max(memory // (4 * width), _FEWEST_ROWS), batch)


def _free_memory(device: torch.device) -> int:
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 2**30
