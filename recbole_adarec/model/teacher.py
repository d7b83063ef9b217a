"""The large models that teach: NextItNet, SASRec and BERT4Rec, trained on windows."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recbole_adarec.errors import AdaRecError
from recbole_adarec.model.base import CausalConv, Encoding, SequenceRecommender
from recbole_adarec.model.item_table import FullItemTable, distinct, full_table

T = TypeVar("T")


class AdaRecTeacher(SequenceRecommender):
    """A teacher; constructing it gives the class that ``backbone`` names, or with ``stock`` a `StockTeacher`.

    Parameters
    ----------
    config : recbole.config.Config
        ``backbone``, ``hidden_size``, ``distilled_layers``, ``dropout_prob`` and the keys of the backbone
        (properties/model/AdaRecTeacher.yaml).
    dataset : recbole.data.dataset.Dataset
        Gives the number of items.

    Raises
    ------
    AdaRecError
        If the backbone is unknown or has fewer layers than ``distilled_layers``.
    """

    item_table: FullItemTable

    def __new__(cls, config: Any = None, dataset: Any = None) -> AdaRecTeacher:
        if cls is AdaRecTeacher:
            cls = _stock_teacher() if config["stock"] else backbone_class(config["backbone"])
        return super().__new__(cls)

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        self.hidden_size: int = config["hidden_size"]
        self.embedding_size = self.hidden_size
        self.distilled_layers: int = config["distilled_layers"]
        self.dropout = nn.Dropout(config["dropout_prob"])

    @property
    def item_embeddings(self) -> Tensor:
        """What a student's item table starts from, ``[I, embedding_size]``."""
        return self.item_table.items

    def distilled(self, hidden: list[T]) -> tuple[T, ...]:
        """Every n-th of all layers, the last one included, so that ``distilled_layers`` are left."""
        total, wanted = len(hidden), self.distilled_layers
        return tuple(hidden[(k + 1) * total // wanted - 1] for k in range(wanted))

    def check_depth(self, depth: int) -> None:
        if not 1 <= self.distilled_layers <= depth:
            raise AdaRecError(
                f"distilled_layers: {self.distilled_layers} of {depth} layers of {type(self).__name__} cannot be "
                f"distilled; give 1 to {depth}"
            )


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


def through(blocks: Iterable[nn.Module], x: Tensor) -> list[Tensor]:
    """What comes out of each of some blocks in a row, each ``[B, L, C]``."""
    hidden = []
    for block in blocks:
        x = block(x)
        hidden.append(x)
    return hidden


class NextItNetTeacher(AdaRecTeacher):
    """NextItNet (Yuan et al., WSDM 2019, arXiv 1808.05163): a stack of dilated causal residual blocks."""

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        self.item_table = full_table(config, dataset, self.n_items, self.hidden_size)
        self.blocks = residual_blocks(config)
        self.check_depth(len(self.blocks))

    def encode(self, item_seq: Tensor) -> Encoding:
        embedding = self.dropout(self.item_table(item_seq))
        hidden = through(self.blocks, embedding)
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
        return states[masked], whole[masked], distinct(whole.masked_fill(masked, 0))[window]

    def taught(self, item_seq: Tensor) -> tuple[Encoding, Tensor]:
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


def prefix_ends(item_seq: Tensor, number: int) -> Tensor:
    """A mask ``[B, L]`` of the last item of each sequence and others evenly before it, at most `number` in all."""
    lengths = (item_seq != 0).sum(1)
    ends = torch.zeros_like(item_seq, dtype=torch.bool)
    rows = torch.arange(len(item_seq), device=item_seq.device)
    for k in range(number):
        ends[rows, lengths - lengths * k // number - 1] = True
    return ends


BACKBONES: dict[str, type[AdaRecTeacher]] = {
    "NextItNet": NextItNetTeacher,
    "SASRec": SASRecTeacher,
    "BERT4Rec": BERT4RecTeacher,
}


def backbone_class(name: str) -> type[AdaRecTeacher]:
    """The teacher class of a backbone; raises `AdaRecError` for an unknown one."""
    if name not in BACKBONES:
        raise AdaRecError(f"backbone: unknown backbone {name!r}; known are {', '.join(BACKBONES)}")
    return BACKBONES[name]


def _stock_teacher() -> type[AdaRecTeacher]:
    from recbole_adarec.model.stock_teacher import StockTeacher  # which is one of these itself

    return StockTeacher
