"""CausalBSARec: self-attention beside a low-pass filter that sees no later item."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from recbole_adarec.model.causal_filter import CausalFilter
from recbole_adarec.model.teachers.base import teacher
from recbole_adarec.model.teachers.stack import StackTeacher, TransformerLayer


class FilterLayer(TransformerLayer):
    """A filter and self-attention side by side, then a feed-forward network, ``[B, L, C]`` to ``[B, L, C]``.

    With alpha the share of the filter, the norms after the sums and z the input (BSARec, equations 5 and 9):

        y = alpha LN(z + filter(z)) + (1 - alpha) LN(z + attention(z)),    LN(y + FFN(y))

    With ``norm_first``, and n = LN(z):

        y = z + alpha filter(n) + (1 - alpha) attention(n),                y + FFN(LN(y))

    A part without weight is not built.

    Parameters
    ----------
    config : recbole.config.Config
        ``filter_weight``, which is alpha, and the keys of `TransformerLayer`.
    """

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        if self.both and not self.norm_first:
            self.norm_filter = nn.LayerNorm(config["hidden_size"])

    def build_mixing(self, config: Any) -> None:
        self.alpha: float = config["filter_weight"]
        self.both = 0 < self.alpha < 1
        if self.alpha > 0:
            self.filter = CausalFilter(config["hidden_size"])
        if self.alpha < 1:
            super().build_mixing(config)

    def mix(self, x: Tensor, keys: Tensor | None) -> Tensor:
        """Filter and attention, weighted."""
        if self.both:
            return self.alpha * self.filter(x) + (1 - self.alpha) * self.self_attn(x, keys)
        return self.filter(x) if self.alpha > 0 else self.self_attn(x, keys)

    def forward(self, x: Tensor, keys: Tensor | None = None) -> Tensor:
        if self.norm_first or not self.both:
            return super().forward(x, keys)
        filtered = self.norm_filter(x + self.dropout(self.filter(x)))
        attended = self.norm1(x + self.dropout(self.self_attn(x, keys)))
        y = self.alpha * filtered + (1 - self.alpha) * attended
        return self.norm2(y + self.feed_forward(y))


@teacher("CausalBSARec")
class CausalBSARecTeacher(StackTeacher):
    """BSARec (Shin et al., AAAI 2024, arXiv 2312.10325) with a causal filter, see `FilterLayer` and `CausalFilter`.

    The model is causal: it is trained and distilled at every position. Each layer can be distilled.

    Parameters and errors as `StackTeacher`.
    """

    layer = FilterLayer
