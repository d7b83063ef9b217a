"""L_CE and L_out of one softmax, with their gradient in closed form, one chunk of positions at a time.

With x the student's logits and y the teacher's, ``q_t = softmax(x / t)``, ``p_t = softmax(y / t)`` and the one-hot
target e, both losses and their gradient with respect to x come from one pass over the scores of a chunk:

    L_CE  = -log q_1[target],                       dL_CE/dx  = q_1 - e
    L_out = t^2 KL(p_t || q_t),                     dL_out/dx = t (q_t - p_t)

so that neither the matrix of all scores nor its gradient is ever held as a whole.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from recbole_adarec.losses.item_loss import CROSS_ENTROPY, ItemLosses, LossWeights
from recbole_adarec.losses.sampling import Candidates
from recbole_adarec.model.seen_items import SeenItems

_EXCLUDED = -1e9  # logit of a negative that happens to be the target


class TeacherSide(Protocol):
    """The teacher's side of L_out: computed from its states, or cached."""

    def full_precision(self) -> TeacherSide:
        """The same with single or double precision in what logits are computed from."""

    def divergence(self, part: slice, temperature: float, x: Tensor, log_sum: Tensor) -> tuple[Tensor, Tensor]:
        """Compare the teacher's softmax with the student's at a chunk of n positions.

        Parameters
        ----------
        part : slice
            The positions.
        temperature : float
            t.
        x : Tensor
            The student's logits over t, ``[n, I]``.
        log_sum : Tensor
            ``log sum exp(x)``, ``[n]``.

        Returns
        -------
        tuple of Tensor
            The teacher's probabilities ``p_t``, ``[n, I]``, and ``KL(p_t || q_t)`` summed over the positions, a scalar.
        """


class TeacherSoftmax(NamedTuple):
    """The teacher's softmax over all items at the temperature of L_out, cached for M positions.

    Attributes
    ----------
    probability : Tensor
        ``p_t`` at all positions of the training data, half precision, ``[M, I]``.
    rows : Tensor
        The rows of a batch among the M, int64 ``[N]``.
    negative_entropy : Tensor
        ``sum(p_t log p_t)`` of these rows, ``[N]``.
    """

    probability: Tensor
    rows: Tensor
    negative_entropy: Tensor

    def full_precision(self) -> TeacherSoftmax:
        """Itself: each chunk is read in the precision of the student's logits."""
        return self

    def divergence(self, part: slice, temperature: float, x: Tensor, log_sum: Tensor) -> tuple[Tensor, Tensor]:
        """As `TeacherSide`; the temperature is that of the cache."""
        p = self.probability.index_select(0, self.rows[part]).to(x.dtype)
        terms = log_sum + self.negative_entropy[part]
        return p, terms.sum() - torch.dot(p.flatten(), x.flatten())


class Logits(NamedTuple):
    """What the logits of one model at N positions are computed from.

    Attributes
    ----------
    states : Tensor
        ``[N, C]``; the last channel is 1 where the rows of the table end in a prior.
    table : Tensor
        Rows of all items, ``[I, C]``; of the K negatives alone with `candidates`, ``[K, C]``.
    labels : Tensor
        Targets: rows of the table, or ids with `candidates`, int64 ``[N]``.
    seen : SeenItems, optional
        Items whose logits get a bias, by columns of these logits.
    candidates : Candidates, optional
        Negatives that stand for all other items. Logits are then ``[N, 1 + K]``, the target's first.
    positives : Tensor, optional
        Rows of the targets, ``[N, C]``; given with `candidates`.
    """

    states: Tensor
    table: Tensor
    labels: Tensor
    seen: SeenItems | None = None
    candidates: Candidates | None = None
    positives: Tensor | None = None

    def full_precision(self) -> Logits:
        """The same in single precision, or in double where it is double: half would lose what the losses measure."""
        positives = None if self.positives is None else _full_precision(self.positives)
        states, table = _full_precision(self.states), _full_precision(self.table)
        return self._replace(states=states, table=table, positives=positives)

    def at(self, part: slice, temperature: float) -> Tensor:
        """Logits over the temperature at n positions, ``[n, I]``; with candidates weighted, ``[n, 1 + K]``."""
        states = self.states[part] / temperature
        if self.candidates is None or self.positives is None:
            logits = states @ self.table.T
        else:
            negatives = torch.addmm(self.candidates.log_weight, states, self.table.T)
            negatives.masked_fill_(self.labels[part, None] == self.candidates.items, _EXCLUDED)
            logits = torch.cat([(states * self.positives[part]).sum(1, keepdim=True), negatives], 1)
        return logits if self.seen is None else self.seen.select(part).add_to(logits, temperature)

    def target_columns(self, part: slice) -> Tensor:
        """Columns of the targets in the logits, int64 ``[n, 1]``."""
        labels = self.labels[part]
        return (labels if self.candidates is None else torch.zeros_like(labels))[:, None]

    def divergence(self, part: slice, temperature: float, x: Tensor, log_sum: Tensor) -> tuple[Tensor, Tensor]:
        """As `TeacherSide`."""
        y = self.at(part, temperature)
        p, log_sum_p = _softmax(y)
        return p, torch.dot(p.flatten(), y.sub_(x).flatten()) + (log_sum - log_sum_p).sum()


