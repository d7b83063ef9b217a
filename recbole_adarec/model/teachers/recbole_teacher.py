"""RecBole's own models as teachers, read through forward hooks, so that none needs a change."""

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
from recbole_adarec.model.teachers.base import RECBOLE, AdaRecTeacher, prefix_ends, teacher
from recbole_adarec.storage.model_files import StoredConfig

HOW = 'write an adapter: README, "Extend", @teacher_adapter'
_TOLERANCE = 1e-3  # of the largest score: hooks read what the model computes, in another order at most


class _Sizes:
    """As much of a RecBole dataset as its models ask for: how many items and users, and how long sequences are."""

    def __init__(self, config: Any, n_items: int, n_users: int) -> None:
        self.item_num, self.user_num = n_items, n_users
        self._items = config["ITEM_ID_FIELD"]
        self.field2seqlen = {f"{self._items}{config['LIST_SUFFIX']}": config["MAX_ITEM_LIST_LENGTH"]}

    def num(self, field: str) -> int:
        return self.item_num if field == self._items else self.user_num


class _RecBoleItems:
    """The stock model's table in the place of an `ItemTable`."""

    def __init__(self, model: Any, adapter: TeacherAdapter) -> None:
        self._model, self._adapter = model, adapter

    @property
    def items(self) -> Tensor:
        """What scores the outputs, ``[I, C]``."""
        return self._adapter.table(self._model)

    @property
    def matrix(self) -> Tensor:
        """The same behind which stands a prior of 0, ``[I, C + 1]``."""
        return F.pad(self.items, (0, 1))

    @property
    def unserved_prior(self) -> Tensor:
        """Zeros ``[I]``: a RecBole model has no priors."""
        return self.items.new_zeros(len(self.items))

    def parameters(self) -> Iterator[nn.Parameter]:
        """Parameters of the item embedding."""
        return self._adapter.item_embedding(self._model).parameters()

    def parameter_count(self) -> int:
        """Trainable parameters of the item embedding."""
        return sum(parameter.numel() for parameter in self.parameters() if parameter.requires_grad)


