"""Layers that teachers and students share: causal convolution and shifted copies of sequences."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def left_pad(x: Tensor, positions: int) -> Tensor:
    """Zeros before a sequence ``[B, L, C]``: ``[B, positions + L, C]``; ``F.pad`` takes three times as long."""
    return torch.cat([x.new_zeros(x.shape[0], positions, x.shape[2]), x], 1)


def delayed(x: Tensor, delays: list[int]) -> list[Tensor]:
    """Views of ``[B, L, C]`` that are late by each of some delays, 0 before the sequence."""
    length, longest = x.shape[1], max(delays)
    padded = left_pad(x, longest)
    return [padded[:, longest - delay : longest - delay + length] for delay in delays]


class CausalConv(nn.Module):
    """Convolution over time that sees no later position.

    Written as one matrix product over shifted copies: measured twice as fast as ``Conv1d`` on a CPU for 64 channels,
    with no transposition of ``[B, L, C]``.

    Parameters
    ----------
    size : int
        Channels in and out.
    kernel : int
        Number of taps.
    dilation : int
        Distance of the taps in positions.
    bias : bool
        Whether each output channel has an offset.
    """

    def __init__(self, size: int, kernel: int, dilation: int = 1, bias: bool = True) -> None:
        super().__init__()
        self.kernel, self.dilation = kernel, dilation
        self.linear = nn.Linear(kernel * size, size, bias)

    @property
    def delays(self) -> list[int]:
        """How late the input of each tap is, in the order of the weights."""
        return [(self.kernel - 1 - k) * self.dilation for k in range(self.kernel)]

    @property
    def matrix(self) -> Tensor:
        """The weights of all taps side by side, ``[C, K C]``."""
        return self.linear.weight

    def forward(self, x: Tensor) -> Tensor:  # [B, L, C]
        return F.linear(torch.cat(delayed(x, self.delays), -1), self.linear.weight, self.linear.bias)
