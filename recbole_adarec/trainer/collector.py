"""Collects what RecBole's metrics are computed from, over all processes."""

from __future__ import annotations

from typing import Any

import torch
from recbole.data.interaction import Interaction
from recbole.evaluator import Collector
from torch import Tensor

from recbole_adarec import distributed
from recbole_adarec.data.dataset import WINDOW_FIELD


def on_device(interaction: Interaction, device: torch.device) -> Interaction:
    """A batch on the device, without waiting for what is queued there; which windows it holds is asked for here."""
    moved = {
        name: value if name == WINDOW_FIELD else value.to(device, non_blocking=True)
        for name, value in interaction.interaction.items()
    }
    return Interaction(moved)


class GatheringCollector(Collector):
    """RecBole's collector of what the metrics are made of, which joins what all processes ranked.

    Which of the best items are those to be found is looked up. RecBole makes a matrix of rows by items for it and sums
    that: the validation users of Beauty took a student 4.7 s, and take it 2.9.
    """

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self._ranked = self.register.need("rec.topk")
        setattr(self.register, "rec.topk", False)

    def eval_batch_collect(
        self, scores_tensor: Tensor, interaction: Any, positive_u: Tensor, positive_i: Tensor
    ) -> None:
        super().eval_batch_collect(scores_tensor, interaction, positive_u, positive_i)
        if self._ranked:
            rows, items = scores_tensor.shape
            row, item = (index.to(scores_tensor.device) for index in (positive_u, positive_i))
            ranked = scores_tensor.topk(max(self.topk)).indices
            cells = ranked + items * torch.arange(rows, device=ranked.device)[:, None]
            number = torch.bincount(row, minlength=rows)
            self.data_struct.update_tensor(
                "rec.topk", torch.cat([torch.isin(cells, row * items + item).long(), number[:, None]], 1)
            )

    def get_data_struct(self) -> Any:
        for name, value in self.data_struct._data_dict.items():
            if name.startswith("rec.") or name == "data.label":
                self.data_struct._data_dict[name] = distributed.gather(value)
        return super().get_data_struct()
