"""The item table: embeds items, and turns a state of the encoder into a softmax over all items.

Two implementations of one interface: `FullItemTable` has one row of C channels for every item; `AdaptiveItemTable` has
blocks whose rows are narrower, or kept as coarser codes, the rarer their items are (CpRec, Sun et al., arXiv
2004.13139, section 3.1).

Each item's logit has an offset, its prior: ``popularity_prior`` times the logarithm of how often the item occurs in the
training data (Menon et al., arXiv 2007.07314, section 4), so that its row need not express how popular it is. At
inference scores may have a part of the prior only, the prior scale (``served_prior``), where the items to find are
rarer than those of the training data. The rest is the unserved prior.

Notes
-----
Measured with the teacher, validation NDCG@10 without a prior, with a prior of 1, and with 0.75 of it in the scores:
Beauty 0.0509, 0.0526, 0.0529, of the rarer half of the targets 0.0111, 0.0113, 0.0137; ml-100k 0.0712, 0.0756, 0.0756;
ml-1m-tail, the first two alone, 0.1010, 0.0995.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recbole_adarec.model.item_table.quantization import QuantizedEmbedding
from recbole_adarec.model.seen_items import SeenItems
from recbole_adarec.storage.weights import few_values

ITEM_TABLES = ("full", "adaptive")
ITEM_OUTPUTS = ("tied", "untied")
INIT_STD = 0.02  # standard deviation of a channel at the random start


class TopK(NamedTuple):
    """The k items with the highest scores for each of N states; of items with equal scores those with smaller ids.

    Attributes
    ----------
    items : Tensor
        Item ids, best first, int64 ``[N, k]``.
    scores : Tensor
        Their scores, ``[N, k]``.
    scored : float
        Share of the catalog that was scored, mean over the states.
    """

    items: Tensor
    scores: Tensor
    scored: float


class TeacherTable(Protocol):
    """A teacher's item table: what distillation reads of it, whether it is an `ItemTable` or a RecBole model's."""

    @property
    def items(self) -> Tensor:
        """Rows that score the teacher's outputs, ``[I, C_t]``."""

    @property
    def matrix(self) -> Tensor:
        """The same rows, each followed by its prior, ``[I, C_t + 1]``."""

    @property
    def unserved_prior(self) -> Tensor:
        """The part of the priors that is not in the scores, ``[I]``."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """Parameters of the table."""

    def parameter_count(self) -> int:
        """Trainable parameters of the table."""


class ItemTable(nn.Module):
    """The interface of an item table.

    Scores rank the items of one state. The padding item 0 is never among the best and has no probability. Where seen
    items are given, their bias is added to the logits of these items, in the softmax in which each of them stands.

    Parameters
    ----------
    n_items : int
        I, the padding item included.
    size : int
        C, channels of states and embeddings.
    prior : Tensor, optional
        Offset of each item's logit, ``[I]``; zeros by default.
    served : float
        Prior scale at inference: the part of the priors that is in the scores, 0 to 1.

    Attributes
    ----------
    prior : Tensor
        ``[I]``.
    served : Tensor
        The prior scale, a scalar.
    sparse : bool
        Whether the gradient holds only the rows that a batch touches.
    starts : list of int
        Ranks by popularity at which the blocks of the softmax begin, and the end, I - 1; one block holds all items
        where the softmax has one level.
    """

    prior: Tensor
    served: Tensor

    def __init__(self, n_items: int, size: int, prior: Tensor | None = None, served: float = 1.0) -> None:
        super().__init__()
        self.n_items, self.size = n_items, size
        self.sparse = False
        self.starts = [0, n_items - 1]
        self.register_buffer("served", torch.tensor(served))
        self.register_buffer("prior", torch.zeros(n_items) if prior is None else prior)

    @property
    def unserved_prior(self) -> Tensor:
        """The part of the priors that is not in the scores, ``[I]``."""
        return (1 - self.served) * self.prior

    @property
    def tail_blocks(self) -> int:
        """J, the blocks of the second level of the softmax; 0 where there is one level."""
        return len(self.starts) - 2

    @property
    def levels(self) -> int:
        """Levels of the softmax, 1 or 2."""
        return 2 if self.tail_blocks else 1

    def ids(self, block: int) -> Tensor:
        """Item ids of a block of the softmax in the order of its logits, int64 ``[n_j]``."""
        raise NotImplementedError

    def seen_in_block(self, seen: SeenItems, block: int) -> SeenItems:
        """The seen items of a block, by columns of its logits, counted from 1."""
        raise NotImplementedError

    def forward(self, items: Tensor) -> Tensor:
        """Embed item ids ``[...]`` as ``[..., C]``; padding is embedded as zeros."""
        raise NotImplementedError

    def scores(self, states: Tensor, seen: SeenItems | None = None) -> Tensor:
        """Ranking scores of all items for each state, ``[N, C]`` to ``[N, I]``: logits, or log-probabilities."""
        raise NotImplementedError

    def scores_of(self, states: Tensor, items: Tensor, seen: SeenItems | None = None) -> Tensor:
        """Scores of K candidates for each state: ids ``[N, K]`` to ``[N, K]``."""
        raise NotImplementedError

    def log_probability(self, states: Tensor, items: Tensor, seen: SeenItems | None = None) -> Tensor:
        """Log-probability of one item for each state among all items, with the whole priors: ids ``[N]`` to ``[N]``."""
        raise NotImplementedError

    def top_k(self, states: Tensor, k: int, seen: SeenItems | None = None) -> TopK:
        """The k items with the highest scores for each state ``[N, C]``; k is at most I - 1."""
        raise NotImplementedError

    def embeddings(self) -> list[Tensor]:
        """The parameters that have a row for each item."""
        raise NotImplementedError

    def start_from(self, rows: Tensor) -> None:
        """Become the table that is closest to given embeddings ``[I, C]`` by least squares."""
        raise NotImplementedError

    def quantize(self) -> bool:
        """Quantize the rows if this table uses codes. Returns whether it did."""
        return False

    def quantized_embeddings(self) -> list[QuantizedEmbedding]:
        """The embeddings whose rows `quantize` replaces by codes."""
        return []

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        """Where rows are codes, priors are saved as `few_values`: as floats they would be large beside the codes."""
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if any(embedding.codes for embedding in self.quantized_embeddings()):
            del destination[f"{prefix}prior"]
            destination.update({f"{prefix}prior{name}": part for name, part in few_values(self.prior).items()})

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        unpack_prior(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def train_codebooks(self) -> list[Tensor]:
        """Train codebooks in place of rows from now on, see `QuantizedEmbedding`. Returns the codebooks."""
        return [book for embedding in self.quantized_embeddings() for book in embedding.train_codebooks()]

    def parameter_count(self) -> int:
        """Trainable parameters; quantized rows count as their file stores them, four bytes to a parameter."""
        trainable = sum(parameter.numel() for parameter in self.parameters() if parameter.requires_grad)
        return trainable - sum(embedding.saved_parameters for embedding in self.quantized_embeddings())


def append_ones(states: Tensor) -> Tensor:
    """States with a last channel of ones, ``[N, C + 1]``, for rows of items that are followed by their priors."""
    return F.pad(states, (0, 1), value=1.0)


def unpack_prior(state_dict: dict[str, Any], prefix: str) -> None:
    """Restore the priors of a state that has their values and an index instead."""
    if f"{prefix}prior_index" in state_dict:
        index = state_dict.pop(f"{prefix}prior_index").long()
        state_dict[f"{prefix}prior"] = state_dict.pop(f"{prefix}prior_values")[index]


def save_order(destination: dict[str, Any], prefix: str, order: Tensor, prior: Tensor) -> None:
    """Add an order by popularity ``[I - 1]`` to a state, unless the priors ``[I]`` in it give the same order."""
    if not torch.equal(order.long(), by_popularity(len(prior), prior)):
        destination[f"{prefix}by_popularity"] = order.to(torch.int16 if len(prior) <= 2**15 else torch.int)


def by_popularity(n_items: int, counts: Tensor | None) -> Tensor:
    """Item ids without padding, most frequent first, of equal ones the smaller id first, int64 ``[I - 1]``.

    `counts` are occurrences ``[I]``; without them the order is that of the ids.
    """
    if counts is None:
        return torch.arange(1, n_items)
    return counts[1:].argsort(descending=True, stable=True) + 1


def best_items(scores: Tensor, ids: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Ids and scores of the k items with the highest scores, best first, of equal ones the smaller id first.

    Parameters
    ----------
    scores, ids : Tensor
        Scores and ids of n items, ``[n]``.
    k : int
        All items are returned where there are fewer.
    """
    if len(scores) > k:
        chosen = (scores >= scores.topk(k).values[-1]).nonzero().squeeze(1)
        scores, ids = scores[chosen], ids[chosen]
    order = ids.argsort()
    order = order[scores[order].argsort(descending=True, stable=True)][:k]
    return ids[order], scores[order]


def top_k_of_all(scores: Tensor, k: int) -> TopK:
    """The k items with the highest scores where all items were scored, ``[N, I]``."""
    ids = torch.arange(1, scores.shape[1], device=scores.device)
    best = [best_items(row, ids, k) for row in scores[:, 1:]]
    return TopK(torch.stack([items for items, _ in best]), torch.stack([row for _, row in best]), 1.0)
