"""Trains the teacher, and `CpRec`, by cross entropy of the next (for BERT4Rec: the masked) item."""

from __future__ import annotations

from typing import Any

from recbole.trainer import Trainer
from torch import Tensor

from recbole_adarec.data.loading import Loaders
from recbole_adarec.model.seen_items import SeenItems
from recbole_adarec.storage.files import plain
from recbole_adarec.trainer.base import Batch, StageTrainer
from recbole_adarec.trainer.calibration import choose_served_prior, fit_repeat_bias, repeat_share
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


def evaluate_model(config: Any, model: Any, data: Loaders) -> dict[str, dict[str, float]]:
    """Metrics of a trained model by RecBole's own evaluation.

    Parameters
    ----------
    config : recbole.config.Config
        Of the stage.
    model : AdaRecTeacher
        On the configuration's device.
    data : Loaders
        The validation and the test part are evaluated.

    Returns
    -------
    dict
        ``valid`` and ``test``: value by metric.
    """
    trainer = _evaluating_trainer(config, model, data)
    results = {name: trainer.evaluate(getattr(data, name), load_best_model=False) for name in ("valid", "test")}
    return plain({name: dict(result) for name, result in results.items()})


def evaluate_mean(config: Any, model: Any, data: Loaders) -> dict[str, dict[str, float]]:
    """Fit `repeat_bias` and the prior scale of a mean of teachers, and evaluate it.

    Parameters
    ----------
    config : recbole.config.Config
        Of the stage.
    model : TeacherMean
        On the configuration's device.
    data : Loaders
        Of the stage.

    Returns
    -------
    dict
        ``valid`` and ``test``: value by metric.
    """
    if config["repeat_bias"] is None:
        fit_repeat_bias(model, data.valid, repeat_share(data.valid))
    trainer = _evaluating_trainer(config, model, data)
    valid = choose_served_prior(trainer, data.valid, dict(trainer.evaluate(data.valid, load_best_model=False)))
    return plain({"valid": valid, "test": dict(trainer.evaluate(data.test, load_best_model=False))})


def _evaluating_trainer(config: Any, model: Any, data: Loaders) -> Any:
    """RecBole's trainer of a model that is trained already."""
    trainer = Trainer(config, model)
    trainer.eval_collector = GatheringCollector(config)
    trainer.eval_collector.data_collect(data.train)
    return trainer


class CpRecTrainer(AdaRecTeacherTrainer):
    """Trains `CpRec`."""

    stage = "CpRec"
