"""What a loss over items takes and returns: its weights, the teacher's side of L_out, and the two losses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from torch import Tensor

from recbole_adarec.model.seen_items import SeenItems

S = TypeVar("S")  # what a loss can use of a cached teacher: `TeacherSoftmax` or `TeacherBlocks`


class LossWeights(NamedTuple):
    """Weights of L_CE and L_out in their sum, and the temperature of L_out.

    Attributes
    ----------
    ce : float
        Weight of L_CE; ``1 - gamma`` in AdaRec.
    kl : float
        Weight of L_out; ``gamma`` in AdaRec.
    temperature : float
        t, by which the logits of student and teacher are divided in L_out (``kd_temperature``).
    """

    ce: float = 1.0
    kl: float = 0.0
    temperature: float = 1.0


CROSS_ENTROPY = LossWeights()
"""L_CE alone."""


@dataclass(frozen=True)
class OutputTargets(Generic[S]):
    """The teacher's side of L_out at N positions.

    Attributes
    ----------
    states : Tensor
        The teacher's outputs, ``[N, C_t]``.
    table : Tensor
        The rows that score them, each followed by its prior, ``[I, C_t + 1]``.
    bias : float
        The teacher's `repeat_bias`.
    softmax : TeacherSoftmax or TeacherBlocks, optional
        The softmax that follows from the three above, where it is cached.
    """

    states: Tensor
    table: Tensor
    bias: float = 0.0
    softmax: S | None = None

    def seen(self, seen: SeenItems | None) -> SeenItems | None:
        """The student's seen items with the teacher's bias."""
        return None if seen is None else seen._replace(bias=self.bias)


class ItemLosses(NamedTuple):
    """The losses over items of a batch, each a scalar.

    Attributes
    ----------
    total : Tensor
        Weighted sum of both losses; the only one that carries a gradient.
    ce : Tensor
        L_CE, the mean cross entropy of the labels.
    kl : Tensor
        L_out, the mean of ``t^2 KL(teacher || student)``; 0 without a teacher.
    """

    total: Tensor
    ce: Tensor
    kl: Tensor


class ItemLoss(Protocol):
    """A loss over items, built for one stage by `build_item_loss`.

    Attributes
    ----------
    mode : str
        How scores are computed: ``full``, ``chunked``, ``sampled`` or ``adaptive``.
    rows : int
        Positions whose scores are held in memory at a time.
    """

    mode: str
    rows: int

    def prepare(self, counts: Tensor) -> None:
        """Take the occurrences of each item in the training data, ``[I]``; called before the first batch."""

    def __call__(
        self,
        states: Tensor,
        table: Any,
        labels: Tensor,
        weights: LossWeights = ...,
        teacher: OutputTargets[Any] | None = None,
        seen: SeenItems | None = None,
    ) -> ItemLosses:
        """Losses at N positions.

        Parameters
        ----------
        states : Tensor
            The encoder's outputs, ``[N, C]``.
        table : FullItemTable or AdaptiveItemTable
            The model's item table, of the kind that the loss was built for.
        labels : Tensor
            Ids of the items to predict, int64 ``[N]``.
        weights : LossWeights
            Weights of both losses and the temperature; by default L_CE alone.
        teacher : OutputTargets, optional
            The teacher's side of L_out; without it L_out is 0.
        seen : SeenItems, optional
            The items seen up to each position, with the model's own `repeat_bias`.
        """
