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
    the block, for a state h, the product of both and its prior. The first level is a softmax over the items of the
    head and one entry for each tail block, the second one within a block: ``log p(x) = log p(block) + log p(x |
    block)``. Scores are log-probabilities, less the part of the prior that is not served.

    With codes, `quantize` comes after training: each row becomes the nearest that the codes of its block can express,
    and the state holds these codes in place of the rows (`QuantizedEmbedding`). Codes that are fixed before training
    were tried and are worse: a student of Beauty then has a validation NDCG@10 of 0.0555 after its first epoch and
    0.0475 after its twelfth.

    The order of the items by popularity is part of the state, so that a model's file is enough to rebuild it.

    torch's ``AdaptiveLogSoftmaxWithLoss`` is the same function (a test says so), but it keeps the head's rows and the
    entries of the blocks in one matrix, which cannot be tied with the embeddings of the head, has no way to score
    candidates or to find the best k, and gives nothing to distil into at either level.

    Parameters
    ----------
    n_items, size
        As in `ItemTable`.
    blocks : Blocks
        Their sizes sum to I - 1, for padding is in none.
    counts : Tensor, optional
        Occurrences of each item in the training data, ``[I]``; without them the order comes with the weights.
    tied : bool
        Whether the softmax uses the embeddings, or rows and projections of its own.
    std : float
        Standard deviation of the random start of an embedding's channel where rows are narrow; rows of C channels start
        as those of a `FullItemTable`.
    prior, served
        As in `ItemTable`.
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
        self.blocks = self._rows(std)
        self.output = None if tied else self._rows(std)
        self.entries = nn.Linear(size, len(blocks.sizes) - 1)  # the entries of the tail blocks
        nn.init.normal_(self.entries.weight, std=std / math.sqrt(size))
        self.register_buffer("by_popularity", by_popularity(n_items, counts).int())
        self.register_buffer("rank", torch.empty(n_items, dtype=torch.int), persistent=False)
        self._number()
        self.register_load_state_dict_post_hook(lambda table, _: table._number())
        self._start_entries()
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

    def _rows(self, std: float) -> Any:
        cut = zip(self.cut.sizes, self.cut.widths, strict=True)
        return nn.ModuleList(Block(items, width, self.size, std) for items, width in cut)

    def quantized_embeddings(self) -> list[QuantizedEmbedding]:
        both = [self.blocks] if self.output is None else [self.blocks, self.output]
        return [block.embedding for blocks in both for block in blocks]

    def quantize(self) -> bool:
        for embedding, channels in zip(self.quantized_embeddings(), self.cut.codes * 2, strict=False):
            embedding.quantize([channels])
        return bool(self.cut.codes)

    def _number(self) -> None:
        """The rank of each id follows from the ids by rank, and the priors of a block; padding is behind all blocks."""
        self.rank[self.by_popularity.long()] = torch.arange(self.n_items - 1, dtype=torch.int, device=self.rank.device)
        self.rank[0] = self.n_items - 1
        for j, block in enumerate(self.scored_blocks):
            block.prior.copy_(self.prior[self.ids(j)])

    @torch.no_grad()
    def _start_entries(self) -> None:
        """A block whose rows are all 0 stands for its items together: ``log sum exp(prior)``, without priors log n."""
        for j, block in enumerate(self.scored_blocks[1:]):
            self.entries.bias[j] = block.prior.logsumexp(0)

    @property
    def scored_blocks(self) -> Any:
        """The blocks of the softmax."""
        return self.blocks if self.output is None else self.output

    def ids(self, block: int) -> Tensor:
        """The items of a block, most popular first, int64 ``[n_j]``."""
        return self.by_popularity[self.starts[block] : self.starts[block + 1]].long()

    def places(self, items: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """For each block where in `items`, taken flat, its own are, and their rows in it."""
        rank = self.rank[items.flatten()].long()
        for start, end in zip(self.starts, self.starts[1:], strict=False):
            where = ((rank >= start) & (rank < end)).nonzero().squeeze(1)
            yield where, rank[where] - start

    def forward(self, items: Tensor) -> Tensor:
        found = self.entries.weight.new_zeros(items.numel(), self.size)
        for block, (where, rows) in zip(self.blocks, self.places(items), strict=True):
            if len(where):
                found = found.index_copy(0, where, block(rows).to(found.dtype))
        return found.view(*items.shape, self.size)

    def seen_in_block(self, seen: SeenItems, block: int) -> SeenItems:
        """What of a block was taken, by columns of its logits, counted from 1."""
        column = self.rank[seen.items].long() - self.starts[block] + 1  # padding is behind all blocks
        return SeenItems(column * ((column > 0) & (column <= self.cut.sizes[block])), seen.bias)

    def first_level(self, states: Tensor, seen: SeenItems | None = None) -> Tensor:
        """Logits of the head's items, most popular first, and of the tail blocks, ``[N, n_0 + J]``."""
        return torch.cat([self._logits(0, states, seen), self.entries(states)], 1)

    def _logits(self, block: int, states: Tensor, seen: SeenItems | None) -> Tensor:
        logits: Tensor = self.scored_blocks[block].logits(states)
        return logits if seen is None else self.seen_in_block(seen, block).add_to(logits, first=1)

    def _within(self, block: int, states: Tensor, seen: SeenItems | None) -> Tensor:
        """Log-probability of a block's items among themselves, ``[N, n_j]``."""
        return self._logits(block, states, seen).log_softmax(1)

    def scores(self, states: Tensor, seen: SeenItems | None = None) -> Tensor:
        of_head, of_blocks = self._split(self.first_level(states, seen).log_softmax(1))
        parts = [of_head]
        parts += [of_blocks[:, j - 1 : j] + self._within(j, states, seen) for j in range(1, len(self.blocks))]
        padding = of_head.new_full((len(states), 1), -torch.inf)
        return torch.cat([*parts, padding], 1).index_select(1, self.rank) - self.unserved_prior

    def _split(self, first: Tensor) -> tuple[Tensor, Tensor]:
        head = self.cut.sizes[0]
        return first[:, :head], first[:, head:]

    def scores_of(self, states: Tensor, items: Tensor, seen: SeenItems | None = None) -> Tensor:
        return self._log_probabilities(states, items, seen) - self.unserved_prior[items]

    def _log_probabilities(self, states: Tensor, items: Tensor, seen: SeenItems | None) -> Tensor:
        """Of some items for each state: ids ``[N, K]`` to ``[N, K]``."""
        of_head, of_blocks = self._split(self.first_level(states, seen).log_softmax(1))
        found = of_head.new_full((items.numel(),), -torch.inf)
        for j, (where, rows) in enumerate(self.places(items)):
            of_state = where // items.shape[1]
            if j == 0:
                found = found.index_copy(0, where, of_head[of_state, rows])
            elif len(where):
                needed, state = of_state.unique(return_inverse=True)
                within = self._within(j, states[needed], None if seen is None else seen.select(needed))
                found = found.index_copy(0, where, of_blocks[of_state, j - 1] + within[state, rows])
        return found.view_as(items)

    def log_probability(self, states: Tensor, items: Tensor, seen: SeenItems | None = None) -> Tensor:
        return self._log_probabilities(states, items[:, None], seen).squeeze(1)

    @torch.no_grad()
    def top_k(self, states: Tensor, k: int, seen: SeenItems | None = None) -> TopK:
        """The k best items of each state without scoring those that cannot be among them.

        No item of a block is more probable than ``p(block)`` times the largest ``p(x | block)`` that the extent of the
        block's rows allows (`_Bound`), and none has more withheld than the one of which the least is; a block whose
        bound is below the k-th best found so far is left out.
        """
        unserved_prior = 1 - self.served  # of each prior
        of_head, of_blocks = self._split(self.first_level(states, seen).log_softmax(1))
        of_head = of_head - unserved_prior * self.scored_blocks[0].prior
        bounds = []
        for j, bound in enumerate(self._tail_bounds()):
            own = None if seen is None else self.seen_in_block(seen, j + 1)
            bounds.append(of_blocks[:, j] + bound.highest(states, own) - unserved_prior * bound.least_prior)
        found = [best_items(row, self.ids(0), k) for row in of_head]
        scored = len(states) * self.cut.sizes[0]
        for j in range(1, len(self.blocks)):
            # Equal to the k-th best is not below it: of items with equal scores the ids decide.
            needed = [
                n for n, bound in enumerate(bounds[j - 1].tolist())
                if len(found[n][0]) < k or bound + _SLACK >= float(found[n][1][-1])
            ]  # fmt: skip
            if not needed:
                continue
            ids = self.ids(j)
            of_needed = None if seen is None else seen.select(torch.tensor(needed, device=states.device))
            within = of_blocks[needed, j - 1 : j] + self._within(j, states[needed], of_needed)
            within -= unserved_prior * self.scored_blocks[j].prior
            scored += len(needed) * self.cut.sizes[j]
            for n, row in zip(needed, within, strict=True):
                items, scores = best_items(row, ids, k)
                found[n] = best_items(torch.cat([found[n][1], scores]), torch.cat([found[n][0], items]), k)
        items, scores = (torch.stack(column) for column in zip(*found, strict=True))
        return TopK(items, scores, scored / (len(states) * (self.n_items - 1)))

    def _tail_bounds(self) -> list[_Bound]:
        """Of the tail blocks, computed anew when their rows have changed."""
        weights = [block.embedding.weight for block in self.scored_blocks[1:]]
        seen = [(weight.data_ptr(), weight._version) for weight in weights]
        if self._bounds is None or self._bounds[0] != seen:
            self._bounds = seen, [_Bound(block) for block in self.scored_blocks[1:]]
        return self._bounds[1]

    def embeddings(self) -> list[Tensor]:
        return [embedding.weight for embedding in self.quantized_embeddings()]

    @torch.no_grad()
    def start_from(self, rows: Tensor) -> None:
        """Each block by a truncated SVD of its rows; the entry of a block by the mean of its rows."""
        for j in range(len(self.blocks)):
            own = rows[self.ids(j)]
            for blocks in [self.blocks] if self.output is None else [self.blocks, self.output]:
                blocks[j].start_from(own)
            if j:  # log sum_x exp(h e_x + prior_x) is at least log sum_x exp(prior_x) + h times the mean e so weighted
                self.entries.weight[j - 1] = self.scored_blocks[j].prior.softmax(0) @ own
        self._start_entries()


class Block(nn.Module):
    """Rows of d channels, and their projection to C unless d is C.

    Parameters
    ----------
    items : int
        Rows.
    width : int
        d.
    size : int
        C.
    std : float
        Standard deviation of a channel of the embeddings at first, where d is below C.
    """

    prior: Tensor

    def __init__(self, items: int, width: int, size: int, std: float) -> None:
        super().__init__()
        self.register_buffer("prior", torch.zeros(items), persistent=False)  # those of the table, by rank
        self.embedding = QuantizedEmbedding(items, width)
        self.projection = nn.Linear(width, size, bias=False) if width < size else None
        if self.projection is not None:
            nn.init.normal_(self.embedding.weight, std=std)
            nn.init.normal_(self.projection.weight, std=width**-0.5)
        else:
            nn.init.normal_(self.embedding.weight, std=INIT_STD)

    def forward(self, rows: Tensor) -> Tensor:
        """Embeddings of some rows, ``[M]`` to ``[M, C]``."""
        embedded = self.embedding(rows)
        return embedded if self.projection is None else self.projection(embedded)

    def narrow(self, states: Tensor) -> Tensor:
        """States as the rows see them, ``[N, C]`` to ``[N, d]``."""
        return states if self.projection is None else states @ self.projection.weight

    @property
    def matrix(self) -> Tensor:
        """What scores narrow states that end `append_ones`: rows and, last, priors, ``[n, d + 1]``."""
        return torch.cat([self.embedding.weight, self.prior[:, None]], 1)

    def logits(self, states: Tensor) -> Tensor:
        """Logits of all rows, ``[N, C]`` to ``[N, n]``."""
        return F.linear(self.narrow(states), self.embedding.weight, self.prior)

    @torch.no_grad()
    def start_from(self, rows: Tensor) -> None:
        """The best approximation of ``[n, C]`` of rank d."""
        if self.projection is None:
            self.embedding.weight.copy_(rows)
            return
        double = rows.double()
        v = torch.linalg.eigh(double.T @ double).eigenvectors.flip(1)[:, : self.embedding.embedding_dim]
        self.embedding.weight.copy_(double @ v)
        self.projection.weight.copy_(v)


class _Bound:
    """How probable an item of a block can be within it, from what is known of all its rows.

    With u the state as the rows see it and a 1 behind it, e_x a row and its prior behind it, m their mean:
    ``log p(x | block) = u e_x - log sum exp(u e)``. The sum is at least ``n exp(u m)`` (Jensen), and ``u (e_x - m)``
    at most both ``|u| max |e - m|`` (Cauchy-Schwarz) and the sum over the channels of what their smallest and largest
    value allow. Where k items were taken already, with a bias r below 0, the sum is at least that over the others,
    ``(n - k) exp(u m')`` with their mean m'; with r above 0 an item has r more at most.
    """

    def __init__(self, block: Block) -> None:
        rows = block.matrix
        self.mean = rows.mean(0)
        self.block, self.rows = block, len(rows)
        self.low, self.high = rows.amin(0) - self.mean, rows.amax(0) - self.mean
        self.radius = (rows - self.mean).square().sum(1).max().sqrt()
        self.least_prior = block.prior.min()

    def highest(self, states: Tensor, seen: SeenItems | None = None) -> Tensor:
        """The bound for each state, ``[N]``, at most 0; `seen_items` by columns of the block."""
        u = append_ones(self.block.narrow(states))
        of_channels = u.clamp(min=0) @ self.high + u.clamp(max=0) @ self.low
        above_mean = torch.minimum(of_channels, u.norm(dim=1) * self.radius)  # of a logit, at most
        if seen is None or seen.bias > 0:
            gained = 0.0 if seen is None else seen.bias
            return (above_mean + gained - math.log(self.rows)).clamp(max=0)
        there = seen.items != 0
        column = (seen.items - 1).clamp_min(0)
        rows = torch.cat([self.block.embedding(column), self.block.prior[column][..., None]], -1)  # [N, L, d + 1]
        of_taken = (rows @ u[:, :, None]).squeeze(2) - (u @ self.mean)[:, None]  # above that of the mean
        others = self.rows - there.sum(1)
        below = (of_taken * there).sum(1) / others.clamp_min(1)  # how far m' is below m
        bound = above_mean + below - others.clamp_min(1).log()
        return torch.where(others > 0, bound, 0.0).clamp(max=0)
