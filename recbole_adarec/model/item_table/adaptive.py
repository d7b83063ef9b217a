"""The adaptive item table: blocks by popularity under a softmax of two levels (CpRec)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recbole_adarec.model.item_table.base import (
    INIT_STD,
    ItemTable,
    TopK,
    append_ones,
    best_items,
    by_popularity,
    save_order,
    unpack_prior,
)
from recbole_adarec.model.item_table.budget import Blocks
from recbole_adarec.model.item_table.quantization import QuantizedEmbedding
from recbole_adarec.model.seen_items import SeenItems

_SLACK = 1e-3  # in log-probability: more than rounding can take from a bound


class AdaptiveItemTable(ItemTable):
    """Blocks of items, narrower or coarser from head to tail, under a softmax of two levels.

    An item x of block j has the row ``E_j[x]`` of d_j channels; its embedding is ``E_j[x] W_j``, and its logit within
    the block, for a state h, is ``h (E_j[x] W_j) + prior_x``. The first level is a softmax over the items of the head
    and one entry for each of J tail blocks, the second one within a tail block: ``log p(x) = log p(block) + log p(x |
    block)`` (CpRec, Sun et al., arXiv 2004.13139, section 3.1). Scores are log-probabilities less the unserved prior.

    With codes, `quantize` comes after training: each row becomes the nearest that the codes of its block can express,
    and the state holds these codes in place of the rows (`QuantizedEmbedding`).

    The order of the items by popularity is part of the state, so that a model's file is enough to rebuild it.

    Parameters
    ----------
    n_items, size
        As `ItemTable`.
    blocks : Blocks
        Sizes, widths and codes of the blocks, the head first; the sizes sum to I - 1, as padding is in no block.
    counts : Tensor, optional
        Occurrences of each item in the training data, ``[I]``; without them the order comes with the weights.
    tied : bool
        Whether the softmax uses the embeddings, or has rows and projections for itself.
    std : float
        Standard deviation of the random start of an embedding's channel where rows are narrow; rows of C channels start
        as those of a `FullItemTable`.
    prior, served
        As `ItemTable`.

    Attributes
    ----------
    cut : Blocks
        The `blocks`.
    blocks : nn.ModuleList of Block
        Rows and projections that embed items.
    output : nn.ModuleList of Block or None
        Rows and projections of the softmax; None where they are tied with `blocks`.
    entries : nn.Linear
        The entries of the J tail blocks in the first level.
    by_popularity : Tensor
        Item ids by rank, most popular first, ``[I - 1]``.
    rank : Tensor
        Rank of each item id, ``[I]``; padding has the last, I - 1, behind all blocks.

    Notes
    -----
    Codes that are fixed before training were tried and are worse: a student of Beauty then has a validation NDCG@10 of
    0.0555 after its first epoch and 0.0475 after its twelfth.

    torch's ``AdaptiveLogSoftmaxWithLoss`` is the same function (a test compares them), but it keeps the head's rows and
    the entries of the blocks in one matrix, which cannot be tied with the embeddings of the head, has no way to score
    candidates or to find the best k, and gives nothing to distil into at either level.
    """

    by_popularity: Tensor
    rank: Tensor

    def __init__(
        self,
        n_items: int,
        size: int,
        blocks: Blocks,
        counts: Tensor | None = None,
        tied: bool = True,
        std: float = 0.2,
        prior: Tensor | None = None,
        served: float = 1.0,
    ) -> None:
        super().__init__(n_items, size, prior, served)
        self.cut, self.tied = blocks, tied
        self.starts = [sum(blocks.sizes[:j]) for j in range(len(blocks.sizes) + 1)]
        self.blocks = self._build_blocks(std)
        self.output = None if tied else self._build_blocks(std)
        self.entries = nn.Linear(size, len(blocks.sizes) - 1)
        nn.init.normal_(self.entries.weight, std=std / math.sqrt(size))
        self.register_buffer("by_popularity", by_popularity(n_items, counts).int())
        self.register_buffer("rank", torch.empty(n_items, dtype=torch.int), persistent=False)
        self._update_ranks()
        self.register_load_state_dict_post_hook(lambda table, _: table._update_ranks())
        self._reset_entry_biases()
        self._bounds: tuple[Any, list[_Bound]] | None = None

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        del destination[f"{prefix}by_popularity"]
        save_order(destination, prefix, self.by_popularity, self.prior)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        unpack_prior(state_dict, prefix)
        if f"{prefix}prior" in state_dict:
            order = by_popularity(self.n_items, state_dict[f"{prefix}prior"]).int()
            state_dict.setdefault(f"{prefix}by_popularity", order)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _build_blocks(self, std: float) -> Any:
        shapes = zip(self.cut.sizes, self.cut.widths, strict=True)
        return nn.ModuleList(Block(items, width, self.size, std) for items, width in shapes)

    def quantized_embeddings(self) -> list[QuantizedEmbedding]:
        both = [self.blocks] if self.output is None else [self.blocks, self.output]
        return [block.embedding for blocks in both for block in blocks]

    def quantize(self) -> bool:
        for embedding, channels in zip(self.quantized_embeddings(), self.cut.codes * 2, strict=False):
            embedding.quantize([channels])
        return bool(self.cut.codes)

    def _update_ranks(self) -> None:
        """Compute from the order by popularity the rank of each id, and from the priors those of each block."""
        self.rank[self.by_popularity.long()] = torch.arange(self.n_items - 1, dtype=torch.int, device=self.rank.device)
        self.rank[0] = self.n_items - 1
        for j, block in enumerate(self.scored_blocks):
            block.prior.copy_(self.prior[self.ids(j)])

    @torch.no_grad()
    def _reset_entry_biases(self) -> None:
        """Set the bias of each entry to ``log sum exp(prior)``, the logit of a block whose rows are 0."""
        for j, block in enumerate(self.scored_blocks[1:]):
            self.entries.bias[j] = block.prior.logsumexp(0)

    @property
    def scored_blocks(self) -> Any:
        """The blocks of the softmax: `output`, or `blocks` where they are tied."""
        return self.blocks if self.output is None else self.output

    def ids(self, block: int) -> Tensor:
        """Item ids of a block, most popular first, int64 ``[n_j]``."""
        return self.by_popularity[self.starts[block] : self.starts[block + 1]].long()

    def locate(self, items: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Where the items of each block are among given items.

        Parameters
        ----------
        items : Tensor
            Item ids, int64 ``[...]``; padding is in no block.

        Yields
        ------
        tuple of Tensor
            For each block the indices of its items in the flat `items`, and their rows in the block, int64 ``[n]``.
        """
        rank = self.rank[items.flatten()].long()
        for start, end in zip(self.starts, self.starts[1:], strict=False):
            where = ((rank >= start) & (rank < end)).nonzero().squeeze(1)
            yield where, rank[where] - start

    def forward(self, items: Tensor) -> Tensor:
        embedded = self.entries.weight.new_zeros(items.numel(), self.size)
        for block, (where, rows) in zip(self.blocks, self.locate(items), strict=True):
            if len(where):
                embedded = embedded.index_copy(0, where, block(rows).to(embedded.dtype))
        return embedded.view(*items.shape, self.size)

    def seen_in_block(self, seen: SeenItems, block: int) -> SeenItems:
        column = self.rank[seen.items].long() - self.starts[block] + 1  # padding is behind all blocks
        return SeenItems(column * ((column > 0) & (column <= self.cut.sizes[block])), seen.bias, offset=1)

    def first_level(self, states: Tensor, seen: SeenItems | None = None) -> Tensor:
        """Logits of the head's items, most popular first, and of the J tail blocks, ``[N, C]`` to ``[N, n_0 + J]``."""
        return torch.cat([self._logits(0, states, seen), self.entries(states)], 1)

    def _logits(self, block: int, states: Tensor, seen: SeenItems | None) -> Tensor:
        logits: Tensor = self.scored_blocks[block].logits(states)
        return logits if seen is None else self.seen_in_block(seen, block).add_to(logits)

    def _within(self, block: int, states: Tensor, seen: SeenItems | None) -> Tensor:
        """``log p(x | block)`` of all items of a block, ``[N, n_j]``."""
        return self._logits(block, states, seen).log_softmax(1)

    def scores(self, states: Tensor, seen: SeenItems | None = None) -> Tensor:
        head, tail = self._split(self.first_level(states, seen).log_softmax(1))
        parts = [head]
        parts += [tail[:, j - 1 : j] + self._within(j, states, seen) for j in range(1, len(self.blocks))]
        padding = head.new_full((len(states), 1), -torch.inf)
        return torch.cat([*parts, padding], 1).index_select(1, self.rank) - self.unserved_prior

    def _split(self, first_level: Tensor) -> tuple[Tensor, Tensor]:
        """The columns of the head's items ``[N, n_0]`` and of the tail blocks ``[N, J]``."""
        head = self.cut.sizes[0]
        return first_level[:, :head], first_level[:, head:]

    def scores_of(self, states: Tensor, items: Tensor, seen: SeenItems | None = None) -> Tensor:
        return self._log_probabilities(states, items, seen) - self.unserved_prior[items]

    def _log_probabilities(self, states: Tensor, items: Tensor, seen: SeenItems | None) -> Tensor:
        """Log-probabilities of K candidates for each state: ids ``[N, K]`` to ``[N, K]``."""
        head, tail = self._split(self.first_level(states, seen).log_softmax(1))
        log_p = head.new_full((items.numel(),), -torch.inf)
        for j, (where, rows) in enumerate(self.locate(items)):
            state = where // items.shape[1]
            if j == 0:
                log_p = log_p.index_copy(0, where, head[state, rows])
            elif len(where):
                needed, index = state.unique(return_inverse=True)
                within = self._within(j, states[needed], None if seen is None else seen.select(needed))
                log_p = log_p.index_copy(0, where, tail[state, j - 1] + within[index, rows])
        return log_p.view_as(items)

    def log_probability(self, states: Tensor, items: Tensor, seen: SeenItems | None = None) -> Tensor:
        return self._log_probabilities(states, items[:, None], seen).squeeze(1)

    @torch.no_grad()
    def top_k(self, states: Tensor, k: int, seen: SeenItems | None = None) -> TopK:
        """The k items with the highest scores, exactly, without scoring blocks that cannot hold one of them.

        No item of a block has a higher score than ``log p(block)`` plus the largest ``log p(x | block)`` that the
        extent of the block's rows allows (`_Bound`), less the smallest unserved prior of the block. A block whose bound
        is below the k-th best score so far is skipped.
        """
        unserved = 1 - self.served  # of each prior
        head, tail = self._split(self.first_level(states, seen).log_softmax(1))
        head = head - unserved * self.scored_blocks[0].prior
        bounds = []
        for j, bound in enumerate(self._tail_bounds()):
            within_block = None if seen is None else self.seen_in_block(seen, j + 1)
            bounds.append(tail[:, j] + bound.highest(states, within_block) - unserved * bound.least_prior)
        best = [best_items(row, self.ids(0), k) for row in head]
        scored = len(states) * self.cut.sizes[0]
        for j in range(1, len(self.blocks)):
            # A bound equal to the k-th best score is not below it: of items with equal scores the ids decide.
            needed = [
                n for n, bound in enumerate(bounds[j - 1].tolist())
                if len(best[n][0]) < k or bound + _SLACK >= float(best[n][1][-1])
            ]  # fmt: skip
            if not needed:
                continue
            ids = self.ids(j)
            needed_seen = None if seen is None else seen.select(torch.tensor(needed, device=states.device))
            scores = tail[needed, j - 1 : j] + self._within(j, states[needed], needed_seen)
            scores -= unserved * self.scored_blocks[j].prior
            scored += len(needed) * self.cut.sizes[j]
            for n, row in zip(needed, scores, strict=True):
                block_items, block_scores = best_items(row, ids, k)
                candidates = torch.cat([best[n][1], block_scores]), torch.cat([best[n][0], block_items])
                best[n] = best_items(*candidates, k)
        items, scores = (torch.stack(column) for column in zip(*best, strict=True))
        return TopK(items, scores, scored / (len(states) * (self.n_items - 1)))

    def _tail_bounds(self) -> list[_Bound]:
        """Upper bounds of the items' log-probabilities in each tail block, cached until rows change."""
        weights = [block.embedding.weight for block in self.scored_blocks[1:]]
        versions = [(weight.data_ptr(), weight._version) for weight in weights]
        if self._bounds is None or self._bounds[0] != versions:
            self._bounds = versions, [_Bound(block) for block in self.scored_blocks[1:]]
        return self._bounds[1]

    def embeddings(self) -> list[Tensor]:
        return [embedding.weight for embedding in self.quantized_embeddings()]

    @torch.no_grad()
    def start_from(self, rows: Tensor) -> None:
        """Start each block from a truncated SVD of its rows, and its entry from their mean; `rows` are ``[I, C]``."""
        for j in range(len(self.blocks)):
            block_rows = rows[self.ids(j)]
            for blocks in [self.blocks] if self.output is None else [self.blocks, self.output]:
                blocks[j].start_from(block_rows)
            if j:  # log sum_x exp(h e_x + prior_x) is at least log sum_x exp(prior_x) + h times the mean e so weighted
                self.entries.weight[j - 1] = self.scored_blocks[j].prior.softmax(0) @ block_rows
        self._reset_entry_biases()


