"""CpRec: NextItNet compressed by an adaptive item table and by sharing of layers."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from recbole_adarec.data.dataset import WindowDataset
from recbole_adarec.model.base import Encoding, SequenceRecommender
from recbole_adarec.model.item_table.build import build_item_table
from recbole_adarec.model.layers import Dropout
from recbole_adarec.model.residual_blocks import hidden_states, residual_blocks


class CpRec(SequenceRecommender):
    """NextItNet with an adaptive item table and shared convolutions (Sun et al., SIGIR 2020, arXiv 2004.13139).

    Parameters
    ----------
    config : recbole.config.Config
        The keys ``hidden_size``, ``dropout_prob``, ``full_dropout_at``, ``total_budget``, and those of
        `residual_blocks` and `build_item_table` (properties/model/CpRec.yaml).
    dataset : WindowDataset
        The training part; provides the number of items and their counts.

    Raises
    ------
    AdaRecError
        If the blocks of the item table do not fit the catalog.
    """

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        self.hidden_size: int = config["hidden_size"]
        self.blocks = residual_blocks(config)
        limit = None
        if config["total_budget"] is not None:
            unshared = sum(p.numel() for block in self.blocks for part in block.children() for p in part.parameters())
            uncompressed = self.n_items * self.hidden_size + unshared + len(self.blocks)  # each block has an eps
            limit = int(config["total_budget"] * uncompressed) - sum(p.numel() for p in self.blocks.parameters())
        self.item_table = build_item_table(config, dataset, self.n_items, self.hidden_size, limit)
        self.dropout = Dropout(config["dropout_prob"] * self._dropout_factor(config, dataset))

    def _dropout_factor(self, config: Any, dataset: Any) -> float:
        """Factor of ``dropout_prob``, from 0 to 1: parameters per training target, as a share of ``full_dropout_at``.

        It is 1 without training data. A model with few parameters per target is better with less dropout.

        Notes
        -----
        Validation NDCG@10 with dropout 0.1, 0.2, 0.3 and 0.4, and a quarter of NextItNet's parameters: Beauty (2.2
        parameters per target) 0.0566, 0.0617, 0.0642, 0.0641; ml-100k (1.3) 0.1123, 0.1185, 0.1197, 0.1228; ml-1m-tail
        (0.5) 0.1406, 0.1380, 0.1333, 0.1271.
        """
        if not config["full_dropout_at"] or not isinstance(dataset, WindowDataset):
            return 1.0
        parameters = sum(p.numel() for p in self.parameters())
        return min(parameters / int(dataset.windows.length.sum()) / config["full_dropout_at"], 1.0)

    def encode(self, item_seq: Tensor) -> Encoding:
        """Hidden states of sequences of item ids ``[B, L]``, with the outputs of all residual blocks as layers."""
        embedding = self.dropout(self.item_table(item_seq))
        hidden = hidden_states(self.blocks, embedding)
        return Encoding(embedding, tuple(hidden), self.dropout(hidden[-1]))
