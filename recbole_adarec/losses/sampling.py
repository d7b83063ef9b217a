"""Negative items that all positions of a batch share, for the sampled softmax."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Candidates(NamedTuple):
    """K negatives that all positions of a batch share, with their weights in the partition function.

    Attributes
    ----------
    items : Tensor
        Item ids, int64 ``[K]``; an item of the tail may be among them twice.
    log_weight : Tensor
        Logarithm of the number of items of the catalog that each stands for: ``-log n(c)`` where c is expected n(c)
        times among the negatives, ``[K]``.
    """

    items: Tensor
    log_weight: Tensor

    def columns(self, items: Tensor, n_items: int) -> Tensor:
        """Places of given items among the negatives.

        Parameters
        ----------
        items : Tensor
            Item ids, 0 where there is none, int64 ``[N, L]``.
        n_items : int
            I, the padding item included.

        Returns
        -------
        Tensor
            Places counted from 1, 0 for items that are not among the negatives, int64 ``[N, 2 L]``: the last place of
            each item, and its first place where that is another one. An item of the tail may have been drawn for two
            neighbouring strata, and never for more.
        """
        place = torch.arange(1, len(self.items) + 1, device=items.device)
        last = place.new_zeros(n_items).scatter_reduce(0, self.items, place, "amax")
        first = place.new_zeros(n_items).scatter_reduce(0, self.items, place, "amin", include_self=False)
        return torch.cat([last[items], torch.where(first == last, 0, first)[items]], 1) * (items != 0).repeat(1, 2)


class Sampler:
    """Draws negatives in proportion to ``(count + 1) ** 0.75``, the smoothed popularity of word2vec (Mikolov et al.,
    arXiv 1310.4546, section 2.2).

    Items that would be drawn once or more on average, the head of the catalog, are always among the negatives; the
    other negatives are drawn one from each of equally likely strata of the tail. The sum that they estimate is as
    unbiased as with independent draws, and varies less.

    The sampler has its own generator on the CPU, so that all processes of a run draw the same negatives.

    Parameters
    ----------
    counts : Tensor
        Occurrences of each item in the training data, ``[I]``; item 0 is padding and never drawn.
    number : int
        K, the negatives of a batch (fewer where the catalog has fewer items).
    seed : int
        Seed of the draws.
    """

    def __init__(self, counts: Tensor, number: int, seed: int) -> None:
        weight = (counts.double() + 1) ** 0.75
        weight[0] = 0
        self._head = (weight * number >= weight.sum()).nonzero().squeeze(1)
        weight[self._head] = 0
        self._strata = number - len(self._head) if weight.any() else 0
        probability = weight / weight.sum().clamp_min(1)
        self._cumulative = probability.cumsum(0)
        self._log_weight = -(probability * self._strata).log().float()
        self._log_weight[self._head] = 0
        self._generator = torch.Generator().manual_seed(seed)

    def draw(self, device: torch.device) -> Candidates:
        """The negatives of the next batch, on a device."""
        within = torch.rand(self._strata, dtype=torch.float64, generator=self._generator)
        quantile = (torch.arange(self._strata) + within) / max(self._strata, 1) * self._cumulative[-1]
        tail = torch.searchsorted(self._cumulative, quantile, right=True).clamp_max_(len(self._cumulative) - 1)
        items = torch.cat([self._head, tail])
        return Candidates(items.to(device), self._log_weight[items].to(device))
