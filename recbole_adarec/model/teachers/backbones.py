"""The large models that teach: NextItNet, SASRec and BERT4Rec, trained on windows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recbole_adarec.errors import AdaRecError
from recbole_adarec.model.base import Encoding
from recbole_adarec.model.item_table.build import full_table
from recbole_adarec.model.residual_blocks import hidden_states, residual_blocks
from recbole_adarec.model.seen_items import deduplicated
from recbole_adarec.model.teachers.base import AdaRecTeacher, prefix_ends, teacher


@teacher("NextItNet")
class NextItNetTeacher(AdaRecTeacher):
    """NextItNet (Yuan et al., WSDM 2019, arXiv 1808.05163): a stack of dilated causal residual blocks."""

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        self.item_table = full_table(config, dataset, self.n_items, self.hidden_size)
        self.blocks = residual_blocks(config)
        self.check_depth(len(self.blocks))

    def encode(self, item_seq: Tensor) -> Encoding:
        embedding = self.dropout(self.item_table(item_seq))
        hidden = hidden_states(self.blocks, embedding)
        return Encoding(embedding, self.distilled(hidden), self.dropout(hidden[-1]))


class _TransformerTeacher(AdaRecTeacher):
    """Item and position embeddings under torch's transformer encoder.

    With ``norm_first`` each layer normalises what enters its attention and its feed-forward network, and the last
    layer's output is normalised once more, as in SASRec (section 3.2): without that eight layers hardly train.
    Without the key each layer normalises its sums, as in BERT4Rec's paper.
    """

    def __init__(self, config: Any, dataset: Any, extra_items: int, positions: int) -> None:
        super().__init__(config, dataset)
        self.check_depth(config["n_layers"])
        if (config["layer_sharing"] or "none") != "none":
            raise AdaRecError(f"layer_sharing: {config['layer_sharing']!r} is for NextItNet; other teachers share none")
        if self.hidden_size % config["n_heads"]:
            raise AdaRecError(
                f"n_heads: {config['n_heads']} heads do not divide hidden_size {self.hidden_size} of the teacher"
            )
        self.item_table = full_table(config, dataset, self.n_items, self.hidden_size, extra_items)
        self.positions = nn.Parameter(torch.randn(positions, self.hidden_size) * 0.02)
        self.norm = nn.LayerNorm(self.hidden_size)
        norm_first = bool(config["norm_first"])  # a teacher that was stored before the key was there has none
        self.last_norm = nn.LayerNorm(self.hidden_size) if norm_first else nn.Identity()
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                self.hidden_size,
                config["n_heads"],
                config["inner_size"],
                config["dropout_prob"],
                activation=config["hidden_act"],
                batch_first=True,
                norm_first=norm_first,
            )
            for _ in range(config["n_layers"])
        )
        for parameter in self.layers.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.02)

    def transform(self, item_seq: Tensor, **masks: Tensor) -> Encoding:
        """Encode ids ``[B, L]``; `masks` are those of ``nn.TransformerEncoderLayer``, True where it may not look."""
        x = embedding = self.dropout(self.norm(self.item_table(item_seq) + self.positions[: item_seq.shape[1]]))
        hidden = []
        for layer in self.layers:
            x = layer(x, **masks)
            hidden.append(x)
        return Encoding(embedding, self.distilled(hidden), self.last_norm(x))


@teacher("SASRec")
class SASRecTeacher(_TransformerTeacher):
    """SASRec (Kang and McAuley, ICDM 2018, arXiv 1808.09781): causal self-attention over learned positions.

    Sequences are right-padded, so the causal mask alone keeps real positions from seeing padding.
    """

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset, extra_items=0, positions=config["MAX_ITEM_LIST_LENGTH"])

    def encode(self, item_seq: Tensor) -> Encoding:
        length = item_seq.shape[1]
        future = torch.ones(length, length, dtype=torch.bool, device=item_seq.device).triu(1)
        return self.transform(item_seq, src_mask=future)


@teacher("BERT4Rec")
class BERT4RecTeacher(_TransformerTeacher):
    """BERT4Rec (Sun et al., CIKM 2019, arXiv 1904.06690): bidirectional, trained to fill masked items.

    Its state at t sees the future, so it is read, and it teaches, only where its input ends in the mask: for a
    position t that is one pass over the items up to t with a mask behind them. ``taught_positions`` of each window
    are taught, the last one and others evenly before it.
    """

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset, extra_items=1, positions=config["MAX_ITEM_LIST_LENGTH"] + 1)
        self.mask_item = self.n_items
        self.mask_ratio: float = config["mask_ratio"]
        self.last_mask_ratio: float = config["last_mask_ratio"]
        self.taught_positions: int = config["taught_positions"]

    def encode(self, item_seq: Tensor) -> Encoding:
        return self.transform(item_seq, src_key_padding_mask=item_seq == 0)

    def ending_in_mask(self, item_seq: Tensor, lengths: Tensor) -> Tensor:
        """The first `lengths` ``[B]`` items of each sequence and a mask behind them, ``[B, L + 1]``."""
        position = torch.arange(item_seq.shape[1] + 1, device=item_seq.device)
        longer = F.pad(item_seq, (0, 1)) * (position < lengths[:, None])
        return torch.where(position == lengths[:, None], self.mask_item, longer)

    def last_state(self, item_seq: Tensor, lengths: Tensor) -> Tensor:
        return self.gather_indexes(self.encode(self.ending_in_mask(item_seq, lengths)).output, lengths)

    def training_states(self, item_seq: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """States at masked items of the whole window, inputs and last target together; taken are those it sees."""
        lengths = (item_seq != 0).sum(1, keepdim=True)
        whole = F.pad(item_seq, (0, 1)).scatter(1, lengths, targets.gather(1, lengths - 1))
        position = torch.arange(whole.shape[1], device=whole.device)
        masked = torch.rand(whole.shape, device=whole.device) < self.mask_ratio
        # Some windows are masked at their end alone, as they are when they are ranked.
        last_only = torch.rand(len(whole), 1, device=whole.device) < self.last_mask_ratio
        masked = torch.where(last_only, position == lengths, masked | (position == lengths)) & (whole != 0)
        states = self.encode(whole.masked_fill(masked, self.mask_item)).output
        window = masked.nonzero(as_tuple=True)[0]
        return states[masked], whole[masked], deduplicated(whole.masked_fill(masked, 0))[window]

    def distillation_targets(self, item_seq: Tensor) -> tuple[Encoding, Tensor]:
        taught = prefix_ends(item_seq, self.taught_positions)
        window, position = taught.nonzero(as_tuple=True)
        encoding = self.encode(self.ending_in_mask(item_seq[window], position + 1))
        row = torch.arange(len(window), device=item_seq.device)
        # The embedding belongs to the item at the position; layers and output to the mask that follows it.
        return Encoding(
            encoding.embedding[row, position],
            tuple(hidden[row, position + 1] for hidden in encoding.layers),
            encoding.output[row, position + 1],
        ), taught
