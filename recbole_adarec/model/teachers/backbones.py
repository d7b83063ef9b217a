"""The backbones of teachers: NextItNet, SASRec and BERT4Rec."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recbole_adarec.errors import AdaRecError
from recbole_adarec.model.base import Encoding
from recbole_adarec.model.item_table.build import full_table
from recbole_adarec.model.residual_blocks import hidden_states, residual_blocks
from recbole_adarec.model.seen_items import deduplicated
from recbole_adarec.model.teachers.base import AdaRecTeacher, prefix_ends, teacher


@teacher("NextItNet")
class NextItNetTeacher(AdaRecTeacher):
    """NextItNet (Yuan et al., WSDM 2019, arXiv 1808.05163): a stack of dilated causal convolutions.

    A residual block has two causal convolutions with dilations d and 2d, see
    `recbole_adarec.model.residual_blocks.ResidualBlock`. The model is causal: it is trained and distilled at every
    position. Each residual block is a layer that can be distilled.

    Parameters
    ----------
    config : recbole.config.Config
        The keys of `AdaRecTeacher`; ``block_num`` and ``dilations`` (the stack has a block for each dilation,
        ``block_num`` times), ``kernel_size``, and ``layer_sharing`` (see `residual_blocks`).
    dataset : recbole.data.dataset.Dataset
        Provides the number of items and their counts.

    Raises
    ------
    AdaRecError
        If ``distilled_layers`` exceeds the number of blocks.
    """

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        self.item_table = full_table(config, dataset, self.n_items, self.hidden_size)
        self.blocks = residual_blocks(config)
        self.check_depth(len(self.blocks))

    def encode(self, item_seq: Tensor) -> Encoding:
        """Hidden states of sequences of item ids ``[B, L]``; see `AdaRecTeacher`."""
        embedding = self.dropout(self.item_table(item_seq))
        hidden = hidden_states(self.blocks, embedding)
        return Encoding(embedding, self.distilled(hidden), self.dropout(hidden[-1]))


class _TransformerTeacher(AdaRecTeacher):
    """Item and learned position embeddings under a stack of torch's transformer encoder layers.

    With ``norm_first: true`` (pre-norm, as in SASRec, section 3.2) each layer normalises the input of its attention and
    of its feed-forward network, and the output of the last layer is normalised as well. Without it eight layers hardly
    train. With ``norm_first: false`` (post-norm, as in BERT4Rec's paper) each layer normalises its residual sums.

    Parameters
    ----------
    config : recbole.config.Config
        The keys of `AdaRecTeacher`; ``n_layers``, ``n_heads``, ``inner_size``, ``hidden_act`` and ``norm_first``.
    dataset : recbole.data.dataset.Dataset
        Provides the number of items and their counts.
    extra_items : int
        Number of special items, such as a mask, after the I items.
    positions : int
        Number of position embeddings.

    Raises
    ------
    AdaRecError
        If ``distilled_layers`` exceeds ``n_layers``, ``n_heads`` does not divide ``hidden_size``, or ``layer_sharing``
        is set.
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
        norm_first = bool(config["norm_first"])  # missing in model files that are older than the key
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
        """Hidden states of item ids ``[B, L]``.

        Parameters
        ----------
        item_seq : Tensor
            Right-padded item ids, int64 ``[B, L]``.
        **masks
            Masks of ``nn.TransformerEncoderLayer``, True for positions that are not attended to.
        """
        x = embedding = self.dropout(self.norm(self.item_table(item_seq) + self.positions[: item_seq.shape[1]]))
        hidden = []
        for layer in self.layers:
            x = layer(x, **masks)
            hidden.append(x)
        return Encoding(embedding, self.distilled(hidden), self.last_norm(x))


@teacher("SASRec")
class SASRecTeacher(_TransformerTeacher):
    """SASRec (Kang and McAuley, ICDM 2018, arXiv 1808.09781): causal self-attention with position embeddings.

    The model is causal: it is trained and distilled at every position. Each transformer layer can be distilled.
    Sequences are padded on the right, so the causal mask also hides the padding from the items.

    Parameters
    ----------
    config : recbole.config.Config
        The keys of `AdaRecTeacher`; ``n_layers``, ``n_heads``, ``inner_size``, ``hidden_act`` and ``norm_first``.
    dataset : recbole.data.dataset.Dataset
        Provides the number of items and their counts.

    Raises
    ------
    AdaRecError
        If ``distilled_layers`` exceeds ``n_layers``, ``n_heads`` does not divide ``hidden_size``, or ``layer_sharing``
        is set.
    """

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset, extra_items=0, positions=config["MAX_ITEM_LIST_LENGTH"])

    def encode(self, item_seq: Tensor) -> Encoding:
        """Hidden states of sequences of item ids ``[B, L]``; see `AdaRecTeacher`."""
        length = item_seq.shape[1]
        future = torch.ones(length, length, dtype=torch.bool, device=item_seq.device).triu(1)
        return self.transform(item_seq, src_mask=future)


@teacher("BERT4Rec")
class BERT4RecTeacher(_TransformerTeacher):
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
        If ``distilled_layers`` exceeds ``n_layers``, ``n_heads`` does not divide ``hidden_size``, or ``layer_sharing``
        is set.
    """

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset, extra_items=1, positions=config["MAX_ITEM_LIST_LENGTH"] + 1)
        self.mask_item = self.n_items
        self.mask_ratio: float = config["mask_ratio"]
        self.last_mask_ratio: float = config["last_mask_ratio"]
        self.taught_positions: int = config["taught_positions"]

    def encode(self, item_seq: Tensor) -> Encoding:
        """Bidirectional hidden states of sequences of item ids ``[B, L]``, which may contain the mask item."""
        return self.transform(item_seq, src_key_padding_mask=item_seq == 0)

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
