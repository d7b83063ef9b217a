"""The base class of teachers, and the registry that they enter by decorator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from recbole_adarec.errors import AdaRecError
from recbole_adarec.model.base import SequenceRecommender
from recbole_adarec.model.item_table.full import FullItemTable

T = TypeVar("T")
C = TypeVar("C", bound="type[AdaRecTeacher]")

TEACHERS: dict[str, type[AdaRecTeacher]] = {}
"""Teacher classes by the name of their backbone, in the order in which they were entered."""
RECBOLE = "RecBole"  # the entry of the class that wraps RecBole's own models; no backbone of that name can be asked for


def teacher(name: str) -> Callable[[C], C]:
    """Decorator: enters a subclass of `AdaRecTeacher` into `TEACHERS`, for ``backbone: NAME``.

    Parameters
    ----------
    name : str
        The backbone. Its training defaults, where they differ from properties/model/AdaRecTeacher.yaml, stand in
        properties/backbone/<name>.yaml.
    """

    def register(cls: C) -> C:
        TEACHERS[name] = cls
        return cls

    return register


def backbones() -> list[str]:
    """Names that ``backbone`` admits."""
    return [name for name in TEACHERS if name != RECBOLE]


def teacher_class(name: str) -> type[AdaRecTeacher]:
    """The teacher class of a backbone.

    Raises
    ------
    AdaRecError
        If there is none of that name.
    """
    if name not in TEACHERS:
        raise AdaRecError(f"backbone: unknown backbone {name!r}; known are {', '.join(backbones())}")
    return TEACHERS[name]


class AdaRecTeacher(SequenceRecommender):
    """A teacher; calling this class builds the one that ``backbone`` names, or with ``stock`` a `RecBoleTeacher`.

    Parameters
    ----------
    config : recbole.config.Config
        ``backbone``, ``hidden_size``, ``distilled_layers``, ``dropout_prob`` and the keys of the backbone
        (properties/model/AdaRecTeacher.yaml).
    dataset : recbole.data.dataset.Dataset
        Gives the number of items.

    Raises
    ------
    AdaRecError
        If the backbone is unknown or has fewer layers than ``distilled_layers``.
    """

    item_table: FullItemTable

    def __new__(cls, config: Any = None, dataset: Any = None) -> AdaRecTeacher:
        if cls is AdaRecTeacher:
            cls = teacher_class(RECBOLE if config["stock"] else config["backbone"])
        return super().__new__(cls)

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        self.hidden_size: int = config["hidden_size"]
        self.embedding_size = self.hidden_size
        self.distilled_layers: int = config["distilled_layers"]
        self.dropout = nn.Dropout(config["dropout_prob"])

    @property
    def item_embeddings(self) -> Tensor:
        """What a student's item table starts from, ``[I, embedding_size]``."""
        return self.item_table.items

    def distilled(self, hidden: list[T]) -> tuple[T, ...]:
        """Every n-th of all layers, the last one included, so that ``distilled_layers`` are left."""
        total, wanted = len(hidden), self.distilled_layers
        return tuple(hidden[(k + 1) * total // wanted - 1] for k in range(wanted))

    def check_depth(self, depth: int) -> None:
        """Raises `AdaRecError` unless ``distilled_layers`` can be chosen from so many layers."""
        if not 1 <= self.distilled_layers <= depth:
            raise AdaRecError(
                f"distilled_layers: {self.distilled_layers} of {depth} layers of {type(self).__name__} cannot be "
                f"distilled; give 1 to {depth}"
            )


def prefix_ends(item_seq: Tensor, number: int) -> Tensor:
    """A mask ``[B, L]`` of the last item of each sequence and others evenly before it, at most `number` in all."""
    lengths = (item_seq != 0).sum(1)
    ends = torch.zeros_like(item_seq, dtype=torch.bool)
    rows = torch.arange(len(item_seq), device=item_seq.device)
    for k in range(number):
        ends[rows, lengths - lengths * k // number - 1] = True
    return ends
