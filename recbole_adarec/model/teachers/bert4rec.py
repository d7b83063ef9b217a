"""BERT4Rec: bidirectional self-attention."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from recbole_adarec.errors import AdaRecError
from recbole_adarec.model.base import Encoding
from recbole_adarec.model.seen_items import deduplicated
from recbole_adarec.model.teachers.base import prefix_ends, teacher
from recbole_adarec.model.teachers.stack import StackTeacher


@teacher("BERT4Rec")
class BERT4RecTeacher(StackTeacher):
    """BERT4Rec (Sun et al., CIKM 2019, arXiv 1904.06690): bidirectional self-attention, trained to fill masked items.

    A state depends on all items of the input, later ones included. To predict the item after position t, the input is
    the items up to t, followed by the mask item, and the state at the mask is read. Ranking needs one such pass per
    sequence. Distillation needs one per position, so it uses only ``taught_positions`` positions of each window, see
    `prefix_ends`. Training masks the last item of each window and a random ``mask_ratio`` of the others; a share
    ``last_mask_ratio`` of the windows has only its last item masked, as in ranking.

    Parameters
    ----------
    config : recbole.config.Config
        The keys of `AdaRecTeacher`; ``n_layers``, ``n_heads``, ``inner_size``, ``hidden_act``, ``norm_first``,
        ``mask_ratio``, ``last_mask_ratio`` and ``taught_positions``.
    dataset : recbole.data.dataset.Dataset
        Provides the number of items and their counts.

    Attributes
    ----------
    mask_item : int
        Id of the mask item, I.

    Raises
    ------
    AdaRecError
        If ``distilled_layers`` exceeds ``n_layers``, ``n_heads`` does not divide ``hidden_size``, ``layer_sharing`` is
        set, or ``position_embeddings`` is False.
    """

    extra_items = 1  # the mask

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        if self.positions is None:
            raise AdaRecError(
                "position_embeddings: BERT4Rec sees all items at once, and knows their order by these only"
            )
        self.mask_item = self.n_items
        self.mask_ratio: float = config["mask_ratio"]
        self.last_mask_ratio: float = config["last_mask_ratio"]
        self.taught_positions: int = config["taught_positions"]

    def encode(self, item_seq: Tensor) -> Encoding:
        """Bidirectional hidden states of sequences of item ids ``[B, L]``, which may contain the mask item."""
        return self.transform(item_seq, item_seq != 0)

    def append_mask(self, item_seq: Tensor, lengths: Tensor) -> Tensor:
        """The first items of each sequence, followed by the mask item, int64 ``[B, L + 1]``.

        Parameters
        ----------
        item_seq : Tensor
            Right-padded item ids, int64 ``[B, L]``.
        lengths : Tensor
            Number of items of each sequence before the mask, int64 ``[B]``.
        """
        position = torch.arange(item_seq.shape[1] + 1, device=item_seq.device)
        prefix = F.pad(item_seq, (0, 1)) * (position < lengths[:, None])
        return torch.where(position == lengths[:, None], self.mask_item, prefix)

    def last_state(self, item_seq: Tensor, lengths: Tensor) -> Tensor:
        """States at a mask item after each sequence, ``[B, C]``."""
        return self.gather_indexes(self.encode(self.append_mask(item_seq, lengths)).output, lengths)

    def training_states(self, item_seq: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """States at the N masked items of the windows, the masked items, and the seen items.

        A window here is its inputs and its last target together. Seen items are those of the window that are not
        masked, ``[N, L + 1]``. Parameters and results as in `SequenceRecommender.training_states`.
        """
        lengths = (item_seq != 0).sum(1, keepdim=True)
        whole = F.pad(item_seq, (0, 1)).scatter(1, lengths, targets.gather(1, lengths - 1))
        position = torch.arange(whole.shape[1], device=whole.device)
        masked = torch.rand(whole.shape, device=whole.device) < self.mask_ratio
        # Some windows have the mask at their end alone, as in ranking.
        last_only = torch.rand(len(whole), 1, device=whole.device) < self.last_mask_ratio
        masked = torch.where(last_only, position == lengths, masked | (position == lengths)) & (whole != 0)
        states = self.encode(whole.masked_fill(masked, self.mask_item)).output
        window = masked.nonzero(as_tuple=True)[0]
        return states[masked], whole[masked], deduplicated(whole.masked_fill(masked, 0))[window]

    def distillation_targets(self, item_seq: Tensor) -> tuple[Encoding, Tensor]:
        """States at the prefix ends of each window ``[B, L]``, each from a pass over its prefix and a mask item.

        Returns
        -------
        tuple of Encoding and Tensor
            The encoding at the N prefix ends, each tensor ``[N, C]``, and the prefix ends as a bool mask ``[B, L]``.
        """
        ends = prefix_ends(item_seq, self.taught_positions)
        window, position = ends.nonzero(as_tuple=True)
        encoding = self.encode(self.append_mask(item_seq[window], position + 1))
        row = torch.arange(len(window), device=item_seq.device)
        # The embedding is that of the item at the position; layers and output are those at the mask after it.
        return Encoding(
            encoding.embedding[row, position],
            tuple(hidden[row, position + 1] for hidden in encoding.layers),
            encoding.output[row, position + 1],
        ), ends