class Block(nn.Module):
    """Rows of d channels, and their projection to C channels unless d is C.

    Parameters
    ----------
    items : int
        n, the rows.
    width : int
        d.
    size : int
        C.
    std : float
        Standard deviation of a channel of the embeddings at the random start, where d is below C.

    Attributes
    ----------
    prior : Tensor
        The table's priors of the block's items, by rank, ``[n]``.
    """

    prior: Tensor

    def __init__(self, items: int, width: int, size: int, std: float) -> None:
        super().__init__()
        self.register_buffer("prior", torch.zeros(items), persistent=False)
        self.embedding = QuantizedEmbedding(items, width)
        self.projection = nn.Linear(width, size, bias=False) if width < size else None
        if self.projection is not None:
            nn.init.normal_(self.embedding.weight, std=std)
            nn.init.normal_(self.projection.weight, std=width**-0.5)
        else:
            nn.init.normal_(self.embedding.weight, std=INIT_STD)

    def forward(self, rows: Tensor) -> Tensor:
        """Embeddings of some rows, int64 ``[M]`` to ``[M, C]``."""
        embedded = self.embedding(rows)
        return embedded if self.projection is None else self.projection(embedded)

    def narrow(self, states: Tensor) -> Tensor:
        """States in the channels of the rows, ``[N, C]`` to ``[N, d]``: ``h (e W) = (h W^T) e``."""
        return states if self.projection is None else states @ self.projection.weight

    @property
    def matrix(self) -> Tensor:
        """The rows, each followed by its prior, ``[n, d + 1]``; scores narrow states with `append_ones`."""
        return torch.cat([self.embedding.weight, self.prior[:, None]], 1)

    def logits(self, states: Tensor) -> Tensor:
        """Logits of all rows, ``[N, C]`` to ``[N, n]``."""
        return F.linear(self.narrow(states), self.embedding.weight, self.prior)

    @torch.no_grad()
    def start_from(self, rows: Tensor) -> None:
        """Become the best approximation of rank d of given embeddings ``[n, C]``."""
        if self.projection is None:
            self.embedding.weight.copy_(rows)
            return
        double = rows.double()
        v = torch.linalg.eigh(double.T @ double).eigenvectors.flip(1)[:, : self.embedding.embedding_dim]
        self.embedding.weight.copy_(double @ v)
        self.projection.weight.copy_(v)


