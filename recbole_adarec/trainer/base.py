"""The epoch and the step that all stages share: progress bar, learning rate schedule and a record of each epoch."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from recbole.trainer import Trainer
from torch import Tensor
from tqdm import tqdm

from recbole_adarec import distributed
from recbole_adarec.data.dataset import item_counts
from recbole_adarec.data.windows import length_batches
from recbole_adarec.losses.build import build_item_loss
from recbole_adarec.storage.files import load_checkpoint
from recbole_adarec.storage.recbole_writer import admitted_names, save_trainer
from recbole_adarec.trainer.averaging import WeightAverage
from recbole_adarec.trainer.calibration import choose_served_prior, fit_repeat_bias, repeat_share
from recbole_adarec.trainer.codebooks import quantize_items
from recbole_adarec.trainer.collector import GatheringCollector, on_device
from recbole_adarec.trainer.optimizer import JointOptimizer, clip_gradients, item_table_rate, learning_rate_factor

_NAN_CHECK_INTERVAL = 50  # batches; on a GPU each check waits for all that was queued


class Batch(NamedTuple):
    """The part of a training batch that one process holds.

    Attributes
    ----------
    interaction : Interaction
        The windows of this process, on the device.
    targets : int
        Number of targets of the whole batch, over all processes.
    share : float
        Share of these targets that this process holds. Losses are means over the targets of a process, so
        ``sum(share * loss)`` over the processes is the mean over the batch.
    """

    interaction: Any
    targets: int
    share: float


class StageTrainer(Trainer):
    """RecBole's trainer with the epoch of this package; a subclass defines the loss of a batch.

    Fitting, early stopping, evaluation, checkpoints and logging are RecBole's. The checkpoint that is evaluated is not
    the best epoch's but that of the latest epoch whose validation score is within one standard error of the best (the
    one-standard-error rule of Breiman et al., Classification and Regression Trees, 1984, section 3.4.3): among a few
    hundred users the best score is mostly luck.

    Parameters
    ----------
    config : recbole.config.Config
        Of the stage.
    model : SequenceRecommender
        The model to train, on the configuration's device.

    Attributes
    ----------
    training_log : list of dict
        One record for each epoch: mean losses, ``valid_score`` where it was evaluated, and what `epoch_record`
        returned. Files hold it under the key ``history``.
    item_loss : SoftmaxLoss or AdaptiveSoftmaxLoss
        The softmax over items.
    repeat_bias : float
        The model's `repeat_bias`, read once an epoch: to read it in every step would wait for the GPU.
    codebooks : sequence of Tensor
        Codebooks that are trained in place of the rows of the item table; empty until the table is quantized.
    first_epoch : int
        Epoch in which the learning rate schedule began.
    window_share : float
        Share of the windows that are trained, drawn once; 1 by default.
    bar_line : int, optional
        Line of the progress bar below the cursor, where other processes show theirs; it is removed at the end.

    Notes
    -----
    Measured on ml-100k, where the standard error is 0.008: the best of 12 scores was that of epoch 2, with a test
    log-likelihood of -5.951; that of the last epoch is -5.904.
    """

    stage = "training"
    codebooks: Sequence[Tensor] = ()
    first_epoch = 0
    window_share = 1.0
    bar_line: int | None = None

    def __init__(self, config: Any, model: Any) -> None:
        self.item_loss: Any = build_item_loss(config, model.item_table, torch.device(config["device"]))
        if self.item_loss.mode == "sampled":
            model.item_table.use_sparse_gradients()
        super().__init__(config, model)
        self.training_log: list[dict[str, Any]] = []
        self._checkpointing = True
        self.repeat_bias: float = 0.0
        self._repeat_share: float | None = None
        self._average: WeightAverage | None = None
        self.bar: Any = None
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=bool(self.enable_scaler))
        self.eval_collector = GatheringCollector(config)

    # ------------------------------------------------------------------ for subclasses

    def batch_losses(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the loss of a batch.

        Returns
        -------
        tuple
            The loss, a scalar, and its parts by name, for the record of the epoch.
        """
        raise NotImplementedError

    def after_step(self) -> None:
        """Called after each update of the weights; nothing by default."""

    def epoch_record(self) -> dict[str, Any]:
        """Entries that a stage adds to the record of an epoch; none by default."""
        return {}

    def training_state(self) -> dict[str, Any]:
        """State that a stage needs, besides model and optimizer, to resume after an epoch."""
        return {}

    def load_training_state(self, state: dict[str, Any]) -> None:
        """Restore what `training_state` returned."""

    def distillation_state(self) -> dict[str, Tensor]:
        """Projections and layer weights of the distillation; empty without a teacher."""
        return {}

    def windows(self, train_data: Any) -> Tensor:
        """Indices of the windows of an epoch, int64 ``[W]``."""
        count = len(train_data._dataset)
        if self.window_share == 1:
            return torch.arange(count)
        order = torch.randperm(count, generator=torch.Generator().manual_seed(self.config["seed"]))
        return order[: max(round(self.window_share * count), 1)]

    # ------------------------------------------------------------------ the optimizer

    def _build_optimizer(self, **kwargs: Any) -> Any:
        """RecBole's optimizer, with a learning rate for the item table (`item_table_rate`).

        A table with sparse gradients has an optimizer to itself, without weight decay: its step costs what a batch
        touches, not what the catalog holds. Codebooks, all of which every batch touches, learn at the rate of the other
        weights. All parameters are updated in one kernel where torch can (measured: 2 ms instead of 15).
        """
        parameters = list(kwargs.pop("params", self.model.parameters()))
        table = self.model.item_table
        row_ids = {id(parameter) for parameter in table.embeddings()}
        rows = {
            "params": [p for p in parameters if id(p) in row_ids],
            "lr_scale": item_table_rate(self.config, self.model.n_items),
        }
        groups: list[dict[str, Any]] = [{"params": [*(p for p in parameters if id(p) not in row_ids), *self.codebooks]}]
        if not (table.sparse or self.codebooks):
            groups.append(rows)
        optimizer = super()._build_optimizer(params=groups, **kwargs)
        if "fused" in optimizer.defaults:
            for group in optimizer.param_groups:
                group["fused"] = True
        if not table.sparse or self.codebooks:
            return optimizer
        return JointOptimizer(optimizer, torch.optim.SparseAdam([rows], lr=self.learning_rate))

    def optimized_parameters(self) -> list[Tensor]:
        """The parameters that the optimizer updates."""
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    def _set_learning_rate(self, progress: float) -> None:
        """Set the learning rates for the part of the training that is done, 0 to 1."""
        factor = learning_rate_factor(progress, self.config["learning_rate_decay"])
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate * factor * group.get("lr_scale", 1.0)

    def restart(self, epochs: int) -> None:
        """Prepare a further training of the same parameters: new optimizer, learning rate schedule and best score.

        Parameters
        ----------
        epochs : int
            Its epochs; they are numbered on from the last one.
        """
        self.optimizer = self._build_optimizer(params=self.optimized_parameters())
        self.start_epoch = self.first_epoch = len(self.training_log)
        self.epochs, self.eval_step = self.first_epoch + epochs, int(self.config["eval_step"] > 0)
        self.best_valid_score, self.cur_step = -math.inf if self.valid_metric_bigger else math.inf, 0

    # ------------------------------------------------------------------ the epoch and the step

    def batches(self, train_data: Any, windows: Tensor) -> Iterator[Batch]:
        """Yield RecBole's batches of some windows: ``train_batch_size`` targets each, from windows of similar length.

        With n processes a batch is n times as large. All processes go through the same batches in the same order, and
        each takes every n-th window of them.

        Parameters
        ----------
        train_data : DataLoader
            RecBole's, of the training part.
        windows : Tensor
            Indices of windows, int64 ``[W]``.
        """
        processes, number = distributed.world_size(), distributed.rank()
        generator = train_data.generator if train_data.shuffle else None
        length = train_data._dataset.windows.length
        for index in length_batches(windows, length, processes * self.config["train_batch_size"], generator):
            local_index = index[number::processes]
            targets, local_targets = int(length[index].sum()), int(length[local_index].sum())
            # A process without windows computes the first one all the same, with a share of 0.
            interaction = train_data.collate_fn(local_index if local_targets else index[:1])
            yield Batch(on_device(interaction, self.device), targets, local_targets / targets)

    def _train_epoch(
        self, train_data: Any, epoch_idx: int, loss_func: Any = None, show_progress: bool = False
    ) -> float:
        """Train an epoch, append its record to `training_log`, and return its mean loss."""
        self._show_average(False)
        self.model.train()
        self.repeat_bias = float(self.model.repeat_bias)
        windows = self.windows(train_data)
        targets = int(train_data._dataset.windows.length[windows].sum())
        if self.bar is None:
            self.bar = self._progress_bar(targets * (self.epochs - epoch_idx), show_progress)
        sums: dict[str, Tensor] = {}
        done = 0
        for number, batch in enumerate(self.batches(train_data, windows)):
            self._set_learning_rate((epoch_idx - self.first_epoch + done / targets) / (self.epochs - self.first_epoch))
            loss, parts = self._step(batch)
            if number % _NAN_CHECK_INTERVAL == 0:
                self._check_nan(loss)
            for name, part in {"loss": loss, **parts}.items():  # summed on the device: to read one would wait for it
                sums[name] = sums.get(name, 0) + part.detach() * (batch.targets * batch.share)
            done += batch.targets
            self.bar.update(batch.targets)
        means = {name: float(distributed.total(value)) / targets for name, value in sums.items()}
        self._check_nan(torch.tensor(means["loss"]))
        self.training_log.append({"epoch": epoch_idx, **means, **self.epoch_record()})
        self.bar.set_postfix_str(f"epoch {epoch_idx + 1}/{self.epochs}, loss {means['loss']:.4f}")
        return means["loss"]

    def _progress_bar(self, targets: int, show_progress: bool) -> Any:
        """The progress bar of a stage, counted in targets; only the first process shows it."""
        return tqdm(
            total=targets,
            desc=f"{self.stage:>8}",
            unit=" targets",
            unit_scale=True,
            disable=not (show_progress and distributed.is_first()),
            mininterval=0.5 if sys.stderr.isatty() else 15,  # fewer lines in a log file than on a screen
            position=self.bar_line,
            leave=self.bar_line is None,
        )

    def _step(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Update the weights on a batch; the detached loss and its parts."""
        with self.autocast():
            loss, parts = self.batch_losses(batch)
        self.optimizer.zero_grad()
        self.scaler.scale(loss * batch.share).backward()
        parameters = self.optimized_parameters()
        for parameter in self.model.item_table.parameters():
            if parameter.grad is None:  # a block without items in this batch; other processes may have some
                parameter.grad = torch.zeros_like(parameter)
        quantized = self.model.item_table.quantized_embeddings() if self.codebooks else []
        for embedding in quantized:
            embedding.backward_to_codebooks()
        distributed.add_gradients(parameters)
        if self.clip_grad_norm:
            self.scaler.unscale_(self.optimizer)
            clip_gradients(parameters, **self.clip_grad_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        for embedding in quantized:
            embedding.sync_rows()
        self.after_step()
        if self._average is not None:
            self._average.update()
        return loss.detach(), parts

    def _show_average(self, shown: bool) -> None:
        """Let the model hold the average of its weights, or those that are trained, where they are averaged."""
        if self._average is not None:
            self._average.show(shown)

    def autocast(self) -> torch.autocast:
        """The context of mixed precision; does nothing without ``enable_amp``."""
        return torch.autocast(self.device.type, enabled=bool(self.enable_amp))

    # ------------------------------------------------------------------ checkpoints

    def _save_checkpoint(self, epoch: int, verbose: bool = True, **kwargs: Any) -> None:
        """RecBole's, with the state of the stage, in values that every torch loads without running code."""
        if distributed.is_first():
            extra = {"history": self.training_log, "training_state": self.training_state()}
            save_trainer(self, epoch, verbose, kwargs.get("saved_model_file"), **extra)
        distributed.barrier()  # it is there when the others want to read it

    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        """RecBole's; it may load the best model."""
        with admitted_names():
            return super().evaluate(*args, **kwargs)

    def resume_checkpoint(self, resume_file: Any) -> None:
        """RecBole's, which also restores `training_log` and `training_state`.

        Parameters
        ----------
        resume_file : path-like
            A checkpoint that this trainer wrote.
        """
        with admitted_names():
            super().resume_checkpoint(resume_file)
            content = load_checkpoint(resume_file, self.device)
        self.training_log = content["history"]
        self.load_training_state(content["training_state"])

    # ------------------------------------------------------------------ validation and calibration

    def _valid_epoch(self, valid_data: Any, show_progress: bool = False) -> tuple[float, dict[str, float]]:
        """Fit `repeat_bias` and evaluate; saves a checkpoint within a standard error of the best one."""
        self._show_average(True)
        self.fit_repeat_bias(valid_data)
        score, result = super()._valid_epoch(valid_data, show_progress=False)
        self.training_log[-1]["valid_score"] = float(score)
        n_rows = int(distributed.total(torch.tensor(len(valid_data._dataset), device=self.device)))
        if self._checkpointing and self._just_below_best(score, n_rows):
            self._save_checkpoint(self.training_log[-1]["epoch"], verbose=False)
        if self.bar is not None:
            self.bar.set_postfix_str(f"{self.bar.postfix}, {self.config['valid_metric']} {score:.4f}")
        return score, result

    def _just_below_best(self, score: float, n_rows: int) -> bool:
        """Whether a score is below the best one by at most its standard error; RecBole itself saves a new best.

        A metric of single rows lies in [0, 1], so its variance is at most that of a Bernoulli variable of the same
        mean.
        """
        best = self.best_valid_score
        if not (self.valid_metric_bigger and 0 <= score < best <= 1):
            return False
        return score >= best - math.sqrt(best * (1 - best) / n_rows)

    def start_repeat_bias(self, valid_data: Any) -> None:
        """Fit `repeat_bias` before the first epoch, unless the model has one from its teacher or from a file.

        Parameters
        ----------
        valid_data : DataLoader
            RecBole's, of the validation part.
        """
        if not self.model.repeat_bias:
            self.fit_repeat_bias(valid_data)

    def fit_repeat_bias(self, valid_data: Any) -> None:
        """Fit `repeat_bias` on the validation data, unless the key ``repeat_bias`` gives it.

        Parameters
        ----------
        valid_data : DataLoader
            RecBole's, of the validation part.
        """
        if self.config["repeat_bias"] is not None:
            return
        if self._repeat_share is None:
            self._repeat_share = repeat_share(valid_data)
        fit_repeat_bias(self.model.eval(), valid_data, self._repeat_share)

    def choose_served_prior(self, valid_data: Any, valid: dict[str, float]) -> dict[str, float]:
        """Choose the prior scale at inference, as `calibration.choose_served_prior` does."""
        return choose_served_prior(self, valid_data, valid)

    def quantize_items(
        self, train_data: Any, valid_data: Any, valid: dict[str, float], show_progress: bool = False
    ) -> dict[str, float]:
        """Quantize the item table and fine-tune its codebooks, as `codebooks.quantize_items` does."""
        return quantize_items(self, train_data, valid_data, valid, show_progress)

    def round_weights(self, valid_data: Any, valid: dict[str, float]) -> dict[str, float]:
        """Round the weights to what the model file holds; the validation result afterwards. Students' alone are."""
        return valid

    # ------------------------------------------------------------------ the whole training

    def fit(
        self, train_data: Any, valid_data: Any = None, *args: Any, **kwargs: Any
    ) -> tuple[float, dict[str, float] | None]:
        """RecBole's `fit`, with the same parameters; the progress bar covers all its epochs.

        Returns
        -------
        tuple
            The best validation score and its result, which is None without validation data.
        """
        self._checkpointing = kwargs.get("saved", True)
        self.item_loss.prepare(item_counts(train_data._dataset, self.model.n_items))
        distributed.copy_from_first([*self.model.parameters(), *self.model.buffers()])
        if distributed.world_size() > 1:  # each process draws another dropout
            torch.manual_seed(self.config["seed"] + distributed.rank())
        if valid_data is not None:
            self.start_repeat_bias(valid_data)
        if self.config["weight_average"]:
            self._average = WeightAverage(list(self.model.parameters()), self.config["weight_average"])
        try:
            return super().fit(train_data, valid_data, *args, **kwargs)
        finally:
            self._show_average(True)
            if self.bar is not None:
                self.bar.close()
                self.bar = None
