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
        self.window = (kernel - 1) * dilation + 1  # positions that an output depends on
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


class Dropout(nn.Module):
    """Dropout with a probability that is rounded to 1/256; the scale is exact for it.

    On a CPU eight masks come from one random number of 64 bits; elsewhere this is torch's dropout.

    Parameters
    ----------
    p : float
        Share of the entries that become 0, in [0, 1).

    Notes
    -----
    ``F.dropout`` draws a number for each entry: measured, 4.4 ms instead of 0.6 for 205,000 entries, and 28 % of a
    training step of a teacher of two layers.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        if x.device.type != "cpu":
            return F.dropout(x, self.p)
        dropped = min(max(round(256 * self.p), 1), 255)
        bits = torch.empty(x.numel() // 8 + 1, dtype=torch.int64).random_(-(2**63), None)
        kept = bits.view(torch.uint8)[: x.numel()].view(x.shape) >= dropped
        return x * (kept * (256 / (256 - dropped))).to(x.dtype)

    def extra_repr(self) -> str:
        """The probability, for ``repr``."""
        return f"p={self.p}"
