"""Keeps the states of batches that are evaluated several times with the same weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from hashlib import blake2b
from typing import Any

from torch import Tensor

_MOST_BYTES = 2**28  # of all states; further ones are computed each time


class KeptStates:
    """States of batches by the name of a model.

    Evaluations that differ in what is added to the scores, a prior or a repeat bias, have all the rest in common, and
    so have the means of the same models.
    """

    def __init__(self) -> None:
        self._states: dict[tuple[str, bytes], Tensor] = {}
        self._free = _MOST_BYTES

    @contextmanager
    def of(self, models: Mapping[str, Any]) -> Iterator[None]:
        """Inside, a model computes the states of a batch only if no model of the same name has computed them.

        Parameters
        ----------
        models : mapping of str to SequenceRecommender
            In evaluation mode. Those of one name have equal weights, which do not change.
        """
        new = {name: model for name, model in models.items() if "states_of" not in vars(model)}
        for name, model in new.items():
            model.states_of = partial(self._states_of, name, model, model.states_of)
        try:
            yield
        finally:
            for model in new.values():
                del model.states_of

    def _states_of(self, name: str, model: Any, compute: Any, interaction: Any) -> Tensor:
        digest = blake2b()
        for field in (model.USER_ID, model.ITEM_SEQ):  # some models of RecBole read users
            digest.update(interaction[field].cpu().numpy().tobytes())
        key = name, digest.digest()
        if key in self._states:
            return self._states[key]
        states: Tensor = compute(interaction)
        if states.nbytes <= self._free:
            self._free -= states.nbytes
            self._states[key] = states
        return states
