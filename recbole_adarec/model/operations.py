"""Candidate operations of the search space: one table from name to constructor and cost.

Every operation is causal and keeps ``[B, L, C]``; the cell has applied ReLU before. A new operation is one class and
one line of the table (README, "Extending").
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recbole_adarec.errors import AdaRecError
from recbole_adarec.model.base import CausalConv, with_past


class MaxPool(nn.Module):
    """Maximum over the last `kernel` positions; what comes before the sequence counts as 0, as ReLU's output does."""

    def __init__(self, kernel: int) -> None:
        super().__init__()
        self.kernel = kernel

    def forward(self, x: Tensor) -> Tensor:
        padded = with_past(x, self.kernel - 1)
        if padded.requires_grad:  # forward and backward in a fifth of the time of amax, which is faster without
            return F.max_pool1d(padded.transpose(1, 2), self.kernel, 1).transpose(1, 2)
        return padded.unfold(1, self.kernel, 1).amax(-1)


class AvgPool(nn.Module):
    """Mean over the last `kernel` positions; what comes before the sequence counts as 0."""

    def __init__(self, kernel: int) -> None:
        super().__init__()
        self.kernel = kernel

    def forward(self, x: Tensor) -> Tensor:
        length, padded = x.shape[1], with_past(x, self.kernel - 1)
        total = x
        for shift in range(self.kernel - 1):
            total = total + padded[:, shift : shift + length]
        return total / self.kernel


class Zero(nn.Module):
    """No edge. The cell leaves it out; called by itself it gives zeros."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x)


class Operation(NamedTuple):
    """One row of the table.

    Attributes
    ----------
    build : callable
        Makes the module for C channels.
    macs : callable
        Multiply-accumulates of one position for C channels; additions and comparisons of pooling count as one.
    """

    build: Callable[[int], nn.Module]
    macs: Callable[[int], int]

    def parameters(self, size: int) -> int:
        """Number of trainable parameters for `size` channels, counted on the module itself."""
        return sum(p.numel() for p in self.build(size).parameters())


def _conv(kernel: int, dilation: int = 1) -> Operation:
    # No bias: an operation turns zeros into zeros, so an edge of zeros and no edge are the same thing.
    return Operation(lambda size: CausalConv(size, kernel, dilation, bias=False), lambda size: kernel * size * size)


OPERATIONS: dict[str, Operation] = {
    "conv_3": _conv(3),
    "conv_5": _conv(5),
    "dilated_conv_3": _conv(3, dilation=2),
    "dilated_conv_5": _conv(5, dilation=2),
    "max_pool_3": Operation(lambda size: MaxPool(3), lambda size: 2 * size),
    "avg_pool_3": Operation(lambda size: AvgPool(3), lambda size: 3 * size),
    "skip": Operation(lambda size: nn.Identity(), lambda size: 0),
    "none": Operation(lambda size: Zero(), lambda size: 0),
}


def check_operations(names: list[str] | tuple[str, ...], where: str = "operations") -> None:
    """Refuse operations that do not exist or that see later positions.

    Raises
    ------
    AdaRecError
        Names the operation, and the table.
    """
    for name in names:
        if name not in OPERATIONS:
            raise AdaRecError(f"{where}: unknown operation {name!r}; known are {', '.join(OPERATIONS)}")
        if not is_causal(OPERATIONS[name].build(4)):
            raise AdaRecError(
                f"{where}: operation {name!r} is not causal: its output changes with later items, which are the "
                "labels when every position is trained; pad on the left only"
            )


@torch.no_grad()
def is_causal(operation: nn.Module, size: int = 4, length: int = 12) -> bool:
    """Whether no output depends on a later input, tried on random values at every cut."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(1, length, size, generator=generator)
    y = operation(x)
    for cut in range(1, length):
        changed = torch.cat([x[:, :cut], torch.rand(1, length - cut, size, generator=generator)], 1)
        if not torch.equal(operation(changed)[:, :cut], y[:, :cut]):
            return False
    return True
