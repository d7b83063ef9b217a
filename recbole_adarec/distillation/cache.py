"""Teacher outputs, computed once per window and reused in every epoch of search and student."""

from __future__ import annotations

from logging import getLogger
from typing import Any, NamedTuple

import torch
from torch import Tensor

from recbole_adarec.data.dataset import WINDOW_FIELD, WindowDataset
from recbole_adarec.model.teacher import AdaRecTeacher


class Lesson(NamedTuple):
    """What the teacher has to say of a batch, at the N positions where it may teach.

    Attributes
    ----------
    positions : Tensor
        Those positions, a bool mask ``[B, L]``.
    embedding : Tensor
        ``[N, C]``.
    layers : Tensor
        ``[T, N, C]``.
    output : Tensor
        ``[N, C]``, scored by the teacher's item table.
    """

    positions: Tensor
    embedding: Tensor
    layers: Tensor
    output: Tensor


class LiveTeacher:
    """Runs the teacher for each batch."""

    def __init__(self, teacher: AdaRecTeacher) -> None:
        self.teacher = teacher

    @torch.no_grad()
    def lesson(self, interaction: Any) -> Lesson:
        """The lesson of a batch of windows."""
        encoding, positions = self.teacher.taught(interaction[self.teacher.ITEM_SEQ])
        return Lesson(positions, encoding.embedding, torch.stack(encoding.layers), encoding.output)


class CachedTeacher:
    """Keeps the lessons of all windows in memory, in half precision.

    Parameters
    ----------
    teacher : AdaRecTeacher
        In evaluation mode.
    dataset : WindowDataset
        The windows.
    """

    def __init__(self, teacher: AdaRecTeacher, dataset: WindowDataset, batch_size: int) -> None:
        self.item_seq = teacher.ITEM_SEQ
        self.device = next(teacher.parameters()).device
        live, parts, rows, columns = LiveTeacher(teacher), [], [], []
        for window in torch.arange(len(dataset)).split(batch_size):
            lesson = live.lesson(dataset[window].to(self.device))
            row, column = lesson.positions.nonzero(as_tuple=True)
            rows.append(window[row.cpu()])
            columns.append(column.cpu())
            stacked = torch.cat([lesson.embedding[None], lesson.layers, lesson.output[None]])
            parts.append(stacked.half().transpose(0, 1).contiguous())  # [N, T + 2, C]
        self.store = torch.cat(parts)
        self.column = torch.cat(columns)
        self.count = torch.bincount(torch.cat(rows), minlength=len(dataset))
        self.first = self.count.cumsum(0) - self.count

    def lesson(self, interaction: Any) -> Lesson:
        """The lesson of a batch of windows."""
        windows, item_seq = interaction[WINDOW_FIELD].cpu(), interaction[self.item_seq]
        count = self.count[windows]
        row = torch.arange(len(windows)).repeat_interleave(count)
        within = torch.arange(len(row)) - (count.cumsum(0) - count)[row]
        index = self.first[windows][row] + within
        positions = torch.zeros(item_seq.shape, dtype=torch.bool)
        positions[row, self.column[index]] = True
        stacked = self.store[index.to(self.device)].float().transpose(0, 1)
        return Lesson(positions.to(self.device), stacked[0], stacked[1:-1], stacked[-1])


def teacher_outputs(teacher: AdaRecTeacher, dataset: WindowDataset, megabytes: int) -> LiveTeacher | CachedTeacher:
    """The teacher behind a cache if its outputs fit into `megabytes`, else without."""
    teacher.eval()
    values = int(dataset.windows.length.sum()) * (teacher.distilled_layers + 2) * teacher.hidden_size
    needed = values * torch.finfo(torch.half).bits // 8 / 1e6
    if needed > megabytes:
        getLogger().info(
            f"teacher outputs need {needed:.0f} MB, teacher_cache_mb is {megabytes}: recomputed for each batch"
        )
        return LiveTeacher(teacher)
    getLogger().info(f"teacher outputs are kept in memory: {needed:.0f} MB")
    return CachedTeacher(teacher, dataset, batch_size=64)
