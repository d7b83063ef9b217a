"""NextItNet's residual blocks, and CpRec's sharing of their convolutions."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recbole_adarec.model.layers import CausalConv


class ResidualBlock(nn.Module):
    """Residual block ``x + eps * f(x)`` of two causal convolutions with dilations d and 2d, ``[B, L, C]``.

    The block is NextItNet's residual block (b) (Yuan et al., WSDM 2019, arXiv 1808.05163). The learned scalar eps
    starts at 0, so that a deep stack starts as the identity (Wang et al., StackRec, arXiv 2012.07598, section 3).

    Parameters
    ----------
    size : int
        Channels C.
    kernel : int
        Number of taps of each convolution.
    dilation : int
        Dilation d of the first convolution; the second has 2d.
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
    """NextItNet's residual blocks: ``block_num`` times all ``dilations``, sharing weights as ``layer_sharing`` says.

    The kinds of sharing are CpRec's (Sun et al., SIGIR 2020, arXiv 2004.13139, section 3.2):

    * ``none``: no sharing;
    * ``cross_layer``: all convolutions share one set of weights;
    * ``cross_block``: all blocks share the two convolutions of the first block;
    * ``adjacent_layer``: the two convolutions of a block share one set of weights;
    * ``adjacent_block``: each pair of neighbouring blocks shares two convolutions.

    Weights and bias of a convolution are shared, its dilation is not. LayerNorms and eps are never shared: eps lets
    each block decide how much it adds.

    Parameters
    ----------
    config : recbole.config.Config
        The keys ``hidden_size``, ``kernel_size``, ``dilations``, ``block_num`` and ``layer_sharing``.
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
    """Output of each of a sequence of blocks, applied one after the other to `x`; all are ``[B, L, C]``."""
    hidden = []
    for block in blocks:
        x = block(x)
        hidden.append(x)
    return hidden
