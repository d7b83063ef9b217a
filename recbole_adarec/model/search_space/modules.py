"""The modules of the operations: each is causal, maps ``[B, L, C]`` to ``[B, L, C]``, and zeros to zeros.

Where only the last output is wanted, most of the work can be left out. The attribute ``window`` of a module is the
number of positions that an output depends on, its own included. A module whose outputs depend on all earlier positions
may have a method ``last(x, positions)`` in its place: the outputs at the last positions alone.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recbole_adarec.model.layers import delayed, left_pad


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
        self.window = self.delays[0] + 1
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
        return self._attend(query, key, x)

    def last(self, x: Tensor, positions: int) -> Tensor:
        """The outputs at the last positions alone, ``[B, positions, C]``."""
        query, key = self.linear(x).split(self.width, -1)
        return self._attend(query[:, -positions:], key, x)

    def _attend(self, query: Tensor, key: Tensor, x: Tensor) -> Tensor:
        distance, mask = _attention_bias_for(query, key)
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


def _attention_bias_for(query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    """`attention_bias` for keys ``[..., L, C]`` and the queries of the last of them, from a cache."""
    # torch.export and torch.compile trace with tensors that hold no values. The cache must not see those.
    traced = type(query) is not Tensor or torch.compiler.is_compiling()
    distance, mask = (attention_bias if traced else _cached_attention_bias)(key.shape[-2], key.device)
    queries = query.shape[-2]
    return (distance, mask) if queries == key.shape[-2] else (distance[-queries:], mask[-queries:])


class MultiHeadAttention(nn.Module):
    """Causal self-attention with queries, keys, values and an output projection (Vaswani et al., arXiv 1706.03762).

    The logit of a position d positions back is reduced by ``slope * d`` with a learned slope for each head (ALiBi,
    Press et al., arXiv 2108.12409), as a student embeds no positions; teachers have `SelfAttention`. Two heads, or one
    where the channels are odd.

    Parameters
    ----------
    size : int
        Channels C.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.heads = 2 if size % 2 == 0 else 1
        self.enter, self.leave = nn.Linear(size, 3 * size, bias=False), nn.Linear(size, size, bias=False)
        self.slope = nn.Parameter(torch.full((self.heads, 1, 1), 0.05))

    def forward(self, x: Tensor) -> Tensor:  # [B, L, C]
        heads = self.enter(x).unflatten(-1, (3, self.heads, -1)).transpose(1, 3)  # [B, heads, 3, L, C / heads]
        query, key, value = heads.unbind(2)
        return self._attend(query, key, value)

    def last(self, x: Tensor, positions: int) -> Tensor:
        """The outputs at the last positions alone, ``[B, positions, C]``."""
        query, key, value = self.enter(x).unflatten(-1, (3, self.heads, -1)).transpose(1, 3).unbind(2)
        return self._attend(query[:, :, -positions:], key, value)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        distance, mask = _attention_bias_for(query, key)
        logits = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5 + (mask - self.slope * distance)
        return self.leave((logits.softmax(-1) @ value).transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """Two matrices with a GELU between them, for each position alone.

    Parameters
    ----------
    size : int
        Channels C; there are 2 C between the matrices.
    """

    window = 1

    def __init__(self, size: int) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(size, 2 * size, bias=False), nn.Linear(2 * size, size, bias=False)

    def forward(self, x: Tensor) -> Tensor:  # [B, L, C]
        return self.leave(F.gelu(self.enter(x)))


class GatedFeedForward(nn.Module):
    """``W_3 (W_1 x * silu(W_2 x))`` for each position alone (SwiGLU, Shazeer, arXiv 2002.05202, equation 6).

    Parameters
    ----------
    size : int
        Channels C; W_1 and W_2 have 2 C rows.
    """

    window = 1

    def __init__(self, size: int) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(size, 4 * size, bias=False), nn.Linear(2 * size, size, bias=False)

    def forward(self, x: Tensor) -> Tensor:  # [B, L, C]
        value, gate = self.enter(x).chunk(2, -1)
        return self.leave(value * F.silu(gate))


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
        self.kernel = self.window = kernel

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
        self.kernel = self.window = kernel

    def forward(self, x: Tensor) -> Tensor:  # [B, L, C]
        length, padded = x.shape[1], left_pad(x, self.kernel - 1)
        total = x
        for shift in range(self.kernel - 1):
            total = total + padded[:, shift : shift + length]
        return total / self.kernel


class Zero(nn.Module):
    """The operation "none": zeros. A cell does not run it but leaves the edge out."""

    window = 1

    def forward(self, x: Tensor) -> Tensor:  # [B, L, C]
        return torch.zeros_like(x)
