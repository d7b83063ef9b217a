"""RecBole's own models as teachers: what each of them computes is read by forward hooks, so none needs a change."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

import torch
from recbole.utils import get_model
from torch import Tensor, nn
from torch.nn import functional as F

from recbole_adarec.checkpoints import StoredConfig
from recbole_adarec.errors import AdaRecError
from recbole_adarec.model.base import Encoding, SequenceRecommender
from recbole_adarec.model.teacher import AdaRecTeacher, prefix_ends

HOW = 'write an adapter: README, "Extend", @teacher_adapter'
_TOLERANCE = 1e-3  # of the largest score: hooks read what the model computes, in another order at most


class Rows(NamedTuple):
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

    def output(self, model: Any, rows: Rows) -> Tensor:
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

    def output(self, model: Any, rows: Rows) -> Tensor:
        return model(rows.item_seq)


@teacher_adapter("BERT4Rec")
class _BERT4Rec(TeacherAdapter):
    """RecBole puts the mask behind the items and drops the first of them, so the mask is where the last item was."""

    layers = "trm_encoder.layer.*"

    def output(self, model: Any, rows: Rows) -> Tensor:
        states = model(model.reconstruct_test_data(rows.item_seq, rows.length))
        return F.pad(model.gather_indexes(states, rows.length - 1), (0, 1), value=1.0)

    def table(self, model: Any) -> Tensor:
        items = model.item_embedding.weight[: model.n_items]
        return torch.cat([items, model.output_bias[:, None]], 1)  # the output's last channel is 1


@teacher_adapter("Caser")
class _Caser(TeacherAdapter):
    """Its convolutions run over the whole sequence at once, so no layer has a state of a position."""

    def output(self, model: Any, rows: Rows) -> Tensor:
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

    def output(self, model: Any, rows: Rows) -> Tensor:
        return model(rows.item_seq) / model.temperature

    def table(self, model: Any) -> Tensor:
        return F.normalize(model.item_embedding.weight, dim=-1)


class _Sizes:
    """As much of a RecBole dataset as its models ask for: how many items and users, and how long sequences are."""

    def __init__(self, config: Any, n_items: int, n_users: int) -> None:
        self.item_num, self.user_num = n_items, n_users
        self._items = config["ITEM_ID_FIELD"]
        self.field2seqlen = {f"{self._items}{config['LIST_SUFFIX']}": config["MAX_ITEM_LIST_LENGTH"]}

    def num(self, field: str) -> int:
        return self.item_num if field == self._items else self.user_num


class _StockItems:
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

    def parameters(self) -> Iterator[nn.Parameter]:
        return self._adapter.item_embedding(self._model).parameters()


class StockTeacher(AdaRecTeacher):
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
        self.item_table: Any = _StockItems(self.stock, self.adapter)
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
            with _evaluating(self):
                self.check({self.ITEM_SEQ: item_seq, self.ITEM_SEQ_LEN: one, self.USER_ID: one})
                return self.read(Rows(item_seq, one, one))
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
    def everywhere(self) -> bool:
        """Whether it teaches at every position, or only at the ends of some prefixes."""
        return bool(self.adapter.outputs)

    def _modules_named(self, pattern: str) -> list[Any]:
        regex = re.escape(pattern).replace(r"\*", r"\d+")
        found = [module for name, module in self.stock.named_modules() if name and re.fullmatch(regex, name)]
        if pattern and not found:
            names = ", ".join(name for name, _ in self.stock.named_children())
            raise AdaRecError(f"teacher: {self.name} has no module {pattern!r} for its adapter; it has {names}")
        return found

    def read(self, rows: Rows) -> Encoding:
        """Run the model on sequences: ``[B, L, C]`` of every position, or ``[B, C]`` of each sequence as a whole."""
        adapter, model = self.adapter, self.stock
        rows = rows._replace(item_seq=self._as_recbole_feeds(rows.item_seq))
        with _watching([*self._layers, *self._outputs, *self._embedding]) as seen:
            state = adapter.output(model, rows)
        if len(seen) < len({*self._layers, *self._outputs, *self._embedding}):
            raise AdaRecError(f"teacher: {self.name} does not run every module that its adapter names")
        layers = [seen[layer] for layer in self._layers]
        of_items = seen[self._embedding[0]] if self._embedding else adapter.item_embedding(model)(rows.item_seq)
        if self.everywhere:
            return Encoding(of_items, tuple(layers), seen[self._outputs[0]])
        row, end = torch.arange(len(state), device=state.device), rows.length - 1
        place = torch.full_like(end, -1) if adapter.at_last else end
        return Encoding(of_items[row, end], tuple(layer[row, place] for layer in layers), state)

    def _as_recbole_feeds(self, item_seq: Tensor) -> Tensor:
        """Padded to the full width, which some models need; the states of a causal one do not depend on it."""
        return item_seq if self.everywhere else F.pad(item_seq, (0, self.max_seq_length - item_seq.shape[1]))

    def taught_in(self, interaction: Any) -> tuple[Encoding, Tensor]:
        item_seq, users = interaction[self.ITEM_SEQ], interaction[self.USER_ID]
        real = item_seq != 0
        lengths = real.sum(1)
        if self.everywhere:
            return self.read(Rows(item_seq, lengths, users)).at(real), real
        ends = prefix_ends(item_seq, self.taught_positions)
        window, position = ends.nonzero(as_tuple=True)
        kept = torch.arange(item_seq.shape[1], device=item_seq.device) <= position[:, None]
        return self.read(Rows(item_seq[window] * kept, position + 1, users[window])), ends

    def encode(self, item_seq: Tensor) -> Encoding:
        """One pass, for what it costs; user 1 is as good as any."""
        lengths = (item_seq != 0).sum(1)
        return self.read(Rows(item_seq, lengths, torch.ones_like(lengths)))

    def scores(self, item_seq: Tensor, lengths: Tensor) -> Tensor:
        """Scores of all items after sequences of nobody in particular."""
        wide = F.pad(item_seq, (0, self.max_seq_length - item_seq.shape[1]))
        rows = {self.ITEM_SEQ: wide, self.ITEM_SEQ_LEN: lengths, self.USER_ID: torch.zeros_like(lengths)}
        return self.full_sort_predict(rows)

    def full_sort_predict(self, interaction: Any) -> Tensor:
        scores, taken = self.as_recbole_scores(interaction), self.taken(interaction[self.ITEM_SEQ])
        return scores if taken is None else taken.add_to(scores)

    def as_recbole_scores(self, interaction: Any) -> Tensor:
        """The model's own scores of all items, ``[B, I]``."""
        scores: Tensor = self.stock.full_sort_predict(interaction)
        return scores.view(-1, self.n_items)

    def predict(self, interaction: Any) -> Tensor:
        scores, taken = self.stock.predict(interaction), self.taken(interaction[self.ITEM_SEQ])
        return scores if taken is None else scores + taken.among(interaction[self.ITEM_ID][:, None]).squeeze(1)

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

    def lessons(self) -> str:
        """What it teaches, and where, in words for the report."""
        missing = "" if self.distilled_layers else "; it has no layered states, so there is no L_hid"
        count = self.distilled_layers
        layers = f"{count} layer{'' if count == 1 else 's'}, " if count else ""
        where = "at every position" if self.everywhere else f"at {self.taught_positions} prefix ends of each window"
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
        rows = Rows(interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN], interaction[self.USER_ID])
        for part in (1.0, 0.5):
            length = (rows.length * part).long().clamp_min(1)
            kept = torch.arange(rows.item_seq.shape[1], device=length.device) < length[:, None]
            prefix = {self.ITEM_SEQ: rows.item_seq * kept, self.ITEM_SEQ_LEN: length, self.USER_ID: rows.user}
            expected = self.as_recbole_scores(prefix)
            if self.everywhere:  # of the whole sequence, at that position
                output = self.stock.gather_indexes(self.read(rows).output, length - 1)
            else:
                output = self.read(Rows(prefix[self.ITEM_SEQ], length, rows.user)).output
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
def _watching(modules: list[nn.Module]) -> Iterator[dict[nn.Module, Tensor]]:
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
def _evaluating(model: nn.Module) -> Iterator[None]:
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
