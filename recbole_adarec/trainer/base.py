"""The epoch that all stages share: one progress bar a stage, a cosine on the learning rate, a record of each epoch."""

from __future__ import annotations

import math
import sys
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import torch
from recbole.trainer import Trainer
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from tqdm import tqdm

from recbole_adarec.data.windows import length_batches
from recbole_adarec.files import load_checkpoint


class StageTrainer(Trainer):
    """RecBole's trainer whose subclass says what a batch does.

    Fitting, early stopping, evaluation, checkpoints and logging are RecBole's.

    Attributes
    ----------
    history : list of dict
        One record for each epoch: mean losses, ``valid_score`` where it was evaluated, and what a stage adds.
    """

    stage = "training"

    def __init__(self, config: Any, model: Any) -> None:
        super().__init__(config, model)
        self.history: list[dict[str, Any]] = []
        self.bar: Any = None
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=bool(self.enable_scaler))

    def _build_optimizer(self, **kwargs: Any) -> torch.optim.Optimizer:
        """RecBole's optimizer, all parameters updated in one kernel where torch can (measured: 2 ms against 15)."""
        optimizer = super()._build_optimizer(**kwargs)
        if "fused" in optimizer.defaults:
            for group in optimizer.param_groups:
                group["fused"] = True
        return optimizer

    def batch_losses(self, interaction: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a batch and its parts for the record."""
        raise NotImplementedError

    def after_step(self) -> None:
        """What follows an update of the weights."""

    def epoch_record(self) -> dict[str, Any]:
        """What a stage adds to the record of an epoch."""
        return {}

    def distillation_state(self) -> dict[str, Tensor]:
        """Projections and layer weights of the distillation; nothing where nobody teaches."""
        return {}

    def windows(self, train_data: Any) -> Tensor:
        """Indices of the windows that an epoch goes through."""
        return torch.arange(len(train_data._dataset))

    def batches(self, train_data: Any, windows: Tensor) -> Iterator[Any]:
        """RecBole's batches of these windows, ``train_batch_size`` targets each, of similar length together."""
        generator = train_data.generator if train_data.shuffle else None
        length = train_data._dataset.windows.length
        for index in length_batches(windows, length, self.config["train_batch_size"], generator):
            yield train_data.collate_fn(index)

    def _train_epoch(
        self, train_data: Any, epoch_idx: int, loss_func: Any = None, show_progress: bool = False
    ) -> float:
        self.model.train()
        windows = self.windows(train_data)
        targets = int(train_data._dataset.windows.length[windows].sum())
        if self.bar is None:
            total = targets * (self.epochs - epoch_idx)
            self.bar = tqdm(
                total=total,
                desc=f"{self.stage:>8}",
                unit=" targets",
                unit_scale=True,
                disable=not show_progress,
                mininterval=0.5 if sys.stderr.isatty() else 15,  # a log file wants fewer lines than a screen
            )
        sums: defaultdict[str, float] = defaultdict(float)
        done = 0
        for interaction in self.batches(train_data, windows):
            self._set_learning_rate((epoch_idx + done / targets) / self.epochs)
            loss, parts = self._step(interaction.to(self.device))
            self._check_nan(loss)
            count = int(interaction[self.model.ITEM_SEQ_LEN].sum())
            for name, part in {"loss": loss, **parts}.items():
                sums[name] += part.item() * count
            done += count
            self.bar.update(count)
        means = {name: value / targets for name, value in sums.items()}
        self.history.append({"epoch": epoch_idx, **means, **self.epoch_record()})
        self.bar.set_postfix_str(f"epoch {epoch_idx + 1}/{self.epochs}, loss {means['loss']:.4f}")
        return means["loss"]

    def training_state(self) -> dict[str, Any]:
        """What a stage needs besides model and optimizer to go on from an epoch."""
        return {}

    def load_training_state(self, state: dict[str, Any]) -> None:
        """Take up what `training_state` gave."""

    def _save_checkpoint(self, epoch: int, verbose: bool = True, **kwargs: Any) -> None:
        extra = {"history": self.history, "training_state": self.training_state()}
        super()._save_checkpoint(epoch, verbose, extra=extra, **kwargs)

    def resume_checkpoint(self, resume_file: Any) -> None:
        """RecBole's, with the state of the stage."""
        super().resume_checkpoint(resume_file)
        content = load_checkpoint(resume_file, self.device)
        self.history = content["history"]
        self.load_training_state(content["training_state"])

    def _step(self, interaction: Any) -> tuple[Tensor, dict[str, Tensor]]:
        with torch.autocast(self.device.type, enabled=bool(self.enable_amp)):
            loss, parts = self.batch_losses(interaction)
        self.optimizer.zero_grad()
        self.scaler.scale(loss).backward()
        if self.clip_grad_norm:
            self.scaler.unscale_(self.optimizer)
            trained = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
            clip_grad_norm_(trained, **self.clip_grad_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.after_step()
        return loss.detach(), parts

    def _set_learning_rate(self, progress: float) -> None:
        """Cosine from the highest rate to ``learning_rate_decay`` of it, after a warm-up of 5 % of the training."""
        low = self.config["learning_rate_decay"]
        factor = low + (1 - low) * (1 + math.cos(math.pi * progress)) / 2
        factor *= min((progress + 0.002) / 0.05, 1.0)
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate * factor

    def _valid_epoch(self, valid_data: Any, show_progress: bool = False) -> tuple[float, dict[str, float]]:
        score, result = super()._valid_epoch(valid_data, show_progress=False)
        self.history[-1]["valid_score"] = float(score)
        if self.bar is not None:
            self.bar.set_postfix_str(f"{self.bar.postfix}, {self.config['valid_metric']} {score:.4f}")
        return score, result

    def fit(self, *args: Any, **kwargs: Any) -> tuple[float, dict[str, float] | None]:
        """RecBole's `fit`; the bar of the stage ends with it."""
        try:
            return super().fit(*args, **kwargs)
        finally:
            if self.bar is not None:
                self.bar.close()
                self.bar = None
