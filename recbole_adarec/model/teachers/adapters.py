"""Adapters: where the hidden states and the item embeddings of each RecBole model are, so that it can be a teacher."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recbole_adarec.errors import AdaRecError


class SequenceBatch(NamedTuple):
    """A batch of sequences in the form that RecBole's models take.

    Attributes
    ----------
    item_seq : Tensor
        Right-padded item ids, int64 ``[B, L]``.
    length : Tensor
        Number of items of each sequence, int64 ``[B]``.
    user : Tensor
        User id of each sequence, int64 ``[B]``.
    """

    item_seq: Tensor
    length: Tensor
    user: Tensor


class TeacherAdapter:
    """Tells `RecBoleTeacher` where a RecBole model computes its hidden states and keeps its item embeddings.

    The outputs of the modules that an adapter names are recorded by forward hooks, so the model itself is not changed.
    An adapter of your own is a subclass with the decorator `teacher_adapter`, in a file that is loaded with
    ``--plugins=``. It sets the class attributes and overrides the methods in which the model differs from most of
    RecBole's. This class itself suits a model that

    * is called as ``model(item_seq, item_seq_len)`` and returns the states of the sequences, ``[B, C]``;
    * scores all items by the product of these states and ``model.item_embedding.weight``.

    Such a model needs no adapter, but is then distilled without its layers.

    Names of modules are those of ``model.named_modules()``. ``*`` stands for a number, so that
    ``"trm_encoder.layer.*"`` names all layers of a stack. A module that returns a tuple is recorded by its first entry.

    The adapter is tested in every run: ``output @ table.T`` must be the scores of the model's ``full_sort_predict``, at
    the end of sequences and, where `outputs` is set, at earlier positions too.

    Attributes
    ----------
    layers : str
        Modules whose outputs ``[B, L, C]`` a student's layers learn from. Empty for a model without states of single
        positions; a student then learns from its embeddings and outputs only.
    outputs : str
        For a causal model: the module whose output ``[B, L, C]`` scores the items at every position. Of several modules
        the last one counts. The model is then distilled at every position, in one pass. Empty for other models: they
        are run on several prefixes of each sequence, see `prefix_ends`.
    embedding : str
        Module whose output is the input of the first layer. Empty: the embedding of the item.
    at_last : bool
        Whether the model reads the state of a sequence at the last of all L positions, padding included, and not at
        its last item. Used only where `outputs` is empty.

    Examples
    --------
    A model of RecBole with a stack of layers, used with ``--plugins=FILE --teacher=GCSAN``:

    >>> @teacher_adapter("GCSAN")
    ... class GCSANAdapter(TeacherAdapter):
    ...     layers = "self_attention.layer.*"
    """

    layers = ""
    outputs = ""
    embedding = ""
    at_last = False

    def layer_names(self, model: Any) -> str:
        """Name of the layers of this model; overridden where they depend on the model's configuration.

        Parameters
        ----------
        model : recbole.model.abstract_recommender.SequentialRecommender
            The model, built.
        """
        return self.layers

    def output(self, model: Any, batch: SequenceBatch) -> Tensor:
        """Run the model and return the states that score the items after each sequence, ``[B, C]``.

        Parameters
        ----------
        model : recbole.model.abstract_recommender.SequentialRecommender
            The model.
        batch : SequenceBatch
            The sequences.
        """
        return model(batch.item_seq, batch.length)

    def table(self, model: Any) -> Tensor:
        """Rows of the items, ``[I, C]``, such that ``output @ table.T`` are the scores ``[B, I]`` of the model.

        An item bias is a further channel of the table, with a 1 in the output; see the adapter of BERT4Rec.
        """
        return model.item_embedding.weight[: model.n_items]

    def item_embedding(self, model: Any) -> nn.Embedding:
        """Module of the item embeddings, with at least I rows; a student's item table is initialised from them."""
        return model.item_embedding


TEACHER_ADAPTERS: dict[str, type[TeacherAdapter]] = {}
A = TypeVar("A", bound=type[TeacherAdapter])


