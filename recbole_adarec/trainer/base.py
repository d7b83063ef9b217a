"""The epoch that all stages share: one progress bar a stage, a cosine on the learning rate, a record of each epoch."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from logging import getLogger
from typing import Any, NamedTuple

import torch
from recbole.trainer import Trainer
from recbole.utils import calculate_valid_score
from torch import Tensor
from tqdm import tqdm

from recbole_adarec import distributed
from recbole_adarec.data.dataset import item_counts
from recbole_adarec.data.windows import length_batches
from recbole_adarec.losses.build import build_item_loss
from recbole_adarec.storage.files import load_checkpoint
from recbole_adarec.trainer.calibration import fit_repeat_bias, repeat_share
from recbole_adarec.trainer.collector import GatheringCollector, on_device
from recbole_adarec.trainer.optimizer import JointOptimizer, clip_gradients

_SERVED_PARTS = (0.75, 0.5)  # besides 1
_NAN_CHECK = 50  # batches between two looks at the loss: on a GPU each one waits for all that was queued


class Batch(NamedTuple):
    """What a process has of a batch.

    Attributes
    ----------
    interaction : Interaction
        Its windows, on the device.
    targets : int
        Targets of the whole batch, in all processes.
    share : float
        The part of them that is here. Losses are means over what is here, so ``sum(share * loss)`` over the processes
        is the mean over the batch.
    """

    interaction: Any
    targets: int
    share: float


class StageTrainer(Trainer):
    """RecBole's trainer whose subclass says what a batch does.

    Fitting, early stopping, evaluation, checkpoints and logging are RecBole's. Of the epochs whose validation score is
    within a standard error of the best the latest is kept (the one-standard-error rule of Breiman et al.,
    Classification and Regression Trees, 1984, section 3.4.3): among a few hundred users the best score is mostly luck.
    Measured on ml-100k, where the error is .008: the best of 12 scores was that of epoch 2, with a test log-likelihood
    of -5.951; that of the last is -5.904.

    Attributes
    ----------
    history : list of dict
        One record for each epoch: mean losses, ``valid_score`` where it was evaluated, and what a stage adds.
    item_loss : SoftmaxLoss or AdaptiveSoftmaxLoss
        The softmax over items.
    repeat_bias : float
        The model's, as the losses of an epoch have it: a device is not asked for it in every step.
    """

    stage = "training"
    codebooks: Sequence[Tensor] = ()  # trained in place of the item table's rows, once these are codes
    first_epoch = 0  # of the training that the learning rate belongs to

    def __init__(self, config: Any, model: Any) -> None:
        self.item_loss: Any = build_item_loss(config, model.item_table, torch.device(config["device"]))
        if self.item_loss.mode == "sampled":
            model.item_table.use_sparse_gradients()
        super().__init__(config, model)
        self.training_log: list[dict[str, Any]] = []
        self._saved = True
        self.repeat_bias: float = 0.0
        self._share_of_repeats: float | None = None
        self.bar: Any = None
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=bool(self.enable_scaler))
        self.eval_collector = GatheringCollector(config)

    def _build_optimizer(self, **kwargs: Any) -> Any:
        """RecBole's optimizer, all parameters updated in one kernel where torch can (measured: 2 ms against 15).

        The item table learns at a rate of its own (`item_table_rate`). One with sparse gradients has an optimizer of
        its own, whose step costs what a batch touches and not what the catalog holds; it has no weight decay.
        Codebooks, of which every batch touches all, learn as the other weights.
        """
        parameters = list(kwargs.pop("params", self.model.parameters()))
        table = self.model.item_table
        rows = {id(parameter) for parameter in table.embeddings()}
        of_table = {"params": [p for p in parameters if id(p) in rows], "lr_scale": self.item_table_rate()}
        groups: list[dict[str, Any]] = [{"params": [*(p for p in parameters if id(p) not in rows), *self.codebooks]}]
        if not (table.sparse or self.codebooks):
            groups.append(of_table)
        optimizer = super()._build_optimizer(params=groups, **kwargs)
        if "fused" in optimizer.defaults:
            for group in optimizer.param_groups:
                group["fused"] = True
        if not table.sparse or self.codebooks:
            return optimizer
        return JointOptimizer(optimizer, torch.optim.SparseAdam([of_table], lr=self.learning_rate))

    def item_table_rate(self) -> float:
        """How many times as fast as the other weights the item table learns: the root of items over targets of a batch.

        An item occurs in few batches, and Adam divides its gradient by the root of a mean square over all of them.
        Measured with the teacher on Beauty (12,101 items, 800 targets), validation NDCG@10: 1 gives .0464, 2 .0500,
        4 .0505; on ml-100k (1,682 items) 1 gives .0757, 2 .0748, 4 .0747.
        """
        if self.config["item_table_rate"] is not None:
            return float(self.config["item_table_rate"])
        targets = distributed.world_size() * self.config["train_batch_size"]
        return min(max(math.sqrt(self.model.n_items / targets), 1.0), 4.0)

    def batch_losses(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
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

    def batches(self, train_data: Any, windows: Tensor) -> Iterator[Batch]:
        """RecBole's batches of these windows, ``train_batch_size`` targets each, of similar length together.

        Several processes go through the same batches in the same order, each as many times larger, and take every
        n-th window of them.
        """
        processes, number = distributed.world_size(), distributed.rank()
        generator = train_data.generator if train_data.shuffle else None
        length = train_data._dataset.windows.length
        for index in length_batches(windows, length, processes * self.config["train_batch_size"], generator):
            mine = index[number::processes]
            targets, here = int(length[index].sum()), int(length[mine].sum())
            # With fewer windows than processes one takes part all the same, and counts for nothing.
            interaction = train_data.collate_fn(mine if here else index[:1])
            yield Batch(on_device(interaction, self.device), targets, here / targets)

    def _train_epoch(
        self, train_data: Any, epoch_idx: int, loss_func: Any = None, show_progress: bool = False
    ) -> float:
        self.model.train()
        self.repeat_bias = float(self.model.repeat_bias)
        windows = self.windows(train_data)
        targets = int(train_data._dataset.windows.length[windows].sum())
        if self.bar is None:
            total = targets * (self.epochs - epoch_idx)
            self.bar = tqdm(
                total=total,
                desc=f"{self.stage:>8}",
                unit=" targets",
                unit_scale=True,
                disable=not (show_progress and distributed.is_first()),
                mininterval=0.5 if sys.stderr.isatty() else 15,  # a log file wants fewer lines than a screen
            )
        sums: dict[str, Tensor] = {}
        done = 0
        for number, batch in enumerate(self.batches(train_data, windows)):
            self._set_learning_rate((epoch_idx - self.first_epoch + done / targets) / (self.epochs - self.first_epoch))
            loss, parts = self._step(batch)
            if number % _NAN_CHECK == 0:
                self._check_nan(loss)
            for name, part in {"loss": loss, **parts}.items():  # on the device: to read one is to wait for it
                sums[name] = sums.get(name, 0) + part.detach() * (batch.targets * batch.share)
            done += batch.targets
            self.bar.update(batch.targets)
        means = {name: float(distributed.total(value)) / targets for name, value in sums.items()}
        self._check_nan(torch.tensor(means["loss"]))
        self.training_log.append({"epoch": epoch_idx, **means, **self.epoch_record()})
        self.bar.set_postfix_str(f"epoch {epoch_idx + 1}/{self.epochs}, loss {means['loss']:.4f}")
        return means["loss"]

    def training_state(self) -> dict[str, Any]:
        """What a stage needs besides model and optimizer to go on from an epoch."""
        return {}

    def load_training_state(self, state: dict[str, Any]) -> None:
        """Take up what `training_state` gave."""

    def _save_checkpoint(self, epoch: int, verbose: bool = True, **kwargs: Any) -> None:
        if distributed.is_first():
            extra = {"history": self.training_log, "training_state": self.training_state()}
            super()._save_checkpoint(epoch, verbose, extra=extra, **kwargs)
        distributed.barrier()  # it is there when the others want to read it

    def resume_checkpoint(self, resume_file: Any) -> None:
        """RecBole's, with the state of the stage."""
        super().resume_checkpoint(resume_file)
        content = load_checkpoint(resume_file, self.device)
        self.training_log = content["history"]
        self.load_training_state(content["training_state"])

    def _step(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        with self.autocast():
            loss, parts = self.batch_losses(batch)
        self.optimizer.zero_grad()
        self.scaler.scale(loss * batch.share).backward()
        trained = self.optimized()
        for parameter in self.model.item_table.parameters():
            if parameter.grad is None:  # a block without items here; other processes may have some
                parameter.grad = torch.zeros_like(parameter)
        coded = self.model.item_table.quantized_embeddings() if self.codebooks else []
        for embedding in coded:
            embedding.backward_to_codebooks()
        distributed.add_gradients(trained)
        if self.clip_grad_norm:
            self.scaler.unscale_(self.optimizer)
            clip_gradients(trained, **self.clip_grad_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        for embedding in coded:
            embedding.sync_rows()
        self.after_step()
        return loss.detach(), parts

    def optimized(self) -> list[Tensor]:
        """The parameters that the optimizer updates."""
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    def autocast(self) -> torch.autocast:
        """Mixed precision, where ``enable_amp`` asks for it."""
        return torch.autocast(self.device.type, enabled=bool(self.enable_amp))

    def _set_learning_rate(self, progress: float) -> None:
        """Cosine from the highest rate to ``learning_rate_decay`` of it, after a warm-up of 5 % of the training."""
        low = self.config["learning_rate_decay"]
        factor = low + (1 - low) * (1 + math.cos(math.pi * progress)) / 2
        factor *= min((progress + 0.002) / 0.05, 1.0)
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate * factor * group.get("lr_scale", 1.0)

    def start_repeat_bias(self, valid_data: Any) -> None:
        """A first `repeat_bias`, until an epoch has been trained; a teacher's, or that of a file, is kept."""
        if not self.model.repeat_bias:
            self.fit_repeat_bias(valid_data)

    def fit_repeat_bias(self, valid_data: Any) -> None:
        """Without a ``repeat_bias``, let validation say how much less the items of a history are worth."""
        if self.config["repeat_bias"] is not None:
            return
        if self._share_of_repeats is None:
            self._share_of_repeats = repeat_share(valid_data)
        fit_repeat_bias(self.model.eval(), valid_data, self._share_of_repeats)

    def _valid_epoch(self, valid_data: Any, show_progress: bool = False) -> tuple[float, dict[str, float]]:
        self.fit_repeat_bias(valid_data)
        score, result = super()._valid_epoch(valid_data, show_progress=False)
        self.training_log[-1]["valid_score"] = float(score)
        rows = int(distributed.total(torch.tensor(len(valid_data._dataset), device=self.device)))
        if self._saved and self._as_good_as_the_best(score, rows):
            self._save_checkpoint(self.training_log[-1]["epoch"], verbose=False)
        if self.bar is not None:
            self.bar.set_postfix_str(f"{self.bar.postfix}, {self.config['valid_metric']} {score:.4f}")
        return score, result

    def _as_good_as_the_best(self, score: float, rows: int) -> bool:
        """Whether a score is within a standard error of the best one, and not above it: RecBole saves those above.

        A metric of single rows lies in [0, 1], so its variance is at most that of a coin of the same mean.
        """
        best = self.best_valid_score
        if not (self.valid_metric_bigger and 0 <= score < best <= 1):
            return False
        return score >= best - math.sqrt(best * (1 - best) / rows)

    def quantize_items(
        self, train_data: Any, valid_data: Any, valid: dict[str, float], show_progress: bool = False
    ) -> dict[str, float]:
        """Make the item table what is kept of it, and train on for ``item_code_epochs``, its codes as they are.

        Codebooks and all other weights get used to the codes then (as in Stock et al., arXiv 1907.05686, section 3).
        Measured on ml-1m-tail, a student of a sixteenth of its teacher's parameters, test NDCG@10: .1312 as it was
        trained, .1237 with codes, .1273 after 4 epochs more.

        Parameters
        ----------
        train_data, valid_data : DataLoader
            RecBole's, of the training and the validation part.
        valid : dict
            The validation result of what was trained.
        show_progress : bool
            Whether to show a bar.

        Returns
        -------
        dict
            `valid` or, where less is kept than was trained, the result of that.
        """
        table, epochs = self.model.item_table, self.config["item_code_epochs"]
        if not table.quantize():
            return valid
        results = [valid, dict(self.evaluate(valid_data, load_best_model=False))]
        if epochs:
            self._train_codebooks(train_data, valid_data, epochs, show_progress)
            results.append(dict(self.evaluate(valid_data, load_best_model=True)))
        scores = [calculate_valid_score(result, self.valid_metric) for result in results]
        trained = f", {scores[2]} trained on for {epochs} epochs" if epochs else ""
        codes = ", ".join(map(str, table.cut.codes))
        getLogger().info(
            f"item_codes: of {codes} channels; {self.valid_metric} {scores[0]} before, {scores[1]} with{trained}"
        )
        return results[-1]

    def _train_codebooks(self, train_data: Any, valid_data: Any, epochs: int, show_progress: bool) -> None:
        """A training of its own, after the one that the codes come from."""
        trained = self.optimized()
        self.codebooks = self.model.item_table.train_codebooks()
        self.optimizer = self._build_optimizer(params=trained)
        self.start_epoch = self.first_epoch = len(self.training_log)
        self.epochs, self.eval_step = self.first_epoch + epochs, int(self.config["eval_step"] > 0)
        self.best_valid_score, self.cur_step = -math.inf if self.valid_metric_bigger else math.inf, 0
        self.fit(train_data, valid_data, show_progress=show_progress)

    def choose_served_prior(self, valid_data: Any, valid: dict[str, float]) -> dict[str, float]:
        """Without a ``served_prior``, let validation choose the part of the item priors that is in the scores.

        Parameters
        ----------
        valid_data : DataLoader
            RecBole's, of the validation part.
        valid : dict
            Its result with all of the priors.

        Returns
        -------
        dict
            Its result with the part that was chosen.
        """
        table = self.model.item_table
        if self.config["served_prior"] is not None or not table.prior.any():
            return valid
        results = {1.0: valid}
        for part in _SERVED_PARTS:
            table.served.fill_(part)
            results[part] = dict(self.evaluate(valid_data, load_best_model=False))
        scores = {part: calculate_valid_score(result, self.valid_metric) for part, result in results.items()}
        best = (max if self.valid_metric_bigger else min)(scores, key=lambda part: scores[part])
        table.served.fill_(best)
        getLogger().info(f"served_prior: {best} ({', '.join(f'{part}: {score}' for part, score in scores.items())})")
        return results[best]

    def fit(
        self, train_data: Any, valid_data: Any = None, *args: Any, **kwargs: Any
    ) -> tuple[float, dict[str, float] | None]:
        """RecBole's `fit`; the bar of the stage ends with it."""
        self._saved = kwargs.get("saved", True)
        self.item_loss.prepare(item_counts(train_data._dataset, self.model.n_items))
        distributed.copy_from_first([*self.model.parameters(), *self.model.buffers()])
        if distributed.world_size() > 1:  # every process its own dropout
            torch.manual_seed(self.config["seed"] + distributed.rank())
        if valid_data is not None:
            self.start_repeat_bias(valid_data)
        try:
            return super().fit(train_data, valid_data, *args, **kwargs)
        finally:
            if self.bar is not None:
                self.bar.close()
                self.bar = None
