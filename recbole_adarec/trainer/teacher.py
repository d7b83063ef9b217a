"""Trains the teacher, and `CpRec`, by cross entropy of the next (for BERT4Rec: the masked) item."""

from __future__ import annotations

from typing import Any

from recbole.trainer import Trainer
from torch import Tensor

from recbole_adarec.data.loading import Loaders
from recbole_adarec.model.seen_items import SeenItems
from recbole_adarec.storage.files import plain
from recbole_adarec.trainer.base import Batch, StageTrainer
from recbole_adarec.trainer.collector import GatheringCollector


class AdaRecTeacherTrainer(StageTrainer):
    """Trains `AdaRecTeacher`."""

    stage = "teacher"

    def batch_losses(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The cross entropy of a batch; it has no parts."""
        model, interaction = self.model, batch.interaction
        states, labels, before = model.training_states(interaction[model.ITEM_SEQ], interaction[model.TARGETS])
        seen = SeenItems(before, self.repeat_bias) if self.repeat_bias else None
        loss, _, _ = self.item_loss(states, model.item_table, labels, seen=seen)
        return loss, {}


def evaluate_recbole_model(config: Any, model: Any, data: Loaders) -> dict[str, dict[str, float]]:
    """Metrics of a RecBole model by RecBole's own evaluation.

    Parameters
    ----------
    config : recbole.config.Config
        Of the stage.
    model : RecBoleTeacher
        On the configuration's device.
    data : Loaders
        The validation and the test part are evaluated.

    Returns
    -------
    dict
        ``valid`` and ``test``: value by metric.
    """
    trainer = Trainer(config, model)
    trainer.eval_collector = GatheringCollector(config)
    trainer.eval_collector.data_collect(data.train)
    results = {name: trainer.evaluate(getattr(data, name), load_best_model=False) for name in ("valid", "test")}
    return plain({name: dict(result) for name, result in results.items()})


class CpRecTrainer(AdaRecTeacherTrainer):
    """Trains `CpRec`."""

    stage = "CpRec"
