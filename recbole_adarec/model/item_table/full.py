"""The full item table: one row of C channels for every item."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recbole_adarec.model.item_table.base import INIT_STD, ItemTable, TopK, by_popularity, save_order, top_k_of_all
from recbole_adarec.model.item_table.budget import Blocks
from recbole_adarec.model.item_table.quantization import QuantizedEmbedding
from recbole_adarec.model.seen_items import SeenItems

_LENGTH = 1.5  # of normalized rows at the start


class LinearItemTable(ItemTable):
    """A table whose scores are logits: products of a state and the items' rows, and priors; a subclass has the rows."""

    @property
    def items(self) -> Tensor:
        """Embeddings of the items, ``[I, C]``."""
        raise NotImplementedError

    @property
    def matrix(self) -> Tensor:
        """Embeddings of the items, each followed by its prior, ``[I, C + 1]``; scores states with `append_ones`."""
        return torch.cat([self.items, self.prior[:, None]], 1)

    def scoring_rows(self, items: Tensor) -> Tensor:
        """The rows of `items` of some items, ``[..., C]``."""
        return self(items)

    def ids(self, block: int) -> Tensor:
        return torch.arange(1, self.n_items, device=self.prior.device)

    def seen_in_block(self, seen: SeenItems, block: int) -> SeenItems:
        return seen._replace(offset=1)  # the logits of the one block begin with item 1

    def scores(self, states: Tensor, seen: SeenItems | None = None) -> Tensor:
        scores = F.linear(states, self.items, self.served * self.prior)
        return scores if seen is None else seen.add_to(scores)

    def scores_of(self, states: Tensor, items: Tensor, seen: SeenItems | None = None) -> Tensor:
        scores = (self.scoring_rows(items) @ states[:, :, None]).squeeze(2) + self.served * self.prior[items]
        return scores if seen is None else scores + seen.among(items)

    def log_probability(self, states: Tensor, items: Tensor, seen: SeenItems | None = None) -> Tensor:
        logits = F.linear(states, self.items, self.prior)
        logits = (logits if seen is None else seen.add_to(logits))[:, 1:]
        return logits.gather(1, items[:, None] - 1).squeeze(1) - logits.logsumexp(1)

    @torch.no_grad()
    def top_k(self, states: Tensor, k: int, seen: SeenItems | None = None) -> TopK:
        return top_k_of_all(self.scores(states, seen), k)


class FullItemTable(LinearItemTable):
    """A row of C channels for every item, tied with the softmax; scores are logits.

    Parameters
    ----------
    n_items, size
        As `ItemTable`.
    extra : int
        Further inputs that are no items and never scored (BERT4Rec's mask).
    std : float
        Standard deviation of the random start, as in RecBole's SASRec; with ten times as much, rare items keep too
        much of it.
    prior, served
        As `ItemTable`.
    blocks : Blocks, optional
        Blocks by popularity, with the codes that their rows become after training.
    counts : Tensor, optional
        Occurrences of each item in the training data, ``[I]``; needed with `blocks`.
    normalized : bool
        Items are scored by rows of one length, which is learned (NISER, Gupta et al., arXiv 1909.04276):
        an item is not liked better for the length of its row, its popularity is in the prior.

    Attributes
    ----------
    embedding : nn.Embedding
        ``[I + extra, C]``.
    log_length : nn.Parameter or None
        Logarithm of the length of all rows where they are `normalized`, a scalar.
    cut : Blocks or None
        The `blocks`.
    """

    def __init__(
        self,
        n_items: int,
        size: int,
        extra: int = 0,
        std: float = INIT_STD,
        prior: Tensor | None = None,
        served: float = 1.0,
        blocks: Blocks | None = None,
        counts: Tensor | None = None,
        normalized: bool = False,
    ) -> None:
        super().__init__(n_items, size, prior, served)
        self.log_length = nn.Parameter(torch.tensor(math.log(_LENGTH))) if normalized else None
        self.cut, self._by_popularity = blocks, by_popularity(n_items, counts)
        embedding = QuantizedEmbedding(n_items + extra, size, padding_idx=0)
        nn.init.normal_(embedding.weight, std=std)
        with torch.no_grad():
            embedding.weight[0].zero_()
        self.embedding: nn.Embedding = embedding
        self._quantized = [embedding]

    def share_embedding(self, embedding: nn.Embedding) -> None:
        """Use the embedding of another model as the rows, ``[I, C]``; these never become codes."""
        self.embedding, self._quantized = embedding, []

    def use_sparse_gradients(self) -> None:
        """Compute gradients of the rows that a batch touches alone, for `torch.optim.SparseAdam`.

        `items` and `matrix` then have no gradient; `rows` has.
        """
        self.embedding.sparse = self.sparse = True

    @property
    def items(self) -> Tensor:
        """Embeddings of the items, ``[I, C]``."""
        return self._scaled(self.embedding.weight[: self.n_items])

    def rows(self, items: Tensor) -> Tensor:
        """The rows of `matrix` of some items, ``[K]`` to ``[K, C + 1]``, with a gradient of these rows alone."""
        return torch.cat([self.scoring_rows(items), self.prior[items, None]], 1)

    def scoring_rows(self, items: Tensor) -> Tensor:
        return self._scaled(self.embedding(items))

    def _scaled(self, rows: Tensor) -> Tensor:
        return rows if self.log_length is None else F.normalize(rows, dim=-1) * self.log_length.exp()

    def forward(self, items: Tensor) -> Tensor:
        return self.embedding(items)

    def embeddings(self) -> list[Tensor]:
        return [self.embedding.weight]

    @torch.no_grad()
    def start_from(self, rows: Tensor) -> None:
        self.embedding.weight[: self.n_items].copy_(rows)

    def quantize(self) -> bool:
        if self.cut is None or not self.cut.codes:
            return False
        for embedding in self.quantized_embeddings():
            embedding.quantize(self.cut.codes, self.cut.sizes, self._by_popularity.to(embedding.weight.device))
        return True

    def quantized_embeddings(self) -> list[QuantizedEmbedding]:
        return self._quantized

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        """Adds the items' order by popularity where rows are quantized."""
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for embedding in self.quantized_embeddings():
            if embedding.codes and embedding.order is not None:
                save_order(destination, prefix, embedding.order, self.prior)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        order = state_dict.pop(f"{prefix}embedding.order", None)  # the name in older files
        order = state_dict.pop(f"{prefix}by_popularity", order)
        super()._load_from_state_dict(state_dict, prefix, *args)
        if f"{prefix}embedding.codes.0" in state_dict:
            order = by_popularity(self.n_items, self.prior) if order is None else order
            for embedding in self.quantized_embeddings():  # before their own state is loaded
                embedding.order = order.long()
