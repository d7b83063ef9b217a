"""SASRec: causal self-attention."""

from __future__ import annotations

from recbole_adarec.model.teachers.base import teacher
from recbole_adarec.model.teachers.stack import StackTeacher


@teacher("SASRec")
class SASRecTeacher(StackTeacher):
    """SASRec (Kang and McAuley, ICDM 2018, arXiv 1808.09781): causal self-attention with position embeddings.

    The model is causal: it is trained and distilled at every position. Each transformer layer can be distilled.
    Sequences are padded on the right, so the causal mask also hides the padding from the items.

    Parameters and errors as `StackTeacher`.
    """
