"""The item table: it embeds items, and makes a softmax over them of what an encoder says.

Two implementations of one interface: one row of C channels for every item, or blocks whose rows are narrower, or kept
as coarser codes, the rarer their items are (CpRec, Sun et al., arXiv 2004.13139, section 3.1).

Each item's logit has an offset of its own, its prior: ``popularity_prior`` times the logarithm of how often the item
occurs in the training data (Menon et al., arXiv 2007.07314, section 4), so that its row need not say how popular it is.
Scores may have a part of the prior only, where what is asked for is rarer than what was trained on. Measured with the
teacher, validation NDCG@10 without a prior, with a prior of 1, and with 0.75 of it in the scores: Beauty .0509, .0526,
.0529, of the rarer half of the targets .0111, .0113, .0137; ml-100k .0712, .0756, .0756; ml-1m-tail, with the prior
alone, .1010, .0995.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from logging import getLogger
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recbole_adarec.data.dataset import SequenceDataset, WindowDataset, item_counts
from recbole_adarec.errors import AdaRecError
from recbole_adarec.model.item_codes import CodedEmbedding, codes_parameters

ITEM_TABLES = ("full", "adaptive")
ITEM_OUTPUTS = ("tied", "untied")
_CHANNELS = (1, 2, 3, 4, 6, 8)  # of a code, where a budget chooses
_STD = 0.02  # of a channel at first
_LARGEST_OF_ONE_LEVEL = 50_000  # items
_SLACK = 1e-3  # in log-probability: more than rounding can take from a bound


class TopK(NamedTuple):
    """The best items of N states; of items with equal scores those with the smaller ids.

    Attributes
    ----------
    items : Tensor
        Ids, best first, int64 ``[N, k]``.
    scores : Tensor
        Theirs, ``[N, k]``.
    scored : float
        Share of the catalog that was scored to find them, mean over the states.
    """

    items: Tensor
    scores: Tensor
    scored: float


class Taken(NamedTuple):
    """The items of N histories, and what their logits gain by that (`SequenceRecommender.repeat_bias`).

    Attributes
    ----------
    items : Tensor
        Ids, each once in its row, 0 elsewhere, int64 ``[N, L]``. For a part of the catalog: columns of its logits,
        counted from 1.
    bias : float
        Below 0 where people do not take things again.
    """

    items: Tensor
    bias: float

    def of(self, rows: Tensor | slice) -> Taken:
        """Those of some histories."""
        return Taken(self.items[rows], self.bias)

    def add_to(self, logits: Tensor, first: int = 0, temperature: float = 1.0) -> Tensor:
        """Add the bias in place, to ``[N, I]`` with the columns of ids, or with `first` = 1 to those of a part."""
        columns = (self.items - first).clamp_min_(0) if first else self.items
        return logits.scatter_add_(1, columns, (self.items != 0).to(logits.dtype) * (self.bias / temperature))

    def among(self, items: Tensor) -> Tensor:
        """The bias where ids ``[N, K]`` are among the taken ones, else 0."""
        return self.bias * (items[:, :, None] == self.items[:, None]).any(2)


def distinct(item_seq: Tensor) -> Tensor:
    """Ids ``[B, L]`` with 0 in place of those that came before in their row."""
    before = (item_seq[:, :, None] == item_seq[:, None]).tril_(-1).any(2)
    return item_seq.masked_fill(before, 0)


def taken_up_to(item_seq: Tensor, rows: Tensor) -> Tensor:
    """What was taken up to some of the B L positions of windows ``[B, L]``, as `Taken` has it, ``[N, L]``."""
    width = item_seq.shape[1]
    position = torch.arange(width, device=item_seq.device)
    return distinct(item_seq)[rows // width] * (position <= (rows % width)[:, None])


def history(item_seq: Tensor, rows: Tensor, *biases: float) -> Taken | None:
    """What was taken up to some positions of windows, with the first of some biases; None where all are 0."""
    return Taken(taken_up_to(item_seq, rows), biases[0]) if any(biases) else None


class ItemTable(nn.Module):
    """What every item table does.

    Where histories are given as `Taken`, their bias is added to the logits of their items, in the softmax in which each
    of them stands.

    Scores rank the items of one state; the padding item 0 is never among the best and has no probability.

    Parameters
    ----------
    n_items : int
        I: items with the padding item 0.
    size : int
        Channels C of states and embeddings.
    prior : Tensor, optional
        Offset of each item's logit, ``[I]``; zeros without it.
    served : float
        The part of it that is in the scores.

    Attributes
    ----------
    sparse : bool
        Whether the gradient holds only the rows that a batch touches.
    """

    prior: Tensor
    served: Tensor

    def __init__(self, n_items: int, size: int, prior: Tensor | None = None, served: float = 1.0) -> None:
        super().__init__()
        self.n_items, self.size = n_items, size
        self.sparse = False
        self.register_buffer("served", torch.tensor(served))
        self.register_buffer("prior", torch.zeros(n_items) if prior is None else prior)

    @property
    def withheld(self) -> Tensor:
        """The part of the priors that is not in the scores, ``[I]``."""
        return (1 - self.served) * self.prior

    def forward(self, items: Tensor) -> Tensor:
        """Embed ids ``[...]`` as ``[..., C]``; padding is embedded as zeros."""
        raise NotImplementedError

    def scores(self, states: Tensor, taken: Taken | None = None) -> Tensor:
        """Scores of all items, ``[N, C]`` to ``[N, I]``."""
        raise NotImplementedError

    def scores_of(self, states: Tensor, items: Tensor, taken: Taken | None = None) -> Tensor:
        """Scores of some items for each state: ids ``[N, K]`` to ``[N, K]``."""
        raise NotImplementedError

    def log_probability(self, states: Tensor, items: Tensor, taken: Taken | None = None) -> Tensor:
        """Log-probability of one item for each state among all items, with all priors: ids ``[N]`` to ``[N]``."""
        raise NotImplementedError

    def top_k(self, states: Tensor, k: int, taken: Taken | None = None) -> TopK:
        """The k best items of each state, ``[N, C]``; k is at most I - 1."""
        raise NotImplementedError

    def embeddings(self) -> list[Tensor]:
        """The parameters that have a row for each item."""
        raise NotImplementedError

    def start_from(self, rows: Tensor) -> None:
        """Become the table that is closest to given embeddings, ``[I, C]``, by least squares."""
        raise NotImplementedError

    def encode(self) -> bool:
        """Make the rows what is kept of them, where that is less than was trained; whether it is."""
        return False

    def coded_embeddings(self) -> list[CodedEmbedding]:
        """Those whose rows `encode` makes codes."""
        return []

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        """Beside codes the priors are large: items that occur as often have the same, so which one is a byte or two."""
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if any(embedding.codes for embedding in self.coded_embeddings()):
            values, index = self.prior.unique(return_inverse=True)
            if len(values) < 2**15:
                del destination[f"{prefix}prior"]
                destination[f"{prefix}prior_values"] = values
                destination[f"{prefix}prior_index"] = index.to(torch.uint8 if len(values) <= 2**8 else torch.int16)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        _unpack_prior(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def train_codebooks(self) -> list[Tensor]:
        """Train codebooks in place of rows from now on, as `CodedEmbedding` has it; the codebooks."""
        return [book for embedding in self.coded_embeddings() for book in embedding.train_codebooks()]

    def parameter_count(self) -> int:
        """Trainable parameters; of what is kept as codes, the parameters of four bytes that its file holds."""
        trainable = sum(parameter.numel() for parameter in self.parameters() if parameter.requires_grad)
        return trainable - sum(embedding.saved for embedding in self.coded_embeddings())


def with_one(states: Tensor) -> Tensor:
    """States with a channel that is 1, for matrices of items whose last column is their prior, ``[N, C + 1]``."""
    return F.pad(states, (0, 1), value=1.0)


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
        std: float = _STD,
        prior: Tensor | None = None,
        served: float = 1.0,
        blocks: Blocks | None = None,
        counts: Tensor | None = None,
    ) -> None:
        super().__init__(n_items, size, prior, served)
        self.cut, self._by_popularity = blocks, by_popularity(n_items, counts)
        self.embedding: nn.Embedding = CodedEmbedding(n_items + extra, size, padding_idx=0)  # or one of RecBole's own
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
        """What scores states that end `with_one`: embeddings and, last, priors, ``[I, C + 1]``."""
        return torch.cat([self.items, self.prior[:, None]], 1)

    def rows(self, items: Tensor) -> Tensor:
        """Those of some items, ``[K]`` to ``[K, C + 1]``; the gradient of `matrix` would be that of all rows."""
        return torch.cat([self.embedding(items), self.prior[items, None]], 1)

    def forward(self, items: Tensor) -> Tensor:
        return self.embedding(items)

    def scores(self, states: Tensor, taken: Taken | None = None) -> Tensor:
        scores = F.linear(states, self.items, self.served * self.prior)
        return scores if taken is None else taken.add_to(scores)

    def scores_of(self, states: Tensor, items: Tensor, taken: Taken | None = None) -> Tensor:
        scores = (self(items) @ states[:, :, None]).squeeze(2) + self.served * self.prior[items]
        return scores if taken is None else scores + taken.among(items)

    def log_probability(self, states: Tensor, items: Tensor, taken: Taken | None = None) -> Tensor:
        logits = F.linear(states, self.items, self.prior)
        logits = (logits if taken is None else taken.add_to(logits))[:, 1:]
        return logits.gather(1, items[:, None] - 1).squeeze(1) - logits.logsumexp(1)

    @torch.no_grad()
    def top_k(self, states: Tensor, k: int, taken: Taken | None = None) -> TopK:
        ids = torch.arange(1, self.n_items, device=states.device)
        found = [_best(row, ids, k) for row in self.scores(states, taken)[:, 1:]]
        return TopK(torch.stack([items for items, _ in found]), torch.stack([scores for _, scores in found]), 1.0)

    def embeddings(self) -> list[Tensor]:
        return [self.embedding.weight]

    @torch.no_grad()
    def start_from(self, rows: Tensor) -> None:
        self.items.copy_(rows)

    def encode(self) -> bool:
        if self.cut is None or not self.cut.codes:
            return False
        for embedding in self.coded_embeddings():
            embedding.encode(self.cut.codes, self.cut.sizes, self._by_popularity.to(embedding.weight.device))
        return True

    def coded_embeddings(self) -> list[CodedEmbedding]:
        return [self.embedding] if isinstance(self.embedding, CodedEmbedding) else []

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for embedding in self.coded_embeddings():
            if embedding.codes and embedding.order is not None:
                _save_order(destination, prefix, embedding.order, self.prior)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        order = state_dict.pop(f"{prefix}embedding.order", None)  # as files had it at first
        order = state_dict.pop(f"{prefix}by_popularity", order)
        super()._load_from_state_dict(state_dict, prefix, *args)
        if f"{prefix}embedding.codes.0" in state_dict:
            order = by_popularity(self.n_items, self.prior) if order is None else order
            for embedding in self.coded_embeddings():  # whose own state comes after this
                embedding.order = order.long()


def _unpack_prior(state_dict: dict[str, Any], prefix: str) -> None:
    """Put the priors of a state back as they are without codes, unless they are so already."""
    if f"{prefix}prior_index" in state_dict:
        index = state_dict.pop(f"{prefix}prior_index").long()
        state_dict[f"{prefix}prior"] = state_dict.pop(f"{prefix}prior_values")[index]


def _save_order(destination: dict[str, Any], prefix: str, order: Tensor, prior: Tensor) -> None:
    """Keep an order by popularity in a state, unless that of the priors, which are in it too, is the same."""
    if not torch.equal(order.long(), by_popularity(len(prior), prior)):
        destination[f"{prefix}by_popularity"] = order.to(torch.int16 if len(prior) <= 2**15 else torch.int)


def by_popularity(n_items: int, counts: Tensor | None) -> Tensor:
    """Ids without padding, those that occur most often first, of equal ones the smaller first, int64 ``[I - 1]``."""
    if counts is None:
        return torch.arange(1, n_items)
    return counts[1:].argsort(descending=True, stable=True) + 1


class Blocks(NamedTuple):
    """How a catalog is cut: items and width of each block, the most popular items first.

    After training, the rows of each block become codes of so many channels (`item_codes`), if that is given.
    """

    sizes: tuple[int, ...]
    widths: tuple[int, ...]
    codes: tuple[int, ...] = ()


class AdaptiveItemTable(ItemTable):
    """Blocks of items, narrower or coarser from head to tail, under a softmax of two levels.

    An item x of block j has the row ``E_j[x]`` of d_j channels; its embedding is ``E_j[x] W_j``, and its logit within
    the block, for a state h, the product of both and its prior. The first level is a softmax over the items of the
    head and one entry for each tail block, the second one within a block: ``log p(x) = log p(block) + log p(x |
    block)``. Scores are log-probabilities, less the part of the prior that is not served.

    With codes, `encode` comes after training: each row becomes the nearest that codes of its block can say, and the
    state holds these codes in place of the rows (`CodedEmbedding`). Codes that are fixed before training were tried and
    are worse: a student of Beauty then has a validation NDCG@10 of .0555 after its first epoch and .0475 after its
    twelfth.

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
        _save_order(destination, prefix, self.by_popularity, self.prior)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        _unpack_prior(state_dict, prefix)
        if f"{prefix}prior" in state_dict:
            order = by_popularity(self.n_items, state_dict[f"{prefix}prior"]).int()
            state_dict.setdefault(f"{prefix}by_popularity", order)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _rows(self, std: float) -> Any:
        cut = zip(self.cut.sizes, self.cut.widths, strict=True)
        return nn.ModuleList(Block(items, width, self.size, std) for items, width in cut)

    def coded_embeddings(self) -> list[CodedEmbedding]:
        both = [self.blocks] if self.output is None else [self.blocks, self.output]
        return [block.embedding for blocks in both for block in blocks]

    def encode(self) -> bool:
        for embedding, channels in zip(self.coded_embeddings(), self.cut.codes * 2, strict=False):
            embedding.encode([channels])
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

    def taken_of(self, taken: Taken, block: int) -> Taken:
        """What of a block was taken, by columns of its logits, counted from 1."""
        column = self.rank[taken.items].long() - self.starts[block] + 1  # padding is behind all blocks
        return Taken(column * ((column > 0) & (column <= self.cut.sizes[block])), taken.bias)

    def first_level(self, states: Tensor, taken: Taken | None = None) -> Tensor:
        """Logits of the head's items, most popular first, and of the tail blocks, ``[N, n_0 + J]``."""
        return torch.cat([self._logits(0, states, taken), self.entries(states)], 1)

    def _logits(self, block: int, states: Tensor, taken: Taken | None) -> Tensor:
        logits: Tensor = self.scored_blocks[block].logits(states)
        return logits if taken is None else self.taken_of(taken, block).add_to(logits, first=1)

    def _within(self, block: int, states: Tensor, taken: Taken | None) -> Tensor:
        """Log-probability of a block's items among themselves, ``[N, n_j]``."""
        return self._logits(block, states, taken).log_softmax(1)

    def scores(self, states: Tensor, taken: Taken | None = None) -> Tensor:
        of_head, of_blocks = self._split(self.first_level(states, taken).log_softmax(1))
        parts = [of_head]
        parts += [of_blocks[:, j - 1 : j] + self._within(j, states, taken) for j in range(1, len(self.blocks))]
        padding = of_head.new_full((len(states), 1), -torch.inf)
        return torch.cat([*parts, padding], 1).index_select(1, self.rank) - self.withheld

    def _split(self, first: Tensor) -> tuple[Tensor, Tensor]:
        head = self.cut.sizes[0]
        return first[:, :head], first[:, head:]

    def scores_of(self, states: Tensor, items: Tensor, taken: Taken | None = None) -> Tensor:
        return self._log_probabilities(states, items, taken) - self.withheld[items]

    def _log_probabilities(self, states: Tensor, items: Tensor, taken: Taken | None) -> Tensor:
        """Of some items for each state: ids ``[N, K]`` to ``[N, K]``."""
        of_head, of_blocks = self._split(self.first_level(states, taken).log_softmax(1))
        found = of_head.new_full((items.numel(),), -torch.inf)
        for j, (where, rows) in enumerate(self.places(items)):
            of_state = where // items.shape[1]
            if j == 0:
                found = found.index_copy(0, where, of_head[of_state, rows])
            elif len(where):
                needed, state = of_state.unique(return_inverse=True)
                within = self._within(j, states[needed], None if taken is None else taken.of(needed))
                found = found.index_copy(0, where, of_blocks[of_state, j - 1] + within[state, rows])
        return found.view_as(items)

    def log_probability(self, states: Tensor, items: Tensor, taken: Taken | None = None) -> Tensor:
        return self._log_probabilities(states, items[:, None], taken).squeeze(1)

    @torch.no_grad()
    def top_k(self, states: Tensor, k: int, taken: Taken | None = None) -> TopK:
        """The k best items of each state without scoring those that cannot be among them.

        No item of a block is more probable than ``p(block)`` times the largest ``p(x | block)`` that the extent of the
        block's rows allows (`_Bound`), and none has more withheld than the one of which the least is; a block whose
        bound is below the k-th best found so far is left out.
        """
        withheld = 1 - self.served  # of each prior
        of_head, of_blocks = self._split(self.first_level(states, taken).log_softmax(1))
        of_head = of_head - withheld * self.scored_blocks[0].prior
        bounds = []
        for j, bound in enumerate(self._tail_bounds()):
            own = None if taken is None else self.taken_of(taken, j + 1)
            bounds.append(of_blocks[:, j] + bound.highest(states, own) - withheld * bound.least_prior)
        found = [_best(row, self.ids(0), k) for row in of_head]
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
            of_needed = None if taken is None else taken.of(torch.tensor(needed, device=states.device))
            within = of_blocks[needed, j - 1 : j] + self._within(j, states[needed], of_needed)
            within -= withheld * self.scored_blocks[j].prior
            scored += len(needed) * self.cut.sizes[j]
            for n, row in zip(needed, within, strict=True):
                items, scores = _best(row, ids, k)
                found[n] = _best(torch.cat([found[n][1], scores]), torch.cat([found[n][0], items]), k)
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
        return [embedding.weight for embedding in self.coded_embeddings()]

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
        self.embedding = CodedEmbedding(items, width)
        self.projection = nn.Linear(width, size, bias=False) if width < size else None
        if self.projection is not None:
            nn.init.normal_(self.embedding.weight, std=std)
            nn.init.normal_(self.projection.weight, std=width**-0.5)
        else:
            nn.init.normal_(self.embedding.weight, std=_STD)

    def forward(self, rows: Tensor) -> Tensor:
        """Embeddings of some rows, ``[M]`` to ``[M, C]``."""
        embedded = self.embedding(rows)
        return embedded if self.projection is None else self.projection(embedded)

    def narrow(self, states: Tensor) -> Tensor:
        """States as the rows see them, ``[N, C]`` to ``[N, d]``."""
        return states if self.projection is None else states @ self.projection.weight

    @property
    def matrix(self) -> Tensor:
        """What scores narrow states that end `with_one`: rows and, last, priors, ``[n, d + 1]``."""
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

    def highest(self, states: Tensor, taken: Taken | None = None) -> Tensor:
        """The bound for each state, ``[N]``, at most 0; `taken` by columns of the block."""
        u = with_one(self.block.narrow(states))
        of_channels = u.clamp(min=0) @ self.high + u.clamp(max=0) @ self.low
        above_mean = torch.minimum(of_channels, u.norm(dim=1) * self.radius)  # of a logit, at most
        if taken is None or taken.bias > 0:
            gained = 0.0 if taken is None else taken.bias
            return (above_mean + gained - math.log(self.rows)).clamp(max=0)
        there = taken.items != 0
        column = (taken.items - 1).clamp_min(0)
        rows = torch.cat([self.block.embedding(column), self.block.prior[column][..., None]], -1)  # [N, L, d + 1]
        of_taken = (rows @ u[:, :, None]).squeeze(2) - (u @ self.mean)[:, None]  # above that of the mean
        others = self.rows - there.sum(1)
        below = (of_taken * there).sum(1) / others.clamp_min(1)  # how far m' is below m
        bound = above_mean + below - others.clamp_min(1).log()
        return torch.where(others > 0, bound, 0.0).clamp(max=0)