def teacher_adapter(model: str) -> Callable[[A], A]:
    """Decorator that registers a subclass of `TeacherAdapter` for a RecBole model.

    Parameters
    ----------
    model : str
        RecBole's name of the model. A second adapter for a name replaces the first.

    Raises
    ------
    AdaRecError
        If the class is not a subclass of `TeacherAdapter`.
    """

    def register(adapter: A) -> A:
        if not issubclass(adapter, TeacherAdapter):
            raise AdaRecError(f"teacher_adapter({model!r}): {adapter.__name__} is no subclass of TeacherAdapter")
        TEACHER_ADAPTERS[model] = adapter
        return adapter

    return register


@teacher_adapter("SASRec")
class _SASRec(TeacherAdapter):
    """Causal transformer: every layer, and the last layer's output at every position."""

    embedding, layers, outputs = "dropout", "trm_encoder.layer.*", "trm_encoder.layer.*"


@teacher_adapter("GRU4Rec")
class _GRU4Rec(TeacherAdapter):
    """Causal GRU: the output of the GRU as the one layer, and that of the dense layer at every position."""

    embedding, layers, outputs = "emb_dropout", "gru_layers", "dense"


@teacher_adapter("NextItNet")
class _NextItNet(TeacherAdapter):
    """Convolutional; RecBole reads the state at the last position, which is padding after a short sequence."""

    layers, at_last = "residual_blocks.*", True

    def output(self, model: Any, batch: SequenceBatch) -> Tensor:
        """States at the last of all positions, ``[B, C]``."""
        return model(batch.item_seq)


@teacher_adapter("BERT4Rec")
class _BERT4Rec(TeacherAdapter):
    """Bidirectional; RecBole appends a mask and drops the first item, so that the mask is where the last item was."""

    layers = "trm_encoder.layer.*"

    def output(self, model: Any, batch: SequenceBatch) -> Tensor:
        """States at the mask, with a 1 as the last channel, ``[B, C + 1]``."""
        states = model(model.reconstruct_test_data(batch.item_seq, batch.length))
        return F.pad(model.gather_indexes(states, batch.length - 1), (0, 1), value=1.0)

    def table(self, model: Any) -> Tensor:
        """Item embeddings, with the item's bias as the last channel, ``[I, C + 1]``."""
        items = model.item_embedding.weight[: model.n_items]
        return torch.cat([items, model.output_bias[:, None]], 1)


@teacher_adapter("Caser")
class _Caser(TeacherAdapter):
    """Its convolutions cover the whole sequence at once, so no layer has states of single positions."""

    def output(self, model: Any, batch: SequenceBatch) -> Tensor:
        """States of sequences and users together, ``[B, C]``."""
        return model(batch.user, batch.item_seq)


@teacher_adapter("STAMP")
class _STAMP(TeacherAdapter):
    """Attention over the items of the whole sequence; it has no layers."""


@teacher_adapter("NARM")
class _NARM(TeacherAdapter):
    """A GRU, its one layer, under attention over the whole sequence."""

    layers = "gru"


@teacher_adapter("LightSANs")
class _LightSANs(TeacherAdapter):
    """Not causal: its keys are pooled over all positions, padding included."""

    layers = "trm_encoder.layer.*"


@teacher_adapter("CORE")
class _CORE(TeacherAdapter):
    """Weighted mean of the item embeddings; with ``dnn_type: trm`` a transformer computes the weights."""

    layers = "net.trm_encoder.layer.*"

    def layer_names(self, model: Any) -> str:
        """Layers of the transformer, if the model has one."""
        return self.layers if model.dnn_type == "trm" else ""

    def output(self, model: Any, batch: SequenceBatch) -> Tensor:
        """States divided by the temperature of the softmax, ``[B, C]``."""
        return model(batch.item_seq) / model.temperature

    def table(self, model: Any) -> Tensor:
        """Normalised item embeddings, ``[I, C]``."""
        return F.normalize(model.item_embedding.weight, dim=-1)
