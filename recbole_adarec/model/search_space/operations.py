"""Candidate operations of the search space: one table from name to constructor and cost.

Every operation is causal and keeps ``[B, L, C]``; the cell has applied ReLU before. A new operation is one class and
one line of the table, or one decorator in the user's own file (README, "Extend").
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recbole_adarec.errors import AdaRecError
from recbole_adarec.model.layers import CausalConv, delayed, left_pad


class SepConv(nn.Module):
    """Separable causal convolution: each channel by itself, then one map of the channels (DARTS, arXiv 1806.09055).

    It has C² + K C weights where a convolution has K C².
    """

    def __init__(self, size: int, kernel: int, dilation: int = 1) -> None:
        super().__init__()
        self.dilation = dilation
        self.delays = [(kernel - 1 - k) * dilation for k in range(kernel)]
        self.depthwise = nn.Parameter(torch.empty(kernel, size).uniform_(-1, 1) * kernel**-0.5)
        self.linear = nn.Linear(size, size, bias=False)

    @property
    def matrix(self) -> Tensor:
        """The weights of the convolution that does the same, ``[C, K C]``."""
        return (self.linear.weight[:, None] * self.depthwise).flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        if len(x) == 1:  # calls cost more than arithmetic: 23 us for both kernels, against 33 and 42 below
            length, size = x.shape[1:]
            taps = (1, length, len(self.delays), size)
            late = left_pad(x, self.delays[0]).as_strided(taps, (0, size, self.dilation * size, 1))
            return self.linear((late * self.depthwise).sum(2))
        # Sums of shifted copies: measured twice as fast as a grouped Conv1d.
        first, *others = zip(delayed(x, self.delays), self.depthwise, strict=True)
        total = first[0] * first[1]
        for late, weight in others:
            total = torch.addcmul(total, late, weight)
        return self.linear(total)


class Attention(nn.Module):
    """Mean of the earlier positions, weighted by likeness and recency: the one operation that reaches all of them.

    A head of C / 4 channels compares positions and has no values or output of its own; what lies d positions back is
    held back by ``slope * d`` (ALiBi, Press et al., arXiv 2108.12409).
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.width = max(size // 4, 1)
        self.linear = nn.Linear(size, 2 * self.width, bias=False)
        self.slope = nn.Parameter(torch.tensor(0.1))

    def forward(self, x: Tensor) -> Tensor:
        query, key = self.linear(x).split(self.width, -1)
        back, future = distances(x.shape[1], x.device)
        bias = torch.addcmul(future, back, self.slope, value=-1).to(query.dtype)
        # Half the time of scaled_dot_product_attention, which has no fast kernel for a bias on the CPU.
        likeness = torch.baddbmm(bias, query, key.transpose(1, 2), alpha=self.width**-0.5)
        return torch.bmm(likeness.softmax(-1), x)


@lru_cache(64)
@torch.inference_mode(False)  # whoever asks first may not train, and the next may
def distances(length: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """How far back each position lies from each, 0 for later ones, and minus infinity for those; ``[L, L]`` both."""
    position = torch.arange(length, device=device, dtype=torch.float32)
    back = position[:, None] - position
    return back.clamp_min(0), torch.zeros_like(back).masked_fill(back < 0, -torch.inf)


class MinGRU(nn.Module):
    """``h_t = (1 - z_t) h_{t-1} + z_t V x_t`` with ``z_t = sigmoid(W x_t + b)`` (Feng et al., arXiv 2410.01201).

    A recurrence in which each channel decides what it keeps, and for how long. Gates depend on the input alone, so
    all positions are computed together, in log2(L) rounds.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.gate = nn.Linear(size, size)
        nn.init.uniform_(self.gate.bias, -2.0, 1.5)  # half-lives from 0.4 to 5 positions at first
        self.value = nn.Linear(size, size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        write = self.gate(x).sigmoid()
        keep, state = 1 - write, write * self.value(x)
        reach = 1  # state_t holds what the last `reach` positions wrote, keep_t what they keep of what was before
        while reach < x.shape[1]:
            later = torch.addcmul(state[:, reach:], keep[:, reach:], state[:, :-reach])
            state = torch.cat([state[:, :reach], later], 1)
            keep = torch.cat([torch.zeros_like(keep[:, :reach]), keep[:, reach:] * keep[:, :-reach]], 1)
            reach *= 2
        return state


class MaxPool(nn.Module):
    """Maximum over the last `kernel` positions; what comes before the sequence counts as 0, as ReLU's output does."""

    def __init__(self, kernel: int) -> None:
        super().__init__()
        self.kernel = kernel

    def forward(self, x: Tensor) -> Tensor:
        padded = left_pad(x, self.kernel - 1)
        if padded.requires_grad:  # forward and backward in a fifth of the time of amax, which is faster without
            return F.max_pool1d(padded.transpose(1, 2), self.kernel, 1).transpose(1, 2)
        return padded.unfold(1, self.kernel, 1).amax(-1)


class AvgPool(nn.Module):
    """Mean over the last `kernel` positions; what comes before the sequence counts as 0."""

    def __init__(self, kernel: int) -> None:
        super().__init__()
        self.kernel = kernel

    def forward(self, x: Tensor) -> Tensor:
        length, padded = x.shape[1], left_pad(x, self.kernel - 1)
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
        Multiply-accumulates of one position for C channels; additions and comparisons of pooling count as one, and
        attention looks at 50 positions.
    """

    build: Callable[[int], nn.Module]
    macs: Callable[[int], int]

    def parameters(self, size: int) -> int:
        """Number of trainable parameters for `size` channels, counted on the module itself."""
        return sum(p.numel() for p in self.build(size).parameters())


def _conv(kernel: int, dilation: int = 1) -> Operation:
    # No bias: an operation turns zeros into zeros, so an edge of zeros and no edge are the same thing.
    return Operation(lambda size: CausalConv(size, kernel, dilation, bias=False), lambda size: kernel * size * size)


def _sep_conv(kernel: int, dilation: int = 1) -> Operation:
    return Operation(lambda size: SepConv(size, kernel, dilation), lambda size: size * (size + kernel))


OPERATIONS: dict[str, Operation] = {
    "conv_3": _conv(3),
    "conv_5": _conv(5),
    "dilated_conv_3": _conv(3, dilation=2),
    "dilated_conv_5": _conv(5, dilation=2),
    "sep_conv_3": _sep_conv(3),
    "sep_conv_5": _sep_conv(5),
    "dilated_sep_conv_3": _sep_conv(3, dilation=2),
    "dilated_sep_conv_5": _sep_conv(5, dilation=2),
    "attention": Operation(Attention, lambda size: 2 * size * max(size // 4, 1) + 50 * (size + max(size // 4, 1))),
    "min_gru": Operation(MinGRU, lambda size: 2 * size * size + 2 * size),
    "max_pool_3": Operation(lambda size: MaxPool(3), lambda size: 2 * size),
    "avg_pool_3": Operation(lambda size: AvgPool(3), lambda size: 3 * size),
    "skip": Operation(lambda size: nn.Identity(), lambda size: 0),
    "none": Operation(lambda size: Zero(), lambda size: 0),
}
_OURS = frozenset(OPERATIONS)
Build = TypeVar("Build", bound=Callable[[int], nn.Module])


def operation(name: str, macs: Callable[[int], int]) -> Callable[[Build], Build]:
    """Decorator: a row of the table, for a class or function that makes the module for C channels.

    Parameters
    ----------
    name : str
        The name for ``operations:`` and architecture files.
    macs : callable
        Multiply-accumulates of one position for C channels.
    """

    def register(build: Build) -> Build:
        if name in _OURS:
            raise AdaRecError(f"operation {name!r} is one of ours; give yours another name")
        OPERATIONS[name] = Operation(build, macs)
        return build

    return register


def share_maps(operations: Iterable[nn.Module]) -> None:
    """Let the separable convolutions among the candidates of an edge share their map of the channels.

    In the search an operation with weights learns only when it is drawn, and pools, which need to learn nothing, win
    by that alone. What differs between separable convolutions is which positions they read; their maps learn together.
    """
    first: SepConv | None = None
    for operation in operations:
        if isinstance(operation, SepConv):
            first = first or operation
            operation.linear = first.linear


def check_operations(names: list[str] | tuple[str, ...], where: str = "operations") -> None:
    """Refuse operations that do not exist or that see later positions.

    Raises
    ------
    AdaRecError
        Names the operation, and the table.
    """
    for name in names:
        if name not in OPERATIONS:
            raise AdaRecError(
                f"{where}: unknown operation {name!r}; known are {', '.join(OPERATIONS)}; one of your own is loaded "
                "with --plugins= (load_plugins in Python)"
            )
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
