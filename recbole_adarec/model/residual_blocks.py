"""NextItNet's residual blocks, and the sharing of their convolutions that CpRec adds."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recbole_adarec.model.layers import CausalConv


class ResidualBlock(nn.Module):
    """Two causal convolutions, dilated by d and 2d, behind a gate that starts closed.

    ``x + eps * f(x)`` with eps = 0 at first: a deep stack starts as the identity (Yuan et al., StackRec,
    arXiv 2012.07598, section 3; the block is NextItNet's residual block (b), arXiv 1808.05163).
    """

    def __init__(self, size: int, kernel: int, dilation: int) -> None:
        super().__init__()
        self.conv1 = CausalConv(size, kernel, dilation)
        self.norm1 = nn.LayerNorm(size, eps=1e-8)
        self.conv2 = CausalConv(size, kernel, 2 * dilation)
        self.norm2 = nn.LayerNorm(size, eps=1e-8)
        self.eps = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:  # [B, L, C]
        hidden = F.relu(self.norm1(self.conv1(x)))
        return x + self.eps * F.relu(self.norm2(self.conv2(hidden)))


LAYER_SHARING = ("none", "cross_layer", "cross_block", "adjacent_layer", "adjacent_block")


def residual_blocks(config: Any) -> nn.ModuleList:
    """NextItNet's blocks, ``block_num`` times all ``dilations``, with the sharing of ``layer_sharing``.

    CpRec (Sun et al., arXiv 2004.13139, section 3.2), of the convolutions: ``cross_layer``: all are one;
    ``cross_block``: those of all blocks are the two of the first; ``adjacent_layer``: the two of a block are one;
    ``adjacent_block``: every two blocks in turn have the same two. A convolution is shared with its bias and keeps the
    dilation of its place. LayerNorms are never shared, and neither is eps: a number for each block lets it decide how
    much it adds.
    """
    dilations = list(config["dilations"]) * config["block_num"]
    blocks = [ResidualBlock(config["hidden_size"], config["kernel_size"], dilation) for dilation in dilations]
    for number, block in enumerate(blocks):
        first = {"cross_layer": blocks[0], "cross_block": blocks[0], "adjacent_block": blocks[number - number % 2]}
        source = first.get(config["layer_sharing"], block)
        block.conv1.linear, block.conv2.linear = source.conv1.linear, source.conv2.linear
        if config["layer_sharing"] in ("cross_layer", "adjacent_layer"):
            block.conv2.linear = block.conv1.linear
    return nn.ModuleList(blocks)


def hidden_states(blocks: Iterable[nn.Module], x: Tensor) -> list[Tensor]:
    """What comes out of each of some blocks in a row, each ``[B, L, C]``."""
    hidden = []
    for block in blocks:
        x = block(x)
        hidden.append(x)
    return hidden
