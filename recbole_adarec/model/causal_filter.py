"""A low-pass filter over positions that sees no later item, of teachers and students."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from recbole_adarec.model.layers import left_pad

WINDOWS = (2, 3, 5, 9)
"""Lengths of the moving averages, in positions."""
_SHORT = 64  # positions up to which matrices are faster in training


class CausalFilter(nn.Module):
    """Moving averages and their rescaled rest, ``[B, L, C]`` to ``[B, L, C]``.

    ``low + beta^2 (x - low)``, where low is the mean of the last w items at each position, and of those that are there
    at the start of a sequence. It stands for BSARec's frequency rescaler (Shin et al., AAAI 2024, arXiv 2312.10325,
    equation 7), whose Fourier transform over the whole sequence sees later items.

    Parameters
    ----------
    size : int
        Channels C, in equal groups, one for each w of `WINDOWS`.

    Attributes
    ----------
    beta : nn.Parameter
        ``[C]``; starts at 1, where the filter is the identity.
    window : int
        Positions that an output depends on.
    """

    window = max(WINDOWS)

    def __init__(self, size: int) -> None:
        super().__init__()
        self.beta = nn.Parameter(torch.ones(size))
        self._group_sizes = [len(group) for group in torch.arange(size).tensor_split(len(WINDOWS))]

    def forward(self, x: Tensor) -> Tensor:
        short = x.shape[1] <= _SHORT and torch.is_grad_enabled()
        low = (_by_matrices if short else _by_sums)(x, self._group_sizes)
        return low + self.beta.square() * (x - low)


def _by_matrices(x: Tensor, group_sizes: list[int]) -> Tensor:
    """Moving averages of `x`, ``[B, L, C]``, by a matrix product for each of `WINDOWS`.

    Notes
    -----
    Forth and back on 16 sequences of 50 positions and 64 channels: 1.0 ms, `_by_sums` 1.3; on 4 of 200: 2.1 and 1.2.
    """
    means = moving_averages(x.shape[1], x.device).to(x.dtype)
    return torch.cat([mean @ group for mean, group in zip(means, x.split(group_sizes, -1), strict=True)], -1)


def _by_sums(x: Tensor, group_sizes: list[int]) -> Tensor:
    """Moving averages of `x`, ``[B, L, C]``, as differences of sums over all positions before.

    Notes
    -----
    One sequence of 200 positions and 32 channels: 0.12 ms, by matrices 0.70; 64 sequences: 1.9 and 33.
    """
    length, longest = x.shape[1], max(WINDOWS)
    sums = left_pad(x.float(), longest).cumsum(1)
    there = torch.arange(1, length + 1, device=x.device)[:, None]  # items at each position
    low = [
        (group[:, longest:] - group[:, longest - window : longest - window + length]) / there.clamp_max(window)
        for window, group in zip(WINDOWS, sums.split(group_sizes, -1), strict=True)
    ]
    return torch.cat(low, -1).to(x.dtype)


def moving_averages(length: int, device: torch.device) -> Tensor:
    """Matrices of the moving averages over each of `WINDOWS`, ``[4, L, L]``; no row reaches a later position."""
    place = torch.arange(length, device=device)
    back = place[:, None] - place  # positions from a column back to its row
    windows = torch.tensor(WINDOWS, device=device)[:, None, None]
    return ((back >= 0) & (back < windows)) / (place[:, None] + 1).clamp_max(windows)
