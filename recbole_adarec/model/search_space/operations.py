"""Candidate operations of the search space: `OPERATIONS` maps each name to its constructor and its cost.

Every operation is causal and maps ``[B, L, C]`` to ``[B, L, C]``. Its input is not negative, because the cell applies
ReLU first. A user adds an operation with the decorator `operation` (docs/extending.md).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple, TypeVar

import torch
from torch import nn

from recbole_adarec.errors import AdaRecError, nearest_hint
from recbole_adarec.model.causal_filter import CausalFilter
from recbole_adarec.model.layers import CausalConv
from recbole_adarec.model.linear_recurrence import LinearRecurrence
from recbole_adarec.model.search_space.modules import (
    Attention,
    AvgPool,
    FeedForward,
    GatedFeedForward,
    MaxPool,
    MinGRU,
    MultiHeadAttention,
    SepConv,
    Zero,
)


class Operation(NamedTuple):
    """A row of `OPERATIONS`.

    Attributes
    ----------
    build : callable
        Builds the module for C channels.
    macs : callable
        Multiply-accumulates per position for C channels. An addition or comparison of a pool counts as one, and
        attention is counted for 50 positions.
    """

    build: Callable[[int], nn.Module]
    macs: Callable[[int], int]

    def parameters(self, size: int) -> int:
        """Number of trainable parameters for `size` channels, counted on a built module."""
        return sum(p.numel() for p in self.build(size).parameters())


def _conv(kernel: int, dilation: int = 1) -> Operation:
    """Full convolution with `kernel` taps."""
    # No bias: an operation maps zeros to zeros, so that an edge with zero input is the same as no edge.
    return Operation(lambda size: CausalConv(size, kernel, dilation, bias=False), lambda size: kernel * size * size)


def _sep_conv(kernel: int, dilation: int = 1) -> Operation:
    """Separable convolution with `kernel` taps."""
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
    "multi_head_attention": Operation(MultiHeadAttention, lambda size: 4 * size * size + 2 * 50 * size),
    "min_gru": Operation(MinGRU, lambda size: 2 * size * size + 2 * size),
    "linear_recurrence": Operation(
        lambda size: LinearRecurrence(size, bias=False), lambda size: 4 * size * size + 6 * size
    ),
    "filter": Operation(CausalFilter, lambda size: 7 * size),
    "feed_forward": Operation(FeedForward, lambda size: 4 * size * size),
    "gated_feed_forward": Operation(GatedFeedForward, lambda size: 6 * size * size),
    "max_pool_3": Operation(lambda size: MaxPool(3), lambda size: 2 * size),
    "avg_pool_3": Operation(lambda size: AvgPool(3), lambda size: 3 * size),
    "skip": Operation(lambda size: nn.Identity(), lambda size: 0),
    "none": Operation(lambda size: Zero(), lambda size: 0),
}
_BUILT_IN = frozenset(OPERATIONS)
Build = TypeVar("Build", bound=Callable[[int], nn.Module])


def operation(name: str, macs: Callable[[int], int]) -> Callable[[Build], Build]:
    """Decorator that adds an operation to the search space: a class or function that builds a module for C channels.

    The module maps ``[B, L, C]`` to ``[B, L, C]``. It must be causal, which is checked, and map zeros to zeros (no
    bias), so that an edge with zero input is the same as no edge.

    Parameters
    ----------
    name : str
        Name for the key ``operations`` and for architecture files.
    macs : callable
        Multiply-accumulates per position, as a function of the channels C. Used with ``cost: macs``.

    Raises
    ------
    AdaRecError
        If the name is that of an operation of this package.

    Examples
    --------
    >>> @operation("conv_9", macs=lambda size: 9 * size * size)
    ... class Conv9(CausalConv):
    ...     def __init__(self, size):
    ...         super().__init__(size, 9, bias=False)
    """

    def register(build: Build) -> Build:
        if name in _BUILT_IN:
            raise AdaRecError(f"operation {name!r} is one of ours; give yours another name")
        OPERATIONS[name] = Operation(build, macs)
        return build

    return register


def share_pointwise_weights(operations: Iterable[nn.Module]) -> None:
    """Make the separable convolutions among the candidates of an edge share one pointwise convolution.

    During the search an operation with weights is trained only when it is drawn, so operations without weights (pools)
    would be preferred. Separable convolutions differ in the positions that they read, not in their pointwise part,
    which is therefore trained whenever one of them is drawn.
    """
    first: SepConv | None = None
    for operation in operations:
        if isinstance(operation, SepConv):
            first = first or operation
            operation.linear = first.linear


def check_operations(names: list[str] | tuple[str, ...], where: str = "operations") -> None:
    """Raise `AdaRecError` for an operation that is unknown or not causal.

    Parameters
    ----------
    names : list or tuple of str
        Names of operations.
    where : str
        Source of the names, for the error message.

    Raises
    ------
    AdaRecError
        Names the operation and, where it is unknown, the known ones.
    """
    for name in names:
        if name not in OPERATIONS:
            nearest = nearest_hint(name, OPERATIONS)
            raise AdaRecError(
                f"{where}: unknown operation {name!r}{nearest}; known are {', '.join(OPERATIONS)}; one of your own is "
                "loaded with --plugins= (load_plugins in Python)"
            )
        if not is_causal(OPERATIONS[name].build(4)):
            raise AdaRecError(
                f"{where}: operation {name!r} is not causal: its output changes with later items, which are the "
                "labels when every position is trained; pad on the left only"
            )


@torch.no_grad()
def is_causal(operation: nn.Module, size: int = 4, length: int = 12) -> bool:
    """Whether no output of an operation depends on later positions, tested on random inputs at every position.

    Parameters
    ----------
    operation : Module
        Maps ``[B, L, C]`` to ``[B, L, C]``.
    size : int
        Channels C of the test input.
    length : int
        Positions L of the test input.
    """
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(1, length, size, generator=generator)
    y = operation(x)
    for cut in range(1, length):
        changed = torch.cat([x[:, :cut], torch.rand(1, length - cut, size, generator=generator)], 1)
        if not torch.equal(operation(changed)[:, :cut], y[:, :cut]):
            return False
    return True
