"""The full item table: one row of C channels for every item."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recbole_adarec.model.item_table.base import INIT_STD, ItemTable, TopK, best_items, by_popularity, save_order
from recbole_adarec.model.item_table.budget import Blocks
from recbole_adarec.model.item_table.quantization import QuantizedEmbedding
from recbole_adarec.model.seen_items import SeenItems


class FullItemTable(ItemTable):
    """A row of C channels for every item, tied with the softmax; scores are logits.

    Parameters
    ----------
    n_items, size
        As in `ItemTable`.
    extra : int
        Further inputs that are no items and never scored (BERT4Rec's mask).
    std : float
        Standard deviation of the random start, as in RecBole's SASRec; with ten times as much rare items keep too
        much of it.
    prior, served
        As in `ItemTable`.
    blocks : Blocks, optional
        Says what codes the rows become after training, in blocks by popularity.
    counts : Tensor, optional
        Occurrences of each item in the training data, ``[I]``, which blocks need.
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
    ) -> None:
        super().__init__(n_items, size, prior, served)
        self.cut, self._by_popularity = blocks, by_popularity(n_items, counts)
        self.embedding: nn.Embedding = QuantizedEmbedding(
            n_items + extra, size, padding_idx=0
        )  # or one of RecBole's own
        nn.init.normal_(self.embedding.weight, std=std)
        with torch.no_grad():
            self.embedding.weight[0].zero_()

    def use_sparse_gradients(self) -> None:
        """Give gradients for the rows that a batch touches, for `torch.optim.SparseAdam`; `items` is not trainable."""
        self.embedding.sparse = self.sparse = True

    @property
    def items(self) -> Tensor:
        """Embeddings of the items alone, ``[I, C]``."""
        return self.embedding.weight[: self.n_items]

    @property
    def matrix(self) -> Tensor:
        """What scores states that end `append_ones`: embeddings and, last, priors, ``[I, C + 1]``."""
        return torch.cat([self.items, self.prior[:, None]], 1)

    def rows(self, items: Tensor) -> Tensor:
        """Those of some items, ``[K]`` to ``[K, C + 1]``; the gradient of `matrix` would be that of all rows."""
        return torch.cat([self.embedding(items), self.prior[items, None]], 1)

    def forward(self, items: Tensor) -> Tensor:
        return self.embedding(items)

    def scores(self, states: Tensor, seen: SeenItems | None = None) -> Tensor:
        scores = F.linear(states, self.items, self.served * self.prior)
        return scores if seen is None else seen.add_to(scores)

    def scores_of(self, states: Tensor, items: Tensor, seen: SeenItems | None = None) -> Tensor:
        scores = (self(items) @ states[:, :, None]).squeeze(2) + self.served * self.prior[items]
        return scores if seen is None else scores + seen.among(items)

    def log_probability(self, states: Tensor, items: Tensor, seen: SeenItems | None = None) -> Tensor:
        logits = F.linear(states, self.items, self.prior)
        logits = (logits if seen is None else seen.add_to(logits))[:, 1:]
        return logits.gather(1, items[:, None] - 1).squeeze(1) - logits.logsumexp(1)

    @torch.no_grad()
    def top_k(self, states: Tensor, k: int, seen: SeenItems | None = None) -> TopK:
        ids = torch.arange(1, self.n_items, device=states.device)
        found = [best_items(row, ids, k) for row in self.scores(states, seen)[:, 1:]]
        return TopK(torch.stack([items for items, _ in found]), torch.stack([scores for _, scores in found]), 1.0)

    def embeddings(self) -> list[Tensor]:
        return [self.embedding.weight]

    @torch.no_grad()
    def start_from(self, rows: Tensor) -> None:
        self.items.copy_(rows)

    def quantize(self) -> bool:
        if self.cut is None or not self.cut.codes:
            return False
        for embedding in self.quantized_embeddings():
            embedding.quantize(self.cut.codes, self.cut.sizes, self._by_popularity.to(embedding.weight.device))
        return True

    def quantized_embeddings(self) -> list[QuantizedEmbedding]:
        return [self.embedding] if isinstance(self.embedding, QuantizedEmbedding) else []

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for embedding in self.quantized_embeddings():
            if embedding.codes and embedding.order is not None:
                save_order(destination, prefix, embedding.order, self.prior)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        order = state_dict.pop(f"{prefix}embedding.order", None)  # as files had it at first
        order = state_dict.pop(f"{prefix}by_popularity", order)
        super()._load_from_state_dict(state_dict, prefix, *args)
        if f"{prefix}embedding.codes.0" in state_dict:
            order = by_popularity(self.n_items, self.prior) if order is None else order
            for embedding in self.quantized_embeddings():  # whose own state comes after this
                embedding.order = order.long()
