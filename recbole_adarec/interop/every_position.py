"""RecBole's causal models trained on every position of windows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from recbole_adarec.model.base import Encoding, SequenceRecommender
from recbole_adarec.model.item_table.full import FullItemTable
from recbole_adarec.model.registry import get_model
from recbole_adarec.trainer.teacher import AdaRecTeacherTrainer

States = Callable[[Any, Tensor], Tensor]
EVERY_POSITION_MODELS: dict[str, States] = {}


def reads_every_position(name: str) -> Callable[[States], States]:
    """Tell that a RecBole model is causal, and how to read its states at all positions.

    The decorated function takes the model and item ids ``[B, L]``, and gives what is scored against
    ``model.item_embedding``, ``[B, L, C]``.
    """

    def enter(states: States) -> States:
        EVERY_POSITION_MODELS[name] = states
        return states

    return enter


@reads_every_position("SASRec")
@reads_every_position("GRU4Rec")
def _before_the_last_is_taken(model: Any, item_seq: Tensor) -> Tensor:
    """Of models whose ``forward`` ends in taking the state at the last item."""
    model.gather_indexes = lambda output, _: output
    try:
        return model.forward(item_seq, (item_seq != 0).sum(1))
    finally:
        del model.gather_indexes


@reads_every_position("NextItNet")
def _nextitnet(model: Any, item_seq: Tensor) -> Tensor:
    """RecBole's takes the last position, which holds padding after a short history; here the last item's is taken."""
    return model.final_layer(model.residual_blocks(model.item_embedding(item_seq)))


class EveryPosition(SequenceRecommender):
    """A causal model of RecBole under our training: cross entropy of the next item at every position.

    What RecBole adds to the loss (NextItNet: 1e-5 times the norms of its weights) is left out.

    Parameters
    ----------
    config : recbole.config.Config
        That of the RecBole model, with the keys of `every_position_values`.
    dataset : Dataset
        For the number of items.
    """

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        self.stock = get_model(config["model"])(config, dataset)
        self.states = EVERY_POSITION_MODELS[config["model"]]
        table: nn.Embedding = self.stock.item_embedding
        self.item_table = FullItemTable(self.n_items, table.embedding_dim)
        self.item_table.share_embedding(table)

    def encode(self, item_seq: Tensor) -> Encoding:
        """States at all positions; no layers to distil."""
        return Encoding(self.stock.item_embedding(item_seq), (), self.states(self.stock, item_seq))


class EveryPositionTrainer(AdaRecTeacherTrainer):
    """Trains `EveryPosition` at RecBole's constant learning rate."""

    stage = "baseline"

    def _set_learning_rate(self, progress: float) -> None:
        """Nothing: RecBole has no schedule."""

    def _just_below_best(self, score: float, n_rows: int) -> bool:
        """False: the best epoch is kept, as in RecBole."""
        return False
