"""The teacher's training: cross entropy of the next (or, for BERT4Rec, the masked) item."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from recbole_adarec.distillation.losses import item_losses
from recbole_adarec.trainer.base import StageTrainer


class AdaRecTeacherTrainer(StageTrainer):
    """Trains `AdaRecTeacher`."""

    stage = "teacher"

    def batch_losses(self, interaction: Any) -> tuple[Tensor, dict[str, Tensor]]:
        model = self.model
        states, labels = model.training_states(interaction[model.ITEM_SEQ], interaction[model.TARGETS])
        loss, _, _ = item_losses(states, model.item_table.items, labels)
        return loss, {}
