"""Trains the student by distillation.

Its layers start from new weights and its item table from the teacher's. With ``init_from_supernet`` the layers start
from the supernet's weights, as in the paper (AdaRec, arXiv 2107.07173); those were trained with every architecture.

Notes
-----
Measured on Beauty with the same architecture and teacher, validation NDCG@10: 0.0487 after 24 epochs from the
supernet's weights, 0.0522 after 8 from new ones.
"""

from __future__ import annotations

from logging import getLogger
from typing import Any

from torch import Tensor

from recbole_adarec.errors import AdaRecError
from recbole_adarec.storage.model_files import load_state
from recbole_adarec.storage.weights import packed, unpacked
from recbole_adarec.trainer.base import Batch
from recbole_adarec.trainer.distillation import DistillationTrainer


class AdaRecStudentTrainer(DistillationTrainer):
    """Trains `AdaRecStudent`.

    Parameters
    ----------
    config : recbole.config.Config
        ``init_from_supernet``, ``supernet_path`` and ``stored_weights``, and the keys of `DistillationTrainer`.
    model : AdaRecStudent
        The model to train.
    """

    stage = "student"

    def __init__(self, config: Any, model: Any) -> None:
        super().__init__(config, model)
        if config["supernet_path"] and config["init_from_supernet"]:
            load_supernet_weights(model, self.distiller, config["supernet_path"])

    def batch_losses(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The distillation loss of a batch, and its parts."""
        losses = self.losses(self.model.encode(batch.interaction[self.model.ITEM_SEQ]), batch)
        self.update_layer_weights(losses)
        return losses.total, losses.parts

    def round_weights(self, valid_data: Any, valid: dict[str, float]) -> dict[str, float]:
        """Round the weights as ``stored_weights`` says; the validation result afterwards."""
        stored = self.config["stored_weights"]
        if stored == "float32":
            return valid
        self.model.load_state_dict(unpacked(packed(self.model.state_dict(), stored)))
        return dict(self.evaluate(valid_data, load_best_model=False))


def load_supernet_weights(student: Any, distiller: Any, path: str) -> None:
    """Load the weights that a student shares with its supernet, and the distiller's projections.

    A student of another hidden size keeps its new weights.

    Parameters
    ----------
    student : AdaRecStudent
        Its weights are overwritten.
    distiller : Distiller or None
        The student's.
    path : str
        Model file of the supernet.

    Raises
    ------
    AdaRecError
        If the supernet does not hold the student's architecture.
    """
    checkpoint = load_state(path, expected="AdaRecSupernet")
    if checkpoint["config"]["hidden_size"] != student.hidden_size:  # as chosen on the validation data
        getLogger().info("the student has another hidden size than the supernet and starts from new weights")
        return
    shared = {name: tensor for name, tensor in checkpoint["state_dict"].items() if name in student.state_dict()}
    try:
        student.load_state_dict(shared)
        if distiller is not None and checkpoint["distillation"]:
            distiller.load_state_dict(checkpoint["distillation"])
    except RuntimeError as error:
        raise AdaRecError(
            f"supernet_path: {path} does not hold this student's architecture ({' '.join(str(error).split())[:160]}); "
            "give the search that found it, or --init_from_supernet=False"
        ) from error
