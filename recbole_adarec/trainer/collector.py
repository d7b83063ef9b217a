"""Collects the rankings that RecBole's metrics are computed from, over all processes."""

from __future__ import annotations

from typing import Any

import torch
from recbole.data.interaction import Interaction
from recbole.evaluator import Collector
from torch import Tensor

from recbole_adarec import distributed
from recbole_adarec.data.dataset import WINDOW_FIELD


def on_device(interaction: Interaction, device: torch.device) -> Interaction:
    """A copy of a batch on a device, without waiting for what is queued there; indices of windows stay on the CPU."""
    tensors = {
        name: value if name == WINDOW_FIELD else value.to(device, non_blocking=True)
        for name, value in interaction.interaction.items()
    }
    return Interaction(tensors)


class GatheringCollector(Collector):
    """RecBole's collector, which joins the rankings of all processes.

    Hits among the best items are looked up, where RecBole fills and sums a matrix of rows by items.

    Parameters
    ----------
    config : recbole.config.Config
        ``metrics``, ``topk``.

    Notes
    -----
    Measured with a student on the validation users of Beauty: 2.9 s, and 4.7 s with RecBole's own.
    """

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self._collects_top_k = self.register.need("rec.topk")
        setattr(self.register, "rec.topk", False)

    def eval_batch_collect(
        self, scores_tensor: Tensor, interaction: Any, positive_u: Tensor, positive_i: Tensor
    ) -> None:
        """Collect a batch of rows.

        Parameters
        ----------
        scores_tensor : Tensor
            Scores of all items, ``[B, I]``.
        interaction : Interaction
            The rows.
        positive_u, positive_i : Tensor
            Row and item of each held-out item, int64 ``[P]``.
        """
        super().eval_batch_collect(scores_tensor, interaction, positive_u, positive_i)
        if self._collects_top_k:
            rows, items = scores_tensor.shape
            row, item = (index.to(scores_tensor.device) for index in (positive_u, positive_i))
            best = scores_tensor.topk(max(self.topk)).indices
            cells = best + items * torch.arange(rows, device=best.device)[:, None]  # place in the matrix [B, I]
            positives = torch.bincount(row, minlength=rows)
            self.data_struct.update_tensor(
                "rec.topk", torch.cat([torch.isin(cells, row * items + item).long(), positives[:, None]], 1)
            )

    def get_data_struct(self) -> Any:
        """RecBole's collected tensors, with the rows of all processes."""
        for name, value in self.data_struct._data_dict.items():
            if name.startswith("rec.") or name == "data.label":
                self.data_struct._data_dict[name] = distributed.gather(value)
        return super().get_data_struct()
