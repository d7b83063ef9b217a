"""The base class of teachers, and the registry of backbones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from recbole_adarec.errors import AdaRecError
from recbole_adarec.model.base import SequenceRecommender
from recbole_adarec.model.item_table.full import LinearItemTable
from recbole_adarec.model.layers import Dropout

T = TypeVar("T")
C = TypeVar("C", bound="type[AdaRecTeacher]")

TEACHERS: dict[str, type[AdaRecTeacher]] = {}
"""Teacher classes by the name of their backbone, in the order of registration."""
MOST_LAYERS = 8  # that are distilled without a value of ``distilled_layers``
RECBOLE, MEAN = "RecBole", "mean"  # entries of the classes that hold other models; no names for the key ``backbone``


def teacher(name: str) -> Callable[[C], C]:
    """Decorator that registers a subclass of `AdaRecTeacher` as a backbone, for ``backbone: NAME``.

    Parameters
    ----------
    name : str
        Name of the backbone. Default settings of a backbone of this package, where they differ from
        properties/model/AdaRecTeacher.yaml, are in properties/backbone/<name>.yaml.

    Raises
    ------
    AdaRecError
        If the class is not a subclass of `AdaRecTeacher`, or the name is that of a backbone of this package.
    """

    def register(cls: C) -> C:
        if not (isinstance(cls, type) and issubclass(cls, AdaRecTeacher)):
            raise AdaRecError(f"teacher({name!r}): {getattr(cls, '__name__', cls)} is no subclass of AdaRecTeacher")
        if name in TEACHERS and TEACHERS[name].__module__.startswith(f"{__package__}."):
            raise AdaRecError(f"teacher {name!r} is one of ours; give yours another name")
        TEACHERS[name] = cls
        return cls

    return register


def backbones() -> list[str]:
    """Names of all backbones, the values of the key ``backbone``."""
    return [name for name in TEACHERS if name not in (RECBOLE, MEAN)]


def teacher_class(name: str) -> type[AdaRecTeacher]:
    """Teacher class of a backbone.

    Raises
    ------
    AdaRecError
        If no backbone has that name.
    """
    if name not in TEACHERS:
        raise AdaRecError(
            f"backbone: unknown backbone {name!r}; known are {', '.join(backbones())}; one of your own is loaded with "
            "--plugins= (load_plugins in Python)"
        )
    return TEACHERS[name]


class AdaRecTeacher(SequenceRecommender):
    """Base class of teachers, the large models that students are distilled from.

    Calling this class itself builds the subclass that the key ``backbone`` names, a `RecBoleTeacher` where ``stock`` is
    set, or a `TeacherMean` where ``members`` is set.

    A backbone of your own is a subclass with the decorator `teacher`, in a file that is loaded with ``--plugins=``:

    * ``__init__(config, dataset)`` calls ``super().__init__``, sets `item_table` (by
      `recbole_adarec.model.item_table.build.full_table`), builds its layers, and calls `check_depth` with their number.
      It may read the keys of properties/model/AdaRecTeacher.yaml.
    * ``encode(item_seq)`` maps right-padded item ids, int64 ``[B, L]`` with 0 for padding, to an `Encoding`: the
      embedding that enters the first layer, the T layers that `distilled` selects, and the output that the item table
      scores, each ``[B, L, C]``. The state at a position may depend only on the items up to it.
    * An encoder whose states depend on later items also overrides `last_state`, `training_states` and
      `distillation_targets`, as `recbole_adarec.model.teachers.bert4rec.BERT4RecTeacher` does.

    Training, ranking, storing and distillation need nothing else.

    Parameters
    ----------
    config : recbole.config.Config
        The keys ``backbone``, ``hidden_size``, ``distilled_layers``, ``dropout_prob`` and those of the backbone
        (properties/model/AdaRecTeacher.yaml).
    dataset : recbole.data.dataset.Dataset
        Provides the number of items and, for the item table, their counts.

    Attributes
    ----------
    n_items : int
        I, the number of items, padding included.
    hidden_size : int
        Channels C of the layers.
    embedding_size : int
        Channels of `Encoding.embedding`; equal to `hidden_size` here.
    distilled_layers : int
        T, the number of layers that a student learns from.
    dropout : Dropout
        Dropout with probability ``dropout_prob``.
    item_table : LinearItemTable
        Embeds the items and scores the outputs. Set by the subclass.

    Raises
    ------
    AdaRecError
        If the backbone is unknown or has fewer layers than ``distilled_layers``.

    Examples
    --------
    A stack of residual GRUs, used with ``--plugins=FILE --backbone=GRU --n_layers=4 --distilled_layers=2``:

    >>> @teacher("GRU")
    ... class GRUTeacher(AdaRecTeacher):
    ...     def __init__(self, config, dataset):
    ...         super().__init__(config, dataset)
    ...         size, number = self.hidden_size, config["n_layers"]
    ...         self.item_table = full_table(config, dataset, self.n_items, size)
    ...         self.layers = nn.ModuleList(nn.GRU(size, size, batch_first=True) for _ in range(number))
    ...         self.check_depth(number)
    ...
    ...     def encode(self, item_seq):
    ...         x = embedding = self.dropout(self.item_table(item_seq))
    ...         hidden = []
    ...         for layer in self.layers:
    ...             x = x + layer(x)[0]
    ...             hidden.append(x)
    ...         return Encoding(embedding, self.distilled(hidden), self.dropout(x))
    """

    item_table: LinearItemTable

    def __new__(cls, config: Any = None, dataset: Any = None) -> AdaRecTeacher:
        if cls is AdaRecTeacher:
            cls = teacher_class(MEAN if config["members"] else RECBOLE if config["stock"] else config["backbone"])
        return super().__new__(cls)

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        self.hidden_size: int = config["hidden_size"]
        self.embedding_size = self.hidden_size
        self.distilled_layers: int = config["distilled_layers"] or MOST_LAYERS
        self._all_layers = not config["distilled_layers"]
        self.dropout = Dropout(config["dropout_prob"])

    @property
    def layer_shapes(self) -> tuple[tuple[int, int], ...]:
        """Number and channels of the distilled layers, ``(T, C)`` for each group whose states have one basis.

        A mean of teachers has a group for each member.
        """
        return ((self.distilled_layers, self.hidden_size),) if self.distilled_layers else ()

    @property
    def item_embeddings(self) -> Tensor:
        """Item embeddings, ``[I, embedding_size]``, from which a student's item table is initialised."""
        return self.item_table.items

    def distilled(self, hidden: list[T]) -> tuple[T, ...]:
        """The layers that a student learns from: ``distilled_layers`` of all, evenly spaced, the last one included."""
        total, number = len(hidden), self.distilled_layers
        return tuple(hidden[(k + 1) * total // number - 1] for k in range(number))

    def check_depth(self, depth: int) -> None:
        """Raise `AdaRecError` unless ``distilled_layers`` is between 1 and `depth`, the number of layers.

        Without a value of that key all layers are distilled, 8 at most.
        """
        if self._all_layers:
            self.distilled_layers = min(depth, MOST_LAYERS)
        if not 1 <= self.distilled_layers <= depth:
            raise AdaRecError(
                f"distilled_layers: {self.distilled_layers} of {depth} layers of {type(self).__name__} cannot be "
                f"distilled; give 1 to {depth}"
            )


def prefix_ends(item_seq: Tensor, number: int) -> Tensor:
    """Prefix ends: positions at which a model that is not causal is distilled, as a bool mask ``[B, L]``.

    They are the last item of each sequence, and items before it at even distances.

    Parameters
    ----------
    item_seq : Tensor
        Right-padded item ids, int64 ``[B, L]``.
    number : int
        Largest number of prefix ends per sequence.
    """
    lengths = (item_seq != 0).sum(1)
    ends = torch.zeros_like(item_seq, dtype=torch.bool)
    rows = torch.arange(len(item_seq), device=item_seq.device)
    for k in range(number):
        ends[rows, lengths - lengths * k // number - 1] = True
    return ends