@teacher(RECBOLE)
class RecBoleTeacher(AdaRecTeacher):
    """A model of RecBole that teaches; it ranks by its own ``full_sort_predict``.

    Parameters
    ----------
    config : recbole.config.Config
        ``stock``: RecBole's configuration of the model as plain values; ``distilled_layers``, ``taught_positions``.
    dataset : recbole.data.dataset.Dataset
        Gives the numbers of items and users.

    Raises
    ------
    AdaRecError
        If it is not known how to read the model, or the model wants more of its dataset than that.
    """

    def __init__(self, config: Any, dataset: Any) -> None:
        SequenceRecommender.__init__(self, config, dataset)
        stock = StoredConfig(config["stock"], device=torch.device(config["device"]))
        self.name: str = stock["model"]
        self.adapter = TEACHER_ADAPTERS.get(self.name, TeacherAdapter)()
        self.taught_positions: int = config["taught_positions"]
        try:
            sizes = _Sizes(stock, self.n_items, dataset.user_num)
            self.stock: Any = get_model(self.name)(stock, sizes)
        except (AttributeError, TypeError, KeyError, ValueError, NotImplementedError) as error:
            reason = " ".join(str(error).split())[:160]
            raise AdaRecError(
                f"teacher: {self.name} cannot be built from its configuration and the numbers of items and users "
                f"alone ({reason})"
            ) from error
        self.stock.to(stock["device"])  # where some models make tensors of their own
        table: TeacherTable = _RecBoleItems(self.stock, self.adapter)
        self.item_table: Any = table
        layers = self._modules_named(self.adapter.layer_names(self.stock))
        self.distilled_layers = min(config["distilled_layers"], len(layers))
        self._layers = list(self.distilled(layers))
        self._outputs = self._modules_named(self.adapter.outputs)[-1:]
        self._embedding = self._modules_named(self.adapter.embedding)[-1:]
        found = self._try(stock["device"])
        self.embedding_size = found.embedding.shape[-1]
        self.hidden_size = found.layers[0].shape[-1] if found.layers else found.output.shape[-1]
        if any(layer.shape[-1] != self.hidden_size for layer in found.layers):
            raise AdaRecError(f"teacher: the layers {self.adapter.layers!r} of {self.name} differ in size")

    @torch.no_grad()
    def _try(self, device: torch.device) -> Encoding:
        """Read one sequence; a model without an adapter is read as most of RecBole's are, if its scores come out."""
        one = torch.ones(1, dtype=torch.long, device=device)
        item_seq = F.pad(one[None], (0, self.max_seq_length - 1))
        try:
            with _evaluation_mode(self):
                self.check({self.ITEM_SEQ: item_seq, self.ITEM_SEQ_LEN: one, self.USER_ID: one})
                return self.read(SequenceBatch(item_seq, one, one))
        except Exception as error:  # whatever a model makes of arguments that are not its own
            if self.name in TEACHER_ADAPTERS:
                raise
            raise AdaRecError(
                f"teacher: nothing is known about how to read {self.name}; known are {', '.join(TEACHER_ADAPTERS)}; "
                f"{HOW}"
            ) from error

    @property
    def item_embeddings(self) -> Tensor:
        return self.adapter.item_embedding(self.stock).weight[: self.n_items]

    @property
    def every_position(self) -> bool:
        """Whether it teaches at every position, or only at the ends of some prefixes."""
        return bool(self.adapter.outputs)

    def _modules_named(self, pattern: str) -> list[Any]:
        regex = re.escape(pattern).replace(r"\*", r"\d+")
        found = [module for name, module in self.stock.named_modules() if name and re.fullmatch(regex, name)]
        if pattern and not found:
            names = ", ".join(name for name, _ in self.stock.named_children())
            raise AdaRecError(f"teacher: {self.name} has no module {pattern!r} for its adapter; it has {names}")
        return found

    def read(self, rows: SequenceBatch) -> Encoding:
        """Run the model on sequences: ``[B, L, C]`` of every position, or ``[B, C]`` of each sequence as a whole."""
        adapter, model = self.adapter, self.stock
        rows = rows._replace(item_seq=self._as_recbole_feeds(rows.item_seq))
        with _recorded_outputs([*self._layers, *self._outputs, *self._embedding]) as seen:
            state = adapter.output(model, rows)
        if len(seen) < len({*self._layers, *self._outputs, *self._embedding}):
            raise AdaRecError(f"teacher: {self.name} does not run every module that its adapter names")
        layers = [seen[layer] for layer in self._layers]
        of_items = seen[self._embedding[0]] if self._embedding else adapter.item_embedding(model)(rows.item_seq)
        if self.every_position:
            return Encoding(of_items, tuple(layers), seen[self._outputs[0]])
        row, end = torch.arange(len(state), device=state.device), rows.length - 1
        place = torch.full_like(end, -1) if adapter.at_last else end
        return Encoding(of_items[row, end], tuple(layer[row, place] for layer in layers), state)

    def _as_recbole_feeds(self, item_seq: Tensor) -> Tensor:
        """Padded to the full width, which some models need; the states of a causal one do not depend on it."""
        return item_seq if self.every_position else F.pad(item_seq, (0, self.max_seq_length - item_seq.shape[1]))

    def distillation_targets_in(self, interaction: Any) -> tuple[Encoding, Tensor]:
        item_seq, users = interaction[self.ITEM_SEQ], interaction[self.USER_ID]
        real = item_seq != 0
        lengths = real.sum(1)
        if self.every_position:
            return self.read(SequenceBatch(item_seq, lengths, users)).at(real), real
        ends = prefix_ends(item_seq, self.taught_positions)
        window, position = ends.nonzero(as_tuple=True)
        kept = torch.arange(item_seq.shape[1], device=item_seq.device) <= position[:, None]
        return self.read(SequenceBatch(item_seq[window] * kept, position + 1, users[window])), ends

    def encode(self, item_seq: Tensor) -> Encoding:
        """One pass, for what it costs; user 1 is as good as any."""
        lengths = (item_seq != 0).sum(1)
        return self.read(SequenceBatch(item_seq, lengths, torch.ones_like(lengths)))

    def scores(self, item_seq: Tensor, lengths: Tensor) -> Tensor:
        """Scores of all items after sequences of nobody in particular."""
        wide = F.pad(item_seq, (0, self.max_seq_length - item_seq.shape[1]))
        rows = {self.ITEM_SEQ: wide, self.ITEM_SEQ_LEN: lengths, self.USER_ID: torch.zeros_like(lengths)}
        return self.full_sort_predict(rows)

    def top_k(self, item_seq: Tensor, lengths: Tensor, k: int) -> TopK:
        """The k items with the highest `scores` after each sequence, ``[B, k]``; all items are scored."""
        return top_k_of_all(self.scores(item_seq, lengths), k)

    def full_sort_predict(self, interaction: Any) -> Tensor:
        scores, seen = self.as_recbole_scores(interaction), self.seen_items(interaction[self.ITEM_SEQ])
        return scores if seen is None else seen.add_to(scores)

    def as_recbole_scores(self, interaction: Any) -> Tensor:
        """The model's own scores of all items, ``[B, I]``."""
        scores: Tensor = self.stock.full_sort_predict(interaction)
        return scores.view(-1, self.n_items)

    def predict(self, interaction: Any) -> Tensor:
        scores, seen = self.stock.predict(interaction), self.seen_items(interaction[self.ITEM_SEQ])
        return scores if seen is None else scores + seen.among(interaction[self.ITEM_ID][:, None]).squeeze(1)

    def calculate_loss(self, interaction: Any) -> Tensor:
        return self.stock.calculate_loss(interaction)

    def load(self, weights: dict[str, Tensor], source: str) -> None:
        """Take up RecBole's weights.

        Raises
        ------
        AdaRecError
            If they are of other sizes: names the first one.
        """
        own = self.stock.state_dict()
        for name, tensor in own.items():
            there = list(weights[name].shape) if name in weights else "not"
            if there != list(tensor.shape):
                raise AdaRecError(
                    f"teacher: {source} does not fit this dataset of {self.n_items - 1} items: {name} is {there} "
                    f"there, and {list(tensor.shape)} here; distil on the dataset that the teacher was trained on"
                )
        self.stock.load_state_dict({name: weights[name] for name in own})

    def describe(self) -> str:
        """What it teaches, and where, in words for the report."""
        missing = "" if self.distilled_layers else "; it has no layered states, so there is no L_hid"
        count = self.distilled_layers
        layers = f"{count} layer{'' if count == 1 else 's'}, " if count else ""
        where = "at every position" if self.every_position else f"at {self.taught_positions} prefix ends of each window"
        return f"RecBole's {self.name} teaches by its {layers}embedding and outputs, {where}{missing}."

    @torch.no_grad()
    def check(self, interaction: Any) -> None:
        """Compare what is read with the scores of the model itself.

        Parameters
        ----------
        interaction : Interaction
            Rows as RecBole's evaluation feeds them.

        Raises
        ------
        AdaRecError
            If the adapter gives other scores than the model, at the end or, where it claims every position, before.
        """
        rows = SequenceBatch(interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN], interaction[self.USER_ID])
        for part in (1.0, 0.5):
            length = (rows.length * part).long().clamp_min(1)
            kept = torch.arange(rows.item_seq.shape[1], device=length.device) < length[:, None]
            prefix = {self.ITEM_SEQ: rows.item_seq * kept, self.ITEM_SEQ_LEN: length, self.USER_ID: rows.user}
            expected = self.as_recbole_scores(prefix)
            if self.every_position:  # of the whole sequence, at that position
                output = self.stock.gather_indexes(self.read(rows).output, length - 1)
            else:
                output = self.read(SequenceBatch(prefix[self.ITEM_SEQ], length, rows.user)).output
            if output.shape[-1] != self.item_table.items.shape[-1]:
                raise AdaRecError(f"teacher: the adapter of {self.name} gives outputs and a table of different sizes")
            found = output @ self.item_table.items.T
            worst = float((found - expected).abs().max() / expected.abs().max().clamp_min(1e-6))
            if not worst < _TOLERANCE:
                where = "before the end of a sequence" if part < 1 else "at the end of a sequence"
                raise AdaRecError(
                    f"teacher: the adapter of {self.name} does not give the model's own scores {where} (they differ by "
                    f"{worst:.2g} of the largest); mend its output and table, or leave its outputs empty if it is not "
                    "causal"
                )


@contextmanager
def _recorded_outputs(modules: list[nn.Module]) -> Iterator[dict[nn.Module, Tensor]]:
    """Outputs of modules while they run; of several outputs the first."""
    seen: dict[nn.Module, Tensor] = {}

    def note(module: nn.Module, _: Any, output: Any) -> None:
        seen[module] = output[0] if isinstance(output, tuple) else output

    handles = [module.register_forward_hook(note) for module in dict.fromkeys(modules)]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _evaluation_mode(model: nn.Module) -> Iterator[None]:
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
