"""A moving average of weights, which is evaluated and stored in their place."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_EVERY = 8  # steps: to average after each would cost as much as the optimizer


class WeightAverage:
    """Moving average of weights over the last part of a training (Izmailov et al., UAI 2018, arXiv 1803.05407).

    It forgets exponentially, the more slowly the longer the training has lasted, so that it can be read at any time.

    Parameters
    ----------
    parameters : sequence of Tensor
        The weights; their values at this time begin the average.
    share : float
        Share of the training so far over which weights are averaged, 0 to 1.

    Attributes
    ----------
    shown : bool
        Whether the parameters hold the average, and not the weights that are trained.

    Notes
    -----
    Measured on Beauty, a CausalBSARec of 12 epochs, validation and test NDCG@10: 0.0716 and 0.0587 with the average and
    a constant learning rate; 0.0708 and 0.0577 with a cosine and no average. On ml-100k 0.1292 and 0.1117; 0.1274 and
    0.1095.
    """

    def __init__(self, parameters: Sequence[Tensor], share: float) -> None:
        self._parameters = [parameter.data for parameter in parameters]
        self._other = [parameter.clone() for parameter in self._parameters]
        self._share, self._steps, self._updates, self.shown = share, 0, 0, False

    def update(self) -> None:
        """Called after each step of the training."""
        self._steps += 1
        if self._steps % _EVERY == 0:
            self._updates += 1
            new = min(1.0, 1 / (self._share * self._updates))
            torch._foreach_lerp_(self._other, self._parameters, new)

    def show(self, shown: bool) -> None:
        """Let the parameters hold the average, or else the weights that are trained."""
        if shown != self.shown:
            for parameter, other in zip(self._parameters, self._other, strict=True):
                held = parameter.clone()
                parameter.copy_(other)
                other.copy_(held)
            self.shown = shown
