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

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recbole_adarec.model.item_table.quantization import QuantizedEmbedding
from recbole_adarec.model.seen_items import SeenItems

ITEM_TABLES = ("full", "adaptive")
ITEM_OUTPUTS = ("tied", "untied")
INIT_STD = 0.02  # of a channel at first


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


class ItemTable(nn.Module):
    """What every item table does.

    Where histories are given as `SeenItems`, their bias is added to the logits of their items, in the softmax in which
    each of them stands.

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
    def unserved_prior(self) -> Tensor:
        """The part of the priors that is not in the scores, ``[I]``."""
        return (1 - self.served) * self.prior

    def forward(self, items: Tensor) -> Tensor:
        """Embed ids ``[...]`` as ``[..., C]``; padding is embedded as zeros."""
        raise NotImplementedError

    def scores(self, states: Tensor, seen: SeenItems | None = None) -> Tensor:
        """Scores of all items, ``[N, C]`` to ``[N, I]``."""
        raise NotImplementedError

    def scores_of(self, states: Tensor, items: Tensor, seen: SeenItems | None = None) -> Tensor:
        """Scores of some items for each state: ids ``[N, K]`` to ``[N, K]``."""
        raise NotImplementedError

    def log_probability(self, states: Tensor, items: Tensor, seen: SeenItems | None = None) -> Tensor:
        """Log-probability of one item for each state among all items, with all priors: ids ``[N]`` to ``[N]``."""
        raise NotImplementedError

    def top_k(self, states: Tensor, k: int, seen: SeenItems | None = None) -> TopK:
        """The k best items of each state, ``[N, C]``; k is at most I - 1."""
        raise NotImplementedError

    def embeddings(self) -> list[Tensor]:
        """The parameters that have a row for each item."""
        raise NotImplementedError

    def start_from(self, rows: Tensor) -> None:
        """Become the table that is closest to given embeddings, ``[I, C]``, by least squares."""
        raise NotImplementedError

    def quantize(self) -> bool:
        """Make the rows what is kept of them, where that is less than was trained; whether it is."""
        return False

    def quantized_embeddings(self) -> list[QuantizedEmbedding]:
        """Those whose rows `encode` makes codes."""
        return []

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        """Beside codes the priors are large: items that occur as often have the same, so which one is a byte or two."""
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if any(embedding.codes for embedding in self.quantized_embeddings()):
            values, index = self.prior.unique(return_inverse=True)
            if len(values) < 2**15:
                del destination[f"{prefix}prior"]
                destination[f"{prefix}prior_values"] = values
                destination[f"{prefix}prior_index"] = index.to(torch.uint8 if len(values) <= 2**8 else torch.int16)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        unpack_prior(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def train_codebooks(self) -> list[Tensor]:
        """Train codebooks in place of rows from now on, as `QuantizedEmbedding` has it; the codebooks."""
        return [book for embedding in self.quantized_embeddings() for book in embedding.train_codebooks()]

    def parameter_count(self) -> int:
        """Trainable parameters; of what is kept as codes, the parameters of four bytes that its file holds."""
        trainable = sum(parameter.numel() for parameter in self.parameters() if parameter.requires_grad)
        return trainable - sum(embedding.saved for embedding in self.quantized_embeddings())


def append_ones(states: Tensor) -> Tensor:
    """States with a channel that is 1, for matrices of items whose last column is their prior, ``[N, C + 1]``."""
    return F.pad(states, (0, 1), value=1.0)


def unpack_prior(state_dict: dict[str, Any], prefix: str) -> None:
    """Put the priors of a state back as they are without codes, unless they are so already."""
    if f"{prefix}prior_index" in state_dict:
        index = state_dict.pop(f"{prefix}prior_index").long()
        state_dict[f"{prefix}prior"] = state_dict.pop(f"{prefix}prior_values")[index]


def save_order(destination: dict[str, Any], prefix: str, order: Tensor, prior: Tensor) -> None:
    """Keep an order by popularity in a state, unless that of the priors, which are in it too, is the same."""
    if not torch.equal(order.long(), by_popularity(len(prior), prior)):
        destination[f"{prefix}by_popularity"] = order.to(torch.int16 if len(prior) <= 2**15 else torch.int)


def by_popularity(n_items: int, counts: Tensor | None) -> Tensor:
    """Ids without padding, those that occur most often first, of equal ones the smaller first, int64 ``[I - 1]``."""
    if counts is None:
        return torch.arange(1, n_items)
    return counts[1:].argsort(descending=True, stable=True) + 1


def best_items(scores: Tensor, ids: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Ids and scores of the k best of some items, or of all if there are fewer; of equal ones the smaller ids."""
    if len(scores) > k:
        chosen = (scores >= scores.topk(k).values[-1]).nonzero().squeeze(1)
        scores, ids = scores[chosen], ids[chosen]
    order = ids.argsort()
    order = order[scores[order].argsort(descending=True, stable=True)][:k]
    return ids[order], scores[order]
