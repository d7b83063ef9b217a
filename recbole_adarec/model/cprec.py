"""CpRec: a compressed NextItNet, its item table cut in blocks and its layers shared."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from recbole_adarec.model.base import Encoding, SequenceRecommender
from recbole_adarec.model.item_table import item_table
from recbole_adarec.model.teacher import residual_blocks, through


class CpRec(SequenceRecommender):
    """NextItNet under a block-wise item table, with shared convolutions (Sun et al., SIGIR 2020, arXiv 2004.13139).

    Parameters
    ----------
    config : recbole.config.Config
        ``hidden_size``, ``dropout_prob``, ``total_budget``, the keys of `residual_blocks` and of
        `recbole_adarec.model.item_table.item_table` (properties/model/CpRec.yaml).
    dataset : WindowDataset
        The training part: it gives the number of items, and their popularity.
    """

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        self.hidden_size: int = config["hidden_size"]
        self.blocks = residual_blocks(config)
        limit = None
        if config["total_budget"] is not None:
            unshared = sum(p.numel() for block in self.blocks for part in block.children() for p in part.parameters())
            whole = self.n_items * self.hidden_size + unshared + len(self.blocks)  # each block has an eps
            limit = int(config["total_budget"] * whole) - sum(p.numel() for p in self.blocks.parameters())
        self.item_table = item_table(config, dataset, self.n_items, self.hidden_size, limit)
        self.dropout = nn.Dropout(config["dropout_prob"])

    def encode(self, item_seq: Tensor) -> Encoding:
        embedding = self.dropout(self.item_table(item_seq))
        hidden = through(self.blocks, embedding)
        return Encoding(embedding, tuple(hidden), self.dropout(hidden[-1]))
