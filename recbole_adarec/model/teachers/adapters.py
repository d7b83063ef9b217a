"""RecBole's own models as teachers: what each of them computes is read by forward hooks, so none needs a change."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recbole_adarec.errors import AdaRecError


class SequenceBatch(NamedTuple):
    """Sequences as RecBole feeds them: right-padded item ids ``[B, L]``, their lengths and users, ``[B]`` each."""

    item_seq: Tensor
    length: Tensor
    user: Tensor


class TeacherAdapter:
    """How a RecBole model is read; a subclass says what differs, `teacher_adapter` says for which model.

    This class itself reads any model with RecBole's habitual ``forward(item_seq, item_seq_len)`` and scores, by its
    outputs alone.

    Attributes
    ----------
    layers : str
        Names of the modules whose outputs ``[B, L, C]`` distillation maps, ``*`` for a number; empty for a model
        without layered states, which teaches by its outputs.
    outputs : str
        For a causal model the module whose output at every position, ``[B, L, C]``, is what the items are scored by
        there: it teaches at every position. Empty: it is asked for each of several prefixes of a sequence.
    embedding : str
        The module whose output enters the first layer; empty: the embedding of the item itself.
    at_last : bool
        The state of a sequence is at the last of all positions, padding included, and not at that of its last item.
    """

    layers = ""
    outputs = ""
    embedding = ""
    at_last = False

    def layer_names(self, model: Any) -> str:
        """`layers`, where a model has them in some configurations only."""
        return self.layers

    def output(self, model: Any, rows: SequenceBatch) -> Tensor:
        """What the items are scored by after each sequence, ``[B, C]``."""
        return model(rows.item_seq, rows.length)

    def table(self, model: Any) -> Tensor:
        """What it is multiplied by: ``output @ table.T`` are the model's scores; ``[I, C]``."""
        return model.item_embedding.weight[: model.n_items]

    def item_embedding(self, model: Any) -> nn.Embedding:
        """The item embeddings."""
        return model.item_embedding


TEACHER_ADAPTERS: dict[str, type[TeacherAdapter]] = {}
A = TypeVar("A", bound=type[TeacherAdapter])


def teacher_adapter(model: str) -> Callable[[A], A]:
    """Decorator: the class tells how to read RecBole's model of that name."""

    def register(adapter: A) -> A:
        if not issubclass(adapter, TeacherAdapter):
            raise AdaRecError(f"teacher_adapter({model!r}): {adapter.__name__} is no subclass of TeacherAdapter")
        TEACHER_ADAPTERS[model] = adapter
        return adapter

    return register


@teacher_adapter("SASRec")
class _SASRec(TeacherAdapter):
    embedding, layers, outputs = "dropout", "trm_encoder.layer.*", "trm_encoder.layer.*"


@teacher_adapter("GRU4Rec")
class _GRU4Rec(TeacherAdapter):
    embedding, layers, outputs = "emb_dropout", "gru_layers", "dense"


@teacher_adapter("NextItNet")
class _NextItNet(TeacherAdapter):
    """Its sequences are padded on the right and read at the end: between items and end it convolves padding."""

    layers, at_last = "residual_blocks.*", True

    def output(self, model: Any, rows: SequenceBatch) -> Tensor:
        return model(rows.item_seq)


@teacher_adapter("BERT4Rec")
class _BERT4Rec(TeacherAdapter):
    """RecBole puts the mask behind the items and drops the first of them, so the mask is where the last item was."""

    layers = "trm_encoder.layer.*"

    def output(self, model: Any, rows: SequenceBatch) -> Tensor:
        states = model(model.reconstruct_test_data(rows.item_seq, rows.length))
        return F.pad(model.gather_indexes(states, rows.length - 1), (0, 1), value=1.0)

    def table(self, model: Any) -> Tensor:
        items = model.item_embedding.weight[: model.n_items]
        return torch.cat([items, model.output_bias[:, None]], 1)  # the output's last channel is 1


@teacher_adapter("Caser")
class _Caser(TeacherAdapter):
    """Its convolutions run over the whole sequence at once, so no layer has a state of a position."""

    def output(self, model: Any, rows: SequenceBatch) -> Tensor:
        return model(rows.user, rows.item_seq)


@teacher_adapter("STAMP")
class _STAMP(TeacherAdapter):
    pass


@teacher_adapter("NARM")
class _NARM(TeacherAdapter):
    layers = "gru"


@teacher_adapter("LightSANs")
class _LightSANs(TeacherAdapter):
    """Its keys are pooled over all positions, padding included: no state is causal."""

    layers = "trm_encoder.layer.*"


@teacher_adapter("CORE")
class _CORE(TeacherAdapter):
    layers = "net.trm_encoder.layer.*"

    def layer_names(self, model: Any) -> str:
        return self.layers if model.dnn_type == "trm" else ""

    def output(self, model: Any, rows: SequenceBatch) -> Tensor:
        return model(rows.item_seq) / model.temperature

    def table(self, model: Any) -> Tensor:
        return F.normalize(model.item_embedding.weight, dim=-1)
