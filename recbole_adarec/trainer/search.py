"""The bilevel search: trains the weights w on some users and the architecture logits α on others.

AdaRec, arXiv 2107.07173, section 3.2; DARTS, arXiv 1806.09055, first order.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from logging import getLogger
from typing import Any

import torch
from torch import Tensor

from recbole_adarec import distributed
from recbole_adarec.data.dataset import WindowDataset
from recbole_adarec.data.windows import split_users
from recbole_adarec.errors import AdaRecError
from recbole_adarec.model.search_space.limits import student_limits
from recbole_adarec.trainer.base import Batch
from recbole_adarec.trainer.distillation import DistillationTrainer

_FULL_RATE_STEPS = 400  # of α in a search; with more of them its learning rate is smaller in proportion


def bilevel_split(dataset: WindowDataset, config: Any) -> tuple[Tensor, Tensor]:
    """Indices of the windows that train w and of those that train α; no user has windows of both kinds.

    With ``bilevel: False`` both are trained on all windows (single-level search).

    Parameters
    ----------
    dataset : WindowDataset
        The training part, of W windows.
    config : recbole.config.Config
        ``bilevel``, ``alpha_users``, ``seed``.

    Returns
    -------
    tuple of Tensor
        Indices, int64, at most ``[W]`` each.

    Raises
    ------
    AdaRecError
        If one of the parts is empty.
    """
    users = dataset.windows.user
    if not config["bilevel"]:
        return torch.arange(len(users)), torch.arange(len(users))
    parts = split_users(users, config["alpha_users"], config["seed"])
    if min(map(len, parts)) == 0:
        raise AdaRecError(
            f"alpha_users: {len(users.unique())} users cannot be split by {config['alpha_users']}; "
            "the search needs at least one user for w and one for alpha"
        )
    return parts


class AdaRecSupernetTrainer(DistillationTrainer):
    """Trains the weights w of `AdaRecSupernet` on the windows of some users and its α on those of the others.

    Each step draws a path and updates w on it with a batch of the first users; only the drawn operations run. Then it
    draws another path from α and updates α with a batch of the second users.

    Paths for w are drawn uniformly with ``uniform_paths`` (Guo et al., arXiv 1904.00420), else from α.

    Parameters
    ----------
    config : recbole.config.Config
        ``cost_budget``, ``budget``, ``uniform_paths``, ``beta``, ``alpha_learning_rate``, ``alpha_warmup``,
        ``alpha_users``, ``gumbel_temperature``, ``gumbel_decay``, and the keys of `DistillationTrainer`.
    model : AdaRecSupernet
        The model to train.

    Attributes
    ----------
    temperature : float
        Of the Gumbel softmax; an epoch multiplies it by ``gumbel_decay``.
    beta : float
        Weight of L_cost in the next update of α.
    gumbel : torch.Generator
        Draws the paths.

    Raises
    ------
    AdaRecError
        If there is a ``cost_budget`` or ``budget`` but no teacher, or no architecture is within it.

    Notes
    -----
    With paths for w drawn from α, an operation that lags is trained less and lags more. Measured on ml-100k: α gave
    convolutions 0.02 in all and pools 0.70, and its most probable student was worse by 0.01 to 0.03 in validation
    log-likelihood than any drawn from a flattened α.
    """

    stage = "search"

    def __init__(self, config: Any, model: Any) -> None:
        super().__init__(config, model)
        if given := [key for key in ("cost_budget", "budget") if config[key] is not None]:
            if not config["teacher_path"]:
                raise AdaRecError(
                    f"{given[0]}: it is measured by the teacher, and no teacher_path is given; give one, or "
                    f"--{given[0]}=~"
                )
            model.limit(student_limits(config, self.teacher or self._load_teacher(config["teacher_path"])))
            if unaffordable := model.beyond_budget():
                getLogger().warning(
                    f"{'; '.join(limit.key for limit in model.limits)}: less than one of these costs, so no student "
                    f"has any: {', '.join(unaffordable)}; a larger budget admits them"
                )
        self.alpha_optimizer = torch.optim.Adam([model.alpha], lr=config["alpha_learning_rate"], betas=(0.5, 0.999))
        self._warmup = int(config["alpha_warmup"] * self.epochs + 1e-6)
        self._alpha_steps, self._total_alpha_steps = 0, 1
        self.temperature: float = config["gumbel_temperature"]
        self.beta: float = 0.0
        self.gumbel = torch.Generator().manual_seed(config["seed"])  # all processes draw the same paths
        self._alpha_batches: Iterator[Batch] = iter(())
        self._alpha_losses: list[Tensor] = []

    def model_parameters(self) -> list[torch.nn.Parameter]:
        """All parameters of the supernet but α."""
        return self.model.weights()

    def windows(self, train_data: Any) -> Tensor:
        """Indices of the windows that train w in an epoch, int64 ``[W]``; prepares the batches that train α."""
        weight_windows, alpha_windows = bilevel_split(train_data._dataset, self.config)
        self._alpha_batches = self._repeated_batches(train_data, alpha_windows)
        targets = int(train_data._dataset.windows.length[weight_windows].sum())
        batch = distributed.world_size() * self.config["train_batch_size"]
        epochs = self.epochs - self._warmup
        self._total_alpha_steps = max(epochs * math.ceil(targets / batch), 1)
        return weight_windows

    def _repeated_batches(self, train_data: Any, windows: Tensor) -> Iterator[Batch]:
        """Batches of some windows, again and again in another order."""
        while True:
            yield from self.batches(train_data, windows)

    def batch_losses(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The distillation loss of a batch on a drawn path, and its parts."""
        if self.config["uniform_paths"]:
            choice = self.model.uniform_path(self.gumbel)
        else:
            choice = self.model.sample(self.temperature, self.gumbel).choice
        losses = self.losses(self.model.encode_path(batch.interaction[self.model.ITEM_SEQ], choice), batch)
        self.update_layer_weights(losses)
        return losses.total, losses.parts

    def after_step(self) -> None:
        """Update α once the epochs of its warm-up are over."""
        if len(self.training_log) >= self._warmup:
            self._advance_alpha_schedule()
            self._alpha_losses.append(self._alpha_step(next(self._alpha_batches)))

    def _advance_alpha_schedule(self) -> None:
        """Set the learning rate of α and the weight of L_cost for the next update of α.

        Adam moves α by its learning rate in each step, whatever the gradient. With a constant rate the search on a
        large dataset would be over after the first epoch, while the weights are not trained, and prefer operations
        without weights. So α moves by the same distance at most in a search of any number of steps. L_cost enters
        slowly, accuracy first.
        """
        rate = self.config["alpha_learning_rate"] * min(_FULL_RATE_STEPS / self._total_alpha_steps, 1.0)
        for group in self.alpha_optimizer.param_groups:
            group["lr"] = rate
        self._alpha_steps += 1
        self.beta = self.config["beta"] * min(2 * self._alpha_steps / self._total_alpha_steps, 1.0)

    def _alpha_step(self, batch: Batch) -> Tensor:
        """Update α on a batch; no other parameter receives a gradient. Returns the detached loss of the process."""
        model, alpha = self.model, self.model.alpha
        sample = model.sample(self.temperature, self.gumbel)
        weights = self.optimized_parameters()
        for weight in weights:
            weight.requires_grad_(False)  # their gradients would be computed for nothing
        try:
            with self.autocast():
                encoding, trace = model.encode_traced(batch.interaction[model.ITEM_SEQ], sample)
                losses = self.losses(encoding, batch)
            # Scaled as the loss of the weights, so that half precision keeps small gradients.
            scale = batch.share * self.scaler.get_scale()
            alpha.grad = model.alpha_gradient(sample, trace, losses.total * scale, self.beta * scale)
        finally:
            for weight in weights:
                weight.requires_grad_(True)
        distributed.total(alpha.grad.div_(self.scaler.get_scale()))
        if self.scaler.is_enabled():  # an overflow updates nothing, as for the weights
            alpha.grad.nan_to_num_(0.0, 0.0, 0.0)
        self.alpha_optimizer.step()
        total = losses.total + self.beta * model.cost_loss(sample.gates)
        return total.detach() * batch.share

    def training_state(self) -> dict[str, Any]:
        """The state of the distiller, and that of the search."""
        state = super().training_state()
        return {
            **state,
            "temperature": self.temperature,
            "alpha_optimizer": self.alpha_optimizer.state_dict(),
            "gumbel": self.gumbel.get_state(),
            "alpha_steps": self._alpha_steps,
        }

    def load_training_state(self, state: dict[str, Any]) -> None:
        """Restore what `training_state` returned."""
        super().load_training_state(state)
        self.temperature = state["temperature"]
        self.alpha_optimizer.load_state_dict(state["alpha_optimizer"])
        self.gumbel.set_state(state["gumbel"].cpu())
        self._alpha_steps = state["alpha_steps"]

    def epoch_record(self) -> dict[str, Any]:
        """Loss, temperature and probabilities ``[G, E, O]`` of α in an epoch; lowers the temperature for the next."""
        alpha_loss = distributed.total(torch.stack(self._alpha_losses).mean()) if self._alpha_losses else None
        record = {
            **super().epoch_record(),
            "alpha_loss": None if alpha_loss is None else float(alpha_loss),
            "temperature": self.temperature,
            "alpha": self.model.logits().detach().softmax(-1).tolist(),
            **self.model.alpha_statistics(),
        }
        self._alpha_losses = []
        self.temperature *= self.config["gumbel_decay"]
        return record
