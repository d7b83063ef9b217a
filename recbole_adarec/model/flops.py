"""Multiply-accumulates, counted while a call runs; RecBole's ``get_flops`` counts our models by it.

thop, which ``recbole.utils.get_flops`` is built on, counts the calls of modules that it has a rule for. Our layers call
functions in their place where that is faster, so each of our models brings a rule for itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

try:
    from thop.profile import register_hooks  # type: ignore[import-untyped]
except ImportError:  # thop imports distutils, which Python has from 3.12 on by setuptools alone
    register_hooks = {}


def counted_macs(run: Callable[[], Any]) -> int:
    """Multiply-accumulates of the matrix products that a call does."""
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # the fused transformer layer hides its products
    try:
        with FlopCounterMode(display=False) as counter:
            run()
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
    return int(counter.get_total_flops()) // 2


def count_by_rule(model_class: type) -> None:
    """Give thop, and so RecBole's ``get_flops``, a rule for one of our models."""
    register_hooks[model_class] = _count


@torch.no_grad()
def _count(model: Any, inputs: tuple[Tensor, Tensor], state: Tensor) -> None:
    """thop's rule: multiply-accumulates of scoring one item after a history of full length.

    RecBole's own models are counted like this too: they encode the padding of a short history, which ours leave out.
    """
    item_seq = inputs[0][:1]
    item_seq = torch.where(item_seq == 0, item_seq[:, :1], item_seq)
    lengths = torch.full((1,), item_seq.shape[1], device=item_seq.device)

    def score() -> None:
        model.item_table.scores_of(model.last_state(item_seq, lengths), item_seq[:, :1])

    model.total_ops += counted_macs(score)