class _Bound:
    """An upper bound of ``log p(x | block)`` over the items x of a block, from the extent of all its rows.

    With u the narrow state followed by a 1, e_x a row followed by its prior, m the mean of the rows:
    ``log p(x | block) = u e_x - log sum exp(u e)``. The sum is at least ``n exp(u m)`` (Jensen), and ``u (e_x - m)``
    at most both ``|u| max |e - m|`` (Cauchy-Schwarz) and the sum over the channels of what their smallest and largest
    value allow. Where k items were seen, with a bias r below 0, the sum is at least that over the others,
    ``(n - k) exp(u m')`` with their mean m'; with r above 0 an item gains r at most.
    """

    def __init__(self, block: Block) -> None:
        rows = block.matrix
        self.mean = rows.mean(0)
        self.block, self.rows = block, len(rows)
        self.low, self.high = rows.amin(0) - self.mean, rows.amax(0) - self.mean
        self.radius = (rows - self.mean).square().sum(1).max().sqrt()
        self.least_prior = block.prior.min()

    def highest(self, states: Tensor, seen: SeenItems | None = None) -> Tensor:
        """The bound for each state, at most 0, ``[N, C]`` to ``[N]``; seen items by columns of the block."""
        u = append_ones(self.block.narrow(states))
        by_channels = u.clamp(min=0) @ self.high + u.clamp(max=0) @ self.low
        above_mean = torch.minimum(by_channels, u.norm(dim=1) * self.radius)  # of a logit, at most
        if seen is None or seen.bias > 0:
            gain = 0.0 if seen is None else seen.bias
            return (above_mean + gain - math.log(self.rows)).clamp(max=0)
        mask = seen.items != 0
        column = (seen.items - 1).clamp_min(0)
        rows = torch.cat([self.block.embedding(column), self.block.prior[column][..., None]], -1)  # [N, L, d + 1]
        seen_above_mean = (rows @ u[:, :, None]).squeeze(2) - (u @ self.mean)[:, None]
        others = self.rows - mask.sum(1)
        below = (seen_above_mean * mask).sum(1) / others.clamp_min(1)  # how far u m' is below u m
        bound = above_mean + below - others.clamp_min(1).log()
        return torch.where(others > 0, bound, 0.0).clamp(max=0)
