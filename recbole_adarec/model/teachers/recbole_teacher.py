"""RecBole's models as teachers: their hidden states are recorded by forward hooks, so that no model is changed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from recbole.utils import get_model
from torch import Tensor, nn
from torch.nn import functional as F

from recbole_adarec.errors import AdaRecError
from recbole_adarec.model.base import Encoding, SequenceRecommender
from recbole_adarec.model.item_table.base import TeacherTable, TopK, top_k_of_all
from recbole_adarec.model.teachers.adapters import TEACHER_ADAPTERS, SequenceBatch, TeacherAdapter
from recbole_adarec.model.teachers.base import MOST_LAYERS, RECBOLE, AdaRecTeacher, prefix_ends, teacher
from recbole_adarec.storage.model_files import StoredConfig

HOW = "write an adapter: docs/extending.md, @teacher_adapter"
_TOLERANCE = 1e-3  # of the largest score; only the order of summation may differ


class _Sizes:
    """Stand-in for a RecBole dataset, with what most models read: numbers of items and users, length of sequences."""

    def __init__(self, config: Any, n_items: int, n_users: int) -> None:
        self.item_num, self.user_num = n_items, n_users
        self._item_field = config["ITEM_ID_FIELD"]
        self.field2seqlen = {f"{self._item_field}{config['LIST_SUFFIX']}": config["MAX_ITEM_LIST_LENGTH"]}

    def num(self, field: str) -> int:
        """Number of items or, for any other field, of users."""
        return self.item_num if field == self._item_field else self.user_num


class _RecBoleItems:
    """Item rows of a RecBole model, with the part of `ItemTable` that distillation uses."""

    def __init__(self, model: Any, adapter: TeacherAdapter) -> None:
        self._model, self._adapter = model, adapter

    @property
    def items(self) -> Tensor:
        """Rows that score the outputs, ``[I, C]``."""
        return self._adapter.table(self._model)

    @property
    def matrix(self) -> Tensor:
        """Rows with a prior of 0 as the last channel, ``[I, C + 1]``."""
        return F.pad(self.items, (0, 1))

    @property
    def unserved_prior(self) -> Tensor:
        """Zeros ``[I]``: a RecBole model has no priors."""
        return self.items.new_zeros(len(self.items))

    def parameters(self) -> Iterator[nn.Parameter]:
        """Parameters of the item embeddings."""
        return self._adapter.item_embedding(self._model).parameters()

    def parameter_count(self) -> int:
        """Trainable parameters of the item embeddings."""
        return sum(parameter.numel() for parameter in self.parameters() if parameter.requires_grad)


@teacher(RECBOLE)
class RecBoleTeacher(AdaRecTeacher):
    """A RecBole model as a teacher. It ranks by the model's ``full_sort_predict``.

    The model's `TeacherAdapter` tells where its hidden states are. A model without an adapter is read as
    `TeacherAdapter` describes, if the scores agree.

    Parameters
    ----------
    config : recbole.config.Config
        The keys ``stock`` (RecBole's configuration of the model, as plain values), ``distilled_layers`` and
        ``taught_positions``.
    dataset : recbole.data.dataset.Dataset
        Provides the numbers of items and users.

    Attributes
    ----------
    name : str
        RecBole's name of the model.
    stock : recbole.model.abstract_recommender.SequentialRecommender
        The model.
    adapter : TeacherAdapter
        Its adapter.
    hidden_size, embedding_size : int
        Channels of the layers and of the embedding; the output may have another number.
    distilled_layers : int
        T, the number of layers that a student learns from; 0 for a model without layers.

    Raises
    ------
    AdaRecError
        If the model cannot be built from its configuration and the numbers of items and users, or it has no adapter
        and cannot be read without one.
    """

    def __init__(self, config: Any, dataset: Any) -> None:
        SequenceRecommender.__init__(self, config, dataset)
        recbole_config = StoredConfig(config["stock"], device=torch.device(config["device"]))
        self.name: str = recbole_config["model"]
        self.adapter = TEACHER_ADAPTERS.get(self.name, TeacherAdapter)()
        self.taught_positions: int = config["taught_positions"]
        try:
            sizes = _Sizes(recbole_config, self.n_items, dataset.user_num)
            self.stock: Any = get_model(self.name)(recbole_config, sizes)
        except (AttributeError, TypeError, KeyError, ValueError, NotImplementedError) as error:
            reason = " ".join(str(error).split())[:160]
            raise AdaRecError(
                f"teacher: {self.name} cannot be built from its configuration and the numbers of items and users "
                f"alone ({reason})"
            ) from error
        self.stock.to(recbole_config["device"])  # where some models create further tensors
        table: TeacherTable = _RecBoleItems(self.stock, self.adapter)
        self.item_table: Any = table
        layers = self._modules_named(self.adapter.layer_names(self.stock))
        self.distilled_layers = min(config["distilled_layers"] or MOST_LAYERS, len(layers))
        self._layers = list(self.distilled(layers))
        self._outputs = self._modules_named(self.adapter.outputs)[-1:]
        self._embedding = self._modules_named(self.adapter.embedding)[-1:]
        encoding = self._encode_one(recbole_config["device"])
        self.embedding_size = encoding.embedding.shape[-1]
        self.hidden_size = encoding.layers[0].shape[-1] if encoding.layers else encoding.output.shape[-1]
        if any(layer.shape[-1] != self.hidden_size for layer in encoding.layers):
            raise AdaRecError(f"teacher: the layers {self.adapter.layers!r} of {self.name} differ in size")

    @torch.no_grad()
    def _encode_one(self, device: torch.device) -> Encoding:
        """Encoding of one sequence of one item, after a `check` of the adapter.

        Raises
        ------
        AdaRecError
            If the adapter gives other scores than the model, or a model without an adapter cannot be read.
        """
        one = torch.ones(1, dtype=torch.long, device=device)
        item_seq = F.pad(one[None], (0, self.max_seq_length - 1))
        try:
            with _evaluation_mode(self):
                self.check({self.ITEM_SEQ: item_seq, self.ITEM_SEQ_LEN: one, self.USER_ID: one})
                return self.encode_batch(SequenceBatch(item_seq, one, one))
        except Exception as error:  # a model that takes other arguments can raise any exception
            if self.name in TEACHER_ADAPTERS:
                raise
            raise AdaRecError(
                f"teacher: nothing is known about how to read {self.name}; known are {', '.join(TEACHER_ADAPTERS)}; "
                f"{HOW}"
            ) from error

    @property
    def item_embeddings(self) -> Tensor:
        """Item embeddings, ``[I, embedding_size]``, from which a student's item table is initialised."""
        return self.adapter.item_embedding(self.stock).weight[: self.n_items]

    @property
    def every_position(self) -> bool:
        """Whether the model is distilled at every position, and not only at prefix ends."""
        return bool(self.adapter.outputs)

    def _modules_named(self, pattern: str) -> list[Any]:
        """Modules of the model whose names match a pattern of an adapter, in the order of the model."""
        regex = re.escape(pattern).replace(r"\*", r"\d+")
        modules = [module for name, module in self.stock.named_modules() if name and re.fullmatch(regex, name)]
        if pattern and not modules:
            names = ", ".join(name for name, _ in self.stock.named_children())
            raise AdaRecError(f"teacher: {self.name} has no module {pattern!r} for its adapter; it has {names}")
        return modules

    def encode_batch(self, batch: SequenceBatch) -> Encoding:
        """Hidden states of a batch of sequences, recorded while the model runs.

        Returns
        -------
        Encoding
            ``[B, L, C]`` for a model that is distilled at every position; ``[B, C]``, the states after each sequence,
            for other models.

        Raises
        ------
        AdaRecError
            If the model does not run a module that its adapter names.
        """
        adapter, model = self.adapter, self.stock
        batch = batch._replace(item_seq=self._pad_to_full_width(batch.item_seq))
        with _recorded_outputs([*self._layers, *self._outputs, *self._embedding]) as recorded:
            state = adapter.output(model, batch)
        if len(recorded) < len({*self._layers, *self._outputs, *self._embedding}):
            raise AdaRecError(f"teacher: {self.name} does not run every module that its adapter names")
        layers = [recorded[layer] for layer in self._layers]
        embedding = recorded[self._embedding[0]] if self._embedding else adapter.item_embedding(model)(batch.item_seq)
        if self.every_position:
            return Encoding(embedding, tuple(layers), recorded[self._outputs[0]])
        row, end = torch.arange(len(state), device=state.device), batch.length - 1
        state_position = torch.full_like(end, -1) if adapter.at_last else end
        return Encoding(embedding[row, end], tuple(layer[row, state_position] for layer in layers), state)

    def _pad_to_full_width(self, item_seq: Tensor) -> Tensor:
        """Ids padded to ``MAX_ITEM_LIST_LENGTH``, which some models need; unchanged for a causal model."""
        return item_seq if self.every_position else F.pad(item_seq, (0, self.max_seq_length - item_seq.shape[1]))

    def distillation_targets_in(self, interaction: Any) -> tuple[Encoding, Tensor]:
        """States that a student learns from, at every position or at prefix ends.

        Parameters
        ----------
        interaction : recbole.data.interaction.Interaction
            A batch of windows; items and users are read.

        Returns
        -------
        tuple of Encoding and Tensor
            The encoding at N positions, each tensor ``[N, C]``, and those positions as a bool mask ``[B, L]``.
        """
        item_seq, users = interaction[self.ITEM_SEQ], interaction[self.USER_ID]
        mask = item_seq != 0
        lengths = mask.sum(1)
        if self.every_position:
            return self.encode_batch(SequenceBatch(item_seq, lengths, users)).at(mask), mask
        ends = prefix_ends(item_seq, self.taught_positions)
        window, position = ends.nonzero(as_tuple=True)
        in_prefix = torch.arange(item_seq.shape[1], device=item_seq.device) <= position[:, None]
        return self.encode_batch(SequenceBatch(item_seq[window] * in_prefix, position + 1, users[window])), ends

    def encode(self, item_seq: Tensor) -> Encoding:
        """Hidden states of sequences of item ids ``[B, L]``, all of user 1; used to measure what a pass costs."""
        lengths = (item_seq != 0).sum(1)
        return self.encode_batch(SequenceBatch(item_seq, lengths, torch.ones_like(lengths)))

    def states_of(self, interaction: Any) -> Tensor:
        """States that score the items after the sequences of a batch, ``[B, C]``."""
        lengths = interaction[self.ITEM_SEQ_LEN]
        output = self.encode_batch(SequenceBatch(interaction[self.ITEM_SEQ], lengths, interaction[self.USER_ID])).output
        return self.gather_indexes(output, lengths - 1) if self.every_position else output

    def last_state(self, item_seq: Tensor, lengths: Tensor) -> Tensor:
        """States that predict the item after each sequence, with the padding user 0, ``[B, C]``."""
        rows = {self.ITEM_SEQ: item_seq, self.ITEM_SEQ_LEN: lengths, self.USER_ID: torch.zeros_like(lengths)}
        return self.states_of(rows)

    def scores(self, item_seq: Tensor, lengths: Tensor) -> Tensor:
        """Scores of all items after each sequence, with the padding user 0, ``[B, I]``."""
        padded = F.pad(item_seq, (0, self.max_seq_length - item_seq.shape[1]))
        rows = {self.ITEM_SEQ: padded, self.ITEM_SEQ_LEN: lengths, self.USER_ID: torch.zeros_like(lengths)}
        return self.full_sort_predict(rows)

    def top_k(self, item_seq: Tensor, lengths: Tensor, k: int) -> TopK:
        """The k items with the highest `scores` after each sequence, ``[B, k]``; all items are scored."""
        return top_k_of_all(self.scores(item_seq, lengths), k)

    def full_sort_predict(self, interaction: Any) -> Tensor:
        """Scores of all items, with `repeat_bias` added to those of seen items, ``[B, I]``."""
        scores, seen = self.recbole_scores(interaction), self.seen_items(interaction[self.ITEM_SEQ])
        return scores if seen is None else seen.add_to(scores)

    def recbole_scores(self, interaction: Any) -> Tensor:
        """Scores of all items as the RecBole model computes them, without `repeat_bias`, ``[B, I]``."""
        scores: Tensor = self.stock.full_sort_predict(interaction)
        return scores.view(-1, self.n_items)

    def predict(self, interaction: Any) -> Tensor:
        """Score of the item ``item_id`` of each row, with `repeat_bias` if it is a seen item, ``[B]``."""
        scores, seen = self.stock.predict(interaction), self.seen_items(interaction[self.ITEM_SEQ])
        return scores if seen is None else scores + seen.among(interaction[self.ITEM_ID][:, None]).squeeze(1)

    def calculate_loss(self, interaction: Any) -> Tensor:
        """Loss of the RecBole model, a scalar."""
        return self.stock.calculate_loss(interaction)

    def load(self, weights: dict[str, Tensor], source: str) -> None:
        """Load weights that RecBole trained.

        Parameters
        ----------
        weights : dict of str to Tensor
            State dict of the RecBole model.
        source : str
            The file, for the error message.

        Raises
        ------
        AdaRecError
            If a weight is missing or has another shape; names the first one.
        """
        expected = self.stock.state_dict()
        for name, tensor in expected.items():
            shape = list(weights[name].shape) if name in weights else "not"
            if shape != list(tensor.shape):
                raise AdaRecError(
                    f"teacher: {source} does not fit this dataset of {self.n_items - 1} items: {name} is {shape} "
                    f"there, and {list(tensor.shape)} here; distil on the dataset that the teacher was trained on"
                )
        self.stock.load_state_dict({name: weights[name] for name in expected})

    def describe(self) -> str:
        """Sentence for the report: which states are distilled, and at which positions."""
        missing = "" if self.distilled_layers else "; it has no layered states, so there is no L_hid"
        count = self.distilled_layers
        layers = f"{count} layer{'' if count == 1 else 's'}, " if count else ""
        where = "at every position" if self.every_position else f"at {self.taught_positions} prefix ends of each window"
        return f"RecBole's {self.name} teaches by its {layers}embedding and outputs, {where}{missing}."

    @torch.no_grad()
    def check(self, interaction: Any) -> None:
        """Compare ``output @ table.T`` of the adapter with the scores of the model.

        Parameters
        ----------
        interaction : recbole.data.interaction.Interaction
            Rows of RecBole's evaluation.

        Raises
        ------
        AdaRecError
            If the adapter gives other scores than the model, at the end of the sequences or in their middle.
        """
        batch = SequenceBatch(interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN], interaction[self.USER_ID])
        for part in (1.0, 0.5):
            length = (batch.length * part).long().clamp_min(1)
            in_prefix = torch.arange(batch.item_seq.shape[1], device=length.device) < length[:, None]
            prefix = {self.ITEM_SEQ: batch.item_seq * in_prefix, self.ITEM_SEQ_LEN: length, self.USER_ID: batch.user}
            expected = self.recbole_scores(prefix)
            if self.every_position:  # the state at the end of the prefix, in a pass over the whole sequence
                output = self.stock.gather_indexes(self.encode_batch(batch).output, length - 1)
            else:
                output = self.encode_batch(SequenceBatch(prefix[self.ITEM_SEQ], length, batch.user)).output
            if output.shape[-1] != self.item_table.items.shape[-1]:
                raise AdaRecError(f"teacher: the adapter of {self.name} gives outputs and a table of different sizes")
            scores = output @ self.item_table.items.T
            difference = float((scores - expected).abs().max() / expected.abs().max().clamp_min(1e-6))
            if not difference < _TOLERANCE:  # not ">=", so that NaN is refused too
                where = "before the end of a sequence" if part < 1 else "at the end of a sequence"
                raise AdaRecError(
                    f"teacher: the adapter of {self.name} does not give the model's own scores {where} (they differ by "
                    f"{difference:.2g} of the largest); mend its output and table, or leave its outputs empty if it is "
                    "not causal"
                )


@contextmanager
def _recorded_outputs(modules: list[nn.Module]) -> Iterator[dict[nn.Module, Tensor]]:
    """Record the outputs of modules that run within the block; of a tuple of outputs the first."""
    recorded: dict[nn.Module, Tensor] = {}

    def record(module: nn.Module, _: Any, output: Any) -> None:
        recorded[module] = output[0] if isinstance(output, tuple) else output

    handles = [module.register_forward_hook(record) for module in dict.fromkeys(modules)]
    try:
        yield recorded
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Evaluation mode within the block."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
