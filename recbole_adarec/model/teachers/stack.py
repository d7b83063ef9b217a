"""The base of teachers that are a stack of equal layers over item and position embeddings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recbole_adarec.errors import AdaRecError
from recbole_adarec.model.attention import SelfAttention
from recbole_adarec.model.base import Encoding
from recbole_adarec.model.item_table.build import full_table
from recbole_adarec.model.layers import Dropout
from recbole_adarec.model.teachers.base import AdaRecTeacher


def attention_dropout(config: Any) -> float:
    """Dropout of attention weights: ``attn_dropout_prob``, or else ``dropout_prob``."""
    value = config["attn_dropout_prob"]
    return float(config["dropout_prob"] if value is None else value)


class TransformerLayer(nn.Module):
    """Self-attention and a feed-forward network, each in a residual branch, ``[B, L, C]`` to ``[B, L, C]``.

    Its parameters have the names of ``nn.TransformerEncoderLayer``. A subclass that overrides
    `build_mixing` and `mix` has another operation over positions.

    Parameters
    ----------
    config : recbole.config.Config
        ``hidden_size``, ``n_heads``, ``inner_size``, ``hidden_act``, ``dropout_prob`` and ``norm_first``.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        size, inner = config["hidden_size"], config["inner_size"]
        self.norm_first = bool(config["norm_first"])  # missing in model files that are older than the key
        self.build_mixing(config)
        self.linear1, self.linear2 = nn.Linear(size, inner), nn.Linear(inner, size)
        self.norm1, self.norm2 = nn.LayerNorm(size), nn.LayerNorm(size)
        self.activation = getattr(F, config["hidden_act"])
        self.dropout = Dropout(config["dropout_prob"])

    def build_mixing(self, config: Any) -> None:
        """Build what `mix` uses; called once."""
        self.self_attn = SelfAttention(config["hidden_size"], config["n_heads"], attention_dropout(config))

    def mix(self, x: Tensor, keys: Tensor | None) -> Tensor:
        """The operation over positions; `keys` as `SelfAttention` takes them."""
        return self.self_attn(x, keys)

    def feed_forward(self, x: Tensor) -> Tensor:
        """The feed-forward network, ``[B, L, C]``."""
        return self.dropout(self.linear2(self.dropout(self.activation(self.linear1(x)))))

    def forward(self, x: Tensor, keys: Tensor | None = None) -> Tensor:
        if self.norm_first:
            x = x + self.dropout(self.mix(self.norm1(x), keys))
            return x + self.feed_forward(self.norm2(x))
        x = self.norm1(x + self.dropout(self.mix(x, keys)))
        return self.norm2(x + self.feed_forward(x))


class StackTeacher(AdaRecTeacher):
    """Item and learned position embeddings under a stack of layers.

    With ``norm_first: true`` (pre-norm, as in SASRec, section 3.2) each layer normalises the input of its residual
    branches, and the output of the last layer is normalised as well. Without it eight layers hardly train. With
    ``norm_first: false`` (post-norm, as in BERT4Rec's paper) each layer normalises its residual sums.

    Parameters
    ----------
    config : recbole.config.Config
        The keys of `AdaRecTeacher`; ``n_layers``, ``norm_first``, ``position_embeddings`` and those of the layer.
    dataset : recbole.data.dataset.Dataset
        Provides the number of items and their counts.

    Attributes
    ----------
    layer : callable
        Class attribute: builds a layer from the configuration; it maps ``[B, L, C]`` to ``[B, L, C]``.
    has_positions : bool
        Class attribute: whether positions are embedded where ``position_embeddings`` is set.
    extra_items : int
        Class attribute: number of special items, such as a mask, after the I items; each can lengthen a sequence by 1.

    Raises
    ------
    AdaRecError
        If ``distilled_layers`` exceeds ``n_layers``, ``n_heads`` does not divide ``hidden_size``, or ``layer_sharing``
        is set.
    """

    layer: Callable[[Any], nn.Module] = TransformerLayer
    has_positions = True
    extra_items = 0

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        self.check_depth(config["n_layers"])
        if (config["layer_sharing"] or "none") != "none":
            raise AdaRecError(f"layer_sharing: {config['layer_sharing']!r} is for NextItNet; other teachers share none")
        self.item_table = full_table(config, dataset, self.n_items, self.hidden_size, self.extra_items)
        length = config["MAX_ITEM_LIST_LENGTH"] + self.extra_items
        embedded = self.has_positions and config["position_embeddings"] is not False  # None in older model files
        self.positions = nn.Parameter(torch.randn(length, self.hidden_size) * 0.02) if embedded else None
        self.norm = nn.LayerNorm(self.hidden_size)
        self.last_norm = nn.LayerNorm(self.hidden_size) if config["norm_first"] else nn.Identity()
        self.layers = nn.ModuleList(type(self).layer(config) for _ in range(config["n_layers"]))
        for parameter in self.layers.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.02)

    def encode(self, item_seq: Tensor) -> Encoding:
        """Causal hidden states of sequences of item ids ``[B, L]``; see `AdaRecTeacher`."""
        return self.transform(item_seq)

    def transform(self, item_seq: Tensor, *arguments: Tensor) -> Encoding:
        """Hidden states of right-padded item ids, int64 ``[B, L]``; `arguments` are passed to each layer."""
        x = self.item_table(item_seq)
        if self.positions is not None:
            x = x + self.positions[: item_seq.shape[1]]
        x = embedding = self.dropout(self.norm(x))
        hidden = []
        for layer in self.layers:
            x = layer(x, *arguments)
            hidden.append(x)
        return Encoding(embedding, self.distilled(hidden), self.last_norm(x))
