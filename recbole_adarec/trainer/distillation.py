"""Training by distillation: the base of the trainers of supernet and student."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from recbole_adarec import distributed
from recbole_adarec.data.dataset import WindowDataset
from recbole_adarec.distillation.distiller import Distiller, Losses, check_distillation
from recbole_adarec.distillation.teacher_outputs import CachedTeacher, LiveTeacher, TeacherOutputCache
from recbole_adarec.errors import AdaRecError
from recbole_adarec.model.base import Encoding
from recbole_adarec.model.positions import nonzero_positions
from recbole_adarec.model.seen_items import seen_items
from recbole_adarec.model.stored import load_model
from recbole_adarec.model.teachers.base import AdaRecTeacher
from recbole_adarec.trainer.base import Batch, StageTrainer


class DistillationTrainer(StageTrainer):
    """A trainer whose loss is that of a `Distiller`, or cross entropy alone.

    Parameters
    ----------
    config : recbole.config.Config
        ``teacher_path``, ``init_from_teacher``, ``teacher_cache_mb`` and the keys of `Distiller`.
    model : CellStack
        The supernet or the student.

    Attributes
    ----------
    teacher : AdaRecTeacher or None
        None without ``teacher_path`` or with ``gamma: 0``.
    distiller : Distiller or None
        None without a teacher.
    teacher_outputs : TeacherOutputCache
        May be replaced by a cache that several trainings with the same teacher and data share.
    outputs : LiveTeacher or CachedTeacher or None
        Source of the teacher's outputs for a batch; set by `fit`.

    Raises
    ------
    AdaRecError
        If the teacher knows other items than the dataset has.
    """

    def __init__(self, config: Any, model: Any) -> None:
        super().__init__(config, model)
        check_distillation(config)
        self.teacher: AdaRecTeacher | None = None
        self.distiller: Distiller | None = None
        self.teacher_outputs = TeacherOutputCache()
        self.outputs: LiveTeacher | CachedTeacher | None = None
        if config["teacher_path"] and config["gamma"] > 0:
            self.teacher = self._load_teacher(config["teacher_path"])
            self.distiller = Distiller(
                config, model.hidden_size, len(model.cells), self.teacher.layer_shapes,
                self.teacher.item_table.matrix, float(self.teacher.repeat_bias), self.teacher.item_embeddings,
            ).to(self.device)  # fmt: skip
            if config["repeat_bias"] is None:  # until that of the model has been fitted
                model.repeat_bias.copy_(self.teacher.repeat_bias)
            if config["init_from_teacher"]:
                self.distiller.start_from_teacher(model.item_table)
        self.optimizer = self._build_optimizer(params=self.trained_parameters())

    def _load_teacher(self, path: str) -> AdaRecTeacher:
        """The teacher of a model file, frozen and in evaluation mode."""
        teacher = load_model(path, self.device, expected="AdaRecTeacher")
        if teacher.n_items != self.model.n_items:
            raise AdaRecError(
                f"{path}: this teacher knows {teacher.n_items - 1} items, the dataset has {self.model.n_items - 1}; "
                "distil on the dataset that the teacher was trained on"
            )
        return teacher.eval().requires_grad_(False)

    def model_parameters(self) -> list[torch.nn.Parameter]:
        """The model's parameters that the optimizer of the weights updates."""
        return list(self.model.parameters())

    def trained_parameters(self) -> list[torch.nn.Parameter]:
        """`model_parameters`, and those of the distiller."""
        return self.model_parameters() + ([] if self.distiller is None else list(self.distiller.parameters()))

    def fit(self, train_data: Any, *args: Any, **kwargs: Any) -> tuple[float, dict[str, float] | None]:
        """`StageTrainer.fit`, after the teacher's outputs of all windows are in the cache."""
        if self.teacher is not None and self.distiller is not None and self.outputs is None:
            dataset: WindowDataset = train_data._dataset
            full_softmax = self.distiller.use_output and self.item_loss.mode in ("full", "chunked")
            self.outputs = self.teacher_outputs.get(
                self.teacher, self.distiller.distance, dataset, self.config["teacher_cache_mb"],
                self.distiller.temperature if full_softmax else None, self.model.item_table,
            )  # fmt: skip
            distributed.copy_from_first([*self.distiller.parameters(), *self.distiller.buffers()])
        return super().fit(train_data, *args, **kwargs)

    def losses(self, encoding: Encoding, batch: Batch) -> Losses:
        """Compute all losses of a batch.

        Parameters
        ----------
        encoding : Encoding
            The model's, ``[B, L, C]``.
        batch : Batch
            The windows that it encoded.
        """
        item_seq, targets = batch.interaction[self.model.ITEM_SEQ], batch.interaction[self.model.TARGETS]
        table, bias = self.model.item_table, self.repeat_bias
        if self.distiller is None or self.outputs is None:
            real = nonzero_positions(targets != 0)
            seen = seen_items(item_seq, real, bias)
            loss, ce, _ = self.item_loss(encoding.select(real).output, table, targets.flatten()[real], seen=seen)
            return Losses(loss, {"ce": ce}, None)
        teacher_targets = self.outputs.targets_of(batch.interaction)
        return self.distiller(encoding, item_seq, targets, table, teacher_targets, self.item_loss, batch.share, bias)

    def update_layer_weights(self, losses: Losses) -> None:
        """Update the layer weights u and v by the layer distances of a batch."""
        if self.distiller is not None and losses.distances is not None:
            self.distiller.mapping.update(losses.distances)

    def epoch_record(self) -> dict[str, Any]:
        """Layer weights ``[S]`` and ``[T]`` and the flow ``[S, T]`` between the layers; empty without L_hid."""
        if self.distiller is None or not self.distiller.use_hidden:
            return {}
        mapping = self.distiller.mapping
        return {
            "student_layer_weights": mapping.student_weights.tolist(),
            "teacher_layer_weights": mapping.teacher_weights.tolist(),
            "flow": mapping.flow.tolist(),
        }

    def training_state(self) -> dict[str, Any]:
        """The state of the distiller."""
        return {"distillation": self.distillation_state()}

    def load_training_state(self, state: dict[str, Any]) -> None:
        """Restore what `training_state` returned."""
        if self.distiller is not None:
            self.distiller.load_state_dict(state["distillation"])

    def distillation_state(self) -> dict[str, Tensor]:
        """Projections and layer weights, for the model file of the stage."""
        return {} if self.distiller is None else dict(self.distiller.state_dict())
