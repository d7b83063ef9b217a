"""The student's training under the teacher.

It starts from new layers and the teacher's item table. The supernet's weights, as the paper has it, have been trained
with every architecture: measured on Beauty, the same architecture and teacher, from them .0487 of validation NDCG@10
after 24 epochs, from new ones .0522 after 8.
"""

from __future__ import annotations

from logging import getLogger
from typing import Any

from torch import Tensor

from recbole_adarec.errors import AdaRecError
from recbole_adarec.storage.model_files import load_state
from recbole_adarec.trainer.base import Batch
from recbole_adarec.trainer.distillation import DistillationTrainer


class AdaRecStudentTrainer(DistillationTrainer):
    """Trains `AdaRecStudent`, with ``init_from_supernet`` from the supernet's weights of the chosen operations."""

    stage = "student"

    def __init__(self, config: Any, model: Any) -> None:
        super().__init__(config, model)
        if config["supernet_path"] and config["init_from_supernet"]:
            start_from_supernet(model, self.distiller, config["supernet_path"])

    def batch_losses(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        losses = self.losses(self.model.encode(batch.interaction[self.model.ITEM_SEQ]), batch)
        self.move_layer_weights(losses)
        return losses.total, losses.parts


def start_from_supernet(student: Any, distiller: Any, path: str) -> None:
    """Copy the weights that student and supernet have in common, the distiller's projections with them.

    Raises
    ------
    AdaRecError
        If the supernet does not hold the student's architecture.
    """
    checkpoint = load_state(path, expected="AdaRecSupernet")
    if checkpoint["config"]["hidden_size"] != student.hidden_size:  # validation preferred another size
        getLogger().info("the student has another hidden size than the supernet and starts without its weights")
        return
    chosen = {name: tensor for name, tensor in checkpoint["state_dict"].items() if name in student.state_dict()}
    try:
        student.load_state_dict(chosen)
        if distiller is not None and checkpoint["distillation"]:
            distiller.load_state_dict(checkpoint["distillation"])
    except RuntimeError as error:
        raise AdaRecError(
            f"supernet_path: {path} does not hold this student's architecture ({' '.join(str(error).split())[:160]}); "
            "give the search that found it, or --init_from_supernet=False"
        ) from error
