"""Several optimizers that act as one."""

from __future__ import annotations

from typing import Any

import torch


class JointOptimizer:
    """Optimizers of different parameters behind the part of torch's interface that a trainer uses.

    Parameters
    ----------
    *optimizers : torch.optim.Optimizer
        Of disjoint parameters.
    """

    def __init__(self, *optimizers: torch.optim.Optimizer) -> None:
        self.optimizers = optimizers

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The groups of all; to change one here changes it there."""
        return [group for optimizer in self.optimizers for group in optimizer.param_groups]

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for optimizer in self.optimizers:
            optimizer.zero_grad()

    def step(self) -> None:
        """Update all parameters."""
        for optimizer in self.optimizers:
            optimizer.step()

    def state_dict(self) -> dict[str, Any]:
        """The states of all, by their place."""
        return {str(place): optimizer.state_dict() for place, optimizer in enumerate(self.optimizers)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what `state_dict` gave."""
        for place, optimizer in enumerate(self.optimizers):
            optimizer.load_state_dict(state[str(place)])


def clip_gradients(parameters: list[torch.Tensor], max_norm: float, norm_type: float = 2.0) -> None:
    """``torch.nn.utils.clip_grad_norm_`` that also takes sparse gradients, which are coalesced."""
    values = []
    for parameter in parameters:
        if parameter.grad is not None and parameter.grad.is_sparse:
            parameter.grad = parameter.grad.coalesce()
            values.append(parameter.grad.values())
        elif parameter.grad is not None:
            values.append(parameter.grad)
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(values, norm_type)), norm_type)
    torch._foreach_mul_(values, (max_norm / (norm + 1e-6)).clamp(max=1.0))
