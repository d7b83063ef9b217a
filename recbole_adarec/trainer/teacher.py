"""The teacher's training: cross entropy of the next (or, for BERT4Rec, the masked) item."""

from __future__ import annotations

from torch import Tensor

from recbole_adarec.trainer.base import Batch, StageTrainer


class AdaRecTeacherTrainer(StageTrainer):
    """Trains `AdaRecTeacher`."""

    stage = "teacher"

    def batch_losses(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        model, interaction = self.model, batch.interaction
        states, labels = model.training_states(interaction[model.ITEM_SEQ], interaction[model.TARGETS])
        loss, _, _ = self.item_loss(states, model.item_table, labels)
        return loss, {}
