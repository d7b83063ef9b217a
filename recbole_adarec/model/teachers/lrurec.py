"""LRURec: linear recurrent units."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from recbole_adarec.model.linear_recurrence import LinearRecurrence
from recbole_adarec.model.teachers.base import teacher
from recbole_adarec.model.teachers.stack import StackTeacher, TransformerLayer


class RecurrentLayer(TransformerLayer):
    """A linear recurrence in the place of self-attention."""

    def build_mixing(self, config: Any) -> None:
        """Build the recurrence."""
        self.recurrence = LinearRecurrence(config["hidden_size"])

    def mix(self, x: Tensor, keys: Tensor | None) -> Tensor:
        """The recurrence; it sees earlier positions only."""
        return self.recurrence(x)


@teacher("LRURec")
class LRURecTeacher(StackTeacher):
    """LRURec (Yue et al., WSDM 2024, arXiv 2310.02367): linear recurrences, without position embeddings.

    The model is causal: it is trained and distilled at every position. Each layer can be distilled.

    Parameters and errors as `StackTeacher`.
    """

    layer, has_positions = RecurrentLayer, False
