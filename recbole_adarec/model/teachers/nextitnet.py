"""NextItNet: dilated causal convolutions."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from recbole_adarec.model.base import Encoding
from recbole_adarec.model.item_table.build import full_table
from recbole_adarec.model.residual_blocks import hidden_states, residual_blocks
from recbole_adarec.model.teachers.base import AdaRecTeacher, teacher


@teacher("NextItNet")
class NextItNetTeacher(AdaRecTeacher):
    """NextItNet (Yuan et al., WSDM 2019, arXiv 1808.05163): a stack of dilated causal convolutions.

    A residual block has two causal convolutions with dilations d and 2d, see
    `recbole_adarec.model.residual_blocks.ResidualBlock`. The model is causal: it is trained and distilled at every
    position. Each residual block is a layer that can be distilled.

    Parameters
    ----------
    config : recbole.config.Config
        The keys of `AdaRecTeacher`; ``block_num`` and ``dilations`` (the stack has a block for each dilation,
        ``block_num`` times), ``kernel_size``, and ``layer_sharing`` (see `residual_blocks`).
    dataset : recbole.data.dataset.Dataset
        Provides the number of items and their counts.

    Raises
    ------
    AdaRecError
        If ``distilled_layers`` exceeds the number of blocks.
    """

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        self.item_table = full_table(config, dataset, self.n_items, self.hidden_size)
        self.blocks = residual_blocks(config)
        self.check_depth(len(self.blocks))

    def encode(self, item_seq: Tensor) -> Encoding:
        """Hidden states of sequences of item ids ``[B, L]``; see `AdaRecTeacher`."""
        embedding = self.dropout(self.item_table(item_seq))
        hidden = hidden_states(self.blocks, embedding)
        return Encoding(embedding, self.distilled(hidden), self.dropout(hidden[-1]))
