"""Negative items that all positions of a batch share, for the sampled softmax."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Candidates(NamedTuple):
    """Negatives that all positions of a batch share.

    Attributes
    ----------
    items : Tensor
        Item ids, int64 ``[K]``.
    log_weight : Tensor
        How many items of the catalog each stands for: minus the logarithm of how often it is expected among them,
        ``[K]``.
    """

    items: Tensor
    log_weight: Tensor

    def columns(self, items: Tensor, n_items: int) -> Tensor:
        """Where ids ``[N, L]`` are among the negatives, counted from 1 and 0 where they are not, ``[N, 2 L]``.

        An item of the tail may have been drawn for two neighbouring parts: then it is there twice, and no more.
        """
        place = torch.arange(1, len(self.items) + 1, device=items.device)
        last = place.new_zeros(n_items).scatter_reduce(0, self.items, place, "amax")
        first = place.new_zeros(n_items).scatter_reduce(0, self.items, place, "amin", include_self=False)
        return torch.cat([last[items], torch.where(first == last, 0, first)[items]], 1) * (items != 0).repeat(1, 2)


class Sampler:
    """Draws items in proportion to ``(count + 1) ** 0.75``, the smoothed popularity of word2vec (Mikolov et al.,
    arXiv 1310.4546, section 2.2).

    Items that would be drawn once or more on average, the head of the catalog, are always among the negatives; the
    other negatives are drawn one from each of equally likely parts of the tail. The sum that they estimate is as
    unbiased as with independent draws, and varies less.

    The generator is its own and on the CPU, so that all processes of a run draw the same.

    Parameters
    ----------
    counts : Tensor
        Occurrences of each item in the training data, ``[I]``; item 0 is padding and never drawn.
    number : int
        K.
    seed : int
        Seed of the draws.
    """

    def __init__(self, counts: Tensor, number: int, seed: int) -> None:
        weight = (counts.double() + 1) ** 0.75
        weight[0] = 0
        self._head = (weight * number >= weight.sum()).nonzero().squeeze(1)
        weight[self._head] = 0
        self._drawn = number - len(self._head) if weight.any() else 0
        probability = weight / weight.sum().clamp_min(1)
        self._cumulative = probability.cumsum(0)
        self._log_weight = -(probability * self._drawn).log().float()
        self._log_weight[self._head] = 0
        self._generator = torch.Generator().manual_seed(seed)

    def draw(self, device: torch.device) -> Candidates:
        """The negatives of a batch."""
        within = torch.rand(self._drawn, dtype=torch.float64, generator=self._generator)
        place = (torch.arange(self._drawn) + within) / max(self._drawn, 1) * self._cumulative[-1]
        tail = torch.searchsorted(self._cumulative, place, right=True).clamp_max_(len(self._cumulative) - 1)
        items = torch.cat([self._head, tail])
        return Candidates(items.to(device), self._log_weight[items].to(device))
