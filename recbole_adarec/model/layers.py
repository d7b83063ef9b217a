"""Layers that teachers and students share: the causal convolution, and shifted copies of sequences."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def left_pad(x: Tensor, positions: int) -> Tensor:
    """Sequences ``[B, L, C]`` with zeros before them, ``[B, positions + L, C]``.

    Notes
    -----
    ``F.pad`` takes three times as long.
    """
    return torch.cat([x.new_zeros(x.shape[0], positions, x.shape[2]), x], 1)


def delayed(x: Tensor, delays: list[int]) -> list[Tensor]:
    """Views of sequences ``[B, L, C]``, shifted right by each of `delays` positions, with zeros before the sequence."""
    length, longest = x.shape[1], max(delays)
    padded = left_pad(x, longest)
    return [padded[:, longest - delay : longest - delay + length] for delay in delays]


class CausalConv(nn.Module):
    """Causal convolution over positions: maps ``[B, L, C]`` to ``[B, L, C]``; no output depends on later positions.

    It is computed as one matrix product over shifted copies of the input, so that ``[B, L, C]`` is not transposed.

    Parameters
    ----------
    size : int
        Channels C of input and output.
    kernel : int
        Number of taps K.
    dilation : int
        Distance between neighbouring taps, in positions.
    bias : bool
        Whether each output channel has a bias.

    Notes
    -----
    Measured twice as fast as ``Conv1d`` on a CPU for 64 channels.
    """

    def __init__(self, size: int, kernel: int, dilation: int = 1, bias: bool = True) -> None:
        super().__init__()
        self.kernel, self.dilation = kernel, dilation
        self.linear = nn.Linear(kernel * size, size, bias)

    @property
    def delays(self) -> list[int]:
        """Delay of each tap in positions, in the order of the weights."""
        return [(self.kernel - 1 - k) * self.dilation for k in range(self.kernel)]

    @property
    def matrix(self) -> Tensor:
        """Weights of all taps, concatenated, ``[C, K C]`` with K taps."""
        return self.linear.weight

    def forward(self, x: Tensor) -> Tensor:  # [B, L, C]
        return F.linear(torch.cat(delayed(x, self.delays), -1), self.linear.weight, self.linear.bias)