def _best(scores: Tensor, ids: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Ids and scores of the k best of some items, or of all if there are fewer; of equal ones the smaller ids."""
    if len(scores) > k:
        chosen = (scores >= scores.topk(k).values[-1]).nonzero().squeeze(1)
        scores, ids = scores[chosen], ids[chosen]
    order = ids.argsort()
    order = order[scores[order].argsort(descending=True, stable=True)][:k]
    return ids[order], scores[order]


# ---------------------------------------------------------------------- from a configuration


def item_table(config: Any, dataset: Any, n_items: int, size: int, limit: int | None = None) -> ItemTable:
    """The item table that a configuration asks for.

    Parameters
    ----------
    config : recbole.config.Config
        ``item_table``, ``popularity_prior``, ``served_prior``, ``item_blocks``, ``item_block_growth``,
        ``item_widths``, ``item_width_factor``, ``item_codes``, ``item_levels``, ``item_output``.
    dataset : WindowDataset
        The training part, whose items are counted; a model that is rebuilt from its file has none.
    n_items, size : int
        I and C.
    limit : int, optional
        Parameters that an adaptive one should have at most, see `cut_blocks`.

    Raises
    ------
    AdaRecError
        If the blocks do not fit the catalog.
    """
    if config["item_table"] != "adaptive":
        return full_table(config, dataset, n_items, size)
    blocks = cut_blocks(config, n_items - 1, size, limit)
    counts = _training_counts(dataset, n_items)
    tied = config["item_output"] == "tied"
    if limit is not None and counts is not None and (found := table_parameters(blocks, size, tied)) > limit:
        getLogger().warning(
            f"total_budget: it leaves {limit} parameters for the {n_items - 1} items, and no blocks have so few; "
            f"theirs have {found}, so the model is above it; a larger one, or layers that share more, would fit"
        )
    priors = _priors(config, dataset, n_items)
    if _levels(config, n_items, size, blocks, tied) == 1:
        return FullItemTable(n_items, size, **priors, blocks=blocks, counts=counts)
    return AdaptiveItemTable(n_items, size, blocks, counts, tied, **priors)


def _levels(config: Any, n_items: int, size: int, blocks: Blocks, tied: bool) -> int:
    """Levels of the softmax over items of an adaptive table: the one that is asked for, or that suits the catalog.

    Two cost less with many items, and the best of them are found without scoring all; one is better. Measured with a
    student of Beauty, test NDCG@10 of .0526 on two and .0539 on one; of ml-1m-tail .1267 and .1317.
    """
    can_have_one = tied and set(blocks.widths) == {size}
    levels = config["item_levels"]
    if levels == 1 and not can_have_one:
        raise AdaRecError(
            f"item_levels: 1 is for rows of {size} channels that embed items and score them, these have "
            f"{list(blocks.widths)} and item_output is {config['item_output']}; give --item_levels=2, or codes instead "
            "of narrow rows"
        )
    if levels is not None:
        return int(levels)
    return 1 if can_have_one and n_items <= _LARGEST_OF_ONE_LEVEL else 2


def full_table(config: Any, dataset: Any, n_items: int, size: int, extra: int = 0) -> FullItemTable:
    """A full table with the priors that a configuration asks for; parameters as of `item_table` and `FullItemTable`."""
    return FullItemTable(n_items, size, extra, **_priors(config, dataset, n_items))


def _priors(config: Any, dataset: Any, n_items: int) -> dict[str, Any]:
    """What both tables take; without a ``served_prior`` all of it is in the scores until validation has chosen."""
    served = 1.0 if config["served_prior"] is None else float(config["served_prior"])
    return {"prior": popularity_prior(config, dataset, n_items), "served": served}


def popularity_prior(config: Any, dataset: Any, n_items: int) -> Tensor | None:
    """``popularity_prior`` times the logarithm of one more than each item's occurrences, less its mean, ``[I]``.

    None for a model that is rebuilt from its file: there the prior comes with the weights.
    """
    counts, weight = _training_counts(dataset, n_items), config["popularity_prior"]
    if counts is None or not weight:
        return None
    prior = weight * (counts + 1).log()
    prior -= prior[1:].mean()
    prior[0] = 0
    return prior


def _training_counts(dataset: Any, n_items: int) -> Tensor | None:
    if isinstance(dataset, SequenceDataset) and not isinstance(dataset, WindowDataset):
        raise AdaRecError(
            "popularity is counted in the training part alone; give the model train_data._dataset, not the whole "
            "dataset"
        )
    return item_counts(dataset, n_items) if isinstance(dataset, WindowDataset) else None


def cut_blocks(config: Any, items: int, size: int, limit: int | None = None) -> Blocks:
    """Sizes and widths of the blocks of a catalog.

    ``item_blocks`` is their number, each ``item_block_growth`` times as large as the one before, or a list of where
    the blocks after the first begin: ranks by popularity, or shares of the catalog below 1. ``item_widths`` lists
    their channels, or they fall from C by ``item_width_factor``, and ``item_codes`` gives the channels of a code.

    Without any of these all rows have C channels, and codes as fine as `limit` allows (`_finest`), or none if none
    are needed. With ``item_codes: 0``, or where codes do not fit, rows are as wide as it allows (`_widest`). Without
    a limit, or where nothing fits it, the factor is 2: all blocks cost the same.

    Codes keep more than narrow rows. Measured with trained models whose tables were cut afterwards, validation
    NDCG@10: a NextItNet of Beauty, .0649 with 774,528 parameters in its table, has .0532 to .0553 in six cuts by
    truncated SVD to 256 to 259 thousand; a student of Beauty, .0693 with 387,232, has .0689 in 98 thousand as codes of
    one channel, .0684 in 60 thousand as codes of 1, 1, 2 and 2. How narrow rows are cut matters less: a NextItNet of
    ml-1m-tail, .1331 with 218,432, has .1315 to .1328 in eight cuts to 122 to 125 thousand (2 to 4 blocks, growth 1 to
    3, the head in 40 to 64 channels), and .1183 to .1205 in five to 60 thousand.

    Raises
    ------
    AdaRecError
        Names the key, and what would be right.
    """
    asked = config["item_blocks"]
    if isinstance(asked, int):
        parts = [float(config["item_block_growth"]) ** j for j in range(asked)]
        shares = [sum(parts[: j + 1]) / sum(parts) for j in range(asked - 1)]
        ends = [max(round(share * items), j + 1) for j, share in enumerate(shares)]
    else:
        ends = [round(end * items) if end < 1 else int(end) for end in asked]
    ends = [0, *ends, items]
    sizes = tuple(end - start for start, end in zip(ends, ends[1:], strict=False))
    if min(sizes) < 1 or len(sizes) < 2:
        raise AdaRecError(
            f"item_blocks: {asked!r} cuts the {items} items of this catalog into blocks of {list(sizes)}; there are "
            "at least two, of at least one item each: give fewer blocks, or boundaries that rise within the catalog"
        )
    widths, factor, codes = config["item_widths"], config["item_width_factor"], config["item_codes"]
    codes = (codes,) * len(sizes) if isinstance(codes, int) and codes else codes
    tied = config["item_output"] == "tied"
    if widths is None and factor is None and limit is not None:
        if codes is None:
            codes = _finest(sizes, size, limit, tied)
        widths = (size,) * len(sizes) if codes else _widest(sizes, size, limit, tied)
    codes = tuple(codes or ())
    if codes and (len(codes) != len(sizes) or not all(isinstance(c, int) and 1 <= c <= size for c in codes)):
        raise AdaRecError(
            f"item_codes: {config['item_codes']!r} for {len(sizes)} blocks and {size} channels; give a number from 1 "
            f"to {size}, or {len(sizes)} of them; 0 for none"
        )
    if widths is None:
        widths = _falling(size, 2.0 if factor is None else factor, len(sizes))
    if len(widths) != len(sizes) or not all(1 <= width <= size for width in widths):
        raise AdaRecError(
            f"item_widths: {widths!r} for {len(sizes)} blocks and {size} channels; give {len(sizes)} widths from 1 to "
            f"{size}"
        )
    return Blocks(sizes, tuple(widths), codes)


def _falling(size: float, factor: float, blocks: int) -> tuple[int, ...]:
    return tuple(max(round(size / factor**j), 1) for j in range(blocks))


def _finest(sizes: tuple[int, ...], size: int, limit: int, tied: bool) -> tuple[int, ...] | None:
    """Channels of the codes of each block, as few as `limit` allows; none where rows of C channels need no codes.

    What codes lose matters as often as an item is wanted, taken as the inverse of its rank behind as many more as the
    head has (Zipf and Mandelbrot; so four blocks, each twice the one before, have a quarter each, where they have .25,
    .30, .30 and .14 of the targets of ml-1m-tail, .38, .23, .20 and .18 of those of Beauty). Codes become coarser where
    the least is lost for what it saves. A code of s channels has 8/s bits for each, and loses about 4^(-8/s) of a row
    (Gersho and Gray, Vector Quantization and Signal Compression, 1992, chapter 5). Measured on a student of ml-1m-tail,
    validation NDCG@10 of .1384: codes of 2, 2, 4 and 6 channels .1306, of 3, 3, 4 and 4, as large together, .1287.
    """
    if table_parameters(Blocks(sizes, (size,) * len(sizes)), size, tied) <= limit:
        return ()
    ends = [math.log(sum(sizes[:j]) + sizes[0]) for j in range(len(sizes) + 1)]
    wanted = [end - start for start, end in zip(ends, ends[1:], strict=False)]
    channels = [each for each in _CHANNELS if each <= size]
    level = [0] * len(sizes)

    def changed(j: int, by: int) -> list[int]:
        return [of + by * (j == k) for k, of in enumerate(level)]

    def parameters(of: list[int]) -> int:
        codes = tuple(channels[each] for each in of)
        return table_parameters(Blocks(sizes, (size,) * len(sizes), codes), size, tied)

    def lost(of: list[int]) -> float:
        return sum(share * 4 ** (-8 / channels[each]) for share, each in zip(wanted, of, strict=True))

    def lost_for_saved(of: list[int]) -> float:
        return (lost(of) - lost(level)) / (parameters(level) - parameters(of))

    while parameters(level) > limit:
        coarser = [changed(j, 1) for j, of in enumerate(level) if of + 1 < len(channels)]
        coarser = [of for of in coarser if parameters(of) < parameters(level)]
        if not coarser:
            return None
        level = min(coarser, key=lost_for_saved)
    # The last step may have saved more than it had to.
    while finer := [of for j, old in enumerate(level) if old and parameters(of := changed(j, -1)) <= limit]:
        level = min(finer, key=lost)
    return tuple(channels[of] for of in level)


def _widest(sizes: tuple[int, ...], size: int, limit: int, tied: bool) -> tuple[int, ...] | None:
    """The widest blocks of at most `limit` parameters: a factor from 1 to 2, and beyond that a narrower head."""
    shapes = [(size, 1 + step / 100) for step in range(101)] + [(size * step / 100, 2.0) for step in range(99, 0, -1)]
    for top, factor in shapes:
        widths = _falling(top, factor, len(sizes))
        if table_parameters(Blocks(sizes, widths), size, tied) <= limit:
            return widths
    return None


def table_parameters(blocks: Blocks, size: int, tied: bool) -> int:
    """Parameters of an `AdaptiveItemTable`, encoded if it has codes."""
    codes = blocks.codes or (0,) * len(blocks.sizes)
    of_blocks = sum(
        (codes_parameters(n, d, c) if c else n * d) + (d * size if d < size else 0)
        for n, d, c in zip(blocks.sizes, blocks.widths, codes, strict=True)
    )
    return of_blocks * (1 if tied else 2) + (len(blocks.sizes) - 1) * (size + 1)
