"""Multi-head self-attention."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recbole_adarec.errors import AdaRecError


class SelfAttention(nn.Module):
    """Multi-head self-attention, ``[B, L, C]`` to ``[B, L, C]``, causal by default.

    Causality is the kernel's, not a mask's. Its parameters have the names and shapes of ``nn.MultiheadAttention``.

    Parameters
    ----------
    size : int
        Channels C.
    heads : int
        Number of heads, a divisor of C.
    dropout : float
        Dropout of the attention weights.

    Raises
    ------
    AdaRecError
        If the number of heads does not divide the channels.
    """

    def __init__(self, size: int, heads: int, dropout: float) -> None:
        super().__init__()
        if size % heads:
            raise AdaRecError(f"n_heads: {heads} heads do not divide hidden_size {size} of the teacher")
        self.heads, self.dropout = heads, dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * size, size))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * size))
        self.out_proj = nn.Linear(size, size)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, x: Tensor, keys: Tensor | None = None) -> Tensor:
        """Attend to earlier positions; with `keys`, a bool mask ``[B, L]``, to all positions where it is True."""
        q, k, v = F.linear(x, self.in_proj_weight, self.in_proj_bias).unflatten(-1, (3, self.heads, -1)).unbind(2)
        mixed = F.scaled_dot_product_attention(
            q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2),
            attn_mask=None if keys is None else keys[:, None, None],
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=keys is None,
        )  # fmt: skip
        return self.out_proj(mixed.transpose(1, 2).flatten(2))
