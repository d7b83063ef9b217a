"""Learning rates, gradient clipping, and an optimizer made of several."""

from __future__ import annotations

import math
from typing import Any

import torch

from recbole_adarec import distributed

_WARM_UP = 0.05  # of the training
_FIRST_STEP = 0.002  # of the training: the first step's rate is not 0


class JointOptimizer:
    """Several optimizers of different parameters, behind the part of torch's interface that a trainer uses.

    Parameters
    ----------
    *optimizers : torch.optim.Optimizer
        No parameter is in two of them.
    """

    def __init__(self, *optimizers: torch.optim.Optimizer) -> None:
        self.optimizers = optimizers

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The parameter groups of all optimizers, by reference."""
        return [group for optimizer in self.optimizers for group in optimizer.param_groups]

    def zero_grad(self) -> None:
        """Clear the gradients of all parameters."""
        for optimizer in self.optimizers:
            optimizer.zero_grad()

    def step(self) -> None:
        """Update all parameters."""
        for optimizer in self.optimizers:
            optimizer.step()

    def state_dict(self) -> dict[str, Any]:
        """The states of the optimizers, by their index as a string."""
        return {str(index): optimizer.state_dict() for index, optimizer in enumerate(self.optimizers)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        for index, optimizer in enumerate(self.optimizers):
            optimizer.load_state_dict(state[str(index)])


def item_table_rate(config: Any, n_items: int) -> float:
    """Learning rate of the item table, in multiples of that of the other weights.

    ``item_table_rate``, or else the root of items over targets of a batch, at least 1 and at most 4: an item occurs in
    few batches, and Adam divides its gradient by the root of a mean square over all of them.

    Parameters
    ----------
    config : recbole.config.Config
        ``item_table_rate``, ``train_batch_size``.
    n_items : int
        I.

    Notes
    -----
    Measured with the teacher on Beauty (12,101 items, 800 targets), validation NDCG@10: a rate of 1 gives 0.0464, 2
    gives 0.0500, 4 gives 0.0505; on ml-100k (1,682 items) 1 gives 0.0757, 2 gives 0.0748, 4 gives 0.0747.
    """
    if config["item_table_rate"] is not None:
        return float(config["item_table_rate"])
    targets = distributed.world_size() * config["train_batch_size"]
    return min(max(math.sqrt(n_items / targets), 1.0), 4.0)


def learning_rate_factor(progress: float, lowest: float) -> float:
    """The learning rate as a part of the highest one: linear warm-up over 5 % of the training, times a cosine.

    Parameters
    ----------
    progress : float
        Part of the training that is done, 0 to 1.
    lowest : float
        Where the cosine ends: ``learning_rate_decay``.
    """
    factor = lowest + (1 - lowest) * (1 + math.cos(math.pi * progress)) / 2
    return factor * min((progress + _FIRST_STEP) / _WARM_UP, 1.0)


def clip_gradients(parameters: list[torch.Tensor], max_norm: float, norm_type: float = 2.0) -> None:
    """Scale gradients in place to a norm of at most `max_norm`: ``torch.nn.utils.clip_grad_norm_``, sparse ones too.

    Parameters
    ----------
    parameters : list of Tensor
        Those without a gradient are skipped; sparse gradients are coalesced.
    max_norm : float
        Largest norm of all gradients together.
    norm_type : float
        The p of the p-norm.
    """
    values = []
    for parameter in parameters:
        if parameter.grad is not None and parameter.grad.is_sparse:
            parameter.grad = parameter.grad.coalesce()
            values.append(parameter.grad.values())
        elif parameter.grad is not None:
            values.append(parameter.grad)
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(values, norm_type)), norm_type)
    torch._foreach_mul_(values, (max_norm / (norm + 1e-6)).clamp(max=1.0))
