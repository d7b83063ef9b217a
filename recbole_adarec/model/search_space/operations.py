"""Candidate operations of the search space: `OPERATIONS` maps each name to its constructor and its cost.

Every operation is causal and maps ``[B, L, C]`` to ``[B, L, C]``. Its input is not negative, because the cell applies
ReLU first. A user adds an operation with the decorator `operation` (docs/extending.md).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recbole_adarec.errors import AdaRecError, nearest_hint
from recbole_adarec.model.layers import CausalConv, delayed, left_pad


class SepConv(nn.Module):
    """Depthwise separable causal convolution: depthwise, then pointwise (an operation of DARTS, arXiv 1806.09055).

    With K taps it has C² + K C weights; a full convolution has K C².

    Parameters
    ----------
    size : int
        Channels C.
    kernel : int
        Number of taps K.
    dilation : int
        Distance between neighbouring taps, in positions.

    Notes
    -----
    For one sequence, where function calls cost more than arithmetic, the forward pass takes 23 us with both kernels;
    the code for batches takes 33 and 42 us. That code adds shifted copies, which was measured twice as fast as a
    grouped ``Conv1d``.
    """

    def __init__(self, size: int, kernel: int, dilation: int = 1) -> None:
        super().__init__()
        self.dilation = dilation
        self.delays = [(kernel - 1 - k) * dilation for k in range(kernel)]
        self.depthwise = nn.Parameter(torch.empty(kernel, size).uniform_(-1, 1) * kernel**-0.5)
        self.linear = nn.Linear(size, size, bias=False)

    @property
    def matrix(self) -> Tensor:
        """Weights of the equivalent full convolution, ``[C, K C]`` with K taps."""
        return (self.linear.weight[:, None] * self.depthwise).flatten(1)

    def forward(self, x: Tensor) -> Tensor:  # [B, L, C]
        if len(x) == 1:  # fewer function calls, see Notes
            length, size = x.shape[1:]
            shape = (1, length, len(self.delays), size)  # [1, L, K, C]
            shifted = left_pad(x, self.delays[0]).as_strided(shape, (0, size, self.dilation * size, 1))
            return self.linear((shifted * self.depthwise).sum(2))
        first, *others = zip(delayed(x, self.delays), self.depthwise, strict=True)
        total = first[0] * first[1]
        for shifted, weight in others:
            total = torch.addcmul(total, shifted, weight)
        return self.linear(total)


class Attention(nn.Module):
    """Causal self-attention with one head of C / 4 channels, and without value and output projections.

    The logit of a position d positions back is reduced by ``slope * d`` with a learned slope (ALiBi, Press et al.,
    arXiv 2108.12409). The output at a position depends on all earlier positions, that of a convolution or pool only on
    the last few.

    Parameters
    ----------
    size : int
        Channels C.

    Notes
    -----
    Written out, it takes half the time of ``scaled_dot_product_attention``, which has no fast kernel for a bias on the
    CPU.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.width = max(size // 4, 1)
        self.linear = nn.Linear(size, 2 * self.width, bias=False)
        self.slope = nn.Parameter(torch.tensor(0.1))

    def forward(self, x: Tensor) -> Tensor:  # [B, L, C]
        query, key = self.linear(x).split(self.width, -1)
        # torch.export and torch.compile trace with tensors that hold no values. The cache must not see those.
        traced = type(query) is not Tensor or torch.compiler.is_compiling()
        distance, mask = (attention_bias if traced else _cached_attention_bias)(x.shape[1], x.device)
        bias = torch.addcmul(mask, distance, self.slope, value=-1).to(query.dtype)
        logits = torch.baddbmm(bias, query, key.transpose(1, 2), alpha=self.width**-0.5)
        return torch.bmm(logits.softmax(-1), x)


def attention_bias(length: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Distances and causal mask of L positions, float32 ``[L, L]`` each, rows for queries and columns for keys.

    Returns
    -------
    tuple of Tensor
        Number of positions from the key to the query, 0 for later keys; and 0 for the keys that a query may attend to,
        minus infinity for later keys.
    """
    position = torch.arange(length, device=device, dtype=torch.float32)
    distance = position[:, None] - position
    return distance.clamp_min(0), torch.zeros_like(distance).masked_fill(distance < 0, -torch.inf)


# Outside inference mode, so that a tensor that was first used for inference can be used in training.
_cached_attention_bias = lru_cache(64)(torch.inference_mode(False)(attention_bias))


class MinGRU(nn.Module):
    """Minimal gated recurrent unit (minGRU; Feng et al., arXiv 2410.01201).

    ``h_t = (1 - z_t) h_{t-1} + z_t V x_t`` with the gate ``z_t = sigmoid(W x_t + b)``. The gate depends on the input
    alone, so all positions are computed in parallel, in log2(L) steps of a prefix scan.

    Parameters
    ----------
    size : int
        Channels C.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.gate = nn.Linear(size, size)
        nn.init.uniform_(self.gate.bias, -2.0, 1.5)  # half-lives from 0.4 to 5 positions at first
        self.value = nn.Linear(size, size, bias=False)

    def forward(self, x: Tensor) -> Tensor:  # [B, L, C]
        write = self.gate(x).sigmoid()
        keep, state = 1 - write, write * self.value(x)
        span = 1  # state_t: contribution of the last `span` positions; keep_t: their factor on the state before them
        while span < x.shape[1]:
            later = torch.addcmul(state[:, span:], keep[:, span:], state[:, :-span])
            state = torch.cat([state[:, :span], later], 1)
            keep = torch.cat([torch.zeros_like(keep[:, :span]), keep[:, span:] * keep[:, :-span]], 1)
            span *= 2
        return state


class MaxPool(nn.Module):
    """Maximum over the last K positions, for each channel; positions before the sequence are 0, as after ReLU.

    Parameters
    ----------
    kernel : int
        Number of positions K.

    Notes
    -----
    With gradients ``max_pool1d`` takes a fifth of the time of ``amax``, forward and backward; without them ``amax`` is
    faster.
    """

    def __init__(self, kernel: int) -> None:
        super().__init__()
        self.kernel = kernel

    def forward(self, x: Tensor) -> Tensor:  # [B, L, C]
        padded = left_pad(x, self.kernel - 1)
        if padded.requires_grad:
            return F.max_pool1d(padded.transpose(1, 2), self.kernel, 1).transpose(1, 2)
        return padded.unfold(1, self.kernel, 1).amax(-1)


class AvgPool(nn.Module):
    """Mean over the last K positions, for each channel; positions before the sequence are 0.

    Parameters
    ----------
    kernel : int
        Number of positions K.
    """

    def __init__(self, kernel: int) -> None:
        super().__init__()
        self.kernel = kernel

    def forward(self, x: Tensor) -> Tensor:  # [B, L, C]
        length, padded = x.shape[1], left_pad(x, self.kernel - 1)
        total = x
        for shift in range(self.kernel - 1):
            total = total + padded[:, shift : shift + length]
        return total / self.kernel


class Zero(nn.Module):
    """The operation "none": zeros. A cell does not run it but leaves the edge out."""

    def forward(self, x: Tensor) -> Tensor:  # [B, L, C]
        return torch.zeros_like(x)


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
    "min_gru": Operation(MinGRU, lambda size: 2 * size * size + 2 * size),
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