def softmax_losses(
    student: Logits,
    weights: LossWeights = CROSS_ENTROPY,
    teacher: TeacherSide | None = None,
    rows: int = 256,
) -> ItemLosses:
    """L_CE and L_out of one softmax.

    Parameters
    ----------
    student : Logits
        The student's side; its states, table and positives may require gradients.
    weights : LossWeights
        Weights of both losses and the temperature.
    teacher : Logits or TeacherSoftmax, optional
        The teacher's side; without it L_out is 0.
    rows : int
        Positions that are computed at a time.
    """
    with torch.autocast(student.states.device.type, enabled=False):
        student = student.full_precision()
        teacher = None if teacher is None else teacher.full_precision()
        call = _Call(student, teacher, weights, rows)
        return ItemLosses(*_SoftmaxLosses.apply(student.states, student.table, student.positives, call))


class _Call(NamedTuple):
    """All that `_SoftmaxLosses` computes from; the student's tensors are passed beside it, for autograd to see."""

    student: Logits
    teacher: TeacherSide | None
    weights: LossWeights
    rows: int


class _SoftmaxLosses(torch.autograd.Function):
    """Losses of all chunks; the gradient is formed while a chunk's scores are in the cache."""

    @staticmethod
    def forward(
        ctx: Any, states: Tensor, table: Tensor, positives: Tensor | None, call: _Call
    ) -> tuple[Tensor, Tensor, Tensor]:
        student, teacher, weights, rows = call
        student = student._replace(states=states, table=table, positives=positives)
        t, count = weights.temperature, len(states)
        ce, kl = states.new_zeros(()), states.new_zeros(())
        gradients = [
            None if tensor is None or not needed else torch.zeros_like(tensor)
            for tensor, needed in zip((states, table, positives), ctx.needs_input_grad, strict=False)
        ]
        states_gradient, table_gradient, positives_gradient = gradients

        def chunk(part: slice) -> tuple[Tensor, Tensor | float]:
            """Losses of some positions; what it allocates is free, and in the cache, for the next one."""
            x = student.at(part, t)
            column = student.target_columns(part)
            gradient, log_sum = _softmax(x)  # at temperature t; it becomes the gradient in place
            target_logit = x.gather(1, column).squeeze(1)
            p, kl_weight = None, 0.0
            kl: Tensor | float = 0.0
            if teacher is not None:
                p, kl = teacher.divergence(part, t, x, log_sum)
                kl_weight = weights.kl * t
            # Cross entropy needs the softmax at temperature 1; at t = 2 it is the square of this one, no second exp.
            if t == 1:
                log_q = target_logit - log_sum
                gradient.mul_(weights.ce + kl_weight)
            elif t == 2 and student.candidates is None:
                squares = torch.linalg.vector_norm(gradient, dim=1, keepdim=True).square_()
                log_q = 2 * (target_logit - log_sum) - squares.squeeze(1).log()
                gradient.mul_(torch.mul(gradient, weights.ce / squares, out=x).add_(kl_weight))
            else:
                x = student.at(part, 1.0)
                q, log_sum = _softmax(x)
                log_q = x.gather(1, column).squeeze(1) - log_sum
                gradient.mul_(kl_weight).add_(q, alpha=weights.ce)
            if p is not None:
                gradient.sub_(p, alpha=kl_weight)
            gradient.scatter_add_(1, column, gradient.new_full((1, 1), -weights.ce).expand_as(column))
            if positives is not None:
                target_gradient, gradient = gradient[:, :1], gradient[:, 1:]
                if states_gradient is not None:
                    states_gradient[part] = target_gradient * positives[part]
                if positives_gradient is not None:
                    positives_gradient[part] = target_gradient * states[part]
            if states_gradient is not None:
                states_gradient[part].addmm_(gradient, table)
            if table_gradient is not None:
                table_gradient.addmm_(gradient.T, states[part])
            return -log_q.sum(), kl

        for start in range(0, count, rows):
            chunk_ce, chunk_kl = chunk(slice(start, start + rows))
            ce += chunk_ce
            kl += t * t * chunk_kl
        ctx.save_for_backward(*gradients)
        ctx.count = count
        ce, kl = ce / count, kl / count
        ctx.mark_non_differentiable(ce, kl)
        return weights.ce * ce + weights.kl * kl, ce, kl

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        scale = gradient / ctx.count
        return *(None if saved is None else saved * scale for saved in ctx.saved_tensors), None  # for the call


def _full_precision(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.double else tensor.float()


def _softmax(x: Tensor) -> tuple[Tensor, Tensor]:
    """Softmax of each row, ``[n, I]``, and ``log sum exp`` of each row, ``[n]``.

    torch's fused softmax takes less time than its ``exp`` alone; the largest entry, which cannot underflow, gives the
    normalisation back.
    """
    probability = x.softmax(1)
    return probability, x.amax(1) - probability.amax(1).log()
