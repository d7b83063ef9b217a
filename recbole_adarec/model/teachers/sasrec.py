"""SASRec: causal self-attention."""

from __future__ import annotations

from typing import Any

from recbole_adarec.model.teachers.base import teacher
from recbole_adarec.model.teachers.stack import StackTeacher, TransformerLayer


@teacher("SASRec")
class SASRecTeacher(StackTeacher):
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
        super().__init__(config, dataset, TransformerLayer, positions=config["MAX_ITEM_LIST_LENGTH"])
