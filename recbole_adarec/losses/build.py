"""Builds the loss over items that belongs to an item table."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from recbole_adarec.losses.adaptive_softmax import AdaptiveSoftmaxLoss
from recbole_adarec.losses.full_softmax import SoftmaxLoss
from recbole_adarec.losses.item_loss import ItemLoss
from recbole_adarec.model.item_table.base import ItemTable

# By the levels of the table's softmax.
_LOSSES: dict[int, Callable[[Any, Any, torch.device], ItemLoss]] = {
    1: lambda config, table, device: SoftmaxLoss(config, table.n_items, device),
    2: AdaptiveSoftmaxLoss,
}


def build_item_loss(config: Any, table: ItemTable, device: torch.device) -> ItemLoss:
    """The loss over items of a stage.

    Parameters
    ----------
    config : recbole.config.Config
        Of the stage, see `SoftmaxLoss` and `AdaptiveSoftmaxLoss`.
    table : ItemTable
        The model's item table.
    device : torch.device
        Where scores are computed.

    Raises
    ------
    AdaRecError
        If ``item_loss`` is unknown, or sampled with a softmax of two levels.
    """
    return _LOSSES[table.levels](config, table, device)
